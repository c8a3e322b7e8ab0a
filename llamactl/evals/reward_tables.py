"""What a person sees of reward models that were measured: the paper's tables, with its own numbers beside.

Its test sets are not public, so its numbers are a yardstick, no more.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from llamactl.artifacts.records import WORDS
from llamactl.evals.reward import ABSENT, Measurement

SHOWN = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)  # thresholds, of those that are measured
NONE = "-"

TABLE_7 = "the paper's models reach 63.2 on Meta Helpfulness (helpfulness), 64.5 on Meta Safety (safety): other sets"
TABLE_8 = {  # in the order of the ratings, then of all
    "paper: helpfulness, on Meta Helpfulness": ("80.7", "67.5", "60.9", "54.7", NONE, "63.2"),
    "paper: safety, on Meta Safety": ("94.3", "76.3", "65.7", "55.3", NONE, "64.5"),
}
OPERATING = {  # precision and recall; section 3.2.3, Table 29
    0.15: ("89", "55"),
    0.5: (NONE, "90.4 (73.0 without the safety loss)"),
}

Found = Mapping[str, Sequence[Measurement]]  # by model


class Table(NamedTuple):
    """A table to be shown."""

    title: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...]


def tables(found: Found) -> Iterator[Table]:
    """The tables that there is something for."""
    every = [one for some in found.values() for one in some]
    metrics = {one.metric for one in every}
    if "accuracy" in metrics:
        yield _accuracy(found, "source", f"accuracy, % ± standard error, by source (Table 7)\n{TABLE_7}")
        if any("rating" in (one.group or {}) for one in every):
            title = "accuracy, % ± standard error, by how much better the chosen answer is (Table 8)"
            columns = (*WORDS["rating"], ABSENT["rating"])
            yield _accuracy(found, "rating", title, columns, TABLE_8)
        if any("safety_label" in (one.group or {}) for one in every):
            yield _accuracy(found, "safety_label", "accuracy, % ± standard error, by safety label")
        yield _spread(found)
    if "flagged" in metrics:
        yield _operating(found)
    if "likert_score" in metrics:
        yield _likert(found)


def _accuracy(
    found: Found,
    field: str,
    title: str,
    columns: Sequence[str] = (),
    paper: Mapping[str, tuple[str, ...]] = {},
) -> Table:
    """Models by parts of the pairs; how many those are stands above the first model they are so many for."""
    measured: dict[str, dict[str, Measurement]] = {}
    for model, some in found.items():
        parts = {one.group[field]: one for one in some if one.group and field in one.group}
        measured[model] = parts | {"all": next(one for one in some if one.metric == "accuracy")}
    seen = dict.fromkeys(part for parts in measured.values() for part in parts)
    header = (*(columns or (part for part in seen if part != "all")), "all")
    rows: list[tuple[str, ...]] = []
    counts: tuple[str, ...] = ()
    for model, parts in measured.items():
        before, counts = counts, tuple(f"{parts[part].n:,}" if part in parts else NONE for part in header)
        if counts != before:
            rows.append(("pairs", *counts))
        rows.append((model, *(_percent(parts.get(part)) for part in header)))
    rows += [(name, *values) for name, values in paper.items()]
    return Table(title, rows, ("reward model", *(part.replace("_", " ") for part in header)))


def _percent(one: Measurement | None) -> str:
    if one is None:
        return NONE
    return f"{100 * one.value:.1f}" + (f" ±{100 * one.stderr:.1f}" if one.stderr is not None else "")


def _spread(found: Found) -> Table:
    rows = []
    for model, some in found.items():
        by = {one.metric: one for one in some if not one.group}
        if "margin" in by:
            means = [
                f"{by[metric].value:.3f}" + (f" ±{error:.3f}" if (error := by[metric].stderr) is not None else "")
                for metric in ("score_chosen", "score_rejected", "margin")
            ]
            bins = by["margin"].bins or []
            shape = f"{bins[0]['low']:.2f} {blocks([one['n'] for one in bins])} {bins[-1]['high']:.2f}"
            rows.append((model, *means, shape, f"{by['ece'].value:.3f}"))
    header = ("reward model", "chosen", "rejected", "margin", "margins", "calibration error")
    return Table("scores, means ± standard error, and how the margins are spread (Figure 27)", rows, header)


def blocks(counts: Sequence[float]) -> str:
    """A histogram in a word: a block a bin, the tallest for the largest, a dot for none."""
    most = max(counts)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * n / most)] if n else "·" for n in counts)


def _operating(found: Found) -> Table:
    rows = []
    for model, some in found.items():
        at = {(one.metric, one.threshold): one for one in some if one.threshold is not None}
        for threshold in SHOWN:
            if flagged := at.get(("flagged", threshold)):
                shares = [_percent(at.get((metric, threshold))) for metric in ("precision", "recall")]
                of = f"{round(flagged.value * flagged.n):,} of {flagged.n:,}"
                rows.append((model, f"{threshold:.2f}", of, *shares, *OPERATING.get(threshold, ("", ""))))
    header = ("reward model", "below", "flagged", "precision", "recall", "paper: precision", "paper: recall")
    return Table("unsafe answers, found by sigmoid(score) below a threshold, % (section 3.2.3, Table 29)", rows, header)


def _likert(found: Found) -> Table:
    rows: list[tuple[str, ...]] = []
    for model, some in found.items():
        by = {one.metric: one for one in some}
        if one := by.get("likert_score"):
            means = (f"{bin['low']:g}: {bin['score']:.2f}" for bin in one.bins or [] if bin["n"])
            correlation = f"{by['likert_spearman'].value:.3f}" if "likert_spearman" in by else NONE
            rows.append((model, f"{one.n:,}", correlation, "  ".join(means)))
    header = ("reward model", "answers", "rank correlation", "mean score by rating")
    return Table("scores against people's ratings on a Likert scale (Figure 29)", rows, header)
