"""Resample a teacher's outputs and features to the student's levels and sizes."""

from __future__ import annotations

import functools
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
    counts = [rows * columns for rows, columns in levels.values()]
    by_stride = dict(zip(levels, x.split(counts, dim=-1), strict=True))
    return cat([by_stride[s] for s in strides], dim=-1)


def at_strides(outputs: Outputs, levels: Levels, strides: Sequence[int]) -> Outputs:
    """One branch's outputs at some strides only."""
    bins = None if outputs.bins is None else anchors_of(outputs.bins, levels, strides)
    return Outputs(anchors_of(outputs.logits, levels, strides), anchors_of(outputs.distances, levels, strides), bins)


def at_levels(outputs: Outputs, levels: Levels, wanted: Levels) -> Outputs:
    """One branch's outputs at the anchors of another image size.

    Each wanted anchor takes the outputs of the given anchor with the best score in its cell; the box is scaled to the
    other size and its sides are measured from the wanted anchor. A given anchor is used in several cells only if the
    given map is the smaller one. Box-side distributions cannot be resampled and are dropped.
    """
    logits, distances = [], []
    for stride, (rows, columns) in levels.items():
        wanted_rows, wanted_columns = wanted[stride]
        z, d = (anchors_of(x, levels, [stride]) for x in (outputs.logits, outputs.distances))
        down = torch.tensor(inside(rows, wanted_rows), device=z.device)  # H' K
        across = torch.tensor(inside(columns, wanted_columns), device=z.device)  # W' K'
        candidates = (down[:, None, :, None] * columns + across[:, None]).flatten(2).flatten(0, 1)  # A' KK'
        best = best_score(z)[:, candidates].argmax(2, keepdim=True)  # B A' 1
        chosen = candidates.expand(len(z), -1, -1).gather(2, best)[..., 0]  # B A'
        zoom_x, zoom_y = wanted_columns / columns, wanted_rows / rows
        own = torch.arange(wanted_rows * wanted_columns, device=z.device)
        right = (chosen % columns + 0.5) * zoom_x - (own % wanted_columns + 0.5)  # offset of the chosen anchor
        below = (chosen // columns + 0.5) * zoom_y - (own // wanted_columns + 0.5)
        d = d.gather(2, chosen[:, None].expand(-1, 4, -1))
        left, top, *others = d.unbind(1)
        sides = (left * zoom_x - right, top * zoom_y - below, others[0] * zoom_x + right, others[1] * zoom_y + below)
        distances.append(torch.stack(sides, 1))
        logits.append(z.gather(2, chosen[:, None].expand(-1, z.shape[1], -1)))
    return Outputs(cat(logits, 2), cat(distances, 2))


@functools.cache
def inside(count: int, wanted: int) -> list[list[int]]:
    """Which of `count` positions along a side have their centre in each of `wanted` cells.

    A cell without any centre has the position that it lies in. Where the numbers differ, a cell's last position is
    repeated, so that all rows have equal length.
    """
    cells: list[list[int]] = [[] for _ in range(wanted)]
    for i in range(count):
        cells[(2 * i + 1) * wanted // (2 * count)].append(i)
    cells = [cell or [(2 * j + 1) * count // (2 * wanted)] for j, cell in enumerate(cells)]
    longest = max(map(len, cells))
    return [cell + cell[-1:] * (longest - len(cell)) for cell in cells]


def at_size(f: Tensor, rows: int, columns: int) -> Tensor:
    """Features averaged to another size: B C H W in, B C rows columns out."""
    return f if f.shape[2:] == (rows, columns) else F.adaptive_avg_pool2d(f.float(), (rows, columns))
