"""Forward and backward passes of our own, against the same formulas left to autograd in float64."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llamactl.model import functions
from llamactl.model.config import Config
from llamactl.model.llama import Llama
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job
from llamactl.train.schedule import Cosine
from llamactl.train.step import Outcome, next_token_loss, take

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
SHAPES = [(2, 1, 4, 2, 8), (1, 5, 6, 2, 12), (2, 64, 4, 4, 8), (1, 65, 4, 1, 8), (2, 200, 6, 3, 16), (1, 530, 2, 2, 4)]


@pytest.fixture(params=[True, False], ids=["bf16 products", "fp32 products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a CPU with bf16 instructions, and on one without."""
    monkeypatch.setattr(functions, "BF16_PRODUCTS", request.param)
    yield


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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [0, 10**6], ids=["computed again", "kept"])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention(
    shape: tuple[int, ...], kept: int, dtype: torch.dtype, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "KEPT", kept)
    batch, time, heads, kv, width = shape
    q = randn(batch, time, heads, width, dtype=dtype)
    k, v = (randn(batch, time, kv, width, dtype=dtype, seed=seed) for seed in (1, 2))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1) for x in (q, k, v))
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        scores = (q @ k.mT * width**-0.5).masked_fill(future, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    agree(functions.causal_attention, plain, [q, k, v], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "rows"), [(0, 8), (1, 1024), (37, 8), (40, 8), (7, 1024)])
def test_negative_log_likelihood(
    tokens: int, rows: int, dtype: torch.dtype, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "ROWS", rows)
    targets = torch.randint(0, 51, (tokens,), generator=torch.Generator().manual_seed(3))
    agree(
        lambda x, w: functions.negative_log_likelihood(x, w, targets),
        lambda x, w: F.cross_entropy(x @ w.T, targets, reduction="none"),
        [randn(tokens, 16, dtype=dtype), randn(51, 16, seed=1)],
        dtype,
    )


def test_the_loss_of_what_is_all_but_impossible_is_finite() -> None:
    """exp(-200) is 0 in fp32, its logarithm is not."""
    hidden, weight = torch.tensor([[200.0], [-200.0]]), torch.tensor([[1.0], [0.0]], requires_grad=True)
    losses = functions.negative_log_likelihood(hidden, weight, torch.tensor([1, 1]))
    assert losses.tolist() == [200.0, 0.0]
    with torch.no_grad():
        assert torch.equal(functions.negative_log_likelihood(hidden, weight, torch.tensor([1, 1])), losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_norm_and_swiglu(dtype: torch.dtype, products: None) -> None:
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
@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_compiler_is_told_of_attention_is_so(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, products: None
) -> None:
    """Shapes and strides: a compiled layer with a batch of one failed where they were others."""
    batch, time, heads, groups, width = shape
    given = [randn(batch, time, n, width, dtype=dtype, seed=n) for n in (heads, groups, groups)]

    def layouts(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        out, kept = torch.ops.llamactl.causal_attention(q, k, v, batch * heads * functions._triangle(time), None, None)
        gradients = torch.ops.llamactl.causal_attention_backward(q, k, v, kept, torch.ones_like(out), None, None)
        return [(tuple(one.shape), one.stride()) for one in (out, kept, *gradients)]

    with FakeTensorMode() as mode:
        told = layouts(*map(mode.from_tensor, given))
    assert told == layouts(*given)


DOCUMENTS = ([5, 130, 1, 64], [200], [1] * 100 + [100])  # lengths in each row of 200


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [0, 10**6], ids=["computed again", "kept"])
def test_documents_do_not_see_each_other(
    kept: int, dtype: torch.dtype, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention of packed documents is that of each by itself, forward and backward."""
    monkeypatch.setattr(functions, "KEPT", kept)
    documents = functions.Documents.of(DOCUMENTS, torch.device("cpu"))
    given = [randn(3, 200, n, 16, dtype=dtype, seed=n) for n in (4, 2, 1)]
    given[2] = given[2].expand(-1, -1, 2, -1)

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for row, lengths in enumerate(DOCUMENTS):
            parts = [x[row : row + 1].split(list(lengths), 1) for x in (q, k, v)]
            rows.append(torch.cat([functions.causal_attention(*part) for part in zip(*parts, strict=True)], 1))
        return torch.cat(rows)

    agree(lambda q, k, v: functions.causal_attention(q, k, v, documents), apart, given, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_do_not_see_each_other_on_a_gpu(dtype: torch.dtype) -> None:
    """By the kernel for documents, and by the mask that takes its place in fp32."""
    given = [randn(3, 200, n, 16, dtype=dtype, seed=n) for n in (4, 2, 2)]
    wanted = functions.causal_attention(*given, functions.Documents.of(DOCUMENTS, torch.device("cpu")))
    there = functions.Documents.of(DOCUMENTS, torch.device("cuda"))
    found = functions.causal_attention(*(x.cuda() for x in given), there).cpu()
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def curve(loss_of: Callable[[Llama, Tensor], Tensor], dtype: torch.dtype, compiled: bool = False) -> list[float]:
    """Losses of ten steps."""
    config = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=61, context=70)
    job = Job(None, CPU)
    model = Llama.create(config, dtype, CPU, 0, partial(job.arrange, checkpointing="none", compiled=compiled))
    optimizer = AdamW(model, Cosine(1e-2, 1, 10, floor=1.0))
    losses = []
    for step in range(10):
        ids = torch.randint(0, 20, (2, 71), generator=torch.Generator().manual_seed(step))
        losses.append(Outcome.read(take(model, optimizer, loss_of, ids, 2 * 70, 2, job)).loss)
    return losses


def test_every_path_takes_the_steps_of_plain_formulas(products: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, narrow = curve(next_token_loss, torch.float32), curve(next_token_loss, torch.bfloat16)
    monkeypatch.setattr(functions, "causal_attention", lambda q, k, v, _: functions.attention(q, k, v, None))
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="the compiler of layers needs one of C++")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_take_the_same_steps(dtype: torch.dtype) -> None:
    expected = pytest.approx(curve(next_token_loss, dtype), rel=1e-4 if dtype == torch.float32 else 1e-2)
    assert curve(next_token_loss, dtype, compiled=True) == expected
