"""An export by Ultralytics in a process of its own, which is ended at a time limit: some converters can hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT_S = 1800.0  # our choice: several times what the largest model takes
PACKAGE = Path(__file__).parents[3]  # so that the process finds this package from any folder


class TimeLimit(RuntimeError):
    """The export did not end within its time."""


def run_export(source: Path, task: str | None, arguments: dict[str, Any], quiet: bool, limit_s: float) -> Path:
    """Export a checkpoint in a process of its own.

    Args:
        source: the checkpoint.
        task: of the model; None leaves it to Ultralytics.
        arguments: of Ultralytics' export.
        quiet: suppress Ultralytics' log and the installing of packages.
        limit_s: the process and its children are ended after this time [s].

    Returns:
        The exported file or folder.

    Raises:
        TimeLimit: it took longer.
        RuntimeError: it failed; the message is Ultralytics'.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, outcome = Path(folder) / "wanted.json", Path(folder) / "outcome.json"
        task_of_process = {"source": str(source), "task": task, "arguments": arguments, "quiet": quiet}
        wanted.write_text(json.dumps(task_of_process, default=str), encoding="utf-8")
        command = [sys.executable, "-m", "yolo_mkd.deploy.export.process", str(wanted), str(outcome)]
        paths = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, start_new_session=True)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired as e:
            raise TimeLimit(f"it took longer than {limit_s:g} s") from e
        finally:
            end(process)
        if not outcome.is_file():
            raise RuntimeError(f"its process ended with code {process.returncode}")
        found = json.loads(outcome.read_text(encoding="utf-8"))
    if "error" in found:
        raise RuntimeError(found["error"])
    return Path(found["file"])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it still runs, with all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()


def main(wanted: Path, outcome: Path) -> None:
    """Export as a file asks for, and write the exported file or the error to another.

    Args:
        wanted: the JSON file that `run_export` writes.
        outcome: the JSON file to write.
    """
    from ultralytics import YOLO

    from yolo_mkd import host
    from yolo_mkd.host.trust import no_installs

    asked = json.loads(wanted.read_text(encoding="utf-8"))
    try:
        with contextlib.ExitStack() as stack:
            if asked["quiet"]:
                stack.enter_context(host.quiet())
                stack.enter_context(no_installs())
            found = {"file": str(YOLO(asked["source"], task=asked["task"]).export(**asked["arguments"]))}
    except Exception as error:  # of any exporter: the parent process reports it in one line
        found = {"error": host.one_line(error)}
    outcome.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
