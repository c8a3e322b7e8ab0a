"""What goes wrong in PPO, as it shows: each alarm says what was seen and what to try.

A line of metrics holds means over an iteration's answers; it is held against that of the first iteration. The bounds
are ours: where others have seen policies that had gone astray (Bai et al., 2022; Huang et al., 2024), not where they
begin to.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from llamactl.align.ppo import NEAR
from llamactl.errors import Fault

Line = Mapping[str, float]

NONE = 1e-5  # nats: KL that is none
EQUAL = 1e-6  # relative: how far equal scores lie apart by rounding
MISMATCH = {"fp32": 1e-4, "bf16": 0.05}  # of log p a token, by the precision that is trained in
KL = 30.0  # nats an answer
SURE = 3.0  # standard errors
LONGER = 2.0  # times the first length; or its part
MORE = 0.2  # of all answers, or of their runs of tokens, beyond the first share
LESS_ENTROPY = 1 / 3
CLIPPED = 0.3
TRUNCATED = 0.5
VALUE_LOSS = 4.0  # times the first
AGAIN = 10  # iterations
LEARNED = 10  # iterations that a critic has to become better than a mean


class Alarm(NamedTuple):
    """Its name, as metrics have it; whether it is given; what was seen, and what to try."""

    name: str
    given: Callable[[Line, Line], bool]
    says: str  # with fields of the line, and of the first one as first_NAME
    remedy: str | Callable[[Line, Line], str]


def _of_length(now: Line, first: Line) -> str:
    longer = now["length"] > first["length"]
    return f"a larger --kl, or {'--length-stop' if longer else '--truncated judged where long answers are cut off'}"


def _hacked(now: Line, first: Line) -> bool:
    if "general" not in now:
        return False
    up = now["reward"] - first["reward"] > SURE * (now["reward_stderr"] ** 2 + first["reward_stderr"] ** 2) ** 0.5
    return up and first["general"] - now["general"] > SURE * now["general_stderr"]


ALARMS = (
    Alarm(
        "kl", lambda now, first: now["kl"] > KL,
        "KL to the reference is {kl:.1f} nats an answer ({kl_token:.3f} a token)", "a larger --kl, or a smaller --lr",
    ),
    Alarm(
        "negative_kl", lambda now, first: now["kl"] < -SURE * now["kl_stderr"] - 1e-3,
        "KL to the reference is {kl:.3f} nats an answer, below 0 by more than chance: what is sampled is not what is "
        "trained", "--precision fp32, and report it",
    ),
    Alarm(
        "length", lambda now, first: not 1 / LONGER < now["length"] / first["length"] < LONGER,
        "answers are {length:.0f} tokens long, {first_length:.0f} at first: does the reward model like that? See "
        "samples.jsonl", _of_length,
    ),
    Alarm(
        "truncated", lambda now, first: now["truncated"] > TRUNCATED,
        "{truncated:.0%} of the answers are cut off by --max-new-tokens",
        "more --max-new-tokens, or a lower --truncated",
    ),
    Alarm(
        "repetition", lambda now, first: now["repetition"] > first["repetition"] + MORE,
        "{repetition:.0%} of an answer repeats itself, {first_repetition:.0%} at first: see samples.jsonl",
        "a larger --kl",
    ),
    Alarm(
        "refusals", lambda now, first: now["refusals"] > first["refusals"] + MORE,
        "{refusals:.0%} of the answers begin as a refusal, {first_refusals:.0%} at first",
        "fewer prompts tagged safety, or a larger --kl",
    ),
    Alarm(
        "entropy", lambda now, first: now["entropy"] < LESS_ENTROPY * first["entropy"],
        "entropy is {entropy:.2f} nats a token, {first_entropy:.2f} at first: answers become all alike",
        "a larger --kl, or a smaller --lr",
    ),
    Alarm(
        "value_loss", lambda now, first: now["value_loss"] > VALUE_LOSS * max(first["value_loss"], 0.1),
        "the critic's loss is {value_loss:.3g}, {first_value_loss:.3g} at first", "a smaller --critic-lr",
    ),
    Alarm(
        "explained_variance", lambda now, first: now["step"] > LEARNED and now["explained_variance"] < 0,
        "the critic is worse than a mean: it explains {explained_variance:.2f} of the returns' variance",
        "another --critic-lr, or a larger --batch-size",
    ),
    Alarm(
        "clip_fraction", lambda now, first: now["clip_fraction"] > CLIPPED,
        "{clip_fraction:.0%} of the tokens' ratios are clipped", "a smaller --lr",
    ),
    Alarm(
        "all_equal", lambda now, first: now["reward_stderr"] <= EQUAL * max(1.0, abs(now["reward"])),
        "all answers have the same score: there is nothing to learn but KL", "other prompts, or another reward model",
    ),
    Alarm(
        "general", _hacked,
        "the general reward model's score has fallen to {general:+.3f} from {first_general:+.3f} while the reward rose "
        "to {reward:+.3f} from {first_reward:+.3f}: the reward is being played (Goodhart)",
        "to stop here, or a larger --kl",
    ),
)  # fmt: skip


def check(line: Line, same: bool, precision: str) -> None:
    """Raise Fault where nothing that is learned can be trusted, or nothing was.

    ``ratio_off`` is that of the first step; the policy is still the reference where they are the ``same``. A loss is
    nan where all steps were refused.
    """
    problem = ""
    losses = {"policy": line["policy_loss"], "critic": line["value_loss"]}
    if refused := " and ".join(name for name, loss in losses.items() if math.isnan(loss)):
        problem = f"all gradient steps of the {refused} were refused: losses or gradients are not finite"
    elif line["ratio_off"]:
        problem = f"{line['ratio_off']:.2%} of the ratios of its first mini-batch are not 1 to {NEAR:g}"
    elif same and abs(line["kl"]) > NONE:
        problem = f"KL of the policy to itself is {line['kl']:.3g} nats an answer"
    elif line["mismatch"] > MISMATCH[precision]:
        problem = f"log-probabilities of sampler and training differ by {line['mismatch']:.3g} a token"
    if problem:
        raise Fault(f"iteration {line['step']}", problem, "try --precision fp32; a smaller --lr")


def stopped(line: Line, kl: float | None, length: float | None) -> str:
    """Why the run is to stop, as it was told to, by what is known of an iteration; empty where it is not."""
    if kl is not None and line.get("kl", -math.inf) > kl:
        return f"KL to the reference is {line['kl']:.1f} nats an answer, above --kl-stop {kl:g}"
    if length is not None and line.get("length", -math.inf) > length:
        return f"answers are {line['length']:.0f} tokens long, above --length-stop {length:g}"
    return ""


def raised(now: Line, first: Mapping[str, float | None]) -> dict[str, str]:
    """The alarms that an iteration gives: what each says, by name. What is nan in ``first`` may have become None."""
    began = {name: math.nan if value is None else value for name, value in first.items()}
    fields = {**now, **{f"first_{name}": value for name, value in began.items()}}
    remedies = {one.name: one.remedy if isinstance(one.remedy, str) else one.remedy(now, began) for one in ALARMS}
    return {
        alarm.name: f"{alarm.says.format(**fields)}; try {remedies[alarm.name]}"
        for alarm in ALARMS
        if alarm.given(now, began)
    }


def due(given: Mapping[str, str], said: dict[str, int], iteration: int) -> list[str]:
    """Those of the alarms given that are to be said: not again within ``AGAIN`` iterations, which ``said`` knows."""
    names = [name for name in sorted(given) if iteration - said.get(name, -AGAIN) >= AGAIN]
    said.update(dict.fromkeys(names, iteration))
    return names
