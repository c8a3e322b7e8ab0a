"""Plans: Table 2 of the paper, memory against what is really used, and the smallest change that fits."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import profile

from llamactl import hardware
from llamactl.errors import Fault
from llamactl.model import attention, functions
from llamactl.model.config import Config, size
from llamactl.model.device import PRECISIONS
from llamactl.model.functions import BF16_PRODUCTS
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama, Transformer
from llamactl.model.trees import Forest, Tree
from llamactl.train import optim, planning
from llamactl.train.parallel import Job
from llamactl.train.planning import Layout
from llamactl.train.schedule import Cosine
from llamactl.train.step import next_token_loss, take

CPU = torch.device("cpu")
A100 = 72 * 2**30  # what a plan may use of one

# GPU-hours, watts and tonnes by the paper, and the MFU that the hours come to
TABLE_2 = {
    "7b": (184_320, "a100-80gb", 31.22, 0.39),
    "13b": (368_640, "a100-80gb", 62.44, 0.38),
    "34b": (1_038_336, "a100-80gb-350w", 153.90, 0.35),
    "70b": (1_720_320, "a100-80gb", 291.42, 0.43),
}
MIXED = Config(dim=128, layers=4, heads=8, kv_heads=2, ffn=352, vocab=600, context=64)


def layout(name: str, **how: Any) -> Layout:
    row = size(name)
    return Layout(**{"batch_size": row.batch, "context": row.config.context, **how})


# -- hours and carbon


@pytest.mark.parametrize("name", TABLE_2)
def test_hours_of_the_paper(name: str) -> None:
    hours, device, _, mfu = TABLE_2[name]
    takes = planning.forecast(size(name).config, 2e12, hardware.named(device), mfu)
    assert takes.device_hours == pytest.approx(hours, rel=0.01)


@pytest.mark.parametrize("name", TABLE_2)
def test_carbon_of_the_paper(name: str) -> None:
    """At the hours that the paper has; tests/test_carbon.py has its whole table."""
    hours, device, tonnes, mfu = TABLE_2[name]
    takes = planning.forecast(size(name).config, 2e12, hardware.named(device), mfu)
    assert takes.tonnes * hours / takes.device_hours == pytest.approx(tonnes, abs=0.01)


# -- memory, against what is used


def used(config: Config, how: Layout, device: torch.device, frozen: int = 0) -> Iterator[None]:
    """Steps of a training, one at each turn; the gradients of the last are dropped."""
    job = Job(None, device)
    arrange = partial(job.arrange, checkpointing=how.checkpointing, compiled=False)
    model = Llama.create(config, PRECISIONS[how.precision], device, 0, arrange)
    model.freeze(frozen)
    optimizer = optim.AdamW(model, Cosine(1e-4, 0, 10))
    ids = torch.randint(config.vocab, (how.batch_size, how.context + 1)).to(device)
    while True:
        take(model, optimizer, next_token_loss, ids, how.batch_size * how.context, how.micro_batch, job)
        optimizer.zero_grad()
        yield


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_what_the_backward_pass_keeps(precision: str, kv_heads: int) -> None:
    """All that autograd saves, by distinct storages: where this fails, ``planning.saved`` has to follow the model."""
    config = replace(MIXED, kv_heads=kv_heads)
    model = Llama.create(config, PRECISIONS[precision], CPU, 0)
    optim.AdamW(model, Cosine(1e-4, 0, 10))  # which may have its weights in two parts
    ids = torch.randint(config.vocab, (8, config.context + 1))
    found = kept_for_backward(model, lambda: next_token_loss(model, ids))
    need = planning.memory(config, Layout(8, config.context, 8, precision, on_cpu=True))
    casts = need.compute if BF16_PRODUCTS else 0  # a CPU without such instructions computes with the weights themselves
    assert found == pytest.approx(need.activations + need.logits + casts, rel=0.02)


def kept_for_backward(model: Transformer, loss_of: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd saves, by distinct storages; the model's own weights are none of them."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        assert loss_of().isfinite().all()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_what_the_backward_pass_of_a_reward_model_keeps() -> None:
    """As a language model's of as many tokens, without logits, which were 6 %."""
    config = replace(MIXED, scored=True)
    model = RewardModel.create(config, torch.float32, CPU, 0)
    ids = torch.randint(1, config.vocab, (8, config.context)).tolist()
    found = kept_for_backward(model, lambda: model.scores(Forest.of([Tree.of([row]) for row in ids], CPU)))
    need = planning.memory(config, Layout(8, config.context, 8, "fp32", on_cpu=True))
    assert need.logits == 0
    last = 4 * 8 * config.context * config.dim  # norm, whose input is gone when memory is at its fullest
    assert found == pytest.approx(need.activations + last, rel=0.01)


@pytest.mark.parametrize("name", ["tiny", "7b", "70b"])
def test_a_reward_model_is_planned_without_a_vocabulary_at_its_head(name: str) -> None:
    config = size(name).config
    scored = replace(config, scored=True)
    for shape, kind in ((config, Llama), (scored, RewardModel)):
        with torch.device("meta"):
            assert shape.parameters == sum(parameter.numel() for parameter in kind(shape).parameters())
    assert config.parameters - scored.parameters == (config.vocab - 1) * config.dim
    how = layout(name, devices=8)
    need, language = planning.memory(scored, how), planning.memory(config, how)
    assert need.weights + need.optimizer == pytest.approx(12 * scored.parameters / 8)
    assert need.total < language.total


@pytest.mark.parametrize("micro_batch", [4, 8])
@pytest.mark.parametrize("checkpointing", planning.CHECKPOINTING)
@pytest.mark.parametrize("frozen", [0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_what_tensors_take(checkpointing: str, micro_batch: int, frozen: int, precision: str) -> None:
    """At the fullest moment of a step, by torch's own count of what is allocated and freed."""
    if precision == "bf16" and not BF16_PRODUCTS:
        pytest.skip("a CPU without instructions for bf16, which computes by fp32 copies")
    how = Layout(8, MIXED.context, micro_batch, precision, checkpointing, on_cpu=True)
    steps = used(MIXED, how, CPU, frozen)
    next(steps)
    with profile(profile_memory=True) as profiled:
        next(steps)
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    need, still = planning.memory(MIXED, how, frozen), planning.stem(MIXED, frozen)
    close = 0.08 if frozen else 0.05  # of less, what the plan leaves out is a larger share
    own = 12 * MIXED.parameters - (12 - planning.WIDTHS[precision]) * still
    assert own + most == pytest.approx(need.total - need.lost, rel=close)


RSS = """
import json, sys, torch
sys.path.insert(0, sys.argv[2])
from test_planning import *
from llamactl.model import flash
from llamactl.model.device import keep_freed_memory, peak_memory
config, how = Config(**json.loads(sys.argv[1])[0]), Layout(**json.loads(sys.argv[1])[1])
keep_freed_memory(how.checkpointing)
left = torch.randn(1024, 1024, requires_grad=True)
(left @ left).softmax(-1).sum().backward()  # the libraries' own buffers
flash.prepare(CPU, config.head_dim)
next(used(MIXED, Layout(2, 64), CPU))
before = peak_memory(CPU)
steps = used(config, how, CPU)
next(steps), next(steps)
print(before, peak_memory(CPU))
"""


@pytest.mark.parametrize(("precision", "checkpointing"), [*product(("fp32", "bf16"), planning.CHECKPOINTING)])
@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ({"dim": 1024, "layers": 3, "heads": 8, "kv_heads": 8, "ffn": 2816, "vocab": 2000}, 2),
        ({"dim": 256, "layers": 12, "heads": 8, "kv_heads": 4, "ffn": 704, "vocab": 2000}, 32),
    ],
    ids=["weights", "activations"],
)
def test_memory_is_what_a_process_takes(shape: dict[str, int], batch: int, precision: str, checkpointing: str) -> None:
    """Resident memory: the plan, and what Python and torch take before there is a model."""
    if precision == "bf16" and not BF16_PRODUCTS:
        pytest.skip("a CPU without instructions for bf16, which computes by fp32 copies")
    config, how = {**shape, "context": 64}, Layout(batch, 64, batch // 2, precision, checkpointing, on_cpu=True)
    script = [sys.executable, "-c", RSS, json.dumps([config, how._asdict()]), str(Path(__file__).parent)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    before, peak = map(int, done.stdout.split())
    planned = planning.memory(Config(**config), how).total
    assert planned > before / 2  # it says something of the model
    assert before + planned == pytest.approx(peak, rel=0.15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", planning.CHECKPOINTING)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_memory_is_what_a_gpu_takes(precision: str, checkpointing: str) -> None:
    config = Config(dim=1024, layers=12, heads=16, kv_heads=8, ffn=2816, vocab=32000, context=1024)
    how = Layout(16, 1024, 8, precision, checkpointing)
    torch.cuda.empty_cache()
    steps = used(config, how, torch.device("cuda"))
    next(steps)
    torch.cuda.reset_peak_memory_stats()
    next(steps)
    assert torch.cuda.max_memory_allocated() == pytest.approx(planning.memory(config, how).total, rel=0.1)


def test_what_a_plan_knows_of_the_model_is_so() -> None:
    """It looks at numbers of its own: a plan for other machines need not wait for torch."""
    assert (planning.CPU_KEPT, planning.HEAD_ROWS) == (attention.KEPT, functions.ROWS)


def test_state_is_16_bytes_a_parameter_over_the_shards() -> None:
    config = size("7b").config
    for how, shards in ((layout("7b"), 1), (layout("7b", devices=64), 64), (layout("7b", devices=64, replicas=8), 8)):
        need = planning.memory(config, how)
        assert need.weights + need.gradients + need.optimizer == pytest.approx(16 * config.parameters / shards)


def test_small_gradients_stay_whole_between_micro_batches() -> None:
    config = size("1b").config
    assert planning.memory(config, layout("1b", devices=8)).gradients == 4 * config.parameters
    assert planning.memory(config, layout("1b", devices=8, micro_batch=128)).gradients < config.parameters


def test_checkpointing_and_tensor_parallelism_save_memory() -> None:
    config = size("70b").config
    need = [
        planning.memory(config, layout("70b", devices=512, checkpointing=how)) for how in planning.CHECKPOINTING
    ] + [planning.memory(config, layout("70b", devices=512, tensor_parallel=8, checkpointing="full"))]
    assert [one.total for one in need] == sorted((one.total for one in need), reverse=True)
    assert len({one.activations for one in need}) == 4


# -- what would fit


@pytest.mark.parametrize(
    ("name", "how", "change"),
    [
        ("7b", {"devices": 8, "micro_batch": 8}, "--micro-batch 2"),
        ("34b", {"devices": 16}, "--activation-checkpointing selective"),
        ("7b", {"devices": 2048}, "--tensor-parallel 2"),  # 1,024 sequences do not go round
        ("7b", {"devices": 1}, "--devices 2"),
        ("70b", {"devices": 64, "replicas": 8}, "--replicas 1 --activation-checkpointing full"),
        ("70b", {"devices": 1}, "--activation-checkpointing full --tensor-parallel 2 --devices 16"),
        ("70b", {"devices": 2000}, "--tensor-parallel 2 --devices 2048"),  # nor to any part of 2,000
        ("7b", {"devices": 100}, "--devices 128"),
    ],
)
def test_the_smallest_change_that_fits(name: str, how: dict[str, int], change: str) -> None:
    config, asked = size(name).config, layout(name, **how)
    found = planning.change(config, asked, A100)
    assert found is not None
    assert planning.flags(asked, found) == change
    assert planning.memory(config, found).total <= A100
    assert planning.misfit(config, found) is None


def test_what_fits_is_left_as_it_is() -> None:
    asked = layout("7b", devices=64)
    assert planning.change(size("7b").config, asked, A100) == asked


def test_where_nothing_fits_it_says_so() -> None:
    asked = Layout(batch_size=1, context=4096)  # one sequence, so one rank
    assert planning.change(size("70b").config, asked, 2**30) is None
    said = dict(planning.rows(size("70b").config, asked, 1e9, "t4", hardware.named("t4"), 0.4))
    assert said["what would"].startswith("nothing")


@pytest.mark.parametrize(
    ("how", "flag"), [({"tensor_parallel": 3}, "--tensor-parallel"), ({"devices": 8, "replicas": 3}, "--replicas")]
)
def test_a_layout_that_cannot_be_is_refused(how: dict[str, int], flag: str) -> None:
    with pytest.raises(Fault, match=flag):
        planning.rows(size("7b").config, layout("7b", **how), 1e9, "t4", hardware.named("t4"), 0.4)


SMALL = Config(dim=40, layers=2, heads=4, kv_heads=2, ffn=6, vocab=62, context=24)


@pytest.mark.parametrize(
    ("world", "batch_size", "tensor", "replicas", "said"),
    [
        (2, 5, 1, 1, "--batch-size: 5 sequences cannot be shared out evenly to 2 data-parallel processes"),
        (4, 6, 1, 1, "--batch-size: 6 sequences cannot be shared out evenly to 4 data-parallel processes"),
        (8, 6, 2, 1, "--batch-size: 6 sequences cannot be shared out evenly to 4 data-parallel processes"),
        (4, 8, 3, 1, "--tensor-parallel: 3 does not divide the 4 processes"),
        (1, 8, 2, 1, "--tensor-parallel: 2 does not divide the 1 processes"),
        (4, 8, 1, 3, "--replicas: 3 do not divide the 4 data-parallel processes"),
        (4, 8, 2, 4, "--replicas: 4 do not divide the 2 data-parallel processes"),
        (1, 8, 1, 2, "--replicas: 2 do not divide the 1 data-parallel processes"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(
    world: int, batch_size: int, tensor: int, replicas: int, said: str
) -> None:
    small = Layout(batch_size, SMALL.context, tensor_parallel=tensor, replicas=replicas, devices=world)
    fault = planning.misfit(SMALL, small)
    assert str(fault).startswith(said)
    assert fault is not None
    assert fault.remedy


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"heads": 5, "kv_heads": 5}, "5 heads"),
        ({"kv_heads": 1}, "1 key/value heads"),
        ({"ffn": 7}, "7 feed-forward"),
        ({"vocab": 61}, "61 ids"),
        ({"context": 23}, "23 tokens"),
    ],
)
def test_a_shape_that_cannot_be_cut_is_refused(changed: dict[str, int], what: str) -> None:
    shape = replace(SMALL, **changed)
    fault = planning.misfit(shape, Layout(8, shape.context, tensor_parallel=2, devices=2))
    assert str(fault) == f"--tensor-parallel: 2 does not divide the {what}; choose a divisor"


# -- the command


def test_a_dry_run_needs_neither_data_nor_torch(llamactl: Command, tmp_path: Path) -> None:
    flags = ["--devices", 2048, "--device", "a100-80gb", "--mfu", 0.39, "--tensor-parallel", 2]
    said = " ".join(llamactl("pretrain", "--dry-run", *flags, cwd=tmp_path, status=0).stderr.split())
    for words in (
        "6,738,415,616", "40.4 G", "476,838 of 1,024 sequences", "shards is not there", "2,048 x a100-80gb",
        "it fits", "device-hours 184,594", "31.27 t CO2eq", "90.1 (3.76 days)",
    ):  # fmt: skip
        assert words in said
    assert list(tmp_path.iterdir()) == []
    code = "import sys; from stages.pretrain import pretrain; pretrain(device='h100', dry_run=True, quiet=True)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_dry_run_with_data_shows_the_mix_and_this_machine(llamactl: Command, shards_dir: Path) -> None:
    said = llamactl("pretrain", "--size", "tiny", "--data", shards_dir, "--dry-run", "--device", "cpu", status=0).stderr
    for words in ("100.0% of the samples", "it fits", "unknown"):
        assert words in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "h1000", "--dry-run"], ["--device", "h1000", "a100-80gb", "t4"]),
        (["--device", "a100-80gb"], ["--device", "--dry-run"]),
        (["--devices", 8], ["--devices", "--dry-run"]),
        (["--mfu", 0.4], ["--mfu", "--dry-run"]),
        (["--dry-run", "--device", "h100", "--epochs", 2], ["--epochs", "--tokens"]),
        (["--dry-run", "--device", "h100", "--tensor-parallel", 2], ["--tensor-parallel", "divisor"]),
    ],
)
def test_what_cannot_be_planned_is_said(llamactl: Command, tmp_path: Path, flags: list[Any], words: list[str]) -> None:
    said = llamactl("pretrain", *flags, cwd=tmp_path, status=1).stderr
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said
