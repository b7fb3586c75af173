"""Latency of the exported students: all methods give the same graph, so one trial of each student is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.time import time
from yolo_mkd.evidence.compare.schema import Latency, TrialResult
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import Failed

TIMED_S = 5.0  # per student


def measure_latency(trials: Sequence[Trial], results: Mapping[str, TrialResult]) -> list[Latency]:
    """Export, check and time the first trained trial of each data set and student, on this machine's CPU.

    Args:
        trials: all of them; none runs any more.
        results: by the trial's name.

    Returns:
        The latency of each student on each data set, or why the export failed.
    """
    found: dict[tuple[str, str], Latency] = {}
    for trial in trials:
        key, result = (trial.data, trial.student), results[trial.name]
        if result["status"] == "done" and key not in found:
            LOGGER.info(f"\nM-KD: {trial.student} on {trial.data}: export and latency")
            found[key] = time_trial(trial, Path(result["weights"]))
    return list(found.values())


def time_trial(trial: Trial, weights: Path) -> Latency:
    """Export, check and time the student of one trial.

    Args:
        trial: that trained it.
        weights: its best.pt.
    """
    data = trial.val["data"]
    try:
        file = export(weights, imgsz=trial.val["imgsz"], data=data)
    except Failed as e:
        return {"data": trial.data, "student": trial.student, "why_not": str(e)}
    timed = time(file, data=data, duration=TIMED_S, threads=1)
    end_to_end = timed["segments"]["end_to_end"]
    return {
        "data": trial.data,
        "student": trial.student,
        "p50_ms": end_to_end["p50_ms"],
        "p90_ms": end_to_end["p90_ms"],
        "head": timed["head"],
        "threads": 1,
        "stable": timed["drift"]["stable"],
    }
