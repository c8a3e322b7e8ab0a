"""Tokenize a corpus into shards (paper, section 2.2.1): each document becomes BOS, its ids, EOS.

In: a corpus and a tokenizer. Out: a directory of token shards, the same bytes whatever the number of processes.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


def tokenize(
    corpus: options.Corpus,
    tokenizer: options.Tokenizer,
    out: options.Out = Path("shards"),
    shard: options.ShardOf = Shard(),
    shard_tokens: Annotated[int, typer.Option(help="Tokens a shard file; held in memory.", min=1)] = 1 << 26,
    encoding: options.Encoding = None,
    skip_bad: options.SkipBad = False,
    max_line: options.MaxLine = 16 << 20,
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn text into shards of token ids, on all cores, in memory that does not grow with the corpus.

    With --shard i/n, n runs write the parts of one directory, in any order, on any machines.

    Example: llamactl tokenize books/ --tokenizer tokenizer.model -o shards/books
    """
    settings = dict(locals())

    from llamactl import ui
    from llamactl.artifacts import corpus as texts
    from llamactl.artifacts import shards
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.text.encode import encode_corpus
    from llamactl.text.tokenizer import Tokenizer

    names, passed_over = texts.files(corpus)
    run = Run("tokenize", settings, {"corpus": names, "tokenizer": [tokenizer]}, out, directory=True)
    run.skipped.update(passed_over)
    mark = shards.part_name(shard) if shard.count > 1 else None
    if run.already_made(mark):
        if mark:  # the run that made it may have been killed before it made the whole
            shards.complete(out)
        return
    model = Tokenizer.load(tokenizer)
    reading = texts.Reading(encoding, shard, max_line)
    made = run.directory()
    if mark:
        shards.check_siblings(out, shard, run, overwrite)
        made = run.part(mark)
        run.facts["part"] = {"index": shard.index, "count": shard.count}
    with made as (directory, outputs), ui.Working("tokenize", texts.total_bytes(names), "B") as bar:
        writer = shards.Writer(directory, model.dtype, shard, shard_tokens)
        for encoded in encode_corpus(texts.blocks(names, reading), model, reading, workers):
            for fault in encoded.faults:
                run.refuse(fault)
            writer.add(encoded.ids, encoded.lengths)
            run.done.update(encoded.done)
            run.noted.update(encoded.noted)
            bar.advance(encoded.disk, documents=run.done["documents"], tokens=run.done["tokens"])
        if not run.done["documents"] and not mark:
            raise Fault(", ".join(corpus), "holds no document that can be used", "look at what was skipped")
        if mark:
            shards.check_siblings(out, shard, run, overwrite)
        outputs += writer.close()
        outputs.append(model.save(directory))
        assert (writer.documents, writer.tokens) == (run.done["documents"], run.done["tokens"]), "a document was lost"
        speed = ui.size(run.done["bytes"] / run.effort.device_seconds())
        counts = ", ".join(f"{run.done[what]:,} {what}" for what in ("documents", "bytes", "tokens"))
        ui.note(f"{out}: {counts}, {speed}/s")
    if mark and not shards.complete(out):
        absent = len(shards.missing(out))
        ui.note(f"{out}: {absent} of {shard.count} parts are missing" if absent else f"{out}: its parts are not alike")
