"""Correlation of features: agreement up to the scale and offset of each channel (PKD, Cao et al., NeurIPS 2022).

L = mean of (s - t)^2 / 2, where s and t have zero mean and unit variance in each channel over batch and positions:
the mean over channels of 1 - correlation. The public code of PKD divides by the standard deviation plus 1e-6, which
scales the noise of an inactive channel up to unit size; here 1e-5 is added to the variance, as batch norm does.

All three means can be weighted by position, so that agreement counts where there are objects.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
OVER = (0, 2, 3)


def standardise(f: Tensor, weight: Tensor | None = None) -> Tensor:
    """Features with zero mean and unit variance in each channel: batch norm without affine or running statistics.

    Args:
        f: B C H W.
        weight: of each position, B 1 H W, with the sum 1; None for equal weights.
    """
    f = f.float()
    if weight is None:
        return F.batch_norm(f, None, None, training=True, eps=EPS)
    centred = f - (weight * f).sum(OVER, keepdim=True)
    return centred / ((weight * centred.square()).sum(OVER, keepdim=True) + EPS).sqrt()


def pearson_loss(fs: Tensor, ft: Tensor, weight: Tensor | None = None) -> Tensor:
    """Half the mean squared difference of standardised features.

    Args:
        fs: the student's features, B C H W.
        ft: the teacher's, B C H W.
        weight: of each position, B 1 H W, above 0 somewhere; None for equal weights.

    Returns:
        A scalar in [0, 2].
    """
    if weight is None:
        return 0.5 * (standardise(fs) - standardise(ft)).square().mean()
    share = weight / weight.sum()
    gap = standardise(fs, share) - standardise(ft, share)
    return 0.5 * (share * gap.square()).sum(OVER).mean()
