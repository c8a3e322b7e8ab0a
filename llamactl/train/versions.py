"""Versions of a policy: model directories that a run leaves as it goes on, and which of them was measured best."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamactl import ui
from llamactl.artifacts import files
from llamactl.model.llama import Llama
from llamactl.train.training import Training


class Versions:
    """Of a training's model, beside its result, as ``iteration-00020``; ``save`` writes one into a directory.

    All processes call what is here together.
    """

    def __init__(self, training: Training, save: Callable[[Path], list[dict[str, Any]]]) -> None:
        self._training, self._save = training, save

    @property
    def best(self) -> tuple[int, float]:
        """Iteration and measure of the best; -inf while nothing was measured."""
        iteration, value = self._training.facts.get("best", (0, -math.inf))
        return iteration, value

    def measured(self, iteration: int, value: float) -> None:
        """Keep this one if it is the best so far."""
        if value > self.best[1]:
            self._training.facts["best"] = [iteration, value]
            self.keep(iteration)

    def keep(self, iteration: int) -> None:
        """The model as it is."""
        place = self._place(iteration)
        if not ui.first_rank():
            self._save(place)
            return
        with files.whole_directory(place) as filling:
            self._training.run.write(filling, self._save(filling), iteration=iteration)

    def said(self) -> str:
        """Which are there, in words."""
        names = ", ".join(place.name for place in sorted(self._training.directory.glob("iteration-*")))
        return f"of its versions it holds {names}" if names else "it holds the state, and no version as a model"

    def take_back(self, model: Llama, iteration: int) -> None:
        """Have the model's weights be those of that version."""
        model.fill(self._place(iteration))

    def clear(self, every: int | None) -> None:
        """Remove all but those of ``every`` so many iterations, of which 0 is none."""
        if ui.first_rank():
            for place in sorted(self._training.directory.glob("iteration-*")):
                iteration = int(place.name.partition("-")[2])
                if every is None or not iteration or iteration % every:
                    files.remove(place)

    def _place(self, iteration: int) -> Path:
        return self._training.directory / f"iteration-{iteration:05d}"
