"""Two ranks on this machine's CPU train to the end: with all terms, and cached, unlabelled, killed and resumed."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_mkd.host import CheckpointKeeper

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "ranks" / "train_on_ranks.py"
EPOCHS = 3
ARGUMENTS: dict[str, Any] = {
    "imgsz": 64, "epochs": EPOCHS, "batch": 8, "nbs": 16, "fraction": 0.25, "optimizer": "AdamW", "lr0": 0.002,
    "close_mosaic": 1, "warmup_epochs": 0.5, "plots": False, "device": "cpu", "exist_ok": True, "verbose": False,
}  # fmt: skip
RANKS = range(2)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Ranks:
    """Starts trainings of two ranks from the tiny detector."""

    def __init__(self, detector: Any, root: Path):
        self.detector, self.root = detector, root

    def asked(self, folder: Path, using: dict[str, Any], kill: int | None, **train: Any) -> str:
        place = {"data": str(self.detector.data), "project": str(folder.parent), "name": folder.name}
        found = {"using": {"teacher": str(self.detector.pt), **using}, "folder": str(folder), "kill": kill}
        student = train.pop("student", str(self.detector.student))
        return json.dumps({**found, "student": student, "train": {**ARGUMENTS, **place, **train}})

    def train(self, folder: Path, using: dict[str, Any], kill: int | None = None, **train: Any) -> list[int]:
        """Train with two processes; their exit codes."""
        port, words = str(free_port()), [sys.executable, str(SCRIPT), self.asked(folder, using, kill, **train)]
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(words, env={**os.environ, **meeting, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in RANKS
        ]
        return [process.wait() for process in started]

    def torchrun(self, folder: Path, using: dict[str, Any]) -> int:
        """Train as the documentation says; the exit code."""
        launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
        command = [sys.executable, "-m", *launcher, str(SCRIPT), self.asked(folder, using, None)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


@pytest.fixture(scope="module")
def ranks(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(tiny_detector, tmp_path_factory.mktemp("ranks"))


def disagreeing(folder: Path) -> list[str]:
    """What the ranks of a run disagree on, by epoch."""
    found = []
    for epoch in range(EPOCHS):
        one, other = (torch.load(folder / f"rank{r}-epoch{epoch}.pt", weights_only=False) for r in RANKS)
        for name in one:
            try:
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
            except AssertionError as error:
                found.append(f"epoch {epoch}: {name}: {error}")
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(file, weights_only=False)["model"].state_dict())


def test_torchrun_trains_two_ranks_that_agree_on_weights_gains_classes_and_gates(ranks: Ranks) -> None:
    folder = ranks.root / "torchrun"
    terms = {"object_guidance": 0.5, "object_relation": 0.2, "class_attention": 0.2, "exploration": 0.05}
    assert ranks.torchrun(folder, {"until": 1, "gate": True, "guidance": 0.5, "soft_pw": 0.5, **terms}) == 0
    assert disagreeing(folder) == []
    assert len(rows(folder)) == EPOCHS
    assert json.loads((folder / "gains.json").read_text())["teachers"]
    assert CheckpointKeeper(folder).finished()


def test_two_ranks_with_a_cache_and_unlabelled_images_are_killed_and_end_with_the_same_weights(ranks: Ranks) -> None:
    pool = {"unlabelled": str(ranks.detector.data.parent / "images" / "train")}
    using = {"preset": "recorded", "views": 2, **pool}
    whole, ended = ranks.root / "whole", ranks.root / "ended"
    assert ranks.train(whole, {**using, "record": str(ranks.root / "caches")}) == [0, 0]
    again = {**using, "record": str(ranks.root / "other caches")}
    assert ranks.train(ended, again, kill=1) == [-9, -9]
    keeper = CheckpointKeeper(ended)
    assert not keeper.finished() and keeper.restore()
    last = str(ended / "weights" / "last.pt")
    assert ranks.train(ended, again, student=last, resume=True, save_dir=str(ended)) == [0, 0]
    assert disagreeing(ended) == disagreeing(whole) == []
    assert rows(ended) == rows(whole)
    for name in ("last.pt", "best.pt"):
        torch.testing.assert_close(weights(ended / "weights" / name), weights(whole / "weights" / name), rtol=0, atol=0)
