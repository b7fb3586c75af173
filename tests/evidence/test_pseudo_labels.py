"""Hard pseudo-labels: the teacher's boxes at its best confidence, for training with stock Ultralytics."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics import YOLO

from yolo_mkd import host
from yolo_mkd.evidence.compare.pseudo_labels import best_confidence, label_images
from yolo_mkd.settings import BadInput

pytestmark = pytest.mark.slow


def test_the_boxes_are_the_teachers_at_its_best_confidence(tiny_detector: Any, tmp_path: Path) -> None:
    data = host.check_data(str(tiny_detector.data))
    images = sorted((tiny_detector.data.parent / "images" / "train").glob("*.png"))[:4]
    found = label_images(tiny_detector.pt, data, images, tmp_path / "pseudo", imgsz=96)
    described = yaml.safe_load(found.file.read_text())
    assert described["names"] == data["names"] and described["train"][1] == "images"
    assert (tmp_path / "pseudo/images/000002.png").read_bytes() == images[2].read_bytes()
    teacher, boxes = YOLO(tiny_detector.pt), 0
    for i, image in enumerate(images):
        expected = teacher.predict(image, imgsz=96, conf=found.confidence, verbose=False)[0].boxes
        rows = [list(map(float, r.split())) for r in (tmp_path / f"pseudo/labels/{i:06}.txt").read_text().splitlines()]
        assert [int(r[0]) for r in rows] == expected.cls.int().tolist()
        for row, box in zip(rows, expected.xywhn.tolist(), strict=True):
            assert row[1:] == pytest.approx(box, abs=1e-6)
        boxes += len(rows)
    assert found.boxes == boxes > 0 and found.images == 4
    trained = host.check_data(str(found.file))
    assert len(host.images_in(Path(trained["train"][1]))) == 4 and trained["val"] == data["val"]


def test_the_best_confidence_has_the_best_f1(tiny_detector: Any) -> None:
    data = host.check_data(str(tiny_detector.data))
    metrics = YOLO(tiny_detector.pt).val(data=tiny_detector.data, imgsz=96, rect=False, plots=False, verbose=False)
    mean = metrics.box.f1_curve.mean(0)
    at = best_confidence(YOLO(tiny_detector.pt), data, 96, "cpu")
    assert mean[[round(x, 6) for x in metrics.box.px.tolist()].index(round(at, 6))] == mean.max()


def test_other_classes_are_refused_and_nothing_is_written(tiny_detector: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    described = {**yaml.safe_load(tiny_detector.data.read_text()), "names": {0: "cat", 1: "dog", 2: "cow"}}
    other.write_text(yaml.safe_dump(described))
    with pytest.raises(BadInput, match="has other classes"):
        label_images(tiny_detector.pt, host.check_data(str(other)), [], tmp_path / "pseudo", 96)
    assert not list(tmp_path.glob("pseudo*"))


def test_labels_made_anew_replace_the_old_ones(tiny_detector: Any, tmp_path: Path) -> None:
    data = host.check_data(str(tiny_detector.data))
    images = sorted((tiny_detector.data.parent / "images" / "train").glob("*.png"))
    shutil.rmtree(tmp_path / "pseudo", ignore_errors=True)
    label_images(tiny_detector.pt, data, images[:2], tmp_path / "pseudo", 96)
    label_images(tiny_detector.pt, data, images[:1], tmp_path / "pseudo", 96)
    assert len(list((tmp_path / "pseudo/images").iterdir())) == 1
    assert not list(tmp_path.glob("*.part"))
