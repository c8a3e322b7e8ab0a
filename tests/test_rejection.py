"""The best of K: its statistics against all subsets, its reports against numbers worked by hand, what is kept."""

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from statistics import mean, median
from typing import Any

import numpy as np
import pytest
import torch

from llamactl.align import rejection, reward
from llamactl.align.rejection import Draw, best_temperature, curves, expected, report, weights
from llamactl.text.refusals import refuses


def draw(prompt: str, rewards: Sequence[float | None], **more: Any) -> Draw:
    n = len(rewards)
    plain = Draw(
        prompt=prompt, tagged=False, refused=[], rewards=list(rewards), by_safety=[False] * n, tokens=[3] * n,
        truncated=[False] * n, cut=[0] * n, refusals=[False] * n, empty=[False] * n, same=list(range(n)),
        kept=[0], earlier=[],
    )  # fmt: skip
    return plain._replace(**more)


# -- one reward of two models


def test_the_safety_model_decides_on_tagged_prompts_and_unsafe_answers() -> None:
    """Worked by hand: sigmoid(-1.7346) = 0.15, sigmoid(-1.74) = 0.1493, sigmoid(-1.73) = 0.1506."""
    helpful = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    safe = torch.tensor([2.5, -1.74, -1.73, -9.0, 0.0])
    tagged = torch.tensor([True, False, False, True, False])
    assert reward.combined(helpful, safe, tagged).tolist() == pytest.approx([2.5, -1.74, 3.0, -9.0, 5.0])
    assert reward.by_safety(safe, tagged).tolist() == [True, True, False, True, False]


def test_the_threshold_itself_is_safe_enough() -> None:
    edge = torch.tensor([0.15], dtype=torch.float64).logit()
    below = torch.nextafter(edge - 1e-12, torch.tensor([-math.inf], dtype=torch.float64))
    no = torch.tensor([False])
    assert reward.by_safety(torch.cat([edge + 1e-12, below]), no).tolist() == [False, True]


def test_without_a_safety_model_helpfulness_is_the_reward() -> None:
    scores = torch.tensor([-9.0, 0.5])
    assert reward.combined(scores, None, torch.tensor([True, False])).tolist() == [-9.0, 0.5]


# -- of K samples, what fewer would have given


@pytest.mark.parametrize("values", [[2.0], [1.0, 4.0], [0.3, -2.0, 0.3, 5.0], [5, 1, 4, 1.5, -9, 2, 6.5, 3.5]])
def test_the_expectation_is_the_mean_over_all_subsets(values: list[float]) -> None:
    best, middle = expected(values)
    for n in range(1, len(values) + 1):
        subsets = list(combinations(values, n))
        assert best[n - 1] == pytest.approx(mean(map(max, subsets)), rel=1e-13)
        assert middle[n - 1] == pytest.approx(mean(map(median, subsets)), rel=1e-13)


def test_three_samples_by_hand() -> None:
    """Of 1, 2, 6: pairs are (1, 2), (1, 6), (2, 6), their best 2, 6, 6, their medians 1.5, 3.5, 4."""
    best, middle = expected([2, 6, 1])
    assert best.tolist() == pytest.approx([3, 14 / 3, 6])
    assert middle.tolist() == pytest.approx([3, 3, 2])


@pytest.mark.parametrize("n", [1, 2, 37, 300])
def test_weights_are_exact_for_any_number_of_samples(n: int) -> None:
    """Shares that add up to 1; for 300 samples binomials have 90 digits."""
    best, middle = weights(n)
    assert best.shape == middle.shape == (n, n)
    for table in (best, middle):
        assert np.isfinite(table).all() and (table >= 0).all()
        assert table.sum(1) == pytest.approx(np.ones(n), rel=1e-12)
    size, i = max(1, n // 3), max(1, 4 * n // 5)
    assert best[size - 1, i - 1] == pytest.approx(float(Fraction(math.comb(i - 1, size - 1), math.comb(n, size))))


def test_the_estimate_is_unbiased() -> None:
    """From draws of 6 of a known distribution, the mean estimate of the best of 3 is that of the best of 3."""
    random = np.random.default_rng(0)
    found = mean(float(expected(random.random(6))[0][2]) for _ in range(4000))
    assert found == pytest.approx(3 / 4, abs=0.01)  # of 3 uniform numbers; the naive best of the first 6 is 6/7


# -- curves


def test_curves_are_means_over_prompts_with_intervals() -> None:
    found = curves([draw("a", [1, 2, 6]), draw("b", [0, 0, 3])], [0, 1, 2], 0)
    assert [point["n"] for point in found["best"]] == [1, 2, 3]
    assert [point["value"] for point in found["best"]] == pytest.approx([2, (14 / 3 + 2) / 2, 4.5])
    assert [point["value"] for point in found["median"]] == pytest.approx([2, (3 + 1) / 2, 1])
    assert found["best"][2]["interval"] == pytest.approx([3, 6])  # of two prompts, each or both
    assert all(point["prompts"] == 2 for point in found["best"])


def test_a_curve_of_some_indices_is_of_these_alone() -> None:
    draws = [draw("a", [1, 100, 5, -100]), draw("b", [3, 100, 3, -100])]
    found = curves(draws, [0, 2], 0)
    assert [point["value"] for point in found["best"]] == pytest.approx([3, 4])


def test_a_prompt_counts_for_as_many_as_were_judged() -> None:
    found = curves([draw("a", [1, None, 6]), draw("b", [0, 2, 4]), draw("c", [None] * 3)], [0, 1, 2], 0)
    assert [(point["value"], point["prompts"]) for point in found["best"]] == [
        (pytest.approx((3.5 + 2) / 2), 2), (pytest.approx((6 + 10 / 3) / 2), 2), (pytest.approx(4), 1),
    ]  # fmt: skip
    assert curves([draw("a", [None])], [0], 0) == {"best": [], "median": []}


def test_of_one_prompt_there_is_no_interval_and_of_its_double_neither() -> None:
    for draws in ([draw("a", [1, 2])], [draw("a", [1, 2])] * 2):
        assert all(point["interval"] is None for point in curves(draws, [0, 1], 0)["best"])


def test_intervals_hold_the_value_that_made_them() -> None:
    """Of 60 experiments with a known mean, nearly all intervals hold it, and they shrink as prompts become more."""
    random, held, widths = np.random.default_rng(1), 0, []
    for seed in range(60):
        draws = [draw(f"{n}", random.normal(n % 2, 1, 4).tolist()) for n in range(40)]
        point = curves(draws, range(4), seed)["best"][0]
        held += point["interval"][0] <= 0.5 <= point["interval"][1]
        widths.append(point["interval"][1] - point["interval"][0])
    assert 52 <= held <= 60
    many = [draw(f"{n}", random.normal(n % 2, 1, 4).tolist()) for n in range(640)]
    low, high = curves(many, range(4), 0)["best"][0]["interval"]
    assert high - low == pytest.approx(mean(widths) / 4, rel=0.25)


# -- temperatures


def test_the_best_temperature_is_that_of_the_best_of_as_many_as_all_have() -> None:
    """At 1.0 there are three samples, at 0.5 two: the best of two is compared, 14/3 of (1, 2, 6), 5 of (4, 5)."""
    draws = [draw("a", [1, 4, 2, 5, 6]), draw("b", [1, 4, 2, 5, 6])]
    found = best_temperature(draws, {1.0: [0, 2, 4], 0.5: [1, 3]}, 0)
    assert found
    assert (found["temperature"], found["n"], found["value"]) == (0.5, 2, pytest.approx(5))
    assert (found["lead"]["over"], found["lead"]["value"]) == (1.0, pytest.approx(1 / 3))


def test_a_lead_that_all_prompts_share_is_clear_and_one_of_chance_is_not() -> None:
    """Prompts differ by much more than temperatures do, which pairing takes out."""
    random = np.random.default_rng(0)
    level = random.normal(0, 50, 30)
    groups = {0.7: [0, 1], 1.2: [2, 3]}

    def found(lead: float) -> dict[str, Any]:
        noise = random.normal(0, 0.1, (30, 4))
        rows = [[x + a, x + b, x + c + lead, x + d + lead] for x, (a, b, c, d) in zip(level, noise, strict=True)]
        result = best_temperature([draw(f"{n}", row) for n, row in enumerate(rows)], groups, 0)
        assert result
        return result

    clear = found(1.0)
    assert (clear["temperature"], clear["lead"]["clear"]) == (1.2, True)
    assert clear["lead"]["interval"][0] > 0.8
    assert clear["interval"][1] - clear["interval"][0] > 10
    even = found(0.0)
    assert not even["lead"]["clear"]
    assert even["lead"]["interval"][0] < 0


def test_nothing_is_compared_where_there_is_one_temperature_or_nothing_was_judged() -> None:
    assert best_temperature([draw("a", [1, 2])], {1.0: [0, 1]}, 0) is None
    assert best_temperature([draw("a", [1, None])], {1.0: [0], 0.5: [1]}, 0) is None
    assert best_temperature([], {1.0: [0], 0.5: [1]}, 0) is None


# -- reports


def test_a_report_by_hand() -> None:
    draws = [
        draw(
            "a", [1, 5, 3, 5], tagged=True, by_safety=[True] * 4, tokens=[10, 20, 30, 40], same=[0, 1, 0, 3],
            truncated=[False, False, False, True], refusals=[True, False, True, False], kept=[1], earlier=[],
        ),
        draw("b", [2, 2, 2, 2], tokens=[0, 4, 4, 4], empty=[True, False, False, False], same=[0, 1, 1, 1], kept=[1]),
        draw("c", [None, 1, None, 0], kept=[], earlier=[7.5], tokens=[1, 1, 1, 1]),
    ]  # fmt: skip
    found = report(draws, (0.5, 1.0, 0.5, 1.0), 0)
    assert (found["prompts"], found["tagged"], found["all_equal"], found["k"]) == (3, 1, 1, 4)
    every = found["answers"]
    assert (every["samples"], every["judged"]) == (12, 10)
    assert every["reward"]["value"] == pytest.approx((14 + 8 + 1) / 10)
    assert every["tokens"] == pytest.approx((100 + 12 + 4) / 12)
    assert every["truncated"] == pytest.approx(1 / 12)
    assert every["duplicates"] == pytest.approx(3 / 12)
    assert every["refusals"] == pytest.approx(2 / 12)
    assert every["empty"] == pytest.approx(1 / 12)
    assert every["by_safety"] == pytest.approx(4 / 12)
    half, one = found["by_temperature"]
    assert (half["temperature"], half["samples"], half["judged"], half["tokens"]) == (0.5, 6, 4, (10 + 30 + 4 + 2) / 6)
    assert half["duplicates"] == pytest.approx(1 / 6)  # of those at the same temperature
    assert one["duplicates"] == pytest.approx(1 / 6)
    assert [point["value"] for point in one["best"]] == pytest.approx([(5 + 2 + 0.5) / 3, (5 + 2 + 1) / 3])
    kept = found["kept"]
    assert (kept["all"], kept["of_earlier_rounds"], kept["reward"]) == (3, 1, pytest.approx((5 + 2 + 7.5) / 3))
    assert (kept["of_this_round"]["samples"], kept["of_this_round"]["tokens"]) == (2, 12)
    assert found["best_temperature"]["temperature"] == 1.0
    assert found["best_temperature"]["prompts"] == 2  # of c there is nothing at 0.5


def test_a_report_is_the_same_of_what_a_journal_has_kept() -> None:
    draws = [draw(f"{n}", [0.1 * n, 1 / 3, None]) for n in range(5)]
    again = [Draw(**json.loads(json.dumps(one._asdict()))) for one in draws]
    assert report(again, (1.0, 0.5, 1.0), 3) == report(draws, (1.0, 0.5, 1.0), 3)


def test_a_report_of_nothing_is_no_error() -> None:
    found = report([], (1.0, 0.5), 0)
    assert (found["prompts"], found["kept"]["all"], found["best_temperature"]) == (0, 0, None)
    assert [len(rows) for _, rows, _ in rejection.tables(found)] == [2, 4]


def test_tables_show_powers_of_two_and_k() -> None:
    found = report([draw("a", list(range(6))), draw("b", list(range(6)))], (0.5, 1.0) * 3, 0)
    curve, table = rejection.tables(found)
    assert curve.header == ("N", "best of N", "median of N", "best at 0.5", "best at 1")
    assert [row[0] for row in curve.rows] == ["1", "2", "4", "6"]
    assert curve.rows[-1] == ("6", "5.000 [5.000, 5.000]", "2.500 [2.500, 2.500]", "", "")
    assert [row[0] for row in table.rows] == ["temperature 0.5", "temperature 1", "all", "kept"]
    said = rejection.advice(found)
    assert said.startswith("for the next round: temperature 1, whose best of 3 is 5.000 [5.000, 5.000]; 1.000 [")
    assert "noise" not in said
    even = report([draw("a", [1, 2, 1, 0]), draw("b", [2, 1, 0, 1])], (0.5, 1.0) * 2, 0)
    assert rejection.advice(even).endswith("which is within the noise: more prompts would tell")


# -- refusals


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("I cannot help with that.", True),
        ("  I can\N{RIGHT SINGLE QUOTATION MARK}t do this", True),
        ("I'M SORRY, but no", True),
        ("As an AI language model, I", True),
        ("Sorry, no.", True),
        ("I can help: I cannot stress enough", False),
        ("Sorry sight, that", False),
        ("A heap is a tree.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_how_they_begin(answer: str, wanted: bool) -> None:
    assert refuses(answer) is wanted
