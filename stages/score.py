"""Score answers by reward models (paper, section 3.2.2): a filter from records to the same records with scores.

In: Samples, Dialogues or Comparisons. Out: the same on stdout, in order, with ``scores``: raw, linear.
"""

from typing import Annotated, Any

import typer

from llamactl import options
from llamactl.artifacts.records import Shard

WINDOW = 256  # records judged together, those of one prompt at once


def score(
    reward: Annotated[
        list[str], typer.Option(help="NAME=DIR: a reward model, and what its score is called; repeatable.")
    ],
    samples: Annotated[
        list[str] | None, typer.Argument(help="JSON lines of Samples, Dialogues or Comparisons; stdin if none.")
    ] = None,
    out: options.Records = None,
    truncate: options.Truncate = False,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    shard: options.ShardOf = Shard(),
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Score answers by one reward model or several.

    A Sample's or a Dialogue's scores are {"helpfulness": 1.2, ...}, a Comparison's {"chosen": {...}, "rejected":
    {...}}. A score does not depend on what else is scored, nor on its order.

    Example: llamactl score samples.jsonl --reward helpfulness=helpful-rm --reward safety=safe-rm > scored.jsonl
    """
    settings = dict(locals())

    from statistics import fmean

    from llamactl import ui
    from llamactl.align.judges import Case, Judges
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.manifest import Run
    from llamactl.artifacts.records import Comparison, Dialogue, Sample
    from llamactl.errors import Fault
    from llamactl.model import device as devices

    files = samples or [jsonl.STDIN]
    judges = Judges.named(reward, truncate, allow_tags)
    settings["precision"] = precision or judges.stored
    settings["reward"] = list(judges.places)
    run = Run("score", settings, {"model": judges.places.values(), "samples": files}, out)
    if run.already_made(announce=False):
        return
    target = devices.chosen(device)
    judges.load(target, devices.PRECISIONS[settings["precision"]])
    run.device = devices.title(target)

    given: dict[str, list[float]] = {name: [] for name in judges.places}
    with run.records() as writer, ui.Working("score", None, "answers") as bar:

        def judge(waiting: list[tuple[dict[str, Any], Case]]) -> None:
            for (raw, case), sides in zip(waiting, judges.scores([case for _, case in waiting]), strict=True):
                writer.write({**raw, "scores": case.scored(sides)})
                for scores in sides.values():
                    for name, value in scores.items():
                        given[name].append(value)
            answers = sum(len(sides) for _, case in waiting for sides in [next(iter(case.sides.values()))])
            run.done.update(samples=answers)
            bar.advance(answers, **{name: f"{fmean(values):.3f}" for name, values in given.items() if values})

        window: list[tuple[dict[str, Any], Case]] = []
        for found in jsonl.read(files, Comparison, Sample, Dialogue, shard=shard, refuse=run.refuse, max_line=max_line):
            try:
                case = judges.case(found)
            except Fault as fault:
                run.refuse(fault)
                continue
            run.noted.update({"records cut": 1, "tokens cut off": case.cut} if case.cut else {})
            window.append((found.raw, case))
            if len(window) == WINDOW:
                judge(window)
                window = []
        judge(window)
    rows = [(name, f"{fmean(values):.4f}", f"{len(values):,}") for name, values in given.items() if values]
    ui.table("scores", rows, ("reward model", "mean", "answers"))
