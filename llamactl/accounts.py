"""Runs as others have recorded them, and as we have: manifests, metrics, JSON lines, Slurm's accounting.

A line of JSON is a run from elsewhere. It has ``device_hours``, or ``hours`` of so many ``devices``; of ``device`` (a
row of the table in ``hardware.py``, or what it calls itself), ``watts`` (of one) and ``energy_kwh`` (of all) what is
known; and if one likes ``name``, ``stage``, ``host``, ``start``, ``end``, ``pue``, ``country``, ``kg_per_kwh``.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson

from llamactl.artifacts import ancestry, jsonl, manifest, metrics, state
from llamactl.artifacts.records import Shard, in_words
from llamactl.artifacts.run import Run
from llamactl.carbon import MOST_KG, Work
from llamactl.errors import Fault
from llamactl.grid import Grid, grid

ITERATION = "iteration"  # what the manifest has of a version of a model, which a run has left on its way
ITERATION_SECONDS = ("sample_seconds", "score_seconds", "update_seconds")  # of one of ppo
VERSIONS = "versions of a run, which are counted with it"
SLURM = ("JobID", "Elapsed", "AllocTRES")  # what of sacct's output is needed; more is used where it is there
SACCT = "sacct --parsable2 --format JobID,JobName,Elapsed,AllocTRES,NNodes,NodeList,Start,End,ConsumedEnergyRaw"
RAW = {"Elapsed": "ElapsedRaw"}  # what will do as well
NO_ENERGY = ("", "0", "4294967294", "18446744073709551614")  # how Slurm says that it has not measured

Positive = Annotated[float, msgspec.Meta(ge=0)]


class Elsewhere(msgspec.Struct, kw_only=True):
    """A run that somebody else has recorded."""

    device: str = "a device without a name"
    devices: Annotated[int, msgspec.Meta(ge=1)] = 1
    device_hours: Positive | None = None
    hours: Positive | None = None
    watts: Positive | None = None
    energy_kwh: Positive | None = None
    name: str = ""
    stage: str = ""
    host: str = ""
    start: datetime | None = None
    end: datetime | None = None
    pue: Annotated[float, msgspec.Meta(ge=1)] | None = None
    country: str | None = None
    kg_per_kwh: Annotated[float, msgspec.Meta(ge=0, le=MOST_KG)] | None = None


def read(paths: Iterable[str], run: Run) -> Iterator[Work]:
    """The runs that are recorded in files, in artifacts, in folders of them; each once.

    ``run`` refuses what cannot be used, and counts what is left out.
    """
    seen: set[str] = set()
    for name in paths:
        path = Path(name)
        for source in _sources(path) if path.is_dir() else [path]:
            try:
                own = _manifest(source)
                facts = manifest.load(own) if own else {}
                known = facts["sha256"] if own else os.path.realpath(source)
                if known in seen and name != jsonl.STDIN:
                    run.skipped["runs that are named twice"] += 1
                    continue
                seen.add(known)
                if own and ITERATION in facts and own.parent != path and _accounted(own.parent.parent):
                    run.skipped[VERSIONS] += 1
                elif own:
                    yield made(own, facts)
                elif source.name == metrics.FILE:
                    yield from _unfinished(source, run)
                else:
                    yield from _lines(name, run)
            except Fault as fault:
                run.refuse(fault)


def of_lineage(found: Iterable[ancestry.Made], run: Run) -> Iterator[Work]:
    """The runs that have made an artifact and its ancestors."""
    every = list(found)
    folders = {one.path.parent for one in every}
    for one in every:
        if ITERATION in one.facts and one.path.parent.parent in folders:
            run.skipped[VERSIONS] += 1
            continue
        try:
            yield made(*one)
        except Fault as fault:
            run.refuse(fault)


def _sources(folder: Path) -> list[Path]:
    """Manifests in a folder and below, and metrics of trainings that have none yet. Raises Fault where nothing is."""
    logs = ancestry.below(folder, metrics.FILE)
    under_way = [path for path in logs if not path.with_name(manifest.FILE).exists()]
    if found := sorted([*ancestry.manifests(folder), *under_way]):
        return found
    raise Fault(folder, "holds no run.json and no metrics.jsonl", "name a folder of artifacts")


def _accounted(folder: Path) -> bool:
    """Whether a run has left there what it took, or is going to."""
    return any((folder / name).exists() for name in (manifest.FILE, metrics.FILE))


def _manifest(path: Path) -> Path | None:
    """The manifest that a path names: itself, that of an artifact, or of the training whose metrics these are."""
    if path.suffix == ".json":
        return path
    own = path.with_name(manifest.FILE) if path.name == metrics.FILE else manifest.beside(path)
    return own if own.exists() else None


def made(path: Path, facts: Mapping[str, Any]) -> Work:
    """What a manifest says; raises Fault for a field that is missing."""
    fields = ("device_hours", "energy_kwh", "energy_method", "device", "devices", "host", "start", "end")
    for field in fields:
        if field not in facts:
            raise Fault(path, f"{field}: missing", "give the run as a line of JSON: llamactl carbon --help")
    name = path.parent if path.name == manifest.FILE else path.with_name(path.name.removesuffix(f".{manifest.FILE}"))
    how, _, more = facts["energy_method"].partition(": ")
    reason = re.search(r"\((.*)\)$", more)
    recorded = re.match(r"([0-9.]+) W", more) if facts["energy_kwh"] is not None else None
    return Work(
        str(name), facts["stage"], facts["device"], facts["devices"], facts["device_hours"],
        watts=float(recorded[1]) if recorded else None,
        energy_kwh=facts["energy_kwh"] if how == "measured" else None,
        method=more if how == "measured" else reason[1] if reason else "",
        host=facts["host"],
        # parts of an array were in many places at many times
        start=None if "parts" in facts else datetime.fromisoformat(facts["start"]),
        end=None if "parts" in facts else datetime.fromisoformat(facts["end"]),
    )  # fmt: skip


def _unfinished(path: Path, run: Run) -> Iterator[Work]:
    """A training that has no manifest yet: what its newest state says, else what the steps in its metrics took.

    Metrics do not tell what they ran on: their hours are the job's, and ``--watts`` is of all of its devices.
    """
    if (facts := state.facts(path.with_name("state"))) and "account" in facts:
        yield made(path, {**facts["account"], "stage": facts["asked"]["stage"]})._replace(name=str(path.parent))
        return
    seconds, tokens, lines = 0.0, 0, path.read_bytes().splitlines()
    if lines and re.match(rb'{"step": ?0,', lines[0]):  # what was measured before the first step
        del lines[0]
    if not lines:
        run.skipped["trainings that have not made a step"] += 1
        return
    for line in lines:
        try:
            step = orjson.loads(line)
            if "update_seconds" in step:
                seconds += sum(step[name] for name in ITERATION_SECONDS)
            else:
                seconds += (step["tokens"] - tokens) / step["tokens_per_second"] + step.get("save_seconds", 0.0)
            tokens = step["tokens"]
        except orjson.JSONDecodeError:
            continue  # the last line of a run that was killed while it wrote
        except (KeyError, TypeError, ZeroDivisionError):
            break
    if not tokens or seconds < 0:
        raise Fault(path, "is no metrics.jsonl of llamactl", "name another file")
    yield Work(str(path), "", "all devices of a metrics.jsonl", 1, seconds / 3600)


def _lines(name: str, run: Run) -> Iterator[Work]:
    """Runs of a text: Slurm's accounting by its first line, else JSON lines."""
    with jsonl.open_input(name) as given:
        head, rest = given.beginning()
        slurm: list[str] | None = None
        if b"|" in head.partition(b"\n")[0] and not head.lstrip().startswith(b"{"):
            slurm = head.partition(b"\n")[0].decode(errors="replace").strip().split("|")
            if absent := [column for column in SLURM if not {column, RAW.get(column)} & {*slurm}]:
                raise Fault(f"{name}:1", f"{absent[0]}: missing in the header of sacct's output", f"give {SACCT}")
        for block in jsonl.blocks_in(rest, name):
            for line in jsonl.lines(block, Shard()):
                try:
                    if isinstance(line, Fault):
                        raise line
                    if slurm is None:
                        yield _elsewhere(line)
                    elif line.number:
                        row = dict(zip(slurm, line.data.decode(errors="replace").strip().split("|"), strict=False))
                        yield from _job(line.where, row, run)
                except Fault as fault:
                    run.refuse(fault)


def _elsewhere(line: jsonl.Line) -> Work:
    raw = jsonl.parsed(line)
    if not isinstance(raw, dict):
        raise Fault(line.where, "is no object", f"give a run a line, or the output of {SACCT}")
    try:
        one = msgspec.convert(raw, Elsewhere)
    except msgspec.ValidationError as error:
        raise Fault(line.where, in_words(error)) from None
    hours = one.device_hours if one.hours is None else one.hours * one.devices
    if hours is None or (one.hours is not None and one.device_hours is not None):
        what = "missing (or hours, of so many devices)" if hours is None else "is given, and hours as well"
        raise Fault(line.where, f"device_hours: {what}")
    try:
        where: Grid | None = grid(one.country) if one.country else None
    except Fault as fault:
        raise Fault(
            line.where, f"country: {fault.problem}", fault.remedy.replace("--intensity", "kg_per_kwh")
        ) from None
    if one.kg_per_kwh is not None:
        where = Grid("", where.name if where else "as recorded", 1000 * one.kg_per_kwh, "")
    return Work(
        one.name or line.where, one.stage, one.device, one.devices, hours, one.watts, one.energy_kwh,
        "as recorded" if one.energy_kwh is not None else "",
        one.host, _aware(one.start), _aware(one.end), one.pue, where,
    )  # fmt: skip


def _aware(time: datetime | None) -> datetime | None:
    """One without a zone is of this machine's."""
    return time.astimezone() if time else None


def _job(where: str, row: Mapping[str, str], run: Run) -> Iterator[Work]:
    """A job by what was allotted to it, a run for each kind of GPU; without GPUs its machines are the devices.

    Its steps are part of it, and counted so. Energy is of whole machines, where Slurm has measured it.
    """
    if "." in row.get("JobID", ""):
        run.skipped["steps of Slurm jobs, which are counted with their jobs"] += 1
        return
    try:
        hours = _seconds(row) / 3600
        tres: dict[str, str] = dict(pair.split("=", 1) for pair in row.get("AllocTRES", "").split(",") if pair)
        machines = int(row.get("NNodes") or row.get("AllocNodes") or tres.get("node") or 1)
        gpus = {name.partition("gres/gpu")[2].lstrip(":"): int(n) for name, n in tres.items() if "gres/gpu" in name}
        start, end = (_slurm_time(row.get(column, "")) for column in ("Start", "End"))
        raw = row.get("ConsumedEnergyRaw", "")
        kwh = None if raw in NO_ENERGY else float(raw) / 3.6e6
    except (ValueError, KeyError) as error:
        raise Fault(where, f"is no line of sacct's output ({error})", f"give {SACCT}") from None
    if not hours or not tres:
        run.skipped["Slurm jobs that have not run"] += 1
        return
    kinds = {kind: n for kind, n in gpus.items() if kind} or gpus or {"": machines}
    for kind, n in kinds.items():
        yield Work(
            f"{row.get('JobName') or 'job'} {row['JobID']}", row.get("State", "").lower(),
            kind or ("gpu" if gpus else "machine"), n, n * hours,
            energy_kwh=None if kwh is None else kwh * n / sum(kinds.values()),
            method="Slurm, whole machines" if kwh is not None else "",
            host="" if gpus else row.get("NodeList", ""),  # a GPU is allotted to one job at a time, a machine to many
            start=start, end=end,
        )  # fmt: skip


def _seconds(row: Mapping[str, str]) -> int:
    """Of ``ElapsedRaw``, or of ``Elapsed``: [days-]hours:minutes:seconds."""
    if raw := row.get("ElapsedRaw", ""):
        return int(raw)
    days, _, clock = row["Elapsed"].rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(reversed(parts), (1, 60, 3600), strict=False))


def _slurm_time(text: str) -> datetime | None:
    return None if text in ("", "Unknown", "None") else datetime.fromisoformat(text).astimezone()
