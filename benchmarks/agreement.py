"""Does yolo-mkd time agree with the runtimes' own tools? Short alternating blocks, so that other load affects both.

    python benchmarks/agreement.py best.onnx best_openvino_model [rounds] [seconds]

OpenVINO is compared with its benchmark_app (-hint latency -api sync), ONNX Runtime with a bare loop of session.run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from yolo_mkd import report
from yolo_mkd.deploy.exported_model import file_identity, model_file
from yolo_mkd.deploy.runtimes import Runtime, open_runtime
from yolo_mkd.deploy.time.synthetic import synthetic_picture
from yolo_mkd.edge.measure import run_once, segments_of

HERE = Path(__file__).parent
THREADS = 1
AGREED = 0.05


def our_block(runtime: Runtime, seconds: float, pipeline: bool) -> float:
    """Median compute time [ms] of one block: of inference alone, or as a segment of the whole pipeline."""
    picture, place = synthetic_picture(), segments_of(runtime).index("compute")
    tensor = np.random.default_rng(0).random((1, 3, *runtime.model.imgsz), np.float32)
    times, end = [], perf_counter() + seconds
    while perf_counter() < end:
        times.append(
            run_once(runtime.model, runtime, picture)[place] if pipeline else runtime.infer(tensor)[1]["compute"]
        )
    return float(np.median(times))


def session_block(path: Path) -> Callable[[float], float]:
    """A bare loop of ONNX Runtime's session.run, opened without yolo-mkd: seconds -> median [ms]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model_input = session.get_inputs()[0]
    tensor = np.random.default_rng(0).random(model_input.shape, np.float32)

    def block(seconds: float) -> float:
        times, end = [], perf_counter() + seconds
        while perf_counter() < end:
            start = perf_counter_ns()
            session.run(None, {model_input.name: tensor})
            times.append((perf_counter_ns() - start) / 1e6)
        return float(np.median(times))

    return block


def benchmark_app_block(folder: Path) -> Callable[[float], float]:
    """OpenVINO's own benchmark in its synchronous latency mode: seconds -> median [ms]."""
    tool = Path(sys.executable).with_name("benchmark_app")

    def block(seconds: float) -> float:
        with tempfile.TemporaryDirectory() as place:
            config = Path(place) / "config.json"  # -nthreads goes with no -hint
            settings = {"INFERENCE_NUM_THREADS": str(THREADS), "INFERENCE_PRECISION_HINT": "f32"}  # as our runtime
            config.write_text(json.dumps({"CPU": settings}), encoding="utf-8")
            words = [tool, "-m", model_file(folder, ".xml"), "-d", "CPU", "-hint", "latency", "-api", "sync"]
            words += ["-load_config", config, "-t", max(1, round(seconds))]
            printed = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout
        found = re.search(r"Median:\s+([\d.]+) ms", printed)
        threads = re.search(r"INFERENCE_NUM_THREADS: (\d+)", printed)
        if not found or not threads or int(threads.group(1)) != THREADS:
            raise SystemExit(f"benchmark_app printed no median, or used another number of threads:\n{printed}")
        return float(found.group(1))

    return block


def measure_agreement(path: Path, tool: Callable[[float], float], rounds: int, seconds: float) -> dict[str, Any]:
    """Time alternating blocks of the tool, our inference and our pipeline; the ratios are medians over the rounds."""
    runtime = open_runtime(path, THREADS)
    ways = {
        "tool": tool,
        "inference": lambda s: our_block(runtime, s, pipeline=False),
        "pipeline": lambda s: our_block(runtime, s, pipeline=True),
    }
    for way in ways.values():  # warm-up
        way(1.0)
    blocks: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds):
        for name in sorted(ways, reverse=index % 2 == 1):  # alternating order
            blocks[name].append(ways[name](seconds))
    ratios = {name: np.array(blocks[name]) / np.array(blocks["tool"]) for name in ("inference", "pipeline")}
    return {
        **file_identity(path),
        "provider": runtime.provider,
        "runtime": runtime.versions,
        "arithmetic": runtime.arithmetic,
        "threads": THREADS,
        "block_p50_ms": blocks,
        "ratio": {name: float(np.median(r)) for name, r in ratios.items()},
        "ratio_quartiles": {name: np.percentile(r, [25, 75]).tolist() for name, r in ratios.items()},
        "agrees": bool(abs(np.median(ratios["inference"]) - 1) <= AGREED),
    }


def agreement_table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as a table in Markdown."""
    headers = ["tool", "file", "tool p50 ms", "ours p50 ms", "ours / tool", "quartiles", "within the pipeline / tool"]
    cells = []
    for name, row in rows.items():
        medians = {way: float(np.median(blocks)) for way, blocks in row["block_p50_ms"].items()}
        low, high = row["ratio_quartiles"]["inference"]
        p50 = [f"{medians[way]:.3f}" for way in ("tool", "inference")]
        ratio, within = (f"{row['ratio'][way]:.3f}" for way in ("inference", "pipeline"))
        cells.append([name, row["file"], *p50, ratio, f"{low:.3f} to {high:.3f}", within])
    return report.table(cells, headers, markdown=True)


def main(words: list[str]) -> int:
    """Measure, write agreement.json and agreement.md beside this file; 1 where a tool disagrees by more than 5 %."""
    onnx, openvino = Path(words[0]), Path(words[1])
    rounds, seconds = int(words[2]) if len(words) > 2 else 20, float(words[3]) if len(words) > 3 else 2.0
    rows = {
        "session.run": measure_agreement(onnx, session_block(onnx), rounds, seconds),
        "benchmark_app": measure_agreement(openvino, benchmark_app_block(openvino), rounds, seconds),
    }
    figures = {"rounds": rounds, "block_s": seconds, "agreed_within": AGREED, "rows": rows}
    written = report.write(HERE / "agreement.json", "agreement", figures)
    place = report.machine()
    note = (
        f"{rounds} rounds of alternating blocks of {seconds:g} s, {THREADS} thread, {place['processor']}. Medians of "
        "the blocks' medians, and of the rounds' ratios. The last column is the compute segment of yolo-mkd time, "
        "where preprocessing and NMS run between the inferences."
    )
    report.write_text(HERE / "agreement.md", f"{agreement_table(rows)}\n\n{note}\n")
    print(agreement_table(rows), written, sep="\n")
    return 0 if all(row["agrees"] for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
