"""Figures of measurements: margins (Figure 27), calibration (29), accuracy against data (6).

In: Scores, as ``llamactl eval`` writes them.
"""

import math
from collections.abc import Iterable, Mapping

from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Score
from llamactl.errors import Fault
from llamactl.pictures.asked import Asked
from llamactl.pictures.chart import NORMAL, Chart, Interval, Point, Series, histogram, named

WRITES = "llamactl eval reward RM --data FILE writes such Scores"
SCALING = "examples/reward_scaling.sh writes such Scores"


def scores(asked: Asked, remedy: str) -> list[tuple[str, Score]]:
    """All Scores of the files, and where each stands; raises Fault."""
    found = list(jsonl.scores(asked.paths, asked.refusing(remedy)))
    if not found:
        raise Fault(", ".join(asked.paths), "holds no Score", remedy)
    return found


def of_all(found: Iterable[tuple[str, Score]], metric: str) -> dict[str, Score]:
    """What a metric came to for each model, over all records; raises Fault where it is there twice."""
    by_model: dict[str, Score] = {}
    for where, score in found:
        if score.metric == metric and not score.group and score.threshold is None:
            if score.model in by_model:
                problem = f"{metric} of {score.model} is there twice"
                raise Fault(where, problem, "name one file of Scores for each model, on one set of records")
            by_model[score.model] = score
    return by_model


def margins(asked: Asked) -> list[Chart]:
    """How margins, and the scores of chosen and rejected answers, are spread: of models one below the other."""
    found = scores(asked, WRITES)
    by = {metric: of_all(found, metric) for metric in ("margin", "score_chosen", "score_rejected")}
    if not by["margin"]:
        raise Fault(", ".join(asked.paths), "holds no margins", WRITES)
    names = named(by["margin"], asked.labels, "models")
    spread = [histogram(names[model], score.bins, score.value) for model, score in by["margin"].items() if score.bins]
    answers = [
        histogram(f"{names[model]}, {what}", score.bins, score.value)
        for model in names
        for what in ("chosen", "rejected")
        if (score := by[f"score_{what}"].get(model)) and score.bins
    ]
    sizes = {f"{score.n:,}" for score in by["margin"].values()}
    note = f"{' or '.join(sorted(sizes))} held-out pairs"
    charts = [Chart("Margins", "score of the chosen answer, less that of the other", "", spread, note, stacked=True)]
    return [*charts, Chart("Scores", "score", "", answers, note, stacked=True)] if answers else charts


def calibration(asked: Asked) -> list[Chart]:
    """Whether the model is right as often as it is sure to be; and its scores against people's ratings."""
    found = scores(asked, WRITES)
    sure, rated = of_all(found, "ece"), of_all(found, "likert_score")
    if not sure and not rated:
        raise Fault(", ".join(asked.paths), "holds no calibration", WRITES)
    names = named([*sure, *rated], asked.labels, "models")
    charts = []
    if rated:
        series = [Series(names[model], [*_rated(score.bins or [])]) for model, score in rated.items()]
        note = "means with 95 % (1.96 standard errors; answers taken as independent)"
        charts.append(Chart("Score against people's ratings", "rating (Likert)", "mean score", series, note))
    if sure:
        ideal = Series("calibrated", [Point(0.5, 0.5), Point(1, 1)], guide=True)
        series = [
            Series(f"{names[model]} (error {score.value:.3f})", [*_reliability(score.bins or [])])
            for model, score in sure.items()
        ]
        x, y = "confidence: sigmoid of the margin's size", "share judged as people did"
        note = "95 % by Wilson's interval; pairs taken as independent"
        charts.append(Chart("Right as often as sure", x, y, [ideal, *series], note))
    return charts


def _rated(bins: Iterable[Mapping[str, float]]) -> Iterable[Point]:
    for one in bins:
        if one["n"]:
            error = one.get("stderr")
            interval = (one["score"] - NORMAL * error, one["score"] + NORMAL * error) if error is not None else None
            yield Point((one["low"] + one["high"]) / 2, one["score"], interval)


def _reliability(bins: Iterable[Mapping[str, float]]) -> Iterable[Point]:
    for one in bins:
        if one["n"]:
            yield Point(one["confidence"], one["accuracy"], wilson(one["accuracy"], one["n"]))


def wilson(share: float, n: float) -> Interval:
    """The 95 % interval of a share of ``n`` (Wilson, 1927)."""
    z = NORMAL**2
    middle = (share + z / (2 * n)) / (1 + z / n)
    wide = NORMAL / (1 + z / n) * math.sqrt(share * (1 - share) / n + z / (4 * n**2))
    return middle - wide, middle + wide


def scaling(asked: Asked) -> list[Chart]:
    """Accuracy of reward models against the comparisons they were trained on, a line for each model they began as."""
    found = scores(asked, SCALING)
    groups: dict[tuple[str, float], list[tuple[float, Score]]] = {}  # by the model they began as, and its size
    for model, score in of_all(found, "accuracy").items():
        about = score.about or {}
        count, size = about.get("comparisons"), about.get("parameters")
        if not isinstance(count, float) or not isinstance(size, float):
            problem = (
                f"of {model} it is not known how many comparisons it was trained on (about: comparisons, parameters)"
            )
            raise Fault(", ".join(asked.paths), problem, "llamactl eval reward writes it of models of rm-train")
        groups.setdefault((str(about.get("model", "")), size), []).append((count, score))
    if not groups:
        raise Fault(", ".join(asked.paths), "holds no accuracy", SCALING)
    if max(map(len, groups.values())) < 2:
        raise Fault(", ".join(asked.paths), "holds one amount of data for each model, which is no curve", SCALING)
    names = named((model for model, _ in groups), asked.labels, "models")
    series = []
    for (model, size), some in groups.items():
        points = [Point(count, score.value, interval(score)) for count, score in sorted(some, key=lambda one: one[0])]
        series.append(Series(f"{names[model]}, {size / 1e6:,.1f} M", points))
    counts = {f"{score.n:,}" for some in groups.values() for _, score in some}
    note = f"on {' or '.join(sorted(counts))} held-out comparisons, 95 % by bootstrap over prompts"
    x, y = "comparisons trained on", "share judged as people did"
    return [Chart("Accuracy of reward models", x, y, series, note, doubling=True)]


def interval(score: Score) -> Interval | None:
    """What holds a Score's value with 95 %: as it says, else 1.96 standard errors."""
    if score.interval is None and score.stderr is not None:
        return score.value - NORMAL * score.stderr, score.value + NORMAL * score.stderr
    return score.interval
