"""How fast each student is once exported: one graph for all its methods, so one file of each is verified and timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.time import time
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import Failed

TIMED_S = 5.0  # per student


def measure(cells: Sequence[Trial], results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Export, verify and time the first trained cell of each data set and student, on this machine's CPU.

    Args:
        cells: all of them; none runs any more.
        results: what became of each.

    Returns:
        data, student, p50_ms, p90_ms, head, threads and stable of each; `why_not` where the export failed.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        place = {"data": cell.data, "student": cell.student}
        if results[cell.name]["status"] != "done" or (cell.data, cell.student) in found:
            continue
        LOGGER.info(f"\nM-KD: {cell.student} on {cell.data}: export and latency")
        try:
            file = export(Path(results[cell.name]["weights"]), imgsz=cell.val["imgsz"], data=cell.val["data"])
        except Failed as e:
            found[cell.data, cell.student] = {**place, "why_not": str(e)}
            continue
        timed = time(file, data=cell.val["data"], duration=TIMED_S, threads=1)
        figures = {name: timed["segments"]["end_to_end"][name] for name in ("p50_ms", "p90_ms")}
        told = {"head": timed["head"], "threads": 1, "stable": timed["drift"]["stable"]}
        found[cell.data, cell.student] = {**place, **figures, **told}
    return list(found.values())
