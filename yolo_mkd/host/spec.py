"""Specification of a detector for distillation: classes, head and layers by role."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSpec:
    """The layer of a role in one model: its index, and its output's channels, rows and columns."""

    layer: int
    channels: int
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.layer:>3}  {self.channels}x{self.rows}x{self.columns}"


@dataclass(frozen=True)
class ModelSpec:
    """The properties of a detector that distillation depends on, read before training.

    Attributes:
        names: class names by index.
        strides: of the head's levels, in pixels.
        branches: the head's branches, `one2many` and, on dual heads, `one2one`; none if it has no anchors.
        reg_max: bins of each box side's distribution; 1 if the head outputs the side itself.
        rotated: whether its boxes are oriented.
        layers: by role: `backbone_p3` is the last backbone layer of stride 8, `neck_p3` the head's input of stride 8.
        channels: of its input images.
        parameters: their number.
    """

    names: dict[int, str]
    strides: tuple[int, ...]
    branches: tuple[str, ...]
    reg_max: int
    rotated: bool
    layers: dict[str, LayerSpec]
    channels: int
    parameters: int
