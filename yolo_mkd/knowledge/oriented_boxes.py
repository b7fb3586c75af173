"""Soft targets for oriented boxes: the squared Hellinger distance between the Gaussians of two boxes.

A box of width w, height h and angle a is a Gaussian around its centre with the covariance R(a) diag(w^2, h^2) / 12
R(a)^T, that of a uniform density on it. The Bhattacharyya distance D between two of them gives

    L = 1 - exp(-D) = (1 - ProbIoU)^2,   D = d^T (S1 + S2)^-1 d / 4 + ln(|S1 + S2| / (4 sqrt(|S1| |S2|))) / 2

(ProbIoU, Murrugarra-Llerena et al., arXiv 2106.06072, sec. 3; 1 - ProbIoU is the loss of Ultralytics' oriented
heads). 1 - ProbIoU itself has an unbounded gradient at equal boxes; its square is smooth there. An angle counts as far
as the teacher's box has one: a turn by a of a box with the aspect r adds ln(1 + (r - 1/r)^2 sin^2(a) / 4) / 2 to D,
nothing for a square, where the angle is arbitrary. Width and height exchanged with a turn by 90 degrees are the same
box, so that heads whose angles have different ranges (YOLO11 and YOLO26) can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_mkd.knowledge.soft_targets import at_anchors, best_anchors, total_mass

FLOOR = 0.01  # added to both variances [strides^2], as in Ultralytics' loss: bounds the gradient of very narrow boxes


def oriented_box_loss(
    ds: Tensor, angle_s: Tensor, dt: Tensor, angle_t: Tensor, zt: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean distance of the boxes at the teacher's 300 best anchors of each image, weighted by its score.

    Args:
        ds: the student's box sides left, top, right, bottom along the box's own axes, B 4 A, in stride units.
        angle_s: the student's angles, B A [radians].
        dt: the teacher's sides.
        angle_t: the teacher's angles.
        zt: the teacher's class logits, B C A.
        weights: of each class, C; None means 1 each.

    Returns:
        A scalar in [0, 1]; 0 where both agree.
    """
    score, index = best_anchors(zt, weights)
    sides_s, sides_t = at_anchors(ds, index), at_anchors(dt, index)
    turn = at_anchors(angle_s, index) - at_anchors(angle_t, index)
    return (hellinger(sides_s, sides_t, turn) * score).sum() / total_mass(score)


def hellinger(ds: Tensor, dt: Tensor, turn: Tensor) -> Tensor:
    """The squared Hellinger distance of boxes that share an anchor, B K in [0, 1].

    All is computed in the frame of the teacher's box: there its covariance is diagonal, and no difference of large
    numbers is needed for a long narrow box.

    Args:
        ds: the student's sides, B 4 K.
        dt: the teacher's.
        turn: the student's angle minus the teacher's, B K [radians].
    """
    (xs, ys, us, vs), (xt, yt, ut, vt) = centre_and_variances(ds), centre_and_variances(dt)
    cos, sin = turn.cos(), turn.sin()
    dx, dy = xs * cos - ys * sin - xt, xs * sin + ys * cos - yt
    across = us * cos.square() + vs * sin.square()  # the student's covariance: across, down and mixed
    down = us * sin.square() + vs * cos.square()
    mixed = (us - vs) * cos * sin
    determinant = us * vs + ut * vt + ut * down + vt * across
    shift = ((vt + down) * dx.square() - 2 * mixed * dx * dy + (ut + across) * dy.square()) / (4 * determinant)
    spread = (determinant / (4 * (us * vs * ut * vt).sqrt())).log() / 2
    return 1 - torch.exp(-shift - spread)


def centre_and_variances(sides: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The centre from the anchor and the variances, both along the box's own axes: B 4 K in, four B K out."""
    left, top, right, bottom = sides.unbind(1)
    width, height = (left + right).clamp(min=0), (top + bottom).clamp(min=0)
    return (right - left) / 2, (bottom - top) / 2, width.square() / 12 + FLOOR, height.square() / 12 + FLOOR
