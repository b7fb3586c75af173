"""Correlation of features: agreement up to the scale and offset of each channel (PKD, Cao et al., NeurIPS 2022).

L = mean of (s - t)^2 / 2, where s and t have zero mean and unit variance in each channel over batch and positions:
the mean over channels of 1 - correlation. The public code of PKD divides by the standard deviation plus 1e-6, which
scales the noise of an inactive channel up to unit size; here 1e-5 is added to the variance, as batch norm does.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def standardise(f: Tensor) -> Tensor:
    """Features with zero mean and unit variance in each channel: batch norm without affine or running statistics."""
    return F.batch_norm(f.float(), None, None, training=True, eps=1e-5)


def pearson_loss(fs: Tensor, ft: Tensor) -> Tensor:
    """Half the mean squared difference of standardised features.

    Args:
        fs: the student's features, B C H W.
        ft: the teacher's, B C H W.

    Returns:
        A scalar in [0, 2].
    """
    return 0.5 * (standardise(fs) - standardise(ft)).square().mean()
