"""A teacher that takes the images at another size: how its outputs are resampled, and the images of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd import host
from yolo_mkd.distill.criterion import Criterion
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.resample import at_levels, at_size, inside
from yolo_mkd.distill.teachers import LiveTeacher, cropped
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.settings import BadInput


def corners(o: Outputs, rows: int, columns: int) -> Tensor:
    """Boxes as left, top, right, bottom in shares of the image: B 4 A."""
    own = torch.arange(rows * columns)
    x, y = own % columns + 0.5, own // columns + 0.5
    left, top, right, bottom = o.distances.unbind(1)
    size = torch.tensor([columns, rows, columns, rows]).view(1, 4, 1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 1) / size


def one_object(rows: int, columns: int, at: tuple[int, int], distances: list[float]) -> Outputs:
    """A map on which one anchor, by row and column, scores class 1 highly and the rest score nothing."""
    logits = torch.full((1, 2, rows * columns), -9.0)
    logits[0, 1, at[0] * columns + at[1]] = 5
    sides = torch.full((1, 4, rows * columns), 0.5)
    sides[0, :, at[0] * columns + at[1]] = torch.tensor(distances)
    return Outputs(logits, sides)


def test_at_its_own_size_a_teachers_outputs_stay_as_they_are() -> None:
    given = Outputs(torch.randn(2, 3, 20), torch.rand(2, 4, 20))
    same = at_levels(given, {8: (4, 4), 16: (2, 2)}, {8: (4, 4), 16: (2, 2)})
    assert torch.equal(same.logits, given.logits)
    assert torch.allclose(same.distances, given.distances, atol=1e-6)


def test_from_twice_the_size_each_anchor_takes_the_highest_score_of_the_four_in_its_cell() -> None:
    """Anchor (2, 5) lies in cell (1, 2), a quarter of a cell right of and above its centre; its sides halve."""
    given = one_object(8, 8, (2, 5), [2.0, 1.0, 3.0, 2.0])
    found = at_levels(given, {8: (8, 8)}, {8: (4, 4)})
    sure = found.logits[0, 1].view(4, 4) == 5
    assert sure.nonzero().tolist() == [[1, 2]]
    assert found.distances[0, :, 1 * 4 + 2].tolist() == [0.75, 0.75, 1.75, 0.75]


@pytest.mark.parametrize("wanted", [(4, 4), (6, 6), (5, 7), (12, 9), (16, 16)])
@pytest.mark.parametrize("at", [(0, 0), (3, 6), (7, 7)])
def test_a_box_lands_on_the_same_place_in_the_image(at: tuple[int, int], wanted: tuple[int, int]) -> None:
    given = one_object(8, 8, at, [1.5, 0.25, 2.0, 3.0])
    meant = corners(given, 8, 8)[0, :, at[0] * 8 + at[1]]
    found = at_levels(given, {8: (8, 8)}, {8: wanted})
    sure = (found.logits[0, 1] == 5).nonzero().flatten()
    assert len(sure) == 1 if max(wanted) <= 8 else len(sure) >= 1
    for anchor in sure:
        assert corners(found, *wanted)[0, :, anchor] == pytest.approx(meant, abs=1e-6)
        row, column = (int(anchor) // wanted[1] + 0.5) / wanted[0], (int(anchor) % wanted[1] + 0.5) / wanted[1]
        assert abs(row - (at[0] + 0.5) / 8) <= 0.5 / min(8, wanted[0])
        assert abs(column - (at[1] + 0.5) / 8) <= 0.5 / min(8, wanted[1])


def test_positions_are_divided_among_cells_by_their_centres() -> None:
    assert inside(4, 2) == [[0, 1], [2, 3]]
    assert inside(12, 8)[:3] == [[0, 0], [1, 2], [3, 3]]  # centres 1/3, 1, 5/3, 7/3 of the cells
    assert inside(2, 4) == [[0], [0], [1], [1]]
    assert inside(2, 3) == [[0], [1], [1]]
    for count, wanted in [(12, 8), (20, 13), (80, 60), (7, 7)]:
        taken = [i for cell in inside(count, wanted) for i in set(cell)]
        assert sorted(taken) == list(range(count)), "a larger map's positions are each taken exactly once"


def test_levels_are_resampled_one_by_one() -> None:
    fine, coarse = one_object(4, 4, (3, 3), [1.0] * 4), one_object(2, 2, (0, 0), [1.0] * 4)
    both = Outputs(torch.cat([fine.logits, coarse.logits], 2), torch.cat([fine.distances, coarse.distances], 2))
    found = at_levels(both, {8: (4, 4), 16: (2, 2)}, {8: (2, 2), 16: (1, 1)})
    assert (found.logits[0, 1] == 5).tolist() == [False, False, False, True, True]
    assert found.bins is None


def test_features_are_averaged_to_the_students_size() -> None:
    f = torch.arange(16.0).view(1, 1, 4, 4)
    assert at_size(f, 4, 4) is f
    assert at_size(f, 2, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert at_size(f, 8, 8)[0, 0, ::2, ::2].equal(f[0, 0])


def test_padding_is_cropped_level_by_level() -> None:
    places = torch.cat([torch.arange(16.0), 100 + torch.arange(4.0)])  # strides 8 and 16 of a 32 x 32 image
    given = Outputs(places.view(1, 1, 20), places.expand(1, 4, 20), places.expand(1, 4, 2, 20))
    f = torch.arange(16.0).view(1, 1, 4, 4)
    cut = cropped(Knowledge({"one2many": given}, {"neck_p3": f}, {8: (4, 4), 16: (2, 2)}), 32, 16)
    kept = [0, 1, 4, 5, 8, 9, 12, 13, 100, 102]
    out = cut.branches["one2many"]
    assert cut.levels == {8: (4, 2), 16: (2, 1)}
    assert out.logits.flatten().tolist() == kept
    assert out.distances[0, 3].tolist() == out.bins[0, 3, 1].tolist() == kept
    assert cut.features["neck_p3"].flatten().tolist() == kept[:8]


def test_a_p6_teacher_takes_a_size_that_is_not_a_multiple_of_64() -> None:
    torch.manual_seed(0)
    teacher, images = host.build("yolo26n-p6.yaml", classes=3), torch.rand(1, 3, 96, 128)
    spec = host.model_spec(teacher, 96)
    given = LiveTeacher("p6", host.freeze(teacher), spec, ["neck_p3", "neck_p5"]).infer(images)
    assert {s: given.levels[s] for s in (8, 16, 32)} == {8: (12, 16), 16: (6, 8), 32: (3, 4)}
    assert given.features["neck_p5"].shape[2:] == (3, 4)
    assert given.branches["one2many"].logits.shape[2] == sum(r * c for r, c in given.levels.values())


def test_one2one_is_not_distilled_from_smaller_maps() -> None:
    model = host.build("yolo26n.yaml", classes=3)
    at = {size: host.model_spec(model, size) for size in (64, 96, 128)}
    terms = {"soft": 1.0}
    assert Distiller(at[64], at[128], terms).match.branches == ("one2many", "one2one")
    assert Distiller(at[128], at[128], terms).match.branches == ("one2many", "one2one")
    assert Distiller(at[96], at[64], terms).match.branches == ("one2many",)


# Through the trainer


class Seen:
    """The images that the student and the teacher take in each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.teacher: list[Tensor] = []
        self.student: list[Tensor] = []
        self.labels: list[Tensor] = []
        infer, call = LiveTeacher.infer, Criterion.__call__
        monkeypatch.setattr(LiveTeacher, "infer", lambda t, x: (self.teacher.append(x.clone()), infer(t, x))[1])

        def keep(criterion: Any, preds: Any, batch: dict[str, Any]) -> Any:
            self.student.append(batch["img"].clone())
            self.labels.append(batch["bboxes"].clone())
            return call(criterion, preds, batch)

        monkeypatch.setattr(Criterion, "__call__", keep)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


# one epoch of two batches
RESAMPLED = {
    "epochs": 1, "fraction": 0.17, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0, "workers": 0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours"), [(128, 64), (96, 64), (64, 96)])
def test_each_model_takes_its_own_size_of_the_same_image(theirs: int, ours: int, train: Any, seen: Seen) -> None:
    trainer = train({"teacher_imgsz": theirs}, imgsz=ours, **RESAMPLED)
    assert len(seen.teacher) == len(seen.student) == 2
    for big, small in zip(seen.teacher, seen.student, strict=True):
        assert big.shape == (8, 3, theirs, theirs)
        assert small.shape == (8, 3, ours, ours)
        coarse = [F.adaptive_avg_pool2d(x, 32) for x in (big, small)]
        assert (coarse[0] - coarse[1]).abs().mean() < 0.01  # of [0, 1]; another picture is off by more than 0.05
        assert (coarse[0] - coarse[1].roll(1, 0)).abs().mean() > 0.05
    trained = host.load_detector("model", str(trainer.last))
    assert all(w.isfinite().all() for w in trained.state_dict().values())


@pytest.mark.slow
def test_a_teacher_at_twice_the_size_takes_the_images_in_full_detail(
    train: Any, seen: Seen, tiny_detector: Any
) -> None:
    plain = dict.fromkeys(("fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale"), 0)
    train({"teacher_imgsz": 128}, imgsz=64, rect=True, **RESAMPLED, **plain)
    originals = [cv2.imread(str(p))[..., ::-1] for p in sorted((tiny_detector.data.parent / "images/train").glob("*"))]
    pictures = [torch.from_numpy(np.ascontiguousarray(o)).permute(2, 0, 1) / 255 for o in originals]  # 96 x 128
    for picture in seen.teacher[0]:
        assert picture.shape == (3, 128, 128)  # 96 rows would be 48 at the student's size, not a multiple of 32
        assert min((picture[:, 16:112] - o).abs().mean() for o in pictures) < 1e-6  # the file itself, pixel by pixel
    assert seen.student[0].shape == (8, 3, 64, 64)


@pytest.mark.slow
def test_multi_scale_changes_the_students_size_and_not_the_teachers(train: Any, seen: Seen) -> None:
    train({"teacher_imgsz": 128}, imgsz=96, multi_scale=0.5, batch=2, nbs=2, **RESAMPLED)
    assert {tuple(x.shape[2:]) for x in seen.teacher} == {(128, 128)}
    sizes = {x.shape[2] for x in seen.student}
    assert len(sizes) > 1
    assert sizes <= {32, 64, 96, 128, 160}


@pytest.mark.slow
def test_a_size_that_the_teacher_cannot_take_is_refused_before_anything_is_written(train: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"80 is not a multiple of 32, the largest stride of teacher") as refused:
        train({"teacher_imgsz": 80}, imgsz=64, **RESAMPLED)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_keypoints_and_oriented_boxes_land_on_the_same_place_at_another_size() -> None:
    """As in the second test: the chosen anchor is a quarter of a cell right of and above the wanted one."""
    given = one_object(8, 8, (2, 5), [2.0, 1.0, 3.0, 2.0])
    given.keypoints = torch.tensor([1.0, 2.0, 7.0]).view(1, 1, 3, 1).expand(1, 1, 3, 64)
    at = 1 * 4 + 2
    assert at_levels(given, {8: (8, 8)}, {8: (4, 4)}).keypoints[0, 0, :, at].tolist() == [0.75, 0.75, 7.0]
    given.angles = torch.full((1, 64), torch.pi / 2)
    found = at_levels(given, {8: (8, 8)}, {8: (4, 4)})
    # the box's axes point down and left: the offset (1/4, -1/4) is (-1/4, -1/4) along them
    assert found.distances[0, :, at].tolist() == pytest.approx([1.25, 0.75, 1.25, 0.75])
    assert found.angles[0, at].item() == pytest.approx(torch.pi / 2)
