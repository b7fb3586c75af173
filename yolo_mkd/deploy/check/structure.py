"""What a file's structure says before it runs: shapes, classes, stride, opset, and which operators are quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_mkd.deploy.exported_model import ExportedModel, graph_precision

WEIGHTED = {"Conv", "Gemm", "MatMul"}
QUANTISED_DECODE = (
    "its head's decode is quantised too, and one INT8 scale for boxes and scores leaves scores few steps or none: "
    "keep the decode in float, as yolo-mkd export quantize=8 does"
)


def fault(artefact: ExportedModel, names: dict[int, str], strides: list[int]) -> str:
    """Say in one line what in the file's description contradicts the checkpoint; nothing when all agrees."""
    if len(artefact.names) != len(names):
        return f"the file has {len(artefact.names)} classes, the checkpoint {len(names)}"
    for index, name in names.items():
        if artefact.names.get(index) != name:
            return f"class {index} is named {artefact.names.get(index)} in the file, {name} in the checkpoint"
    if artefact.stride != max(strides):
        return f"stride is {artefact.stride} in the file, {max(strides)} in the checkpoint"
    height, width = artefact.imgsz
    anchors = sum((height // s) * (width // s) for s in strides)
    if artefact.head == "one2many" and artefact.output and artefact.output[2] != anchors:
        return f"the file has {artefact.output[2]} anchors, the checkpoint {anchors} at {height}x{width}"
    return ""


def graph_fault(path: Path, artefact: ExportedModel, highest: int | None) -> str:
    """Say in one line what an ONNX graph contradicts: the opset its target reads, or the precision it states."""
    if artefact.format != "onnx":
        return ""
    if highest and (needed := opset(path)) > highest:
        return f"the file needs opset {needed}, its target reads up to {highest}"
    if (held := graph_precision(path)) != artefact.precision:
        return f"the file calls itself {artefact.precision}, its graph is {held}"
    return ""


def opset(path: Path) -> int:
    """The version of the standard operators that an ONNX file needs."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    return int(next(o.version for o in graph.opset_import if o.domain in {"", "ai.onnx"}))


def quantised_decode(path: Path) -> bool:
    """Is anything quantised between an ONNX graph's last weighted operators and its output?"""
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
