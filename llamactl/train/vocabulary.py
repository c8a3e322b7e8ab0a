"""Embeddings and loss that tensor parallelism has cut over the vocabulary: no process has a whole row of logits."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial

from llamactl.model import functions
from llamactl.model.llama import Embedding, Head


def _own(ids: Tensor, first: int, number: int) -> tuple[Tensor, Tensor]:
    """Which ids are among so many from ``first`` on, and the row of each; of the rest it is any."""
    places = ids - first
    return (places >= 0) & (places < number), places.clamp(0, number - 1)


class _Cut(functions.NegativeLogLikelihood):
    """As its base, for the logits of the ids from ``first`` on, which is where ``weight`` begins.

    For each token the neighbours exchange the largest logit, the sum of exponentials, and the target's logit.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, first: int, mesh: DeviceMesh) -> Tensor:  # type: ignore[override]
        losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        hidden, targets, flat = hidden.flatten(0, -2), targets.flatten(), losses.view(-1)
        group, factor = mesh.get_group(), weight.to(functions.product_dtype(hidden))
        slopes = hidden.new_empty(len(hidden), len(weight))
        for start in range(0, len(hidden), functions.ROWS):
            rows = slice(start, start + functions.ROWS)
            logits = F.linear(hidden[rows].to(factor.dtype), factor).float()
            mine, places = _own(targets[rows], first, len(weight))
            wanted = places[:, None]
            largest = logits.amax(-1, keepdim=True)
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
            target = logits.gather(1, wanted)[:, 0] * mine
            p = logits.sub_(largest).exp_()
            sums = torch.stack([p.sum(-1), target])
            dist.all_reduce(sums, group=group)
            flat[rows] = largest[:, 0] + sums[0].log() - sums[1]
            p.div_(sums[0][:, None]).scatter_add_(1, wanted, -mine.to(p.dtype)[:, None])
            slopes[rows] = p
        functions.NegativeLogLikelihood.keep(ctx, hidden, weight, factor, slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *functions.NegativeLogLikelihood.backward(ctx, grad), None, None


def nll(head: Head, mesh: DeviceMesh, hidden: Tensor, targets: Tensor) -> Tensor:
    """``Head.nll`` for a head whose rows are cut over ``mesh``; ``hidden`` is whole on each of its processes."""
    weight = head.weight
    assert isinstance(weight, DTensor)
    rows = weight.to_local()
    return cast(Tensor, _Cut.apply(hidden, rows, targets, mesh.get_local_rank() * len(rows), mesh))  # type: ignore[no-untyped-call]


def embedding(table: Embedding, mesh: DeviceMesh, ids: DTensor) -> DTensor:
    """``Embedding.forward`` for a table whose rows are cut over ``mesh``: each process has the rows of its own ids.

    (Torch's own adds up the gradients of a word that comes often in bf16 on a CPU.)
    """
    weight = table.weight
    assert isinstance(weight, DTensor)
    rows = weight.to_local()
    mine, places = _own(ids.to_local(), mesh.get_local_rank() * len(rows), len(rows))
    found = functions.embedding(places, rows) * mine[..., None]
    return DTensor.from_local(found, mesh, [Partial()], run_check=False)
