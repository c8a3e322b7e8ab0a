"""Measure refusals (paper, section 4.2.3, Figure 33): how often a model refuses, and how often it need not have.

In: Samples, as ``generate`` makes them of XSTest's prompts or of helpful ones, or Dialogues. Out: Scores on stdout.
"""

from typing import Annotated

import typer

from llamactl import options


def refusals(
    samples: Annotated[
        list[str] | None, typer.Argument(help="JSON lines of Samples or Dialogues; stdin if none.")
    ] = None,
    out: options.Records = None,
    seed: options.Seed = 0,
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Refusals: the share of answers that begin as one, false ones where the prompt is safe.

    By "model", and by "label" (safe or unsafe; a prompt tagged safety is unsafe) and "type" of the prompt where records
    say it. What a refusal is, is told by how an answer begins, in English: one that comes later, or in other words, is
    not seen, so that models are compared who refuse in similar words. Errors are by bootstrap over prompts, drawn with
    --seed.

    Example: llamactl eval refusals answers.jsonl > scores.jsonl
    """
    settings = dict(locals())

    from collections.abc import Iterator
    from hashlib import sha256
    from typing import Any

    from llamactl import bootstrap, ui
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Score, to_last_question
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.evals import refusals as measuring
    from llamactl.text import dialogue
    from llamactl.text.judging import prompt_key
    from llamactl.text.refusals import REFUSALS, refuses

    files = samples or [jsonl.STDIN]
    run = Run("eval refusals", settings, {"samples": files}, out)
    if run.already_made(announce=False):
        return
    seen: dict[str, list[measuring.Seen]] = {}
    with ui.Working("eval refusals", None, "answers") as bar:
        kinds = measuring.AskedSample, measuring.AskedDialogue
        records: Iterator[jsonl.Found[Any]] = jsonl.read(files, *kinds, refuse=run.refuse, max_line=max_line)
        for record, _, where in records:
            turns = record.turns
            try:
                dialogue.check(turns, where, allow_tags)
                if turns[-1].role != "assistant":
                    raise Fault(f"{where}: messages", "ends on a user turn: there is no answer", "leave it out")
            except Fault as fault:
                run.refuse(fault)
                continue
            answer, key = turns[-1].content, prompt_key(to_last_question(turns))
            seen.setdefault(record.model, []).append(measuring.Seen(key, measuring.kind(record), refuses(answer)))
            run.done.update(samples=1)
            if not answer.strip():
                run.noted["answers without a text, which are no refusals"] += 1
            bar.advance()
    if not seen:
        raise Fault(", ".join(files), "holds no answer", "look at what was skipped")
    found = {model: list(measuring.measured(answers, seed)) for model, answers in seen.items()}
    how = f"begins by one of {len(REFUSALS)} phrases; bootstrap of {bootstrap.RESAMPLES:,} resamples by prompt, "
    with run.records() as writer:
        for model, answers in seen.items():
            digest = sha256(b"".join(one.prompt for one in answers)).hexdigest()
            for one in found[model]:
                writer.write(
                    Score(
                        task="refusals",
                        model=model,
                        shots=0,
                        prompt_sha256=digest,
                        scoring=f"{how}seed {seed}",
                        **one._asdict(),
                    )
                )
    for title, rows, header in measuring.tables(found):
        ui.note("")
        ui.table(title, rows, header)
