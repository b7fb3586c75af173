"""A comparison on a Ray cluster of two nodes, one of which is killed while both train."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd.evidence.compare import compare

pytestmark = pytest.mark.slow
WAIT_S = 300  # for both trials' first epoch


def figures(folder: Path) -> dict[str, Any]:
    """The scores of both checkpoints of each trial, and the order of its images."""
    found = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("compare/*/*/*/result.json")}
    return {name: [result.get(key) for key in ("best", "last", "batches")] for name, result in found.items()}


def test_a_comparison_ends_with_the_same_figures_when_a_node_is_killed(tiny_detector: Any, tmp_path: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    arguments = {
        "data": str(tiny_detector.data), "model": str(tiny_detector.student), "teacher": str(tiny_detector.pt),
        "assistant": "none", "imgsz": 32, "epochs": 6, "batch": 8, "fraction": 0.25, "device": "cpu", "seeds": 1,
        "methods": "plain,mkd-guidance",
    }  # fmt: skip
    compare(**arguments, project=str(tmp_path / "alone"))

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    folder, killed = tmp_path / "cluster", threading.Event()

    def kill() -> None:
        """Kill a node once both trials have an epoch that they can continue from."""
        began = time.monotonic()
        while time.monotonic() - began < WAIT_S:
            trials = {p.relative_to(folder).parts[3] for p in folder.glob("compare/*/*/*/**/kept-*/kept.json")}
            if len(trials) == 2:
                cluster.remove_node(second, allow_graceful=False)
                return killed.set()
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        compare(**arguments, project=str(folder), ray=cluster.address)
        killer.join()
    finally:
        cluster.shutdown()
    assert killed.is_set()
    assert figures(folder) == figures(tmp_path / "alone")
    assert len(figures(folder)) == 2
    logs = [p.read_text(errors="replace") for p in folder.rglob("log.txt")]
    assert sum("continues exactly where epoch" in log for log in logs) == 1
