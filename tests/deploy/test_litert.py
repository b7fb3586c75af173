"""A .tflite file: its metadata, its boxes in pixels, and the whole export where LiteRT is installed."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_mkd.deploy.check import check
from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.export.arguments import refuse_unsupported
from yolo_mkd.deploy.export.graph import write_metadata
from yolo_mkd.deploy.export.targets import load_target
from yolo_mkd.deploy.exported_model import read_exported_model
from yolo_mkd.deploy.runtimes import open_runtime
from yolo_mkd.settings import BadInput

GRAPH = b"flatbuffer" * 100
ABOUT = {"task": "detect", "stride": 32, "imgsz": [64, 96], "names": {"0": "red"}, "args": {}, "end2end": False}


@pytest.fixture
def file(tmp_path) -> Path:
    """A .tflite as Ultralytics writes it, whose graph is not one."""
    path = tmp_path / "best.tflite"
    path.write_bytes(GRAPH)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", json.dumps(ABOUT))
    return path


@pytest.fixture
def interpreter(monkeypatch) -> SimpleNamespace:
    """LiteRT, replaced by one that returns boxes in shares of the image's sides."""
    seen = SimpleNamespace(output=np.array([[[0.5], [0.25], [0.1], [0.5], [0.9]]], np.float32))

    class Interpreter:
        def __init__(self, path: str, num_threads: int) -> None:
            seen.threads = num_threads

        def allocate_tensors(self) -> None: ...

        def get_input_details(self) -> list:
            return [{"index": 3, "shape": np.array([1, 3, 64, 96])}]

        def get_output_details(self) -> list:
            return [{"index": 7, "shape": np.array(seen.output.shape)}]

        def set_tensor(self, index: int, tensor: np.ndarray) -> None:
            assert index == 3 and tensor.shape == (1, 3, 64, 96)

        def invoke(self) -> None: ...

        def get_tensor(self, index: int) -> np.ndarray:
            assert index == 7
            return seen.output.copy()

    module = SimpleNamespace(__version__="2.3.0")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", module)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    return seen


def test_facts_are_added_to_the_metadata_and_the_graph_is_unchanged(file):
    write_metadata(file, {"head": "one2many", "precision": "fp32"})
    write_metadata(file, {"target": "generic"})
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["metadata.json"]
        found = json.loads(archive.read("metadata.json"))
    assert found == {
        **ABOUT, "yolo_mkd.head": "one2many", "yolo_mkd.precision": "fp32", "yolo_mkd.target": "generic",
    }  # fmt: skip
    assert file.read_bytes().startswith(GRAPH + b"PK")
    about = read_exported_model(file)
    assert (about.format, about.head, about.imgsz, about.names) == ("litert", "one2many", (64, 96), {0: "red"})


def test_file_without_metadata_is_an_error(tmp_path):
    (tmp_path / "bare.tflite").write_bytes(GRAPH)
    with pytest.raises(BadInput, match="has no Ultralytics metadata"):
        read_exported_model(tmp_path / "bare.tflite")


def test_boxes_of_the_raw_head_are_returned_in_pixels(file, interpreter):
    runtime = open_runtime(file, threads=1)
    output, times = runtime.infer(np.zeros((1, 3, 64, 96), np.float32))
    # centre 0.5 of 96 and 0.25 of 64, sides 0.1 of 96 and 0.5 of 64; the score is unchanged
    np.testing.assert_allclose(output[0, :, 0], [48, 16, 9.6, 32, 0.9], rtol=1e-6)
    assert times["compute"] >= 0 and runtime.provider == "LiteRT CPU" and interpreter.threads == 1


def test_output_that_does_not_fit_the_metadata_is_an_error(file, interpreter):
    interpreter.output = np.zeros((1, 6, 1), np.float32)
    with pytest.raises(BadInput, match=r"output \[1, 6, 1\] does not fit head one2many with 1 classes"):
        open_runtime(file)


@pytest.mark.parametrize(
    ("quantize", "message"), [(16, "GPU delegate computes an FP32 file in FP16"), (8, "use format=onnx")]
)
def test_other_precisions_are_refused_with_the_reason(quantize, message):
    with pytest.raises(BadInput, match=message):
        refuse_unsupported(Path("a.pt"), "litert", load_target("generic"), quantize)


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_exported_file_is_verified_and_detects_what_its_checkpoint_does(tiny_detector, tmp_path, head):
    pytest.importorskip("litert_torch")
    pytest.importorskip("ai_edge_litert")
    file = export(shutil.copy(tiny_detector.pt, tmp_path), format="litert", head=head, images=tiny_detector.images[:4])
    about = read_exported_model(file)
    assert file.name == "last.tflite" and (about.head, about.precision) == (head, "fp32")
    parity = check(file, tiny_detector.pt, images=tiny_detector.images)
    assert parity.passed and parity.detections.min_iou > 0.999 and parity.detections.checkpoint_detections > 10
