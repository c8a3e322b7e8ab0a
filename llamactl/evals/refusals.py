"""How often a model refuses what it is asked (paper, section 4.2.3 and Figure 33), and how often it should not.

In: answers to prompts that people call ``safe``, where a refusal is false, or ``unsafe``. What a refusal is, is told by
how an answer begins (``text.refusals``). Intervals are by bootstrap over prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from llamactl.artifacts.records import Dialogue, Sample
from llamactl.evals.reward import Measurement, mean_of
from llamactl.evals.reward_tables import Table

Label = Literal["safe", "unsafe"]
UNNAMED = "unnamed"  # a model
FIELDS = ("label", "type")

PAPER = (
    "the paper's models refuse 0.006 to 0.05 % of helpful prompts, 15 to 27 % of 210 borderline ones: as people judge"
)


class AskedSample(Sample, kw_only=True):
    """An answer to a prompt whose kind may be known, as XSTest's is."""

    label: Label | None = None
    type: str | None = None
    model: str = UNNAMED


class AskedDialogue(Dialogue, kw_only=True):
    """A dialogue whose last answer is looked at."""

    safety: bool = False
    label: Label | None = None
    type: str | None = None
    model: str = UNNAMED


class Seen(NamedTuple):
    """An answer: to which prompt, of which kind, and whether it is a refusal."""

    prompt: bytes
    kind: Mapping[str, str | None]  # by the name of a field
    refused: bool


def kind(record: AskedSample | AskedDialogue) -> dict[str, str | None]:
    """Of which kind a prompt is: its label, or unsafe where it is tagged safety, and its type."""
    return {"label": record.label or ("unsafe" if record.safety else None), "type": record.type}


def measured(answers: Sequence[Seen], seed: int) -> Iterator[Measurement]:
    """The share of refusals: of all answers, by label, and by type; a field that no record has divides nothing."""
    yield _share(answers, seed)
    for field in FIELDS:
        parts: dict[str, list[Seen]] = {}
        for one in answers:
            parts.setdefault(one.kind[field] or "", []).append(one)
        if any(parts):
            for name, part in sorted(parts.items(), key=lambda pair: (not pair[0], pair[0])):
                yield _share(part, seed, {field: name or f"no {field}"})


def _share(answers: Sequence[Seen], seed: int, group: dict[str, str] | None = None) -> Measurement:
    values = np.array([float(one.refused) for one in answers])
    return mean_of("refusals", [one.prompt for one in answers], values, seed, group)


def tables(found: Mapping[str, Sequence[Measurement]]) -> Iterator[Table]:
    """A line for each kind of prompt, a column for each model."""
    kinds = list(dict.fromkeys(_named(one) for some in found.values() for one in some))
    by = {(model, _named(one)): one for model, some in found.items() for one in some}
    rows = [(kind, *(_written(by.get((model, kind))) for model in found)) for kind in kinds]
    yield Table(f"% of answers that begin as a refusal, with 95 % (Figure 33)\n{PAPER}", rows, ("prompts", *found))


def _named(one: Measurement) -> str:
    ((field, name),) = (one.group or {"": "all"}).items()
    false = ": each a false refusal" if (field, name) == ("label", "safe") else ""
    return f"{field} {name}".strip() + false


def _written(one: Measurement | None) -> str:
    if one is None:
        return "-"
    between = " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in one.interval)) if one.interval else ""
    return f"{100 * one.value:.1f}{between} of {one.n:,}"
