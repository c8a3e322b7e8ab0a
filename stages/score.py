"""Score answers by reward models (paper, section 3.2.2): a filter from records to the same records with scores.

In: Samples, Dialogues or Comparisons. Out: the same on stdout, in order, with ``scores``: raw, linear.
"""

from typing import Annotated

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


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
    tensor_parallel: options.TensorParallel = 1,
    shard: options.ShardOf = Shard(),
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Score answers by one reward model or several.

    A Sample's or a Dialogue's scores are {"helpfulness": 1.2, ...}, a Comparison's {"chosen": {...}, "rejected":
    {...}}. But for rounding, a score does not depend on what else is scored, nor on its order.

    Example: llamactl score samples.jsonl --reward helpfulness=helpful-rm --reward safety=safe-rm > scored.jsonl
    """
    settings = dict(locals())

    from llamactl import ui
    from llamactl.align.judges import Judges
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Comparison, Dialogue, Sample
    from llamactl.artifacts.run import Run
    from llamactl.model import device as devices
    from llamactl.train import parallel, planning

    files = samples or [jsonl.STDIN]
    jsonl.by_every_process(files)
    judges = Judges.named(reward, truncate, allow_tags)
    if fault := planning.apart(judges.shapes, ui.world_size(), tensor_parallel):
        raise fault
    settings["precision"] = precision or judges.stored
    settings["reward"] = list(judges.places)
    run = Run("score", settings, {"model": judges.places.values(), "samples": files}, out)
    if run.already_made(announce=False):
        return
    target = devices.chosen(device)
    run.effort.use(devices.title(target), devices.gpus(target))

    totals, answers = dict.fromkeys(judges.places, 0.0), 0
    with (
        parallel.joined(target, tensor_parallel, stops=False) as job,
        run.records(read_along=True) as writer,
        ui.Working("score", None, "answers") as bar,
        job.metered(run),
    ):
        judges.load(target, devices.PRECISIONS[settings["precision"]], part=job.part)
        records = jsonl.read(files, Comparison, Sample, Dialogue, shard=shard, refuse=run.refuse, max_line=max_line)
        for window in judges.verdicts(records, run.refuse):
            for verdict in window:
                cut, sides = verdict.case.cut, verdict.scores
                run.noted.update({"records cut": 1, "tokens cut off": cut} if cut else {})
                writer.write(verdict.record)
                for scores in sides.values():
                    for name, value in scores.items():
                        totals[name] += value
                run.done.update(samples=len(sides))
            new, answers = run.done["samples"] - answers, run.done["samples"]
            bar.advance(new, **{name: f"{total / answers:.3f}" for name, total in totals.items()})
    rows = [(name, f"{total / answers:.4f}", f"{answers:,}") for name, total in totals.items() if answers]
    ui.table("scores", rows, ("reward model", "mean", "answers"))
