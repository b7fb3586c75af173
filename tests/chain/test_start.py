"""A student that starts from its teacher, in a chain and in a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO

from yolo_mkd import chain, host
from yolo_mkd.chain.stages import validate
from yolo_mkd.chain.start import write_start
from yolo_mkd.evidence.page.training import command_of
from yolo_mkd.evidence.plan import plan
from yolo_mkd.evidence.plan.text import chain_lines
from yolo_mkd.settings import BadInput


@pytest.fixture
def arguments(untrained_detector: Any, tmp_path: Path) -> dict[str, Any]:
    """A chain of one epoch, from a tiny teacher to a narrower student."""
    architecture = yaml.safe_load(untrained_detector.student.read_text())
    architecture["scales"] = {"n": [0.5, 0.0625, 1024]}
    (tmp_path / "studentn.yaml").write_text(yaml.safe_dump(architecture, sort_keys=False))
    return {
        "model": str(tmp_path / "studentn.yaml"), "teacher": str(untrained_detector.pt), "assistant": None,
        "data": str(untrained_detector.data), "imgsz": 64, "epochs": 1, "batch": 8, "fraction": 0.25, "plots": False,
        "device": "cpu", "project": str(tmp_path / "runs"), "optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0,
        "warmup_bias_lr": 0.0, "start": "slice",
    }  # fmt: skip


@pytest.mark.slow
def test_a_chain_trains_the_slice_of_its_teacher(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Without a learning rate the student's weights are those that it started with."""
    folder, record = chain.train(**arguments)
    stage = record["stages"][0]
    assert (stage["start"], stage["model"]) == ("slice", arguments["model"])
    assert 0.99 < stage["taken"] <= 1
    written = YOLO(folder / "student-start.pt").model.state_dict()
    trained = YOLO(stage["weights"]).model.state_dict()
    teacher = YOLO(arguments["teacher"]).model.state_dict()
    name = "model.2.cv2.conv.weight"
    assert written[name].numel() < teacher[name].numel()
    assert torch.isin(written[name], teacher[name]).all()
    for key in (key for key in written if key.endswith("conv.weight")):
        assert torch.allclose(trained[key].float(), written[key], atol=1e-2, rtol=1e-2), key  # half precision
    assert "start=slice" in command_of(record)
    assert yaml.safe_load((folder / "chain.yaml").read_text())["stages"][0]["start"] == "slice"


@pytest.mark.slow
def test_the_plan_measures_the_student_as_it_will_start(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_mkd.evidence.plan.PROBE_S", 1.0)
    monkeypatch.setattr("yolo_mkd.evidence.plan.EXAM_S", 0.5)
    figures = plan(**arguments)
    student = figures["stages"][-1]
    assert (student["trained"], student["start"]) == (True, "slice")
    lines = " ".join(" ".join(chain_lines(figures)).split())
    assert "It starts with the teacher's weights in 100.0% of its own (start=slice)." in lines


def test_what_the_teacher_does_not_give_is_drawn_by_the_seed(arguments: dict[str, Any], tmp_path: Path) -> None:
    own = yaml.safe_load(Path(arguments["data"]).read_text())
    own["names"] = {0: "green", 1: "violet", 2: "red"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(own))
    states = []
    for i, seed in enumerate((0, 1, 0)):
        (tmp_path / str(i)).mkdir()
        given = {"data": str(tmp_path / "other.yaml"), "seed": seed}
        file, taken = write_start(tmp_path / str(i), "slice", arguments["model"], arguments["teacher"], given)
        assert taken < 1
        states.append(YOLO(file).model.model[-1].cv3[0][-1].weight.detach())
    assert YOLO(file).names == own["names"]
    teacher = host.load_detector("teacher", arguments["teacher"]).model[-1].cv3[0][-1].weight
    first, second, third = states
    assert torch.equal(first, third)
    assert torch.equal(first[[0, 2]], second[[0, 2]]) and not torch.equal(first[1], second[1])
    assert torch.isin(first[0], teacher[1]).all()  # green
    assert torch.isin(first[2], teacher[0]).all()  # red


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "OTHER"}, "start=slice takes the weights of the teacher, not those of model="),
        ({"teacher": "BOXES"}, "start=slice takes its weights from one model: give one .pt as teacher="),
        ({"model": "yolov8n.yaml"}, "start=slice: the student has 23 layers, the teacher 24: give the .yaml of"),
        ({"model": "yolov8n.yaml", "start": "fitted"}, "start=fitted: the student has 23 layers, the teacher 24: give"),
        ({"start": "teacher"}, "start=teacher needs equal shapes, but model.1.conv.weight has"),
        ({"start": "half"}, "start=half must be slice or fitted or teacher or plain, for example start=slice"),
        ({"teacher_epochs": 1, "teacher": "yolo11n.yaml"}, "start=slice: SPPF of the student and of the teacher"),
    ],
)  # fmt: skip
def test_a_start_that_cannot_work_is_one_clear_line_and_leaves_nothing(
    change: dict[str, Any], message: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    box = {"file_name": "000", "category_id": "red", "bbox": [0, 0, 9, 9], "score": 1}
    (tmp_path / "boxes.json").write_text(json.dumps([box]))
    checkpoint = torch.load(arguments["teacher"], weights_only=False)
    torch.save({**checkpoint, "epoch": 7}, tmp_path / "other.pt")
    names = {"OTHER": str(tmp_path / "other.pt"), "BOXES": str(tmp_path / "boxes.json")}
    changed = {key: names.get(value, value) for key, value in change.items()}
    with pytest.raises(BadInput, match=message) as refused:
        validate({**arguments, **changed}, "train")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_fitted_slice_has_other_weights_and_the_training_images_decide_them(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_mkd.host.reconstruction.MOST", 6)

    def written(start: str, **changed: Any) -> dict[str, torch.Tensor]:
        theirs = {"data": arguments["data"], "imgsz": 64, "seed": 0, **changed}
        file, taken = write_start(tmp_path, start, arguments["model"], arguments["teacher"], theirs)
        assert taken > 0.99
        return YOLO(file).model.state_dict()

    sliced, fitted, larger, fewer = (
        written("slice"), written("fitted"), written("fitted", imgsz=96), written("fitted", fraction=0.5)
    )  # fmt: skip
    key = "model.2.cv2.conv.weight"
    assert torch.equal(written("fitted")[key], fitted[key])
    assert not torch.allclose(sliced[key], fitted[key], rtol=1e-3)
    assert not torch.allclose(larger[key], fitted[key], rtol=1e-3)
    assert not torch.allclose(fewer[key], fitted[key], rtol=1e-3)  # of the images that it trains on


def test_layers_are_not_fitted_silently_to_nothing(arguments: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/0.png").write_bytes(b"no image")
    data = {**yaml.safe_load(Path(arguments["data"]).read_text()), "train": str(tmp_path / "bad")}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(data))
    given = (arguments["model"], arguments["teacher"], {"data": str(tmp_path / "bad.yaml"), "imgsz": 64})
    with pytest.raises(
        BadInput, match=r"^start=fitted needs training images, and none of data=.*bad.yaml can be read$"
    ):
        write_start(tmp_path, "fitted", *given)
    assert write_start(tmp_path, "slice", *given)[1] > 0.99


def test_a_teacher_that_is_yet_to_be_trained_is_matched_by_its_shape(arguments: dict[str, Any]) -> None:
    stages = validate({**arguments, "teacher": "yolo26n.yaml", "teacher_epochs": 1}, "train").stages
    assert ["start" in stage for stage in stages] == [False, True]
    assert stages[-1]["taken"] > 0.99


@pytest.mark.parametrize(
    ("change", "hinted"),
    [
        ({}, True),
        ({"start": "slice"}, False),
        ({"model": "PT"}, False),  # has weights of its own
        ({"model": "yolov8n.yaml"}, False),  # of another family
        ({"teacher": "BOXES"}, False),
    ],
)  # fmt: skip
def test_a_student_without_weights_is_told_of_those_of_its_teacher(
    change: dict[str, Any], hinted: bool, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [{"file_name": "000", "category_id": "red", "bbox": [0, 0, 9, 9], "score": 1}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    checkpoint = torch.load(arguments["teacher"], weights_only=False)
    torch.save({**checkpoint, "epoch": 7}, tmp_path / "other.pt")
    names = {"PT": str(tmp_path / "other.pt"), "BOXES": str(tmp_path / "boxes.json")}
    changed = {key: names.get(value, value) for key, value in change.items()}
    log: list[str] = []
    monkeypatch.setattr(host.LOGGER, "info", log.append)
    validate({**arguments, "start": "plain", **changed}, "train")
    hints = [line for line in log if "start=slice takes" in line]
    assert (
        hints
        == ["M-KD: the student starts from random weights; start=slice takes 100% of them from its teacher"] * hinted
    )
