"""Teachers: inference of a frozen model, and the choice of one teacher for each batch."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, Outputs

PADDING = 114 / 255  # the grey that Ultralytics pads with


class Teacher(Protocol):
    """Anything that gives a teacher's outputs for a batch: a live model, its cache, boxes, or the mean of several.

    Attributes:
        name: of the teacher, in tables and logs.
    """

    name: str

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """The teacher's outputs for a batch of Ultralytics' data, with the student's raw outputs for it as `preds`."""

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Begin to compute the outputs of the next batch, where that can be done beside the student's."""

    def flush(self) -> None:
        """Write what was computed and is to be kept to the disk."""


class LiveTeacher:
    """A frozen detector: no gradients, fixed statistics, no part of the student.

    Attributes:
        name: of the teacher.
        model: the frozen detector.
        extractor: its hooks.
    """

    def __init__(self, name: str, model: torch.nn.Module, spec: ModelSpec, roles: list[str]):
        """Put hooks on a frozen detector.

        Args:
            name: of the teacher, in tables and logs.
            model: the detector, as `host.freeze` gives it.
            spec: its spec.
            roles: the hidden layers that the terms read.
        """
        self.name, self.model = name, model
        self.extractor = FeatureExtractor(model, spec, roles)
        self._stream: Any = None
        self._prefetched: tuple[Tensor, Knowledge] | None = None

    def to(self, precision: torch.dtype) -> None:
        """Let the model compute in a precision."""
        self.model.to(precision)

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Compute the outputs on a stream of the teacher's own, while the student runs on the device's own stream."""
        images = teacher_images(batch)
        device = torch.get_device_module(images.device)
        self._stream = self._stream or device.Stream()
        self._stream.wait_stream(device.current_stream())  # for the images, and for readers of the last outputs
        with device.stream(self._stream):
            self._prefetched = images, self.infer(images)

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """The teacher's outputs for a batch of Ultralytics' data, at the image size that it takes."""
        images, prefetched, self._prefetched = teacher_images(batch), self._prefetched, None
        if prefetched is None or prefetched[0] is not images:
            return self.infer(images)
        torch.get_device_module(images.device).current_stream().wait_stream(self._stream)
        return prefetched[1]

    @torch.no_grad()
    def infer(self, images: Tensor) -> Knowledge:
        """The teacher's outputs for images, B C H W in [0, 1]; grey images are repeated for a colour teacher.

        Images that are no multiple of its largest stride, as a P6 teacher can meet, are padded for the forward pass.
        """
        spec = self.extractor.spec
        images = images.to(next(self.model.parameters()).dtype, memory_format=torch.channels_last)
        if images.shape[1] == 1 < spec.channels:
            images = images.expand(-1, spec.channels, -1, -1)
        height, width = images.shape[2:]
        largest = max(spec.strides)
        if not (height % largest or width % largest):
            return self.extractor.collect(self.model(images))
        padded = F.pad(images, (0, -width % largest, 0, -height % largest), value=PADDING)
        return cropped(self.extractor.collect(self.model(padded)), height, width)

    def flush(self) -> None:
        """A live teacher keeps nothing."""


def teacher_images(batch: dict[str, Any]) -> Tensor:
    """The images of a batch of Ultralytics' data at the teacher's size, B C H W."""
    images: Tensor = batch.get("teacher_img", batch["img"])
    return images


def cropped(k: Knowledge, height: int, width: int) -> Knowledge:
    """The outputs for the top left `height` x `width` pixels of padded images."""
    levels = {s: (math.ceil(height / s), math.ceil(width / s)) for s in k.levels}

    def anchors(x: Tensor) -> Tensor:
        maps = x.split([rows * columns for rows, columns in k.levels.values()], dim=-1)
        kept = zip(maps, k.levels.values(), levels.values(), strict=True)
        return torch.cat(
            [m.unflatten(-1, size)[..., :rows, :columns].flatten(-2) for m, size, (rows, columns) in kept], -1
        )

    branches = {
        name: Outputs(anchors(o.logits), anchors(o.distances), None if o.bins is None else anchors(o.bins))
        for name, o in k.branches.items()
    }
    strides = {role: 2 ** int(role.rpartition("_p")[2]) for role in k.features}
    features = {
        r: f[:, :, : math.ceil(height / strides[r]), : math.ceil(width / strides[r])] for r, f in k.features.items()
    }
    return Knowledge(branches, features, levels)


def draw(seed: int, step: int, count: int) -> int:
    """Which of `count` teachers a step uses; the same on every rank, since only seed and step decide."""
    return random.Random((seed << 40) + step).randrange(count)


def teacher_name(file: str) -> str:
    """A teacher's file as people tell it from another: `yolo26m.pt`, or `assistant/weights/best.pt`."""
    parts = Path(file).parts
    return "/".join(parts[-3:]) if parts[-2:-1] == ("weights",) else parts[-1]
