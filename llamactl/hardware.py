"""The devices that are known by name: memory, speed and power, by their vendors' data sheets. No torch."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from llamactl.errors import Fault

GIB = 2**30


class Device(NamedTuple):
    """A device as it is sold."""

    called: str  # words that are all in the name it gives itself; "" is a row to plan with that no name leads to
    memory: int  # bytes; drivers leave a little less
    flops: float  # of dense bf16 matrix products (fp16 where there is no bf16: V100, T4) in a second
    watts: int  # TDP


# A name belongs to the first row whose words it has, so the particular stand before the general.
DEVICES = {
    "a100-80gb-pcie": Device("A100 80GB PCIE",  80 * GIB,   312e12,  300),
    "a100-80gb-350w": Device("",                80 * GIB,   312e12,  350),  # of the paper's RoCE cluster
    "a100-40gb-pcie": Device("A100 40GB PCIE",  40 * GIB,   312e12,  250),
    "a100-40gb":      Device("A100 40GB",       40 * GIB,   312e12,  400),
    "a100-80gb":      Device("A100",            80 * GIB,   312e12,  400),  # of the paper's InfiniBand cluster
    "h100-pcie":      Device("H100 PCIE",       80 * GIB,   756e12,  350),
    "h100-nvl":       Device("H100 NVL",        94 * GIB,   835e12,  400),
    "h100":           Device("H100",            80 * GIB,   989e12,  700),
    "h200-nvl":       Device("H200 NVL",       141 * GIB,   835e12,  600),
    "h200":           Device("H200",           141 * GIB,   989e12,  700),
    "b200":           Device("B200",           180 * GIB,  2250e12, 1000),
    "mi300x":         Device("MI300X",         192 * GIB,  1307e12,  750),
    "v100-16gb":      Device("V100 16GB",       16 * GIB,   125e12,  300),
    "v100":           Device("V100",            32 * GIB,   125e12,  300),
    "a40":            Device("A40",             48 * GIB,   150e12,  300),
    "a30":            Device("A30",             24 * GIB,   165e12,  165),
    "a10":            Device("A10",             24 * GIB,   125e12,  150),
    "l40s":           Device("L40S",            48 * GIB,   362e12,  350),
    "l4":             Device("L4",              24 * GIB,   121e12,   72),
    "t4":             Device("T4",              16 * GIB,    65e12,   70),
}  # fmt: skip

# Watts (TDP) of one processor, by words that are all in the name it gives itself. The editions that clouds have made
# for them are not here, since their vendors say nothing of them.
PROCESSORS = {
    "EPYC 7302": 155, "EPYC 7402": 180, "EPYC 7452": 155, "EPYC 7502": 180, "EPYC 7542": 225, "EPYC 7552": 200,
    "EPYC 7642": 225, "EPYC 7702": 200, "EPYC 7742": 225,
    "EPYC 7313": 155, "EPYC 7343": 190, "EPYC 7413": 180, "EPYC 7443": 200, "EPYC 7453": 225, "EPYC 7513": 200,
    "EPYC 7543": 225, "EPYC 7643": 225, "EPYC 7663": 240, "EPYC 7713": 225, "EPYC 7763": 280, "EPYC 7773X": 280,
    "EPYC 9124": 200, "EPYC 9224": 200, "EPYC 9254": 200, "EPYC 9334": 210, "EPYC 9354": 280, "EPYC 9374F": 320,
    "EPYC 9454": 290, "EPYC 9474F": 360, "EPYC 9534": 280, "EPYC 9554": 360, "EPYC 9634": 290, "EPYC 9654": 360,
    "EPYC 9684X": 400, "EPYC 9754": 360,
    "EPYC 9355": 280, "EPYC 9455": 300, "EPYC 9555": 360, "EPYC 9575F": 400, "EPYC 9655": 400, "EPYC 9755": 500,
    "EPYC 9965": 500,
    "XEON GOLD 6130": 125, "XEON GOLD 6148": 150, "XEON GOLD 6226R": 150, "XEON GOLD 6230": 125,
    "XEON GOLD 6230R": 150, "XEON GOLD 6240": 150, "XEON GOLD 6248": 150, "XEON GOLD 6248R": 205,
    "XEON GOLD 6330": 205, "XEON GOLD 6338": 205, "XEON GOLD 6342": 230, "XEON GOLD 6348": 235, "XEON GOLD 6354": 205,
    "XEON GOLD 6430": 270, "XEON GOLD 6448Y": 225, "XEON GOLD 6530": 270, "XEON GOLD 6548Y+": 250,
    "XEON PLATINUM 8160": 150, "XEON PLATINUM 8168": 205, "XEON PLATINUM 8180": 205, "XEON PLATINUM 8260": 165,
    "XEON PLATINUM 8268": 205, "XEON PLATINUM 8280": 205, "XEON PLATINUM 8358": 250, "XEON PLATINUM 8360Y": 250,
    "XEON PLATINUM 8362": 265, "XEON PLATINUM 8368": 270, "XEON PLATINUM 8380": 270, "XEON PLATINUM 8462Y+": 300,
    "XEON PLATINUM 8468": 350, "XEON PLATINUM 8470": 350, "XEON PLATINUM 8480+": 350, "XEON PLATINUM 8490H": 350,
    "XEON PLATINUM 8558": 330, "XEON PLATINUM 8568Y+": 350, "XEON PLATINUM 8570": 350, "XEON PLATINUM 8580": 350,
    "XEON PLATINUM 8592+": 350,
    "RYZEN 5950X": 105, "RYZEN 7950X": 170, "RYZEN 9950X": 170, "THREADRIPPER 5995WX": 280, "THREADRIPPER 7995WX": 350,
}  # fmt: skip


def named(name: str) -> Device:
    """A row of the table by its name; raises Fault with the names there are."""
    try:
        return DEVICES[name.lower()]
    except KeyError:
        raise Fault("--device", f"there is no device {name!r} to plan for", f"choose {', '.join(DEVICES)}") from None


def found(title: str) -> str:
    """The row of a device by the name it gives itself, as ``torch.cuda.get_device_name``; "" where there is none."""
    return next((name for name, row in DEVICES.items() if row.called and _has(title, row.called)), "")


def watts(title: str) -> int | None:
    """TDP of a device, by its row or the name it gives itself, of all processors of a machine; None where unknown."""
    if row := DEVICES.get(title.lower()) or DEVICES.get(found(title)):
        return row.watts
    one = next((power for called, power in PROCESSORS.items() if _has(title, called)), None)
    several = re.match(r"(\d+) x ", title)
    return one and one * int(several[1] if several else 1)


def is_processor(title: str) -> bool:
    """Whether a name is that of a machine's processors, and not of a GPU."""
    return any(_has(title, word) for word in ("CPU", "EPYC", "XEON", "RYZEN", "PROCESSOR", "THREADS", "MACHINE"))


def _has(title: str, called: str) -> bool:
    words = set(re.split(r"[\s,-]+", re.sub(r"\((R|TM)\)", "", title.upper())))
    return words.issuperset(called.split())


@cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the machine's processor is called; ``2 x NAME`` where it has two. A virtual machine's are counted as one,
    since how many it is given says nothing of the real ones."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        return "CPU"
    facts = [(key.strip(), value.strip()) for key, _, value in lines]
    name = next((value for key, value in facts if key == "model name"), "CPU")
    real = not any(key == "flags" and "hypervisor" in value.split() for key, value in facts)
    sockets = len({value for key, value in facts if key == "physical id"}) if real else 1
    return f"{sockets} x {name}" if sockets > 1 else name
