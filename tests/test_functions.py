"""Forward and backward passes of our own, against the same formulas left to autograd in float64."""

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model import attention, functions, fused, llama
from llamactl.model.attention import Documents
from llamactl.model.config import Config
from llamactl.model.kernels import making
from llamactl.model.llama import Llama
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job
from llamactl.train.schedule import Cosine
from llamactl.train.step import Outcome, next_token_loss, take

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def agree(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> None:
    """Values, and gradients for an arbitrary upstream one; tensors that are one-dimensional or wider weights too."""
    generator = torch.Generator().manual_seed(1)
    mine = [x.detach().clone().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, wanted = ours(*mine), reference(*exact)
    upstream = torch.randn(out.shape, generator=generator).to(out.dtype)
    found = torch.autograd.grad(out, mine, upstream)
    expected = torch.autograd.grad(wanted, exact, upstream.double())
    for a, b, like in zip((out, *found), (wanted, *expected), (None, *inputs), strict=True):
        assert like is None or a.dtype == like.dtype
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm() + 1e-6 * (b.numel() ** 0.5)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_threads(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What kernels find by several numbers of threads, and by threads that are not OpenMP's."""
    found, openmp = [], making._team()
    for number, team in ((1, openmp), (2, openmp), (5, openmp), (3, None)):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        monkeypatch.setattr(making, "_team", lambda team=team: team)
        found.append(compute())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "rows"), [(0, 8), (1, 1024), (37, 8), (40, 8), (7, 1024)])
def test_negative_log_likelihood(
    tokens: int, rows: int, dtype: torch.dtype, products: None, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "ROWS", rows)
    targets = torch.randint(0, 51, (tokens,), generator=torch.Generator().manual_seed(3))
    agree(
        lambda x, w: functions.negative_log_likelihood(x, w, targets),
        lambda x, w: F.cross_entropy(x @ w.T, targets, reduction="none"),
        [randn(tokens, 16, dtype=dtype), randn(51, 16, seed=1)],
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7])
def test_scores_in_pieces_are_those_of_one_product(rows: int, dtype: torch.dtype, products: None) -> None:
    x, weight = randn(1, rows, 24, dtype=dtype), randn(2 * functions.WORDS + 5, 24, dtype=dtype, seed=1)
    with torch.no_grad():
        found = functions.scores(x, weight)
    wanted = x.double() @ weight.double().mT
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


def test_the_loss_of_what_is_all_but_impossible_is_finite(kernels: None) -> None:
    """exp(-200) is 0 in fp32, its logarithm is not."""
    hidden, weight = torch.tensor([[200.0], [-200.0]]), torch.tensor([[1.0], [0.0]], requires_grad=True)
    losses = functions.negative_log_likelihood(hidden, weight, torch.tensor([1, 1]))
    assert losses.tolist() == [200.0, 0.0]
    with torch.no_grad():
        assert torch.equal(functions.negative_log_likelihood(hidden, weight, torch.tensor([1, 1])), losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_norm_and_swiglu(dtype: torch.dtype, products: None, kernels: None) -> None:
    x, weight = randn(3, 5, 16, dtype=dtype), randn(16, seed=1)
    agree(functions.linear, lambda x, w: x @ w.T, [x, randn(7, 16, seed=2)], dtype)
    agree(
        lambda x, w: functions.rms_norm(x, w, 1e-5),
        lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w,
        [x, weight],
        dtype,
    )
    agree(functions.swiglu, lambda a, b: F.silu(a) * b, [x, randn(3, 5, 16, dtype=dtype, seed=3)], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])  # of positions: one for all rows of the batch, or one each
def test_rotation(rows: int, dtype: torch.dtype, kernels: None) -> None:
    cos, sin = llama.rotary(torch.arange(5) + 7 * torch.arange(rows)[:, None], 12, 1e4)

    def plain(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return x * cos + turned * sin.abs() * sin.sign().chunk(2, -1)[1].repeat(1, 1, 1, 2)

    agree(lambda x: functions.rotate(x, cos, sin), plain, [randn(3, 5, 2, 12, dtype=dtype)], dtype)


def test_gradients_of_a_word_that_comes_often_add_up_in_fp32() -> None:
    """In bf16 a sum of ones ends at 256."""
    table = torch.zeros(5, 3, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.tensor([[1] * 512 + [3] * 2])
    functions.embedding(ids, table).float().sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[0.0] * 3, [512.0] * 3, [0.0] * 3, [2.0] * 3, [0.0] * 3]


def curve(
    loss_of: Callable[[Llama, Tensor], Tensor], dtype: torch.dtype, compiled: bool = False, checkpointing: str = "none"
) -> list[float]:
    """Losses of ten steps."""
    config = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=61, context=70)
    job = Job(None, CPU)
    model = Llama.create(config, dtype, CPU, 0, partial(job.arrange, checkpointing=checkpointing, compiled=compiled))
    optimizer = AdamW(model, Cosine(1e-2, 1, 10, floor=1.0))
    losses = []
    for step in range(10):
        ids = torch.randint(0, 20, (2, 71), generator=torch.Generator().manual_seed(step))
        losses.append(Outcome.read(take(model, optimizer, loss_of, ids, 2 * 70, 2, job)).loss)
    return losses


def test_every_path_takes_the_steps_of_plain_formulas(
    products: None, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, narrow = curve(next_token_loss, torch.float32), curve(next_token_loss, torch.bfloat16)
    monkeypatch.setattr(fused, "suits", lambda x: False)
    monkeypatch.setattr(llama, "causal_attention", lambda q, k, v, _: attention.attention(q, k, v, None))
    monkeypatch.setattr(functions, "linear", lambda x, w: F.linear(x, w))
    monkeypatch.setattr(functions, "swiglu", lambda a, b: F.silu(a) * b)
    monkeypatch.setattr(functions, "rms_norm", lambda x, w, eps: F.rms_norm(x, w.shape, w, eps))

    def plain(model: Llama, ids: Tensor) -> Tensor:
        logits = model.logits(model(ids[:, :-1]))
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    reference = curve(plain, torch.float32)
    assert reference[-1] < reference[0] - 0.5
    assert ours == pytest.approx(reference, abs=1e-4)
    assert narrow == pytest.approx(reference, rel=1e-2)


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="the compiler of layers needs one of C++")


@pytest.mark.slow
@needs_compiler
def test_layers_are_compiled_for_all_lengths_of_documents() -> None:
    """Once a length has changed; they were for each, and after eight of them, without a word, no more."""
    job = Job(None, CPU)
    config = Config(16, 2, 2, 1, 32, 64, 256)
    model = Llama.create(config, torch.float32, CPU, 0, partial(job.arrange, checkpointing="none", compiled=True))

    def learn(lengths: list[int]) -> None:
        ids = torch.randint(0, config.vocab, (1, sum(lengths)))
        model.nll(ids, ids, Documents.of([lengths], CPU)).sum().backward()

    for lengths in ([40, 24], [30, 18], [10, 20, 30, 40]):
        learn(lengths)
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ([50, 12], [20, 10, 6, 21, 33], [7, 8, 9]):
            learn(lengths)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_take_the_same_steps(dtype: torch.dtype) -> None:
    expected = pytest.approx(curve(next_token_loss, dtype), rel=1e-4 if dtype == torch.float32 else 1e-2)
    assert curve(next_token_loss, dtype, compiled=True) == expected


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit_of_compiled_layers(dtype: torch.dtype, capfd: pytest.CaptureFixture[str]) -> None:
    none, *others = (curve(next_token_loss, dtype, True, how) for how in ("none", "selective", "full"))
    assert others == [none, none]
    assert capfd.readouterr().err == ""
