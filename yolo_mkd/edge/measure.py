"""The timed pipeline, from a picture in memory to its boxes: one run, the warm-up, all samples, and their figures.

`time.py` on the device and `yolo-mkd time` on a PC both use this module, so that their reports can be compared.
"""

from __future__ import annotations

import math
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypedDict

import numpy as np

from .boxes import CONF, NMS_IOU, decode_boxes
from .pictures import cv2, letterbox, to_tensor
from .samples import FLOORS, Drift, percentile_key, statistics

if TYPE_CHECKING:
    from typing import Protocol

    from numpy.typing import NDArray

    class Model(Protocol):
        """Metadata of an exported file: a bundle, or `deploy.exported_model.ExportedModel`."""

        @property
        def imgsz(self) -> tuple[int, int]: ...  # noqa: D102
        @property
        def head(self) -> str: ...  # noqa: D102
        @property
        def precision(self) -> str: ...  # noqa: D102
        @property
        def output(self) -> Any: ...  # noqa: D102

    Run = Callable[[int], list[float]]  # index of the run -> milliseconds of every segment

LEAST_RUNS = 11  # the fewest samples that give a median, however slow the model
SETTLED_COV, SETTLED_RUNS = 0.025, 50  # trtexec calls a run unstable above this coefficient of variation
WARM_UP_CAP_S, WARM_UP_LEAST_RUNS = 10.0, 10


class WarmUp(TypedDict):
    """How the warm-up went."""

    runs: int
    seconds: float
    settled: bool
    variation_of_last_50: float  # coefficient of variation of the end-to-end times


class TimedRun(NamedTuple):
    """All times of one measurement [ms]."""

    first: float  # compute time of the very first inference
    warm_up: WarmUp
    samples: dict[str, list[float]]  # segment -> every sample, in the order taken


class RunFigures(TypedDict):
    """The part of a time report that the runtime and the samples determine."""

    precision: str
    arithmetic: str
    head: str
    input: list[int]
    output: list[int]
    provider: str
    accelerator: str | None
    runtime: dict[str, str]
    threads: int | None
    batch: int
    streams: int
    resize: str
    opencv_threads: int | None
    conf: float
    nms_iou: float | None
    load_ms: float
    first_inference_ms: float
    warm_up: WarmUp
    duration_s: float
    segments: dict[str, dict[str, Any]]
    percentile_floors: dict[str, int]


class TimeReport(RunFigures):
    """The fields that the time reports of a device and of a PC have in common."""

    file: str
    bytes: int
    sha256: str
    format: str
    images: str
    drift: Drift
    device: dict[str, Any]
    samples_ms: dict[str, list[float]]


def segments_of(runtime: Any) -> tuple[str, ...]:
    """The names of the timed segments, in order; the last one contains all others."""
    return ("preprocess", *runtime.segments, "postprocess", "end_to_end")


def run_once(model: Model, runtime: Any, picture: NDArray[np.uint8]) -> list[float]:
    """Run one picture and return the milliseconds of every segment, in the order of `segments_of`.

    Args:
        model: the file's metadata.
        runtime: the opened file.
        picture: H W 3, RGB.
    """
    t0 = perf_counter_ns()
    tensor = to_tensor(letterbox(picture, model.imgsz))
    t1 = perf_counter_ns()
    output, inside = runtime.infer(tensor)
    t2 = perf_counter_ns()
    decode_boxes(output, model.head, (picture.shape[0], picture.shape[1]), model.imgsz, CONF)
    t3 = perf_counter_ns()
    return [(t1 - t0) / 1e6, *(inside[name] for name in runtime.segments), (t3 - t2) / 1e6, (t3 - t0) / 1e6]


def warm_up(run: Run) -> WarmUp:
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


def collect_samples(run: Run, seconds: float) -> list[list[float]]:
    """Run for a time, and at least 11 times; every run is a row, none is dropped."""
    rows: list[list[float]] = []
    start = perf_counter_ns()
    while len(rows) < LEAST_RUNS or perf_counter_ns() - start < seconds * 1e9:
        rows.append(run(len(rows)))
    return rows


def by_segment(segments: tuple[str, ...], rows: list[list[float]]) -> dict[str, list[float]]:
    """Turn rows of one run each into columns of one segment each."""
    return {name: list(column) for name, column in zip(segments, zip(*rows))}


def run_figures(model: Model, runtime: Any, timed: TimedRun) -> RunFigures:
    """The figures of a report that the runtime and the samples determine.

    Args:
        model: the file's metadata.
        runtime: the opened file.
        timed: the measured times.
    """
    return {
        "precision": model.precision,
        "arithmetic": runtime.arithmetic,
        "head": model.head,
        "input": [1, 3, *model.imgsz],
        "output": list(model.output),
        "provider": runtime.provider,
        "accelerator": runtime.accelerator,
        "runtime": runtime.versions,
        "threads": runtime.threads,
        "batch": 1,
        "streams": 1,
        "resize": "OpenCV" if cv2 is not None else "numpy",
        "opencv_threads": cv2.getNumThreads() if cv2 is not None else None,
        "conf": CONF,
        "nms_iou": NMS_IOU if model.head == "one2many" else None,
        "load_ms": runtime.load_ms,
        "first_inference_ms": timed.first,
        "warm_up": timed.warm_up,
        "duration_s": sum(timed.samples["end_to_end"]) / 1e3,
        "segments": {name: statistics(column) for name, column in timed.samples.items()},
        "percentile_floors": {percentile_key(p): n for p, n in FLOORS.items()},
    }
