"""Only a verified file appears beside its checkpoint; existing files are unchanged after a failure."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from yolo_mkd.deploy.export import ExportFailed, export, move_into_place, restore_replaced
from yolo_mkd.deploy.export.arguments import image_size
from yolo_mkd.deploy.export.build import run_ultralytics
from yolo_mkd.deploy.exported_model import file_identity, read_exported_model
from yolo_mkd.locking import workspace
from yolo_mkd.settings import BadInput, Failed

pytestmark = pytest.mark.slow


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
    assert (report["head"], report["imgsz"], report["opset"]) == ("one2one", [96, 96], 18)
    assert (report["precision"], report["target"], report["calibration"]) == ("fp32", "generic", None)
    assert report["names"] == {"0": "red", "1": "green", "2": "blue"}
    assert report["parity"]["passed"] and report["parity"]["detections"]["images"] == 3
    assert report["accuracy"]["verdict"] == "not measured"
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["tiny.export.json", "tiny.onnx", "tiny.pt"]
    printed = capsys.readouterr().out
    assert "check     passed" in printed and "head      one2one (final boxes, no NMS), output [1, 189, 6]" in printed


@pytest.mark.parametrize("channels", [1, 4])
def test_model_of_other_than_colour_images_is_refused_before_the_work(channels, tiny_detector, exported, tmp_path):
    from yolo_mkd import host
    from yolo_mkd.deploy.check import check

    other = host.build(str(tiny_detector.student), classes=3, channels=channels)
    torch.save({"model": other}, tmp_path / "other.pt")
    for refused in (
        lambda: export(tmp_path / "other.pt", images=tiny_detector.images),
        lambda: export(tmp_path / "other.pt", images=tiny_detector.images, format="ncnn"),
        lambda: check(exported["one2one"], tmp_path / "other.pt", images=tiny_detector.images),
    ):
        with pytest.raises(BadInput, match=f"=.*other.pt takes images of {channels} channel.*: use yolo export"):
            refused()
    assert [p.name for p in tmp_path.iterdir()] == ["other.pt"]


@pytest.mark.parametrize("format", ["ncnn", "torchscript"])
def test_an_export_that_takes_too_long_is_ended_with_one_line(format, checkpoint, tiny_detector, monkeypatch):
    monkeypatch.setattr("yolo_mkd.deploy.export.process.LIMIT_S", 0.5)
    images = {"images": tiny_detector.images} if format == "ncnn" else {}
    with pytest.raises(ExportFailed, match=r"could not export .*tiny.pt: it took longer than 0.5 s$"):
        export(checkpoint, format=format, **images)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["tiny.pt"]


def test_a_format_that_is_not_verified_is_exported_in_a_process_of_its_own(checkpoint, capfd):
    assert export(checkpoint, format="torchscript", imgsz=96) == checkpoint.with_suffix(".torchscript")
    assert "does not verify the file" in capfd.readouterr().out
    with pytest.raises(ExportFailed, match=r"could not export tiny\.pt: "):
        export(checkpoint, format="torchscript", imgsz=96, opset=-1, device="tpu:0")


def test_head_size_opset_and_report_are_as_requested(checkpoint, tiny_detector, tmp_path):
    file = export(
        checkpoint,
        head="one2many",
        imgsz=[64, 96],
        opset=16,
        data=tiny_detector.data,
        json=tmp_path / "out/figures.json",
    )
    report = json.loads((tmp_path / "out/figures.json").read_text())
    assert (report["head"], report["imgsz"], report["opset"]) == ("one2many", [64, 96], 16)
    assert report["parity"]["detections"]["images"] == 16
    assert report["accuracy"]["retained"] == pytest.approx(1) and report["accuracy"]["images"] == 16
    about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert (about["yolo_mkd.head"], about["yolo_mkd.precision"]) == ("one2many", "fp32")
    assert about["yolo_mkd.source_sha256"] == report["source"]["sha256"]
    assert json.loads(about["yolo_mkd.preprocess"])["letterbox"] == 114
    assert not checkpoint.with_suffix(".export.json").exists()


@pytest.mark.parametrize("before", [None, b"an earlier export"])
def test_failed_check_leaves_existing_files_unchanged(checkpoint, exported, tiny_detector, monkeypatch, before):
    def export_other_weights(source: Path, size: list[int], arguments: dict) -> Path:
        graph = onnx.load(exported["one2many"])
        tensor = next(t for t in graph.graph.initializer if len(t.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 3, tensor.name))
        onnx.save(graph, source.with_suffix(".onnx"))
        return source.with_suffix(".onnx")

    monkeypatch.setattr("yolo_mkd.deploy.export.build.run_ultralytics", export_other_weights)
    target = checkpoint.with_suffix(".onnx")
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(ExportFailed, match=r"tiny\.onnx was not written: ") as caught:
        export(checkpoint, head="one2many", images=tiny_detector.images[:3])
    assert "\n" not in str(caught.value) and isinstance(caught.value, Failed)
    assert (target.read_bytes() if target.exists() else None) == before
    assert {p.name for p in checkpoint.parent.iterdir()} <= {"tiny.pt", "tiny.onnx"}


@pytest.mark.parametrize(("format", "head"), [("openvino", "one2one"), ("ncnn", "one2many")])
def test_folder_is_verified_gets_metadata_and_replaces_the_old_one(checkpoint, tiny_detector, format, head):
    pytest.importorskip(format)
    stale = checkpoint.with_name(f"tiny_{format}_model")
    stale.mkdir()
    (stale / "of_an_earlier_export").write_text("")
    folder = export(checkpoint, format=format, images=tiny_detector.images[:2])
    assert folder == stale and not (folder / "of_an_earlier_export").exists()
    about = read_exported_model(folder)
    assert (about.format, about.head, about.precision) == (format, head, "fp32")
    report = json.loads(folder.with_name(f"{folder.name}.export.json").read_text())
    assert report["sha256"] == file_identity(folder)["sha256"] and report["parity"]["detections"]["min_iou"] > 0.999
    assert len(list(checkpoint.parent.iterdir())) == 3


def test_half_precision_keeps_the_decode_in_float(checkpoint, tiny_detector):
    file = export(checkpoint, quantize=16, images=tiny_detector.images[:4])
    graph = onnx.load(file).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    weights = {kinds[n.input[1]] for n in graph.node if n.op_type == "Conv"}
    boxes = next(n for n in graph.node if n.op_type == "Sub")  # anchor - distance, the corner of a box
    assert weights == {onnx.TensorProto.FLOAT16}
    assert {kinds[name] for name in boxes.input if name in kinds} == {onnx.TensorProto.FLOAT}
    assert file.name == "tiny_fp16.onnx" and read_exported_model(file).precision == "fp16"
    report = json.loads(checkpoint.with_name("tiny_fp16.export.json").read_text())
    assert report["parity"]["detections"]["agreeing"] >= 0.95


def test_target_chooses_the_opset(checkpoint, tiny_detector):
    file = export(checkpoint, target="jp5", images=tiny_detector.images[:2])
    assert next(o.version for o in onnx.load(file).opset_import if not o.domain) == 17


def test_other_formats_are_exported_by_ultralytics_and_not_verified(checkpoint, capsys):
    file = export(checkpoint, format="torchscript", imgsz=96)
    assert file.is_file() and file.suffix == ".torchscript"
    assert "format=torchscript is exported by Ultralytics; yolo-mkd does not verify the file" in capsys.readouterr().out


def test_old_folder_is_restored_when_the_new_one_cannot_be_moved(tmp_path):
    (tmp_path / "x_ncnn_model").mkdir()
    (tmp_path / "x_ncnn_model" / "a").write_text("old")
    (tmp_path / "work").mkdir()
    with pytest.raises(OSError):
        move_into_place(tmp_path / "work" / "gone", tmp_path / "x_ncnn_model", tmp_path / "work")
    assert (tmp_path / "x_ncnn_model" / "a").read_text() == "old"


def test_old_folder_is_restored_by_the_next_run_after_a_kill_before_the_new_one_was_there(tmp_path):
    folder = tmp_path / ".export-x_ncnn_model"
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "a").write_text("old")
    (folder / ".lock").touch()
    with workspace(tmp_path / ".export-x.onnx", rescue=restore_replaced):
        assert (tmp_path / "x_ncnn_model" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x_ncnn_model"]


def test_failure_inside_ultralytics_is_a_one_line_error(checkpoint):
    with pytest.raises(ExportFailed, match=r"could not export tiny\.pt: .*opset") as caught:
        run_ultralytics(checkpoint, [96, 96], {"opset": 5})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "engine"}, "format=engine needs TensorRT, .*make a bundle .yolo-mkd bundle model="),
        (
            {"format": "onx"},
            "format=onx is not known: verified are onnx, openvino, ncnn, litert, engine, others torchscript",
        ),
        (
            {"format": "torchscript", "head": "one2one"},
            "head= is for onnx, openvino, ncnn, litert, engine: format=torchscript",
        ),
        ({"format": "torchscript", "target": "jp6"}, "target= is for onnx, openvino, ncnn, litert, engine"),
        ({"sensitivity": True}, "sensitivity= measures the loss of each block in INT8: use it with quantize=8"),
        ({"format": "ncnn", "head": "one2one"}, "head=one2one cannot be exported: NCNN does not support TopK"),
        ({"format": "openvino", "quantize": 8}, "quantize=8 is made as ONNX .* not as openvino: use format=onnx"),
        ({"format": "ncnn", "target": "jp6"}, "target=jp6 is for TensorRT, which cannot read format=ncnn"),
        ({"target": "jp9"}, "target=jp9 is not known: choose from generic, jp5, jp6, jp7"),
        ({"target": "jp6", "quantize": 8, "head": "one2one"}, r"TopK \(ultralytics#23841, #26655\): use head=one2many"),
        ({"head": "nms"}, "head=nms is not known: choose from one2one, one2many"),
        ({"imgsz": 100}, "imgsz=100 must be one multiple of the model's stride 32"),
        ({"imgsz": "big"}, "imgsz=big must be one multiple"),
        ({"imgsz": 0}, "imgsz=0 must be one multiple"),
        ({"nms": True}, "nms=True is not used by yolo-mkd export: use head=one2one or head=one2many"),
        ({"dynamic": True}, "dynamic=True makes a file that is not verified"),
        ({"quantize": 4}, "quantize=4 must be 16"),
        (
            {"quantize": 8, "calibration": 0},
            "calibration=0 must be at least 1, for example calibration=300",
        ),
        ({"opse": 17}, "opse= is not an argument of yolo-mkd export: did you mean opset="),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used, since"),
        ({"json": "/proc/x.json"}, "json=/proc/x.json cannot be written"),
        ({"images": "nowhere"}, "images=nowhere: no such file or folder"),
    ],
)
def test_bad_argument_is_a_one_line_error_and_leaves_no_file(checkpoint, arguments, message):
    with pytest.raises(BadInput, match=message) as caught:
        export(checkpoint, **arguments)
    assert "\n" not in str(caught.value)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_bad_model_is_a_one_line_error(tmp_path, tiny_detector):
    (tmp_path / "torn.pt").write_bytes(tiny_detector.pt.read_bytes()[:5000])
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    (tmp_path / "a.onnx").write_text("")
    for name, message in (
        ("gone.pt", r"model=.*gone\.pt: no such file"),
        ("a.onnx", r"must be a \.pt file"),
        ("torn.pt", r"torn\.pt cannot be read"),
        ("foreign.pt", r"foreign\.pt cannot be read"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            export(tmp_path / name, images=tiny_detector.images[:1])
        assert "\n" not in str(caught.value)


def test_classifier_is_an_error(tmp_path, tiny_detector):
    from ultralytics import YOLO

    YOLO("yolo11n-cls.yaml").save(tmp_path / "cls.pt")
    with pytest.raises(BadInput, match=r"cls\.pt \(.*\) must be a YOLO model of the task detect"):
        export(tmp_path / "cls.pt", images=tiny_detector.images[:1])


def test_checkpoint_whose_data_set_is_missing_needs_images(checkpoint):
    saved = torch.load(checkpoint, weights_only=False)
    saved["train_args"]["data"] = "/gone/data.yaml"
    torch.save(saved, checkpoint)
    with pytest.raises(BadInput, match=r"its data set /gone/data\.yaml was not found\): give images="):
        export(checkpoint)


def test_one_number_is_a_square_and_two_are_height_and_width():
    assert image_size(64, 32) == (64, 64)
    assert image_size((64, 96), 32) == (64, 96)
    with pytest.raises(BadInput, match="stride 64"):
        image_size(96, 64)


def test_identity_is_name_size_and_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_identity(tmp_path / "abc") == {"file": "abc", "bytes": 3, "sha256": digest}
