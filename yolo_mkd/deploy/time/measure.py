"""One timed run: a picture in memory to its boxes, each segment apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.runtimes import Backend
from yolo_mkd.deploy.time.watch import Watch
from yolo_mkd.edge.boxes import CONF, boxes
from yolo_mkd.edge.pictures import letterbox, tensor

Picture = NDArray[np.uint8]  # H W 3, RGB


def segments_of(backend: Backend) -> tuple[str, ...]:
    """The segments of a run, in the order they are timed."""
    return ("preprocess", *backend.segments, "postprocess", "end_to_end")


def in_turn(backend: Backend, pictures: Sequence[Picture], watch: Watch) -> Callable[[int], list[float]]:
    """A function that times the picture of an index, and lets `watch` look at the machine between two runs."""

    def run(index: int) -> list[float]:
        watch.glance()
        return run_once(backend, pictures[index % len(pictures)])

    return run


def run_once(backend: Backend, picture: Picture) -> list[float]:
    """Time one picture: milliseconds of every segment, in the order of `segments_of`."""
    artefact = backend.artefact
    t0 = perf_counter_ns()
    given = tensor(letterbox(picture, artefact.imgsz))
    t1 = perf_counter_ns()
    output, inside = backend.infer(given)
    t2 = perf_counter_ns()
    boxes(output, artefact.head, (picture.shape[0], picture.shape[1]), artefact.imgsz, CONF)
    t3 = perf_counter_ns()
    return [(t1 - t0) / 1e6, *(inside[f"{name}_ms"] for name in backend.segments), (t3 - t2) / 1e6, (t3 - t0) / 1e6]


def synthetic_picture(height: int = 480, width: int = 640) -> Picture:
    """Make a picture like a photo in its statistics: soft gradients, a few objects with edges, some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = 127 + 60 * np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(4 * x * y)], axis=-1)
    for _ in range(12):
        top, left = rng.integers(height - 80), rng.integers(width - 80)
        picture[top : top + rng.integers(20, 80), left : left + rng.integers(20, 80)] = rng.integers(0, 255, 3)
    return np.asarray(np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255), dtype=np.uint8)
