"""Guidance through the teacher's head: the student's neck, adapted to the teacher's width, is the input of the
teacher's frozen head, whose outputs are then compared with the teacher's own.

After CrossKD (Wang et al., CVPR 2024), FCFD (Liu et al., ICLR 2023) and SRRL (Yang et al., ICLR 2021). What the head
does not use of the teacher's features costs the student nothing. The adapted features take the teacher's mean and
deviation of each channel, as in CrossKD: the head's weights belong to these.
"""

from __future__ import annotations

from torch import Tensor

EPS = 1e-5
OVER = (0, 2, 3)


def match_statistics(fs: Tensor, ft: Tensor) -> Tensor:
    """The features fs with the mean and deviation of ft in each channel, over one rank's batch, as in batch norm.

    Args:
        fs: the student's adapted features, B C H W.
        ft: the teacher's, B C H W.

    Returns:
        B C H W.
    """
    mean_s, mean_t = (f.mean(OVER, keepdim=True) for f in (fs, ft))
    deviation_s, deviation_t = (f.var(OVER, keepdim=True, unbiased=False).add(EPS).sqrt() for f in (fs, ft))
    return (fs - mean_s) / deviation_s * deviation_t + mean_t
