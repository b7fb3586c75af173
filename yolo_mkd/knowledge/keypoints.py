"""Soft targets for keypoints: positions in units of the object's scale, and visibility as a probability.

At an anchor, with d_k the distance between the student's and the teacher's keypoint k, s^2 the area of the teacher's
box and v_k the teacher's probability that k is visible:

    e_k = d_k^2 / (2 s^2 (2 sigma_k)^2)          so that the object keypoint similarity of COCO is OKS_k = exp(-e_k)
    L = sum v_k (sqrt(1 + 2 e_k) - 1) / max(1, sum v_k) + mean over k of KL(v_k of teacher || v_k of student)

Near the teacher's keypoint the first part is 1 - OKS, the loss of YOLO-Pose (Maji et al., CVPRW 2022). Far
from it 1 - OKS has no gradient (at half the object's size exp(-e) is 4e-6 with sigma 0.05), and this one grows with the
distance: it is Charbonnier's loss, alpha = 1 in Barron (CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd.knowledge.soft_targets import at_anchors, best_anchors, total_mass

SMALLEST = 1.0  # area of an object, in squares of its stride; the gradient by a position is at most 1 / (2 sigma s)


def keypoint_loss(
    ks: Tensor,
    kt: Tensor,
    dt: Tensor,
    zt: Tensor,
    sigmas: Sequence[float],
    weights: Tensor | None = None,
) -> Tensor:
    """Mean of the distances at the teacher's 300 best anchors of each image, weighted by its score.

    Args:
        ks: the student's keypoints, B N D A: x and y from the anchor in stride units and, with D=3, the logit of
            being visible.
        kt: the teacher's; D may differ. A teacher without visibility sees every keypoint.
        dt: the teacher's box sides, B 4 A, in stride units.
        zt: the teacher's class logits, B C A.
        sigmas: COCO's constant of each keypoint, N.
        weights: of each class, C; None means 1 each.

    Returns:
        A scalar; 0 where both agree.
    """
    score, index = best_anchors(zt, weights)
    ks, kt = at_anchors(ks, index), at_anchors(kt, index)  # B N D K
    left, top, right, bottom = at_anchors(dt, index).unbind(1)
    area = ((left + right).clamp(min=0) * (top + bottom).clamp(min=0)).clamp(min=SMALLEST)  # B K
    spread = 2 * torch.as_tensor(sigmas, device=ks.device, dtype=ks.dtype).view(1, -1, 1)  # 1 N 1
    e = (ks[:, :, :2] - kt[:, :, :2]).square().sum(2) / (2 * area[:, None] * spread.square())  # B N K
    visible = kt[:, :, 2].sigmoid() if kt.shape[2] == 3 else torch.ones_like(e)
    loss = (visible * ((1 + 2 * e).sqrt() - 1)).sum(1) / visible.sum(1).clamp(min=1)
    if ks.shape[2] == kt.shape[2] == 3:
        entropy = F.binary_cross_entropy_with_logits(kt[:, :, 2], visible, reduction="none")
        loss = loss + (F.binary_cross_entropy_with_logits(ks[:, :, 2], visible, reduction="none") - entropy).mean(1)
    return (loss * score).sum() / total_mass(score)
