"""Figures of rejection sampling: reward of the best and the median of N answers (Figure 7), by temperature (Figure 8).

In: reports, as ``reject-sample --report`` writes them, or the Samples whose manifest holds one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from llamactl.artifacts import jsonl, manifest
from llamactl.artifacts.records import in_words
from llamactl.errors import Fault
from llamactl.pictures.asked import Asked
from llamactl.pictures.chart import FILES, Chart, Interval, Point, Series, named

WRITES = "llamactl reject-sample -k 16 --report FILE writes one"


class Expected(msgspec.Struct):
    """What the best, or the median, of n answers is expected to be."""

    n: int
    value: float | None
    interval: Interval | None


class Curves(msgspec.Struct, kw_only=True):
    """Rewards by n."""

    best: list[Expected]
    median: list[Expected]


class Warm(Curves, kw_only=True):
    """The same of the answers at one temperature."""

    temperature: float


class Report(msgspec.Struct, kw_only=True):
    """What is drawn of a report."""

    prompts: int
    k: int
    reward: Curves
    by_temperature: list[Warm]
    interval: str


def report(path: str) -> Report:
    """A report: a file of its own, or what a manifest says, that of Samples or itself; raises Fault."""
    own = manifest.beside(Path(path))
    if path != jsonl.STDIN and own.exists():
        raw: Any = manifest.load(own)
    else:
        with jsonl.open_input(path) as given:
            try:
                raw = orjson.loads(given.stream.read())
            except orjson.JSONDecodeError:
                raise Fault(path, "is no report of reject-sample", WRITES) from None
    raw = raw.get("report", raw) if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or "by_temperature" not in raw:
        raise Fault(path, "is no report of reject-sample", WRITES)
    try:
        return msgspec.convert(raw, Report)
    except msgspec.ValidationError as error:
        raise Fault(path, in_words(error), WRITES) from None


def _points(curve: Sequence[Expected]) -> list[Point]:
    return [Point(one.n, one.value, one.interval) for one in curve if one.value is not None]


def _note(found: Sequence[Report]) -> str:
    prompts = {one.prompts for one in found}
    of = f"{prompts.pop():,} prompts" if len(prompts) == 1 else f"{min(prompts):,} to {max(prompts):,} prompts"
    return f"{of}; {'; '.join(dict.fromkeys(one.interval for one in found))}"


def reward(asked: Asked) -> list[Chart]:
    """Expected reward of the best and of the median of N answers, against N."""
    names = named(asked.paths, asked.labels, FILES)
    found = {path: report(path) for path in asked.paths}
    series = []
    for path, one in found.items():
        if one.k < 2:
            raise Fault(path, "is of one answer to each prompt, which is no curve", "reject-sample with a larger -k")
        before = f"{names[path]}: " if len(found) > 1 else ""
        series += [
            Series(f"{before}{what} of N", points)
            for what, points in (("best", _points(one.reward.best)), ("median", _points(one.reward.median)))
            if points
        ]
    if not series:
        raise Fault(", ".join(asked.paths), "holds no answer that was judged", "look at what reject-sample has counted")
    return [Chart("Reward of N answers", "N answers", "reward", series, _note(list(found.values())), doubling=True)]


def temperature(asked: Asked) -> list[Chart]:
    """Expected reward of the best of N answers by temperature; a chart for each report."""
    names = named(asked.paths, asked.labels, FILES)
    found = {path: report(path) for path in asked.paths}
    if len({warm.temperature for one in found.values() for warm in one.by_temperature}) < 2:
        remedy = "reject-sample with several --temperature"
        raise Fault(", ".join(asked.paths), "was sampled at one temperature: there is nothing to compare", remedy)
    return [
        Chart(
            f"Best of N by temperature: {names[path]}",
            "N answers",
            "reward of the best",
            [Series(f"temperature {warm.temperature:g}", _points(warm.best)) for warm in one.by_temperature],
            _note([one]),
            doubling=True,
        )
        for path, one in found.items()
    ]
