"""Soft targets: the teacher's class scores, boxes and box-side distributions, anchor by anchor.

The temperature of class scores is 1: with sigmoid outputs a higher one lets the background outweigh the objects by
three orders of magnitude. Every sum is divided by the teacher's mass N = max(1, sum over anchors of its best score),
so that images without objects contribute little.

A class that is rare, small or uncertain contributes few anchors to a sum, so the student loses accuracy on it. Anchors
can therefore be weighted by the teacher's scores, with one weight w a class: u = 1 + the sum over classes of q (w - 1),
divided by the sum of q where that is above 1. Where the teacher scores nothing, u is 1; N is then the sum of u times
the best score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_mkd.knowledge import ranks

TEMPERATURE = 10.0  # of the box-side distributions: LD, Zheng et al., CVPR 2022
DOUBT = 0.05  # scores up to this one count as no detection
EPS = 1e-7
MOST = 300  # anchors of an image at which keypoints and oriented boxes are compared: those that a teacher cache stores
BLOCK = 2**17  # elements, half a MB: a handful of such tensors stay in a core's cache


@dataclass(frozen=True)
class AnchorWeights:
    """How much each anchor counts, from the teacher's scores.

    Attributes:
        u: its emphasis, B A; None where all classes weigh 1.
        best: the teacher's best class score, times u, B A.
    """

    u: Tensor | None
    best: Tensor


def anchor_weights(zt: Tensor, weights: Tensor | None = None) -> AnchorWeights:
    """How much each anchor counts.

    Args:
        zt: the teacher's class logits, B C A.
        weights: of each class, C; None means 1 each.
    """
    u, best = None if weights is None else emphasis(zt, weights), zt.amax(1).sigmoid()
    return AnchorWeights(u, best if u is None else best * u)


def class_loss(
    zs: Tensor,
    zt: Tensor,
    weights: Tensor | None = None,
    anchors: AnchorWeights | None = None,
) -> Tensor:
    """Quality-focal distillation of class scores: sum over anchors and classes of u |p - q| BCE(p, q), over N.

    p and q are the sigmoids of the student's and teacher's logits; beta = 1 (BCKD, Yang et al., ICCV 2023, eq. for
    classification; CrossKD, Wang et al., CVPR 2024).

    Args:
        zs: the student's class logits, B C A.
        zt: the teacher's.
        weights: of each class, C; None means 1 each.
        anchors: the anchors' weights, where they are known already.

    Returns:
        A scalar; 0 where both agree.
    """
    anchors = anchors or anchor_weights(zt, weights)
    loss: Tensor = FocusedEntropy.apply(zs, zt, None if anchors.u is None else anchors.u[:, None])
    return loss / total_mass(anchors.best)


class FocusedEntropy(torch.autograd.Function):
    """Sum of u |p - q| BCE(p, q); forward computes the gradient too, so one tensor is saved instead of seven.

    On a CPU it works through blocks that fit into its cache, in a third of the time of whole tensors.
    """

    @staticmethod
    def forward(ctx: Any, zs: Tensor, zt: Tensor, weights: Tensor | None) -> Tensor:
        """The sum over all elements: logits B C A and weights B 1 A in, a scalar out."""
        slope, total = torch.empty_like(zs), zs.new_zeros(())
        for images, classes in blocks(zs):
            own = None if weights is None else weights[images]
            total += focused_entropy(zs[images, classes], zt[images, classes], own, slope[images, classes])
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None, None]:
        """The gradient with respect to the student's logits; none for the teacher's logits and the weights."""
        (slope,) = ctx.saved_tensors
        return slope * up, None, None


def blocks(z: Tensor) -> list[tuple[slice, slice]]:
    """The images and classes of each block of logits B C A that is computed at a time: all of them on a GPU."""
    images, classes, anchors = z.shape
    if z.device.type != "cpu":
        return [(slice(None), slice(None))]
    rows = max(1, BLOCK // max(1, anchors))
    return [(slice(i, i + 1), slice(c, c + rows)) for i in range(images) for c in range(0, classes, rows)]


def focused_entropy(zs: Tensor, zt: Tensor, weights: Tensor | None, slope: Tensor) -> Tensor:
    """The sum of u |p - q| BCE(p, q) over a block, whose gradient is written into `slope`."""
    p, q = zs.sigmoid(), zt.sigmoid()
    # BCE(p, q) = softplus(z) - q z, and softplus(z) = max(z, 0) - log sigmoid |z|: torch has no vectorised log1p
    entropy = zs.abs().sigmoid_().log_().neg_().add_(zs.clamp(min=0)).addcmul_(q, zs, value=-1)
    if weights is not None:
        entropy.mul_(weights)
    gap = p - q
    focus = gap.abs()
    # d/dz u |p - q| BCE = sign(p - q) p (1 - p) u BCE + u |p - q| (p - q)
    pull = gap if weights is None else gap * weights
    slope.copy_(gap.sign().mul_(entropy).mul_(p).mul_(1 - p).addcmul_(focus, pull))
    return entropy.mul_(focus).sum()


def box_loss(
    ds: Tensor, dt: Tensor, zt: Tensor, weights: Tensor | None = None, anchors: AnchorWeights | None = None
) -> Tensor:
    """Mean of 1 - GIoU between the two boxes of an anchor, weighted by the teacher's best score there.

    Both boxes share an anchor and GIoU is invariant to moving and scaling both, so box sides replace coordinates.

    Args:
        ds: the student's box sides left, top, right, bottom, B 4 A, in stride units.
        dt: the teacher's.
        zt: the teacher's class logits, B C A.
        weights: of each class, C; None means 1 each.
        anchors: the anchors' weights, where they are known already.
    """
    best = (anchors or anchor_weights(zt, weights)).best
    return ((1 - giou(ds, dt)) * best).sum() / total_mass(best)


def dfl_loss(bs: Tensor, bt: Tensor, zt: Tensor, weights: Tensor | None = None) -> Tensor:
    """Localisation distillation: T^2 KL(teacher || student) of each box side's distribution, mean of the four sides.

    Summed over bins and weighted by the teacher's best score (LD, Zheng et al., CVPR 2022).

    Args:
        bs: the student's logits of the box-side distributions, B 4 K A.
        bt: the teacher's, with the same K.
        zt: the teacher's class logits, B C A.
        weights: of each class, C; None means 1 each.
    """
    target = (bt / TEMPERATURE).log_softmax(2)
    guess = (bs / TEMPERATURE).log_softmax(2)
    divergence = (target.exp() * (target - guess)).sum(2).mean(1)  # B A
    best = best_score(zt, weights)
    return TEMPERATURE**2 * (divergence * best).sum() / total_mass(best)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of two boxes at the same anchor: B 4 A and B 4 A of sides in, B A in [-1, 1] out.

    Heads without distributions can output negative sides early in training; negative widths and heights count as 0.
    """

    def area(sides: Tensor) -> Tensor:
        left, top, right, bottom = sides.unbind(1)
        return (left + right).clamp(min=0) * (top + bottom).clamp(min=0)

    overlap, hull = area(torch.minimum(a, b)), area(torch.maximum(a, b))
    union = area(a) + area(b) - overlap
    return overlap / (union + EPS) - (hull - union) / (hull + EPS)


def best_score(zt: Tensor, weights: Tensor | None = None) -> Tensor:
    """The teacher's best class score at each anchor, times u: B C A of logits in, B A out."""
    return anchor_weights(zt, weights).best


def emphasis(zt: Tensor, weights: Tensor) -> Tensor:
    """u: the weight of each anchor by the teacher's scores there, B C A of logits and C class weights in, B A out."""
    q = zt.sigmoid()
    # both sums as one product of matrices: a sum over the middle axis takes several times as long
    moved, total = (torch.stack([weights.to(q) - 1, torch.ones_like(q[0, :, 0])]) @ q).unbind(1)
    return 1 + moved / total.clamp(min=1)  # scores of several classes can exceed 1


def class_mass(zt: Tensor) -> Tensor:
    """The sum of the teacher's scores above 0.05 for each class in the batch, B C A of logits in, C out."""
    q = zt.sigmoid()
    return (q * (q > DOUBT)).sum((0, 2))


def best_anchors(zt: Tensor, weights: Tensor | None, most: int = MOST) -> tuple[Tensor, Tensor]:
    """The anchors of each image with the teacher's best scores: B C A of logits in, scores and indices out, B K each.

    K is `most`, or A if that is less. The scores are weighted by u, as everywhere here.
    """
    score, index = best_score(zt, weights).topk(min(most, zt.shape[2]), 1, sorted=False)
    return score, index


def at_anchors(x: Tensor, index: Tensor) -> Tensor:
    """The values of some anchors of each image: B ... A and indices B K in, B ... K out."""
    wide = index.view(len(index), *[1] * (x.dim() - 2), -1).expand(*x.shape[:-1], -1)
    return x.gather(-1, wide)


def mass(zt: Tensor, weights: Tensor | None = None) -> Tensor:
    """N: the sum over anchors of the teacher's best score, weighted by u, at least 1; B C A of logits in."""
    return total_mass(best_score(zt, weights))


def total_mass(best: Tensor) -> Tensor:
    """N from the weighted best score of each anchor, B A: their sum, at least 1; over DDP ranks, its mean."""
    return ranks.total(best.sum()).clamp(min=1) / ranks.count()
