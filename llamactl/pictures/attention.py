"""Figure 10: how much a dialogue attends to its instruction, models side by side.

Above, of one conversation, what each part of it attends to, the instruction at the left; below, the mean over all
conversations of the maximum attention to the instruction, by distance from it.
"""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamactl.errors import Fault
from llamactl.pictures import ink
from llamactl.pictures.ink import COLOURS, DASHES, GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
SCALE = "viridis"  # the lighter the more, in colour as in grey


def form(path: Path) -> str:
    """The format that a file's name says; raises Fault where it is none, or matplotlib is not installed."""
    ink.needed("--plot", "")
    if (found := path.suffix[1:].lower()) not in FORMATS:
        raise Fault(path, "has a name that is of none of png, svg", f"name it {path.with_suffix('.png').name}")
    return found


def drawn(data: Mapping[str, Any], form: str) -> bytes:
    """The figure in one of ``FORMATS``, the same bytes whenever it is drawn."""
    return ink.printed(lambda: figure(data), form)


def figure(data: Mapping[str, Any]) -> "Figure":
    """From what ``eval gatt --attention`` writes. Colours follow the root, so that little attention is seen as well."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    models: Sequence[Mapping[str, Any]] = data["models"]
    drawing = Figure(figsize=(max(7.0, 4.6 * len(models) + 0.6), 7.6))
    grid = drawing.add_gridspec(2, len(models), height_ratios=(1.45, 1))
    brightest = max((value for one in models for row in one["map"]["rows"] for value in row), default=1.0)
    longest = max(len(one["map"]["rows"]) * one["map"]["width"] for one in models)
    panels = []
    for column, one in enumerate(models):
        axes = drawing.add_subplot(grid[0, column])
        width, own, rows = (one["map"][name] for name in ("width", "own", "rows"))
        left, size = -own * width, len(rows) * width
        # what comes later is not attended to at all, and stays white
        cells = [
            [value if place < own + 1 + at else nan for place, value in enumerate(row)] for at, row in enumerate(rows)
        ]
        image = axes.imshow(
            cells, extent=(left, size, size, 0), norm=PowerNorm(0.5, 0, brightest), cmap=SCALE, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        axes.axvline(0, color="white", linewidth=1.2)
        for turn in one["map"]["turns"]:
            axes.axhline(turn, color=GREY, linewidth=0.6, linestyle=(0, (2, 3)))
        axes.set_ylim(longest, 0)
        axes.set_xlim(left, longest)
        axes.set_title(one["name"])
        axes.set_xlabel("attends to token (instruction left of the line)")
        if not column:
            axes.set_ylabel("token of the dialogue, after the instruction")
        panels.append(axes)
    drawing.colorbar(image, ax=panels, label="maximum attention, all layers and heads", shrink=0.9, pad=0.02)
    axes = drawing.add_subplot(grid[1, :])
    axes.grid(color="#e4e4e4", linewidth=0.6)
    for number, one in enumerate(models):
        middles = [(part["low"] + part["high"]) / 2 for part in one["curve"]]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            middles, [part["attention"] for part in one["curve"]], color=colour, linewidth=1.7,
            linestyle=DASHES[number % len(DASHES)], label=one["name"],
        )  # fmt: skip
        lows, highs = ([part.get(side, part["attention"]) for part in one["curve"]] for side in ("least", "most"))
        axes.fill_between(middles, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens after the instruction")
    axes.set_ylabel("maximum attention to it")
    axes.set_title(f"mean over {data['conversations']:,} conversations, with 95 %", fontsize=9, color=GREY)
    axes.legend(handlelength=3.2)
    return drawing
