"""What a run takes: devices, their time and energy, over all attempts that it was interrupted in."""

import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from llamactl import energy, hardware, ui
from llamactl.artifacts.manifest import mean_power


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Effort:
    """What a run takes, from here on: on this machine's processors, unless ``use`` says otherwise."""

    def __init__(self) -> None:
        self.devices = 1  # GPUs, or machines where it runs on their processors
        self.earlier: Mapping[str, float] = {}  # device-seconds of attempts that were interrupted, by device
        self.earlier_joules: float | None = 0.0  # that they were measured to take; None where they were not
        self.told: dict[str, float] | None = {} if ui.machines() == 1 else None  # joules by all machines' meters
        self._start, self._clock = _now(), time.monotonic()
        self.device, self.meter = hardware.processor(), energy.processors()

    def use(self, device: str, gpus: Sequence[str] | None = None) -> None:
        """Run on a device of this name. GPUs, as ``model.device.gpus`` names them, are metered from now on."""
        self.device = device
        if gpus is not None:
            self.meter = energy.gpus(gpus)

    def spent(self) -> dict[str, float]:
        """Seconds so far times devices, by device, those of interrupted attempts included."""
        here = (time.monotonic() - self._clock) * self.devices
        return {**self.earlier, self.device: self.earlier.get(self.device, 0.0) + here}

    def device_seconds(self) -> float:
        """The same of all devices together."""
        return sum(self.spent().values())

    def go_on(self, seconds: float | Mapping[str, float], joules: float | None) -> None:
        """After attempts that have taken so much, by device where that is known; None joules were not measured."""
        self.earlier = {self.device: seconds} if isinstance(seconds, int | float) else seconds
        self.earlier_joules = joules

    def joules(self, within: float = 0.0) -> float | None:
        """Measured so far, of all machines and attempts; None where one of them has not been.

        This machine's reading is not older than ``within`` seconds, other machines' are from when they last told.
        """
        here = self.meter.joules(within)
        if here is None or self.told is None or self.earlier_joules is None:
            return None
        return self.earlier_joules + sum((self.told | here).values())

    def account(self) -> dict[str, Any]:
        """What it has taken so far, where and when: energy as it was measured, else by the device's power (TDP)."""
        spent, joules = self.spent(), self.joules()
        hours, powers = sum(spent.values()) / 3600, [hardware.watts(device) for device in spent]
        why = f" ({self.meter.why})" if self.meter.why else ""
        kwh, method = None, f"unknown: no power figure for this device{why}"
        if joules is not None:
            kwh, method = joules / 3.6e6, f"measured: {self.meter.by}"
        elif None not in powers:
            kwh = sum((watts or 0) * seconds for watts, seconds in zip(powers, spent.values(), strict=True)) / 3.6e6
            method = f"tdp: {powers[0]} W{why}" if len({*powers}) == 1 else f"{mean_power(kwh, hours)}{why}"
        return {
            "start": self._start,
            "end": _now(),
            "host": socket.gethostname(),
            "device": self.device,
            "devices": self.devices,
            "device_hours": round(hours, 6),
            "energy_kwh": None if kwh is None else round(kwh, 6),
            "energy_method": method,
        }
