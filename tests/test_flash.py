"""Compiled attention, forward and backward, against plain formulas in float64; threads; what is asked of it when."""

import pytest
import torch
from test_attention import CPU, DOCUMENTS, TREES, written_out
from test_functions import agree, by_threads, randn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llamactl.model import attention, flash
from llamactl.model.attention import Documents
from llamactl.model.config import Config
from llamactl.model.llama import Llama

pytest.importorskip("numba")
# B, T, H, K, E: one token; fewer rows than one block has, odd, and one more; groups; wide heads; several hundred keys
SHAPES = [
    (2, 1, 4, 2, 32), (1, 7, 2, 1, 64), (2, 48, 2, 2, 32), (1, 49, 6, 2, 64), (2, 77, 4, 1, 32), (1, 300, 2, 2, 128),
    (3, 130, 3, 1, 96), (2, 65, 2, 2, 8), (1, 60, 4, 2, 16), (2, 100, 6, 6, 48), (1, 50, 1, 1, 40),
]  # fmt: skip
STORED = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, for each test."""
    monkeypatch.setattr(flash.KERNEL, "kernel", None)
    flash.prepare(CPU, 32)
    if flash.KERNEL.kernel is None:
        pytest.skip("no folder for what numba compiles")


@pytest.fixture(params=[True, False], ids=["pairs", "numbers"])
def pairs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of bf16 numbers by instructions of their own, where the processor has them, and as fp32 numbers."""
    if request.param and not flash.PAIRS:
        pytest.skip("a processor without such instructions")
    monkeypatch.setattr(flash, "PAIRS", request.param)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In plain operations."""
    time, width = q.shape[1], q.shape[-1]
    q, k, v = (x.transpose(1, 2).repeat_interleave(q.shape[2] // x.shape[2], 1) for x in (q, k, v))
    future = torch.ones(time, time, dtype=torch.bool).triu(1)
    return ((q @ k.mT * width**-0.5).masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple[int, ...], dtype: torch.dtype, pairs: None, threads: None) -> None:
    batch, time, heads, kv, width = shape
    q = randn(batch, time, heads, width, dtype=dtype)
    k, v = (randn(batch, time, kv, width, dtype=dtype, seed=seed) for seed in (1, 2))
    assert flash.suits(q)
    agree(attention.causal_attention, plain, [q, k, v], dtype)


@pytest.mark.parametrize("dtype", STORED)
def test_documents_do_not_see_each_other(dtype: torch.dtype, pairs: None, threads: None) -> None:
    documents = Documents.of(DOCUMENTS, CPU)

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for row, lengths in enumerate(DOCUMENTS):
            parts = [x[row : row + 1].split(list(lengths), 1) for x in (q, k, v)]
            rows.append(torch.cat([plain(*part) for part in zip(*parts, strict=True)], 1))
        return torch.cat(rows)

    given = [randn(3, 200, n, 32, dtype=dtype, seed=n) for n in (4, 2, 1)]
    given[2] = given[2].expand(-1, -1, 2, -1)
    agree(lambda q, k, v: attention.causal_attention(q, k, v, documents), apart, given, dtype)


def of_trees(dtype: torch.dtype) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2."""
    return [randn(1, 224, n, 32, dtype=dtype, seed=seed) for seed, n in enumerate((4, 2, 2))]


@pytest.mark.parametrize("dtype", STORED)
def test_branches_attend_to_their_stem_as_if_written_out(dtype: torch.dtype, pairs: None, threads: None) -> None:
    documents = Documents.branching(TREES, CPU)
    agree(
        lambda q, k, v: attention.causal_attention(q, k, v, documents),
        lambda q, k, v: written_out(plain, q, k, v),
        of_trees(dtype),
        dtype,
    )


def bits(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Of what comes out, and of gradients."""
    batch, time, heads, kv, width = shape
    given = [randn(batch, time, n, width, dtype=dtype, seed=n).requires_grad_() for n in (heads, kv, kv)]
    out = attention.causal_attention(*given)
    return [out, *torch.autograd.grad(out, given, randn(*out.shape, dtype=dtype, seed=9))]


@pytest.mark.parametrize("dtype", STORED)
def test_it_is_the_same_to_the_bit_by_any_number_and_kind_of_threads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = by_threads(monkeypatch, lambda: bits((3, 130, 4, 2, 64), dtype))
    assert len(others) == 3
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("dtype", STORED)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    """Or a step whose loss is not finite would not be refused; what came before does not see it."""
    q, k, v = (randn(1, 60, 2, 32, dtype=dtype, seed=seed) for seed in range(3))
    k[0, 50, 1, 3] = torch.nan
    out = attention.causal_attention(q, k, v)
    assert out[0, :50].isfinite().all() and out[0, :, 0].isfinite().all()
    assert out[0, 50:, 1].isnan().all()
    v[0, 5, 0, 0] = torch.inf
    assert not attention.causal_attention(q, k, v)[0, 5:, 0, 0].isfinite().any()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (100 * randn(1, 60, 2, 32, seed=seed) for seed in range(3))
    torch.testing.assert_close(
        attention.causal_attention(q, k, v).double(), plain(q.double(), k.double(), v.double()), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_compiler_is_told_is_so(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    batch, time, heads, groups, width = shape
    given = [randn(batch, time, n, width, dtype=dtype, seed=n) for n in (heads, groups, groups)]

    def layouts(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]:
        out, softmax = torch.ops.llamactl.flash_attention(q, k, v, time, None, None)
        found = torch.ops.llamactl.flash_attention_backward(q, k, v, softmax, torch.ones_like(out), time, None, None)
        return [(tuple(one.shape), one.stride(), one.dtype) for one in (out, softmax, *found)]

    with FakeTensorMode() as mode:
        told = layouts(*map(mode.from_tensor, given))
    assert told == layouts(*given)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_scratch_is_large_enough(
    shape: tuple[int, ...], dtype: torch.dtype, pairs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written behind it, by passes that find everything as anything in it: it is filled with NaN."""
    behind, empty = 4096, torch.empty

    def filled(*size: int, **named: object) -> Tensor:
        if len(size) != 1 or named:
            return empty(*size, **named)
        guarded.append(torch.full((size[0] + behind,), torch.nan))
        return guarded[-1][: size[0]]

    guarded: list[Tensor] = []
    monkeypatch.setattr(flash.torch, "empty", filled)
    found = bits(shape, dtype)
    monkeypatch.undo()
    assert len(guarded) == 2
    assert all(tensor[-behind:].isnan().all() for tensor in guarded)
    assert all(tensor.isfinite().all() for tensor in found)


TINY = Config(dim=64, layers=2, heads=2, kv_heads=1, ffn=96, vocab=61, context=40)


def test_a_model_has_them_made_before_its_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is compiled, whose layers cannot ask for it: losses of both, and without kernels, agree."""
    ids, losses = torch.randint(61, (2, 41), generator=torch.Generator().manual_seed(0)), []
    for serves in (False, True):
        monkeypatch.setattr(flash.KERNEL, "kernel", None)
        monkeypatch.setattr(flash, "serves", lambda head_dim, serves=serves: serves)
        model = Llama.create(TINY, torch.float32, CPU, 0)
        losses.append(model.nll(ids[:, :-1], ids[:, 1:]).detach())
        assert (flash.KERNEL.kernel is not None) == serves
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = flash.WIDTHS
    assert [flash.serves(n) for n in (whole, 5 * whole, whole // 2, whole + 4)] == [True, True, False, False]
    assert not flash.suits(randn(1, 1, 1, whole, dtype=torch.float64))
    assert not flash.suits(randn(1, 1, 1, whole // 2))
    assert not flash.suits(torch.empty(1, 1, 1, whole, device="meta"))
    monkeypatch.setattr(flash, "installed", lambda: False)
    assert not flash.serves(whole)
    monkeypatch.setattr(flash.KERNEL, "kernel", None)
    assert not flash.suits(randn(1, 1, 1, whole))
