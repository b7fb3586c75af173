"""The lines of a chain's progress: stage, epoch, losses, accuracy and time left."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from yolo_mkd import host
from yolo_mkd.chain import progress_of
from yolo_mkd.chain.progress import EpochLines, duration_text


def lines_of(monkeypatch: pytest.MonkeyPatch, terminal: bool, epochs: int, later: list[int]) -> list[str]:
    """The lines of a stage whose epochs take 30 s each; Ultralytics repeats the last event."""
    lines: list[str] = []
    monkeypatch.setattr(host, "is_redrawn", lambda: terminal)
    monkeypatch.setattr(logging.Logger, "info", lambda self, text: lines.append(text))
    follower = EpochLines("assistant, stage 1 of 2", later)
    for epoch in range(epochs + 1):
        tloss = {"box_loss": 1.23456, "cls_loss": 2.0, "kd/soft": 9.0}
        trainer: Any = SimpleNamespace(
            epoch=epoch, epochs=epochs, epoch_time=30.0, tloss=tloss, metrics={"metrics/mAP50-95(B)": 0.1 * epoch}
        )
        if epoch < epochs:
            follower.on_train_epoch_end(trainer)
        follower.on_fit_epoch_end(trainer)
    return lines


def test_each_epoch_has_a_line_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch, False, 12, [20])
    assert len(lines) == 12
    # 10 epochs of 30 s are left, and 20 of the stage after it
    assert lines[1] == (
        "M-KD: assistant, stage 1 of 2: epoch 2 of 12: box 1.23, cls 2, mAP50-95 0.100; about 5 min left, 15 min with "
        "the stages after it, if their epochs take as long"
    )
    assert lines[-1].endswith("mAP50-95 1.100; 10 min with the stages after it, if their epochs take as long")


def test_the_last_stage_ends_without_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch, False, 2, [])
    assert lines[0].endswith("; about 30 s left")
    assert lines[1].endswith("mAP50-95 0.100")


def test_a_terminal_has_ten_lines_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.split(" epoch ")[1].split()[0] for line in lines_of(monkeypatch, True, 100, [])] == [
        str(n) for n in range(10, 101, 10)
    ]
    assert len(lines_of(monkeypatch, True, 3, [])) == 3


def test_a_run_without_validation_has_its_losses_alone() -> None:
    follower = EpochLines("student, stage 1 of 1")
    follower.seconds = [10.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert follower.time_left(3) == "; about 6 s left"  # of the last five
    follower.on_train_epoch_end(None)
    follower.on_fit_epoch_end(SimpleNamespace(epoch=0, epochs=1, epoch_time=1.0, tloss=None, metrics=None))
    assert not follower.trained


def test_a_stage_has_its_place_in_the_chain() -> None:
    chain: Any = {"stages": [{"name": n} for n in ("teacher", "assistant", "student")], "arguments": {"epochs": 7}}
    assert progress_of(chain, chain["stages"][1]) == ("assistant, stage 2 of 3", [7])
    chain["arguments"] = {}
    assert progress_of(chain, chain["stages"][0]) == ("teacher, stage 1 of 3", [100, 100])


@pytest.mark.parametrize(("seconds", "text"), [(89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")])
def test_a_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
