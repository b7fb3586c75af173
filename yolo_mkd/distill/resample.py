"""Resample a teacher's outputs and features to the student's levels and sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, cat

from yolo_mkd.knowledge import Outputs
from yolo_mkd.knowledge.soft_targets import at_anchors, best_score

Levels = dict[int, tuple[int, int]]  # rows and columns by stride


def anchors_of(x: Tensor, levels: Levels, strides: Sequence[int]) -> Tensor:
    """The anchors of some strides only: ... A in, ... A' out."""
    if list(levels) == list(strides):
        return x
    counts = [rows * columns for rows, columns in levels.values()]
    by_stride = dict(zip(levels, x.split(counts, dim=-1), strict=True))
    return cat([by_stride[s] for s in strides], dim=-1)


def at_strides(outputs: Outputs, levels: Levels, strides: Sequence[int]) -> Outputs:
    """One branch's outputs at some strides only; the prototypes stay."""
    return outputs.changed(lambda x: anchors_of(x, levels, strides), lambda x: x)


def at_levels(outputs: Outputs, levels: Levels, wanted: Levels) -> Outputs:
    """One branch's outputs at the anchors of another image size.

    Each wanted anchor takes the outputs of the given anchor with the best score in its cell; box and keypoints are
    scaled to the other size and measured from the wanted anchor. A given anchor is used in several cells only if the
    given map is the smaller one. Box-side distributions cannot be resampled and are dropped.
    """
    start, indices, zooms, shifts = 0, [], [], []
    for stride, (rows, columns) in levels.items():
        wanted_rows, wanted_columns = wanted[stride]
        z = anchors_of(outputs.logits, levels, [stride])
        down = torch.tensor(inside(rows, wanted_rows), device=z.device)  # H' K
        across = torch.tensor(inside(columns, wanted_columns), device=z.device)  # W' K'
        candidates = (down[:, None, :, None] * columns + across[:, None]).flatten(2).flatten(0, 1)  # A' KK'
        best = best_score(z)[:, candidates].argmax(2, keepdim=True)  # B A' 1
        chosen = candidates.expand(len(z), -1, -1).gather(2, best)[..., 0]  # B A'
        zoom = z.new_tensor([wanted_columns / columns, wanted_rows / rows])
        own = torch.arange(wanted_rows * wanted_columns, device=z.device)
        right = (chosen % columns + 0.5) * zoom[0] - (own % wanted_columns + 0.5)  # offset of the chosen anchor
        below = (chosen // columns + 0.5) * zoom[1] - (own // wanted_columns + 0.5)
        indices.append(start + chosen)
        zooms.append(zoom[:, None].expand(2, len(own)))
        shifts.append(torch.stack([right, below], 1))
        start += rows * columns
    taken = outputs.changed(lambda x: at_anchors(x, cat(indices, 1)), lambda x: x)
    return moved(taken, cat(zooms, 1), cat(shifts, 2))


def moved(outputs: Outputs, zoom: Tensor, shift: Tensor) -> Outputs:
    """Outputs whose boxes and keypoints are scaled and measured from other anchors.

    Args:
        outputs: at the given anchors.
        zoom: of x and y at each anchor, 2 A; of oriented boxes its geometric mean, since their axes are turned.
        shift: the given anchors' offset from the new ones in x and y, B 2 A, in stride units after scaling.
    """
    along, scale = shift, zoom
    if outputs.angles is not None:  # sides lie along the box's own axes
        cos, sin = outputs.angles.cos(), outputs.angles.sin()
        along = torch.stack([shift[:, 0] * cos + shift[:, 1] * sin, shift[:, 1] * cos - shift[:, 0] * sin], 1)
        scale = zoom.prod(0).sqrt().expand(2, -1)
    distances = outputs.distances * cat([scale, scale]) + cat([-along, along], 1)
    keypoints = outputs.keypoints
    if keypoints is not None:
        keypoints = cat([keypoints[:, :, :2] * zoom + shift[:, None], keypoints[:, :, 2:]], 2)
    return replace(outputs, distances=distances, bins=None, keypoints=keypoints)


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
