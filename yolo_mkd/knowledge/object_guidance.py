"""Object-weighted guidance: compares neck features where the teacher sees objects, each channel on its own scale.

The loss is 1 - the weighted correlation of each channel, averaged: PKD (Cao et al., NeurIPS 2022) with a weight for
each position, the teacher's best score there times the weight of its class. Background positions have next to none.
"""

from __future__ import annotations

from torch import Tensor

EPS = 1e-6


def weighted_correlation_loss(g: Tensor, ft: Tensor, weight: Tensor) -> Tensor:
    """Mean over channels of 1 - the weighted correlation over batch and positions, in [0, 2].

    Args:
        g: the student's adapted features, B C H W.
        ft: the teacher's, B C H W.
        weight: of each position, B 1 H W, at least 0.
    """
    w = weight / weight.sum().clamp(min=EPS)
    over = (0, 2, 3)
    g = g - (w * g).sum(over, keepdim=True)
    ft = ft - (w * ft).sum(over, keepdim=True)
    both = (w * g * ft).sum(over)
    size = ((w * g.square()).sum(over) * (w * ft.square()).sum(over) + EPS**2).sqrt()
    return (1 - both / size).mean()
