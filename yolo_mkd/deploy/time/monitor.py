"""State of the machine during a measurement: load of other programs, temperatures, clocks, throttle counters.

It is sampled between two runs, at most once a second, so that no timed sample includes the sampling.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from yolo_mkd.edge.health import drift_causes
from yolo_mkd.edge.sensors import Sensors, file_number, file_text

PERIOD_S = 1.0
BUSY_CORES = 0.2  # our choice: the smallest load of other programs, and change of it, that is reported
CPU_CHIPS = ("coretemp", "k10temp", "zenpower")  # sensors in a PC's processor
TICKS_S = 100  # of /proc/stat: the kernel's USER_HZ


class MachineMonitor:
    """Samples of the machine, in the form of a bundle's sensors."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Find the sensors under `root`; tests use another folder than /."""
        self.root, self.sensors = root, Sensors(root)
        self.trace: list[dict[str, Any]] = []
        self.active = False
        self.start_s = self.last_s = 0.0
        self.before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def begin(self) -> None:
        """Start sampling."""
        self.active, self.start_s = True, perf_counter()
        self.sample()

    def end(self) -> None:
        """Take the last sample."""
        self.sample()
        self.active = False

    def sample_if_due(self) -> None:
        """Take a sample if the last one is a second old."""
        if self.active and perf_counter() - self.last_s >= PERIOD_S:
            self.sample()

    def sample(self) -> None:
        """Take one sample; `others_cores` is the load of all other processes since the last sample."""
        seen, now = self.sensors.sample(), self.cpu_seconds()
        clock, busy, own = (a - b for a, b in zip(now, self.before, strict=True))
        seen["temperatures_c"] |= self.chip_temperatures()
        seen["throttle_events"] |= self.core_throttles()
        # ticks are hundredths of a second, so the load of a short time would be too inaccurate
        others = max(busy - own, 0.0) / clock if self.trace and clock >= PERIOD_S / 2 else None
        self.trace.append({"t_s": now[0] - self.start_s, **seen, "others_cores": others})
        self.before, self.last_s = now, now[0]

    def cpu_seconds(self) -> tuple[float, float, float]:
        """The clock, and the processor time that all programs and this process have used so far [s]."""
        own, line = os.times(), (file_text(self.root / "proc/stat") or "").partition("\n")[0].split()
        # user nice system idle iowait irq softirq steal
        busy = sum(float(line[n]) for n in (1, 2, 3, 6, 7, 8)) / TICKS_S if len(line) > 8 else 0.0
        return perf_counter(), busy, own.user + own.system

    def chip_temperatures(self) -> dict[str, float]:
        """Temperatures of a PC's processor, where the kernel has no thermal zone for it."""
        found = {}
        for chip in sorted(self.root.glob("sys/class/hwmon/hwmon*")):
            degrees = file_number(chip / "temp1_input")
            if (name := file_text(chip / "name")) in CPU_CHIPS and degrees is not None:
                found[str(name)] = degrees / 1e3
        return found

    def core_throttles(self) -> dict[str, float]:
        """The number of times that Intel's cores throttled because of heat since start-up."""
        counts = [
            file_number(p) or 0.0
            for p in self.root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
        ]
        return {"cpu heat": sum(counts)} if counts else {}

    def other_load(self) -> list[float]:
        """Cores that other programs used, in the order of the samples."""
        return [sample["others_cores"] for sample in self.trace if sample["others_cores"] is not None]

    def drift_causes(self) -> list[str]:
        """Changes between the first and the last third that may explain a drift of the times."""
        found, others = drift_causes(self.trace), self.other_load()
        third = max(len(others) // 3, 1)
        if others and abs(np.mean(others[-third:]) - np.mean(others[:third])) > BUSY_CORES:
            first, last = np.mean(others[:third]), np.mean(others[-third:])
            found.append(f"other programs' load went from {first:.1f} to {last:.1f} cores")
        return found

    def warnings(self) -> list[str]:
        """Conditions under which the times are not this machine's best."""
        busy = float(np.mean(self.other_load() or [0.0]))
        if busy <= BUSY_CORES:
            return []
        return [f"other programs used {busy:.1f} of {os.cpu_count()} cores: stop them and time again"]
