"""Labels of a scene's parts for each task, from their visible pixels: boxes, outlines, extreme points, turned boxes."""

from __future__ import annotations

import cv2
import numpy as np

EXTREMES = ("left", "top", "right", "bottom")  # keypoints of a part (ExtremeNet, Zhou et al., CVPR 2019)
FLIPPED = ("right", "top", "left", "bottom")  # which of them each is in the mirrored image


def label_line(task: str, box: np.ndarray, visible: np.ndarray) -> str:
    """One line of a label file in Ultralytics' format.

    Args:
        task: detect, segment, pose or obb.
        box: class, x1, y1, x2, y2 [pixels], and what follows.
        visible: whether each pixel belongs to the part, H W.
    """
    if task == "segment":
        values = outline(visible).ravel()
    elif task == "obb":
        values = oriented_box(visible).ravel()
    else:
        x1, y1, x2, y2 = box[1:5] / visible.shape[0]
        values = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        if task == "pose":
            values = np.append(values, np.column_stack([extreme_points(visible), np.full(len(EXTREMES), 2)]).ravel())
    return f"{int(box[0])} " + " ".join(f"{v:.6f}" for v in values) + "\n"


def outline(visible: np.ndarray) -> np.ndarray:
    """The outer outline of a part's largest visible piece as shares of the image, N 2; a hole is not cut out."""
    corners = largest_piece(visible)
    return (corners + 0.5) / visible.shape[0]


def oriented_box(visible: np.ndarray) -> np.ndarray:
    """The corners of the smallest rectangle around a part's largest visible piece as shares of the image, 4 2."""
    centre, (width, height), angle = cv2.minAreaRect(largest_piece(visible).astype(np.float32))
    corners = cv2.boxPoints((centre, (width + 1, height + 1), angle))  # from pixel centres to the pixels' edges
    return (corners + 0.5) / visible.shape[0]


def extreme_points(visible: np.ndarray) -> np.ndarray:
    """A part's leftmost, topmost, rightmost and lowest visible pixel as shares of the image, 4 2.

    Of several such pixels it is their mean position along the side.
    """
    ys, xs = np.nonzero(visible)
    ends = [(xs, xs.min()), (ys, ys.min()), (xs, xs.max()), (ys, ys.max())]
    points = [[xs[along == end].mean(), ys[along == end].mean()] for along, end in ends]
    return (np.array(points) + 0.5) / visible.shape[0]


def largest_piece(visible: np.ndarray) -> np.ndarray:
    """The outline of the largest connected piece, N 2 of pixel centres; at least three points."""
    found, _ = cv2.findContours(visible.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    corners = max(found, key=len)[:, 0]
    return corners if len(corners) > 2 else np.repeat(corners, 3, axis=0)
