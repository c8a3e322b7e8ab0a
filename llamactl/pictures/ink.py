"""Charts as PNG, SVG and HTML, by matplotlib: the same bytes whenever, by whomever they are drawn.

A series is told from the others by its colour, and also without it: colours differ in how dark they are, lines in
their dashes, points in their shape.
"""

import html
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamactl import ui
from llamactl.errors import Fault
from llamactl.pictures.chart import HEADER, Chart, Series, rows, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "html")
DOTS = 160  # an inch, of a PNG
WIDE, HIGH = 5.6, 4.2  # inches of one chart
ROW = 3  # charts side by side, at most

COLOURS = ("#0b2545", "#c8382b", "#6cb0ea", "#6b3e00", "#2b9468", "#f0c648", "#6a4c93", "#8d99a6")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 3, 1, 3)))
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#6b6b6b"
FEW = 24  # points that can be seen one by one

# matplotlib's own look, whatever is said in a user's matplotlibrc, but for these.
LOOK: dict[Any, Any] = {
    "svg.hashsalt": "llamactl",  # ids in an SVG follow from what is drawn
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


def needed(subject: str = "plot", instead: str = ", or draw it with --text") -> None:
    """Raise Fault where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        remedy = f"pip install 'llamactl[plot]'{instead}"
        raise Fault(subject, "needs matplotlib, which is not installed", remedy) from None


def drawn(charts: Sequence[Chart], title: str, form: str) -> bytes:
    """A figure in one of ``FORMATS``."""
    data = printed(lambda: _figure(charts, title), form)
    return _page(charts, title, data.decode()).encode() if form == "html" else data


def printed(figure: Callable[[], "Figure"], form: str) -> bytes:
    """A figure as a PNG, or else as an SVG."""
    import matplotlib

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # that it is looking for fonts
    with matplotlib.rc_context(), _fitting():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(LOOK)
        made, stream = figure(), io.BytesIO()
        if form == "png":
            made.savefig(stream, format="png", dpi=DOTS, metadata={"Software": None})
        else:
            made.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


@contextmanager
def _fitting() -> Iterator[None]:
    """Say which characters the font does not have, and say it once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    glyphs = [re.match(r"Glyph (\d+) ", str(one.message)) for one in caught]
    if lacking := "".join(dict.fromkeys(chr(int(found[1])) for found in glyphs if found)):
        ui.warn(f"drawn as boxes, for the font has them not: {ui.harmless(lacking)}; --label gives other names")


def _figure(charts: Sequence[Chart], title: str) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(len(charts), ROW)
    lines = math.ceil(len(charts) / columns)
    ridges = max((len(chart.series) for chart in charts if chart.stacked), default=0)
    high = max(HIGH, 1.4 + 0.62 * ridges)
    figure = Figure(figsize=(WIDE * columns + 0.4, high * lines + 0.3))
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    for number, chart in enumerate(charts, 1):
        axes = figure.add_subplot(lines, columns, number)
        (_ridges if chart.stacked else _lines)(axes, chart)
        axes.set_title(chart.title + ("\n" if chart.note else ""))
        if chart.note:
            axes.text(0, 1.02, chart.note, transform=axes.transAxes, fontsize=8, color=GREY, va="bottom")
        axes.set_xlabel(chart.x)
        axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    return figure


def _lines(axes: "Axes", chart: Chart) -> None:
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    if chart.doubling:
        axes.set_xscale("log", base=2)
    number = 0
    for series in chart.series:
        if series.guide:
            axes.plot(*_columns(series), color=GREY, linewidth=1, linestyle=(0, (2, 3)), label=series.name)
            continue
        _line(axes, series, number)
        number += 1
    axes.set_ylabel(chart.y)
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    if chart.doubling:
        places = _doublings(sorted({point.x for series in chart.series for point in series.points}))
        axes.set_xticks(places)
        axes.set_xticks([], minor=True)
    if len(chart.series) > 1:
        axes.legend(handlelength=3.2)


def _columns(series: Series) -> tuple[list[float], list[float]]:
    return [point.x for point in series.points], [point.y for point in series.points]


def _line(axes: "Axes", series: Series, number: int) -> None:
    """A series as a line, with its points where they are few; intervals as bars, or as a band where they are many."""
    from matplotlib.patheffects import withStroke

    colour, turn = COLOURS[number % len(COLOURS)], number // len(COLOURS)
    few = len(series.points) <= FEW
    style = {
        "color": colour,
        "linestyle": DASHES[(number + turn) % len(DASHES)],
        "marker": SHAPES[(number + 2 * turn) % len(SHAPES)] if few else "",
        "markersize": 5,
        "linewidth": 1.6 if not any(point.across for point in series.points) else 0.9,
    }
    xs, ys = _columns(series)
    axes.plot(xs, ys, label=series.name, zorder=3, **style)
    some = [point for point in series.points if point.interval]
    lows = [point.interval[0] for point in some if point.interval]
    highs = [point.interval[1] for point in some if point.interval]
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.6}
    if some and few:
        for point, low, high in zip(some, lows, highs, strict=True):  # lines are what a legend keeps clear of
            axes.plot([point.x, point.x], [low, high], **thin)
    elif some:
        axes.fill_between([point.x for point in some], lows, highs, color=colour, alpha=0.15, linewidth=0)
    for point in series.points:
        if point.across:
            axes.plot(point.across, [point.y, point.y], **thin)
        if point.label:
            said = axes.annotate(point.label, (point.x, point.y), xytext=(5, 5), textcoords="offset points", zorder=4)
            said.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _doublings(places: Sequence[float]) -> list[float]:
    """Where an axis of doublings has its ticks: at all that was measured, or, where that is much, at powers of two."""
    if len(places) <= 8:
        return list(places)
    powers = [2.0**n for n in range(math.ceil(math.log2(places[0])), math.floor(math.log2(places[-1])) + 1)]
    return powers if len(powers) > 1 else [places[0], places[-1]]


def _ridges(axes: "Axes", chart: Chart) -> None:
    """Histograms one below the other, the first on top, all to one scale."""
    tallest = max((point.y for series in chart.series for point in series.points), default=0) or 1
    places = [-1.15 * tallest * number for number in range(len(chart.series))]
    for number, (series, place) in enumerate(zip(chart.series, places, strict=True)):
        edges = [point.across for point in series.points if point.across]
        heights = [place + point.y for point in series.points]
        colour = COLOURS[number % len(COLOURS)]
        sides = [edges[0][0], *(high for _, high in edges)]
        axes.stairs(heights, sides, baseline=place, fill=True, color=colour, alpha=0.3)
        axes.stairs(heights, sides, baseline=place, color=colour, linewidth=1.1)
        axes.axhline(place, color=GREY, linewidth=0.6)
        if series.mark is not None:
            axes.vlines(series.mark, place, place + 0.95 * tallest, color="black", linewidth=1.6)
    low, high = axes.get_xlim()
    if low < 0 < high:
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_yticks([place + 0.3 * tallest for place in places], [series.name for series in chart.series])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _page(charts: Sequence[Chart], title: str, svg: str) -> str:
    """A page that needs nothing else: the drawing, and its numbers in tables."""
    picture = svg[svg.index("<svg") :]
    head = html.escape(title or "; ".join(chart.title for chart in charts))
    parts = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">', f"<title>{head}</title>",
        "<style>body{font:15px sans-serif;margin:2em auto;max-width:75em;padding:0 1em}svg{max-width:100%;height:auto}"
        "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f3f3}</style>",
        f"<h1>{head}</h1>", picture,
    ]  # fmt: skip
    for chart in charts:
        parts += [f"<h2>{html.escape(chart.title)}</h2>", f"<p>{html.escape(_axes(chart))}</p>", "<table>"]
        parts.append("<tr>" + "".join(f"<th>{name}</th>" for name in HEADER) + "</tr>")
        parts += ["<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>" for row in rows(chart)]
        parts.append("</table>")
    return "\n".join([*parts, "</html>", ""])


def _axes(chart: Chart) -> str:
    said = f"x: {chart.x}. y: {'share of all, by unit of x' if chart.stacked else chart.y}."
    return re.sub(r"\s+", " ", f"{said} {chart.note}")
