"""gatt-synth by the command: bytes of what is written, parts, processes, runs that are killed, what cannot be read."""

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, run, turns, written
from test_cli import Run, command, ended_without_a_reader, one_line
from test_journal import struck, together
from test_model import fresh
from test_model import written as model_written

from llamactl.artifacts import files, manifest
from llamactl.model import generate as sampler
from llamactl.model.config import Config
from llamactl.model.llama import Llama
from llamactl.text import constraints
from llamactl.text.tokenizer import EOS, Tokenizer

assert command  # a fixture

SHAPE = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=512, context=256)
FLAGS = ["--device", "cpu", "--temperature", 1, "--top-p", 1, "--max-new-tokens", 24]
LIST = [{"kind": "figure", "name": "Ada"}, {"kind": "format", "name": "capitals"}, {"kind": "hobby", "name": "go"}]
ASKED: list[dict[str, Any]] = [
    {"messages": turns(*says), "id": number, "note": {"é": [number, None]}}
    for number, says in enumerate(
        [
            ("What is a heap?", "A tree.", "Why?", "It is."),
            ("sort", "how", "so", "no", "why"),
            ("x",),
            ("What is a list?", "A row.", "And a queue?", "A line.", "And then?", "Nothing."),
            ("a", "b", "c"),
            ("def", "x", "return"),
        ]
    )
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A chat model that is not trained, and ends its answers with a chance of about a tenth at each token."""
    chat = fresh(SHAPE, seed=3)
    assert isinstance(chat, Llama)
    with torch.no_grad():
        chat.tok_embeddings.weight[:, 0] = 1.0  # so that all that is asked has something in common
        chat.output.weight[EOS] = 0.0
        chat.output.weight[EOS, 0] = 1.5
    return model_written(chat, tmp_path_factory.mktemp("models") / "chat", tokenizer=tokenizer_path.read_bytes())


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    return written(tmp_path / "dialogues.jsonl", ASKED)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return written(tmp_path / "constraints.jsonl", LIST)


@pytest.fixture
def synth(model: Path, dialogues: Path, listed: Path, command: Run) -> Callable[..., Any]:
    """The command on the dialogues; what it writes, and says."""

    def run(*flags: object, asked: object = dialogues) -> Any:
        ended = command("gatt-synth", model, asked, "--constraints", listed, *FLAGS, *flags)
        assert ended.status == 0, ended.stderr
        return lines(ended.stdout), ended.stderr

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def says(monkeypatch: pytest.MonkeyPatch, model: Path, *texts: str | None) -> list[str]:
    """Have the sampler say these texts by turns, cut off where there is none; and what it is asked."""
    tokenizer, asked = Tokenizer.load(model), []

    def finished(_: object, requests: Iterable[Any], *__: object) -> Iterator[tuple[int, list[sampler.Answer]]]:
        for number, request in enumerate(requests):
            text = texts[len(asked) % len(texts)]
            asked.append(tokenizer.decode(request.ids))
            yield (
                number,
                [sampler.Answer(tokenizer.encode(text or "and"), text is not None, [])] * len(request.temperatures),
            )

    monkeypatch.setattr(sampler, "finished", finished)
    return asked


# -- what is written


def test_the_bytes_of_a_training_dialogue(
    model: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = says(monkeypatch, model, "HEAPS ARE TREES.", "SO IT IS.")
    one = written(tmp_path / "one.jsonl", ASKED[:1])
    named = written(tmp_path / "c.jsonl", LIST[1:2])
    made = command("gatt-synth", model, one, "--constraints", named, "--device", "cpu", "--seed", 2)
    text = asked[0].removeprefix("[INST] ").removesuffix("\n\nWhat is a heap? [/INST]")
    assert text in ("Answer in capital letters only.", "Format: capitals.")
    assert asked[1] == f"[INST] {text}\n\nWhat is a heap? [/INST] HEAPS ARE TREES.  [INST] {text}\n\nWhy? [/INST]"
    wanted = (
        '{"messages":['
        '{"role":"user","content":"INSTRUCTION\\n\\nWhat is a heap?"},'
        '{"role":"assistant","content":"HEAPS ARE TREES.","weight":0},'
        '{"role":"user","content":"Why?"},{"role":"assistant","content":"SO IT IS."}],'
        '"id":0,"note":{"é":[0,null]},'
        '"gatt":{"instruction":"INSTRUCTION","terse":TERSE,"constraints":[{"kind":"format","name":"capitals"}],'
        '"place":"user","earlier":"sampled","turns":2,"played":0,"ended":null},'
        '"sampling":{"temperature":0.6,"top_p":0.9,"top_k":0,"seed":2},"model":"MODEL"}\n'
    )
    terse = "true" if "Format" in text else "false"
    assert made.stdout == wanted.replace("INSTRUCTION", text).replace("TERSE", terse).replace("MODEL", str(model))


def test_dialogues_keep_their_order_and_their_fields(synth: Run) -> None:
    made, said = synth()
    assert [one["id"] for one in made] == sorted(one["id"] for one in made)
    assert len(made) >= 4
    for one in made:
        own = ASKED[one["id"]]
        assert one["note"] == own["note"]
        users = [turn["content"] for turn in one["messages"] if turn["role"] == "user"]
        wanted = [turn["content"] for turn in own["messages"] if turn["role"] == "user"]
        assert users == [f"{one['gatt']['instruction']}\n\n{wanted[0]}", *wanted[1 : len(users)]]
        weights = [turn.get("weight", 1) for turn in one["messages"] if turn["role"] == "assistant"]
        assert weights == [0] * (len(weights) - 1) + [1]
    lost = [one for one in said.splitlines() if one.startswith("gatt-synth: skipped ")]
    assert bool(lost) == (len(made) < len(ASKED))


def test_counts_are_of_what_was_made(synth: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    synth("-o", out, "--turns", 3)
    made, counts = lines(out.read_text()), manifest.load(manifest.beside(out))
    assert counts["stage"] == "gatt-synth"
    assert [one["as"] for one in counts["inputs"]] == ["model", "constraints", "dialogues"]
    assert counts["done"]["dialogues"] == len(made)
    assert counts["done"]["turns"] == sum(one["gatt"]["turns"] for one in made)
    assert sum(counts["skipped"].values()) == len(ASKED) - len(made)
    noted = counts["noted"]
    short = sum(times for what, times in noted.items() if what.startswith("dialogues that end early ("))
    assert short == sum(one["gatt"]["ended"] is not None for one in made)
    played = sum(one["gatt"]["played"] for one in made)
    assert noted.get("messages of the user that the model wrote", 0) == played > 0
    one_turn = sum(one["gatt"]["turns"] == 1 for one in made)
    assert noted.get("dialogues of one turn (nothing to keep after it)", 0) == one_turn


def test_sft_learns_the_last_answer_alone(
    model: Path, tmp_path: Path, synth: Run, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``sft`` learns of it is what it learns with ``--loss last`` of the same messages without weights."""
    says(monkeypatch, model, "one two", "three", "four five")
    made, _ = synth()
    plain = [[{key: turn[key] for key in ("role", "content")} for turn in one["messages"]] for one in made]
    tuned = []
    for name, records, flags in (
        ("gatt", made, []),
        ("last", [{"messages": messages} for messages in plain], ["--loss", "last"]),
        ("all", [{"messages": messages} for messages in plain], []),
    ):
        path, out = written(tmp_path / f"{name}.jsonl", records), tmp_path / name
        ended = command("sft", model, path, "-o", out, "--steps", 2, "--device", "cpu", "--precision", "fp32", *flags)
        assert ended.status == 0, ended.stderr
        tuned.append((out / "model.safetensors").read_bytes())
    assert tuned[0] == tuned[1] != tuned[2]


def test_validate_accepts_it(synth: Run, tmp_path: Path, command: Run) -> None:
    made, _ = synth("--place", "system")
    checked = command("validate", written(tmp_path / "made.jsonl", made))
    assert checked.status == 0, checked.stderr


def test_earlier_answers_given(synth: Run) -> None:
    made, _ = synth("--earlier", "given")
    for one in made:
        own = [turn["content"] for turn in ASKED[one["id"]]["messages"]]
        said = [turn["content"] for turn in one["messages"]]
        assert said[1:-1] == own[1 : len(said) - 1]
    assert any(one["gatt"]["turns"] > 1 for one in made)


def test_without_a_list_ours_is_taken_and_that_is_said(model: Path, dialogues: Path, command: Run) -> None:
    ended = command("gatt-synth", model, dialogues, *FLAGS)
    assert ended.status == 0
    ours = constraints.ours()
    assert f"instructions are made of {len(ours)} constraints of ours: --constraints names a file" in ended.stderr
    known = {(one.kind, one.name) for one in ours}
    for made in lines(ended.stdout):
        assert {(one["kind"], one["name"]) for one in made["gatt"]["constraints"]} <= known


def test_nothing_left_of_a_dialogue_is_counted_and_named(
    synth: Run, model: Path, dialogues: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, model, None)
    made, said = synth()
    assert made == []
    assert f"skipped {dialogues}:1: an answer is cut off" in said
    assert "gatt-synth: skipped 6 dialogues without a whole turn" in said


# -- lists


def test_constraints_are_asked_of_the_model_edited_and_passed_back(
    model: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch, dialogues: Path
) -> None:
    out = tmp_path / "made.jsonl"
    with monkeypatch.context() as patched:
        asked = says(patched, model, "1. Chess\n2. Go", "French", "I will not say.")
        ended = command("gatt-synth", model, "--make-constraints", 2, "-o", out, "--device", "cpu")
        assert ended.status == 0, ended.stderr
    assert asked[0] == "[INST] List 2 hobbies. Write the name of one on each line, and nothing else. [/INST]"
    assert out.read_text() == (
        '{"kind":"hobby","name":"Chess"}\n{"kind":"hobby","name":"Go"}\n{"kind":"language","name":"French"}\n'
    )
    assert manifest.load(manifest.beside(out))["done"] == {"constraints": 3}
    assert "2 constraints of kind figure fewer than were asked for" in ended.stderr
    assert "1 constraints of kind language fewer than were asked for" in ended.stderr
    edited = written(tmp_path / "edited.jsonl", lines(out.read_text())[:2])
    made = lines(command("gatt-synth", model, dialogues, "--constraints", edited, *FLAGS).stdout)
    names = {one["gatt"]["constraints"][0]["name"] for one in made}
    assert names and names <= {"Chess", "Go"}


def test_a_model_that_names_nothing(model: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, model, "12\n" + "x" * 60)
    said = one_line(command("gatt-synth", model, "--make-constraints", 5, "--device", "cpu"))
    assert said.startswith(f"{model}: names no hobby, language or public figure when it is asked; write the list")


# -- parts, pipes, processes, and runs that are killed


def test_parts_make_up_the_whole(synth: Run) -> None:
    whole, _ = synth("--turns", 3)
    parts = [synth("--turns", 3, "--shard", f"{n}/2")[0] for n in (0, 1)]
    assert sorted([*parts[0], *parts[1]], key=lambda one: one["id"]) == whole
    assert all(one["id"] % 2 == n for n in (0, 1) for one in parts[n])


def test_a_dialogue_is_the_same_whatever_is_beside_it(
    synth: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = synth("--turns", 2, "--seed", 4)
    reverse, _ = synth("--turns", 2, "--seed", 4, asked=written(tmp_path / "r.jsonl", ASKED[::-1]))
    assert reverse == whole[::-1]
    monkeypatch.setattr("llamactl.align.gatt.WINDOW", 2)
    assert synth("--turns", 2, "--seed", 4)[0] == whole
    assert synth("--turns", 2, "--seed", 5)[0] != whole


def test_from_stdin_to_stdout(model: Path, synth: Run, llamactl: Command, dialogues: Path, listed: Path) -> None:
    flags = ["--constraints", listed, "-q", *FLAGS]
    piped = llamactl("gatt-synth", model, *flags, stdin=dialogues.read_text(), status=0)
    assert lines(piped.stdout) == synth()[0]


def test_a_reader_that_leaves_is_141(model: Path, dialogues: Path, listed: Path) -> None:
    arguments = ["gatt-synth", model, dialogues, "--constraints", listed, *FLAGS, "-q"]
    assert ended_without_a_reader([*map(str, arguments)])[0] == 141


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[object]]:
    """The command with all there is to it, and ``whole`` as what it makes."""
    place = tmp_path_factory.mktemp("undisturbed")
    asked, listed = written(place / "dialogues.jsonl", ASKED), written(place / "c.jsonl", LIST)

    def flags(out: Path) -> list[object]:
        return ["gatt-synth", model, asked, "--constraints", listed, *FLAGS, "--turns", 3, "-o", out]

    run(*flags(place / "whole.jsonl"), status=0)
    return flags


def numbers(out: Path) -> dict[str, Any]:
    made = manifest.load(manifest.beside(out))
    return {key: made[key] for key in ("done", "skipped", "noted", "settings", "inputs")}


@pytest.mark.parametrize(("moment", "count"), [("add", 1), ("add", 4), ("sync", 1), ("rename", 2)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path, command: Run, moment: str, count: int
) -> None:
    asked, out = undisturbed(tmp_path / "out.jsonl"), tmp_path / "out.jsonl"
    whole = Path(str(asked[2])).with_name("whole.jsonl")
    assert struck(asked, moment, count) == -signal.SIGKILL
    again = command(*asked)
    assert again.status == 0, again.stderr
    if (moment, count) == ("add", 4):
        assert f"{out}: going on after 3 records" in again.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert numbers(out) == numbers(whole)
    assert not list(tmp_path.glob(".*"))


def test_two_processes_make_what_one_does(undisturbed: Callable[[Path], list[object]], tmp_path: Path) -> None:
    asked, out = undisturbed(tmp_path / "out.jsonl"), tmp_path / "out.jsonl"
    assert together(asked) == [0, 0]
    whole = Path(str(asked[2])).with_name("whole.jsonl")
    assert out.read_bytes() == whole.read_bytes()
    assert numbers(out) == numbers(whole)


def test_the_same_command_again_does_nothing(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path, command: Run
) -> None:
    asked = undisturbed(Path(str(undisturbed(tmp_path)[2])).with_name("whole.jsonl"))
    assert "already made" in command(*asked).stderr
    assert "with turns 3, not 2" in one_line(command(*asked, "--turns", 2))
    assert not files.journal(Path(str(asked[-1]))).exists()


# -- what cannot be


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": [{"role": "system", "content": "a"}]}, "messages: holds no user turn; mend it, or leave it out"),
        ({"messages": turns("a", "b", "c")[1:]}, "messages[0].role: is assistant, where user is due"),
        ({"text": "a"}, "response or messages: missing (the record has: text); llamactl convert "),
        ({"messages": turns("see [INST]")}, "messages[0].content: holds [INST], which is the chat format's own"),
        ({"messages": turns("a"), "gatt": {}}, "gatt: was made by gatt-synth: it holds an instruction already"),
        ({"messages": turns("word " * 300)}, "its first turn is "),
    ],
)
def test_a_bad_dialogue_is_named_with_its_line_or_skipped(
    model: Path, tmp_path: Path, listed: Path, command: Run, record: dict[str, Any], said: str
) -> None:
    path = written(tmp_path / "bad.jsonl", [ASKED[0], record, ASKED[4]])
    flags = ["gatt-synth", model, path, "--constraints", listed, *FLAGS]
    out = tmp_path / "out.jsonl"
    assert said in one_line(command(*flags, "-o", out))
    assert f"{path}:2: " in one_line(command(*flags, "-o", out))
    assert not out.exists()
    passed = command(*flags, "-o", out, "--skip-bad")
    assert passed.status == 0
    assert "skipped 1 bad records" in passed.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("\n", "holds blank lines only; leave it out"),
        (
            '{"kind": "figure", "name": "Ada"}\n{"kind": "figure", "name": "ADA"}\n',
            ":2: is the figure ADA of line 1 again",
        ),
        ('{"kind": "figure"}\n', ":1: name: is missing"),
        (json.dumps({"kind": "figure", "name": "Ada " * 200}) + "\n", "tokens long, the model's context 256; word it"),
    ],
)
def test_a_bad_list_is_refused(
    model: Path, dialogues: Path, tmp_path: Path, command: Run, content: str, said: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(content)
    line = one_line(command("gatt-synth", model, dialogues, "--constraints", path, *FLAGS))
    assert line.startswith(f"{path}")
    assert said in line


def test_flags_that_do_not_go_together(model: Path, dialogues: Path, listed: Path, command: Run) -> None:
    both = command("gatt-synth", model, dialogues, "--turns", 2, "--earlier", "given")
    assert one_line(both).startswith("--turns: given with --earlier given; leave one of them off")
    for flags in ([dialogues], ["--constraints", listed]):
        refused = command("gatt-synth", model, *flags, "--make-constraints", 3)
        assert one_line(refused).startswith("--make-constraints: given together with ")
