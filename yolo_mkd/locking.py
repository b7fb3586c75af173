"""One process at a time in a run's folder."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from yolo_mkd.settings import BadInput

LOCK = ".lock"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the operating system releases it when the process ends, however it ends.

    Args:
        folder: the run's, which must exist.

    Raises:
        BadInput: another process holds it; the message has its host and process number.
    """
    lock = filelock.FileLock(folder / LOCK)
    owner = folder / f"{LOCK}.json"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BadInput(f"{folder} is in use by {owner_of(owner)}: wait for it to end, or stop it first") from error
    except OSError as error:
        raise BadInput(f"{folder} cannot be locked ({error.strerror}): give a folder that can be written") from error
    try:
        owner.write_text(json.dumps({"host": platform.node(), "pid": os.getpid()}), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def owner_of(file: Path) -> str:
    """Who holds a lock, from the file beside it: `process 42 on host`; `another process` where it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
