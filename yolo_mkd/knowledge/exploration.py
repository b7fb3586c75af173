"""Exploration: half of the student's neck channels are trained to be independent of the teacher's features.

The split into an inheriting and an exploring part follows IE-KD (Huang et al., CVPR 2021). Its negative distance
rewards the negated features of the teacher, which carry no new information; here the exploring channels are pushed
towards zero linear CKA with the teacher's, so that the optimum is independence. The other terms use the inheriting
channels only.
"""

from __future__ import annotations

import math

from torch import Tensor

from yolo_mkd.knowledge.ranks import gathered
from yolo_mkd.knowledge.relation import pool

SHARE = 0.5  # inheriting share of the channels: IE-KD, public code
GRID = 8  # positions a side
FLOOR = 1e-4  # share of a feature's energy below which its variation counts as zero


def inheriting(channels: int) -> int:
    """How many of a layer's channels, the first ones, inherit from the teacher; the others explore."""
    return math.ceil(channels * SHARE)


def exploration_loss(fs: Tensor, ft: Tensor) -> Tensor:
    """Debiased linear CKA of the exploring channels with the teacher's, over the batch's pooled positions.

    Args:
        fs: the student's exploring channels, B Cs H W.
        ft: the teacher's features of the same role, B Ct H W.

    Returns:
        A scalar in [0, 1], 0 where the two are linearly independent.
    """
    grid = (min(GRID, fs.shape[2]), min(GRID, fs.shape[3]))
    return debiased_cka(gathered(pool(fs, grid).flatten(0, 1)), gathered(pool(ft, grid).flatten(0, 1)))


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA of N samples of Cx and Cy features from unbiased HSIC (Song et al., JMLR 2012), at least 0.

    Costs N C^2 operations and builds no N x N matrix, so large batches fit in memory.
    """
    xx, yy, xy = hsic(x, x), hsic(y, y), hsic(x, y)
    floor = (FLOOR * x.square().sum()) * (FLOOR * y.square().sum())
    return (xy / (xx.clamp(min=0) * yy.clamp(min=0) + floor.square() + 1e-24).sqrt()).clamp(min=0)


def hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC with linear kernels, times N(N-3): the inner product of the two U-centred Grams."""
    n = x.shape[0]
    x, y = x - x.mean(0), y - y.mean(0)
    dx, dy = x.square().sum(1), y.square().sum(1)  # diagonals of the Grams
    # with centred columns the full Grams have zero row sums, so a Gram without its diagonal has row sums -dx
    trace = (x.t() @ y).square().sum() - (dx * dy).sum()
    return trace + dx.sum() * dy.sum() / ((n - 1) * (n - 2)) - 2 * (dx * dy).sum() / (n - 2)
