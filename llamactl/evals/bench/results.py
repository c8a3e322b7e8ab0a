"""What a model has reached: by benchmark, by part, and by the groups of the paper's Table 3. Shares are of 0 to 1."""

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from llamactl.artifacts.records import Score
from llamactl.bootstrap import RESAMPLES
from llamactl.evals.bench.answering import Outcome
from llamactl.evals.bench.known import BENCHMARKS, CODE, COMMONSENSE, MATH, WORLD
from llamactl.evals.bench.published import LLAMA_2, MODELS
from llamactl.evals.reward import Measurement, mean_of
from llamactl.evals.reward_tables import NONE, Table

PART = "subject"
MEAN_OF_PARTS = "mean_of_subjects"
GROUP_MEAN = "mean"
WHOLE = {CODE, COMMONSENSE, WORLD, MATH}  # groups of which all is known: of reading QuAC is not
TITLE = "%, ± standard error, and Llama 2 as published (Table 3)"


def measured(name: str, outcomes: Sequence[Outcome], seed: int) -> Iterator[Measurement]:
    """By metric; the first by part, and as the mean of these, where the benchmark has parts that count."""
    metrics = list(outcomes[0].values)
    for metric in metrics:
        yield _mean(metric, outcomes, seed)
    parts: dict[str, list[Outcome]] = {}
    for one in outcomes:
        parts.setdefault(one.part, []).append(one)
    if BENCHMARKS[name].parted and len(parts) > 1:
        by_part = [_mean(metrics[0], some, seed, {PART: part or "unnamed"}) for part, some in parts.items()]
        yield Measurement(MEAN_OF_PARTS, sum(one.value for one in by_part) / len(by_part), len(by_part), None)
        yield from by_part


def _mean(metric: str, outcomes: Sequence[Outcome], seed: int, group: dict[str, str] | None = None) -> Measurement:
    values = np.array([one.values[metric] for one in outcomes])
    return mean_of(metric, [one.prompt for one in outcomes], values, seed, group)


def grouped(found: Mapping[str, Sequence[Measurement]]) -> Iterator[tuple[str, Measurement]]:
    """The mean of each group of which more than one benchmark was asked: which those are stands with it."""
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(BENCHMARKS[name].group, []).append(name)
    for group, names in groups.items():
        if group and len(names) > 1:
            first = [found[name][0] for name in names]
            errors = [one.stderr for one in first if one.stderr is not None]
            error = math.hypot(*errors) / len(first) if len(errors) == len(first) else None
            mean = sum(one.value for one in first) / len(first)
            yield group, Measurement(GROUP_MEAN, mean, len(first), error, None, {"of": ", ".join(names)})


def _all(model: str, found: Mapping[str, Sequence[Measurement]]) -> Table:
    """The first metric of each benchmark, and the groups' means where these are whole."""
    rows = [(name, *_cells(some[0]), *_published(name)) for name, some in found.items()]
    for group, mean in grouped(found):
        of = {name for name, one in BENCHMARKS.items() if one.group == group}
        names = set((mean.group or {})["of"].split(", "))
        whole = group in WHOLE and names == of
        rows.append((group, *_cells(mean), *(_published(group) if whole else (NONE,) * len(MODELS))))
    header = ("benchmark", "metric", model, "questions", *(f"Llama 2 {size}" for size in MODELS))
    return Table(TITLE, rows, header)


def _cells(one: Measurement) -> tuple[str, str, str]:
    error = f" ±{100 * one.stderr:.1f}" if one.stderr is not None else ""
    metric = one.metric if one.metric != GROUP_MEAN else f"mean of {one.n}"
    return metric, f"{100 * one.value:.1f}{error}", f"{one.n:,}" if one.metric != GROUP_MEAN else NONE


def _published(name: str) -> tuple[str, ...]:
    row = LLAMA_2.get(name)
    return tuple(f"{value:g}" for value in row) if row else (NONE,) * len(MODELS)


def scores(
    model: Path,
    found: Mapping[str, Sequence[Measurement]],
    outcomes: Mapping[str, Sequence[Outcome]],
    told: Mapping[str, str],
    seed: int,
) -> Iterator[Score]:
    """Of benchmarks, each scored as is ``told``, and of groups."""
    digests = {name: sha256(b"".join(one.prompt for one in outcomes[name])).hexdigest() for name in found}
    for name, some in found.items():
        scoring = f"{told[name]}; bootstrap of {RESAMPLES:,} resamples by question, seed {seed}"
        shots = max(one.shots for one in outcomes[name])
        for one in some:
            yield Score(
                task=name,
                model=str(model),
                shots=shots,
                prompt_sha256=digests[name],
                scoring=scoring,
                **one._asdict(),
            )
    every, scoring = sha256("".join(digests.values()).encode()).hexdigest(), "mean of benchmarks, each by its metric"
    for group, mean in grouped(found):
        yield Score(task=group, model=str(model), shots=0, prompt_sha256=every, scoring=scoring, **mean._asdict())


def tables(model: str, found: Mapping[str, Sequence[Measurement]]) -> Iterator[Table]:
    """All benchmarks in one; then those that have parts, by these."""
    yield _all(model, found)
    for name, some in found.items():
        if parted := [one for one in some if one.group]:
            rows = [(*(one.group or {}).values(), f"{100 * one.value:.1f}", f"{one.n:,}") for one in parted]
            yield Table(f"{name} by {PART}, %", rows, (PART, some[0].metric, "questions"))
