"""Teachers: inference of a frozen model, and the choice of one teacher for each batch."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd import host
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge

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
        head: a frozen copy of its head, where a term computes gradients through it.
    """

    def __init__(
        self, name: str, model: torch.nn.Module, spec: ModelSpec, roles: list[str], through_head: bool = False
    ):
        """Put hooks on a frozen detector.

        Args:
            name: of the teacher, in tables and logs.
            model: the detector, as `host.freeze` gives it.
            spec: its spec.
            roles: the hidden layers that the terms read.
            through_head: whether a term computes gradients through the head.
        """
        self.name, self.model = name, model
        self.head = host.frozen_head(model) if through_head else None
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
        """The teacher's outputs for images, B C H W in [0, 1], and its head where a term needs it.

        Images that are no multiple of its largest stride, as a P6 teacher can meet, are padded for the forward pass.
        """
        spec = self.extractor.spec
        images = images.to(next(self.model.parameters()).dtype, memory_format=torch.channels_last)
        height, width = images.shape[2:]
        largest = max(spec.strides)
        if not (height % largest or width % largest):
            return replace(self.extractor.collect(self.model(images)), head=self.head)
        padded = F.pad(images, (0, -width % largest, 0, -height % largest), value=PADDING)
        return replace(cropped(self.extractor.collect(self.model(padded)), height, width), head=self.head)

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

    def prototypes(x: Tensor) -> Tensor:
        stride, (rows, columns) = next(iter(k.levels.items()))
        shares = height / (rows * stride), width / (columns * stride)
        return x[..., : math.ceil(x.shape[2] * shares[0]), : math.ceil(x.shape[3] * shares[1])]

    branches = {name: o.changed(anchors, prototypes) for name, o in k.branches.items()}
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
