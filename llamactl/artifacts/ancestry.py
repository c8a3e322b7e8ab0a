"""What an artifact was made from, and that in its turn: manifests name their inputs' manifests by digest.

An ancestor is looked for at the path its descendant has recorded, as it stands and from each folder above the
descendant, since a path may be relative to where the command was given; then in folders that are searched for its
digest. So a tree that was moved is found again, and what has taken an ancestor's place is not taken for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamactl.artifacts import manifest
from llamactl.errors import Fault


class Made(NamedTuple):
    """An artifact by its manifest, and where that lies."""

    path: Path
    facts: dict[str, Any]


class Gap(NamedTuple):
    """An input that leads no further back: of which artifact, as what, and why."""

    of: Path
    role: str
    name: str
    why: str


class Lineage(NamedTuple):
    """An artifact and its ancestors, each once, the oldest first; those that are missing; what none of us has made."""

    found: list[Made]
    missing: list[Gap]  # made by llamactl, and not to be found, or through a pipe that has kept nothing
    sources: list[Gap]  # files from elsewhere


def manifests(folder: Path) -> Iterator[Path]:
    """All manifests in a folder and below, of whole artifacts, in order."""
    return (path for path in below(folder, f"*{manifest.FILE}") if f".{path.name}".endswith(f".{manifest.FILE}"))


def below(folder: Path, pattern: str) -> Iterator[Path]:
    """Files in a folder and below it, in order; nothing of what is hidden."""
    for path in sorted(folder.rglob(pattern)):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def lineage(artifact: Path, folders: Sequence[Path] = ()) -> Lineage:
    """All that an artifact comes from; raises Fault where it has no manifest, or is its own ancestor."""
    own = manifest.beside(artifact)
    if not own.exists():
        raise Fault(artifact, f"has no {own.name}: what it was made from is not known", "name another artifact")
    return _of(Made(own, manifest.load(own)), folders)


def of_run(own: Path, facts: dict[str, Any]) -> Lineage:
    """The same of a run that has not ended, by what its manifest is going to say, and where."""
    return _of(Made(own, facts | {"sha256": ""}), ())


def _of(root: Made, folders: Sequence[Path]) -> Lineage:
    index: dict[str, Path] | None = None  # of manifests in the folders, by digest, once one is needed
    line, tree = [], Lineage([], [], [])
    seen: set[str] = set()

    def visit(path: Path, facts: dict[str, Any]) -> None:
        nonlocal index
        if facts["sha256"] in line:
            raise Fault(path, "is its own ancestor", "one of the manifests of its lineage is no genuine one")
        if facts["sha256"] in seen:
            return
        seen.add(facts["sha256"])
        line.append(facts["sha256"])
        for entry in facts["inputs"]:
            found, why = _recorded(path, entry)
            if found is None and why:
                index = index if index is not None else _index(folders)
                if there := index.get(entry.get("manifest", "")):
                    found = Made(there, manifest.load(there))
            if found:
                visit(*found)
            else:
                gap = Gap(path, entry["as"], entry["path"], why or "from elsewhere")
                (tree.missing if why else tree.sources).append(gap)
        line.pop()
        tree.found.append(Made(path, facts))

    visit(*root)
    return tree


def _recorded(path: Path, entry: Mapping[str, Any]) -> tuple[Made | None, str]:
    """The maker of an input, if it is where the manifest at ``path`` says; else why not, "" where there is none."""
    if entry["kind"] == "stream":
        return None, "came through a pipe, which keeps no manifest"
    digest, why = entry.get("manifest"), "is not where it was, nor in the folders that were searched"
    if digest is None:
        return None, ""
    for above in (Path(), *path.absolute().parents):
        own = manifest.beside(above / entry["path"])
        try:
            facts = manifest.load(own)
        except (Fault, OSError) as error:
            if own.exists():
                why = error.problem if isinstance(error, Fault) else str(error)
            continue
        if facts["sha256"] == digest:
            return Made(own, facts), ""
        why = "has been made again since, and the manifest of then is not in the folders that were searched"
    return None, why


def _index(folders: Sequence[Path]) -> dict[str, Path]:
    found = {}
    for folder in folders:
        for path in manifests(folder):
            try:
                found[manifest.load(path)["sha256"]] = path
            except Fault:  # what is damaged has no digest that one could look for
                continue
    return found
