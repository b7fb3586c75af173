"""How far a chain is: lines with the stage, the epoch, the accuracy so far and the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from yolo_mkd import host
from yolo_mkd.host import LOGGER

RECENT = 5  # epochs whose mean duration gives the time left
POINTS = 10  # lines of a stage in a terminal, where bars show each epoch
MAP = "metrics/mAP50-95(B)"


class EpochLines:
    """Ultralytics callbacks that log a line at the end of an epoch: of every one, or in a terminal of ten in a stage.

    Attributes:
        name: what begins the line, such as `student, stage 2 of 2`.
        later: epochs of the stages that follow.
        seconds: of the epochs so far.
        trained: whether an epoch was trained whose line is not logged yet.
    """

    def __init__(self, name: str, later: Sequence[int] = ()):
        self.name, self.later = name, sum(later)
        self.seconds: list[float] = []
        self.trained = False

    def install(self, yolo: Any) -> None:
        """Follow the next training of an Ultralytics model."""
        yolo.add_callback("on_train_epoch_end", self.on_train_epoch_end)
        yolo.add_callback("on_fit_epoch_end", self.on_fit_epoch_end)

    def on_train_epoch_end(self, _: Any) -> None:
        """Expect the epoch's validation."""
        self.trained = True

    def on_fit_epoch_end(self, trainer: Any) -> None:
        """Log the epoch that has ended; Ultralytics calls this once more for its last validation."""
        if not self.trained:
            return
        self.trained = False
        self.seconds.append(trainer.epoch_time)
        ended, total = trainer.epoch + 1, trainer.epochs
        if host.is_redrawn() and ended * POINTS // total == (ended - 1) * POINTS // total:
            return
        losses = [f"{k.removesuffix('_loss')} {float(v):.3g}" for k, v in (trainer.tloss or {}).items() if "/" not in k]
        score = [f"mAP50-95 {trainer.metrics[MAP]:.3f}"] if MAP in (trainer.metrics or {}) else []
        figures = ", ".join([*losses, *score])
        LOGGER.info(f"M-KD: {self.name}: epoch {ended} of {total}: {figures}{self.time_left(total - ended)}")

    def time_left(self, epochs: int) -> str:
        """The estimated time for some epochs and for the stages after them, as the end of a line."""
        each = fmean(self.seconds[-RECENT:])
        left = [f"about {duration_text(epochs * each)} left"] if epochs else []
        if self.later:
            whole = duration_text((epochs + self.later) * each)
            left.append(f"{whole} with the stages after it, if their epochs take as long")
        return f"; {', '.join(left)}" if left else ""


def duration_text(seconds: float) -> str:
    """A duration with its unit: s below 90 s, min below 90 min, else h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
