"""The kinds of figures: the one table of their names, and who reads what for each."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

from llamactl.errors import Fault
from llamactl.pictures import answers, measured, rounds, safety_data, trainings
from llamactl.pictures.asked import Asked
from llamactl.pictures.chart import Chart


class Kind(NamedTuple):
    """A figure: how it is made of files, what it shows, and which of the paper's it is."""

    charts: Callable[[Asked], list[Chart]]
    shows: str


KINDS = {
    "loss": Kind(trainings.loss, "Figure 5"),
    "scaling": Kind(measured.scaling, "Figure 6"),
    "reward": Kind(rounds.reward, "Figure 7"),
    "temperature": Kind(rounds.temperature, "Figure 8"),
    "progress": Kind(answers.progress, "Figure 11"),
    "safety-scaling": Kind(safety_data.shares, "Figure 15"),
    "distribution": Kind(answers.distribution, "Figure 20"),
    "self-bleu": Kind(answers.likeness, "Figure 21"),
    "margins": Kind(measured.margins, "Figure 27"),
    "calibration": Kind(measured.calibration, "Figure 29"),
}


def kind(name: str) -> Kind:
    """A kind by its name; raises Fault, with the nearest, where there is none."""
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1, 0.4)
        remedy = f"{near[0]}, perhaps; " if near else ""
        raise Fault(f"plot {name}", "is no kind of figure", f"{remedy}there are {', '.join(KINDS)}")
    return KINDS[name]
