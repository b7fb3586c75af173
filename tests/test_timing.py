"""The statistics hide nothing, and what is timed is the pipeline whose boxes Ultralytics gives."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_mkd import timing
from yolo_mkd.artefact import describe, open_session
from yolo_mkd.images import read_image
from yolo_mkd.parity import compare, detect
from yolo_mkd.settings import BadInput, Failed
from yolo_mkd.timing import (
    FLOORS,
    drift,
    measure,
    nearest_rank,
    non_maximum_suppression,
    physical_cores,
    postprocess,
    preprocess,
    statistics,
    synthetic_picture,
    table,
    time,
    warm_up,
)

# Statistics


@pytest.mark.parametrize(
    ("count", "percentile", "value"),
    [(1, 50, 1), (4, 50, 2), (5, 50, 3), (10, 90, 9), (11, 90, 10), (100, 99, 99), (101, 99, 100), (1000, 99.9, 999)],
)
def test_percentile_is_the_nearest_rank(count, percentile, value):
    shuffled = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert nearest_rank(list(shuffled), percentile) == value


@pytest.mark.parametrize(("percentile", "floor"), FLOORS.items())
def test_floor_is_where_one_sample_beyond_it_is_sure_to_a_hundredth(percentile, floor):
    def at_most_one_beyond(n: int) -> float:
        p = percentile / 100
        return p**n + n * (1 - p) * p ** (n - 1)

    assert at_most_one_beyond(floor) <= 0.01 < at_most_one_beyond(floor - 1)


@pytest.mark.parametrize(("key", "floor"), [("p90_ms", 64), ("p95_ms", 130), ("p99_ms", 662), ("p99_9_ms", 6636)])
def test_percentile_is_left_out_below_its_floor(key, floor):
    assert statistics([1.0] * (floor - 1))[key] is None
    assert statistics([1.0] * floor)[key] == 1.0


def test_statistics_agree_with_hand_values():
    figures = statistics([3.0, 1.0, 2.0, 6.0])
    assert (figures["n"], figures["min_ms"], figures["mean_ms"], figures["max_ms"]) == (4, 1.0, 3.0, 6.0)
    assert figures["std_ms"] == pytest.approx(3.5**0.5)
    assert figures["p50_ms"] is None  # below 11 samples


def test_hog_in_the_last_fifth_shows_in_p90_and_max_and_is_not_stable():
    samples = [30.0] * 240 + [100.0] * 60
    figures, change = statistics(samples), drift(samples)
    assert (figures["n"], figures["p50_ms"], figures["p90_ms"], figures["max_ms"]) == (300, 30.0, 100.0, 100.0)
    assert figures["mean_ms"] == pytest.approx(44.0)  # nothing was cut off
    assert not change["stable"] and change["reason"] == "the last third is 233% slower than the first"


def test_change_of_less_than_a_twentieth_is_stable():
    assert drift([10.0] * 20 + [10.4] * 10)["stable"]
    assert not drift([10.0] * 20 + [9.4] * 10)["stable"]


# Measuring


def test_warm_up_ends_when_fifty_runs_agree():
    figures = warm_up(lambda index: [0, 0, 0, 9.0 if index < 30 else 1.0])
    assert figures["settled"] and figures["runs"] == 80
    assert figures["variation_of_last_50"] == 0


def test_warm_up_that_never_settles_stops_at_its_cap_and_says_so(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_CAP_S", 0.0)
    figures = warm_up(lambda index: [0, 0, 0, 1.0 + index % 2])
    assert not figures["settled"] and figures["runs"] == 10


def test_every_sample_is_kept_and_a_slow_model_still_gets_a_median():
    samples = measure(lambda index: [1.0, 2.0, 3.0, 1000.0 if index == 3 else 6.0], duration=1e-9)
    assert samples["end_to_end"] == [6.0] * 3 + [1000.0] + [6.0] * 7
    assert samples["compute"] == [2.0] * 11
    assert statistics(samples["end_to_end"])["p50_ms"] == 6.0


# The pipeline


@pytest.mark.parametrize(("shape", "imgsz"), [((96, 128), (96, 96)), ((50, 33), (96, 160)), ((96, 96), (96, 96))])
def test_preprocessing_is_exactly_that_of_ultralytics(shape, imgsz):
    import torch
    from ultralytics.data.augment import LetterBox

    picture = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    boxed = LetterBox(imgsz, auto=False)(image=picture)
    theirs = torch.from_numpy(boxed[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    ours = preprocess(picture, imgsz)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_boxes_are_those_of_ultralytics(exported, tiny_detector, head):
    session = open_session(exported[head], 1)
    artefact, pictures, found = describe(session), tiny_detector.images[:6], 0
    assert artefact.head == head
    for path, theirs in zip(pictures, detect(exported[head], pictures, artefact, timing.CONF), strict=True):
        picture = read_image(path)
        output = session.run(None, {"images": preprocess(picture, artefact.imgsz)})[0]
        ours = postprocess(output, artefact, picture.shape[:2])
        same = compare(ours.astype(float), theirs, timing.CONF, 1e-3)
        assert same["checkpoint_unmatched"] == same["file_unmatched"] == 0
        assert len(ours) == len(theirs) and same["min_iou"] > 0.9999 and same["max_score_difference"] < 1e-4
        found += len(ours)
    assert found >= 12


def test_suppression_agrees_with_torchvision_on_crowded_boxes():
    import torch
    from ultralytics.utils.nms import non_max_suppression

    rng = np.random.default_rng(2)
    rows = np.hstack([rng.uniform(20, 80, (400, 2)), rng.uniform(-5, 60, (400, 2)), rng.uniform(0, 1, (400, 3))])
    rows = rows.astype(np.float32)
    theirs = non_max_suppression(torch.from_numpy(rows.T[None].copy()), timing.CONF, timing.NMS_IOU)[0].numpy()
    ours = non_maximum_suppression(rows)
    assert 10 < len(ours) < 390
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_nothing_above_the_threshold_gives_no_boxes():
    assert non_maximum_suppression(np.zeros((8, 7), np.float32)).shape == (0, 6)


def test_synthetic_picture_is_the_same_each_time_and_not_flat():
    picture = synthetic_picture()
    assert picture.shape == (480, 640, 3) and picture.dtype == np.uint8 and picture.std() > 20
    np.testing.assert_array_equal(picture, synthetic_picture())


# The whole


def test_report_names_all_that_a_time_depends_on(exported, tiny_detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "WARM_UP_CAP_S", 0.1)
    figures = time(
        exported["one2one"], images=tiny_detector.images[:3], duration=0.3, threads=1, json=tmp_path / "t.json"
    )
    report = json.loads((tmp_path / "t.json").read_text())
    assert report["schema"] == "yolo-mkd/time/1"
    assert (report["head"], report["input"], report["threads"]) == ("one2one", [1, 3, 96, 96], 1)
    assert report["provider"] == "CPUExecutionProvider" and report["images"] == "3 of a list"
    assert report["load_ms"] > 0 and report["first_inference_ms"] > 0 and report["warm_up"]["runs"] >= 10
    n = report["segments"]["end_to_end"]["n"]
    assert n >= 11 and all(len(samples) == n for samples in report["samples_ms"].values())
    parts = np.sum([report["samples_ms"][s] for s in ("preprocess", "compute", "postprocess")], axis=0)
    np.testing.assert_allclose(parts, report["samples_ms"]["end_to_end"], atol=1e-6)
    assert figures["samples_ms"] == report["samples_ms"]
    printed = capsys.readouterr().out
    assert "not of a Jetson" in printed and "3 of a list" in printed


def test_table_names_the_floor_of_a_percentile_it_leaves_out(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_CAP_S", 0.0)
    figures = time(exported["one2many"], duration=1e-6, json=tmp_path / "t.json")
    assert figures["images"] == "one synthetic picture of 640 x 480"
    assert figures["segments"]["compute"]["n"] == 11
    assert "p90 needs 64, p95 needs 130, p99 needs 662" in table(figures)


def test_session_on_another_provider_is_a_failure(exported, monkeypatch):
    other = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider"])
    monkeypatch.setattr(timing, "open_session", lambda path, threads: other)
    with pytest.raises(Failed, match="on AzureExecutionProvider, not on CPUExecutionProvider"):
        time(exported["one2many"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration": 0}, "duration=0 is no time"),
        ({"duration": "long"}, "duration=long is no time"),
        ({"threads": 0}, "threads=0 is no number"),
        ({"images": "nowhere"}, "images=nowhere"),
    ],
)
def test_bad_argument_is_one_line(exported, arguments, message):
    with pytest.raises(BadInput, match=message):
        time(exported["one2many"], **arguments)
    assert not exported["one2many"].with_suffix(".time.json").exists()


def test_checkpoint_is_refused_with_advice(tmp_path):
    with pytest.raises(BadInput, match="export it first"):
        time(tmp_path / "best.pt")
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(BadInput, match="cannot be loaded by ONNX Runtime"):
        time(tmp_path / "bad.onnx")


def test_physical_cores_are_at_least_one_and_no_more_than_logical():
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
