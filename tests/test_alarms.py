"""Alarms of PPO: each is given for what it is about and for nothing else, says what was seen and what to try."""

import json
import math
from typing import Any

import pytest

from llamactl.align import alarms
from llamactl.errors import Fault

# An iteration of a run in which all is well.
CALM: dict[str, float] = {
    "step": 20, "reward": 1.0, "reward_stderr": 0.05, "helpfulness": 1.0, "helpfulness_stderr": 0.05, "general": 0.5,
    "general_stderr": 0.05, "by_safety": 0.1, "length": 100.0, "truncated": 0.02, "repetition": 0.05, "refusals": 0.1,
    "kl": 3.0, "kl_stderr": 0.2, "kl_token": 0.03, "entropy": 1.2, "mismatch": 1e-6, "policy_loss": -0.01,
    "policy_grad_norm": 0.5, "clip_fraction": 0.05, "approx_kl": 0.001, "ratio_off": 0.0, "value_loss": 0.4,
    "value_grad_norm": 0.7, "explained_variance": 0.6, "lr": 1e-6, "refused": 0, "tokens": 51200,
    "memory_bytes": 1 << 30, "sample_seconds": 1.0, "score_seconds": 1.0, "update_seconds": 1.0,
}  # fmt: skip
FIRST = CALM | {"step": 1, "kl": 0.0, "kl_stderr": 0.0, "kl_token": 0.0}

# What makes each alarm be given, what nearly does, what is seen by it, and what to try.
GIVEN: list[tuple[str, dict[str, float], dict[str, float], str, str]] = [
    ("kl", {"kl": 31.04, "kl_token": 0.31}, {"kl": 29.9}, "31.0 nats an answer (0.310 a token)", "a larger --kl"),
    ("negative_kl", {"kl": -0.7}, {"kl": -0.59}, "-0.700 nats an answer", "--precision fp32"),
    ("length", {"length": 201.0}, {"length": 199.0}, "201 tokens long, 100 at first", "--length-stop"),
    ("length", {"length": 49.0}, {"length": 51.0}, "49 tokens long, 100 at first", "--truncated judged"),
    ("truncated", {"truncated": 0.53}, {"truncated": 0.5}, "53% of the answers", "more --max-new-tokens"),
    ("repetition", {"repetition": 0.26}, {"repetition": 0.24}, "26% of an answer repeats itself, 5%", "a larger --kl"),
    ("refusals", {"refusals": 0.31}, {"refusals": 0.29}, "31% of the answers begin as a refusal, 10%", "fewer prompts"),
    ("entropy", {"entropy": 0.39}, {"entropy": 0.41}, "0.39 nats a token, 1.20 at first", "a smaller --lr"),
    ("value_loss", {"value_loss": 1.7}, {"value_loss": 1.5}, "loss is 1.7, 0.4 at first", "a smaller --critic-lr"),
    ("explained_variance", {"explained_variance": -0.25}, {"explained_variance": 0.0}, "explains -0.25", "--critic-lr"),
    ("clip_fraction", {"clip_fraction": 0.31}, {"clip_fraction": 0.3}, "31% of the tokens' ratios", "a smaller --lr"),
    ("all_equal", {"reward_stderr": 0.0}, {"reward_stderr": 1e-3}, "all answers have the same score", "other prompts"),
    (
        "general",
        {"reward": 1.5, "general": 0.3},
        {"reward": 1.5, "general": 0.4},
        "fallen to +0.300 from +0.500 while the reward rose to +1.500 from +1.000",
        "stop here",
    ),
]


def test_every_alarm_is_among_those_tried() -> None:
    assert {name for name, *_ in GIVEN} == {alarm.name for alarm in alarms.ALARMS}
    assert len({alarm.name for alarm in alarms.ALARMS}) == len(alarms.ALARMS)


def test_where_all_is_well_there_is_none() -> None:
    assert alarms.raised(CALM, FIRST) == alarms.raised(FIRST, FIRST) == {}


@pytest.mark.parametrize(("name", "bad", "fine", "seen", "remedy"), GIVEN)
def test_an_alarm_says_what_was_seen_and_what_to_try(
    name: str, bad: dict[str, float], fine: dict[str, float], seen: str, remedy: str
) -> None:
    given = alarms.raised(CALM | bad, FIRST)
    assert [*given] == [name]
    what, _, then = given[name].partition("; try ")
    assert seen in what
    assert remedy in then
    assert alarms.raised(CALM | fine, FIRST) == {}


@pytest.mark.parametrize("name", ["length", "repetition", "refusals", "entropy", "value_loss", "general"])
def test_what_changed_is_held_against_the_first_iteration(name: str) -> None:
    """Where a run has begun like that, it is no alarm."""
    for other, bad, *_ in GIVEN:
        if other == name:
            assert alarms.raised(CALM | bad, FIRST | bad) == {}


def test_the_critic_has_ten_iterations_to_learn() -> None:
    bad = CALM | {"explained_variance": -5.0}
    assert alarms.raised(bad | {"step": 10}, FIRST) == {}
    assert [*alarms.raised(bad | {"step": 11}, FIRST)] == ["explained_variance"]


def test_a_loss_of_the_critic_that_was_tiny_may_grow_to_what_is_small() -> None:
    assert alarms.raised(CALM | {"value_loss": 0.39}, FIRST | {"value_loss": 1e-6}) == {}
    assert [*alarms.raised(CALM | {"value_loss": 0.41}, FIRST | {"value_loss": 1e-6})] == ["value_loss"]


def test_negative_kl_is_measured_against_chance() -> None:
    """And where there is no chance, against rounding."""
    assert alarms.raised(CALM | {"kl": -2.9, "kl_stderr": 1.0}, FIRST) == {}
    assert alarms.raised(CALM | {"kl": -0.0009, "kl_stderr": 0.0}, FIRST) == {}
    assert [*alarms.raised(CALM | {"kl": -0.002, "kl_stderr": 0.0}, FIRST)] == ["negative_kl"]


@pytest.mark.parametrize("reward", [0.9, 1.0, 1.2])
def test_the_general_model_may_fall_where_the_reward_has_not_risen(reward: float) -> None:
    """By more than chance: three times the root of two squares of 0.05 are 0.21."""
    assert alarms.raised(CALM | {"reward": reward, "general": -3.0}, FIRST) == {}
    assert [*alarms.raised(CALM | {"reward": 1.22, "general": -3.0}, FIRST)] == ["general"]


def test_without_a_general_model_nothing_is_said_of_it() -> None:
    lines = ({name: value for name, value in line.items() if "general" not in name} for line in (CALM, FIRST))
    assert alarms.raised(*lines) == {}


def test_several_are_given_at_once() -> None:
    given = alarms.raised(CALM | {"kl": 99.0, "length": 1.0, "entropy": 0.0}, FIRST)
    assert {*given} == {"kl", "length", "entropy"}


@pytest.mark.parametrize("name", ["reward", "general", "value_loss", "policy_loss", "clip_fraction"])
def test_a_first_iteration_without_a_number_is_no_obstacle(name: str) -> None:
    """Where a loss was refused, or no answer judged: it is nan, and null in the state that a run goes on from."""
    for nothing in (math.nan, json.loads("null")):
        lines: list[dict[str, Any]] = [CALM | {"reward": 9.0, "value_loss": 99.0}, FIRST | {name: nothing}]
        assert alarms.raised(*lines).keys() <= {"value_loss"}
    assert alarms.raised(CALM | {name: math.nan}, FIRST) == {}


# -- when they are said


def test_an_alarm_is_not_said_again_within_ten_iterations() -> None:
    said: dict[str, int] = {}
    times = [n for n in range(1, 30) if alarms.due({"kl": "..."}, said, n)]
    assert times == [1, 11, 21]


def test_each_alarm_is_said_by_itself_in_order() -> None:
    said: dict[str, int] = {}
    assert alarms.due({"kl": "..."}, said, 5) == ["kl"]
    assert alarms.due({"length": "...", "kl": "...", "entropy": "..."}, said, 7) == ["entropy", "length"]
    assert said == {"kl": 5, "length": 7, "entropy": 7}
    assert alarms.due({}, said, 40) == []
    kept = json.loads(json.dumps(said))
    assert alarms.due({"length": "...", "kl": "..."}, kept, 15) == ["kl"]


# -- what ends a run


@pytest.mark.parametrize(
    ("bad", "same", "seen"),
    [
        ({"policy_loss": math.nan}, False, "all gradient steps of the policy were refused"),
        ({"value_loss": math.nan}, False, "all gradient steps of the critic were refused"),
        (
            {"policy_loss": math.nan, "value_loss": math.nan},
            False,
            "all gradient steps of the policy and critic were refused",
        ),
        ({"ratio_off": 0.25}, False, "25.00% of the ratios of its first mini-batch are not 1 to 0.0001"),
        ({"kl": 0.002}, True, "KL of the policy to itself is 0.002 nats an answer"),
        ({"kl": -0.002}, True, "KL of the policy to itself is -0.002 nats an answer"),
        ({"mismatch": 2e-4}, False, "log-probabilities of sampler and training differ by 0.0002 a token"),
    ],
)
def test_what_cannot_be_trusted_ends_the_run(bad: dict[str, float], same: bool, seen: str) -> None:
    with pytest.raises(Fault) as fault:
        alarms.check(CALM | {"kl": 0.0} | bad, same, "fp32")
    assert str(fault.value).startswith(f"iteration 20: {seen}")
    assert fault.value.remedy.startswith("try --precision fp32")


def test_what_can_be_trusted_does_not() -> None:
    alarms.check(CALM, False, "fp32")  # it has moved away from the reference
    alarms.check(CALM | {"kl": 9e-6}, True, "fp32")
    alarms.check(CALM | {"refused": 15}, False, "fp32")
    alarms.check(CALM | {"mismatch": 9e-5}, False, "fp32")


def test_bf16_rounds_more() -> None:
    alarms.check(CALM | {"mismatch": 0.04}, False, "bf16")
    with pytest.raises(Fault, match=r"sampler and training differ by 0\.06 a token"):
        alarms.check(CALM | {"mismatch": 0.06}, False, "bf16")


def test_limits_stop_a_run_where_they_are_given() -> None:
    far = CALM | {"kl": 25.0, "length": 300.0}
    assert alarms.stopped(far, None, None) == ""
    assert alarms.stopped(far, 25.0, 300.0) == ""
    assert alarms.stopped(far, 24.9, None) == "KL to the reference is 25.0 nats an answer, above --kl-stop 24.9"
    assert alarms.stopped(far, None, 299.5) == "answers are 300 tokens long, above --length-stop 299.5"
    assert alarms.stopped(CALM | {"kl": 0.1}, 0.0, None)  # a limit of nothing is one
