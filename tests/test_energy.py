"""Meters: what counters come to, who reads them, what is said where they cannot be read; sums over attempts."""

import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from conftest import PATIENCE

from llamactl import energy, ui
from llamactl.artifacts import journal, manifest
from llamactl.artifacts.run import Run
from llamactl.errors import Interrupted
from llamactl.train.parallel import Job

RANGE = 262_143_328_850  # microjoules, as an Intel server's counters have it


def zone(root: Path, place: str, name: str, joules: float, end: int = RANGE) -> None:
    """A zone as Linux shows it, or another reading of it."""
    (root / place).mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", int(joules * 1e6)), ("max_energy_range_uj", end)):
        (root / place / "new").write_text(f"{value}\n")
        (root / place / "new").replace(root / place / file)  # a thread may be reading


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two processors, whose meters stand at 100 and 200 J."""
    root = tmp_path / "powercap"
    zone(root, "intel-rapl:0", "package-0", 100)
    zone(root, "intel-rapl:1", "package-1", 200)
    monkeypatch.setattr(energy, "POWERCAP", root)
    return root


def used(meter: energy.Meter) -> float | None:
    found = meter.joules()
    return None if found is None else sum(found.values())


# -- processors


def test_processors_are_added_up(powercap: Path) -> None:
    meter = energy.processors()
    zone(powercap, "intel-rapl:0", "package-0", 150)
    zone(powercap, "intel-rapl:1", "package-1", 207.5)
    assert used(meter) == pytest.approx(57.5)
    assert (meter.by, meter.why) == ("RAPL", "")


def test_parts_and_the_whole_of_a_processor_are_not_counted_beside_it(powercap: Path) -> None:
    """The zones of cores and memory lie in a package's, that of the platform and a second view of it beside."""
    zone(powercap, "intel-rapl:0:0", "core", 10)
    zone(powercap, "intel-rapl:2", "psys", 10)
    zone(powercap, "intel-rapl-mmio:0", "package-0", 10)
    meter = energy.processors()
    for place, name in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0")):
        zone(powercap, place, name, 1000)
    assert used(meter) == 0


def test_dies_that_show_one_number_are_one(powercap: Path) -> None:
    for number in (0, 1):
        zone(powercap, f"intel-rapl:{number}", f"package-0-die-{number}", 500)
    meter = energy.processors()
    for number in (0, 1):
        zone(powercap, f"intel-rapl:{number}", f"package-0-die-{number}", 530)
    assert used(meter) == pytest.approx(30)


def test_a_counter_that_comes_round_to_0(powercap: Path) -> None:
    """Twice, as long as it is read in between."""
    meter = energy.processors()
    end = RANGE / 1e6
    for joules, passed in ((end - 1, end - 101), (4, end - 96), (3, 2 * end - 97)):
        zone(powercap, "intel-rapl:0", "package-0", joules)
        assert used(meter) == pytest.approx(passed)


def test_it_is_read_in_between_until_nobody_asks_any_more(powercap: Path) -> None:
    meter = energy.processors()
    zone(powercap, "intel-rapl:0", "package-0", 160)
    watch = threading.Thread(target=energy._watch, args=(energy.weakref.ref(meter), 0.01))
    watch.start()
    until = time.monotonic() + PATIENCE
    while sum((meter.joules(within=3600) or {}).values()) < 60:
        assert time.monotonic() < until
        time.sleep(0.01)
    del meter
    watch.join(PATIENCE)
    assert not watch.is_alive()


def test_readings_of_a_moment_ago_will_do(powercap: Path) -> None:
    meter = energy.processors()
    zone(powercap, "intel-rapl:0", "package-0", 160)
    time.sleep(0.01)
    assert sum((meter.joules(within=0.001) or {}).values()) == 60
    zone(powercap, "intel-rapl:0", "package-0", 170)
    assert sum((meter.joules(within=60) or {}).values()) == 60


def test_a_machine_without_meters(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nothing"):
        meter = energy.processors(root)
        assert (meter.joules(), meter.why) == (None, "")


@pytest.fixture
def forbidden(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for all but root; the tests may be root's."""

    def refuse(path: Path) -> float:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(energy, "_microjoules", refuse)


@pytest.mark.usefixtures("forbidden")
def test_what_may_not_be_read_is_said_and_power_is_by_tdp(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("a test", {}, {})
    assert run.effort.account()["energy_method"].endswith("(RAPL: Permission denied)")
    run.effort.use("AMD EPYC 7763 64-Core Processor, 2 threads")
    run.effort.go_on(3600.0, 0.0)
    facts = run.effort.account()
    assert facts["energy_method"] == "tdp: 280 W (RAPL: Permission denied)"
    assert facts["energy_kwh"] == pytest.approx(0.28, rel=1e-3)


def test_a_meter_that_fails_on_the_way_has_measured_nothing(powercap: Path) -> None:
    meter = energy.processors()
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert used(meter) is None
    assert meter.why == "RAPL: No such file or directory"
    zone(powercap, "intel-rapl:1", "package-1", 300)
    assert used(meter) is None


def test_a_counter_that_shows_nothing(powercap: Path) -> None:
    meter = energy.processors()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("")
    assert (meter.joules(), meter.why) == (None, "RAPL: its counter shows no number")


# -- GPUs


class Nvml(types.ModuleType):
    """As nvidia-ml-py, on a machine with two GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = {"GPU-a": 5_000, "GPU-b": 7_000}
        self.refusing = ""

    def _answer(self, value: Any) -> Any:
        if self.refusing:
            raise self.NVMLError(self.refusing)
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer(None)

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if name not in self.millijoules:
            raise self.NVMLError("Not Found")
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        value: int = self._answer(self.millijoules[handle])
        return value


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    module = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_gpus_of_the_job_are_read_and_no_others(nvml: Nvml) -> None:
    run = Run("a test", {}, {})
    run.effort.use("NVIDIA A100-SXM4-80GB", ["GPU-b"])
    nvml.millijoules = {"GPU-a": 99_000, "GPU-b": 7_200_007_000}
    facts = run.effort.account()
    assert (facts["energy_kwh"], facts["energy_method"]) == (2.0, "measured: NVML")


def test_a_gpu_is_not_measured_by_the_processors_meter(powercap: Path, nvml: Nvml) -> None:
    run = Run("a test", {}, {})
    run.effort.use("NVIDIA A100-SXM4-80GB", ["GPU-of-another-vendor"])
    zone(powercap, "intel-rapl:0", "package-0", 5000)
    assert run.effort.account()["energy_method"] == "tdp: 400 W (NVML: Not Found)"


def test_nvml_that_is_not_for_us_or_not_there(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.refusing = "Insufficient Permissions"
    meter = energy.gpus(["GPU-a"])
    assert (meter.joules(), meter.why) == (None, "NVML: Insufficient Permissions")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = energy.gpus(["GPU-a"])
    assert (meter.joules(), meter.why) == (None, "NVML: nvidia-ml-py is not installed")


def test_a_driver_that_was_loaded_anew_ends_the_measuring(nvml: Nvml) -> None:
    meter = energy.gpus(["GPU-a"])
    nvml.millijoules["GPU-a"] = 3
    assert (meter.joules(), meter.why) == (None, "NVML: its counter has begun anew")


# -- many processes


def test_only_the_first_process_of_a_machine_reads(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = {}
    for rank in ("0", "1", "7"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        read[rank] = energy.processors()
    zone(powercap, "intel-rapl:0", "package-0", 110)
    assert {rank: meter.joules() for rank, meter in read.items() if rank != "0"} == {"1": {}, "7": {}}
    assert used(read["0"]) == pytest.approx(10)


def as_told(monkeypatch: pytest.MonkeyPatch, *parts: object) -> Job:
    """The job whose processes have told this of their meters."""
    monkeypatch.setattr(Job, "_parts", lambda job, mine: [orjson.dumps(part) for part in parts])
    return Job(None, torch.device("cpu"))


def test_what_several_processes_have_read_of_one_meter_counts_once(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, the second with two launchers: four processes each, of which the first reads."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    run = Run("a test", {}, {})
    assert run.effort.joules() is None  # the other machines have not told
    mine = run.effort.meter.joules()
    assert mine is not None
    theirs = {"other package-0": 30.0}
    as_told(monkeypatch, mine, {}, {}, {}, theirs, {}, theirs, {}).read_meters(run)
    zone(powercap, "intel-rapl:0", "package-0", 112)
    assert run.effort.joules() == pytest.approx(42)


def test_a_machine_that_cannot_measure_makes_it_a_matter_of_tdp(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("a test", {}, {})
    as_told(monkeypatch, run.effort.meter.joules(), {}, None, {}).read_meters(run)
    assert run.effort.joules() is None


def test_one_process_tells_itself(powercap: Path) -> None:
    run = Run("a test", {}, {})
    zone(powercap, "intel-rapl:0", "package-0", 112)
    Job(None, torch.device("cpu")).read_meters(run)
    assert run.effort.joules() == pytest.approx(12)


def test_devices_are_gpus_or_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(None, torch.device("cpu"))
    job.world = 16
    assert job.devices == 1
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert (job.devices, ui.machines()) == (2, 2)
    job.device = torch.device("cuda", 0)
    assert job.devices == 16


# -- runs that were interrupted


def sampled(out: Path, powercap: Path, records: int, joules: float, stop: bool) -> None:
    """Work through so many records of three, which takes ``joules`` in all; ``stop`` before the end."""
    run = Run("a test", {}, {}, out)
    with journal.kept(run) as through:
        todo = through.left(3)[:records]
        for turn, number in enumerate(todo, 1):
            run.effort.meter._read -= 2  # seconds have passed
            now = int((powercap / "intel-rapl:0" / "energy_uj").read_text()) / 1e6
            zone(powercap, "intel-rapl:0", "package-0", now + joules / len(todo))
            through.add(number, [{"number": number, "turn": turn}])
        if stop:
            raise Interrupted("stopped")


@pytest.mark.parametrize("before", ["with a meter", "without"])
def test_energy_of_all_attempts_at_sampling_is_added_up(tmp_path: Path, powercap: Path, before: str) -> None:
    """Where one of them was not measured, the whole is not."""
    out = tmp_path / "out.jsonl"
    with pytest.raises(Interrupted):
        sampled(out, powercap, 2, 7200.0, stop=True)
    if before == "without":
        kept = tmp_path / ".out.jsonl.journal"
        lines = [orjson.loads(line) for line in kept.read_bytes().splitlines()]
        for line in lines[1:]:
            del line["joules"]  # as llamactl wrote it before it could measure
        kept.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
    sampled(out, powercap, 1, 3600.0, stop=False)
    facts = manifest.load(manifest.beside(out))
    if before == "with a meter":
        assert (facts["energy_kwh"], facts["energy_method"]) == (0.003, "measured: RAPL")
    else:
        assert not facts["energy_method"].startswith("measured")


@pytest.fixture
def trained(shards_dir: Path, tmp_path: Path, powercap: Path) -> Callable[[int], None]:
    """Train for four steps, each of which takes 900 J, and fail after some."""
    from llamactl.artifacts.metrics import Metrics
    from stages.pretrain import pretrain

    real = Metrics.log

    def train(fail_after: int) -> None:
        def log(metrics: Metrics, values: Any, due: bool = False) -> None:
            now = int((powercap / "intel-rapl:1" / "energy_uj").read_text()) / 1e6
            zone(powercap, "intel-rapl:1", "package-1", now + 900)
            if values["step"] == fail_after:
                raise RuntimeError("failed")
            real(metrics, values, due)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Metrics, "log", log)
            pretrain(
                size="tiny", data=[str(shards_dir)], out=tmp_path / "base", steps=4, batch_size=1, context=16,
                save_every=1, keep=9, device="cpu", quiet=True,
            )  # fmt: skip

    return train


def test_energy_of_all_attempts_at_training_is_added_up(
    trained: Callable[[int], None], tmp_path: Path, powercap: Path
) -> None:
    """What an attempt has taken after its last state is lost with its steps."""
    with pytest.raises(RuntimeError, match="failed"):
        trained(4)
    newest = sorted((tmp_path / "base" / "state").glob("step-*"))[-1]
    facts = manifest.load_signed(newest / "manifest.json")
    steps = int(newest.name[-8:])
    assert facts["joules"] == pytest.approx(900 * steps)
    assert facts["account"]["energy_method"] == "measured: RAPL"
    zone(powercap, "intel-rapl:1", "package-1", 77)  # another machine, or it was started anew
    trained(99)
    run = manifest.load(tmp_path / "base" / "run.json")
    assert run["energy_kwh"] == pytest.approx(4 * 900 / 3.6e6, abs=1e-6)
    assert run["energy_method"] == "measured: RAPL"
