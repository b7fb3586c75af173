"""Only a verified file appears beside its checkpoint; whatever was there before survives a failure."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from yolo_mkd.artefact import identity
from yolo_mkd.exporting import ExportFailed, export, image_size, run_ultralytics
from yolo_mkd.settings import BadInput, Failed


@pytest.fixture
def checkpoint(tiny_detector, tmp_path) -> Path:
    return Path(shutil.copy(tiny_detector.pt, tmp_path / "tiny.pt"))


def test_export_writes_a_verified_file_and_its_report(checkpoint, tiny_detector, capsys):
    file = export(checkpoint, images=tiny_detector.images[:3])
    assert file == checkpoint.with_suffix(".onnx")
    report = json.loads(checkpoint.with_suffix(".export.json").read_text())
    assert report["schema"] == "yolo-mkd/export/1"
    assert report["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report["source"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (report["head"], report["imgsz"], report["opset"]) == ("one2many", [96, 96], 18)
    assert report["names"] == {"0": "red", "1": "green", "2": "blue"}
    assert report["parity"]["passed"] and report["parity"]["images"] == 3
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["tiny.export.json", "tiny.onnx", "tiny.pt"]
    printed = capsys.readouterr().out
    assert "check     passed" in printed and "head      one2many (raw boxes, NMS outside the file)" in printed


def test_nms_free_head_size_opset_and_report_are_as_asked(checkpoint, tiny_detector, tmp_path):
    export(checkpoint, nms=False, imgsz=[64, 96], opset=17, data=tiny_detector.data, json=tmp_path / "out/figures.json")
    report = json.loads((tmp_path / "out/figures.json").read_text())
    assert (report["head"], report["imgsz"], report["opset"]) == ("one2one", [64, 96], 17)
    assert report["parity"]["images"] == 16
    assert not checkpoint.with_suffix(".export.json").exists()


@pytest.mark.parametrize("before", [None, b"an earlier export"])
def test_failed_check_leaves_what_was_there_before(checkpoint, exported, tiny_detector, monkeypatch, before):
    def export_other_weights(source: Path, size: list[int], arguments: dict) -> Path:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(exported["one2many"])
        tensor = next(t for t in graph.graph.initializer if len(t.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 3, tensor.name))
        onnx.save(graph, source.with_suffix(".onnx"))
        return source.with_suffix(".onnx")

    monkeypatch.setattr("yolo_mkd.exporting.run_ultralytics", export_other_weights)
    target = checkpoint.with_suffix(".onnx")
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(ExportFailed, match=r"tiny\.onnx was not written: ") as caught:
        export(checkpoint, images=tiny_detector.images[:3])
    assert "\n" not in str(caught.value) and isinstance(caught.value, Failed)
    assert (target.read_bytes() if target.exists() else None) == before
    assert {p.name for p in checkpoint.parent.iterdir()} <= {"tiny.pt", "tiny.onnx"}


def test_failure_inside_ultralytics_is_one_line(checkpoint):
    with pytest.raises(ExportFailed, match=r"could not export tiny\.pt: .*opset") as caught:
        run_ultralytics(checkpoint, [96, 96], {"opset": 5})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "engine"}, "format=engine is not verified yet: use yolo export model="),
        ({"imgsz": 100}, "imgsz=100 is no multiple of the model's stride 32"),
        ({"imgsz": "big"}, "imgsz=big is no multiple"),
        ({"imgsz": 0}, "imgsz=0 is no multiple"),
        ({"nms": True}, "nms=True makes a file that is not verified yet"),
        ({"quantize": 8}, "quantize=8 makes a file that is not verified yet"),
        ({"opse": 17}, "opse= is no argument of yolo-mkd export: did you mean opset="),
        ({"images": "nowhere"}, "images=nowhere: no such file or folder"),
    ],
)
def test_bad_argument_is_one_line_and_leaves_nothing(checkpoint, arguments, message):
    with pytest.raises(BadInput, match=message) as caught:
        export(checkpoint, **arguments)
    assert "\n" not in str(caught.value)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_bad_model_is_one_line(tmp_path, tiny_detector):
    (tmp_path / "torn.pt").write_bytes(tiny_detector.pt.read_bytes()[:5000])
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    (tmp_path / "a.onnx").write_text("")
    for name, message in (
        ("gone.pt", r"model=.*gone\.pt: no such file"),
        ("a.onnx", r"is no \.pt file"),
        ("torn.pt", r"torn\.pt cannot be read"),
        ("foreign.pt", r"foreign\.pt cannot be read"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            export(tmp_path / name, images=tiny_detector.images[:1])
        assert "\n" not in str(caught.value)


def test_classifier_is_refused(tmp_path, tiny_detector):
    from ultralytics import YOLO

    YOLO("yolo11n-cls.yaml").save(tmp_path / "cls.pt")
    with pytest.raises(BadInput, match=r"cls\.pt is no YOLO of the kinds detect"):
        export(tmp_path / "cls.pt", images=tiny_detector.images[:1])


def test_checkpoint_whose_data_set_is_gone_asks_for_images(checkpoint):
    saved = torch.load(checkpoint, weights_only=False)
    saved["train_args"]["data"] = "/gone/data.yaml"
    torch.save(saved, checkpoint)
    with pytest.raises(BadInput, match=r"data set /gone/data\.yaml is not here: give images="):
        export(checkpoint)


def test_one_number_is_a_square_and_two_are_height_and_width():
    assert image_size(64, 32) == [64, 64]
    assert image_size((64, 96), 32) == [64, 96]
    with pytest.raises(BadInput, match="stride 64"):
        image_size(96, 64)


def test_identity_is_name_size_and_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert identity(tmp_path / "abc") == {"file": "abc", "bytes": 3, "sha256": digest}
