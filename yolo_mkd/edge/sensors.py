"""Power, temperatures, clocks and throttle counters of a Jetson, read from sysfs without root. Nothing is changed.

Paths and their meaning follow NVIDIA's Jetson Linux guide and the paths that jetson_stats uses for each board.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from time import perf_counter
from typing import Any, Callable

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # Orin Nano/NX and Xavier NX; Nano and TX2; Thor
SHUNT_SUM = 7  # the ina3221's channel with the sum of the shunt voltages, which is not a rail
GPU_NAMES = re.compile(r"gv11b|gp10b|ga10b|gm20b|gpu(?!-nvd)")  # Thor's gpu-nvd is the video part
EMC_NAMES = re.compile(r"emc|bwmgr")
EMC_RATE = "sys/kernel/debug/bpmp/debug/clk/emc/rate"  # Orin and Xavier: on most systems readable by root only
OFFLINE_C = -200.0  # a zone that is off reads -256
NEAR_MAX = 0.95  # our choice: a clock below this share of its limit counts as not at its limit
JETPACKS = {  # L4T release -> JetPack
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
JETPACK_MAJOR = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}


def file_text(path: Path) -> str | None:
    """The stripped contents of a file; None when it is missing or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\t\0")
    except OSError:
        return None


def file_number(path: Path) -> float | None:
    """The number in a file; None when there is none."""
    try:
        return float(file_text(path) or "")
    except ValueError:
        return None


class Sensors:
    """The readable sensors of this device, found once; `sample` reads all of them."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Find the sensors under `root`; tests use another folder than /."""
        self.root = root
        self.rails = {**hwmon_rails(root), **iio_rails(root)}
        self.totals = [name for name in TOTAL_RAILS if name in self.rails][:1] or sorted(self.rails)
        self.zones = {
            file_text(z / "type") or z.name: z / "temp" for z in sorted(root.glob("sys/class/thermal/thermal_zone*"))
        }
        self.counters = {
            path.name[: -len("_event_cnt")]: path for path in root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")
        }
        devices = sorted(root.glob("sys/class/devfreq/*"))
        self.gpu = next((d for d in devices if GPU_NAMES.search(d.name)), None)
        self.emc = next((d for d in devices if EMC_NAMES.search(d.name)), None)
        self.cpus = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))

    def sample(self) -> dict[str, Any]:
        """Read power, temperatures, clocks and throttle events since start-up, without what is not readable."""
        watts = {name: value for name, value in ((n, read()) for n, read in self.rails.items()) if value is not None}
        degrees = ((name, file_number(path)) for name, path in self.zones.items())
        events = {name: file_number(path) for name, path in self.counters.items()}
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
        emc = file_number(self.emc / "cur_freq") if self.emc else file_number(self.root / EMC_RATE)
        gpu = file_number(self.gpu / "cur_freq") if self.gpu else None
        return {
            "gpu": None if gpu is None else gpu / 1e6,
            "emc": None if emc is None else emc / 1e6,
            "cpu": max(cores) / 1e3 if cores else None,
        }

    def limits(self) -> dict[str, float]:
        """The highest clocks that the power mode allows [MHz]."""
        cores = [hertz for hertz in (file_number(c / "scaling_max_freq") for c in self.cpus) if hertz is not None]
        gpu = file_number(self.gpu / "max_freq") if self.gpu else None
        emc = file_number(self.emc / "max_freq") if self.emc else None
        found = {"gpu": gpu and gpu / 1e6, "emc": emc and emc / 1e6, "cpu": max(cores) / 1e3 if cores else None}
        return {name: value for name, value in found.items() if value}

    def governors(self) -> dict[str, str]:
        """The clock governors; `pinned` where the lowest allowed clock is the highest, as jetson_clocks sets it."""
        found = {}
        cpu = self.cpus[0] if self.cpus else None
        for name, folder, files in (
            ("gpu", self.gpu, ("governor", "min_freq", "max_freq")),
            ("cpu", cpu, ("scaling_governor", "scaling_min_freq", "scaling_max_freq")),
        ):
            governor = file_text(folder / files[0]) if folder else None
            if folder and governor:
                low, high = file_number(folder / files[1]), file_number(folder / files[2])
                found[name] = "pinned" if low is not None and low == high else governor
        return found

    def description(self) -> dict[str, Any]:
        """The device and its settings: model, L4T and JetPack, power mode, governors, clock limits."""
        release = l4t_release(self.root)
        return {
            "model": file_text(self.root / "proc/device-tree/model"),
            "l4t": release,
            "jetpack": jetpack_version(release),
            "power_mode": power_mode_name(self.root),
            "governors": self.governors(),
            "clock_limits_mhz": self.limits(),
            "power_rails": self.totals,
        }


def hwmon_rails(root: Path) -> dict[str, Callable[[], float | None]]:
    """Rails of the ina3221 (volts and amperes, JetPack 5 and 6) and of the ina238 (watts, Thor): name -> reader [W]."""
    rails: dict[str, Callable[[], float | None]] = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        chip = file_text(folder / "name") or ""
        for label in sorted(folder.glob("in*_label")) if chip.startswith("ina3221") else []:
            name, channel = file_text(label) or "", label.name[2 : -len("_label")]
            if name != "NC" and channel != str(SHUNT_SUM):
                rails[name] = rail_reader(folder / f"in{channel}_input", folder / f"curr{channel}_input", 1e-6)  # mV mA
        if chip.startswith("ina238"):
            name = file_text(folder / "in1_label") or file_text(folder / "power1_label") or "VIN"
            rails[name] = rail_reader(folder / "power1_input", None, 1e-6)  # uW
    return rails


def iio_rails(root: Path) -> dict[str, Callable[[], float | None]]:
    """Rails of JetPack 4: name -> reader [W]."""
    rails: dict[str, Callable[[], float | None]] = {}
    for label in sorted(root.glob("sys/bus/iio/devices/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name[len('rail_name_') :]}_input")
        rails[file_text(label) or label.name] = rail_reader(power, None, 1e-3)  # mW
    return rails


def rail_reader(first: Path, second: Path | None, unit: float) -> Callable[[], float | None]:
    """A function that reads one file, or multiplies two, and converts to watts by `unit`."""

    def read() -> float | None:
        a, b = file_number(first), 1.0 if second is None else file_number(second)
        return None if a is None or b is None else a * b * unit

    return read


def core_clock(cpufreq: Path) -> float | None:
    """A core's clock [kHz]: the hardware's where readable, else the kernel's, which is wrong on Thor."""
    true = file_number(cpufreq / "cpuinfo_cur_freq")
    return file_number(cpufreq / "scaling_cur_freq") if true is None else true


def l4t_release(root: Path) -> str | None:
    """The release of Jetson Linux, such as 36.4.3; None on another machine."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", file_text(root / "etc/nv_tegra_release") or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack_version(release: str | None) -> str | None:
    """The JetPack version of a Jetson Linux release, or its major version where only that is known."""
    if release is None:
        return None
    known = next((j for r, j in JETPACKS.items() if release == r or release.startswith(r + ".")), None)
    return known or JETPACK_MAJOR.get(release.split(".")[0])


def power_mode_name(root: Path) -> str | None:
    """The power mode's name: nvpmodel stores its number, and /etc/nvpmodel.conf lists the names."""
    kept = re.search(r"pmode:\s*(\d+)", file_text(root / "var/lib/nvpmodel/status") or "")
    if not kept:
        return None
    mode = int(kept.group(1))
    table = re.findall(
        r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", file_text(root / "etc/nvpmodel.conf") or "", re.MULTILINE
    )
    return next((name for number_, name in table if int(number_) == mode), str(mode))


class Sampler:
    """Reads the sensors ten times a second on its own thread, for as long as a `with` block runs."""

    def __init__(self, sensors: Sensors, period_s: float = 0.1) -> None:
        self.sensors, self.period_s = sensors, period_s
        self.samples: list[dict[str, Any]] = []
        self.start_s = perf_counter()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def sample(self) -> None:
        """Take one sample."""
        self.samples.append({"t_s": perf_counter() - self.start_s, **self.sensors.sample()})

    def run(self) -> None:
        """Sample at a fixed rate until stopped."""
        late = 0.0
        while not self.stopped.wait(max(0.0, self.period_s - late)):
            before = perf_counter()
            self.sample()
            late = perf_counter() - before

    def __enter__(self) -> Sampler:
        self.start_s = perf_counter()
        self.sample()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self.sample()
