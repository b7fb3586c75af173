"""Time the model on this device: a picture in memory to its boxes, one at a time, every sample kept.

  python time.py                 60 s on the bundle's samples; the report goes to time.json
  python time.py --seconds 600   as long as MLPerf's single stream asks

On a Jetson the report holds power, temperatures, clocks and throttle counters too, read without root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from . import contents as bundle
from .boxes import CONF, NMS_IOU, boxes
from .contents import Contents, Trouble
from .health import causes, health
from .pictures import cv2, letterbox, read_picture, tensor
from .runtimes import add_options, open_runtime
from .samples import FLOORS, drift, percentile_key, statistics
from .sensors import Sampler, Sensors, content

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .onnx_runtime import OnnxRuntime
    from .tensor_rt import TensorRT

SCHEMA = "yolo-mkd/time/1"
LEAST_RUNS = 11  # so that even a slow model has a median
SETTLED_COV, SETTLED_RUNS = 0.025, 50  # the coefficient of variation above which trtexec calls a run unstable
WARM_UP_CAP_S, WARM_UP_LEAST_RUNS = 10.0, 10


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser("time.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument(
        "--seconds", type=float, default=60.0, help="how long to measure after the warm-up (default: 60)"
    )
    words.add_argument("--idle", type=float, default=10.0, help="how long to read the idle power before (default: 10)")
    words.add_argument("--out", type=Path, help="the report's file (default: time.json in the bundle)")
    words.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)  # for tests
    add_options(words)
    return words


def main(words: list[str] | None = None, folder: Path | None = None) -> int:
    """Time as the command line says.

    Args:
        words: the command line, by default this process's.
        folder: the bundle, by default the one this file lies in.

    Returns:
        The exit code: 0 done, 2 something is in the way.
    """
    options = parser().parse_args(words)
    folder = folder or Path(__file__).resolve().parent.parent
    try:
        for name in ("seconds", "idle"):
            if not 0 <= getattr(options, name) < math.inf:
                raise Trouble(f"--{name} {getattr(options, name)} is no time: give seconds, such as --{name} 10")
        contents = bundle.read(folder)
        report = measured(contents, open_runtime(contents, options), options)
    except Trouble as trouble:
        print(f"time.py: {trouble}", file=sys.stderr)
        return 2
    path = options.out or folder / "time.json"
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(str(partial), str(path))
    print(table(report), f"report    {path}", sep="\n")
    return 0


def measured(contents: Contents, runtime: OnnxRuntime | TensorRT, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, measure, and put the report together."""
    samples = sorted((contents.folder / "sample").glob("*.png"))
    if not samples:
        raise Trouble("sample/ holds no pictures: copy the bundle again")
    pictures = [read_picture(path) for path in samples]
    which = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:8]
    segments = ("preprocess", *runtime.segments, "postprocess", "end_to_end")
    sensors = Sensors(options.root)

    def run(index: int) -> list[float]:
        return run_once(contents, runtime, pictures[index % len(pictures)])

    idle = watch(sensors, options.idle) if sensors.rails else []
    print(f"timing {contents.model.name} on {runtime.provider}: warm-up, then {options.seconds:g} s", flush=True)
    first = run(0)
    warm = warm_up(run)
    with Sampler(sensors) as sampler:
        rows = measure(run, options.seconds)
    times = {name: list(column) for name, column in zip(segments, zip(*rows))}
    total = times["end_to_end"]
    device = health(idle, sampler.samples, float(np.mean(total)), sensors.about())
    return {
        "schema": SCHEMA,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **runtime.versions},
        "machine": machine(options.root, device["model"]),
        "file": contents.model.name,
        "bytes": contents.model.stat().st_size,
        "sha256": contents.sha256,
        "format": "engine" if "h2d" in segments else "onnx",
        "precision": contents.precision,
        "arithmetic": runtime.precision,
        "head": contents.head,
        "input": [1, 3, *contents.imgsz],
        "output": contents.about["output"],
        "provider": runtime.provider,
        "accelerator": runtime.accelerator,
        "runtime": runtime.versions,
        "threads": runtime.threads,
        "batch": 1,
        "streams": 1,
        "images": f"{len(pictures)} samples of the bundle ({which})",
        "resize": "OpenCV" if cv2 is not None else "numpy",
        "opencv_threads": cv2.getNumThreads() if cv2 is not None else None,
        "conf": CONF,
        "nms_iou": NMS_IOU if contents.head == "one2many" else None,
        "load_ms": runtime.load_ms,
        "first_inference_ms": first[segments.index("compute")],
        "warm_up": warm,
        "duration_s": sum(total) / 1e3,
        "segments": {name: statistics(times[name]) for name in segments},
        "percentile_floors": {percentile_key(p): n for p, n in FLOORS.items()},
        "drift": drift(total, causes(sampler.samples)),
        "device": device,
        "samples_ms": times,
    }


def run_once(contents: Contents, runtime: OnnxRuntime | TensorRT, picture: NDArray[np.uint8]) -> list[float]:
    """Time one picture: milliseconds of preprocess, the runtime's own segments, postprocess, and all together."""
    t0 = perf_counter_ns()
    given = tensor(letterbox(picture, contents.imgsz))
    t1 = perf_counter_ns()
    output, inside = runtime.infer(given)
    t2 = perf_counter_ns()
    boxes(output, contents.head, (picture.shape[0], picture.shape[1]), contents.imgsz, CONF)
    t3 = perf_counter_ns()
    return [(t1 - t0) / 1e6, *(inside[name] for name in runtime.segments), (t3 - t2) / 1e6, (t3 - t0) / 1e6]


def warm_up(run: Callable[[int], list[float]]) -> dict[str, Any]:
    """Run until the last 50 end-to-end times vary by less than 2.5 %, or for 10 s and at least 10 runs."""
    times: list[float] = []
    start, settled, cov = perf_counter_ns(), False, math.inf
    while not settled and (len(times) < WARM_UP_LEAST_RUNS or perf_counter_ns() - start < WARM_UP_CAP_S * 1e9):
        times.append(run(len(times))[-1])
        last = times[-SETTLED_RUNS:]
        cov = float(np.std(last) / np.mean(last))
        settled = len(last) == SETTLED_RUNS and cov < SETTLED_COV
    seconds = (perf_counter_ns() - start) / 1e9
    return {"runs": len(times), "seconds": seconds, "settled": settled, "variation_of_last_50": cov}


def measure(run: Callable[[int], list[float]], seconds: float) -> list[list[float]]:
    """Run for a time and at least 11 times; every run is a row, none is dropped."""
    rows: list[list[float]] = []
    start = perf_counter_ns()
    while len(rows) < LEAST_RUNS or perf_counter_ns() - start < seconds * 1e9:
        rows.append(run(len(rows)))
    return rows


def watch(sensors: Sensors, seconds: float) -> list[dict[str, Any]]:
    """Sample the sensors while nothing runs."""
    print(f"reading the idle power for {seconds:g} s", flush=True)
    with Sampler(sensors) as sampler:
        sleep(seconds)
    return sampler.samples


def machine(root: Path, model: str | None) -> dict[str, Any]:
    """The machine that measured, with no host name."""
    lines = (content(root / "proc/cpuinfo") or "").splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model")))
    processor = model or next(named, platform.machine())
    return {"processor": processor, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def table(report: dict[str, Any]) -> str:
    """Lay the report out for people."""
    columns = ["n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "max_ms", "std_ms"]
    lines = [f"{'':12}" + "".join(f"{c.replace('_ms', '').replace('_', '.'):>9}" for c in columns) + "  [ms]"]
    for name, row in report["segments"].items():
        cells = ("-" if row[c] is None else f"{row[c]:.3f}" if c != "n" else str(row[c]) for c in columns)
        lines.append(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    n = report["segments"]["end_to_end"]["n"]
    short = [f"{percentile_key(p)[:-3].replace('_', '.')} needs {floor}" for p, floor in FLOORS.items() if n < floor]
    lines += [f"-: too few samples ({', '.join(short)}); more --seconds give them"] if short else []
    warm, device, threads = report["warm_up"], report["device"], report["threads"]
    settled = "settled" if warm["settled"] else f"not settled, varies by {warm['variation_of_last_50']:.1%}"
    lines += [
        f"run       {report['provider']}, in {report['arithmetic']}"
        + (f", {threads} thread(s)" if threads else "")
        + f", batch 1, on {report['images']}, resized by {report['resize']}",
        f"start     load {report['load_ms']:.1f} ms, first inference {report['first_inference_ms']:.1f} ms",
        f"warm-up   {warm['runs']} runs in {warm['seconds']:.1f} s, {settled}",
        f"stable    {'yes' if report['drift']['stable'] else 'NO: ' + report['drift']['reason']}",
        f"device    {report['machine']['processor']}",
        f"power     {power_line(device['power'])}",
    ]
    if device["l4t"]:
        lines.append(f"system    L4T {device['l4t']}, JetPack {device['jetpack']}, power mode {device['power_mode']}")
    return "\n".join([*lines, *(f"warning   {warning}" for warning in device["warnings"])])


def power_line(power: dict[str, Any] | None) -> str:
    """Say what power was measured."""
    if power is None:
        return "not measured: this machine has no power rails that can be read"
    idle = "" if power["idle_w"] is None else f", idle {power['idle_w']:.2f} W"
    above = power["mj_per_image_above_idle"]
    extra = "" if above is None else f" ({above:.1f} above idle)"
    return f"mean {power['mean_w']:.2f} W{idle}, {power['mj_per_image']:.1f} mJ per image{extra}"


if __name__ == "__main__":
    sys.exit(main())
