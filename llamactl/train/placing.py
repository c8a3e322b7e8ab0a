"""What PPO will need, before it is begun: four models on one device, moment by moment of an iteration. No torch.

Policy and critic are trained as ``planning`` has it. The reference is sharded with them, in the compute precision. For
sampling each device gathers the policy, and frees it; of that, and of each reward model, it has the whole, or with
tensor parallelism a part. Reference and reward models may lie in the host's memory while they do not work (``offload``;
a sharded reference stays). Numbers are bytes of one device.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from llamactl import carbon, ui
from llamactl.model.config import Config
from llamactl.train import planning
from llamactl.train.planning import WIDTHS, Layout

FREE = 4  # the part of what is free that ppo has keys and values take
AT_ONCE = 512  # samples: PLACES of model/generate.py
LOOKED_AT = 8192  # tokens that a reward model computes at once: BATCH_TOKENS of model/trees.py


class Iteration(NamedTuple):
    """The models of an iteration, how many answers it samples, and how long those may be."""

    policy: Config
    critic: Config
    judges: Mapping[str, tuple[Config, str]]  # by name: shape, and stored precision
    answers: int
    tokens: int  # of the longest prompt and the longest answer
    offload: bool = False
    frozen: int = 0  # layers of the policy that do not learn, which the reference shares on one device


def moments(of: Iteration, layout: Layout, room: float = math.inf) -> dict[str, dict[str, float]]:
    """What lies on a device, of so much room, at each moment of an iteration, by name.

    Keys and values are those of all samples that are drawn at once, or as many as find room: as in the stage, a quarter
    of what is free, or one sample's.
    """
    width, share = WIDTHS[layout.precision], layout.ranks // layout.replicas * layout.tensor_parallel
    alone, still = layout.devices == 1, planning.stem(of.policy, of.frozen)
    away = of.offload and alone
    state = {
        "policy": (12 * (of.policy.parameters - still) + (width if alone else 4) * still) / share,
        "critic": 12 * of.critic.parameters / share,
    }
    reference = width * (of.policy.parameters - still * alone) / share
    tensor = layout.tensor_parallel
    judges = {name: float(WIDTHS[stored] * planning.part(one, tensor)) for name, (one, stored) in of.judges.items()}
    resting = state | ({} if away else {"reference": reference}) | ({} if of.offload else judges)

    def learning(name: str, one: Config) -> dict[str, float]:
        others = {other: size for other, size in resting.items() if other != name}
        frozen = of.frozen if name == "policy" else 0
        return {**others, name: planning.memory(one, layout, frozen).total}

    drawn = WIDTHS["fp32"] if layout.on_cpu else width  # a CPU draws by fp32 copies
    shared = alone and drawn == WIDTHS["fp32"] == width
    gathered = 0.0 if shared else float(drawn * (planning.part(of.policy, tensor) - still * alone))
    token = 2 * of.policy.layers * of.policy.kv_heads * of.policy.head_dim * drawn / tensor
    largest, _ = of.judges[max(judges, key=judges.__getitem__)]
    working = {"the largest reward model": max(judges.values())} if of.offload else judges  # one after the other
    judging = LOOKED_AT * (2 * largest.ffn + 4 * largest.dim) * WIDTHS["fp32"]
    rows = layout.sequences * layout.context
    looking = (
        rows * (2 * of.policy.ffn + 4 * of.policy.dim) * width + min(planning.HEAD_ROWS, rows) * of.policy.vocab * 12
    )
    samples = min(AT_ONCE, -(-of.answers * tensor // layout.devices))
    free = (room - sum(resting.values()) - gathered) / FREE
    return {
        "sampling": {
            **resting,
            "the policy to sample from": gathered,
            "keys and values": min(token * of.tokens * samples, max(token * of.tokens, free)),
        },
        "judging": {**resting, **working, "activations": float(judging)},
        "looking": {**resting, "reference": reference, "activations": float(looking)},
        "the policy's step": learning("policy", of.policy),
        "the critic's step": learning("critic", of.critic),
    }


def fullest(of: Iteration, room: float, layout: Layout) -> float:
    """Bytes at the fullest moment."""
    return max(sum(held.values()) for held in moments(of, layout, room).values())


def flops(of: Iteration) -> float:
    """Of an iteration but for its sampling, at the longest: 6 a parameter and token learned, 2 looked at."""
    looked = 2 * (2 * of.policy.parameters + of.critic.parameters + sum(c.parameters for c, _ in of.judges.values()))
    learned = 6 * (of.policy.parameters + of.critic.parameters) - 4 * planning.stem(of.policy, of.frozen)
    return (learned + looked) * of.answers * of.tokens


def rows(
    of: Iteration, layout: Layout, iterations: int, device: str | None, mfu: float | None
) -> list[tuple[str, str]]:
    """All of it in words, for the device that is named: what lies there and when, whether it fits, what it takes."""
    title, row, on_cpu = planning.target(device)
    layout = layout._replace(on_cpu=on_cpu)
    room = planning.ROOM * row.memory
    every = moments(of, layout, room)
    name, held = max(every.items(), key=lambda one: sum(one[1].values()))
    need = sum(held.values())
    said = [
        ("devices", f"{layout.devices:,} x {title}"),
        *((f"memory, {moment}", ui.size(sum(parts.values()))) for moment, parts in every.items()),
        (
            "the fullest moment",
            f"{name}: {ui.size(need)} of {ui.size(room)}, which is {planning.ROOM:.0%} of the device",
        ),
        *((f"  {part}", ui.size(size)) for part, size in held.items() if size),
    ]
    shapes = [shape for shape, _ in of.judges.values()]
    fault = planning.misfit(of.policy, layout) or planning.undivided(shapes, layout.devices, layout.tensor_parallel)
    if fault or need > room:
        said.append(("it does not fit", fault.problem if fault else "see above"))
        said.append(("what would", change(of, layout, room)))
    else:
        said.append(("it fits", f"with {ui.size(room - need)} to spare"))
    if not row.flops or layout.precision != "bf16":
        return [*said, ("hours", f"unknown: the table has no {layout.precision} speed of {title}; see --device")]
    mfu = mfu or planning.MFU
    hours = iterations * flops(of) / (mfu * row.flops) / 3600
    kwh = carbon.energy(hours, row.watts)
    return [
        *said,
        ("hours, at most", f"{planning.number(hours / layout.devices)} at MFU {mfu:.2f}, and those of sampling"),
        ("energy, carbon", f"{planning.number(kwh)} kWh, {carbon.tonnes(kwh):,.5f} t CO2eq, and those of sampling"),
    ]


def change(of: Iteration, layout: Layout, room: float) -> str:
    """The smallest change that fits, as flags; the host's memory comes first."""
    away = of._replace(offload=True)
    here, there = (planning.change(of.policy, layout, room, partial(fullest, one, room)) for one in (of, away))
    if there is None:
        smallest = WIDTHS[layout.precision] * planning.part(of.policy, planning.PER_NODE)
        return f"{planning.NOTHING}; to sample, each has to hold {ui.size(smallest)} of the policy at the least"
    if here and here.devices == there.devices:
        return f"{planning.flags(layout, here)}: {ui.size(fullest(of, room, here))}"
    flags = planning.flags(layout, there)
    return f"--offload{' ' * bool(flags)}{flags}: {ui.size(fullest(away, room, there))}"
