"""Verification on the device: the bundle's samples must give the expected pixels, and then the expected boxes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .boxes import CONF, MATCH_IOU, BoxMatch, decode_boxes, match_boxes
from .bundle import Bundle, inside, is_list, read_json, require
from .pictures import letterbox, read_picture, to_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .boxes import Boxes
    from .onnx_runtime import ONNXRuntime
    from .tensor_rt import TensorRT


class PictureMatch(BoxMatch):
    """How the boxes of one sample match."""

    file: str


class MatchSums(BoxMatch):
    """How the boxes of all samples match."""

    excused: int  # boxes without a partner or with a larger difference that are allowed


class BoxVerdict(MatchSums):
    """The verdict on the boxes of all samples."""

    passed: bool
    reason: str  # one line; empty when passed
    conf: float
    least_iou: float
    largest_score_difference: float
    pictures: list[PictureMatch]


class CheckResult(BoxVerdict):
    """The result of a check, as `run.py --check --json` prints it."""

    precision: str
    pixels: str


class Tolerance(NamedTuple):
    """The differences that a check allows."""

    iou: float  # the least IoU of a pair
    score: float  # the largest score difference of a pair
    outliers: float  # share of the boxes that may differ more or have no partner; above 0 at least one may


# our choice: on 87 images of bccd at 192 pixels, 2 FP16 boxes in 1000 have IoU < 0.99, since NMS keeps another of two
# boxes with equal scores
TOLERANCES = {
    "fp32": Tolerance(0.999, 1e-3, 0.0),
    "fp16": Tolerance(0.99, 0.01, 0.03),
    "int8": Tolerance(MATCH_IOU, 0.1, 0.2),  # INT8 differences are reported; only a broken model fails
}


def canvas_hash(canvas: NDArray[np.uint8]) -> str:
    """The SHA-256 of a letterboxed picture's pixels."""
    return hashlib.sha256(np.ascontiguousarray(canvas).tobytes()).hexdigest()


def check_samples(bundle: Bundle, runtime: ONNXRuntime | TensorRT) -> CheckResult:
    """Detect on the samples and compare the boxes with the reference.

    Args:
        bundle: the bundle.
        runtime: the opened model.

    Raises:
        EdgeError: a sample is missing or damaged.
    """
    expected = read_expected(bundle)
    conf, tolerance = expected["conf"], TOLERANCES[runtime.arithmetic.split("+")[0]]
    pairs: list[tuple[str, Boxes, Boxes]] = []
    reason, pixels = "", "identical to the bundle's"
    for sample in expected["images"]:
        picture = read_picture(inside(bundle.folder / "sample", sample["file"]))
        canvas = letterbox(picture, bundle.imgsz)
        if canvas_hash(canvas) != sample["canvas_sha256"]:
            own = letterbox(picture, bundle.imgsz, own=True)
            reason = reason or pixel_fault(canvas, own, sample["canvas_sha256"])
            if not reason:
                canvas, pixels = own, "OpenCV differs by one grey level here: the bundle's own pixels are used"
        output, _ = runtime.infer(to_tensor(canvas))
        found = decode_boxes(output, bundle.head, (picture.shape[0], picture.shape[1]), bundle.imgsz, conf / 2)
        pairs.append((sample["file"], np.array(sample["boxes"], np.float32).reshape(-1, 6), found))
    return {"precision": runtime.arithmetic, "pixels": pixels, **judge_boxes(pairs, conf, tolerance, reason)}


def read_expected(bundle: Bundle) -> Any:
    """The contents of expected.json: the score threshold, and each sample's pixels and boxes.

    Raises:
        EdgeError: it is missing, or a field is missing or wrong.
    """
    expected = read_json(bundle.folder / "sample" / "expected.json")
    file = "expected.json"
    require(isinstance(expected, dict) and is_list(expected.get("images"), dict), file, "images")
    conf = expected.get("conf")
    require(isinstance(conf, float) and 0 < conf < 1, file, "conf")
    for sample in expected["images"]:
        require(isinstance(sample.get("file"), str), file, "file")
        require(isinstance(sample.get("canvas_sha256"), str), file, "canvas_sha256")
        rows = sample.get("boxes")
        require(is_list(rows, list) and all(is_list(row, (int, float), 6) for row in rows), file, "boxes")
    return expected


def judge_boxes(
    pairs: list[tuple[str, Boxes, Boxes]], conf: float, tolerance: Tolerance, reason: str = ""
) -> BoxVerdict:
    """Compare the boxes of all pictures with the expected ones.

    Args:
        pairs: each picture's name, its expected boxes and the detected ones, down to half of `conf`.
        conf: lowest score that counts.
        tolerance: the differences allowed.
        reason: a fault that is already known.
    """
    best = max((float(rows[:, 4].max()) for _, rows, _ in pairs if len(rows)), default=CONF)
    slack = tolerance.score * min(1.0, best / CONF)  # low scores must agree as closely, relative to their size
    each: list[PictureMatch] = [
        {"file": name, **match_boxes(rows, found, conf, tolerance.iou, slack)} for name, rows, found in pairs
    ]
    figures = sum_matches(each, tolerance.outliers)
    reason = reason or box_fault(figures, tolerance.iou, slack)
    return {
        "passed": not reason,
        "reason": reason,
        "conf": conf,
        "least_iou": tolerance.iou,
        "largest_score_difference": slack,
        **figures,
        "pictures": each,
    }


def sum_matches(each: list[PictureMatch], outliers: float) -> MatchSums:
    """Sum the matches of all pictures.

    Args:
        each: by picture.
        outliers: the share of the expected boxes that may differ more.
    """
    ious = [one["min_iou"] for one in each if one["min_iou"] is not None]
    differences = [one["max_score_difference"] for one in each if one["max_score_difference"] is not None]
    expected = sum(one["expected"] for one in each)
    return {
        "expected": expected,
        "got": sum(one["got"] for one in each),
        "matched": sum(one["matched"] for one in each),
        "alone": sum(one["alone"] for one in each),
        "apart": sum(one["apart"] for one in each),
        "min_iou": min(ious, default=None),
        "max_score_difference": max(differences, default=None),
        "excused": int(outliers * expected) + (outliers > 0),
    }


def pixel_fault(canvas: NDArray[np.uint8], own: NDArray[np.uint8], wanted: str) -> str:
    """The fault of a letterboxed picture, in one line; empty where OpenCV only differs by one grey level.

    Args:
        canvas: the picture as letterboxed here.
        own: the same, resized with numpy.
        wanted: the SHA-256 of the pixels that the bundle was made with, resized with numpy.
    """
    if canvas_hash(canvas[..., ::-1]) == wanted:
        return "red and blue are swapped: the pictures are not read as RGB"
    if canvas_hash(own) != wanted:
        return "the letterbox differs from the bundle's: check its resize, padding and placement"
    levels = int(np.abs(canvas.astype(np.int16) - own).max())
    if levels <= 1:
        return ""
    return f"OpenCV's resize differs by up to {levels} grey levels here: uninstall it, then numpy resizes"


def box_fault(figures: MatchSums, least_iou: float, slack: float) -> str:
    """The fault of the boxes, in one line; empty when they agree."""
    if not figures["got"]:
        return f"no boxes are detected, but the reference has {figures['expected']}"
    if figures["alone"] > figures["excused"]:
        return f"{figures['alone']} boxes have no partner: weights, preprocessing or precision differ from the bundle's"
    if figures["alone"] + figures["apart"] <= figures["excused"]:
        return ""
    if figures["min_iou"] is not None and figures["min_iou"] < least_iou:
        return f"boxes moved: the smallest IoU is {figures['min_iou']:.4f}, below {least_iou:g}"
    return f"scores moved by up to {figures['max_score_difference']:.2g}, more than {slack:.2g}"


def check_text(result: CheckResult) -> str:
    """A check's result as text."""
    verdict = "passed" if result["passed"] else f"FAILED: {result['reason']}"
    lines = [
        f"pixels    {result['pixels']}",
        f"check     {verdict}",
        f"          {len(result['pictures'])} pictures, {result['expected']} boxes expected, {result['got']} detected, "
        f"{result['alone']} without a partner (conf {result['conf']:g})",
    ]
    if result["min_iou"] is not None:
        lines.append(
            f"          smallest IoU {result['min_iou']:.5f}, largest score difference "
            f"{result['max_score_difference']:.1e}; {result['apart']} pairs outside {result['least_iou']:g} and "
            f"{result['largest_score_difference']:.1e}, {result['excused']} allowed in {result['precision']}"
        )
    if result["precision"].startswith("int8"):
        lines.append(
            "          INT8 rounding depends on the runtime: differences are reported, and only a broken model fails"
        )
    return "\n".join(lines)
