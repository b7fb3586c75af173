"""What is transferred: `Knowledge`, a model's outputs and features for one batch, and the losses that compare two.

Every loss is a pure function of tensors: no hooks, no devices, no schedule. It returns a mean over the batch's images
(the trainer multiplies by the batch size, as Ultralytics does for its own losses).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from torch import Tensor, cat

from yolo_mkd.knowledge.ranks import average
from yolo_mkd.knowledge.soft_targets import AnchorWeights


@dataclass
class Outputs:
    """Raw outputs of one branch of a detection head, over A anchors (level-major, then row-major).

    Attributes:
        logits: class logits, B C A.
        distances: box sides left, top, right, bottom from the anchor, B 4 A, in stride units.
        bins: logits of the box-side distributions, B 4 K A, or None where the head has none (reg_max=1).
        angles: of oriented boxes, B A [radians]; their box sides lie along the box's own axes.
        keypoints: B N D A: x and y from the anchor in stride units and, with D=3, the logit of being visible.
        coefficients: of the mask prototypes, B M A.
        prototypes: the image's mask prototypes, B M H W; they have no anchors.
    """

    logits: Tensor
    distances: Tensor
    bins: Tensor | None = None
    angles: Tensor | None = None
    keypoints: Tensor | None = None
    coefficients: Tensor | None = None
    prototypes: Tensor | None = None

    def changed(self, change: Callable[[Tensor], Tensor], prototypes: Callable[[Tensor], Tensor]) -> Outputs:
        """A copy with one change of every tensor over anchors, and another of the prototypes."""
        given: dict[str, Tensor] = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {n: x if x is None else (prototypes if n == "prototypes" else change)(x) for n, x in given.items()}
        return Outputs(**found)

    def of_first(self, count: int) -> Outputs:
        """A copy for the first `count` images of the batch."""
        return self.changed(lambda x: x[:count], lambda x: x[:count])

    def joined_with(self, other: Outputs) -> Outputs:
        """The outputs for two batches, concatenated; what only one of them has is left out."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Outputs(**{name: cat([a, b]) for name, a, b in pairs if a is not None and b is not None})


@dataclass
class Knowledge:
    """The outputs and features of one model for one batch, which the terms compare.

    Attributes:
        branches: the head's outputs by branch, `one2many` and, on dual heads, `one2one`.
        features: feature maps by role (`backbone_p3` ... `neck_p5`), each B C H W.
        levels: anchors of each level as {stride: (rows, columns)}, in the order of the A axis.
        maps: attention maps by role, each B H W, where the features are not available (teacher cache).
        relations: in the same case the names of L roles and their relation matrix, B L L.
        head: a live teacher's frozen one2many branch: its outputs for given features of the neck, each B C H W.
    """

    branches: dict[str, Outputs]
    features: dict[str, Tensor] = field(default_factory=dict)
    levels: dict[int, tuple[int, int]] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    relations: tuple[tuple[str, ...], Tensor] | None = None
    head: Callable[[list[Tensor]], Outputs] | None = None

    def detached(self) -> Knowledge:
        """A copy whose features are detached, so that no gradient passes through them."""
        return Knowledge(self.branches, {role: f.detach() for role, f in self.features.items()}, self.levels)

    def best_scores(self) -> Tensor:
        """The best class score of each image in the first branch, B in [0, 1]; the head must have branches."""
        return next(iter(self.branches.values())).logits.sigmoid().amax((1, 2))

    def of_first(self, count: int) -> Knowledge:
        """A copy for the first `count` images of the batch."""
        branches = {name: o.of_first(count) for name, o in self.branches.items()}
        features, maps = ({r: x[:count] for r, x in of.items()} for of in (self.features, self.maps))
        relations = None if self.relations is None else (self.relations[0], self.relations[1][:count])
        return Knowledge(branches, features, self.levels, maps, relations, self.head)

    def joined_with(self, other: Knowledge) -> Knowledge:
        """The outputs of one model for two batches, concatenated: this one's images first."""
        branches = {name: first.joined_with(other.branches[name]) for name, first in self.branches.items()}
        relations = None
        if self.relations is not None and other.relations is not None:
            relations = self.relations[0], cat([self.relations[1], other.relations[1]])
        return Knowledge(
            branches,
            {r: cat([f, other.features[r]]) for r, f in self.features.items()},
            self.levels,
            {r: cat([m, other.maps[r]]) for r, m in self.maps.items()},
            relations,
            self.head,
        )


@dataclass
class Targets:
    """The labels of a batch, for terms that depend on where the objects are.

    Attributes:
        boxes: N 4, centre x, centre y, width and height as shares of the image.
        image: N, the index in the batch of the image that each box belongs to.
        labelled: how many of the images have labels, the first ones; None means all.
        classes: N, the student's class index of each box; None where only the places are known.
    """

    boxes: Tensor
    image: Tensor
    labelled: int | None = None
    classes: Tensor | None = None


@dataclass
class LossWeights:
    """The weights of images, branches of the head and classes in a batch's losses.

    Attributes:
        images: B, the weight of each image in a mean over images; None means 1 each.
        branches: the detection loss's weight of each branch of the head; None means 1 each.
        classes: by branch, the weight in soft targets of each class that both models have, C; None means 1 each.
        anchors: by branch, the anchors' weights once a term has computed them, for the next one.
    """

    images: Tensor | None = None
    branches: dict[str, float] | None = None
    classes: dict[str, Tensor] | None = None
    anchors: dict[str, AnchorWeights] = field(default_factory=dict)


def mean_over_images(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of B values, weighted where weights are given: B and B in, a scalar out."""
    return values.mean() if weight is None else (values * weight).sum() / average(weight.sum())
