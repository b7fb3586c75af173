"""Running the cells: here, one after another or several at a time, or over a cluster with Ray; the same for all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from yolo_mkd import host, report
from yolo_mkd.evidence.compare.trials import LOG, RESULT, Trial, result, start
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import BadInput

LONGEST = 240  # characters of a reason


class Executor(Protocol):
    """Where cells run."""

    slots: int

    def submit(self, folder: Path) -> Any:
        """Begin a cell and return a handle of it."""

    def first(self, handles: Sequence[Any]) -> tuple[Any, str]:
        """Wait for any of these to end; its handle, and why it failed, if so."""

    def close(self) -> None:
        """End whatever still runs."""


class LocalExecutor:
    """Some cells at a time on this machine, which share its cores."""

    def __init__(self, parallel: int):
        """Make room.

        Args:
            parallel: how many cells at a time.
        """
        self.slots = parallel
        self.threads = shared_threads(parallel)
        self.pool = ThreadPoolExecutor(parallel)
        self.processes: list[subprocess.Popen[bytes]] = []

    def submit(self, folder: Path) -> Future[str]:
        """Begin a cell in a process of its own."""
        return self.pool.submit(run_cell, str(folder), self.threads, self.processes)

    def first(self, handles: Sequence[Future[str]]) -> tuple[Future[str], str]:
        """Wait for any to end."""
        ended = wait(handles, return_when=FIRST_COMPLETED).done.pop()
        return ended, ended.result()

    def close(self) -> None:
        """End the cells in hand; each goes on from its last checkpoint when the comparison does."""
        for process in list(self.processes):
            process.kill()
        self.pool.shutdown(cancel_futures=True)


class RayExecutor:
    """Cells as tasks of a Ray cluster, whose machines share this folder and have yolo-mkd installed."""

    def __init__(self, address: str, most: int | None):
        """Join a cluster.

        Args:
            address: as `ray.init` takes it; `auto` joins the one that runs here, or begins one on this machine.
            most: cells at a time; None for as many as the cluster has room for.

        Raises:
            BadInput: Ray is not installed or does not answer.
        """
        try:
            import ray
        except ImportError as e:
            raise BadInput("ray= needs Ray, which is not installed: pip install ray") from e
        self.ray = ray
        if not ray.is_initialized():
            self.join(address)
        has = ray.cluster_resources()
        gpus = 1 if has.get("GPU", 0) >= 1 else 0
        self.slots = most or max(1, int(has["GPU"] if gpus else has["CPU"]))
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_cell)

    def join(self, address: str) -> None:
        """Connect; with `auto` and no cluster here, begin one."""
        if address != "auto" and not answers(address):  # Ray itself would try for many minutes
            raise BadInput(f"ray={address} does not answer: give a running cluster's host:port, or auto")
        try:
            self.ray.init(address=address, log_to_driver=False)
        except ConnectionError:
            self.ray.init(include_dashboard=False, log_to_driver=False)

    def submit(self, folder: Path) -> Any:
        """Begin a cell wherever the cluster has room."""
        return self.task.remote(str(folder), 1)

    def first(self, handles: Sequence[Any]) -> tuple[Any, str]:
        """Wait for any to end."""
        ended = self.ray.wait(list(handles), num_returns=1)[0][0]
        try:
            return ended, self.ray.get(ended)
        except self.ray.exceptions.RayError as e:  # the machine is lost, or does not see the folder
            return ended, host.one_line(e)[-LONGEST:]

    def close(self) -> None:
        """Leave the cluster, which ends the cells in hand."""
        self.ray.shutdown()


def answers(address: str) -> bool:
    """Whether anything listens at a host:port, with or without `ray://` before it."""
    name, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((name, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def shared_threads(parallel: int) -> int:
    """Threads for each of some cells: what the user or Ultralytics has set, and together no more than the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "1")
    return max(1, min(int(wanted) if wanted.isdecimal() else 1, (os.cpu_count() or 1) // parallel))


def run_cell(folder: str, threads: int, processes: list[subprocess.Popen[bytes]] | None = None) -> str:
    """Run one cell in a process of its own.

    Args:
        folder: the cell's.
        threads: for the arithmetic on the processor.
        processes: where the process is listed while it runs.

    Returns:
        Why it failed, if so.
    """
    place, listed = Path(folder), [] if processes is None else processes
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "yolo_mkd.evidence.compare.worker", folder]
    with open(place / LOG, "ab") as log:
        process = subprocess.Popen(  # its input closes when this process ends, however that happens
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        listed.append(process)
        try:
            code = process.wait()
        finally:
            process.kill()
            listed.remove(process)
    return "" if (place / RESULT).exists() and not code else reason(place / LOG, code)


def fail(folder: Path, why: str) -> None:
    """Write down that a cell failed."""
    report.write(folder / RESULT, "cell", {"status": "failed", "reason": why})


def reason(log: Path, code: int) -> str:
    """Why a process ended: the last line that it wrote, or the signal that stopped it."""
    if code < 0:
        return f"stopped by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else f"ended with exit code {code} and said nothing"


def run_all(root: Path, cells: Sequence[Trial], pool: Executor) -> dict[str, dict[str, Any]]:
    """Run what has not ended yet, in order; a cell that waits for others' costs begins when they are known.

    Args:
        root: the comparison's folder.
        cells: all of them.
        pool: where they run.

    Returns:
        Each cell's result by its name.
    """
    results = {c.name: found for c in cells if (found := result(root, c))}
    waiting = [c for c in cells if c.name not in results]
    progress = TrialProgress(cells, results, pool.slots)
    running: dict[Any, Trial] = {}
    try:
        while waiting or running:
            ready = [c for c in waiting if set(c.longer or ()) <= set(results)]
            for cell in ready[: pool.slots - len(running)]:
                waiting.remove(cell)
                if why := start(root, cell, results):
                    fail(root / cell.name, why)
                    results[cell.name] = progress.ended(root, cell)
                else:
                    running[pool.submit(root / cell.name)] = cell
            if running:
                handle, why = pool.first(list(running))
                cell = running.pop(handle)
                if why:
                    fail(root / cell.name, why)
                results[cell.name] = progress.ended(root, cell)
    finally:
        pool.close()
    return results


class TrialProgress:
    """What is done, and how long the rest may take by what the same methods took."""

    def __init__(self, cells: Sequence[Trial], results: dict[str, dict[str, Any]], slots: int):
        self.cells, self.slots = cells, slots
        self.left = [c for c in cells if c.name not in results]
        self.took: dict[str, list[float]] = {}
        for cell in cells:
            if cell.name in results and results[cell.name]["status"] == "done":
                self.took.setdefault(cell.method, []).append(results[cell.name]["whole_s"])

    def ended(self, root: Path, cell: Trial) -> dict[str, Any]:
        """Say what came of a cell, and return it."""
        found = result(root, cell)
        assert found is not None
        self.left.remove(cell)
        if found["status"] == "done":
            self.took.setdefault(cell.method, []).append(found["whole_s"])
            what = f"mAP50-95 {found['best']['map50_95']:.3f} in {clock(found['whole_s'])}"
        else:
            what = f"FAILED: {found['reason']} (see {root / cell.name / LOG})"
        count = f"{len(self.cells) - len(self.left)} of {len(self.cells)}"
        who = f"{cell.data} {cell.student} {cell.method} seed {cell.seed}"
        LOGGER.info(f"M-KD: {count}: {who}: {what}{self.rest()}")
        return found

    def rest(self) -> str:
        """How long the rest may take, once anything has been measured."""
        known = [s for times in self.took.values() for s in times]
        if not self.left or not known:
            return ""
        seconds = sum(fmean(self.took.get(c.method, known)) for c in self.left) / min(self.slots, len(self.left))
        return f"; about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
