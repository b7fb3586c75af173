"""Localisation distillation: box-side distributions in two regions around the labels (LD, Zheng et al., CVPR 2022).

L = 1 / B * sum over anchors of (m q + v / 4) d, with d = T^2 / K * KL(softmax(t / T) || softmax(s / T)), the mean of
the four sides over K bins, T = 10. m is 1 in the main region, q the student's best class score there; v is the IoU of
anchor box and label in the valuable localisation region, else 0. Published weight: 0.25, for GFL with K = 17.

Both regions come from the labels as in ATSS (Zhang et al., CVPR 2020): each anchor carries a square of 8 strides, and
a label's threshold tau is the mean plus the standard deviation of the IoUs of the 9 nearest anchors of every level.
Main region: those of the nearest anchors with IoU >= tau and their centre inside the label. Valuable region: all
anchors with tau / 4 <= DIoU < tau; an anchor can be in both.

The weights m q and v / 4 are those of the public code, whose sum over the batch is a mean over images here. Its DIoU
divides the overlap by the anchor's area; here it is divided by the union, as defined. Anchors are centred on their
cell, as in YOLO; in GFL they are at its corner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_mkd.knowledge import Targets

TEMPERATURE = 10.0
NEAREST = 9  # anchors of each level that are candidates for a label
SQUARE = 8  # side of an anchor box, in strides
LOWEST = 0.25  # share of a label's threshold at which the valuable region starts
INSIDE = 0.01  # pixels from a label's side to a main anchor's centre, at least


def localization_loss(
    bs: Tensor, bt: Tensor, zs: Tensor, targets: Targets, levels: dict[int, tuple[int, int]]
) -> Tensor:
    """KL divergence of the box sides' distributions in the two regions.

    Args:
        bs: the student's logits of the box-side distributions, B 4 K A.
        bt: the teacher's, with the same K.
        zs: the student's class logits, B C A; no gradient passes through them.
        targets: the labels of the batch.
        levels: {stride: (rows, columns)}, in the order of the A axis.

    Returns:
        A scalar, the mean over images; 0 without labels.
    """
    main, valuable = regions(targets, levels, len(bs))
    best = zs.detach().float().sigmoid().amax(1)  # B A
    guess = (bs.float() / TEMPERATURE).log_softmax(2)
    target = (bt.float() / TEMPERATURE).log_softmax(2)
    divergence = TEMPERATURE**2 * (target.exp() * (target - guess)).mean((1, 2))  # B A
    return (divergence * (main * best + valuable / 4)).sum() / len(bs)


def regions(targets: Targets, levels: dict[int, tuple[int, int]], batch: int) -> tuple[Tensor, Tensor]:
    """The main and the valuable region of each image.

    Args:
        targets: the labels of the batch.
        levels: {stride: (rows, columns)}.
        batch: number of images.

    Returns:
        Two tensors B A: 1 in the main region, else 0; and the IoU of the anchor's box with the label in the valuable
        region, else 0.
    """
    boxes = corners(targets.boxes.float(), levels)
    anchors = anchor_boxes(levels, boxes.device)
    overlap = iou(boxes, anchors)  # N A
    near = nearest(boxes, anchors, levels)  # N k
    around = overlap.gather(1, near)
    mean = around.mean(1, keepdim=True)
    variance = (around - mean).square().sum(1, keepdim=True) / (around.shape[1] - 1)  # std() warns without labels
    tau = mean + variance.sqrt()  # N 1
    chosen = torch.zeros_like(overlap).scatter_(1, near, 1.0) > 0
    main = chosen & (overlap >= tau) & inside(boxes, anchors)
    distant = overlap - offset(boxes, anchors)  # DIoU
    valuable = overlap * ((distant >= LOWEST * tau) & (distant < tau))
    image = targets.image.long()[:, None].expand_as(overlap)
    empty = overlap.new_zeros(batch, overlap.shape[1])
    return empty.scatter_reduce(0, image, main.float(), "amax"), empty.scatter_reduce(0, image, valuable, "amax")


def corners(boxes: Tensor, levels: dict[int, tuple[int, int]]) -> Tensor:
    """Boxes as left, top, right, bottom in pixels: N 4 in shares of the image in, N 4 out."""
    stride, (rows, columns) = min(levels.items())
    centre, size = boxes.split(2, 1)
    return torch.cat([centre - size / 2, centre + size / 2], 1) * boxes.new_tensor([columns, rows] * 2) * stride


def anchor_boxes(levels: dict[int, tuple[int, int]], device: torch.device) -> Tensor:
    """The square of 8 strides around each anchor: A 4, left, top, right, bottom in pixels, level by level."""
    squares = []
    for stride, (rows, columns) in levels.items():
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        centre = torch.stack([x, y], -1).view(-1, 2) + 0.5
        squares.append(torch.cat([centre - SQUARE / 2, centre + SQUARE / 2], 1) * stride)
    return torch.cat(squares)


def nearest(boxes: Tensor, anchors: Tensor, levels: dict[int, tuple[int, int]]) -> Tensor:
    """Indices of each level's 9 anchors, or all if it has fewer, whose centres are nearest to the box's: N k."""
    distance = torch.cdist(centres(boxes), centres(anchors), compute_mode="donot_use_mm_for_euclid_dist")  # N A
    found, start = [], 0
    for rows, columns in levels.values():
        count = rows * columns
        found.append(distance[:, start : start + count].topk(min(NEAREST, count), largest=False).indices + start)
        start += count
    return torch.cat(found, 1)


def centres(boxes: Tensor) -> Tensor:
    """Middles of boxes: N 4 corners in, N 2 out."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Intersection over union of each pair: N 4 and A 4 corners in, N A out."""
    low = torch.maximum(boxes[:, None, :2], anchors[:, :2])
    high = torch.minimum(boxes[:, None, 2:], anchors[:, 2:])
    overlap = (high - low).clamp(min=0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (boxes, anchors)]
    return overlap / (areas[0][:, None] + areas[1] - overlap)


def offset(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Squared distance of the centres of each pair, divided by the squared diagonal of their hull: N A."""
    low = torch.minimum(boxes[:, None, :2], anchors[:, :2])
    high = torch.maximum(boxes[:, None, 2:], anchors[:, 2:])
    between = (centres(boxes)[:, None] - centres(anchors)).square().sum(2)
    return between / (high - low).square().sum(2)


def inside(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Whether an anchor's centre lies inside a box: N A."""
    centre = centres(anchors)
    return torch.cat([centre - boxes[:, None, :2], boxes[:, None, 2:] - centre], 2).amin(2) > INSIDE
