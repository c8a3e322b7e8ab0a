"""The table of devices: which row a device belongs to by the name it gives itself."""

from pathlib import Path

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


# -- processors


@pytest.mark.parametrize(
    ("title", "watts"),
    [
        ("AMD EPYC 7763 64-Core Processor, 2 threads", 280),
        ("2 x AMD EPYC 7763 64-Core Processor, 64 threads", 560),
        ("2 x Intel(R) Xeon(R) Platinum 8480+, 112 threads", 700),
        ("Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz", 205),
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", 150),
        ("AMD Ryzen 9 7950X 16-Core Processor", 170),
        ("AMD EPYC, 2 threads", None),
        ("AMD EPYC 7R32", None),  # made for a cloud
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", None),
        ("NVIDIA H200", 700),
        ("a100-80gb-350w", 350),
        ("cpu", None),
        ("", None),
    ],
)
def test_power_by_the_name_of_a_device(title: str, watts: int | None) -> None:
    assert hardware.watts(title) == watts


def cpuinfo(path: Path, *sockets: int, flags: str = "fpu vme", name: str = "model name\t: AMD EPYC 7763\n") -> Path:
    """What Linux says of a machine whose cores sit in these sockets."""
    cores = (f"processor\t: {n}\n{name}physical id\t: {at}\nflags\t\t: {flags}\n\n" for n, at in enumerate(sockets))
    path.write_text("".join(cores))
    return path


def test_a_machine_is_called_by_its_processors(tmp_path: Path) -> None:
    assert hardware.processor(cpuinfo(tmp_path / "one", 0, 0)) == "AMD EPYC 7763"
    assert hardware.processor(cpuinfo(tmp_path / "two", 0, 0, 1, 1)) == "2 x AMD EPYC 7763"
    assert hardware.processor(cpuinfo(tmp_path / "guest", 0, 1, 2, 3, flags="fpu hypervisor")) == "AMD EPYC 7763"
    assert hardware.processor(cpuinfo(tmp_path / "arm", 0, name="")) == "CPU"
    assert hardware.processor(tmp_path / "none") == "CPU"
