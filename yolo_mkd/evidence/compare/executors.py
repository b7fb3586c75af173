"""Running the trials: on this machine, one or several at a time, or on a Ray cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from yolo_mkd import host, report
from yolo_mkd.chain.progress import duration_text
from yolo_mkd.evidence.compare.schema import TrialResult
from yolo_mkd.evidence.compare.trials import LOG, RESULT, Trial, load_result, write_task
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import BadInput

REASON_LENGTH = 240  # characters
RETRIES = 3  # of a trial whose machine was lost; it continues from its last epoch on another one


class Executor(Protocol):
    """Where trials run.

    Attributes:
        slots: how many at a time.
    """

    slots: int

    def submit(self, folder: Path) -> Any:
        """Start the trial in a folder and return its handle."""

    def wait_any(self, handles: Sequence[Any]) -> tuple[Any, str]:
        """Wait until one of the trials ends; its handle, and why it failed (empty if it did not)."""

    def close(self) -> None:
        """Stop all running trials."""


class LocalExecutor:
    """Runs some trials at a time on this machine; they share its cores."""

    def __init__(self, parallel: int):
        """Create the executor.

        Args:
            parallel: how many trials at a time.
        """
        self.slots = parallel
        self.threads = threads_per_trial(parallel)
        self.pool = ThreadPoolExecutor(parallel)
        self.processes: list[subprocess.Popen[bytes]] = []

    def submit(self, folder: Path) -> Future[str]:
        """Start a trial in a process of its own."""
        return self.pool.submit(run_trial, str(folder), self.threads, host.safe_load(), self.processes)

    def wait_any(self, handles: Sequence[Future[str]]) -> tuple[Future[str], str]:
        """Wait until one of the trials ends."""
        ended = wait(handles, return_when=FIRST_COMPLETED).done.pop()
        return ended, ended.result()

    def close(self) -> None:
        """Stop the running trials; each one continues from its last checkpoint when the comparison is resumed."""
        for process in list(self.processes):
            process.kill()
        self.pool.shutdown(cancel_futures=True)


class RayExecutor:
    """Runs trials as tasks of a Ray cluster whose machines share this folder and have yolo-mkd installed."""

    def __init__(self, address: str, most: int | None):
        """Connect to a cluster.

        Args:
            address: as `ray.init` takes it; `auto` connects to the local one, or starts one on this machine.
            most: trials at a time; None for as many as fit into the cluster.

        Raises:
            BadInput: Ray is not installed or the address cannot be reached.
        """
        try:
            import ray
        except ImportError as e:
            raise BadInput("ray= needs the package ray, which is not installed: pip install ray") from e
        self.ray = ray
        if not ray.is_initialized():
            self.connect(address)
        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU", 0) >= 1 else 0
        self.slots = most or max(1, int(resources["GPU"] if gpus else resources["CPU"]))
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(run_trial)

    def connect(self, address: str) -> None:
        """Connect; with `auto` and no local cluster, start one."""
        if address != "auto" and not is_reachable(address):  # Ray itself would try for many minutes
            raise BadInput(f"ray={address} cannot be reached: give a running cluster's host:port, or auto")
        try:
            self.ray.init(address=address, log_to_driver=False)
        except ConnectionError:
            self.ray.init(include_dashboard=False, log_to_driver=False)

    def submit(self, folder: Path) -> Any:
        """Start a trial on any machine with free resources."""
        return self.task.remote(str(folder), 1, host.safe_load())

    def wait_any(self, handles: Sequence[Any]) -> tuple[Any, str]:
        """Wait until one of the trials ends."""
        ended = self.ray.wait(list(handles), num_returns=1)[0][0]
        try:
            return ended, self.ray.get(ended)
        except self.ray.exceptions.RayError as e:  # machines were lost repeatedly, or have no access to the folder
            return ended, host.one_line(e)[-REASON_LENGTH:]

    def close(self) -> None:
        """Disconnect from the cluster, which stops the running trials."""
        self.ray.shutdown()


def is_reachable(address: str) -> bool:
    """Whether a connection to host:port, with or without `ray://` before it, is accepted within 5 seconds."""
    name, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((name, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def threads_per_trial(parallel: int) -> int:
    """CPU threads of each of some parallel trials: OMP_NUM_THREADS or 1, and in total at most the number of cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "1")
    return max(1, min(int(wanted) if wanted.isdecimal() else 1, (os.cpu_count() or 1) // parallel))


def run_trial(folder: str, threads: int, safe_load: str, processes: list[subprocess.Popen[bytes]] | None = None) -> str:
    """Run one trial in a process of its own.

    Args:
        folder: the trial's.
        threads: for the arithmetic on the CPU.
        safe_load: of the comparison, as `host.safe_load` gives it; a cluster's machine has an environment of its own.
        processes: list that contains the process while it runs.

    Returns:
        Why it failed; empty if it did not.
    """
    place, running = Path(folder), [] if processes is None else processes
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), host.SAFE_LOAD: safe_load}
    command = [sys.executable, "-m", "yolo_mkd.evidence.compare.worker", folder]
    with open(place / LOG, "ab") as log:
        process = subprocess.Popen(  # its stdin closes when this process ends, for whatever reason
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        running.append(process)
        try:
            code = process.wait()
        finally:
            process.kill()
            running.remove(process)
    return "" if (place / RESULT).exists() and not code else failure_reason(place / LOG, code)


def write_failure(folder: Path, reason: str) -> None:
    """Write the result of a failed trial."""
    report.write(folder / RESULT, "cell", {"status": "failed", "reason": reason})


def failure_reason(log: Path, code: int) -> str:
    """Why a process ended: the signal that stopped it, or the last line of its log."""
    if code < 0:
        return f"stopped by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:REASON_LENGTH] if lines else f"ended with exit code {code} and an empty log"


def run_trials(root: Path, trials: Sequence[Trial], executor: Executor) -> dict[str, TrialResult]:
    """Run all trials without a result, in order; one that needs the cost of others starts when these have ended.

    Args:
        root: the comparison's folder.
        trials: all of them.
        executor: runs them; closed at the end.

    Returns:
        Each trial's result by its name.
    """
    results = {t.name: found for t in trials if (found := load_result(root, t))}
    waiting = [t for t in trials if t.name not in results]
    progress = TrialProgress(trials, results, executor.slots)
    running: dict[Any, Trial] = {}
    try:
        while waiting or running:
            ready = [t for t in waiting if set(t.longer or ()) <= set(results)]
            for trial in ready[: executor.slots - len(running)]:
                waiting.remove(trial)
                if why := write_task(root, trial, results):
                    write_failure(root / trial.name, why)
                    results[trial.name] = progress.finish(root, trial)
                else:
                    progress.start(root, trial)
                    running[executor.submit(root / trial.name)] = trial
            if running:
                handle, why = executor.wait_any(list(running))
                trial = running.pop(handle)
                if why:
                    write_failure(root / trial.name, why)
                results[trial.name] = progress.finish(root, trial)
    finally:
        executor.close()
    return results


class TrialProgress:
    """Logs finished trials and estimates the remaining time from finished trials of the same methods."""

    def __init__(self, trials: Sequence[Trial], results: Mapping[str, TrialResult], slots: int):
        self.total, self.slots = len(trials), slots
        self.started = len(results)
        self.remaining = [t for t in trials if t.name not in results]
        self.durations: dict[str, list[float]] = {}  # by method [s]
        for trial in trials:
            if trial.name in results and results[trial.name]["status"] == "done":
                self.durations.setdefault(trial.method, []).append(results[trial.name]["whole_s"])

    def start(self, root: Path, trial: Trial) -> None:
        """Log that a trial starts, and where its own log is."""
        self.started += 1
        LOGGER.info(f"M-KD: trial {self.started} of {self.total} starts: {title(trial)}, {root / trial.name / LOG}")

    def finish(self, root: Path, trial: Trial) -> TrialResult:
        """Log the result of a trial, and return it."""
        found = load_result(root, trial)
        assert found is not None
        self.remaining.remove(trial)
        if found["status"] == "done":
            self.durations.setdefault(trial.method, []).append(found["whole_s"])
            outcome = f"mAP50-95 {found['best']['map50_95']:.3f} in {duration_text(found['whole_s'])}"
        else:
            outcome = f"FAILED: {found['reason']} (see {root / trial.name / LOG})"
        count = f"{self.total - len(self.remaining)} of {self.total} trials done"
        LOGGER.info(f"M-KD: {count}: {title(trial)}: {outcome}{self.time_left()}")
        return found

    def time_left(self) -> str:
        """The estimated remaining time as the end of a log line; empty without a finished trial."""
        known = [s for times in self.durations.values() for s in times]
        if not self.remaining or not known:
            return ""
        total = sum(fmean(self.durations.get(t.method, known)) for t in self.remaining)
        return f"; about {duration_text(total / min(self.slots, len(self.remaining)))} left"


def title(trial: Trial) -> str:
    """What a trial trains, for the log."""
    return f"{trial.data} {trial.student} {trial.method} seed {trial.seed}"
