"""A file that detects what its checkpoint does passes; each injected fault is caught and named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolo_mkd.deploy.check import check
from yolo_mkd.deploy.check.matching import Detections, compare_detections, judge_detections
from yolo_mkd.deploy.images import evenly_spaced, find_images
from yolo_mkd.edge.boxes import box_iou
from yolo_mkd.settings import BadInput

BOX = (10.0, 10.0, 50.0, 50.0)


def rows(*found: tuple[float, int] | tuple[float, int, tuple[float, ...]]) -> np.ndarray:
    """Detections from (score, class) or (score, class, box)."""
    return np.array([[*(f[2] if len(f) == 3 else BOX), f[0], f[1]] for f in found], dtype=float).reshape(-1, 6)


def verdict(expected: np.ndarray, got: np.ndarray, conf: float = 0.25, precision: str = "fp32") -> Detections:
    return judge_detections([expected], [got], ["a.png"], conf, precision)


# Detections


def test_no_detection_on_either_side_fails_since_nothing_was_compared():
    parity = verdict(rows(), rows())
    assert not parity.passed
    assert "down to conf 0.001" in parity.reason and "nothing could be compared" in parity.reason


def test_equal_detections_pass_and_are_counted():
    parity = verdict(rows((0.9, 0), (0.8, 1)), rows((0.9, 0), (0.8, 1)))
    assert parity.passed and parity.reason == ""
    assert (parity.checkpoint_detections, parity.file_detections, parity.min_iou) == (2, 2, 1.0)


def test_iou_of_half_shifted_boxes_is_one_third():
    assert box_iou(rows((0.9, 0, (0, 0, 10, 10))), rows((0.9, 0, (5, 0, 15, 10))))[0, 0] == pytest.approx(1 / 3)


def test_boxes_clipped_flat_agree_by_their_corners():
    flat = rows((0.9, 0, (10, 480, 50, 480)), (0.8, 1, (30, 20, 25, 90)))
    parity = verdict(flat, flat)
    assert parity.passed and parity.min_iou == 1.0 and parity.checkpoint_detections == 2
    assert verdict(flat, flat + np.array([0.1, 0, 0, 0, 0, 0])).file_unmatched == 2


def test_threshold_is_lowered_until_something_is_detected_and_printed():
    parity = verdict(rows((0.04, 0)), rows((0.04, 0)))
    assert parity.passed and parity.conf == 0.03 and parity.asked_conf == 0.25
    assert "lowered from 0.25" in str(parity)


def test_low_scores_must_agree_in_proportion():
    parity = verdict(rows((0.04, 0)), rows((0.0395, 0)))
    assert not parity.passed and "scores moved" in parity.reason


def test_detection_on_the_threshold_may_score_just_below_it_on_the_other_side():
    parity = verdict(rows((0.9, 0), (0.2503, 1)), rows((0.9, 0), (0.2498, 1)))
    assert parity.passed and parity.borderline == 1
    assert (parity.checkpoint_detections, parity.file_detections) == (2, 1)


def test_detection_on_the_threshold_without_a_partner_fails():
    parity = verdict(rows((0.9, 0), (0.2503, 1)), rows((0.9, 0)))
    assert not parity.passed and parity.checkpoint_unmatched == 1


def test_extra_detection_of_the_file_fails():
    parity = verdict(rows((0.9, 0)), rows((0.9, 0), (0.6, 0, (60, 60, 90, 90))))
    assert not parity.passed and parity.file_unmatched == 1 and "no partner" in parity.reason


def test_moved_box_fails_with_its_iou():
    parity = verdict(rows((0.9, 0)), rows((0.9, 0, (10, 10, 50, 50.2))))
    assert not parity.passed and parity.min_iou == pytest.approx(40 / 40.2)
    assert "boxes moved" in parity.reason


def test_moved_score_fails_with_its_difference():
    parity = verdict(rows((0.9, 0)), rows((0.898, 0)))
    assert not parity.passed and parity.max_score_difference == pytest.approx(0.002)
    assert "scores moved by up to 0.002" in parity.reason


def test_twins_of_one_box_are_paired_by_score():
    parity = verdict(rows((0.9, 0), (0.5, 0)), rows((0.5, 0), (0.9, 0)))
    assert parity.passed and parity.max_score_difference == 0


def test_detections_near_the_end_of_a_full_list_are_not_required():
    full = rows(*[(0.9, 0, (40.0 * k, 0.0, 40.0 * k + 30, 30.0)) for k in range(299)], (0.3, 1))
    other = rows(*[(0.9, 0, (40.0 * k, 0.0, 40.0 * k + 30, 30.0)) for k in range(299)], (0.3, 2))
    assert compare_detections(full, other, 0.25, 1e-3)["checkpoint_unmatched"] == 0
    assert compare_detections(full[1:], other[1:], 0.25, 1e-3)["checkpoint_unmatched"] == 1


def many(count: int, moved: int = 0, lost: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Detections of two sides, some moved to IoU 0.9 and some gone on the second."""
    ours = rows(*[(0.9, 0, (40.0 * k, 0.0, 40.0 * k + 30, 30.0)) for k in range(count)])
    theirs = ours.copy()
    theirs[:moved, 2] -= 3
    return ours, theirs[: count - lost]


def test_half_precision_may_move_a_twentieth_of_the_boxes():
    assert verdict(*many(40, moved=2), precision="fp16").passed
    parity = verdict(*many(40, moved=3), precision="fp16")
    assert not parity.passed and parity.agreeing == pytest.approx(37 / 40)
    assert "92.5% of detections agree, less than 95%: boxes moved: min IoU 0.9000 is below 0.99" in parity.reason
    assert "no partner" in verdict(*many(40, lost=3), precision="fp16").reason
    assert not verdict(*many(40, moved=1)).passed


def test_int8_differences_are_only_reported_but_missing_scores_or_other_classes_fail():
    parity = verdict(*many(40, moved=30, lost=5), precision="int8")
    assert parity.passed and parity.agreeing == pytest.approx(5 / 40) and "reported only" in str(parity)
    assert "its head gives no scores" in verdict(rows((0.9, 0)), rows(), precision="int8").reason
    assert "class columns are in another order" in verdict(rows((0.9, 0)), rows((0.9, 1)), precision="int8").reason


def test_worst_image_comes_first():
    good, bad = rows((0.9, 0)), rows((0.9, 0), (0.8, 1))
    assert judge_detections([good, bad], [good, good], ["good.png", "bad.png"]).worst_images[0]["image"] == "bad.png"


# Images


def test_evenly_spaced_items_include_both_ends():
    assert evenly_spaced(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert evenly_spaced([1, 2, 3], 5) == [1, 2, 3]


def test_images_come_from_a_folder_a_file_or_the_val_split(tiny_detector):
    assert find_images(tiny_detector.images[0].parent, None) == tiny_detector.images
    assert find_images(tiny_detector.images[2], None) == [tiny_detector.images[2]]
    assert find_images(None, tiny_detector.data) == tiny_detector.images
    assert find_images(None, None, str(tiny_detector.data)) == tiny_detector.images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, "gone.yaml"), r"no images \(its data set gone.yaml was not found\): give images= .* or data="),
        ((None, None, None), r"no images \(the checkpoint names no data set\): give images="),
        (("nowhere", None), "images=nowhere: no such file or folder"),
        (("a", "b"), "cannot be combined"),
        ((None, "gone.yaml"), "data=gone.yaml"),
    ],
)
def test_missing_images_are_one_clear_line(arguments, message):
    with pytest.raises(BadInput, match=message) as caught:
        find_images(*arguments)
    assert "\n" not in str(caught.value)


# Whole files


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_true_export_passes_at_full_precision(exported, tiny_detector, head):
    parity = check(exported[head], tiny_detector.pt, images=tiny_detector.images[:6])
    assert parity.passed, parity.reason
    found = parity.detections
    assert parity.head == head and found.images == 6
    assert found.file_detections == found.checkpoint_detections >= 12  # two or three objects on each
    assert found.min_iou > 0.9999 and found.max_score_difference < 1e-4
    assert parity.accuracy.verdict == "not measured" and "images have no labels; give data=" in str(parity)


def faulty(source: Path, folder: Path, fault: Callable) -> Path:
    """A copy of an ONNX file with something wrong in it."""
    import onnx

    graph = onnx.load(source)
    fault(graph)
    onnx.save(graph, folder / "faulty.onnx")
    return folder / "faulty.onnx"


def weights(graph, pick: Callable):
    """Values of one convolution's weights, and a function that writes them back."""
    from onnx import numpy_helper

    tensors = [t for t in graph.graph.initializer if len(t.dims) == 4]
    tensor = pick(tensors)
    return (
        numpy_helper.to_array(tensor).copy(),
        lambda a: tensor.CopyFrom(numpy_helper.from_array(a, tensor.name)),
    )


def expect_bgr(graph):
    values, write = weights(graph, lambda ts: next(t for t in ts if t.dims[1] == 3))
    write(values[:, ::-1].copy())


def change_weights(graph):
    values, write = weights(graph, lambda ts: next(t for t in ts if t.dims[1] == 3))
    write(values * np.float32(1.2))


def last_step(graph, op: str, constant: np.ndarray, **attributes):
    """Append one operator behind the graph's output."""
    from onnx import helper, numpy_helper

    for node in graph.graph.node:
        node.output[:] = ["raw" if name == "output0" else name for name in node.output]
    graph.graph.initializer.append(numpy_helper.from_array(constant, "constant"))
    graph.graph.node.append(helper.make_node(op, ["raw", "constant"], ["output0"], **attributes))


def first_steps(graph, *nodes, **constants: np.ndarray):
    """Put operators between the graph's input and whatever reads it; the last of them makes `seen`."""
    from onnx import numpy_helper

    for node in graph.graph.node:
        node.input[:] = ["seen" if name == "images" else name for name in node.input]
    graph.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    for place, node in enumerate(nodes):
        graph.graph.node.insert(place, node)


def stretch(graph):
    """Undo the letterbox of 96 x 128 in 96 x 96, whose picture is rows 12 to 84, and stretch instead."""
    from onnx import helper

    first_steps(
        graph,
        helper.make_node("Slice", ["images", "first", "end", "axis"], ["inside"], name="inside"),
        helper.make_node("Resize", ["inside", "", "", "full"], ["seen"], name="stretch", mode="linear"),
        first=np.array([12]), end=np.array([84]), axis=np.array([2]), full=np.array([1, 3, 96, 96]),
    )  # fmt: skip


def blacken_margins(graph):
    from onnx import helper

    mask = np.zeros((1, 1, 96, 1), np.float32)
    mask[:, :, 12:84] = 1
    first_steps(graph, helper.make_node("Mul", ["images", "mask"], ["seen"], name="margins"), mask=mask)


def move_to_the_corner(graph):
    from onnx import helper

    rows = np.roll(np.arange(96), -12)
    first_steps(graph, helper.make_node("Gather", ["images", "rows"], ["seen"], name="move", axis=2), rows=rows)


def zero_head(graph):
    last_step(graph, "Mul", np.zeros(1, np.float32))


def shuffle_class_columns(graph):
    last_step(graph, "Gather", np.array([0, 1, 2, 3, 5, 6, 4]), axis=1)


def shuffle_rows(graph):
    shape = [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim]
    axis = 1 if shape[2] == 6 else 2  # one2one: (1, rows, 6); one2many: (1, 4+classes, anchors)
    last_step(graph, "Gather", np.random.default_rng(0).permutation(shape[axis]), axis=axis)


def shuffle_boxes_against_scores(graph):
    from onnx import helper, numpy_helper

    shape = [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim]
    axis = 1 if shape[2] == 6 else 2
    order = np.random.default_rng(0).permutation(shape[axis])
    for node in graph.graph.node:
        node.output[:] = ["raw" if name == "output0" else name for name in node.output]
    sizes = np.array([4, shape[3 - axis] - 4])
    graph.graph.initializer.extend([numpy_helper.from_array(order, "order"), numpy_helper.from_array(sizes, "sizes")])
    graph.graph.node.extend(
        [
            helper.make_node("Split", ["raw", "sizes"], ["boxes", "scores"], name="apart", axis=3 - axis),
            helper.make_node("Gather", ["boxes", "order"], ["other_boxes"], name="shuffle", axis=axis),
            helper.make_node("Concat", ["other_boxes", "scores"], ["output0"], name="joined", axis=3 - axis),
        ]
    )


def swap_names(graph):
    entry = next(p for p in graph.metadata_props if p.key == "names")
    entry.value = "{0: 'blue', 1: 'green', 2: 'red'}"


def change_stride(graph):
    next(p for p in graph.metadata_props if p.key == "stride").value = "64"


def drop_metadata(graph):
    del graph.metadata_props[:]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (expect_bgr, "expects BGR"),
        (change_weights, "no partner|boxes moved|scores moved"),
        (stretch, "only with stretched images: the file's letterbox differs from the checkpoint's"),
        (blacken_margins, "only with black margins, not grey 114: the file's letterbox"),
        (move_to_the_corner, "only with images in the upper left corner, not centred: the file's letterbox"),
        (zero_head, r"has no detections where the checkpoint has \d+: its head gives no scores"),
        (shuffle_class_columns, "class columns are in another order"),
        (shuffle_boxes_against_scores, "scores agree but boxes differ: the boxes are in other rows than their scores"),
        (swap_names, "class 0 is named blue in the file, red in the checkpoint"),
        (change_stride, "stride is 64 in the file, 32"),
        (drop_metadata, "no Ultralytics metadata"),
    ],
)
def test_fault_is_caught_and_named(exported, tiny_detector, tmp_path, fault, reason):
    parity = check(faulty(exported["one2many"], tmp_path, fault), tiny_detector.pt, images=tiny_detector.images[:4])
    assert not parity.passed
    assert re.search(reason, parity.reason), parity.reason
    assert "\n" not in parity.reason and parity.reason in str(parity)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (expect_bgr, "expects BGR"),
        (stretch, "only with stretched images"),
        (zero_head, "its head gives no scores"),
        (shuffle_boxes_against_scores, "the boxes are in other rows than their scores"),
    ],
)
def test_fault_of_the_nms_free_head_is_caught_and_named(exported, tiny_detector, tmp_path, fault, reason):
    parity = check(faulty(exported["one2one"], tmp_path, fault), tiny_detector.pt, images=tiny_detector.images[:4])
    assert not parity.passed and re.search(reason, parity.reason), parity.reason


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_order_of_rows_does_not_matter(exported, tiny_detector, tmp_path, head):
    parity = check(faulty(exported[head], tmp_path, shuffle_rows), tiny_detector.pt, images=tiny_detector.images[:4])
    assert parity.passed, parity.reason


def test_graph_quantised_whole_loses_its_map_and_is_named(exported, tiny_detector, tmp_path):
    from onnxruntime.quantization import quantize_static

    from yolo_mkd.deploy.export.int8 import CalibrationReader

    naive = tmp_path / "naive.onnx"
    quantize_static(exported["one2many"], naive, CalibrationReader(tiny_detector.images[:8], (96, 96), "images"))
    parity = check(naive, tiny_detector.pt, data=tiny_detector.data)
    assert not parity.passed and "its head's decode is quantised too" in parity.reason, parity.reason
    assert parity.model.precision == "int8"


def test_opset_above_the_targets_fails(exported, tiny_detector):
    parity = check(exported["one2one"], tiny_detector.pt, images=tiny_detector.images[:1], opset=17)
    assert not parity.passed and parity.reason == "the file needs opset 18, but its target supports up to 17"


def test_figures_are_written_to_the_given_file(exported, tiny_detector, tmp_path):
    written = tmp_path / "out/check.json"
    check(exported["one2one"], tiny_detector.pt, images=tiny_detector.images[:2], json=written)
    report = json.loads(written.read_text())
    assert report["schema"] == "yolo-mkd/check/1" and report["parity"]["passed"]
    assert report["head"] == "one2one" and report["accuracy"]["verdict"] == "not measured"


def test_truncated_file_fails_the_check(exported, tiny_detector, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(exported["one2many"].read_bytes()[:2000])
    parity = check(tmp_path / "cut.onnx", tiny_detector.pt, images=tiny_detector.images[:1])
    assert not parity.passed and "cannot be loaded by ONNX Runtime" in parity.reason


def test_unreadable_image_is_named_in_the_error(exported, tiny_detector, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(BadInput, match=r"bad\.png cannot be read as an image"):
        check(exported["one2many"], tiny_detector.pt, images=tmp_path)


def test_model_must_be_an_existing_onnx_file(tiny_detector, tmp_path):
    with pytest.raises(BadInput, match=r"model=.* must be an \.onnx, "):
        check(tiny_detector.pt, tiny_detector.pt)
    with pytest.raises(BadInput, match="no such file"):
        check(tmp_path / "gone.onnx", tiny_detector.pt)
    shutil.copy(tiny_detector.pt, tmp_path / "a.onnx")
    with pytest.raises(BadInput, match=r"against=.*gone\.pt: no such file"):
        check(tmp_path / "a.onnx", tmp_path / "gone.pt")
