"""Scores that a conversion moved: the shift in logits is named with the threshold to use, and recall lost by class."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from yolo_mkd.deploy.bundle import thresholds_of
from yolo_mkd.deploy.check import check
from yolo_mkd.deploy.check.thresholds import compare_thresholds, score_shift
from yolo_mkd.edge.bundle import Bundle
from yolo_mkd.edge.run import default_conf

NAMES = {0: "red", 1: "green"}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def detections(logits: np.ndarray) -> list[np.ndarray]:
    """One image a score: a box of class 0."""
    return [np.array([[10.0, 10, 50, 50, score, 0]]) for score in sigmoid(logits)]


def test_constant_shift_of_the_logits_is_found_with_the_threshold_that_corresponds_to_a_quarter():
    logits = np.linspace(-2, 3, 40)
    found = score_shift(detections(logits), detections(logits - 0.5))
    assert found is not None and found.pairs == 40 and found.constant
    assert found.logits == pytest.approx(-0.5) and found.lower_quartile == pytest.approx(found.upper_quartile)
    # logit(1/4) = -ln 3, so the threshold is 1 / (1 + 3 e^0.5) = 0.1682
    assert found.conf == pytest.approx(1 / (1 + 3 * exp(0.5)))
    assert "lower by a constant 0.50 logits" in str(found) and "use conf 0.168 where the checkpoint had 0.25" in str(
        found
    )


def test_median_of_a_shift_that_varies_is_not_called_constant():
    logits, rng = np.linspace(-2, 3, 101), np.random.default_rng(0)
    moved = rng.permutation(np.linspace(0.1, 0.7, 101))
    found = score_shift(detections(logits), detections(logits + moved))
    assert found is not None and not found.constant and found.logits == pytest.approx(0.4)
    assert (found.lower_quartile, found.upper_quartile) == pytest.approx((0.25, 0.55))
    assert "higher by a median of 0.40 logits (quartiles +0.25 and +0.55, 101 pairs)" in str(found)


@pytest.mark.parametrize(
    ("count", "moved"),
    [
        (40, 0.09),  # less than a tenth of a logit
        (19, 0.5),  # too few pairs
        (40, np.linspace(-0.4, 1.2, 40)),  # a quarter moved the other way: no direction
    ],
)
def test_small_rare_or_mixed_changes_are_not_called_a_shift(count, moved):
    logits = np.random.default_rng(0).permutation(np.linspace(-2, 3, count))
    moved = np.where(np.arange(count) < count * 0.3, -1, 1) * 0.5 if isinstance(moved, np.ndarray) else moved
    assert score_shift(detections(logits), detections(logits + moved)) is None


def test_background_below_a_tenth_does_not_count():
    logits = np.concatenate([np.full(25, 1.0), np.full(100, log(0.09 / 0.91))])
    found = score_shift(detections(logits), detections(logits + np.where(logits > 0, 0.3, -2)))
    assert found is not None and found.pairs == 25 and found.logits == pytest.approx(0.3)


def curves(best: dict[int, int], recall: dict[int, float]) -> dict:
    """Curves over 11 thresholds whose F1 is best at the given index; recall falls from the given value at it."""
    conf = np.linspace(0, 1, 11)
    f1 = np.stack([1 - np.abs(conf - conf[i]) for i in best.values()])
    falls = np.stack([np.clip(r - (conf - conf[i]), 0, 1) for i, r in zip(best.values(), recall.values(), strict=True)])
    return {"conf": conf, "classes": list(best), "recall": falls, "f1": f1}


def test_recall_lost_at_the_checkpoints_threshold_is_listed_by_class_the_largest_first():
    ours = curves({0: 5, 1: 4}, {0: 0.8, 1: 0.9})
    theirs = curves({0: 5, 1: 1}, {0: 0.79, 1: 0.9})  # green: best at 0.1 with recall 0.9, 0.6 at 0.4
    found = compare_thresholds(ours, theirs, NAMES)
    green, red = found.classes
    assert green["name"] == "green" and (green["checkpoint"], green["file"]) == pytest.approx((0.4, 0.1))
    assert (green["checkpoint_recall"], green["recall"], green["own_recall"]) == pytest.approx((0.9, 0.6, 0.9))
    assert green["recall_lost"] == pytest.approx(0.3) and red["recall_lost"] == pytest.approx(0.01)
    text = str(found)
    assert "class green: at conf 0.400 recall 0.9000 -> 0.6000; its best F1 is now at 0.100, recall 0.9000" in text
    assert "class red" not in text  # less than 2 points


def test_threshold_of_all_classes_is_that_of_the_mean_f1():
    found = compare_thresholds(curves({0: 5}, {0: 0.8}), curves({0: 3}, {0: 0.8}), NAMES)
    assert (found.checkpoint, found.file) == pytest.approx((0.5, 0.3))
    assert (found.checkpoint_f1, found.f1, found.f1_at_checkpoints) == pytest.approx((1, 1, 0.8))
    assert (found.checkpoint_recall, found.recall, found.recall_lost) == pytest.approx((0.8, 0.6, 0.2))


def test_bundle_has_the_threshold_to_use_and_the_device_reads_it(tmp_path):
    best = {"file": 0.3, "classes": [{"name": "red", "file": 0.31}]}
    facts = thresholds_of({"score_shift": {"conf": 0.16822, "logits": -0.5}, "accuracy": {"thresholds": best}})
    assert facts == {
        "conf": 0.1682, "checkpoint_conf": 0.25, "shift_logits": -0.5, "best_f1": 0.3, "classes": {"red": 0.31},
    }  # fmt: skip
    device = Bundle(tmp_path, tmp_path, "", [], (96, 96), "one2one", "int8", {"thresholds": facts})
    assert default_conf(device) == 0.1682
    assert default_conf(device._replace(facts={})) == 0.25  # a bundle of an earlier version
    unmeasured = thresholds_of({"score_shift": None, "accuracy": {"thresholds": None}})
    assert unmeasured["conf"] == 0.25 and unmeasured["best_f1"] is None


def shifted(source: Path, target: Path, logits: float) -> Path:
    """A copy of an exported file whose last class convolutions have another bias."""
    model = onnx.load(source)
    last = {
        n.input[2] for n in model.graph.node if n.op_type == "Conv" and "cv3" in n.name and n.name.endswith(".2/Conv")
    }
    assert len(last) == 3
    for tensor in model.graph.initializer:
        if tensor.name in last:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(logits), tensor.name))
    onnx.save(model, target)
    return target


def test_planted_shift_is_named_though_map_is_kept(exported, tiny_detector, tmp_path):
    file = shifted(exported["one2many"], tmp_path / "shifted.onnx", -0.5)
    parity = check(file, tiny_detector.pt, data=tiny_detector.data, json=tmp_path / "check.json")
    assert parity.accuracy.retained == pytest.approx(1, abs=0.01)
    assert parity.shift.constant and parity.shift.logits == pytest.approx(-0.5, abs=0.01)
    assert not parity.passed and "lower by a constant 0.50 logits" in parity.reason  # FP32 must be exact
    assert parity.accuracy.thresholds.recall_lost > 0.02
    assert parity.accuracy.thresholds.file < parity.accuracy.thresholds.checkpoint
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["score_shift"]["conf"] == pytest.approx(0.168, abs=0.002)
    assert report["accuracy"]["thresholds"]["classes"][0]["recall_lost"] > 0.02
