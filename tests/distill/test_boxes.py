"""A teacher that is only boxes: files, fusion, augmentation, and the anchors that its boxes get."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from yolo_mkd import host
from yolo_mkd.distill.boxes.files import Rows, image_key, read_detections
from yolo_mkd.distill.boxes.fusion import fuse, objects
from yolo_mkd.distill.boxes.teacher import FIRST_CODE, open_boxes, separate
from yolo_mkd.distill.matching import Match
from yolo_mkd.settings import BadInput

NAMES = {0: "cat", 1: "dog", 2: "cow"}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two images of 200 x 100 pixels."""
    files = [tmp_path / "images" / name for name in ("000007.png", "second.png")]
    files[0].parent.mkdir()
    for file in files:
        cv2.imwrite(str(file), np.zeros((100, 200, 3), np.uint8))
    return files


def result(**changes: Any) -> dict[str, Any]:
    """One result: centre (0.25, 0.5), size (0.2, 0.4)."""
    return {"image_id": 7, "category_id": "cat", "bbox": [30, 30, 40, 40], "score": 0.5, **changes}


def written(folder: Path, content: Any) -> str:
    file = folder / "found.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(file)


def test_pixels_of_a_json_become_shares_of_the_image(tmp_path: Path, images: list[Path]) -> None:
    found = read_detections(written(tmp_path, [result()]), images, NAMES)
    rows = found.images[str(images[0])]
    assert_allclose(
        rows.boxes, [[0.25, 0.5, 0.2, 0.4]], atol=1e-6
    )  # (30 + 20) / 200, (30 + 20) / 100, 40 / 200, 40 / 100
    assert_allclose(rows.scores, [0.5])
    assert rows.classes.tolist() == [0]


def test_a_box_is_clipped_to_its_image(tmp_path: Path, images: list[Path]) -> None:
    rows = read_detections(written(tmp_path, [result(bbox=[-20, 0, 60, 50])]), images, NAMES).images[str(images[0])]
    assert_allclose(rows.boxes, [[0.1, 0.25, 0.2, 0.5]], atol=1e-6)


def test_a_whole_coco_file_gives_class_names_and_file_names(tmp_path: Path, images: list[Path]) -> None:
    whole = {
        "images": [{"id": 90, "file_name": "train/second.png"}],
        "categories": [{"id": 18, "name": "Dog"}, {"id": 19, "name": "horse"}],
        "annotations": [result(image_id=90, category_id=18), result(image_id=90, category_id=19)],
    }
    found = read_detections(written(tmp_path, whole), images, NAMES)
    assert found.images[str(images[1])].classes.tolist() == [1]
    assert found.foreign == Counter(horse=1)
    assert found.classes == {1}


def test_label_files_hold_the_data_s_class_numbers(tmp_path: Path, images: list[Path]) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "second.txt").write_text("2 0.5 0.5 0.1 0.2 0.75\n0 0.5 0.5 0.1 0.2 0.01\n")
    rows = read_detections(str(folder), images, NAMES).images[str(images[1])]
    assert_allclose(rows.boxes, [[0.5, 0.5, 0.1, 0.2]], atol=1e-6)
    assert (rows.classes.tolist(), rows.scores.tolist()) == ([2], [0.75])  # a score below 0.05 is no detection


def test_a_mapping_file_names_numbers_and_open_vocabulary(tmp_path: Path, images: list[Path]) -> None:
    file = written(tmp_path, [result(category_id=1), result(category_id="a small kitten")])
    mapping = tmp_path / "map.yaml"
    mapping.write_text("1: cow\nA small kitten: cat\n")
    assert read_detections(file, images, NAMES, mapping).images[str(images[0])].classes.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ({"a": 1}, "is not in COCO's results format"),
        ([], "contains no boxes"),
        ([{"image_id": 7}], "result 0 lacks 'bbox': each needs image_id, category_id, bbox and score"),
        ([result(score=2)], "result 0 has the score 2.0: it must be between 0 and 1"),
        ([result(bbox=[0, 0, -1, 4])], "result 0 has the box [0.0, 0.0, -1.0, 4.0]: it must be four finite numbers"),
        ([result(image_id="other")], "has boxes of none of the data's 2 training images (it has for example 'other'"),
        ([result(category_id=3)], "has class numbers without names, for example 3"),
        ([result(category_id="horse")], "it has horse; the data has cat, dog, cow): map its classes"),
        ([result(score=0.01)], "no score reaches 0.05"),
    ],
)
def test_a_json_that_cannot_be_used_is_refused(tmp_path: Path, images: list[Path], content: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        read_detections(written(tmp_path, content), images, NAMES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1 0.2\n", "second.txt line 1 has 5 values"),
        ("0 0.5 x 0.1 0.2 0.5\n", "second.txt line 1 has a value that is not a number"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_refused(
    tmp_path: Path, images: list[Path], text: str, message: str
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "second.txt").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_detections(str(tmp_path / "labels"), images, NAMES)


def test_a_mapping_to_a_class_that_the_data_lacks_is_refused(tmp_path: Path, images: list[Path]) -> None:
    mapping = tmp_path / "map.yaml"
    mapping.write_text("cat: tiger\n")
    with pytest.raises(
        BadInput, match="maps cat to tiger, which is not a class of the data: choose from cat, dog, cow"
    ):
        read_detections(written(tmp_path, [result()]), images, NAMES, mapping)


def test_two_images_of_one_name_are_refused(tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(BadInput, match="have the same name"):
        read_detections(written(tmp_path, [result()]), [*images, tmp_path / "7.jpg"], NAMES)


@pytest.mark.parametrize(("image", "key"), [("a/000042.jpg", "42"), ("v1.2_x", "v1.2_x"), ("b\\frame.PNG", "frame")])
def test_an_image_is_found_by_its_stem_or_number(image: str, key: str) -> None:
    assert image_key(image) == key


# Fusion


def rows(*each: tuple[list[float], float, int]) -> Rows:
    boxes, scores, classes = zip(*each, strict=True)
    return Rows(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes))


ALL = frozenset({0, 1})


def test_boxes_of_two_detectors_are_averaged_by_score() -> None:
    fused = fuse([rows(([0.5, 0.5, 0.2, 0.2], 0.9, 0)), rows(([0.54, 0.5, 0.2, 0.2], 0.3, 0))], [ALL, ALL])
    assert_allclose(fused.boxes, [[0.51, 0.5, 0.2, 0.2]], atol=1e-6)  # (0.9 x 0.5 + 0.3 x 0.54) / 1.2
    assert_allclose(fused.scores, [0.6])


def test_a_box_that_one_of_two_detectors_found_counts_half() -> None:
    fused = fuse([rows(([0.5, 0.5, 0.2, 0.2], 0.8, 0)), None], [ALL, ALL])
    assert_allclose(fused.scores, [0.4])


def test_a_detector_without_the_class_has_no_vote() -> None:
    fused = fuse([rows(([0.5, 0.5, 0.2, 0.2], 0.8, 0)), None], [ALL, frozenset({1})])
    assert_allclose(fused.scores, [0.8])


def test_two_classes_on_one_object_become_its_soft_target() -> None:
    boxes, scores = objects(
        rows(([0.5, 0.5, 0.2, 0.2], 0.3, 1), ([0.5, 0.5, 0.2, 0.21], 0.6, 0), ([0.1, 0.1, 0.1, 0.1], 0.5, 1)), 3
    )
    assert_allclose(boxes, [[0.5, 0.5, 0.2, 0.21], [0.1, 0.1, 0.1, 0.1]])
    assert_allclose(scores, [[0.6, 0.3, 0.0], [0.0, 0.5, 0.0]])


# In training


def student(name: str) -> Any:
    torch.manual_seed(0)
    built = host.build(f"{name}.yaml", classes=3)
    built.names = NAMES
    built.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=10)
    return built.train()


@pytest.mark.parametrize("name", ["yolo26n", "yolo11n"])
def test_sure_boxes_are_the_targets_that_labels_would_be(
    name: str, tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student(name)
    spec = host.model_spec(model, 64)
    labels = [([30, 30, 40, 40], "cat"), ([120, 20, 60, 70], "cow")]
    file = written(tmp_path, [result(bbox=box, category_id=c, score=1.0) for box, c in labels])
    teacher = open_boxes([file], images, spec, NAMES, [None])
    teacher.connect(Match.of(spec, teacher.spec))
    detection = teacher.detection = model.init_criterion()
    boxes, codes = teacher.boxes[str(images[0])]
    assert codes.tolist() == [FIRST_CODE, FIRST_CODE + 1]

    preds = model(torch.rand(2, 3, 64, 64))
    rows = torch.cat([torch.zeros(2, 1), torch.tensor(codes)[:, None], torch.tensor(boxes)], 1)
    kt = teacher({"img": torch.zeros(2, 3, 64, 64), "preds": preds, "teacher_boxes": rows})

    assigned: list[Any] = []
    branches = [detection] if name == "yolo11n" else [detection.one2many, detection.one2one]
    for loss in branches:  # what Ultralytics' own loss assigns, spied on
        forward = loss.assigner.forward
        monkeypatch.setattr(
            loss.assigner, "forward", lambda *a, f=forward, **k: assigned.append(f(*a, **k)) or assigned[-1]
        )
    batch = {"batch_idx": torch.zeros(2), "cls": torch.tensor([[0.0], [2.0]]), "bboxes": torch.tensor(boxes)}
    detection(preds, batch)
    assert set(kt.branches) == ({"one2many"} if name == "yolo11n" else {"one2many", "one2one"})
    for outputs, (_, corners, scores, foreground, _) in zip(kt.branches.values(), assigned, strict=True):
        assert foreground.sum() > 0
        assert torch.allclose(outputs.logits.sigmoid(), scores.mT.float(), atol=3e-4)  # scores are clipped to 1 - 2^-12
        sides = outputs.distances.mT[foreground]
        width = (sides[:, 0] + sides[:, 2]) * strides_of(kt.levels)[foreground.nonzero()[:, 1]]
        assert torch.allclose(width, (corners[..., 2] - corners[..., 0])[foreground], atol=1e-3)


def strides_of(levels: dict[int, tuple[int, int]]) -> torch.Tensor:
    """The stride of each anchor."""
    return torch.cat([torch.full((rows * columns,), float(s)) for s, (rows, columns) in levels.items()])


def test_a_batch_without_boxes_is_background(tmp_path: Path, images: list[Path]) -> None:
    model = student("yolo26n")
    spec = host.model_spec(model, 64)
    teacher = open_boxes([written(tmp_path, [result()])], images, spec, NAMES, [None])
    teacher.connect(Match.of(spec, teacher.spec))
    teacher.detection = model.init_criterion()
    preds = model(torch.rand(1, 3, 64, 64))
    kt = teacher({"img": torch.zeros(1, 3, 64, 64), "preds": preds, "teacher_boxes": torch.zeros(0, 6)})
    assert float(kt.best_scores().max()) == pytest.approx(1e-9, rel=0.01)


def test_augmentation_moves_boxes_exactly_as_labels(untrained_detector: Any) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset

    data = host.check_data(str(untrained_detector.data))
    args = get_cfg(overrides={"mosaic": 1.0, "scale": 0.5, "fliplr": 0.5, "degrees": 10.0})
    dataset = YOLODataset(img_path=data["train"], imgsz=96, augment=True, hyp=args, data=data, task="detect")
    same = {
        str(Path(label["im_file"])): (label["bboxes"], FIRST_CODE + 100 * i + np.arange(len(label["bboxes"])))
        for i, label in enumerate(dataset.labels)
    }
    host.add_boxes(dataset, same)
    for index in range(4):
        batch = separate(YOLODataset.collate_fn([dataset[index], dataset[index + 4]]))
        assert 0 < len(batch["cls"]) == len(batch["teacher_boxes"])
        assert float(batch["cls"].max()) < FIRST_CODE
        ours = torch.cat([batch["batch_idx"][:, None], batch["bboxes"]], 1)
        theirs = batch["teacher_boxes"][:, [0, 2, 3, 4, 5]]
        assert {tuple(row) for row in ours.tolist()} == {tuple(row) for row in theirs.tolist()}
