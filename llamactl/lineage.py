"""The tree of what an artifact was made from: in words, as JSON, as a graph; and whether it is all as it was."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from llamactl import carbon, ui
from llamactl.artifacts import files, manifest
from llamactl.artifacts.ancestry import Lineage, Made

# What of a run's settings a person wants to see of it, in this order, as far as it has them.
MATTERING = (
    "size", "kind", "vocab_size", "context", "peak", "lr", "steps", "iterations", "batch_size", "k", "temperature",
    "margin", "kl", "precision", "seed",
)  # fmt: skip
NAMED = ("as", "path", "sha256", "manifest")  # of an input
HEADER = ("artifact", "as", "made by", "settings", "tokens", "device-hours", "g CO2eq")


class Branch(NamedTuple):
    """An artifact in the tree, or a file that none of us has made; ``above`` says that its own are shown already."""

    depth: int
    role: str  # what it is to the artifact that was made from it
    entry: Mapping[str, Any]  # that artifact's input
    made: Made | None
    above: bool = False


def branches(tree: Lineage) -> Iterator[Branch]:
    """The artifact itself, and below each all that it was made from."""
    known = {made.facts["sha256"]: made for made in tree.found}
    shown: set[str] = set()

    def walk(made: Made, role: str, entry: Mapping[str, Any], depth: int) -> Iterator[Branch]:
        digest = made.facts["sha256"]
        yield Branch(depth, role, entry, made, digest in shown)
        if digest in shown:
            return
        shown.add(digest)
        for one in made.facts["inputs"]:
            maker = known.get(one.get("manifest", ""))
            if maker:
                yield from walk(maker, one["as"], one, depth + 1)
            else:
                yield Branch(depth + 1, one["as"], one, None)

    root = tree.found[-1]
    yield from walk(root, "", {}, 0)


def rows(tree: Lineage) -> Iterator[tuple[str, ...]]:
    """The tree as a table, under ``HEADER``."""
    why = {(gap.role, gap.name): gap.why for gap in tree.missing}
    for one in branches(tree):
        indent = "  " * one.depth
        if one.made is None:
            name, digest = one.entry["path"], one.entry.get("sha256")
            said = why.get((one.role, name), f"from elsewhere, sha256 {digest[:12]}" if digest else "from elsewhere")
            yield (indent + name, one.role, "", said, "", "", "")
            continue
        facts, name = one.made.facts, str(manifest.artifact(one.made.path))
        if one.above:
            yield (indent + name, one.role, facts["stage"], "as above", "", "", "")
            continue
        settings = " ".join(
            f"{key.replace('_', '-')} {facts['settings'][key]}"
            for key in MATTERING
            if facts["settings"].get(key) is not None
        )
        kwh = facts.get("energy_kwh")
        grams = "unknown" if kwh is None else f"{1e6 * carbon.tonnes(kwh * carbon.PUE):,.3f}"
        tokens = facts["done"].get("tokens")
        hours = f"{facts.get('device_hours', 0):.4f}"
        yield (indent + name, one.role, facts["stage"], settings, ui.count(tokens) if tokens else "", hours, grams)


def as_json(tree: Lineage) -> str:
    """Artifacts, the oldest first, each with the digests of what it was made from; and what is missing."""
    found = [
        {
            "artifact": manifest.plain(manifest.artifact(path)), "manifest": facts["sha256"],
            **{name: facts.get(name) for name in ("stage", "settings", "done", "device_hours", "energy_kwh")},
            "inputs": [{name: one.get(name) for name in NAMED} for one in facts["inputs"]],
        }
        for path, facts in tree.found
    ]  # fmt: skip
    missing = [
        {"of": manifest.plain(manifest.artifact(gap.of)), "as": gap.role, "path": gap.name, "why": gap.why}
        for gap in tree.missing
    ]
    return orjson.dumps({"artifacts": found, "missing": missing}, option=orjson.OPT_INDENT_2).decode()


def as_dot(tree: Lineage) -> str:
    """The graph in Graphviz's language: boxes are artifacts, ellipses files from elsewhere."""
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    for path, facts in tree.found:
        name = _quoted(f"{manifest.artifact(path)}\n{facts['stage']}")
        lines.append(f'  "{facts["sha256"]}" [label={name}];')
        for one in facts["inputs"]:
            source = one.get("manifest") or one.get("sha256") or one["path"]
            if not one.get("manifest"):
                lines.append(f"  {_quoted(source)} [label={_quoted(one['path'])}, shape=ellipse];")
            lines.append(f'  {_quoted(source)} -> "{facts["sha256"]}" [label={_quoted(one["as"])}];')
    return "\n".join([*dict.fromkeys(lines), "}"])


def _quoted(text: str) -> str:
    return orjson.dumps(manifest.plain(text)).decode()


def changed(tree: Lineage) -> Iterator[tuple[Path, str]]:
    """Files of the tree's artifacts that are not what their manifests say, and how; all bytes are read."""
    for path, facts in tree.found:
        for output in facts["outputs"]:
            file = path.parent / output["path"]
            if output["path"] == manifest.CARD:
                continue  # which is for people, and may be written anew
            if not file.is_file():
                yield file, "is missing"
            elif files.stamp(file) != (output["size"], output["sha256"]):
                yield file, f"has changed since it was made by {facts['stage']} on {facts['end'][:10]}"
