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
    rows = [_shares(series, low, step) for series in chart.series]
    tallest = max(map(max, rows)) or 1.0
    names = [series.name.replace("\n", ", ") for series in chart.series]
    wide = max(map(len, names))
    for name, cells in zip(names, rows, strict=True):
        # rounded: the next cell's bin may reach into this one by the last digit of its edge
        yield f"{name:{wide}}  " + "".join(BLOCKS[math.ceil(round(8 * one / tallest, 9))] for one in cells)
    yield f"{'':{wide}}  {tick(low):<{WIDE // 2}}{tick(high):>{WIDE - WIDE // 2}}"
    yield f"{'':{wide}}  {chart.x}"


def _shares(series: Series, low: float, step: float) -> list[float]:
    """How much of a histogram lies in each cell, of bins that may be wider or narrower than one."""
    cells = [0.0] * WIDE
    for point in series.points:
        assert point.across
        begin, end = point.across
        left, right = (begin - low) / step, (end - low) / step
        first, last = (min(int(edge), WIDE - 1) for edge in (left, right))
        for column in range(first, last + 1):
            part = (min(right, column + 1) - max(left, column)) / (right - left) if first < last else 1.0
            cells[column] += point.y * ((end - begin) or 1.0) * part
    return cells


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
