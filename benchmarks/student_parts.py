"""Where the time goes inside a student on a CPU, and how fast others are beside it.

    python benchmarks/student_parts.py models=yolo26n-w125.yaml,yolo26n-w125-edge.yaml sizes=192,320 json=parts.json

Each model is built untrained, which costs the same, and exported to ONNX with its NMS-free head. ONNX Runtime's own
profiler gives the time of each operator on one thread; operators are counted for the part of the model whose layer
they belong to. Latencies are processor times of whole passes; the models take turns, and a ratio is the median over
these pairs, the first model being the reference.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from ultralytics import YOLO

from yolo_mkd import host, report
from yolo_mkd.host.dry import silent
from yolo_mkd.settings import parse, split_commas

WARMUP, PASSES = 5, 30


def session_of(file: Path, profile: Path | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on one thread, which writes a profile where a place is given for it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def export(model: str, classes: int, imgsz: int, folder: Path) -> tuple[Path, int, list[str]]:
    """Build a model and export it.

    Returns:
        The ONNX file, the number of parameters, and the kind of each layer.
    """
    built = host.build(host.find_model("model", model), classes=classes)
    weights = folder / f"{Path(model).stem}-{imgsz}.pt"
    host.write_tensors(weights, {"model": built})
    with silent():
        file = YOLO(weights).export(format="onnx", imgsz=imgsz, simplify=True)
    size = sum(p.numel() for p in built.parameters())
    return Path(file), size, [type(layer).__name__ for layer in built.model]


def part_of(operator: str, kinds: Sequence[str]) -> str:
    """The part of the model that an operator belongs to, by the layer in its name.

    Args:
        operator: such as `/model.10/m/m.0/attn/qkv/conv/Conv`.
        kinds: of the layers.
    """
    found = re.search(r"/model\.(\d+)/(.*)", operator)
    if found is None:
        return "other"
    layer, rest = int(found[1]), found[2]
    if layer == len(kinds) - 1:
        return "head: convolutions" if re.search(r"cv[23]", rest) else "head: decoding, top k"
    if "attn" in rest or kinds[layer] == "C2PSA" or "PSABlock" in rest:
        return "attention blocks"
    if layer <= 1:
        return "first two convolutions"
    return "backbone" if layer < kinds.index("Upsample") else "neck"


def profile_parts(file: Path, imgsz: int, kinds: Sequence[str], folder: Path) -> dict[str, float]:
    """Milliseconds of each part in a pass, the median over passes."""
    session = session_of(file, folder / "profile")
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).random((1, 3, imgsz, imgsz), np.float32)}
    for _ in range(WARMUP + PASSES):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    by_operator: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_operator[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
    parts: dict[str, float] = defaultdict(float)
    for name, durations in by_operator.items():
        parts[part_of(name, kinds)] += statistics.median(durations[WARMUP:])
    return dict(parts)


def alternate(files: Sequence[Path], imgsz: int, rounds: int) -> list[list[float]]:
    """Processor time of a pass of each model [ms], in each round one after the other."""
    sessions = [session_of(file) for file in files]
    image = np.random.default_rng(0).random((1, 3, imgsz, imgsz), np.float32)
    times: list[list[float]] = [[] for _ in sessions]
    for i in range(WARMUP + rounds):
        for which in sorted(range(len(sessions)), reverse=bool(i % 2)):
            name = sessions[which].get_inputs()[0].name
            start = time.process_time()
            sessions[which].run(None, {name: image})
            if i >= WARMUP:
                times[which].append(1e3 * (time.process_time() - start))
    return times


def measure(models: Sequence[str], sizes: Sequence[int], classes: int, rounds: int) -> list[dict[str, Any]]:
    """The parts, latency and size of each model at each image size."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for imgsz in sizes:
            exported = [export(m, classes, imgsz, Path(place)) for m in models]
            times = alternate([file for file, *_ in exported], imgsz, rounds)
            for model, (file, size, kinds), own in zip(models, exported, times, strict=True):
                ratio = statistics.median(a / b for a, b in zip(own, times[0], strict=True))
                row = {"model": model, "imgsz": imgsz, "parameters": size, "ms": statistics.median(own)}
                rows.append({**row, "ratio": ratio, "parts_ms": profile_parts(file, imgsz, kinds, Path(place))})
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Latency side by side, and the share of each part, in Markdown."""
    parts = sorted({p for r in rows for p in r["parts_ms"]}, key=lambda p: -rows[0]["parts_ms"].get(p, 0.0))
    heads = ["model", "px", "parameters", "ms", "x the first"]
    whole = [[r["model"], str(r["imgsz"]), f"{r['parameters']:,}", f"{r['ms']:.2f}", f"{r['ratio']:.2f}"] for r in rows]
    shares = []
    for r in rows:
        total = sum(r["parts_ms"].values())
        shares.append([r["model"], str(r["imgsz"]), *(f"{r['parts_ms'].get(p, 0.0) / total:.0%}" for p in parts)])
    both = report.table(whole, heads, markdown=True), report.table(shares, ["model", "px", *parts], markdown=True)
    return "\n\n".join(both)


def main(words: Sequence[str]) -> None:
    """Measure, print the tables, and write the report named by json=."""
    given = {"models": "yolo26n-w125.yaml", "sizes": (192, 320), "classes": 6, "rounds": 60, **parse(words)}
    sizes = given["sizes"] if isinstance(given["sizes"], list | tuple) else [given["sizes"]]
    rows = measure(split_commas(given["models"]), sizes, given["classes"], given["rounds"])
    print(tables(rows))
    if "json" in given:
        command = " ".join(["python benchmarks/student_parts.py", *words])
        report.write(Path(given["json"]), "student-parts", {"command": command, **given, "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
