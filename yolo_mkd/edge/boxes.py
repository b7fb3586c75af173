"""Decoding of a head's output to boxes of the picture, NMS, and one-to-one matching of two sets of boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from .pictures import letterbox_placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Boxes = NDArray[np.float32]  # N 6: x1 y1 x2 y2 [pixels of the picture], score, class; the best score first

CONF, NMS_IOU, MAX_DET = 0.25, 0.7, 300  # as the bundle's reference detections were made
CLASS_OFFSET = 7680.0  # pixels that move the classes apart, so that one pass of NMS serves all
SAME_CORNER = 0.01  # our choice [pixels]: for boxes too flat to have an IoU
MATCH_IOU = 0.5  # our choice: boxes that overlap less are not the same object


class BoxMatch(TypedDict):
    """How two sets of boxes of one picture match."""

    expected: int  # boxes of the reference that count
    got: int
    matched: int  # pairs
    alone: int  # boxes without a partner, on both sides
    apart: int  # pairs that differ by more than is allowed
    min_iou: float | None  # over the pairs
    max_score_difference: float | None


def decode_boxes(output: NDArray[Any], head: str, shape: tuple[int, int], imgsz: tuple[int, int], conf: float) -> Boxes:
    """Turn a head's output into boxes of the picture, at most 300.

    Args:
        output: (1, 4+classes, anchors) for head one2many, else (1, rows, 6).
        head: one2many or one2one.
        shape: the picture's height and width.
        imgsz: the letterbox's height and width.
        conf: lowest score.
    """
    rows = output[0].astype(np.float32)
    found = non_maximum_suppression(rows.T, conf) if head == "one2many" else rows[rows[:, 4] > conf][:MAX_DET]
    height, width, top, left = letterbox_placement(shape, imgsz)
    found[:, :4] -= np.array([left, top, left, top], np.float32)
    found[:, :4] /= np.array([width / shape[1], height / shape[0]] * 2, np.float32)
    np.clip(found[:, :4], 0, np.array([shape[1], shape[0]] * 2, np.float32), out=found[:, :4])
    return found


def non_maximum_suppression(rows: NDArray[np.float32], conf: float = CONF) -> Boxes:
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


def match_boxes(expected: Boxes, got: Boxes, conf: float, least_iou: float, slack: float) -> BoxMatch:
    """Match the boxes of one picture one to one within a class, and measure how much the pairs differ.

    A box that scores `conf` or more must have a partner; the partner may score up to `slack` less than `conf`.

    Args:
        expected: the reference's boxes, down to conf - slack or lower.
        got: the boxes to compare with it, likewise.
        conf: lowest score that counts.
        least_iou: a pair that overlaps less differs.
        slack: a pair whose scores are further apart differs.
    """
    ours, theirs, conf = boxes_above(expected, got, conf, slack)
    overlap = box_iou(ours, theirs)
    differ = np.abs(ours[:, None, 4] - theirs[None, :, 4])
    pairs = pair_boxes(ours, theirs, overlap)
    counted = [(i, j) for i, j in pairs if max(ours[i, 4], theirs[j, 4]) >= conf]
    alone, extra = unmatched(ours, theirs, pairs, conf)
    return {
        "expected": int((ours[:, 4] >= conf).sum()),
        "got": int((theirs[:, 4] >= conf).sum()),
        "matched": len(counted),
        "alone": len(alone) + len(extra),
        "apart": sum(bool(overlap[p] < least_iou or differ[p] > slack) for p in counted),
        "min_iou": min((float(overlap[p]) for p in counted), default=None),
        "max_score_difference": max((float(differ[p]) for p in counted), default=None),
    }


def boxes_above(
    expected: NDArray[Any], got: NDArray[Any], conf: float, slack: float
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Both sides' boxes that score conf - slack or more, and the threshold that applies to them.

    The threshold is higher than `conf` where a side has all the boxes it may have: near the end of such a list either
    side may contain what was cut from the other.
    """
    for rows in (expected, got):
        if len(rows) >= MAX_DET:
            conf = max(conf, float(rows[:, 4].min()) + slack)
    return expected[expected[:, 4] >= conf - slack], got[got[:, 4] >= conf - slack], conf


def pair_boxes(ours: NDArray[Any], theirs: NDArray[Any], overlap: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pair boxes of the same class one to one, the closest in position and score first.

    Where the two sides agree each true pair is at distance 0, so that greedy pairing is optimal where it matters.

    Args:
        ours: N 6.
        theirs: M 6.
        overlap: their IoU, N M.

    Returns:
        Indices of the boxes of each pair.
    """
    distance = (1 - overlap) + np.abs(ours[:, None, 4] - theirs[None, :, 4])
    possible = (overlap >= MATCH_IOU) & (ours[:, None, 5] == theirs[None, :, 5])
    candidates = zip(*(side.tolist() for side in np.nonzero(possible)))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for i, j in sorted(candidates, key=lambda pair: distance[pair]):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return list(pairs.items())


def unmatched(
    ours: NDArray[Any], theirs: NDArray[Any], pairs: list[tuple[int, int]], conf: float
) -> tuple[list[int], list[int]]:
    """Indices of each side's boxes that score `conf` or more and have no partner."""
    paired, theirs_paired = {i for i, _ in pairs}, {j for _, j in pairs}
    alone = [i for i in range(len(ours)) if ours[i, 4] >= conf and i not in paired]
    extra = [j for j in range(len(theirs)) if theirs[j, 4] >= conf and j not in theirs_paired]
    return alone, extra


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` (N) with every box of `b` (M): N M.

    Boxes of less than a pixel, such as those cut by the picture's edge, have IoU 1 where their corners agree, else 0.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.clip(np.minimum(a[:, None, 2:4], b[None, :, 2:4]) - corner, 0, None).prod(2)
    area_a, area_b = (np.clip(rows[:, 2:4] - rows[:, :2], 0, None).prod(1) for rows in (a, b))
    flat = (area_a[:, None] < 1) & (area_b[None, :] < 1)
    same = np.abs(a[:, None, :4] - b[None, :, :4]).max(2) < SAME_CORNER
    union = np.where(flat, 1.0, area_a[:, None] + area_b[None, :] - common)
    return np.where(flat, same, common / union)
