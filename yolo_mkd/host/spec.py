"""Specification of a detector for distillation: classes, head and layers by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from yolo_mkd.settings import BadInput
from yolo_mkd.settings.errors import short

MERGED_NAMES = {0: "item"}  # Ultralytics' name of the class of single_cls=True


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
class KeypointSpec:
    """The keypoints of a pose head.

    Attributes:
        count: how many an object has.
        dimensions: 2 for x and y, 3 with visibility.
        scale: of the head's raw coordinates to offsets from the anchor in stride units, which are scale x + shift.
        shift: see there.
        sigmas: COCO's constant of each.
    """

    count: int
    dimensions: int
    scale: float
    shift: float
    sigmas: tuple[float, ...]


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
        merged: the data's classes that `single_cls=True` merges into the student's only one; empty otherwise.
        prototypes: how many mask prototypes its head has; 0 if it draws no masks.
        keypoints: of its head; None if it has none.
        origin: what a teacher is that is not one detector, as text for tables; empty for a detector.
        averaged: whether a teacher is the mean of several, which has attention maps and relations but no features.
    """

    names: dict[int, str]
    strides: tuple[int, ...]
    branches: tuple[str, ...]
    reg_max: int
    rotated: bool
    layers: dict[str, LayerSpec]
    channels: int
    parameters: int
    merged: dict[int, str] = field(default_factory=dict)
    prototypes: int = 0
    keypoints: KeypointSpec | None = None
    origin: str = ""
    averaged: bool = False

    def of_data(
        self,
        names: Mapping[int, str],
        channels: int,
        single_cls: bool = False,
        classes: int | Sequence[int] | None = None,
    ) -> ModelSpec:
        """The spec of the model once it is fitted to a data set.

        Args:
            names: the data's class names by index.
            channels: of its images.
            single_cls: Ultralytics' argument: one class for all objects.
            classes: indices of the classes to train (Ultralytics' argument); None for all.

        Raises:
            BadInput: `classes` is not such indices.
        """
        listed = list(classes) if isinstance(classes, list | tuple) else [*names] if classes is None else [classes]
        if wrong := [i for i in listed if isinstance(i, bool) or not isinstance(i, int) or i not in names]:
            raise BadInput(
                f"classes={short(classes)}: the data has no class {short(wrong[0])}: give indices of its {len(names)} "
                "classes, for example classes=0,1"
            )
        chosen = {*listed}
        kept = {i: name for i, name in names.items() if i in chosen}
        if single_cls:
            return replace(self, names=dict(MERGED_NAMES), merged=kept, channels=channels)
        return replace(self, names=kept, channels=channels)
