"""Checkpoints of some epochs of a training, kept to validate them once it is over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ultralytics.utils import RANK
from ultralytics.utils.callbacks.base import default_callbacks
from ultralytics.utils.torch_utils import strip_optimizer

from yolo_mkd.host.files import quiet
from yolo_mkd.report import atomic

FOLDER = "snapshots"


class Snapshots:
    """Ultralytics callbacks that keep last.pt of evenly spaced epochs of this process's trainings, without optimizer.

    Nothing of the training changes: the copies are made from the file, between the epochs, and validated afterwards.
    """

    def __init__(self, points: int):
        self.points = points

    @classmethod
    def install(cls, points: int) -> None:
        """Make every training that starts in this process from now on keep its snapshots.

        Args:
            points: how many points of a run are wanted, with its end, whose checkpoint is last.pt itself.
        """
        snapshots = cls(points)
        default_callbacks["on_train_start"].append(snapshots.on_train_start)
        default_callbacks["on_model_save"].append(snapshots.on_model_save)

    def on_train_start(self, trainer: Any) -> None:
        """Remove what an earlier training has left in the run's folder, unless this one continues it."""
        if RANK in {-1, 0} and not trainer.start_epoch:
            remove(Path(trainer.save_dir))

    def on_model_save(self, trainer: Any) -> None:
        """Keep the epoch's checkpoint if it is one of the points, and not the last."""
        epoch = trainer.epoch + 1
        if RANK in {-1, 0} and not trainer.stop and is_point(epoch, trainer.epochs, self.points):
            with quiet(), atomic(Path(trainer.save_dir) / FOLDER / f"{epoch}.pt") as partial:
                strip_optimizer(trainer.last, partial)


def is_point(epoch: int, epochs: int, points: int) -> bool:
    """Whether an epoch, from 1, is one of some evenly spaced ones that end with the last; each is, if there are few."""
    return epoch * points // epochs > (epoch - 1) * points // epochs


def read(folder: Path) -> dict[int, Path]:
    """The snapshots of a run by epoch, from 1, in order."""
    found = {int(p.stem): p for p in (folder / FOLDER).glob("*.pt")}
    return dict(sorted(found.items()))


def remove(folder: Path) -> None:
    """Remove a run's snapshots."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
