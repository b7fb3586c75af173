"""Short trainings with teachers that are not one model."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_mkd import host
from yolo_mkd.distill.boxes.files import read_detections
from yolo_mkd.distill.boxes.teacher import BoxTeacher
from yolo_mkd.evidence.compare.pseudo_labels import label_images
from yolo_mkd.trainer import MKDTrainer


@pytest.fixture
def detections(tiny_detector: Any, tmp_path: Path) -> Path:
    """The labels of the training images as results with names, two thirds of them with the score 1."""
    data = host.check_data(str(tiny_detector.data))
    found = []
    for image in host.images_in(Path(data["train"])):
        rows = Path(str(image).replace("images", "labels")).with_suffix(".txt").read_text().splitlines()
        for i, row in enumerate(rows):
            label, x, y, w, h = map(float, row.split())
            box = [(x - w / 2) * 128, (y - h / 2) * 96, w * 128, h * 96]
            score = 0.5 if i == 2 else 1.0
            found.append({"file_name": image.name, "category_id": data["names"][label], "bbox": box, "score": score})
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(found))
    return file


def table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(file, encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.mark.slow
def test_a_student_learns_from_boxes_and_stays_stock(train: Any, detections: Path, tiny_detector: Any) -> None:
    used: list[float] = []
    call = BoxTeacher.__call__

    def kept(teacher: BoxTeacher, batch: dict[str, Any]) -> Any:
        kt = call(teacher, batch)
        used.append(float(kt.best_scores().max()))
        assert batch["cls"].max() < 3
        return kt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoxTeacher, "__call__", kept)
        trainer = train(trainer=MKDTrainer.using(detections, until=1.0))
    assert len(used) == 6  # two epochs of three batches
    assert max(used) > 0.01
    rows = table(trainer.csv)
    assert all(float(row["kd/soft"]) > 0 and float(row["kd/soft_box"]) > 0 for row in rows)
    saved = torch.load(trainer.last, weights_only=False)
    assert not any("yolo_mkd" in type(m).__module__ for m in (saved["ema"] or saved["model"]).modules())


@pytest.mark.slow
def test_teachers_in_turn_each_act_in_their_epochs(train: Any, tiny_detector: Any, tmp_path: Path) -> None:
    other = Path(shutil.copy(tiny_detector.pt, tmp_path / "other.pt"))
    both = MKDTrainer.using([tiny_detector.pt, other], teachers="sequence", until=1.0, soft_dfl=0)
    trainer = train(trainer=both)
    rows = table(trainer.save_dir / "shares.csv")
    by_epoch = {epoch: {r["teacher"] for r in rows if r["epoch"] == epoch} for epoch in ("1", "2")}
    assert by_epoch == {"1": {"run/weights/last.pt"}, "2": {"other.pt"}}
    assert all(d.balancer.frozen for d in trainer.kd.distillers)


@pytest.mark.slow
def test_the_mean_of_a_cached_teacher_and_boxes_trains(
    train: Any, detections: Path, tiny_detector: Any, tmp_path: Path, inferred: list[int]
) -> None:
    options = {"preset": "recorded", "record": tmp_path / "cache", "views": 1, "until": 1.0}
    together = MKDTrainer.using([tiny_detector.pt, detections], **options)
    first = train(trainer=together, name="first")
    assert sum(inferred) == 24  # each image once: the second epoch reads the cache
    again = train(trainer=MKDTrainer.using([tiny_detector.pt, detections], **options), name="again")
    assert sum(inferred) == 24
    columns = [[row["kd/soft"] for row in table(t.csv)] for t in (first, again)]
    assert [float(v) for v in columns[0]] == pytest.approx([float(v) for v in columns[1]], rel=0.02)


@pytest.mark.slow
def test_a_model_s_own_detections_are_the_boxes_of_its_pseudo_labels(tiny_detector: Any, tmp_path: Path) -> None:
    from ultralytics import YOLO

    data = host.check_data(str(tiny_detector.data))
    made = label_images(tiny_detector.pt, data, tiny_detector.images, tmp_path / "pseudo", tiny_detector.imgsz, "cpu")
    model, found = YOLO(str(tiny_detector.pt)), []
    for image in tiny_detector.images:
        boxes = model.predict(str(image), imgsz=tiny_detector.imgsz, conf=made.confidence, verbose=False)[0].boxes
        for (x1, y1, x2, y2), score, label in zip(
            boxes.xyxy.tolist(), boxes.conf.tolist(), boxes.cls.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            name = model.names[int(label)]
            found.append({"image_id": image.stem, "category_id": name, "bbox": box, "score": score})
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found))
    read = read_detections(str(file), tiny_detector.images, data["names"])
    count = 0
    for i, image in enumerate(tiny_detector.images):
        text = (made.file.parent / "labels" / f"{i:06}.txt").read_text().split("\n")
        labels = [[float(v) for v in line.split()] for line in text if line]
        count += len(labels)
        if labels:
            rows = read.images[str(image)]
            assert [int(label[0]) for label in labels] == rows.classes.tolist()
            assert [label[1:] for label in labels] == [pytest.approx(box.tolist(), abs=2e-6) for box in rows.boxes]
    assert count == made.boxes == len(found) > 0
