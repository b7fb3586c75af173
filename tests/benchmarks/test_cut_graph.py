"""A graph that is cut before its decode, run and decoded in numpy, gives the boxes of the whole file."""

from __future__ import annotations

import cut_graph
import numpy as np
import onnx
import onnxruntime
import pytest

from yolo_mkd.edge.boxes import decode_boxes
from yolo_mkd.edge.pictures import letterbox, read_picture, to_tensor

SIZE = (96, 96)


def run(path, tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: tensor})


def test_distances_and_bins_are_decoded_to_centre_and_size():
    # one cell of stride 8 with distances 1 2 3 4 from its centre (0.5, 0.5): x from -0.5 to 3.5, y from -1.5 to 4.5
    distances = np.array([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)
    found = cut_graph.decode_maps([distances, np.zeros((1, 2, 1, 1))], (8, 8))
    np.testing.assert_allclose(found[0, :, 0], [12, 12, 32, 48, 0.5, 0.5])
    bins = np.full((1, 4, 6, 1, 1), -50.0)
    for side, distance in enumerate((1, 2, 3, 4)):
        bins[0, side, distance] = 50
    same = cut_graph.decode_maps([bins.reshape(1, 24, 1, 1), np.zeros((1, 2, 1, 1))], (8, 8))
    np.testing.assert_allclose(same, found)


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_cut_graph_decoded_in_numpy_detects_what_the_whole_file_does(exported, tiny_detector, tmp_path, head):
    cut = tmp_path / "cut.onnx"
    outputs = cut_graph.cut_graph(exported[head], cut)
    graph = onnx.load(cut).graph
    shapes = [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output]
    assert [o.name for o in graph.output] == outputs
    assert shapes == [[1, c, s, s] for s in (12, 6, 3) for c in (4, 3)]
    assert not {n.op_type for n in graph.node} & {"TopK", "GatherElements", "Mod"}
    for path in tiny_detector.images[:4]:
        picture = read_picture(path)
        tensor = to_tensor(letterbox(picture, SIZE))
        (whole,), raw = run(exported[head], tensor), cut_graph.decode_maps(run(cut, tensor), SIZE)
        if head == "one2many":
            np.testing.assert_allclose(raw, whole, rtol=1e-4, atol=1e-3)
            continue
        expected = decode_boxes(whole, head, picture.shape[:2], SIZE, 0.25)
        anchors, labels = np.nonzero(raw[0, 4:].T > 0.25)  # no NMS: each such pair is a box
        scores = raw[0, 4 + labels, anchors]
        order = np.argsort(-scores)
        rows = raw[0, :4].T[anchors[order]]
        corners = np.hstack([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2])
        assert len(rows) == len(expected) >= 2
        np.testing.assert_allclose(scores[order], expected[:, 4], atol=1e-4)
        np.testing.assert_array_equal(labels[order], expected[:, 5])
        in_canvas = whole[0][whole[0, :, 4] > 0.25][:, :4]
        np.testing.assert_allclose(corners, in_canvas, atol=1e-2)
