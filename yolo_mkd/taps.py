"""Taps: forward hooks that keep what chosen layers of a model say, by role, until it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """Where a role sits in one model: the layer's index and its output's channels, rows and columns."""

    layer: int
    channels: int
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.layer:>3}  {self.channels}x{self.rows}x{self.columns}"


@dataclass(frozen=True)
class Anatomy:
    """What of a detector matters to distillation, read before training.

    Attributes:
        names: class names by index.
        strides: of the head's levels, in pixels.
        branches: the head's branches, `one2many` and, on dual heads, `one2one`; none where it has no anchors.
        reg_max: bins of each box side's distribution; 1 where the head gives the side itself.
        rotated: whether its boxes are oriented.
        taps: by role: `backbone_p3` is the last backbone layer of stride 8, `neck_p3` the head's input of stride 8.
        channels: of the images it sees.
        parameters: how many the model has.
    """

    names: dict[int, str]
    strides: tuple[int, ...]
    branches: tuple[str, ...]
    reg_max: int
    rotated: bool
    taps: dict[str, Tap]
    channels: int
    parameters: int


class Taps:
    """Hooks on the given layers. They listen only while `open`, and hold nothing once taken."""

    def __init__(self, layers: dict[str, nn.Module]):
        """Put one hook on each layer.

        Args:
            layers: the layer of each role.
        """
        self.open = True
        self._features: dict[str, Tensor] = {}
        self._handles = [layer.register_forward_hook(self._keeper(role)) for role, layer in layers.items()]

    def _keeper(self, role: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.open:
                self._features[role] = output

        return keep

    def take(self) -> dict[str, Tensor]:
        """Hand over what was heard in the last forward pass, by role, and forget it."""
        features, self._features = self._features, {}
        return features

    def remove(self) -> None:
        """Take the hooks off; the layers are as they were."""
        for handle in self._handles:
            handle.remove()
        self._features = {}
