"""Guidance: a trainable adapter carries the student's neck features to the teacher's width, where they are compared.

The hint of FitNets (Romero et al., ICLR 2015) in the form of PKD (Cao et al., NeurIPS 2022): both sides are
standardised channel by channel, so that half the squared difference is one minus the correlation.

All positions count alike. Weighted by the teacher's score, as Ultralytics weights its own feature loss, the term's
gradient on the trunk was 40 times as large while the adapters were fresh and 2.6 times once they had fitted (bccd,
yolo26 at width 0.125 from yolo26n): at its nominal gain it drowned the detection loss.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def adapter(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    """A 1x1 convolution from the student's width to the teacher's; it is trained with the student and then dropped."""
    return nn.Conv2d(student_channels, teacher_channels, 1, bias=False)


def standardise(f: Tensor) -> Tensor:
    """Zero mean and unit variance of each channel over batch and positions: batch norm without affine or memory."""
    return F.batch_norm(f.float(), None, None, training=True, eps=1e-5)


def guidance_loss(fs: Tensor, ft: Tensor) -> Tensor:
    """Half the mean squared difference of standardised features: the mean over channels of 1 - correlation.

    Args:
        fs: the student's features after the adapter, B C H W.
        ft: the teacher's features, B C H W.

    Returns:
        A scalar in [0, 2].
    """
    return 0.5 * (standardise(fs) - standardise(ft)).square().mean()
