"""An exported file of any format says what it is, and is refused where it contradicts itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from yolo_mkd.deploy.exported_model import ExportedModel, identity, read
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
    """The two files that an artefact is read from; the .bin is not looked at."""
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
        artefact = read(path)
        assert (artefact.head, artefact.format, artefact.precision) == (head, "onnx", "fp32")
        assert artefact.names == {0: "red", 1: "green", 2: "blue"} and artefact.imgsz == (96, 96)
        anchors = 12 * 12 + 6 * 6 + 3 * 3
        assert artefact.output == ((1, 7, anchors) if head == "one2many" else (1, anchors, 6))


def test_openvino_folder_is_read_without_its_runtime(tmp_path):
    assert read(openvino(tmp_path)) == ExportedModel(
        {0: "red", 1: "green", 2: "blue"}, 32, (96, 64), "one2many", (1, 7, 126), "openvino", "fp16"
    )
    assert read(openvino(tmp_path, (1, 300, 6), end2end=True)).head == "one2one"


def test_ncnn_folder_is_read_from_its_metadata_alone(tmp_path):
    folder = tmp_path / "best_ncnn_model"
    folder.mkdir()
    (folder / "metadata.yaml").write_text(yaml.safe_dump({**META, "args": {"batch": 1}}))
    artefact = read(folder)
    assert (artefact.format, artefact.precision, artefact.head, artefact.output) == ("ncnn", "fp32", "one2many", ())


def test_engine_header_is_told_from_a_pure_plan(tmp_path):
    header = json.dumps({**META, "names": {"0": "red", "1": "green", "2": "blue"}}).encode()
    (tmp_path / "best.engine").write_bytes(len(header).to_bytes(4, "little") + header + b"ftrt plan")
    artefact = read(tmp_path / "best.engine")
    assert (artefact.format, artefact.precision, artefact.names[2]) == ("engine", "fp16", "blue")
    (tmp_path / "pure.engine").write_bytes(b"ftrt" + bytes(64))
    with pytest.raises(BadInput, match="carries no Ultralytics metadata"):
        read(tmp_path / "pure.engine")


@pytest.mark.parametrize(
    ("weight", "quantized", "about", "precision"),
    [
        (np.float32(1), False, {}, "fp32"),  # META's quantize=16 is contradicted by the graph, which is right
        (np.float16(1), False, {}, "fp16"),
        (np.float32(1), True, {}, "int8"),
        (np.float16(1), True, {}, "int8"),
        (np.float32(1), False, {"yolo_mkd.precision": "int8"}, "int8"),  # our own word is taken
    ],
)
def test_onnx_precision_is_our_own_statement_else_the_graphs(tmp_path, weight, quantized, about, precision):
    assert read(onnx_file(tmp_path / "best.onnx", np.asarray(weight), quantized, **about)).precision == precision


def test_our_own_word_names_the_head(tmp_path):
    folder = openvino(tmp_path, (1, 300, 6), **{"yolo_mkd.head": "one2one", "yolo_mkd.precision": "int8"})
    assert (read(folder).head, read(folder).precision) == ("one2one", "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": (1, 300, 6)}, r"output \[1, 300, 6\] does not fit head one2many with 3 classes"),
        ({"output": (1, 7, 126), "end2end": True}, "does not fit head one2one"),
        ({"given": (1, 3, 64, 96)}, r"input is \[1, 3, 64, 96\], not one image of its metadata's size \(96, 64\)"),
        ({"given": (-1, 3, 96, 64)}, r"input is \[-1, 3, 96, 64\]"),
        ({"task": "segment"}, "no detector"),
        ({"args": {"quantize": "w8a16"}}, "states head one2many and quantize w8a16"),
        ({"yolo_mkd.head": "two2two"}, "states head two2two"),
    ],
)
def test_folder_that_contradicts_itself_is_refused(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        read(openvino(tmp_path, **changes))


def test_torn_folder_is_refused_in_one_line(tmp_path):
    folder = openvino(tmp_path)
    (folder / "best.xml").write_text("<net><layers>")
    with pytest.raises(BadInput, match=r"best\.xml is no valid XML"):
        read(folder)
    (folder / "best.xml").unlink()
    with pytest.raises(BadInput, match=r"holds 0 \.xml files"):
        read(folder)
    (folder / "metadata.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="no Ultralytics metadata"):
        read(folder)


def test_what_is_not_there_or_of_another_format_is_refused(tmp_path):
    for name, message in (
        ("best.pt", "export it first"),
        ("best.tflite", "is no .onnx"),
        ("best.onnx", "no such file"),
        ("best_ncnn_model", "no such folder"),
    ):
        with pytest.raises(BadInput, match=message):
            read(tmp_path / name)


def test_identity_of_a_folder_changes_with_every_name_and_byte(tmp_path):
    folder = openvino(tmp_path)
    first = identity(folder)
    assert first["file"] == "best_openvino_model"
    assert first["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert identity(copy)["sha256"] == first["sha256"]
    (copy / "best.xml").rename(copy / "besu.xml")
    assert identity(copy)["sha256"] != first["sha256"]
    (copy / "besu.xml").rename(copy / "best.xml")
    (copy / "metadata.yaml").write_text((copy / "metadata.yaml").read_text() + " ")
    assert identity(copy)["sha256"] != first["sha256"]
