"""The table of devices: which row a device belongs to by the name it gives itself."""

import pytest

from llamactl import hardware
from llamactl.errors import Fault


@pytest.mark.parametrize(
    ("title", "row"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("A100-PCIE-40GB", "a100-40gb-pcie"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40", ""),  # none of the table's: its figures are not those of the L4
        ("NVIDIA GH200 480GB", ""),
        ("AMD EPYC 7763 64-Core Processor, 2 threads", ""),
    ],
)
def test_a_device_is_found_by_the_name_it_gives_itself(title: str, row: str) -> None:
    assert hardware.found(title) == row


def test_names_are_of_the_command_line() -> None:
    assert all(name == name.lower() and " " not in name for name in hardware.DEVICES)
    assert hardware.named("H100") is hardware.DEVICES["h100"]


def test_a_device_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(Fault, match=r"no device 'h1000' to plan for; choose .*a100-80gb, .*t4"):
        hardware.named("h1000")
