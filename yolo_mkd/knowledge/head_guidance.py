"""Guidance through the teacher's head: the student's neck, adapted to the teacher's width, is read by the teacher's
frozen head, and the head's outputs are compared with the teacher's own.

After CrossKD (Wang et al., CVPR 2024), FCFD (Liu et al., ICLR 2023) and SRRL (Yang et al., ICLR 2021). The adapted
features take the teacher's mean and deviation of each channel, as in CrossKD.
"""

from __future__ import annotations

from torch import Tensor

EPS = 1e-5


def match_statistics(g: Tensor, ft: Tensor) -> Tensor:
    """The features g with the mean and deviation of ft in each channel: B C H W and B C H W in, B C H W out.

    Both are taken over the batch and its positions.
    """
    over = (0, 2, 3)
    gm, tm = g.mean(over, keepdim=True), ft.mean(over, keepdim=True)
    gs, ts = (x.var(over, keepdim=True, unbiased=False).add(EPS).sqrt() for x in (g, ft))
    return (g - gm) / gs * ts + tm
