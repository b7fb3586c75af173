"""When the knowledge speaks: up, down, and off before the end.

The field's shipped recipes agree: YOLOv6 and DAMO-YOLO let it fall on a cosine, RTMDet drops it when mosaic
closes; constant to the last epoch, knowledge turns against a student that has become good. By default it
ends after half of the run, early stopping of distillation after Cho and Hariharan (ICCV 2019); measured in
benchmarks/finetune/earlier.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOOR = 0.1  # DAMO-YOLO


@dataclass(frozen=True)
class Schedule:
    """The weight of all knowledge by epoch: linear warm-up, cosine from 1 to 0.1, then off.

    Attributes:
        warmup: end of the warm-up [epochs].
        fitted: until here the guidance layers learn and do not yet steer the student, and gains are measured [epochs].
        end: from here on the knowledge is off and the teacher is not asked [epochs].
        epochs: length of the run [epochs].
    """

    warmup: float
    fitted: float
    end: int
    epochs: int

    @classmethod
    def of(cls, epochs: int, warmup_epochs: float, close_mosaic: int, until: float) -> Schedule:
        """The schedule of a run with these Ultralytics arguments.

        The knowledge ends after the share `until` of the epochs, or when mosaic closes if that is sooner, though mosaic
        never cuts it short before half of the run: so a short run is not silently plain. The warm-up takes at most a
        third of the knowledge's time. Guidance layers need an epoch even without a warm-up.
        """
        end = min(epochs - min(close_mosaic, epochs // 2), max(1, math.ceil(until * epochs)))
        return cls(min(warmup_epochs, end / 3), min(max(warmup_epochs, 1), end / 3), end, epochs)

    def weight(self, epoch: float) -> float:
        """The weight at a moment of the run, `epoch` counted in epochs with fractions: in [0, 1]."""
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
        if self.weight(self.end - 1 / batches) > 0:
            return ""
        return (
            f"distillation has the weight 0 in every batch, so this run trains without a teacher: its warm-up begins "
            f"in {self.end} epoch of {batches} batch: use more epochs (epochs=, until=), a smaller batch=, or "
            "warmup_epochs=0"
        )

    def __str__(self) -> str:
        off = f", off for the last {self.epochs - self.end}" if self.end < self.epochs else ""
        return f"weight 0 to 1 in {self.warmup:.3g} epochs, then falling to {FLOOR}{off} of {self.epochs} epochs"
