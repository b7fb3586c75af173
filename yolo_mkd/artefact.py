"""An exported ONNX file: what it says of itself, agreed with its graph. Only files that state their head are read."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_mkd.settings import BadInput

PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Artefact:
    """A detector's ONNX file. The head is the file's own statement, never inferred from a shape."""

    names: dict[int, str]
    stride: int
    imgsz: tuple[int, int]  # height, width [pixels]
    head: str  # one2many: (1, 4+classes, anchors), NMS outside; one2one: (1, rows, 6); embedded_nms: (1, rows, 6)
    output: tuple[int, ...]


def existing(argument: str, path: str | Path, suffix: str) -> Path:
    """Return the path of an existing file with the suffix asked for.

    Raises:
        BadInput: it has another suffix or is not there.
    """
    path = Path(path)
    if path.suffix != suffix:
        advice = ": make one with yolo-mkd export" if suffix == ".onnx" else ""
        raise BadInput(f"{argument}={path} is no {suffix} file{advice}")
    if not path.is_file():
        raise BadInput(f"{argument}={path}: no such file")
    return path


def identity(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, for a report."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def open_session(path: Path, threads: int = 0) -> Any:
    """Open an ONNX Runtime session on the CPU.

    Args:
        path: the .onnx file.
        threads: within an operator; 0 leaves it to ONNX Runtime.

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


def describe(session: Any) -> Artefact:
    """Read names, stride, size and head from a session's metadata.

    Raises:
        BadInput: metadata are missing, it is no detector, or the graph's shapes say otherwise than the metadata.
    """
    about = session.get_modelmeta().custom_metadata_map
    if not {"names", "stride", "imgsz", "task"} <= set(about):
        raise BadInput("the file carries no Ultralytics metadata (names, stride, imgsz): make it with yolo-mkd export")
    if about["task"] != "detect":
        raise BadInput(f"the file is no detector (task {about['task']}): give an exported detection model")
    names, imgsz = ast.literal_eval(about["names"]), tuple(ast.literal_eval(about["imgsz"]))
    inside = ast.literal_eval(about.get("args", "{}")).get("nms") is True
    head = "one2one" if about.get("end2end") == "True" else "embedded_nms" if inside else "one2many"
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape, kind = inputs[0].shape, inputs[0].type
    if len(inputs) != 1 or shape != [1, 3, *imgsz] or kind != "tensor(float)":
        raise BadInput(
            f"the file's input is {shape} of {kind}, not one fixed float image of its metadata's size {imgsz}"
        )
    output = tuple(outputs[0].shape)
    fits = len(output) == 3 and (output[1] == 4 + len(names) if head == "one2many" else output[2] == 6)
    if len(outputs) != 1 or not fits:
        raise BadInput(f"the file's output {list(output)} does not fit head {head} with {len(names)} classes")
    return Artefact(names, int(about["stride"]), imgsz, head, output)
