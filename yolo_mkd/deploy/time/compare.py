"""Comparison of two time reports: differences of medians with bootstrap intervals, for equal conditions only.

The bootstrap draws blocks of neighbouring samples, since load and clocks make neighbours similar (Kuensch 1989).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import NotRequired, TypedDict

from yolo_mkd import documents, report
from yolo_mkd.settings import BadInput

Samples = NDArray[np.float64]

RESAMPLES, SEED = 1000, 0
BLOCKS = 50  # our choice: a block is a fiftieth of a run, about a second of a minute
LEVEL = 95.0  # confidence level [%]
LEAST_SAMPLES = 130  # our choice: fewer do not fill fifty blocks
ADVICE = "make one with yolo-mkd time"
ONE_RUN = "one run of each: the interval does not include the variation from run to run"

# the fields that must be equal in both reports: path, and name for the error message
SAME_CONDITIONS = (
    (("schema",), "schema"),
    (("machine", "processor"), "processor"),
    (("machine", "cores"), "number of cores"),
    (("machine", "system"), "system"),
    (("device", "model"), "device"),
    (("device", "power_mode"), "power mode"),
    (("device", "governors"), "clock governor"),
    (("accelerator",), "GPU"),
    (("threads",), "threads"),
    (("batch",), "batch"),
    (("streams",), "streams"),
    (("input",), "input"),
    (("images",), "images"),
    (("resize",), "resizing"),
    (("conf",), "conf"),
    (("meaning",), "meaning"),
)


class Segment(TypedDict):
    """Statistics of one segment, as far as a comparison needs them."""

    n: int
    p50_ms: documents.Number
    p90_ms: NotRequired[documents.Number | None]


class Stability(TypedDict):
    """Whether the times stayed the same."""

    stable: bool
    reason: str


class WarmUpEnd(TypedDict):
    """How the warm-up ended."""

    settled: bool


class Warnings(TypedDict):
    """What was noted of the device."""

    warnings: list[str]


class Processor(TypedDict):
    """The machine."""

    processor: str


class TimedFigures(TypedDict):
    """The fields of a time report that a comparison reads."""

    schema: str
    file: str
    provider: str
    machine: Processor
    device: Warnings
    segments: dict[str, Segment]
    samples_ms: dict[str, list[documents.Number]] | None
    warm_up: NotRequired[WarmUpEnd | None]
    drift: Stability | None
    precision: NotRequired[str | None]


@dataclass(frozen=True)
class MedianChange:
    """The change of one segment's median from report a to report b; negative is faster."""

    a_ms: float  # p50
    b_ms: float
    difference_ms: tuple[float, float]  # the interval of b - a
    ratio: tuple[float, float]  # of b / a

    def cells(self) -> list[str]:
        """Both medians, their difference and their relative difference with intervals, as text."""
        low, high = self.difference_ms
        share = "-"  # for a segment of zero duration, such as a copy that is switched off
        if self.a_ms:
            share = f"{self.b_ms / self.a_ms - 1:+.1%} ({self.ratio[0] - 1:+.1%} to {self.ratio[1] - 1:+.1%})"
        difference = f"{self.b_ms - self.a_ms:+.3f} ({low:+.3f} to {high:+.3f})"
        return [f"{self.a_ms:.3f}", f"{self.b_ms:.3f}", difference, share]


@dataclass(frozen=True)
class TimeComparison:
    """The outcome of a comparison; printed, it is a verdict and a table."""

    a: str
    b: str
    changes: dict[str, MedianChange]  # by segment
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The change of the end-to-end time, in one sentence."""
        change = self.changes[total_segment(self.changes)]
        low, high = (abs(ratio - 1) for ratio in change.ratio)
        if change.ratio[0] <= 1 <= change.ratio[1]:
            return f"not distinguishable: b's p50 is {low:.1%} less to {high:.1%} more than a's, at {LEVEL:g} %"
        word = "faster" if change.ratio[1] < 1 else "slower"
        near, far = sorted((low, high))
        size = abs(change.b_ms / change.a_ms - 1)
        return f"b is {size:.1%} {word} ({LEVEL:g} % interval {near:.1%} to {far:.1%})"

    def __str__(self) -> str:
        rows = [[name, *change.cells()] for name, change in self.changes.items()]
        headers = ["p50 [ms]", "a", "b", f"b - a ({LEVEL:g} % interval)", "relative"]
        lines = [self.verdict, f"a         {self.a}", f"b         {self.b}", "", report.table(rows, headers)]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])


def compare_times(a: str | Path, b: str | Path) -> TimeComparison:
    """Compare two time reports that were measured under the same conditions on one machine.

    Args:
        a: the report to compare against.
        b: the other.

    Returns:
        Differences and ratios of the medians with their intervals; printed, it is a table.

    Raises:
        BadInput: a file is not a time report, or the two cannot be compared.
    """
    reports = [read_time_report(path) for path in (a, b)]
    if reason := why_not_comparable(*reports):
        raise BadInput(f"{a} and {b} cannot be compared: {reason}")
    first, second = reports
    samples = [figures["samples_ms"] for figures in reports]
    changes = {name: compare_medians(*(columns[name] for columns in samples)) for name in first["segments"]}
    return TimeComparison(report_title(first), report_title(second), changes, tuple(comparison_notes(first, second)))


def comparison_notes(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Conditions that differ or that reduce the value of a comparison without excluding it."""
    notes = [ONE_RUN]
    for key, label in (("arithmetic", "arithmetic"), ("opencv_threads", "number of OpenCV's threads")):
        if first.get(key) != second.get(key):
            notes.append(f"{label} differs: {first.get(key)} and {second.get(key)}")
    for label, figures in (("a", first), ("b", second)):
        notes += [f"{label}: {warning}" for warning in figures["device"]["warnings"]]
    for label, figures in (("a", first), ("b", second)):
        if figures.get("warm_up") and not figures["warm_up"]["settled"]:
            notes.append(f"{label}: the warm-up did not settle")
    return notes


def read_time_report(path: str | Path) -> dict[str, Any]:
    """Read a time report.

    Raises:
        BadInput: it is missing, or not a time report.
    """
    found = documents.read_json(Path(path), str(path), ADVICE)
    if not isinstance(found, dict) or not str(found.get("schema")).startswith("yolo-mkd/time/"):
        raise BadInput(f"{path} is not a time report: make one with yolo-mkd time model=best.onnx")
    checked: dict[str, Any] = documents.validated(TypeAdapter(TimedFigures), found, str(path), ADVICE)
    return checked


def why_not_comparable(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Why two reports cannot be compared and what to do, in one line; empty when they can."""
    for path, label in SAME_CONDITIONS:
        ours, theirs = report_field(a, path), report_field(b, path)
        if ours != theirs:
            return f"{label} differs ({ours} and {theirs}): time both on one machine with the same settings"
    if ran_on_gpu(a) != ran_on_gpu(b):
        return f"one ran on {a['provider']}, the other on {b['provider']}: time both on one device"
    if list(a["segments"]) != list(b["segments"]):
        return f"their segments differ ({', '.join(a['segments'])}; {', '.join(b['segments'])}): use one tool for both"
    if total_segment(a["segments"]) not in a["segments"]:
        return "they have neither end_to_end nor latency among their segments: time both again"
    for label, figures in (("the first", a), ("the second", b)):
        if not figures.get("samples_ms"):
            return f"{label} has no samples: read trtexec's log together with times="
        if bare := [name for name in figures["segments"] if not figures["samples_ms"].get(name)]:
            return f"{label} has no samples of {bare[0]}: time it again"
        if not figures["drift"]["stable"]:
            return f"{label} is not stable ({figures['drift']['reason']}): time it again"
        n = figures["segments"][total_segment(figures["segments"])]["n"]
        if n < LEAST_SAMPLES:
            return f"{label} has {n} samples, fewer than {LEAST_SAMPLES}: time it again with a longer duration="
    return ""


def report_field(figures: dict[str, Any], path: tuple[str, ...]) -> Any:
    """A field of a report by its path; None where it is not there."""
    found: Any = figures
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def ran_on_gpu(figures: dict[str, Any]) -> bool:
    """Whether a report is of inference on a GPU."""
    return "CPU" not in str(figures["provider"])


def total_segment(segments: dict[str, Any]) -> str:
    """The segment that contains all others: end_to_end, or trtexec's latency."""
    return "end_to_end" if "end_to_end" in segments else "latency"


def compare_medians(a: list[float], b: list[float]) -> MedianChange:
    """Compare the medians of two runs' samples of one segment."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng = np.random.default_rng(SEED)
    medians = [resampled_medians(samples, rng) for samples in (first, second)]
    outside = [(100 - LEVEL) / 2, (100 + LEVEL) / 2]
    low, high = np.percentile(medians[1] - medians[0], outside)
    least, most = np.percentile(medians[1] / np.maximum(medians[0], 1e-9), outside)  # a segment can have zero duration
    return MedianChange(median(first), median(second), (float(low), float(high)), (float(least), float(most)))


def resampled_medians(samples: Samples, rng: np.random.Generator) -> Samples:
    """Medians of 1000 resamples, each of random blocks of the samples, which are treated as a ring."""
    length = -(-len(samples) // BLOCKS)
    count = -(-len(samples) // length)
    ring = np.concatenate([samples, samples[: length - 1]])
    blocks = np.lib.stride_tricks.sliding_window_view(ring, length)  # n length
    return np.array([median(blocks[rng.integers(len(blocks), size=count)].ravel()) for _ in range(RESAMPLES)])


def median(samples: Samples) -> float:
    """The smallest sample that at least half of all do not exceed, as p50 in the reports."""
    rank = (len(samples) + 1) // 2 - 1
    return float(np.partition(samples, rank)[rank])


def report_title(figures: dict[str, Any]) -> str:
    """The timed file, runtime and processor, in words."""
    precision = "" if figures.get("precision") is None else f"{figures['precision']}, "
    return f"{figures['file']}, {precision}{figures['provider']}, {figures['machine']['processor']}"
