"""Conversion of trtexec's log and --exportTimes to a time report that states what the latency includes.

TensorRT 11 reversed three defaults: no transfers, CUDA graph, spin-wait. The log overrides the version's default.
"""

from __future__ import annotations

import json as json_text
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from yolo_mkd import report
from yolo_mkd.edge.samples import FLOORS, Drift, drift, percentile_key, statistics
from yolo_mkd.edge.time_table import segment_lines
from yolo_mkd.settings import BadInput, file_path

SEGMENTS = {  # trtexec's names -> ours, and the key in its exported times
    "H2D Latency": ("h2d", "h2dMs"),
    "GPU Compute Time": ("compute", "computeMs"),
    "D2H Latency": ("d2h", "d2hMs"),
    "Latency": ("latency", "latencyMs"),
}
ENQUEUE = "Enqueue Time"
PERCENTILE = re.compile(r"percentile\(([\d.]+)%?\) = ([\d.e+-]+) ms")
SUMMARY = re.compile(r"min = ([\d.e+-]+) ms, max = ([\d.e+-]+) ms, mean = ([\d.e+-]+) ms, median = ([\d.e+-]+) ms(.*)")
SWITCHES = {  # its line in the log, the options that set it, its default before and since TensorRT 11
    "transfers": ("Data transfers", "--includeDataTransfers", "--noDataTransfers", True, False),
    "cuda_graph": ("CUDA Graph", "--useCudaGraph", "--noCudaGraph", False, True),
    "spin_wait": ("Spin-wait", "--useSpinWait", "--noSpinWait", False, True),
}
NO_EFFECT = {"--noDataTransfers", "--useCudaGraph", "--useSpinWait"}  # since TensorRT 11
UNSTABLE_COV = 0.025  # trtexec's own limit of the compute time's coefficient of variation
ENQUEUE_SHARE = 0.8  # trtexec's own limit of the enqueue time, relative to the compute time
LOG_DIGITS = 1e-3  # relative; the log has six digits of sums in single precision
NOTE = "copied from trtexec's log, not measured by yolo-mkd; random input, no preprocessing, no postprocessing"


class TrtexecReport(TypedDict):
    """trtexec.time.json, without the schema that every report has."""

    versions: dict[str, str]
    machine: dict[str, Any]
    file: str
    bytes: int | None
    sha256: str | None
    note: str
    tool: str
    format: str
    precision: str
    provider: str
    threads: int | None
    batch: int
    streams: int
    images: str
    meaning: dict[str, Any]
    warm_up: None
    throughput_qps: float
    segments: dict[str, dict[str, Any]]
    enqueue: dict[str, Any] | None
    percentile_floors: dict[str, int] | None
    drift: Drift | None
    samples_ms: dict[str, list[float]] | None
    device: dict[str, list[str]]


@dataclass(frozen=True)
class Log:
    """The parsed log of trtexec."""

    text: str
    version: tuple[int, ...]
    options: dict[str, str]  # the command line
    summary: dict[str, dict[str, Any] | None]  # line of the performance summary -> its statistics
    throughput_qps: float


def ingest(log: str | Path, times: str | Path | None = None, json: str | Path | None = None) -> TrtexecReport:
    """Convert the log that trtexec wrote on a device into a time report.

    Args:
        log: the output of trtexec.
        times: the file of --exportTimes; the percentiles are then computed here, from every sample.
        json: the report's file, by default trtexec.time.json beside trtexec.txt.

    Returns:
        The figures of the report.

    Raises:
        BadInput: a file cannot be read, contains no run, or the times are from another run than the log.
    """
    report.check_writable("json", json)
    parsed = parse_log(file_path("log", log, "trtexec.txt"))
    samples = None
    if times is not None:
        samples = read_exported_times(times, parsed.text)
        validate_samples(samples, parsed.summary, str(times))
    figures = trtexec_report(parsed, samples)
    target = Path(json or Path(log).with_suffix(".time.json"))
    written = report.write(target, "time", dict(figures))
    print(report_text(figures), f"report    {written}", sep="\n")
    return figures


def parse_log(path: str | Path) -> Log:
    """Read trtexec's log.

    Raises:
        BadInput: it cannot be read, or its performance summary is missing or incomplete.
    """
    text = read_text("log", path)
    if "=== Performance summary ===" not in text:
        raise BadInput(f"log={path} has no performance summary: give the complete output of trtexec")
    version = version_of(text)
    summary = {line: summary_statistics(text, line) for line in (*SEGMENTS, ENQUEUE)}
    throughput = re.search(r"Throughput: ([\d.e+-]+) qps", text)
    if throughput is None or any(summary[line] is None for line in ("Latency", "GPU Compute Time")):
        raise BadInput(f"log={path}: the performance summary is truncated: give the complete output of trtexec")
    return Log(text, version, command_line(text), summary, float(throughput.group(1)))


def trtexec_report(log: Log, samples: dict[str, list[float]] | None) -> TrtexecReport:
    """The figures of a parsed log, with the statistics of every sample where they were exported."""
    segments = {}
    for line, (name, _) in SEGMENTS.items():
        if samples is not None:
            segments[name] = statistics(samples[name])
        elif (printed := log.summary[line]) is not None:
            segments[name] = printed
    streams = int(
        log_value(log.text, "Inference Streams") or log_value(log.text, "Streams") or log.options.get("infStreams") or 1
    )
    return {
        "versions": {"tensorrt": ".".join(map(str, log.version))},
        "machine": {"processor": log_value(log.text, "Selected Device"), "cores": None, "system": None},
        "file": Path(log.options.get("onnx") or log.options.get("loadEngine") or "unknown").name,
        "bytes": None,
        "sha256": None,
        "note": NOTE,
        "tool": "trtexec",
        "format": "engine",
        "precision": log_value(log.text, "Precision"),
        "provider": "TensorRT",
        "threads": None,
        "batch": 1,
        "streams": streams,
        "images": "random input",
        "meaning": latency_meaning(log),
        "warm_up": None,
        "throughput_qps": log.throughput_qps,
        "segments": segments,
        "enqueue": log.summary[ENQUEUE],
        "percentile_floors": {percentile_key(p): n for p, n in FLOORS.items()} if samples else None,
        "drift": drift(samples["latency"]) if samples else None,
        "samples_ms": samples,
        "device": {"warnings": trtexec_warnings(segments, log.summary[ENQUEUE], streams, samples is None)},
    }


def read_text(argument: str, path: str | Path) -> str:
    """The text of a file in UTF-8, or in PowerShell's UTF-16.

    Raises:
        BadInput: it is missing, or not text.
    """
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{argument}={path} cannot be read ({type(error).__name__}): give a file written by trtexec"
        ) from error


def log_value(text: str, label: str) -> str:
    """The text after `label: ` on a line of the log; empty without such a line."""
    found = re.search(rf"(?:\] |^){re.escape(label)}: *(.*?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else ""


def version_of(text: str) -> tuple[int, ...]:
    """TensorRT's version: 8502 in the first line is 8.5.2, 100300 is 10.3.0.

    Raises:
        BadInput: the log does not contain it, so that the meaning of its latencies is unknown.
    """
    if written := re.search(r"TensorRT version: (\d+)\.(\d+)\.(\d+)", text):
        return tuple(map(int, written.groups()))
    coded = re.search(r"\[TensorRT v(\d+)\]", text)
    if not coded:
        raise BadInput(
            "the log has no TensorRT version, so that the meaning of its latencies is unknown: give all of it"
        )
    number, step = int(coded.group(1)), 100 if len(coded.group(1)) > 5 else 10
    return number // (100 * step), number // 100 % step, number % 100


def command_line(text: str) -> dict[str, str]:
    """The command line, from the first line of the log: option -> value."""
    found = re.search(r"^&&&& RUNNING .*?# (.*)$", text, re.MULTILINE)
    words = found.group(1).split() if found else []
    pairs = (word[2:].partition("=") for word in words if word.startswith("--"))
    return {key: given for key, _, given in pairs}


def latency_meaning(log: Log) -> dict[str, Any]:
    """What the latency includes: from the log's own lines, else the command line, else the version's default."""
    new, found = log.version >= (11,), {}
    for name, (line, on, off, before, since) in SWITCHES.items():
        stated = log_value(log.text, line)
        given = [o for o in (on, off) if o[2:] in log.options and not (new and o in NO_EFFECT)]
        if stated:
            found[name] = stated == "Enabled"
        elif given:
            found[name] = given[-1] == on
        else:
            found[name] = since if new else before
    return {
        "defaults": "TensorRT 11 and newer" if new else "before TensorRT 11",
        **found,
        "latency": "h2d + compute + d2h" if found["transfers"] else "compute alone: nothing is copied",
    }


def summary_statistics(text: str, line: str) -> dict[str, Any] | None:
    """The statistics in one line of the performance summary; None without that line."""
    found = SUMMARY.match(log_value(text, line))
    if not found:
        return None
    low, high, mean, middle = map(float, found.groups()[:4])
    row: dict[str, Any] = {"n": None, "min_ms": low, "mean_ms": mean, "max_ms": high, "std_ms": None, "p50_ms": middle}
    row |= {percentile_key(p): None for p in FLOORS if p != 50}
    return row | {percentile_key(float(p)): float(ms) for p, ms in PERCENTILE.findall(found.group(5))}


def read_exported_times(times: str | Path, text: str) -> dict[str, list[float]]:
    """Every query's times [ms] by segment, without the warm-up, which older versions export too.

    Raises:
        BadInput: it is not a file of --exportTimes, or from another run.
    """
    try:
        queries = json_text.loads(read_text("times", times))
        columns = {name: [float(query[key]) for query in queries] for name, key in SEGMENTS.values()}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"times={times} is not a file of trtexec's --exportTimes: give that of the same run") from error
    warm, timed = (re.search(pattern, text) for pattern in (r"Warmup completed (\d+) ", r"Timing trace has (\d+) "))
    extra = len(queries) - int(timed.group(1)) if timed else 0
    if extra not in {0, int(warm.group(1)) if warm else 0} or len(queries) <= extra:
        raise BadInput(f"times={times} has {len(queries)} queries, but the log another number: give files of one run")
    return {name: column[extra:] for name, column in columns.items()}


def validate_samples(samples: dict[str, list[float]], summary: dict[str, dict[str, Any] | None], times: str) -> None:
    """Compare the samples' statistics, computed as trtexec does, with the log's.

    Raises:
        BadInput: they differ, so that the files are from two runs.
    """
    for line, (name, _) in SEGMENTS.items():
        printed, column = summary[line], np.sort(samples[name])
        if printed is None:
            continue
        own = {"min_ms": column[0], "max_ms": column[-1], "mean_ms": column.mean(), "p50_ms": np.median(column)}
        for key in printed:
            if match := re.fullmatch(r"p(\d+(?:_\d+)?)_ms", key):
                excluded = int((1 - float(match.group(1).replace("_", ".")) / 100) * len(column) + 1e-6)
                own.setdefault(key, column[max(len(column) - 1 - excluded, 0)])
        for key, ours in own.items():
            theirs = printed[key]
            if theirs is not None and abs(ours - theirs) > LOG_DIGITS * max(abs(theirs), LOG_DIGITS):
                raise BadInput(
                    f"times={times} gives {name} {key} {ours:.6g}, but the log {theirs:.6g}: give both files of one run"
                )


def trtexec_warnings(
    segments: dict[str, dict[str, Any]], enqueue: dict[str, Any] | None, streams: int, without_samples: bool
) -> list[str]:
    """Trtexec's own four warnings, computed from the figures, and one for missing samples.

    Args:
        segments: statistics by segment.
        enqueue: statistics of the enqueue time.
        streams: inference streams.
        without_samples: the times were not exported.
    """
    found = []
    compute = segments["compute"]
    if enqueue and enqueue["p50_ms"] > ENQUEUE_SHARE * compute["p50_ms"]:
        found.append("the enqueue time is more than 0.8 of the compute time: the GPU may wait for the processor")
    for name, way in (("h2d", "to the device"), ("d2h", "from the device")):
        if name in segments and segments[name]["p50_ms"] >= compute["p50_ms"]:
            found.append(f"copying {way} takes as long as the compute time")
    if compute["std_ms"] and compute["std_ms"] / compute["mean_ms"] > UNSTABLE_COV:
        share = compute["std_ms"] / compute["mean_ms"]
        found.append(f"the compute time varies by {share:.1%}, more than 2.5 %: the clocks were not locked")
    if streams > 1:
        found.append(f"{streams} streams ran at once: only the throughput is meaningful")
    if without_samples:
        found.append(
            "percentiles are the log's, without a minimum number of samples and a test for drift: "
            "trtexec --exportTimes provides both"
        )
    return found


def report_text(figures: TrtexecReport) -> str:
    """The report as text."""
    meaning = figures["meaning"]
    switches = ", ".join(f"{name.replace('_', ' ')} {'on' if meaning[name] else 'off'}" for name in SWITCHES)
    stability = figures["drift"]
    stable = "not known" if stability is None else "yes" if stability["stable"] else f"NO: {stability['reason']}"
    lines = [
        *segment_lines(figures["segments"]),
        f"run       {figures['file']} on {figures['machine']['processor']}, TensorRT {figures['versions']['tensorrt']}",
        f"meaning   latency = {meaning['latency']}; {switches}",
        f"stable    {stable}",
        *(f"warning   {warning}" for warning in figures["device"]["warnings"]),
        f"note      {NOTE}",
    ]
    return "\n".join(lines)
