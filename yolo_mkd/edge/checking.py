"""Does this device detect what the bundle says it should? First the pixels, then the boxes, of its own samples."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .boxes import CONF, agreement, boxes
from .contents import Contents, read_json
from .pictures import letterbox, read_picture, tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .onnx_runtime import OnnxRuntime
    from .tensor_rt import TensorRT


class Tolerance(NamedTuple):
    """What a check allows."""

    iou: float  # least, of any pair
    score: float  # largest difference, of any pair
    matched: float  # least share of the boxes that have a partner


TOLERANCES = {
    "fp32": Tolerance(0.999, 1e-3, 1.0),
    "fp16": Tolerance(0.99, 0.01, 1.0),
    "int8": Tolerance(0.0, 0.1, 0.8),  # ours: its figures are reported, only a broken pipeline fails
}
ROUNDED = Tolerance(0.95, 0.03, 0.95)  # ours: where this device's OpenCV rounds the resize by one grey level


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
    pairs, levels, reason = [], 0, ""
    for sample in expected["images"]:
        picture = read_picture(contents.folder / "sample" / sample["file"])
        canvas = letterbox(picture, contents.imgsz)
        if canvas_hash(canvas) != sample["canvas_sha256"]:
            reason, levels = pixel_fault(picture, canvas, sample["canvas_sha256"]), 1
        output, _ = runtime.infer(tensor(canvas))
        found = boxes(output, contents.head, (picture.shape[0], picture.shape[1]), contents.imgsz, conf / 2)
        pairs.append((sample["file"], np.array(sample["boxes"], np.float32).reshape(-1, 6), found))
    if levels:
        tolerance = Tolerance(*(wider(a, b) for wider, a, b in zip((min, max, min), tolerance, ROUNDED)))
    best = max(float(rows[:, 4].max()) for _, rows, _ in pairs if len(rows))
    slack = tolerance.score * min(1.0, best / CONF)  # low scores must agree as closely for their size as high ones
    each = [{"file": name, **agreement(rows, found, conf, slack)} for name, rows, found in pairs]
    figures = {key: sum(one[key] for one in each) for key in ("expected", "got", "matched", "alone")}
    ious = [one["min_iou"] for one in each if one["min_iou"] is not None]
    differences = [one["max_score_difference"] for one in each if one["max_score_difference"] is not None]
    figures.update(min_iou=min(ious, default=None), max_score_difference=max(differences, default=None))
    reason = reason or box_fault(figures, tolerance, slack)
    return {
        "passed": not reason, "reason": reason, "precision": runtime.precision, "conf": conf, "grey_levels": levels,
        "least_iou": tolerance.iou, "largest_score_difference": slack, "least_matched": tolerance.matched,
        **figures, "pictures": each,
    }  # fmt: skip


def pixel_fault(picture: NDArray[np.uint8], canvas: NDArray[np.uint8], wanted: str) -> str:
    """Name what is wrong with a letterboxed picture; nothing where OpenCV here only rounds by one grey level.

    Args:
        picture: as read.
        canvas: as letterboxed here.
        wanted: the SHA-256 of the pixels that the bundle was made with.
    """
    if canvas_hash(canvas[..., ::-1]) == wanted:
        return "red and blue are swapped: the pictures are not read as RGB"
    own = letterbox(picture, (canvas.shape[0], canvas.shape[1]), own=True)
    if canvas_hash(own) != wanted:
        return "the letterbox is not the bundle's: its resize, padding or placement differs"
    levels = int(np.abs(canvas.astype(np.int16) - own).max())
    if levels > 1:
        return f"OpenCV resizes differently here, by up to {levels} grey levels: uninstall it, and numpy resizes"
    return ""


def box_fault(figures: dict[str, Any], tolerance: Tolerance, slack: float) -> str:
    """Name what is wrong with the boxes; nothing when they agree."""
    if not figures["got"]:
        return f"nothing is detected where the reference finds {figures['expected']} boxes"
    if figures["matched"] < tolerance.matched * (figures["matched"] + figures["alone"]):
        return f"{figures['alone']} boxes have no partner: weights, preprocessing or precision are not the bundle's"
    if figures["min_iou"] < tolerance.iou:
        return f"boxes moved: the least IoU {figures['min_iou']:.4f} is below {tolerance.iou:g}"
    if figures["max_score_difference"] > slack:
        difference = figures["max_score_difference"]
        return f"scores moved by up to {difference:.2g}, more than {slack:.2g}" if tolerance.iou else ""
    return ""


def text(result: dict[str, Any]) -> str:
    """Lay a check's figures out for people."""
    verdict = "passed" if result["passed"] else f"FAILED: {result['reason']}"
    pixels = "rounded by one grey level, so tolerances are wider" if result["grey_levels"] else "those of the bundle"
    lines = [
        f"pixels    {pixels}",
        f"check     {verdict}",
        f"          {len(result['pictures'])} pictures, {result['expected']} boxes expected, {result['got']} found, "
        f"{result['alone']} without a partner (conf {result['conf']:g})",
    ]
    if result["min_iou"] is not None:
        lines.append(
            f"          least IoU {result['min_iou']:.5f} (at least {result['least_iou']:g}), "
            f"largest score difference {result['max_score_difference']:.1e} "
            f"(at most {result['largest_score_difference']:.1e})"
        )
    return "\n".join(lines)
