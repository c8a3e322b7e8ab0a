"""Tensors of which each process may hold only a part, its box: FSDP2 and tensor parallelism keep them as DTensors.

What has to know of it goes through here, so that the rest of the house treats one process and many alike: a plain
tensor is its own box.
"""

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

PLAIN = (Tensor, nn.Parameter)  # of one process; that another kind is none either takes a second to load


class Box(NamedTuple):
    """The part of a whole tensor that a process holds: where it begins, and its shape."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """That part of ``whole``, as a view."""
        return whole[tuple(slice(start, start + size) for start, size in zip(self.offset, self.shape, strict=True))]


def spread(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether processes share it out."""
    if type(tensor) in PLAIN:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def box(tensor: Tensor) -> Box:
    """What this process holds of a tensor."""
    if not spread(tensor):
        return Box((0,) * tensor.dim(), tuple(tensor.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Box(tuple(offset), tuple(shape))


def local(tensor: Tensor) -> Tensor:
    """The elements in this process's box, without autograd; shares their memory."""
    tensor = tensor.detach()
    return tensor.to_local() if spread(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process: all have to ask for it."""
    return tensor.full_tensor() if spread(tensor) else tensor


def among(tensor: Tensor, dimension: str) -> Tensor:
    """This process's part of a tensor that is cut over one dimension of its mesh alone; all have to ask for it."""
    if not spread(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    names = tensor.device_mesh.mesh_dim_names or ()
    cuts = zip(names, tensor.placements, strict=True)
    kept = [placement if name == dimension else Replicate() for name, placement in cuts]
    return tensor.redistribute(placements=kept).to_local()


def copies(tensor: Tensor) -> int:
    """How many processes hold the same box."""
    if not spread(tensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return prod(size for size, placement in sizes if placement.is_replicate())


def first_copy(tensor: Tensor) -> bool:
    """Whether this process is the first of those that hold the same box."""
    if not spread(tensor):
        return True
    where = tensor.device_mesh.get_coordinate()
    assert where is not None
    return all(not (placement.is_replicate() and at) for at, placement in zip(where, tensor.placements, strict=True))


@torch.no_grad()
def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Give parameters their values from whole tensors by name, each process its box; one whole tensor at a time."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors:
        local(parameters[name]).copy_(box(parameters[name]).of(tensor))
