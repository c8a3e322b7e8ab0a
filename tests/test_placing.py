"""What PPO needs of a device, moment by moment, before it is begun."""

from dataclasses import replace

from llamactl.model.config import SIZES, Config
from llamactl.train import placing, planning
from llamactl.train.placing import Iteration
from llamactl.train.planning import Layout

GIB = 1 << 30


def of(name: str, **more: bool) -> Iteration:
    """Four models of a size, and a second reward model; 512 answers."""
    config = SIZES[name].config
    scored = replace(config, scored=True)
    return Iteration(config, scored, {"helpfulness": (scored, "bf16"), "safety": (scored, "bf16")}, 512, 2048, **more)


def layout(devices: int = 1, tensor: int = 1, checkpointing: str = "full") -> Layout:
    return Layout(64, 2048, 1, "bf16", checkpointing, tensor, 1, devices)


def numbers(config: Config) -> tuple[int, int]:
    """Parameters of the language model, and of a reward model of its shape."""
    return config.parameters, replace(config, scored=True).parameters


def test_on_one_device_all_is_whole() -> None:
    """Policy and critic: weights and two moments in fp32; the rest in bf16."""
    policy, scored = numbers(SIZES["7b"].config)
    token = 2 * 32 * 32 * 128 * 2  # keys and values of 32 layers and 32 heads of 128, in bf16
    assert placing.moments(of("7b"), layout())["sampling"] == {
        "policy": 12 * policy, "critic": 12 * scored, "reference": 2 * policy, "helpfulness": 2 * scored,
        "safety": 2 * scored, "the policy to sample from": 2 * policy, "keys and values": token * 2048 * 512,
    }  # fmt: skip


def test_what_is_offloaded_is_there_while_it_works() -> None:
    every = placing.moments(of("7b", offload=True), layout())
    policy, scored = numbers(SIZES["7b"].config)
    assert not {"reference", "helpfulness", "safety"} & every["sampling"].keys()
    assert every["judging"]["the largest reward model"] == 2 * scored
    assert every["looking"]["reference"] == 2 * policy
    assert not {"reference", "helpfulness", "safety"} & every["the policy's step"].keys()


def test_of_processes_each_has_a_share_and_with_tensor_parallelism_a_part_of_what_was_whole() -> None:
    """Embeddings, norms and heads are whole on all neighbours; 8 groups of 8 have 64 answers each."""
    config = SIZES["70b"].config
    policy, _ = numbers(config)
    sharded = placing.moments(of("70b"), layout(64))["sampling"]
    assert (sharded["policy"], sharded["reference"]) == (12 * policy / 64, 2 * policy / 64)
    assert sharded["the policy to sample from"] == 2 * policy
    cut = placing.moments(of("70b"), layout(64, tensor=8))["sampling"]
    layers = config.layers * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    norms, rows = (2 * config.layers + 1) * 8192, 32_000 * 8192
    assert cut["the policy to sample from"] == 2 * (layers // 8 + norms + 2 * rows)
    assert cut["safety"] == 2 * (layers // 8 + norms + rows + 8192)
    assert cut["policy"] == sharded["policy"]
    token = 2 * 80 * 8 * 128 * 2
    assert sharded["keys and values"] == token * 2048 * 8  # answers to its own prompts
    assert cut["keys and values"] == token / 8 * 2048 * 64


def test_70b_fits_on_80_gib_where_neighbours_share_it() -> None:
    """Whole, the policy alone is 128 GiB; what would fit is said, and does."""
    room = planning.ROOM * 80 * GIB
    assert placing.fullest(of("70b", offload=True), room, layout(512)) > room
    said = placing.change(of("70b"), layout(1, checkpointing="none"), room)
    assert said.startswith("--offload --activation-checkpointing selective --tensor-parallel 8 --devices 32: ")
    assert placing.fullest(of("70b", offload=True), room, layout(32, 8, "selective")) <= room


def test_frozen_layers_need_no_moments_and_are_shared_on_one_device() -> None:
    """In bf16 they are kept once, in bf16; over processes the reference has its own share of them."""
    config = SIZES["7b"].config
    policy, still = config.parameters, 32_000 * 4096 + 24 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    plan = of("7b")._replace(frozen=24)
    alone = placing.moments(plan, layout())["sampling"]
    assert alone["policy"] == 12 * (policy - still) + 2 * still
    assert alone["reference"] == alone["the policy to sample from"] == 2 * (policy - still)
    shared = placing.moments(plan, layout(8))["sampling"]
    assert (shared["policy"], shared["reference"]) == ((12 * policy - 8 * still) / 8, 2 * policy / 8)
    assert placing.flops(of("7b")) - placing.flops(plan) == 4 * still * 512 * 2048


def test_where_nothing_would_do_the_least_is_said() -> None:
    said = placing.change(of("70b"), layout(), 8 * GIB)
    part = 2 * planning.part(SIZES["70b"].config, 8) / GIB
    assert said.endswith(f"to sample, each has to hold {part:.1f} GiB of the policy at the least")


def test_the_plan_of_a_reward_model_that_cannot_be_cut() -> None:
    """The policy can, and is what the rest of the plan looks at."""
    odd = replace(SIZES["7b"].config, heads=2, kv_heads=2, scored=True)
    plan = of("7b")._replace(judges={"helpfulness": (odd, "bf16")})
    rows = dict(placing.rows(plan, layout(8, tensor=8), 200, "a100-80gb", None))
    assert rows["it does not fit"] == "8 does not divide the 2 heads"


def test_the_hosts_memory_is_offered_first() -> None:
    room = 210 * GIB
    assert placing.fullest(of("7b"), room, layout()) > room
    assert placing.change(of("7b"), layout(), room).startswith("--offload: ")


def test_keys_and_values_take_what_is_left_and_one_samples_at_the_least() -> None:
    every = placing.moments(of("7b"), layout())["sampling"]
    whole = every.pop("keys and values")
    held = sum(every.values())
    for room, found in ((held + 4 * whole, whole), (held + 12 * GIB, 3 * GIB), (held, whole / 512), (0, whole / 512)):
        assert placing.moments(of("7b"), layout(), room)["sampling"]["keys and values"] == found
