"""Summary of the sensors' samples of a run: power and energy, temperatures, clocks, throttling, and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .sensors import NEAR_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Trace = list[dict[str, Any]]  # samples of the sensors, in the order they were taken

WARMER_C = 5.0  # our choice: the smallest change of temperature, and of a clock, that is reported
SLOWER = 0.05


def device_health(idle: Trace, run: Trace, image_ms: float, about: dict[str, Any]) -> dict[str, Any]:
    """Summarise two traces for the report.

    Args:
        idle: samples taken before the run; may be empty.
        run: samples taken during the run.
        image_ms: mean time per image [ms].
        about: the device, from Sensors.description.
    """
    return {
        **about,
        "power": power_figures(idle, run, image_ms),
        "temperatures_c": extremes(run, "temperatures_c"),
        "clocks_mhz": extremes(run, "clocks_mhz"),
        "throttle_events": throttle_counts(run),
        "warnings": device_warnings(run, about),
        "trace": run,
    }


def power_figures(idle: Trace, run: Trace, image_ms: float) -> dict[str, Any] | None:
    """Mean power of the run and of the idle time before it, and energy per image; None without readable rails."""
    watts = [sample["power_w"] for sample in run if sample["power_w"] is not None]
    rest = [sample["power_w"] for sample in idle if sample["power_w"] is not None]
    if not watts:
        return None
    mean, idle_w = float(np.mean(watts)), float(np.mean(rest)) if rest else None
    return {
        "samples": len(watts),
        "mean_w": mean,
        "max_w": max(watts),
        "idle_w": idle_w,
        "mj_per_image": mean * image_ms,
        "mj_per_image_above_idle": None if idle_w is None else (mean - idle_w) * image_ms,
        "rails_mean_w": {name: float(np.mean(values)) for name, values in time_series(run, "rails_w").items()},
    }


def time_series(trace: Trace, kind: str) -> dict[str, NDArray[np.float64]]:
    """Every quantity of one kind over time, without those that some samples lack."""
    names = [name for name in trace[0][kind] if all(name in sample[kind] for sample in trace)] if trace else []
    return {name: np.array([sample[kind][name] for sample in trace]) for name in names}


def extremes(trace: Trace, kind: str) -> dict[str, dict[str, float]]:
    """First, minimum, mean, maximum and last value of every quantity of one kind."""
    return {
        name: {
            "first": float(values[0]),
            "min": float(values.min()),
            "mean": float(values.mean()),
            "max": float(values.max()),
            "last": float(values[-1]),
        }
        for name, values in time_series(trace, kind).items()
    }


def throttle_counts(trace: Trace) -> dict[str, int]:
    """Throttle events during the run, by counter; the counters themselves count since the device was started."""
    return {name: int(values[-1] - values[0]) for name, values in time_series(trace, "throttle_events").items()}


def device_warnings(trace: Trace, about: dict[str, Any]) -> list[str]:
    """Conditions under which the times are not this device's best, or not repeatable."""
    found = []
    mode = about["power_mode"]
    if mode is not None and not mode.startswith("MAXN"):
        found.append(f"the power mode is {mode}, not MAXN: sudo nvpmodel -q lists the modes")
    for name, governor in about["governors"].items():
        if governor not in ("performance", "pinned"):
            found.append(
                f"the {name}'s governor is {governor}: its clock follows the load (sudo jetson_clocks pins it)"
            )
    for name, values in time_series(trace, "clocks_mhz").items():
        limit = about["clock_limits_mhz"].get(name)
        if limit and np.median(values) < NEAR_MAX * limit:
            found.append(f"the {name} ran at {np.median(values):.0f} MHz, below its {limit:.0f} MHz")
    for name, count in throttle_counts(trace).items():
        if count:
            found.append(f"the device throttled: {name} counted {count} events")
    return found


def drift_causes(trace: Trace) -> list[str]:
    """Changes between the first and the last third of a run that may explain a drift of its times."""
    third = max(len(trace) // 3, 1)
    found = [f"{name} counted {count} throttle events" for name, count in throttle_counts(trace).items() if count]
    for name, values in time_series(trace, "clocks_mhz").items():
        first, last = float(values[:third].mean()), float(values[-third:].mean())
        if abs(last / first - 1) > SLOWER:
            found.append(f"the {name} clock went from {first:.0f} to {last:.0f} MHz")
    risen = {
        name: values[-third:].mean() - values[:third].mean()
        for name, values in time_series(trace, "temperatures_c").items()
    }
    name = max(risen, key=lambda zone: risen[zone], default="")
    if name and risen[name] > WARMER_C:
        found.append(f"{name} became {risen[name]:.0f} degrees warmer")
    return found
