"""Figures of trainings: loss against tokens (Figure 5), and PPO's way through the plane of Figure 11.

In: model directories, or their ``metrics.jsonl``, also of a training that is still under way.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamactl.artifacts import metrics
from llamactl.errors import Fault
from llamactl.pictures.asked import Asked, objects, place
from llamactl.pictures.chart import NORMAL, Chart, Interval, Point, Series, named

MOST = 150  # points of a line; of more, neighbours are drawn as their mean
WRITES = "llamactl pretrain, sft and rm-train write it"


def is_training(path: str) -> bool:
    """Whether a path names a training, not a file of records."""
    return Path(path).is_dir() or Path(path).name == metrics.FILE


def steps(path: str) -> list[dict[str, Any]]:
    """The lines of a training's metrics; raises Fault."""
    file = Path(path) / metrics.FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        problem = f"holds no {metrics.FILE}" if Path(path).is_dir() else "no such file"
        raise Fault(path, problem, f"name a model directory that was trained here, or its {metrics.FILE}")
    found = []
    for where, line in objects(str(file), WRITES):
        if not isinstance(line.get("step"), int):
            raise Fault(where, "step: missing: this is no line of metrics", WRITES)
        found.append(line)
    return found


def loss(asked: Asked) -> list[Chart]:
    """Training loss of runs against the tokens they have seen; held-out loss beside it where it was measured."""
    names = named(map(place, asked.paths), asked.labels, "runs")
    series: list[Series] = []
    per_point = 1
    for path in asked.paths:
        found, name = steps(path), names[place(path)]
        trained = [Point(line["tokens"], line["loss"]) for line in found if _has(line, "tokens", "loss")]
        if not trained:
            remedy = "llamactl plot progress draws them" if any("reward" in line for line in found) else WRITES
            what = "are of ppo, which has rewards and no loss" if "draws" in remedy else "have no loss and tokens"
            raise Fault(path, f"its metrics {what}", remedy)
        if refused := sum("loss" in line and line["loss"] is None for line in found):
            asked.run.noted["steps whose loss is no number, left out"] += refused
        if len(trained) == 1:
            raise Fault(path, "its metrics have one step only, which is no curve", "train on, or --log-every 1")
        size = math.ceil(len(trained) / MOST)
        per_point = max(per_point, size)
        series.append(Series(name, means(trained, size)))
        held_out = [
            Point(line["tokens"] if line["step"] else 0, line["eval_loss"])
            for line in found
            if _has(line, "eval_loss") and (_has(line, "tokens") or line["step"] == 0)
        ]
        if held_out:
            series.append(Series(f"{name}, held out", held_out))
    note = f"each point of the long lines is a mean of up to {per_point:,} steps" if per_point > 1 else ""
    return [Chart("Loss against tokens seen", "tokens", "loss", series, note)]


def _has(line: dict[str, Any], *names: str) -> bool:
    return all(isinstance(line.get(name), int | float) for name in names)


def means(points: Sequence[Point], size: int) -> list[Point]:
    """As many points together as ``size`` as one: at the last one's place, as high as they are on average."""
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [Point(group[-1].x, math.fsum(one.y for one in group) / len(group)) for group in groups]


def way(path: str, name: str, x: str, y: str) -> Series:
    """What PPO's answers came to by two reward models, iteration by iteration: on held-out prompts where there are.

    The first and the last are labelled, with ``name``; raises Fault where metrics have no such scores.
    """
    found = steps(path)
    for before in ("eval_", ""):
        points = [
            Point(
                line[before + x],
                line[before + y],
                _around(line, before + y),
                _around(line, before + x),
                f"{name} {line['step']}",
            )
            for line in found
            if _has(line, before + x, before + y)
        ]
        if len(points) > 1:
            ends = (points[0], points[-1])
            points = [one if one in ends else one._replace(label="") for one in points]
            return Series(f"{name}, by iteration{', held out' if before else ''}", points)
    raise Fault(path, f"its metrics have no scores for {x} and {y}", "llamactl ppo --helpfulness RM --safety RM does")


def _around(line: dict[str, Any], name: str) -> Interval | None:
    error = line.get(f"{name}_stderr")
    return (line[name] - NORMAL * error, line[name] + NORMAL * error) if isinstance(error, float) else None
