"""INT8 is calibrated on training images alone, in the form TensorRT supports, with the head's decode in float."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from yolo_mkd import host
from yolo_mkd.deploy.check.structure import graph_mismatch, quantised_decode
from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.export.graph import block_index, decode_nodes, write_metadata
from yolo_mkd.deploy.export.int8 import (
    calibration_images,
    letterboxed_tensors,
    quantisable_nodes,
    quantise_to_int8,
)
from yolo_mkd.deploy.export.request import ExportArguments, validate_request
from yolo_mkd.deploy.export.sensitivity import measure_sensitivity, sensitivity_text
from yolo_mkd.deploy.exported_model import read_exported_model
from yolo_mkd.settings import BadInput

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def int8(tiny_detector, exported, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("int8") / "int8.onnx"
    pictures, _ = calibration_images(str(tiny_detector.data), 24, 0)
    quantise_to_int8(exported["one2many"], file, pictures, (96, 96))
    return file


def data_set(folder: Path, train: list[Path], val: list[Path]) -> str:
    """A data set of copies of pictures; its YAML."""
    for split, pictures in (("train", train), ("val", val)):
        for index, picture in enumerate(pictures):
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, folder / "images" / split / f"{split}{index}.png")
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": ["a"]})
    )
    return str(folder / "data.yaml")


# The images


def test_calibration_uses_training_images_only_and_reports_its_choice(tiny_detector):
    chosen, facts = calibration_images(str(tiny_detector.data), 10, 0)
    assert len(set(chosen)) == 10 and {p.parent.name for p in chosen} == {"train"}
    assert (facts["split"], facts["images"], facts["of"], facts["left_out"], facts["seed"]) == ("train", 10, 96, 0, 0)


def test_choice_depends_on_the_seed_only(tiny_detector):
    data = str(tiny_detector.data)
    first, facts = calibration_images(data, 10, 0)
    again, same = calibration_images(data, 10, 0)
    other, different = calibration_images(data, 10, 1)
    assert first == again and facts["list_sha256"] == same["list_sha256"]
    assert first != other and facts["list_sha256"] != different["list_sha256"]
    assert len(calibration_images(data, 300, 0)[0]) == 96


def test_training_image_with_the_bytes_of_a_val_image_is_left_out(tiny_detector, tmp_path):
    train = sorted((tiny_detector.data.parent / "images/train").iterdir())[:12]
    data = data_set(tmp_path, [*train, tiny_detector.images[0]], tiny_detector.images)
    chosen, facts = calibration_images(data, 300, 0)
    assert facts["left_out"] == 1 and facts["images"] == 12
    assert tiny_detector.images[0].read_bytes() not in [p.read_bytes() for p in chosen]


def test_train_split_equal_to_the_val_split_is_an_error(tiny_detector):
    data = tiny_detector.data.with_name("same.yaml")
    data.write_text(tiny_detector.data.read_text().replace("train: images/train", "train: images/val"))
    with pytest.raises(BadInput, match=r"has 0 training images for INT8 calibration \(16 more are val or test images"):
        calibration_images(str(data), 300, 0)


def test_calibration_tensors_equal_the_network_inputs(tiny_detector):
    (tensor,) = letterboxed_tensors(tiny_detector.images[:1], (96, 96))
    assert tensor.shape == (1, 3, 96, 96) and tensor.dtype == np.float32
    assert tensor[0, :, :12] == pytest.approx(114 / 255)  # 96 x 128 lands in rows 12 to 84
    assert not np.allclose(tensor[0, :, 12:84], 114 / 255) and tensor.max() <= 1


# The graph


def test_activations_are_symmetric_weights_per_channel_and_biases_float(int8):
    graph = onnx.load(int8).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs and all(not values[n.input[2]].any() for n in pairs)  # TensorRT supports no zero points
    assert {values[n.input[2]].dtype for n in pairs} == {np.dtype(np.int8)}  # nor INT32 biases
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    assert weights and all(values[n.input[1]].shape == values[n.input[0]].shape[:1] for n in weights)


def test_last_convolutions_and_decode_stay_in_float(int8, exported):
    source = onnx.load(exported["one2many"]).graph
    last, decode = decode_nodes(source)
    assert len(last) == 6 and all(name.endswith(".2/Conv") for name in last)  # boxes and scores of three levels
    weights = {t.name for t in onnx.load(int8).graph.initializer}
    convolutions = {n.name: n.input[1] for n in source.node if n.op_type == "Conv"}
    assert all(convolutions[name] in weights for name in last)
    assert any(convolutions[name] not in weights for name in convolutions)
    assert not quantised_decode(int8) and not decode & set(quantisable_nodes(exported["one2many"]))


def test_float_weights_with_a_pair_are_written_for_tensorrt_8(exported, tiny_detector, tmp_path):
    pictures, _ = calibration_images(str(tiny_detector.data), 8, 0)
    quantise_to_int8(exported["one2many"], tmp_path / "pairs.onnx", pictures, (96, 96), int8_weights=False)
    graph = onnx.load(tmp_path / "pairs.onnx").graph
    values = {t.name: t.data_type for t in graph.initializer}
    held = {values[n.input[0]] for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in values}
    assert held == {onnx.TensorProto.FLOAT}
    assert not any(n.op_type == "DequantizeLinear" and n.input[0] in values for n in graph.node)


def test_block_is_read_from_a_nodes_name():
    assert block_index("/model.10/m/m.0/attn/MatMul") == 10 and block_index("output") is None


def test_file_with_a_wrong_precision_in_its_metadata_fails(int8, tmp_path):
    mislabelled = Path(shutil.copy(int8, tmp_path / "mislabelled.onnx"))
    write_metadata(mislabelled, {"precision": "fp32"})
    assert (
        graph_mismatch(mislabelled, read_exported_model(mislabelled), None)
        == "the file states precision fp32, but its graph is int8"
    )


# The whole export


def test_int8_export_states_its_calibration_and_retains_its_map(tiny_detector, tmp_path, capsys):
    checkpoint = Path(shutil.copy(tiny_detector.pt, tmp_path / "tiny.pt"))
    file = export(checkpoint, quantize=8, target="jp6", calibration=16, data=tiny_detector.data)
    report = json.loads((tmp_path / "tiny_int8.export.json").read_text())
    assert file.name == "tiny_int8.onnx" and report["precision"] == "int8" and report["head"] == "one2many"
    assert report["calibration"]["images"] == 16 and report["calibration"]["left_out"] == 0
    about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(about["yolo_mkd.calibration"]) == report["calibration"]
    found = report["accuracy"]
    assert found["retained"] > 0.95 and found["passes_at"] == 0.99
    assert [c["name"] for c in sorted(found["thresholds"]["classes"], key=lambda c: c["name"])] == [
        "blue",
        "green",
        "red",
    ]
    assert found["other_head"] == "one2one" and abs(found["other_head_map50_95"] - found["checkpoint_map50_95"]) > 0.002
    printed = capsys.readouterr().out
    assert (
        f"one2many has mAP50-95 {found['checkpoint_map50_95']:.4f}, one2one {found['other_head_map50_95']:.4f}"
        in printed
    )
    with pytest.raises(
        BadInput, match="quantize=8 is judged by its mAP, which cannot be measured: images have no labels"
    ):
        export(checkpoint, quantize=8, images=tiny_detector.images)


def test_checkpoint_trained_in_int8_is_exported_with_its_own_ranges(tiny_detector, monkeypatch):
    monkeypatch.setattr(host, "is_qat", lambda model: True)
    given = ExportArguments(
        source=tiny_detector.pt, format="onnx", head=None, target="generic", quantize=8, imgsz=96, images=None,
        data=str(tiny_detector.data), calibration=0, seed=0, sensitivity=False, passed_on={},
    )  # fmt: skip
    assert validate_request(given).calibration is None  # calibration=0 would be refused
    for wrong in ({"quantize": None}, {"quantize": 16}, {"sensitivity": True}):
        with pytest.raises(BadInput, match="trained with quantize=8, so its INT8 ranges are fixed"):
            validate_request(replace(given, **wrong))
    monkeypatch.setattr(host, "is_qat", lambda model: False)
    with pytest.raises(BadInput, match="calibration=0"):
        validate_request(given)


def test_sensitivity_lists_every_block_the_largest_loss_first(tiny_detector, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "yolo_mkd.deploy.export.sensitivity.quantisable_nodes",
        lambda source: [n for n in quantisable_nodes(source) if block_index(n) in {0, 2, 16}],
    )
    pictures, _ = calibration_images(str(tiny_detector.data), 8, 0)
    found = measure_sensitivity(
        exported["one2many"], pictures, (96, 96), str(tiny_detector.data), {0: "Conv", 2: "C3k2"}, 6
    )
    assert found["images"] == 6 and {row["block"] for row in found["blocks"]} == {0, 2, 16}
    changes = [row["change"] for row in found["blocks"]]
    assert changes == sorted(changes)
    assert all(row["map50_95"] - row["change"] == pytest.approx(found["map50_95"]) for row in found["blocks"])
    assert "C3k2" in sensitivity_text(found) and "on 6 images" in sensitivity_text(found)
