"""Causal attention: of documents that stand one after the other, of branches to their stems, in blocks on a CPU.

Letters as in ``llama.py``; G = H / K query heads that share a key/value head.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model import flash
from llamactl.model.functions import product_dtype

BLOCK = 64  # rows of attention at once, at least: a triangle of 512 is then 9/16 of its square
BLOCKS = 8  # and at most so many blocks
KEPT = 1024  # tokens up to which attention keeps its probabilities for the backward pass, which grow as their square


def _blocks(time: int) -> list[tuple[int, int]]:
    """Rows of each block of attention: first, and last + 1."""
    rows = max(BLOCK, -(-time // BLOCKS))
    return [(start, min(start + rows, time)) for start in range(0, time, rows)]


@cache
def _future(rows: int, dtype: torch.dtype) -> Tensor:
    """-inf above the diagonal of a square of so many rows, 0 in the rest of it."""
    with torch.inference_mode(False):
        return torch.full((rows, rows), -torch.inf, dtype=dtype).triu(1)


def _probabilities(q: Tensor, k: Tensor, rows: int, out: Tensor | None) -> Tensor:
    """Softmax, into ``out`` if there is one, of the scores of rows, and of the keys up to the last of them.

    ``q [BK, G R, E]``, scaled, and ``k [BK, S, E]`` to ``[BK, G R, S]``; of each group's rows the last has seen all S.
    """
    scores = torch.bmm(q, k.mT)
    last = scores.view(len(scores), -1, rows, scores.shape[-1])[..., -rows:]
    last.add_(_future(1 << (rows - 1).bit_length(), scores.dtype)[:rows, :rows])  # seven times as fast as masked_fill_
    return torch.softmax(scores, -1, out=out)


class Segment(NamedTuple):
    """Places of a row that attend to those before them in it, and to all of its stem, if it has one."""

    start: int
    length: int
    stem: int = 0  # where the stem, with which another segment begins, starts
    stem_length: int = 0


class Documents(NamedTuple):
    """Several documents in the rows of a batch, none of which attends to another, or to more of it than its stem."""

    positions: Tensor  # [B, T], from 0 in each document, or on from its stem
    ends: Tensor  # int32 [n + 1]: 0, and where each ends in the rows laid one after the other
    longest: int  # tokens that one attends to
    triangles: int  # probabilities of one head in all of them: numbers that a compiled layer can take as they come
    keys: Tensor | None = None  # int64 [M]: which places each attends to, stem first; without it, to its own
    key_ends: Tensor | None = None  # int32 [n + 1]: where those of each end

    @classmethod
    def of(cls, lengths: Sequence[Sequence[int]], device: torch.device) -> Self:
        """Of documents so long in each row."""
        every = [length for row in lengths for length in row]
        positions = torch.cat([torch.arange(length) for length in every]).view(len(lengths), -1)
        ends = torch.tensor(every, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        ends = torch.cat([ends.new_zeros(1), ends])
        positions, ends = positions.to(device, non_blocking=True), ends.to(device, non_blocking=True)
        return cls(positions, ends, max(every), sum(map(_triangle, every)))

    @classmethod
    def branching(cls, segments: Sequence[Segment], device: torch.device) -> Self:
        """Of segments that fill one row, one after the other."""
        plain = cls.of([[one.length for one in segments]], device)
        if not any(one.stem_length for one in segments):
            return plain
        places = [(one.stem, one.stem_length, one.start, one.length) for one in segments]
        positions = torch.cat([torch.arange(stemmed, stemmed + length) for _, stemmed, _, length in places])[None]
        keys = torch.cat(
            [torch.arange(first, first + n) for stem, m, start, k in places for first, n in ((stem, m), (start, k))]
        )
        ends = torch.tensor([0, *(one.stem_length + one.length for one in segments)], dtype=torch.int32)
        return cls(
            positions.to(device, non_blocking=True),
            plain.ends,
            max(one.stem_length + one.length for one in segments),
            sum(_triangle(one.length, one.stem_length) for one in segments),
            keys.to(device, non_blocking=True),
            ends.cumsum(0, dtype=torch.int32).to(device, non_blocking=True),
        )

    def gathered(self, x: Tensor) -> Tensor:
        """Keys or values ``[B, T, K, E]`` as the documents attend to them, ``[1, M, K, E]``."""
        x = x.flatten(0, 1)
        if self.keys is None:
            return x[None]
        # their gradients add up in an order that does not change: by these on a CPU, by indexing on a GPU
        return (x.index_select(0, self.keys) if x.device.type == "cpu" else x[self.keys])[None]

    def mask(self) -> Tensor:
        """Which places of a row attend to which, ``[B, T, T]``."""
        numbers = torch.arange(len(self.ends) - 1, device=self.ends.device)
        own = numbers.repeat_interleave(self.ends.diff()).view(self.positions.shape)  # the document of each place
        seen = own[:, :, None] == own[:, None, :]
        if self.keys is not None and self.key_ends is not None:  # in one row
            members = torch.zeros(len(numbers), own.shape[1], dtype=torch.bool, device=own.device)
            members[numbers.repeat_interleave(self.key_ends.diff()), self.keys] = True
            seen = members[own]
        return seen & (self.positions[:, None, :] <= self.positions[:, :, None])


class Block(NamedTuple):
    """Rows of queries that are computed together, and the keys that they see, up to the last row's own."""

    rows: slice
    seen: slice


def _blocks_of(time: int, ends: Tensor | None, key_ends: Tensor | None) -> Iterator[Block]:
    """All blocks of rows of ``time`` tokens, or of the documents that ends there, laid one after the other."""
    bounds = [0, time] if ends is None else ends.tolist()
    keys = bounds if key_ends is None else key_ends.tolist()
    for (start, end), (first, last) in zip(pairwise(bounds), pairwise(keys), strict=True):
        stem = last - first - (end - start)
        for begin, stop in _blocks(end - start):
            yield Block(slice(start + begin, start + stop), slice(first, first + stem + stop))


def _by_head(k: Tensor, laid_out: bool) -> Tensor:
    """``[B, T, K, E]`` as factors of products, ``[BK, T, E]``; rows one after the other, if they are ``laid_out``."""
    k = k.flatten(0, 1)[None] if laid_out else k
    return k.to(product_dtype(k)).transpose(1, 2).flatten(0, 1).contiguous()


def _by_group(q: Tensor, keys: int, laid_out: bool) -> Tensor:
    """A view of queries ``[B, T, H, E]`` by their key heads, ``[B, K, G, T, E]``."""
    q = q.flatten(0, 1)[None] if laid_out else q
    batch, time, heads, width = q.shape
    return q.view(batch, time, keys, heads // keys, width).permute(0, 2, 3, 1, 4)


def _factors(q: Tensor, keys: int, laid_out: bool) -> Tensor:
    """Queries, or what is as they are, as factors of products, ``[BK, G, T, E]``."""
    return _by_group(q.to(product_dtype(q)), keys, laid_out).flatten(0, 1).contiguous()


def _causal_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: int, ends: Tensor | None, key_ends: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Causal attention in blocks of rows, each a few plain products with the keys that it may attend to.

    The blocks leave out most of the upper triangle. Query heads of a group are rows of one product, so that keys and
    values are never repeated. With ``keep``, their number, the probabilities of all blocks come along, in the dtype of
    q, one after the other; else an empty tensor. ``ends`` and ``key_ends`` are those of ``Documents``. (An operator to
    the compiler, which takes minutes to fuse what is in here.)
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    kept, used, heads, width = q.new_empty(keep), 0, k.shape[2], q.shape[-1]
    laid_out = ends is not None
    keys, values = _by_head(k, laid_out), _by_head(v, laid_out)
    queries = _factors(q.contiguous() * width**-0.5, heads, laid_out)
    slots = _by_group(out, heads, laid_out)
    for rows, seen in _blocks_of(q.shape[1], ends, key_ends):
        some = queries[:, :, rows].flatten(1, 2)
        shape = *some.shape[:2], seen.stop - seen.start
        room = kept[used : used + math.prod(shape)].view(shape) if keep else None
        direct = room is not None and kept.dtype == keys.dtype
        p = _probabilities(some, keys[:, seen], rows.stop - rows.start, room if direct else None)
        if room is not None:
            used += p.numel()
            if not direct:
                room.copy_(p)
        slot = slots[:, :, :, rows]
        slot.copy_(torch.bmm(p, values[:, seen]).view(slot.shape))
    return out, kept


def _shape_of_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: int, ends: Tensor | None, key_ends: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(keep)


def _causal_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, grad: Tensor, ends: Tensor | None, key_ends: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    of_q, of_k, of_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    used, heads, scale = 0, k.shape[2], q.shape[-1] ** -0.5
    laid_out = ends is not None
    keys, values = _by_head(k, laid_out), _by_head(v, laid_out)
    queries, grads = _factors(q.contiguous() * scale, heads, laid_out), _factors(grad.contiguous(), heads, laid_out)
    slots = _by_group(of_q, heads, laid_out)
    wide = torch.promote_types(keys.dtype, torch.float32)  # in which blocks add up
    sum_k, sum_v = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
    for rows, seen in _blocks_of(q.shape[1], ends, key_ends):
        some, g = queries[:, :, rows].flatten(1, 2), grads[:, :, rows].flatten(1, 2)
        if len(kept):
            shape = *some.shape[:2], seen.stop - seen.start
            p = kept[used : used + math.prod(shape)].view(shape).to(keys.dtype)
            used += p.numel()
        else:
            p = _probabilities(some, keys[:, seen], rows.stop - rows.start, None)
        of_p = torch.bmm(g, values[:, seen].mT)
        of_scores = torch.ops.aten._softmax_backward_data(of_p, p, -1, p.dtype)
        _add_product(sum_v[:, seen], p.mT, g)
        _add_product(sum_k[:, seen], of_scores.mT, some)
        slot = slots[:, :, :, rows]
        slot.copy_(torch.bmm(of_scores, keys[:, seen]).view(slot.shape))
    of_q.mul_(scale)
    for of, total in ((of_k, sum_k), (of_v, sum_v)):
        by_head = (of.flatten(0, 1)[None] if laid_out else of).transpose(1, 2)
        by_head.copy_(total.view(by_head.shape))
    return of_q, of_k, of_v


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def _shape_of_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, grad: Tensor, ends: Tensor | None, key_ends: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    of_q, of_k, of_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return of_q, of_k, of_v


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, ends, key_ends = inputs
    ctx.save_for_backward(q, k, v, output[1], *([] if ends is None else [ends, key_ends]))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, kept, *ends = ctx.saved_tensors
    gradients = torch.ops.llamactl.causal_attention_backward(q, k, v, kept, grad, *(ends or (None, None)))
    return *gradients, None, None, None


# By hand, not by custom_op, whose first call imports the compiler: two seconds.
_LIBRARY: Any = torch.library.Library("llamactl", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "causal_attention(Tensor q, Tensor k, Tensor v, SymInt keep, Tensor? ends, Tensor? key_ends) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "causal_attention_backward(Tensor q, Tensor k, Tensor v, Tensor kept, Tensor grad, Tensor? ends, Tensor? key_ends) "
    "-> (Tensor, Tensor, Tensor)"
)
for _name, _function, _shape in (
    ("causal_attention", _causal_attention, _shape_of_attention),
    ("causal_attention_backward", _causal_attention_backward, _shape_of_attention_backward),
):
    _LIBRARY.impl(_name, _function, "CPU")
    torch.library.register_fake(f"llamactl::{_name}", _shape, lib=_LIBRARY)
torch.library.register_autograd("llamactl::causal_attention", _backward, setup_context=_keep_for_backward, lib=_LIBRARY)


def _triangle(time: int, stem: int = 0) -> int:
    """Probabilities of one head in all blocks of a document, which attends to its stem, too."""
    return sum((end - start) * (stem + end) for start, end in _blocks(time))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None = None) -> Tensor:
    """Attention of each token to itself and those before, in its document: ``[B, T, H, E]``, k and v ``[B, T, K, E]``.

    The work is that of the documents, each by itself (on a GPU in fp32, where there is no kernel for it, a mask).
    """
    batch, time, heads, _ = q.shape
    if q.device.type == "cpu":
        longest, ends, key_ends = time, None, None
        if documents is not None:
            longest, ends, key_ends = documents.longest, documents.ends, documents.ends
            if documents.key_ends is not None:
                key_ends, k, v = documents.key_ends, documents.gathered(k), documents.gathered(v)
        if flash.suits(q):
            return flash.attention(q, k, v, longest, ends, key_ends)
        triangles = (
            batch * _triangle(time) if documents is None else documents.triangles
        )  # the former by one time alone
        keep = heads * triangles if q.requires_grad and longest <= KEPT else 0
        out: Tensor = torch.ops.llamactl.causal_attention(q, k, v, keep, ends, key_ends)[0]
        return out
    if documents is None:
        return attention(q, k, v, None)
    if q.dtype == torch.float32:
        return attention(q, k, v, documents.mask()[:, None])
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = documents.ends, documents.longest
    key_ends = ends if documents.key_ends is None else documents.key_ends
    k, v = documents.gathered(k)[0], documents.gathered(v)[0]
    grouped = heads > k.shape[1]
    # where there are more keys than queries, the kernel takes these for the last ones: those behind the stem
    mixed = varlen_attn(
        q.flatten(0, 1), k, v, ends, key_ends, longest, longest, window_size=(-1, 0), enable_gqa=grouped
    )  # fmt: skip
    return cast(Tensor, mixed).view(q.shape)


def weights(q: Tensor, k: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """How much each token attends to those before it and to itself, so many ``rows`` of tokens at once.

    By ``q [B, T, H, E]`` and ``k [B, T, K, E]``, rotated: the first of the rows, and fp32 ``[B, H, R, S]``, where S
    goes up to the last of them; each row adds up to 1. They are computed in fp32, whatever attention is computed in.
    """
    keys = k.float().permute(0, 2, 3, 1)[:, :, None]  # [B, K, 1, E, T]
    queries = _by_group(q.float() * q.shape[-1] ** -0.5, k.shape[2], False)
    for start in range(0, q.shape[1], rows):
        some = queries[:, :, :, start : start + rows]
        scores = some @ keys[..., : start + some.shape[3]]
        seen = torch.arange(scores.shape[-1], device=q.device)
        unseen = seen > torch.arange(start, start + some.shape[3], device=q.device)[:, None]
        yield start, scores.masked_fill_(unseen, -torch.inf).softmax(-1).flatten(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention by torch's own kernels; causal where there is no mask."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] > k.shape[1]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return mixed.transpose(1, 2)
