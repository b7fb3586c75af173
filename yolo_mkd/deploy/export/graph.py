"""Exported ONNX graphs: the start of the head's decode, an operator's block, FP16 conversion and metadata."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.exported_model import TFLITE_METADATA, tflite_metadata
from yolo_mkd.settings import Failed, load_yaml

WEIGHTED = ("Conv", "Gemm", "MatMul")
PREPROCESS = {
    "layout": "NCHW",
    "colour": "RGB",
    "scale": "1/255",
    "letterbox": 114,
    "resize": "bilinear, sides round(side * gain)",
    "margins": "round(free / 2 - 0.1) at the top and left",
}


def decode_nodes(graph: Any) -> tuple[set[str], set[str]]:
    """Find a detector's last weighted operators, and the nodes that decode their outputs into boxes and scores.

    Args:
        graph: of the ONNX model.

    Returns:
        Names of the last weighted nodes, and of every node after them; the expectation of a distribution (DFL) belongs
        to the decode.

    Raises:
        Failed: the nodes have no names.
    """
    if any(not node.name for node in graph.node):
        raise Failed("the exported graph has nodes without names: export with simplify=True, which is the default")
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weighted = {node.name: node for node in graph.node if node.op_type in WEIGHTED and "/dfl/" not in node.name}
    after = {name: descendants(node, readers) for name, node in weighted.items()}
    last = {name for name, names in after.items() if not names & set(weighted)}
    return last, set().union(*(after[name] for name in last))


def descendants(node: Any, readers: dict[str, list[Any]]) -> set[str]:
    """Names of all nodes that depend on an output of this one."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for output in waiting.pop().output:
            for reader in readers.get(output, []):
                if reader.name not in found:
                    found.add(reader.name)
                    waiting.append(reader)
    return found


def block_index(name: str) -> int | None:
    """The index of the model's layer that a node belongs to, from its name such as /model.4/cv1/conv/Conv."""
    found = re.match(r"/model\.(\d+)/", name)
    return int(found[1]) if found else None


def convert_to_fp16(source: Path, target: Path) -> None:
    """Convert an ONNX file to FP16 weights and arithmetic, with float input and output and the decode in float.

    Ultralytics converts the decode too, and FP16 resolves pixels from 512 to 1024 in steps of 0.5 only.
    """
    import onnx
    from onnx.utils import Extractor
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    last, _ = decode_nodes(model.graph)
    border = [name for node in model.graph.node if node.name in last for name in node.output]
    extractor = Extractor(onnx.shape_inference.infer_shapes(model))
    converted = convert_float_to_float16(
        extractor.extract_model([i.name for i in model.graph.input], border), keep_io_types=True
    )
    decode = extractor.extract_model(border, [o.name for o in model.graph.output]).graph
    held = {tensor.name for tensor in converted.graph.initializer}
    converted.graph.node.extend(decode.node)
    converted.graph.initializer.extend(tensor for tensor in decode.initializer if tensor.name not in held)
    del converted.graph.output[:]
    converted.graph.output.extend(model.graph.output)
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    onnx.save(converted, target)


def write_metadata(path: Path, facts: dict[str, Any]) -> None:
    """Write facts about an exported file into its metadata, with the prefix yolo_mkd.

    Args:
        path: an .onnx or .tflite file, or a folder with a metadata.yaml.
        facts: keys without the prefix; values other than text are written as JSON, None is left out.
    """
    values = {f"yolo_mkd.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in facts.items() if v is not None}
    if path.is_dir():
        import yaml

        file = path / "metadata.yaml"
        found = load_yaml(file.read_text(encoding="utf-8"))
        file.write_text(yaml.safe_dump({**found, **values}, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return
    if path.suffix == ".tflite":
        replace_tflite_metadata(path, values)
        return
    import onnx

    model = onnx.load(path)
    known = {entry.key: entry for entry in model.metadata_props}
    for key, value in values.items():
        entry = known.get(key) or model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


def replace_tflite_metadata(path: Path, values: dict[str, str]) -> None:
    """Replace the zip archive at the end of a .tflite by one whose metadata.json has these values too."""
    found = {**tflite_metadata(path), **values}
    with zipfile.ZipFile(path) as archive:
        start = min(entry.header_offset for entry in archive.infolist())  # the flatbuffer ends here
    with path.open("r+b") as file:
        file.truncate(start)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(TFLITE_METADATA, json.dumps(found))
