"""From measured turns to figures: ratios with intervals, the frequency of gradient measurements, and the table."""

from __future__ import annotations

import math
import textwrap
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from yolo_mkd import report
from yolo_mkd.distill.balance import MEASUREMENTS
from yolo_mkd.distill.criterion import measurement_interval
from yolo_mkd.distill.schedule import Schedule

CONFIDENCE = 0.95
MB = 2**20


def ratios(steps: list[float], plain: list[float]) -> dict[str, float]:
    """The time of a step relative to plain steps of the same rounds: geometric mean and 95 % interval over rounds.

    Args:
        steps: seconds of a step, by round.
        plain: those of plain training.
    """
    logs = [math.log(s / p) for s, p in zip(steps, plain, strict=True)]
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1))
    half = quantile * stdev(logs) / math.sqrt(len(logs))
    return {"mean": math.exp(fmean(logs)), "low": math.exp(fmean(logs) - half), "high": math.exp(fmean(logs) + half)}


def readings_per_step(images: int, batch: int, schedule: Schedule) -> float:
    """The share of a run's distilled steps in which the gradients are measured.

    Args:
        images: in the training set.
        batch: images a step.
        schedule: when distillation is on.
    """
    batches = math.ceil(images / batch)
    return 1 / measurement_interval(batches) + MEASUREMENTS / (batches * schedule.end)


def cost_table(figures: dict[str, Any]) -> str:
    """The figures as text.

    Args:
        figures: as `cost` returns them.
    """
    kinds = figures["kinds"]
    threads = f", {figures['threads']} thread(s)" if figures["device"] == "cpu" else ""
    every = figures["teacher_every"]
    seldom = f", the teacher in one batch of {every}" if every > 1 else ""
    lines = [
        f"Cost of a step: {figures['student']} distilled from {figures['teacher']}, {figures['classes']} classes, "
        f"{figures['imgsz']} px, batch {figures['batch']}, on {figures['device']}{threads}{seldom}",
        step_table(kinds),
        *(f"  {kind} cannot be measured: {why}" for kind, why in figures["refused"].items()),
        "",
        "Parts of a step [ms, medians]",
        part_table(kinds),
        "  data: loading and moving; loss: the detection loss; terms: forward pass of the distillation terms;",
        "  backward: of all losses.",
    ]
    extra = {kind: row["ratio"]["mean"] - 1 for kind, row in kinds.items()}
    if "native" in extra and "live" in extra and extra["native"] > 0:
        lines.append(f"The live teacher adds {extra['live'] / extra['native']:.2f} x what native adds.")
    if "store_bytes" in kinds.get("recorded", {}):
        row = kinds["recorded"]
        lines.append(
            f"The teacher cache holds {row['store_bytes'] / MB:.2f} MB, {row['store_bytes'] / row['formula_bytes']:.3f}"
            " x the size that its formula gives."
        )
    lines.append(
        f"Distillation is on in {figures['heard']} of {figures['epochs']} epochs; the others cost what plain ones do."
    )
    lines.append("Measuring: time that measuring the gradients adds to a run of this length, mean over its steps.")
    return "\n".join(lines)


def step_table(kinds: dict[str, dict[str, Any]]) -> str:
    """Speed and memory of each kind of training."""
    rows = []
    for kind, row in kinds.items():
        ratio = row["ratio"]
        rows.append(
            [
                kind,
                f"{row['images_per_s']:.2f}",
                f"{ratio['mean']:.3f}",
                f"{ratio['low']:.3f}-{ratio['high']:.3f}",
                f"{row['peak_bytes'] / MB:.0f}",
                f"{row['reading_share']:+.1%}" if row["reading_s"] else "-",
            ]
        )
    headers = ["training", "images/s", "x plain", "95 % interval", "peak MB", "measuring"]
    return textwrap.indent(report.table(rows, headers), "  ")


def part_table(kinds: dict[str, dict[str, Any]]) -> str:
    """The time of each part of a step, by kind of training."""
    parts = list(next(iter(kinds.values()))["parts"])
    rows = []
    for kind, row in kinds.items():
        seconds = [row["parts"][part] for part in parts]
        rows.append([kind, *(f"{1e3 * s:.1f}" for s in [*seconds, sum(seconds)])])
    return textwrap.indent(report.table(rows, ["training", *parts, "all"]), "  ")
