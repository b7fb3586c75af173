"""Diagnosis of a file whose detections differ: the checkpoint detects again with one known fault in its input.

Where the checkpoint with that fault detects the same as the file, the file has the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.check.matching import Detections, Rows, compare_detections, detect_in_images, lowest_conf
from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import read_image

Picture = NDArray[np.uint8]  # H W 3, BGR

# our choice: looser tolerances, since a fault that is reproduced with another resize does not match exactly
LOOSE_IOU, LOOSE_SCORE = 0.8, 0.15
# our choice: the share of detections that a fault must explain, and by how much more than no fault
EXPLAINED, BETTER = 0.8, 0.2
SAME_SCORE = 0.02  # our choice


def diagnose(
    source: Path, pictures: list[Path], model: ExportedModel, expected: list[Rows], got: list[Rows], found: Detections
) -> str:
    """The fault that explains a file's detections, in one line; empty where none does.

    Args:
        source: the checkpoint.
        pictures: the images that both detected on.
        model: the file's metadata.
        expected: the checkpoint's detections, down to `lowest_conf(found.asked_conf)`.
        got: the file's, likewise.
        found: how they compare.
    """
    conf, images = found.conf, [read_image(p) for p in pictures]
    lowest = lowest_conf(found.asked_conf)
    reproduced = []
    for make_fault, description in FAULTS:
        rows = detect_in_images(source, [make_fault(image, model.imgsz) for image in images], model, lowest)
        in_images = [undo_letterbox(r, model.imgsz, image) for r, image in zip(rows, images, strict=True)]
        reproduced.append((in_images, description))
    for iou, score in ((found.iou_tolerance, found.score_tolerance), (LOOSE_IOU, LOOSE_SCORE)):
        plain = agreeing_share(expected, got, conf, iou, score)
        share, reason = max((agreeing_share(rows, got, conf, iou, score), text) for rows, text in reproduced)
        if share >= max(EXPLAINED, plain + BETTER):
            return reason
    if found.checkpoint_unmatched and plain < EXPLAINED and same_best_scores(expected, got, conf):
        return "scores agree but boxes differ: the boxes are in other rows than their scores, or decoded differently"
    return ""


def agreeing_share(expected: list[Rows], got: list[Rows], conf: float, iou: float, score: float) -> float:
    """The share of all detections, of both sides, with a partner within an IoU and a score difference."""
    pairs = total = 0
    for ours, theirs in zip(expected, got, strict=True):
        figures = compare_detections(ours, theirs, conf, score, iou)
        pairs += figures["agreeing"]
        total += figures["pairs"] + figures["checkpoint_unmatched"] + figures["file_unmatched"]
    return pairs / total if total else 0.0


def same_best_scores(expected: list[Rows], got: list[Rows], conf: float) -> bool:
    """Whether the best score of nearly every class in every image agrees, wherever its box is."""
    agree = total = 0
    for ours, theirs in zip(expected, got, strict=True):
        for label in np.unique(ours[ours[:, 4] >= conf, 5]):
            best = [rows[rows[:, 5] == label, 4].max(initial=0.0) for rows in (ours, theirs)]
            agree += bool(abs(best[0] - best[1]) <= SAME_SCORE)
            total += 1
    return total > 0 and agree >= EXPLAINED * total


def undo_letterbox(rows: Rows, imgsz: tuple[int, int], image: Picture) -> Rows:
    """Detections in a canvas of the network's size, mapped to the image as if the canvas were letterboxed correctly."""
    from yolo_mkd.host.scoring import out_of_letterbox

    moved = rows.copy()
    moved[:, :4] = out_of_letterbox(rows[:, :4], imgsz, (image.shape[0], image.shape[1]))
    return moved


def swap_channels(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Letterbox, and swap red and blue."""
    from yolo_mkd.host.scoring import letterbox

    return np.ascontiguousarray(letterbox(image, imgsz)[..., ::-1])


def stretch(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Stretch to the full size."""
    from yolo_mkd.host.scoring import letterbox

    return letterbox(image, imgsz, stretched=True)


def pad_with_black(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Letterbox with black margins."""
    from yolo_mkd.host.scoring import letterbox

    return letterbox(image, imgsz, grey=0)


def place_in_corner(image: Picture, imgsz: tuple[int, int]) -> Picture:
    """Letterbox into the upper left corner."""
    from yolo_mkd.host.scoring import letterbox

    return letterbox(image, imgsz, centred=False)


OTHER_LETTERBOX = "the file's letterbox differs from the checkpoint's"
FAULTS: tuple[tuple[Callable[[Picture, tuple[int, int]], Picture], str], ...] = (
    (swap_channels, "it matches only with red and blue swapped: the file expects BGR images"),
    (stretch, f"it matches only with stretched images: {OTHER_LETTERBOX}"),
    (pad_with_black, f"it matches only with black margins, not grey 114: {OTHER_LETTERBOX}"),
    (place_in_corner, f"it matches only with images in the upper left corner, not centred: {OTHER_LETTERBOX}"),
)
