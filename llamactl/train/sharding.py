"""What is done to a model that many processes train, or sample from, together: FSDP2, and cuts for tensor parallelism.

Only they load it: torch's machinery for it takes a second, which every other command would wait for as it starts.
"""

from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama, Transformer
from llamactl.train import vocabulary


def shard(model: Transformer, mesh: DeviceMesh) -> None:
    """Share weights, gradients and moments out to the processes of a mesh of shards, or of replicas x shards."""
    policy = MixedPrecisionPolicy(model.dtype, torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    if isinstance(model, RewardModel):
        fully_shard(model.score, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.float32, torch.float32))
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, model.loss)


def exchange(model: Transformer, within: bool, across: bool) -> None:
    """Whether a micro-batch's gradients are exchanged ``within`` a replica, and ``across`` replicas."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(within)
        model.set_requires_all_reduce(across)


def cut(model: Transformer, mesh: DeviceMesh) -> None:
    """Cut each matrix product over a mesh of tensor neighbours, with sequence parallelism between."""
    between = Shard(1)  # between the matrix products, activations [B, T, D] are cut over T
    gathered = partial(PrepareModuleInput, desired_input_layouts=(Replicate(), *[None] * 4))
    layer = {
        "attention_norm": SequenceParallel(),
        "attention": gathered(input_layouts=(between, *[None] * 4)),
        **{f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")},
        "attention.wo": RowwiseParallel(output_layouts=between),
        "ffn_norm": SequenceParallel(),
        "feed_forward": PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),)),
        **{f"feed_forward.{name}": ColwiseParallel() for name in ("w1", "w3")},
        "feed_forward.w2": RowwiseParallel(output_layouts=between),
    }
    ends = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(),  # of a language model
        "score": RowwiseParallel(input_layouts=Replicate()),  # of a reward model
    }
    there = {name: style for name, style in ends.items() if hasattr(model, name)}
    parallelize_module(model, mesh, {**there, **{f"layers.*.{name}": style for name, style in layer.items()}})
    table = model.tok_embeddings
    table.forward = partial(vocabulary.embedding, table, mesh)  # type: ignore[method-assign]
    if isinstance(model, Llama):
        model.norm.register_forward_hook(_whole_for_the_vocabulary)
        model.output.nll = partial(vocabulary.nll, model.output, mesh)  # type: ignore[method-assign]
    else:
        model.norm.register_forward_hook(_whole)


def _whole(module: object, given: object, hidden: DTensor) -> Tensor:
    """Hidden states on all tensor neighbours, for which each of them computes the whole gradient."""
    return hidden.redistribute(placements=[Replicate()]).to_local()


def _whole_for_the_vocabulary(module: object, given: object, hidden: DTensor) -> Tensor:
    """Hidden states on all tensor neighbours; each one's rows of the head add their part to the gradient."""
    return hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
