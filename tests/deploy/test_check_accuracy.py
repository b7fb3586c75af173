"""mAP of a file as the share of its checkpoint's: measured equally on both sides, against the precision's gate."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import pytest
import yaml

from yolo_mkd.deploy.check import accuracy, check, int8_not_measured
from yolo_mkd.deploy.check.accuracy import (
    Accuracy,
    Scores,
    compare_accuracy,
    judge_accuracy,
    measure_map,
    why_not_measurable,
)
from yolo_mkd.deploy.exported_model import read_exported_model
from yolo_mkd.host import load_detector
from yolo_mkd.settings import BadInput

NAMES = {0: "red", 1: "green", 2: "blue"}


def scores(map50_95: float, classes: dict[int, float] | None = None, images: dict[str, float] | None = None) -> Scores:
    return Scores(map50_95, map50_95, classes or {0: map50_95}, images or {"a.png": map50_95})


@pytest.mark.parametrize(
    ("precision", "kept", "verdict"),
    [
        ("fp32", 1.0, "passed"),
        ("fp32", 0.9995, "passed"),
        ("fp32", 0.998, "failed"),
        ("fp16", 0.9995, "passed"),
        ("fp16", 0.998, "warning"),
        ("fp16", 0.94, "failed"),
        ("int8", 0.991, "passed"),
        ("int8", 0.989, "warning"),
        ("int8", 0.951, "warning"),
        ("int8", 0.949, "failed"),
    ],
)
def test_retained_share_is_compared_with_the_precisions_gate(precision, kept, verdict):
    found = judge_accuracy(scores(0.5), scores(0.5 * kept), precision, NAMES)
    assert found.verdict == verdict and found.retained == pytest.approx(kept)
    assert bool(found.reason) == (verdict == "failed") and bool(found.note) == (verdict == "warning")


def test_classes_and_images_that_lose_most_come_first_and_are_shown_on_failure():
    ours = scores(0.5, {0: 0.6, 1: 0.4}, {"/d/a.png": 0.5, "/d/b.png": 0.9})
    theirs = scores(0.3, {0: 0.5, 1: 0.1}, {"/d/a.png": 0.5, "/d/b.png": 0.1})
    found = judge_accuracy(ours, theirs, "int8", NAMES)
    assert [c["name"] for c in found.classes] == ["green", "red"]
    assert found.classes[0]["change"] == pytest.approx(-0.3)
    assert found.worst_images[0]["image"] == "b.png" and found.worst_images[0]["change"] == pytest.approx(-0.8)
    assert "class green: 0.4000 -> 0.1000 (-0.3000)" in str(found) and "worst: b.png: 0.900 -> 0.100" in str(found)
    assert "less than 95.0%" in found.reason


def test_class_that_the_file_never_detects_counts_as_lost():
    found = judge_accuracy(scores(0.5, {0: 0.5, 1: 0.5}), scores(0.25, {0: 0.5}), "int8", NAMES)
    assert found.classes[0] == {"name": "green", "checkpoint": 0.5, "file": 0.0, "change": -0.5}


def test_measure_is_ultralytics_val_with_the_full_letterbox(tiny_detector, exported, tmp_path):
    from ultralytics import YOLO

    own = YOLO(tiny_detector.pt).val(
        data=tiny_detector.data, imgsz=96, rect=False, batch=1, conf=0.001, plots=False, project=tmp_path, name="val"
    )
    found = measure_map(tiny_detector.pt, tiny_detector.data, (96, 96), "one2many")
    assert found.map50_95 == pytest.approx(own.box.map) and found.map50 == pytest.approx(own.box.map50)
    assert set(found.classes) == set(NAMES) and len(found.images) == 16
    assert measure_map(exported["one2many"], tiny_detector.data).map50_95 == pytest.approx(found.map50_95, rel=1e-3)


def test_heads_are_compared_like_with_like(tiny_detector, exported):
    many = measure_map(tiny_detector.pt, tiny_detector.data, (96, 96), "one2many").map50_95
    one = measure_map(tiny_detector.pt, tiny_detector.data, (96, 96), "one2one").map50_95
    assert abs(many - one) > 0.002  # so that the wrong head would show
    for head, expected in (("one2many", many), ("one2one", one)):
        about = read_exported_model(exported[head])
        found = compare_accuracy(tiny_detector.pt, exported[head], about, str(tiny_detector.data), NAMES)
        assert found.checkpoint_map50_95 == pytest.approx(expected)
        assert found.verdict == "passed" and found.retained == pytest.approx(1, abs=1e-3)


def test_checkpoint_is_letterboxed_to_the_files_shape_not_to_a_square(tiny_detector, tmp_path):
    import shutil

    from ultralytics import YOLO

    wide = YOLO(shutil.copy(tiny_detector.pt, tmp_path / "wide.pt")).export(format="onnx", imgsz=[64, 96])
    parity = check(wide, tiny_detector.pt, data=tiny_detector.data)
    assert parity.passed and parity.accuracy.retained == pytest.approx(1, abs=1e-3)
    square = measure_map(tiny_detector.pt, tiny_detector.data, (96, 96), "one2many").map50_95
    assert abs(parity.accuracy.checkpoint_map50_95 - square) > 0.01


def test_checkpoint_needs_a_size(tiny_detector):
    with pytest.raises(BadInput, match="is a checkpoint, for which imgsz= is required"):
        measure_map(tiny_detector.pt, tiny_detector.data)


@pytest.mark.parametrize(
    ("checkpoint", "found", "verdict"),
    [(0.0, "nothing", "not measured"), (0.0099, "almost nothing", "not measured"), (0.0101, "", "failed")],
)
def test_share_of_almost_nothing_is_not_judged(checkpoint, found, verdict, monkeypatch):
    monkeypatch.setattr(accuracy, "why_not_measurable", lambda *arguments: "")
    monkeypatch.setattr(
        accuracy, "measure_map", lambda path, *rest, **more: scores(checkpoint * (1 if path == "a.pt" else 0.92))
    )
    model = SimpleNamespace(imgsz=(96, 96), head="one2one", precision="fp32")
    outcome = compare_accuracy("a.pt", "a.onnx", model, "data.yaml", NAMES)
    assert outcome.verdict == verdict and outcome.checkpoint_map50_95 == checkpoint
    if found:
        line = f"the checkpoint finds {found} on this data (mAP50-95 {checkpoint:.4f}), so its detections alone"
        assert not outcome.reason and line in outcome.note and line in str(outcome)


def test_model_of_merged_classes_is_measured_with_the_datas_classes_as_one(tiny_detector, tmp_path):
    import torch
    from ultralytics import YOLO

    merged = {"data": str(tiny_detector.data), "single_cls": True, "imgsz": 96, "epochs": 2, "batch": 4, "nbs": 4}
    run = {"warmup_epochs": 0, "mosaic": 0, "optimizer": "AdamW", "lr0": 0.003, "plots": False, "val": False}
    YOLO(tiny_detector.pt).train(**merged, **run, device="cpu", workers=0, project=str(tmp_path), name="run", seed=0)
    best = tmp_path / "run/weights/last.pt"
    assert torch.load(best, weights_only=False)["model"].names == {0: "item"}
    own = YOLO(best).val(
        data=tiny_detector.data, imgsz=96, rect=False, batch=1, conf=0.001, plots=False, single_cls=True, device="cpu",
        nms=False,
    )  # fmt: skip
    parity = check(YOLO(best).export(format="onnx", imgsz=96, nms=False), best)
    assert parity.passed and parity.accuracy.verdict == "passed"
    assert parity.accuracy.checkpoint_map50_95 == pytest.approx(own.box.map, rel=1e-3) and own.box.map > 0.05


def test_int8_without_measured_map_does_not_pass():
    unmeasured = Accuracy("not measured", note="the val images have no labels; give a data= with labels")
    reason = "INT8 is judged by its mAP, which was not measured"
    assert int8_not_measured(unmeasured) == f"{reason}: the val images have no labels; give a data= with labels"
    assert int8_not_measured(None) == f"{reason}: accuracy=false"
    assert int8_not_measured(judge_accuracy(scores(0.5), scores(0.5), "int8", NAMES)) == ""


def test_other_head_is_measured_where_there_are_two(tiny_detector, monkeypatch):
    asked = []
    monkeypatch.setattr(accuracy, "measure_map", lambda *given: asked.append(given) or scores(0.7))
    found, model = (
        judge_accuracy(scores(0.5), scores(0.5), "fp32", NAMES),
        SimpleNamespace(imgsz=(96, 64), head="one2one"),
    )
    trained = load_detector("model", str(tiny_detector.pt))
    both = accuracy.measure_other_head(found, tiny_detector.pt, model, trained, "data.yaml")
    assert (both.other_head, both.other_head_map50_95) == ("one2many", 0.7)
    assert asked == [(tiny_detector.pt, "data.yaml", (96, 64), "one2many", False)]
    unmeasured = Accuracy("not measured")
    assert accuracy.measure_other_head(unmeasured, tiny_detector.pt, model, trained, "data.yaml") is unmeasured


def test_reason_why_map_is_not_measured(tiny_detector, tmp_path):
    assert why_not_measurable(None, NAMES) == "images have no labels; give data="
    assert why_not_measurable(str(tiny_detector.data), NAMES) == ""
    other = why_not_measurable(str(tiny_detector.data), {0: "cat"})
    assert "classes (red, green, blue) differ from the checkpoint's" in other
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), cv2.imread(str(tiny_detector.images[0])))
    bare = tmp_path / "bare.yaml"
    bare.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images", "val": "images", "names": NAMES}))
    assert "val images have no labels" in why_not_measurable(str(bare), NAMES)
