"""What is transferred. A model's knowledge of one batch is a value; each term compares two such values.

Every term is a pure function of tensors: no hooks, no devices, no schedule. It returns a mean over the batch's images
(the trainer multiplies by the batch size, as Ultralytics does for its own losses).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Outputs:
    """What one branch of a detection head says, over A anchors (level-major, then row-major).

    Attributes:
        logits: class logits, B C A.
        distances: box sides left, top, right, bottom from the anchor, B 4 A, in stride units.
        bins: logits of the box-side distributions, B 4 K A, or None where the head has none (reg_max=1).
    """

    logits: Tensor
    distances: Tensor
    bins: Tensor | None = None


@dataclass
class Knowledge:
    """All that one model says about one batch.

    Attributes:
        branches: the head's outputs by branch, `one2many` and, on dual heads, `one2one`.
        features: feature maps by role (`backbone_p3` ... `neck_p5`), each B C H W.
        levels: anchors of each level as {stride: (rows, columns)}, in the order of the A axis.
        maps: attention maps by role, each B H W, where the features themselves were not kept.
        relations: in the same case the relation matrix, B L L, and the L roles that it is of.
    """

    branches: dict[str, Outputs]
    features: dict[str, Tensor] = field(default_factory=dict)
    levels: dict[int, tuple[int, int]] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    relations: tuple[tuple[str, ...], Tensor] | None = None

    def detached(self) -> Knowledge:
        """The same features, through which no gradient passes."""
        return Knowledge(self.branches, {role: f.detach() for role, f in self.features.items()}, self.levels)


@dataclass
class Truth:
    """The labels of a batch, for terms that look where the objects are.

    Attributes:
        boxes: N 4, centre x, centre y, width and height as shares of the image.
        image: N, which image of the batch each box belongs to.
    """

    boxes: Tensor
    image: Tensor
