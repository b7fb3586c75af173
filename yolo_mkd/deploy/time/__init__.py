"""Timing of an exported detector on this machine: one image at a time, every sample kept, each segment separately.

The timed pipeline, its statistics and its test for drift are the modules that a bundle contains (yolo_mkd/edge), so
that a report of this machine and one of a device can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolo_mkd import report
from yolo_mkd.deploy.exported_model import file_identity
from yolo_mkd.deploy.images import evenly_spaced, find_images, read_image
from yolo_mkd.deploy.runtimes import Runtime, open_runtime
from yolo_mkd.deploy.time.monitor import MachineMonitor
from yolo_mkd.deploy.time.synthetic import Picture, synthetic_picture
from yolo_mkd.edge import measure
from yolo_mkd.edge.health import device_health
from yolo_mkd.edge.measure import TimedRun, TimeReport
from yolo_mkd.edge.samples import drift
from yolo_mkd.edge.time_table import segment_lines, start_lines, threads_text
from yolo_mkd.settings import file_path, number

__all__ = ["LocalTimeReport", "time"]


class LocalTimeReport(TimeReport):
    """best.time.json, without the schema, versions and machine that every report has."""

    note: str


@dataclass(frozen=True)
class TimedImages:
    """The pictures to run on, and their description for the report, with a hash of their pixels."""

    pictures: list[Picture]
    description: str


def time(
    model: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    duration: float = 60.0,
    threads: int | None = None,
    device: str = "cpu",
    json: str | Path | None = None,
) -> LocalTimeReport:
    """Time an exported detector on this machine, from an image in memory to its boxes.

    Args:
        model: the .onnx or .tflite file, the *_openvino_model or the *_ncnn_model folder.
        images: a folder, a file or a list of files to run on in turn, at most 32.
        data: a data.yaml whose val images to run on; without both, one synthetic picture of 640 x 480.
        duration: length of the measurement after the warm-up [s]; MLPerf's single-stream scenario takes 600.
        threads: within an inference, by default the physical cores this process may use, for NCNN one.
        device: cpu, or cuda:0 for an .onnx file; transfers are then separate segments.
        json: the report's file, by default best.time.json beside best.onnx, best_ncnn_model.time.json beside a folder.

    Returns:
        The figures of the report, with every sample [ms] under `samples_ms`. `end_to_end` also includes the
        microseconds between the segments.

    Raises:
        BadInput: an argument is invalid, or the runtime is not installed.
        Failed: the runtime uses another device than requested.
    """
    path = file_path("model", model, "best.onnx")
    report.check_writable("json", json)
    number("duration", duration, above=0, example=60)
    if threads is not None:
        number("threads", threads, whole=True, low=1, example=1)
    timed_images = load_images(images, data)
    runtime = open_runtime(path, threads, device)
    place = "on the GPU" if runtime.threads is None else f"{runtime.threads} thread(s)"
    print(f"timing {path} on {runtime.provider}, {place}: warm-up, then {duration:g} s")
    note = f"times of this machine's {'CPU' if device == 'cpu' else 'GPU'}, not of a Jetson or any other device"
    figures = measure_report(path, note, runtime, timed_images, duration, MachineMonitor())
    target = json or (path.parent / f"{path.name.removesuffix('.onnx')}.time.json")
    written = report.write(target, "time", dict(figures))
    print(report_text(figures), f"report    {written}", sep="\n")
    return figures


def load_images(images: str | Path | Sequence[str | Path] | None, data: str | Path | None) -> TimedImages:
    """Read at most 32 of the images that `images=` or `data=` names, or generate one; RGB, as a bundle reads its own.

    Raises:
        BadInput: no image is found, or one cannot be read.
    """
    if images is None and data is None:
        return TimedImages([synthetic_picture()], "one synthetic picture of 640 x 480")
    place = data or (images if isinstance(images, str | Path) else "a list")
    files = evenly_spaced(find_images(images, data))
    pictures = [np.ascontiguousarray(read_image(file)[..., ::-1]) for file in files]
    pixels_hash = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:8]
    return TimedImages(pictures, f"{len(pictures)} of {Path(place).name} ({pixels_hash})")


def measure_report(
    path: Path, note: str, runtime: Runtime, images: TimedImages, duration: float, monitor: MachineMonitor
) -> LocalTimeReport:
    """Warm up, measure, and build the report.

    Args:
        path: the exported file.
        note: a sentence for the reader of the report.
        runtime: the opened file.
        images: the pictures to run on in turn.
        duration: length of the measurement [s].
        monitor: samples the machine between the runs.
    """
    timed = measure_samples(runtime, images.pictures, duration, monitor)
    total = timed.samples["end_to_end"]
    device = device_health([], monitor.trace, float(np.mean(total)), monitor.sensors.description())
    device["warnings"] = [*device["warnings"], *monitor.warnings()]
    return {
        **file_identity(path),
        "note": note,
        "images": images.description,
        "format": runtime.model.format,
        **measure.run_figures(runtime.model, runtime, timed),
        "drift": drift(total, monitor.drift_causes()),
        "device": device,
        "samples_ms": timed.samples,
    }


def measure_samples(
    runtime: Runtime, pictures: Sequence[Picture], duration: float, monitor: MachineMonitor
) -> TimedRun:
    """Run once, warm up, and time the pictures in turn.

    Args:
        runtime: the opened file.
        pictures: H W 3, RGB.
        duration: length of the measurement [s].
        monitor: samples the machine between the runs.
    """

    def run(index: int) -> list[float]:
        monitor.sample_if_due()
        return measure.run_once(runtime.model, runtime, pictures[index % len(pictures)])

    segments = measure.segments_of(runtime)
    first = run(0)[segments.index("compute")]
    warm = measure.warm_up(run)
    monitor.begin()
    rows = measure.collect_samples(run, duration)
    monitor.end()
    return TimedRun(first, warm, measure.by_segment(segments, rows))


def report_text(figures: LocalTimeReport) -> str:
    """The report as text."""
    size = "x".join(map(str, figures["input"]))
    lines = [
        *segment_lines(figures["segments"], "duration="),
        f"file      {figures['file']}, {figures['bytes'] / 1e6:.1f} MB, {figures['precision']}, input {size}, "
        f"head {figures['head']}",
        f"run       {figures['provider']}, in {figures['arithmetic']}{threads_text(figures['threads'])}, batch 1, "
        f"on {figures['images']}",
        *start_lines(figures),
        *(f"warning   {warning}" for warning in figures["device"]["warnings"]),
        f"note      {figures['note']}",
    ]
    return "\n".join(lines)
