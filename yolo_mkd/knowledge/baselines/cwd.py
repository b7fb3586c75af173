"""Channel-wise distillation: each channel is a distribution over positions (CWD, Shu et al., ICCV 2021).

L = T^2 / (B C) * sum over images and channels of KL(softmax(t / T) || softmax(s / T)), softmax over the positions.
After RTMDet and DAMO-YOLO: a 1x1 connector on the student, and both sides standardised before the softmax (the paper
compares plain logits of segmentation). Published for RTMDet: T = 1, weight 1 a level.
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_mkd.knowledge.correlation import standardise


def connector(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    """A 1x1 convolution from the student's width to the teacher's."""
    return nn.Conv2d(student_channels, teacher_channels, 1, bias=False)


def channel_wise_loss(fs: Tensor, ft: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the channels' distributions over positions.

    Args:
        fs: the student's features after the connector, B C H W.
        ft: the teacher's, B C H W.
        temperature: softens both sides.

    Returns:
        A scalar, the mean over images and channels; 0 where both agree.
    """
    guess = (standardise(fs).flatten(2) / temperature).log_softmax(2)  # B C HW
    target = (standardise(ft).flatten(2) / temperature).log_softmax(2)
    return temperature**2 * (target.exp() * (target - guess)).sum(2).mean()
