"""The device's NMS gives the result of Ultralytics', and two sets of boxes are matched one to one."""

from __future__ import annotations

import numpy as np
import pytest

from yolo_mkd.edge.boxes import CONF, MAX_DET, NMS_IOU, decode_boxes, match_boxes, non_maximum_suppression


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_nms_gives_the_boxes_of_ultralytics(seed, classes):
    import torch
    from ultralytics.utils.nms import non_max_suppression

    rng = np.random.default_rng(seed)
    centres = rng.uniform(20, 600, (2000, 2)) if seed else rng.uniform(250, 350, (2000, 2))
    scores = rng.permutation(np.linspace(0, 1, 2000 * classes)).reshape(2000, classes)  # no two alike
    rows = np.hstack([centres, rng.uniform(10, 90, (2000, 2)), scores]).astype(np.float32)
    theirs = non_max_suppression(torch.from_numpy(rows.T[None].copy()), CONF, NMS_IOU)[0].numpy()
    ours = non_maximum_suppression(rows)
    assert 20 < len(ours) <= MAX_DET
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_no_boxes_without_a_score_above_the_threshold():
    assert non_maximum_suppression(np.zeros((8, 7), np.float32)).shape == (0, 6)
    assert decode_boxes(np.zeros((1, 300, 6), np.float32), "one2one", (96, 128), (96, 96), CONF).shape == (0, 6)


@pytest.mark.parametrize("head", ["one2one", "one2many"])
def test_boxes_are_mapped_to_the_picture_and_clipped_to_it(head):
    # a picture of 100 x 200 lands in 96 x 96 as 48 x 96, 24 from the top: 0.48 a pixel
    inside, outside = [0.0, 24.0, 48.0, 72.0], [48.0, 0.0, 96.0, 96.0]
    output = np.zeros((1, 2, 6), np.float32)
    output[0] = [[*inside, 0.9, 1], [*outside, 0.8, 0]]
    if head == "one2many":
        x1, y1, x2, y2 = output[0, :, :4].T
        scores = np.array([[0, 0.9], [0.8, 0]], np.float32)
        output = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *scores.T])[None].astype(np.float32)
    found = decode_boxes(output, head, (100, 200), (96, 96), CONF)
    np.testing.assert_allclose(found[:, :4], [[0, 0, 100, 100], [100, 0, 200, 100]], atol=1e-4)
    assert found[:, 5].tolist() == [1, 0] and found[:, 4].tolist() == pytest.approx([0.9, 0.8])


def rows(*some: tuple[float, float]) -> np.ndarray:
    """Boxes of 100 x 100, each shifted and scored."""
    return np.array([[x, 0, x + 100, 100, score, 0] for x, score in some], np.float32).reshape(-1, 6)


def test_equal_boxes_agree():
    figures = match_boxes(rows((0, 0.9), (300, 0.5)), rows((300, 0.5), (0, 0.9)), 0.25, 0.999, 1e-3)
    assert (figures["expected"], figures["got"], figures["matched"], figures["alone"]) == (2, 2, 2, 0)
    assert figures["apart"] == 0 and figures["min_iou"] == 1.0 and figures["max_score_difference"] == 0.0


@pytest.mark.parametrize(
    ("got", "alone"),
    [
        (rows((0, 0.9)), 1),  # one lost
        (rows((0, 0.9), (300, 0.5), (600, 0.4)), 1),  # one more
        (rows((0, 0.9), (380, 0.5)), 2),  # one elsewhere
        (rows((0, 0.9), (300, 0.5)) + np.array([0, 0, 0, 0, 0, 1], np.float32), 4),  # other classes
    ],
)
def test_boxes_without_a_partner_are_counted_on_both_sides(got, alone):
    assert match_boxes(rows((0, 0.9), (300, 0.5)), got, 0.25, 0.999, 1e-3)["alone"] == alone


def test_moved_box_and_score_are_measured():
    figures = match_boxes(rows((0, 0.9)), rows((10, 0.85)), 0.25, 0.999, 1e-3)
    assert figures["min_iou"] == pytest.approx(90 / 110) and figures["apart"] == 1
    assert figures["max_score_difference"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("least_iou", "slack", "apart"), [(0.8, 0.06, 0), (0.82, 0.06, 1), (0.8, 0.04, 1), (0.82, 0.04, 1)]
)
def test_pair_differs_by_its_overlap_or_its_scores(least_iou, slack, apart):
    assert match_boxes(rows((0, 0.9)), rows((10, 0.85)), 0.25, least_iou, slack)["apart"] == apart


def test_pair_below_the_threshold_on_both_sides_does_not_count():
    figures = match_boxes(rows((0, 0.24)), rows((0, 0.23)), 0.25, 0.999, 0.05)
    assert (figures["matched"], figures["alone"], figures["min_iou"]) == (0, 0, None)


def test_score_at_the_threshold_may_have_a_partner_just_below_it():
    assert match_boxes(rows((0, 0.2505)), rows((0, 0.2496)), 0.25, 0.999, 1e-3)["alone"] == 0
    assert match_boxes(rows((0, 0.2505)), rows((0, 0.2404)), 0.25, 0.999, 1e-3)["alone"] == 1
