"""The parts of the network that have forward and backward passes of their own, where those of autograd are slower or
keep more: products of bf16 without bf16 instructions, RMSNorm, the rotation, SwiGLU, embeddings, the loss at the head.

On a CPU that has kernels they are those of ``fused``. (Attention has a file.)

Letters as in ``llama.py``.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model import fused, matmul, sharded

# Without these instructions products of bf16 matrices on a CPU are 3 to 100 times slower than those of fp32 matrices
# (measured with AVX2); there they are made of fp32 copies, which loses nothing: such products add up in fp32 anyway.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16")
BF16_PRODUCTS = any(torch.cpu.get_capabilities().get(name) for name in _INSTRUCTIONS)

ROWS = 512  # rows of logits at once
WORDS = 2048  # columns of logits at once, where they are only looked at


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of ``x`` are made of: its own dtype, or fp32 where that is faster."""
    narrow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not BF16_PRODUCTS
    return torch.float32 if narrow else x.dtype


def weight_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What products take their weights in, where the rest is in ``dtype``: fp32 weights are rounded to it, or not."""
    return product_dtype(torch.empty(0, dtype=dtype, device=device))


class _WideLinear(torch.autograd.Function):
    """``F.linear`` of bf16 ``x [..., D]`` by way of fp32 copies, of which none is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wide = grad.float()
        of_x = (wide @ weight.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
        of_weight = wide.flatten(0, -2).mT @ x.float().flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_x, None if of_weight is None else of_weight.to(weight.dtype)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b^T, ``[R, D]`` and ``[V, D]`` to ``[R, V]``, of one dtype."""
    if matmul.suits(a, b):
        return matmul.product(a, b) if out is None else matmul.put(a, b, out)
    return torch.mm(a, b.mT, out=out)


class _Linear(torch.autograd.Function):
    """``F.linear`` by the kernel of ``matmul``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return matmul.product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = matmul.product(grad, weight.mT) if ctx.needs_input_grad[0] else None
        return of_x, matmul.across(grad, x) if ctx.needs_input_grad[1] else None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, ``[..., D]`` and ``[V, D]`` to ``[..., V]``, in the dtype of x."""
    if product_dtype(x) != x.dtype and x.numel() > x.shape[-1]:  # one row goes as fast as the weights can be read
        return cast(Tensor, _WideLinear.apply(x, weight))  # type: ignore[no-untyped-call]
    weight = weight.to(x.dtype)
    if matmul.suits(x, weight):
        return cast(Tensor, _Linear.apply(x, weight))  # type: ignore[no-untyped-call]
    return F.linear(x, weight)


def scores(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, where the many rows of W ``[V, D]`` are words; in pieces where nothing is learned from it on a CPU.

    There a piece stays in a cache: 64 rows by 32,000 words took two thirds of the time of one product.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.numel() == x.shape[-1] or matmul.suits(x, weight):
        return linear(x, weight)
    out = x.new_empty(*x.shape[:-1], len(weight))
    for some, piece in zip(torch.split(out, WORDS, -1), torch.split(weight, WORDS), strict=True):
        some.copy_(linear(x, piece))
    return out


class _Embedding(torch.autograd.Function):
    """``F.embedding`` of bf16 rows, whose gradients add up in fp32 (as they do on a GPU by themselves)."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = len(weight)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        words, places = ids.flatten().unique(return_inverse=True)
        rows = grad.flatten(0, -2)
        sums = torch.zeros(len(words), rows.shape[1]).index_add_(0, places, rows.float())
        of_weight = rows.new_zeros(ctx.rows, rows.shape[1])
        of_weight[words] = sums.to(rows.dtype)
        return None, of_weight


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of W ``[V, D]`` by their ids ``[...]``."""
    alone = type(ids) is Tensor and ids.device.type == "cpu" and not sharded.spread(weight)
    if alone and weight.dtype == torch.bfloat16 and weight.requires_grad:
        return cast(Tensor, _Embedding.apply(ids, weight))  # type: ignore[no-untyped-call]
    return F.embedding(ids, weight)


def _inverse_rms(wide: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / wide.shape[-1] + eps)


class _Norm(torch.autograd.Function):
    """RMSNorm that keeps x and one number a row for the backward pass; autograd would keep fp32 copies of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if fused.suits(x):
            out, inverse = fused.norm(x, weight, eps)
            ctx.save_for_backward(x, weight, inverse)
            return out
        wide = x.float()
        inverse = _inverse_rms(wide, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        if fused.suits(x):
            of_x, of_weight = fused.norm_backward(x, weight, inverse, grad)
            return of_x, of_weight.to(weight.dtype), None
        wide, scale, g = x.float(), weight.float(), grad.float()
        product = (g * wide).flatten(0, -2)
        of_weight = product.mT.mv(inverse.flatten())
        along = product.mv(scale / -x.shape[-1]).view(inverse.shape)
        of_x = (g * scale).mul_(inverse).addcmul_(wide, along * inverse**3)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) ``[..., D]``, in fp32, cast back, then scaled.

    By plain operations where those are fused by the compiler, or take care of a tensor that is spread over devices.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)
    if not torch.is_grad_enabled():  # the class would take longer than the numbers of one token
        if fused.suits(x):
            return fused.norm(x, weight, eps)[0]
        wide = x.float()
        return (wide * _inverse_rms(wide, eps)).to(x.dtype) * weight.to(x.dtype)
    return cast(Tensor, _Norm.apply(x, weight, eps))  # type: ignore[no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    """silu(a) b that keeps a and b; autograd would keep silu(a), too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return fused.swiglu(a, b) if fused.suits(a) else F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        if fused.suits(a):
            return fused.swiglu_backward(a, b, grad)
        return torch.ops.aten.silu_backward(grad * b, a), F.silu(a).mul_(grad)


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) b."""
    if not torch.is_grad_enabled() and fused.suits(a):
        return fused.swiglu(a, b)
    if torch.compiler.is_compiling() or type(a) is not Tensor or not torch.is_grad_enabled():
        return F.silu(a) * b
    return cast(Tensor, _SwiGLU.apply(a, b))  # type: ignore[no-untyped-call]


class _Rotation(torch.autograd.Function):
    """``rotate`` that keeps its tables alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return fused.rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return fused.rotate(grad, cos, sin, -1.0), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of each head: ``[B, T, H, E]``, in fp32 (Hugging Face's order of pairs).

    By the tables of ``llama.rotary``, in which the sines of a pair are -sin and sin, so that no halves are needed.
    """
    if fused.suits(x):
        return cast(Tensor, _Rotation.apply(x, cos, sin))  # type: ignore[no-untyped-call]
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


class NegativeLogLikelihood(torch.autograd.Function):
    """-log p(target), some rows of logits at a time; p - 1[target] is kept in the dtype of the hidden states.

    The gradient of a row is that times a number, by which the backward pass scales the D columns on the other side of
    its products, not the V columns of this one.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        hidden, targets, flat = hidden.flatten(0, -2), targets.flatten(), losses.view(-1)
        factor = weight.to(product_dtype(hidden))
        training = any(ctx.needs_input_grad)
        slopes = hidden.new_empty(len(hidden), len(weight)) if training else None
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            place = slopes[rows] if slopes is not None and slopes.dtype == factor.dtype else None
            scores = _product(hidden[rows].to(factor.dtype), factor, out=place)
            if fused.suits(scores):
                fused.slopes(scores, targets[rows], flat[rows], learning=training)
            else:
                scores = NegativeLogLikelihood.slopes(scores, targets[rows], flat[rows], training)
            if slopes is not None and scores is not place:
                slopes[rows] = scores
        if slopes is not None:
            NegativeLogLikelihood.keep(ctx, hidden, weight, factor, slopes)
        return losses

    @staticmethod
    def slopes(scores: Tensor, targets: Tensor, losses: Tensor, learning: bool) -> Tensor:
        """As ``fused.slopes``, but that p - 1[target] has a place of its own, in fp32."""
        wanted = targets[:, None]
        largest, target = scores.amax(-1, keepdim=True).float(), scores.gather(1, wanted).float()
        p = scores.float()
        torch.softmax(p, -1, out=p)  # in place, row by row
        losses.copy_((largest - p.amax(-1, keepdim=True).log() - target)[:, 0])  # log-sum-exp without exp
        return p.scatter_add_(1, wanted, p.new_full(wanted.shape, -1.0)) if learning else p

    @staticmethod
    def keep(ctx: Any, hidden: Tensor, weight: Tensor, factor: Tensor, slopes: Tensor) -> None:
        """Save what the backward pass needs."""
        ctx.save_for_backward(hidden, weight if factor.dtype != hidden.dtype else factor, slopes)
        ctx.weight_dtype = weight.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, slopes = ctx.saved_tensors
        factor = weight.to(product_dtype(hidden))
        shape, grad = grad.shape, grad.flatten()
        if factor.dtype == hidden.dtype:
            scale = grad[:, None]
            of_weight = _product(slopes.mT, (hidden * scale).to(factor.dtype).mT)
            of_hidden = (_product(slopes, factor.mT) * scale).to(hidden.dtype)
            return of_hidden.view(*shape, hidden.shape[-1]), of_weight.to(ctx.weight_dtype), None
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.empty_like(weight, dtype=torch.float32)  # set by the first piece, be it empty
        for start in range(0, max(1, len(hidden)), ROWS):
            rows = slice(start, start + ROWS)
            slope, scale = slopes[rows].to(factor.dtype), grad[rows, None]
            of_hidden[rows] = (slope @ factor) * scale
            of_weight.addmm_(slope.mT, (hidden[rows] * scale).to(factor.dtype), beta=min(start, 1))
        return of_hidden.view(*shape, hidden.shape[-1]), of_weight.to(ctx.weight_dtype), None


def negative_log_likelihood(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(x W^T)[target] in fp32, of hidden states ``[..., D]``, the head ``[V, D]`` and ids ``[...]``."""
    return cast(Tensor, NegativeLogLikelihood.apply(hidden, weight, targets))  # type: ignore[no-untyped-call]
