"""Soft targets for instance masks: the masks that the teacher draws, inside its boxes.

A mask is a sum of prototypes, weighted by an anchor's coefficients (YOLACT, Bolya et al., ICCV 2019, eq. 1). The terms
compare what the sums draw, so student and teacher may have different numbers and sizes of prototypes. At each chosen
anchor, over the R pixels of the teacher's box, with p and q the sigmoids of the student's and the teacher's mask:

    L = 1 / R sum KL(q || p) + 1 - (2 sum p q + 1) / (sum p^2 + sum q^2 + 1)

KL(q || p) = BCE(p, q) - BCE(q, q). The second part is the Dice loss with squares (V-Net, Milletari et al., 3DV 2016,
sec. 3), which is 0 for equal soft masks; with plain sums it would be 0 for binary masks only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd.knowledge.soft_targets import at_anchors, best_anchors, total_mass

MOST = 32  # anchors of an image whose masks are drawn: 16 images of 640 pixels take 52 MB for each tensor of masks


def mask_loss(
    cs: Tensor, ps: Tensor, ct: Tensor, pt: Tensor, boxes: Tensor, zt: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean of KL plus Dice between two masks at the teacher's 32 best anchors of each image, weighted by its score.

    Args:
        cs: the student's coefficients, B M A.
        ps: the student's prototypes, B M H W.
        ct: the teacher's coefficients, B M' A.
        pt: the teacher's prototypes, B M' H' W'; they are resized to the student's.
        boxes: the teacher's boxes left, top, right, bottom as shares of the image, B 4 A.
        zt: the teacher's class logits, B C A.
        weights: of each class, C; None means 1 each.

    Returns:
        A scalar; 0 where both draw the same masks.
    """
    score, index = best_anchors(zt, weights, MOST)
    size = ps.shape[2:]
    if pt.shape[2:] != size:
        pt = F.interpolate(pt.float(), size, mode="bilinear", align_corners=False)
    ms, mt = drawn(at_anchors(cs, index), ps), drawn(at_anchors(ct, index), pt)  # B K H W
    inside = pixels_inside(at_anchors(boxes, index), size[0], size[1])
    area = inside.sum((2, 3)).clamp(min=1)
    p, q = ms.sigmoid(), mt.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(mt, q, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(ms, q, reduction="none") - entropy
    shared, both = (p * q * inside).sum((2, 3)), ((p.square() + q.square()) * inside).sum((2, 3))
    loss = (divergence * inside).sum((2, 3)) / area + 1 - (2 * shared + 1) / (both + 1)
    return (loss * score).sum() / total_mass(score)


def drawn(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """The logits of masks: coefficients B M K and prototypes B M H W in, B K H W out."""
    return torch.einsum("bmk,bmhw->bkhw", coefficients.float(), prototypes.float())


def pixels_inside(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """1 for pixels whose centre lies in a box: left, top, right, bottom as shares, B 4 K in, B K rows columns out."""
    left, top, right, bottom = boxes[..., None].unbind(1)  # B K 1
    x = (torch.arange(columns, device=boxes.device) + 0.5) / columns
    y = (torch.arange(rows, device=boxes.device) + 0.5) / rows
    across, down = (x > left) & (x < right), (y > top) & (y < bottom)
    return (down[..., None] & across[:, :, None]).float()
