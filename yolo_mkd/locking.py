"""One process at a time in a run's folder, and folders for temporary files that outlive a kill until the next run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from yolo_mkd.settings import BadInput

LOCK = ".lock"
STALE_S = 3600  # age from which a folder without a lock file counts as left over


@contextlib.contextmanager
def exclusive(folder: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold a folder's lock; the operating system releases it when the process ends, however it ends.

    Args:
        folder: the run's, which must exist.
        wait_s: how long to wait for a process that holds it [s].

    Raises:
        BadInput: another process still holds it; the message has its host and process number.
    """
    lock = filelock.FileLock(folder / LOCK)
    owner = folder / f"{LOCK}.json"
    try:
        lock.acquire(timeout=wait_s)
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


@contextlib.contextmanager
def workspace(folder: Path, rescue: Callable[[Path], None]) -> Iterator[Path]:
    """Make a folder for the files of a command that is running, and remove it at the end.

    First the folders that killed runs of the command left beside it are removed.

    Args:
        folder: to be made, `.COMMAND-NAME`; a second process that wants the same one is refused.
        rescue: finishes or undoes what a killed run had begun; called with a folder before that is removed.

    Raises:
        BadInput: another process is using the folder, or it cannot be made.
    """
    command = folder.name.split("-")[0]
    for other in folder.parent.glob(f"{command}-*"):
        if other != folder:
            remove_leftover(other, rescue)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made ({error.strerror}): give a folder that can be written") from error
    with exclusive(folder):
        rescue(folder)
        clear(folder)
        try:
            yield folder
        finally:
            rescue(folder)
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftover(folder: Path, rescue: Callable[[Path], None]) -> None:
    """Remove a folder of `workspace` whose run was killed; one that is in use stays, or cannot be removed.

    Args:
        folder: another run's.
        rescue: as in `workspace`.
    """
    with contextlib.suppress(BadInput, OSError):
        ours = (folder / LOCK).exists()  # else another version's, which did not lock it, or not locked yet
        if not ours and time.time() - folder.stat().st_mtime < STALE_S:
            return
        with exclusive(folder):
            if ours:
                rescue(folder)
            shutil.rmtree(folder, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove all that is in a folder but its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(LOCK):
            path.unlink()
