"""What the machine's own meters say: NVML on NVIDIA GPUs (Volta and newer), RAPL on Intel's and AMD's processors.

Both count joules upwards from some moment on, so a run is the difference of two readings. NVML's counter is of the
whole board. RAPL's is of a processor with its caches, without the memory, whoever computes on it; it comes round to 0
every few minutes, so a thread reads it in between. Of a job's processes the first on each machine reads for all there.
"""

import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")  # where Linux shows RAPL; since 2020 only root may read it, unless it is allowed
MOST = 1000.0  # watts of a processor: a counter is read often enough that at less it never comes round unseen


class Counter(NamedTuple):
    """Something that counts joules upwards: from ``end`` on it is at 0 again."""

    name: str
    read: Callable[[], float]
    end: float = math.inf


class Meter:
    """Joules of some counters since it was made. ``by`` says what counts, ``why`` in words what keeps it from it."""

    def __init__(self, by: str, found: Callable[[], list[Counter]]) -> None:
        self.by, self.why, self._lock = by, "", threading.Lock()
        self._counters: list[Counter] = []
        self._used: dict[str, float] | None = None
        try:
            self._counters = found() if _first_here() else []
            self._last = {counter.name: counter.read() for counter in self._counters}
        except OSError as error:
            self._stop(error)
            return
        self._read = time.monotonic()
        if self._counters or not _first_here():
            self._used = dict.fromkeys(self._last, 0.0)
        if (end := min((counter.end for counter in self._counters), default=math.inf)) < math.inf:
            threading.Thread(target=_watch, args=(weakref.ref(self), max(1.0, end / MOST / 2)), daemon=True).start()

    def joules(self, within: float = 0.0) -> dict[str, float] | None:
        """Since it was made, by counter, ``within`` so many seconds; None where there is no meter or it has failed."""
        with self._lock:
            if self._used is not None and time.monotonic() - self._read >= within:
                try:
                    for name, read, end in self._counters:
                        before, self._last[name] = self._last[name], read()
                        passed = self._last[name] - before
                        if passed < 0 and end == math.inf:
                            raise OSError("its counter has begun anew")
                        self._used[name] += passed if passed >= 0 else passed + end
                    self._read = time.monotonic()
                except OSError as error:
                    self._stop(error)
            return None if self._used is None else dict(self._used)

    def _stop(self, error: OSError) -> None:
        self._used, self.why = None, f"{self.by}: {error.strerror or error}"


def _first_here() -> bool:
    """Whether this process is its machine's first one (torchrun numbers them in LOCAL_RANK)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _watch(meter: "weakref.ref[Meter]", seconds: float) -> None:
    time.sleep(seconds)
    while (there := meter()) is not None:
        there.joules()
        del there
        time.sleep(seconds)


def processors(root: Path | None = None) -> Meter:
    """The meter of this machine's processors; it measures nothing where they have none."""
    return Meter("RAPL", lambda: rapl(root or POWERCAP))


def gpus(names: Sequence[str]) -> Meter:
    """The meter of GPUs by their NVML names, as ``model.device.gpus``."""
    return Meter("NVML", lambda: nvml(names))


def rapl(root: Path) -> list[Counter]:
    """A counter a processor, none where there are none. Raises OSError where they may not be read.

    Zones of parts (cores, memory) and of the whole platform are left out, and of dies that show the same number, as
    those of an AMD processor do, all but the first.
    """
    found: list[Counter] = []
    shown: list[float] = []
    for zone in sorted(root.glob("intel-rapl:*")):
        name = (zone / "name").read_text().strip()
        if zone.name.count(":") > 1 or not name.startswith("package"):
            continue
        end = _microjoules(zone / "max_energy_range_uj")
        counter = Counter(f"{socket.gethostname()} {name}", partial(_microjoules, zone / "energy_uj"), end)
        now = counter.read()
        if "-die-" not in name or all(abs(now - other) > 1.0 for other in shown):
            found.append(counter)
            shown.append(now)
    return found


def _microjoules(path: Path) -> float:
    try:
        return int(path.read_text()) / 1e6
    except ValueError:
        raise OSError("its counter shows no number") from None


def nvml(names: Sequence[str]) -> list[Counter]:
    """A counter a GPU. Raises OSError where there is no NVML, or none for us."""
    try:
        import pynvml
    except ImportError:
        raise OSError("nvidia-ml-py is not installed") from None

    def read(handle: object) -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from None

    try:
        pynvml.nvmlInit()
        return [Counter(name, partial(read, pynvml.nvmlDeviceGetHandleByUUID(name))) for name in names]
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from None
