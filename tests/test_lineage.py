"""The tree of an artifact in words, as JSON and as a graph; what has changed since."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import NO_UTF8
from test_ancestry import made
from test_cli import Run, command, one_line

from llamactl import lineage
from llamactl.artifacts import ancestry

assert command  # a fixture


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``both`` of ``left`` and ``right``, both of ``tokens``, of a text from elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    made(tmp_path / "tokens", "text.txt")
    for name in ("left", "right"):
        made(tmp_path / name, "tokens")
    return made(tmp_path / "both", "left", "right")


def column(rows: Sequence[Sequence[str]], number: int) -> list[str]:
    return [row[number] for row in rows]


def test_each_stands_below_what_was_made_from_it_and_is_told_once(tree: Path) -> None:
    rows = list(lineage.rows(ancestry.lineage(tree)))
    names = [re.sub(r"/.*/", "", name) for name in column(rows, 0)]
    assert names == ["both", "  left", "    tokens", "      text.txt", "  right", "    tokens"]
    assert column(rows, 3)[3].startswith("from elsewhere, sha256 ")
    assert column(rows, 3)[5] == "as above"
    assert all(len(row) == len(lineage.HEADER) for row in rows)


def test_what_is_missing_says_why(tree: Path) -> None:
    Path("tokens.run.json").unlink()
    rows = list(lineage.rows(ancestry.lineage(tree)))
    assert next(row[3] for row in rows if row[0].strip() == "tokens").startswith("is not where it was")


def test_json_names_each_input_by_digest(tree: Path, command: Run) -> None:
    done = command("lineage", tree, "--json")
    found = json.loads(done.stdout)
    assert [Path(one["artifact"]).name for one in found["artifacts"]] == ["tokens", "left", "right", "both"]
    digests = {Path(one["artifact"]).name: one["manifest"] for one in found["artifacts"]}
    assert [one["manifest"] for one in found["artifacts"][3]["inputs"]] == [digests["left"], digests["right"]]
    assert found["missing"] == []


def test_a_name_that_is_not_utf_8(tree: Path, command: Run) -> None:
    tree.parent.joinpath("text.txt").rename(NO_UTF8)
    made(Path(f"{NO_UTF8} tokens"), NO_UTF8)
    for form in ("--json", "--dot"):
        shown = command("lineage", f"{NO_UTF8} tokens", form)
        assert (shown.status, shown.stdout.count("caf\\\\xe9")) == (0, 2)


def test_the_graph_has_an_arrow_for_each_input(tree: Path, command: Run) -> None:
    shown = command("lineage", tree, "--dot").stdout
    assert shown.startswith("digraph lineage {") and shown.rstrip().endswith("}")
    assert len(re.findall(" -> ", shown)) == 5
    assert shown.count("shape=ellipse") == 1


def test_verify_names_what_has_changed_since(tree: Path, command: Run) -> None:
    done = command("lineage", tree, "--verify")
    assert "all files of 4 artifacts are as they were made" in done.stderr
    Path("left").write_text("other bytes")
    Path("right").unlink()
    done = command("lineage", tree, "--verify")
    assert done.status == 1
    assert "left: has changed since it was made by" in done.stderr
    assert "right: is missing" in done.stderr
    assert "2 files of its lineage have changed; restore them, or make it again" in done.stderr.splitlines()[-1]


def test_an_artifact_without_a_manifest(tmp_path: Path, command: Run) -> None:
    (tmp_path / "a").write_text("x")
    assert "what it was made from is not known" in one_line(command("lineage", tmp_path / "a"))
