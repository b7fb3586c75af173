"""Error focus: the labelled objects that the teacher misses count more, so the student learns what it does not know.

For object j with class y, the teacher's quality is r_j = max over the anchors inside its box of score x IoU, in [0, 1];
a class that the teacher lacks has r_j = 0. The student is trained on the object with the weight 1 - r_j, at the
anchors that it fits best (alignment score^0.5 x IoU^6: TOOD, Feng et al., ICCV 2021, with Ultralytics' exponents):
quality focal class loss with the IoU as its target (GFL, Li et al., NeurIPS 2020) and 1 - GIoU.

The idea that new knowledge is where labels contradict the teacher is that of teacher-bounded regression (Chen et al.,
NeurIPS 2017) turned round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd.knowledge.soft_targets import giou

ANCHORS = {"one2many": 8, "one2one": 1}  # of an object that learn: between Ultralytics' 10 and one for each object
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0


@dataclass
class Objects:
    """The labelled objects of a batch, laid over the anchors of a head.

    Attributes:
        sides: from each anchor to the object's left, top, right and bottom side, N 4 A, in stride units.
        inside: whether the anchor's centre lies in the box, N A.
        image: of each object, N.
    """

    sides: Tensor
    inside: Tensor
    image: Tensor


def lay_over(boxes: Tensor, image: Tensor, levels: dict[int, tuple[int, int]]) -> Objects:
    """Labelled boxes over the anchors of a head.

    Args:
        boxes: N 4, centre x, centre y, width and height as shares of the image.
        image: index of the image, N.
        levels: rows and columns by stride, in the order of the anchors.
    """
    parts = []
    for rows, columns in levels.values():
        size = boxes.new_tensor([columns, rows])
        centre, half = boxes[:, :2] * size, boxes[:, 2:] * size / 2
        down, across = torch.meshgrid(
            torch.arange(rows, device=boxes.device), torch.arange(columns, device=boxes.device), indexing="ij"
        )
        points = torch.stack([across.flatten(), down.flatten()]) + 0.5  # 2 A
        near, far = (centre - half)[..., None], (centre + half)[..., None]
        parts.append(torch.cat([points - near, far - points], 1))  # N 4 A
    sides = torch.cat(parts, 2)
    return Objects(sides, sides.amin(1) > 0, image.long())


def overlaps(objects: Objects, distances: Tensor) -> Tensor:
    """IoU of each object with the box that each anchor of its image predicts, B 4 A in, N A in [0, 1] out."""
    a, b = distances[objects.image], objects.sides
    shared = (torch.minimum(a[:, :2], b[:, :2]) + torch.minimum(a[:, 2:], b[:, 2:])).clamp(min=0).prod(1)
    areas = [(x[:, :2] + x[:, 2:]).clamp(min=0).prod(1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-7)


def teacher_quality(objects: Objects, zt: Tensor, dt: Tensor, classes: Tensor) -> Tensor:
    """r: how well the teacher detects each object, N in [0, 1].

    Args:
        objects: of the batch, over the teacher's anchors.
        zt: its class logits, B C A.
        dt: its box sides, B 4 A, in stride units.
        classes: the index in zt of each object's class, N; -1 where the teacher lacks it.
    """
    scores = zt[objects.image, classes.clamp(min=0)].sigmoid()  # N A
    quality = (scores * overlaps(objects, dt) * objects.inside).amax(1)
    return torch.where(classes >= 0, quality, 0.0)


def error_focus_loss(objects: Objects, zs: Tensor, ds: Tensor, classes: Tensor, weight: Tensor, count: int) -> Tensor:
    """Weighted mean over objects of class and box loss at the `count` anchors that fit best.

    Args:
        objects: of the batch, over the student's anchors.
        zs: the student's class logits, B C A.
        ds: its box sides, B 4 A, in stride units.
        classes: the class of each object, N.
        weight: of each object, N in [0, 1].
        count: anchors of an object.

    Returns:
        A scalar: the sum over objects divided by the larger of 1 and the number of objects.
    """
    if not len(classes):
        return zs.sum() * 0
    with torch.no_grad():
        overlap = overlaps(objects, ds)
        aligned = zs[objects.image, classes].sigmoid() ** SCORE_POWER * overlap**OVERLAP_POWER
        fit, chosen = (aligned * objects.inside + 1e-9 * objects.inside).topk(min(count, aligned.shape[1]), 1)  # N K
        use = (fit > 0) * weight[:, None] / count
        target = overlap.gather(1, chosen)
    index = objects.image[:, None].expand_as(chosen)
    z = zs[index, classes[:, None].expand_as(chosen), chosen]  # N K
    d = ds.transpose(1, 2)[index, chosen]  # N K 4
    wanted = objects.sides.transpose(1, 2).gather(1, chosen[..., None].expand(-1, -1, 4))
    focal = (z.sigmoid().detach() - target).abs() * F.binary_cross_entropy_with_logits(z, target, reduction="none")
    apart = 1 - giou(d.transpose(1, 2), wanted.transpose(1, 2))
    return (use * (focal + apart)).sum() / max(1, len(classes))
