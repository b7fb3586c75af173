"""Correlation of features: agreement up to the scale and offset of each channel (PKD, Cao et al., NeurIPS 2022).

L = mean of (s - t)^2 / 2, where s and t have zero mean and unit variance in each channel over batch and positions:
the mean over channels of 1 - correlation. The public code of PKD divides by the standard deviation plus 1e-6, which
scales the noise of an inactive channel up to unit size; here 1e-5 is added to the variance, as batch norm does.

All three means can be weighted by position, so that agreement counts where there are objects.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_mkd.knowledge import ranks

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
        A scalar in [0, 2]; without weights the teacher's features get no gradient.
    """
    if ranks.count() > 1:
        return pearson_of_ranks(fs.float(), ft.float(), fs.new_ones(1) if weight is None else weight)
    if weight is None:
        loss: Tensor = Distance.apply(fs.float(), ft.float())
        return loss
    share = weight / weight.sum()
    gap = standardise(fs, share) - standardise(ft, share)
    return 0.5 * (share * gap.square()).sum(OVER).mean()


def pearson_of_ranks(fs: Tensor, ft: Tensor, weight: Tensor) -> Tensor:
    """As `pearson_loss` over the images of all ranks of a DDP run, from each channel's sums of squares and products."""
    weight = weight.expand_as(fs[:, :1])
    share = weight / ranks.total(weight.sum())
    # the sums below do not depend on the means to first order, so these need no gradient
    s, t = (f - ranks.total((share * f).sum(OVER, keepdim=True)).detach() for f in (fs, ft))
    ss, tt, st = ranks.total(torch.stack([(share * a * b).sum(OVER) for a, b in ((s, s), (t, t), (s, t))]))
    return 0.5 * (ss / (ss + EPS) + tt / (tt + EPS) - 2 * st / ((ss + EPS) * (tt + EPS)).sqrt()).mean()


class Distance(torch.autograd.Function):
    """Half the mean squared difference of standardised features, from their moments: no standardised copy is kept.

    With a = (s - mean) r and r = (variance + eps)^-1/2, b of the teacher alike, it is the mean over channels of
    (<a a> + <b b>) / 2 - <a b>, <> being the mean over batch and positions.
    """

    @staticmethod
    def forward(ctx: Any, fs: Tensor, ft: Tensor) -> Tensor:
        """B C H W and B C H W in fp32 in, a scalar out."""
        means = [f.mean(OVER, keepdim=True) for f in (fs, ft)]
        moments = torch.zeros(3, fs.shape[1], device=fs.device, dtype=fs.dtype)
        for s, t in [(fs, ft)] if fs.device.type != "cpu" else zip(fs.split(1), ft.split(1), strict=True):
            s, t = s - means[0], t - means[1]
            moments += torch.stack([(x * y).sum(OVER) for x, y in ((s, s), (t, t), (s, t))])
        moments /= fs[:, 0].numel()
        scales = (moments[:2] + EPS).rsqrt()
        square_s, square_t, both = moments * torch.stack([scales[0] ** 2, scales[1] ** 2, scales[0] * scales[1]])
        ctx.save_for_backward(fs, ft, *means, scales, square_s, both)
        return (0.5 * (square_s + square_t) - both).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to the student's features; none for the teacher's."""
        fs, ft, mean_s, mean_t, scales, square_s, both = ctx.saved_tensors
        outer = up * scales[0] / fs.numel()
        # of the batch norm: r (g - <g> - a <g a>) with g = a - b, so a (1 - <a a> + <a b>) - b
        along, against = (x.view(1, -1, 1, 1) for x in (outer * scales[0] * (1 - square_s + both), outer * scales[1]))
        return torch.addcmul(along * fs, against, ft, value=-1).sub_(along * mean_s - against * mean_t), None
