"""Power, temperatures, clocks and throttle counters of a Jetson, read from sysfs without root. Nothing is ever set.

Paths and their meaning are those of NVIDIA's Jetson Linux guide and of what jetson_stats found on each board.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from time import perf_counter
from typing import Any, Callable

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # Orin Nano/NX and Xavier NX; Nano and TX2; Thor
SHUNT_SUM = 7  # the ina3221's channel that sums the others' shunt voltages: no rail
GPU_NAMES = re.compile(r"gv11b|gp10b|ga10b|gm20b|gpu(?!-nvd)")  # Thor's gpu-nvd is the video part
EMC_NAMES = re.compile(r"emc|bwmgr")
EMC_RATE = "sys/kernel/debug/bpmp/debug/clk/emc/rate"  # Orin and Xavier: for root alone, on most systems
OFFLINE_C = -200.0  # a zone that is off reads -256
NEAR_MAX = 0.95  # ours: a clock that runs below this share of its limit is not at its limit
JETPACKS = {  # L4T release -> JetPack
    "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5.0": "6.2.2",
    "38.2": "7.0", "38.4": "7.1", "39.2": "7.2",
}  # fmt: skip
JETPACK_MAJOR = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}


def content(path: Path) -> str | None:
    """What a file says, stripped; None when it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\t\0")
    except OSError:
        return None


def number(path: Path) -> float | None:
    """A file's number; None when there is none."""
    try:
        return float(content(path) or "")
    except ValueError:
        return None


class Sensors:
    """What can be read on this device, found once; `read` takes one sample of all of it."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Look for sensors under `root`, which is another folder only in tests."""
        self.root = root
        self.rails = {**hwmon_rails(root), **iio_rails(root)}
        self.totals = [name for name in TOTAL_RAILS if name in self.rails][:1] or sorted(self.rails)
        self.zones = {
            content(z / "type") or z.name: z / "temp" for z in sorted(root.glob("sys/class/thermal/thermal_zone*"))
        }
        self.counters = {
            path.name[: -len("_event_cnt")]: path for path in root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")
        }
        devices = sorted(root.glob("sys/class/devfreq/*"))
        self.gpu = next((d for d in devices if GPU_NAMES.search(d.name)), None)
        self.emc = next((d for d in devices if EMC_NAMES.search(d.name)), None)
        self.cpus = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))

    def read(self) -> dict[str, Any]:
        """One sample: watts, degrees, megahertz and events since the device was started; the unreadable is left out."""
        watts = {name: value for name, value in ((n, read()) for n, read in self.rails.items()) if value is not None}
        degrees = ((name, number(path)) for name, path in self.zones.items())
        events = {name: number(path) for name, path in self.counters.items()}
        return {
            "power_w": sum(watts[n] for n in self.totals) if watts and set(self.totals) <= set(watts) else None,
            "rails_w": watts,
            "temperatures_c": {
                name: value / 1e3 for name, value in degrees if value is not None and value / 1e3 > OFFLINE_C
            },
            "clocks_mhz": {name: value for name, value in self.clocks().items() if value is not None},
            "throttle_events": {name: value for name, value in events.items() if value is not None},
        }

    def clocks(self) -> dict[str, float | None]:
        """Clocks of the GPU, the memory and the fastest processor core [MHz]."""
        cores = [hertz for hertz in map(core_clock, self.cpus) if hertz is not None]
        emc = number(self.emc / "cur_freq") if self.emc else number(self.root / EMC_RATE)
        gpu = number(self.gpu / "cur_freq") if self.gpu else None
        return {
            "gpu": None if gpu is None else gpu / 1e6,
            "emc": None if emc is None else emc / 1e6,
            "cpu": max(cores) / 1e3 if cores else None,
        }

    def limits(self) -> dict[str, float]:
        """The highest clocks that the power mode allows [MHz]."""
        cores = [hertz for hertz in (number(c / "scaling_max_freq") for c in self.cpus) if hertz is not None]
        gpu = number(self.gpu / "max_freq") if self.gpu else None
        emc = number(self.emc / "max_freq") if self.emc else None
        found = {"gpu": gpu and gpu / 1e6, "emc": emc and emc / 1e6, "cpu": max(cores) / 1e3 if cores else None}
        return {name: value for name, value in found.items() if value}

    def governors(self) -> dict[str, str]:
        """Who chooses the clocks; `pinned` where the lowest allowed is the highest, as jetson_clocks sets it."""
        found = {}
        cpu = self.cpus[0] if self.cpus else None
        for name, folder, files in (
            ("gpu", self.gpu, ("governor", "min_freq", "max_freq")),
            ("cpu", cpu, ("scaling_governor", "scaling_min_freq", "scaling_max_freq")),
        ):
            governor = content(folder / files[0]) if folder else None
            if folder and governor:
                low, high = number(folder / files[1]), number(folder / files[2])
                found[name] = "pinned" if low is not None and low == high else governor
        return found

    def about(self) -> dict[str, Any]:
        """What the device is and how it is set: model, L4T and JetPack, power mode, governors, clock limits."""
        release = l4t(self.root)
        return {
            "model": content(self.root / "proc/device-tree/model"),
            "l4t": release,
            "jetpack": jetpack(release),
            "power_mode": power_mode(self.root),
            "governors": self.governors(),
            "clock_limits_mhz": self.limits(),
            "power_rails": self.totals,
        }


def hwmon_rails(root: Path) -> dict[str, Callable[[], float | None]]:
    """Rails of the ina3221 (volts and amperes, JetPack 5 and 6) and of the ina238 (watts, Thor): name -> reader [W]."""
    rails: dict[str, Callable[[], float | None]] = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        chip = content(folder / "name") or ""
        for label in sorted(folder.glob("in*_label")) if chip.startswith("ina3221") else []:
            name, channel = content(label) or "", label.name[2 : -len("_label")]
            if name != "NC" and channel != str(SHUNT_SUM):
                rails[name] = product(folder / f"in{channel}_input", folder / f"curr{channel}_input", 1e-6)  # mV mA
        if chip.startswith("ina238"):
            name = content(folder / "in1_label") or content(folder / "power1_label") or "VIN"
            rails[name] = product(folder / "power1_input", None, 1e-6)  # uW
    return rails


def iio_rails(root: Path) -> dict[str, Callable[[], float | None]]:
    """Rails of JetPack 4: name -> reader [W]."""
    rails: dict[str, Callable[[], float | None]] = {}
    for label in sorted(root.glob("sys/bus/iio/devices/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name[len('rail_name_') :]}_input")
        rails[content(label) or label.name] = product(power, None, 1e-3)  # mW
    return rails


def product(first: Path, second: Path | None, unit: float) -> Callable[[], float | None]:
    """A reader of one file, or of two multiplied, in a unit."""

    def read() -> float | None:
        a, b = number(first), 1.0 if second is None else number(second)
        return None if a is None or b is None else a * b * unit

    return read


def core_clock(cpufreq: Path) -> float | None:
    """A core's clock [kHz]: the hardware's own where it may be read, else the kernel's belief, which Thor's belies."""
    true = number(cpufreq / "cpuinfo_cur_freq")
    return number(cpufreq / "scaling_cur_freq") if true is None else true


def l4t(root: Path) -> str | None:
    """The release of Jetson Linux, such as 36.4.3; None on another machine."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", content(root / "etc/nv_tegra_release") or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(release: str | None) -> str | None:
    """The JetPack of a release of Jetson Linux, as exactly as it is known."""
    if release is None:
        return None
    known = next((j for r, j in JETPACKS.items() if release == r or release.startswith(r + ".")), None)
    return known or JETPACK_MAJOR.get(release.split(".")[0])


def power_mode(root: Path) -> str | None:
    """The power mode's name, from the number that nvpmodel keeps and the board's table of modes."""
    kept = re.search(r"pmode:\s*(\d+)", content(root / "var/lib/nvpmodel/status") or "")
    if not kept:
        return None
    mode = int(kept.group(1))
    table = re.findall(
        r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", content(root / "etc/nvpmodel.conf") or "", re.MULTILINE
    )
    return next((name for number_, name in table if int(number_) == mode), str(mode))


class Sampler:
    """Reads the sensors ten times a second on a thread of its own, between `with` and its end."""

    def __init__(self, sensors: Sensors, period_s: float = 0.1) -> None:
        self.sensors, self.period_s = sensors, period_s
        self.samples: list[dict[str, Any]] = []
        self.start_s = perf_counter()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def sample(self) -> None:
        """Take one sample."""
        self.samples.append({"t_s": perf_counter() - self.start_s, **self.sensors.read()})

    def run(self) -> None:
        """Sample at even times until told to stop."""
        late = 0.0
        while not self.over.wait(max(0.0, self.period_s - late)):
            before = perf_counter()
            self.sample()
            late = perf_counter() - before

    def __enter__(self) -> Sampler:
        self.start_s = perf_counter()
        self.sample()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.sample()
