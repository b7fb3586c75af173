"""Time the model on this device: a picture in memory to its boxes, one at a time, every sample kept.

  python time.py                 60 s on the bundle's samples; the report is written to time.json
  python time.py --seconds 600   as long as MLPerf's single-stream scenario

On a Jetson the report also contains power, temperatures, clocks and throttle counters, read without root.
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
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from . import measure
from .bundle import Bundle, EdgeError, read_bundle
from .health import device_health, drift_causes
from .measure import TimedRun, TimeReport
from .pictures import read_picture
from .runtimes import add_options, open_runtime
from .samples import drift
from .sensors import Sampler, Sensors, file_text
from .time_table import segment_lines, start_lines, threads_text

if TYPE_CHECKING:
    from .onnx_runtime import ONNXRuntime
    from .tensor_rt import TensorRT

SCHEMA = "yolo-mkd/time/1"


class DeviceTimeReport(TimeReport):
    """time.json as this script writes it."""

    schema: str
    versions: dict[str, str]
    machine: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser("time.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--seconds", type=float, default=60.0, help="length of the measurement (default: 60)")
    options.add_argument(
        "--idle", type=float, default=10.0, help="seconds of idle power measured before it (default: 10)"
    )
    options.add_argument("--out", type=Path, help="the report's file (default: time.json in the bundle)")
    options.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)  # for tests
    add_options(options)
    return options


def main(arguments: list[str] | None = None, folder: Path | None = None) -> int:
    """Time as the command line requests.

    Args:
        arguments: the command line, by default this process's.
        folder: the bundle, by default the one that contains this file.

    Returns:
        The exit code: 0 success, 2 an error, which is printed in one line.
    """
    options = parser().parse_args(arguments)
    folder = folder or Path(__file__).resolve().parent.parent
    try:
        for name in ("seconds", "idle"):
            value = getattr(options, name)
            if not 0 <= value < math.inf:
                raise EdgeError(f"--{name} {value} must be a finite number of at least 0, for example --{name} 10")
        bundle = read_bundle(folder)
        report = time_bundle(bundle, open_runtime(bundle, options), options)
    except EdgeError as error:
        print(f"time.py: {error}", file=sys.stderr)
        return 2
    path = options.out or folder / "time.json"
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(str(partial), str(path))
    print(report_text(report), f"report    {path}", sep="\n")
    return 0


def time_bundle(bundle: Bundle, runtime: ONNXRuntime | TensorRT, options: argparse.Namespace) -> DeviceTimeReport:
    """Warm up, measure, and build the report.

    Args:
        bundle: the bundle; its sample pictures are used in turn.
        runtime: the opened model.
        options: the command line.

    Raises:
        EdgeError: the bundle has no sample pictures.
    """
    paths = sorted((bundle.folder / "sample").glob("*.png"))
    if not paths:
        raise EdgeError("sample/ contains no pictures: copy the bundle again")
    pictures = [read_picture(path) for path in paths]
    pixels_hash = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:8]
    segments = measure.segments_of(runtime)
    sensors = Sensors(options.root)

    def run(index: int) -> list[float]:
        return measure.run_once(bundle, runtime, pictures[index % len(pictures)])

    idle = sample_idle(sensors, options.idle) if sensors.rails else []
    print(f"timing {bundle.model.name} on {runtime.provider}: warm-up, then {options.seconds:g} s", flush=True)
    first = run(0)[segments.index("compute")]
    warm = measure.warm_up(run)
    with Sampler(sensors) as sampler:
        rows = measure.collect_samples(run, options.seconds)
    samples = measure.by_segment(segments, rows)
    total = samples["end_to_end"]
    device = device_health(idle, sampler.samples, float(np.mean(total)), sensors.description())
    return {
        "schema": SCHEMA,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **runtime.versions},
        "machine": machine(options.root, device["model"]),
        "file": bundle.model.name,
        "bytes": bundle.model.stat().st_size,
        "sha256": bundle.sha256,
        "format": "engine" if "h2d" in segments else "onnx",
        "images": f"{len(pictures)} samples of the bundle ({pixels_hash})",
        **measure.run_figures(bundle, runtime, TimedRun(first, warm, samples)),
        "drift": drift(total, drift_causes(sampler.samples)),
        "device": device,
        "samples_ms": samples,
    }


def sample_idle(sensors: Sensors, seconds: float) -> list[dict[str, Any]]:
    """Sample the sensors while nothing runs."""
    print(f"measuring the idle power for {seconds:g} s", flush=True)
    with Sampler(sensors) as sampler:
        sleep(seconds)
    return sampler.samples


def machine(root: Path, model: str | None) -> dict[str, Any]:
    """The machine that measured: processor, cores and system, without the host name."""
    lines = (file_text(root / "proc/cpuinfo") or "").splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model")))
    processor = model or next(named, platform.machine())
    return {"processor": processor, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def report_text(report: DeviceTimeReport) -> str:
    """The report as text."""
    device = report["device"]
    lines = [
        *segment_lines(report["segments"], "--seconds"),
        f"run       {report['provider']}, in {report['arithmetic']}{threads_text(report['threads'])}"
        f", batch 1, on {report['images']}, resized by {report['resize']}",
        *start_lines(report),
        f"device    {report['machine']['processor']}",
        f"power     {power_text(device['power'])}",
    ]
    if device["l4t"]:
        lines.append(f"system    L4T {device['l4t']}, JetPack {device['jetpack']}, power mode {device['power_mode']}")
    return "\n".join([*lines, *(f"warning   {warning}" for warning in device["warnings"])])


def power_text(power: dict[str, Any] | None) -> str:
    """The measured power, in words."""
    if power is None:
        return "not measured: no readable power rails on this machine"
    idle = "" if power["idle_w"] is None else f", idle {power['idle_w']:.2f} W"
    above = power["mj_per_image_above_idle"]
    extra = "" if above is None else f" ({above:.1f} above idle)"
    return f"mean {power['mean_w']:.2f} W{idle}, {power['mj_per_image']:.1f} mJ per image{extra}"


if __name__ == "__main__":
    sys.exit(main())
