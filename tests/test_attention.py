"""Attention of our own, forward and backward, against plain formulas in float64."""

from collections.abc import Callable

import pytest
import torch
from test_functions import TOLERANCE, agree, randn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llamactl.model import attention, flash
from llamactl.model.attention import Documents, Segment

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_flash.py has the kernels that take their place."""
    monkeypatch.setattr(flash.KERNEL, "kernel", None)


SHAPES = [(2, 1, 4, 2, 8), (1, 5, 6, 2, 12), (2, 64, 4, 4, 8), (1, 65, 4, 1, 8), (2, 200, 6, 3, 16), (1, 530, 2, 2, 4)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [0, 10**6], ids=["computed again", "kept"])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention(
    shape: tuple[int, ...], kept: int, dtype: torch.dtype, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEPT", kept)
    batch, time, heads, kv, width = shape
    q = randn(batch, time, heads, width, dtype=dtype)
    k, v = (randn(batch, time, kv, width, dtype=dtype, seed=seed) for seed in (1, 2))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1) for x in (q, k, v))
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        scores = (q @ k.mT * width**-0.5).masked_fill(future, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    agree(attention.causal_attention, plain, [q, k, v], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_compiler_is_told_of_attention_is_so(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, products: None
) -> None:
    """Shapes and strides: a compiled layer with a batch of one failed where they were others."""
    batch, time, heads, groups, width = shape
    given = [randn(batch, time, n, width, dtype=dtype, seed=n) for n in (heads, groups, groups)]

    def layouts(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        out, kept = torch.ops.llamactl.causal_attention(q, k, v, batch * heads * attention._triangle(time), None, None)
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
    monkeypatch.setattr(attention, "KEPT", kept)
    documents = Documents.of(DOCUMENTS, torch.device("cpu"))
    given = [randn(3, 200, n, 16, dtype=dtype, seed=n) for n in (4, 2, 1)]
    given[2] = given[2].expand(-1, -1, 2, -1)

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for row, lengths in enumerate(DOCUMENTS):
            parts = [x[row : row + 1].split(list(lengths), 1) for x in (q, k, v)]
            rows.append(torch.cat([attention.causal_attention(*part) for part in zip(*parts, strict=True)], 1))
        return torch.cat(rows)

    agree(lambda q, k, v: attention.causal_attention(q, k, v, documents), apart, given, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_do_not_see_each_other_on_a_gpu(dtype: torch.dtype) -> None:
    """By the kernel for documents, and by the mask that takes its place in fp32."""
    given = [randn(3, 200, n, 16, dtype=dtype, seed=n) for n in (4, 2, 2)]
    wanted = attention.causal_attention(*given, Documents.of(DOCUMENTS, torch.device("cpu")))
    there = Documents.of(DOCUMENTS, torch.device("cuda"))
    found = attention.causal_attention(*(x.cuda() for x in given), there).cpu()
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


# Of 224 places: a stem and two branches, one of them longer than a block; a sequence without a stem; a stem with one
# branch; one with three; what fills the row.
TREES = [
    Segment(0, 70), Segment(70, 5, 0, 70), Segment(75, 100, 0, 70), Segment(175, 9), Segment(184, 3),
    Segment(187, 1, 184, 3), Segment(188, 8), Segment(196, 1, 188, 8), Segment(197, 12, 188, 8),
    Segment(209, 7, 188, 8), Segment(216, 8),
]  # fmt: skip


def written_out(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each segment behind a copy of its stem, as a row of its own; the stem's part is left out."""
    parts = []
    for start, length, stem, above in TREES:
        whole = [torch.cat([x[:, stem : stem + above], x[:, start : start + length]], 1) for x in (q, k, v)]
        parts.append(attention(*whole)[:, above:])
    return torch.cat(parts, 1)


def of_trees(dtype: torch.dtype) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2."""
    return [randn(1, 224, n, 16, dtype=dtype, seed=seed) for seed, n in enumerate((4, 2, 2))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [0, 10**6], ids=["computed again", "kept"])
def test_branches_attend_to_their_stem_as_if_written_out(
    kept: int, dtype: torch.dtype, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, where the gradients of all branches add up in the stem."""
    monkeypatch.setattr(attention, "KEPT", kept)
    documents = Documents.branching(TREES, CPU)
    agree(
        lambda q, k, v: attention.causal_attention(q, k, v, documents),
        lambda q, k, v: written_out(lambda *x: attention.attention(*x, None), q, k, v),
        of_trees(dtype),
        dtype,
    )


def test_the_mask_of_trees_says_the_same() -> None:
    """It takes the kernel's place on a GPU in fp32."""
    documents = Documents.branching(TREES, CPU)
    agree(
        lambda q, k, v: attention.attention(q, k, v, documents.mask()[:, None]),
        lambda q, k, v: attention.causal_attention(q, k, v, documents),
        of_trees(torch.float64),
        torch.float64,
    )


def test_positions_go_on_from_the_stem() -> None:
    documents = Documents.branching(TREES, CPU)
    wanted = [torch.arange(above, above + length) for _, length, _, above in TREES]
    assert torch.equal(documents.positions, torch.cat(wanted)[None])
    assert documents.longest == 170


def test_segments_without_a_stem_are_documents() -> None:
    found = Documents.branching([Segment(0, 5), Segment(5, 11)], CPU)
    wanted = Documents.of([[5, 11]], CPU)
    assert found.keys is None and found.key_ends is None
    assert torch.equal(found.positions, wanted.positions) and torch.equal(found.ends, wanted.ends)
    assert (found.longest, found.triangles) == (wanted.longest, wanted.triangles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branch_changes_by_no_bit_with_its_sibling(dtype: torch.dtype, products: None) -> None:
    documents, given = Documents.branching(TREES, CPU), of_trees(dtype)
    other = [x.clone() for x in given]
    for x in other:
        x[:, 75:175] = x[:, 75:175].flip(1) + 1
    before, after = (attention.causal_attention(*x, documents) for x in (given, other))
    assert torch.equal(before[:, :75], after[:, :75])
    assert torch.equal(before[:, 175:], after[:, 175:])
    assert not torch.isclose(before[:, 75:175], after[:, 75:175]).all(-1).any()


def test_the_gradient_of_a_stem_is_the_same_to_the_bit_each_time() -> None:
    """Also on several threads: those of branches add up in it, in an order that must not change."""
    segments = [Segment(0, 600), Segment(600, 200, 0, 600), Segment(800, 200, 0, 600)]
    documents = Documents.branching(segments, CPU)
    x, upstream = randn(1, 1000, 2, 64).requires_grad_(), randn(1, 2200, 2, 64, seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (torch.autograd.grad(documents.gathered(x), x, upstream)[0] for _ in range(10))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [False, True])
def test_what_the_compiler_is_told_of_attention_to_stems_is_so(kept: bool, dtype: torch.dtype, products: None) -> None:
    """There are more keys than queries; the gradients have the shapes of each."""
    documents = Documents.branching(TREES, CPU)
    q, k, v = of_trees(dtype)
    ends = documents.ends, documents.key_ends
    given = [q, documents.gathered(k), documents.gathered(v)]
    keep = 4 * documents.triangles * kept

    def layouts(*given: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]:
        q, k, v, *ends = given
        out, probabilities = torch.ops.llamactl.causal_attention(q, k, v, keep, *ends)
        gradients = torch.ops.llamactl.causal_attention_backward(q, k, v, probabilities, torch.ones_like(out), *ends)
        return [(tuple(one.shape), one.stride(), one.dtype) for one in (out, probabilities, *gradients)]

    with FakeTensorMode() as mode:
        told = layouts(*map(mode.from_tensor, [*given, *ends]))
    assert told == layouts(*given, *ends)


def test_probabilities_that_are_kept_are_those_that_are_counted() -> None:
    """``triangles`` is how many numbers a head has: one fewer and the last block would not be kept whole."""
    documents = Documents.branching(TREES, CPU)
    blocks = attention._blocks_of(documents.positions.shape[1], documents.ends, documents.key_ends)
    sizes = [(rows.stop - rows.start) * (seen.stop - seen.start) for rows, seen in blocks]
    assert sum(sizes) == documents.triangles


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_branches_attend_to_their_stem_on_a_gpu(dtype: torch.dtype) -> None:
    """By the kernel, for which the queries are the last of the keys, and by the mask that takes its place in fp32."""
    gradients = []
    for device in (CPU, torch.device("cuda")):
        given = [x.detach().to(device).requires_grad_() for x in of_trees(dtype)]
        out = attention.causal_attention(*given, Documents.branching(TREES, device))
        upstream = randn(1, 224, 4, 16, dtype=dtype, seed=9).to(device)
        gradients.append([x.cpu() for x in (out, *torch.autograd.grad(out, given, upstream))])
    for wanted, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=5e-2)
