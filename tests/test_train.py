"""How parameters move: schedule, optimizer, one step, the loop, and what pretraining leaves behind."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from llamactl.artifacts import manifest, state
from llamactl.artifacts.records import Shard
from llamactl.artifacts.run import Run
from llamactl.artifacts.shards import Shards, Writer
from llamactl.cli import app
from llamactl.errors import Fault, Interrupted
from llamactl.model import device
from llamactl.model.config import Config
from llamactl.model.llama import Llama
from llamactl.train import loop, optim, schedule
from llamactl.train import step as stepping
from llamactl.train.batches import Mix, shares
from llamactl.train.loop import Step
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job, joined
from llamactl.train.schedule import Cosine, Plan
from llamactl.train.step import Loss, Outcome, next_token_loss, take
from llamactl.train.training import Training

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

CPU = torch.device("cpu")
ALONE = Job(None, CPU)
SMALL = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=61, context=24)
GOLDEN = [4.10494, 4.10121, 3.8994, 3.72575, 3.58035, 3.48782, 3.4442, 3.39337, 3.38178, 3.39243]
FIELDS = {
    "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_bytes", "refused", "save_seconds",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of this machine is measured with small matrices: the real ones take a second."""
    monkeypatch.setattr(device, "_PROBE", 32)


def batch(start: int, size: int) -> Tensor:
    """Sequences of a fixed pseudo-random text (a linear congruential generator), by global index."""
    rows = []
    for index in range(start, start + size):
        value, row = index * 7919 + 1, []
        for _ in range(SMALL.context + 1):
            value = (value * 1103515245 + 12345) % 2**31
            row.append((value >> 16) % 23 + (value >> 20) % 3)
        rows.append(row)
    return torch.tensor(rows)


def repeating(start: int, size: int) -> Tensor:
    return (torch.arange(start, start + size)[:, None] + torch.arange(SMALL.context + 1)) % 7


def fresh(dtype: torch.dtype = torch.float32) -> Llama:
    return Llama.create(SMALL, dtype, CPU, 0)


def plan(steps: int, batch_size: int = 8, micro_batch: int = 4, save_every: int = 1000, peak: float = 1e-2) -> Plan:
    return Plan(
        Cosine(peak, steps // 5, steps), batch_size, batch_size * SMALL.context, micro_batch, save_every, keep=2
    )


def training(directory: Path, how: Plan, model: Llama | None = None, job: Job = ALONE) -> Training:
    directory.mkdir(exist_ok=True)
    model = model or fresh()
    return Training(model, AdamW(model, how.schedule), Run("test", {}, {}, directory), directory, job, how.keep)


def trained(directory: Path, how: Plan, loss_of: Loss = next_token_loss, data: Any = batch) -> tuple[Llama, list[Step]]:
    here = training(directory, how)
    return here.model, list(loop.steps(here, data, loss_of, how))


def poisoned(where: Callable[[int], bool], poison: float = math.nan) -> Loss:
    """A loss that is not finite in some of the micro-batches, counted from 0."""
    calls = iter(range(10**9))

    def loss_of(model: Llama, ids: Tensor) -> Tensor:
        loss = next_token_loss(model, ids)
        return loss * poison if where(next(calls)) else loss

    return loss_of


def weights(model: Llama) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def adamw(model: Llama, lr: float = 1e-3) -> AdamW:
    """AdamW at one learning rate."""
    return AdamW(model, Cosine(lr, 0, 100, floor=1.0))


def stepped(
    model: Llama,
    optimizer: AdamW,
    ids: Tensor,
    micro_batch: int = 8,
    loss_of: Loss = next_token_loss,
    targets: int | None = None,
    before_update: Callable[[], None] = lambda: None,
) -> Outcome:
    targets = targets or len(ids) * SMALL.context
    return Outcome.read(take(model, optimizer, loss_of, ids, targets, micro_batch, ALONE, before_update=before_update))


def step_on(model: Llama, micro_batch: int, rows: int = 8, loss_of: Loss = next_token_loss) -> Outcome:
    return stepped(model, adamw(model), batch(0, rows), micro_batch, loss_of)


# -- the schedule


@pytest.mark.parametrize(("warmup", "steps"), [(2000, 476_838), (5, 50), (0, 10), (1, 2), (10, 10), (3, 4)])
def test_the_learning_rate_is_never_0_and_ends_at_the_floor(warmup: int, steps: int) -> None:
    schedule = Cosine(3e-4, warmup, steps)
    probes = range(steps) if steps < 1000 else [*range(0, steps, 997), *range(2100), *range(steps - 50, steps)]
    rates = [schedule.at(step) for step in probes]
    assert all(0 < rate <= 3e-4 * (1 + 1e-12) for rate in rates)
    first = max(1, warmup)  # without a warm-up the first step has the initial rate
    assert schedule.at(0) == pytest.approx(3e-4 / first)
    assert schedule.at(first - 1) == pytest.approx(3e-4)
    if first < steps:
        assert schedule.at(steps - 1) == pytest.approx(3e-5)
        falling = [schedule.at(step) for step in range(first, min(steps, first + 500))]
        assert all(a > b for a, b in zip([3e-4, *falling], falling, strict=False))


def test_warm_up_is_linear_and_the_middle_of_the_cosine_is_half_way() -> None:
    schedule = Cosine(1.0, 100, 300)
    assert [schedule.at(step) for step in (9, 49, 99)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.at(199) == pytest.approx(0.55)
    assert schedule.at(149) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


# -- the optimizer


def test_adamw_has_the_papers_numbers() -> None:
    assert (optim.BETAS, optim.EPS, optim.WEIGHT_DECAY) == ((0.9, 0.95), 1e-5, 0.1)
    assert (optim.CLIP, schedule.WARMUP, Cosine(1, 0, 1).floor) == (1.0, 2000, 0.1)


def test_every_parameter_has_its_decay_and_only_matrices_decay() -> None:
    model = fresh()
    optimizer = AdamW(model, Cosine(1, 0, 1), 0.3)
    names = {name for name, _ in model.named_parameters()}
    norms = {name for name in names if name.endswith("norm.weight")}
    assert {decay: set(some) for decay, some in optimizer.groups.items()} == {0.0: norms, 0.3: names - norms}
    assert optimizer.moments.keys() == names


@pytest.mark.parametrize("clip", [1e9, 0.05])
def test_an_update_is_adamws_by_hand(monkeypatch: pytest.MonkeyPatch, clip: float) -> None:
    monkeypatch.setattr(stepping, "CLIP", clip)
    model, rates = fresh(), Cosine(1e-2, 2, 5)
    wanted = weights(model)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in wanted.items()}
    optimizer = AdamW(model, rates)
    gradients: dict[str, Tensor] = {}

    def keep() -> None:
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    for step, lr in enumerate(map(rates.at, range(5)), 1):
        outcome = stepped(model, optimizer, batch(step, 4), before_update=keep)
        assert (outcome.grad_norm > clip) == (clip < 1)
        for name, parameter in model.named_parameters():
            m, v = moments[name]
            gradient = gradients[name] * min(1.0, clip / outcome.grad_norm)
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.95).add_(0.05 * gradient**2)
            decay = 0.1 if parameter.dim() > 1 else 0.0
            change = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-5)
            wanted[name] = wanted[name] * (1 - lr * decay) - lr * change
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-5), name


# -- one step


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 5])
def test_accumulation_changes_nothing_but_rounding(micro_batch: int) -> None:
    whole, parts = fresh(), fresh()
    at_once, piecewise = step_on(whole, 8), step_on(parts, micro_batch)
    assert piecewise.loss == pytest.approx(at_once.loss, rel=1e-6)
    assert piecewise.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-5)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() < 1e-5 * a.grad.norm(), name
        assert (a - b).abs().max() < 1e-5, name  # a hundredth of the step


def test_accumulation_weighs_tokens_not_micro_batches() -> None:
    """Where micro-batches have different numbers of targets, the mean of their means is another number."""

    def only_some(model: Llama, ids: Tensor) -> Tensor:
        losses = torch.stack([next_token_loss(model, row[None]) for row in ids])
        return (losses * (ids[:, 0] % 2)).sum()  # rows that begin with an even id carry no loss

    ids = batch(0, 8)
    odd = int((ids[:, 0] % 2).sum())
    assert 0 < odd < 8
    losses = []
    for micro_batch in (8, 1):
        model = fresh()
        losses.append(stepped(model, adamw(model), ids, micro_batch, only_some, odd * SMALL.context).loss)
    model = fresh()
    wanted = next_token_loss(model, ids[ids[:, 0] % 2 == 1]).item() / (odd * SMALL.context)
    assert losses == pytest.approx([wanted, wanted], rel=1e-6)


def test_the_loss_of_a_fresh_model_is_that_of_guessing() -> None:
    assert step_on(fresh(), 8).loss == pytest.approx(math.log(61), abs=0.02)


def test_next_token_loss_is_the_sum_of_minus_log_p() -> None:
    model, ids = fresh(), batch(0, 3)
    total = 0.0
    with torch.no_grad():
        for row in ids:
            log_p = model.logits(model(row[None, :-1]))[0].log_softmax(-1)
            total -= sum(log_p[t, row[t + 1]].item() for t in range(SMALL.context))
        assert next_token_loss(model, ids).item() == pytest.approx(total, rel=1e-6)


def test_a_bf16_step_is_close_to_an_fp32_one_and_its_gradients_are_fp32() -> None:
    wide, narrow = fresh(), fresh(torch.bfloat16)
    exact, rough = step_on(wide, 2), step_on(narrow, 2)
    assert rough.loss == pytest.approx(exact.loss, rel=2e-3)
    assert rough.loss != exact.loss
    assert rough.grad_norm == pytest.approx(exact.grad_norm, rel=0.02)
    for (name, a), b in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert b.grad.dtype == torch.float32
        assert torch.cosine_similarity(a.grad.flatten(), b.grad.flatten(), 0) > 0.995, name
        if b.dim() > 1:  # micro-batches add up in fp32: the sum has digits that bf16 has not
            assert not torch.equal(b.grad, b.grad.bfloat16().float()), name


def first_moments(optimizer: AdamW) -> float:
    """The length of all first moments: after one step, a tenth of that of the gradient that was applied."""
    return torch.cat([first.flatten() for first, _ in optimizer.moments.values()]).norm().item()


@pytest.mark.parametrize("micro_batch", [8, 2, 1])
def test_gradients_are_clipped_once_on_their_global_norm(monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    """The length of the gradient that is applied is that of the clip, whatever the micro-batches."""
    monkeypatch.setattr(stepping, "CLIP", 0.01)
    model = fresh()
    optimizer = adamw(model)
    outcome = stepped(model, optimizer, batch(0, 8), micro_batch)
    assert outcome.grad_norm > 0.1
    assert first_moments(optimizer) == pytest.approx(0.1 * 0.01, rel=1e-4)

    model = fresh()
    (next_token_loss(model, batch(0, 8)) / (8 * SMALL.context)).backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert outcome.grad_norm == pytest.approx(torch.stack(norms).norm().item(), rel=1e-5)


def test_a_small_gradient_is_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "CLIP", 1e6)
    model = fresh()
    optimizer = adamw(model)
    outcome = stepped(model, optimizer, batch(0, 8))
    assert first_moments(optimizer) == pytest.approx(0.1 * outcome.grad_norm, rel=1e-4)


def test_what_is_told_is_counted(tmp_path: Path) -> None:
    model = fresh()
    asked = take(
        model, adamw(model), next_token_loss, batch(0, 2), 48, 1, ALONE, tells=lambda: (True, False, True)
    )  # fmt: skip
    assert Outcome.read(asked).told == (1, 0, 1)


# -- what is not finite


def infinite_gradient(model: Llama, ids: Tensor) -> Tensor:
    """A finite loss with a gradient that is not: sqrt at 0."""
    return next_token_loss(model, ids) + (model.norm.weight[:1] * 0).sqrt().sum()


@pytest.mark.parametrize(
    "loss_of",
    [poisoned(lambda n: n == 2), poisoned(lambda n: n == 0, math.inf), infinite_gradient],
    ids=["nan", "inf", "gradient"],
)
def test_a_step_that_is_not_finite_changes_nothing(loss_of: Loss) -> None:
    """Parameters, moments and the count of updates: the next update is that of a run that never met the batch."""
    model, spared = fresh(), fresh()
    optimizer, other = adamw(model, 1e-2), adamw(spared, 1e-2)
    stepped(model, optimizer, batch(0, 8), 2)
    stepped(spared, other, batch(0, 8), 2)
    outcome = stepped(model, optimizer, batch(8, 8), 2, loss_of)
    assert not outcome.applied
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), spared.parameters(), strict=True))
        for name, pair in optimizer.moments.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, other.moments[name], strict=True)), name
        assert stepped(model, optimizer, batch(8, 8), 2).applied
        stepped(spared, other, batch(8, 8), 2)


def test_refused_batches_are_passed_over_and_all_updates_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each step has two micro-batches; one of batch 2 and one of batch 5 are bad."""
    here = training(tmp_path / "a", plan(10))
    taken = list(loop.steps(here, batch, poisoned(lambda n: n in (5, 10)), plan(10)))
    assert [step.step for step in taken] == list(range(1, 11))
    assert [step.refused for step in taken] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [step.lr for step in taken] == [plan(10).schedule.at(n) for n in range(10)]
    assert here.run.skipped == {"refused steps": 2}
    assert "step 3 refused: loss nan" in capsys.readouterr().err

    good = [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    _, without = trained(tmp_path / "b", plan(10), data=lambda start, size: batch(good[start // 8] * 8, size))
    assert [step.loss for step in taken] == [step.loss for step in without]


def test_ten_refused_steps_in_a_row_end_the_run_with_the_state_saved(tmp_path: Path) -> None:
    here = training(tmp_path, plan(20))
    seen = []
    with pytest.raises(Fault, match=r"10 steps in a row.*step 3") as stopped:
        seen.extend(step.step for step in loop.steps(here, batch, poisoned(lambda n: n >= 6), plan(20)))
    assert "--no-resume" in stopped.value.remedy
    saved = state.newest(tmp_path / "state")
    assert saved is not None
    assert (saved.facts["step"], saved.facts["refused"]) == (3, 10)
    for name, parameter in here.model.named_parameters():
        found = torch.empty_like(parameter.detach())
        saved.read(f"parameter/{name}", (0,) * found.dim(), found)
        assert torch.equal(found, parameter)

    again = training(tmp_path, plan(20))
    assert again.resume()
    rest = list(loop.steps(again, batch, next_token_loss, plan(20)))
    assert [step.step for step in rest] == list(range(4, 21))
    assert {step.refused for step in rest} == {10}
    assert again.run.skipped == {"refused steps": 10}


def test_nine_refused_steps_in_a_row_do_not(tmp_path: Path) -> None:
    bad = {*range(4, 22), *range(26, 44)}
    _, taken = trained(tmp_path, plan(5), poisoned(lambda n: n in bad))
    assert [step.refused for step in taken] == [0, 0, 9, 9, 18]


# -- the loop


def shards_of(directory: Path, first: int, rows: int) -> Shards:
    """Token shards of the pseudo-random text, in files of 100 tokens."""
    directory.mkdir()
    writer = Writer(directory, np.dtype("<u2"), Shard(), 100)
    writer.add(batch(first, rows).numpy().astype("<u2").reshape(-1), np.full(rows, SMALL.context + 1))
    run = Run("tokenize", {}, {}, directory)
    (directory / manifest.FILE).write_bytes(manifest.dumps(run.manifest(writer.close())))
    return Shards(directory)


def test_golden_losses(tmp_path: Path) -> None:
    """Ten losses of a small fp32 recipe over two sources. A refactoring leaves them as they are."""
    shards = [shards_of(tmp_path / "a", 0, 40), shards_of(tmp_path / "b", 1000, 15)]
    mix = Mix(shares([Fraction(2), Fraction(1)], shards), SMALL.context, SMALL.vocab, seed=0)
    _, taken = trained(tmp_path / "run", plan(10), data=mix.batch)
    assert [step.loss for step in taken] == pytest.approx(GOLDEN, abs=1e-4)


def test_a_repetitive_text_is_learned(tmp_path: Path) -> None:
    model, taken = trained(tmp_path, plan(60), data=repeating)
    assert taken[0].loss > 3.5
    assert taken[-1].loss < 0.15
    with torch.no_grad():
        guess = model.logits(model(repeating(3, 1)[:, :-1])).argmax(-1)
    assert (guess[0, 1:] == repeating(3, 1)[0, 2:]).all()


def test_a_run_depends_on_its_seed_alone(tmp_path: Path) -> None:
    first, second = (trained(tmp_path / name, plan(6)) for name in "ab")
    assert [step.loss for step in first[1]] == [step.loss for step in second[1]]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_a_resumed_training_is_the_same_to_the_bit(tmp_path: Path, stop: int, dtype: torch.dtype) -> None:
    how = plan(8, save_every=100)
    whole = training(tmp_path / "whole", how, fresh(dtype))
    losses = [step.loss for step in loop.steps(whole, batch, next_token_loss, how)]
    first = training(tmp_path / "parts", how, fresh(dtype))
    steps = loop.steps(first, batch, next_token_loss, how)
    found = [next(steps).loss for _ in range(stop)]
    steps.close()
    first.save()
    first.finish_saving()
    model = Llama.create(SMALL, dtype, CPU, 77)  # other weights, which the state replaces
    second = training(tmp_path / "parts", how, model)
    assert second.resume()
    found += [step.loss for step in loop.steps(second, batch, next_token_loss, how)]
    assert found == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), model.parameters(), strict=True))


def test_states_are_saved_as_often_as_asked_and_pruned(tmp_path: Path) -> None:
    """In the background: a state has its name two steps later at the latest."""
    here = training(tmp_path, how := plan(9, save_every=2))
    seen = [
        "".join(sorted(place.name[-1] for place in (tmp_path / "state").glob("step-*")))
        for _ in loop.steps(here, batch, next_token_loss, how)
    ]
    assert seen[:3] == ["", "", ""]
    for step, found in enumerate(seen[3:], 4):
        early, late = ("".join(str(n) for n in range(2, last + 1, 2))[-2:] for last in (step - 3, step - 1))
        assert found in (early, late), (step, seen)
    assert [place.name[-1] for place in sorted((tmp_path / "state").iterdir())] == ["8", "9"]


# -- outcomes that are read late, as on a GPU


def told(step: Step) -> tuple[object, ...]:
    """All of a step but what the clock says."""
    return step.step, step.tokens, step.loss, step.lr, step.grad_norm, step.refused


CLOCKED = ("device_seconds", "joules", "account", "sha256")


def states_of(directory: Path) -> dict[str, dict[str, Any]]:
    """What was saved, to the bit, but for the clock."""
    return {
        place.name: {key: value for key, value in state.State(place).facts.items() if key not in CLOCKED}
        for place in sorted((directory / "state").glob("step-*"))
    }


@pytest.fixture(params=[1, 2])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Outcomes are read so many steps late from when this is called."""
    return lambda: monkeypatch.setitem(loop.LAG, "cpu", request.param)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_a_gpu_does_next_is_not_waited_for() -> None:
    """The outcome of a step is there while the next one is under way."""
    large, seen = torch.randn(8192, 8192, device="cuda"), torch.tensor([1.0, 0.0, 2.0], device="cuda")
    large @ large  # what is set up at the first call
    torch.cuda.synchronize()
    sent = stepping.Sent.off(seen)
    for _ in range(50):
        large @ large
    assert sent.outcome() == Outcome(2.0, 1.0, True, (), ())
    assert not torch.cuda.current_stream().query()


@pytest.mark.parametrize(
    "bad", [(), (5, 10), (4, 6, 8, 11), (0, 2, 5, 21)], ids=lambda bad: ",".join(map(str, bad)) or "none"
)
def test_what_is_read_late_is_the_same(
    tmp_path: Path, late: Callable[[], None], capsys: pytest.CaptureFixture[str], bad: tuple[int, ...]
) -> None:
    """Losses, refusals and what is said of them, states and final weights, to the bit. Two micro-batches a step."""
    seen = []
    how = plan(11, save_every=3)._replace(keep=9)
    for name in ("prompt", "late"):
        if name == "late":
            late()
        here = training(tmp_path / name, how)
        taken = [told(step) for step in loop.steps(here, batch, poisoned(lambda n: n in bad), how)]
        said = capsys.readouterr().err
        seen.append((taken, states_of(tmp_path / name), weights(here.model), said, here.refused))
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][3:] == seen[1][3:]
    assert all(torch.equal(a, b) for a, b in zip(seen[0][2].values(), seen[1][2].values(), strict=True))
    assert list(seen[0][1]) == [f"step-{n:08d}" for n in (3, 6, 9, 11)]


def test_ten_refused_steps_read_late_end_the_run_in_the_same_state(tmp_path: Path, late: Callable[[], None]) -> None:
    for name in ("prompt", "late"):
        if name == "late":
            late()
        here = training(tmp_path / name, plan(20))
        with pytest.raises(Fault, match=r"10 steps in a row.*step 3"):
            list(loop.steps(here, batch, poisoned(lambda n: n >= 6), plan(20)))
    assert states_of(tmp_path / "prompt") == states_of(tmp_path / "late")


@pytest.mark.parametrize("step", [1, 6, 7])
def test_a_run_stopped_late_goes_on_to_the_same_bits(tmp_path: Path, late: Callable[[], None], step: int) -> None:
    how = plan(18, save_every=4)
    model, wanted = trained(tmp_path / "whole", how)
    late()
    taken = []
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 after step"), joined(CPU) as job:
        for one in loop.steps(training(tmp_path / "parts", how, job=job), batch, next_token_loss, how):
            taken.append(told(one))
            if one.step == step:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert step < len(taken) <= step + 1 + 2 * loop.LAG["cpu"]  # launched before it, and before it was read
    second = training(tmp_path / "parts", how, Llama.create(SMALL, torch.float32, CPU, 77))
    assert second.resume()
    assert second.step == len(taken)
    taken += [told(one) for one in loop.steps(second, batch, next_token_loss, how)]
    assert taken == [told(one) for one in wanted]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize(("presses", "status"), [(1, 130), (2, None)])
def test_ctrl_c_saves_and_pressed_again_leaves_at_once(
    tmp_path: Path, presses: int, status: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    how = plan(6, save_every=100)
    model, wanted = trained(tmp_path / "whole", how)
    before, taken = signal.getsignal(signal.SIGINT), []
    assert before is signal.default_int_handler
    with pytest.raises((Interrupted, KeyboardInterrupt)) as ended, joined(CPU) as job:
        for one in loop.steps(training(tmp_path / "parts", how, job=job), batch, next_token_loss, how):
            taken.append(told(one))
            for _ in range(presses if one.step == 3 else 0):
                os.kill(os.getpid(), signal.SIGINT)
    assert getattr(ended.value, "status", None) == status
    assert "Ctrl-C again to leave at once" in capfd.readouterr().err
    del ended
    assert signal.getsignal(signal.SIGINT) is before
    second = training(tmp_path / "parts", how, Llama.create(SMALL, torch.float32, CPU, 77))
    assert second.resume() == (presses == 1)
    if presses == 1:
        taken += [told(one) for one in loop.steps(second, batch, next_token_loss, how)]
        assert taken == [told(one) for one in wanted]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.model.parameters(), strict=True))


def test_where_ctrl_c_is_ignored_it_stays_so(tmp_path: Path) -> None:
    """As in a job that a shell has begun with ``&``."""
    how = plan(2)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in loop.steps(training(tmp_path, how), batch, next_token_loss, how):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ending", [None, Fault("x", "y"), KeyboardInterrupt()], ids=str)
def test_signals_mean_what_they_meant_after_a_job(ending: BaseException | None) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with suppress(Fault, KeyboardInterrupt), joined(CPU) as job:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert job.caught == [signal.SIGUSR1, signal.SIGTERM]
        if ending:
            raise ending
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


# -- the command


def pretrain(*flags: object, status: int | None = 0) -> Any:
    """The command within this process; ``status`` None is any, but no traceback."""
    result = CliRunner().invoke(app, ["pretrain", "--size", "tiny", *map(str, flags)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert status in (None, result.exit_code), result.stderr
    return result


@pytest.fixture
def little(shards_dir: Path, tmp_path: Path) -> Iterator[list[object]]:
    """Flags of a run that takes no time."""
    yield [
        "--data", shards_dir, "-o", tmp_path / "out", "--dim", 16, "--layers", 1, "--heads", 2, "--kv-heads", 1,
        "--ffn", 24, "--context", 16, "--batch-size", 2, "--precision", "fp32",
    ]  # fmt: skip


def test_metrics_and_manifest_of_a_run(base_model: Path, shards_dir: Path) -> None:
    metrics = [json.loads(line) for line in (base_model / "metrics.jsonl").read_text().splitlines()]
    assert all(line.keys() == FIELDS for line in metrics)
    assert [line["step"] for line in metrics] == list(range(1, 9))
    assert [line["tokens"] for line in metrics] == [n * 4 * 128 for n in range(1, 9)]
    schedule = Cosine(2e-3, 0, 8)
    assert [line["lr"] for line in metrics] == [schedule.at(n) for n in range(8)]
    assert metrics[0]["loss"] == pytest.approx(math.log(512), abs=0.2)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.1
    assert all(line["grad_norm"] > 0 and line["tokens_per_second"] > 0 and line["mfu"] > 0 for line in metrics)
    assert all(line["memory_bytes"] > 1e7 and line["refused"] == 0 for line in metrics)

    run = json.loads((base_model / "run.json").read_text())
    assert (run["stage"], run["seed"], run["devices"]) == ("pretrain", 0, 1)
    assert run["job"] == {"processes": 1, "replicas": 1, "shards": 1, "tensor": 1}
    assert 0 < run["save_seconds"] < 60
    assert run["done"] == {"tokens": 4096, "samples": 32}
    assert run["skipped"] == {}
    settings = run["settings"]
    assert (settings["size"], settings["vocab"], settings["context"], settings["steps"]) == ("tiny", 512, 128, 8)
    assert (settings["peak"], settings["warmup"], settings["batch_size"]) == (2e-3, 0, 4)
    assert run["inputs"][0]["path"] == str(shards_dir)
    source = run["sources"][0]
    assert (source["path"], source["share"], source["samples"]) == (str(shards_dir), 1.0, 32)
    shards = json.loads((shards_dir / "run.json").read_text())
    assert source["epochs"] == pytest.approx(32 / ((shards["done"]["tokens"] - 1) // 128))
    assert {out["path"] for out in run["outputs"]} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json",
        "README.md", "metrics.jsonl",
    }  # fmt: skip
    assert 0 < run["device_hours"] < 0.1
    assert sorted(place.name for place in (base_model / "state").glob("*")) == ["step-00000006", "step-00000008"]


def test_lines_are_logged_as_often_as_asked_and_at_the_end(little: list[object], tmp_path: Path) -> None:
    assert pretrain(*little, "--steps", 8, "--log-every", 3).stdout == f"{tmp_path / 'out'}\n"
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [3, 6, 8]


def test_a_stored_model_is_in_the_precision_of_the_run(little: list[object], tmp_path: Path) -> None:
    pretrain(*little, "--steps", 2, "--precision", "bf16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert Llama.load(tmp_path / "out", CPU).dtype == torch.bfloat16


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verify_resume_says_that_it_is_exact_and_leaves_nothing(
    little: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lag: int, precision: str
) -> None:
    """Also where outcomes are read late, as on a GPU."""
    monkeypatch.setitem(loop.LAG, "cpu", lag)
    done = pretrain(*little, "--steps", 7, "--precision", precision, "--verify-resume")
    assert "resume is exact: 3 + 3 steps equal 6 in every bit" in done.stderr
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])


def test_verify_resume_in_the_directory_one_stands_in(
    little: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "resume is exact" in pretrain(*little, "-o", ".", "--steps", 4, "--verify-resume").stderr
    assert not [*(tmp_path / "here").iterdir()]


@pytest.mark.parametrize("flags", [[], ["--no-resume"], ["--overwrite"]], ids=str)
def test_what_others_have_logged_is_left_alone(little: list[object], tmp_path: Path, flags: list[str]) -> None:
    """A file of that name was taken for ours, and all that lay beside it was removed."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("metrics.jsonl", "notes.txt"):
        (out / name).write_text('{"epoch": 1, "step": 1}\n')
    done = pretrain(*little, "--steps", 2, *flags, status=1)
    assert "out: exists, and not by llamactl; remove it yourself, or name another -o" in done.stderr
    assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(
        ("metrics.jsonl", "notes.txt"), '{"epoch": 1, "step": 1}\n'
    )


@pytest.mark.parametrize("steps", [0, 3], ids=["not begun", "saved"])
def test_what_an_interrupted_run_has_left_is_ours(
    little: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Also without its log, which is missed."""
    real, taken = loop.take, []

    def take(*arguments: Any, **named: Any) -> Any:
        taken.append(1)
        if len(taken) > steps:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(loop, "take", take)
        pretrain(*little, "--steps", 4, "--save-every", 1, status=None)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    done = pretrain(*little, "--steps", 4, "--save-every", 1)
    assert ("metrics.jsonl: is gone, and with it what was logged up to step" in done.stderr) == (steps > 0)
    assert not any((tmp_path / "out").glob(".*"))


def test_overwriting_begins_when_all_is_there_to_train_on(
    little: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model was gone as soon as it was to be replaced, also by a run that came to nothing."""
    out = tmp_path / "out"
    pretrain(*little, "--steps", 2)
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(Llama, "create", raising(Fault("model", "cannot be read")))
        pretrain(*little, "--steps", 3, "--overwrite", status=1)
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "already made" in pretrain(*little, "--steps", 2).stderr
    pretrain(*little, "--steps", 3, "--overwrite")
    assert json.loads((out / "run.json").read_text())["settings"]["steps"] == 3


def raising(error: Exception) -> Callable[..., Any]:
    def fails(*arguments: object, **named: object) -> None:
        raise error

    return fails


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "cut"])
def test_a_model_without_its_weights_is_not_already_made(
    little: list[object], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    pretrain(*little, "--steps", 2)
    (tmp_path / "out" / "README.md").write_text("of a person")
    assert "already made" in pretrain(*little, "--steps", 2).stderr
    damage(tmp_path / "out" / "model.safetensors")
    done = pretrain(*little, "--steps", 2, status=1)
    assert "model.safetensors: is not there, or not as run.json says; --overwrite to make it again" in done.stderr
    pretrain(*little, "--steps", 2, "--overwrite")


def test_what_else_lies_among_states_is_none(little: list[object], tmp_path: Path) -> None:
    (tmp_path / "out" / "state").mkdir(parents=True)
    (tmp_path / "out" / ".llamactl").touch()
    for name in ("step-foo", "step-00000099"):
        (tmp_path / "out" / "state" / name).touch()
    pretrain(*little, "--steps", 3, "--save-every", 1, "--keep", 1)


def test_verify_resume_finds_what_is_not_exact(
    little: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdamW, "counted", lambda optimizer, updates: None)
    done = pretrain(*little, "--steps", 8, "--verify-resume", status=1)
    assert "4 + 4 steps differ from 8" in done.stderr
    assert "differs in " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_another_way_to_say_steps(little: list[object], tmp_path: Path) -> None:
    pretrain(*little, "--tokens", 100)
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == math.ceil(100 / 32)


def test_a_dry_run_plans_and_writes_nothing(little: list[object], tmp_path: Path) -> None:
    result = pretrain(*little, "--steps", 30, "--dry-run")
    for said in ("parameters", "30 of 2 sequences", "100.0% of the samples", "0.002 after 3 steps"):
        assert said in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("--tokens", 0), ("--tokens", -5), ("--tokens", "nan")])
def test_no_tokens_is_no_plan(little: list[object], flags: tuple[object, object]) -> None:
    result = pretrain(*little, *flags, "--dry-run", status=None)
    assert result.exit_code in (1, 2), result.stderr


def test_a_learning_rate_of_0_is_not_taken_for_none(little: list[object]) -> None:
    result = pretrain(*little, "--steps", 9, "--lr", 0, "--dry-run", status=None)
    assert result.exit_code in (1, 2) or "0.002" not in result.stderr, result.stderr


def test_steps_and_tokens_together_are_refused(little: list[object]) -> None:
    assert "--steps" in pretrain(*little, "--steps", 5, "--tokens", 1e5, status=1).stderr


def test_a_vocabulary_that_does_not_hold_the_tokenizers_ids_is_refused(little: list[object]) -> None:
    assert "--vocab-size" in pretrain(*little, "--steps", 5, "--vocab-size", 511, status=1).stderr
    assert "parameters" in pretrain(*little, "--steps", 5, "--vocab-size", 600, "--dry-run").stderr


def test_data_that_is_no_shards_directory_is_refused(tmp_path: Path) -> None:
    assert "no such directory" in pretrain("--data", tmp_path / "none", status=1).stderr
    assert "llamactl tokenize" in pretrain("--data", tmp_path, status=1).stderr


@pytest.mark.parametrize("flag", ["", "--no-resume"])
def test_a_directory_of_someone_else_is_left_alone(little: list[object], tmp_path: Path, flag: str) -> None:
    theirs = tmp_path / "out"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    refused = pretrain(*little, "--steps", 2, *filter(None, [flag]), status=1)
    assert "not by llamactl" in refused.stderr
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_text_that_was_damaged_on_the_disk_is_refused(little: list[object], shards_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards_dir, copy)
    shard = copy / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "shard-00001" in pretrain(*little, "--data", copy, "--steps", 2, status=1).stderr


def test_two_sources_are_mixed_by_weight(little: list[object], shards_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards_dir, copy)
    flags = [f"{shards_dir}=3" if one == shards_dir else one for one in little]
    pretrain(*flags, "--data", f"{copy}=1", "--steps", 10)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [source["samples"] for source in run["sources"]] == [15, 5]
    assert [source["share"] for source in run["sources"]] == [0.75, 0.25]
    assert run["sources"][0]["epochs"] == 3 * run["sources"][1]["epochs"]
    assert len(run["inputs"]) == 2
