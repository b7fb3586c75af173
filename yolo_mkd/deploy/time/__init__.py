"""Time an exported detector on this machine: one image at a time, every sample kept, each segment apart.

What is timed, its statistics and its drift are the same code that travels in a bundle (yolo_mkd/edge), so that a
report of this machine and one of a device mean the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_mkd import report
from yolo_mkd.deploy.exported_model import identity
from yolo_mkd.deploy.images import find_images, read_image, spread
from yolo_mkd.deploy.runtimes import Backend, open_backend
from yolo_mkd.deploy.time.measure import Picture, in_turn, segments_of, synthetic_picture
from yolo_mkd.deploy.time.watch import Watch
from yolo_mkd.edge.boxes import CONF, NMS_IOU
from yolo_mkd.edge.health import health
from yolo_mkd.edge.samples import FLOORS, drift, percentile_key, statistics
from yolo_mkd.edge.time import measure, warm_up
from yolo_mkd.settings import BadInput


def time(
    model: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    duration: float = 60.0,
    threads: int | None = None,
    device: str = "cpu",
    json: str | Path | None = None,
) -> dict[str, Any]:
    """Time an exported detector on this machine, from an image in memory to its boxes.

    Args:
        model: the .onnx file, the *_openvino_model or the *_ncnn_model folder.
        images: a folder, a file or a list of files to run on, at most 32, in turn.
        data: a data.yaml whose val images to run on; without both, one synthetic picture of 640 x 480.
        duration: how long to measure after the warm-up [s]; 600 is what MLPerf's single stream asks.
        threads: within an inference, by default the physical cores this process may use, for NCNN one.
        device: cpu, or cuda:0 for an .onnx file; transfers are then segments of their own.
        json: the report's file, by default best.time.json beside best.onnx, best_ncnn_model.time.json beside a folder.

    Returns:
        The figures of the report, with every sample [ms] under `samples_ms`. `end_to_end` holds also the microseconds
        between the segments.

    Raises:
        BadInput: an argument cannot work, or the runtime is not installed.
        Failed: the runtime runs the file elsewhere than asked.
    """
    path = Path(model)
    check_numbers(duration, threads)
    given = images is not None or data is not None
    place = data or (images if isinstance(images, str | Path) else "a list")
    files = spread(find_images(images, data)) if given else []
    # R G B, as a bundle reads its own
    pictures = [np.ascontiguousarray(read_image(p)[..., ::-1]) for p in files] or [synthetic_picture()]
    which = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:8]
    backend = open_backend(path, threads, device)
    print(f"timing {path} on {backend.provider}, {threads_text(backend)}: warm-up, then {duration:g} s")
    about = {
        **identity(path),
        "note": f"times of this machine's {'CPU' if device == 'cpu' else 'GPU'}, not of a Jetson or any other device",
        "images": f"{len(pictures)} of {Path(place).name} ({which})" if given else "one synthetic picture of 640 x 480",
    }
    figures = about | measured(backend, pictures, duration, Watch())
    target = json or (path.parent / f"{path.name.removesuffix('.onnx')}.time.json")
    written = report.write(target, "time", figures)
    print(table(figures), f"report    {written}", sep="\n")
    return figures


def measured(backend: Backend, pictures: Sequence[Picture], duration: float, watch: Watch) -> dict[str, Any]:
    """Warm up, measure, and put the figures together.

    Args:
        backend: the opened file.
        pictures: to run on in turn: H W 3, RGB.
        duration: how long to measure [s].
        watch: looks at the machine between the runs.
    """
    import cv2

    artefact, run = backend.artefact, in_turn(backend, pictures, watch)
    segments = segments_of(backend)
    first = run(0)
    warm = warm_up(run)
    watch.begin()
    rows = measure(run, duration)
    watch.end()
    samples = {name: list(column) for name, column in zip(segments, zip(*rows, strict=True), strict=True)}
    total = samples["end_to_end"]
    seen = health([], watch.trace, float(np.mean(total)), watch.sensors.about())
    return {
        "format": artefact.format,
        "precision": artefact.precision,
        "arithmetic": backend.arithmetic,
        "head": artefact.head,
        "input": [1, 3, *artefact.imgsz],
        "output": list(artefact.output),
        "provider": backend.provider,
        "accelerator": backend.accelerator,
        "runtime": backend.versions,
        "threads": backend.threads,
        "batch": 1,
        "streams": 1,
        "resize": "OpenCV",
        "opencv_threads": cv2.getNumThreads(),
        "conf": CONF,
        "nms_iou": NMS_IOU if artefact.head == "one2many" else None,
        "load_ms": backend.load_ms,
        "first_inference_ms": first[segments.index("compute")],
        "warm_up": warm,
        "duration_s": sum(total) / 1e3,
        "segments": {name: statistics(samples[name]) for name in segments},
        "percentile_floors": {percentile_key(p): n for p, n in FLOORS.items()},
        "drift": drift(total, watch.causes()),
        "device": {**seen, "warnings": [*seen["warnings"], *watch.warnings()]},
        "samples_ms": samples,
    }


def check_numbers(duration: Any, threads: Any) -> None:
    """Refuse a duration or a number of threads that cannot be."""
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 < duration < math.inf:
        raise BadInput(f"duration={duration} is no time to measure for: give seconds, such as duration=60")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise BadInput(f"threads={threads} is no number of threads: give 1 or more, or leave it out")


def threads_text(backend: Backend) -> str:
    """The threads, for people."""
    return "on the GPU" if backend.threads is None else f"{backend.threads} thread(s)"


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for people."""
    lines = segment_lines(figures)
    warm, size = figures["warm_up"], "x".join(map(str, figures["input"]))
    settled = "settled" if warm["settled"] else f"not settled, varies by {warm['variation_of_last_50']:.1%}"
    threads = "" if figures["threads"] is None else f", {figures['threads']} thread(s)"
    lines += [
        f"file      {figures['file']}, {figures['bytes'] / 1e6:.1f} MB, {figures['precision']}, input {size}, "
        f"head {figures['head']}",
        f"run       {figures['provider']}, in {figures['arithmetic']}{threads}, batch 1, on {figures['images']}",
        f"start     load {figures['load_ms']:.1f} ms, first inference {figures['first_inference_ms']:.1f} ms",
        f"warm-up   {warm['runs']} runs in {warm['seconds']:.1f} s, {settled}",
        f"stable    {'yes' if figures['drift']['stable'] else 'NO: ' + figures['drift']['reason']}",
        *(f"warning   {warning}" for warning in figures["device"]["warnings"]),
        f"note      {figures['note']}",
    ]
    return "\n".join(lines)


def segment_lines(figures: dict[str, Any]) -> list[str]:
    """One line of statistics a segment, and what is left out for want of samples."""
    columns = ["n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "max_ms", "std_ms"]
    lines = [f"{'':12}" + "".join(f"{c.removesuffix('_ms').replace('_', '.'):>9}" for c in columns) + "  [ms]"]
    for name, row in figures["segments"].items():
        cells = ("-" if row[c] is None else f"{row[c]:.3f}" if c != "n" else str(row[c]) for c in columns)
        lines.append(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    n = next(iter(figures["segments"].values()))["n"]
    short = [f"{percentile_key(p)[:-3].replace('_', '.')} needs {floor}" for p, floor in FLOORS.items() if n < floor]
    return [*lines, f"-: too few samples ({', '.join(short)}); a longer duration= gives them"] if short else lines
