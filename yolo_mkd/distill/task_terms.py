"""Soft targets of segmentation, pose and oriented-box heads as terms between two matched models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.resample import Levels
from yolo_mkd.distill.terms import (
    Term,
    class_weights_of,
    describe_heads,
    heads_mismatch,
    weighted_by_branch,
)
from yolo_mkd.knowledge import Knowledge, LossWeights, Outputs, Targets
from yolo_mkd.knowledge.keypoints import keypoint_loss
from yolo_mkd.knowledge.masks import mask_loss
from yolo_mkd.knowledge.oriented_boxes import oriented_box_loss

BranchLoss = Callable[[Outputs, Outputs, Tensor, "Tensor | None", Levels], Tensor]


def soft_mask(match: Match) -> Term:
    """Soft targets: the masks that the teacher draws."""

    def loss(s: Outputs, t: Outputs, zt: Tensor, weights: Tensor | None, levels: Levels) -> Tensor:
        assert s.coefficients is not None and s.prototypes is not None  # else the term does not apply
        assert t.coefficients is not None and t.prototypes is not None
        boxes = boxes_in_image(t.distances, levels)
        return mask_loss(s.coefficients, s.prototypes, t.coefficients, t.prototypes, boxes, zt, weights)

    ours, theirs = match.student.prototypes, match.teacher.prototypes
    why = only_one("masks", bool(ours), bool(theirs))
    return task_term(match, f"{ours} and {theirs} prototypes", why, loss)


def soft_keypoint(match: Match) -> Term:
    """Soft targets: the teacher's keypoints and their visibility."""
    ours, theirs = match.student.keypoints, match.teacher.keypoints

    def loss(s: Outputs, t: Outputs, zt: Tensor, weights: Tensor | None, levels: Levels) -> Tensor:
        assert s.keypoints is not None and t.keypoints is not None and ours is not None  # else it does not apply
        return keypoint_loss(s.keypoints, t.keypoints, t.distances, zt, ours.sigmas, weights)

    why = only_one("keypoints", ours is not None, theirs is not None)
    if ours and theirs and ours.count != theirs.count:
        why = f"the student has {ours.count} keypoints, the teacher {theirs.count}"
    return task_term(match, f"{ours.count if ours else 0} keypoints", why, loss)


def soft_obb(match: Match) -> Term:
    """Soft targets: the teacher's oriented boxes."""

    def loss(s: Outputs, t: Outputs, zt: Tensor, weights: Tensor | None, levels: Levels) -> Tensor:
        assert s.angles is not None and t.angles is not None  # else the term does not apply
        return oriented_box_loss(s.distances, s.angles, t.distances, t.angles, zt, weights)

    why = only_one("oriented boxes", match.student.rotated, match.teacher.rotated)
    return task_term(match, "oriented boxes", why, loss)


def task_term(match: Match, reads: str, why: str, loss: BranchLoss) -> Term:
    """The term that adds one loss over the branches of two heads.

    Args:
        match: the two models.
        reads: what it compares beside branches and strides.
        why: why it does not apply to heads of these tasks; empty if it does.
        loss: of one branch: student's and teacher's outputs, the logits of the shared classes, their weights, levels.
    """

    def over_branches(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        levels = {stride: ks.levels[stride] for stride in match.strides}
        pairs = zip(match.heads(ks, kt), class_weights_of(match, weights), strict=True)
        return weighted_by_branch([loss(s, t, zt, w, levels) for (s, t, zt), w in pairs], match, weights)

    reads = f"{reads}, {describe_heads(match)}"
    return Term(reads, why or heads_mismatch(match), over_branches, head=True, branched=True)


def only_one(what: str, ours: bool, theirs: bool) -> str:
    """Why two heads of which not both have something cannot be compared in it; empty if both have it."""
    if ours and theirs:
        return ""
    return f"neither head has {what}" if ours == theirs else f"the {'teacher' if ours else 'student'} has no {what}"


def boxes_in_image(distances: Tensor, levels: Levels) -> Tensor:
    """Boxes left, top, right, bottom as shares of the image, B 4 A, from box sides in stride units."""
    centres, sizes = [], []
    for rows, columns in levels.values():
        own = torch.arange(rows * columns, device=distances.device)
        centres.append(torch.stack([own % columns, own // columns]) + 0.5)
        sizes.append(torch.tensor([[columns], [rows]], device=distances.device).expand(2, len(own)))
    at, size = torch.cat(centres, 1), torch.cat(sizes, 1)  # 2 A
    return torch.cat([at - distances[:, :2], at + distances[:, 2:]], 1) / torch.cat([size, size])
