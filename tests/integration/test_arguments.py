"""Ultralytics' arguments that change what a distilled run trains: classes, layers, sizes and lengths."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from yolo_mkd.session import DistillationSession
from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import MKDSegmentationTrainer, MKDTrainer


def rows(trainer: Any) -> list[dict[str, str]]:
    with open(trainer.csv, encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.mark.slow
def test_with_single_cls_the_soft_targets_act_and_only_those_of_the_chosen_classes(train: Any) -> None:
    merged = train({"until": 1}, single_cls=True)
    assert all(float(row["kd/soft"]) > 0 for row in rows(merged))
    assert merged.kd.distillers[0].match.classes == ((0, (0, 1, 2)),)
    assert torch.load(merged.last, weights_only=False)["model"].names == {0: "item"}
    chosen = train({"until": 1}, single_cls=True, classes=[1, 2], epochs=1)
    assert chosen.kd.distillers[0].match.classes == ((0, (1, 2)),)


@pytest.mark.slow
def test_layers_given_as_a_tuple_are_frozen(train: Any) -> None:
    trainer = train({}, freeze=(0, 2), epochs=1)
    frozen = {name.split(".")[1] for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "2"}
    assert trainer.args.freeze == [0, 2]


@pytest.mark.slow
def test_a_run_of_one_batch_in_which_distillation_has_no_weight_has_one_warning(
    train: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = train({}, epochs=1, batch=32, nbs=32)
    found = [r.getMessage() for r in caplog.records if "the weight 0 in every batch" in r.getMessage()]
    assert len(found) == 1 and "warmup_epochs=0" in found[0]
    assert [float(row["kd/weight"]) for row in rows(trainer)] == [0]
    caplog.clear()
    assert float(rows(train({}, name="two", epochs=1, batch=12, nbs=12))[0]["kd/weight"]) > 0
    assert "the weight 0 in every batch" not in caplog.text


REFUSED = [
    ({"distill_model": "yolo26s.pt"}, "distill_model= is Ultralytics' own distillation: leave it out"),
    ({"classes": 5}, "classes=5: the data has no class 5"),
    ({"freeze": 24}, "freeze=24 freezes all 24 layers of model"),
    ({"freeze": "abc"}, "freeze=abc must be a number of layers"),
    ({"batch": 1.5}, "batch=1.5 must be a whole number of images"),
    ({"optimizer": "abc"}, "optimizer=abc is not known"),
    ({"warmup_epochs": float("nan")}, "warmup_epochs=nan must be a finite number"),
    ({"seed": 2**32}, "seed=4294967296 must be between"),
    ({"device": "cuda:9"}, "device=cuda:9 cannot be used, since no CUDA GPU was found: use device=cpu"),
    ({"trainer": MKDSegmentationTrainer}, "MKDSegmentationTrainer trains models of the task segment, this .* detect"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_the_trainer_refuses_what_the_command_line_refuses_and_leaves_nothing(
    untrained_detector: Any, tmp_path: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trainer = change.get("trainer", MKDTrainer).using(untrained_detector.pt)
    run = {
        "data": untrained_detector.data,
        "imgsz": 64,
        "epochs": 1,
        "device": "cpu",
        "project": str(tmp_path / "runs"),
    }
    with pytest.raises(BadInput, match=message) as e:
        YOLO(untrained_detector.student).train(**{**run, **change, "trainer": trainer})
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_rectangular_images_keep_their_aspect_where_the_teacher_has_its_own_size(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    prepare = DistillationSession.prepare_batch

    def keep(session: DistillationSession, *arguments: Any) -> dict[str, Any]:
        batch = prepare(session, *arguments)
        pairs.append((batch["img"].clone(), batch["teacher_img"].clone()))
        return batch

    monkeypatch.setattr(DistillationSession, "prepare_batch", keep)
    run = {"rect": True, "imgsz": 96, "epochs": 1, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0}
    for teacher_imgsz, shape, teacher_shape in ((192, (96, 96), (192, 192)), (128, (96, 96), (128, 128))):
        pairs.clear()
        train({"teacher_imgsz": teacher_imgsz}, name=f"at{teacher_imgsz}", **run)
        assert {tuple(s.shape[2:]) for s, _ in pairs} == {shape}  # pictures of 96 x 128
        assert {tuple(t.shape[2:]) for _, t in pairs} == {teacher_shape}
    train({"teacher_imgsz": 256}, name="half", **{**run, "imgsz": 128})
    student, teacher = pairs[-1]
    assert (tuple(student.shape[2:]), tuple(teacher.shape[2:])) == ((96, 128), (192, 256))
    scaled = torch.nn.functional.interpolate(teacher, student.shape[2:], mode="bilinear", antialias=True)
    assert (scaled - student).abs().max() < 1e-5
