"""A dry run: Ultralytics sets up a training, and a function runs in place of its epochs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.data.utils import img2label_paths
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import autocast, strip_optimizer, unset_deterministic

PLAIN = {"detect": DetectionTrainer, "segment": SegmentationTrainer, "pose": PoseTrainer, "obb": OBBTrainer}


def dry_run(trainer: type[BaseTrainer], model: str, arguments: dict[str, Any], work: Callable[[Any], None]) -> None:
    """Set up a training exactly as Ultralytics does, and call `work` in place of its epochs.

    Args:
        trainer: the class to train with.
        model: the .pt or .yaml to start from.
        arguments: of Ultralytics' train; their `project` should be a folder that is removed afterwards.
        work: called with the trainer once it is set up; it must write `last.pt`, as a training does.
    """

    def no_callbacks(self: Any, event: str) -> None:
        """Run no callbacks: integrations such as Weights & Biases would create a run of their own."""

    def train(self: Any) -> None:
        self._setup_train()
        self._model_train()
        if 0 < self.epochs <= self.args.close_mosaic:  # mosaic is closed from the first epoch on
            close_mosaic(self)
            self.train_loader.reset()
        work(self)

    kind = type("DryRun", (trainer,), {"run_callbacks": no_callbacks, "train": train})
    try:
        YOLO(model).train(**arguments, trainer=kind)
    finally:
        unset_deterministic()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress Ultralytics' log below errors, and Python's warnings."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        LOGGER.setLevel(level)


def close_mosaic(trainer: Any) -> None:
    """Close mosaic as Ultralytics does for a run's last epochs."""
    trainer._close_dataloader_mosaic()


def precision(trainer: Any) -> Any:
    """A context in which forward passes run in the trainer's precision."""
    half = "bf16" if trainer.args.amp == "bf16" else trainer.amp
    if half == "bf16":
        import torch

        half = torch.bfloat16
    return autocast(half, device=trainer.device.type)


def disk(trainer: Any) -> dict[str, int]:
    """Sizes on disk [bytes]: a checkpoint during and after training, and M-KD's state file during training."""
    trainer.save_model()
    found = {"while_training": trainer.last.stat().st_size}
    beside = getattr(trainer, "state_file", None)
    found["beside"] = beside.stat().st_size if beside and beside.exists() else 0
    strip_optimizer(trainer.last)
    return {**found, "at_the_end": trainer.last.stat().st_size}


def label_of(image: Path) -> Path:
    """The label file of an image."""
    return Path(img2label_paths([str(image)])[0])
