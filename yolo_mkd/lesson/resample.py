"""Bringing a teacher's outputs and features to the student's levels and sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, cat

from yolo_mkd.knowledge import Outputs
from yolo_mkd.knowledge.soft_targets import best_score

Levels = dict[int, tuple[int, int]]  # rows and columns by stride


def anchors_of(x: Tensor, levels: Levels, strides: Sequence[int]) -> Tensor:
    """The anchors of some strides only: ... A in, ... A' out."""
    if list(levels) == list(strides):
        return x
    parts = dict(zip(levels, x.split([rows * columns for rows, columns in levels.values()], dim=-1), strict=True))
    return cat([parts[s] for s in strides], dim=-1)


def at_strides(outputs: Outputs, levels: Levels, strides: Sequence[int]) -> Outputs:
    """One branch's outputs at some strides only."""
    bins = None if outputs.bins is None else anchors_of(outputs.bins, levels, strides)
    return Outputs(anchors_of(outputs.logits, levels, strides), anchors_of(outputs.distances, levels, strides), bins)


def at_levels(outputs: Outputs, levels: Levels, wanted: Levels) -> Outputs:
    """One branch's outputs at the anchors of another image size.

    Each wanted anchor takes what the most certain of the given anchors in its cell says, its box carried over to the
    other size and hung on the wanted anchor. Box-side distributions cannot be carried over and are dropped.
    """
    logits, distances = [], []
    for stride, (rows, columns) in levels.items():
        wanted_rows, wanted_columns = wanted[stride]
        z, d = (anchors_of(x, levels, [stride]) for x in (outputs.logits, outputs.distances))
        best = best_score(z).unflatten(1, (1, rows, columns))  # B 1 H W
        chosen = F.adaptive_max_pool2d(best, (wanted_rows, wanted_columns), return_indices=True)[1].flatten(1)  # B A'
        zoom_x, zoom_y = wanted_columns / columns, wanted_rows / rows
        own = torch.arange(wanted_rows * wanted_columns, device=z.device)
        right = (chosen % columns + 0.5) * zoom_x - (own % wanted_columns + 0.5)  # how far the chosen anchor lies off
        below = (chosen // columns + 0.5) * zoom_y - (own // wanted_columns + 0.5)
        d = d.gather(2, chosen[:, None].expand(-1, 4, -1))
        left, top, *others = d.unbind(1)
        sides = (left * zoom_x - right, top * zoom_y - below, others[0] * zoom_x + right, others[1] * zoom_y + below)
        distances.append(torch.stack(sides, 1))
        logits.append(z.gather(2, chosen[:, None].expand(-1, z.shape[1], -1)))
    return Outputs(cat(logits, 2), cat(distances, 2))


def at_size(f: Tensor, rows: int, columns: int) -> Tensor:
    """Features averaged to another size: B C H W in, B C rows columns out."""
    return f if f.shape[2:] == (rows, columns) else F.adaptive_avg_pool2d(f.float(), (rows, columns))
