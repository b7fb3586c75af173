"""Who speaks: models heard through taps, and the choice of one teacher for each batch."""

from __future__ import annotations

import math
import random
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.distill.hooks import FeatureHooks
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, Outputs

PADDING = 114 / 255  # the grey that Ultralytics pads with


class FeatureExtractor:
    """Hears what one model says in a forward pass."""

    def __init__(self, model: nn.Module, spec: ModelSpec, roles: list[str]):
        """Put taps on a model.

        Args:
            model: a YOLO detector.
            spec: its anatomy.
            roles: the hidden layers to hear.
        """
        self.spec = spec
        self.taps = FeatureHooks({role: host.layer(model, spec.taps[role].layer) for role in roles})

    def knowledge(self, raw: Any) -> Knowledge:
        """The model's knowledge of the batch of its last forward pass, whose raw head outputs are given."""
        branches, levels = host.outputs(raw, self.spec.strides, self.spec.reg_max)
        return Knowledge(branches, self.taps.take(), levels)


class Teacher(Protocol):
    """Who teaches: a live teacher, or the record of one.

    Attributes:
        name: what to call it.
    """

    name: str

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """What it says about a batch of Ultralytics' data."""


class LiveTeacher:
    """A trained detector that is asked and never changed: no gradients, fixed statistics, no part of the student."""

    def __init__(self, name: str, model: nn.Module, spec: ModelSpec, roles: list[str]):
        """Make a trained detector ready to be asked.

        Args:
            name: what to call it.
            model: the detector, as `host.freeze` gives it.
            spec: its anatomy.
            roles: the hidden layers that the terms read.
        """
        self.name, self.model = name, model
        self.extractor = FeatureExtractor(model, spec, roles)
        self._stream: Any = None
        self._prefetched: tuple[Tensor, Knowledge] | None = None

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Let the teacher look at a batch on a stream of its own, while the student does on the device's own stream."""
        images = seen(batch)
        device = torch.get_device_module(images.device)
        self._stream = self._stream or device.Stream()
        self._stream.wait_stream(device.current_stream())  # for the images, and for whoever still reads the last answer
        with device.stream(self._stream):
            self._prefetched = images, self.infer(images)

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """What the teacher says about a batch of Ultralytics' data, at the size that it sees."""
        images, asked, self._prefetched = seen(batch), self._prefetched, None
        if asked is None or asked[0] is not images:
            return self.infer(images)
        torch.get_device_module(images.device).current_stream().wait_stream(self._stream)
        return asked[1]

    @torch.no_grad()
    def infer(self, images: Tensor) -> Knowledge:
        """What the teacher says about images, B C H W in [0, 1]; grey ones are shown to a colour teacher as grey.

        Images that are no multiple of its largest stride, as a P6 teacher can meet, are padded while it looks.
        """
        images = images.to(next(self.model.parameters()).dtype, memory_format=torch.channels_last)
        if images.shape[1] == 1 < self.extractor.spec.channels:
            images = images.expand(-1, self.extractor.spec.channels, -1, -1)
        height, width = images.shape[2:]
        largest = max(self.extractor.spec.strides)
        if not (height % largest or width % largest):
            return self.extractor.knowledge(self.model(images))
        padded = F.pad(images, (0, -width % largest, 0, -height % largest), value=PADDING)
        return within(self.extractor.knowledge(self.model(padded)), height, width)


def seen(batch: dict[str, Any]) -> Tensor:
    """The images of a batch of Ultralytics' data as a teacher sees them, B C H W."""
    images: Tensor = batch.get("teacher_img", batch["img"])
    return images


def within(k: Knowledge, height: int, width: int) -> Knowledge:
    """What of the knowledge of a padded image lies in its top left corner of that many pixels."""
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
    """Which of `count` teachers speaks at a step; the same on every rank, since only seed and step decide."""
    return random.Random((seed << 40) + step).randrange(count)
