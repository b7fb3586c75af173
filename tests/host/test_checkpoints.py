"""Checkpoints that survive a kill: what is kept, what is verified, and what is fallen back to."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_mkd import report
from yolo_mkd.host.checkpoints import RECORD, CheckpointKeeper, unfinished_epoch


@pytest.fixture(scope="session")
def checkpoint_of(tiny_detector: Any) -> Any:
    """Writes a checkpoint as Ultralytics does while it trains: of an epoch, of a run of six."""
    whole = torch.load(tiny_detector.pt, weights_only=False)

    def write(file: Path, epoch: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {"epoch": epoch, "ema": whole["model"], "model": None, "optimizer": {"state": {}, "param_groups": []}}
        torch.save({**whole, **state, "train_args": {**whole["train_args"], "epochs": 6}}, file)

    return write


class Run:
    """A run's folder as it grows: an epoch's checkpoints, then the callback."""

    def __init__(self, folder: Path, write: Any):
        self.folder, self.write = folder, write
        self.keeper = CheckpointKeeper(folder)

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def epoch(self, epoch: int, stop: bool = False, called: bool = True) -> None:
        for name in ("last.pt", "best.pt"):
            self.write(self.weights / name, epoch)
        torch.save({"epoch": epoch, "parts": {}}, self.weights / "mkd.pt")
        for name in ("results.csv", "shares.csv"):
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(("epoch,loss\n" if epoch == 0 else "") + f"{epoch + 1},0.5\n")
        if called:
            self.keeper.on_model_save(SimpleNamespace(epoch=epoch, stop=stop))

    def cut(self, name: str) -> None:
        content = (self.weights / name).read_bytes()
        (self.weights / name).write_bytes(content[: len(content) // 2])

    def epochs_in(self, name: str) -> list[str]:
        with open(self.folder / name, encoding="utf-8") as file:
            return [row["epoch"] for row in csv.DictReader(file)]


@pytest.fixture
def run(tmp_path: Path, checkpoint_of: Any) -> Run:
    found = Run(tmp_path / "student", checkpoint_of)
    for epoch in range(3):
        found.epoch(epoch)
    return found


def test_whole_files_are_resumed_as_they_are(run: Run) -> None:
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "mkd.pt"])
def test_a_file_that_is_cut_off_falls_back_to_the_copy_of_its_whole_generation(run: Run, name: str) -> None:
    run.epoch(3, called=False)  # killed before the copy
    run.cut(name)
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2
    assert torch.load(run.weights / "mkd.pt")["epoch"] == 2
    assert run.epochs_in("results.csv") == run.epochs_in("shares.csv") == ["1", "2", "3"]


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_last_checkpoint_is_never_a_finished_run(run: Run, content: bytes | None) -> None:
    (run.weights / "last.pt").unlink()
    if content is not None:
        (run.weights / "last.pt").write_bytes(content)
    assert not run.keeper.finished()
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2


def test_a_state_of_another_epoch_than_the_checkpoint_is_not_used_with_it(run: Run) -> None:
    run.write(run.weights / "last.pt", 3)  # killed between last.pt and mkd.pt
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2


def test_a_damaged_copy_is_not_restored(run: Run) -> None:
    (kept,) = run.weights.glob("kept-*")
    (kept / "best.pt").write_bytes(b"x")
    run.cut("last.pt")
    assert not run.keeper.restore()


def test_the_last_epoch_is_repeated_where_its_end_was_cut_off(run: Run) -> None:
    run.epoch(3, stop=True)  # early stopping; killed before the final validation
    run.cut("last.pt")
    assert not run.keeper.finished()
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2


def test_early_stopping_that_was_cut_off_repeats_its_epoch_though_the_checkpoint_is_whole(run: Run) -> None:
    run.epoch(3, stop=True)  # of six: resumed as it is, training would go on for one epoch more
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2


def test_a_last_checkpoint_of_the_last_epoch_cannot_be_resumed_and_is_not(run: Run) -> None:
    for epoch in (3, 4):
        run.epoch(epoch)
    run.epoch(5, called=False)
    assert unfinished_epoch(run.weights / "last.pt") is None  # Ultralytics: nothing to resume
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 4


def test_only_a_record_of_the_end_makes_a_run_finished(run: Run) -> None:
    run.keeper.on_train_end(SimpleNamespace(epoch=5))
    assert run.keeper.finished()
    assert not list(run.weights.glob("kept-*"))
    (run.weights / "best.pt").write_bytes(b"other")
    assert not run.keeper.finished()  # its checkpoint is not the one that was recorded


@pytest.mark.parametrize("text", ["", "{", "[]", '{"finished": true}'])
def test_a_damaged_record_says_nothing(run: Run, text: str) -> None:
    (run.folder / RECORD).write_text(text)
    assert run.keeper.record() is None
    assert not run.keeper.finished()
    assert run.keeper.restore()


def test_one_generation_is_kept(run: Run) -> None:
    (kept,) = run.weights.glob("kept-*")
    manifest = json.loads((kept / "kept.json").read_text())
    assert kept.name == "kept-2" and manifest["epoch"] == 2
    assert manifest["files"]["last.pt"] == report.sha256(run.weights / "last.pt")


def test_a_full_disk_leaves_the_older_generation_and_warns_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("yolo_mkd.host.checkpoints.LOGGER.warning", warned.append)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    run.epoch(3)
    run.epoch(4)
    assert len(warned) == 1 and "No space left" in warned[0]
    monkeypatch.undo()
    run.cut("last.pt")
    assert run.keeper.restore()
    assert unfinished_epoch(run.weights / "last.pt") == 2
