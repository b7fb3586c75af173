"""Relation matrix between layers: how alike two layers of one model see the positions of an image.

The flow matrix of FSP (Yim et al., CVPR 2017), F1' F2, ties a model to its own widths. Its energy is the inner product
of the layers' position Grams, |F1' F2|^2 = <F1 F1', F2 F2'>, whose size is free of channels. Debiased (U-centred) and
normalised, that is linear CKA, and the L x L matrix of it can be compared between any two models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 10  # positions a side; more cost time, fewer cost precision (noise 0.013 at 100 positions, 0.040 at 36)
FLOOR = 2e-3  # share of a layer's energy below which its Gram counts as flat, as where a single position is active
QUIET = 1e-4  # mean square below which a layer counts as silent; keeps the gradient of a dead layer small


def grid_for(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns to which every map is pooled: at most 10, dividing the smallest map where possible."""

    def side(n: int) -> int:
        return next((g for g in range(min(GRID, n), GRID // 2 - 1, -1) if n % g == 0), min(GRID, n))

    return side(min(h for h, _ in sizes)), side(min(w for _, w in sizes))


def pool(f: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average to a grid: B C H W in, B P C out with P positions."""
    b, c, h, w = f.shape
    rows, columns = grid
    if h % rows == 0 and w % columns == 0:  # a plain mean, since adaptive pooling is not deterministic on CUDA
        f = f.float().reshape(b, c, rows, h // rows, columns, w // columns).mean((3, 5))
    else:
        f = F.adaptive_avg_pool2d(f.float(), grid)
    return f.flatten(2).transpose(1, 2)  # B P C


def u_centred_gram(x: Tensor) -> Tensor:
    """Debiased position Gram: B P C in, B P P out, with zero diagonal and zero row sums (Song et al., JMLR 2012).

    Plain centring would leave a baseline that grows with the number of channels (0.8 at 256 channels and 64 positions).
    """
    p = x.shape[1]
    x = x - x.mean(1, keepdim=True)
    diagonal = torch.eye(p, dtype=torch.bool, device=x.device)
    gram = (x @ x.transpose(1, 2)).masked_fill(diagonal, 0)  # B P P
    rows = gram.sum(2, keepdim=True) / (p - 2)
    total = gram.sum((1, 2), keepdim=True) / ((p - 1) * (p - 2))
    return (gram - rows - rows.transpose(1, 2) + total).masked_fill(diagonal, 0)


def relation_matrix(features: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """Debiased linear CKA of every pair of layers, image by image.

    Args:
        features: L feature maps of one model, each B C H W with its own C, H, W.
        grid: rows and columns to pool to, at least 4 positions in all.

    Returns:
        B L L, symmetric, ones on the diagonal (zeros for a layer that does not vary).
    """
    flat = []
    for f in features:
        x = pool(f, grid)
        gram = u_centred_gram(x).flatten(1)  # B PP
        floor = FLOOR * (x.square().mean((1, 2)) + QUIET).unsqueeze(1) * x[0].numel()  # B 1
        flat.append(gram / (gram.square().sum(1, keepdim=True) + floor.square()).sqrt())
    stacked = torch.stack(flat, 1)  # B L PP
    return stacked @ stacked.transpose(1, 2)


def relation_loss(rs: Tensor, rt: Tensor) -> Tensor:
    """Mean squared difference of two relation matrices off the diagonal: B L L and B L L in, a scalar out."""
    layers = rs.shape[1]
    off = ~torch.eye(layers, dtype=torch.bool, device=rs.device)
    return (rs - rt).square()[:, off].mean()
