"""Boxes of several detectors as one set, and boxes of one image as objects with a score for each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolo_mkd.distill.boxes.files import Rows

SAME_BOX = 0.55  # overlap from which boxes of several detectors are fused (Solovyev et al., 2021)
SAME_OBJECT = 0.7  # overlap from which boxes are one object, whatever their class: NMS's default


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of each pair: N 4 and M 4 (centre and size) in, N M out."""
    low = np.maximum((boxes[:, :2] - boxes[:, 2:] / 2)[:, None], others[:, :2] - others[:, 2:] / 2)
    high = np.minimum((boxes[:, :2] + boxes[:, 2:] / 2)[:, None], others[:, :2] + others[:, 2:] / 2)
    both = (high - low).clip(0).prod(2)
    return both / (boxes[:, 2:].prod(1)[:, None] + others[:, 2:].prod(1) - both).clip(1e-12)


def fuse(detectors: Sequence[Rows | None], knows: Sequence[frozenset[int]]) -> Rows:
    """The boxes of one image by several detectors, fused (weighted boxes fusion, Solovyev et al., IVC 2021).

    Boxes of one class that overlap become one, the mean weighted by the scores. Its score is the mean score, times the
    share of the detectors that found it among those that have the class.

    Args:
        detectors: the boxes of each; None where it found none.
        knows: the classes that each can find.
    """
    given = [rows for rows in detectors if rows is not None]
    boxes = np.concatenate([rows.boxes for rows in given])
    scores = np.concatenate([rows.scores for rows in given])
    classes = np.concatenate([rows.classes for rows in given])
    order = np.argsort(-scores, kind="stable")
    clusters: list[list[int]] = []
    fused: list[np.ndarray] = []
    for i in order:
        alike = [k for k, members in enumerate(clusters) if classes[members[0]] == classes[i]]
        overlap = overlaps(boxes[i : i + 1], np.array([fused[k] for k in alike]))[0] if alike else np.zeros(0)
        if len(overlap) and overlap.max() >= SAME_BOX:
            k = alike[int(overlap.argmax())]
            clusters[k].append(int(i))
            fused[k] = np.average(boxes[clusters[k]], axis=0, weights=scores[clusters[k]])
        else:
            clusters.append([int(i)])
            fused.append(boxes[i])
    counts = {int(c): sum(int(c) in own for own in knows) for c in np.unique(classes)}
    found = [min(len(members), counts[int(classes[members[0]])]) for members in clusters]
    share = [n / counts[int(classes[members[0]])] for n, members in zip(found, clusters, strict=True)]
    means = [float(scores[members].mean()) for members in clusters]
    return Rows(
        np.array(fused, np.float32),
        np.array([mean * part for mean, part in zip(means, share, strict=True)], np.float32),
        classes[[members[0] for members in clusters]],
    )


def objects(rows: Rows, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap as one object, with the best score of each class: the soft class target of the object.

    Without this, the boxes of two classes on one object would compete for its anchors, and one would win them all.

    Args:
        rows: the boxes of one image.
        classes: C.

    Returns:
        Boxes N 4 (centre and size), those with the best score of each object, and scores N C; the best object first.
    """
    order = np.argsort(-rows.scores, kind="stable")
    overlap = overlaps(rows.boxes, rows.boxes)
    left = np.ones(len(order), bool)
    kept, scores = [], []
    for i in order:
        if not left[i]:
            continue
        members = np.flatnonzero(left & (overlap[i] >= SAME_OBJECT))
        left[members] = False
        left[i] = False
        row = np.zeros(classes, np.float32)
        np.maximum.at(row, rows.classes[members], rows.scores[members])
        kept.append(rows.boxes[i])
        scores.append(row)
    return np.array(kept, np.float32).reshape(-1, 4), np.array(scores, np.float32).reshape(-1, classes)
