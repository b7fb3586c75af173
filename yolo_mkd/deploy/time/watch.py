"""What the machine did while it was timed: other programs' load, temperatures, clocks and throttle counters.

It is looked at between two runs, at most once a second, so that looking falls into no sample.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from yolo_mkd.edge.health import causes
from yolo_mkd.edge.sensors import Sensors, content, number

PERIOD_S = 1.0
BUSY_CORES = 0.2  # ours: load of other programs, or a change of it, that is worth naming
CPU_CHIPS = ("coretemp", "k10temp", "zenpower")  # sensors in a PC's processor
TICKS_S = 100  # of /proc/stat: the kernel's USER_HZ


class Watch:
    """Samples of the machine, in the form that a bundle's sensors give them."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Look for sensors under `root`, which is another folder only in tests."""
        self.root, self.sensors = root, Sensors(root)
        self.trace: list[dict[str, Any]] = []
        self.watching = False
        self.start_s = self.last_s = 0.0
        self.before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def begin(self) -> None:
        """Start to watch."""
        self.watching, self.start_s = True, perf_counter()
        self.sample()

    def end(self) -> None:
        """Take the last sample."""
        self.sample()
        self.watching = False

    def glance(self) -> None:
        """Take a sample if the last one is a second old."""
        if self.watching and perf_counter() - self.last_s >= PERIOD_S:
            self.sample()

    def sample(self) -> None:
        """Take one sample; `others_cores` is the load since the last one, of all but this process."""
        seen, now = self.sensors.read(), self.cpu_seconds()
        clock, busy, own = (a - b for a, b in zip(now, self.before, strict=True))
        seen["temperatures_c"] |= self.chip_temperatures()
        seen["throttle_events"] |= self.core_throttles()
        # ticks are whole hundredths of a second, so a short time says nothing
        others = max(busy - own, 0.0) / clock if self.trace and clock >= PERIOD_S / 2 else None
        self.trace.append({"t_s": now[0] - self.start_s, **seen, "others_cores": others})
        self.before, self.last_s = now, now[0]

    def cpu_seconds(self) -> tuple[float, float, float]:
        """The clock, and what all programs and this process have used of the processor so far [s]."""
        own, line = os.times(), (content(self.root / "proc/stat") or "").partition("\n")[0].split()
        # user nice system idle iowait irq softirq steal
        busy = sum(float(line[n]) for n in (1, 2, 3, 6, 7, 8)) / TICKS_S if len(line) > 8 else 0.0
        return perf_counter(), busy, own.user + own.system

    def chip_temperatures(self) -> dict[str, float]:
        """Of a PC's processor, where the kernel has no thermal zone for it."""
        found = {}
        for chip in sorted(self.root.glob("sys/class/hwmon/hwmon*")):
            degrees = number(chip / "temp1_input")
            if (name := content(chip / "name")) in CPU_CHIPS and degrees is not None:
                found[str(name)] = degrees / 1e3
        return found

    def core_throttles(self) -> dict[str, float]:
        """How often Intel's cores throttled for heat since the machine was started."""
        counts = [
            number(p) or 0.0
            for p in self.root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
        ]
        return {"cpu heat": sum(counts)} if counts else {}

    def others(self) -> list[float]:
        """Cores that other programs kept busy, in the order seen."""
        return [sample["others_cores"] for sample in self.trace if sample["others_cores"] is not None]

    def causes(self) -> list[str]:
        """What changed between the first and the last third, and so may be why the times did."""
        found, others = causes(self.trace), self.others()
        third = max(len(others) // 3, 1)
        if others and abs(np.mean(others[-third:]) - np.mean(others[:third])) > BUSY_CORES:
            first, last = np.mean(others[:third]), np.mean(others[-third:])
            found.append(f"other programs' load went from {first:.1f} to {last:.1f} cores")
        return found

    def warnings(self) -> list[str]:
        """What makes the times less than this machine's best."""
        busy = float(np.mean(self.others() or [0.0]))
        if busy <= BUSY_CORES:
            return []
        return [f"other programs kept {busy:.1f} of {os.cpu_count()} cores busy: stop them and time again"]
