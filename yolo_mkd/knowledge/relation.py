"""Relation matrix between layers: how similarly two layers of one model represent the positions of an image.

The shape of the flow matrix of FSP (Yim et al., CVPR 2017), F1' F2, depends on a model's widths. Its energy is the
inner product of the layers' position Grams, |F1' F2|^2 = <F1 F1', F2 F2'>, whose shapes do not. Debiased (U-centred)
and normalised, that is linear CKA, and its L x L matrix can be compared between any two models.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_mkd.knowledge import mean_over_images

GRID = 10  # positions a side; more cost time, fewer cost precision (noise 0.013 at 100 positions, 0.040 at 36)
FLOOR = 2e-3  # share of a layer's energy below which its Gram counts as flat, as where a single position is active
INACTIVE = 1e-4  # mean square below which a layer counts as inactive; keeps the gradient of a dead layer small


def grid_for(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns to which every map is pooled: at most 10, dividing the smallest map where possible."""

    def side(n: int) -> int:
        return next((g for g in range(min(GRID, n), GRID // 2 - 1, -1) if n % g == 0), min(GRID, n))

    return side(min(h for h, _ in sizes)), side(min(w for _, w in sizes))


def pool(f: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average to a grid: B C H W in, B P C out with P positions."""
    h, w = f.shape[2:]
    rows, columns = grid
    if (h, w) == grid:
        f = f.float()
    elif h % rows == 0 and w % columns == 0:  # adaptive pooling is not deterministic on CUDA
        f = CellMean.apply(f, rows, columns)
    else:
        f = F.adaptive_avg_pool2d(f.float(), grid)
    return f.flatten(2).transpose(1, 2)  # B P C


class CellMean(torch.autograd.Function):
    """Mean over equal cells of a map, image by image on a CPU; nothing is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, rows: int, columns: int) -> Tensor:
        """B C H W in, B C rows columns out, in fp32; rows and columns must divide H and W."""
        ctx.given = f.shape, f.dtype
        cell = (f.shape[2] // rows, f.shape[3] // columns)
        if f.device.type != "cpu":
            return F.avg_pool2d(f.float(), cell)
        return torch.cat([F.avg_pool2d(image.float(), cell) for image in f.split(1)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None, None]:
        """The gradient with respect to the map, in its precision: each cell's, spread over its positions."""
        (b, c, h, w), precision = ctx.given
        rows, columns = up.shape[2:]
        across = w // columns
        share = (up.contiguous() / (h // rows * across)).to(precision)
        share = share.repeat_interleave(across, 3)[:, :, :, None]  # copying a row at a time is fast, a cell is not
        return share.expand(b, c, rows, h // rows, w).reshape(b, c, h, w), None, None


def relation_matrix(features: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """Debiased linear CKA of every pair of layers, image by image.

    Plain centring would leave a baseline that grows with the number of channels (0.8 at 256 channels and 64 positions),
    so the Grams are U-centred (Song et al., JMLR 2012): no diagonal, and rows that sum to zero.

    Args:
        features: L feature maps of one model, each B C H W with its own C, H, W.
        grid: rows and columns to pool to, at least 4 positions in all.

    Returns:
        B L L, symmetric, ones on the diagonal (zeros for a layer that does not vary).
    """
    p = grid[0] * grid[1]
    pooled = [pool(f, grid) for f in features]  # each B P C
    centred = [x - x.mean(1, keepdim=True) for x in pooled]
    grams = torch.stack([(x @ x.transpose(1, 2)).flatten(1) for x in centred], 1)  # B L PP
    diagonals = torch.stack([x.square().sum(2) for x in centred], 1)  # B L P
    sums = diagonals.sum(2)  # B L
    # a Gram of centred columns has zero row sums, so without its diagonal d its row sums are -d: the inner product of
    # two U-centred Grams follows from the plain one
    inner = grams @ grams.transpose(1, 2) - (p / (p - 2)) * (diagonals @ diagonals.transpose(1, 2))
    inner = inner + sums.unsqueeze(2) * sums.unsqueeze(1) / ((p - 1) * (p - 2))  # B L L
    energy = torch.stack([(x.square().mean((1, 2)) + INACTIVE) * x[0].numel() for x in pooled], 1)  # B L
    size = (inner.diagonal(dim1=1, dim2=2).clamp(min=0) + (FLOOR * energy).square()).sqrt()
    return inner / (size.unsqueeze(2) * size.unsqueeze(1))


def relation_loss(rs: Tensor, rt: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference of two relation matrices off the diagonal.

    Args:
        rs: the student's, B L L.
        rt: the teacher's, B L L.
        weight: of each image, B; 1 each if None.

    Returns:
        A scalar, the mean over images.
    """
    layers = rs.shape[1]
    off = ~torch.eye(layers, dtype=torch.bool, device=rs.device)
    return mean_over_images((rs - rt).square()[:, off].mean(1), weight)
