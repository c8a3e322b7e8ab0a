"""The devices that are known by name: memory, speed and power, by their vendors' data sheets. No torch."""

import re
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
    "l40s":           Device("L40S",            48 * GIB,   362e12,  350),
    "l4":             Device("L4",              24 * GIB,   121e12,   72),
    "t4":             Device("T4",              16 * GIB,    65e12,   70),
}  # fmt: skip


def named(name: str) -> Device:
    """A row of the table by its name; raises Fault with the names there are."""
    try:
        return DEVICES[name.lower()]
    except KeyError:
        raise Fault("--device", f"there is no device {name!r} to plan for", f"choose {', '.join(DEVICES)}") from None


def found(title: str) -> str:
    """The row of a device by the name it gives itself, as ``torch.cuda.get_device_name``; "" where there is none."""
    words = set(re.split(r"[\s-]+", title.upper()))
    return next((name for name, row in DEVICES.items() if row.called and words.issuperset(row.called.split())), "")
