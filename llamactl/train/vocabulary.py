"""Embeddings and loss that tensor parallelism has cut over the vocabulary: no process has a whole row of logits."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial

from llamactl.model import functions
from llamactl.model.functions import ROWS, NegativeLogLikelihood, product_dtype
from llamactl.model.llama import Embedding, Head


class _Cut(NegativeLogLikelihood):
    """As its base, for the logits of the ids from ``first`` on, which is where ``weight`` begins.

    For each token the neighbours exchange the largest logit, the sum of exponentials, and the target's logit.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, first: int, mesh: DeviceMesh) -> Tensor:  # type: ignore[override]
        losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        hidden, targets, flat = hidden.flatten(0, -2), targets.flatten(), losses.view(-1)
        group, factor = mesh.get_group(), weight.to(product_dtype(hidden))
        slopes = hidden.new_empty(len(hidden), len(weight))
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = F.linear(hidden[rows].to(factor.dtype), factor).float()
            mine = (targets[rows] >= first) & (targets[rows] < first + len(weight))
            wanted = (targets[rows] - first).clamp(0, len(weight) - 1)[:, None]
            largest = logits.amax(-1, keepdim=True)
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
            target = logits.gather(1, wanted)[:, 0] * mine
            p = logits.sub_(largest).exp_()
            sums = torch.stack([p.sum(-1), target])
            dist.all_reduce(sums, group=group)
            flat[rows] = largest[:, 0] + sums[0].log() - sums[1]
            p.div_(sums[0][:, None]).scatter_add_(1, wanted, -mine.to(p.dtype)[:, None])
            slopes[rows] = p
        NegativeLogLikelihood.keep(ctx, hidden, weight, factor, slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *NegativeLogLikelihood.backward(ctx, grad), None, None


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
    places = ids.to_local() - mesh.get_local_rank() * len(rows)
    mine = (places >= 0) & (places < len(rows))
    found = functions.embedding(places.clamp(0, len(rows) - 1), rows) * mine[..., None]
    return DTensor.from_local(found, mesh, [Partial()], run_check=False)
