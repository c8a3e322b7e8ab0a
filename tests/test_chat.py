"""A conversation as such, the command over a pipe, and in a terminal."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import torch
import zstandard
from conftest import PATIENCE
from typer.testing import CliRunner

from llamactl import ui
from llamactl.artifacts import checkpoint, jsonl
from llamactl.artifacts.records import Dialogue
from llamactl.cli import app
from llamactl.errors import Fault
from llamactl.model.config import Config
from llamactl.model.generate import Token
from llamactl.model.llama import Llama
from llamactl.text import dialogue
from llamactl.text.conversation import HELP, Conversation, typed
from llamactl.text.tokenizer import EOS, Tokenizer

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

HOW = ["--max-new-tokens", "12", "--temperature", "1", "--seed", "3"]
Turns = list[tuple[str, str]]


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.fixture
def talk(tokenizer: Tokenizer) -> Conversation:
    return Conversation(tokenizer, context=128, longest=20)


def answered(talk: Conversation, text: str, answer: str, end: bool = True) -> str:
    """Say something, and have this answered as a model would; the pieces of it, one after the other."""
    ids = talk._tokenizer.encode(answer) + [EOS] * end
    talk.say(text)
    return "|".join(filter(None, talk.hear(Token(0, 0, token, 0.0, n + 1 == len(ids)) for n, token in enumerate(ids))))


def turns(talk: Conversation) -> Turns:
    return [(message.role[0], message.content) for message in talk.messages]


# -- a conversation, without a model


def test_what_the_model_sees_is_the_prompt_of_the_same_messages(talk: Conversation, tokenizer: Tokenizer) -> None:
    talk.begin("Be kind.", "--system")
    assert answered(talk, " What is a heap? ", "A tree.").replace("|", "") == "A tree."
    seen = talk.say("Why?")
    assert turns(talk) == [("s", "Be kind."), ("u", "What is a heap?"), ("a", "A tree."), ("u", "Why?"), ("a", "")]
    assert seen == (dialogue.encode(talk.messages[:-1], tokenizer).ids, 0)


def test_an_answer_comes_in_pieces_of_whole_characters(talk: Conversation) -> None:
    pieces = answered(talk, "x", "雪だるま is ☃").split("|")
    assert "".join(pieces) == talk.messages[-1].content == "雪だるま is ☃"
    assert len(pieces) > 5
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_how_an_answer_ended(talk: Conversation) -> None:
    answered(talk, "a", "b")
    assert talk.ending == ""
    answered(talk, "a", "b", end=False)
    assert re.fullmatch(r"cut at \d tokens, by the end of the context", talk.ending)
    answered(talk, "a", "", end=True)
    assert "empty answer" in talk.ending
    talk.say("a")
    assert list(talk.hear(Token(0, 0, 70, 0.0, n == 19) for n in range(20)))
    assert talk.ending == "cut at 20 tokens, by --max-new-tokens"


def test_an_answer_that_is_stopped_keeps_what_was_said(talk: Conversation, tokenizer: Tokenizer) -> None:
    answered(talk, "a", "b")
    talk.say("Count.")
    ids = tokenizer.encode("one two three")
    pieces = talk.hear(Token(0, 0, token, 0.0, False) for token in ids)
    said = next(pieces) + next(pieces)
    talk.stop()
    assert talk.messages[-1].content == said != ""
    assert "stays" in talk.ending
    talk.say("And?")
    talk.stop()
    assert "taken back: And?" in talk.ending
    assert turns(talk)[-2:] == [("u", "Count."), ("a", said)]


def test_the_oldest_pairs_are_left_out_of_what_the_model_sees(talk: Conversation, tokenizer: Tokenizer) -> None:
    talk.begin("Be kind.", "--system")
    left = []
    for number in range(12):
        answered(talk, f"Question {number}", f"Answer {number}")
        left.append(talk.say("Next?").left_out)
        talk.undo()
    assert left[0] == 0
    assert left == sorted(left)
    assert left[-1] > 6
    seen = talk.say("Next?")
    kept = dialogue.encode([talk.messages[0], *talk.messages[1 + 2 * seen.left_out : -1]], tokenizer).ids
    assert seen.ids == kept
    assert len(kept) + talk.room <= 128
    more = dialogue.encode([talk.messages[0], *talk.messages[2 * seen.left_out - 1 : -1]], tokenizer).ids
    assert len(more) + talk.room > 128
    assert len(talk.messages) == 1 + 2 * 13


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_message_that_does_not_fit_is_refused_with_the_numbers(talk: Conversation, system: str) -> None:
    talk.begin(system, "--system")
    answered(talk, "a", "b")
    before = turns(talk)
    with pytest.raises(Fault, match=r"the message: is \d{3} tokens long.*, the model's context 128: ") as refused:
        talk.say("x " * 120)
    assert ("with the system message" in str(refused.value)) == bool(system)
    assert turns(talk) == before
    seen = talk.say("x " * (35 if system else 48))
    assert 108 < len(seen.ids) < 128  # such a one is answered, in the room that is left
    assert seen.left_out == 1


def test_an_answer_may_be_longer_than_half_of_the_context(tokenizer: Tokenizer) -> None:
    """But the conversation is not forgotten for the sake of it."""
    talk = Conversation(tokenizer, context=128, longest=4096)
    answered(talk, "a", "b")
    assert talk.say("c").left_out == 0


@pytest.mark.parametrize("tag", dialogue.TAGS)
def test_tags_are_refused(talk: Conversation, tokenizer: Tokenizer, tag: str) -> None:
    for ask in (talk.say, lambda text: talk.obey(f"/system {text}")):
        with pytest.raises(Fault, match=re.escape(f": holds {tag}, which is the chat format's own; --allow-tags")):
            ask(f"a {tag} b")
    assert talk.messages == []
    assert Conversation(tokenizer, 128, 20, allow_tags=True).say(f"a {tag} b").ids


def test_text_that_is_none_is_refused(talk: Conversation) -> None:
    with pytest.raises(Fault, match="the message: is not UTF-8; "):
        talk.say(os.fsdecode(b"caf\xe9"))


def test_commands(talk: Conversation) -> None:
    assert talk.obey("/help") == HELP
    assert talk.obey("/system") == "there is no system message"
    answered(talk, "a", "b")
    assert "starts over" in talk.obey("/system  Be  kind. ")
    assert talk.obey("/system\t") == "Be  kind."
    assert turns(talk) == [("s", "Be  kind.")]
    answered(talk, "a", "b")
    answered(talk, "c", "d")
    assert talk.obey("/undo") == "taken back: c"
    assert turns(talk) == [("s", "Be  kind."), ("u", "a"), ("a", "b")]
    assert talk.obey("/reset") == "1 pair of message and answer forgotten; the system message stays"
    assert turns(talk) == [("s", "Be  kind.")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nosuch thing", "/nosuch: is no command; /help lists them"),
        ("/Reset", "/Reset: is no command"),
        ("/", "/: is no command"),
        ("/undo", "/undo: nothing was said yet"),
        ("/undo 2", "/undo: takes nothing after it"),
        ("/save x.jsonl", "/save: nothing was said yet"),
        ("/save", "/save: needs the name of a file"),
    ],
)
def test_commands_that_cannot_be_carried_out(talk: Conversation, line: str, said: str) -> None:
    with pytest.raises(Fault, match=re.escape(said)):
        talk.obey(line)


# -- /save


def saved(path: Path) -> list[dict[str, Any]]:
    """The Dialogues of a file, each one that a stage would accept."""
    found = list(jsonl.read([str(path)], Dialogue))
    for record, _, where in found:
        dialogue.check_answers(record.messages, where)
    return [raw for _, raw, _ in found]


TURN = {"role": "user", "content": "ü"}
OTHER = {"messages": [TURN, {"role": "assistant", "content": "v"}], "id": 7, "more": [None]}


@pytest.mark.parametrize("name", ["new.jsonl", "new.jsonl.zst", "below/new.txt"])
def test_a_conversation_is_saved_as_a_dialogue(talk: Conversation, tmp_path: Path, name: str) -> None:
    talk.begin("Be kind.", "--system")
    answered(talk, "a\\b", "雪")
    path = tmp_path / name
    assert talk.obey(f"/save {path}") == f"{path}: 1 pair of message and answer written as a Dialogue"
    assert saved(path) == [
        {"messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "a\\b"},
            {"role": "assistant", "content": "雪"},
        ]}
    ]  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("name", ["old.jsonl", "old.jsonl.zst"])
def test_a_conversation_is_added_to_a_file_of_dialogues(
    talk: Conversation, tmp_path: Path, name: str, end: bytes
) -> None:
    answered(talk, "a", "b")
    path = tmp_path / name
    old = orjson.dumps(OTHER) + end
    path.write_bytes(zstandard.compress(old) if name.endswith(".zst") else old)
    path.chmod(0o640)
    assert talk.obey(f"/save {path}") == f"{path}: 1 pair of message and answer added as Dialogue 2 of the file"
    answered(talk, "c", "d")
    assert talk.obey(f"/save {path}") == f"{path}: 2 pairs of message and answer added as Dialogue 3 of the file"
    first, second, third = saved(path)
    assert first == OTHER
    assert [len(one["messages"]) for one in (second, third)] == [2, 4]
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("notes.txt", "precious", "exists, and its name is not that of a .jsonl"),
        ("d.jsonl", '{"text": "a"}', "(PATH:1: messages: missing"),
        ("d.jsonl", "precious\n", "(PATH:1: is no JSON"),
        ("d.jsonl", json.dumps(OTHER | {"response": "b"}), "(PATH:1: is no Dialogue that ends on an answer"),
        ("d.jsonl", json.dumps({"messages": [TURN]}), "(PATH:1: is no Dialogue that ends on an answer"),
        ("d.jsonl", json.dumps({"messages": []}), "(PATH:1: is no Dialogue that ends on an answer"),
    ],
)
def test_what_is_no_file_of_dialogues_stays_as_it_is(
    talk: Conversation, tmp_path: Path, name: str, data: str, said: str
) -> None:
    answered(talk, "a", "b")
    path = tmp_path / name
    path.write_text(data)
    with pytest.raises(Fault) as refused:
        talk.obey(f"/save {path}")
    assert str(refused.value).startswith(f"{path}: ")
    assert said.replace("PATH", str(path)) in str(refused.value)
    assert str(refused.value).endswith("; name another file")
    assert path.read_text() == data
    assert list(tmp_path.iterdir()) == [path]


def test_other_places_where_nothing_is_saved(talk: Conversation, tmp_path: Path) -> None:
    answered(talk, "a", "b")
    made = tmp_path / "made.jsonl"
    made.write_text(json.dumps(OTHER))
    made.with_name("made.jsonl.run.json").write_text("{}")
    for place in (tmp_path, made, "/dev/null", "/proc/x.jsonl", "a\0b"):
        with pytest.raises(Fault):
            talk.obey(f"/save {place}")
    assert Path("/dev/null").is_char_device()
    assert made.read_text() == json.dumps(OTHER)


def test_an_empty_file_is_filled(talk: Conversation, tmp_path: Path) -> None:
    """As mktemp makes them."""
    answered(talk, "a", "b")
    path = tmp_path / "tmp.x1"
    path.touch()
    assert "written" in talk.obey(f"/save {path}")
    assert len(saved(path)) == 1


# -- over a pipe


@pytest.fixture
def chat(base_model: Path) -> Callable[..., Ended]:
    """The command in this process, with its stdin."""

    def run(stdin: str | bytes, *flags: object, status: int = 0, model: Path = base_model) -> Ended:
        result = CliRunner().invoke(app, ["chat", str(model), *HOW, *map(str, flags)], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.stderr
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


def generated(model: Path, messages: list[dict[str, str]], tmp_path: Path, *flags: str) -> str:
    """What `generate` answers."""
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": messages}))
    result = CliRunner().invoke(app, ["generate", str(model), str(tmp_path / "asked.jsonl"), *HOW, *flags])
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["response"])


def test_answers_are_those_of_generate(chat: Callable[..., Ended], base_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    stdin = f"Sum?\r\n\n  \n☃\n /e\n/save {path}\n"
    short = "--max-new-tokens", "8"  # or what such a model says may fill its context, once written out
    ended = chat(stdin, "--system", "Be.", *short)
    assert "context is full" not in ended.stderr
    (record,) = saved_as_is(path)
    messages = record["messages"]
    said = [message["content"] for message in messages if message["role"] == "user"]
    assert said == ["Sum?", "☃", "/e"]
    for at in (1, 3, 5):
        assert messages[at + 1]["content"] == generated(base_model, messages[: at + 1], tmp_path, *short)
    assert ended.stdout == "".join(f"{messages[at]['content']}\n\n" for at in (2, 4, 6))
    assert f"{path}: 3 pairs of message and answer written as a Dialogue\n" in ended.stderr
    assert "cut at 8 tokens, by --max-new-tokens" in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "> " not in ended.stdout + ended.stderr
    again = chat(stdin.replace("said.jsonl", "again.jsonl"), "--system", "Be.", "-q", *short)
    assert again.stdout == ended.stdout
    assert again.stderr.count("\n") == 1  # what /save has to say
    validated = CliRunner().invoke(app, ["validate", str(path), "--tokenizer", str(base_model)])
    assert validated.exit_code == 0, validated.stderr
    converted = CliRunner().invoke(app, ["convert", str(path), "--to", "dialogues"])
    assert [json.loads(line) for line in converted.stdout.splitlines()] == [record]


def saved_as_is(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_commands_over_a_pipe(chat: Callable[..., Ended]) -> None:
    once = chat("a\n").stdout
    assert chat("a\n/undo\na\n").stdout == once * 2
    assert chat("a\n/reset\na\n").stdout == once * 2
    assert chat("a\n/quit\nb\n").stdout == once
    assert chat("\ufeffa").stdout == once
    with_system = chat("a\n", "--system", "Be kind.").stdout
    assert with_system != once
    assert chat("a\n/system Be kind.\na\n/system\n").stdout == once + with_system
    shown = chat("/help\n/system\n", "-q")
    assert (shown.stdout, shown.stderr) == ("", f"{HELP}\nthere is no system message\n")
    assert chat("").stdout == chat("\n\n").stdout == ""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b"a\nx [INST] y\nb\n", "stdin:2: the message: holds [INST], which is the chat format's own; --allow-tags"),
        (b"a\n\ncaf\xe9\n", "stdin:3: the message: is not UTF-8; "),
        (b"a\n/nosuch\n", "stdin:2: /nosuch: is no command; "),
        (b"a\n/save /proc/x\n", "stdin:2: /proc/x: "),
        (b"a\n" + b"x " * 200, "stdin:2: the message: is 416 tokens long, the model's context 128: no room"),
        (b"a\n/system <<SYS>>\n", "stdin:2: /system: holds <<SYS>>"),
    ],
)
def test_what_cannot_be_said_ends_a_pipe(chat: Callable[..., Ended], lines: bytes, said: str) -> None:
    """What came before it is answered."""
    ended = chat(lines, "-q", status=1)
    assert ended.stderr.startswith(f"llamactl: {said}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == chat("a\n").stdout


def test_a_line_without_an_end(chat: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamactl.artifacts.jsonl.MAX_LINE", 100)
    assert "stdin:2: the line is longer than 100 bytes" in chat("a\n" + "b" * 1000, "-q", status=1).stderr


def test_tags_in_the_system_message_are_refused(chat: Callable[..., Ended]) -> None:
    ended = chat("a\n", "--system", "[INST]", status=1)
    assert ended.stderr.startswith("llamactl: --system: holds [INST]")
    assert chat("a [INST]\n", "--system", "[INST]", "--allow-tags").stdout


def test_what_the_model_does_not_see_is_said_and_saved(chat: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    ended = chat("".join(f"Question {n}\n" for n in range(6)) + f"/save {path}\n", "-q")
    said = [line for line in ended.stderr.splitlines() if "context" in line]
    assert said
    assert re.fullmatch(r"the context is full: the model does not see the oldest \d of the 5 earlier pairs", said[-1])
    assert len(saved_as_is(path)[0]["messages"]) == 12


def test_a_model_of_another_chat_format_is_warned_about(
    chat: Callable[..., Ended], base_model: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (stranger / name).symlink_to(base_model / name)
    (stranger / "tokenizer_config.json").write_text('{"chat_template": "<|im_start|>"}')
    ended = chat("a\n", "-q", model=stranger)
    assert f"{stranger}: has a chat template without [INST]" in ended.stderr
    assert ended.stdout


def test_each_answer_is_there_before_the_next_line_is_read_and_a_reader_may_leave(base_model: Path) -> None:
    command = [sys.executable, "-m", "llamactl", "chat", str(base_model), *HOW, "-q"]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"a\n")
        process.stdin.flush()
        while process.stdout.readline() != b"\n":
            assert process.poll() is None
        process.stdout.close()
        process.stdin.write(b"b\n")
        process.stdin.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (141, b"")


# -- in a terminal


def test_control_characters_are_shown_not_obeyed() -> None:
    assert ui.harmless("a\x1b[2J\r\x07\x7f\x9b\tb\n雪") == "a␛[2J␍␇��\tb\n雪"


def test_the_prompt_is_not_among_answers_that_go_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in ``llamactl chat MODEL > answers.txt``."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\n /b \ncaf\xe9"), encoding="utf-8"))
    assert list(typed("> ")) == [("", "a"), ("", " /b "), ("", os.fsdecode(b"caf\xe9"))]
    assert capsys.readouterr() == ("", "> > > > > \n")


# A process of its own session, whose terminal is the pty: so that Ctrl-C is a character, as under a shell.
SESSION = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(*eval(sys.argv[1]))"
)


class Terminal:
    """What a person sees and types."""

    def __init__(self, process: "subprocess.Popen[bytes]", side: int) -> None:
        self.process, self._side, self.shown = process, side, ""

    def until(self, end: str) -> str:
        """What is shown until ``end`` is, without what was asked for before."""
        data, stop = b"", time.monotonic() + PATIENCE
        while not data.decode(errors="ignore").replace("\r\n", "\n").endswith(end):
            assert time.monotonic() < stop, data
            if select.select([self._side], [], [], 0.2)[0]:
                try:
                    more = os.read(self._side, 1000)
                except OSError:  # how Linux says that the other side has closed
                    more = b""
                assert more, f"ended: {data!r}"
                data += more
        self.shown += data.decode()
        return data.decode().replace("\r\n", "\n")

    def rest(self, typed: str) -> tuple[str, int]:
        """What is shown to the end after something was typed, and the exit status.

        A signal between the prompt and readline's wait for a key is noticed at the next key, so this is typed some time
        after the prompt, and once more where nothing at all comes of it, as a person would. Not where something did: a
        second Ctrl-C would meet a Python that is closing, and knows of none.
        """
        time.sleep(0.5)
        data, stop, again = b"", time.monotonic() + PATIENCE, time.monotonic() + 10
        self.type(typed)
        while True:
            assert time.monotonic() < stop, data
            if not select.select([self._side], [], [], 1)[0]:
                if not data.removeprefix(b"^C") and time.monotonic() > again:
                    self.type(typed)
                    again = stop
                continue
            try:
                more = os.read(self._side, 1000)
            except OSError:
                break
            if not more:
                break
            data += more
        return data.decode().replace("\r\n", "\n"), self.process.wait(PATIENCE)

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())


@contextmanager
def terminal(*arguments: object, cwd: Path, term: str = "dumb") -> Iterator[Terminal]:
    ours, child = pty.openpty()
    command = [sys.executable, "-m", "llamactl", *map(str, arguments)]
    started = [sys.executable, "-c", SESSION, repr((command[0], command))]
    given: dict[str, Any] = {"stdin": child, "stdout": child, "stderr": child, "cwd": cwd}
    with subprocess.Popen(started, **given, env={**os.environ, "TERM": term}) as process:
        os.close(child)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)


def test_a_conversation_in_a_terminal(chat: Callable[..., Ended], base_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    a, b = (chat(f"{line}\n").stdout for line in "ab")
    with terminal("chat", base_model, *HOW, cwd=tmp_path) as person:
        assert person.until("> ") == (
            f"{base_model}, a context of 128 tokens; /help lists the commands, Ctrl-D ends\n> "
        )
        person.type("a\n")
        cut = "cut at 12 tokens, by --max-new-tokens\n"
        assert person.until("> ") == f"a\n{ui.harmless(a)}{cut}> "
        for line, said in (
            ("x [INST] y", "the message: holds [INST], which is the chat format's own; --allow-tags to accept it"),
            ("/nosuch", "/nosuch: is no command; /help lists them; a space before it makes the line a message"),
            ("/save /proc/x", "/proc/x: "),
            ("/undo", "taken back: a"),
        ):
            person.type(f"{line}\n")
            assert person.until("\n> ").startswith(f"{line}\n{said}")
        person.type("☃b\x1b[D\x08\n")  # one to the left, and what stands there is deleted: readline is at work
        assert person.until("> ").endswith(f"{ui.harmless(b)}{cut}> ")
        person.type("/save said.jsonl\n")
        assert "written as a Dialogue" in person.until("> ")
        person.type("\x1b[A")  # the line before
        person.until("/save said.jsonl")
        assert person.rest("\x15\x04")[1] == 0  # the line is emptied, and Ctrl-D
    assert [turn["content"] for turn in saved_as_is(path)[0]["messages"]] == ["b", b[:-2]]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model that says the same for ever."""
    config = Config(dim=32, layers=2, heads=2, kv_heads=2, ffn=32, vocab=tokenizer.vocab, context=20_000)
    model = Llama.create(config, torch.float32, torch.device("cpu"), 0)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.wo.weight.zero_()  # type: ignore[union-attr]
            layer.feed_forward.w2.weight.zero_()  # type: ignore[union-attr]
        model.tok_embeddings.weight.fill_(1)
        model.output.weight.zero_()
        model.output.weight[tokenizer.encode("a a")[-1]] = 1
    path = tmp_path_factory.mktemp("endless") / "model"
    path.mkdir()
    given = tokenizer.proto, dialogue.tokenizer_config(config.context), ""
    checkpoint.save(path, config.to_hf("float32"), model.hf_state(torch.float32), *given)
    return path


def test_ctrl_c_stops_an_answer_and_at_the_prompt_the_conversation(endless: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    with terminal("chat", endless, "--max-new-tokens", 19_000, cwd=tmp_path, term="xterm") as person:
        person.until("> ")
        assert "\x1b[2m" in person.shown  # dim
        for _ in range(2):
            person.type("Count.\n")
            person.until("a a a a")
            person.type("\x03")
            shown = person.until("> ")
            assert "stopped; what was said stays in the conversation" in shown
        person.type("/save said.jsonl\n")
        person.until("> ")
        shown, status = person.rest("\x03")
        assert status == 0
        assert "Traceback" not in shown
        assert "interrupted" not in shown
    messages = saved(path)[0]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert set(messages[1]["content"].split()) == {"a"}
