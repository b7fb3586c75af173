"""What distillation costs: plain, native, live and recorded training, step by step in turn on the same machine.

Each kind of training is a process of its own in which Ultralytics' loop runs as for a user; the processes wait for
each other, so that a disturbance of the machine meets all of them, and memory is each one's own.
"""

from __future__ import annotations

import json as js
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from yolo_mkd import host, report
from yolo_mkd.chain.stages import ChainRequest, validate
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.evidence.cost.figures import ratios, readings_per_step
from yolo_mkd.evidence.plan import sample, stand_in
from yolo_mkd.host.dry import silent
from yolo_mkd.settings import KD_OPTIONS, BadInput, Failed, number, preset

KINDS = {
    "plain": "Ultralytics, the labels only",
    "native": "Ultralytics' distill_model=",
    "live": "M-KD, the teacher request in each step",
    "live, recorded's terms": "the same with the terms that a record can serve",
    "recording": "M-KD, the teacher request and its results kept",
    "recorded": "M-KD, the results replayed",
}
BATCHES = {"cpu": 4, "cuda": 12}  # in the few images that are trained on, again and again
STEPS = {"cpu": 2, "cuda": 10}  # in one turn
REPLACED = {"data", "batch", "device", "fraction", "plots", "save_period", "time", "epochs", "nbs", "warmup_epochs"}
FOREVER = 1000  # epochs: distillation is on until the last turn, and a view of 1000 is always a new one


@host.permitting
def cost(rounds: int = 6, json: str | Path | None = None, **arguments: Any) -> dict[str, Any]:
    """Measure what each kind of distillation costs beside plain training of the same student.

    Args:
        rounds: how often each kind takes its turn.
        json: write the figures here, and a picture of them beside it.
        **arguments: those of train; the chain is one hop. A teacher that is a .yaml is stood in for by an untrained
            model of its shape, which costs the same.

    Returns:
        The figures that `yolo-mkd cost` prints: seconds of a step, bytes, ratios to plain.

    Raises:
        BadInput: train would refuse these arguments, or rounds is not a number of 3 or more.
    """
    report.check_writable("json", json)
    number("rounds", rounds, low=3, whole=True, example=6)  # fewer give no interval
    with tempfile.TemporaryDirectory(prefix="yolo-mkd-cost-") as folder:
        with silent():
            request, shared = prepare(arguments, Path(folder))
        figures = measure_kinds(request, shared, Path(folder), rounds)
    if json:
        from yolo_mkd.evidence.cost.picture import picture

        picture(report_of(report.write(json, "cost", figures)), Path(json).with_suffix(".png"))
    return figures


def report_of(file: Path) -> dict[str, Any]:
    """A report as it was written, with its versions and machine."""
    return dict(js.loads(file.read_text(encoding="utf-8")))


def prepare(arguments: dict[str, Any], folder: Path) -> tuple[ChainRequest, dict[str, Any]]:
    """Validate everything as train does, and prepare the images that the workers train on.

    Returns:
        The request, and the Ultralytics arguments that all workers share.
    """
    data = host.check_data(arguments.get("data"))
    teacher = host.find_model("teacher", arguments.get("teacher", "yolo26m.pt"))
    if teacher.endswith((".yaml", ".yml")):
        teacher = stand_in(teacher, data, folder / f"{Path(teacher).stem}.pt")
    request = validate({**arguments, "teacher": teacher, "assistant": None}, "cost")
    device = "cuda" if torch.cuda.is_available() and str(request.theirs.get("device")) != "cpu" else "cpu"
    batch = number("batch", request.theirs.get("batch", 16), low=1, whole=True, example=16)
    images = sample.images_of(request.data, "train")
    wanted = batch * BATCHES[device]
    if len(images) < batch:
        raise BadInput(f"data={request.data['yaml_file']} has {len(images)} train images, fewer than batch={batch}")
    few = sample.evenly_spaced(images, wanted)[: min(wanted, len(images)) // batch * batch]  # whole batches only
    val = sample.evenly_spaced(sample.images_of(request.data, "val"), 1)
    shared = {
        **{k: v for k, v in request.theirs.items() if k not in REPLACED},
        "data": str(sample.copy(request.data, {"train": few, "val": val}, folder / "few")),
        **{"batch": batch, "nbs": batch, "epochs": FOREVER, "warmup_epochs": 0, "patience": 0},
        **{"val": False, "save": False, "plots": False, "project": str(folder), "verbose": False},
        **({"device": "cpu"} if device == "cpu" else {}),
    }
    return request, shared


def worker_specs(request: ChainRequest, shared: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The spec of each worker: its model, arguments and M-KD's options, by kind of training."""
    student = request.stages[-1]
    model, teacher = host.write_architecture(student["model"], folder), student["hears"][0]
    whole = {
        **{k: request.own[k] for k in (*KD_OPTIONS, *TERMS)},
        "calibrate": False,
        "record": False,
        "unlabelled": None,
    }
    small = {**whole, **{n: 0.0 for n in TERMS if not preset("recorded").get(n)}}
    if not any(small[n] for n in TERMS):
        small |= {n: preset("recorded")[n] for n in TERMS if preset("recorded").get(n)}
    settings_by_kind = {
        "plain": {},
        "native": {"distill_model": teacher},
        "live": whole,
        "live, recorded's terms": small,
        "recording": {**small, "record": str(folder / "unending"), "views": FOREVER},
        "recorded": {**small, "record": str(folder / "record"), "views": 1},
    }
    if whole == small:
        del settings_by_kind["live, recorded's terms"]
    found = {}
    for kind, own in settings_by_kind.items():
        name = kind.partition(",")[0] + ("-small" if "," in kind else "")
        extra = own if kind == "native" else {}
        found[kind] = {
            "model": model,
            "teacher": teacher,
            "arguments": {**shared, **extra, "name": name},
            "knowledge": {} if kind in {"plain", "native"} else own,
        }
    return found


class Worker:
    """A training in a process of its own.

    Attributes:
        refused: why this kind cannot be measured; empty if it can.
        batches: of an epoch.
    """

    def __init__(self, spec: dict[str, Any], log: Path):
        """Start it, and wait until it is set up.

        Args:
            spec: as `evidence.cost.worker.work` takes it.
            log: where all that it prints goes.
        """
        self.log = log
        with log.open("w", encoding="utf-8") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "yolo_mkd.evidence.cost.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
            )
        result = self.exchange(spec)
        self.refused = str(result.get("refused", ""))
        self.batches = int(result.get("batches", 0))

    def exchange(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order and wait for the result.

        Raises:
            Failed: the process is gone.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(js.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; the error below quotes its log
        line = self.process.stdout.readline()
        if not line:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no message"]
            raise Failed(f"a measured training ended before its time: {lines[-1][:200]}")
        return dict(js.loads(line))

    def run_steps(self, steps: int, parts: bool = False, reading: bool = False) -> dict[str, Any]:
        """Let it train for some steps."""
        return self.exchange({"steps": steps, "parts": parts, "reading": reading})

    def end(self) -> None:
        """End it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def measure_kinds(request: ChainRequest, shared: dict[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    """Start a worker of each kind, and let them take turns."""
    settings_by_kind = worker_specs(request, shared, folder)
    first = Worker({**settings_by_kind["recorded"], "arguments": {**shared, "name": "first"}}, folder / "first.log")
    if first.refused:
        raise BadInput(first.refused)
    first.run_steps(first.batches)  # fills the cache that the cached kind reads
    first.end()
    workers = {}
    try:
        for i, (kind, spec) in enumerate(settings_by_kind.items()):
            workers[kind] = Worker(spec, folder / f"{i}.log")
        refused = {kind: w.refused for kind, w in workers.items() if w.refused}
        running = {kind: w for kind, w in workers.items() if not w.refused}
        results = take_turns(running, rounds, "cpu" if shared.get("device") == "cpu" else "cuda")
    finally:
        for worker in workers.values():
            worker.end()
    return conclude(request, shared, results, refused)


def take_turns(workers: dict[str, Worker], rounds: int, device: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Warm up, then let each worker take some steps in each round, in an order that turns from round to round.

    Returns:
        By kind, the results of whole turns, of turns that were split into parts, and of turns whose gradients were
        read; each in the order of the rounds.
    """
    host.LOGGER.info(f"M-KD: {rounds} rounds of {STEPS[device]} steps of each: {' | '.join(workers)}")
    for worker in workers.values():
        worker.run_steps(worker.batches + 1)  # the guidance layers' first epoch, in which they do not steer yet
    found: dict[str, dict[str, list[dict[str, Any]]]] = {k: {"whole": [], "parts": [], "reading": []} for k in workers}
    kinds = list(workers)
    for i in range(rounds):
        for kind in kinds[i % len(kinds) :] + kinds[: i % len(kinds)]:
            worker, turns = workers[kind], found[kind]
            turns["whole"].append(worker.run_steps(STEPS[device], parts=device == "cpu"))
            # splitting a step makes a GPU wait at each part, so that its whole steps are timed apart
            turns["parts"].append(
                turns["whole"][-1] if device == "cpu" else worker.run_steps(STEPS[device], parts=True)
            )
            if kind not in {"plain", "native"}:
                turns["reading"].append(worker.run_steps(1, reading=True))
    return found


def conclude(
    request: ChainRequest, shared: dict[str, Any], results: dict[str, Any], refused: dict[str, str]
) -> dict[str, Any]:
    """From what the workers answered to the figures."""
    plain = [a["step_s"] for a in results["plain"]["whole"]]
    images = len(sample.images_of(request.data, "train", request.theirs.get("fraction", 1.0)))
    epochs, theirs = int(request.theirs.get("epochs", 100)), request.theirs
    schedule = Schedule.of(epochs, theirs.get("warmup_epochs", 3), request.own["until"])
    often = readings_per_step(images, shared["batch"], schedule)
    rows = {}
    for kind, found in results.items():
        steps = [a["step_s"] for a in found["whole"]]
        step = median(steps)
        reading = median(a["step_s"] for a in found["reading"]) - step if found["reading"] else 0.0  # beyond a step
        rows[kind] = {
            "what": KINDS[kind],
            "step_s": step,
            "images_per_s": shared["batch"] / step,
            "ratio": ratios(steps, plain),
            "reading_s": reading,
            "reading_share": often * reading / step,
            "parts": {part: median(a["parts"][part] for a in found["parts"]) for part in found["parts"][0]["parts"]},
            "peak_bytes": max(a["peak_bytes"] for a in found["whole"]),
            "steps_s": steps,
            "parts_s": [a["parts"] for a in found["parts"]],
            **{k: found["whole"][-1][k] for k in ("store_bytes", "formula_bytes") if k in found["whole"][-1]},
        }
    student = request.stages[-1]
    return {
        "data": Path(request.data["yaml_file"]).name,
        "classes": request.data["nc"],
        "student": Path(student["model"]).name,
        "teacher": Path(student["hears"][0]).name,
        "imgsz": int(request.theirs.get("imgsz", 640)),
        "batch": shared["batch"],
        "device": "cpu" if shared.get("device") == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "rounds": len(plain),
        "epochs": epochs,
        "heard": schedule.end,
        "refused": refused,
        "kinds": rows,
    }
