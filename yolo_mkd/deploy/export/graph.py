"""An exported ONNX graph: where its head's decode begins, which block an operator is of, and what its metadata say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from yolo_mkd.settings import Failed

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
    """Find a detector's last weighted operators, and what turns their outputs into boxes and scores.

    Args:
        graph: of the ONNX model.

    Returns:
        Names of the last weighted nodes, and of every node behind them; a distribution's expectation (DFL) counts as
        decode.

    Raises:
        Failed: the nodes have no names, so that none can be told apart.
    """
    if any(not node.name for node in graph.node):
        raise Failed("the exported graph has nodes without names: export with simplify=True, which is the default")
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weighted = {node.name: node for node in graph.node if node.op_type in WEIGHTED and "/dfl/" not in node.name}
    behind = {name: descendants(node, readers) for name, node in weighted.items()}
    last = {name for name, after in behind.items() if not after & set(weighted)}
    return last, set().union(*(behind[name] for name in last))


def descendants(node: Any, readers: dict[str, list[Any]]) -> set[str]:
    """Names of all nodes that an output of this one reaches."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for output in waiting.pop().output:
            for reader in readers.get(output, []):
                if reader.name not in found:
                    found.add(reader.name)
                    waiting.append(reader)
    return found


def block(name: str) -> int | None:
    """The index of the model's layer that a node belongs to, from its name such as /model.4/cv1/conv/Conv."""
    found = re.match(r"/model\.(\d+)/", name)
    return int(found[1]) if found else None


def half(source: Path, target: Path) -> None:
    """Convert an ONNX file to FP16 weights and arithmetic, with float input and output and the decode in float.

    Ultralytics converts the decode too, and FP16 holds pixels from 512 to 1024 in steps of 0.5.
    """
    import onnx
    from onnx.utils import Extractor
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    last, _ = decode_nodes(model.graph)
    border = [name for node in model.graph.node if node.name in last for name in node.output]
    parts = Extractor(onnx.shape_inference.infer_shapes(model))
    whole = convert_float_to_float16(
        parts.extract_model([i.name for i in model.graph.input], border), keep_io_types=True
    )
    decode = parts.extract_model(border, [o.name for o in model.graph.output]).graph
    held = {tensor.name for tensor in whole.graph.initializer}
    whole.graph.node.extend(decode.node)
    whole.graph.initializer.extend(tensor for tensor in decode.initializer if tensor.name not in held)
    del whole.graph.output[:]
    whole.graph.output.extend(model.graph.output)
    del whole.metadata_props[:]
    whole.metadata_props.extend(model.metadata_props)
    onnx.save(whole, target)


def stamp(path: Path, about: dict[str, Any]) -> None:
    """Write what yolo-mkd knows of an exported file into its metadata, under keys that begin with yolo_mkd.

    Args:
        path: an .onnx file, or a folder with a metadata.yaml.
        about: the keys without their beginning; values that are no text are written as JSON.
    """
    values = {f"yolo_mkd.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in about.items() if v is not None}
    if path.is_dir():
        import yaml

        file = path / "metadata.yaml"
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        file.write_text(yaml.safe_dump({**found, **values}, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return
    import onnx

    model = onnx.load(path)
    known = {entry.key: entry for entry in model.metadata_props}
    for key, value in values.items():
        entry = known.get(key) or model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)
