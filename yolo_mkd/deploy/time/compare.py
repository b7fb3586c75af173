"""Is one timed file faster than another? Two reports, an interval by bootstrap, and refusal of the incomparable.

The bootstrap draws blocks of neighbouring samples, since load and clocks make neighbours alike (Kuensch 1989).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.settings import BadInput

Samples = NDArray[np.float64]

RESAMPLES, SEED = 1000, 0
BLOCKS = 50  # ours: a block is a fiftieth of a run, a second of a minute
LEVEL = 95.0  # per cent of the interval
LEAST_SAMPLES = 130  # ours: fewer do not fill fifty blocks
ONE_RUN = "one run of each: what differs from run to run lies outside the interval"

# what must be the same in both, as the reports name it: the path of a field, and what a person calls it
SAME = (
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


@dataclass(frozen=True)
class Change:
    """What changed in one segment from report a to report b; negative is faster."""

    a_ms: float  # p50
    b_ms: float
    difference_ms: tuple[float, float]  # the interval of b - a
    ratio: tuple[float, float]  # of b / a

    def __str__(self) -> str:
        low, high = self.difference_ms
        share = "-"  # of a segment that takes no time, such as a copy that is switched off
        if self.a_ms:
            share = f"{self.b_ms / self.a_ms - 1:+.1%} ({self.ratio[0] - 1:+.1%} to {self.ratio[1] - 1:+.1%})"
        return f"{self.a_ms:9.3f} {self.b_ms:9.3f}   {self.b_ms - self.a_ms:+.3f} ({low:+.3f} to {high:+.3f})   {share}"


@dataclass(frozen=True)
class Comparison:
    """The outcome; printed, it is a verdict and a table."""

    a: str
    b: str
    changes: dict[str, Change]  # by segment
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence on the whole of a run."""
        change = self.changes[whole(self.changes)]
        low, high = (abs(ratio - 1) for ratio in change.ratio)
        if change.ratio[0] <= 1 <= change.ratio[1]:
            return f"not distinguishable: b's p50 is {low:.1%} less to {high:.1%} more than a's, at {LEVEL:g} %"
        word = "faster" if change.ratio[1] < 1 else "slower"
        near, far = sorted((low, high))
        size = abs(change.b_ms / change.a_ms - 1)
        return f"b is {size:.1%} {word} ({LEVEL:g} % interval {near:.1%} to {far:.1%})"

    def __str__(self) -> str:
        lines = [f"{self.verdict}", f"a         {self.a}", f"b         {self.b}", ""]
        lines += [f"{'p50 [ms]':12}{'a':>9} {'b':>9}   b - a, and {LEVEL:g} % interval"]
        lines += [f"{name:12}{change}" for name, change in self.changes.items()]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two reports of time that were taken alike on one machine.

    Args:
        a: the report to compare against.
        b: the other.

    Returns:
        Differences and ratios of the medians with their intervals; `str` of it is for people.

    Raises:
        BadInput: a file is no report of time, or the two cannot be compared.
    """
    reports = [read(path) for path in (a, b)]
    if reason := incomparable(*reports):
        raise BadInput(f"{a} and {b} cannot be compared: {reason}")
    first, second = reports
    changes = {name: change(first["samples_ms"][name], second["samples_ms"][name]) for name in first["segments"]}
    notes = [ONE_RUN]
    notes += [
        f"{label} differs: {first.get(key)} and {second.get(key)}"
        for key, label in (("arithmetic", "arithmetic"), ("opencv_threads", "OpenCV's threads"))
        if first.get(key) != second.get(key)
    ]
    notes += [f"{label}: {w}" for label, r in zip("ab", reports, strict=True) for w in r["device"]["warnings"]]
    notes += [
        f"{label}'s warm-up did not settle"
        for label, r in zip("ab", reports, strict=True)
        if r["warm_up"] and not r["warm_up"]["settled"]
    ]
    return Comparison(title(first), title(second), changes, tuple(notes))


def read(path: str | Path) -> dict[str, Any]:
    """Read a report of time.

    Raises:
        BadInput: it is missing, or something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read as a report of time ({type(error).__name__}): give two of them"
        ) from error
    if not isinstance(found, dict) or not str(found.get("schema")).startswith("yolo-mkd/time/"):
        raise BadInput(f"{path} is no report of time: make one with yolo-mkd time model=best.onnx")
    return found


def incomparable(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Say in one line what makes two reports measure different things, and what to do; nothing when they agree."""
    for path, label in SAME:
        ours, theirs = field(a, path), field(b, path)
        if ours != theirs:
            return f"{label} differs ({ours} and {theirs}): time both alike on one machine"
    if on_gpu(a) != on_gpu(b):
        return f"one ran on {a['provider']}, the other on {b['provider']}: time both on one device"
    if list(a["segments"]) != list(b["segments"]):
        return f"their segments differ ({', '.join(a['segments'])}; {', '.join(b['segments'])}): use one tool for both"
    for label, report in (("the first", a), ("the second", b)):
        if not report.get("samples_ms"):
            return f"{label} holds no samples: give times= too where trtexec's log is read"
        if not report["drift"]["stable"]:
            return f"{label} is not stable ({report['drift']['reason']}): time it again"
        n = report["segments"][whole(report["segments"])]["n"]
        if n < LEAST_SAMPLES:
            return f"{label} has {n} samples, fewer than {LEAST_SAMPLES}: time it again with a longer duration="
    return ""


def field(report: dict[str, Any], path: tuple[str, ...]) -> Any:
    """A field of a report by its path; None where it is not there."""
    found: Any = report
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def on_gpu(report: dict[str, Any]) -> bool:
    """Whether a report's inference ran on a GPU."""
    return "CPU" not in str(report["provider"])


def whole(segments: dict[str, Any]) -> str:
    """The segment that holds all others: end_to_end, or trtexec's latency."""
    return "end_to_end" if "end_to_end" in segments else "latency"


def change(a: list[float], b: list[float]) -> Change:
    """Compare the medians of two runs' samples of one segment."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng = np.random.default_rng(SEED)
    medians = [resampled_medians(samples, rng) for samples in (first, second)]
    outside = [(100 - LEVEL) / 2, (100 + LEVEL) / 2]
    low, high = np.percentile(medians[1] - medians[0], outside)
    least, most = np.percentile(medians[1] / np.maximum(medians[0], 1e-9), outside)  # a segment can take no time at all
    return Change(median(first), median(second), (float(low), float(high)), (float(least), float(most)))


def resampled_medians(samples: Samples, rng: np.random.Generator) -> Samples:
    """Medians of as many resamples as asked, each of blocks that start anywhere and run on past the end: RESAMPLES."""
    length = -(-len(samples) // BLOCKS)
    count = -(-len(samples) // length)
    ring = np.concatenate([samples, samples[: length - 1]])
    blocks = np.lib.stride_tricks.sliding_window_view(ring, length)  # n length
    return np.array([median(blocks[rng.integers(len(blocks), size=count)].ravel()) for _ in range(RESAMPLES)])


def median(samples: Samples) -> float:
    """The sample that half of all do not exceed, as p50 in the reports."""
    rank = (len(samples) + 1) // 2 - 1
    return float(np.partition(samples, rank)[rank])


def title(report: dict[str, Any]) -> str:
    """What was timed, for people."""
    precision = "" if report.get("precision") is None else f"{report['precision']}, "
    return f"{report['file']}, {precision}{report['provider']}, {report['machine']['processor']}"
