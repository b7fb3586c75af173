"""The weight of distillation over training: linear warm-up, cosine decay to a tenth, then off.

Shipped recipes differ: YOLOv6 and DAMO-YOLO decay on a cosine, RTMDet switches distillation off for the epochs without
mosaic. Here the end is a share of the epochs (`until`) and does not depend on mosaic. Early stopping of distillation:
Cho and Hariharan (ICCV 2019); measured in benchmarks/finetune/earlier.md and benchmarks/schedule.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOOR = 0.1  # DAMO-YOLO


@dataclass(frozen=True)
class Schedule:
    """The weight of all terms by epoch: linear warm-up, cosine from 1 to 0.1, then off.

    Attributes:
        warmup: end of the warm-up [epochs].
        fitted: until here adapters learn without moving the student, and gains are measured [epochs].
        end: from here on distillation is off and the teacher is not run [epochs].
        epochs: length of the run [epochs].
        every: batches of which one is distilled, whose terms count as often, so that the mean gradient is the same.
    """

    warmup: float
    fitted: float
    end: int
    epochs: int
    every: int = 1

    @classmethod
    def of(cls, epochs: int, warmup_epochs: float, until: float, every: int = 1) -> Schedule:
        """The schedule of a run.

        The warm-up takes at most a third of the distilled epochs. Adapters need an epoch even without a warm-up.

        Args:
            epochs: length of the run [epochs].
            warmup_epochs: Ultralytics' argument of this name [epochs].
            until: share of the epochs that is distilled, in (0, 1].
            every: batches of which one is distilled.
        """
        end = max(1, math.ceil(until * epochs))
        return cls(min(warmup_epochs, end / 3), min(max(warmup_epochs, 1), end / 3), end, epochs, every)

    def weight(self, epoch: float) -> float:
        """The weight in [0, 1] at a moment of the run, `epoch` counted in epochs with fractions."""
        if epoch >= self.end:
            return 0.0
        if epoch < self.warmup:
            return epoch / self.warmup
        done = (epoch - self.warmup) / (self.end - self.warmup)
        return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2

    def inert(self, batches: int) -> str:
        """Why the weight is 0 in every batch of the run, in one line; empty where it is not.

        Args:
            batches: in an epoch.
        """
        last = (self.end * batches - 1) // self.every * self.every
        if self.weight(last / batches) > 0:
            return ""
        seldom = f" of which one in {self.every} is distilled (teacher_every=)" if self.every > 1 else ""
        return (
            f"distillation has the weight 0 in every batch, so this run trains without a teacher: its warm-up begins "
            f"in {self.end} epoch of {batches} batch{seldom}: use more epochs (epochs=, until=), a smaller batch=, or "
            "warmup_epochs=0"
        )

    def __str__(self) -> str:
        off = f", off for the last {self.epochs - self.end}" if self.end < self.epochs else ""
        seldom = f", in one batch of {self.every}, whose terms count {self.every} times" if self.every > 1 else ""
        return (
            f"weight 0 to 1 in {self.warmup:.3g} epochs, then falling to {FLOOR}{off} of {self.epochs} epochs{seldom}"
        )
