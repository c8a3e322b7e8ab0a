"""Supervised fine-tuning: what is read, refused and cut; that it learns; that it goes on to the same bits."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SERVER, Command, turns, written
from safetensors.torch import load_file
from test_parallel import Trouble, ended, environment, meeting, process_of_command

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Dialogue, Sample, checked
from llamactl.errors import Fault, Interrupted
from llamactl.text import dialogue
from llamactl.text.learning import Learning, lesson
from llamactl.text.tokenizer import EOS, Tokenizer
from llamactl.train import loop
from llamactl.train.held_out import HeldOut
from stages.sft import sft

U, A = "user", "assistant"
FLAGS = ["--precision", "fp32", "--batch-size", 2, "--lr", "1e-2", "--device", "cpu"]


def found(raw: dict[str, Any]) -> Found[Any]:
    return Found(checked(raw, (Sample, Dialogue), "d:4"), raw, "d:4")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that have each one answer."""
    names = ["textwrap", "bisect", "heapq", "csv", "string", "shlex", "cmd", "queue"]
    records = [{"messages": turns(f"What is {name}?", f"A module named {name}.")} for name in names]
    records += [{"messages": turns("Hi", "Hello.", f"And {name}?", f"It is {name}.")} for name in names]
    return written(tmp_path_factory.mktemp("dialogues") / "d.jsonl", records)


# -- what is learned of a record


def test_a_dialogue_is_learned_as_the_codec_says(tokenizer: Tokenizer) -> None:
    record = {"messages": turns("a", "b", "c", "d")}
    wanted = dialogue.encode(checked(record, (Dialogue,), "").messages, tokenizer)
    assert lesson(found(record), tokenizer, Learning(100)) == (*wanted, 0)
    ids, loss, _ = lesson(found(record), tokenizer, Learning(100, last=True))
    assert ids == wanted.ids
    first = ids.index(EOS) + 1
    assert loss == [False] * first + wanted.loss[first:]


def test_the_response_of_a_sample_is_its_last_answer(tokenizer: Tokenizer) -> None:
    sample = {"messages": turns("a", "b", "c"), "response": "d"}
    whole = {"messages": turns("a", "b", "c", "d")}
    assert lesson(found(sample), tokenizer, Learning(100)) == lesson(found(whole), tokenizer, Learning(100))


def test_an_answer_of_weight_0_is_not_learned(tokenizer: Tokenizer) -> None:
    record = {"messages": turns("a", "b", "c", "d")}
    record["messages"][1]["weight"] = 0
    assert lesson(found(record), tokenizer, Learning(100)) == lesson(
        found({"messages": turns("a", "b", "c", "d")}), tokenizer, Learning(100, last=True)
    )
    record["messages"][3]["weight"] = 0
    with pytest.raises(Fault, match="d:4: messages: holds no answer to learn from"):
        lesson(found(record), tokenizer, Learning(100))
    record["messages"][1]["weight"] = 1
    with pytest.raises(Fault, match="d:4: messages: holds no answer to learn from"):
        lesson(found(record), tokenizer, Learning(100, last=True))


def test_what_is_too_long_is_refused_or_cut_so_that_no_end_is_learned(tokenizer: Tokenizer) -> None:
    record = {"messages": turns("question", "an answer of some length " * 5)}
    ids, loss, _ = lesson(found(record), tokenizer, Learning(1000))
    length = len(ids)
    assert lesson(found(record), tokenizer, Learning(length)) == (ids, loss, 0)
    with pytest.raises(
        Fault, match=rf"d:4: messages: is {length} tokens long, the context {length - 1}; shorten it, --truncate"
    ):
        lesson(found(record), tokenizer, Learning(length - 1))
    short = lesson(found(record), tokenizer, Learning(length - 3, truncate=True))
    assert short == (ids[:-3], loss[:-3], 3)
    assert EOS not in short.ids
    with pytest.raises(Fault, match="d:4: messages: its first 5 tokens hold no answer"):
        lesson(found(record), tokenizer, Learning(5, truncate=True))


# -- the stage


def run(model: Path, data: Path, out: Path, **more: Any) -> None:
    settings = {"precision": "fp32", "batch_size": 2, "lr": 3e-3, "device": "cpu", "context": 80, "quiet": True}
    sft(model, [str(data)], out=out, **{**settings, **more})


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_the_held_out_loss_is_measured(
    tmp_path: Path, base_model: Path, dialogues: Path, llamactl: Command
) -> None:
    out = tmp_path / "chat"
    flags = ["--context", 80, "--epochs", 6, "--eval", dialogues, "--eval-every", 10, "-o", out]
    done = llamactl("sft", base_model, dialogues, *FLAGS, *flags, status=0)
    assert done.stdout == f"{out}\n"
    lines = metrics(out)
    measured = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    last = lines[-1]["step"]
    assert [*measured] == sorted({0, *range(10, last, 10), last})
    assert measured[last] < 0.5 * measured[0]
    assert measured[0] == pytest.approx(lines[1]["loss"], rel=0.2)  # of the first step, on some of the same
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["examples"] == 16
    assert manifest["noted"] == {"dialogues whose prompt is held out, too: that loss says little of new ones": 16}
    assert manifest["held_out"] == [[step, loss] for step, loss in measured.items()]
    assert 0.5 < manifest["fill"] <= 1
    prompt = json.dumps({"messages": turns("What is heapq?")})
    answer = llamactl("generate", out, "--temperature", 0, "--max-new-tokens", 40, stdin=prompt, status=0)
    assert isinstance(json.loads(answer.stdout)["response"], str)


@contextmanager
def stopped_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a signal had come after so many steps."""
    real = loop.take

    def take(*arguments: Any, **named: Any) -> Any:
        nonlocal steps
        steps -= 1
        if steps == 0:
            arguments[6].caught.append(15)
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take", take)
        yield


@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_it_goes_on_to_the_same_bits(
    tmp_path: Path, base_model: Path, dialogues: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    run(base_model, dialogues, tmp_path / "whole", steps=6, eval=dialogues, eval_every=2)
    with stopped_after(stop, monkeypatch), pytest.raises(Interrupted):
        run(base_model, dialogues, tmp_path / "parts", steps=6, eval=dialogues, eval_every=2)
    run(base_model, dialogues, tmp_path / "parts", steps=6, eval=dialogues, eval_every=2)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)
    seen = [[(m["step"], m.get("loss"), m.get("eval_loss")) for m in metrics(tmp_path / n)] for n in ("whole", "parts")]
    assert seen[0] == seen[1]
    made = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "parts")]
    assert made[0]["held_out"] == made[1]["held_out"]
    assert made[0]["settings"] == made[1]["settings"]
    assert "overwrite" not in made[0]["settings"]


@pytest.mark.parametrize("late", [0, 1])
def test_a_signal_is_not_kept_waiting_for_what_is_held_out(
    tmp_path: Path, base_model: Path, dialogues: Path, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """Losses that were due after the step are measured when the run goes on: the same."""
    how = {"steps": 6, "eval": dialogues, "eval_every": 2, "save_every": 6, "log_every": 5}
    run(base_model, dialogues, tmp_path / "whole", **how)
    monkeypatch.setitem(loop.LAG, "cpu", late)  # as on a GPU, where the next step is launched before one is read
    with stopped_after(2, monkeypatch), pytest.raises(Interrupted, match="after step 2"):
        run(base_model, dialogues, tmp_path / "parts", **how)
    assert [(line["step"], "eval_loss" in line) for line in metrics(tmp_path / "parts")] == [(0, True), (2, False)]
    run(base_model, dialogues, tmp_path / "parts", **how)
    seen = [[(m["step"], m.get("loss"), m.get("eval_loss")) for m in metrics(tmp_path / n)] for n in ("whole", "parts")]
    assert seen[0] == seen[1]
    assert [step for step, *_ in seen[0]] == [0, 2, 4, 5, 6]


def test_how_a_batch_is_cut_changes_nothing_but_rounding(tmp_path: Path, base_model: Path, dialogues: Path) -> None:
    losses = []
    for micro_batch in (1, 3, 4):
        out = tmp_path / str(micro_batch)
        run(base_model, dialogues, out, steps=3, batch_size=4, micro_batch=micro_batch)
        losses.append([line["loss"] for line in metrics(out)])
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)


def test_the_loss_is_a_mean_over_answer_tokens(tmp_path: Path, base_model: Path, dialogues: Path) -> None:
    """That of the first step is the held-out loss of the same dialogues before it, in one batch."""
    run(base_model, dialogues, tmp_path / "count", steps=1)
    sequences = json.loads((tmp_path / "count" / "run.json").read_text())["sequences"]
    run(base_model, dialogues, tmp_path / "x", steps=1, batch_size=sequences, eval=dialogues, micro_batch=2)
    lines = metrics(tmp_path / "x")
    assert lines[1]["loss"] == pytest.approx(lines[0]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("flags", [[], ["--tensor-parallel", "2"]], ids=["sharded", "tensor parallel"])
def test_two_processes_come_to_what_one_comes_to(
    tmp_path: Path, base_model: Path, dialogues: Path, flags: list[str]
) -> None:
    """Also where they have an odd number of held-out sequences to share."""
    run(base_model, dialogues, tmp_path / "one", steps=3, micro_batch=1, batch_size=4, eval=dialogues, eval_every=1)
    arguments = [
        "sft", base_model, dialogues, "--precision", "fp32", "--batch-size", 4, "--lr", "3e-3", "--device", "cpu",
        "--context", 80, "--steps", 3, "--micro-batch", 1, "--eval", dialogues, "--eval-every", 1,
        "-o", tmp_path / "two", *flags,
    ]  # fmt: skip
    store, processes = meeting(), []
    for rank in range(2):
        streams = tmp_path / f"out{rank}", tmp_path / f"err{rank}"
        given = ([*map(str, arguments)], streams, environment(rank, 2, store.port), Trouble())
        processes.append(SERVER.Process(target=process_of_command, args=given))
    for each in processes:
        each.start()
    assert ended(processes, 60) == [0, 0], (tmp_path / "err0").read_text() + (tmp_path / "err1").read_text()
    one, two = ([(m.get("loss"), m.get("eval_loss")) for m in metrics(tmp_path / name)] for name in ("one", "two"))
    assert [loss for loss, _ in two[1:]] == pytest.approx([loss for loss, _ in one[1:]], rel=1e-5)
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-5)


def test_a_dry_run_says_what_would_be_done(
    tmp_path: Path, base_model: Path, dialogues: Path, llamactl: Command
) -> None:
    flags = ["--context", 80, "--dry-run", "--device", "a100-80gb"]
    done = llamactl("sft", base_model, dialogues, "--batch-size", 3, *flags, cwd=tmp_path, status=0)
    said = " ".join(done.stderr.split())
    assert "examples 16, of" in said
    sequences = int(said.partition("into ")[2].split()[0])  # those of two epochs do not fill the last step
    steps = math.ceil(sequences * 2 / 3)
    assert f"steps {steps} of 3 sequences, 240 tokens: {steps * 3 / sequences:.2f} epochs" in said
    assert "it fits" in said
    assert not (tmp_path / "sft").exists()


def test_a_plan_says_what_is_left_out_and_cut(
    tmp_path: Path, base_model: Path, dialogues: Path, llamactl: Command
) -> None:
    bad = [{"messages": turns("a")}] * 7 + [{"messages": turns("a", "b " * 200)}] * 2
    more = written(tmp_path / "more.jsonl", bad)
    flags = ["--context", 80, "--dry-run", "--device", "a100-80gb", "--skip-bad", "--truncate"]
    said = " ".join(llamactl("sft", base_model, dialogues, more, *flags, cwd=tmp_path, status=0).stderr.split())
    assert "skipped 7 bad records" in said
    assert "not as it was 2 dialogues cut, " in said
    assert "tokens cut off" in said
    long = written(tmp_path / "long.jsonl", bad[-1:])
    said = llamactl("sft", base_model, dialogues, "--eval", long, *flags, cwd=tmp_path, status=0).stderr
    assert "1 held-out dialogues cut" in said and " dialogues cut" not in said.replace("held-out dialogues cut", "")


def test_over_fitting_is_said(tmp_path: Path, base_model: Path, dialogues: Path, llamactl: Command) -> None:
    other = written(tmp_path / "other.jsonl", [{"messages": turns("What is textwrap?", "Quite another thing, zzz!")}])
    flags = ["--context", 80, "--epochs", 12, "--eval", other, "--eval-every", 3, "-o", tmp_path / "x"]
    done = llamactl("sft", base_model, dialogues, *FLAGS, *flags, "-q", status=0)
    assert "held-out loss has risen" in done.stderr


def test_a_model_whose_held_out_loss_is_not_finite_is_no_result(
    tmp_path: Path, base_model: Path, dialogues: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is it when the run is taken up again, whose last step is done."""
    how = {"steps": 1, "lr": 1e40, "eval": dialogues}
    for _ in range(2):
        with pytest.raises(Fault, match="x: the last held-out loss is not finite; the state of step 1 is saved; look"):
            run(base_model, dialogues, tmp_path / "x", **how)
        assert not (tmp_path / "x" / "run.json").exists()
    assert list((tmp_path / "x" / "state").glob("step-*1"))
    assert capsys.readouterr().err.count("held-out loss after step 1 is nan: look at the data, or lower --lr") == 1


def test_a_held_out_loss_that_is_not_finite_is_warned_of_and_no_measure_for_others(
    tmp_path: Path, base_model: Path, dialogues: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also where the log of an interrupted run has it."""
    losses = iter([3.0, math.nan, 2.0, 2.5, math.inf, 2.5])
    monkeypatch.setattr(HeldOut, "losses", lambda *_: [next(losses)])
    how = {"steps": 5, "eval": dialogues, "eval_every": 1}
    with stopped_after(2, monkeypatch), pytest.raises(Interrupted):
        run(base_model, dialogues, tmp_path / "x", **how)
    assert metrics(tmp_path / "x")[1]["eval_loss"] is None
    run(base_model, dialogues, tmp_path / "x", **how)
    held_out = json.loads((tmp_path / "x" / "run.json").read_text())["held_out"]
    assert held_out == [[0, 3.0], [1, None], [2, 2.0], [3, 2.5], [4, None], [5, 2.5]]
    said = " ".join(capsys.readouterr().err.split())
    assert "held-out loss after step 1 is nan" in said
    assert "held-out loss after step 4 is inf" in said
    assert said.count("held-out loss has risen from 2.0000 after step 2 to 2.5000 after step 5") == 1


# -- bad input


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "a", "output": "b"}, "response or messages: missing"),
        ({"prompt": turns("a"), "chosen": turns("", "b")[1:], "rejected": turns("", "c")[1:]}, "llamactl convert"),
        ({"messages": turns("a [INST]", "b")}, "holds [INST]"),
        ({"messages": turns("a")}, "holds no answer to learn from"),
        ({"messages": turns("a", "  ")}, "is an answer without a text"),
        ({"messages": turns("a", "b " * 200)}, "--truncate"),
    ],
)
def test_a_record_of_no_use_is_refused_with_its_place(
    tmp_path: Path, base_model: Path, record: dict[str, Any], said: str
) -> None:
    path = written(tmp_path / "d.jsonl", [{"messages": turns("a", "b")}, record])
    with pytest.raises(Fault) as fault:
        run(base_model, path, tmp_path / "x")
    assert str(fault.value).startswith(f"{path}:2")
    assert said in str(fault.value)
    assert not (tmp_path / "x").exists()
    run(base_model, path, tmp_path / "x", skip_bad=True, steps=1)
    assert json.loads((tmp_path / "x" / "run.json").read_text())["skipped"] == {"bad records": 1}


def test_nothing_left_to_learn_is_a_fault(tmp_path: Path, base_model: Path) -> None:
    path = written(tmp_path / "d.jsonl", [{"messages": turns("a", "b " * 200)}])
    with pytest.raises(Fault, match="holds no dialogue to learn from"):
        run(base_model, path, tmp_path / "x", skip_bad=True)


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, base_model: Path, dialogues: Path) -> None:
    import shutil

    with pytest.raises(Fault, match="--context: 4,096 is longer than the model's, 128"):
        run(base_model, dialogues, tmp_path / "x", context=4096)
    for name in ("no tokenizer", "reward", "small"):
        shutil.copytree(base_model, tmp_path / name, ignore=shutil.ignore_patterns("state"))
    (tmp_path / "no tokenizer" / "tokenizer.model").unlink()
    with pytest.raises(Fault, match=r"tokenizer\.model: no such file"):
        run(tmp_path / "no tokenizer", dialogues, tmp_path / "x")
    for name, change in (
        ("reward", {"architectures": ["LlamaForSequenceClassification"]}),
        ("small", {"vocab_size": 100}),
    ):
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(Fault, match="is a reward model, where a language model is wanted"):
        run(tmp_path / "reward", dialogues, tmp_path / "x")
    with pytest.raises(Fault, match="a model of 100 ids does not fit a tokenizer of 512"):
        run(tmp_path / "small", dialogues, tmp_path / "x")
