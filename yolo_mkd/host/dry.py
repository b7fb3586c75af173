"""A dry run: all that Ultralytics sets up for a training, handed over to be measured and not trained."""

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
    """Set up a training exactly as Ultralytics does, and do some work in the place of its epochs.

    Args:
        trainer: the class to train with.
        model: the .pt or .yaml to start from.
        arguments: of Ultralytics' train; their `project` should be a folder that is removed afterwards.
        work: is given the trainer once it is set up, and must leave its `last.pt`, as a training does.
    """

    def say_nothing(self: Any, event: str) -> None:
        """Integrations such as Weights & Biases would open a run of their own."""

    def train(self: Any) -> None:
        self._setup_train()
        self._model_train()
        if 0 < self.epochs <= self.args.close_mosaic:  # mosaic is closed from the first epoch on
            close_mosaic(self)
            self.train_loader.reset()
        work(self)

    kind = type("DryRun", (trainer,), {"run_callbacks": say_nothing, "train": train})
    try:
        YOLO(model).train(**arguments, trainer=kind)
    finally:
        unset_deterministic()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep back all that Ultralytics logs but errors, and Python's warnings."""
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
    """The precision that a trainer's forward passes run in, as a context."""
    half = "bf16" if trainer.args.amp == "bf16" else trainer.amp
    if half == "bf16":
        import torch

        half = torch.bfloat16
    return autocast(half, device=trainer.device.type)


def disk(trainer: Any) -> dict[str, int]:
    """A run's checkpoint while it trains and at its end, and what M-KD keeps beside it until then [bytes]."""
    trainer.save_model()
    found = {"while_training": trainer.last.stat().st_size}
    beside = getattr(trainer, "state_file", None)
    found["beside"] = beside.stat().st_size if beside and beside.exists() else 0
    strip_optimizer(trainer.last)
    return {**found, "at_the_end": trainer.last.stat().st_size}


def label_of(image: Path) -> Path:
    """Where the labels of an image are."""
    return Path(img2label_paths([str(image)])[0])
