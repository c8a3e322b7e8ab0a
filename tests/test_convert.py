"""``llamactl convert``: files as people have them in, our records out, and what is said about what cannot be used."""

import gzip
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import zstandard
from conftest import DATA, NO_UTF8, Command
from test_formats import CASES, GOLDEN, a, converted, hh, pair, s, said, talk, text, u

from llamactl.artifacts import manifest
from llamactl.artifacts.records import Comparison, Dialogue, Document, Prompt, Shard, checked
from llamactl.errors import Fault
from llamactl.formats import items, known
from llamactl.formats.rules import Target
from llamactl.text import dialogue
from stages.convert import convert

ALPACA = [
    {"instruction": "Add.", "input": "1 1", "output": "2"},
    {"instruction": "Sing.", "input": "", "output": "La."},
]
DIALOGUES = [talk(u("Add.\n\n1 1"), a("2")), talk(u("Sing."), a("La."))]
LINES = "".join(json.dumps(one) + "\n" for one in DIALOGUES)


def written(path: Path, data: object) -> Path:
    """A file: bytes and text as they are, a list as JSON lines or as an array, by the name."""
    if isinstance(data, list):
        lines = path.name.split(".")[1] == "jsonl"
        data = "".join(json.dumps(one) + "\n" for one in data) if lines else json.dumps(data, indent=1)
    path.write_bytes(data.encode() if isinstance(data, str) else data)  # type: ignore[arg-type]
    return path


def records(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def made(directory: Path, *files: Path, **how: Any) -> list[Any]:
    """The records that the command makes of files, and their manifest at ``out.jsonl.run.json``."""
    convert([str(file) for file in files], out=directory / "out.jsonl", overwrite=True, quiet=True, **how)
    return records(directory / "out.jsonl")


def ran(directory: Path) -> dict[str, Any]:
    return manifest.load(directory / "out.jsonl.run.json")


def refused(directory: Path, *files: Path, **how: Any) -> str:
    """What is said; nothing is left behind."""
    before = sorted(directory.iterdir())
    with pytest.raises(Fault) as caught:
        convert([str(file) for file in files], out=directory / "out.jsonl", quiet=True, **how)
    assert sorted(directory.iterdir()) == before
    return str(caught.value).replace(f"{directory}/", "")


# -- in and out


def test_several_files_of_different_formats_and_what_the_manifest_says_of_them(tmp_path: Path) -> None:
    transcripts = {"chosen": hh("H Hi", "A Yes."), "rejected": ""}
    files = [
        written(tmp_path / "alpaca.json", [*ALPACA, {"instruction": "Stay.", "output": ""}]),
        written(tmp_path / "chat.jsonl", [{"conversations": said("human Hi", "gpt Hello", "human Bye")}]),
        written(tmp_path / "hh.jsonl.gz", gzip.compress(json.dumps(transcripts).encode())),
        written(tmp_path / "truth.csv", '\ufeffQuestion,Best Answer,Category\r\n"Is it, or\r\nnot?",No,Law\r\n'),
    ]  # fmt: skip
    assert made(tmp_path, *files) == [
        *DIALOGUES,
        talk(u("Hi"), a("Hello")),
        talk(u("Hi"), a("Yes.")),
        talk(u("Is it, or\r\nnot?"), a("No"), category="Law"),
    ]
    said_so = ran(tmp_path)
    empty, unanswered = {"dialogues without an answer to learn from": 1}, {"last turns without an answer, left off": 1}
    common = {"skipped": {}, "noted": {}, "bad": 0}
    assert said_so["files"] == [
        {**common, "path": str(files[0]), "format": "alpaca", "items": 3, "records": 2, "skipped": empty},
        {**common, "path": str(files[1]), "format": "sharegpt", "items": 1, "records": 1, "noted": unanswered},
        {**common, "path": str(files[2]), "format": "hh-rlhf", "items": 1, "records": 1},
        {**common, "path": str(files[3]), "format": "truthfulqa", "items": 1, "records": 1},
    ]
    assert (said_so["done"], said_so["skipped"], said_so["noted"]) == ({"items": 6, "records": 5}, empty, unanswered)
    assert [(each["as"], each["path"]) for each in said_so["inputs"]] == [("files", str(file)) for file in files]
    assert (said_so["stage"], said_so["settings"]["to"], said_so["settings"]["from"]) == ("convert", "dialogues", None)


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = written(tmp_path / f"{NO_UTF8}.jsonl", LINES)
    assert made(tmp_path, path) == DIALOGUES
    assert ran(tmp_path)["files"][0]["path"] == f"{tmp_path}/caf\\xe9.jsonl"
    convert([str(path)], out=tmp_path / NO_UTF8, quiet=True)
    assert records(tmp_path / NO_UTF8) == DIALOGUES
    assert refused(tmp_path, path, source=NO_UTF8).startswith("--source: is not UTF-8; ")


def test_a_pipe_gets_all_records_or_none(llamactl: Command) -> None:
    """Else ``convert ... | sft`` would train on what came before the bad one. Who skips bad ones gets each at once."""
    given = LINES + "nope\n" + LINES
    done = llamactl("convert", stdin=given, status=1)
    assert (done.stdout, done.stderr.count("-:3: ")) == ("", 1)
    done = llamactl("convert", "--skip-bad", "-q", stdin=given, status=0)
    assert done.stdout == llamactl("convert", "-q", stdin=LINES + LINES, status=0).stdout != ""


def test_standard_input_and_output(llamactl: Command) -> None:
    done = llamactl("convert", stdin=json.dumps(ALPACA, indent=2), status=0)
    assert done.stdout == LINES.replace(": ", ":").replace(", ", ",")
    assert "dialogues made" in done.stderr and "alpaca" in done.stderr
    done = llamactl("convert", "-", "--to", "prompts", "-q", stdin=zstandard.compress(LINES.encode()), status=0)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [talk(u("Add.\n\n1 1")), talk(u("Sing."))]
    assert done.stderr == ""


def test_counts_are_told_even_quietly(tmp_path: Path, llamactl: Command) -> None:
    path = written(tmp_path / "a.json", [*ALPACA, {"instruction": "Stay.", "output": ""}])
    done = llamactl("convert", path, "--quiet", status=0)
    assert done.stderr == "convert: skipped 1 dialogues without an answer to learn from\n"


def test_the_output_is_compressed_by_its_suffix(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", ALPACA)
    convert([str(path)], out=tmp_path / "out.jsonl.zst", quiet=True)
    convert([str(path)], out=tmp_path / "out.jsonl.gz", quiet=True)
    unpacked = zstandard.ZstdDecompressor().stream_reader((tmp_path / "out.jsonl.zst").read_bytes()).read()
    assert [json.loads(line) for line in unpacked.splitlines()] == DIALOGUES
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()) == unpacked
    assert made(tmp_path, tmp_path / "out.jsonl.zst") == DIALOGUES  # and read again


def test_the_same_command_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path / "a.json", ALPACA), tmp_path / "out.jsonl"
    convert([str(path)], out=out)
    before = (out.stat().st_ino, out.stat().st_mtime_ns)
    capsys.readouterr()
    convert([str(path)], out=out)
    assert f"{out}: already made on" in capsys.readouterr().err
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == before
    assert "made otherwise (with to dialogues, not prompts)" in refused_again(path, out, to="prompts")
    moved = path.rename(tmp_path / "moved.json")  # inputs are known by their bytes
    convert([str(moved)], out=out, quiet=True)
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == before
    assert "made otherwise (from other inputs)" in refused_again(written(moved, ALPACA[:1]), out)
    convert([str(moved)], out=out, overwrite=True, quiet=True)
    assert records(out) == DIALOGUES[:1]


def refused_again(path: Path, out: Path, **how: Any) -> str:
    with pytest.raises(Fault) as caught:
        convert([str(path)], out=out, quiet=True, **how)
    return str(caught.value)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_what_was_converted_is_converted_to_itself(tmp_path: Path, name: str, target: Target) -> None:
    values, _, names = GOLDEN[name]
    data: object = dict(zip(names, values, strict=True)) if names else values
    path = tmp_path / ("a.txt" if name == "toxigen" else "a.json")
    path.write_text("\n".join(values) if name == "toxigen" else json.dumps(data))
    first = tmp_path / "first.jsonl"
    convert([str(path)], to=target, out=first, skip_bad=True, quiet=True)
    convert([str(first)], to=target, out=tmp_path / "second.jsonl", quiet=True)
    assert (tmp_path / "second.jsonl").read_bytes() == first.read_bytes()
    assert len(records(first)) >= len(converted(name, target, values, names).records) - 1


# -- flags


def test_the_source_is_that_of_all_records(tmp_path: Path) -> None:
    own = {**DIALOGUES[0], "source": "own"}
    path = written(tmp_path / "a.jsonl", [own, DIALOGUES[1]])
    assert made(tmp_path, path) == [own, DIALOGUES[1]]
    assert made(tmp_path, path, source="given") == [{**one, "source": "given"} for one in DIALOGUES]


def test_safety_tags_prompts_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", DIALOGUES)
    assert made(tmp_path, path, to="prompts", safety=True)[1] == talk(u("Sing."), safety=True)
    for target in ("dialogues", "documents", "comparisons"):
        assert refused(tmp_path, path, to=target, safety=True) == (
            f"--safety: tags prompts, and these are {target}; leave it out, or --to prompts"
        )


def test_the_format_may_be_named(tmp_path: Path) -> None:
    both = written(tmp_path / "a.jsonl", [{**DIALOGUES[0], "text": "x"}])
    assert refused(tmp_path, both) == "a.jsonl:1: fits messages and texts; say which: --from messages, or --from texts"
    said_so = refused(tmp_path, written(tmp_path / "a.json", ALPACA), from_="sharegpt")
    assert said_so.startswith("a.json:2: is no sharegpt: conversations: missing;")
    said_so = refused(tmp_path, both, from_="alpacca")
    assert said_so.startswith("--from: alpacca is no format that is known; choose of messages, samples, comparisons,")
    assert made(tmp_path, both, from_="messages") == DIALOGUES[:1]
    assert made(tmp_path, both, from_="texts", to="documents") == [text("x")]
    assert ran(tmp_path)["settings"]["from"] == "texts"
    assert ran(tmp_path)["noted"] == {"fields of another kind of record, left off": 1}


def test_all_formats_are_listed_with_targets_and_rules(llamactl: Command) -> None:
    listed = llamactl("convert", "--formats", status=0).stdout
    assert all(f"{name}: {', '.join(kind.targets())}\n" in listed for name, kind in known.FORMATS.items())
    assert "A message that was deleted or failed its review is left out with all below it." in listed


@pytest.mark.parametrize("count", [2, 3])
def test_parts_make_the_whole(tmp_path: Path, count: int) -> None:
    """Also where an item makes several records, or none, and of several files."""
    one = written(
        tmp_path / "a.json", [{"query": str(n), "responses": {"x": "1", "y": "2" * (n % 2)}} for n in range(5)]
    )
    two = written(tmp_path / "b.jsonl", [talk(u(f"b{n}"), a("r")) for n in range(4)])
    whole = made(tmp_path, one, two)
    parts = [made(tmp_path, one, two, shard=Shard(index, count)) for index in range(count)]
    assert Counter(map(str, whole)) == sum((Counter(map(str, part)) for part in parts), Counter())
    assert len(whole) == 11
    assert all(parts)
    assert made(tmp_path, two, shard=Shard(8, 9)) == []  # a part may be empty


# -- what cannot be used


def test_one_bad_line_in_many(tmp_path: Path, llamactl: Command) -> None:
    many: list[Any] = [talk(u(str(n)), a("r")) for n in range(300)]
    lines = [json.dumps(one) for one in many]
    path = written(tmp_path / "a.jsonl", "\n".join([*lines[:200], '{"messages": 5}', *lines[200:]]))
    done = llamactl("convert", path, "-o", tmp_path / "out.jsonl", status=1)
    problem = f"{path}:201: is no messages: messages: expected `array`, got `int`"
    assert done.stderr == f"llamactl: {problem}; mend it, or leave it out with --skip-bad\n"
    assert sorted(tmp_path.iterdir()) == [path]
    done = llamactl("convert", path, "-o", tmp_path / "out.jsonl", "--skip-bad", status=0)
    assert f"skipped {problem}\n" in done.stderr
    assert "convert: skipped 1 bad records\n" in done.stderr
    assert records(tmp_path / "out.jsonl") == many
    assert (ran(tmp_path)["skipped"], ran(tmp_path)["done"]) == ({"bad records": 1}, {"items": 301, "records": 300})
    assert ran(tmp_path)["files"][0]["bad"] == 1


def test_bad_items_before_the_first_good_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", f"[5, {{bad}},\n{json.dumps(ALPACA[0])}]")
    assert refused(tmp_path, path) == "a.json:1: is no object: 5; mend it, or leave it out with --skip-bad"
    assert made(tmp_path, path, skip_bad=True) == DIALOGUES[:1]
    assert ran(tmp_path)["files"][0] | {"path": ""} == {
        "path": "", "format": "alpaca", "items": 3, "records": 1, "bad": 2, "skipped": {}, "noted": {},
    }  # fmt: skip


def test_items_of_another_format_further_on(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [ALPACA[0], DIALOGUES[0], ALPACA[1]])
    assert refused(tmp_path, path).startswith("a.jsonl:2: is no alpaca: instruction: missing;")
    assert made(tmp_path, path, skip_bad=True) == DIALOGUES


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
def test_tags_of_the_chat_format(tmp_path: Path, place: int, tag: str) -> None:
    turns = [s("s"), u("q"), a("r"), u("q2"), a("r2")]
    turns[place]["content"] += f" {tag} x"
    path = written(tmp_path / "a.jsonl", [DIALOGUES[0], talk(*turns)])
    said_so = refused(tmp_path, path)
    problem = f"holds {tag}, which is the chat format's own; --allow-tags to accept it"
    assert said_so == f"a.jsonl:2: messages[{place}].content: {problem}"
    assert made(tmp_path, path, skip_bad=True) == DIALOGUES[:1]
    assert made(tmp_path, path, allow_tags=True) == [DIALOGUES[0], talk(*turns)]


@pytest.mark.parametrize(
    ("target", "record", "problem"),
    [
        ("documents", {"text": "a", "id": 1.5}, "id: expected `int | str | null`, got `float`"),
        ("documents", {"text": "a", "source": ["b"]}, "source: expected `str | null`, got `array`"),
        ("dialogues", talk(u("a"), a("b"), id=[1]), "id: expected `int | str | null`, got `array`"),
        ("dialogues", talk(u("a"), a("b"), id=10**20), "id: expected `int | str | null`, got an integer of more than"),
        ("prompts", talk(u("a"), safety="true"), "safety: expected `bool`, got `str`"),
        ("comparisons", {**pair([u("a")], "b", "c"), "source": 1}, "source: expected `str | null`, got `int`"),
    ],
)
def test_a_field_of_ours_that_no_stage_would_read(tmp_path: Path, target: Target, record: Any, problem: str) -> None:
    """It came out as it was, with status 0, and the next stage refused it."""
    path = written(tmp_path / "a.jsonl", [record])
    assert refused(tmp_path, path, to=target).startswith(f"a.jsonl:1: {problem}")


def test_tags_in_a_comparison_and_in_a_document(tmp_path: Path) -> None:
    for field, one in (
        ("prompt[0].content", pair("[INST]", "good", "bad")),
        ("chosen[0].content", pair("q", "[INST]", "bad")),
        ("rejected[0].content", pair("q", "good", "[INST]")),
    ):
        path = written(tmp_path / "a.jsonl", [one])
        assert refused(tmp_path, path, to="comparisons").startswith(f"a.jsonl:1: {field}: holds [INST]")
        assert made(tmp_path, path, to="comparisons", allow_tags=True) == [one]
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    path = written(tmp_path / "a.jsonl", [text("[INST]")])  # which is no dialogue
    assert made(tmp_path, path, to="documents") == [text("[INST]")]


def test_a_target_that_a_format_does_not_make(tmp_path: Path, llamactl: Command) -> None:
    path = written(tmp_path / "a.json", ALPACA)
    problem = "is in the format alpaca, which makes no comparisons; --to documents or dialogues or prompts"
    assert refused(tmp_path, path, to="comparisons") == f"a.json: {problem}"
    assert refused(tmp_path, path, to="comparisons", from_="alpaca", skip_bad=True) == f"a.json: {problem}"
    goals = written(tmp_path / "a.csv", "goal,target\nx,y\n")
    assert refused(tmp_path, goals) == "a.csv: is in the format advbench, which makes no dialogues; --to prompts"
    assert llamactl("convert", path, "--to", "sentences").returncode == 2


def test_a_file_in_no_known_format(tmp_path: Path) -> None:
    good, path = written(tmp_path / "a.json", ALPACA), written(tmp_path / "b.csv", "x,y\n1,2\n")
    assert refused(tmp_path, good, path) == (
        "b.csv:2: is in no format that is known: an object of x, y; "
        "llamactl convert --formats lists them; --from NAME says what it lacks"
    )


def test_a_table_that_lacks_a_column(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "instruction,input\nAdd.,1 1\n")
    assert "a.csv:2: is in no format that is known: an object of instruction, input;" in refused(tmp_path, path)
    assert refused(tmp_path, path, from_="alpaca").startswith("a.csv:2: is no alpaca: output: missing;")
    path = written(tmp_path / "a.csv", "id,question,GPT4_response\n1,Why?,So.\n")
    said_so = refused(tmp_path, path, from_="do-not-answer", to="prompts")
    assert said_so.startswith("a.csv:2: is no do-not-answer: judged[0].harmful: invalid enum value 'missing'")


def test_a_table_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"goal,target,\xe9\nx,y,z\n")
    said_so = refused(tmp_path, path, to="prompts")
    assert said_so == "a.csv:1: the name of a column is not UTF-8; convert the file to UTF-8"


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([a("Hi"), u("q"), a("r")], "messages[0].role: is assistant, where user is due"),
        ([s("s"), a("Hi")], "messages[1].role: is assistant, where user is due"),
        ([u("q"), s("s"), a("r")], "messages[1].role: is system, where assistant is due"),
        ([u("q"), a("r"), s("s"), u("q"), a("r")], "messages[2].role: is system, where user is due"),
        ([s("s"), s("s"), u("q"), a("r")], "messages[1].role: is system, where user is due"),
    ],
)
def test_roles_out_of_order(tmp_path: Path, turns: list[Any], problem: str) -> None:
    path = written(tmp_path / "a.jsonl", [DIALOGUES[0], talk(*turns)])
    assert refused(tmp_path, path) == f"a.jsonl:2: {problem}; mend it, or leave it out with --skip-bad"
    assert made(tmp_path, path, skip_bad=True) == DIALOGUES[:1]
    assert ran(tmp_path)["skipped"] == {"bad records": 1}


@pytest.mark.parametrize(
    ("turns", "target", "what"),
    [
        ([], "dialogues", "dialogues without an answer to learn from"),
        ([u("q"), a(" \n\t")], "dialogues", "dialogues without an answer to learn from"),
        ([u("q")], "dialogues", "dialogues without an answer to learn from"),
        ([a("r")], "prompts", "empty prompts"),
        ([u("  "), a("r")], "prompts", "empty prompts"),
        ([], "documents", "empty texts"),
    ],
)
def test_where_nothing_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], turns: list[Any], target: str, what: str
) -> None:
    """It is a failure that says why; and what is left out is counted where there was more."""
    path = written(tmp_path / "a.jsonl", [talk(*turns)] * 2)
    assert refused(tmp_path, path, to=target) == f"a.jsonl: nothing came of it, 2 items read; skipped 2 {what}"
    path = written(tmp_path / "a.jsonl", [talk(*turns), talk(u("q"), a("r"))])
    assert len(made(tmp_path, path, to=target)) == 1
    assert ran(tmp_path)["skipped"] == {what: 1}
    assert f"convert: skipped 1 {what}" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "data"), [("a.json", "[]"), ("a.csv", "goal,target\n"), ("a.jsonl", "\n\n")])
def test_a_file_without_items(tmp_path: Path, name: str, data: str) -> None:
    assert "nothing came of it, 0 items read" in refused(tmp_path, written(tmp_path / name, data), to="prompts")


def test_nothing_is_exit_status_1_also_where_all_was_bad(tmp_path: Path, llamactl: Command) -> None:
    path = written(tmp_path / "a.jsonl", "x\ny\n")
    done = llamactl("convert", path, "--skip-bad", "-o", tmp_path / "out.jsonl", status=1)
    assert f"{path}: nothing came of it, 2 items read; skipped 2 bad records" in done.stderr
    assert sorted(tmp_path.iterdir()) == [path]


def test_damage_at_the_end_of_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = json.dumps(ALPACA, indent=1)
    cut = refused(tmp_path, written(tmp_path / "a.json", whole[:-8]), skip_bad=True)
    assert cut == "a.json:7: is cut short: what begins here has no end; copy the file again"
    packed = refused(tmp_path, written(tmp_path / "a.json", gzip.compress(whole.encode())[:-4]))
    assert packed.startswith("a.json: the compressed data is damaged or cut short")


# -- large


def test_a_turn_of_a_million_words(tmp_path: Path) -> None:
    long = "".join(random.Random(0).choices(["word ", "mot\n", "слово ", '"', "\\", "]} "], k=1_000_000))
    for name in ("a.jsonl", "a.json"):
        path = written(tmp_path / name, [ALPACA[0], {"instruction": long, "output": "r"}, ALPACA[1]])
        assert made(tmp_path, path) == [DIALOGUES[0], talk(u(long), a("r")), DIALOGUES[1]]
    faults = refused_again(path, tmp_path / "other.jsonl", max_line=1_000_000)
    assert f"{path}:7: an item of more than 1,000,000 bytes" in faults


# -- real files

NOT_KNOWN = {"judge_prompts.jsonl", "gpt-4.jsonl"}  # prompts of a judge; answers without their questions
COUNTS = {
    "sft/alpaca/alpaca_data.json": 3998, "sft/oasst/en_100_tree.jsonl": 77, "sft/sgd/dev/dialogues_010.json": 128,
    "sft/mt-bench/question.jsonl": 80, "preference/hh-rlhf/harmless-base/test.jsonl.gz": 1827,
    "preference/webgpt/webgpt.test.json": 705, "safety/do-not-answer/data_en.csv": 704,
    "safety/truthfulqa/TruthfulQA.csv": 631, "safety/xstest/xstest_v2_completions_mistralinstruct.csv": 358,
    "safety/toxigen/prompts/hate_women_1k.txt": 1000, "safety/bold/prompts/gender_prompt.json": 2,
}  # fmt: skip


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
@pytest.mark.parametrize("folder", ["sft", "preference", "safety"])
def test_real_files_become_records_of_every_kind_that_they_can(folder: str) -> None:
    """All of a file to the first kind, every fourth item to the others."""
    kinds = {"documents": Document, "dialogues": Dialogue, "prompts": Prompt, "comparisons": Comparison}
    found: dict[str, int] = {}
    for path in sorted(path for path in (DATA / folder).rglob("*") if path.is_file()):
        with items.opened(str(path)) as file:
            first = next(item for item in file if isinstance(item, items.Item))
        if path.name in NOT_KNOWN:
            with pytest.raises(Fault, match="is in no format that is known"):
                known.recognised(first)
            continue
        for number, target in enumerate(reversed(known.recognised(first).targets())):
            bad: list[Fault] = []
            count = 0
            with items.opened(str(path), Shard(0, 4 if number else 1)) as file:
                conversion = known.Conversion(file, target, None)
                for record, where in conversion.run(bad.append):
                    dialogue.check_record(record, where)
                    read = checked(orjson.loads(msgspec.json.encode(record)), (kinds[target],), where)
                    if isinstance(read, Prompt):
                        dialogue.check_prompt(read.messages, where)
                    count += 1
            assert (count > 0, bad) == (True, []), f"{path} {target}"
            if not number:
                found[str(path.relative_to(DATA))] = conversion.items
    assert {name: found[name] for name in COUNTS if name.startswith(folder)} == {
        name: rows for name, rows in COUNTS.items() if name.startswith(folder)
    }


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_real_files_by_the_command(tmp_path: Path) -> None:
    files = [DATA / "preference/hh-rlhf/harmless-base/test.jsonl.gz", DATA / "sft/oasst/en_100_tree.jsonl"]
    assert len(made(tmp_path, *files, to="comparisons")) == 1820 + 581
    by_file = ran(tmp_path)["files"]
    assert [(each["items"], each["records"], each["bad"]) for each in by_file] == [(1827, 1820, 0), (77, 581, 0)]
    assert by_file[0]["items"] - by_file[0]["records"] == sum(by_file[0]["skipped"].values())
