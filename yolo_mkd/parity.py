"""Does an exported file detect what its checkpoint does? Detections are matched on real images, never raw tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.artefact import Artefact, describe, existing, open_session
from yolo_mkd.images import find_images, read_image
from yolo_mkd.settings import BadInput

Rows = NDArray[np.float64]  # N 6: x1 y1 x2 y2 [pixels of the image], score, class; the best score first

CONF, NMS_IOU, MAX_DET = 0.25, 0.7, 300  # Ultralytics' defaults for predict
LOWER_CONFS = (0.1, 0.03, 0.01, 0.003, 0.001)  # ours: tried in turn while nothing at all is detected
MATCH_IOU = 0.5  # ours: boxes that overlap less are not one object; the gate below is far stricter
SAME_CORNER = 0.01  # ours [pixels]: for boxes too flat to have an IoU
MIN_IOU = 0.999  # ours: FP32 in ONNX Runtime gives 1.0000 to four digits, a file gone wrong 0.99 or less
SCORE_TOLERANCE = 1e-3  # ours: FP32 gives 1e-6 to 1e-5


@dataclass(frozen=True)
class Parity:
    """The outcome of a check; printed, it is a short table."""

    passed: bool
    reason: str  # one line; empty when passed
    head: str = ""
    imgsz: tuple[int, int] = (0, 0)  # height, width [pixels]
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
    score_tolerance: float = SCORE_TOLERANCE
    iou_tolerance: float = MIN_IOU
    worst_images: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.checkpoint_detections and not self.file_detections:
            return f"check     FAILED: {self.reason}"
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
        lines = [
            f"check     {'passed' if self.passed else 'FAILED: ' + self.reason}",
            " " * 10 + figures,
            " " * 10 + pairs,
        ]
        if not self.passed:
            lines += [f"{'':10}worst: {w['image']}, {w['unmatched']} unmatched" for w in self.worst_images[:3]]
        return "\n".join(lines)


def check(
    model: str | Path,
    against: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    conf: float = CONF,
) -> Parity:
    """Verify an exported ONNX file against the checkpoint it came from, by matching detections on real images.

    Args:
        model: the .onnx file.
        against: the .pt checkpoint.
        images: a folder, a file or a list of files to detect on.
        data: a data.yaml whose val images are used, at most 32, evenly spread. Without both, the val images of the
            data set that the checkpoint was trained on.
        conf: score threshold; lowered step by step to 0.001 while neither side detects anything.

    Returns:
        The figures, whether they pass, and if not the reason.

    Raises:
        BadInput: a file is missing or no detector, or there are no images to check on.
    """
    from yolo_mkd import host

    path = existing("model", model, ".onnx")
    trained = host.load_detector("against", str(existing("against", against, ".pt")))
    if not 0 < conf < 1:
        raise BadInput(f"conf={conf} is no score threshold: give a number between 0 and 1, such as 0.25")
    pictures = find_images(images, data, trained.args.get("data"))
    try:
        artefact = describe(open_session(path))
    except BadInput as error:  # the file is what is on trial, so this is a verdict
        return Parity(False, str(error))
    strides = [int(s) for s in trained.stride]
    if reason := structure_fault(artefact, dict(trained.names), strides):
        return Parity(False, reason, artefact.head, artefact.imgsz)

    lowest = min(conf, LOWER_CONFS[-1]) / 2  # one pass serves every threshold: in NMS no low score drops a high one
    expected = detect(Path(against), pictures, artefact, lowest)
    parity = judge(expected, detect(path, pictures, artefact, lowest), [p.name for p in pictures], conf)
    if not parity.passed and parity.file_detections:
        swapped = judge(expected, detect(path, pictures, artefact, lowest, swap=True), [p.name for p in pictures], conf)
        if swapped.passed:
            parity = replace(parity, reason="it matches only with red and blue swapped: the file expects BGR images")
    return replace(parity, head=artefact.head, imgsz=artefact.imgsz)


def structure_fault(artefact: Artefact, names: dict[int, str], strides: list[int]) -> str:
    """Say in one line what in the file's structure contradicts the checkpoint; nothing when all agrees."""
    if len(artefact.names) != len(names):
        return f"the file has {len(artefact.names)} classes, the checkpoint {len(names)}"
    for index, name in names.items():
        if artefact.names.get(index) != name:
            return f"class {index} is named {artefact.names.get(index)} in the file, {name} in the checkpoint"
    if artefact.stride != max(strides):
        return f"stride is {artefact.stride} in the file, {max(strides)} in the checkpoint"
    height, width = artefact.imgsz
    anchors = sum((height // s) * (width // s) for s in strides)
    if artefact.head == "one2many" and artefact.output[2] != anchors:
        return f"the file has {artefact.output[2]} anchors, the checkpoint {anchors} at {height}x{width}"
    return ""


def detect(path: Path, pictures: list[Path], artefact: Artefact, conf: float, swap: bool = False) -> list[Rows]:
    """Detect with a .pt or .onnx file through Ultralytics, one image at a time, always letterboxed to full size.

    Args:
        path: the file.
        pictures: image files.
        artefact: gives the size, and the head that a checkpoint with two is asked for.
        conf: score threshold.
        swap: swap red and blue first.
    """
    from ultralytics import YOLO

    from yolo_mkd import host

    with host.quiet():
        yolo, found = YOLO(str(path), task="detect"), []
        for picture in pictures:
            result = yolo.predict(
                read_image(picture)[..., :: -1 if swap else 1], imgsz=list(artefact.imgsz), rect=False, conf=conf,
                iou=NMS_IOU, max_det=MAX_DET, nms=False if artefact.head == "one2one" else None, device="cpu",
                save=False, verbose=False,
            )  # fmt: skip
            found.append(result[0].boxes.data.numpy().astype(np.float64))
    return found


def judge(expected: list[Rows], got: list[Rows], names: list[str], conf: float = CONF) -> Parity:
    """Compare detections image by image and hold the figures against the FP32 gate.

    Args:
        expected: the checkpoint's detections, per image, down to half the lowest threshold.
        got: the file's, likewise.
        names: the images' names, for the list of the worst.
        conf: score threshold; lowered while neither side detects anything.
    """
    best = max((rows[:, 4].max() for rows in (*expected, *got) if len(rows)), default=0.0)
    used = next((c for c in (conf, *(c for c in LOWER_CONFS if c < conf)) if best >= c), None)
    if used is None:
        lowest = min(conf, LOWER_CONFS[-1])
        reason = f"nothing detected in any of {len(names)} images down to conf {lowest:g}, which proves nothing: "
        return Parity(
            False, reason + "give images that show the classes, or train the model further", images=len(names)
        )
    # low scores must agree as closely for their size as high ones
    tolerance = SCORE_TOLERANCE * min(1.0, float(best) / CONF)

    each, relabelled = [], 0
    for name, ours, theirs in zip(names, expected, got, strict=True):
        figures = compare(ours, theirs, used, tolerance)
        relabelled += figures.pop("relabelled")
        each.append({"image": name, **figures})
    count = {k: sum(e[k] for e in each) for k in ("checkpoint", "file", "checkpoint_unmatched", "file_unmatched")}
    ious = [e["min_iou"] for e in each if e["min_iou"] is not None]
    differences = [e["max_score_difference"] for e in each if e["max_score_difference"] is not None]
    iou, difference = min(ious, default=None), max(differences, default=None)
    unmatched = count["checkpoint_unmatched"] + count["file_unmatched"]
    reason = ""
    if not count["file"]:
        reason = f"the file detects nothing where the checkpoint finds {count['checkpoint']}: its head is dead"
    elif relabelled and 2 * relabelled >= count["checkpoint_unmatched"]:
        reason = f"{relabelled} of {count['checkpoint']} detections change class: the file's class columns differ"
    elif unmatched:
        reason = f"{unmatched} detections have no partner: weights, preprocessing or precision are not the checkpoint's"
    elif iou is not None and iou < MIN_IOU:
        reason = f"boxes moved: min IoU {iou:.4f} is below {MIN_IOU}"
    elif difference is not None and difference > tolerance:
        reason = f"scores moved by up to {difference:.2g}, more than {tolerance:.2g}"
    for e in each:
        e["unmatched"] = e["checkpoint_unmatched"] + e["file_unmatched"]
    each.sort(key=lambda e: (-e["unmatched"], e["min_iou"] or 1.0, -(e["max_score_difference"] or 0.0)))
    return Parity(
        not reason, reason, conf=used, asked_conf=conf, images=len(names), checkpoint_detections=count["checkpoint"],
        file_detections=count["file"], checkpoint_unmatched=count["checkpoint_unmatched"],
        file_unmatched=count["file_unmatched"], borderline=sum(e["borderline"] for e in each), min_iou=iou,
        max_score_difference=difference, score_tolerance=tolerance, worst_images=each[:10],
    )  # fmt: skip


def compare(expected: Rows, got: Rows, conf: float, tolerance: float) -> dict[str, Any]:
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
    return {
        "checkpoint": int((ours[:, 4] >= conf).sum()),
        "file": int((theirs[:, 4] >= conf).sum()),
        "checkpoint_unmatched": len(alone),
        "file_unmatched": len(extra),
        "borderline": sum(bool(min(ours[i, 4], theirs[j, 4]) < conf) for i, j in counted),
        "relabelled": sum(bool((overlap[i, extra] >= MATCH_IOU).any()) for i in alone),
        "min_iou": min((float(overlap[i, j]) for i, j in counted), default=None),
        "max_score_difference": max((abs(float(ours[i, 4] - theirs[j, 4])) for i, j in counted), default=None),
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
