"""Figures: the numbers that are drawn, the bytes of what is drawn, and a line for what cannot be."""

import json
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import turns, written
from test_cli import Run, command, one_line

from llamactl.align import rejection
from llamactl.align.rejection import Draw
from llamactl.artifacts import manifest
from llamactl.artifacts import run as runs
from llamactl.errors import Fault
from llamactl.evals.reward import Judged, Pair, Rated
from llamactl.evals.self_bleu import self_bleu
from llamactl.pictures import ink, kinds, measured, terminal
from llamactl.pictures.asked import Asked
from llamactl.pictures.chart import Chart, Point, Series, histogram, named, rows, tick

assert command  # a fixture

SCORING = {"model": "rm", "shots": 0, "prompt_sha256": "0" * 64, "scoring": "by a test"}


def charts(kind: str, *paths: Path, labels: list[str] | None = None) -> list[Chart]:
    asked = [str(path) for path in paths]
    return kinds.kind(kind).charts(Asked(asked, labels or [], runs.Run("plot", {}, {}), 0))


def line(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "tokens": 100 * step, "loss": 8 / step, **more}


def draws(prompts: int, k: int, better: float = 0.0) -> list[Draw]:
    random = np.random.default_rng(0)
    none = [False] * k
    return [
        Draw(
            str(number), False, [], (random.normal(size=k) + better).tolist(), none, [9] * k, none, [0] * k, none, none,
            [*range(k)], [0], [],
        )
        for number in range(prompts)
    ]  # fmt: skip


def a_report(path: Path, temperatures: tuple[float, ...] = (0.5, 1.0) * 4, better: float = 0.0) -> Path:
    """As ``reject-sample --report`` writes one."""
    path.write_text(json.dumps(rejection.report(draws(12, len(temperatures), better), temperatures, 0)))
    return path


def samples(path: Path, better: float = 0.0, **more: Any) -> Path:
    random = np.random.default_rng(1)
    return written(
        path,
        (
            {
                "messages": turns(f"question {number // 2}"), "response": f"answer {number}",
                "scores": {"helpfulness": better + random.normal(), "safety": 2 * better + random.normal()}, **more,
            }
            for number in range(20)
        ),
    )  # fmt: skip


def scores(path: Path, model: str = "rm", likert: bool = True, **more: object) -> Path:
    """As ``eval reward`` writes them."""
    random, judged = np.random.default_rng(2), Judged()
    judged.pairs = [Pair(b"%d" % n, *random.normal((0.5, 0), 1).tolist()) for n in range(40)]
    judged.rated = [Rated(b"%d" % n, float(random.normal() + n % 5), n % 5) for n in range(30)] if likert else []
    return written(
        path, ({"task": "reward", **SCORING, "model": model, **one._asdict(), **more} for one in judged.measured(0))
    )


def drawn_samples(path: Path) -> Path:
    records = []
    for temperature, answers in ((0.1, ["a b c d"] * 3), (1.0, ["a b c d", "a b c e", ""])):
        for kind in ("creative", "factual"):
            for index, answer in enumerate(answers):
                sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "seed": 0, "index": index}
                prompt = {"messages": turns(f"a {kind} question"), "kind": kind}
                records.append({**prompt, "response": answer, "sampling": sampling, "model": "runs/chat"})
    return written(path, records)


def shares(folder: Path) -> list[Path]:
    """As ``examples/safety-scaling.sh`` leaves them, of three models."""
    found = []
    for share in (10, 100, 0):
        model = f"runs/chat-{share}"
        found.append(samples(folder / f"chat-{share}.adversarial.scored.jsonl", share / 10, model=model))
        score = {"task": "refusals", "metric": "refused", "value": share / 200, "n": 9, "stderr": 0.1, **SCORING}
        for prompts in ("helpful", "borderline"):
            labels: list[dict[str, object]] = [{}, {"group": {"label": "safe"}}] if prompts == "borderline" else [{}]
            scored = [score | {"model": model} | label for label in labels]
            found.append(written(folder / f"chat-{share}.{prompts}.refusals.jsonl", scored))
    return found


def scaling(path: Path) -> Path:
    records = []
    for model, count, right in (("a", 100, 0.5), ("b", 800, 0.7), ("c", 400, 0.6), ("d", 100, 0.55), ("e", 800, 0.8)):
        about = {"model": "large" if model in "de" else "small", "parameters": 15_000_000, "comparisons": count}
        score = {"task": "reward", "metric": "accuracy", "value": right, "n": 50, "stderr": 0.05, **SCORING}
        records.append(score | {"model": model, "about": about, "interval": [right - 0.1, right + 0.1]})
        records.append(score | {"model": model, "about": about, "group": {"source": "hh"}})
    return written(path, records)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[Path]]:
    """What each kind is drawn from."""
    (tmp_path / "base").mkdir()
    (tmp_path / "chat").mkdir()
    runs = [
        written(tmp_path / "base" / "metrics.jsonl", (line(step) for step in range(1, 9))),
        written(tmp_path / "chat" / "metrics.jsonl", [{"step": 0, "eval_loss": 9.0}, line(1), line(2, eval_loss=4.5)]),
    ]
    reports = [a_report(tmp_path / "round-1.json"), a_report(tmp_path / "round-2.json", better=1.0)]
    versions = [samples(tmp_path / "held-out-v1.jsonl"), samples(tmp_path / "held-out-v2.jsonl", 1.0)]
    of_models = [scores(tmp_path / "one.jsonl", "runs/one"), scores(tmp_path / "two.jsonl", "runs/two", likert=False)]
    return {
        "loss": runs, "scaling": [scaling(tmp_path / "scaling.jsonl")], "reward": reports, "temperature": reports,
        "progress": versions, "safety-scaling": shares(tmp_path), "distribution": versions,
        "self-bleu": [drawn_samples(tmp_path / "drawn.jsonl")], "margins": of_models, "calibration": of_models,
    }  # fmt: skip


# -- what is drawn


def test_there_is_a_test_of_every_kind(files: dict[str, list[Path]]) -> None:
    assert files.keys() == kinds.KINDS.keys()


def test_loss_against_tokens(files: dict[str, list[Path]]) -> None:
    (chart,) = charts("loss", *files["loss"])
    assert [series.name for series in chart.series] == ["base", "chat", "chat, held out"]
    assert [(point.x, point.y) for point in chart.series[0].points][:2] == [(100, 8), (200, 4)]
    assert [(point.x, point.y) for point in chart.series[2].points] == [(0, 9), (200, 4.5)]
    assert charts("loss", *(path.parent for path in files["loss"])) == [chart]


def test_a_long_run_is_thinned_and_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", (line(step, loss=float(step)) for step in range(1, 1001)))
    (chart,) = charts("loss", path)
    assert [(point.x, point.y) for point in chart.series[0].points][:2] == [(700, 4), (1400, 11)]
    assert chart.series[0].points[-1] == Point(100_000, 997.5)  # the last, of what is left
    assert "a mean of up to 7 steps" in chart.note


def test_a_run_that_is_still_writing(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", [line(1), line(2)])
    path.write_text(path.read_text() + '{"step":3,"tok')
    assert len(charts("loss", path)[0].series[0].points) == 2


def test_reward_of_n_answers(files: dict[str, list[Path]]) -> None:
    (chart,) = charts("reward", *files["reward"])
    assert [series.name for series in chart.series] == [
        "1: best of N",
        "1: median of N",
        "2: best of N",
        "2: median of N",
    ]
    found = json.loads(files["reward"][1].read_text())["reward"]["best"]
    assert [(one.x, one.y, list(one.interval or ())) for one in chart.series[2].points] == [
        (one["n"], one["value"], one["interval"]) for one in found
    ]
    assert chart.doubling and chart.note.startswith("12 prompts; 95 %, bootstrap of 1,000 resamples by prompt")


def test_a_report_is_found_in_the_manifest_of_the_samples(tmp_path: Path) -> None:
    report = json.loads(a_report(tmp_path / "a.json").read_text())
    run = runs.Run("reject-sample", {}, {}, tmp_path / "best.jsonl")
    run.facts["report"] = report
    with run.records() as writer:
        writer.write({"messages": [], "response": ""})
    assert charts("reward", tmp_path / "best.jsonl")[0].series == charts("reward", tmp_path / "a.json")[0].series


def test_temperatures_of_each_report(files: dict[str, list[Path]]) -> None:
    first, second = charts("temperature", *files["temperature"], labels=["SFT", "RLHF"])
    assert (first.title, second.title) == ("Best of N by temperature: SFT", "Best of N by temperature: RLHF")
    assert [series.name for series in first.series] == ["temperature 0.5", "temperature 1"]
    assert [point.x for point in first.series[0].points] == [1, 2, 3, 4]


def test_distributions_share_their_bins(files: dict[str, list[Path]]) -> None:
    helpful, safe = charts("distribution", *files["distribution"])
    assert (helpful.title, safe.title) == ("Scores for helpfulness", "Scores for safety")
    first, second = helpful.series
    assert [point.across for point in first.points] == [point.across for point in second.points]
    for series in (first, second):
        assert sum(one.y * (one.across[1] - one.across[0]) for one in series.points if one.across) == pytest.approx(1)
    assert first.mark and second.mark
    assert second.mark - first.mark == pytest.approx(1)
    assert first.name.startswith("v1\nmean ") and helpful.note == "20 answers each"


def test_progress_of_versions(files: dict[str, list[Path]]) -> None:
    (chart,) = charts("progress", *files["progress"])
    (series,) = chart.series
    first, second = series.points
    assert [point.label for point in series.points] == ["v1", "v2"]
    assert (second.x - first.x, second.y - first.y) == (pytest.approx(1), pytest.approx(2))
    assert first.interval and first.interval[0] < first.y < first.interval[1]
    assert first.across and first.across[0] < first.x < first.across[1]


def test_progress_in_the_scores_of_the_first_file_in_whatever_order_others_have_them(tmp_path: Path) -> None:
    def scored(name: str, **scores: float) -> Path:
        return written(tmp_path / name, [{"messages": turns("q"), "response": "a", "scores": scores}])

    paths = [scored("1", a=1, b=2), scored("2", b=4, a=3), scored("3", safety=9, b=6, a=5, helpfulness=9)]
    (chart,) = charts("progress", *paths)
    assert chart.title == "Progress in a and b"
    assert [(point.x, point.y) for point in chart.series[0].points] == [(1, 2), (3, 4), (5, 6)]
    with pytest.raises(Fault, match=r"4:1: scores: has c, a, and two are compared"):
        charts("progress", *paths, scored("4", c=1, a=2))


def test_progress_of_ppo_is_not_drawn_on_other_axes(tmp_path: Path) -> None:
    others = written(tmp_path / "s", [{"messages": turns("a"), "response": "b", "scores": {"a": 1, "b": 2}}])
    (tmp_path / "ppo").mkdir()
    lines = [{"step": step, "eval_helpfulness": 1.0, "eval_safety": 1.0} for step in (0, 10)]
    path = written(tmp_path / "ppo" / "metrics.jsonl", lines)
    for paths in ([others, path], [path, others]):
        with pytest.raises(Fault, match="are compared"):
            charts("progress", *paths)


def test_progress_of_ppo(tmp_path: Path, files: dict[str, list[Path]]) -> None:
    (tmp_path / "ppo").mkdir()
    lines = [
        {"step": step, "helpfulness": 9.0, "safety": 9.0, "eval_helpfulness": 0.1 * step,
         "eval_helpfulness_stderr": 1.0, "eval_safety": 0.2 * step, "eval_safety_stderr": 2.0}
        for step in (0, 10, 20)
    ]  # fmt: skip
    path = written(tmp_path / "ppo" / "metrics.jsonl", [*lines, {"step": 21, "reward": 1.0}])
    (chart,) = charts("progress", *files["progress"], path)
    way = chart.series[1]
    assert [point.label for point in way.points] == ["ppo 0", "", "ppo 20"]
    assert way.points[2] == Point(2.0, 4.0, (4 - 3.92, 4 + 3.92), (2 - 1.96, 2 + 1.96), "ppo 20")


def test_answers_to_a_prompt_that_was_asked_twice_count_once(tmp_path: Path) -> None:
    """They are the same ones, since a sample depends on the prompt: each would have its copy as a reference."""

    def drawn(index: int, response: str, **how: object) -> dict[str, object]:
        sampling = {"temperature": 1.0, "seed": 0, "index": index} | how
        return {"messages": [{"role": "user", "content": "q"}], "response": response, "sampling": sampling}

    once = [drawn(0, "one two three four"), drawn(1, "five six seven eight"), drawn(0, "one two", seed=1)]
    path, run = written(tmp_path / "drawn.jsonl", [*once, *once, drawn(2, "one two")]), runs.Run("plot", {}, {})
    (chart,) = kinds.kind("self-bleu").charts(Asked([str(path)], [], run, 0))
    said = [one["response"] for one in once] + ["one two"]
    assert chart.series[0].points[0].y == pytest.approx(self_bleu([str(text) for text in said]))
    assert run.skipped == {"answers that are there twice, as their prompt is": 3}


def test_self_bleu_by_kind_and_temperature(files: dict[str, list[Path]]) -> None:
    run = runs.Run("plot", {}, {})
    (chart,) = kinds.kind("self-bleu").charts(Asked([str(files["self-bleu"][0])], [], run, 0))
    assert [series.name for series in chart.series] == ["creative", "factual"]
    for series in chart.series:
        assert [point.x for point in series.points] == [0.1, 1.0]
        # of the two left at 1.0: 3 of 4 words, 2 of 3, 1 of 2, and 0.1 of 1
        assert [point.y for point in series.points] == pytest.approx([1, (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25])
    assert run.skipped == {"answers without a text": 2}
    assert chart.note.startswith("2 to 3 answers to a prompt")


def test_margins_and_scores_of_models(files: dict[str, list[Path]]) -> None:
    spread, answers = charts("margins", *files["margins"])
    assert [series.name.partition("\n")[0] for series in spread.series] == ["one", "two"]
    assert [series.name.partition("\n")[0] for series in answers.series] == [
        "one, chosen", "one, rejected", "two, chosen", "two, rejected",
    ]  # fmt: skip
    found = [json.loads(one) for one in files["margins"][0].read_text().splitlines()]
    (margin,) = [one for one in found if one["metric"] == "margin"]
    assert spread.series[0].mark == margin["value"]
    assert [point.across for point in spread.series[0].points] == [(one["low"], one["high"]) for one in margin["bins"]]


def test_calibration_and_people_s_ratings(files: dict[str, list[Path]]) -> None:
    rated, sure = charts("calibration", *files["calibration"])
    (likert,) = rated.series
    assert [point.x for point in likert.points] == [0, 1, 2, 3, 4]
    assert all(point.interval and point.interval[0] < point.y < point.interval[1] for point in likert.points)
    assert [series.guide for series in sure.series] == [True, False, False]
    assert re.fullmatch(r"one \(error 0\.\d{3}\)", sure.series[1].name)


def test_wilson() -> None:
    """8 of 10: 0.49 to 0.943, as in the literature."""
    assert measured.wilson(0.8, 10) == (pytest.approx(0.490, abs=5e-4), pytest.approx(0.943, abs=5e-4))
    assert measured.wilson(0, 5)[0] == pytest.approx(0, abs=1e-12)


def test_accuracy_against_data(files: dict[str, list[Path]]) -> None:
    (chart,) = charts("scaling", *files["scaling"])
    assert [series.name for series in chart.series] == ["small, 15.0 M", "large, 15.0 M"]
    assert [(point.x, point.y) for point in chart.series[0].points] == [(100, 0.5), (400, 0.6), (800, 0.7)]
    assert chart.series[0].points[0].interval == (0.4, 0.6)


def test_shares_of_safety_data(files: dict[str, list[Path]]) -> None:
    helpful, safe, refused = charts("safety-scaling", *files["safety-scaling"])
    assert (helpful.title, safe.title) == ("Mean score for helpfulness", "Mean score for safety")
    (series,) = safe.series
    assert series.name == "adversarial"
    assert safe.note.startswith("adversarial prompts; ")  # a line alone has no legend
    low, middle, high = series.points
    assert (low.x, middle.x, high.x) == (0, 10, 100)
    assert (middle.y - low.y, high.y - low.y) == (pytest.approx(2), pytest.approx(20))
    assert low.interval and low.interval[0] < low.y < low.interval[1]
    assert [series.name for series in refused.series] == ["helpful", "borderline"]  # whole sets
    assert [(point.x, point.y) for point in refused.series[1].points] == [(0, 0), (10, 0.05), (100, 0.5)]
    assert refused.series[0].points[1].interval == (pytest.approx(0.05 - 0.196), pytest.approx(0.05 + 0.196))


def test_scores_in_another_order_are_the_same_scores(tmp_path: Path) -> None:
    path = samples(tmp_path / "chat-10.jsonl", model="chat-10")
    before = charts("safety-scaling", path)
    records = [json.loads(one) for one in path.read_text().splitlines()]
    for one in records[::2]:
        one["scores"] = dict(reversed(one["scores"].items()))
    assert sorted(charts("safety-scaling", written(path, records))) == before


# -- names


@pytest.mark.parametrize(
    ("paths", "what", "found"),
    [
        (["a/base", "b/chat"], "runs", ["base", "chat"]),
        (["a/base", "b/base"], "runs", ["a/base", "b/base"]),
        (["x/held-out-v1.jsonl", "x/held-out-v2.jsonl.zst"], "files", ["v1", "v2"]),
        (["x/round-1.json"], "files", ["round-1"]),
        (["a.jsonl", "a.json"], "files", ["a.jsonl", "a.json"]),
    ],
)
def test_as_little_of_a_name_as_tells_it_apart(paths: list[str], what: str, found: list[str]) -> None:
    assert list(named(paths, [], what).values()) == found


def test_labels_are_one_for_each() -> None:
    assert named(["a", "b"], ["x", "y"], "runs") == {"a": "x", "b": "y"}
    with pytest.raises(Fault, match=r"--label: 1 for 2 runs: 'a', 'b'; give one for each"):
        named(["a", "b"], ["x"], "runs")
    with pytest.raises(Fault, match="'x' is given twice"):
        named(["a", "b"], ["x", "x"], "runs")


def test_ticks() -> None:
    assert [tick(value) for value in (0, -0.5, 12, 9999, 30_000, 1.2e6, 2e12)] == [
        "0", "−0.5", "12", "9999", "30 k", "1.2 M", "2 T",
    ]  # fmt: skip


# -- how it is drawn


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_picture_is_the_same_bytes_again(kind: str, files: dict[str, list[Path]]) -> None:
    found = charts(kind, *files[kind])
    data = ink.drawn(found, "a title", "svg")
    assert data.startswith(b"<?xml")
    assert data == ink.drawn(charts(kind, *files[kind]), "a title", "svg")
    assert "a title" in terminal.written(found, "a title")


def test_a_png_too(files: dict[str, list[Path]]) -> None:
    data = ink.drawn(charts("loss", *files["loss"]), "", "png")
    assert data.startswith(b"\x89PNG") and data == ink.drawn(charts("loss", *files["loss"]), "", "png")


def test_a_page_holds_the_drawing_and_its_numbers() -> None:
    chart = Chart("a < b", "x", "y", [Series("one & two", [Point(1, 2, (1.5, 2.5))])])
    page = ink.drawn([chart], "", "html").decode()
    assert page.count("<svg") == 1 and "a &lt; b" in page
    assert "<td>one &amp; two</td><td>1</td><td></td><td></td><td>2</td><td>1.5</td><td>2.5</td>" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)  # nothing is fetched
    assert list(rows(chart)) == [("one & two", "1", "", "", "2", "1.5", "2.5")]


def test_a_matplotlibrc_changes_nothing() -> None:
    import matplotlib

    chart = Chart("t", "x", "y", [Series("a", [Point(1, 2), Point(2, 3)])])
    plain = ink.drawn([chart], "", "svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "savefig.transparent": True}):
        assert ink.drawn([chart], "", "svg") == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_characters_that_the_font_lacks_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    ink.drawn([Chart("你好, 你 Çà", "x", "y", [Series("a", [Point(1, 2), Point(2, 3)])])], "", "png")
    said = capsys.readouterr().err
    assert said == "drawn as boxes, for the font has them not: 你好; --label gives other names\n"


def test_series_can_be_told_apart_in_grey() -> None:
    """No two of the first six are as dark; and each has dashes and points of its own."""

    def lightness(colour: str) -> float:
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        )
        return float(116 * (0.2126 * red + 0.7152 * green + 0.0722 * blue) ** (1 / 3) - 16)  # L* of CIELAB

    dark = sorted(map(lightness, ink.COLOURS[:6]))
    assert min(b - a for a, b in pairwise(dark)) > 8
    assert dark[-1] < 85  # on white
    assert len(set(ink.COLOURS)) == len(set(map(str, ink.DASHES))) == len(set(ink.SHAPES)) == 8


def test_many_series_are_drawn_each_in_a_way_of_its_own() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    for number in range(20):
        ink._line(axes, Series(str(number), [Point(0, 0), Point(1, 1)]), number)
    ways = {(one.get_color(), str(one.get_linestyle()), str(one.get_marker())) for one in axes.lines}
    assert len(ways) == 20


def test_in_the_terminal() -> None:
    lines = Chart("t", "x", "y", [Series("up", [Point(0, 0), Point(9, 1)]), Series("down", [Point(0, 1), Point(9, 0)])])
    text = terminal.written([lines])
    grid = [row.partition("│")[2] for row in text.splitlines() if "│" in row]
    assert (grid[0][0], grid[0][-1], grid[-1][0], grid[-1][-1]) == ("x", "o", "o", "x")
    assert "o up" in text and "x down" in text
    bins = [{"low": 0, "high": 1, "n": 1}, {"low": 1, "high": 2, "n": 3}]
    text = terminal.written([Chart("t", "x", "", [histogram("h", bins)], stacked=True)])
    (ridge,) = [row for row in text.splitlines() if "█" in row]
    assert ridge.split() == ["h", "▃" * 32 + "█" * 32]


@pytest.mark.parametrize(
    ("low", "high", "seen"),
    [
        (0.1, 0.3, {0: "█"}),
        (9.75, 10.25, {9: "█", 10: "█"}),
        (9.5, 11.5, {9: "▄", 10: "█", 11: "▄"}),
        (64 - 1e-9, 64, {63: "█"}),
        (5, 5, {5: "█"}),
        (64, 64, {63: "█"}),
    ],
)
def test_a_histogram_narrower_than_a_character_is_seen(low: float, high: float, seen: dict[int, str]) -> None:
    """Beside one of 64, so that a character is one wide; a cell is as high as what lies in it."""
    broad = histogram("a", [{"low": 0, "high": 64, "n": 9}])
    narrow = histogram("b", [{"low": low, "high": high, "n": 9}])
    text = terminal.written([Chart("t", "x", "", [broad, narrow], stacked=True)])
    assert f"a  {'▁' * 64}\n" in text
    assert "b  " + "".join(seen.get(column, " ") for column in range(64)).rstrip() in text.splitlines()


def test_cells_without_data_are_blank() -> None:
    """Also where edges of bins are edges of cells but for their last digits."""
    third = 1 / 3
    bins = [{"low": n * third, "high": (n + 1) * third, "n": n % 2} for n in range(64)]
    text = terminal.written([Chart("t", "x", "", [histogram("h", bins)], stacked=True)])
    assert f"h  {' █' * 32}" in text.splitlines()


# -- the command


def test_a_picture_and_its_manifest(files: dict[str, list[Path]], tmp_path: Path, command: Run) -> None:
    out = tmp_path / "loss.svg"
    arguments = ("plot", "loss", *files["loss"], "-o", out)
    assert command(*arguments) == (0, f"{out}\n", "")
    run = manifest.load(tmp_path / "loss.svg.run.json")
    assert [one["path"] for one in run["inputs"]] == [str(path) for path in files["loss"]]
    assert run["outputs"][0]["kind"] == "svg" and run["done"] == {"points": 12}
    data = out.read_bytes()
    assert "nothing to do" in command(*arguments).stderr
    assert "with kind loss, not margins" in one_line(command("plot", "margins", *files["margins"], "-o", out))
    assert command(*arguments, "--overwrite").status == 0
    assert out.read_bytes() == data


@pytest.mark.parametrize("how", [("--text",), ("-o", "a.png")])
def test_steps_that_were_refused_are_counted(tmp_path: Path, command: Run, how: tuple[str, ...]) -> None:
    lines = [line(1), line(2, loss=None), line(3), {"step": 3, "eval_loss": 1.0}]
    path = written(tmp_path / "metrics.jsonl", lines)
    done = command("plot", "loss", path, *(tmp_path / word if "." in word else word for word in how))
    assert done.status == 0
    assert done.stderr == "plot: 1 steps whose loss is no number, left out\n"


def test_metrics_that_have_grown_are_drawn_anew(tmp_path: Path, command: Run) -> None:
    """Of a training under way, whose directory has nothing that tells it from itself an hour ago."""
    (tmp_path / "run").mkdir()
    path, out = written(tmp_path / "run" / "metrics.jsonl", [line(1), line(2)]), tmp_path / "a.png"
    assert command("plot", "loss", tmp_path / "run", "-o", out).status == 0
    written(path, [line(1), line(2), line(3)])
    assert "from other inputs" in one_line(command("plot", "loss", tmp_path / "run", "-o", out))


def test_without_matplotlib(
    files: dict[str, list[Path]], tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = one_line(command("plot", "loss", *files["loss"], "-o", tmp_path / "a.png"))
    assert said == (
        "plot: needs matplotlib, which is not installed; pip install 'llamactl[plot]', or draw it with --text"
    )
    for kind, paths in files.items():
        shown = command("plot", kind, *paths, "--text")
        assert shown.status == 0 and shown.stdout.strip()
    assert not list(tmp_path.glob("*.run.json"))


def test_text_and_a_picture_at_once(files: dict[str, list[Path]], tmp_path: Path, command: Run) -> None:
    shown = command("plot", "loss", *files["loss"], "--text", "-o", tmp_path / "a.png", "--title", "two runs")
    assert shown.stdout.startswith("two runs\n") and (tmp_path / "a.png").exists()


def a(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda at: ("los", at / "x", "--text"), "plot los: is no kind of figure; loss, perhaps; there are"),
        (lambda at: ("zzz", at / "x", "--text"), "plot zzz: is no kind of figure; there are loss"),
        (lambda at: ("loss", at / "x"), "--out: is not given; name a picture: -o figure.png, or draw it in the"),
        (lambda at: ("loss", at / "x", "-o", at / "a.pdf"), "a.pdf: has a name that is of none of png, svg, html"),
        (lambda at: ("loss", at / "none", "--text"), "none: no such file or directory; name one that is there"),
        (lambda at: ("loss", a(at / "e", ""), "--text"), "e: is empty; give it something to read"),
        (lambda at: ("loss", at, "--text"), "holds no metrics.jsonl; name a model directory"),
        (lambda at: ("loss", a(at / "e", "hello\n"), "--text"), "e:1: is no JSON"),
        (lambda at: ("loss", a(at / "e", "[]\n"), "--text"), "e:1: is no object; llamactl pretrain, sft and rm-train"),
        (lambda at: ("loss", a(at / "e", '{"text": "a"}\n'), "--text"), "e:1: step: missing: this is no line"),
        (lambda at: ("loss", written(at / "m", [line(1)]), "--text"), "m: its metrics have one step only"),
        (
            lambda at: ("loss", written(at / "m", [{"step": 1, "reward": 1.0}]), "--text"),
            "m: its metrics are of ppo, which has rewards and no loss; llamactl plot progress draws them",
        ),
        (lambda at: ("reward", a(at / "r", "{}"), "--text"), "r: is no report of reject-sample; llamactl"),
        (lambda at: ("reward", samples(at / "r"), "--text"), "r: is no report of reject-sample"),
        (lambda at: ("reward", a_report(at / "r", (1.0,)), "--text"), "r: is of one answer to each prompt"),
        (lambda at: ("temperature", a_report(at / "r", (1.0, 1.0)), "--text"), "r: was sampled at one temperature"),
        (
            lambda at: ("distribution", written(at / "s", [{"messages": turns("a"), "response": "b"}]), "--text"),
            "s:1: scores: missing; llamactl generate ... | llamactl score --reward NAME=RM writes such Samples",
        ),
        (lambda at: ("distribution", scores(at / "s"), "--text"), "s:1: response: missing"),
        (
            lambda at: ("progress", written(at / "s", [{"messages": turns("a"), "response": "b", "scores": {"x": 1}}]),
                        "--text"),
            "s:1: scores: has x, and two are compared; ",
        ),
        (lambda at: ("self-bleu", samples(at / "s"), "--text"), "s:1: sampling: missing; llamactl generate -k 25"),
        (
            lambda at: ("self-bleu", samples(at / "s", sampling={"temperature": 1, "top_p": 1, "seed": 0, "index": 0}),
                        "--label", "x", "--label", "y", "--text"),
            "--label: 2 for 1 models: 'a model'",
        ),
        (lambda at: ("margins", samples(at / "s"), "--text"), "s:1: task: missing; llamactl eval reward RM"),
        (lambda at: ("margins", scaling(at / "s"), "--text"), "s: holds no margins"),
        (lambda at: ("margins", scores(at / "s"), scores(at / "t"), "--text"), ": margin of rm is there twice; name"),
        (lambda at: ("margins", scores(at / "s"), at / "s", "--text"), "s: is given twice; name each file once"),
        (lambda at: ("calibration", scaling(at / "s"), "--text"), "s: holds no calibration"),
        (lambda at: ("scaling", scores(at / "s"), "--text"), "of rm it is not known how many comparisons"),
        (lambda at: ("safety-scaling", scores(at / "s"), "--text"), "s:1: model: rm does not end in a share"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn(arguments: Callable[[Path], Any], said: str, tmp_path: Path, command: Run) -> None:
    assert said in one_line(command("plot", *arguments(tmp_path)))


def test_bad_records_are_skipped_and_counted_where_that_is_asked(tmp_path: Path, command: Run) -> None:
    path = samples(tmp_path / "s.jsonl")
    path.write_text(path.read_text() + '{"messages": []}\n')
    assert "s.jsonl:21: response: missing" in one_line(command("plot", "distribution", path, "--text"))
    shown = command("plot", "distribution", path, "--text", "--skip-bad")
    assert shown.status == 0 and "skipped 1 bad records" in shown.stderr
