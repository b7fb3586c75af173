"""What the tests of networks as teachers share: a narrow student, and a network that computes what its layers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from yolo_mkd import host
from yolo_mkd.distill.hooks import FeatureExtractor


class LayersOf(nn.Module):
    """A network that returns what the layers of a student compute, by name, or in their order without names."""

    def __init__(self, model: Any, imgsz: int, named: bool = True):
        super().__init__()
        self.inner, self.named = model, named
        self.spec = host.model_spec(model, imgsz)
        self.extractor = FeatureExtractor(model, self.spec, list(self.spec.layers))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor] | tuple[torch.Tensor, ...]:
        self.inner(x)
        features = self.extractor.hooks.take()
        return features if self.named else tuple(features[role] for role in self.spec.layers)


@pytest.fixture
def student() -> Any:
    """An untrained yolo26n-w125 of three classes."""
    torch.manual_seed(0)
    return host.build(host.find_model("model", "yolo26n-w125.yaml"), 3)


@pytest.fixture
def layers_of() -> type[LayersOf]:
    """The class, for tests that cannot import this file."""
    return LayersOf
