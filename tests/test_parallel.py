"""Many processes on one model: they come to what one comes to, and end together.

Where a test needs no torchrun its processes are forked from a server that has torch imported already; those of one size
of job do all their cases one after the other, so that the suite stays fast. The last tests are torchrun's own.
"""

import faulthandler
import hashlib
import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from conftest import PATIENCE, SERVER
from safetensors.torch import load_file, save_file
from test_resume import Moment, Pretraining, child
from torch import Tensor
from torch.distributed.tensor import DTensor

from llamactl.align import reward
from llamactl.artifacts.run import Run
from llamactl.artifacts.state import Saver, State
from llamactl.model import device, sharded
from llamactl.model.config import Config
from llamactl.model.drawing import Sampling
from llamactl.model.generate import Request, finished
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama, Transformer
from llamactl.model.slices import TENSOR, is_cut
from llamactl.train import loop, parallel, sharding
from llamactl.train import step as stepping
from llamactl.train.optim import AdamW
from llamactl.train.pairs import Pairs, compared
from llamactl.train.parallel import Job
from llamactl.train.schedule import Cosine, Plan
from llamactl.train.step import Loss, Outcome, next_token_loss, take
from llamactl.train.training import Training

torch.set_num_threads(1)

CPU = torch.device("cpu")
ALONE = Job(None, CPU)
# Of 4 processes some hold nothing of a feed-forward matrix of 6 rows, and of the vocabulary one holds less than others.
SHAPE = Config(dim=40, layers=2, heads=4, kv_heads=2, ffn=6, vocab=62, context=24)
BATCH, STEPS = 8, 5
PLAN = Plan(Cosine(1e-2, 2, 9), BATCH, BATCH * SHAPE.context, 4, 1000, keep=9)


class Case(NamedTuple):
    """A training of a few steps; what is ``bad`` is the loss of the last process in that step."""

    tensor: int = 1
    replicas: int = 1
    micro_batch: int = 4
    checkpointing: str = "none"
    dtype: str = "fp32"
    bad: int | None = None
    scored: bool = False  # a reward model, on pairs

    @property
    def like(self) -> str:
        """The case of one process that it is compared to."""
        return "scored" if self.scored else "plain"


class Leg(NamedTuple):
    """A part of a training: from the state in a directory (or from nothing) to a step."""

    source: str | None
    target: str
    until: int
    tensor: int = 1
    replicas: int = 1


CASES: dict[int, dict[str, Case]] = {
    1: {
        "plain": Case(),
        "bf16": Case(dtype="bf16"),
        "refused": Case(bad=2),
        "scored": Case(scored=True),
    },
    2: {
        "shards": Case(),
        "accumulated": Case(micro_batch=1),
        "unevenly accumulated": Case(micro_batch=3),
        "replicas": Case(replicas=2),
        "tensor": Case(tensor=2),
        "tensor, accumulated": Case(tensor=2, micro_batch=3),
        "selective": Case(checkpointing="selective"),
        "full": Case(checkpointing="full"),
        "tensor, full": Case(tensor=2, checkpointing="full"),
        "tensor, selective": Case(tensor=2, checkpointing="selective"),
        "bf16": Case(dtype="bf16"),
        "bf16 tensor": Case(dtype="bf16", tensor=2),
        "refused": Case(bad=2),
        "refused tensor": Case(tensor=2, bad=2),
        "scored": Case(scored=True, micro_batch=3),
        "scored, tensor": Case(scored=True, tensor=2, micro_batch=3, checkpointing="full"),
    },
    4: {
        "shards": Case(),
        "accumulated": Case(micro_batch=1),
        "replicas": Case(replicas=2),
        "replicas, accumulated": Case(replicas=2, micro_batch=1),
        "tensor": Case(tensor=2),
        "tensor, replicas": Case(tensor=2, replicas=2),
        "tensor, full": Case(tensor=2, checkpointing="full", micro_batch=2),
        "bf16": Case(dtype="bf16", tensor=2),
        "refused": Case(bad=2, tensor=2),
        "scored, tensor": Case(scored=True, tensor=2),
    },
}
LEGS: dict[int, dict[str, Leg]] = {
    2: {
        "shards": Leg("one", "two", 6),
        "tensor": Leg("one", "two-tensor", 6, tensor=2),
        "from nothing": Leg(None, "two-fresh", 3),
    },
    4: {
        "shards": Leg("one", "four", 6),
        "mixed": Leg("one", "four-mixed", 6, tensor=2),
        "hybrid": Leg("one", "four-hybrid", 6, replicas=2),
    },
}


def batch(start: int, size: int) -> Tensor:
    """Sequences of a pseudo-random text by global index."""
    rows = []
    for index in range(start, start + size):
        generator = torch.Generator().manual_seed(index)
        rows.append(torch.randint(0, 20, (SHAPE.context + 1,), generator=generator).cumsum(0) % SHAPE.vocab)
    return torch.stack(rows)


def pairs() -> Pairs:
    """Pairs of such sequences, of any length, that have their first ids in common; some have safety labels."""
    found = Pairs(0)
    for number in range(BATCH * STEPS):
        ids = (batch(number, 1)[0, : 9 + number % 16]).tolist()
        others = batch(1000 + number, 1)[0, : 1 + number % 5].tolist()
        safe = (1.0, float(number % 2)) if number % 3 else None
        found.add(ids, [*ids[: number % 7], (ids[number % 7] + 1) % SHAPE.vocab, *others], number % 4 / 3, safe)
    return found


def made(job: Job, case: Case | Leg, dtype: torch.dtype = torch.float32) -> Transformer:
    checkpointing = case.checkpointing if isinstance(case, Case) else "none"
    arrange = partial(job.arrange, checkpointing=checkpointing, compiled=False)
    if isinstance(case, Case) and case.scored:
        return RewardModel.create(replace(SHAPE, scored=True), dtype, CPU, 3, arrange)
    return Llama.create(SHAPE, dtype, CPU, 3, arrange)


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def results(job: Job, case: Case, weights: Path) -> dict[str, Any]:
    """What a process sees of a training; the first one writes the final weights."""
    model = made(job, case, device.PRECISIONS[case.dtype])
    parameters = dict(model.named_parameters())
    initial = {name: digest(sharded.whole(p)) for name, p in parameters.items()}
    boxes = {
        name: [*sharded.box(p), list(sharded.local(p).shape), sharded.copies(p), sharded.first_copy(p), list(p.shape)]
        for name, p in parameters.items()
    }
    views = all(  # what is local is the part of the whole that its box says
        torch.equal(sharded.local(p), sharded.box(p).of(sharded.whole(p))) for p in parameters.values()
    )
    samples = sampled(job, model) if isinstance(model, Llama) else []
    optimizer = AdamW(model, Cosine(1e-2, 2, STEPS))
    share, outcomes = job.share(BATCH), []
    plain: Loss = partial(compared, objective=partial(reward.loss, safety_weight=0.5))
    plain, data, targets = (
        (plain, pairs().batch, BATCH) if case.scored else (next_token_loss, batch, BATCH * SHAPE.context)
    )
    beside = len(reward.MEASURED) * case.scored
    for step in range(STEPS):
        poisoned = case.bad == step and job.rank == job.world - 1

        def loss_of(model: Any, part: Any, poisoned: bool = poisoned) -> Tensor:
            return plain(model, part) * (math.nan if poisoned else 1)

        part = data(step * BATCH + share.first, share.size)
        seen = take(
            model, optimizer, loss_of, part, targets, case.micro_batch, job,
            tells=lambda: (job.rank == job.world - 1, True, False),
        )  # fmt: skip
        outcomes.append(Outcome.read(seen, beside))
    parted = {name: one.whole() for name, one in optimizer.parted.items()}
    final = {name: sharded.whole(p).detach().contiguous() for name, p in parameters.items()} | parted
    if job.rank == 0:
        save_file(final, weights)
    if case.dtype == "bf16" and case.tensor > 1:
        wanted = torch.zeros(SHAPE.vocab, SHAPE.dim, dtype=torch.bfloat16)
        wanted[1], wanted[-1] = 512, 2
        assert torch.equal(often(job), wanted)  # added up in fp32: in bf16 a sum of ones ends at 256
    return {
        "losses": [outcome.loss if outcome.applied else None for outcome in outcomes],
        "norms": [outcome.grad_norm if outcome.applied else None for outcome in outcomes],
        "told": [outcome.told for outcome in outcomes],
        "beside": [outcome.beside for outcome in outcomes],
        "initial": initial, "boxes": boxes, "views": views, "final": {n: digest(t) for n, t in final.items()},
        "share": share, "facts": job.facts(), "samples": samples,
    }  # fmt: skip


def sampled(job: Job, model: Llama) -> list[Any]:
    """Answers of the first process's to all prompts: each has sampled its own, or its own and its neighbours'."""
    whole, here = model.gathered(torch.float32), model.gathered(torch.float32, job.part)
    for (name, parameter), all_of_it in zip(here.named_parameters(), whole.parameters(), strict=True):
        assert not isinstance(parameter, DTensor)
        assert torch.equal(parameter, job.part.of(name, all_of_it))
        if job.tensor > 1 and is_cut(name):  # the rest of it is not kept
            assert parameter.untyped_storage().nbytes() == parameter.nbytes

    def answers(mine: Iterable[Request]) -> Iterator[tuple[int, list[Any]]]:
        for place, found in finished(here, mine, Sampling(1.0, 0, 8, 0)):
            yield place, [[answer.ids, answer.stopped] for answer in found]

    asked = [Request([1, *range(5, 7 + n % 9), 3 + n % 59], (1.0,) * 3) for n in range(70)]
    assert job.told([job.rank, "a"]) == [0, "a"]
    assert len(job.together(asked, answers)) == len(asked)
    return [found for _, found in sorted(job.divided(asked, answers))]


def often(job: Job) -> Tensor:
    """The gradient of a table of embeddings cut over tensor neighbours, by 512 times a word and twice another."""
    assert job.mesh is not None
    model = Llama(SHAPE, torch.bfloat16).to(torch.bfloat16)
    sharding.cut(model, job.mesh[TENSOR])
    model.tok_embeddings(torch.tensor([[1] * 512 + [SHAPE.vocab - 1] * 2])).float().sum().backward()
    assert model.tok_embeddings.weight.grad is not None
    return sharded.whole(model.tok_embeddings.weight.grad)


def gone(job: Job, leg: Leg, directory: Path) -> dict[str, Any]:
    """Take up a state, save it again at once, and go on; what a process sees of that."""
    source, target = (directory / name if name else None for name in (leg.source, leg.target))
    assert target is not None
    if job.rank == 0:
        shutil.copytree(source, target) if source else target.mkdir()
    job.agreed(True)
    model = made(job, leg)
    training = Training(model, AdamW(model, PLAN.schedule), Run("test", {}, {}, target), target, job, PLAN.keep)
    asked: list[tuple[int, int]] = []

    def data(start: int, size: int) -> Tensor:
        asked.append((start, size))
        return batch(start, size)

    resumed = training.resume()
    first, own = training.step, training.saver
    if resumed:
        training.saver = Saver(target / "again", job.rank, 9)
        training.save()
        training.finish_saving()
        training.saver = own
    lines = []
    for step in loop.steps(training, data, next_token_loss, PLAN):
        lines.append((step.step, step.loss, step.grad_norm))
        if step.step == leg.until < PLAN.schedule.steps:
            break
    if leg.until < PLAN.schedule.steps:
        training.save()
        training.finish_saving()
    return {"first": first, "lines": lines, "asked": asked, "share": job.share(BATCH)}


def process(rank: int, world: int, ports: list[int], directory: Path) -> None:
    """One of the processes of a job: all cases, then all legs, each in a job of its own."""
    torch.set_num_threads(1)
    device._PROBE = 32
    faulthandler.dump_traceback_later(PATIENCE - 10)
    found: dict[str, Any] = {}
    out = directory / f"{world}-{rank}"
    os.dup2(os.open(out.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT), 2)
    try:
        for port, (name, case) in zip(ports, [*CASES[world].items(), *LEGS[world].items()], strict=True):
            os.environ |= environment(rank, world, port)
            with parallel.joined(CPU, case.tensor, case.replicas) as job:
                if isinstance(case, Case):
                    found[name] = results(job, case, directory / f"{world} {name}.safetensors")
                else:
                    found[f"leg {name}"] = gone(job, case, directory)
        out.with_suffix(".json").write_text(json.dumps(found))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def meeting() -> dist.TCPStore:
    """Where processes meet, as torchrun keeps it for its own; at a port that the system chooses."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": "64",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def ended(processes: list[BaseProcess], seconds: float = PATIENCE) -> list[int | None]:
    """Wait for processes to end; their exit statuses."""
    until = time.monotonic() + seconds
    for one in processes:
        one.join(max(0.0, until - time.monotonic()))
    statuses = [one.exitcode for one in processes]
    for one in processes:
        one.kill()
    return statuses


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_PROBE", 32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all cases leave their results; ``one`` is the state of one process after 3 steps."""
    path = tmp_path_factory.mktemp("parallel")
    gone(ALONE, Leg(None, "one", 3), path)
    return path


@pytest.fixture(scope="module")
def one(directory: Path) -> dict[str, Any]:
    """What one process comes to."""
    return {name: results(ALONE, case, directory / f"1 {name}.safetensors") for name, case in CASES[1].items()}


@pytest.fixture(scope="module", params=[2, 4])
def many(request: pytest.FixtureRequest, directory: Path) -> tuple[int, list[dict[str, Any]]]:
    """How many processes, and what each has found."""
    world: int = request.param
    stores = [meeting() for _ in [*CASES[world], *LEGS[world]]]
    ports = [store.port for store in stores]
    processes = [SERVER.Process(target=process, args=(rank, world, ports, directory)) for rank in range(world)]
    for each in processes:
        each.start()
    statuses = ended(processes)
    said = "".join((directory / f"{world}-{rank}.stderr").read_text() for rank in range(world))
    assert statuses == [0] * world, said
    return world, [json.loads((directory / f"{world}-{rank}.json").read_text()) for rank in range(world)]


def of_kind(many: tuple[int, list[dict[str, Any]]], wanted: Callable[[Case], bool]) -> Iterator[tuple[str, Any]]:
    for name, case in CASES[many[0]].items():
        if wanted(case):
            yield name, many[1][0][name]


def close(a: list[float | None], b: list[float | None], rel: float) -> bool:
    return all(x is None or y is None or abs(x - y) <= rel * abs(y) for x, y in zip(a, b, strict=True)) and [
        x is None for x in a
    ] == [y is None for y in b]


# -- what many come to


def test_all_processes_see_the_same(many: tuple[int, list[dict[str, Any]]]) -> None:
    world, found = many
    for name in CASES[world]:
        for key in ("losses", "norms", "told", "beside", "initial", "final", "facts"):
            assert all(other[name][key] == found[0][name][key] for other in found), (name, key)
        assert all(other[name]["views"] for other in found), name


def test_prompts_are_divided_and_answered_as_by_one(
    many: tuple[int, list[dict[str, Any]]], one: dict[str, Any]
) -> None:
    """From weights that were sharded, and are whole, or cut, while they are sampled from; 70 are more than a round."""
    assert len({tuple(ids) for answers in one["plain"]["samples"] for ids, _ in answers}) > 100
    for name, found in of_kind(many, lambda case: not case.scored):
        like = "bf16" if CASES[many[0]][name].dtype == "bf16" else "plain"  # which may compute with rounded weights
        assert found["samples"] == one[like]["samples"], name
    assert not any(other[name]["samples"] for other in many[1][1:] for name in CASES[many[0]])


def test_initial_weights_are_the_same_to_the_bit(many: tuple[int, list[dict[str, Any]]], one: dict[str, Any]) -> None:
    for name, case in CASES[many[0]].items():
        assert many[1][0][name]["initial"] == one[case.like]["initial"], name


def test_fp32_is_equal_to_rounding(
    many: tuple[int, list[dict[str, Any]]], one: dict[str, Any], directory: Path
) -> None:
    """Losses, the norm of the whole gradient, weights: however processes, micro-batches and recomputation are."""
    for name, found in of_kind(many, lambda case: case.dtype == "fp32" and case.bad is None):
        like = CASES[many[0]][name].like
        wanted = load_file(directory / f"1 {like}.safetensors")
        assert close(found["losses"], one[like]["losses"], 1e-5 if like == "scored" else 1e-6), name  # it falls fast
        assert close(found["norms"], one[like]["norms"], 1e-5), name
        for ours, theirs in zip(found["beside"], one[like]["beside"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4), name
        for key, tensor in load_file(directory / f"{many[0]} {name}.safetensors").items():
            assert (tensor - wanted[key]).abs().max() < 1e-4, (name, key)  # a hundredth of a step
            assert (tensor - wanted[key]).norm() < 1e-5 * wanted[key].norm(), (name, key)


def test_bf16_is_close(many: tuple[int, list[dict[str, Any]]], one: dict[str, Any]) -> None:
    for name, found in of_kind(many, lambda case: case.dtype == "bf16"):
        assert close(found["losses"], one["bf16"]["losses"], 2e-3), name
        assert close(found["norms"], one["bf16"]["norms"], 0.03), name
        assert found["losses"] != one["plain"]["losses"]


def test_checkpointing_changes_no_bit(many: tuple[int, list[dict[str, Any]]]) -> None:
    pairs = {"selective": "shards", "full": "shards", "tensor, selective": "tensor"}
    for name, plain in pairs.items():
        if name in CASES[many[0]]:
            for key in ("losses", "norms", "final"):
                assert many[1][0][name][key] == many[1][0][plain][key], (name, key)


def test_a_step_that_one_process_finds_not_finite_is_refused_by_all(
    many: tuple[int, list[dict[str, Any]]], one: dict[str, Any], directory: Path
) -> None:
    wanted = load_file(directory / "1 refused.safetensors")
    for name, found in of_kind(many, lambda case: case.bad is not None):
        assert [loss is None for loss in found["losses"]] == [False, False, True, False, False], name
        assert close(found["losses"], one["refused"]["losses"], 1e-6), name
        for key, tensor in load_file(directory / f"{many[0]} {name}.safetensors").items():
            assert (tensor - wanted[key]).norm() < 1e-5 * wanted[key].norm(), (name, key)


def test_what_processes_tell_is_counted(many: tuple[int, list[dict[str, Any]]]) -> None:
    world, found = many
    for name in CASES[world]:
        assert found[0][name]["told"] == [[1, world, 0]] * STEPS, name


def test_shares_of_a_batch_tile_it(many: tuple[int, list[dict[str, Any]]]) -> None:
    world, found = many
    for name, case in CASES[world].items():
        shares = sorted(tuple(each[name]["share"]) for each in found)
        size = BATCH // (world // case.tensor)
        assert shares == sorted((n * size, size) for n in range(world // case.tensor) for _ in range(case.tensor)), name


def test_boxes_tile_each_tensor_once(many: tuple[int, list[dict[str, Any]]]) -> None:
    """Those of first copies; and as many processes hold a box as it has copies."""
    world, found = many
    empty = 0
    for name, case in CASES[world].items():
        copied = 0
        for parameter, (*_, whole) in found[0][name]["boxes"].items():
            firsts, holders = torch.zeros(whole), torch.zeros(whole)
            for each in found:
                offset, shape, local, copies, first, _ = each[name]["boxes"][parameter]
                assert shape == local, (name, parameter)
                empty += math.prod(shape) == 0
                part = sharded.Box(tuple(offset), tuple(shape))
                part.of(holders).add_(1)
                part.of(firsts).add_(float(first))
                if math.prod(shape):
                    copied = max(copied, copies)
            assert bool((firsts == 1).all()), (name, parameter)
            same = {each[name]["boxes"][parameter][3] for each in found}
            assert len(same) == 1 and bool((holders == same.pop()).all()), (name, parameter)
        assert (copied > 1) == (case.replicas > 1 or case.tensor > 1), name  # tensor neighbours share the norms
    assert empty or world < 4  # a process that holds nothing of a tensor was among them


# -- elastic


def bits(state: Path) -> dict[str, Tensor]:
    found = State(max(state.glob("step-*")))
    tensors = {}
    for name, facts in found.facts["tensors"].items():
        tensors[name] = torch.full(facts["shape"], math.nan)
        found.read(name, (0,) * tensors[name].dim(), tensors[name])
    return tensors


def test_a_state_moves_to_the_bit_and_the_data_go_on(
    many: tuple[int, list[dict[str, Any]]], directory: Path, tmp_path: Path
) -> None:
    """From 1 process to 2 and 4 in any arrangement, or from none, and back to 1."""
    world, found = many
    whole = gone(ALONE, Leg(None, "whole", 9), tmp_path)["lines"]
    for name, leg in LEGS[world].items():
        first = 3 if leg.source else 0
        if leg.source:
            before, moved = bits(directory / leg.source / "state"), bits(directory / leg.target / "again")
            assert before.keys() == moved.keys()
            assert len(before) == 3 * len(dict(Llama(SHAPE).named_parameters()))
            assert all(torch.equal(tensor, moved[key]) for key, tensor in before.items()), name
        for each in found:
            seen = each[f"leg {name}"]
            assert seen["first"] == first
            begin, size = seen["share"]
            steps = range(first, first + len(seen["asked"]))
            assert seen["asked"] == [[step * BATCH + begin, size] for step in steps]
            assert len(steps) >= leg.until - first
        shutil.copytree(directory / leg.target, tmp_path / leg.target)
        after = gone(ALONE, Leg(leg.target, f"{leg.target}-one", 9), tmp_path)
        assert after["first"] == leg.until
        before, moved = (bits(tmp_path / where) for where in (f"{leg.target}/state", f"{leg.target}-one/again"))
        assert all(torch.equal(tensor, moved[key]) for key, tensor in before.items()), name
        lines = [*seen["lines"], *after["lines"]]
        for (step, loss, norm), (wanted, its_loss, its_norm) in zip(lines, whole[first:], strict=True):
            assert step == wanted
            assert loss == pytest.approx(its_loss, rel=1e-6)
            assert norm == pytest.approx(its_norm, rel=1e-5)


def test_a_state_is_in_as_many_files_as_processes_and_says_so(
    many: tuple[int, list[dict[str, Any]]], directory: Path
) -> None:
    world, _ = many
    for leg in LEGS[world].values():
        facts = State(directory / leg.target / "state" / f"step-{leg.until:08d}").facts
        assert len(facts["files"]) == world
        job = {"processes": world, "replicas": leg.replicas, "shards": world // leg.replicas // leg.tensor}
        assert facts["job"] == job | {"tensor": leg.tensor}


# -- the command, on two processes


class Trouble(NamedTuple):
    """What befalls a process."""

    moment: Moment | None = None
    file_limit: int | None = None  # bytes beyond which no file of it grows, as on a full disk
    bug_at: int | None = None  # the micro-batch at which its loss raises


def process_of_command(
    arguments: list[str], streams: tuple[Path, Path], told: dict[str, str], trouble: Trouble
) -> None:
    os.environ |= told
    if trouble.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.file_limit, resource.RLIM_INFINITY))
    if trouble.bug_at is not None:
        calls, real = itertools.count(1), stepping.next_token_loss

        def buggy(model: Llama, ids: Tensor) -> Tensor:
            if next(calls) == trouble.bug_at:
                raise ValueError("a bug")
            return real(model, ids)

        loss_of: Loss = buggy
        stepping.next_token_loss = loss_of  # type: ignore[assignment]
    child(arguments, streams, trouble.moment)


class Together(Pretraining):
    """The command on several processes, as torchrun starts them."""

    def start_all(self, world: int, *more: object, trouble: dict[int, Trouble], **changed: object) -> list[BaseProcess]:
        self.store, processes = meeting(), []
        for rank in range(world):
            told = environment(rank, world, self.store.port)
            given = (self.arguments(*more, **changed), self.streams_of(rank), told, trouble.get(rank, Trouble()))
            processes.append(SERVER.Process(target=process_of_command, args=given))
        for each in processes:
            each.start()
        return processes

    def streams_of(self, rank: int) -> tuple[Path, Path]:
        return self.streams if rank == 0 else (self.out.with_suffix(f".out{rank}"), self.out.with_suffix(f".err{rank}"))

    def said(self, rank: int) -> str:
        return self.streams_of(rank)[1].read_text()

    def together(
        self, world: int, *more: object, trouble: dict[int, Trouble] | None = None, **changed: object
    ) -> list[int | None]:
        """Exit statuses, all within 60 seconds."""
        return ended(self.start_all(world, *more, trouble=trouble or {}, **changed), 60)


@pytest.fixture(scope="module")
def two(shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """A run of two processes that nobody disturbed."""
    together = Together(shards_dir, tmp_path_factory.mktemp("two") / "out")
    assert together.together(2) == [0, 0], together.said(0) + together.said(1)
    return together


@pytest.fixture
def another(two: Together, tmp_path: Path) -> Together:
    return Together(Path(str(two.flags["--data"])), tmp_path / "out")


def losses(pretraining: Pretraining) -> list[float]:
    return [loss for _, loss, _ in pretraining.result()[0]]


def test_only_the_first_process_speaks_and_writes(two: Together) -> None:
    assert two.streams_of(0)[0].read_text() == f"{two.out}\n"
    assert two.streams_of(1)[0].read_text() == two.said(1) == ""
    run = two.manifest()
    assert (run["devices"], run["job"]) == (1, {"processes": 2, "replicas": 1, "shards": 2, "tensor": 1})
    assert run["done"] == {"samples": 48, "tokens": 48 * 32}
    assert [line["step"] for line in two.lines()] == list(range(1, 13))
    assert two.states() == [9, 12]
    assert not any(two.out.rglob(".*"))


def test_finished_on_two_processes_it_does_nothing_on_any_number(two: Together) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in two.out.rglob("*"))
    for world in (2, 1):
        assert two.together(world) == [0] * world
        assert "already made" in two.said(0)
        assert sorted((path, path.stat().st_mtime_ns) for path in two.out.rglob("*")) == before


def test_two_come_to_what_one_comes_to(two: Together, another: Together) -> None:
    another.run()
    assert losses(another) == pytest.approx(losses(two), rel=1e-6)
    ours, theirs = (load_file(each.out / "model.safetensors") for each in (another, two))
    assert ours.keys() == theirs.keys()
    assert all((tensor - theirs[name]).norm() < 1e-5 * tensor.norm() for name, tensor in ours.items())


@pytest.mark.parametrize(("told", "step"), [((0,), 1), ((1,), 7), ((0, 1), 3)])
def test_a_signal_to_any_process_stops_all_and_they_go_on_to_the_same_bits(
    two: Together, another: Together, told: tuple[int, ...], step: int
) -> None:
    trouble = {rank: Trouble(Moment("step", step, signal.SIGUSR1)) for rank in told}
    assert another.together(2, trouble=trouble) == [75, 75]
    who = "SIGUSR1" if 0 in told else "a signal to another process"
    assert f"stopped by {who} after step {step}; run me again to go on" in another.said(0)
    assert another.said(1) == ""
    assert another.states()[-1] == step
    assert another.together(2) == [0, 0]
    assert f"going on after step {step}" in another.said(0)
    assert "equal to rounding" not in another.said(0)
    assert another.result() == two.result()


def test_killed_at_touches_of_the_disk_and_gone_on_with(two: Together, another: Together) -> None:
    """One process or the other, at its n-th sync or renaming: the other leaves, and the bits are the same."""
    kills = 0
    for attempt, (rank, count) in enumerate([(0, 5), (1, 3), (0, 12), (1, 9), (0, 21)]):
        trouble = {rank: Trouble(Moment("disk", count, signal.SIGKILL))}
        statuses = another.together(2, save_every=1, trouble=trouble)
        if statuses == [0, 0]:
            break
        kills += 1
        assert statuses[rank] == -signal.SIGKILL, (attempt, another.said(0), another.said(1))
        assert statuses[1 - rank] == 1
        line = another.said(1 - rank).splitlines()[-1]
        assert f"rank {1 - rank}: the job: another of its 2 processes has left" in line
        assert not (another.out / "run.json").exists()
    assert kills >= 3
    if not (another.out / "run.json").exists():
        assert another.together(2, save_every=1) == [0, 0], another.said(0)
    assert another.result() == two.result()


def test_from_two_processes_to_one_and_back(two: Together, another: Together) -> None:
    assert another.together(2, trouble={1: Trouble(Moment("step", 4, signal.SIGTERM))}) == [75, 75]
    another.run(moment=Moment("step", 4, signal.SIGTERM), status=75)
    assert "saved by 2 processes (1 x 2 x 1), goes on as 1" in another.stderr()
    assert "equal to rounding" in another.stderr()
    assert "going on after step 4" in another.stderr()
    assert another.together(2) == [0, 0]
    assert "goes on as 2 processes (1 x 2 x 1): equal to rounding" in another.said(0)
    assert "going on after step 8" in another.said(0)
    assert [step for step, *_ in another.result()[0]] == list(range(1, 13))
    assert losses(another) == pytest.approx(losses(two), rel=1e-6)
    assert another.manifest()["job"]["processes"] == 2


def test_a_damaged_file_of_any_process_is_named_and_the_older_state_used(two: Together, another: Together) -> None:
    """What only the second process looks at all know of."""
    assert another.together(2, trouble={0: Trouble(Moment("step", 8, signal.SIGTERM))}) == [75, 75]
    harmed = another.out / "state" / "step-00000008" / "rank-00001.safetensors"
    data = bytearray(harmed.read_bytes())
    data[-40] ^= 1
    harmed.write_bytes(data)
    assert another.together(2) == [0, 0]
    assert f"rank 1: state refused: {harmed}: its bytes differ" in another.said(1)
    assert "going on after step 6" in another.said(0)
    assert another.result() == two.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_process_ends_the_job_with_its_rank(two: Together, another: Together, rank: int) -> None:
    """It is met in the background, and told with the file."""
    statuses = another.together(2, trouble={rank: Trouble(file_limit=20_000)})
    assert statuses == [1, 1]
    line = another.said(rank).splitlines()[-1]
    assert line.startswith(f"llamactl: rank {rank}: ")
    assert ".step-00000003.partial" in line and "File too large; mend that and run the same command again" in line
    assert f"rank {1 - rank}: the job: another of its 2 processes has left" in another.said(1 - rank)
    assert another.states() == []
    assert another.together(2) == [0, 0]
    assert another.result() == two.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_in_one_process_ends_the_job_with_its_rank(another: Together, rank: int) -> None:
    statuses = another.together(2, trouble={rank: Trouble(bug_at=5)})
    assert statuses == [1, 1]
    said = another.said(rank)
    assert "Traceback" in said and said.endswith("ValueError: a bug\n")
    assert said.count(f"rank {rank}: failed:") == 1
    assert "Traceback" not in another.said(1 - rank)
    assert f"rank {1 - rank}: the job: another of its 2 processes has left" in another.said(1 - rank)


def test_a_directory_that_another_run_writes_to_is_refused(another: Together) -> None:
    first = another.start(steps=10**6)
    try:
        until = time.monotonic() + PATIENCE
        while another.logged() < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        second = Together(Path(str(another.flags["--data"])), another.out)
        second.streams = (another.out.with_suffix(".stdout2"), another.out.with_suffix(".stderr2"))
        assert second.together(2, steps=10**6) == [1, 1]
        assert "another run is writing here" in second.said(0)
        assert "rank 1: the job: another of its 2 processes has left" in second.said(1)
    finally:
        first.kill()
        first.join()


# -- torchrun


class Torchrun:
    """``torchrun --standalone`` with the command on two processes."""

    def __init__(self, pretraining: Pretraining, processes: int = 2) -> None:
        self.pretraining = pretraining
        command = [
            str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={processes}",
            "--no-python", str(Path(sys.executable).with_name("llamactl")), *pretraining.arguments(),
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def after(self, lines: int) -> "Torchrun":
        """Wait until so many steps have been logged."""
        until = time.monotonic() + PATIENCE
        while self.pretraining.logged() < lines:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.005)
        return self

    def worker(self, rank: int) -> int:
        """The process id of one."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                    return int(pid)
        raise AssertionError(f"no process of rank {rank}")

    def end(self, seconds: float = PATIENCE) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        try:
            stdout, stderr = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        return self.process.returncode, stdout, stderr


LONG = 150  # steps: time enough to be disturbed


def long(shards: Path, out: Path) -> Pretraining:
    pretraining = Pretraining(shards, out)
    pretraining.flags |= {"--steps": LONG, "--save-every": 10}
    return pretraining


@pytest.fixture(scope="module")
def by_torchrun(shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A run by torchrun on two processes that nobody disturbed."""
    pretraining = long(shards_dir, tmp_path_factory.mktemp("torchrun") / "out")
    status, stdout, stderr = Torchrun(pretraining).end()
    assert (status, stdout) == (0, f"{pretraining.out}\n"), stderr
    return pretraining


def test_torchrun_stopped_goes_on_to_the_same_bits(by_torchrun: Pretraining, shards_dir: Path, tmp_path: Path) -> None:
    pretraining = long(shards_dir, tmp_path / "out")
    running = Torchrun(pretraining).after(15)
    running.process.send_signal(signal.SIGTERM)
    status, stdout, stderr = running.end()
    assert status != 0 and stdout == ""
    step = pretraining.states()[-1]
    assert 15 <= step < LONG
    assert f"stopped by SIGTERM after step {step}; run me again to go on" in stderr
    status, stdout, stderr = Torchrun(pretraining).end()
    assert (status, stdout) == (0, f"{pretraining.out}\n"), stderr
    assert f"going on after step {step}" in stderr
    assert pretraining.result() == by_torchrun.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_ends_when_a_process_is_killed_and_goes_on_to_the_same_bits(
    by_torchrun: Pretraining, shards_dir: Path, tmp_path: Path, rank: int
) -> None:
    pretraining = long(shards_dir, tmp_path / "out")
    running = Torchrun(pretraining).after(25)
    os.kill(running.worker(rank), signal.SIGKILL)
    began = time.monotonic()
    status, stdout, stderr = running.end(60)
    assert time.monotonic() - began < 30
    assert status != 0 and stdout == ""
    assert f"rank {1 - rank}: the job: another of its 2 processes has left, or cannot be reached" in stderr
    assert not (pretraining.out / "run.json").exists()
    assert pretraining.states()
    if rank:  # on one process, equal to rounding
        pretraining.run()
        assert "goes on as 1" in pretraining.stderr()
        resumed = int(pretraining.stderr().partition("going on after step ")[2].split()[0])
        ours, theirs = losses(pretraining), losses(by_torchrun)
        assert ours[:resumed] == theirs[:resumed]
        assert ours[: resumed + 5] == pytest.approx(theirs[: resumed + 5], rel=1e-6)
        assert ours == pytest.approx(theirs, rel=0.05)  # rounding grows in a hundred steps at this learning rate
    else:
        status, _, stderr = Torchrun(pretraining).end()
        assert status == 0, stderr
        assert pretraining.result() == by_torchrun.result()
