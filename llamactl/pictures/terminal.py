"""Charts as text, for a terminal, a log or a mail: characters on a grid, histograms as blocks. No colours."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise
from string import ascii_uppercase

from llamactl import ui
from llamactl.pictures.chart import Chart, Series, tick

WIDE, HIGH = 64, 18  # characters of the grid
SIGNS = "ox+*#@%&"
GUIDE, JOIN = ".", "."
BLOCKS = " ▁▂▃▄▅▆▇█"


def written(charts: Sequence[Chart], title: str = "") -> str:
    """All charts, one below the other."""
    parts = [title] if title else []
    for chart in charts:
        body = _ridges(chart) if chart.stacked else _lines(chart)
        parts.append("\n".join(line.rstrip() for line in [chart.title, *filter(None, [chart.note]), "", *body]))
    return ui.harmless("\n\n".join(parts))


def _ridges(chart: Chart) -> Iterator[str]:
    """A line a histogram, all over the same range and to one scale."""
    edges = [edge for series in chart.series for point in series.points for edge in point.across or ()]
    low, high = min(edges), max(edges)
    step = (high - low) / WIDE or 1.0
    tallest = max(point.y for series in chart.series for point in series.points) or 1.0
    names = [series.name.replace("\n", ", ") for series in chart.series]
    wide = max(map(len, names))
    for name, series in zip(names, chart.series, strict=True):
        cells = (_density(series, low + (column + 0.5) * step) / tallest for column in range(WIDE))
        yield f"{name:{wide}}  " + "".join(BLOCKS[math.ceil(8 * one)] for one in cells)
    yield f"{'':{wide}}  {tick(low):<{WIDE // 2}}{tick(high):>{WIDE - WIDE // 2}}"
    yield f"{'':{wide}}  {chart.x}"


def _density(series: Series, x: float) -> float:
    return next((point.y for point in series.points if point.across and point.across[0] <= x < point.across[1]), 0.0)


def _lines(chart: Chart) -> Iterator[str]:
    """A grid with the series' points, each series by a sign of its own; labelled points by letters of their own."""
    every = [point for series in chart.series for point in series.points]
    left, right = _range([_along(chart, point.x) for point in every])
    bottom, top = _range([point.y for point in every])
    grid = [[" "] * WIDE for _ in range(HIGH)]

    def place(x: float, y: float) -> tuple[int, int]:
        column = round((x - left) / (right - left) * (WIDE - 1))
        return HIGH - 1 - round((y - bottom) / (top - bottom) * (HIGH - 1)), column

    legend: list[str] = []
    number, letters = 0, cycle(ascii_uppercase)
    for series in sorted(chart.series, key=lambda one: not one.guide):  # what is measured lies on top
        sign = GUIDE if series.guide else SIGNS[number % len(SIGNS)]
        number += not series.guide
        dots = [place(_along(chart, point.x), point.y) for point in series.points]
        for (row, column), (below, beside) in pairwise(dots):
            length = max(abs(below - row), abs(beside - column))
            for part in range(1, length):
                at = round(row + (below - row) * part / length), round(column + (beside - column) * part / length)
                if grid[at[0]][at[1]] == " ":
                    grid[at[0]][at[1]] = JOIN
        labels = []
        for (row, column), point in zip(dots, series.points, strict=True):
            grid[row][column] = next(letters) if point.label else sign
            labels += [f"{grid[row][column]} {point.label}"] if point.label else []
        legend += [f"{sign} {series.name}"] * (not all(point.label for point in series.points)) + labels
    scale = {row: tick(top - (top - bottom) * row / (HIGH - 1)) for row in (0, HIGH // 2, HIGH - 1)}
    wide = max(map(len, scale.values()))
    yield chart.y
    for row, cells in enumerate(grid):
        yield f"{scale.get(row, ''):>{wide}} │" + "".join(cells)
    ends = [tick(2**one if chart.doubling else one) for one in (left, right)]
    yield f"{'':{wide}} └" + "─" * WIDE
    yield f"{'':{wide}}  {ends[0]:<{WIDE // 2}}{ends[1]:>{WIDE - WIDE // 2}}"
    yield f"{'':{wide}}  {chart.x}" + (", on a scale of doublings" if chart.doubling else "")
    yield ""
    yield from (f"{'':{wide}}  {one}" for one in legend)


def _along(chart: Chart, x: float) -> float:
    return math.log2(x) if chart.doubling else x


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
