"""The answers of a PPO iteration: who is asked, what is thought of it, what is known of each token, what is learned.

By tiny models, in one process; what many processes come to is in test_ppo_stage.py.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import turns
from test_model import fresh
from test_model import written as model_written
from test_reject_sample import Models
from torch import Tensor

from llamactl.align import alarms, answering, choice, ppo
from llamactl.align.answering import Answer, Answering, Judgement, Question
from llamactl.align.judges import Judges
from llamactl.artifacts.jsonl import Found, refuse
from llamactl.artifacts.records import Prompt, Sample, checked
from llamactl.artifacts.run import Run
from llamactl.errors import Fault
from llamactl.model import generate
from llamactl.model.config import Config
from llamactl.model.device import PRECISIONS
from llamactl.model.drawing import Sampling
from llamactl.model.heads import Critic, RewardModel
from llamactl.model.llama import Llama
from llamactl.text.asking import Asked
from llamactl.text.tokenizer import EOS, Tokenizer
from llamactl.train import actor_critic
from llamactl.train.actor_critic import ActorCritic, Update
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job
from llamactl.train.rollouts import Part, Rollout, Rollouts, asked
from llamactl.train.schedule import Cosine
from llamactl.train.step import Outcome
from llamactl.train.training import Training
from llamactl.train.versions import Versions

CPU = torch.device("cpu")
ALONE = Job(None, CPU)
SHAPE = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=61, context=48)
SCORED = replace(SHAPE, scored=True)
# Of all kinds: a prompt of one token, one that nearly fills the context, an answer that is nothing but EOS.
LENGTHS = [(1, 6), (30, 3), (7, 1), (44, 4), (5, 10), (12, 2), (3, 1), (9, 9)]


def ids(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, SHAPE.vocab) for _ in range(length)]


def some_rollouts(count: int = len(LENGTHS)) -> list[Rollout]:
    """Prompts and answers that end with EOS, or are cut off; what the sampler says of them is not known."""
    found = []
    for number, (prompt, answer) in enumerate(LENGTHS[:count]):
        last = [EOS] if number % 4 != 1 else [7]
        found.append(Rollout(ids(prompt, number), ids(answer - 1, 99 + number) + last, [0.0] * answer))
    return found


def models(precision: str = "fp32", tmp_path: Path | None = None) -> tuple[Llama, Critic, Llama]:
    """A policy, a critic, and the reference that the policy comes from."""
    dtype = PRECISIONS[precision]
    policy, critic = fresh(SHAPE, dtype, seed=1), fresh(SCORED, dtype, seed=2, kind=Critic)
    assert isinstance(policy, Llama) and isinstance(critic, Critic)
    reference = fresh(SHAPE, dtype, seed=1)
    if tmp_path:
        reference = Llama.frozen(model_written(policy, tmp_path / "policy"), dtype, CPU)
    assert isinstance(reference, Llama)
    return policy.requires_grad_(True), critic.requires_grad_(True), reference


def learners(
    of: tuple[Llama, Critic, Llama], micro_batch: int = 3, temperature: float = 1.0, lr: float = 1e-2
) -> ActorCritic:
    policy, critic, reference = of
    optimizers = (AdamW(policy, Cosine(lr, 0, 99, 1.0)), AdamW(critic, Cosine(lr, 0, 99, 1.0)))
    return ActorCritic(
        policy, critic, reference, optimizers, ALONE, micro_batch, temperature, ppo.OF_POLICY, away=False
    )


def of_policy(log_probs: Tensor, part: Part) -> Tensor:
    return ppo.policy_loss(log_probs, part.column("log_probs"), part.column("advantages"), 0.2)


def of_critic(values: Tensor, part: Part) -> Tensor:
    return ppo.value_loss(values, part.column("values"), part.column("returns"), 0.2)


def taught(data: Rollouts, seed: int = 0) -> None:
    """Advantages and returns of any kind."""
    generator = torch.Generator().manual_seed(seed)
    for name in ("advantages", "returns"):
        data.columns[name] = torch.randn(data.mask.shape, generator=generator)


@torch.no_grad()
def log_probs_alone(model: Llama, rollout: Rollout, temperature: float) -> list[float]:
    """Of an answer's tokens, by a forward pass on it and its prompt and nothing else."""
    whole = torch.tensor([[*rollout.prompt, *rollout.answer]])
    scores = model.logits(model(whole))[0, len(rollout.prompt) - 1 : -1].double() / temperature
    found: list[float] = scores.log_softmax(-1)[range(len(rollout.answer)), rollout.answer].tolist()
    return found


@torch.no_grad()
def values_alone(model: Critic, rollout: Rollout) -> list[float]:
    """Before each token of an answer, likewise."""
    hidden = model(torch.tensor([[*rollout.prompt, *rollout.answer]]))
    found: list[float] = model.score(hidden)[0, len(rollout.prompt) - 1 : -1, 0].tolist()
    return found


# -- who is asked


def test_no_sample_of_a_prompt_is_drawn_twice_and_all_prompts_are_asked_before_one_is_asked_again() -> None:
    for prompts, size in ((5, 8), (7, 7), (100, 8), (1, 4), (8, 3)):
        turns_of = [turn for iteration in range(1, 31) for turn in asked(iteration, size, prompts, 0)]
        assert len(turns_of) == 30 * size
        assert max(Counter(turns_of).values()) == 1
        for start in range(0, len(turns_of) - prompts, prompts):
            epoch = turns_of[start : start + prompts]
            assert {prompt for prompt, _ in epoch} == set(range(prompts))
            assert {number for _, number in epoch} == {start // prompts}


def test_who_is_asked_depends_on_seed_and_iteration_alone() -> None:
    wanted = asked(3, 6, 50, 1)
    assert asked(3, 6, 50, 1) == wanted
    assert asked(3, 6, 50, 2) != wanted
    assert asked(1, 18, 50, 1)[12:] == wanted  # iterations are pieces of one order
    assert [prompt for prompt, _ in asked(1, 50, 50, 1)] != [prompt for prompt, _ in asked(2, 50, 50, 1)]


# -- mini-batches and parts


def test_mini_batches_hold_each_answer_once_in_an_order_of_their_own() -> None:
    data = Rollouts(some_rollouts(), ALONE)
    minis = data.batches(4, "0 mini-batches 1")
    assert [len(mini.numbers) for mini in minis] == [4, 4]
    assert sorted(number for mini in minis for number in mini.numbers) == list(range(8))
    assert [mini.targets for mini in minis] == [sum(LENGTHS[n][1] for n in mini.numbers) for mini in minis]
    again, other = data.batches(4, "0 mini-batches 1"), data.batches(4, "0 mini-batches 2")
    assert [mini.numbers for mini in again] == [mini.numbers for mini in minis]
    assert [mini.numbers for mini in other] != [mini.numbers for mini in minis]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
def test_a_mini_batch_is_split_into_all_its_answers(size: int) -> None:
    (mini,) = Rollouts(some_rollouts(), ALONE).batches(8, "")
    parts = mini.split(size)
    assert len(parts) == math.ceil(8 / size)
    assert max(len(part.numbers) for part in parts) <= size
    assert sorted(number for part in parts for number in part.numbers) == list(range(8))
    assert {part.targets for part in parts} == {mini.targets}  # by which sums are divided, whatever the part


def test_a_long_prompt_does_not_have_all_the_others_computed_one_by_one() -> None:
    """Parts hold as many answers as there is room for, those beside the long one as well."""
    lengths = [(40, 8), *[(4, 4)] * 15]
    each = [Rollout([5] * prompt, [7] * answer, []) for prompt, answer in lengths]

    def totals(mini: Part, size: int = 16) -> list[int]:
        return sorted(sum(sum(lengths[n]) for n in part.numbers) for part in mini.split(size))

    def minis(size: int, tokens: int, job: Job = ALONE) -> list[Part]:
        return Rollouts(each, job).batches(size, "", tokens)

    assert [totals(mini) for mini in minis(16, 48)] == [[40, 40, 40, 48]]
    assert [totals(mini) for mini in minis(16, 168)] == [[168]]
    assert [len(totals(mini)) for mini in minis(16, 1)] == [16]  # an answer is never cut
    assert sorted(totals(mini) for mini in minis(4, 48)) == [[24, 48], [32], [32], [32]]
    assert len(totals(minis(16, 168)[0], size=3)) == 6  # nor are there more answers in a part than are asked for
    shares = []
    for rank in range(2):
        job = Job(None, CPU)
        job.rank, job.data = rank, 2
        (mini,) = minis(16, 48, job)
        shares.append(totals(mini))
    assert sorted(len(share) for share in shares) == [3, 3]  # though the one without the long answer could do with two
    assert max(map(max, shares)) == 48
    assert sum(map(sum, shares)) == 168


def test_columns_lie_as_the_answers_do() -> None:
    data = Rollouts([Rollout([5], [6, 7, 2], []), Rollout([5, 6], [2], []), Rollout([9], [8, 8], [])], ALONE)
    assert data.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    data.columns["x"] = torch.arange(9.0).view(3, 3)
    part = Part(data, (2, 0), 6)
    assert part.places.tolist() == [6, 7, 0, 1, 2]
    assert part.column("x").tolist() == [6, 7, 0, 1, 2]
    assert data.flat("x").tolist() == [0, 1, 2, 3, 6, 7]


def test_a_row_holds_what_is_said_before_each_token_and_the_token() -> None:
    data = Rollouts([Rollout([5, 6, 7], [8, 2], []), Rollout([9], [2], [])], ALONE)
    forest, where, targets = Part(data, (1, 0), 3).row()
    assert forest.tokens[0, :5].tolist() == [9, 5, 6, 7, 8]
    assert forest.documents.positions[0, :5].tolist() == [0, 0, 1, 2, 3]
    assert (where.tolist(), targets.tolist()) == ([0, 3, 4], [2, 8, 2])


# -- what is known of each token


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_values_are_those_of_each_answer_by_itself(temperature: float, micro_batch: int) -> None:
    """Whatever stands beside it in a row, and whatever mini-batch it is of."""
    of = models()
    data, work = Rollouts(some_rollouts(), ALONE), learners(of, micro_batch, temperature)
    for size in (4, 8):
        work.look(data, data.batches(size, "x"))
        for number, one in enumerate(data.each):
            here = slice(0, len(one.answer))
            wanted = log_probs_alone(of[0], one, temperature)
            assert data.columns["log_probs"][number, here].tolist() == pytest.approx(wanted, abs=1e-5)
            assert data.columns["values"][number, here].tolist() == pytest.approx(values_alone(of[1], one), abs=1e-5)
    assert data.flat("log_probs").std() > 0.5 and data.flat("values").std() > 0.1  # or it would say little


def test_a_temperature_makes_a_difference() -> None:
    """Of 0.7 and 1 it is one that no rounding makes."""
    of, data = models(), Rollouts(some_rollouts(), ALONE)
    found = []
    for temperature in (1.0, 0.7):
        learners(of, temperature=temperature).look(data, data.batches(8, "x"))
        found.append(data.flat("log_probs"))
    assert (found[0] - found[1]).abs().mean() > 0.1


def test_the_reference_is_asked_and_not_the_policy_twice() -> None:
    policy, critic, _ = models()
    other = fresh(SHAPE, seed=5)
    assert isinstance(other, Llama)
    data = Rollouts(some_rollouts(), ALONE)
    learners((policy, critic, other)).look(data, data.batches(8, "x"))
    for number, one in enumerate(data.each):
        wanted = log_probs_alone(other, one, 1.0)
        assert data.columns["reference"][number, : len(one.answer)].tolist() == pytest.approx(wanted, abs=1e-5)


def test_what_is_seen_of_a_policy_worked_out_by_hand() -> None:
    """Log ratios are 0.5 and 0.5 of the one answer, 0.5 of the other: 1 and 0.5 nats, which are 0.25 sqrt 2 apart."""
    data = Rollouts([Rollout([5], [6, 2], [-1.0, -2.3]), Rollout([5], [2], [-2.7])], ALONE)
    data.columns |= {
        "log_probs": torch.tensor([[-1.0, -2.0], [-3.0, 77.0]]),
        "reference": torch.tensor([[-1.5, -2.5], [-3.5, -99.0]]),
    }
    wanted = {"kl": 0.75, "kl_stderr": 0.25, "kl_token": 0.5, "entropy": 2.0, "mismatch": 0.2}
    assert data.seen() == pytest.approx(wanted, abs=1e-6)


def test_a_critic_begins_around_0_in_units_of_the_scores() -> None:
    """1, 3 and 5 are -1, 0 and 1 of units of 2 around 3; what it says from then on is in these units, too."""
    of, data = models(), Rollouts([Rollout([5], [6, 2], []), Rollout([5], [2], [])], ALONE)
    work = learners(of)
    data.columns["values"] = torch.tensor([[1.0, 3.0], [5.0, 0.0]])
    assert work.calibrate(data, 2.0) == (3.0, 2.0)
    assert data.columns["values"].tolist() == [[-1, 0], [1, 0]]
    minis = data.batches(2, "x")
    work.look(data, minis)
    for number, one in enumerate(data.each):
        wanted = [(value - 3) / 2 for value in values_alone(of[1], one)]
        assert data.columns["values"][number, : len(one.answer)].tolist() == pytest.approx(wanted, abs=1e-5)
    taught(data)
    errors = data.flat("values") - data.flat("returns")
    update = work.learn(minis[0], of_policy, of_critic, lambda: None)
    assert update.critic.loss == pytest.approx(float(errors.square().mean()) / 2, rel=1e-5)
    assert not any(parameter.grad is not None for model in of for parameter in model.parameters())


def test_where_scores_do_not_vary_a_critics_unit_stays() -> None:
    data = Rollouts([Rollout([5], [6, 2], []), Rollout([5], [2], [])], ALONE)
    data.columns["values"] = torch.tensor([[1.0, 3.0], [5.0, 0.0]])
    assert learners(models()).calibrate(data, 0.0) == (3.0, 1.0)
    assert data.columns["values"].tolist() == [[-2, 0], [2, 0]]


# values -2, 0 | 2, by least squares of rewards, of each token the same
@pytest.mark.parametrize(("rewards", "share"), [((-1, 1.5), 0.625), ((1, 1), 0), ((2, -2), 0), ((-9, 9), 1)])
def test_a_critic_begins_with_what_it_foretells(rewards: tuple[float, float], share: float) -> None:
    """No more than it said, and not the contrary; what it says from then on has as little weight."""
    of, data = models(), Rollouts([Rollout([5], [6, 2], []), Rollout([5], [2], [])], ALONE)
    work = learners(of)
    data.columns["values"] = torch.tensor([[1.0, 3.0], [5.0, 0.0]])
    work.calibrate(data, 1.0)
    before = [values_alone(of[1], one) for one in data.each]
    assert work.shrink(data, torch.tensor(rewards, dtype=torch.float32)) == (3 * share, 1.0)
    assert data.columns["values"].tolist() == [[-2 * share, 0], [2 * share, 0]]
    work.look(data, data.batches(2, "x"))
    for number, values in enumerate(before):
        wanted = [(value - 3) * share for value in values]
        assert data.columns["values"][number, : len(values)].tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_critic_that_says_the_same_of_all_stays() -> None:
    of, data = models(), Rollouts([Rollout([5], [6, 2], []), Rollout([5], [2], [])], ALONE)
    work, head = learners(of), of[1].score.weight.clone()
    data.columns["values"] = torch.tensor([[3.0, 3.0], [3.0, 0.0]])
    work.calibrate(data, 2.0)
    assert work.shrink(data, torch.tensor([-1.0, 1.0])) == (3.0, 2.0)
    assert torch.equal(of[1].score.weight, head)


# -- what is learned


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_first_ratios_are_1_and_kl_is_0_to_the_bit(precision: str, micro_batch: int, tmp_path: Path) -> None:
    """After the first mini-batch they are not."""
    of = models(precision, tmp_path)
    data, work = Rollouts(some_rollouts(), ALONE), learners(of, micro_batch)
    minis = data.batches(4, "x")
    work.look(data, minis)
    taught(data)
    assert torch.equal(data.flat("log_probs"), data.flat("reference"))
    assert data.seen()["kl"] == 0
    seen: list[Tensor] = []

    def watching(log_probs: Tensor, part: Part) -> Tensor:
        seen.append((log_probs - part.column("log_probs")).detach().abs().max())
        return of_policy(log_probs, part)

    first, second = (work.learn(mini, watching, of_critic, lambda: None) for mini in minis)
    parts = 4 // micro_batch
    assert [float(worst) for worst in seen[:parts]] == [0.0] * parts
    assert first.policy.beside == (0, 0, 0)
    assert min(map(float, seen[parts:])) > 1e-3
    assert second.policy.beside[2] > 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_policy_that_changed_before_it_learns_is_caught(precision: str) -> None:
    of = models(precision)
    data, work = Rollouts(some_rollouts(), ALONE), learners(of)
    (mini,) = data.batches(8, "x")
    work.look(data, [mini])
    taught(data)
    with torch.no_grad():
        of[0].norm.weight *= 1.02
    update = work.learn(mini, of_policy, of_critic, lambda: None)
    line = {
        "step": 1,
        "policy_loss": 0.0,
        "value_loss": 0.0,
        "kl": 0.0,
        "mismatch": 0.0,
        "ratio_off": update.policy.beside[-1],
    }
    with pytest.raises(Fault, match=r"iteration 1: .* of the ratios of its first mini-batch are not 1"):
        alarms.check(line, True, precision)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_how_a_mini_batch_is_cut_changes_nothing_but_rounding(micro_batch: int) -> None:
    found = []
    for size in (micro_batch, 8):
        of = models()
        data, work = Rollouts(some_rollouts(), ALONE), learners(of, size)
        (mini,) = data.batches(8, "x")
        work.look(data, [mini])
        taught(data)
        update = work.learn(mini, of_policy, of_critic, lambda: None)
        found.append([update.policy.loss, update.policy.grad_norm, update.critic.loss, update.critic.grad_norm])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_losses_are_means_over_the_tokens_of_the_mini_batch() -> None:
    """At ratios of 1 the policy's is minus the mean advantage, the critic's half the mean squared error."""
    data, work = Rollouts(some_rollouts(), ALONE), learners(models())
    (mini,) = data.batches(8, "x")
    work.look(data, [mini])
    taught(data)
    update = work.learn(mini, of_policy, of_critic, lambda: None)
    errors = data.flat("values") - data.flat("returns")
    assert update.policy.loss == pytest.approx(-float(data.flat("advantages").mean()), abs=1e-6)
    assert update.critic.loss == pytest.approx(float(errors.square().mean()) / 2, rel=1e-5)


def test_the_policy_says_more_of_what_was_good_and_the_critic_comes_nearer() -> None:
    """Each learns its own; the reference stays."""
    of = models()
    before = [[parameter.clone() for parameter in model.parameters()] for model in of]
    data, work = Rollouts(some_rollouts(), ALONE), learners(of, lr=1e-4)
    minis = data.batches(8, "x")
    work.look(data, minis)
    data.columns["advantages"] = torch.where(torch.arange(8)[:, None] % 2 == 0, 1.0, -1.0).repeat(1, data.mask.shape[1])
    data.columns["returns"] = data.columns["values"] + 0.1
    then = {name: data.columns[name].clone() for name in ("log_probs", "values", "reference")}
    work.learn(minis[0], of_policy, of_critic, lambda: None)
    work.look(data, minis)
    apart = ((data.columns["log_probs"] - then["log_probs"]) * data.mask).sum(1)
    assert apart[::2].sum() > 0.1
    assert apart[1::2].sum() < -0.1
    left = ((data.columns["returns"] - data.columns["values"])[data.mask]).square().mean()
    assert left < 0.01
    assert torch.equal(data.columns["reference"], then["reference"])
    moved = [
        any(not torch.equal(p, q) for p, q in zip(model.parameters(), old, strict=True))
        for model, old in zip(of, before, strict=True)
    ]
    assert moved == [True, True, False]


def test_what_is_not_finite_is_refused_by_the_model_that_it_befalls() -> None:
    of = models()
    data, work = Rollouts(some_rollouts(), ALONE), learners(of)
    (mini,) = data.batches(8, "x")
    work.look(data, [mini])
    taught(data)
    before = [parameter.clone() for parameter in of[0].parameters()]
    update = work.learn(mini, lambda *given: of_policy(*given) * math.nan, of_critic, lambda: None)
    assert (update.refused, update.policy.applied, update.critic.applied) == (1, False, True)
    assert all(torch.equal(p, q) for p, q in zip(of[0].parameters(), before, strict=True))
    assert [optimizer.updates for optimizer in work.optimizers] == [0, 1]


def test_a_summary_is_of_the_steps_that_were_made() -> None:
    def outcome(loss: float, applied: bool = True, beside: tuple[float, ...] = ()) -> Outcome:
        return Outcome(loss, 10 * loss, applied, beside, ())

    updates = [
        Update(outcome(1.0, beside=(0.25, 0.5)), outcome(4.0)),
        Update(outcome(3.0, beside=(0.75, 1.5)), outcome(math.nan, applied=False)),
        Update(outcome(math.nan, applied=False, beside=(9, 9)), outcome(math.nan, applied=False)),
    ]
    assert [update.refused for update in updates] == [0, 1, 2]
    assert actor_critic.summary(updates, ("a", "b")) == {
        "policy_loss": 2.0, "policy_grad_norm": 20.0, "a": 0.5, "b": 1.0, "value_loss": 4.0, "value_grad_norm": 40.0
    }  # fmt: skip
    assert all(math.isnan(value) for value in actor_critic.summary(updates[2:], ("a",)).values())


# -- the sampler and the training


def answers_of(policy: Llama, temperature: float, gathered: torch.dtype = torch.float32) -> list[Rollout]:
    """Answers as the sampler draws them, from the weights that the policy computes with."""
    requests = [generate.Request(ids(prompt, number), (temperature,)) for number, (prompt, _) in enumerate(LENGTHS)]
    drawn = generate.generate(policy.gathered(gathered), requests, Sampling(1.0, 0, 12, 0))
    return [
        Rollout(request.ids, [*answer.ids, *[EOS] * answer.stopped], answer.log_probs)
        for request, (answer,) in zip(requests, drawn, strict=True)
    ]


def mismatch(precision: str, sampled_at: float, learned_at: float) -> float:
    of = models(precision)
    data = Rollouts(answers_of(of[0], sampled_at, torch.float32 if precision == "fp32" else torch.bfloat16), ALONE)
    learners(of, temperature=learned_at).look(data, data.batches(8, "x"))
    assert len(data.flat("log_probs")) > 50
    return data.seen()["mismatch"]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.4])
def test_the_sampler_and_the_training_agree_on_log_probabilities(temperature: float) -> None:
    assert mismatch("fp32", temperature, temperature) < 1e-5
    assert mismatch("bf16", temperature, temperature) < alarms.MISMATCH["bf16"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("sampled_at", "learned_at"), [(0.7, 1.0), (1.0, 0.7), (1.0, 1.4)])
def test_another_temperature_than_the_samplers_is_caught(precision: str, sampled_at: float, learned_at: float) -> None:
    line = {
        "step": 1,
        "policy_loss": 0.0,
        "value_loss": 0.0,
        "ratio_off": 0.0,
        "kl": 0.0,
        "mismatch": mismatch(precision, sampled_at, learned_at),
    }
    with pytest.raises(Fault, match="log-probabilities of sampler and training differ"):
        alarms.check(line, True, precision)


# -- answers and what is thought of them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tokenizer_path.read_bytes())


@pytest.fixture(scope="module")
def judges(made: Models) -> Judges:
    found = Judges({choice.HELPFULNESS: made.helpful, choice.SAFETY: made.safe})
    found.load(CPU, torch.float32)
    return found


@pytest.fixture(scope="module")
def tokenizer(made: Models) -> Tokenizer:
    return Tokenizer.load(made.chat)


def records(*contents: str, **more: Any) -> list[Found[Prompt]]:
    raw = [{"messages": turns(content), "id": n, **more} for n, content in enumerate(contents)]
    return [Found(checked(one, (Prompt,), ""), one, f"p:{n}") for n, one in enumerate(raw, 1)]


def questions(given: Iterable[Found[Prompt]], tokenizer: Tokenizer, judges: Judges) -> list[Question]:
    found, _ = answering.questions(given, tokenizer, 64, judges, refuse)
    return [*found.values()]


def says(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, texts: Sequence[str], cut: Sequence[int] = ()) -> None:
    """Have the sampler say these, the last prompt's first; those of the places ``cut`` are cut off."""

    def finished(model: object, requests: Iterable[Any], *_: object) -> Iterator[tuple[int, list[generate.Answer]]]:
        for place, _ in reversed([*enumerate(requests)]):
            said = tokenizer.encode(texts[place])
            yield place, [generate.Answer(said, place not in cut, [-1.0] * (len(said) + (place not in cut)))]

    monkeypatch.setattr(generate, "finished", finished)


def answered(judges: Judges, tokenizer: Tokenizer, some: Sequence[Question], policy: Any = None) -> list[Answer]:
    asking = Answering(judges, tokenizer, 1.0, Sampling(1.0, 0, 20, 0), 1 << 24)
    return [Answer(*fields) for fields in ALONE.together(some, partial(asking.answers, lambda: policy, lambda: False))]


def test_a_prompt_is_asked_once_however_often_it_stands_there(tokenizer: Tokenizer, judges: Judges) -> None:
    found, again = answering.questions(records("a", " a ", "b", "a"), tokenizer, 64, judges, refuse)
    assert [(one.found.where, one.number) for one in found.values()] == [("p:1", 0), ("p:3", 0)]
    assert again == 2


def test_prompts_that_cannot_be_asked_are_refused_by_their_place(tokenizer: Tokenizer, judges: Judges) -> None:
    """That fill the context of the model, or of a reward model by themselves, or hold the format's own tags."""
    refused: list[Fault] = []
    given = records("a", "word " * 14, "[INST]", "b", "word " * 11)
    found, _ = answering.questions(given, tokenizer, 50, judges, refused.append)
    assert len(found) == 3
    assert [fault.subject.partition(": ")[0] for fault in refused] == ["p:2", "p:3"]
    narrow = Judges({"helpfulness": judges.places["helpfulness"]})
    narrow._how = {name: how._replace(context=30) for name, how in narrow._how.items()}
    found, _ = answering.questions(given[:1] + given[4:], tokenizer, 64, narrow, refused.append)
    assert len(found) == 1
    assert refused[-1].problem.startswith("no answer to it can be judged: the shortest is ")


def test_answers_end_with_eos_and_have_the_scores_of_the_models_by_themselves(
    made: Models, tokenizer: Tokenizer, judges: Judges
) -> None:
    some = questions(records("What is a heap?", "sort", "x"), tokenizer, judges)
    some = [one._replace(number=number) for one in some for number in range(4)]
    answers = answered(judges, tokenizer, some, Llama.load(made.chat, CPU))
    assert {answer.stopped for answer in answers} == {True, False}
    for question, answer in zip(some, answers, strict=True):
        assert (answer.ids[-1] == EOS) == answer.stopped
        assert len(answer.log_probs) == len(answer.ids) <= 20
        raw = answer.sample(question, Path("chat"), {"temperature": 1.0})
        found = Found(checked(raw, (Sample,), ""), raw, "")
        for name, score in judges.scores([judges.case(found)])[0]["response"].items():
            assert answer.scores[name] == pytest.approx(score, abs=1e-5)
        assert [*answer.scores] == ["helpfulness", "safety"]
        assert (raw["id"], raw["model"]) == (question.found.raw["id"], "chat")
        assert raw["sampling"] == {"temperature": 1.0, "index": question.number}
        assert raw["finish"] == ("stop" if answer.stopped else "length")
    assert len({tuple(answer.ids) for answer in answers}) > 9  # each number draws another


def test_what_a_reward_model_does_not_see_of_an_answer_is_counted(
    made: Models, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where long ones are cut rather than refused."""
    judges = Judges({"helpfulness": made.helpful}, truncate=True)
    judges.load(CPU, torch.float32)
    some = questions(records("a", "b"), tokenizer, judges)
    says(monkeypatch, tokenizer, ["fine", "word " * 30])
    short, long = answered(judges, tokenizer, some)
    assert (short.cut, long.unjudged, [*long.scores]) == (0, "", ["helpfulness"])
    whole = judges.case(Found(Sample(messages=some[1].found.record.messages, response=long.text), {}, ""))
    assert long.cut == whole.cut > 0
    assert Judgement.of(some, [short, long], ["helpfulness"]).seen([short, long])["judged_in_part"] == 0.5


def test_an_answer_that_cannot_be_judged_has_a_reason_and_no_scores(
    tokenizer: Tokenizer, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a tag of the format, or is too long; the others keep their places."""
    some = questions(records("a", "b", "c", "d"), tokenizer, judges)
    says(monkeypatch, tokenizer, ["fine", "so [INST] so", "word " * 30, "good"], cut=[3])
    first, tagged, long, last = answered(judges, tokenizer, some)
    assert (tagged.scores, long.scores) == ({}, {})
    assert "holds [INST]" in tagged.unjudged
    assert "tokens long" in long.unjudged
    assert (first.text, last.text, first.unjudged, last.unjudged) == ("fine", "good", "", "")
    assert (first.stopped, last.stopped, last.ids[-1] == EOS) == (True, False, False)
    says(monkeypatch, tokenizer, ["fine", "good"])
    alone = answered(judges, tokenizer, [some[0], some[3]])
    assert first.scores == pytest.approx(alone[0].scores, abs=1e-5)
    assert last.scores == pytest.approx(alone[1].scores, abs=1e-5)


def test_a_score_that_is_not_finite_names_the_model_and_the_prompt(
    tokenizer: Tokenizer, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = questions(records("a", "b"), tokenizer, judges)
    says(monkeypatch, tokenizer, ["fine", "bad"])
    monkeypatch.setattr(RewardModel, "judge", lambda _, groups: [[1.0]] * (len(groups) - 1) + [[math.inf]])
    with pytest.raises(Fault, match=r"^p:2: .*/h gives it a score that is not finite; try "):
        answered(judges, tokenizer, some)


def test_a_process_may_have_nothing_to_answer(made: Models, tokenizer: Tokenizer, judges: Judges) -> None:
    assert answered(judges, tokenizer, [], Llama.load(made.chat, CPU)) == []


def test_a_sampler_that_is_to_stop_judges_nothing(
    tokenizer: Tokenizer, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = questions(records("a", "b"), tokenizer, judges)
    says(monkeypatch, tokenizer, ["fine", "bad"])
    monkeypatch.setattr(RewardModel, "judge", lambda *_: pytest.fail("it judges"))
    asking = Answering(judges, tokenizer, 1.0, Sampling(1.0, 0, 8, 0), 1 << 24)
    assert list(asking.answers(lambda: None, lambda: True, some)) == []  # type: ignore[arg-type, return-value]


def question(safety: bool) -> Question:
    raw = {"messages": turns("a"), "safety": safety}
    return Question(Found(checked(raw, (Prompt,), ""), raw, "p:1"), Asked(raw, [1], None))


def answer(helpfulness: float | None, safety: float = 0.0, stopped: bool = True, **more: Any) -> Answer:
    scores = {} if helpfulness is None else {"helpfulness": helpfulness, "safety": safety}
    given = Answer([5, 6, EOS] if stopped else [5, 6], [], stopped, "so", scores, "" if scores else "too long")
    return given._replace(**more)


def test_a_judgement_is_helpfulness_or_safety_where_the_paper_says() -> None:
    """sigmoid(-1.73) is 0.151, sigmoid(-1.74) 0.149."""
    given = [
        (question(False), answer(3, -1.73)),
        (question(False), answer(3, -1.74)),
        (question(True), answer(3, 2)),
        (question(False), answer(None)),
    ]
    some, answers = ([pair[n] for pair in given] for n in (0, 1))
    names = ["helpfulness", "safety"]
    found = Judgement.of(some, answers, names)  # type: ignore[arg-type]
    assert found.reward[:3].tolist() == pytest.approx([3, -1.74, 2])
    assert math.isnan(found.reward[3])
    assert found.by_safety.tolist() == [False, True, True, False]
    assert found.spread() == pytest.approx(statistics.stdev([3, -1.74, 2]))  # of those that were judged
    without = Judgement.of(some, answers, names[:1])  # type: ignore[arg-type]
    assert without.reward[:3].tolist() == [3, 3, 3]
    assert without.by_safety.tolist() == [False] * 4
    assert without.spread() == 0
    assert Judgement.of(some[3:], answers[3:], names).spread() == 0  # type: ignore[arg-type]


def test_answers_count_that_were_judged_and_not_cut_off() -> None:
    answers = [answer(1), answer(1, stopped=False), answer(None), answer(None, stopped=False)]
    found = Judgement.of([question(False)] * 4, answers, ["helpfulness"])
    assert found.counted(answers, truncated=False).tolist() == [True, False, False, False]
    assert found.counted(answers, truncated=True).tolist() == [True, True, False, False]


def test_what_is_seen_of_answers_worked_out_by_hand() -> None:
    """Scores 1 and 4 are 1.5 from their mean: the root of 4.5 over that of 2 is 1.5."""
    again = [5, 6, 7, 8, 5, 6, 7, 8, EOS]  # of 6 runs of four one stands there before
    answers = [answer(1, ids=again), answer(4, text="I cannot say"), answer(None, stopped=False), answer(None)]
    some = [question(False), question(True), question(False), question(False)]
    wanted = {
        "reward": 0.5, "reward_stderr": 0.5, "helpfulness": 2.5, "helpfulness_stderr": 1.5, "safety": 0.0,
        "safety_stderr": 0.0, "by_safety": 0.25, "length": (9 + 3 + 2 + 3) / 4, "truncated": 0.25,
        "repetition": 1 / 24, "refusals": 0.25,
    }  # fmt: skip
    found = Judgement.of(some, answers, ["helpfulness", "safety"]).seen(answers)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("said", "share"),
    [([], 0), ([5, 5, 5], 0), ([5, 5, 5, 5], 0), ([5] * 9, 5 / 6), ([*range(9)], 0), ([1, 2, 3, 4, 1, 2, 3, 4], 0.2)],
)
def test_repetition_is_the_share_of_runs_that_were_said_before(said: list[int], share: float) -> None:
    assert answering.repetition(said) == pytest.approx(share)


# -- versions


@pytest.fixture
def versions(tmp_path: Path) -> Callable[[], tuple[Llama, Training, Versions]]:
    """A model in training, and its versions; asked for again, with the facts that a state keeps."""
    facts: dict[str, Any] = {}

    def begun() -> tuple[Llama, Training, Versions]:
        policy = models()[0]
        training = Training(policy, AdamW(policy, Cosine(1, 0, 9)), Run("ppo", {}, {}, tmp_path), tmp_path, ALONE, 1)
        training.facts = facts

        def saved(where: Path) -> list[dict[str, Any]]:
            model_written(policy, where)
            return []

        return policy, training, Versions(training, saved)

    return begun


def filled(model: Llama, value: float) -> Llama:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def test_the_best_version_is_kept_and_can_be_taken_back(versions: Any, tmp_path: Path) -> None:
    policy, _, found = versions()
    assert found.best == (0, -math.inf)
    for iteration, value in [(0, -5.0), (2, 1.0), (4, 0.5), (6, 1.0)]:
        filled(policy, iteration)
        found.measured(iteration, value)
    assert found.best == (2, 1.0)  # of equal ones the first
    assert {path.name for path in tmp_path.iterdir()} == {"iteration-00000", "iteration-00002"}
    policy, _, again = versions()
    assert again.best == (2, 1.0)
    again.take_back(policy, 2)
    assert {float(parameter.detach().mean()) for parameter in policy.parameters()} == {2.0}


def test_a_measure_that_is_no_number_is_not_the_best(versions: Any, tmp_path: Path) -> None:
    _, training, found = versions()
    found.measured(0, math.nan)
    assert found.best == (0, -math.inf)
    assert not [*tmp_path.iterdir()] and not training.facts
    found.measured(1, -3.0)
    found.measured(2, math.nan)
    assert found.best == (1, -3.0)


@pytest.mark.parametrize(("every", "left"), [(None, set()), (2, {2, 4}), (3, {3}), (5, set())])
def test_versions_are_cleared_but_for_those_asked_for(
    versions: Any, tmp_path: Path, every: int | None, left: set[int]
) -> None:
    _, _, found = versions()
    for iteration in range(5):
        found.keep(iteration)
    found.clear(every)
    assert {path.name for path in tmp_path.iterdir()} == {f"iteration-{n:05d}" for n in left}
