"""Figures of answers: how scores are spread (Figure 20), versions in the plane (11), how alike answers are (21).

In: Samples, scored for the first two. A mean over prompts has the 95 % interval of a bootstrap over them.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from llamactl import bootstrap
from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Sample
from llamactl.bootstrap import Estimate
from llamactl.errors import Fault
from llamactl.evals.self_bleu import self_bleu
from llamactl.pictures import trainings
from llamactl.pictures.asked import Asked, place
from llamactl.pictures.chart import FILES, Chart, Point, Series, histogram, named
from llamactl.text.judging import prompt_key

BINS = 24
SCORES = "llamactl generate ... | llamactl score --reward NAME=RM writes such Samples"
SAMPLES = "llamactl generate -k 25 --temperature T writes such Samples"
PLANE = ("helpfulness", "safety")  # across and up


class ScoredSample(Sample, kw_only=True):
    """A Sample that reward models have judged."""

    scores: dict[str, float]


class Drawing(msgspec.Struct):
    """How a Sample was drawn, as far as it matters here."""

    temperature: float
    seed: int | None = None
    index: int | None = None


class DrawnSample(Sample, kw_only=True):
    """A Sample that tells how it was drawn."""

    sampling: Drawing
    model: str = "a model"


def _scored(path: str, asked: Asked) -> list[jsonl.Found[ScoredSample]]:
    found = list(jsonl.read([path], ScoredSample, refuse=asked.refusing(SCORES)))
    if not found:
        raise Fault(path, "holds no scored Sample", SCORES)
    return found


def mean(prompts: Sequence[bytes], values: Sequence[float], seed: int) -> Estimate:
    """The mean over answers, with its interval by bootstrap over prompts."""
    (estimate,) = bootstrap.ratios(prompts, np.array(values)[:, None], np.ones((len(values), 1)), seed)
    assert estimate
    return estimate


def distribution(asked: Asked) -> list[Chart]:
    """How each version's scores are spread, one version below the other; a chart for each reward model."""
    names = named(asked.paths, asked.labels, FILES)
    values: dict[str, dict[str, list[float]]] = {}  # by reward model, by file
    for path in asked.paths:
        for found in _scored(path, asked):
            for model, score in found.record.scores.items():
                values.setdefault(model, {}).setdefault(path, []).append(score)
    charts = []
    for model, by_path in values.items():
        edges = np.histogram_bin_edges(np.concatenate([np.array(one) for one in by_path.values()]), BINS)
        series = []
        for path, some in by_path.items():
            counts, _ = np.histogram(some, edges)
            bins = [
                {"low": low, "high": high, "n": n}
                for low, high, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
            ]
            series.append(histogram(names[path], bins, float(np.mean(some))))
        sizes = sorted({len(one) for one in by_path.values()})
        note = " to ".join(f"{size:,}" for size in dict.fromkeys([sizes[0], sizes[-1]])) + " answers each"
        charts.append(Chart(f"Scores for {model}", "score", "", series, note, stacked=True))
    return charts


def progress(asked: Asked) -> list[Chart]:
    """Versions, one after the other, by mean score for helpfulness and for safety; PPO iteration by iteration."""
    names = named(map(place, asked.paths), asked.labels, FILES)
    versions: list[Point] = []
    ways: list[Series] = []
    axes: tuple[str, ...] = PLANE
    for path in asked.paths:
        if trainings.is_training(path):
            if versions and axes != PLANE:
                raise Fault(path, f"has {' and '.join(PLANE)}, and {axes[0]} and {axes[1]} are compared", SCORES)
            ways.append(trainings.way(path, names[place(path)], *PLANE))
            continue
        found = _scored(path, asked)
        has = list(found[0].record.scores)
        here = axes if set(axes) <= set(has) else tuple(has[:2])
        if len(here) < 2 or (versions and here != axes) or (here != PLANE and ways):
            raise Fault(found[0].where, f"scores: has {', '.join(has) or 'none'}, and two are compared", SCORES)
        axes = here
        if odd := next((one for one in found if not set(axes) <= one.record.scores.keys()), None):
            raise Fault(odd.where, f"scores: {' or '.join(axes)} is missing", SCORES)
        prompts = [prompt_key(one.record.messages) for one in found]
        across, up = (mean(prompts, [one.record.scores[name] for one in found], asked.seed) for name in axes)
        versions.append(Point(across.value, up.value, up.interval, across.interval, names[path]))
    series = [Series("versions", versions)] if versions else []
    note = "means with 95 %" + (f", bootstrap over prompts, seed {asked.seed}" if versions else "")
    note += "; numbers are iterations" if ways else ""
    x, y = (f"mean score for {name}" for name in axes)
    return [Chart(f"Progress in {axes[0]} and {axes[1]}", x, y, [*series, *ways], note)]


def likeness(asked: Asked) -> list[Chart]:
    """Self-BLEU of the answers to a prompt, mean over prompts, against temperature: by model and kind of prompt."""
    said: dict[tuple[str, str], dict[float, dict[bytes, list[str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    draws: set[tuple[object, ...]] = set()  # an index is drawn once, and the same wherever its prompt is asked
    for found in jsonl.read(asked.paths, DrawnSample, refuse=asked.refusing(SAMPLES)):
        one = found.record
        if not one.response.strip():
            asked.run.skipped["answers without a text"] += 1
            continue
        who, drawn, prompt = (one.model, _kind(found.raw)), one.sampling, prompt_key(one.messages)
        draw = who, drawn.temperature, prompt, drawn.seed, drawn.index, one.response
        if drawn.index is not None and draw in draws:
            asked.run.skipped["answers that are there twice, as their prompt is"] += 1
            continue
        draws.add(draw)
        said[who][drawn.temperature][prompt].append(one.response)
    names = named((model for model, _ in said), asked.labels, "models")
    series: list[Series] = []
    sizes: set[int] = set()
    for (model, kind), by_temperature in said.items():
        points = []
        for temperature, by_prompt in sorted(by_temperature.items()):
            several = {prompt: texts for prompt, texts in by_prompt.items() if len(texts) > 1}
            if alone := len(by_prompt) - len(several):
                asked.run.skipped["prompts with one answer only"] += alone
            if several:
                sizes |= {len(texts) for texts in several.values()}
                alike = mean(list(several), [self_bleu(texts) for texts in several.values()], asked.seed)
                points.append(Point(temperature, alike.value, alike.interval))
        if points:
            name = f"{names[model]}, {kind}" if kind and len(names) > 1 else kind or names[model]
            series.append(Series(name, points))
    if not series:
        raise Fault(", ".join(asked.paths), "holds no two answers to one prompt at one temperature", SAMPLES)
    many = " to ".join(f"{size:,}" for size in dict.fromkeys([min(sizes), max(sizes)]))
    note = f"{many} answers to a prompt; means over prompts, 95 % by bootstrap, seed {asked.seed}"
    return [Chart("Self-BLEU of the answers to a prompt", "temperature", "Self-BLEU", series, note)]


def _kind(raw: dict[str, Any]) -> str:
    """What sort of prompt it is, creative or factual for example: what it says by ``kind``, else by ``source``."""
    return next((raw[field] for field in ("kind", "source") if isinstance(raw.get(field), str)), "")
