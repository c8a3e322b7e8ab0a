"""What every figure is made of, whatever draws it: charts, of series, of points. Plain values.

A figure is some charts side by side. A chart's series are lines of points over common axes; or, where it is
``stacked``, each is a histogram above an axis of its own, one below the other, so that one sees how they shift.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from llamactl.errors import Fault

Interval = tuple[float, float]
NORMAL = 1.96  # standard errors that hold 95 %
FILES = "files"  # what the things are that are labelled


class Point(NamedTuple):
    """A point; of a histogram a bin: its middle, how dense it is, and as ``across`` its edges."""

    x: float
    y: float
    interval: Interval | None = None  # of y
    across: Interval | None = None  # of x
    label: str = ""


class Series(NamedTuple):
    """Points that belong together, in the order in which they are joined.

    A ``guide`` is no measurement: what the others would be if all were well. ``mark`` is where a histogram's mean is.
    """

    name: str
    points: Sequence[Point]
    guide: bool = False
    mark: float | None = None


class Chart(NamedTuple):
    """One set of axes. ``note`` says how its numbers came to be; ``doubling``: that x is on a scale of doublings."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    note: str = ""
    doubling: bool = False
    stacked: bool = False


def named(paths: Iterable[str], labels: Sequence[str], what: str) -> dict[str, str]:
    """What each of some paths is called: its label, else as little of it as tells them apart.

    Of ``files`` what all their names begin with is left out, and what they end with: ``held-out-v1.jsonl`` and
    ``held-out-v2.jsonl`` are v1 and v2. Raises Fault where there are labels, and not one for each.
    """
    every = list(dict.fromkeys(paths))
    if labels and len(labels) != len(every):
        said = ", ".join(map(repr, every[:6])) + (", ..." if len(every) > 6 else "")
        raise Fault("--label", f"{len(labels)} for {len(every)} {what}: {said}", "give one for each, in this order")
    if twice := [label for label, times in Counter(labels).items() if times > 1]:
        raise Fault("--label", f"{twice[0]!r} is given twice", "give each a label of its own")
    found = labels or _told_apart(every)
    return dict(zip(every, found if labels or what != FILES else _shortened(found), strict=True))


def _told_apart(paths: Sequence[str]) -> list[str]:
    """The last parts of some paths, as many of them as it takes."""
    parts = [Path(path).parts for path in paths]
    for size in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _shortened(names: Sequence[str]) -> list[str]:
    """File names without their endings, and without the words that all of them begin with."""
    stems = [name.removesuffix(".gz").removesuffix(".zst") for name in names]
    stems = [stem.removesuffix(".jsonl").removesuffix(".json") for stem in stems]
    words = [re.split(r"(?<=[-_./])", stem) for stem in stems]
    common = takewhile(lambda column: len(set(column)) == 1, zip(*(each[:-1] for each in words), strict=False))
    begin = len(list(common)) if len(stems) > 1 else 0
    short = ["".join(each[begin:]) for each in words]
    return short if all(short) and len(set(short)) == len(short) else list(names)


def histogram(name: str, bins: Sequence[Mapping[str, float]], mean: float | None = None) -> Series:
    """Bins ``{"low", "high", "n"}`` as a series whose area is 1."""
    total = sum(one["n"] for one in bins) or 1
    points = [
        Point(
            (one["low"] + one["high"]) / 2,
            one["n"] / total / ((one["high"] - one["low"]) or 1),
            across=(one["low"], one["high"]),
        )
        for one in bins
    ]
    return Series(name if mean is None else f"{name}\nmean {tick(round(mean, 3))}", points, mark=mean)


HEADER = ("series", "x", "from", "to", "y", "at least", "at most")


def rows(chart: Chart) -> Iterator[tuple[str, ...]]:
    """All numbers of a chart as a table under ``HEADER``; empty where there is no interval."""
    for series in chart.series:
        for point in series.points:
            name = series.name.partition("\n")[0] + (f": {point.label}" if point.label else "")
            yield (
                name,
                *(
                    "" if one is None else f"{one:.6g}"
                    for one in (point.x, *(point.across or (None, None)), point.y, *(point.interval or (None, None)))
                ),
            )


def tick(value: float) -> str:
    """A number at an axis: 0.5, 12, 30 k, 1.2 M."""
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.4g} {unit}"
    return f"{0 if abs(value) < 1e-12 else value:.4g}".replace("-", "\N{MINUS SIGN}")
