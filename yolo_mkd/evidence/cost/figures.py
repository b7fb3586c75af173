"""From measured turns to figures: ratios with intervals, how often gradients are read, and the table."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any

from yolo_mkd.distill.balance import MEASUREMENTS
from yolo_mkd.distill.criterion import measurement_interval
from yolo_mkd.distill.schedule import Schedule

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 97.5 %, 1 to 10 degrees
NORMAL95 = 1.96
MB = 2**20


def ratios(steps: list[float], plain: list[float]) -> dict[str, float]:
    """How many times as long as plain steps of the same rounds: geometric mean and 95 % interval over rounds.

    Args:
        steps: seconds of a step, by round.
        plain: those of plain training.
    """
    logs = [math.log(s / p) for s, p in zip(steps, plain, strict=True)]
    degrees = len(logs) - 1
    wide = (T95[degrees - 1] if degrees <= len(T95) else NORMAL95) * stdev(logs) / math.sqrt(len(logs))
    return {"mean": math.exp(fmean(logs)), "low": math.exp(fmean(logs) - wide), "high": math.exp(fmean(logs) + wide)}


def readings_per_step(images: int, batch: int, schedule: Schedule) -> float:
    """How many of a run's steps have their gradients read, as a share of those in which the knowledge speaks.

    Args:
        images: in the training set.
        batch: images a step.
        schedule: when the knowledge speaks.
    """
    batches = math.ceil(images / batch)
    return 1 / measurement_interval(batches) + MEASUREMENTS / (batches * schedule.end)


def table(figures: dict[str, Any]) -> str:
    """The figures for people.

    Args:
        figures: as `costing.cost` returns them.
    """
    kinds = figures["kinds"]
    wide = max(map(len, kinds))
    extra = {kind: row["ratio"]["mean"] - 1 for kind, row in kinds.items()}
    lines = [
        f"Cost of a step: {figures['student']} taught by {figures['teacher']}, {figures['classes']} classes, "
        f"{figures['imgsz']} px, batch {figures['batch']}, on {figures['device']}"
        + (f", {figures['threads']} thread(s)" if figures["device"] == "cpu" else ""),
        f"  {'':{wide}}  images/s  x plain  95 % interval   peak MB  readings",
    ]
    for kind, row in kinds.items():
        ratio = row["ratio"]
        interval = f"{ratio['low']:.3f}-{ratio['high']:.3f}"
        reading = f"{row['reading_share']:+.1%}" if row["reading_s"] else "-"
        lines.append(
            f"  {kind:{wide}}  {row['images_per_s']:8.2f}  {ratio['mean']:7.3f}  {interval:>13}  "
            f"{row['peak_bytes'] / MB:8.0f}  {reading:>8}"
        )
    lines += [f"  {kind:{wide}}  cannot be had: {why}" for kind, why in figures["refused"].items()]
    parts = list(next(iter(kinds.values()))["parts"])
    lines += ["", "Where it goes [ms a step, medians]", f"  {'':{wide}}" + "".join(f"{p:>10}" for p in [*parts, "all"])]
    for kind, row in kinds.items():
        spent = [row["parts"][p] for p in parts]
        lines.append(f"  {kind:{wide}}" + "".join(f"{1e3 * s:10.1f}" for s in [*spent, sum(spent)]))
    lines += ["  data: loading and moving; loss: the detection loss; terms: the knowledge's, forward; backward: all."]
    if "native" in extra and "live" in extra and extra["native"] > 0:
        lines.append(f"The live teacher adds {extra['live'] / extra['native']:.2f} x what native adds.")
    if "store_bytes" in kinds.get("recorded", {}):
        row = kinds["recorded"]
        lines.append(
            f"The record holds {row['store_bytes'] / MB:.2f} MB, {row['store_bytes'] / row['formula_bytes']:.3f} x "
            "what its formula says."
        )
    lines.append(
        f"The teacher is heard in {figures['heard']} of {figures['epochs']} epochs; the others cost what plain ones do."
    )
    lines.append("Readings: what measuring the gradients adds to a run of this length, mean over its steps.")
    return "\n".join(lines)
