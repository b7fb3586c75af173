"""Read trtexec's log and its --exportTimes into a report of time, with what its version means by a latency.

TensorRT 11 turned three defaults round: no transfers, CUDA graph, spin-wait. The log is trusted over the version.
"""

from __future__ import annotations

import json as json_text
import re
from pathlib import Path
from typing import Any

import numpy as np

from yolo_mkd import report
from yolo_mkd.edge.samples import FLOORS, drift, percentile_key, statistics
from yolo_mkd.settings import BadInput

SEGMENTS = {  # trtexec's names -> ours, and the key in its exported times
    "H2D Latency": ("h2d", "h2dMs"),
    "GPU Compute Time": ("compute", "computeMs"),
    "D2H Latency": ("d2h", "d2hMs"),
    "Latency": ("latency", "latencyMs"),
}
ENQUEUE = "Enqueue Time"
PERCENTILE = re.compile(r"percentile\(([\d.]+)%?\) = ([\d.e+-]+) ms")
SUMMARY = re.compile(r"min = ([\d.e+-]+) ms, max = ([\d.e+-]+) ms, mean = ([\d.e+-]+) ms, median = ([\d.e+-]+) ms(.*)")
SWITCHES = {  # of the inference: its line in the log, the options that set it, whether it is on before and since 11
    "transfers": ("Data transfers", "--includeDataTransfers", "--noDataTransfers", True, False),
    "cuda_graph": ("CUDA Graph", "--useCudaGraph", "--noCudaGraph", False, True),
    "spin_wait": ("Spin-wait", "--useSpinWait", "--noSpinWait", False, True),
}
NO_EFFECT = {"--noDataTransfers", "--useCudaGraph", "--useSpinWait"}  # from 11 on
UNSTABLE_COV, ENQUEUE_SHARE = 0.025, 0.8  # trtexec's own: variation of the compute time, enqueue against compute
LOG_DIGITS = 1e-3  # the log gives six digits of sums in single precision
NOTE = "copied from trtexec's log, not measured by yolo-mkd; random input, no preprocessing, no postprocessing"


def ingest(log: str | Path, times: str | Path | None = None, json: str | Path | None = None) -> dict[str, Any]:
    """Turn what trtexec wrote on a device into a report of time.

    Args:
        log: what trtexec printed.
        times: what it wrote with --exportTimes; the percentiles are then computed here, from every sample.
        json: the report's file, by default trtexec.time.json beside trtexec.txt.

    Returns:
        The figures of the report.

    Raises:
        BadInput: a file cannot be read, holds no run, or the times are not those of the log.
    """
    text = read_text("log", log)
    if "=== Performance summary ===" not in text:
        raise BadInput(f"log={log} holds no performance summary: give what trtexec printed, to its end")
    version, options = version_of(text), echoed(text)
    summary = {line: summarised(text, line) for line in (*SEGMENTS, ENQUEUE)}
    throughput = re.search(r"Throughput: ([\d.e+-]+) qps", text)
    if throughput is None or any(summary[line] is None for line in ("Latency", "GPU Compute Time")):
        raise BadInput(f"log={log}: its performance summary is torn: give what trtexec printed, to its end")
    samples = None if times is None else exported(times, text)
    if samples is not None:
        disagreement(samples, summary, str(times))
    segments = {}
    for line, (name, _) in SEGMENTS.items():
        if samples is not None:
            segments[name] = statistics(samples[name])
        elif (printed := summary[line]) is not None:
            segments[name] = printed
    meaning = meanings(version, options, text)
    figures = {
        "versions": {"tensorrt": ".".join(map(str, version))},
        "machine": {"processor": value(text, "Selected Device"), "cores": None, "system": None},
        "file": Path(options.get("onnx") or options.get("loadEngine") or "unknown").name,
        "bytes": None,
        "sha256": None,
        "note": NOTE,
        "tool": "trtexec",
        "format": "engine",
        "precision": value(text, "Precision"),
        "provider": "TensorRT",
        "threads": None,
        "batch": 1,
        "streams": meaning.pop("streams"),
        "images": "random input",
        "meaning": meaning,
        "warm_up": None,
        "throughput_qps": float(throughput.group(1)),
        "segments": segments,
        "enqueue": summary[ENQUEUE],
        "percentile_floors": {percentile_key(p): n for p, n in FLOORS.items()} if samples else None,
        "drift": drift(samples["latency"]) if samples else None,
        "samples_ms": samples,
    }
    figures["device"] = {"warnings": warnings(figures)}
    target = Path(json or Path(log).with_suffix(".time.json"))
    written = report.write(target, "time", figures)
    print(table(figures), f"report    {written}", sep="\n")
    return figures


def read_text(argument: str, path: str | Path) -> str:
    """A text file's content, also of PowerShell's UTF-16.

    Raises:
        BadInput: it is not there or no text.
    """
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{argument}={path} cannot be read ({type(error).__name__}): give a file of trtexec's"
        ) from error


def value(text: str, label: str) -> str:
    """What follows `label: ` on a line of the log; empty without one."""
    found = re.search(rf"(?:\] |^){re.escape(label)}: *(.*?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else ""


def version_of(text: str) -> tuple[int, ...]:
    """TensorRT's version: 8502 in the first line is 8.5.2, 100300 is 10.3.0.

    Raises:
        BadInput: the log does not say, and without it a latency has no meaning.
    """
    if written := re.search(r"TensorRT version: (\d+)\.(\d+)\.(\d+)", text):
        return tuple(map(int, written.groups()))
    coded = re.search(r"\[TensorRT v(\d+)\]", text)
    if not coded:
        raise BadInput("the log names no TensorRT version, on which its latencies' meaning depends: give the whole log")
    number, step = int(coded.group(1)), 100 if len(coded.group(1)) > 5 else 10
    return number // (100 * step), number // 100 % step, number % 100


def echoed(text: str) -> dict[str, str]:
    """The command line that trtexec repeats in its first line: option -> value."""
    found = re.search(r"^&&&& RUNNING .*?# (.*)$", text, re.MULTILINE)
    words = found.group(1).split() if found else []
    pairs = (word[2:].partition("=") for word in words if word.startswith("--"))
    return {key: given for key, _, given in pairs}


def meanings(version: tuple[int, ...], options: dict[str, str], text: str) -> dict[str, Any]:
    """What was switched on: the log's own line, else the command line, else the version's default."""
    new, found = version >= (11,), {}
    for name, (line, on, off, before, since) in SWITCHES.items():
        stated = value(text, line)
        taken = [o for o in (on, off) if o[2:] in options and not (new and o in NO_EFFECT)]
        found[name] = stated == "Enabled" if stated else taken[-1] == on if taken else since if new else before
    return {
        "defaults": "TensorRT 11 and newer" if new else "before TensorRT 11",
        **found,
        "latency": "h2d + compute + d2h" if found["transfers"] else "compute alone: nothing is copied",
        "streams": int(value(text, "Inference Streams") or value(text, "Streams") or options.get("infStreams") or 1),
    }


def summarised(text: str, line: str) -> dict[str, Any] | None:
    """One line of the performance summary, as trtexec computed it; None without it."""
    found = SUMMARY.match(value(text, line))
    if not found:
        return None
    low, high, mean, middle = map(float, found.groups()[:4])
    row: dict[str, Any] = {"n": None, "min_ms": low, "mean_ms": mean, "max_ms": high, "std_ms": None, "p50_ms": middle}
    row |= {percentile_key(p): None for p in FLOORS if p != 50}
    return row | {percentile_key(float(p)): float(ms) for p, ms in PERCENTILE.findall(found.group(5))}


def exported(times: str | Path, text: str) -> dict[str, list[float]]:
    """Every query's times [ms] by segment, without the warm-up that older versions export too.

    Raises:
        BadInput: it is no file of --exportTimes, or of another run.
    """
    try:
        queries = json_text.loads(read_text("times", times))
        columns = {name: [float(query[key]) for query in queries] for name, key in SEGMENTS.values()}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"times={times} is no file of trtexec's --exportTimes: give that of the same run") from error
    warm, timed = (re.search(pattern, text) for pattern in (r"Warmup completed (\d+) ", r"Timing trace has (\d+) "))
    extra = len(queries) - int(timed.group(1)) if timed else 0
    if extra not in {0, int(warm.group(1)) if warm else 0} or len(queries) <= extra:
        raise BadInput(f"times={times} holds {len(queries)} queries, which the log does not know: give both of one run")
    return {name: column[extra:] for name, column in columns.items()}


def disagreement(samples: dict[str, list[float]], summary: dict[str, dict[str, Any] | None], times: str) -> None:
    """Hold the samples' own figures, computed as trtexec does, against the log's.

    Raises:
        BadInput: they differ: the files are of two runs.
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
                    f"times={times} gives {name} {key} {ours:.6g}, the log {theirs:.6g}: give both of one run"
                )


def warnings(figures: dict[str, Any]) -> list[str]:
    """Trtexec's own four warnings, computed anew, and where the samples are missing."""
    segments, found = figures["segments"], []
    compute, enqueue = segments["compute"], figures["enqueue"]
    if enqueue and enqueue["p50_ms"] > ENQUEUE_SHARE * compute["p50_ms"]:
        found.append("queuing takes more than 0.8 of the compute time: the GPU may wait for the processor")
    for name, way in (("h2d", "to the device"), ("d2h", "from the device")):
        if name in segments and segments[name]["p50_ms"] >= compute["p50_ms"]:
            found.append(f"copying {way} takes as long as the compute time")
    if compute["std_ms"] and compute["std_ms"] / compute["mean_ms"] > UNSTABLE_COV:
        share = compute["std_ms"] / compute["mean_ms"]
        found.append(f"the compute time varies by {share:.1%}, more than 2.5 %: the clocks were not locked")
    if figures["streams"] > 1:
        found.append(f"{figures['streams']} streams ran at once: only the throughput has a meaning")
    if figures["samples_ms"] is None:
        found.append("percentiles are the log's, without a floor and a test of drift: trtexec --exportTimes gives all")
    return found


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for people."""
    meaning = figures["meaning"]
    columns = ["n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"]
    lines = [f"{'':12}" + "".join(f"{c.removesuffix('_ms'):>9}" for c in columns) + "  [ms]"]
    for name, row in figures["segments"].items():
        cells = ("-" if row[c] is None else str(row[c]) if c == "n" else f"{row[c]:.3f}" for c in columns)
        lines.append(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    switches = ", ".join(f"{name.replace('_', ' ')} {'on' if meaning[name] else 'off'}" for name in SWITCHES)
    stable = "not known" if figures["drift"] is None else "yes" if figures["drift"]["stable"] else "NO"
    lines += [
        f"run       {figures['file']} on {figures['machine']['processor']}, TensorRT {figures['versions']['tensorrt']}",
        f"meaning   latency = {meaning['latency']}; {switches}",
        f"stable    {stable}{': ' + figures['drift']['reason'] if stable == 'NO' else ''}",
        *(f"warning   {warning}" for warning in figures["device"]["warnings"]),
        f"note      {NOTE}",
    ]
    return "\n".join(lines)
