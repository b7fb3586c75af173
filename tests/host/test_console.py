"""Progress bars: redrawn in a terminal, one line elsewhere, and none for the epochs of a chain."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
from ultralytics.engine import trainer
from ultralytics.utils import LOGGER, TQDM

from yolo_mkd.host import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bar(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, make: Any = TQDM) -> str:
    """What a bar of three steps writes."""
    monkeypatch.setattr(sys, "stdout", out)
    for _ in make(range(3), desc="images", mininterval=0):
        pass
    return out.getvalue()


def test_a_bar_is_one_line_without_carriage_returns_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    text = bar(monkeypatch, io.StringIO())
    assert "\r" not in text
    assert text.count("\n") == 1
    assert "100%" in text
    assert bar(monkeypatch, Terminal()).count("\r") >= 3


def test_a_notebook_redraws_its_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert bar(monkeypatch, io.StringIO()).count("\r") >= 3


def test_epochs_have_neither_bar_nor_heading_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    seen: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler = Collect()
    LOGGER.addHandler(handler)
    monkeypatch.setattr(LOGGER, "level", logging.INFO)
    heading = "\n      Epoch    GPU_mem   box_loss"
    out = io.StringIO()
    try:
        with console.without_epoch_bars():
            assert bar(monkeypatch, out, trainer.TQDM) == ""
            LOGGER.info(heading)
            LOGGER.info("Epoch 3 was the best")
        LOGGER.info(heading)
    finally:
        LOGGER.removeHandler(handler)
    assert seen == ["Epoch 3 was the best", heading]
    assert trainer.TQDM is TQDM


def test_a_terminal_keeps_the_bars_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with console.without_epoch_bars():
        assert trainer.TQDM is TQDM
