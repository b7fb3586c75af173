"""Commands that meet a fault and are then repeated or resumed, and what is wrong with their files afterwards."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import faults
import numpy as np
import torch
import yaml

PRELOADED = ["torch", "ultralytics", "yolo_mkd.cli", "yolo_mkd.chain", "yolo_mkd.deploy.bundle", "faults"]
LEFT_OVER = (".part", ".bundle-", ".export-")  # in the names of temporary files
Files = dict[str, Any]  # by path below a folder, what is in a file that counts


@dataclass(frozen=True)
class Job:
    """A command whose process is ended.

    Attributes:
        name: of the job.
        prepare: puts into a new folder what the command needs there.
        words: of the command, for a folder.
        again: of the command that follows; the same where there is nothing to resume.
        cache_may_lack: views whose outputs a kill lost and the rest of a training does not use.
    """

    name: str
    prepare: Callable[[Path], None]
    words: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    cache_may_lack: bool = False


@dataclass(frozen=True)
class Fault:
    """As `faults.settings` takes it."""

    kind: str
    at: int
    limit: int


class Commands:
    """Runs commands in processes that begin with everything imported."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def run(self, words: list[str], folder: Path, fault: Fault | None = None) -> tuple[int, str]:
        """Run a command of yolo-mkd.

        Args:
            words: of it.
            folder: below which it changes files.
            fault: that it meets.

        Returns:
            Its exit code, below 0 after a signal, and its output.
        """
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *PATHS])}
        if fault is not None:
            environment |= faults.settings(fault.kind, fault.at, fault.limit, str(folder))
        reader, writer = self.context.Pipe(duplex=False)
        process = self.context.Process(target=run_command, args=(words, environment, writer))
        process.start()
        writer.close()
        output = b"".join(iter(lambda: os.read(reader.fileno(), 65536), b""))
        process.join()
        reader.close()
        return int(process.exitcode or 0), output.decode(errors="replace")


PATHS = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def run_command(words: list[str], environment: dict[str, str], output: Connection) -> None:
    """Run a command in this process, which was made for it and leads a group of its own."""
    import sys

    from yolo_mkd import cli

    os.setpgid(0, 0)
    for descriptor in (1, 2):  # a pipe, which has no size that could be limited
        os.dup2(output.fileno(), descriptor)
    output.close()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["yolo-mkd", *words]
    faults.install()
    cli.main()


class Trials:
    """Meets one fault after the other with the same jobs.

    Attributes:
        changes: how often each job changes a file.
        seconds: that each job takes.
    """

    def __init__(self, root: Path, jobs: list[Job]):
        self.root, self.jobs, self.commands = root, {job.name: job for job in jobs}, Commands()
        self.expected: dict[str, Files] = {}
        self.changes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.made = 0

    def expect(self, job: Job) -> int:
        """The number of changes of a job that nothing interrupts; it is run at the first call."""
        if job.name not in self.expected:
            folder = self.new_folder(job)
            began = time.perf_counter()
            code, output = self.commands.run(job.words(folder), folder, Fault("none", 0, 0))
            self.seconds[job.name] = time.perf_counter() - began
            assert not code, output[-2000:]
            self.expected[job.name] = contents(folder)
            self.changes[job.name] = Path(faults.count_of(str(folder))).stat().st_size
        return self.changes[job.name]

    def new_folder(self, job: Job) -> Path:
        self.made += 1
        folder = self.root / f"{job.name}-{self.made}"
        folder.mkdir(parents=True)
        job.prepare(folder)
        return folder

    def wrong(self, job: Job, fault: Fault) -> list[str]:
        """What is wrong after a fault, and after the command that follows it; empty if nothing is."""
        expected, folder = self.expected[job.name], self.new_folder(job)
        before = contents(folder)
        code, output = self.commands.run(job.words(folder), folder, fault)
        left = contents(folder)
        found = [f"after the fault: {each}" for each in damaged(folder)]
        found += [
            f"after the fault: {name} is neither old nor new"
            for name, content in left.items()
            if content not in (expected.get(name), before.get(name)) and is_whole(name, content)
        ]
        if code > 2:
            found.append(f"exit code {code}: {output.strip()[-300:]}")
        finished = finished_work(folder)
        code, output = self.commands.run(job.again(folder), folder)
        if code:
            return [*found, f"then exit code {code}: {output.strip()[-300:]}"]
        after = contents(folder)
        if job.cache_may_lack:
            after["cache"] = {**expected["cache"], **after.get("cache", {})}
        found += [f"then: {each}" for each in [*damaged(folder), *differing(expected, after)]]
        return found + [
            f"then: finished {name} has changed" for name, at in finished.items() if at != stamp(Path(name))
        ]


def is_whole(name: str, content: Any) -> bool:
    """Whether a file would be taken for the outcome of the job: not a checkpoint or table of a run that goes on."""
    return content is not None and name.endswith((".onnx", ".tar.gz", "bundle.json"))


def differing(expected: Files, found: Files) -> list[str]:
    """The files that differ."""
    names = sorted({*expected, *found})
    return [f"{n} differs" if n in found and n in expected else f"{n} is missing or new" for n in names
            if expected.get(n) != found.get(n)]  # fmt: skip


def contents(folder: Path) -> Files:
    """What counts of all files below a folder: not when or where they were written, nor temporary ones."""
    found: Files = {}
    cached: dict[int, int] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if any(mark in name for mark in LEFT_OVER) or "/kept-" in name:
            continue
        if file.suffix == ".pt" and file.parent.name == "weights":
            found[name] = weights(file)
        elif file.name in {"results.csv", "shares.csv"}:
            found[name] = rows(file)
        elif file.name == "gains.json":
            found[name] = json.loads(file.read_text())["teachers"]
        elif file.name in {"compare.json", "result.json"}:
            found[name] = scores(json.loads(file.read_text()))
        elif file.suffix == ".npy":
            cached |= entries(file)
        elif file.suffix == ".onnx":
            found[name] = graph(file)
        elif file.name.endswith(".tar.gz"):
            found[name] = members(file)
    return {**found, **({"cache": cached} if cached else {})}


def weights(file: Path) -> str | None:
    """A digest of a checkpoint's weights; None where it is damaged or of this project's own kind."""
    try:
        found = torch.load(file, weights_only=False, map_location="cpu")
    except Exception:  # whatever a damaged file leads to
        return None
    model = found.get("ema") or found.get("model")
    if model is None:
        return None
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.float().numpy().tobytes())
    return digest.hexdigest()


def rows(file: Path) -> list[dict[str, str]]:
    """A table without its column of times."""
    with open(file, newline="") as f:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(f)]


def scores(found: dict[str, Any]) -> Any:
    """The accuracies in a report of a comparison or of one of its trials."""
    if "cells" in found:
        return [untimed({**cell, "curve": [untimed(at) for at in cell.get("curve", [])]}) for cell in found["cells"]]
    return [found[k] for k in ("status", "best", "last", "start", "batches") if k in found]


def untimed(found: dict[str, Any]) -> dict[str, Any]:
    """A report's fields without its times."""
    return {k: v for k, v in found.items() if not k.endswith("_s")}


def entries(file: Path) -> dict[int, int]:
    """The checksum of each entry of a teacher cache's shard by the code of its view."""
    return {int(entry["code"]): zlib.crc32(entry.tobytes()) for entry in np.load(file)}


def graph(file: Path) -> str:
    """A digest of a network and its weights, without the date in its metadata."""
    import onnx

    return hashlib.sha256(onnx.load(file).graph.SerializeToString()).hexdigest()


def members(file: Path) -> list[str]:
    """The names of an archive's files."""
    with tarfile.open(file) as archive:
        return sorted(archive.getnames())


def damaged(folder: Path) -> list[str]:
    """Files that look valid and are not."""
    found = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(mark in str(file.relative_to(folder)) for mark in (*LEFT_OVER, ".lock")):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.name in {"chain.yaml", "compare.yaml", "cell.yaml"}:
                found += unfinished_stages(file, yaml.safe_load(file.read_text()))
            elif file.suffix == ".npy":
                found += wrong_checksums(file)
            elif file.suffix == ".onnx":
                graph(file)
            elif file.name.endswith(".tar.gz"):
                found += other_than_archived(file)
        except Exception as error:  # whatever a damaged file leads to
            found.append(f"{file.relative_to(folder)}: {error!r}"[:200])
    return found


def unfinished_stages(file: Path, chain: dict[str, Any]) -> list[str]:
    """The stages of a chain that are called done and whose best.pt is another one."""
    done = [stage for stage in chain.get("stages", []) if stage["status"] == "done"]
    bad = [s for s in done if sha256(file.parent / s["name"] / "weights" / "best.pt") != s["sha256"]]
    return [f"{file.parent.name}: stage {stage['name']} is done and its best.pt is not" for stage in bad]


def wrong_checksums(file: Path) -> list[str]:
    """What is wrong with the checksums at the end of a teacher cache's shard."""
    found = np.load(file)
    stored = np.frombuffer(file.read_bytes()[-4 * len(found) :], "<u4").tolist()
    return [] if stored == [zlib.crc32(e.tobytes()) for e in found] else [f"{file.name}: wrong checksums"]


def other_than_archived(file: Path) -> list[str]:
    """The files of a bundle that are not those of the archive beside it."""
    with tarfile.open(file) as archive:
        found = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
    place = file.parent
    return [f"{name} is another than in {file.name}" for name, data in found.items()
            if not (place / name).is_file() or (place / name).read_bytes() != data]  # fmt: skip


def finished_work(folder: Path) -> dict[str, Any]:
    """When the checkpoints of finished stages and the results of finished trials were written."""
    found = [str(f) for f in folder.rglob("result.json") if json.loads(f.read_text())["status"] == "done"]
    for file in folder.rglob("chain.yaml"):
        for stage in yaml.safe_load(file.read_text())["stages"]:
            if stage["status"] == "done":
                found.append(str(file.parent / stage["name"] / "weights" / "best.pt"))
    return {name: stamp(Path(name)) for name in found}


def stamp(file: Path) -> tuple[int, str] | None:
    """When a file was written and its SHA-256; None where there is none."""
    return (file.stat().st_mtime_ns, sha256(file)) if file.is_file() else None


def sha256(file: Path) -> str:
    """A file's SHA-256; empty where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
