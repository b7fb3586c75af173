"""Score-weighted squared difference of neck features: Ultralytics' own `distill_model=`, as in version 8.4.190.

L = sum over levels of sum_a q_a |P(s)_a - t_a|^2 / (C sum_a q_a), over the batch's anchors a of a level, with q the
teacher's score there and P a projector, two 1x1 convolutions with a ReLU between. Ultralytics' weight: dis = 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_mkd.knowledge.ranks import average


def projector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """Two 1x1 convolutions with a ReLU between, from the student's width to the teacher's."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1),
        nn.ReLU(),
        nn.Conv2d(teacher_channels, teacher_channels, 1),
    )


def teacher_score(logits: list[Tensor]) -> Tensor:
    """The teacher's best class score at each anchor.

    Args:
        logits: class logits of each branch of its head, B C A.

    Returns:
        B A: the best class's score, the sigmoid of its mean logit over the branches.
    """
    return torch.stack([z.float() for z in logits]).mean(0).sigmoid().amax(1)


def score_l2_loss(projected: list[Tensor], ft: list[Tensor], scores: Tensor) -> Tensor:
    """Squared differences of neck features, weighted by the teacher's score.

    Args:
        projected: the student's neck features of each level after the projector, B C H W.
        ft: the teacher's.
        scores: the teacher's score at the anchors of these levels, B A.

    Returns:
        A scalar, the sum over levels of weighted means over the batch.
    """
    by_level = scores.split([f.shape[2] * f.shape[3] for f in ft], 1)
    losses = []
    for s, t, score in zip(projected, ft, by_level, strict=True):
        gap = (s.float() - t.float()).square().flatten(2)  # B C HW
        losses.append((gap * score[:, None]).sum() / (average(score.sum()) * gap.shape[1] + 1e-9))
    return torch.stack(losses).sum()
