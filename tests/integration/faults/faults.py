"""Stops a process at the n-th time that it changes a file below a folder: by a kill, in a write, or by a full disk.

What changes a file is counted over a command and all processes that it starts, in a file beside the folder: the length
of that file is the count.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from typing import Any

SETTINGS = "FAULT"  # the environment variable: `kind,at,limit,folder`
CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.truncate": 1, "torch.save": 0}
# the position of an event's folder descriptor; torch.save is an event of ours, since it opens files in C++
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def settings(kind: str, at: int, limit: int, folder: str) -> dict[str, str]:
    """The environment in which a command meets a fault.

    Args:
        kind: `none` only counts; `kill` ends the command and all that it started, before the change; `torn` ends the
            process in the middle of a write, at `limit` bytes; `full` lets every write beyond `limit` bytes fail;
            `time` ends the process at a time.
        at: the number of the change at which it happens, from 1; for `time` when it happens [ms].
        limit: a file's size [bytes].
        folder: below which changes count.
    """
    return {SETTINGS: f"{kind},{at},{limit},{folder}"}


def count_of(folder: str) -> str:
    """The file whose length is the number of changes so far."""
    return f"{folder}.changes"


def install() -> None:
    """Count this process's changes, if the environment asks for it."""
    if SETTINGS not in os.environ:
        return
    kind, at, limit, folder = os.environ[SETTINGS].split(",", 3)
    counter = os.open(count_of(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(Fault(kind, int(at), int(limit), folder, counter).watch)
    if kind == "time":
        signal.setitimer(signal.ITIMER_REAL, int(at) / 1000)  # SIGALRM ends a process that does not handle it


class Fault:
    """Counts changes and stops the process at one of them."""

    def __init__(self, kind: str, at: int, limit: int, folder: str, counter: int):
        self.kind, self.at, self.limit, self.folder, self.counter = kind, at, limit, folder, counter
        self.busy = False

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Receive one of Python's audit events."""
        if self.busy or (event != "open" and event not in CHANGES):
            return
        self.busy = True  # what happens here is no change
        try:
            announce_torch_saves()
            if self.changes(event, arguments):
                self.count()
        finally:
            self.busy = False

    def changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether an event changes a file below the folder."""
        path = arguments[0]
        if (event == "open" and not arguments[2] & WRITES) or isinstance(path, int):
            return False
        if CHANGES.get(event) and arguments[CHANGES[event]] not in {-1, None}:
            return True  # relative to an open folder, as shutil.rmtree has it
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder + os.sep)

    def count(self) -> None:
        """Count one change; the fault happens at its number."""
        with contextlib.suppress(OSError):  # the limit on a file's size is this file's too
            os.write(self.counter, b".")
            if os.fstat(self.counter).st_size == self.at and self.kind not in {"none", "time"}:
                self.happen()

    def happen(self) -> None:
        """End the process, or limit the size of the files that it can write."""
        if self.kind == "kill":
            os.killpg(0, signal.SIGKILL)
        if self.kind == "torn":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, so that writes raise EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def announce_torch_saves() -> None:
    """Let torch.save raise an audit event, once torch is imported."""
    torch = sys.modules.get("torch")
    save = getattr(torch, "save", None)
    if save is None or hasattr(save, "announced"):
        return

    def announced(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, str | os.PathLike):
            sys.audit("torch.save", f)
        return save(obj, f, *args, **kwargs)

    announced.announced = True  # type: ignore[attr-defined]
    torch.save = announced  # type: ignore[union-attr]
