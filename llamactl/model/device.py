"""What a model runs on: which device, in which precision, how fast it could be, how much memory it has used."""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from llamactl import hardware
from llamactl.errors import Fault

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
STORED = {"bf16": "bfloat16", "fp32": "float32"}  # as config.json names them

_PROBE = 2048  # side of the largest matrices multiplied to learn the rate of a device that is not listed
_LARGE = 2**17  # bytes of a block that is given back by itself


def chosen(name: str | None) -> torch.device:
    """The device that was asked for, or a GPU where there is one; raises Fault where it is not there.

    Each process of a node has a GPU of its own, unless one is named.
    """
    try:
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        device = torch.device(own if name == "cuda" or (not name and torch.cuda.is_available()) else name or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Fault("--device", f"{name} cannot be used ({str(error).splitlines()[0]})", "try --device cpu") from None
    return device


def keep_freed_memory(checkpointing: str = "none") -> None:
    """Have glibc keep what a step frees for the next one; with checkpointing, give every large block back at once.

    Kept, a CPU's step has no page faults, which are 5 to 15 % of it otherwise (40 % in some virtual machines). But
    torch's blocks are aligned, for which glibc cuts splinters off that do not always go back: a freed block serves
    hardly any as large again, and the heap held up to 2.7 times what was in use where memory was to be saved.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if checkpointing == "none":
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own, which free() gives back
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nor from the top of the heap
    else:
        mallopt(-3, _LARGE)  # M_MMAP_THRESHOLD, which grows with what is freed where it is not set


@contextmanager
def lent(model: nn.Module, device: torch.device, away: bool) -> Iterator[None]:
    """Have a model on a device while it works, where it is ``away`` in the host's memory for the rest of the time."""
    if away:
        model.to(device)
    yield
    if away:
        model.to("cpu")


def title(device: torch.device) -> str:
    """What the device is called: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{hardware.processor()}, {torch.get_num_threads()} threads"


def gpus(device: torch.device) -> list[str] | None:
    """The GPUs of this machine that the job uses, by the names that NVML knows them by; None on a CPU."""
    if device.type != "cuda":
        return None
    here = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    used = range(here) if here > 1 else [device.index or 0]
    return [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in used]


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products: from the table for a listed GPU in bf16, else measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        row = hardware.found(torch.cuda.get_device_name(device))
        if row:
            return hardware.DEVICES[row].flops
    side, best = 32, 0.0
    while side <= _PROBE:  # until a product takes long enough to be measured; without support bf16 is 100 times slower
        a = torch.randn(side, side, device=device).to(dtype)
        for _ in range(3):
            start = time.perf_counter()
            (a @ a.mT)[0, 0].item()
            taken = time.perf_counter() - start
            best = max(best, 2 * side**3 / taken)
        if taken > 0.02:
            break
        side *= 2
    return best


def memory(device: torch.device) -> int:
    """Bytes that it has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses; on a GPU with those that this process has freed, and its allocator keeps."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: of the allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()  # not getrusage, which begins with what the parent process took
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
