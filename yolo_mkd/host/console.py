"""Ultralytics' progress bars where the output is not a terminal: one line each, and lines of ours for epochs.

Ultralytics redraws its bars with carriage returns wherever it is not on GitHub Actions, also in files and pipes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial

from ultralytics.engine import trainer
from ultralytics.utils import LOGGER, TQDM, tqdm

HEADING = ["Epoch", "GPU_mem"]  # how the heading of an epoch's bar begins
on_github = tqdm.is_noninteractive_console


def is_redrawn() -> bool:
    """Whether the output shows a line that is written over: a terminal or a notebook."""
    return sys.stdout.isatty() or "JPY_PARENT_PID" in os.environ


def bars_in_one_line() -> None:
    """Let Ultralytics write a progress bar once, at its end, where the output is not a terminal."""
    tqdm.is_noninteractive_console = lambda: on_github() or not is_redrawn()


@contextlib.contextmanager
def without_epoch_bars() -> Iterator[None]:
    """Leave out the bars of epochs and their headings where the output is not a terminal."""
    if is_redrawn():
        yield
        return
    before = trainer.TQDM
    trainer.TQDM = partial(TQDM, disable=True)
    LOGGER.addFilter(is_no_heading)
    try:
        yield
    finally:
        trainer.TQDM = before
        LOGGER.removeFilter(is_no_heading)


def is_no_heading(record: logging.LogRecord) -> bool:
    """Whether a line of the log is anything but the heading of an epoch's bar."""
    return record.getMessage().split()[:2] != HEADING
