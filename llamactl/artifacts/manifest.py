"""A run's manifest: what was asked, on what, from what, and what came of it (contract, section 1).

``run.json`` lies in a directory artifact, ``NAME.run.json`` beside a file. It carries its own digest, so that an edit
by hand shows. Its inputs are named by digest, so that they are found again wherever they are moved to. (``run`` writes
it.)
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from llamactl import __version__
from llamactl.artifacts import files, streams
from llamactl.errors import Fault

FILE = "run.json"
CARD = (
    "README.md"  # of a model: for people, who may edit it or have it written anew; its bytes are held against nothing
)
FORMAT = 1


def dumps(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as JSON that a person can read, with the digest of all else as its last field."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return orjson.dumps(body | {"sha256": digest}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load_signed(path: Path) -> dict[str, Any]:
    """Read a JSON object that ``dumps`` wrote; raises Fault where it is damaged or was edited."""
    remedy = "make the artifact again with --overwrite"
    try:
        manifest: dict[str, Any] = orjson.loads(path.read_bytes())
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        digest = sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
        if manifest["sha256"] != digest:
            raise Fault(path, "was changed after it was written (its digest differs)", remedy)
    except FileNotFoundError:
        raise Fault(path, "is missing", remedy) from None
    except (ValueError, KeyError, AttributeError):
        raise Fault(path, "is no manifest of llamactl", remedy) from None
    return manifest


def load(path: Path) -> dict[str, Any]:
    """Read a run's manifest; raises Fault where it is none, is damaged or was edited."""
    manifest = load_signed(path)
    if manifest.get("format", FORMAT) > FORMAT:
        problem = f"was written by a newer llamactl ({manifest.get('version')}), in format {manifest['format']}"
        raise Fault(path, problem, f"this is {__version__}: update it")
    if absent := [
        field for field in ("stage", "settings", "inputs", "outputs", "done", "end") if field not in manifest
    ]:
        raise Fault(path, f"{absent[0]}: missing", "make the artifact again with --overwrite")
    return manifest


def beside(path: Path) -> Path:
    """The manifest of an artifact: in a directory, beside a file."""
    return path / FILE if path.is_dir() else path.with_name(f"{path.name}.{FILE}")


def artifact(path: Path) -> Path:
    """What a manifest is of: ``beside`` backwards."""
    return path.parent if path.name == FILE else path.with_name(path.name.removesuffix(f".{FILE}"))


def described(name: str, path: str, verify: bool = True) -> dict[str, Any]:
    """An input as manifests name it: its role, kind, size and SHA-256, and the digest of its own manifest.

    A directory's digest is that of the names and digests of its files. With ``verify`` the bytes are read and held
    against the directory's own manifest; raises Fault where they differ.
    """
    place = Path(path)
    if streams.is_one(path):  # what comes through is known when it has been read
        return {"as": name, "path": plain(path), "kind": "stream", "size": None, "sha256": None}
    if not place.exists():
        raise Fault(place, "no such file or directory", "name one that is there")
    own = beside(place)
    made_by = load(own) if own.exists() else None
    if place.is_dir():
        listed = _directory_files(place, made_by, verify)
        size = sum(stamp.size for stamp in listed.values())
        digest = sha256(
            "".join(f"{file} {stamp.sha256}\n" for file, stamp in sorted(listed.items())).encode()
        ).hexdigest()
    else:
        size, digest = files.stamp(place)
        if made_by and made_by["outputs"][0]["sha256"] != digest:
            raise Fault(place, f"its bytes differ from what {own.name} says", "make it again with --overwrite")
    entry = {"as": name, "path": plain(path), "kind": kind(place), "size": size, "sha256": digest}
    if made_by:
        entry["manifest"] = made_by["sha256"]
    return entry


def kind(path: Path) -> str:
    """What an artifact is, as manifests call it."""
    if path.name.endswith(".model"):
        return "tokenizer"
    if path.is_dir():
        return "model" if (path / "config.json").exists() else "shards" if any(path.glob("shard-*")) else "directory"
    return plain(path.name).removesuffix(".gz").removesuffix(".zst").rpartition(".")[2] or "file"


def _directory_files(path: Path, made_by: dict[str, Any] | None, verify: bool) -> dict[str, files.Stamp]:
    if made_by is None:  # from elsewhere: what it is made of is what lies in it
        inside = [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", ".json", ".model")]
        return dict(zip((p.name for p in inside), files.stamps(inside), strict=True))
    listed = {out["path"]: files.Stamp(out["size"], out["sha256"]) for out in made_by["outputs"]}
    held = [name for name in listed if name != CARD]
    for name in held:
        if not (path / name).is_file():
            raise Fault(path / name, "is missing", "restore it, or make the directory again with --overwrite")
        if (size := (path / name).stat().st_size) != listed[name].size:
            raise Fault(path / name, f"has {size:,} bytes, {FILE} says {listed[name].size:,}", "copy or make it again")
    if verify:
        found = files.stamps(path / name for name in held)
        for name, real in zip(held, found, strict=True):
            if real != listed[name]:
                said = listed[name].sha256[:12]
                problem = f"its bytes differ from what {FILE} says (sha256 {real.sha256[:12]}, not {said})"
                raise Fault(path / name, problem, "copy or make it again")
    return listed


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One manifest for the parts of a job array: counts and device-hours add up, times span all."""
    whole = {k: v for k, v in parts[0].items() if k not in ("part", "sha256")}
    whole["settings"] = {k: v for k, v in whole["settings"].items() if k != "shard"}
    whole["outputs"] = [out for part in parts for out in part["outputs"] if out["kind"] == "shard"]
    whole["outputs"] += [out for out in parts[0]["outputs"] if out["kind"] != "shard"]
    for counts in ("done", "skipped", "noted"):
        whole[counts] = dict(sum((Counter(part[counts]) for part in parts), Counter()))
    whole["start"], whole["end"] = min(p["start"] for p in parts), max(p["end"] for p in parts)
    whole["device_hours"] = sum(part["device_hours"] for part in parts)
    known = [part["energy_kwh"] for part in parts if part["energy_kwh"] is not None]
    whole["energy_kwh"] = sum(known) if len(known) == len(parts) else None
    methods = sorted({part["energy_method"] for part in parts})
    several = len(methods) > 1 and whole["energy_kwh"] and all(method.startswith("tdp") for method in methods)
    whole["energy_method"] = mean_power(whole["energy_kwh"], whole["device_hours"]) if several else ", ".join(methods)
    whole["parts"] = [part["sha256"] for part in parts]
    return whole


def mean_power(kwh: float, hours: float) -> str:
    """How energy was found that several devices have taken by their TDP."""
    return f"tdp: {1000 * kwh / hours:.6g} W on average"


def plain(value: object) -> Any:
    """A value of a setting as JSON has it."""
    if isinstance(value, str | Path):  # a name that is not UTF-8 is spelled with escapes
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | bool | None) else str(value)
