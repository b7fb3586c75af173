"""Metadata of an exported file of any format are read, and contradictions are an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from yolo_mkd.deploy.exported_model import ExportedModel, file_identity, read_exported_model
from yolo_mkd.settings import BadInput

META = {
    "names": {0: "red", 1: "green", 2: "blue"},
    "stride": 32,
    "imgsz": [96, 64],
    "task": "detect",
    "end2end": False,
    "args": {"quantize": 16, "nms": None},
}


def openvino(folder: Path, output: tuple[int, ...] = (1, 7, 126), given: tuple[int, ...] = (1, 3, 96, 64), **about):
    """The two files that an model is read from; the .bin is not read."""
    folder = folder / "best_openvino_model"
    folder.mkdir(exist_ok=True)
    ports = ["".join(f"<dim>{side}</dim>" for side in shape) for shape in (given, output)]
    (folder / "best.xml").write_text(
        f'<net><layers><layer type="Parameter"><output><port>{ports[0]}</port></output></layer>'
        f'<layer type="Result"><input><port>{ports[1]}</port></input></layer></layers></net>'
    )
    (folder / "metadata.yaml").write_text(yaml.safe_dump({**META, **about}))
    return folder


def onnx_file(path: Path, weights: np.ndarray, quantized: bool = False, **about: str) -> Path:
    """A graph that turns a 96 x 64 image into zeros of a detector's shape, through one weight."""
    kind = TensorProto.FLOAT16 if weights.dtype == np.float16 else TensorProto.FLOAT
    nodes = [helper.make_node("Cast", ["weight"], ["scalar"], to=TensorProto.FLOAT)]
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["scalar", "scale"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"]),
        ]
    nodes += [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "dq" if quantized else "scalar"], ["product"]),
        helper.make_node("Expand", ["product", "shape"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 96, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 7, 126])],
        [
            helper.make_tensor("weight", kind, [], weights.reshape(1)),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, 7, 126]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {k: str(v) for k, v in {**META, **about}.items()})
    onnx.save(model, path)
    return path


def test_onnx_states_its_head_and_shapes(exported):
    for head, path in exported.items():
        model = read_exported_model(path)
        assert (model.head, model.format, model.precision) == (head, "onnx", "fp32")
        assert model.names == {0: "red", 1: "green", 2: "blue"} and model.imgsz == (96, 96)
        anchors = 12 * 12 + 6 * 6 + 3 * 3
        assert model.output == ((1, 7, anchors) if head == "one2many" else (1, anchors, 6))


def test_openvino_folder_is_read_without_its_runtime(tmp_path):
    assert read_exported_model(openvino(tmp_path)) == ExportedModel(
        {0: "red", 1: "green", 2: "blue"}, 32, (96, 64), "one2many", (1, 7, 126), "openvino", "fp16"
    )
    assert read_exported_model(openvino(tmp_path, (1, 300, 6), end2end=True)).head == "one2one"


def test_ncnn_folder_is_read_from_its_metadata_alone(tmp_path):
    folder = tmp_path / "best_ncnn_model"
    folder.mkdir()
    (folder / "metadata.yaml").write_text(yaml.safe_dump({**META, "args": {"batch": 1}}))
    model = read_exported_model(folder)
    assert (model.format, model.precision, model.head, model.output) == ("ncnn", "fp32", "one2many", ())


def test_engine_header_is_distinguished_from_a_plan_without_one(tmp_path):
    header = json.dumps({**META, "names": {"0": "red", "1": "green", "2": "blue"}}).encode()
    (tmp_path / "best.engine").write_bytes(len(header).to_bytes(4, "little") + header + b"ftrt plan")
    model = read_exported_model(tmp_path / "best.engine")
    assert (model.format, model.precision, model.names[2]) == ("engine", "fp16", "blue")
    (tmp_path / "pure.engine").write_bytes(b"ftrt" + bytes(64))
    with pytest.raises(BadInput, match="has no Ultralytics metadata"):
        read_exported_model(tmp_path / "pure.engine")


@pytest.mark.parametrize(
    ("weight", "quantized", "about", "precision"),
    [
        (np.float32(1), False, {}, "fp32"),  # META's quantize=16 is contradicted by the graph, which takes precedence
        (np.float16(1), False, {}, "fp16"),
        (np.float32(1), True, {}, "int8"),
        (np.float16(1), True, {}, "int8"),
        (np.float32(1), False, {"yolo_mkd.precision": "int8"}, "int8"),  # our own statement takes precedence
    ],
)
def test_onnx_precision_is_the_stated_one_else_the_graphs(tmp_path, weight, quantized, about, precision):
    assert (
        read_exported_model(onnx_file(tmp_path / "best.onnx", np.asarray(weight), quantized, **about)).precision
        == precision
    )


def test_our_own_metadata_take_precedence_for_the_head(tmp_path):
    folder = openvino(tmp_path, (1, 300, 6), **{"yolo_mkd.head": "one2one", "yolo_mkd.precision": "int8"})
    assert (read_exported_model(folder).head, read_exported_model(folder).precision) == ("one2one", "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": (1, 300, 6)}, r"output \[1, 300, 6\] does not fit head one2many with 3 classes"),
        ({"output": (1, 7, 126), "end2end": True}, "does not fit head one2one"),
        ({"given": (1, 3, 64, 96)}, r"input is \[1, 3, 64, 96\], but its metadata state size \(96, 64\)"),
        ({"given": (-1, 3, 96, 64)}, r"input is \[-1, 3, 96, 64\]"),
        ({"task": "segment"}, "a model for task segment"),
        ({"args": {"quantize": "w8a16"}}, "has head one2many and quantize w8a16, of which one is unknown"),
        ({"yolo_mkd.head": "two2two"}, "has head two2two"),
    ],
)
def test_folder_that_contradicts_itself_is_an_error(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        read_exported_model(openvino(tmp_path, **changes))


def test_damaged_folder_is_a_one_line_error(tmp_path):
    folder = openvino(tmp_path)
    (folder / "best.xml").write_text("<net><layers>")
    with pytest.raises(BadInput, match=r"best\.xml is not valid XML"):
        read_exported_model(folder)
    (folder / "best.xml").unlink()
    with pytest.raises(BadInput, match=r"contains 0 \.xml files"):
        read_exported_model(folder)
    (folder / "metadata.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="no Ultralytics metadata"):
        read_exported_model(folder)


def test_missing_file_or_unknown_format_is_an_error(tmp_path):
    for name, message in (
        ("best.pt", "export it first"),
        ("best.pb", "must be an .onnx"),
        ("best.onnx", "no such file"),
        ("best_ncnn_model", "no such folder"),
    ):
        with pytest.raises(BadInput, match=message):
            read_exported_model(tmp_path / name)


def test_identity_of_a_folder_changes_with_every_name_and_byte(tmp_path):
    folder = openvino(tmp_path)
    first = file_identity(folder)
    assert first["file"] == "best_openvino_model"
    assert first["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert file_identity(copy)["sha256"] == first["sha256"]
    (copy / "best.xml").rename(copy / "besu.xml")
    assert file_identity(copy)["sha256"] != first["sha256"]
    (copy / "besu.xml").rename(copy / "best.xml")
    (copy / "metadata.yaml").write_text((copy / "metadata.yaml").read_text() + " ")
    assert file_identity(copy)["sha256"] != first["sha256"]
