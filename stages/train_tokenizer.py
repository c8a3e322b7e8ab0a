"""Train the tokenizer (paper, section 2.2.1): SentencePiece BPE, digits split, byte fallback.

In: a corpus. Out: ``tokenizer.model``, and its manifest beside.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def train_tokenizer(
    corpus: options.Corpus,
    out: options.Out = Path("tokenizer.model"),
    vocab_size: Annotated[int, typer.Option(help="Pieces, the 3 specials and 256 bytes among them.", min=260)] = 32_000,
    sample: Annotated[
        int, typer.Option(help="Lines kept in memory to learn from: a uniform sample of the whole corpus.", min=1)
    ] = 5_000_000,
    encoding: options.Encoding = None,
    skip_bad: options.SkipBad = False,
    max_line: options.MaxLine = 16 << 20,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn a tokenizer from text (SentencePiece BPE, 32,000 pieces, digits split, bytes for the rest).

    The corpus is streamed, and may be larger than memory: SentencePiece keeps a uniform sample of --sample lines.

    Example: llamactl train-tokenizer books/ pages.jsonl.zst -o tokenizer.model
    """
    settings = dict(locals())

    from llamactl import ui
    from llamactl.artifacts import corpus as texts
    from llamactl.artifacts.run import Run
    from llamactl.text import tokenizer

    names, passed_over = texts.files(corpus)
    run = Run("train-tokenizer", settings, {"corpus": names}, out)
    run.skipped.update(passed_over)
    if run.already_made():
        return
    with run.file() as file:
        with ui.Working("read corpus", None, "documents") as bar:

            def read() -> "Iterator[str]":
                for document in texts.read(names, texts.Reading(encoding, max_line=max_line), run):
                    bar.advance(1)
                    yield document.text

            found = tokenizer.sampled(read(), sample, seed)
        ui.note(f"learning {vocab_size:,} pieces from {len(found.kept):,} lines")
        file.write(tokenizer.learned(found.kept, vocab_size))
        run.done.update(bytes=found.bytes, lines=found.lines)
        how = "all lines" if found.lines <= sample else f"a uniform sample of {sample:,} of the lines (reservoir)"
        run.facts["sampled"] = {"how": how, "lines_cut": found.cut}
    ui.note(f"learned {vocab_size:,} pieces from {run.done['documents']:,} documents, {ui.size(found.bytes)}: {how}")
