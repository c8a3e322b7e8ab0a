"""A data doctor (contract, section 1): what is in a record file, and what of it a stage would refuse.

In: any records of ours. Out: a table, or JSON lines; exit status 1 where something would be refused.
"""

from typing import Annotated

import typer

from llamactl import options


def validate(
    files: Annotated[list[str] | None, typer.Argument(help="Record files; stdin if none.")] = None,
    tokenizer: options.OptionalTokenizer = None,
    context: Annotated[int, typer.Option(help="Tokens a record may have, of --tokenizer.", min=1)] = 4096,
    held_out: Annotated[
        list[str], typer.Option(help="Another file: count the prompts that are in both; repeatable.")
    ] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="A JSON object for each file on stdout, no table.")] = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    quiet: options.Quiet = False,
) -> None:
    """Say what is in record files: counts, lengths, turns, languages, duplicates, and what a stage would refuse.

    Of comparisons also the columns of the paper's Table 6. The exit status is 1 where something would be refused.

    Example: llamactl validate dialogues.jsonl --tokenizer base --held-out test.jsonl
    """
    import sys

    import orjson

    from llamactl import ui
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.manifest import plain
    from llamactl.errors import Fault
    from llamactl.text.survey import KINDS, Survey, rows
    from llamactl.text.tokenizer import Tokenizer

    model = Tokenizer.load(tokenizer) if tokenizer else None

    def surveyed(name: str) -> Survey:
        survey = Survey(model, context if model else None, allow_tags)

        def refuse(fault: Fault) -> None:
            if fault.remedy and not survey.records:  # the whole file is none of ours
                raise fault
            survey.refuse(fault)

        with ui.Working(f"validate {name}", None, "records") as bar:
            for found in jsonl.read([name], *KINDS, refuse=refuse, max_line=max_line):
                survey.add(found)
                bar.advance()
        return survey

    others = {plain(name): surveyed(name).prompts for name in held_out}
    refused = 0
    for name in files or [jsonl.STDIN]:
        report = surveyed(name).report(others)
        refused += sum(found["records"] for found in report["refused"].values())
        if json:
            with jsonl.reader_may_leave():
                sys.stdout.buffer.write(orjson.dumps({"file": plain(name), **report}, option=orjson.OPT_APPEND_NEWLINE))
                sys.stdout.flush()
            continue
        ui.table(name, rows(report))
        if table := [(source, *row.values()) for source, row in report["preference"].items()]:
            unit = f"{report['unit']} of"
            header = ("source", "comparisons", "turns", f"{unit} an example", f"{unit} a prompt", f"{unit} a response")
            ui.table("preference data, means (Table 6)", table, header)
    if refused:
        raise Fault(", ".join(files or ["stdin"]), f"{refused:,} records would be refused", "mend them, or --skip-bad")
