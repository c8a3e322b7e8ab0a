"""What an artifact was made from: found where it was, where it was moved to, or said to be missing."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamactl.artifacts import ancestry, manifest
from llamactl.artifacts.ancestry import Lineage
from llamactl.artifacts.run import Run
from llamactl.errors import Fault


def made(out: Path, *inputs: Path | str, content: bytes = b"x") -> Path:
    """A file that a run has made from others."""
    run = Run("a test", {"content": content.decode()}, {"inputs": inputs}, out)
    with run.file(announce=False) as file:
        file.write(content)
    return out


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """text -> tokens, which two files are made from, and these one; by paths as seen from the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text").write_text("from elsewhere")
    made(tmp_path / "tokens", "in/text")
    made(tmp_path / "left", "tokens")
    made(tmp_path / "deep" / "right", "tokens")
    return made(tmp_path / "both", "left", "deep/right")


def names(found: Lineage) -> list[str]:
    return [one.path.name.removesuffix(".run.json") for one in found.found]


def test_each_ancestor_once_the_oldest_first(tree: Path) -> None:
    found = ancestry.lineage(tree)
    assert names(found) == ["tokens", "left", "right", "both"]
    assert found.missing == []
    assert [(gap.of.name, gap.role, gap.name) for gap in found.sources] == [("tokens.run.json", "inputs", "in/text")]


def test_paths_are_as_seen_from_a_folder_above(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wherever one stands, and wherever the whole tree was moved to."""
    monkeypatch.chdir("/")
    assert names(ancestry.lineage(tree)) == ["tokens", "left", "right", "both"]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert names(ancestry.lineage(moved / "both")) == ["tokens", "left", "right", "both"]
    moved.rename(tmp_path)


def test_what_was_moved_is_found_in_folders_that_are_searched(tree: Path, tmp_path: Path) -> None:
    for name in ("tokens", "tokens.run.json"):
        (tmp_path / "attic").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "attic" / name)
    alone = ancestry.lineage(tree)
    assert names(alone) == ["left", "right", "both"]
    assert [(gap.of.name, gap.name) for gap in alone.missing] == [
        ("left.run.json", "tokens"),
        ("right.run.json", "tokens"),
    ]
    assert "not where it was" in alone.missing[0].why
    assert names(ancestry.lineage(tree, [tmp_path / "attic"])) == ["tokens", "left", "right", "both"]


def test_what_has_taken_its_place_is_not_taken_for_it(tree: Path, tmp_path: Path) -> None:
    for name in ("tokens", "tokens.run.json"):
        (tmp_path / "old").mkdir(exist_ok=True)
        shutil.copy(tmp_path / name, tmp_path / "old" / name)
    made(tmp_path / "tokens", "in/text", content=b"others")
    found = ancestry.lineage(tree)
    assert names(found) == ["left", "right", "both"]
    assert found.missing[0].why.startswith("has been made again since")
    assert names(ancestry.lineage(tree, [tmp_path])) == ["tokens", "left", "right", "both"]


def test_an_edited_ancestor_is_said(tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "tokens.run.json"
    own.write_text(own.read_text().replace('"host"', '"Host"'))
    found = ancestry.lineage(tree, [tmp_path])
    assert names(found) == ["left", "right", "both"]
    assert "was changed after it was written" in found.missing[0].why


def test_a_pipe_is_a_gap(tmp_path: Path) -> None:
    found = ancestry.lineage(made(tmp_path / "a", "-"))
    assert [gap.why for gap in found.missing] == ["came through a pipe, which keeps no manifest"]


def test_an_artifact_without_a_manifest_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(Fault, match=r"a: has no a\.run\.json: what it was made from is not known"):
        ancestry.lineage(tmp_path / "a")
    with pytest.raises(Fault, match=r"has no nothing\.run\.json"):
        ancestry.lineage(tmp_path / "nothing")


def test_a_cycle_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests make it impossible, unless somebody has found a collision, or written our code anew."""
    parents: dict[str, Sequence[str]] = {"a": ["b"], "b": ["c"], "c": ["b"]}

    def load(path: Path) -> dict[str, Any]:
        name = path.name.removesuffix(".run.json")
        inputs = [{"as": "x", "path": str(tmp_path / one), "kind": "y", "manifest": one} for one in parents[name]]
        return {"sha256": name, "inputs": inputs}

    monkeypatch.setattr(manifest, "load", load)
    for name in parents:
        (tmp_path / f"{name}.run.json").touch()
    with pytest.raises(Fault, match=r"b\.run\.json: is its own ancestor"):
        ancestry.lineage(tmp_path / "a")


def test_manifests_of_a_folder(tree: Path, tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    for other in (".hidden/run.json", "part-00000-of-00002.json", "notarun.json", "deep/run.json"):
        (tmp_path / other).write_text("{}")
    found = [str(path.relative_to(tmp_path)) for path in ancestry.manifests(tmp_path)]
    assert found == ["both.run.json", "deep/right.run.json", "deep/run.json", "left.run.json", "tokens.run.json"]
