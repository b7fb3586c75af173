"""The differences that a check allows at each precision, and the fault that it reports for others."""

from __future__ import annotations

import numpy as np
import pytest

from yolo_mkd.edge import check, pictures
from yolo_mkd.edge.check import TOLERANCES, box_fault, canvas_hash, check_text, pixel_fault

GOOD = {"expected": 100, "got": 100, "alone": 0, "apart": 0, "excused": 0, "min_iou": 1.0, "max_score_difference": 0.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"got": 0, "alone": 100, "min_iou": None}, "no boxes are detected, but the reference has 100"),
        ({"alone": 1}, "1 boxes have no partner"),
        ({"apart": 1, "min_iou": 0.98}, "boxes moved: the smallest IoU is 0.9800, below 0.99"),
        ({"apart": 1, "max_score_difference": 0.02}, "scores moved by up to 0.02, more than 0.01"),
        ({"alone": 2, "apart": 2, "excused": 4, "min_iou": 0.8}, ""),
        ({"alone": 2, "apart": 3, "excused": 4, "min_iou": 0.8}, "boxes moved"),
        ({"alone": 5, "excused": 4}, "5 boxes have no partner"),
    ],
)
def test_fault_of_the_boxes_is_named(change, reason):
    found = box_fault({**GOOD, **change}, 0.99, 0.01)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_allowed_differences_are_printed():
    figures = {
        **GOOD,
        "passed": True,
        "reason": "",
        "conf": 0.25,
        "pixels": "identical to the bundle's",
        "pictures": [{}] * 8,
    }
    figures.update(least_iou=0.5, largest_score_difference=0.1, excused=21, apart=3, precision="int8+fp16")
    printed = check_text(figures)
    assert "check     passed" in printed and "8 pictures, 100 boxes expected" in printed
    assert (
        "3 pairs outside 0.5 and 1.0e-01, 21 allowed in int8+fp16" in printed
        and "INT8 rounding depends on the runtime" in printed
    )
    assert "INT8" not in check_text({**figures, "precision": "fp16"})
    assert "check     FAILED: boxes moved" in check_text({**figures, "passed": False, "reason": "boxes moved"})


def test_tolerances_widen_from_fp32_to_int8():
    fp32, fp16, int8 = (TOLERANCES[name] for name in ("fp32", "fp16", "int8"))
    assert fp32 == (0.999, 1e-3, 0.0) and fp16[:2] == (0.99, 0.01)
    assert fp32.iou > fp16.iou > int8.iou and fp32.outliers < fp16.outliers < int8.outliers


def test_opencv_with_another_rounding_is_told_from_one_with_another_resize():
    own = np.random.default_rng(0).integers(2, 250, (8, 8, 3), dtype=np.uint8)
    wanted = canvas_hash(own)
    assert pixel_fault(own + np.uint8(1), own, wanted) == ""
    assert "differs by up to 3 grey levels" in pixel_fault(own + np.uint8(3), own, wanted)
    assert pixel_fault(own[..., ::-1], own, wanted).startswith("red and blue are swapped")
    assert pixel_fault(own, own, canvas_hash(own + np.uint8(1))).startswith("the letterbox differs from the bundle's")


def test_boxes_are_computed_from_the_bundles_pixels_where_opencv_rounds_differently(monkeypatch, tmp_path):
    import json

    from yolo_mkd.edge.bundle import Bundle

    picture = np.random.default_rng(0).integers(9, 240, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "sample").mkdir()
    pictures.write_png(tmp_path / "sample/00.png", picture)
    reference, box = pictures.letterbox(picture, (32, 32), own=True), [1.0, 2.0, 30.0, 35.0, 0.9, 0.0]
    images = [{"file": "00.png", "canvas_sha256": canvas_hash(reference), "boxes": [box]}]
    (tmp_path / "sample/expected.json").write_text(json.dumps({"conf": 0.25, "images": images}))
    seen = []

    class Runtime:
        arithmetic = "fp32"

        def infer(self, tensor):
            seen.append(tensor)
            return np.zeros((1, 1, 6), np.float32), {}

    def rounding(picture, imgsz, own=False):
        return reference if own else reference + np.uint8(1)

    monkeypatch.setattr(check, "letterbox", rounding)
    monkeypatch.setattr(check, "decode_boxes", lambda *_: np.array([box], np.float32))
    bundle = Bundle(tmp_path, tmp_path, "", ["a"], (32, 32), "one2one", "fp32", {})
    result = check.check_samples(bundle, Runtime())
    assert result["passed"] and "differs by one grey level" in result["pixels"]
    np.testing.assert_array_equal(seen[0], pictures.to_tensor(reference))
