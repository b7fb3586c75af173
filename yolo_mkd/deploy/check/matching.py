"""Detections of two files matched one to one on real images; never raw tensors, whose rows come in any order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import read_image

Rows = NDArray[np.float64]  # N 6: x1 y1 x2 y2 [pixels of the image], score, class; the best score first

CONF, NMS_IOU, MAX_DET = 0.25, 0.7, 300  # Ultralytics' defaults for predict
LOWER_CONFS = (0.1, 0.03, 0.01, 0.003, 0.001)  # ours: tried in turn while nothing at all is detected
MATCH_IOU = 0.5  # ours: boxes that overlap less are not one object; the gates below are far stricter
SAME_CORNER = 0.01  # ours [pixels]: for boxes too flat to have an IoU
LEAST_RELABELLED = 0.5  # ours: of the checkpoint's unmatched detections, found by the file under another class


@dataclass(frozen=True)
class Gate:
    """What detections of a precision must keep."""

    iou: float  # of a pair, at least
    score: float  # of a pair, at most apart
    share: float  # of the detections on both sides, that must be in such a pair


# fp32 in ONNX Runtime gives IoU 1.0000 and scores within 1e-5, a file gone wrong 0.99 or less.
# fp16 (bccd, yolo26n, 192 px, three runtimes): 99 to 100 % of pairs within, but NMS may keep the neighbour of a tied
# box (IoU 0.84 for 2 of 569), so a share is asked and no least IoU. int8 is judged by its mAP.
GATES = {"fp32": Gate(0.999, 1e-3, 1.0), "fp16": Gate(0.99, 0.01, 0.95), "int8": Gate(0.99, 0.01, 0.0)}
MIN_IOU, SCORE_TOLERANCE = GATES["fp32"].iou, GATES["fp32"].score


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
    worst_images: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.checkpoint_detections and not self.file_detections:
            return f"{'':10}{self.images} images, no detection on either side"
        lowered = (
            f", lowered from {self.asked_conf:g} where nothing was detected" if self.conf < self.asked_conf else ""
        )
        figures = (
            f"{self.images} images, {self.checkpoint_detections} detections by the checkpoint, "
            f"{self.file_detections} by the file (conf {self.conf:g}{lowered})"
        )
        pairs = f"unmatched {self.checkpoint_unmatched} + {self.file_unmatched}"
        if self.min_iou is not None:
            pairs += f", min IoU {self.min_iou:.5f}, max score difference {self.max_score_difference:.1e}"
        if self.least_agreeing < 1 and self.agreeing is not None:
            asked = f"at least {self.least_agreeing:.0%} must" if self.least_agreeing else "reported only"
            within = f"IoU {self.iou_tolerance:g} and score {self.score_tolerance:g}"
            pairs += f"; {self.agreeing:.1%} within {within} ({asked})"
        lines = [" " * 10 + figures, " " * 10 + pairs]
        if not self.passed:
            lines += [f"{'':10}worst: {w['image']}, {w['unmatched']} unmatched" for w in self.worst_images[:3]]
        return "\n".join(lines)


def detect(path: Path, pictures: list[Path], artefact: ExportedModel, conf: float) -> list[Rows]:
    """Detect with a checkpoint or an exported file through Ultralytics, image by image, letterboxed to full size.

    Args:
        path: the file.
        pictures: image files.
        artefact: gives the size, and the head that a checkpoint with two is asked for.
        conf: score threshold.
    """
    return detect_in(path, [read_image(p) for p in pictures], artefact, conf)


def detect_in(path: Path, pictures: list[NDArray[np.uint8]], artefact: ExportedModel, conf: float) -> list[Rows]:
    """Detect as `detect` does, in images already read: BGR, H W 3."""
    from ultralytics import YOLO

    from yolo_mkd import host
    from yolo_mkd.host.scoring import exact_openvino, no_installs

    with host.quiet(), exact_openvino(), no_installs():
        yolo, found = YOLO(str(path), task="detect"), []
        for picture in pictures:
            result = yolo.predict(
                picture, imgsz=list(artefact.imgsz), rect=False, conf=conf, iou=NMS_IOU, max_det=MAX_DET,
                nms=False if artefact.head == "one2one" else None, device="cpu", save=False, verbose=False,
            )  # fmt: skip
            found.append(result[0].boxes.data.numpy().astype(np.float64))
    return found


def judge(
    expected: list[Rows], got: list[Rows], names: list[str], conf: float = CONF, precision: str = "fp32"
) -> Detections:
    """Compare detections image by image and hold the figures against the precision's gate.

    Args:
        expected: the checkpoint's detections, per image, down to half the lowest threshold.
        got: the file's, likewise.
        names: the images' names, for the list of the worst.
        conf: score threshold; lowered while neither side detects anything.
        precision: of the file: fp32, fp16 or int8.
    """
    gate = GATES[precision]
    best = max((rows[:, 4].max() for rows in (*expected, *got) if len(rows)), default=0.0)
    used = next((c for c in (conf, *(c for c in LOWER_CONFS if c < conf)) if best >= c), None)
    if used is None:
        lowest = min(conf, LOWER_CONFS[-1])
        reason = f"nothing detected in any of {len(names)} images down to conf {lowest:g}, which proves nothing: "
        return Detections(
            False, reason + "give images that show the classes, or train the model further", images=len(names)
        )
    # low scores must agree as closely for their size as high ones
    tolerance = gate.score * min(1.0, float(best) / CONF)

    each = [
        {"image": name, **compare(ours, theirs, used, tolerance, gate.iou)}
        for name, ours, theirs in zip(names, expected, got, strict=True)
    ]
    count = {
        key: sum(e[key] for e in each)
        for key in (
            *("checkpoint", "file", "checkpoint_unmatched", "file_unmatched", "pairs", "agreeing", "moved"),
            *("borderline", "relabelled"),
        )
    }
    unmatched = count["checkpoint_unmatched"] + count["file_unmatched"]
    total = count["pairs"] + unmatched
    share = count["agreeing"] / total if total else 0.0
    iou = min((e["min_iou"] for e in each if e["pairs"]), default=None)
    difference = max((e["max_score_difference"] for e in each if e["pairs"]), default=None)
    reason = ""
    if not count["file"]:
        reason = f"the file detects nothing where the checkpoint finds {count['checkpoint']}: its head is dead"
    elif count["relabelled"] > LEAST_RELABELLED * count["checkpoint_unmatched"] and 4 * unmatched > total:
        reason = (
            f"{count['relabelled']} of {count['checkpoint']} detections change class: the file's class columns differ"
        )
    elif share < gate.share:
        reason = disagreement(gate, share, unmatched, count["moved"], total, iou, difference, tolerance)
    for e in each:
        e["unmatched"] = e["checkpoint_unmatched"] + e["file_unmatched"]
    each.sort(key=lambda e: (-e["unmatched"], e["min_iou"] or 1.0, -(e["max_score_difference"] or 0.0)))
    return Detections(
        not reason, reason, conf=used, asked_conf=conf, images=len(names), checkpoint_detections=count["checkpoint"],
        file_detections=count["file"], checkpoint_unmatched=count["checkpoint_unmatched"],
        file_unmatched=count["file_unmatched"], borderline=count["borderline"], min_iou=iou,
        max_score_difference=difference, agreeing=share, iou_tolerance=gate.iou, score_tolerance=tolerance,
        least_agreeing=gate.share, worst_images=each[:10],
    )  # fmt: skip


def disagreement(
    gate: Gate,
    share: float,
    unmatched: int,
    moved: int,
    total: int,
    iou: float | None,
    difference: float | None,
    tolerance: float,
) -> str:
    """Say in one line what most of the detections outside the gate have in common."""
    lead = "" if gate.share == 1 else f"{share:.1%} of detections agree, less than {gate.share:.0%}: "
    outside = total - round(share * total)
    if unmatched and (gate.share == 1 or 3 * unmatched >= outside):
        cause = "weights, preprocessing or precision are not the checkpoint's"
        return f"{lead}{unmatched} detections have no partner: {cause}"
    if moved and iou is not None:
        return f"{lead}boxes moved: min IoU {iou:.4f} is below {gate.iou}"
    return f"{lead}scores moved by up to {difference or 0:.2g}, more than {tolerance:.2g}"


def compare(expected: Rows, got: Rows, conf: float, tolerance: float, least_iou: float = MIN_IOU) -> dict[str, Any]:
    """Match one image's detections.

    A detection that scores `conf` or more must have a partner; the partner may score up to `tolerance` less than
    `conf`, so a detection on the threshold is excused only by a partner that the tolerance allows. Detections below
    `conf` on both sides do not count.
    """
    for rows in (expected, got):
        if len(rows) >= MAX_DET:  # the list was cut: near its last score either side may hold what the other lost
            conf = max(conf, float(rows[:, 4].min()) + tolerance)
    ours, theirs = (rows[rows[:, 4] >= conf - tolerance] for rows in (expected, got))
    overlap = iou_matrix(ours, theirs)
    pairs = match(ours, theirs, overlap)
    counted = [(i, j) for i, j in pairs if max(ours[i, 4], theirs[j, 4]) >= conf]
    alone = [i for i in range(len(ours)) if ours[i, 4] >= conf and i not in {a for a, _ in pairs}]
    extra = [j for j in range(len(theirs)) if theirs[j, 4] >= conf and j not in {b for _, b in pairs}]
    moved = sum(bool(overlap[pair] < least_iou) for pair in counted)
    apart = [abs(float(ours[i, 4] - theirs[j, 4])) for i, j in counted]
    return {
        "checkpoint": int((ours[:, 4] >= conf).sum()),
        "file": int((theirs[:, 4] >= conf).sum()),
        "checkpoint_unmatched": len(alone),
        "file_unmatched": len(extra),
        "pairs": len(counted),
        "moved": moved,
        "agreeing": sum(
            bool(overlap[pair] >= least_iou and difference <= tolerance)
            for pair, difference in zip(counted, apart, strict=True)
        ),
        "borderline": sum(bool(min(ours[i, 4], theirs[j, 4]) < conf) for i, j in counted),
        "relabelled": sum(bool((overlap[i, extra] >= MATCH_IOU).any()) for i in alone),
        "min_iou": min((float(overlap[pair]) for pair in counted), default=None),
        "max_score_difference": max(apart, default=None),
    }


def match(ours: Rows, theirs: Rows, overlap: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pair detections of one class one to one, the closest in box and score first.

    Where the two sides agree each true pair lies at distance 0, so greedy pairing is optimal where it matters.
    """
    distance = (1 - overlap) + np.abs(ours[:, None, 4] - theirs[None, :, 4])
    possible = (overlap >= MATCH_IOU) & (ours[:, None, 5] == theirs[None, :, 5])
    taken: list[tuple[int, int]] = []
    free_i, free_j = set(range(len(ours))), set(range(len(theirs)))
    for i, j in sorted(zip(*map(list, np.nonzero(possible)), strict=True), key=lambda pair: distance[pair]):
        if i in free_i and j in free_j:
            taken.append((int(i), int(j)))
            free_i.remove(i)
            free_j.remove(j)
    return taken


def iou_matrix(a: Rows, b: Rows) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` (N) with every box of `b` (M): N M.

    Boxes of less than a pixel, such as those clipped at the image's edge, count 1 when their corners agree, else 0.
    """
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.clip(np.minimum(a[:, None, 2:4], b[None, :, 2:4]) - corner, 0, None).prod(2)
    area_a, area_b = (np.clip(rows[:, 2:4] - rows[:, :2], 0, None).prod(1) for rows in (a, b))
    flat = (area_a[:, None] < 1) & (area_b[None, :] < 1)
    agree = np.abs(a[:, None, :4] - b[None, :, :4]).max(2) < SAME_CORNER
    union = np.where(flat, 1.0, area_a[:, None] + area_b[None, :] - common)
    return np.where(flat, agree, common / union)
