"""Who speaks: models heard through taps, and the choice of one teacher for each batch."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.taps import Anatomy, Taps


class Listener:
    """Hears what one model says in a forward pass."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, roles: list[str]):
        """Put taps on a model.

        Args:
            model: a YOLO detector.
            anatomy: its anatomy.
            roles: the hidden layers to hear.
        """
        self.anatomy = anatomy
        self.taps = Taps({role: host.layer(model, anatomy.taps[role].layer) for role in roles})

    def knowledge(self, raw: Any) -> Knowledge:
        """The model's knowledge of the batch of its last forward pass, whose raw head outputs are given."""
        branches, levels = host.outputs(raw, self.anatomy.strides, self.anatomy.reg_max)
        return Knowledge(branches, self.taps.take(), levels)


class Teacher:
    """A trained detector that is asked and never changed: no gradients, fixed statistics, no part of the student."""

    def __init__(self, name: str, model: nn.Module, anatomy: Anatomy, roles: list[str]):
        """Make a trained detector ready to be asked.

        Args:
            name: what to call it.
            model: the detector, as `host.freeze` gives it.
            anatomy: its anatomy.
            roles: the hidden layers that the terms read.
        """
        self.name, self.model = name, model
        self.listener = Listener(model, anatomy, roles)

    @torch.no_grad()
    def speak(self, images: Tensor) -> Knowledge:
        """What the teacher says about images, B C H W in [0, 1]; grey ones are shown to a colour teacher as grey."""
        if images.shape[1] == 1 < self.listener.anatomy.channels:
            images = images.expand(-1, self.listener.anatomy.channels, -1, -1)
        return self.listener.knowledge(self.model(images))


def draw(seed: int, step: int, count: int) -> int:
    """Which of `count` teachers speaks at a step; the same on every rank, since only seed and step decide."""
    return random.Random((seed << 40) + step).randrange(count)
