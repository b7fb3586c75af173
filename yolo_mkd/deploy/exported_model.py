"""Reading of exported detectors: their metadata, validated against their graph.

An exported model is an .onnx or .tflite file, a *_openvino_model or *_ncnn_model folder, or an .engine with
Ultralytics' header.
"""

from __future__ import annotations

import ast
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict
from xml.etree import ElementTree

import yaml

from yolo_mkd import report
from yolo_mkd.settings import BadInput, file_path, load_yaml

PROVIDER = "CPUExecutionProvider"
FOLDERS = {"_openvino_model": "openvino", "_ncnn_model": "ncnn"}  # the endings of Ultralytics' folder names
FILES = {"onnx": "onnx", "engine": "engine", "tflite": "litert"}  # endings of files
TFLITE_METADATA = "metadata.json"
HEADS = ("one2many", "one2one", "embedded_nms")
PRECISIONS = {None: "fp32", 32: "fp32", 16: "fp16", 8: "int8"}  # Ultralytics' quantize -> ours


@dataclass(frozen=True)
class ExportedModel:
    """Metadata of an exported detector. The head is read from the file, never inferred from a shape."""

    names: dict[int, str]
    stride: int
    imgsz: tuple[int, int]  # height, width [pixels]
    head: str  # one2many: (1, 4+classes, anchors), NMS outside; one2one: (1, rows, 6); embedded_nms: (1, rows, 6)
    output: tuple[int, ...]  # shape; empty where the file does not state it: ncnn, litert, engine
    format: str = "onnx"  # onnx | openvino | ncnn | litert | engine
    precision: str = "fp32"  # of the weights: fp32 | fp16 | int8


class FileIdentity(TypedDict):
    """Name, size and SHA-256 of a file or folder."""

    file: str
    bytes: int
    sha256: str


def read_exported_model(path: str | Path) -> ExportedModel:
    """Read the metadata of an exported file of any format.

    Args:
        path: the .onnx file, the .tflite file, the OpenVINO or NCNN folder, or the .engine file.

    Raises:
        BadInput: it is missing, of an unknown format, has no metadata, or its metadata contradict its graph.
    """
    path = Path(path)
    kind = format_of("model", path)
    if kind == "onnx":
        return read_onnx(path, open_session(path))
    if kind == "engine":
        return from_metadata(engine_header(path), "engine")
    if kind == "litert":
        return from_metadata(tflite_metadata(path), kind)
    model = from_metadata(folder_metadata(path), kind)
    if kind == "openvino":
        given, output = openvino_shapes(model_file(path, ".xml"))
        model = validate_shapes(replace(model, output=output), given)
    return model


def read_onnx(path: Path, session: Any) -> ExportedModel:
    """Read the metadata of an .onnx file from an open session, and its precision from the graph where it is not stated.

    Raises:
        BadInput: as `describe_session`.
    """
    model = describe_session(session)
    stated = "yolo_mkd.precision" in session.get_modelmeta().custom_metadata_map
    return model if stated else replace(model, precision=precision_of_graph(path))


def format_of(argument: str, path: Path) -> str:
    """The format of an existing exported file: onnx, openvino, ncnn, litert or engine.

    Raises:
        BadInput: it is of another format, or does not exist.
    """
    suffix = path.suffix[1:]
    kind = next((name for end, name in FOLDERS.items() if path.name.endswith(end)), FILES.get(suffix))
    if kind is None:
        advice = "make one with yolo-mkd export"
        if suffix == "pt":
            advice = f"export it first (yolo-mkd export model={path})"
        raise BadInput(
            f"{argument}={path} must be an .onnx, .tflite, .engine, *_openvino_model or *_ncnn_model: {advice}"
        )
    if not (path.is_dir() if kind in FOLDERS.values() else path.is_file()):
        raise BadInput(f"{argument}={path}: no such {'folder' if kind in FOLDERS.values() else 'file'}")
    return kind


def existing_file(argument: str, path: str | Path, suffix: str) -> Path:
    """Return the path, after validating that the file exists and has the suffix.

    Raises:
        BadInput: it has another suffix, or does not exist.
    """
    path = file_path(argument, path, f"best{suffix}")
    if path.suffix != suffix:
        advice = ": make one with yolo-mkd export" if suffix == ".onnx" else ""
        raise BadInput(f"{argument}={path} must be a {suffix} file{advice}")
    if not path.is_file():
        raise BadInput(f"{argument}={path}: no such file")
    return path


def file_identity(path: Path) -> FileIdentity:
    """Name, size and SHA-256 of a file, for a report; a folder's hash covers the names and contents of its files."""
    if path.is_file():
        return {"file": path.name, "bytes": path.stat().st_size, "sha256": report.sha256(path)}
    total, digest = 0, hashlib.sha256()
    for name, file in sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        total += len(content)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)  # lengths make it unambiguous
    return {"file": path.name, "bytes": total, "sha256": digest.hexdigest()}


def open_session(path: Path, threads: int = 0) -> Any:
    """Open an ONNX Runtime session on the CPU.

    Args:
        path: the .onnx file.
        threads: within an operator; 0 for ONNX Runtime's default.

    Raises:
        BadInput: ONNX Runtime cannot load the file.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented) as error:
        cause = " ".join(str(error).split())[:160]
        raise BadInput(f"{path.name} cannot be loaded by ONNX Runtime ({cause}): export it again") from error


def describe_session(session: Any) -> ExportedModel:
    """Read names, stride, size, head and stated precision from the metadata of an ONNX Runtime session.

    Raises:
        BadInput: metadata are missing, it is not a detector, or the graph's shapes contradict the metadata.
    """
    about: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    for key in {"names", "imgsz", "args"} & set(about):
        about[key] = ast.literal_eval(about[key])  # ONNX stores text only
    model = from_metadata(about, "onnx")
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape, kind = inputs[0].shape, inputs[0].type
    if len(inputs) != 1 or kind != "tensor(float)":
        raise BadInput(f"the file's input is {shape} of {kind}, but must be one float image: export it again")
    if len(outputs) != 1:
        raise BadInput(f"the file has {len(outputs)} outputs, but a detector has one: export it again")
    return validate_shapes(replace(model, output=tuple(outputs[0].shape)), tuple(shape))


def from_metadata(about: Mapping[str, Any], kind: str) -> ExportedModel:
    """Build an ExportedModel without its output shape from an export's metadata.

    Raises:
        BadInput: metadata are missing, or it is not a detector.
    """
    if not {"names", "stride", "imgsz", "task"} <= set(about):
        raise BadInput("the file has no Ultralytics metadata (names, stride, imgsz): make it with yolo-mkd export")
    if about["task"] != "detect":
        raise BadInput(f"the file is a model for task {about['task']}: give an exported detection model")
    arguments = about.get("args") or {}
    inside = arguments.get("nms") is True
    head = "one2one" if str(about.get("end2end")) == "True" else "embedded_nms" if inside else "one2many"
    head = about.get("yolo_mkd.head", head)
    precision = about.get("yolo_mkd.precision") or PRECISIONS.get(arguments.get("quantize"), "")
    if head not in HEADS or precision not in PRECISIONS.values():
        stated = f"head {head} and quantize {arguments.get('quantize')}"
        raise BadInput(f"the file has {stated}, of which one is unknown: export it again")
    names = {int(index): str(name) for index, name in about["names"].items()}
    height, width = about["imgsz"]
    return ExportedModel(names, int(about["stride"]), (height, width), head, (), kind, precision)


def validate_shapes(model: ExportedModel, given: tuple[Any, ...]) -> ExportedModel:
    """Return the model, after validating the shapes of its graph's input and output against its metadata.

    Raises:
        BadInput: they differ.
    """
    if given != (1, 3, *model.imgsz):
        raise BadInput(f"the file's input is {list(given)}, but its metadata state size {model.imgsz}: export it again")
    output, classes = model.output, len(model.names)
    if len(output) != 3 or not (output[1] == 4 + classes if model.head == "one2many" else output[2] == 6):
        raise BadInput(
            f"the file's output {list(output)} does not fit head {model.head} with {classes} classes: export it again"
        )
    return model


def precision_of_graph(path: Path) -> str:
    """The precision of an ONNX file's weights, from its graph."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    return "fp16" if any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer) else "fp32"


def folder_metadata(path: Path) -> dict[str, Any]:
    """Ultralytics' metadata.yaml of an exported folder; empty where it is missing or damaged."""
    try:
        found = load_yaml((path / "metadata.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def tflite_metadata(path: Path) -> dict[str, Any]:
    """The metadata.json that Ultralytics appends to a .tflite as a zip archive; empty where missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read(TFLITE_METADATA))
    except (zipfile.BadZipFile, KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def model_file(path: Path, suffix: str) -> Path:
    """The one file of an exported folder with this suffix.

    Raises:
        BadInput: there is none, or more than one.
    """
    found = sorted(path.glob(f"*{suffix}"))
    if len(found) != 1:
        raise BadInput(f"{path.name} contains {len(found)} {suffix} files, but must contain one: export it again")
    return found[0]


def openvino_shapes(file: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the input and the output of an OpenVINO .xml, read without OpenVINO; a dynamic side is -1.

    Raises:
        BadInput: the file is damaged, or does not have one input and one output.
    """
    try:
        layers = list(ElementTree.parse(file).getroot().iter("layer"))
    except ElementTree.ParseError as error:
        raise BadInput(f"{file.name} is not valid XML ({error}): export it again") from error
    ports = [
        [port for layer in layers if layer.get("type") == kind for port in layer.iter("port")]
        for kind in ("Parameter", "Result")
    ]
    if [len(found) for found in ports] != [1, 1]:
        raise BadInput(f"{file.name} must have one input and one output, as a detector has: export it again")
    given, output = (tuple(int(side.text or -1) for side in port.iter("dim")) for (port,) in ports)
    return given, output


def engine_header(path: Path) -> dict[str, Any]:
    """The JSON that Ultralytics writes before a TensorRT plan (4 bytes of length, then the text); empty without one."""
    content = path.read_bytes()
    size = int.from_bytes(content[:4], "little")
    try:
        found = json.loads(content[4 : 4 + size]) if 0 < size <= len(content) - 4 else {}
    except ValueError:  # a plan without a header
        return {}
    return found if isinstance(found, dict) else {}
