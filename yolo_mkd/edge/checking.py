"""Does this device detect what the bundle says it should? First the pixels, then the boxes, of its own samples."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .boxes import CONF, MATCH_IOU, agreement, boxes
from .contents import Contents, read_json
from .pictures import letterbox, read_picture, tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .boxes import Boxes
    from .onnx_runtime import OnnxRuntime
    from .tensor_rt import TensorRT


class Tolerance(NamedTuple):
    """What a check allows."""

    iou: float  # least of a pair
    score: float  # largest difference of a pair
    odd: float  # share of the boxes that may be further apart or without a partner; not 0 excuses one in any case


# ours: on 87 images of bccd at 192 pixels FP16 puts 2 boxes in 1000 beyond 0.99: NMS takes another of two equals
TOLERANCES = {
    "fp32": Tolerance(0.999, 1e-3, 0.0),
    "fp16": Tolerance(0.99, 0.01, 0.03),
    "int8": Tolerance(MATCH_IOU, 0.1, 0.2),  # its figures are reported, only what is broken fails
}


def canvas_hash(canvas: NDArray[np.uint8]) -> str:
    """The SHA-256 of a letterboxed picture's pixels."""
    return hashlib.sha256(np.ascontiguousarray(canvas).tobytes()).hexdigest()


def check(contents: Contents, runtime: OnnxRuntime | TensorRT) -> dict[str, Any]:
    """Replay the samples and hold what is found against the reference.

    Args:
        contents: the bundle.
        runtime: an open runtime.

    Returns:
        passed, reason (one line, empty when passed), the tolerance and the figures.

    Raises:
        Trouble: a sample is missing or torn.
    """
    expected = read_json(contents.folder / "sample" / "expected.json")
    conf, tolerance = expected["conf"], TOLERANCES[runtime.precision.split("+")[0]]
    pairs: list[tuple[str, Boxes, Boxes]] = []
    reason, pixels = "", "those of the bundle"
    for sample in expected["images"]:
        picture = read_picture(contents.folder / "sample" / sample["file"])
        canvas = letterbox(picture, contents.imgsz)
        if canvas_hash(canvas) != sample["canvas_sha256"]:
            own = letterbox(picture, contents.imgsz, own=True)
            reason = reason or pixel_fault(canvas, own, sample["canvas_sha256"])
            if not reason:
                canvas, pixels = own, "OpenCV rounds by one grey level here; the boxes are those of the bundle's pixels"
        output, _ = runtime.infer(tensor(canvas))
        found = boxes(output, contents.head, (picture.shape[0], picture.shape[1]), contents.imgsz, conf / 2)
        pairs.append((sample["file"], np.array(sample["boxes"], np.float32).reshape(-1, 6), found))
    return {"precision": runtime.precision, "pixels": pixels, **judge(pairs, conf, tolerance, reason)}


def judge(pairs: list[tuple[str, Boxes, Boxes]], conf: float, tolerance: Tolerance, reason: str = "") -> dict[str, Any]:
    """Hold boxes against those expected, picture by picture.

    Args:
        pairs: each picture's name, its boxes expected, and those found, down to half of `conf`.
        conf: lowest score that counts.
        tolerance: what is allowed.
        reason: what is known to be wrong already.

    Returns:
        passed, reason (one line, empty when passed), and the figures.
    """
    best = max((float(rows[:, 4].max()) for _, rows, _ in pairs if len(rows)), default=CONF)
    slack = tolerance.score * min(1.0, best / CONF)  # low scores must agree as closely for their size as high ones
    each = [{"file": name, **agreement(rows, found, conf, tolerance.iou, slack)} for name, rows, found in pairs]
    figures: dict[str, Any] = {
        key: sum(one[key] for one in each) for key in ("expected", "got", "matched", "alone", "apart")
    }
    ious = [one["min_iou"] for one in each if one["min_iou"] is not None]
    differences = [one["max_score_difference"] for one in each if one["max_score_difference"] is not None]
    figures.update(min_iou=min(ious, default=None), max_score_difference=max(differences, default=None))
    figures["excused"] = int(tolerance.odd * figures["expected"]) + (tolerance.odd > 0)
    reason = reason or box_fault(figures, tolerance.iou, slack)
    return {
        "passed": not reason, "reason": reason, "conf": conf, "least_iou": tolerance.iou,
        "largest_score_difference": slack, **figures, "pictures": each,
    }  # fmt: skip


def pixel_fault(canvas: NDArray[np.uint8], own: NDArray[np.uint8], wanted: str) -> str:
    """Name what is wrong with a letterboxed picture; nothing where OpenCV here only rounds by one grey level.

    Args:
        canvas: as letterboxed here.
        own: the same, resized by numpy.
        wanted: the SHA-256 of the pixels that the bundle was made with, by numpy.
    """
    if canvas_hash(canvas[..., ::-1]) == wanted:
        return "red and blue are swapped: the pictures are not read as RGB"
    if canvas_hash(own) != wanted:
        return "the letterbox is not the bundle's: its resize, padding or placement differs"
    levels = int(np.abs(canvas.astype(np.int16) - own).max())
    return (
        f"OpenCV resizes by up to {levels} grey levels differently here: without it numpy resizes" if levels > 1 else ""
    )


def box_fault(figures: dict[str, Any], least_iou: float, slack: float) -> str:
    """Name what is wrong with the boxes; nothing when they agree."""
    if not figures["got"]:
        return f"nothing is detected where the reference finds {figures['expected']} boxes"
    if figures["alone"] > figures["excused"]:
        return f"{figures['alone']} boxes have no partner: weights, preprocessing or precision are not the bundle's"
    if figures["alone"] + figures["apart"] <= figures["excused"]:
        return ""
    if figures["min_iou"] < least_iou:
        return f"boxes moved: the least IoU is {figures['min_iou']:.4f}, below {least_iou:g}"
    return f"scores moved by up to {figures['max_score_difference']:.2g}, more than {slack:.2g}"


def text(result: dict[str, Any]) -> str:
    """Lay a check's figures out for people."""
    verdict = "passed" if result["passed"] else f"FAILED: {result['reason']}"
    lines = [
        f"pixels    {result['pixels']}",
        f"check     {verdict}",
        f"          {len(result['pictures'])} pictures, {result['expected']} boxes expected, {result['got']} found, "
        f"{result['alone']} without a partner (conf {result['conf']:g})",
    ]
    if result["min_iou"] is not None:
        lines.append(
            f"          least IoU {result['min_iou']:.5f}, largest score difference "
            f"{result['max_score_difference']:.1e}; {result['apart']} pairs beyond {result['least_iou']:g} and "
            f"{result['largest_score_difference']:.1e}, of {result['excused']} excused in {result['precision']}"
        )
    if result["precision"].startswith("int8"):
        lines.append(
            "          INT8 rounds differently from runtime to runtime: reported, and only what is broken fails"
        )
    return "\n".join(lines)
