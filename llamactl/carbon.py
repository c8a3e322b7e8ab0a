"""What runs cost in energy and carbon, as the paper counts it (section 2.2.1, Table 2). No torch.

    tonnes = device-hours x watts x PUE x kg CO2eq a kWh / 1,000,000

or in place of device-hours x watts, what a meter has counted. Either is of the devices alone.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from llamactl import hardware
from llamactl.errors import Fault
from llamactl.grid import Grid

PUE = 1.1  # power usage effectiveness: power of the building over that of its devices (paper, section 2.2.1)
KG_PER_KWH = 0.385  # CO2eq of the grid, likewise
MOST_KG = 3.0  # no grid is as dirty; who gives more has given grams

PAPERS_GRID = Grid("", "the paper's", 1000 * KG_PER_KWH, "section 2.2.1")

NOT_COUNTED = (  # what the paper leaves out, too
    "interconnect and network",
    "hosts: processors, memory and disks beside GPUs; memory and disks beside processors",
    "cooling and losses beyond the PUE",
    "the making of the hardware, and what becomes of it",
    "runs to stdout, which leave no manifest",
    "what an interrupted attempt did after its last state, or without one",
)


class Work(NamedTuple):
    """What a run has taken of its devices, as it was recorded."""

    name: str
    stage: str
    device: str
    devices: int
    device_hours: float  # of GPUs, or of machines where it ran on their processors
    watts: float | None = None  # of a device, where the record says so
    energy_kwh: float | None = None  # that a meter has counted, of the devices alone
    method: str = ""  # which meter; or why there was none
    host: str = ""
    start: datetime | None = None  # of the last attempt
    end: datetime | None = None
    pue: float | None = None  # of where it ran, where the record says so
    grid: Grid | None = None

    @property
    def device_name(self) -> str:
        """Without the number of threads that it had of a processor."""
        return self.device.partition(",")[0]


class Footprint(NamedTuple):
    """What a run comes to."""

    work: Work
    watts: float  # of a device: TDP, or the mean of what was measured
    energy_kwh: float  # of the devices alone
    method: str
    pue: float
    grid: Grid

    @property
    def energy_with_pue_kwh(self) -> float:
        """Of the building."""
        return self.energy_kwh * self.pue

    @property
    def tco2eq(self) -> float:
        """Tonnes of CO2eq."""
        return tonnes(self.energy_with_pue_kwh, self.grid.kg)


class Total(NamedTuple):
    """Runs in all."""

    runs: int
    device_hours: float
    energy_kwh: float
    energy_with_pue_kwh: float
    tco2eq: float


def energy(device_hours: float, watts: float, pue: float = PUE) -> float:
    """In kWh, of the building; of the devices alone with a PUE of 1."""
    return device_hours * watts * pue / 1000


def tonnes(kwh: float, kg_per_kwh: float = KG_PER_KWH) -> float:
    """Of CO2eq for so much energy."""
    return kwh * kg_per_kwh / 1000


def cut_off(value: float, places: int = 2) -> float:
    """As the paper has the rows of Table 2: cut off after two decimals, not rounded."""
    return math.floor(value * 10.0**places) / 10.0**places


# Table 2. Which cluster a row is of follows from its watts.
PAPER = tuple(
    Work(f"Llama 2 {size}", "pretrain", device, 0, hours)
    for size, device, hours in (
        ("7B", "a100-80gb", 184_320),
        ("13B", "a100-80gb", 368_640),
        ("34B", "a100-80gb-350w", 1_038_336),
        ("70B", "a100-80gb", 1_720_320),
    )
)


def powers(given: Iterable[str]) -> dict[str, float]:
    """``[DEVICE=]WATTS`` by word of a device's name; "" for what is not known otherwise. Raises Fault."""
    found = {}
    for text in given:
        word, equals, number = text.rpartition("=")
        try:
            found[word.lower()] = float(number)
        except ValueError:
            found[word.lower()] = math.nan
        if not 0 < found[word.lower()] < math.inf or (equals and not word):
            raise Fault("--watts", f"{text!r} is no power", "give watts of one device: 250, or cpu=250, h100=650")
    return found


def power(work: Work, given: Mapping[str, float]) -> float:
    """Watts of one of a run's devices: as was given for its name, as recorded, by the table, as given for all others.

    Raises Fault where it is not known.
    """
    for word, watts in given.items():
        if word and word in work.device.lower():
            return watts
    known = work.watts or hardware.watts(work.device) or given.get("")
    if known is None:
        problem = f"the power of its device is not known ({work.device})"
        raise Fault(work.name, problem, "give it with --watts, for one device: --watts 250")
    return known


def footprint(work: Work, given: Mapping[str, float], pue: float, grid: Grid) -> Footprint:
    """What a run comes to; ``pue`` and ``grid`` hold where its record says nothing else."""
    where = work.pue or pue, work.grid or grid
    if work.energy_kwh is not None:
        mean = 1000 * work.energy_kwh / work.device_hours if work.device_hours else 0.0
        return Footprint(work, mean, work.energy_kwh, f"measured: {work.method}", *where)
    watts = power(work, given)
    why = f" ({work.method})" if work.method else ""
    return Footprint(work, watts, energy(work.device_hours, watts, pue=1), f"tdp{why}", *where)


def total(footprints: Sequence[Footprint]) -> Total:
    """Of all."""
    return Total(
        len(footprints),
        math.fsum(one.work.device_hours for one in footprints),
        math.fsum(one.energy_kwh for one in footprints),
        math.fsum(one.energy_with_pue_kwh for one in footprints),
        math.fsum(one.tco2eq for one in footprints),
    )


class Cluster(NamedTuple):
    """Devices to compare with: watts of one, and its speed by that of those that did the work."""

    watts: float
    speed: float
    name: str = "elsewhere"


# The paper's two (section 2.2.1). That RoCE is slower by a tenth is an assumption of ours.
CLUSTERS = (Cluster(400, 1.0, "InfiniBand"), Cluster(350, 0.9, "RoCE"))


def cluster(text: str) -> Cluster:
    """``WATTS@SPEED``: 350@0.9 are devices of 350 W at 90 % of the speed. Raises Fault."""
    watts, _, speed = text.partition("@")
    try:
        found = Cluster(float(watts), float(speed or 1))
    except ValueError:
        found = Cluster(0, 0)
    if not (0 < found.watts < math.inf and 0 < found.speed < math.inf):
        raise Fault("--compare", f"{text!r} are no devices", "give watts and relative speed, for example 350@0.9")
    return found


def elsewhere(footprints: Iterable[Footprint], other: Cluster) -> Total:
    """The same work on other devices, in the same places: slower ones take longer, and energy accordingly."""
    done = []
    for one in footprints:
        hours = one.work.device_hours / other.speed
        work = one.work._replace(device_hours=hours)
        done.append(one._replace(work=work, energy_kwh=energy(hours, other.watts, pue=1)))
    return total(done)


class Overlap(NamedTuple):
    """Two runs that were on one machine, on devices of one name, at a time."""

    host: str
    first: str
    second: str
    hours: float  # of the clock


def overlaps(works: Iterable[Work]) -> Iterator[Overlap]:
    """Runs that may have shared their devices, whose hours then count in both."""
    by_place: defaultdict[tuple[str, str], list[tuple[datetime, datetime, str]]] = defaultdict(list)
    for work in works:
        if work.host and work.start and work.end:
            by_place[work.host, work.device_name].append((work.start, work.end, work.name))
    for (host, _), some in by_place.items():
        some.sort()
        for number, (_, end, name) in enumerate(some, 1):
            for other_start, other_end, other in some[number:]:
                if other_start >= end:
                    break
                yield Overlap(host, name, other, (min(end, other_end) - other_start).total_seconds() / 3600)
