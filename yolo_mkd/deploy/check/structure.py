"""Structural checks of a file before it runs: shapes, classes, stride, opset, and quantised operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_mkd.deploy.exported_model import ExportedModel, precision_of_graph

WEIGHTED = {"Conv", "Gemm", "MatMul"}
QUANTISED_DECODE = (
    "its head's decode is quantised too, and one INT8 scale for boxes and scores leaves the scores few or no levels: "
    "keep the decode in float, as yolo-mkd export quantize=8 does"
)


def metadata_mismatch(model: ExportedModel, names: dict[int, str], strides: list[int]) -> str:
    """How the file's metadata contradict the checkpoint, in one line; empty when they agree."""
    if len(model.names) != len(names):
        return f"the file has {len(model.names)} classes, the checkpoint {len(names)}"
    for index, name in names.items():
        if model.names.get(index) != name:
            return f"class {index} is named {model.names.get(index)} in the file, {name} in the checkpoint"
    if model.stride != max(strides):
        return f"stride is {model.stride} in the file, {max(strides)} in the checkpoint"
    height, width = model.imgsz
    anchors = sum((height // s) * (width // s) for s in strides)
    if model.head == "one2many" and model.output and model.output[2] != anchors:
        return f"the file has {model.output[2]} anchors, the checkpoint {anchors} at {height}x{width}"
    return ""


def graph_mismatch(path: Path, model: ExportedModel, highest: int | None) -> str:
    """How an ONNX graph contradicts its target's opset or its stated precision, in one line; empty when it does not."""
    if model.format != "onnx":
        return ""
    if highest and (needed := required_opset(path)) > highest:
        return f"the file needs opset {needed}, but its target supports up to {highest}"
    if (held := precision_of_graph(path)) != model.precision:
        return f"the file states precision {model.precision}, but its graph is {held}"
    return ""


def required_opset(path: Path) -> int:
    """The version of the standard operators that an ONNX file needs."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    return int(next(o.version for o in graph.opset_import if o.domain in {"", "ai.onnx"}))


def quantised_decode(path: Path) -> bool:
    """Whether anything is quantised between an ONNX graph's last weighted operators and its output."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    made_by = {name: node for node in graph.node for name in node.output}
    waiting, seen = [o.name for o in graph.output], set[str]()
    while waiting:
        node: Any = made_by.get(waiting.pop())
        if node is None or node.name in seen or node.op_type in WEIGHTED:
            continue
        if node.op_type == "QuantizeLinear":
            return True
        seen.add(node.name)
        waiting += node.input
    return False
