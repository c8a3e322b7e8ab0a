"""Other people's files as our records (contract, section 1): dialogues, prompts, comparisons or documents.

In: files as they are, JSON lines, arrays, CSV, compressed or not. Out: JSON lines that every stage reads.
"""

from typing import Annotated, Literal

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


def _list(wanted: bool) -> None:
    if wanted:
        from llamactl.artifacts.jsonl import reader_may_leave
        from llamactl.formats import known

        with reader_may_leave():
            print(known.described(), flush=True)
        raise typer.Exit


def convert(
    files: Annotated[list[str] | None, typer.Argument(help="Files in any known format; stdin if none.")] = None,
    to: Annotated[
        Literal["documents", "dialogues", "prompts", "comparisons"], typer.Option(help="What to make.")
    ] = "dialogues",
    from_: Annotated[
        str | None, typer.Option("--from", help="The format of all files, by name.", show_default="recognised")
    ] = None,
    out: options.Records = None,
    source: Annotated[
        str | None, typer.Option(help="The source field of all records.", show_default="the record's own")
    ] = None,
    safety: Annotated[
        bool, typer.Option("--safety", help="Tag the prompts as likely to elicit unsafe answers.")
    ] = False,
    shard: options.ShardOf = Shard(),
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    formats: Annotated[
        bool, typer.Option("--formats", help="List the formats and their rules.", callback=_list, is_eager=True)
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert people's files as they are; the format of each is recognised by its first item.

    What is odd is mended or left out by a stated rule, and counted; --formats lists them all.

    Example: llamactl convert alpaca_data.json oasst_trees.jsonl.gz --to dialogues > dialogues.jsonl
    """
    settings = dict(locals())

    from llamactl import ui
    from llamactl.artifacts import corpus, jsonl
    from llamactl.artifacts.manifest import plain
    from llamactl.artifacts.records import Comparison, Dialogue, Document, Prompt, checked
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.formats import items, known
    from llamactl.text import dialogue

    settings["from"] = settings.pop("from_")
    del settings["formats"]  # it only lists them
    if safety and to != "prompts":
        raise Fault("--safety", f"tags prompts, and these are {to}", "leave it out, or --to prompts")
    if source is not None and plain(source) != source:
        raise Fault("--source", "is not UTF-8", "spell it in UTF-8")
    names = files or [jsonl.STDIN]
    kind = known.named(from_) if from_ else None
    kinds = tuple(kind for kind in (Document, Dialogue, Prompt, Comparison) if kind.plural == to)
    given = {name: value for name, value in (("source", source), ("safety", safety or None)) if value is not None}
    run = Run("convert", settings, {"files": names}, out)
    if run.already_made(announce=False):
        return
    rows = []
    with run.records(read_along=True) as writer, ui.Working("convert", corpus.total_bytes(names), "B") as bar:
        for name in names:
            records, bad, read = run.done["records"], run.skipped["bad records"], 0
            with items.opened(name, shard, max_line) as file:
                conversion = known.Conversion(file, to, kind)
                for made in conversion.run(run.refuse):
                    record = made.record | given
                    try:
                        checked(record, kinds, made.where)  # of what passes through, id, source and safety
                        dialogue.check_record(record, made.where, allow_tags)
                    except Fault as fault:
                        run.refuse(fault)
                        continue
                    writer.write(record)
                    run.done["records"] += 1
                    bar.advance(file.tell() - read, records=run.done["records"])
                    read = file.tell()
            run.done["items"] += conversion.items
            run.skipped.update(+conversion.tally.skipped)
            run.noted.update(+conversion.tally.noted)
            facts = conversion.facts() | {
                "records": run.done["records"] - records, "bad": run.skipped["bad records"] - bad,
            }  # fmt: skip
            run.facts.setdefault("files", []).append(facts)
            odd = "; ".join(f"{what}: {n:,}" for what, n in (facts["skipped"] | facts["noted"]).items())
            rows.append(
                (name, facts["format"], f"{facts['items']:,}", f"{facts['records']:,}", f"{facts['bad']:,}", odd)
            )
        if not run.done["records"] and shard.count == 1:
            why = "; ".join(f"{what} {counts}" for what, counts in run.odd())
            raise Fault(", ".join(names), f"nothing came of it, {run.done['items']:,} items read", why)
    ui.table(f"{to} made", rows, ("file", "format", "items", "records", "bad", "left out, or not as it was"))
