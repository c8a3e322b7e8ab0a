"""The figure of safety data: what models are worth whose fine-tuning data held more and more of it (Figure 15, 33).

In: what ``examples/safety-scaling.sh`` leaves: scored Samples, and Scores (of refusals), of models whose names end in a
share in percent: ``chat-10``. A set of prompts is told by what a file's name has besides:
``chat-10.helpful.scored.jsonl``. Scores of a part of a set, by label or type, are left to the files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from llamactl.artifacts.records import checked, measured
from llamactl.errors import Fault
from llamactl.pictures.answers import ScoredSample, mean
from llamactl.pictures.asked import Asked, objects
from llamactl.pictures.chart import Chart, Point, Series, named
from llamactl.pictures.measured import interval
from llamactl.text.judging import prompt_key

WRITES = "examples/safety-scaling.sh writes such files"


def shares(asked: Asked) -> list[Chart]:
    """Mean scores and measurements against the share of safety data: a chart for each, a line for a set of prompts."""
    found: dict[str, dict[str, list[Point]]] = {}  # by what is measured, by set of prompts
    for path in asked.paths:
        lines = objects(path, WRITES)
        if "metric" in lines[0][1]:
            for where, raw in lines:
                score = measured(raw, where)
                if score.group:  # of some of the prompts: a dozen lines more
                    continue
                share, prompts = _told(path, where, score.model)
                point = Point(share, score.value, interval(score))
                _add(found, score.metric.replace("_", " "), prompts, point, where)
        else:
            samples = [(where, checked(raw, (ScoredSample,), where), str(raw.get("model"))) for where, raw in lines]
            places = {_told(path, where, model) for where, _, model in samples}
            if len(places) > 1:
                raise Fault(path, "holds answers of several models", WRITES)
            ((share, prompts),) = places
            for name, values in _columns(path, [one for _, one, _ in samples]).items():
                keys = [prompt_key(one.messages) for _, one, _ in samples]
                estimate = mean(keys, values, asked.seed)
                point = Point(share, estimate.value, estimate.interval)
                _add(found, f"mean score for {name}", prompts, point, path)
    names = named((prompts for by_set in found.values() for prompts in by_set), asked.labels, "sets of prompts")
    return [
        Chart(
            what[0].upper() + what[1:],
            "share of the safety data, %",
            what,
            [Series(names[prompts], sorted(points)) for prompts, points in by_set.items()],
            ("" if len(by_set) > 1 else f"{names[next(iter(by_set))]} prompts; ") + "95 % by bootstrap over prompts",
        )
        for what, by_set in found.items()
    ]


def _told(path: str, where: str, model: str) -> tuple[float, str]:
    """The share by a model's name, and the set of prompts by a file's; raises Fault."""
    name = Path(model).name
    share = re.search(r"(?:^|[^0-9.])([0-9]+(?:\.[0-9]+)?)$", name)
    if not share or not 0 <= float(share[1]) <= 100:
        raise Fault(
            where, f"model: {name} does not end in a share, as chat-10 does for 10 % of the safety data", WRITES
        )
    rest = Path(path).name.removeprefix(name).lstrip(".")
    return float(share[1]), rest.split(".")[0]


def _columns(path: str, samples: Sequence[ScoredSample]) -> dict[str, list[float]]:
    names = samples[0].scores.keys()
    if any(one.scores.keys() != names for one in samples):
        raise Fault(path, "holds answers with other scores than the first", "score them all by the same models")
    return {name: [one.scores[name] for one in samples] for name in names}


def _add(found: dict[str, dict[str, list[Point]]], what: str, prompts: str, point: Point, where: str) -> None:
    points = found.setdefault(what, {}).setdefault(prompts, [])
    if any(one.x == point.x for one in points):
        raise Fault(where, f"{what} at {point.x:g} % is there twice", "name one file of each model and set of prompts")
    points.append(point)
