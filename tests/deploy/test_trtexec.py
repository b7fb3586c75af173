"""trtexec's log and times are converted to a time report that states what its latency includes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from yolo_mkd.deploy.time.trtexec import ingest
from yolo_mkd.settings import BadInput

STAMP = "[11/21/2026-10:00:00] [I] "
OLD, NEW = "v8502", "v110100"


def as_trtexec(column: np.ndarray, percents: tuple[int, ...]) -> str:
    """A line of the summary: its own nearest rank, and the mean of the two middle ones as median."""
    ordered = np.sort(column)
    ranks = {p: ordered[max(len(ordered) - 1 - int((100 - p) * len(ordered)) // 100, 0)] for p in percents}
    parts = [f"min = {ordered[0]:.6g} ms", f"max = {ordered[-1]:.6g} ms", f"mean = {ordered.mean():.6g} ms"]
    parts += [f"median = {np.median(ordered):.6g} ms", *(f"percentile({p}%) = {v:.6g} ms" for p, v in ranks.items())]
    return ", ".join(parts)


def run(
    folder: Path, version: str = OLD, command: str = "--onnx=models/best.onnx --fp16", options: str = "", n: int = 700,
    warm: int = 0, compute: float = 3.0, spread: float = 0.02, h2d: float = 0.3, d2h: float = 0.05,
    enqueue: float = 0.4, percents: tuple[int, ...] = (90, 95, 99), drifts: bool = False,
) -> tuple[Path, Path]:  # fmt: skip
    """A log and its times, as trtexec of that version writes them; older ones export the warm-up too."""
    rng = np.random.default_rng(0)
    columns = {
        "h2dMs": np.full(n + warm, h2d),
        "computeMs": compute + rng.uniform(-spread, spread, n + warm),
        "d2hMs": np.full(n + warm, d2h),
    }
    columns["computeMs"][:warm] = 50.0
    if drifts:
        columns["computeMs"][-n // 2 :] *= 1.5
    columns["latencyMs"] = columns["h2dMs"] + columns["computeMs"] + columns["d2hMs"]
    queries = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    timed = {key: column[warm:] for key, column in columns.items()}
    summary = {
        "Throughput": f"{1e3 / compute:.6g} qps",
        "Latency": as_trtexec(timed["latencyMs"], percents),
        **({"End-to-End Host Latency": as_trtexec(timed["latencyMs"] * 2, percents)} if version == OLD else {}),
        "Enqueue Time": as_trtexec(np.full(n, enqueue), percents),
        "H2D Latency": as_trtexec(timed["h2dMs"], percents),
        "GPU Compute Time": as_trtexec(timed["computeMs"], percents),
        "D2H Latency": as_trtexec(timed["d2hMs"], percents),
        "Total Host Walltime": "3.005 s",
    }
    lines = ["=== Model Options ===", "Model: models/best.onnx", "Precision: FP32+FP16", *options.splitlines()]
    lines += ["Selected Device: Orin", f"Warmup completed {warm or 60} queries over 200 ms"]
    lines += [f"Timing trace has {n} queries over 3.005 s", "", "=== Performance summary ==="]
    lines += [f"{label}: {text}" for label, text in summary.items()]
    head = f"&&&& RUNNING TensorRT.trtexec [TensorRT {version}] # trtexec {command}\n"
    log, times = folder / "trtexec.txt", folder / "times.json"
    log.write_text(head + "".join(f"{STAMP}{line}\n" for line in lines))
    times.write_text(json.dumps(queries))
    return log, times


def test_report_has_the_schema_of_time_and_states_that_it_is_copied(tmp_path, capsys):
    figures = ingest(*run(tmp_path))
    written = json.loads((tmp_path / "trtexec.time.json").read_text())
    assert written["schema"] == "yolo-mkd/time/1" and written["tool"] == "trtexec"
    assert written["machine"]["processor"] == "Orin" and written["versions"] == {"tensorrt": "8.5.2"}
    assert (written["file"], written["precision"], written["streams"]) == ("best.onnx", "FP32+FP16", 1)
    assert list(written["segments"]) == ["h2d", "compute", "d2h", "latency"]
    assert len(written["samples_ms"]["compute"]) == 700 and written["samples_ms"] == figures["samples_ms"]
    assert written["throughput_qps"] == pytest.approx(333.333)
    assert "copied from trtexec's log" in written["note"] and "not measured" in capsys.readouterr().out


def test_percentiles_are_computed_from_every_sample_above_their_floors(tmp_path):
    row = ingest(*run(tmp_path))["segments"]["compute"]
    samples = sorted(json.loads((tmp_path / "trtexec.time.json").read_text())["samples_ms"]["compute"])
    assert row["p99_ms"] == samples[692] and row["p50_ms"] == samples[349] and row["p99_9_ms"] is None
    few = ingest(*run(tmp_path, n=100))["segments"]["compute"]
    assert few["p90_ms"] is not None and few["p95_ms"] is None and few["n"] == 100


def test_warm_up_that_older_versions_export_is_left_out(tmp_path):
    figures = ingest(*run(tmp_path, warm=40))
    assert figures["segments"]["compute"]["n"] == 700 and figures["segments"]["compute"]["max_ms"] < 4


@pytest.mark.parametrize(
    ("version", "command", "options", "transfers", "graph", "spin"),
    [
        (OLD, "--onnx=a.onnx", "", True, False, False),
        ("v100300", "--onnx=a.onnx", "", True, False, False),
        (NEW, "--onnx=a.onnx", "", False, True, True),
        (OLD, "--onnx=a.onnx --noDataTransfers --useCudaGraph --useSpinWait", "", False, True, True),
        (NEW, "--onnx=a.onnx --includeDataTransfers --noCudaGraph --noSpinWait", "", True, False, False),
        (NEW, "--onnx=a.onnx --includeDataTransfers --noDataTransfers", "", True, True, True),  # a no-op since 11
        (OLD, "--onnx=a.onnx", "Data transfers: Disabled\nSpin-wait: Enabled\nCUDA Graph: Enabled", False, True, True),
    ],
)
def test_meaning_follows_the_version_the_options_and_the_log(
    tmp_path, version, command, options, transfers, graph, spin
):
    meaning = ingest(*run(tmp_path, version, command, options, h2d=0.3 if transfers else 0.0))["meaning"]
    assert (meaning["transfers"], meaning["cuda_graph"], meaning["spin_wait"]) == (transfers, graph, spin)
    assert meaning["latency"].startswith("h2d + compute + d2h" if transfers else "compute alone")
    assert meaning["defaults"] == ("TensorRT 11 and newer" if version == NEW else "before TensorRT 11")


@pytest.mark.parametrize(
    ("code", "written"), [("v8502", "8.5.2"), ("v8601", "8.6.1"), ("v100300", "10.3.0"), ("v110401", "11.4.1")]
)
def test_version_is_decoded(tmp_path, code, written):
    assert ingest(*run(tmp_path, code))["versions"]["tensorrt"] == written


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"enqueue": 2.5}, "the enqueue time is more than 0.8"),
        ({"h2d": 3.1}, "copying to the device takes as long"),
        ({"d2h": 3.1}, "copying from the device takes as long"),
        ({"spread": 0.3}, "varies by 5.7%, more than 2.5 %"),
        ({"options": "Inference Streams: 4"}, "4 streams ran at once"),
    ],
)
def test_each_of_trtexecs_warnings_is_reported(tmp_path, changes, warning):
    (found,) = ingest(*run(tmp_path, **changes))["device"]["warnings"]
    assert warning in found


def test_steady_run_has_no_warning(tmp_path):
    figures = ingest(*run(tmp_path))
    assert figures["device"]["warnings"] == [] and figures["drift"]["stable"]
    assert not ingest(*run(tmp_path, drifts=True))["drift"]["stable"]


def test_log_alone_gives_its_own_percentiles_with_a_warning(tmp_path):
    log, _ = run(tmp_path, percents=(99,))
    figures = ingest(log, json=tmp_path / "own.json")
    row = figures["segments"]["latency"]
    assert row["n"] is None and row["p99_ms"] > row["p50_ms"] and row["p90_ms"] is None
    assert figures["samples_ms"] is None and figures["drift"] is None
    assert "percentiles are the log's" in figures["device"]["warnings"][-1]
    assert (tmp_path / "own.json").exists() and not (tmp_path / "trtexec.time.json").exists()


def test_times_of_another_run_are_an_error(tmp_path):
    (tmp_path / "other").mkdir()
    log, _ = run(tmp_path)
    _, shorter = run(tmp_path / "other", n=650)
    with pytest.raises(BadInput, match="has 650 queries, but the log another number"):
        ingest(log, shorter)
    _, slower = run(tmp_path / "other", compute=3.1)
    with pytest.raises(BadInput, match=r"gives compute min_ms 3\.08\d+, but the log 2\.98\d+: give both"):
        ingest(log, slower)
    assert not (tmp_path / "trtexec.time.json").exists()


@pytest.mark.parametrize(
    ("log", "times", "message"),
    [
        ("nothing", None, "has no performance summary"),
        ("=== Performance summary ===", None, "has no TensorRT version"),
        ("[TensorRT v8502]\n=== Performance summary ===", None, "performance summary is truncated"),
        (None, "[]", "has 0 queries"),
        (None, "[{}]", "is not a file of trtexec's --exportTimes"),
        (None, "{", "is not a file of trtexec's --exportTimes"),
    ],
)
def test_file_without_a_complete_run_is_a_one_line_error(tmp_path, log, times, message):
    written, exported = run(tmp_path)
    if log is not None:
        written.write_text(log)
    if times is not None:
        exported.write_text(times)
    with pytest.raises(BadInput, match=message):
        ingest(written, None if times is None else exported)


def test_missing_log_is_an_error(tmp_path):
    with pytest.raises(BadInput, match=r"log=.*gone\.txt cannot be read"):
        ingest(tmp_path / "gone.txt")
