"""A comparison on a Ray cluster of two nodes, one of which is killed while both train."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from yolo_mkd.evidence.compare import compare

pytestmark = pytest.mark.slow
WAIT_S = 300  # for an epoch of a trial on the node that is killed


def figures(folder: Path) -> dict[str, Any]:
    """The scores of both checkpoints of each trial, the order of its images, and its weights."""
    found = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("compare/*/*/*/result.json")}
    scores = {name: [result.get(key) for key in ("best", "last", "batches")] for name, result in found.items()}
    return {name: (scores[name], weights(Path(result["weights"]))) for name, result in found.items()}


def weights(best: Path) -> list[list[float]]:
    model = torch.load(best.with_name("last.pt"), weights_only=False)["model"]
    return [value.flatten().tolist() for value in model.state_dict().values()]


def trials_below(process: int) -> list[Path]:
    """The folders of the trials that run below a process."""
    below = psutil.Process(process).children(recursive=True)
    return [Path(words[-1]) for words in (p.cmdline() for p in below) if "yolo_mkd.evidence.compare.worker" in words]


def test_a_comparison_ends_with_the_same_figures_when_a_node_is_killed(
    tiny_detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    arguments = {
        "data": str(tiny_detector.data), "model": str(tiny_detector.student), "teacher": str(tiny_detector.pt),
        "assistant": "none", "imgsz": 32, "epochs": 6, "batch": 8, "fraction": 0.25, "device": "cpu", "seeds": 1,
        "methods": "plain,mkd-guidance",
    }  # fmt: skip
    compare(**arguments, project=str(tmp_path / "alone"))

    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other programs may fill this machine's memory
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    folder, killed = tmp_path / "cluster", threading.Event()

    def kill() -> None:
        """Kill a node once its trial has an epoch that it can continue from."""
        raylet, began = second.all_processes["raylet"][0].process.pid, time.monotonic()
        while time.monotonic() - began < WAIT_S:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that ends while it is listed
                if any(list(trial.rglob("kept.json")) for trial in trials_below(raylet)):
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
