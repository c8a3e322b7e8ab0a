"""How sure a mean over answers is: by bootstrap over prompts.

Answers of one prompt are drawn together, for they share its difficulty.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
CHUNK = 1 << 20  # draws of prompts in memory at once

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A ratio of two sums, the standard deviation of its resamples, and what 95 % of them lie between.

    Of a single prompt nothing can be said of how far it would be off with another.
    """

    value: float
    stderr: float | None
    interval: tuple[float, float] | None


def facts(estimate: Estimate | None) -> dict[str, Any]:
    """An estimate as reports have it, in JSON: its value and its interval."""
    if estimate is None:
        return {"value": None, "interval": None}
    return {"value": estimate.value, "interval": list(estimate.interval) if estimate.interval else None}


def written(one: Mapping[str, Any]) -> str:
    """The same for people."""
    if one["value"] is None:
        return "-"
    return f"{one['value']:.3f}" + (" [{:.3f}, {:.3f}]".format(*one["interval"]) if one["interval"] else "")


def ratios(prompts: Sequence[bytes], above: Floats, below: Floats, seed: int) -> list[Estimate | None]:
    """Sums of ``above`` over sums of ``below``, both ``[n, k]``, of n pairs or answers; None where a sum below is 0.

    The bootstrap draws as many prompts as there are, with replacement, ``RESAMPLES`` times: with the same seed the same
    prompts for every model and every one of the k. A resample whose sum below is 0 is left out.
    """
    index = _numbered(prompts)
    size, columns = int(index.max()) + 1, above.shape[1]
    sums = np.zeros((size, 2 * columns))
    np.add.at(sums, index, np.concatenate([above, below], axis=1))
    drawn = np.concatenate(list(_resampled(sums, seed))) if size > 1 else np.zeros((0, 2 * columns))
    found: list[Estimate | None] = []
    for top, bottom, resampled, under in zip(
        sums[:, :columns].sum(0), sums[:, columns:].sum(0), drawn[:, :columns].T, drawn[:, columns:].T, strict=True
    ):
        if not bottom:
            found.append(None)
        elif not (some := under > 0).any():
            found.append(Estimate(float(top / bottom), None, None))
        else:
            values = resampled[some] / under[some]
            low, high = np.quantile(values, (0.025, 0.975)).tolist()
            found.append(Estimate(float(top / bottom), float(values.std()), (low, high)))
    return found


def _numbered(prompts: Sequence[bytes]) -> NDArray[np.int64]:
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], np.int64)


def _resampled(sums: Floats, seed: int) -> Iterator[Floats]:
    """Sums over the prompts of each resample, ``[some, columns]``, of those of each prompt, ``[prompts, columns]``."""
    random, size = np.random.default_rng(seed), len(sums)
    rows = max(1, CHUNK // size)
    for start in range(0, RESAMPLES, rows):
        some = min(rows, RESAMPLES - start)
        drawn = random.integers(size, size=(some, size)) + size * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * size).reshape(some, size)
        yield times @ sums
