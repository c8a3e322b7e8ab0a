"""What K answers a prompt tell of fewer, of temperatures, and of themselves (paper, section 3.2.3, Figures 7 and 8).

In: the rewards of each prompt's answers, and what else was seen of them. Out: a report. A mean over prompts stands with
the 95 % interval of a bootstrap over them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from llamactl import bootstrap
from llamactl.bootstrap import Floats, facts, written


class Draw(NamedTuple):
    """What is known of one prompt's answers, by index; the reward of one that could not be judged is None."""

    prompt: str  # a digest
    tagged: bool
    refused: list[tuple[str, str]]  # of those that could not be judged: where, and why
    rewards: list[float | None]
    by_safety: list[bool]  # rewarded by the safety model
    tokens: list[int]
    truncated: list[bool]
    cut: list[int]  # tokens that the reward model of the shortest context has not seen
    refusals: list[bool]
    empty: list[bool]
    same: list[int]  # the first index with the same text
    kept: list[int]  # the indices of those that were kept, the best first
    earlier: list[float]  # rewards of those kept that are of earlier rounds


# -- order statistics


@lru_cache(maxsize=64)
def weights(n: int) -> tuple[Floats, Floats]:
    """How much the i-th smallest of n samples counts for the best, and for the median, of N of them: two ``[N, i]``.

    N are drawn without replacement, row N - 1. The i-th is the r-th smallest of them in C(i-1, r-1) C(n-i, N-r) of
    C(n, N) cases; the best is the N-th, the median of an even N the mean of the middle two. These are whole numbers up
    to the division, so that nothing overflows or cancels, whatever n.
    """
    choose = [[1]]
    for _ in range(n):
        choose.append([1, *(a + b for a, b in pairwise(choose[-1])), 1])

    def share(i: int, r: int, size: int) -> float:
        if r > i or size - r > n - i:
            return 0.0
        return choose[i - 1][r - 1] * choose[n - i][size - r] / choose[n][size]

    each = range(1, n + 1)
    best = [[share(i, size, size) for i in each] for size in each]
    median = [[(share(i, (size + 1) // 2, size) + share(i, size // 2 + 1, size)) / 2 for i in each] for size in each]
    return np.array(best), np.array(median)


def expected(values: Sequence[float]) -> tuple[Floats, Floats]:
    """The expected best and the expected median of 1, 2, ... n of the n values: unbiased, from one draw."""
    best, median = weights(len(values))
    ranked = np.sort(np.asarray(values, np.float64))
    return best @ ranked, median @ ranked


# -- means over prompts


def curves(draws: Sequence[Draw], picked: Sequence[int], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Expected reward of the best and of the median of N of the answers at indices ``picked``, for each N (Figure 7).

    A mean is over the prompts that have N that were judged.
    """
    of = [[reward for index in picked if (reward := draw.rewards[index]) is not None] for draw in draws]
    size = max(map(len, of), default=0)
    if not size:
        return {"best": [], "median": []}
    above, below = np.zeros((len(draws), 2, size)), np.zeros((len(draws), 2, size))
    for row, values in enumerate(of):
        if values:
            above[row, :, : len(values)] = expected(values)
            below[row, :, : len(values)] = 1
    prompts = [draw.prompt.encode() for draw in draws]
    found = bootstrap.ratios(prompts, above.reshape(len(draws), -1), below.reshape(len(draws), -1), seed)
    points = [
        {"n": number % size + 1, **facts(estimate), "prompts": int(below[:, 0, number % size].sum())}
        for number, estimate in enumerate(found)
    ]
    return {"best": points[:size], "median": points[size:]}


def best_temperature(draws: Sequence[Draw], groups: Mapping[float, Sequence[int]], seed: int) -> dict[str, Any] | None:
    """Where the best of N is expected to be best, N being the largest number that all temperatures have (Figure 8).

    ``lead`` is over the second; it is ``clear`` where its interval does not hold 0: the same prompts are resampled for
    both. None where there is nothing to compare.
    """
    n = min(map(len, groups.values()))
    rows: list[list[float]] = []
    prompts: list[bytes] = []
    for draw in draws:
        judged = [[r for i in indices if (r := draw.rewards[i]) is not None] for indices in groups.values()]
        if min(map(len, judged)) >= n:
            rows.append([float(expected(values)[0][n - 1]) for values in judged])
            prompts.append(draw.prompt.encode())
    if len(groups) < 2 or not rows:
        return None
    table = np.array(rows)
    first, second, *_ = np.argsort(-table.mean(0), kind="stable").tolist()
    columns = np.stack([table[:, first], table[:, first] - table[:, second]], axis=1)
    best, lead = bootstrap.ratios(prompts, columns, np.ones_like(columns), seed)
    names = list(groups)
    assert lead
    return {
        "temperature": names[first], "n": n, "prompts": len(rows), **facts(best),
        "lead": {"over": names[second], **facts(lead), "clear": bool(lead.interval and lead.interval[0] > 0)},
    }  # fmt: skip


def answers(draws: Sequence[Draw], picked: Sequence[Sequence[int]], seed: int) -> dict[str, Any]:
    """What there is to say of some answers of each draw, those at the indices ``picked`` of it.

    Shares are of all of them; ``duplicates`` of those that an earlier one to the same prompt equals.
    """
    some = [(draw, index) for draw, indices in zip(draws, picked, strict=True) for index in indices]
    total = len(some)
    distinct = sum(len({draw.same[i] for i in indices}) for draw, indices in zip(draws, picked, strict=True))
    judged = [(draw.prompt.encode(), r) for draw, index in some if (r := draw.rewards[index]) is not None]
    values = np.array([[reward] for _, reward in judged])
    (mean,) = bootstrap.ratios([p for p, _ in judged], values, np.ones_like(values), seed) if judged else [None]

    def share(column: str) -> float | None:
        return sum(getattr(draw, column)[index] for draw, index in some) / total if total else None

    return {
        "samples": total,
        "judged": len(judged),
        "reward": facts(mean),
        "tokens": share("tokens"),
        "truncated": share("truncated"),
        "duplicates": 1 - distinct / total if total else None,
        "refusals": share("refusals"),
        "empty": share("empty"),
        "by_safety": share("by_safety"),
    }


def report(draws: Sequence[Draw], temperatures: Sequence[float], seed: int) -> dict[str, Any]:
    """All there is to say of a round; ``temperatures`` are those of a prompt's answers, by index."""
    groups: dict[float, list[int]] = {}
    for index, temperature in enumerate(temperatures):
        groups.setdefault(temperature, []).append(index)
    every = range(len(temperatures))
    level = [
        len(judged) > 1 and len(set(judged)) == 1
        for judged in ([reward for reward in draw.rewards if reward is not None] for draw in draws)
    ]
    kept = [draw.rewards[index] for draw in draws for index in draw.kept]
    kept += [reward for draw in draws for reward in draw.earlier]
    return {
        "prompts": len(draws),
        "tagged": sum(draw.tagged for draw in draws),
        "all_equal": sum(level),
        "k": len(temperatures),
        "answers": answers(draws, [every] * len(draws), seed),
        "kept": {
            "all": len(kept),
            "of_earlier_rounds": sum(len(draw.earlier) for draw in draws),
            "reward": float(np.mean([one for one in kept if one is not None])) if kept else None,
            "of_this_round": answers(draws, [draw.kept for draw in draws], seed),
        },
        "reward": curves(draws, every, seed),
        "by_temperature": [
            {"temperature": temperature, **answers(draws, [indices] * len(draws), seed), **curves(draws, indices, seed)}
            for temperature, indices in groups.items()
        ],
        "best_temperature": best_temperature(draws, groups, seed),
        "interval": f"95 %, bootstrap of {bootstrap.RESAMPLES:,} resamples by prompt, seed {seed}",
    }


# -- what a person sees of it


class Table(NamedTuple):
    """A table to be shown."""

    title: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...]


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Reward against N, at 1, 2, 4, ... and K; and a line for each temperature."""
    by = report["by_temperature"]
    columns = [report["reward"]["best"], report["reward"]["median"]]
    header = ["N", "best of N", "median of N"]
    if len(by) > 1:
        columns += [one["best"] for one in by]
        header += [f"best at {one['temperature']:g}" for one in by]
    shown = [n for n in range(1, report["k"] + 1) if n & (n - 1) == 0 or n == report["k"]]
    lines = [(f"{n}", *(written(column[n - 1]) if n <= len(column) else "" for column in columns)) for n in shown]
    yield Table("reward of the best and the median of N answers, with 95 % (Figures 7 and 8)", lines, tuple(header))
    of = [(f"temperature {one['temperature']:g}", one) for one in by] if len(by) > 1 else []
    of += [("all", report["answers"]), ("kept", report["kept"]["of_this_round"])]
    percents = ("truncated", "duplicates", "refusals", "empty", "by_safety")
    lines = [
        (
            name, f"{one['samples']:,}", written(one["reward"]),
            "-" if one["tokens"] is None else f"{one['tokens']:.1f}",
            *("-" if one[share] is None else f"{100 * one[share]:.1f}" for share in percents),
        )
        for name, one in of
    ]  # fmt: skip
    header = ["answers", "number", "reward", "tokens", *(f"% {share.replace('_', ' ')}" for share in percents)]
    yield Table("answers of this round", lines, tuple(header))


def advice(report: Mapping[str, Any]) -> str:
    """Which temperature to take in the next round, in words; empty where one alone was tried."""
    if not (best := report["best_temperature"]):
        return ""
    lead, n = best["lead"], best["n"]
    said = f"for the next round: temperature {best['temperature']:g}, whose best of {n} is {written(best)}"
    said += f"; {written(lead)} above that of {lead['over']:g}"
    return said + ("" if lead["clear"] else ", which is within the noise: more prompts would tell")
