"""Many processes on one model: fully sharded data parallelism (FSDP2), tensor parallelism, hybrid sharding.

It is applied to the model from outside. Processes form a mesh of replicas x shards x tensor: the weights, gradients and
moments of one replica are sharded over its ``shards`` (Zhao et al., 2023), each matrix product is cut over ``tensor``
neighbours with sequence parallelism between (Shoeybi et al., 2019; Korthikanti et al., 2022), and a batch is cut over
replicas x shards. One process has no mesh, and the same code.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import orjson
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llamactl import ui
from llamactl.artifacts.journal import Journal
from llamactl.artifacts.run import Run
from llamactl.errors import Fault
from llamactl.model.llama import Transformer
from llamactl.model.slices import TENSOR, WHOLE, Slice
from llamactl.signals import handled
from llamactl.train.planning import WHOLE_GRADIENTS

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

COMPILATIONS = 32  # of a layer: for models that learn and do not, one length and any; beyond, layers are not compiled
ROUND = 32  # items that each process works on before they tell the first one

LOST = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "broken pipe",
    "tcpstore",
)  # words of an error that another process caused

# What selective checkpointing keeps: the results of matrix products and of attention; the rest is computed again.
_aten = torch.ops.aten
KEPT = {
    torch.ops.llamactl.causal_attention.default,
    torch.ops.llamactl.flash_attention.default,
    torch.ops.llamactl.product.default,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


class Share(NamedTuple):
    """The part of a batch that a process trains on: the first sequence, and how many."""

    first: int
    size: int


class Job:
    """The processes that train one model together, as one of them sees it."""

    def __init__(self, mesh: "DeviceMesh | None", device: torch.device) -> None:
        self.mesh, self.device = mesh, device
        self.caught: list[int] = []  # signals that ask this process to stop, for the loop to see
        self.replicas, self.shards, self.tensor = mesh.shape if mesh else (1, 1, 1)
        self.data = self.replicas * self.shards  # processes that see different sequences
        self.world = self.data * self.tensor
        self.rank = dist.get_rank() if mesh else 0

    def noted(self, number: int, frame: FrameType | None) -> None:
        """A signal has come that asks this process to stop."""
        self.caught.append(number)

    @property
    def devices(self) -> int:
        """GPUs, one a process; or machines, whose processors many processes share."""
        return self.world if self.device.type == "cuda" else ui.machines()

    def facts(self) -> dict[str, int]:
        """Its shape, for manifests."""
        return {"processes": self.world, "replicas": self.replicas, "shards": self.shards, "tensor": self.tensor}

    def share(self, batch_size: int) -> Share:
        """This process's part of a batch."""
        size = batch_size // self.data
        return Share(self.rank // self.tensor * size, size)

    @property
    def part(self) -> Slice:
        """This process's part of a model for inference: the whole, where it has no tensor neighbours."""
        if self.mesh is None or self.tensor == 1:
            return WHOLE
        return Slice(self.rank % self.tensor, self.tensor, self.mesh[TENSOR].get_group())

    def stopping(self) -> bool:
        """Whether a signal asks this process, or a tensor neighbour, to stop: those compute the same at one time."""
        if self.tensor == 1:  # which asks the device nothing
            return bool(self.caught)
        return bool(self.part.sum(torch.tensor(len(self.caught), device=self.device)))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same on each."""
        if self.mesh:
            dist.all_reduce(values)
        return values

    def told(self, value: T) -> T:
        """The first process's value, which is JSON, on all of them."""
        if self.mesh is None:
            return value
        return cast(T, orjson.loads(self._parts(orjson.dumps(value if self.rank == 0 else None))[0]))

    def agreed(self, fine: bool) -> bool:
        """Whether all processes are fine; they wait for each other here."""
        if self.mesh is None:  # which asks the device nothing
            return fine
        return self.sum(torch.tensor(int(not fine), device=self.device)).item() == 0

    def divided(
        self, items: Sequence[T], work: Callable[[Sequence[T]], Iterator[tuple[int, Any]]]
    ) -> Iterator[tuple[int, Any]]:
        """What comes of items, with their places, on the first process; each works on every ``data``-th.

        ``work`` makes a JSON value of each item, in whatever order, and says its place. Tensor neighbours work on the
        same. The first process has those of a round when all have.
        """
        if self.mesh is None:
            yield from work(items)
            return
        made = work(items[self.rank // self.tensor :: self.data])
        for _ in range(0, len(items), ROUND * self.data):
            parts = self._told_by_each(list(islice(made, ROUND)))
            if self.rank == 0:
                for number, part in enumerate(parts):
                    yield from ((place * self.data + number, value) for place, value in part)

    def rest(
        self, through: Journal, items: Sequence[T], work: Callable[[Sequence[T]], Iterator[tuple[int, Any]]]
    ) -> Iterator[tuple[int, Any]]:
        """What comes of those items that are not through yet, with their numbers, as of ``divided``."""
        left = self.told(through.left(len(items)))
        yield from ((left[place], made) for place, made in self.divided([items[number] for number in left], work))

    def together(self, items: Sequence[T], work: Callable[[Sequence[T]], Iterator[tuple[int, Any]]]) -> list[Any]:
        """What comes of items, in order, on all processes, each of which works on those that it has in ``divided``."""
        first = self.rank // self.tensor
        mine = [(place * self.data + first, value) for place, value in work(items[first :: self.data])]
        found = dict(pair for part in (self._told_by_each(mine) if self.mesh else [mine]) for pair in part)
        return [found[place] for place in sorted(found)]

    def _told_by_each(self, mine: Any) -> list[Any]:
        """The JSON values of all, one of those that are tensor neighbours."""
        parts = self._parts(orjson.dumps([] if self.rank % self.tensor else mine))
        return [orjson.loads(part) for part in parts[:: self.tensor]]

    def _parts(self, mine: bytes) -> list[bytes]:
        """What each process has to tell the others."""
        sizes = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(mine)
        room = int(self.sum(sizes).max())
        told = torch.zeros(self.world, room, dtype=torch.uint8, device=self.device)
        told[self.rank, : len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        return [row[:size].numpy().tobytes() for row, size in zip(self.sum(told).cpu(), sizes.tolist(), strict=True)]

    def read_meters(self, run: Run) -> None:
        """Have the run know what all machines' meters say; what several processes have read of one counts once."""
        parts = [orjson.loads(part) for part in self._parts(orjson.dumps(run.effort.meter.joules()))]
        run.effort.told = None if None in parts else {name: joules for part in parts for name, joules in part.items()}

    @contextmanager
    def metered(self, run: Run) -> Iterator[None]:
        """A run's work: on these devices, and what their meters say is read when it is done, before its manifest."""
        run.effort.devices = self.devices
        yield
        self.read_meters(run)

    @contextmanager
    def filling(self, run: Run, fresh: bool) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """The directory of a run, once it is there for all processes, and the list of its outputs to fill."""
        with run.in_place(fresh) as (directory, outputs), self.metered(run):
            self.agreed(True)
            yield directory, outputs

    # -- what is done to a model

    def arrange(self, model: Transformer, checkpointing: str, compiled: bool) -> None:
        """Prepare a model on the meta device: cut it over tensor neighbours, checkpoint, compile, shard."""
        if self.tensor > 1:
            assert self.mesh is not None
            from llamactl.train import sharding

            sharding.cut(model, self.mesh[TENSOR])
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)  # "no in-place ops": there are none
        for block in model.layers:
            if checkpointing != "none":
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, **_context(checkpointing))
            if compiled:  # each layer by itself: they are alike, so one compilation serves all
                block.forward = torch.compile(block.forward, recompile_limit=COMPILATIONS)  # type: ignore[call-overload]
        if self.mesh:
            mesh = self.mesh["replicas", "shards"] if self.replicas > 1 else self.mesh["shards"]
            from llamactl.train import sharding

            sharding.shard(model, mesh)

    def accumulate(self, model: Transformer, last: bool) -> None:
        """Before a micro-batch: whether its gradients are to be exchanged, which the ``last`` one's are.

        Where whole gradients are large they are exchanged within a replica each time, and across replicas at the last.
        """
        if self.mesh:
            from llamactl.train import sharding

            small = 4 * model.config.parameters // self.tensor <= WHOLE_GRADIENTS
            sharding.exchange(model, last or not small, last)


def _context(checkpointing: str) -> dict[str, Any]:
    if checkpointing == "full":
        return {}

    def policy(_: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    return {"context_fn": partial(create_selective_checkpoint_contexts, policy)}


@contextmanager
def joined(device: torch.device, tensor: int = 1, replicas: int = 1, stops: bool = True) -> Iterator[Job]:
    """This process among those that torchrun has started; by itself where it has not.

    The numbers go together, as ``planning.misfit`` says. SIGTERM and SIGUSR1 are noted meanwhile in ``Job.caught``,
    where the job ``stops`` for them by itself. Raises Fault where another process leaves early.
    """
    world = ui.world_size()
    if world == 1:
        job = Job(None, device)
        with handled(job.noted) if stops else nullcontext():
            yield job
        return
    from torch.distributed.device_mesh import init_device_mesh

    _set_threads(device)
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # "suboptimal", at the export
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # of scores: none is changed in place
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", device_id=_bound(device))
    shape = (replicas, world // tensor // replicas, tensor)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicas", "shards", TENSOR))
    job = Job(mesh, device)
    try:
        with handled(job.noted) if stops else nullcontext():
            yield job
    except RuntimeError as error:  # the collective operations have no error of their own under gloo
        if isinstance(error, NotImplementedError) or not any(word in str(error).lower() for word in LOST):
            raise
        first = str(error).strip().splitlines()[0][:120]
        problem = f"another of its {world} processes has left, or cannot be reached ({first})"
        raise Fault("the job", problem, "its own line says why; run the same command again") from None
    dist.barrier()
    dist.destroy_process_group()


def _bound(device: torch.device) -> torch.device | None:
    if device.type != "cuda":
        return None
    torch.cuda.set_device(device)
    return device


def _set_threads(device: torch.device) -> None:
    """torchrun sets one thread a process: on CPUs, share the cores out instead."""
    if device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
