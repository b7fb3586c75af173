"""The gradient share of every term, epoch by epoch: shares.csv, shares.png, and a word where a term is dead."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from yolo_mkd.distill.balance import GradientRatio
from yolo_mkd.host import LOGGER

COLUMNS = ("epoch", "teacher", "term", "weight", "share", "cosine")


class Shares:
    """A run's table of shares, one row for each epoch in which they were measured, teacher and term.

    `share` is the term's gradient over the detection loss's as the gain has it, `weight` the schedule's factor on top,
    `cosine` that of the angle between the two gradients: below 0 the term pulls against the task. Terms with parts of
    their own (guidance) do not steer the student before the gains are frozen; until then their share is what awaits it.
    """

    def __init__(self, folder: Path, fresh: bool):
        """Open the table.

        Args:
            folder: the run's.
            fresh: the run starts anew, so that an older table makes way.
        """
        self.csv, self.png = folder / "shares.csv", folder / "shares.png"
        if fresh:
            self.csv.unlink(missing_ok=True)

    def add(self, epoch: int, teacher: str, weight: float, readings: dict[str, GradientRatio]) -> None:
        """Write down one epoch of one teacher, and call out terms without a finite gradient.

        Args:
            epoch: counted from 1.
            teacher: its name.
            weight: the schedule's weight in the middle of the epoch.
            readings: each term's mean share at full weight, and cosine.
        """
        begun = self.csv.exists()
        with open(self.csv, "a", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            if not begun:
                writer.writerow(COLUMNS)
            for term, r in readings.items():
                writer.writerow([epoch, teacher, term, f"{weight:.4g}", f"{r.strength:.4g}", f"{r.cosine:.4g}"])
        for term, r in readings.items():
            if not r.strength or not math.isfinite(r.strength):
                kind = "no gradient" if r.strength == 0 else "a gradient that is not finite"
                LOGGER.warning(f"M-KD: in epoch {epoch} {term} (by {teacher}) had {kind}: it teaches nothing")

    def draw(self) -> None:
        """Draw each term's share over the epochs, as it acted: times the weight."""
        if not self.csv.exists():
            return
        import matplotlib.pyplot as plt

        with open(self.csv, encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        teachers = list(dict.fromkeys(r["teacher"] for r in rows))
        figure, axes = plt.subplots(1, len(teachers), figsize=(7 * len(teachers), 4.5), sharey=True, squeeze=False)
        for axis, teacher in zip(axes[0], teachers, strict=True):
            own = [r for r in rows if r["teacher"] == teacher]
            for term in dict.fromkeys(r["term"] for r in own):
                points = [(int(r["epoch"]), float(r["share"]) * float(r["weight"])) for r in own if r["term"] == term]
                axis.plot(*zip(*points, strict=True), label=term, marker="." if len(points) < 30 else None)
            axis.set(title=f"taught by {teacher}", xlabel="epoch", yscale="log")
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("gradient, as a share of the detection loss's")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        figure.savefig(self.png, dpi=150)
        plt.close(figure)
