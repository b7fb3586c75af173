"""Time an ONNX detector on this machine's CPU: one image at a time, every sample kept, each segment apart."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd import report
from yolo_mkd.artefact import PROVIDER, Artefact, describe, existing, identity, open_session
from yolo_mkd.images import find_images, read_image, spread
from yolo_mkd.parity import CONF, MAX_DET, NMS_IOU
from yolo_mkd.settings import BadInput, Failed

SEGMENTS = ("preprocess", "compute", "postprocess", "end_to_end")
# Percentile -> fewest samples n with P(at most one of n lies beyond it) <= 1 %, as MLPerf's early stopping asks
FLOORS = {50.0: 11, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
LEAST_RUNS = 11  # ours: so that even a slow model has a median
SETTLED_COV, SETTLED_RUNS = 0.025, 50  # the coefficient of variation above which trtexec calls a run unstable
WARM_UP_CAP_S, WARM_UP_LEAST_RUNS = 10.0, 10  # ours
DRIFT = 0.05  # ours: between the medians of the first and the last third
CLASS_OFFSET = 7680.0  # Ultralytics' NMS moves classes apart by this many pixels
NOTE = "times of this machine's CPU, not of a Jetson or any other device"

Picture = NDArray[np.uint8]  # H W 3, BGR
Boxes = NDArray[np.float32]  # N 6: x1 y1 x2 y2 [pixels of the picture], score, class; the best score first


def time(
    model: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    duration: float = 10.0,
    threads: int | None = None,
    json: str | Path | None = None,
) -> dict[str, Any]:
    """Time an exported .onnx detector on this machine's CPU, from an image in memory to its boxes.

    Args:
        model: the .onnx file.
        images: a folder, a file or a list of files to run on, at most 32, in turn.
        data: a data.yaml whose val images to run on; without both, one synthetic picture of 640 x 480.
        duration: how long to measure after the warm-up [s].
        threads: threads within an operator, by default the physical cores this process may use.
        json: the report's file, by default best.time.json beside best.onnx.

    Returns:
        The figures of the report, with every sample [ms] under `samples_ms`.

    Raises:
        BadInput: an argument cannot work.
        Failed: ONNX Runtime runs on another provider than the one asked for.
    """
    if Path(model).suffix == ".pt":
        raise BadInput(
            f"model={model} is a checkpoint: export it first (yolo-mkd export model={model}), time the .onnx"
        )
    path = existing("model", model, ".onnx")
    check_numbers(duration, threads)
    given = images is not None or data is not None
    where = data or (images if isinstance(images, str | Path) else "a list")
    pictures = [read_image(p) for p in spread(find_images(images, data))] if given else [synthetic_picture()]

    threads = threads or physical_cores()
    start = perf_counter_ns()
    session = open_session(path, threads)
    load_ms = (perf_counter_ns() - start) / 1e6
    used = session.get_providers()[0]
    if used != PROVIDER:
        raise Failed(f"ONNX Runtime runs {path.name} on {used}, not on {PROVIDER}: no times were taken")
    artefact = describe(session)
    print(f"timing {path} on {PROVIDER}, {threads} thread(s): warm-up, then {duration:g} s")

    def run(index: int) -> list[float]:
        return run_once(session, artefact, pictures[index % len(pictures)])

    first = run(0)
    warm = warm_up(run)
    samples = measure(run, duration)
    figures = {
        **identity(path),
        "note": NOTE,
        "head": artefact.head,
        "input": [1, 3, *artefact.imgsz],
        "output": list(artefact.output),
        "provider": used,
        "threads": threads,
        "batch": 1,
        "streams": 1,
        "images": f"{len(pictures)} of {where}" if given else "one synthetic picture of 640 x 480",
        "conf": CONF,
        "nms_iou": NMS_IOU if artefact.head == "one2many" else None,
        "load_ms": load_ms,
        "first_inference_ms": first[SEGMENTS.index("compute")],
        "warm_up": warm,
        "duration_s": sum(samples["end_to_end"]) / 1e3,
        "segments": {name: statistics(samples[name]) for name in SEGMENTS},
        "percentile_floors": {percentile_key(p): n for p, n in FLOORS.items()},
        "drift": drift(samples["end_to_end"]),
        "samples_ms": samples,
    }
    written = report.write(json or path.with_suffix(".time.json"), "time", figures)
    print(table(figures), f"report    {written}", sep="\n")
    return figures


def check_numbers(duration: Any, threads: Any) -> None:
    """Refuse a duration or a number of threads that cannot be."""
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 < duration < math.inf:
        raise BadInput(f"duration={duration} is no time to measure for: give seconds, such as duration=10")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise BadInput(f"threads={threads} is no number of threads: give 1 or more, or leave it out")


# Measuring


def run_once(session: Any, artefact: Artefact, picture: Picture) -> list[float]:
    """Time one picture: milliseconds of preprocess, compute, postprocess and all three together."""
    name = session.get_inputs()[0].name
    t0 = perf_counter_ns()
    tensor = preprocess(picture, artefact.imgsz)
    t1 = perf_counter_ns()
    output = session.run(None, {name: tensor})[0]
    t2 = perf_counter_ns()
    postprocess(output, artefact, picture.shape[:2])
    t3 = perf_counter_ns()
    return [(t1 - t0) / 1e6, (t2 - t1) / 1e6, (t3 - t2) / 1e6, (t3 - t0) / 1e6]


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


def measure(run: Callable[[int], list[float]], duration: float) -> dict[str, list[float]]:
    """Run for `duration` seconds and at least 11 times; keep every sample [ms], by segment."""
    rows: list[list[float]] = []
    start = perf_counter_ns()
    while len(rows) < LEAST_RUNS or perf_counter_ns() - start < duration * 1e9:
        rows.append(run(len(rows)))
    return {name: list(column) for name, column in zip(SEGMENTS, zip(*rows, strict=True), strict=True)}


def physical_cores() -> int:
    """Count the physical cores this process may use; hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    places = [Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in os.sched_getaffinity(0)]
    return len({p.read_text() if p.exists() else str(p) for p in places})


def synthetic_picture(height: int = 480, width: int = 640) -> Picture:
    """Make a picture like a photo in its statistics: soft gradients, a few objects with edges, some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = 127 + 60 * np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(4 * x * y)], axis=-1)
    for _ in range(12):
        top, left = rng.integers(height - 80), rng.integers(width - 80)
        picture[top : top + rng.integers(20, 80), left : left + rng.integers(20, 80)] = rng.integers(0, 255, 3)
    return np.asarray(np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255), dtype=np.uint8)


# The pipeline that is timed: letterbox, and boxes from the head's output


def preprocess(picture: Picture, imgsz: tuple[int, int]) -> NDArray[np.float32]:
    """Letterbox onto grey 114, BGR to RGB, 0..1: 1 3 H W float32."""
    import cv2

    height, width, top, left = placement((picture.shape[0], picture.shape[1]), imgsz)
    if (height, width) != picture.shape[:2]:
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    canvas = np.full((*imgsz, 3), 114, np.uint8)
    canvas[top : top + height, left : left + width] = picture
    planes = canvas[..., ::-1].transpose(2, 0, 1)[None]  # 1 3 H W
    return np.ascontiguousarray(planes, dtype=np.float32) / np.float32(255)


def placement(shape: tuple[int, int], imgsz: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a picture lands in the letterbox: its height and width there, top and left margin [pixels]."""
    gain = min(imgsz[0] / shape[0], imgsz[1] / shape[1])
    height, width = (max(round(side * gain), 1) for side in shape)
    return height, width, round((imgsz[0] - height) / 2 - 0.1), round((imgsz[1] - width) / 2 - 0.1)


def postprocess(output: NDArray[np.float32], artefact: Artefact, shape: tuple[int, int]) -> Boxes:
    """Turn a head's output into boxes of the picture.

    Args:
        output: (1, 4+classes, anchors) for head one2many, else (1, rows, 6).
        artefact: names the head and the letterbox size.
        shape: the picture's height and width.
    """
    if artefact.head == "one2many":
        boxes = non_maximum_suppression(output[0].T)  # A 4+C
    else:
        boxes = output[0][output[0][:, 4] > CONF][:MAX_DET]
    height, width, top, left = placement(shape, artefact.imgsz)
    boxes[:, :4] -= np.array([left, top] * 2, np.float32)
    boxes[:, :4] /= np.array([width / shape[1], height / shape[0]] * 2, np.float32)
    np.clip(boxes[:, :4], 0, np.array([shape[1], shape[0]] * 2, np.float32), out=boxes[:, :4])
    return boxes


def non_maximum_suppression(rows: NDArray[np.float32]) -> Boxes:
    """Keep the best box of each class where boxes overlap.

    Args:
        rows: centre x, y, width, height and a score per class: A 4+C.
    """
    rows = rows[rows[:, 4:].max(1) > CONF]
    score, label = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
    order = np.argsort(-score, kind="stable")
    half = rows[order, 2:4] / 2
    boxes = np.hstack([rows[order, :2] - half, rows[order, :2] + half])
    apart = boxes + label[order, None].astype(np.float32) * np.float32(CLASS_OFFSET)
    area = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    left = np.arange(len(order))
    kept: list[int] = []
    while len(left) and len(kept) < MAX_DET:
        best, left = left[0], left[1:]
        kept.append(int(best))
        sides = np.minimum(apart[best, 2:], apart[left, 2:]) - np.maximum(apart[best, :2], apart[left, :2])
        common = np.clip(sides, 0, None).prod(1)
        left = left[(common == 0) | (common <= NMS_IOU * (area[best] + area[left] - common))]
    return np.hstack([boxes, score[order, None], label[order, None]])[kept].astype(np.float32)


# Statistics of the samples


def percentile_key(percentile: float) -> str:
    """Name a percentile in the report: p90_ms, p99_9_ms."""
    return f"p{percentile:g}_ms".replace(".", "_")


def nearest_rank(samples: Sequence[float], percentile: float) -> float:
    """Take the smallest sample that at least `percentile` % of all samples do not exceed; nothing is interpolated."""
    rank = -(-len(samples) * round(percentile * 10) // 1000)  # whole numbers: 99.9 % of 1000 is rank 999
    return float(sorted(samples)[rank - 1])


def statistics(samples: Sequence[float]) -> dict[str, float | int | None]:
    """Describe all samples [ms]; a percentile is None where there are too few of them for it."""
    figures: dict[str, float | int | None] = {
        "n": len(samples),
        "min_ms": float(np.min(samples)),
        "mean_ms": float(np.mean(samples)),
        "max_ms": float(np.max(samples)),
        "std_ms": float(np.std(samples)),
    }
    for percentile, floor in FLOORS.items():
        enough = len(samples) >= floor
        figures[percentile_key(percentile)] = nearest_rank(samples, percentile) if enough else None
    return figures


def drift(samples: Sequence[float]) -> dict[str, Any]:
    """Compare the medians of the first and the last third of the samples [ms], in the order they were taken."""
    third = max(len(samples) // 3, 1)
    first, last = nearest_rank(samples[:third], 50), nearest_rank(samples[-third:], 50)
    change = last / first - 1
    stable = abs(change) <= DRIFT
    reason = (
        "" if stable else f"the last third is {abs(change):.0%} {'slower' if change > 0 else 'faster'} than the first"
    )
    return {"first_third_p50_ms": first, "last_third_p50_ms": last, "stable": stable, "reason": reason}


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for people."""
    columns = ["n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "max_ms", "std_ms"]
    lines = [f"{'':12}" + "".join(f"{c.removesuffix('_ms').replace('_', '.'):>9}" for c in columns) + "  [ms]"]
    for name in SEGMENTS:
        row = figures["segments"][name]
        cells = ("-" if row[c] is None else f"{row[c]:.3f}" if c != "n" else str(row[c]) for c in columns)
        lines.append(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    n = figures["segments"]["end_to_end"]["n"]
    short = [f"{percentile_key(p)[:-3].replace('_', '.')} needs {floor}" for p, floor in FLOORS.items() if n < floor]
    warm, size = figures["warm_up"], "x".join(map(str, figures["input"]))
    settled = "settled" if warm["settled"] else f"not settled, varies by {warm['variation_of_last_50']:.1%}"
    lines += [f"-: too few samples ({', '.join(short)}); a longer duration= gives them"] if short else []
    lines += [
        f"file      {figures['file']}, {figures['bytes'] / 1e6:.1f} MB, input {size}, head {figures['head']}",
        f"run       {figures['provider']}, {figures['threads']} thread(s), batch 1, on {figures['images']}",
        f"start     load {figures['load_ms']:.1f} ms, first inference {figures['first_inference_ms']:.1f} ms",
        f"warm-up   {warm['runs']} runs in {warm['seconds']:.1f} s, {settled}",
        f"stable    {'yes' if figures['drift']['stable'] else 'NO: ' + figures['drift']['reason']}",
        f"note      {NOTE}",
    ]
    return "\n".join(lines)
