"""The page of a run whose teacher is no detector: a network, or only boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from yolo_mkd import host, report
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.evidence.page import WITHOUT_HEAD, WITHOUT_LAYERS, teacher_model, write_page
from yolo_mkd.evidence.page.looks import ModelFile

pytestmark = pytest.mark.slow
IMGSZ = 64


class LayersOf(nn.Module):
    """Returns what the layers of a detector compute, in their order, but for one."""

    def __init__(self, model: Any):
        super().__init__()
        self.inner, self.spec = model, host.model_spec(model, IMGSZ)
        self.roles = [role for role in self.spec.layers if role != "backbone_p4"]
        self.extractor = FeatureExtractor(model, self.spec, self.roles)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.inner(x)
        features = self.extractor.hooks.take()
        return tuple(features[role] for role in self.roles)


def run_of(folder: Path, detector: Any, teacher: str) -> Path:
    """The folder of a finished chain whose student is an untrained detector."""
    stage = {"name": "student", "model": "small.yaml", "hears": [teacher], "parameters": 1000, "status": "done"}
    stage |= {"weights": str(detector.pt), "sha256": report.sha256(detector.pt), "seconds": 9.0}
    chain = {
        "schema": "yolo-mkd/chain/2", "started": "2026-01-01T00:00:00+00:00", "versions": {}, "knowledge": {},
        "teacher_epochs": 0, "seed": 0, "arguments": {"data": str(detector.data), "imgsz": IMGSZ, "device": "cpu"},
        "teacher": {"file": teacher, "sha256": "ab12"},
        "stages": [{**stage, "metrics": {"map50_95": 0.3, "map50": 0.5}}],
    }  # fmt: skip
    folder.mkdir()
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    return folder


def test_the_maps_of_a_network_are_shown_and_compared(untrained_detector: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    layers = LayersOf(host.load_detector("model", str(untrained_detector.pt)))
    torch.onnx.export(layers, (torch.rand(1, 3, IMGSZ, IMGSZ),), str(file), dynamo=False)
    folder = run_of(tmp_path / "run", untrained_detector, str(file))
    text = write_page(folder).read_text()
    looks = json.loads((folder / "report/looks.json").read_text())
    teacher, student = looks["models"]
    assert (teacher["role"], teacher["file"], teacher["sha256"]) == ("teacher", "net.onnx", report.sha256(file))
    assert "map50_95" not in teacher and looks["reference"] == "student"
    # the network computes what the student does in all layers but one
    assert looks["layers"] == layers.roles
    assert student["attention"] == pytest.approx(dict.fromkeys(layers.roles, 1), abs=1e-3)
    assert [v for row in student["relation"] for v in row] == pytest.approx(
        [v for row in teacher["relation"] for v in row], abs=1e-3
    )
    assert len(looks["images"][0]["maps"]["neck_p3"]) == 2
    assert WITHOUT_HEAD in text and 'id="attention"' in text
    assert "the teacher stands in its place" not in text


def test_a_network_that_is_a_program_is_shown_only_if_it_is_trusted(untrained_detector: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef build(): return torch.nn.Conv2d(3, 4, 8, 8)\n")
    folder = run_of(tmp_path / "run", untrained_detector, f"{tmp_path / 'mine.py'}:build")
    refused = "mine.py:build is a program, and is run only with trust=true: read it, then add that"
    assert f"No images are shown: teacher={tmp_path}/{refused}" in write_page(folder).read_text()
    text = write_page(folder, trust=True).read_text()
    assert json.loads((folder / "report/looks.json").read_text())["layers"] == ["neck_p3"]
    assert 'id="relation"' in text and refused not in text


def test_boxes_have_no_layers_and_the_students_detections_are_shown(untrained_detector: Any, tmp_path: Path) -> None:
    file = tmp_path / "detections.json"
    file.write_text("[]")
    text = write_page(run_of(tmp_path / "run", untrained_detector, str(file))).read_text()
    assert WITHOUT_LAYERS in text
    assert teacher_model([str(file), "a.pt", "b.pt"], 64) == [ModelFile("teacher", "teacher", Path("a.pt"), 64)]
    assert 'id="attention"' not in text and 'id="detections"' in text
