"""Detections of a checkpoint and of its exported file, matched one to one on real images.

Raw output tensors are not compared, since the order of their rows is arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import read_image
from yolo_mkd.edge.boxes import CONF, MATCH_IOU, MAX_DET, NMS_IOU, box_iou, boxes_above, pair_boxes, unmatched

Rows = NDArray[np.float64]  # N 6: x1 y1 x2 y2 [pixels of the image], score, class; the best score first

LOWER_CONFS = (0.1, 0.03, 0.01, 0.003, 0.001)  # our choice: tried in turn while nothing at all is detected
LEAST_RELABELLED = 0.5  # our choice: share of the checkpoint's unmatched detections that the file gives another class


@dataclass(frozen=True)
class Gate:
    """The agreement that detections of a precision must have."""

    iou: float  # smallest IoU of an agreeing pair
    score: float  # largest score difference of an agreeing pair
    share: float  # share of the detections on both sides that must be in an agreeing pair


# fp32 in ONNX Runtime gives IoU 1.0000 and scores within 1e-5, a faulty file 0.99 or less.
# fp16 (bccd, yolo26n, 192 px, three runtimes): 99 to 100 % of pairs within, but NMS may keep the neighbour of a tied
# box (IoU 0.84 for 2 of 569), so a share is required and no smallest IoU. int8 is judged by its mAP.
GATES = {"fp32": Gate(0.999, 1e-3, 1.0), "fp16": Gate(0.99, 0.01, 0.95), "int8": Gate(0.99, 0.01, 0.0)}
MIN_IOU, SCORE_TOLERANCE = GATES["fp32"].iou, GATES["fp32"].score


class ImageMatch(TypedDict, total=False):
    """The matched detections of one image; counts, and the extremes over its pairs."""

    image: str
    checkpoint: int
    file: int
    checkpoint_unmatched: int
    file_unmatched: int
    unmatched: int
    pairs: int
    moved: int  # pairs below the smallest IoU
    agreeing: int  # pairs within both tolerances
    borderline: int  # pairs with one score just below the threshold
    relabelled: int  # unmatched detections that overlap one of another class
    min_iou: float | None
    max_score_difference: float | None


@dataclass(frozen=True)
class Detections:
    """How a file's detections compare with its checkpoint's; printed, it is two or three lines."""

    passed: bool
    reason: str  # one line; empty when passed
    conf: float = CONF  # threshold the detections were compared at
    asked_conf: float = CONF  # higher than `conf` when nothing was detected there
    images: int = 0
    checkpoint_detections: int = 0
    file_detections: int = 0
    checkpoint_unmatched: int = 0
    file_unmatched: int = 0
    borderline: int = 0  # matched pairs with one score just below `conf`
    min_iou: float | None = None
    max_score_difference: float | None = None
    agreeing: float | None = None  # share of the detections on both sides in a pair within both tolerances
    iou_tolerance: float = MIN_IOU
    score_tolerance: float = SCORE_TOLERANCE
    least_agreeing: float = 1.0  # 0: reported only
    worst_images: list[ImageMatch] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.checkpoint_detections and not self.file_detections:
            return f"{'':10}{self.images} images, no detection on either side"
        lowered = (
            f", lowered from {self.asked_conf:g}: nothing was detected there" if self.conf < self.asked_conf else ""
        )
        figures = (
            f"{self.images} images, {self.checkpoint_detections} detections by the checkpoint, "
            f"{self.file_detections} by the file (conf {self.conf:g}{lowered})"
        )
        pairs = f"unmatched {self.checkpoint_unmatched} + {self.file_unmatched}"
        if self.min_iou is not None:
            pairs += f", min IoU {self.min_iou:.5f}, max score difference {self.max_score_difference:.1e}"
        if self.least_agreeing < 1 and self.agreeing is not None:
            required = f"at least {self.least_agreeing:.0%} required" if self.least_agreeing else "reported only"
            within = f"IoU {self.iou_tolerance:g} and score {self.score_tolerance:g}"
            pairs += f"; {self.agreeing:.1%} within {within} ({required})"
        lines = [" " * 10 + figures, " " * 10 + pairs]
        if not self.passed:
            lines += [f"{'':10}worst: {w['image']}, {w['unmatched']} unmatched" for w in self.worst_images[:3]]
        return "\n".join(lines)


@dataclass(frozen=True)
class MatchTotals:
    """The matches of all images, summed."""

    checkpoint: int
    file: int
    checkpoint_unmatched: int
    file_unmatched: int
    pairs: int
    agreeing: int
    moved: int
    borderline: int
    relabelled: int
    min_iou: float | None
    max_score_difference: float | None

    @property
    def unmatched(self) -> int:
        """Detections of both sides without a partner."""
        return self.checkpoint_unmatched + self.file_unmatched

    @property
    def total(self) -> int:
        """Pairs and unmatched detections."""
        return self.pairs + self.unmatched

    @property
    def share(self) -> float:
        """The share of pairs within both tolerances, of all pairs and unmatched detections."""
        return self.agreeing / self.total if self.total else 0.0


def lowest_conf(conf: float) -> float:
    """The score threshold to detect with, low enough for all of `LOWER_CONFS`.

    One pass serves every threshold, since in NMS no low score suppresses a high one.
    """
    return min(conf, LOWER_CONFS[-1]) / 2


def detect_in_files(path: Path, pictures: list[Path], model: ExportedModel, conf: float) -> list[Rows]:
    """Detect with a checkpoint or an exported file through Ultralytics, image by image, letterboxed to full size.

    Args:
        path: the checkpoint or exported file.
        pictures: image files.
        model: gives the size, and the head to use of a checkpoint with two.
        conf: score threshold.
    """
    return detect_in_images(path, [read_image(p) for p in pictures], model, conf)


def detect_in_images(path: Path, pictures: list[NDArray[np.uint8]], model: ExportedModel, conf: float) -> list[Rows]:
    """Detect as `detect_in_files` does, in decoded images: BGR, H W 3."""
    from ultralytics import YOLO

    from yolo_mkd import host
    from yolo_mkd.host.scoring import exact_openvino
    from yolo_mkd.host.trust import no_installs

    options = {
        "imgsz": list(model.imgsz),
        "rect": False,
        "conf": conf,
        "iou": NMS_IOU,
        "max_det": MAX_DET,
        "nms": False if model.head == "one2one" else None,
        "device": "cpu",
        "save": False,
        "verbose": False,
    }
    with host.quiet(), exact_openvino(), no_installs():
        yolo = YOLO(str(path), task="detect")
        results = [yolo.predict(picture, **options)[0] for picture in pictures]
    return [result.boxes.data.numpy().astype(np.float64) for result in results]


def judge_detections(
    expected: list[Rows], got: list[Rows], names: list[str], conf: float = CONF, precision: str = "fp32"
) -> Detections:
    """Compare detections image by image, and the sums with the precision's gate.

    Args:
        expected: the checkpoint's detections, per image, down to half the lowest threshold.
        got: the file's, likewise.
        names: the images' names, for the list of the worst.
        conf: score threshold; lowered while neither side detects anything.
        precision: of the file: fp32, fp16 or int8.
    """
    gate = GATES[precision]
    best = max((float(rows[:, 4].max()) for rows in (*expected, *got) if len(rows)), default=0.0)
    used = next((c for c in (conf, *(c for c in LOWER_CONFS if c < conf)) if best >= c), None)
    if used is None:
        reason = (
            f"no detections in any of {len(names)} images down to conf {min(conf, LOWER_CONFS[-1]):g}, so nothing "
            "could be compared: give images that show the classes, or train the model further"
        )
        return Detections(False, reason, images=len(names))
    tolerance = gate.score * min(1.0, best / CONF)  # low scores must agree as closely, relative to their size

    each: list[ImageMatch] = []
    for name, ours, theirs in zip(names, expected, got, strict=True):
        found = compare_detections(ours, theirs, used, tolerance, gate.iou)
        each.append({"image": name, **found, "unmatched": found["checkpoint_unmatched"] + found["file_unmatched"]})
    totals = sum_matches(each)
    reason = disagreement(gate, totals, tolerance)
    each.sort(key=lambda e: (-e["unmatched"], e["min_iou"] or 1.0, -(e["max_score_difference"] or 0.0)))
    return Detections(
        not reason,
        reason,
        conf=used,
        asked_conf=conf,
        images=len(names),
        checkpoint_detections=totals.checkpoint,
        file_detections=totals.file,
        checkpoint_unmatched=totals.checkpoint_unmatched,
        file_unmatched=totals.file_unmatched,
        borderline=totals.borderline,
        min_iou=totals.min_iou,
        max_score_difference=totals.max_score_difference,
        agreeing=totals.share,
        iou_tolerance=gate.iou,
        score_tolerance=tolerance,
        least_agreeing=gate.share,
        worst_images=each[:10],
    )


def sum_matches(each: Sequence[ImageMatch]) -> MatchTotals:
    """Sum the counts of all images, with the extremes over all pairs."""
    return MatchTotals(
        checkpoint=sum(e["checkpoint"] for e in each),
        file=sum(e["file"] for e in each),
        checkpoint_unmatched=sum(e["checkpoint_unmatched"] for e in each),
        file_unmatched=sum(e["file_unmatched"] for e in each),
        pairs=sum(e["pairs"] for e in each),
        agreeing=sum(e["agreeing"] for e in each),
        moved=sum(e["moved"] for e in each),
        borderline=sum(e["borderline"] for e in each),
        relabelled=sum(e["relabelled"] for e in each),
        min_iou=min((e["min_iou"] for e in each if e["min_iou"] is not None), default=None),
        max_score_difference=max(
            (e["max_score_difference"] for e in each if e["max_score_difference"] is not None), default=None
        ),
    )


def disagreement(gate: Gate, totals: MatchTotals, tolerance: float) -> str:
    """Why detections do not pass a gate, in one line; empty when they pass.

    Args:
        gate: of the precision.
        totals: the matches of all images.
        tolerance: the largest score difference of an agreeing pair.
    """
    unmatched_count, share = totals.unmatched, totals.share
    if not totals.file:
        return f"the file has no detections where the checkpoint has {totals.checkpoint}: its head gives no scores"
    relabelled = totals.relabelled > LEAST_RELABELLED * totals.checkpoint_unmatched
    if relabelled and 4 * unmatched_count > totals.total:
        return (
            f"{totals.relabelled} of {totals.checkpoint} detections change class: the file's class columns are in "
            "another order"
        )
    if share >= gate.share:
        return ""
    lead = "" if gate.share == 1 else f"{share:.1%} of detections agree, less than {gate.share:.0%}: "
    outside = totals.total - round(share * totals.total)
    if unmatched_count and (gate.share == 1 or 3 * unmatched_count >= outside):
        cause = "weights, preprocessing or precision differ from the checkpoint's"
        return f"{lead}{unmatched_count} detections have no partner: {cause}"
    if totals.moved and totals.min_iou is not None:
        return f"{lead}boxes moved: min IoU {totals.min_iou:.4f} is below {gate.iou}"
    return f"{lead}scores moved by up to {totals.max_score_difference or 0:.2g}, more than {tolerance:.2g}"


def compare_detections(
    expected: Rows, got: Rows, conf: float, tolerance: float, least_iou: float = MIN_IOU
) -> ImageMatch:
    """Match one image's detections and count the pairs that agree.

    Args:
        expected: the checkpoint's detections.
        got: the file's.
        conf: score threshold.
        tolerance: the largest score difference of an agreeing pair.
        least_iou: its smallest IoU.
    """
    ours, theirs, conf, overlap, counted, alone, extra = pair_detections(expected, got, conf, tolerance)
    apart = [abs(float(ours[i, 4] - theirs[j, 4])) for i, j in counted]
    return {
        "checkpoint": int((ours[:, 4] >= conf).sum()),
        "file": int((theirs[:, 4] >= conf).sum()),
        "checkpoint_unmatched": len(alone),
        "file_unmatched": len(extra),
        "pairs": len(counted),
        "moved": sum(bool(overlap[pair] < least_iou) for pair in counted),
        "agreeing": sum(
            bool(overlap[pair] >= least_iou and difference <= tolerance)
            for pair, difference in zip(counted, apart, strict=True)
        ),
        "borderline": sum(bool(min(ours[i, 4], theirs[j, 4]) < conf) for i, j in counted),
        "relabelled": sum(bool((overlap[i, extra] >= MATCH_IOU).any()) for i in alone),
        "min_iou": min((float(overlap[pair]) for pair in counted), default=None),
        "max_score_difference": max(apart, default=None),
    }


class Pairing(NamedTuple):
    """One image's detections of checkpoint and file, matched one to one."""

    ours: Rows  # the checkpoint's that can be in a pair
    theirs: Rows  # the file's
    conf: float  # score threshold that applies
    overlap: NDArray[np.float64]  # IoU of each of ours with each of theirs
    pairs: list[tuple[int, int]]  # that count
    alone: list[int]  # of ours, without a partner
    extra: list[int]  # of theirs, without a partner


def pair_detections(expected: Rows, got: Rows, conf: float, tolerance: float) -> Pairing:
    """Match one image's detections one to one.

    A detection that scores `conf` or more must have a partner; the partner may score up to `tolerance` less than
    `conf`, so that a detection on the threshold is valid only with a partner within the tolerance. Pairs below `conf`
    on both sides do not count.

    Args:
        expected: the checkpoint's detections.
        got: the file's.
        conf: score threshold.
        tolerance: the largest score difference of an agreeing pair.
    """
    ours, theirs, conf = boxes_above(expected, got, conf, tolerance)
    overlap = box_iou(ours, theirs)
    pairs = pair_boxes(ours, theirs, overlap)
    counted = [(i, j) for i, j in pairs if max(ours[i, 4], theirs[j, 4]) >= conf]
    return Pairing(ours, theirs, conf, overlap, counted, *unmatched(ours, theirs, pairs, conf))
