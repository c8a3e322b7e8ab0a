"""What rows come to by the kernel, against plain formulas in float64 (those of functions: tests/test_functions.py)."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_functions import by_threads, randn
from torch import Tensor, nn

from llamactl.artifacts.run import Run
from llamactl.artifacts.state import Piece, Saver, State
from llamactl.model import functions, fused
from llamactl.model.config import Config
from llamactl.model.kernels import making
from llamactl.model.llama import Llama, rotary
from llamactl.train import optim
from llamactl.train.halves import Parted
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job
from llamactl.train.schedule import Cosine
from llamactl.train.step import next_token_loss, take
from llamactl.train.training import Training, _later, whole

pytest.importorskip("numba")
CPU = torch.device("cpu")
STORED = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
# R, D: no row; less than a register; a whole one; parts of them; more rows than a thread takes at once
SHAPES = [(0, 16), (1, 1), (3, 7), (5, 16), (2, 33), (700, 40), (9, 4100)]


@pytest.fixture(autouse=True)
def _made() -> None:
    if not fused.there(CPU):
        pytest.skip("no folder for what numba compiles")


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == wanted.shape
    assert (found.double() - wanted).norm() <= CLOSE[dtype] * wanted.norm() + 1e-7


def everything(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """What all operations find of the same rows."""
    x, y, grad = (randn(rows, width, dtype=dtype, seed=seed) for seed in range(3))
    weight = randn(width, seed=3)
    out, inverse = fused.norm(x, weight, 1e-5)
    scores, losses = 3 * x, torch.empty(rows)
    fused.slopes(scores, torch.arange(rows) % width, losses, learning=True)
    found = [out, inverse, *fused.norm_backward(x, weight, inverse, grad), fused.swiglu(x, y)]
    return [*found, *fused.swiglu_backward(x, y, grad), scores, losses, fused.squares(x)]


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_all_of_them(rows: int, width: int, dtype: torch.dtype) -> None:
    x, y, grad = (randn(rows, width, dtype=dtype, seed=seed).double() for seed in range(3))
    a, b, w = x.clone().requires_grad_(), y.requires_grad_(), randn(width, seed=3).to(dtype).double().requires_grad_()
    inverse = torch.rsqrt(a.square().mean(-1) + 1e-5)
    normed, gated = a * inverse[:, None] * w, F.silu(a) * b
    scores = (3 * x.to(dtype)).double().requires_grad_()
    losses = F.cross_entropy(scores, torch.arange(rows) % width, reduction="none")
    wanted = [
        normed, inverse, *torch.autograd.grad(normed, (a, w), grad, retain_graph=True),
        gated, *torch.autograd.grad(gated, (a, b), grad),
        *torch.autograd.grad(losses.sum(), scores), losses, x.square().sum(),
    ]  # fmt: skip
    for one, other in zip(everything(rows, width, dtype), wanted, strict=True):
        close(one, other.detach(), dtype)


@pytest.mark.parametrize("dtype", STORED)
def test_they_are_the_same_to_the_bit_by_any_number_and_kind_of_threads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = by_threads(monkeypatch, lambda: everything(700, 300, dtype))
    assert len(others) == 3
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(bad: float, dtype: torch.dtype) -> None:
    """Or a step whose loss is not finite would not be refused; other rows do not see it."""
    x, y = randn(6, 40, dtype=dtype), randn(6, 40, dtype=dtype, seed=1)
    x[2, 35] = bad
    scores, losses = x.clone(), torch.empty(6)
    fused.slopes(scores, torch.zeros(6, dtype=torch.int64), losses, learning=True)
    assert losses.isfinite().tolist() == scores.isfinite().all(-1).tolist() == [True, True, False, True, True, True]
    assert fused.norm(x, torch.ones(40), 1e-5)[0].isfinite().all(-1).sum() == 5
    assert fused.swiglu(x, y).isfinite().sum() == 6 * 40 - 1
    assert not fused.squares(x).isfinite()


def test_large_scores_do_not_overflow_and_losses_without_learning_leave_them() -> None:
    scores, losses = 1e4 * randn(4, 50), torch.empty(4)
    before, targets = scores.clone(), torch.tensor([0, 10, 49, 7])
    fused.slopes(scores, targets, losses, learning=False)
    assert torch.equal(scores, before)
    close(losses, F.cross_entropy(before.double(), targets, reduction="none"), torch.float32)


@pytest.mark.parametrize("target", [-1, 50, -100])
def test_a_target_without_a_score_is_refused(target: int) -> None:
    """The kernel would read, and write, what is another's."""
    with pytest.raises(IndexError, match="of 50 scores"):
        fused.slopes(randn(4, 50), torch.tensor([0, 10, target, 7]), torch.empty(4), learning=True)


@pytest.mark.parametrize("dtype", STORED)
def test_a_rotation_turned_back_is_none(dtype: torch.dtype) -> None:
    x = randn(2, 30, 3, 20, dtype=dtype)
    cos, sin = rotary(torch.arange(30), 20, 1e4)
    close(fused.rotate(fused.rotate(x, cos, sin, 1.0), cos, sin, -1.0), x.double(), dtype)


def test_nothing_is_written_behind() -> None:
    """Neither a register's width beyond a row, nor a row beyond the last."""
    behind = 64
    x, out = randn(5, 19), torch.full((5 * 19 + behind,), torch.nan)
    losses = torch.full((5 + behind,), torch.nan)
    scores = out[: 5 * 19].view(5, 19)
    scores.copy_(x)
    fused.slopes(scores, torch.arange(5), losses[:5], learning=True)
    assert out[5 * 19 :].isnan().all() and losses[5:].isnan().all()
    assert scores.isfinite().all() and losses[:5].isfinite().all()


def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(2, 3)
    assert fused.suits(x) and fused.suits(x.bfloat16())
    assert not fused.suits(x.double()) and not fused.suits(torch.empty(2, device="meta"))
    assert not fused.suits(nn.Parameter(x))
    monkeypatch.setattr(fused.KERNEL, "kernel", None)
    monkeypatch.setattr(making, "installed", lambda: False)
    assert not fused.there(CPU) and not fused.suits(x)


# -- weights in two parts


def numbers() -> Tensor:
    """All kinds: ordinary ones, halfway between two bf16 numbers on either side, tiny, 0 and its negative, infinite."""
    halfway = torch.tensor([0x3F808000, 0x3F818000, -0x40808000, 0x3F807FFF, 0x3F808001], dtype=torch.int32)
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, torch.inf, -torch.inf])
    return torch.cat([randn(4099), 1e-20 * randn(100, seed=1), halfway.view(torch.float32), odd])


def test_two_parts_are_what_they_were_made_of() -> None:
    """The upper one is what rounding makes of it. Of ties that go down a step of fp32 is lost, as is said."""
    whole = numbers()
    parameter = nn.Parameter(whole.clone())
    parted = Parted.of(parameter)
    assert parameter.dtype == torch.bfloat16 and parameter.data_ptr() == parted.high.data_ptr()
    assert torch.equal(parted.high, whole.bfloat16())
    steps = whole.view(torch.int32) - parted.whole().view(torch.int32)
    down = (whole.view(torch.int32) & 0x1FFFF) == 0x8000
    assert torch.equal(steps, down.int()) and down.sum() == 1
    again = Parted.of(nn.Parameter(parted.whole()))
    assert torch.equal(again.whole().view(torch.int32), parted.whole().view(torch.int32))


@pytest.mark.parametrize("dtype", STORED, ids=["fp32 gradients", "bf16 gradients"])
@pytest.mark.parametrize("size", [1, 15, 16, 40_000])
def test_an_update_is_adamws_of_fp32_weights(size: int, dtype: torch.dtype) -> None:
    """Torch's own, to a few steps of fp32; moments, too. What comes out is two parts of one number."""
    whole = randn(size)
    parted = Parted.of(nn.Parameter(whole.clone()))
    whole, moments, wanted = parted.whole(), (torch.zeros(size), torch.zeros(size)), nn.Parameter(parted.whole())
    torchs = torch.optim.AdamW([wanted], lr=0.01, betas=optim.BETAS, eps=optim.EPS, weight_decay=0.1, fused=True)
    for step in range(1, 4):
        grad = randn(size, dtype=dtype, seed=step)
        wanted.grad = grad.float() / 2
        torchs.step()
        corrected = [1 - beta**step for beta in optim.BETAS]
        given = {"rate": 0.01 / corrected[0], "root": corrected[1] ** -0.5, "decay": 1 - 0.01 * 0.1, "divisor": 2.0}
        beta_1, beta_2 = optim.BETAS
        fused.adamw(parted, grad, moments, {**given, "beta_1": beta_1, "beta_2": beta_2, "eps": optim.EPS})
    found = parted.whole()
    assert (found - wanted).abs().max() < 1e-6 < (whole - wanted).abs().max()
    for moment, name in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
        torch.testing.assert_close(moment, torchs.state[wanted][name], rtol=1e-5, atol=1e-7)
    assert torch.equal(parted.high, found.bfloat16())
    assert torch.equal(Parted.of(nn.Parameter(found.clone())).rest, parted.rest)


TINY = Config(dim=64, layers=2, heads=2, kv_heads=1, ffn=96, vocab=61, context=40)


def trained(dtype: torch.dtype, micro_batch: int) -> tuple[Llama, AdamW]:
    model = Llama.create(TINY, dtype, CPU, 0)
    optimizer = AdamW(model, Cosine(1e-2, 1, 10))
    learn(model, optimizer, micro_batch)
    return model, optimizer


def learn(model: Llama, optimizer: AdamW, micro_batch: int) -> None:
    """Ten steps."""
    for step in range(10):
        ids = torch.randint(0, 20, (4, 41), generator=torch.Generator().manual_seed(step))
        take(model, optimizer, next_token_loss, ids, 4 * 40, micro_batch, Job(None, CPU))


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_a_model_learns_the_same_with_its_weights_in_two_parts(
    micro_batch: int, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with fp32 weights that are cast at each use; matrices of bf16 alone lose all small updates."""
    model, optimizer = trained(torch.bfloat16, micro_batch)
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert optimizer.parted.keys() == (matrices if functions.BF16_PRODUCTS else set())
    monkeypatch.setattr(fused, "there", lambda device: False)
    plain, other = trained(torch.bfloat16, micro_batch)
    assert not other.parted
    for name, wanted in plain.named_parameters():
        found = optimizer.parted[name].whole() if name in optimizer.parted else model.get_parameter(name)
        moved = (wanted - Llama.create(TINY, torch.bfloat16, CPU, 0).get_parameter(name)).norm()
        assert (found - wanted).norm() < 0.05 * moved, name


def test_fp32_weights_and_those_in_several_places_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not AdamW(Llama.create(TINY, torch.float32, CPU, 0), Cosine(1, 0, 1)).parted
    model = Llama.create(TINY, torch.bfloat16, CPU, 0)
    monkeypatch.setattr(functions, "BF16_PRODUCTS", True)
    assert optim._can_be_parted(model, "output.weight", model.output.weight)
    monkeypatch.setattr(optim.sharded, "spread", lambda tensor: True)
    assert not optim._can_be_parted(model, "output.weight", model.output.weight)


@pytest.mark.parametrize("parted", [True, False], ids=["in two parts", "whole"])
def test_a_state_is_the_same_in_two_parts_and_whole(
    parted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by the one and taken up by the other: to the bit."""
    monkeypatch.setattr(functions, "BF16_PRODUCTS", True)
    there = fused.there

    def begun(parted: bool) -> Training:
        monkeypatch.setattr(fused, "there", there if parted else lambda device: False)
        model = Llama.create(TINY, torch.bfloat16, CPU, 0)
        optimizer = AdamW(model, Cosine(1e-2, 1, 10))
        assert bool(optimizer.parted) == parted
        return Training(model, optimizer, Run("test", {}, {}, tmp_path), tmp_path, Job(None, CPU), 1)

    saved, taken_up = begun(parted), begun(not parted)
    learn(saved.model, saved.optimizer, 4)
    saved.step = 10
    saved.save()
    saved.finish_saving()
    assert taken_up.resume()
    for (name, _, before), (_, _, after) in zip(saved.tensors(), taken_up.tensors(), strict=True):
        assert whole(before).dtype == whole(after).dtype == torch.float32
        off = (whole(before).view(torch.int32) - whole(after).view(torch.int32)).abs()
        assert off.max() <= (not parted), name  # a tie in a million


def test_a_state_is_written_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix at once took up to a third of a training's memory more, beside its next step."""
    size, sizes, real = (5, 70_001), [], Parted.whole
    parted = Parted.of(nn.Parameter(randn(*size)))
    wanted = parted.whole()

    def counted(self: Parted) -> Tensor:
        sizes.append(self.high.numel())
        return real(self)

    monkeypatch.setattr(Parted, "whole", counted)
    saver = Saver(tmp_path, 0, 1)
    saver.begin(1, {"x": Piece(_later(parted), (0, 0), size)}, {})
    saver.wait()
    saver.commit()
    assert sum(sizes) == wanted.numel() and max(sizes) < wanted.numel() / 10
    into = torch.empty(size)
    State(tmp_path / "step-00000001").read("x", (0, 0), into)
    assert torch.equal(into.view(torch.int32), wanted.view(torch.int32))


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_gradients_are_in_what_their_weights_are_in_unless_some_add_up(
    micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "BF16_PRODUCTS", True)
    model, _ = trained(torch.bfloat16, micro_batch)
    kinds = {p.grad.dtype for p in model.parameters() if p.grad is not None and p.dim() > 1}
    assert kinds == {torch.float32 if micro_batch == 2 else torch.bfloat16}
