"""What a person or a program sees of runs that were accounted: a table, JSON, codecarbon's columns, a model card's."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import orjson

from llamactl import __version__, carbon, hardware, ui
from llamactl.artifacts import manifest
from llamactl.artifacts.ancestry import Lineage
from llamactl.carbon import Cluster, Footprint, Overlap, Total
from llamactl.grid import grids

SHOWN = 5  # overlaps, and inputs that were not found, named one by one
MASS = {"t": 1.0, "kg": 1e3, "g": 1e6}  # to a tonne; what is told is told in the first unit of which it is one
ENERGY = {"kWh": 1.0, "Wh": 1e3}
TRAININGS = {"pretrain": "pre-training", "sft": "fine-tuning", "rm-train": "fine-tuning", "ppo": "fine-tuning"}

# The columns of codecarbon 3's emissions.csv. What is empty there is not known, or not counted.
COLUMNS = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed",
    "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os", "python_version",
    "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude", "latitude", "ram_total_size",
    "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent", "ram_utilization_percent", "ram_used_gb",
    "on_cloud", "pue", "wue",
)  # fmt: skip


class Report(NamedTuple):
    """Runs, what they come to, and what there is to say of them in all."""

    footprints: Sequence[Footprint]
    clusters: Sequence[Cluster] = ()  # to compare with
    offset: float = 0.0  # share of the emissions
    lineage: Lineage | None = None

    @property
    def total(self) -> Total:
        """In all."""
        return carbon.total(self.footprints)

    @property
    def elsewhere(self) -> list[tuple[Cluster, Total]]:
        """The same work on each of the clusters."""
        return [(cluster, carbon.elsewhere(self.footprints, cluster)) for cluster in self.clusters]

    @property
    def overlaps(self) -> list[Overlap]:
        """Runs that may be counted twice for some of their time."""
        return list(carbon.overlaps(one.work for one in self.footprints))


# -- for a person


class Table(NamedTuple):
    """A table to be shown."""

    title: str
    rows: Sequence[tuple[str, ...]]
    header: tuple[str, ...] = ()


def tables(report: Report) -> Iterator[Table]:
    """The runs, one by one and in all; then what the numbers mean, what they leave out, what is in doubt."""
    every, whole = report.footprints, report.total
    counted: list[Footprint | Total] = [*every, whole]
    above, names = _shortened([one.work.name for one in every])
    said = _runs(whole.runs) + (f" in {above}" if above else "")
    mass, power = _unit(MASS, whole.tco2eq), _unit(ENERGY, whole.energy_kwh)
    columns: dict[str, list[str]] = {
        "run": [*names, "in all"],
        "stage": [*(one.work.stage for one in every), ""],
        "device": [*(one.work.device_name for one in every), ""],
        "device-hours": _aligned([*(one.work.device_hours for one in every), whole.device_hours]),
        "W": [*(ui.count(round(one.watts, 1)) for one in every), ""],
        power: _aligned([one.energy_kwh * ENERGY[power] for one in counted]),
        "PUE": [*(f"{one.pue:g}" for one in every), ""],
        "g/kWh": [*(f"{one.grid.grams:g}" for one in every), ""],
        f"{mass} CO2eq": _aligned([one.tco2eq * MASS[mass] for one in counted]),
        "method": [*(one.method.partition(" (")[0] for one in every), ""],
    }
    if len(set(columns["device"][:-1])) == 1:
        said += f", on {every[0].work.device_name}"
        del columns["device"]
    yield Table(said, list(zip(*columns.values(), strict=True)), tuple(columns))
    if report.clusters:
        yield compared([(Cluster(0, 1.0, "as it was"), whole), *report.elsewhere])
    yield Table("", list(notes(report)))


def table_2(report: Report) -> Iterator[Table]:
    """The paper's: rows cut off after two decimals, the total rounded; then as for any runs."""
    rows = [
        (one.work.name, f"{one.work.device_hours:,.0f}", f"{one.watts:g}", f"{carbon.cut_off(one.tco2eq):,.2f}")
        for one in report.footprints
    ]
    whole = report.total
    rows.append(("total", f"{whole.device_hours:,.0f}", "", f"{whole.tco2eq:,.2f}"))
    title = "Table 2 of the paper: rows cut off after two decimals, the total rounded"
    yield Table(title, rows, ("model", "GPU-hours", "W", "tCO2eq"))
    yield compared(report.elsewhere)
    yield Table("", list(notes(report)))


def compared(rows: Sequence[tuple[Cluster, Total]]) -> Table:
    """The same work on several clusters: hours, energy and carbon, and by how much they differ from the first's."""
    first = rows[0][1]
    mass, power = _unit(MASS, first.tco2eq), _unit(ENERGY, first.energy_kwh)
    columns = {
        "the same work": [one.name for one, _ in rows],
        "W": [f"{one.watts:g}" if one.watts else "" for one, _ in rows],
        "speed": [f"{one.speed:.0%}" for one, _ in rows],
        "device-hours": _aligned([there.device_hours for _, there in rows]),
        power: _aligned([there.energy_kwh * ENERGY[power] for _, there in rows]),
        f"{mass} CO2eq": _aligned([there.tco2eq * MASS[mass] for _, there in rows]),
        "hours": [_change(there.device_hours, first.device_hours) for _, there in rows],
        "energy": [_change(there.energy_kwh, first.energy_kwh) for _, there in rows],
    }
    return Table("", list(zip(*columns.values(), strict=True)), tuple(columns))


def _change(new: float, old: float) -> str:
    return f"{new / old - 1:+.1%}".replace("-", "−") if new != old and old else ""


def _runs(number: int) -> str:
    return f"{number:,} run" + "s" * (number != 1)


def _shortened(names: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all names lie in, and the rest of each."""
    parts = [name.split("/") for name in names]
    levels = zip(*(part[:-1] for part in parts), strict=False)
    above = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    above = above if any(above) else []  # "/" is no folder to tell of
    return "/".join(above), ["/".join(part[len(above) :]) for part in parts]


def _aligned(values: Sequence[float]) -> list[str]:
    """A column of numbers, with as many decimals as show five digits of the largest."""
    most = max(values)
    places = max(0, 4 - math.floor(math.log10(most))) if most else 0
    return [f"{value:,.{places}f}" for value in values]


def _unit(units: Mapping[str, float], value: float) -> str:
    return next((name for name, times in units.items() if value * times >= 1), list(units)[-1])


def _told(units: Mapping[str, float], value: float) -> str:
    unit = _unit(units, value)
    return f"{value * units[unit]:,.2f} {unit}"


def notes(report: Report) -> Iterator[tuple[str, str]]:
    """What stands below a table of runs."""
    every, whole = report.footprints, report.total
    for method in {one.method: None for one in every}:
        some = [one for one in every if one.method == method]
        how = "device-hours x power (a device's TDP, or as given)" if method.startswith("tdp") else "as a meter counted"
        yield method, f"{how}: {_told(ENERGY, carbon.total(some).energy_kwh)}, {_runs(len(some))}"
    if any(hardware.is_processor(one.work.device) for one in every):
        yield "", "processors count whole, also where a run had some of their cores (--watts for less) or was not alone"
    yield "CO2eq", f"energy of the devices x PUE {' or '.join(dict.fromkeys(f'{one.pue:g}' for one in every))} x g/kWh"
    for grid in {one.grid: None for one in every}:
        yield "g/kWh", str(grid)
    yield "not counted", "; ".join(carbon.NOT_COUNTED)
    if report.offset:
        yield (
            "offset",
            f"{report.offset:.0%} of it, {_told(MASS, whole.tco2eq * report.offset)} CO2eq; not taken off above",
        )
    found = report.overlaps
    for one in found[:SHOWN]:
        time = ui.duration(one.hours * 3600)
        yield (
            "in doubt",
            f"{one.first} and {one.second} were on {one.host} at once for {time}: what both used counts twice",
        )
    if len(found) > SHOWN:
        yield "in doubt", f"{len(found) - SHOWN:,} more pairs of runs were on one machine at once"
    if report.lineage:
        yield from _gaps(report.lineage)


def _gaps(lineage: Lineage) -> Iterator[tuple[str, str]]:
    for gap in lineage.missing[:SHOWN]:
        name = "stdin" if gap.name == "-" else gap.name
        yield "missing", f"{gap.role} of {manifest.artifact(gap.of)}: {name} {gap.why}"
    if len(lineage.missing) > SHOWN:
        yield "missing", f"{len(lineage.missing) - SHOWN:,} more ancestors"
    if lineage.sources:
        yield "sources", f"{len(lineage.sources):,} inputs are from elsewhere: what made them is not counted"


# -- for a program


def as_json(report: Report) -> str:
    """All of it, unrounded."""
    whole = report.total
    found: dict[str, Any] = {
        "runs": [
            {
                **{name: value for name, value in one.work._asdict().items() if name not in ("pue", "grid", "method")},
                "watts": one.watts,
                "energy_kwh": one.energy_kwh,
                "method": one.method,
                "pue": one.pue,
                "kg_per_kwh": one.grid.kg,
                "grid": one.grid._asdict(),
                "tco2eq": one.tco2eq,
            }
            for one in report.footprints
        ],
        "total": whole._asdict(),
        "not_counted": carbon.NOT_COUNTED,
        "overlaps": [one._asdict() for one in report.overlaps],
        "version": __version__,
    }
    if report.offset:
        found["offset"] = {"share": report.offset, "tco2eq": report.offset * whole.tco2eq}
    if report.clusters:
        found["elsewhere"] = [{**cluster._asdict(), **there._asdict()} for cluster, there in report.elsewhere]
    if report.lineage:
        for name, gaps in (("missing", report.lineage.missing), ("sources", report.lineage.sources)):
            found[name] = [{**gap._asdict(), "of": str(manifest.artifact(gap.of))} for gap in gaps]
    return orjson.dumps(found, option=orjson.OPT_INDENT_2).decode()


def as_csv(report: Report) -> str:
    """As codecarbon's emissions.csv, in its units: seconds, kg, W, kWh. Its power and energy are with the PUE."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_row, report.footprints))
    return text.getvalue().rstrip("\n")


def _row(one: Footprint) -> Mapping[str, object]:
    work, kind = one.work, "cpu" if hardware.is_processor(one.work.device) else "gpu"
    seconds = work.device_hours / max(1, work.devices) * 3600
    return {
        "timestamp": work.end.isoformat(timespec="seconds") if work.end else "",
        "project_name": work.stage,
        "run_id": work.name,
        "duration": seconds,
        "emissions": 1000 * one.tco2eq,
        "emissions_rate": 1000 * one.tco2eq / seconds if seconds else 0.0,
        "energy_consumed": one.energy_with_pue_kwh,
        f"{kind}_power": one.watts * work.devices * one.pue,
        f"{kind}_energy": one.energy_with_pue_kwh,
        f"{kind}_model": work.device,
        "gpu_count": work.devices if kind == "gpu" else "",  # cpu_count is of cores, which nobody has recorded
        "country_name": country.name if (country := grids().get(one.grid.country.lower())) else "",
        "country_iso_code": one.grid.country,
        "region": "" if one.grid.provider or one.grid.code == one.grid.country else one.grid.name,
        "cloud_provider": one.grid.provider,
        "cloud_region": one.grid.code if one.grid.provider else "",
        "tracking_mode": "machine",
        "on_cloud": "Y" if one.grid.provider else "N",
        "pue": one.pue,
    }


def as_card(report: Report) -> str:
    """The block of a model card's metadata, in grams."""
    every = report.footprints

    def listed(of: Callable[[Footprint], str]) -> str:
        return ", ".join(dict.fromkeys(filter(None, map(of, every))))

    how = f"PUE {listed(lambda one: f'{one.pue:g}')}; {listed(lambda one: str(one.grid))}"
    block = {
        "emissions": round(1e6 * report.total.tco2eq, 3),
        "source": f"llamactl carbon {__version__}: {listed(lambda one: one.method)}; {how}",
        "training_type": listed(lambda one: TRAININGS.get(one.work.stage, "")).replace(", ", " and "),
        "geographical_location": listed(lambda one: one.grid.name if one.grid.country else ""),
        "hardware_used": listed(_hardware),
    }
    lines = (f"  {name}: {orjson.dumps(value).decode()}" for name, value in block.items() if value != "")
    return "\n".join(["co2_eq_emissions:", *lines])


def _hardware(one: Footprint) -> str:
    return f"{one.work.devices:,} x {one.work.device}" if one.work.devices > 1 else one.work.device


FORMATS: Mapping[str, Callable[[Report], str]] = {"json": as_json, "csv": as_csv, "card": as_card}


# -- the tables behind it


def known() -> Iterator[Table]:
    """What is known of devices and of grids, with where it is from."""
    gpus = [(name, f"{row.watts} W") for name, row in hardware.DEVICES.items()]
    yield Table("GPUs, TDP by their vendors' data sheets", gpus)
    processors = [(name, f"{watts} W") for name, watts in hardware.PROCESSORS.items()]
    yield Table("processors, TDP of one by their vendors' data sheets", processors)
    by_source: dict[tuple[str, int | None], list[tuple[str, ...]]] = {}
    for one in grids().values():
        place = f"{one.name} ({one.provider})" if one.provider else one.name
        by_source.setdefault((one.source, one.year), []).append((one.code, place, f"{one.grams:g} g/kWh"))
    for (source, year), rows in by_source.items():
        yield Table(f"{source}, {year}", rows)
