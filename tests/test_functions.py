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
from llamactl.model.functions import Documents, Segment
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
    monkeypatch.setattr(functions, "KEPT", kept)
    documents = Documents.branching(TREES, CPU)
    agree(
        lambda q, k, v: functions.causal_attention(q, k, v, documents),
        lambda q, k, v: written_out(lambda *x: functions.attention(*x, None), q, k, v),
        of_trees(dtype),
        dtype,
    )


def test_the_mask_of_trees_says_the_same() -> None:
    """It takes the kernel's place on a GPU in fp32."""
    documents = Documents.branching(TREES, CPU)
    agree(
        lambda q, k, v: functions.attention(q, k, v, documents.mask()[:, None]),
        lambda q, k, v: functions.causal_attention(q, k, v, documents),
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
    before, after = (functions.causal_attention(*x, documents) for x in (given, other))
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
    blocks = functions._blocks_of(documents.positions.shape[1], documents.ends, documents.key_ends)
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
        out = functions.causal_attention(*given, Documents.branching(TREES, device))
        upstream = randn(1, 224, 4, 16, dtype=dtype, seed=9).to(device)
        gradients.append([x.cpu() for x in (out, *torch.autograd.grad(out, given, upstream))])
    for wanted, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=5e-2)


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
