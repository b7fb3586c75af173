"""From a head's output to boxes of the picture, and how well two sets of boxes agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .pictures import placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Boxes = NDArray[np.float32]  # N 6: x1 y1 x2 y2 [pixels of the picture], score, class; the best score first

CONF, NMS_IOU, MAX_DET = 0.25, 0.7, 300  # as the bundle's reference detections were made
CLASS_OFFSET = 7680.0  # pixels that move the classes apart, so that one pass of NMS serves all
MATCH_IOU = 0.5  # ours: boxes that overlap less are not one object


def boxes(output: NDArray[Any], head: str, shape: tuple[int, int], imgsz: tuple[int, int], conf: float) -> Boxes:
    """Turn a head's output into boxes of the picture, at most 300.

    Args:
        output: (1, 4+classes, anchors) for head one2many, else (1, rows, 6).
        head: one2many or one2one.
        shape: the picture's height and width.
        imgsz: the letterbox's height and width.
        conf: lowest score.
    """
    rows = output[0].astype(np.float32)
    found = suppress(rows.T, conf) if head == "one2many" else rows[rows[:, 4] > conf][:MAX_DET]
    height, width, top, left = placement(shape, imgsz)
    found[:, :4] -= np.array([left, top, left, top], np.float32)
    found[:, :4] /= np.array([width / shape[1], height / shape[0]] * 2, np.float32)
    np.clip(found[:, :4], 0, np.array([shape[1], shape[0]] * 2, np.float32), out=found[:, :4])
    return found


def suppress(rows: NDArray[np.float32], conf: float = CONF) -> Boxes:
    """Non-maximum suppression: keep the best box of each class where boxes overlap by more than 0.7.

    Args:
        rows: centre x, y, width, height and a score per class: anchors x (4+classes).
        conf: lowest score.
    """
    rows = rows[rows[:, 4:].max(1) > conf]
    score, label = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
    order = np.argsort(-score, kind="stable")
    half = rows[order, 2:4] / 2
    corners = np.hstack([rows[order, :2] - half, rows[order, :2] + half])
    apart = corners + label[order, None].astype(np.float32) * np.float32(CLASS_OFFSET)
    area = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    left = np.arange(len(order))
    kept: list[int] = []
    while len(left) and len(kept) < MAX_DET:
        best, left = left[0], left[1:]
        kept.append(int(best))
        sides = np.minimum(apart[best, 2:], apart[left, 2:]) - np.maximum(apart[best, :2], apart[left, :2])
        common = np.clip(sides, 0, None).prod(1)
        left = left[(common == 0) | (common <= NMS_IOU * (area[best] + area[left] - common))]
    return np.hstack([corners, score[order, None], label[order, None]])[kept].astype(np.float32)


def agreement(expected: Boxes, got: Boxes, conf: float, least_iou: float, slack: float) -> dict[str, Any]:
    """Match the boxes of one picture, one to one within a class, and say how far the pairs are apart.

    A box that scores `conf` or more must have a partner, which may score up to `slack` less than `conf`.

    Args:
        expected: the reference's boxes, down to conf - slack or lower.
        got: those to judge, likewise.
        conf: lowest score that counts.
        least_iou: below it a pair is apart.
        slack: above it two scores are apart.

    Returns:
        expected, got: boxes that count; matched: pairs; alone: boxes without a partner, on either side; apart: pairs
        that differ by more than asked; min_iou, max_score_difference: over the pairs, None without any.
    """
    for rows in (expected, got):
        if len(rows) >= MAX_DET:  # the list was cut: near its last score either side may hold what the other lost
            conf = max(conf, float(rows[:, 4].min()) + slack)
    ours, theirs = (rows[rows[:, 4] >= conf - slack] for rows in (expected, got))
    overlap = iou(ours, theirs)
    differ = np.abs(ours[:, None, 4] - theirs[None, :, 4])
    possible = (overlap >= MATCH_IOU) & (ours[:, None, 5] == theirs[None, :, 5])
    nearest = sorted(zip(*(side.tolist() for side in np.nonzero(possible))), key=lambda p: 1 - overlap[p] + differ[p])
    pairs: dict[int, int] = {}
    for i, j in nearest:
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    counted = [(i, j) for i, j in pairs.items() if max(ours[i, 4], theirs[j, 4]) >= conf]
    alone = [i for i in range(len(ours)) if ours[i, 4] >= conf and i not in pairs]
    extra = [j for j in range(len(theirs)) if theirs[j, 4] >= conf and j not in pairs.values()]
    return {
        "expected": int((ours[:, 4] >= conf).sum()),
        "got": int((theirs[:, 4] >= conf).sum()),
        "matched": len(counted),
        "alone": len(alone) + len(extra),
        "apart": sum(bool(overlap[p] < least_iou or differ[p] > slack) for p in counted),
        "min_iou": min((float(overlap[p]) for p in counted), default=None),
        "max_score_difference": max((float(differ[p]) for p in counted), default=None),
    }


def iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` (N) with every box of `b` (M): N M.

    Boxes of less than a pixel, such as those cut by the picture's edge, count 1 when their corners agree, else 0.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.clip(np.minimum(a[:, None, 2:4], b[None, :, 2:4]) - corner, 0, None).prod(2)
    area_a, area_b = (np.clip(rows[:, 2:4] - rows[:, :2], 0, None).prod(1) for rows in (a, b))
    flat = (area_a[:, None] < 1) & (area_b[None, :] < 1)
    same = np.abs(a[:, None, :4] - b[None, :, :4]).max(2) < 0.01
    union = np.where(flat, 1.0, area_a[:, None] + area_b[None, :] - common)
    return np.where(flat, same, common / union)
