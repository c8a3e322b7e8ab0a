"""A model for inference cut over tensor neighbours (Shoeybi et al., 2019): one that is too large for a device.

Each neighbour has a part of the heads and of the feed-forward, so a part of the weights, and of the keys and values;
what the parts of a layer come to is summed over all of them. Embeddings, norms and the head each has whole. Neighbours
compute the same steps at the same time, and draw the same tokens: the sums are the same bits on all of them.

(A model that is trained is cut by ``train/parallel.py``, for its backward pass and its sharding. These are plain
tensors, so that a step of decoding has nothing to do beside its products.)
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

TENSOR = "tensor"  # the dimension of a job's mesh that neighbours stand along
ROWS = ("wq", "wk", "wv", "w1", "w3")  # whose outputs are cut
COLUMNS = ("wo", "w2")  # whose inputs are, so that each neighbour has a part of a sum


class Slice(NamedTuple):
    """Which part of a model a process has, of how many; ``group`` is its neighbours, None where it has the whole."""

    rank: int = 0
    parts: int = 1
    group: dist.ProcessGroup | None = None

    def of(self, name: str, whole: Tensor) -> Tensor:
        """This part of a parameter, in memory of its own; what is not cut is the whole, as it is."""
        dim = _dim(name)
        if dim is None or self.parts == 1:
            return whole
        return whole.chunk(self.parts, dim)[self.rank].clone(memory_format=torch.contiguous_format)

    def sum(self, part: Tensor) -> Tensor:
        """Of all neighbours, in place."""
        if self.group is not None:
            dist.all_reduce(part, group=self.group)
        return part

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of all neighbours' numbers, on each of them."""
        if self.group is None:
            return number
        told = torch.tensor(number, device=device)
        dist.all_reduce(told, dist.ReduceOp.MIN, self.group)
        return int(told)

    def cut(self, model: nn.Module) -> None:
        """Give a model on the meta device the shapes of this part, and have it sum what its layers come to."""
        if self.parts == 1:
            return
        for name, parameter in model.named_parameters():
            parameter.data = self.of(name, parameter.data)
        for name, module in model.named_modules():
            if name.endswith(COLUMNS):
                module.register_forward_hook(lambda _, __, part: self.sum(part))


WHOLE = Slice()


def is_cut(name: str) -> bool:
    """Whether neighbours have different parts of a parameter."""
    return _dim(name) is not None


def _dim(name: str) -> int | None:
    """The dimension that a parameter is cut over."""
    owner = name.removesuffix(".weight").rpartition(".")[2]
    return 0 if owner in ROWS else 1 if owner in COLUMNS else None
