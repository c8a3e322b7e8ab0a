"""What rows of numbers come to on a CPU by a compiled kernel, a pass over memory each: norms, rotation, SwiGLU, the
loss's slopes, squares, updates.

Models ask for them once (``prepare``), so that all passes of a run are computed alike; where there are none, or tensors
are spread over devices, ``functions`` does it in torch's operations. Letters as in ``llama.py``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llamactl.model.kernels import plans
from llamactl.model.kernels.making import Lone, installed

STORED = (torch.float32, torch.bfloat16)
GRAIN = 1 << 14  # numbers that are worth a thread's while
PARTS = 64  # at most, of what adds up over them
SUMMED = 1 << 16  # numbers that one thread adds up
KERNEL = Lone("fused", "norms and the like", plans.FUSED)


def serves() -> bool:
    """Whether there can be a kernel, where it can be kept."""
    return installed()


def there(device: torch.device) -> bool:
    """Whether the kernel is there for what is on a device; it is made, if it can be."""
    KERNEL.prepare(device)
    return KERNEL.kernel is not None and device.type == "cpu"


def suits(x: Tensor) -> bool:
    """Whether the kernel is there for a tensor, which nobody traces or shares out."""
    if torch.compiler.is_compiling() or KERNEL.kernel is None:
        return False
    return type(x) is Tensor and x.device.type == "cpu" and x.dtype in STORED


def _compute(
    operation: int, x: Tensor, some: int, columns: int, tensors: Mapping[str, Tensor], **numbers: float
) -> None:
    """An operation on rows of x, by as many threads as torch's operators have, and by what the plan has names for.

    ``some`` rows are a part; tensors lie one number after the other.
    """
    rows = x.numel() // (columns * int(numbers.get("heads", 1)))
    facts = {"operation": operation, "narrow": x.dtype == torch.bfloat16, "rows": rows, "columns": columns}
    places = {name: tensor.data_ptr() for name, tensor in {"x": x, **tensors}.items()}
    threads = max(1, min(torch.get_num_threads(), -(-rows // some)))
    KERNEL.work(threads, some=some, **facts, **places, **numbers)


def _grain(columns: int) -> int:
    return max(1, GRAIN // columns)


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm ``[..., D]``, and the inverse of each row's rms, fp32 ``[...]``."""
    x, width = x.contiguous(), x.shape[-1]
    out, inverse = torch.empty_like(x), torch.empty(x.shape[:-1])
    given = {"weight": weight.detach().float().contiguous(), "inverse": inverse, "out": out}
    _compute(plans.NORM, x, _grain(width), width, given, eps=eps)
    return out, inverse


def norm_backward(x: Tensor, weight: Tensor, inverse: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, as it is stored, and of the weight, fp32 ``[D]``."""
    x, grad, width = x.contiguous(), grad.contiguous(), x.shape[-1]
    rows = x.numel() // width
    some = max(8, -(-rows // PARTS))
    of_x, of_weight = torch.empty_like(x), torch.empty(-(-rows // some), width)
    given = {"weight": weight.detach().float().contiguous(), "inverse": inverse, "grad": grad}
    _compute(plans.NORM_BACKWARD, x, some, width, {**given, "of_x": of_x, "of_weight": of_weight})
    return of_x, of_weight.sum(0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Heads ``[B, T, H, E]`` by tables ``[..., T, 1, E]``; with ``sign`` -1 the other way round."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    heads, width = x.shape[-2:]
    out, table = torch.empty_like(x), cos.numel() // width
    given = {"cos": cos, "sin": sin, "out": out}
    _compute(plans.ROTATE, x, _grain(heads * width), width, given, heads=heads, table=table, sign=sign)
    return out


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) b."""
    a, b, width = a.contiguous(), b.contiguous(), a.shape[-1]
    out = torch.empty_like(a)
    _compute(plans.SWIGLU, a, _grain(width), width, {"y": b, "out": out})
    return out


def swiglu_backward(a: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and b."""
    a, b, grad, width = a.contiguous(), b.contiguous(), grad.contiguous(), a.shape[-1]
    of_a, of_b = torch.empty_like(a), torch.empty_like(b)
    _compute(plans.SWIGLU_BACKWARD, a, _grain(width), width, {"y": b, "grad": grad, "of_x": of_a, "of_y": of_b})
    return of_a, of_b


def slopes(scores: Tensor, targets: Tensor, losses: Tensor, learning: bool) -> None:
    """-log softmax(scores ``[R, V]``)[target] into ``losses``; p - 1[target] in the scores' place, if ``learning``.

    Raises IndexError for a target that has no score.
    """
    width = scores.shape[-1]
    if len(targets) and not (targets.min() >= 0 and targets.max() < width):
        raise IndexError(f"targets from {targets.min()} to {targets.max()}, of {width} scores")
    given = {"targets": targets.long().contiguous(), "losses": losses}
    _compute(plans.SLOPES, scores, _grain(width), width, given, learning=learning)


def squares(x: Tensor) -> Tensor:
    """The sum of its squares, fp64."""
    x = x.contiguous()
    sums = torch.empty(-(-x.numel() // SUMMED))
    _compute(plans.SQUARES, x, SUMMED, 1, {"sums": sums})
    return sums.double().sum()


def adamw(
    parts: tuple[Tensor, Tensor], grad: Tensor, moments: tuple[Tensor, Tensor], numbers: Mapping[str, float]
) -> None:
    """An update of weights in two parts, bf16 and what rounding has left, and of their moments: kernels' ``update``."""
    given = dict(zip(("high", "rest", "first", "second"), (*parts, *moments), strict=True))
    _compute(plans.UPDATE, grad, GRAIN, 1, {**given, "grad": grad}, **numbers)
