"""What probably went wrong in a file whose detections differ: the checkpoint is shown the picture with a known fault.

Where the checkpoint, fed wrongly on purpose, detects what the file does, that fault is the file's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.check.matching import Detections, Rows, compare, detect_in
from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import read_image

Picture = NDArray[np.uint8]  # H W 3, BGR

ALIKE_IOU, ALIKE_SCORE = 0.8, 0.15  # ours: a fault that is rebuilt with another resize does not match exactly
EXPLAINED, BETTER = 0.8, 0.2  # ours: share of detections that a fault must explain, and by how much more than no fault
SAME_SCORE = 0.02  # ours


def name(
    source: Path,
    pictures: list[Path],
    artefact: ExportedModel,
    expected: list[Rows],
    got: list[Rows],
    found: Detections,
    lowest: float,
) -> str:
    """Say in one line which fault explains the file's detections, or nothing.

    Args:
        source: the checkpoint.
        pictures: the images both were shown.
        artefact: the file's description.
        expected: the checkpoint's detections.
        got: the file's.
        found: how they compare.
        lowest: the score threshold they were taken at.
    """
    conf, images = found.conf, [read_image(p) for p in pictures]
    shown = []
    for spoil, said in FAULTS:
        rows = detect_in(source, [spoil(image, artefact.imgsz) for image in images], artefact, lowest)
        shown.append((said, [placed(r, artefact.imgsz, image) for r, image in zip(rows, images, strict=True)]))
    for iou, score in ((found.iou_tolerance, found.score_tolerance), (ALIKE_IOU, ALIKE_SCORE)):
        plain = likeness(expected, got, conf, iou, score)
        share, reason = max((likeness(seen, got, conf, iou, score), said) for said, seen in shown)
        if share >= max(EXPLAINED, plain + BETTER):
            return reason
    if found.checkpoint_unmatched and plain < EXPLAINED and same_scores(expected, got, conf):
        return "scores agree and boxes do not: boxes stand in other rows than their scores, or are decoded otherwise"
    return ""


def likeness(expected: list[Rows], got: list[Rows], conf: float, iou: float, score: float) -> float:
    """The share of all detections, of both sides, that have a partner within an IoU and a difference of scores."""
    pairs = total = 0
    for ours, theirs in zip(expected, got, strict=True):
        figures = compare(ours, theirs, conf, score, iou)
        pairs += figures["agreeing"]
        total += figures["pairs"] + figures["checkpoint_unmatched"] + figures["file_unmatched"]
    return pairs / total if total else 0.0


def same_scores(expected: list[Rows], got: list[Rows], conf: float) -> bool:
    """Does the best score of nearly every class in every image agree, wherever its box may be?"""
    agree = total = 0
    for ours, theirs in zip(expected, got, strict=True):
        for label in np.unique(ours[ours[:, 4] >= conf, 5]):
            best = [rows[rows[:, 5] == label, 4].max(initial=0.0) for rows in (ours, theirs)]
            agree += bool(abs(best[0] - best[1]) <= SAME_SCORE)
            total += 1
    return total > 0 and agree >= EXPLAINED * total


def placed(rows: Rows, imgsz: tuple[int, int], image: Picture) -> Rows:
    """Detections in a canvas of the network's size, moved to where a true letterbox would put them in the image."""
    from yolo_mkd.host.scoring import out_of_letterbox

    moved = rows.copy()
    moved[:, :4] = out_of_letterbox(rows[:, :4], imgsz, (image.shape[0], image.shape[1]))
    return moved


def swapped(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Letterboxed, with red and blue swapped."""
    from yolo_mkd.host.scoring import letterbox

    return np.ascontiguousarray(letterbox(image, imgsz)[..., ::-1])


def stretched(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Stretched to the full size."""
    from yolo_mkd.host.scoring import letterbox

    return letterbox(image, imgsz, stretched=True)


def on_black(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Letterboxed on black."""
    from yolo_mkd.host.scoring import letterbox

    return letterbox(image, imgsz, grey=0)


def cornered(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Letterboxed into the upper left corner."""
    from yolo_mkd.host.scoring import letterbox

    return letterbox(image, imgsz, centred=False)


NOT_THE_LETTERBOX = "the file's letterbox is not the checkpoint's"
FAULTS: tuple[tuple[Callable[[Picture, tuple[int, int]], Picture], str], ...] = (
    (swapped, "it matches only with red and blue swapped: the file expects BGR images"),
    (stretched, f"it matches only with stretched images: {NOT_THE_LETTERBOX}"),
    (on_black, f"it matches only with black margins, not grey 114: {NOT_THE_LETTERBOX}"),
    (cornered, f"it matches only with images in the upper left corner, not centred: {NOT_THE_LETTERBOX}"),
)
