"""PPO by the command: that it learns, goes on to the same bits, is the same on two processes, stops where it should.

Most runs are of a few iterations in this process. Those that are killed, or are several, are forked from a server.
"""

import json
import math
import random
import shutil
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SERVER, turns, with_pieces, written
from safetensors.torch import load_file
from test_cli import Run, command, one_line
from test_model import fresh
from test_model import written as model_written
from test_parallel import Trouble, ended, environment, meeting, process_of_command
from test_resume import Moment, child
from torch import Tensor

from llamactl.align import ppo as algorithm
from llamactl.artifacts import manifest
from llamactl.artifacts.records import Message, Sample, checked
from llamactl.errors import Fault, Interrupted
from llamactl.model import device, functions, generate
from llamactl.model.config import Config
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama
from llamactl.text import dialogue
from llamactl.text.tokenizer import EOS, Tokenizer
from llamactl.train import optim
from llamactl.train.schedule import Cosine
from llamactl.train.versions import Versions
from stages.ppo import ppo

assert command  # a fixture

CPU = torch.device("cpu")
SHAPE = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=512, context=64)
SCORED = replace(SHAPE, scored=True)
ENDING = 1.6  # of a model that ends about half of its answers within eight tokens
WORDS = ("a heap", "a list", "x", "sort", "a queue")
ASKED: list[dict[str, Any]] = [
    {"messages": turns(f"What is {word}?"), "id": number, **({"safety": True} if number % 3 == 1 else {})}
    for number, word in enumerate(WORDS)
]
ASKED[3]["messages"] = turns("sort", "it", "why?")
ASKED[4]["messages"].insert(0, {"role": "system", "content": "so"})
HELD_OUT = [{"messages": turns(f"Who is {word}?")} for word in WORDS[:3]]
# Enough to move, in four iterations of two steps.
SMALL: dict[str, Any] = {
    "precision": "fp32", "device": "cpu", "iterations": 4, "batch_size": 8, "mini_batch_size": 4, "max_new_tokens": 8,
    "lr": 1e-3, "critic_lr": 1e-3, "micro_batch": 2, "quiet": True,
}  # fmt: skip


class Models:
    """A language model, and reward models; none is trained."""

    def __init__(self, place: Path, proto: bytes) -> None:
        self.place, self.proto = place, proto
        self.chat = self.policy("chat")
        self.helpful, self.safe, self.general = (self.reward(name, seed) for seed, name in enumerate("hsg", start=1))

    def policy(self, name: str, ending: float = ENDING, **shape: Any) -> Path:
        """The larger ``ending``, the likelier is EOS, whatever was said: its score is a column that is alike."""
        chat = fresh(replace(SHAPE, **shape), seed=3)
        assert isinstance(chat, Llama)
        with torch.no_grad():
            for name_of, parameter in chat.named_parameters():
                if name_of.endswith(("wo.weight", "w2.weight")):
                    parameter[0] = 0
            chat.tok_embeddings.weight[:, 0] = chat.norm.weight[0] = 1
            chat.output.weight[:, 0] = chat.output.weight[EOS] = 0
            chat.output.weight[EOS, 0] = ending
        return model_written(chat, self.place / name, tokenizer=self.proto)

    def reward(self, name: str, seed: int = 1, head: float | None = None, **shape: Any) -> Path:
        """One that tells answers from each other, or has the same number all over its head."""
        model = fresh(replace(SCORED, **shape), seed=seed, kind=RewardModel)
        assert isinstance(model, RewardModel)
        if head is not None:
            with torch.no_grad():
                model.score.weight.fill_(head)
        return model_written(model, self.place / name, tokenizer=self.proto)

    def taste(self, name: str = "taste") -> Path:
        """One that likes plain letters and signs: its score is nearly their share of prompt and answer.

        Attention is the same to all, and sees one number a token; another is so large that the norm changes little.
        """
        tokenizer = Tokenizer(self.proto)
        plain = [number > EOS + 256 and tokenizer.decode([5, number])[1:].isascii() for number in range(SHAPE.vocab)]
        model = fresh(SCORED, kind=RewardModel)
        assert isinstance(model, RewardModel)
        with torch.no_grad():
            for name_of, parameter in model.named_parameters():
                parameter.fill_(float("norm" in name_of))
            embeddings = model.tok_embeddings.weight
            embeddings[:, 0] = torch.where(torch.tensor(plain), 1.0, -1.0)
            embeddings[: EOS + 1, 0], embeddings[:, 1] = 0, 5
            first = model.layers[0].attention
            first.wv.weight[0, 0] = first.wo.weight[0, 0] = 1  # type: ignore[union-attr, operator]
            model.score.weight[0, 0] = 4
        return model_written(model, self.place / name, tokenizer=self.proto)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tokenizer_path.read_bytes())


@pytest.fixture(scope="module")
def prompts(models: Models) -> Path:
    return written(models.place / "prompts.jsonl", ASKED)


@pytest.fixture(scope="module")
def held_out(models: Models) -> Path:
    return written(models.place / "held-out.jsonl", HELD_OUT)


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_PROBE", 32)


Training = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def train(models: Models, prompts: Path, tmp_path: Path) -> Training:
    """A training of few steps; its metrics."""

    def run(out: str = "out", model: Path | None = None, asked: Path = prompts, **more: Any) -> list[dict[str, Any]]:
        how = {**SMALL, "helpfulness": models.helpful, **more}
        ppo(model or models.chat, prompts=[str(asked)], out=tmp_path / out, **how)
        return lines(tmp_path / out / "metrics.jsonl")

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def facts(out: Path) -> dict[str, Any]:
    return manifest.load(out / "run.json")


def told(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what differs from run to run."""
    return {name: value for name, value in line.items() if not name.endswith("_seconds") and name != "memory_bytes"}


def outcome(out: Path) -> dict[str, Any]:
    """All that a run comes to, to the bit."""
    made = facts(out)
    return {
        "weights": (out / "model.safetensors").read_bytes(),
        "metrics": [told(line) for line in lines(out / "metrics.jsonl")],
        "samples": [one | {"model": ""} for one in lines(out / "samples.jsonl")],  # which is where it is
        **{name: made[name] for name in ("done", "skipped", "noted", "kept", "settings", "inputs")},
        "files": sorted(path.name for path in out.iterdir()),
    }


# -- runs by the command


class Command:
    """The command with all there is to it, to be started over and over in one directory."""

    def __init__(self, models: Models, prompts: Path, held_out: Path, out: Path) -> None:
        self.out = out
        flags = {name.replace("_", "-"): value for name, value in SMALL.items() if name != "quiet"} | {
            "helpfulness": models.helpful, "safety": models.safe, "general": models.general, "eval": held_out,
            "eval-every": 2, "samples-every": 1, "save-every": 1, "out": out,
        }  # fmt: skip
        given = [word for name, value in flags.items() for word in (f"--{name}", value)]
        self.arguments = [*map(str, ["ppo", models.chat, prompts, *given])]

    def streams(self, rank: int = 0) -> tuple[Path, Path]:
        return self.out.with_suffix(f".out{rank}"), self.out.with_suffix(f".err{rank}")

    def said(self) -> str:
        return "".join(path.read_text() for rank in range(2) if (path := self.streams(rank)[1]).exists())

    def run(self, moment: Moment | None = None) -> int | None:
        """Its exit status."""
        process = SERVER.Process(target=child, args=(self.arguments, self.streams(), moment))
        process.start()
        (status,) = ended([process])
        return status

    def together(self, *more: str, moments: Mapping[int, Moment] = {}) -> list[int | None]:
        """Exit statuses of two processes."""
        store, processes = meeting(), []
        for rank in range(2):
            trouble = Trouble(moments.get(rank))
            given = [*self.arguments, *more], self.streams(rank), environment(rank, 2, store.port), trouble
            processes.append(SERVER.Process(target=process_of_command, args=given))
        for each in processes:
            each.start()
        return ended(processes)


@pytest.fixture(scope="module")
def whole(models: Models, prompts: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run that nobody disturbed."""
    done = Command(models, prompts, held_out, tmp_path_factory.mktemp("whole") / "out")
    assert done.run() == 0, done.said()
    return done


@pytest.fixture
def another(models: Models, prompts: Path, held_out: Path, tmp_path: Path) -> Command:
    """The same, not yet begun."""
    return Command(models, prompts, held_out, tmp_path / "out")


# -- what comes of it


def test_its_lines_hold_what_alarms_and_plots_need(whole: Command) -> None:
    found = lines(whole.out / "metrics.jsonl")
    assert [line["step"] for line in found] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in found if "eval_reward" in line] == [0, 2, 4]
    names = {
        "reward", "reward_stderr", "helpfulness", "safety", "general", "by_safety", "length", "truncated", "repetition",
        "refusals", "kl", "kl_stderr", "kl_token", "entropy", "mismatch", "policy_loss", "policy_grad_norm",
        "clip_fraction", "approx_kl", "ratio_off", "value_loss", "value_grad_norm", "explained_variance", "lr",
        "refused", "tokens", "memory_bytes", "sample_seconds", "score_seconds", "update_seconds", "alarms",
    }  # fmt: skip
    for line in found[1:]:
        assert names <= line.keys()
        assert all(math.isfinite(line[name]) for name in names - {"alarms"})
        assert (line["ratio_off"], line["lr"], line["refused"]) == (0, 1e-3, 0)
        assert line["mismatch"] < 1e-5
    assert found[1]["kl"] == found[1]["kl_stderr"] == 0
    assert 0.1 < found[1]["truncated"] < 0.9 and 0.1 < found[1]["by_safety"] < 0.9
    assert abs(found[4]["kl"]) > 1e-3


def test_samples_are_samples_and_their_rewards_those_of_the_paper(whole: Command, tmp_path: Path, command: Run) -> None:
    samples = lines(whole.out / "samples.jsonl")
    assert Counter(one["step"] for one in samples) == {1: 4, 2: 4, 3: 4, 4: 4}
    assert {one["model"] for one in samples} == {str(whole.out)}
    for one in samples:
        assert checked(one, (Sample,), "x").response == one["response"]
        asked = ASKED[one["id"]]
        assert {name: one[name] for name in asked} == asked
        how = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0}
        assert {name: one["sampling"][name] for name in how} == how
        decides = one.get("safety") or 1 / (1 + math.exp(-one["scores"]["safety"])) < 0.15
        assert one["reward"] == one["scores"]["safety" if decides else "helpfulness"]
        assert one["finish"] in ("stop", "length")
        assert [*one["scores"]] == ["helpfulness", "safety", "general"]
    said = [one for one in samples if one["response"]]  # an answer may be empty, which validate refuses
    assert len(said) > 8
    assert command("validate", written(tmp_path / "said.jsonl", said)).status == 0
    drawn = [(one["id"], one["sampling"]["index"]) for one in samples]
    assert len(set(drawn)) == len(drawn)


def test_every_output_is_listed_and_the_model_answers(whole: Command, models: Models, command: Run) -> None:
    made = facts(whole.out)
    assert [entry["path"] for entry in made["outputs"]] == [
        "model.safetensors", "tokenizer.model", "tokenizer_config.json", "generation_config.json", "README.md",
        "config.json", "metrics.jsonl", "samples.jsonl",
    ]  # fmt: skip
    listed = {entry["path"] for entry in made["outputs"]}
    assert {path.name for path in whole.out.iterdir()} == listed | {"run.json", "state"}
    assert manifest.described("model", str(whole.out))["sha256"]  # all bytes are what it says
    assert [one["as"] for one in made["inputs"]] == ["model", "helpfulness", "safety", "general", "prompts", "eval"]
    assert made["done"] == {"iterations": 4, "samples": 32, "tokens": sum(tokens(whole.out))}
    assert made["settings"]["kl"] == 0.01
    assert "micro_batch" not in made["settings"]
    done = command("generate", whole.out, "--text", "x", "--max-new-tokens", 2, "--device", "cpu")
    assert done.status == 0, done.stderr
    old, new = (load_file(path / "model.safetensors") for path in (models.chat, whole.out))
    assert any(not torch.equal(tensor, new[name]) for name, tensor in old.items())


def tokens(out: Path) -> list[int]:
    return [line["tokens"] for line in lines(out / "metrics.jsonl") if line["step"]]


def test_finished_it_does_nothing(whole: Command, command: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.out.rglob("*")}
    again = command(*whole.arguments)
    assert (again.status, again.stdout) == (0, f"{whole.out}\n")
    assert "already made" in again.stderr
    again = command(*whole.arguments, "--kl-stop", 0.0, "--samples-every", 3, "-q")
    assert (again.status, again.stderr) == (0, "")
    other = command(*whole.arguments, "--kl", 0.5, "-q")
    assert "exists and was made otherwise (with kl 0.01, not 0.5)" in one_line(other)
    assert {path: path.stat().st_mtime_ns for path in whole.out.rglob("*")} == before


def test_what_is_learned_from_is_the_whitened_score_and_kl_is_taken_off_later(
    train: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of answers that ended are whitened by themselves; the others get what was asked for."""
    seen: list[tuple[list[float], list[bool], list[float], Tensor, Tensor, float]] = []
    expected: list[Tensor] = []
    real_rewards, real_lessons = algorithm.rewards, algorithm.lessons

    def rewards(scores: Tensor, counted: Tensor, otherwise: float) -> Tensor:
        found = real_rewards(scores, counted, otherwise)
        seen.append((scores.tolist(), counted.tolist(), found.tolist(), *[torch.empty(0)] * 2, 0))
        return found

    def lessons(answers: Tensor, known: Any, mask: Tensor, beta: float, *more: float) -> dict[str, Tensor]:
        assert answers.tolist() == pytest.approx(seen[-1][2], abs=1e-6)
        seen[-1] = (*seen[-1][:3], known["log_probs"], known["reference"], beta)
        assert more == (0.9, 0.8)
        expected.append(known["values"][mask])
        return real_lessons(answers, known, mask, beta, *more)

    monkeypatch.setattr(algorithm, "rewards", rewards)
    monkeypatch.setattr(algorithm, "lessons", lessons)
    metrics = train(truncated="-3", kl=0.25, gamma=0.9, gae_lambda=0.8, iterations=2)
    assert {*seen[0][1]} == {True, False}
    for line, (scores, counted, found, ours, theirs, beta) in zip(metrics, seen, strict=True):
        count = [score for score, one in zip(scores, counted, strict=True) if one]
        assert len(count) > 1
        middle, spread = statistics.fmean(count), statistics.stdev(count)
        wanted = [(s - middle) / spread if one else -3.0 for s, one in zip(scores, counted, strict=True)]
        assert found == pytest.approx(wanted, abs=1e-6)
        assert line["reward"] == pytest.approx(statistics.fmean(scores))
        assert line["truncated"] == 1 - len(count) / 8
        assert (beta, ours.shape) == (0.25, theirs.shape)
    assert not torch.equal(seen[1][3], seen[1][4])
    assert float(expected[0].mean()) == pytest.approx(0, abs=1e-5)  # the critic begins around 0
    assert float(expected[1].mean()) != pytest.approx(0, abs=1e-3)  # once: then it learns


def test_a_critic_begins_no_worse_than_a_mean(train: Training, models: Models) -> None:
    """What a reward model says of answers that are not complete need not be about what they come to."""
    (line,) = train(critic=models.reward("loud", seed=7, head=1.0), gae_lambda=1.0, iterations=1)
    assert line["explained_variance"] >= -1e-6


def test_clips_and_rates_are_those_asked_for_from_the_first_step_to_the_last(
    train: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates are constant, and there is no warm-up (section 3.4)."""
    clips, rates = {"policy": set(), "value": set()}, []  # type: ignore[var-annotated]
    losses, adamw = (algorithm.policy_loss, algorithm.value_loss), optim.AdamW

    def clipped(name: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given: Any) -> Tensor:
            clips[name].add(given[-1])
            return loss(*given)

        return call

    def optimizer(model: Any, schedule: Cosine, decay: float) -> optim.AdamW:
        rates.append([schedule.at(step) for step in range(schedule.steps)])
        return adamw(model, schedule, decay)

    monkeypatch.setattr(optim, "AdamW", optimizer)
    for name, loss in zip(clips, losses, strict=True):
        monkeypatch.setattr(algorithm, f"{name}_loss", clipped(name, loss))
    train(clip=0.125, value_clip=0.5, lr=0.25e-3, critic_lr=0.5e-3, iterations=3)
    assert clips == {"policy": {0.125}, "value": {0.5}}
    assert rates == [[0.25e-3] * 6, [0.5e-3] * 6]


def test_judged_answers_that_are_cut_off_count_like_the_others(
    train: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counts = algorithm.rewards, []

    def rewards(scores: Tensor, counted: Tensor, otherwise: float) -> Tensor:
        counts.append(counted.tolist())
        return real(scores, counted, otherwise)

    monkeypatch.setattr(algorithm, "rewards", rewards)
    metrics = train(truncated="judged", iterations=1)
    assert counts == [[True] * 8]
    assert metrics[0]["truncated"] > 0


def test_the_same_command_makes_the_same_bits_and_another_seed_others(whole: Command, another: Command) -> None:
    assert another.run() == 0, another.said()
    assert outcome(another.out) == outcome(whole.out)
    shutil.rmtree(another.out)
    another.arguments += ["--seed", "1"]
    assert another.run() == 0, another.said()
    said = [[one["response"] for one in lines(each.out / "samples.jsonl")] for each in (another, whole)]
    assert sum(a == b for a, b in zip(*said, strict=True)) < 8


def test_how_a_mini_batch_is_cut_changes_nothing_but_rounding(train: Training) -> None:
    found = []
    for micro_batch in (1, 3, 4):
        metrics = train(f"{micro_batch}", micro_batch=micro_batch, iterations=2)
        found.append([line[name] for line in metrics for name in CLOSE])
    assert found[0] == pytest.approx(found[2], rel=1e-3, abs=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-3, abs=1e-5)


CLOSE = (
    "reward", "reward_stderr", "helpfulness", "length", "truncated", "kl", "kl_token", "entropy", "policy_loss",
    "policy_grad_norm", "clip_fraction", "approx_kl", "value_loss", "value_grad_norm", "explained_variance", "tokens",
)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_another_temperature_the_sampler_and_the_training_agree(
    train: Training, tmp_path: Path, precision: str
) -> None:
    first, second = train(temperature=0.7, precision=precision, iterations=2, samples_every=1)
    assert (first["kl"], first["ratio_off"], second["ratio_off"]) == (0, 0, 0)
    assert max(first["mismatch"], second["mismatch"]) < (1e-5 if precision == "fp32" else 0.05)
    assert {one["sampling"]["temperature"] for one in lines(tmp_path / "out" / "samples.jsonl")} == {0.7}


def test_computing_activations_again_changes_no_bit(train: Training, tmp_path: Path) -> None:
    for level in ("none", "selective", "full"):
        train(level, activation_checkpointing=level, iterations=2)
        assert outcome(tmp_path / level) == outcome(tmp_path / "none")


def test_models_in_the_hosts_memory_come_to_the_same_bits(train: Training, models: Models, tmp_path: Path) -> None:
    for out, offload in (("here", False), ("away", True)):
        train(out, offload=offload, safety=models.safe, iterations=2)
    assert outcome(tmp_path / "here") == outcome(tmp_path / "away")


@pytest.mark.usefixtures("products")
def test_in_bf16_ratios_begin_at_1_and_kl_at_0(train: Training, models: Models, tmp_path: Path) -> None:
    """Though the model is stored in fp32, and so the reference rounded; what comes of it is stored in bf16."""
    first, second = train(precision="bf16", iterations=2, lr=1e-2)
    assert (first["kl"], first["ratio_off"], second["ratio_off"]) == (0, 0, 0)
    assert 1e-5 < first["mismatch"] < 0.05 or not functions.BF16_PRODUCTS
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}


def test_kl_is_taken_to_another_reference(train: Training, models: Models) -> None:
    (line,) = train(reference=models.policy("elsewhere", ending=0.5), iterations=1)
    assert line["kl"] > 0.1


# -- what is learned


@pytest.fixture(scope="module")
def taste(models: Models) -> dict[str, Path]:
    """A reward model whose taste can be learned in seconds, and a critic that begins at 0."""
    return {"helpfulness": models.taste(), "critic": models.reward("indifferent", head=0.0)}


LEARNING: dict[str, Any] = {
    "batch_size": 32, "mini_batch_size": 8, "micro_batch": 8, "max_new_tokens": 6, "lr": 1e-2, "critic_lr": 1e-2,
    "truncated": "judged",
}  # fmt: skip


def test_it_learns_what_a_reward_model_likes(
    train: Training, taste: dict[str, Path], held_out: Path, tmp_path: Path
) -> None:
    """Also where it was not asked; and the policy that is kept is the one that was measured best."""
    found = train(**{**LEARNING, **taste, "iterations": 12}, eval=held_out, eval_every=4)
    first, last = found[1], found[-1]
    assert last["reward"] - first["reward"] > 4 * (first["reward_stderr"] + last["reward_stderr"])
    measured = {line["step"]: line["eval_reward"] for line in found if "eval_reward" in line}
    assert [*measured] == [0, 4, 8, 12]
    assert measured[12] > measured[0] + 0.3
    assert facts(tmp_path / "out")["kept"] == max(measured, key=lambda step: measured[step])
    assert last["kl"] > 1


def test_a_large_beta_keeps_the_policy_where_it_is(train: Training, taste: dict[str, Path]) -> None:
    """At the same learning rate: KL stays a fraction of what it is without."""
    free, bound = (train(f"{kl}", **{**LEARNING, **taste, "iterations": 5, "lr": 3e-3, "kl": kl}) for kl in (0.0, 50.0))
    assert max(line["kl"] for line in free) > 1.0
    assert abs(bound[-1]["kl"]) < 0.5 * free[-1]["kl"]


def test_a_policy_that_runs_away_raises_alarms(
    train: Training, taste: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    found = train(**{**LEARNING, **taste, "iterations": 8, "lr": 5e-2, "kl": 0.0})
    given = {name for line in found for name in line["alarms"]}
    assert {"clip_fraction", "length"} <= given
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("iteration ")]
    assert Counter(line.partition(": ")[2][:12] for line in said).most_common(1)[0][1] == 1  # each once in ten
    assert any("ratios are clipped; try a smaller --lr" in line for line in said)


# -- stopped and killed


@pytest.mark.parametrize(
    ("event", "count", "after"),
    [
        ("token", 3, 0),  # while the held-out prompts are answered for the first time
        ("token", 11, 0),  # while those of the first iteration are
        ("update", 1, 1),
        ("update", 4, 1),
        ("token", 21, 1),
        ("measure", 2, 2),
        ("score", 17, 3),
        ("line", 7, 2),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    whole: Command, another: Command, command: Run, monkeypatch: pytest.MonkeyPatch, event: str, count: int, after: int
) -> None:
    with monkeypatch.context() as patch:
        Moment(event, count, signal.SIGTERM).prepare(patch.setattr)
        stopped = command(*another.arguments)
    assert stopped.status == 75, stopped.stderr
    line = stopped.stderr.splitlines()[-1]
    assert line == f"llamactl: {another.out}: stopped by SIGTERM after iteration {after}; run me again to go on"
    assert not (another.out / "run.json").exists()
    measured = [line["step"] for line in lines(another.out / "metrics.jsonl") if "eval_reward" in line]
    assert (0 in measured) == ((event, count) != ("token", 3))  # what is held out kept no signal waiting
    again = command(*another.arguments)
    assert again.status == 0, again.stderr
    assert f"going on after step {after}" in again.stderr
    assert outcome(another.out) == outcome(whole.out)


def test_a_signal_in_the_last_iteration_does_not_stop_what_is_done(
    whole: Command, another: Command, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Moment("update", 16, signal.SIGUSR1).prepare(patch.setattr)
        assert command(*another.arguments).status == 0
    assert outcome(another.out) == outcome(whole.out)


def test_killed_over_and_over_it_comes_to_the_same_bits(whole: Command, another: Command) -> None:
    """Before the first state, while it samples, judges, learns, measures, saves, and when all is done but the name."""
    draw = random.Random(7)
    moments = [("token", 4), ("line", 1), ("update", 2), ("disk", 9), ("measure", 1)]
    moments += [(draw.choice(["token", "score", "update", "disk"]), draw.randint(4, 12)) for _ in range(5)]
    for event, count in moments:
        assert another.run(Moment(event, count, signal.SIGKILL)) == -signal.SIGKILL, (event, count, another.said())
    for count in (1, 2):
        assert another.run(Moment("end", count, signal.SIGKILL)) == -signal.SIGKILL, another.said()
    assert not (another.out / "run.json").exists()
    assert another.run() == 0, another.said()
    assert outcome(another.out) == outcome(whole.out)


@pytest.mark.parametrize(("flags", "left"), [((2, 9), [2, 4, 5]), ((2, 1), [5]), ((None, 2), [4, 5])])
def test_states_are_saved_and_kept_as_asked(train: Training, tmp_path: Path, flags: Any, left: list[int]) -> None:
    train(iterations=5, save_every=flags[0], keep=flags[1])
    assert sorted(path.name for path in (tmp_path / "out" / "state").iterdir()) == [f"step-{n:08d}" for n in left]


def test_lines_are_written_as_often_as_asked_and_of_all_that_is_measured(train: Training, held_out: Path) -> None:
    assert [line["step"] for line in train("rarely", log_every=3)] == [3, 4]
    found = train("measured", log_every=3, eval=held_out, eval_every=2)
    assert [line["step"] for line in found] == [0, 2, 3, 4]
    assert [line["step"] for line in found if "kl" in line] == [2, 3, 4]


def test_a_step_that_was_refused_is_counted_once_and_the_run_goes_on_to_the_same_bits(
    train: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizers have made fewer steps than there were mini-batches."""
    real = algorithm.policy_loss

    def poisoned(*given: Any) -> Tensor:
        calls[0] += 1
        lost = torch.tensor([math.nan if calls[0] <= 2 else 1, 1, 1, 1])  # in both parts of the first mini-batch
        return real(*given) * lost

    for out in ("whole", "parts"):
        calls = [0]
        monkeypatch.setattr(algorithm, "policy_loss", poisoned)
        if out == "parts":
            with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after iteration 2"):
                Moment("update", 5, signal.SIGTERM).prepare(patch.setattr)
                train(out, save_every=1)
            monkeypatch.setattr(algorithm, "policy_loss", real)
        assert [line["refused"] for line in train(out, save_every=1)] == [1, 0, 0, 0]
    assert facts(tmp_path / "parts")["skipped"] == {"refused steps": 1}
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_where_every_step_is_refused_the_run_ends(
    train: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algorithm, "policy_loss", lambda log_probs, *_: log_probs.sum() * torch.full((4,), math.nan))
    monkeypatch.setattr(algorithm, "value_loss", lambda values, *_: values.sum() * math.nan)
    with pytest.raises(Fault, match="iteration 1: all gradient steps of the policy and critic were refused"):
        train()
    assert not (tmp_path / "out" / "run.json").exists()


def test_bf16_goes_on_to_the_same_bits_as_well(
    train: Training, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"precision": "bf16", "eval": held_out, "eval_every": 2, "save_every": 1}
    train("whole", **how)
    for event, count in (("update", 3), ("token", 12)):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            Moment(event, count, signal.SIGTERM).prepare(patch.setattr)
            train("parts", **how)
    train("parts", **how)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_other_settings_are_refused_by_name_and_one_can_start_over(
    whole: Command, another: Command, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Moment("update", 1, signal.SIGTERM).prepare(patch.setattr)
        assert command(*another.arguments).status == 75
    for flags, said in (
        (["--kl", 0.5], "kl 0.01, not 0.5"),
        (["--clip", 0.1], "clip 0.2, not 0.1"),
        (["--critic-lr", 0.1], "critic-lr 0.001, not 0.1"),
        (["--iterations", 5], "iterations 4, not 5"),
    ):
        line = one_line(command(*another.arguments, *flags, "-q"))
        assert f"was begun otherwise (with {said}); ask for the same, or --no-resume" in line
    assert command(*another.arguments, "--no-resume").status == 0
    assert outcome(another.out) == outcome(whole.out)


# -- on two processes


@pytest.fixture(scope="module")
def two(models: Models, prompts: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run of two processes that nobody disturbed."""
    done = Command(models, prompts, held_out, tmp_path_factory.mktemp("two") / "out")
    assert done.together() == [0, 0], done.said()
    return done


def compared(out: Path, other: Path) -> None:
    """Two runs come to the same, to rounding, and say the same."""
    ours, theirs = (lines(place / "metrics.jsonl") for place in (out, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        for name in {*CLOSE, "safety", "general", "by_safety", "eval_reward", "eval_length"} & mine.keys():
            assert mine[name] == pytest.approx(its[name], rel=2e-3, abs=2e-5), (mine["step"], name)
        assert mine.get("alarms") == its.get("alarms")
    for mine, its in zip(*(lines(place / "samples.jsonl") for place in (out, other)), strict=True):
        assert {**mine, "scores": 0, "reward": 0, "model": ""} == {**its, "scores": 0, "reward": 0, "model": ""}
        assert mine["scores"] == pytest.approx(its["scores"], abs=1e-3)
    weights = [load_file(place / "model.safetensors") for place in (out, other)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() < 1e-3 * tensor.norm(), name
    assert facts(out)["kept"] == facts(other)["kept"]
    assert facts(out)["done"] == facts(other)["done"]


def test_two_processes_come_to_what_one_comes_to(whole: Command, two: Command) -> None:
    """Each prompt's answer is drawn by either; scores and advantages are whitened over those of both."""
    compared(two.out, whole.out)
    made = facts(two.out)
    assert (made["devices"], made["job"]) == (1, {"processes": 2, "replicas": 1, "shards": 2, "tensor": 1})
    assert two.streams(0)[0].read_text() == f"{two.out}\n"
    assert two.streams(1)[0].read_text() == two.streams(1)[1].read_text() == ""
    assert sorted(path.name for path in two.out.iterdir()) == sorted(path.name for path in whole.out.iterdir())


@pytest.mark.parametrize("flag", ["--tensor-parallel", "--replicas"])
def test_however_two_processes_share_the_models_they_come_to_the_same(
    whole: Command, another: Command, flag: str
) -> None:
    assert another.together(flag, "2") == [0, 0], another.said()
    compared(another.out, whole.out)
    assert another.streams(1)[1].read_text() == ""
    job = {"--tensor-parallel": {"shards": 1, "tensor": 2}, "--replicas": {"replicas": 2, "shards": 1}}[flag]
    assert facts(another.out)["job"] == {"processes": 2, "replicas": 1, "shards": 1, "tensor": 1} | job


@pytest.mark.parametrize(("rank", "event", "count", "after"), [(1, "token", 7, 0), (0, "update", 3, 1)])
def test_a_signal_to_one_of_two_stops_both_and_they_go_on_to_the_same_bits(
    two: Command, another: Command, rank: int, event: str, count: int, after: int
) -> None:
    moment = Moment(event, count, signal.SIGTERM)
    assert another.together(moments={rank: moment}) == [75, 75], another.said()
    who = "a signal to another process" if rank else "SIGTERM"
    assert f"stopped by {who} after iteration {after}; run me again to go on" in another.said()
    assert another.together() == [0, 0], another.said()
    assert outcome(another.out) == outcome(two.out)


FROZEN = ("--frozen-layers", "1", "--iterations", "2")


@pytest.fixture(scope="module")
def frozen(models: Models, prompts: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run in which the first of two layers does not learn."""
    done = Command(models, prompts, held_out, tmp_path_factory.mktemp("frozen") / "out")
    done.arguments += FROZEN
    assert done.run() == 0, done.said()
    return done


def test_frozen_layers_do_not_learn_and_the_rest_does(frozen: Command, models: Models) -> None:
    old, new = (load_file(path / "model.safetensors") for path in (models.chat, frozen.out))
    same = {name for name, tensor in old.items() if torch.equal(tensor, new[name])}
    assert same == {name for name in old if name.startswith(("model.layers.0.", "model.embed_tokens."))}
    line = lines(frozen.out / "metrics.jsonl")[1]
    assert (line["kl"], line["ratio_off"], line["refused"]) == (0, 0, 0)
    held = [
        name for name in load_file(frozen.out / "state/step-00000002/rank-00000.safetensors") if "critic" not in name
    ]
    assert held and not any("layers.0." in name or "tok_embeddings" in name for name in held)


def test_a_run_with_frozen_layers_goes_on_to_the_same_bits_and_two_processes_come_to_the_same(
    frozen: Command, another: Command, tmp_path: Path
) -> None:
    another.arguments += FROZEN
    assert another.run(Moment("update", 2, signal.SIGTERM)) == 75
    assert another.run() == 0, another.said()
    assert outcome(another.out) == outcome(frozen.out)
    another.out = tmp_path / "two"
    another.arguments[another.arguments.index("--out") + 1] = str(another.out)
    assert another.together() == [0, 0], another.said()
    compared(another.out, frozen.out)


def test_a_reference_with_other_first_layers_keeps_them(train: Training, models: Models, tmp_path: Path) -> None:
    """The policy that has learned them all is to come no further from the model that it began as."""
    train("first", iterations=1)
    (line,) = train("second", model=tmp_path / "first", reference=models.chat, frozen_layers=1, iterations=1)
    assert line["kl"] != 0
    assert train("third", model=tmp_path / "first", frozen_layers=1, iterations=1)[0]["kl"] == 0


@pytest.mark.parametrize("flags", [[], ["--tensor-parallel", "2", "--temperature", "0.7"]])
def test_in_bf16_two_processes_begin_with_ratios_of_1_and_kl_of_0_as_well(another: Command, flags: list[str]) -> None:
    assert another.together("--precision", "bf16", "--iterations", "1", *flags) == [0, 0], another.said()
    _, line = lines(another.out / "metrics.jsonl")
    assert (line["kl"], line["ratio_off"]) == (0, 0)
    assert line["mismatch"] < 0.05


def test_where_one_of_two_is_killed_both_end_and_go_on_to_the_same_bits(two: Command, another: Command) -> None:
    for rank, event, count in ((1, "token", 14), (0, "disk", 5)):
        statuses = another.together(moments={rank: Moment(event, count, signal.SIGKILL)})
        assert (statuses[rank], statuses[1 - rank]) == (-signal.SIGKILL, 1), another.said()
    assert another.together() == [0, 0], another.said()
    assert outcome(another.out) == outcome(two.out)


def test_what_one_process_has_begun_two_go_on_with_and_one_ends(
    whole: Command, another: Command, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Moment("update", 1, signal.SIGTERM).prepare(patch.setattr)
        assert command(*another.arguments).status == 75
    assert another.together(moments={1: Moment("update", 2, signal.SIGTERM)}) == [75, 75], another.said()
    assert "goes on as 2 processes (1 x 2 x 1): equal to rounding" in another.said()
    again = command(*another.arguments)
    assert again.status == 0, again.stderr
    assert "going on after step 2" in again.stderr
    compared(another.out, whole.out)


# -- measured, and stopped early


def measuring(values: list[float], patch: pytest.MonkeyPatch) -> None:
    """Have held-out answers be worth these, one measurement after the other."""
    left, real = iter(values), Versions.measured
    patch.setattr(Versions, "measured", lambda self, iteration, _: real(self, iteration, next(left)))


def test_the_best_policy_is_kept_and_patience_ends_the_run(
    train: Training, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    how = {"eval": held_out, "eval_every": 1, "iterations": 9, "patience": 2}
    with monkeypatch.context() as patch:
        measuring([0.0, 1.0, 0.5, 1.0, 7.0], patch)  # of equal ones the first is best
        found = train(**how, model_every=1)
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    made = facts(tmp_path / "out")
    assert (made["kept"], made["done"]["iterations"], made["done"]["samples"]) == (1, 3, 24)
    assert made["ended"] == "no better version in 2 measurements"
    assert f"ended early: {made['ended']}" in (tmp_path / "out" / "README.md").read_text()
    weights = [(tmp_path / "out" / f"iteration-0000{n}" / "model.safetensors").read_bytes() for n in (1, 2, 3)]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights[0]
    assert len(set(weights)) == 3
    said = "the policy of iteration 1 is kept: what it answered to held-out prompts was best (+1.000)"
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out" / "iteration-00000").exists()
    assert facts(tmp_path / "out" / "iteration-00002")["stage"] == "ppo"
    with monkeypatch.context() as patch:
        measuring([0.0, 1.0, 0.5, 1.0, 7.0], patch)
        train("plain", **how)
    assert not [*(tmp_path / "plain").glob("iteration-*")]
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == weights[0]


def test_a_version_is_a_model_like_any_other(train: Training, tmp_path: Path, command: Run) -> None:
    train(model_every=1, iterations=2)
    version = tmp_path / "out" / "iteration-00001"
    done = command("generate", version, "--text", "x", "--max-new-tokens", 2, "--device", "cpu")
    assert done.status == 0, done.stderr
    last = (tmp_path / "out" / "iteration-00002" / "model.safetensors").read_bytes()
    assert last == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_new_best_at_the_end_is_what_is_kept(
    train: Training, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Measured also where the end is no multiple of --eval-every."""
    measuring([0.0, -1.0, 2.0], monkeypatch)
    found = train(eval=held_out, eval_every=2, iterations=3, patience=2)
    assert [line["step"] for line in found if "eval_reward" in line] == [0, 2, 3]
    assert facts(tmp_path / "out")["kept"] == 3
    assert "is kept" not in capfd.readouterr().err


def test_a_run_killed_after_it_was_ended_by_patience_does_not_go_on(
    train: Training, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if killed between the model and the manifest."""
    how = {"eval": held_out, "eval_every": 1, "iterations": 9, "patience": 2}
    for out in ("whole", "parts"):
        with monkeypatch.context() as patch:
            measuring([0.0, 1.0, 0.5, 0.0, 7.0], patch)
            if out == "parts":
                Moment("end", 1, signal.SIGINT).prepare(patch.setattr)
                with pytest.raises(KeyboardInterrupt):
                    train(out, **how)
                assert (tmp_path / "parts" / "iteration-00001").exists()
            else:
                train(out, **how)
    with monkeypatch.context() as patch:
        measuring([], patch)
        train("parts", **how)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_where_no_answer_can_be_measured_the_last_policy_is_kept(
    train: Training, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring([math.nan] * 9, monkeypatch)
    train(eval=held_out, eval_every=1, iterations=2, patience=2)
    assert facts(tmp_path / "out")["kept"] == 2


@pytest.mark.parametrize(("flag", "limit", "said"), [("kl_stop", -1.0, "KL to"), ("length_stop", 1.0, "answers are")])
def test_a_limit_stops_the_run_and_a_higher_one_goes_on(
    train: Training, tmp_path: Path, flag: str, limit: float, said: str
) -> None:
    train("whole")
    with pytest.raises(
        Fault, match=rf"stopped after iteration 1: {said} .*, above --{flag.replace('_', '-')}.*no version"
    ):
        train("parts", **{flag: limit}, save_every=3)
    assert [path.name for path in (tmp_path / "parts" / "state").iterdir()] == ["step-00000001"]
    assert not (tmp_path / "parts" / "run.json").exists()
    for _ in range(2):  # it went on by an iteration each time that it was asked
        with pytest.raises(Fault, match=rf"stopped after iteration 1: {said}"):
            train("parts", **{flag: limit}, save_every=3)
        assert [path.name for path in (tmp_path / "parts" / "state").iterdir()] == ["step-00000001"]
    with pytest.raises(Fault, match=r"it holds iteration-00001; without that limit, .* the same command goes on$"):
        train("others", **{flag: limit}, model_every=1)
    train("parts", **{flag: 1e9})
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


# -- what is asked


def asked_of(patch: pytest.MonkeyPatch) -> list[list[tuple[tuple[int, ...], int]]]:
    """What the sampler is asked from now on: ids and index, a list a call."""
    calls: list[list[tuple[tuple[int, ...], int]]] = []
    real = generate.finished

    def finished(model: Llama, requests: Any, *more: Any) -> Iterator[Any]:
        given = list(requests)
        calls.append([(tuple(request.ids), request.first) for request in given])
        assert all(request.temperatures == (1.0,) for request in given)
        return real(model, given, *more)

    patch.setattr(generate, "finished", finished)
    return calls


def test_few_prompts_are_asked_several_times_an_iteration_and_no_sample_comes_twice(
    train: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asked_of(monkeypatch)
    found = train(asked=written(tmp_path / "p.jsonl", ASKED[:3]), iterations=3)
    assert [len(call) for call in calls] == [8, 8, 8]
    every = [one for call in calls for one in call]
    assert len(set(every)) == 24
    assert Counter(Counter(ids for ids, _ in every).values()) == {8: 3}
    assert all(line["reward_stderr"] > 0 for line in found)


def test_one_prompt_is_enough(train: Training, tmp_path: Path) -> None:
    found = train(asked=written(tmp_path / "p.jsonl", ASKED[:1]), iterations=1, batch_size=4, mini_batch_size=2)
    assert found[0]["tokens"] >= 4


def test_held_out_prompts_are_not_learned_from_and_others_are_counted(
    train: Training, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what they ask, whatever else stands in the record; a prompt that is given twice is asked as one."""
    calls = asked_of(monkeypatch)
    both = [*ASKED, {"messages": turns(" Who is x? "), "id": "held out"}, ASKED[0] | {"id": "again"}]
    train(asked=written(tmp_path / "p.jsonl", both), eval=held_out, eval_every=1, iterations=2)
    measured, learned = ({ids for call in calls[start::2] for ids, _ in call} for start in (0, 1))
    assert (len(measured), len(learned)) == (3, 5)
    assert not measured & learned
    assert {number for call in calls[::2] for _, number in call} == {0}
    assert facts(tmp_path / "out")["skipped"] == {"prompts given before": 1, "prompts that are held out": 1}


def test_a_field_that_we_do_not_know_passes_through(train: Training, tmp_path: Path) -> None:
    """Also where it has the name of one of ours."""
    more = {"step": "first", "reward": "high", "note": {"é": [None]}, "scores": {"style": 1}, "finish": 3}
    train(asked=written(tmp_path / "p.jsonl", [one | more for one in ASKED]), samples_every=1, iterations=2)
    samples = lines(tmp_path / "out" / "samples.jsonl")
    assert [one["step"] for one in samples] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert all(one["note"] == {"é": [None]} and isinstance(one["reward"], float) for one in samples)


def test_answers_that_cannot_be_judged_are_counted_and_get_the_penalty(
    train: Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those that hold a tag of the format."""
    real, seen = algorithm.rewards, []

    def rewards(scores: Tensor, counted: Tensor, otherwise: float) -> Tensor:
        seen.append((scores, counted))
        return real(scores, counted, otherwise)

    def response(self: Any, answer: Any, tokenizer: Tokenizer) -> str:
        return "[INST]" if len(answer) % 2 else "fine"

    monkeypatch.setattr(algorithm, "rewards", rewards)
    monkeypatch.setattr("llamactl.text.asking.Asked.response", response)
    found = train(samples_every=1, iterations=2)
    for line, (scores, counted) in zip(found, seen, strict=True):
        assert 0 < scores.isnan().sum() < 8
        assert not (counted & scores.isnan()).any()
        assert math.isfinite(line["reward"])
        assert line["unjudged"] == scores.isnan().double().mean()
    samples = lines(tmp_path / "out" / "samples.jsonl")
    assert samples
    for one in samples:
        assert (one["response"] == "fine") == (one["reward"] is not None) == bool(one["scores"])


def test_where_no_answer_can_be_judged_the_run_goes_on(
    train: Training, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on again from its state."""
    monkeypatch.setattr("llamactl.text.asking.Asked.response", lambda *_: "[INST]")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        Moment("update", 1, signal.SIGTERM).prepare(patch.setattr)
        train(general=models.general)
    found = train(general=models.general)
    assert [line["reward"] for line in found] == [None] * 4


def test_a_shorter_context_ends_answers_and_is_not_that_of_the_model_that_is_made(
    train: Training, models: Models, tmp_path: Path
) -> None:
    one = [Message(**message) for message in ASKED[4]["messages"]]
    asked = written(tmp_path / "one.jsonl", ASKED[4:])
    full = len(dialogue.encode(one, Tokenizer(models.proto)).ids) + 2
    found = train(asked=asked, context=full, truncated="judged", iterations=2)
    assert all(line["length"] <= 2 and line["truncated"] > 0 for line in found)
    assert facts(tmp_path / "out")["settings"]["context"] == full
    assert Llama.described(tmp_path / "out")[0].context == SHAPE.context


def test_where_every_answer_of_the_first_iteration_is_cut_off_the_run_ends(train: Training, models: Models) -> None:
    endless = models.policy("endless", ending=-99.0)
    with pytest.raises(Fault, match=r"--max-new-tokens: all 8 answers .* are cut off.* --truncated judged"):
        train(model=endless, iterations=2)
    found = train(model=endless, iterations=2, truncated="judged")
    assert [(line["truncated"], line["length"]) for line in found] == [(1.0, 8.0)] * 2
    assert all("truncated" in line["alarms"] for line in found)
    assert all(math.isfinite(line["policy_loss"]) for line in found)


def test_where_all_scores_are_equal_there_is_an_alarm_and_the_run_goes_on(
    train: Training, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    found = train(helpfulness=models.reward("zero", head=0.0), iterations=2, truncated="judged")
    assert all("all_equal" in line["alarms"] for line in found)
    assert capfd.readouterr().err.count("all answers have the same score") == 1
    assert found[0]["policy_loss"] == 0  # no reward, no KL: nothing


def test_tagged_prompts_without_a_safety_model_are_noted(train: Training, tmp_path: Path) -> None:
    (line,) = train(iterations=1)
    assert line["by_safety"] == 0
    assert facts(tmp_path / "out")["noted"] == {"prompts tagged safety, where helpfulness alone decides": 2}


# -- what cannot be


@pytest.fixture
def refused(models: Models, prompts: Path, tmp_path: Path, command: Run) -> Callable[..., str]:
    """What the command says where it fails; it leaves nothing behind."""

    def run(*flags: object, model: Path = models.chat, asked: object = prompts) -> str:
        small = {f"--{name.replace('_', '-')}": value for name, value in SMALL.items() if name != "quiet"}
        given = dict(zip(map(str, flags[::2]), flags[1::2], strict=True))
        words = [word for pair in ({"--helpfulness": models.helpful} | small | given).items() for word in pair]
        return one_line(command("ppo", model, asked, *words, "-q", "-o", tmp_path / "out"))

    return run


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": turns("a", "b")}, "messages[1].role: is assistant: a prompt ends on a user turn"),
        ({"text": "a"}, "messages: missing"),
        ({"messages": turns("[INST]")}, "messages[0].content: holds [INST]"),
        (
            {"messages": turns("word " * 100)},
            "messages: is 316 tokens long, the context 64: no room for an answer",
        ),
        ({"messages": turns("word " * 14)}, "no answer to it can be judged: the shortest is 60 tokens long"),
    ],
)
@pytest.mark.parametrize("which", ["prompts", "eval"])
def test_a_prompt_that_cannot_be_asked_is_refused_by_its_place(
    refused: Callable[..., str], models: Models, held_out: Path, tmp_path: Path, record: Any, said: str, which: str
) -> None:
    path = written(tmp_path / "p.jsonl", [ASKED[0], record])
    flags = ["--helpfulness", models.reward("narrow", 1, context=56)]
    line = refused(*flags, asked=path) if which == "prompts" else refused(*flags, "--eval", path)
    assert line.startswith(f"{path}:2: {said}")
    assert not (tmp_path / "out").exists()


def test_bad_records_can_be_skipped(train: Training, tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [*ASKED, {"messages": turns("word " * 100)}])
    train(asked=path, skip_bad=True, iterations=1)
    assert facts(tmp_path / "out")["skipped"] == {"bad records": 1}


def test_files_without_a_prompt_to_use_are_refused(refused: Callable[..., str], prompts: Path, tmp_path: Path) -> None:
    line = refused("--eval", prompts)
    assert line.startswith(f"{prompts}: holds no prompt to learn from; look at what was skipped, and at --eval")
    (tmp_path / "empty.jsonl").touch()
    assert refused(asked=tmp_path / "empty.jsonl").startswith(f"{tmp_path / 'empty.jsonl'}: is empty")
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_holds_nothing_is_refused(
    models: Models, prompts: Path, tmp_path: Path, command: Run
) -> None:
    path = written(tmp_path / "e.jsonl", [{"messages": turns("[INST]")}])
    flags = ["--helpfulness", models.helpful, "--eval", path, "--skip-bad", "-o", tmp_path / "out", "-q"]
    ended_so = command("ppo", models.chat, prompts, *flags, "--device", "cpu")
    assert ended_so.status == 1
    assert ended_so.stderr.splitlines()[-1].startswith(f"llamactl: {path}: holds no prompt to measure by; ")


def test_models_that_do_not_go_together_are_refused(
    refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    proto = with_pieces(models.proto, ["extra"])
    wide = replace(SCORED, vocab=513)
    other = model_written(fresh(wide, kind=RewardModel), tmp_path / "other", tokenizer=proto)
    said = f"{other}: has another tokenizer than "
    assert refused("--helpfulness", other).startswith(f"{said}{models.chat}; train one from a model with the same")
    assert refused("--critic", other).startswith(f"{said}{models.chat}")
    assert refused("--safety", other).startswith(said)
    assert refused("--critic", models.chat).startswith(f"{models.chat}: is a language model, where a reward model")
    assert refused("--helpfulness", models.chat).startswith(f"{models.chat}: is a language model, where a reward model")
    assert refused("--reference", models.helpful).startswith(f"{models.helpful}: is a reward model, where a language")
    small = models.policy("small", ffn=32)
    said = f"{small}: is of another shape than {models.chat}; name a --reference that it came from"
    assert refused("--reference", small) == said
    assert refused("--general", tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: no such directory")
    assert not (tmp_path / "out").exists()


def test_a_reference_that_was_made_for_a_longer_context_is_one(train: Training, models: Models) -> None:
    (line,) = train(reference=models.policy("longer", context=128), iterations=1)
    assert line["kl"] == 0


def test_numbers_that_do_not_go_together_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("--mini-batch-size", 3) == (
        "--mini-batch-size: 3 does not divide the 8 answers of an iteration; choose a divisor"
    )
    assert refused("--context", 65) == "--context: 65 is longer than the model's, 64; make it shorter"
    assert refused("--mini-batch-size", 16).startswith("--mini-batch-size: 16 does not divide the 8 answers")
    assert refused("--device", "a100-80gb").startswith("--device: a100-80gb is a device to plan for; add --dry-run")
    assert refused("--devices", 2).startswith("--devices: is for a plan; add --dry-run")
    assert refused("--tensor-parallel", 2).startswith("--tensor-parallel: 2 does not divide the 1 processes")
    assert not (tmp_path / "out").exists()


def test_what_two_processes_cannot_do_is_refused(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    line = refused(asked="-")
    assert line.endswith("stdin: cannot be read by every process; write it to a file first")
    line = refused("--mini-batch-size", 1)
    assert "--mini-batch-size: 1 answers cannot be shared out evenly to 2 data-parallel processes" in line
    assert not (tmp_path / "out").exists()


def test_a_penalty_below_0_can_be_given(models: Models, prompts: Path, tmp_path: Path, command: Run) -> None:
    how = ["--truncated", "-0.5", "--iterations", 1, "--batch-size", 2, "--mini-batch-size", 2, "--max-new-tokens", 2]
    given = ["--helpfulness", models.helpful, *how, "--device", "cpu", "-o", tmp_path / "out"]
    done = command("ppo", models.chat, prompts, *given)
    assert done.status == 0, done.stderr
    assert facts(tmp_path / "out")["settings"]["truncated"] == "-0.5"


@pytest.mark.parametrize("given", ["nonsense", "nan", "inf", ""])
def test_a_penalty_that_is_none_is_a_usage_error(models: Models, prompts: Path, command: Run, given: str) -> None:
    done = command("ppo", models.chat, prompts, "--helpfulness", models.helpful, "--truncated", given)
    assert done.status == 2
    assert "give judged, or a number" in done.stderr


def test_a_score_that_is_not_finite_names_the_model_and_the_prompt(
    refused: Callable[..., str], models: Models, prompts: Path
) -> None:
    bad = models.reward("bad", head=math.nan)
    line = refused("--helpfulness", bad, "--critic", models.helpful)
    assert line.startswith(f"{prompts}:")
    assert f": {bad} gives it a score that is not finite; try --precision fp32" in line


def test_a_critic_that_says_nothing_finite_ends_the_run(refused: Callable[..., str], models: Models) -> None:
    line = refused("--critic", models.reward("broken", head=math.inf))
    problem = "all gradient steps of the policy and critic were refused: losses or gradients are not finite"
    assert line.startswith(f"iteration 1: {problem}; try ")
