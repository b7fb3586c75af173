"""The samples of a bundle and the boxes that must be detected on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.check.matching import CONF, LOWER_CONFS, detect_in_files, lowest_conf
from yolo_mkd.deploy.exported_model import read_exported_model
from yolo_mkd.deploy.images import read_image
from yolo_mkd.edge.boxes import decode_boxes
from yolo_mkd.edge.bundle import Bundle
from yolo_mkd.edge.check import TOLERANCES, Tolerance, canvas_hash, judge_boxes
from yolo_mkd.edge.onnx_runtime import ONNXRuntime
from yolo_mkd.edge.pictures import letterbox, read_picture, to_tensor, write_png
from yolo_mkd.settings import Failed

if TYPE_CHECKING:
    from yolo_mkd.edge.boxes import Boxes

LARGEST = 1.25  # our choice: a sample's longer side in sides of the model's input; larger pictures are shrunk
COLUMNS = ["x1", "y1", "x2", "y2", "score", "class"]  # of the reference boxes


def make_reference(bundle: Bundle, pictures: list[Path]) -> dict[str, Any]:
    """Save the samples, and return the boxes that must be detected on them.

    A sample is a PNG: lossless, so that every device reads the same pixels, and decodable with zlib and numpy alone.
    The reference boxes are computed by the bundle's scripts from pixels resized with numpy, which are the same
    everywhere; Ultralytics, which measured the mAP, must detect them too.

    Args:
        bundle: the bundle, without samples.
        pictures: the images that become samples.

    Raises:
        Failed: nothing is detected at any threshold, so that nothing could be compared, or Ultralytics detects other
            boxes.
    """
    folder = bundle.folder / "sample"
    folder.mkdir()
    paths = [folder / f"{index:02}.png" for index in range(len(pictures))]
    for path, source in zip(paths, pictures, strict=True):
        write_png(path, shrink(read_image(source), round(LARGEST * max(bundle.imgsz)))[..., ::-1])
    lowest = lowest_conf(CONF)
    boxes, hashes, same_resize = detect_with_scripts(bundle, paths, lowest)
    conf = reference_conf(boxes)
    agreed = compare_with_ultralytics(bundle, paths, boxes, conf, TOLERANCES["fp32" if same_resize else "int8"])
    images = [
        {"file": path.name, "canvas_sha256": digest, "boxes": rows[rows[:, 4] >= conf / 2].round(6).tolist()}
        for path, digest, rows in zip(paths, hashes, boxes, strict=True)
    ]
    return {"conf": conf, "columns": COLUMNS, "against_ultralytics": agreed, "images": images}


def detect_with_scripts(bundle: Bundle, paths: list[Path], lowest: float) -> tuple[list[Boxes], list[str], bool]:
    """Detect on the samples with the bundle's scripts, from pixels resized with numpy.

    Args:
        bundle: the bundle.
        paths: the samples.
        lowest: score threshold.

    Returns:
        The boxes and the hash of the letterboxed pixels of each sample, and whether OpenCV resizes all of them equally.
    """
    runtime = ONNXRuntime(bundle.model, bundle.precision)
    boxes, hashes, same_resize = [], [], True
    for path in paths:
        picture = read_picture(path)
        canvas = letterbox(picture, bundle.imgsz, own=True)
        same_resize = same_resize and np.array_equal(canvas, letterbox(picture, bundle.imgsz))
        hashes.append(canvas_hash(canvas))
        output, _ = runtime.infer(to_tensor(canvas))
        shape = (picture.shape[0], picture.shape[1])
        boxes.append(decode_boxes(output, bundle.head, shape, bundle.imgsz, lowest))
    return boxes, hashes, same_resize


def reference_conf(boxes: list[Boxes]) -> float:
    """The score threshold of the reference: the highest that leaves as many boxes as there are samples.

    Raises:
        Failed: nothing is detected at any threshold.
    """
    scores = np.concatenate([rows[:, 4] for rows in boxes])
    conf = next((c for c in (CONF, *LOWER_CONFS) if (scores >= c).sum() >= len(boxes)), LOWER_CONFS[-1])
    if not (scores >= conf).any():
        raise Failed(f"nothing is detected on the {len(boxes)} samples: train the model further, or increase samples=")
    return conf


def compare_with_ultralytics(
    bundle: Bundle, paths: list[Path], boxes: list[Boxes], conf: float, tolerance: Tolerance
) -> dict[str, Any]:
    """Compare the scripts' boxes with Ultralytics', and return the largest differences.

    Args:
        bundle: the bundle.
        paths: the samples.
        boxes: the scripts' boxes of each sample.
        conf: lowest score that counts.
        tolerance: the differences allowed.

    Raises:
        Failed: they differ by more.
    """
    found = detect_in_files(bundle.model, paths, read_exported_model(bundle.model), lowest_conf(CONF))
    theirs = [rows.astype(np.float32) for rows in found]
    pairs = [(path.name, expected, own) for path, expected, own in zip(paths, theirs, boxes, strict=True)]
    result = judge_boxes(pairs, conf, tolerance)
    if not result["passed"]:
        raise Failed(f"the bundle's scripts do not detect what Ultralytics does: {result['reason']}")
    return {
        "min_iou": result["min_iou"],
        "max_score_difference": result["max_score_difference"],
        "alone": result["alone"],
    }


def shrink(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Shrink a picture whose longer side is more than `longest` pixels."""
    import cv2

    height, width = picture.shape[:2]
    gain = longest / max(height, width)
    if gain >= 1:
        return picture
    size = (round(width * gain), round(height * gain))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
