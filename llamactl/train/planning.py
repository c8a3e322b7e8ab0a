"""What a training will need, before it is begun: memory a device, hours, energy and carbon (paper, Table 2). No torch.

A training is laid out as ``train/parallel.py`` does it: the fp32 weights, gradients and moments of each replica are
sharded over its data-parallel ranks, blocks are gathered in the compute precision as they are used, and the root
(embeddings, last norm, head) stays gathered. One device keeps, for its backward pass, each matrix as it was cast to the
compute precision, but for a CPU with kernels, which computes with a part of it (``halves.py``). Tensor parallelism
divides weights and, with sequence parallelism, activations. Numbers are bytes of one device.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

from llamactl import carbon, hardware, ui
from llamactl.errors import Fault
from llamactl.hardware import GIB, Device
from llamactl.model.config import Config

ROOM = 0.9  # of a device's memory; the rest is the driver's, the runtime's, and lost between blocks
WHOLE_GRADIENTS = 8 * GIB  # while micro-batches add up, fp32 gradients are kept whole up to here, and shared out above
MOST_DEVICES = 2**14  # that are thought of where fewer do not do
HOLES = 0.2  # of what is allocated on a CPU that keeps freed blocks, lost between them: 0.03 to 0.5 were measured
SPARING = 0.1  # of it where they are given back, as with checkpointing: 0.03 to 0.2
CPU_KEPT, HEAD_ROWS = 1024, 512  # KEPT of model/attention.py, ROWS of model/functions.py
PER_NODE = 8  # devices with fast links to each other: tensor parallelism stays within
MFU = 0.40  # of a plan that is not told otherwise; the paper's are 0.35 to 0.43
WIDTHS = {"bf16": 2, "fp32": 4}  # bytes of a number
NOTHING = f"nothing that was tried, up to {MOST_DEVICES:,} devices: change --batch-size, --context or --size"
CHECKPOINTING = ("none", "selective", "full")  # in the order of what they cost


class Layout(NamedTuple):
    """How a training lies on its devices."""

    batch_size: int  # sequences a step
    context: int
    micro_batch: int = 1  # sequences at once
    precision: str = "bf16"
    checkpointing: str = "none"  # selective: outputs of matrix products and attention are kept; full: blocks' inputs
    tensor_parallel: int = 1
    replicas: int = 1  # copies of weights and moments, each sharded over ranks / replicas
    devices: int = 1
    on_cpu: bool = False

    @property
    def ranks(self) -> int:
        """Data-parallel ranks: each has sequences of its own."""
        return self.devices // self.tensor_parallel

    @property
    def sequences(self) -> int:
        """At once on a rank."""
        return min(self.micro_batch, math.ceil(self.batch_size / self.ranks))

    @property
    def micro_batches(self) -> int:
        """Of a rank in a step."""
        return math.ceil(self.batch_size / self.ranks / self.sequences)


class Memory(NamedTuple):
    """Bytes of one device at the fullest moment of a step."""

    weights: float
    optimizer: float
    gradients: float
    compute: float  # weights in the compute precision
    activations: float
    logits: float
    working: float  # what comes and goes: the gradient of a matrix, a block on its way to other ranks
    lost: float = 0.0  # between the blocks of a CPU's heap

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class Saved(NamedTuple):
    """Something that a block saves for its backward pass: bytes a token, by how much is checkpointed."""

    what: str
    none: int
    selective: int
    full: int
    gathered: bool = False  # whole on each tensor neighbour, as an input of the matrices that are cut


def saved(config: Config, layout: Layout) -> list[Saved]:
    """What ``Block.forward`` saves, in its order; tests/test_planning.py counts it."""
    width = WIDTHS[layout.precision]
    d, f, kv = width * config.dim, width * config.ffn, width * config.kv_heads * config.head_dim
    cut = layout.tensor_parallel > 1
    blocks = min(8, math.ceil(layout.context / 64))  # of attention without kernels, which keep the triangle of p
    triangle = width * config.heads * layout.context * (blocks + 1) // (2 * blocks) * (layout.context <= CPU_KEPT)
    beside = 4 * config.heads
    if layout.on_cpu:
        from llamactl.model import flash  # torch takes a second, and plans for other machines need none

        beside = 8 * config.heads if flash.serves(config.head_dim) else triangle
    return [
        Saved("the block's input", d, d, d),
        Saved("fp32 and scaled copies in the norms, if they are cut", 8 * config.dim if cut else 0, 0, 0),
        Saved("attention_norm's output", d, 0, 0, gathered=True),
        Saved("queries and keys, projected", 0, d + kv, 0),
        Saved("queries and keys, rotated", d + kv, 0, 0),
        Saved("values", kv, kv, 0),
        Saved("attention's output", d, d, 0),
        Saved("its log-sum-exp, or what is like it, or probabilities", beside, beside, 0),
        Saved("wo's output", 0, d, 0),
        Saved("the sum of that and the input", d, 0, 0),
        Saved("ffn_norm's output", d, 0, 0, gathered=True),
        Saved("1 / rms of both norms, fp32", 8, 0, 0),
        Saved("w1's and w3's outputs", 2 * f, 2 * f, 0),
        Saved("their SwiGLU", f, 0, 0),
        Saved("w2's output", 0, d, 0),
    ]


def stem(config: Config, layers: int) -> int:
    """Parameters of the embeddings and so many layers; none where there are no layers."""
    table = config.vocab * config.dim
    each = (config.parameters - table - config.head - config.dim) // config.layers
    return table + layers * each if layers else 0


def _by_kernels(layout: Layout) -> tuple[bool, bool]:
    """Whether a CPU's kernels look at the logits, and whether weights are in two parts (``train/halves.py``)."""
    if not layout.on_cpu:
        return False, False
    from llamactl.model import functions, fused  # torch takes a second, and plans for other machines need none

    alone = layout.devices == 1 and layout.precision == "bf16" and functions.BF16_PRODUCTS
    return fused.serves() and layout.tensor_parallel == 1, fused.serves() and alone


def memory(config: Config, layout: Layout, frozen: int = 0) -> Memory:
    """Of the fullest moment of a step, in which so many layers, and with them the embeddings, do not learn."""
    width, tensor, shards = WIDTHS[layout.precision], layout.tensor_parallel, layout.ranks // layout.replicas
    tokens = layout.sequences * layout.context
    parameters, table, head = (n / tensor for n in (config.parameters, config.vocab * config.dim, config.head))
    still = stem(config, frozen) / tensor
    learning, layers = parameters - still, config.layers - frozen
    block = (parameters - table - head) / config.layers
    kept = again = 0.0  # of a block: throughout, and once more while its backward pass computes again
    for row in saved(config, layout):
        here, held = tokens if row.gathered else tokens / tensor, getattr(row, layout.checkpointing)
        kept += here * held
        again += here * max(0, row.none - held)
    fused, parted = _by_kernels(layout)
    narrow = width if width < 4 else 0  # of copies that are only made where weights are not computed with as they are
    adding_up = layout.micro_batches > 1
    of_each = 4 if adding_up or not parted else narrow
    gradients = of_each * learning / (1 if adding_up and 4 * parameters <= WHOLE_GRADIENTS else shards)
    if layout.devices > 1:  # FSDP2: two blocks at once, since the next is gathered ahead
        compute = width * (2 * block + table + head)
        at_start, at_end = (
            (width + 4) * block,
            (width + 4) * (table + head),
        )  # gradients, and their fp32 copy that is sent
    else:
        casts = layers if layout.checkpointing == "none" else 1
        compute = 0 if parted else narrow * (casts * block + head)
        matrix = max(0 if frozen else table, config.ffn * config.dim)  # its gradient, before it is added to the others
        at_start = at_end = matrix * (4 + narrow if adding_up else 0 if parted else narrow)
    weights = 4 * parameters / shards if layout.devices > 1 else 4 * learning + width * still
    state = Memory(weights, 8 * learning / shards, gradients, compute, 0.0, 0.0, 0.0)
    inputs, looked_at = layers * kept, min(HEAD_ROWS, tokens) * (8 + narrow)  # of logits at once, and copies of them
    passing = tokens / tensor * width * (2 * config.ffn + config.dim)  # gradients of activations, at SwiGLU
    moments = (
        state._replace(  # the head: the gradient of its logits is kept, that of its weights adds up in fp32
            gradients=gradients if adding_up else 0.0,
            activations=inputs + tokens * width * config.dim * (1 + 1 / tensor),  # of the last norm
            logits=0.0 if config.scored else tokens * width * config.vocab / tensor,
            working=max((of_each + narrow) * head, 0 if fused else looked_at * head / config.dim, at_start),
        ),
        state._replace(  # the last block's backward pass, which computes again what was not kept
            gradients=gradients if adding_up else 0.0,
            activations=inputs + again,
            working=max(passing, at_start),
        ),
        state._replace(  # that of the first: all gradients are there
            activations=kept + again,
            working=max(passing, at_end),
        ),
    )
    fullest = max(moments, key=lambda moment: moment.total)
    holes = (HOLES if layout.checkpointing == "none" else SPARING) if layout.on_cpu else 0.0
    return fullest._replace(lost=holes * fullest.total)


def undivided(
    shapes: Iterable[Config], devices: int, tensor: int, beside: Mapping[str, int] = MappingProxyType({})
) -> Fault | None:
    """What keeps models from being cut over so many tensor neighbours; None where nothing does."""
    for shape in shapes:
        cut = {"heads": shape.heads, "key/value heads": shape.kv_heads, "feed-forward": shape.ffn}
        for what, n in {"processes": devices, **cut, **beside}.items():
            if n % tensor:
                return Fault("--tensor-parallel", f"{tensor} does not divide the {n:,} {what}", "choose a divisor")
    return None


def apart(shapes: Iterable[Config], devices: int, tensor: int) -> Fault | None:
    """What keeps all of so many processes from being tensor neighbours, where there is one thing to do at a time."""
    if devices > tensor:
        problem = f"{tensor}, of {devices} processes: the others would do the same again"
        return Fault("--tensor-parallel", problem, f"--tensor-parallel {devices}, or one process")
    return undivided(shapes, devices, tensor)


def part(config: Config, tensor: int) -> int:
    """Parameters of a model for inference that each of so many tensor neighbours has: layers are cut, but for norms."""
    whole = config.vocab * config.dim + config.head + (2 * config.layers + 1) * config.dim
    return whole + (config.parameters - whole) // tensor


def misfit(config: Config, layout: Layout) -> Fault | None:
    """What keeps the layout from being: numbers that do not go together; None where nothing does."""
    tensor, ranks = layout.tensor_parallel, layout.devices // layout.tensor_parallel
    if fault := undivided([config], layout.devices, tensor, {"ids": config.vocab, "tokens": layout.context}):
        return fault
    if ranks % layout.replicas:
        problem = f"{layout.replicas:,} do not divide the {ranks:,} data-parallel processes"
        return Fault("--replicas", problem, "choose a divisor")
    if layout.batch_size % ranks:
        problem = f"{layout.batch_size:,} sequences cannot be shared out evenly to {ranks:,} data-parallel processes"
        return Fault("--batch-size", problem, f"give a multiple of {ranks:,}, or another number of processes")
    return None


def change(config: Config, layout: Layout, room: float, need: Callable[[Layout], float] | None = None) -> Layout | None:
    """The layout nearest to this one that can be and fits into ``room`` bytes; None where none does.

    What it needs is ``need`` of it, or the memory of a training of ``config`` alone.

    Tried in the order of what they cost: fewer sequences at once, fewer replicas, more checkpointing, tensor
    parallelism within a node, more devices; where these cannot share out the batch evenly, the nearest number that can.
    """
    doubled = [1 << n for n in range(32)]
    sequences = [layout.sequences >> n for n in range(layout.sequences.bit_length())]
    replicas = sorted({layout.replicas, 1}, reverse=True)
    deeper = CHECKPOINTING[CHECKPOINTING.index(layout.checkpointing) :]
    tensors = [layout.tensor_parallel * n for n in doubled if n == 1 or layout.tensor_parallel * n <= PER_NODE]
    devices = [layout.devices * n for n in doubled if n == 1 or layout.devices * n <= MOST_DEVICES]
    if layout.batch_size % layout.ranks:
        ranks = [n for n in range(1, layout.batch_size + 1) if layout.batch_size % n == 0]
        even = {n * tensor for n, tensor in product(ranks, tensors) if n * tensor <= MOST_DEVICES}
        devices = [layout.devices, *sorted(even, key=lambda count: (abs(count - layout.devices), count))]
    for count, tensor, level, copies, size in product(devices, tensors, deeper, replicas, sequences):
        new = layout._replace(
            devices=count, tensor_parallel=tensor, checkpointing=level, replicas=copies, micro_batch=size
        )
        if misfit(config, new) is None and (need(new) if need else memory(config, new).total) <= room:
            return new
    return None


def flags(old: Layout, new: Layout) -> str:
    """What of the command line makes the one of the other."""
    names = {
        "micro_batch": "--micro-batch", "replicas": "--replicas", "checkpointing": "--activation-checkpointing",
        "tensor_parallel": "--tensor-parallel", "devices": "--devices",
    }  # fmt: skip
    return " ".join(
        f"{flag} {getattr(new, name)}" for name, flag in names.items() if getattr(old, name) != getattr(new, name)
    )


class Forecast(NamedTuple):
    """What a training takes."""

    tokens_per_second: float  # of one device
    device_hours: float
    kwh: float
    tonnes: float  # CO2eq


def forecast(config: Config, tokens: float, device: Device, mfu: float) -> Forecast:
    """What training on so many tokens takes on such devices at this share of their peak (model FLOPs utilisation)."""
    rate = mfu * device.flops / config.flops_per_token
    hours = tokens / rate / 3600
    kwh = carbon.energy(hours, device.watts)
    return Forecast(rate, hours, kwh, carbon.tonnes(kwh))


def target(name: str | None) -> tuple[str, Device, bool]:
    """The device to plan for, by the table, or what is known of this machine's (0: unknown); whether it is a CPU."""
    if name and not name.startswith(("cpu", "cuda")):
        return name.lower(), hardware.named(name), False
    from llamactl.model import device as devices  # imports torch, to ask it

    here = devices.chosen(name)
    title = devices.title(here)
    row = hardware.DEVICES.get(hardware.found(title), Device("", 0, 0.0, 0))
    return title, row._replace(memory=devices.memory(here)), here.type == "cpu"


def asked(
    config: Config, layout: Layout, tokens: float, device: str | None, mfu: float | None, dry_run: bool
) -> list[tuple[str, str]]:
    """With ``--dry-run`` all of the plan in words, for the device that is named; else Fault for what cannot be."""
    if dry_run:
        name, row, on_cpu = target(device)
        return rows(config, layout._replace(on_cpu=on_cpu), tokens, name, row, mfu or MFU)
    if fault := misfit(config, layout):
        raise fault
    return []


def refuse(device: str | None, devices: int | None, mfu: float | None) -> None:
    """Raise Fault for what says how to plan, where it is to be trained."""
    if device and device.lower() in hardware.DEVICES:
        raise Fault("--device", f"{device} is a device to plan for", "add --dry-run, or give cpu, cuda, cuda:1")
    for flag, value in (("--devices", devices), ("--mfu", mfu)):
        if value is not None:
            raise Fault(flag, "is for a plan", "add --dry-run, or leave it out")


def number(value: float) -> str:
    """Whole where it is large, three digits where it is not."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(
    config: Config, layout: Layout, tokens: float, title: str, device: Device, mfu: float
) -> list[tuple[str, str]]:
    """All of it in words: the layout, its memory and whether it fits, and what training on so many tokens takes."""
    fault, room = misfit(config, layout), ROOM * device.memory
    if fault and fault.subject != "--batch-size":
        raise fault
    need, shards = memory(config, layout), layout.ranks // layout.replicas
    mesh = f"replicas {layout.replicas:,} x shards {shards:,} x tensor parallel {layout.tensor_parallel}"
    said = [
        ("FLOPs a token", f"{ui.count(config.flops_per_token)}: 6 a parameter"),
        ("devices", f"{layout.devices:,} x {title}: {mesh}"),
        ("micro-batches", f"{layout.micro_batches:,} a step, of {layout.sequences:,} x {layout.context:,} tokens"),
        ("memory a device", f"{ui.size(need.total)} at the fullest moment, checkpointing {layout.checkpointing}"),
        *((f"  {name}", ui.size(size)) for name, size in need._asdict().items() if size),
    ]
    verdict = f"in {ui.size(room)}, which is {ROOM:.0%} of {ui.size(device.memory)}"
    if fault is None and need.total <= room:
        said.append(("it fits", verdict))
    else:
        new = change(config, layout, room)
        way = f"{flags(layout, new)}: {ui.size(memory(config, new).total)}" if new else NOTHING
        said += [("it does not fit", fault.problem if fault else verdict), ("what would", way)]
    if not device.flops or layout.precision != "bf16":
        return [*said, ("hours", f"unknown: the table has no {layout.precision} speed of {title}; see --device")]
    takes = forecast(config, tokens, device, mfu)
    hours = takes.device_hours / layout.devices
    speed = f"MFU {mfu:.2f} of {device.flops / 1e12:,.0f} TFLOP/s, {takes.tokens_per_second:,.0f} tokens/s a device"
    return [
        *said,
        ("hours", f"{number(hours)} ({number(hours / 24)} days) at {speed}"),
        ("device-hours", number(takes.device_hours)),
        ("energy", f"{number(takes.kwh)} kWh: {device.watts} W a device, PUE {carbon.PUE}"),
        ("carbon", f"{takes.tonnes:,.{2 if takes.tonnes >= 1 else 5}f} t CO2eq at {carbon.KG_PER_KWH} kg/kWh"),
    ]
