"""Relations between objects: how alike a layer represents each pair of objects, and how that changes between layers.

The relational distillation of Park et al. (CVPR 2019) and GID (Dai et al., CVPR 2021) on the mean features of objects;
the second part is the transformation of IRG (Liu et al., CVPR 2019): the change of the relations from layer to layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 192  # objects of a batch that are compared
FLOOR = 0.05  # share of a layer's energy below which its variation counts as noise; keeps flat layers' gradients small
INACTIVE = 1e-4  # variance below which a layer counts as inactive


def object_masks(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Which positions of a map lie in each box, at least the one at its centre: N 4 (shares) in, N rows columns out."""
    x, y, w, h = boxes[:, :, None].unbind(1)
    across = (torch.arange(columns, device=boxes.device) + 0.5) / columns
    down = (torch.arange(rows, device=boxes.device) + 0.5) / rows
    wide = (across - x).abs() <= torch.maximum(w, w.new_tensor(1 / columns)) / 2
    tall = (down - y).abs() <= torch.maximum(h, h.new_tensor(1 / rows)) / 2
    return (tall[:, :, None] & wide[:, None]).float()


def object_gram(f: Tensor, masks: Tensor, image: Tensor) -> Tensor:
    """Cosines between the mean features of N objects, of centred channels on a common scale: N N.

    Args:
        f: a layer's features, B C H W.
        masks: of the objects, N H W.
        image: which image each is in, N.
    """
    total = torch.einsum("nchw,nhw->nc", f[image], masks) / masks.sum((1, 2)).clamp(min=1)[:, None]
    centred = total - total.mean(0)
    floor = (FLOOR * total).square().mean() + INACTIVE
    scaled = centred / (centred.square().mean(0) + floor).sqrt()  # each channel on its own scale
    unit = scaled / (scaled.square().sum(1, keepdim=True) + FLOOR * scaled.shape[1]).sqrt()
    return unit @ unit.t()


def object_relation_loss(gs: list[Tensor], gt: list[Tensor]) -> Tensor:
    """Mean squared difference of the Grams, and of their changes from each layer to the next: L of N N in."""
    s, t = torch.stack(gs), torch.stack(gt)
    off = ~torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    loss = (s - t).square()[:, off].mean()
    if len(gs) > 1:
        loss = loss + ((s[1:] - s[:-1]) - (t[1:] - t[:-1])).square()[:, off].mean()
    return loss
