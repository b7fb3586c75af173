"""Quantisation-aware training (quantize=8): what it needs, and which stages of a chain it applies to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import ultralytics

from yolo_mkd import chain, host
from yolo_mkd.settings import BadInput


@pytest.mark.parametrize("value", [8, "8", "int8", "w8a8"])
def test_training_in_int8_without_modelopt_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        BadInput, match=rf"^quantize={value} trains with .* ModelOpt, which is not installed: pip install"
    ):
        host.check_values({"quantize": value})


@pytest.mark.parametrize("value", [None, 16, "fp32"])
def test_other_precisions_need_no_package(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    host.check_values({"quantize": value})


def test_training_in_int8_with_modelopt_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    host.check_values({"quantize": 8})


class Trained(Exception):
    """Raised in place of a training, with its arguments."""


class Model:
    """Stands in for ultralytics.YOLO."""

    def __init__(self, file: Any) -> None: ...

    def add_callback(self, event: str, function: Any) -> None: ...

    def train(self, **arguments: Any) -> None:
        raise Trained(arguments)


@pytest.mark.parametrize(("stage", "quantised"), [("teacher", False), ("assistant", False), ("student", True)])
def test_only_the_student_of_a_chain_is_trained_in_int8(
    stage: str, quantised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ultralytics, "YOLO", Model)
    own = {"name": stage, "hears": [], "model": "yolo26n.yaml", "status": "todo"}
    record: Any = {"stages": [own], "knowledge": {}, "arguments": {"quantize": 8, "imgsz": 64}, "teacher_epochs": 1}
    with pytest.raises(Trained) as raised:
        chain.run_stage(tmp_path, record, record["stages"][0], {})
    (arguments,) = raised.value.args
    assert arguments["imgsz"] == 64
    assert ("quantize" in arguments) == quantised


def test_the_export_of_a_student_that_computes_in_int8_is_named_with_its_precision(tmp_path: Path) -> None:
    stage = {"name": "student", "parameters": 1, "metrics": {}, "seconds": 60, "weights": "student/weights/best.pt"}
    for arguments, following in (({"quantize": 8}, "format=onnx quantize=8"), ({}, "format=onnx")):
        record: Any = {"stages": [stage], "arguments": arguments}
        assert chain.summary(tmp_path, record).endswith(following)


def test_a_checkpoint_in_int8_names_the_package_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, argument: str) -> Any:
        raise ModuleNotFoundError("No module named 'modelopt'", name="modelopt")

    monkeypatch.setattr(host.models, "read_checkpoint", fail)
    with pytest.raises(BadInput, match=r"model=best.pt was trained with quantize=8 and needs .* pip install"):
        host.load_detector("model", "best.pt")
