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
from yolo_mkd.settings import KD_OPTIONS, BadInput, Failed, preset

KINDS = {
    "plain": "Ultralytics, the labels only",
    "native": "Ultralytics' distill_model=",
    "live": "M-KD, the teacher asked in each step",
    "live, recorded's terms": "the same with the terms that a record can serve",
    "recording": "M-KD, the teacher asked and its answers kept",
    "recorded": "M-KD, the answers replayed",
}
BATCHES = {"cpu": 4, "cuda": 12}  # in the few images that are trained on, again and again
STEPS = {"cpu": 2, "cuda": 10}  # in one turn
REPLACED = {"data", "batch", "device", "fraction", "plots", "save_period", "time", "epochs", "nbs", "warmup_epochs"}
FOREVER = 1000  # epochs: distillation is on until the last turn, and a view of 1000 is always a new one


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
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 3:
        raise BadInput(f"rounds={rounds} is too few for an interval: give 3 or more")
    with tempfile.TemporaryDirectory(prefix="yolo-mkd-cost-") as folder:
        with silent():
            asked, shown = checked(arguments, Path(folder))
        figures = measure(asked, shown, Path(folder), rounds)
    if json:
        from yolo_mkd.evidence.cost.picture import picture

        picture(report_of(report.write(json, "cost", figures)), Path(json).with_suffix(".png"))
    return figures


def report_of(file: Path) -> dict[str, Any]:
    """A report as it was written, with its versions and machine."""
    return dict(js.loads(file.read_text(encoding="utf-8")))


def checked(arguments: dict[str, Any], folder: Path) -> tuple[ChainRequest, dict[str, Any]]:
    """Check everything as train does, and make what the workers train on.

    Returns:
        What is asked for, and the Ultralytics arguments that all workers share.
    """
    data = host.check_data(arguments.get("data"))
    teacher = host.find_model("teacher", arguments.get("teacher", "yolo26m.pt"))
    if teacher.endswith((".yaml", ".yml")):
        teacher = stand_in(teacher, data, folder / f"{Path(teacher).stem}.pt")
    asked = validate({**arguments, "teacher": teacher, "assistant": None}, "cost")
    device = "cuda" if torch.cuda.is_available() and str(asked.theirs.get("device")) != "cpu" else "cpu"
    batch = asked.theirs.get("batch", 16)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInput(f"batch={batch} has to be a number of images here: give for example batch=16")
    images = sample.images_of(asked.data, "train")
    wanted = batch * BATCHES[device]
    if len(images) < batch:
        raise BadInput(f"data={asked.data['yaml_file']} has {len(images)} train images, fewer than batch={batch}")
    few = sample.evenly_spaced(images, wanted)[: min(wanted, len(images)) // batch * batch]  # whole batches only
    val = sample.evenly_spaced(sample.images_of(asked.data, "val"), 1)
    shared = {
        **{k: v for k, v in asked.theirs.items() if k not in REPLACED},
        "data": str(sample.copy(asked.data, {"train": few, "val": val}, folder / "few")),
        **{"batch": batch, "nbs": batch, "epochs": FOREVER, "warmup_epochs": 0, "patience": 0},
        **{"val": False, "save": False, "plots": False, "project": str(folder), "verbose": False},
        **({"device": "cpu"} if device == "cpu" else {}),
    }
    return asked, shared


def specs(asked: ChainRequest, shared: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """What each worker is told: its model, arguments and knowledge."""
    student = asked.stages[-1]
    model, teacher = host.write_architecture(student["model"], folder), student["hears"][0]
    whole = {
        **{k: asked.own[k] for k in (*KD_OPTIONS, *TERMS)},
        "calibrate": False,
        "record": False,
        "unlabelled": None,
    }
    small = {**whole, **{n: 0.0 for n in TERMS if not preset("recorded").get(n)}}
    if not any(small[n] for n in TERMS):
        small |= {n: preset("recorded")[n] for n in TERMS if preset("recorded").get(n)}
    told = {
        "plain": {},
        "native": {"distill_model": teacher},
        "live": whole,
        "live, recorded's terms": small,
        "recording": {**small, "record": str(folder / "unending"), "views": FOREVER},
        "recorded": {**small, "record": str(folder / "record"), "views": 1},
    }
    if whole == small:
        del told["live, recorded's terms"]
    found = {}
    for kind, own in told.items():
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
        refused: why it cannot be had; empty if it can.
        batches: of an epoch.
    """

    def __init__(self, spec: dict[str, Any], log: Path):
        """Start it, and wait until it is set up.

        Args:
            spec: as `costing.worker.work` takes it.
            log: where all that it prints goes.
        """
        self.log = log
        with log.open("w", encoding="utf-8") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "yolo_mkd.evidence.cost.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, text=True,
            )  # fmt: skip
        answer = self.ask(spec)
        self.refused = str(answer.get("refused", ""))
        self.batches = int(answer.get("batches", 0))

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            Failed: the process is gone.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(js.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone; what it left in its log is told below
        line = self.process.stdout.readline()
        if not line:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no message"]
            raise Failed(f"a measured training ended before its time: {lines[-1][:200]}")
        return dict(js.loads(line))

    def take(self, steps: int, parts: bool = False, reading: bool = False) -> dict[str, Any]:
        """Let it take some steps."""
        return self.ask({"steps": steps, "parts": parts, "reading": reading})

    def end(self) -> None:
        """End it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def measure(asked: ChainRequest, shared: dict[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    """Start a worker of each kind, and let them take turns."""
    told = specs(asked, shared, folder)
    first = Worker({**told["recorded"], "arguments": {**shared, "name": "first"}}, folder / "first.log")
    if first.refused:
        raise BadInput(first.refused)
    first.take(first.batches)  # fills the record, which the worker that replays it finds
    first.end()
    workers = {}
    try:
        for i, (kind, spec) in enumerate(told.items()):
            workers[kind] = Worker(spec, folder / f"{i}.log")
        refused = {kind: w.refused for kind, w in workers.items() if w.refused}
        running = {kind: w for kind, w in workers.items() if not w.refused}
        answers = take_turns(running, rounds, "cpu" if shared.get("device") == "cpu" else "cuda")
    finally:
        for worker in workers.values():
            worker.end()
    return conclude(asked, shared, answers, refused)


def take_turns(workers: dict[str, Worker], rounds: int, device: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Warm up, then let each worker take some steps in each round, in an order that turns from round to round.

    Returns:
        By kind, the answers of whole turns, of turns that were split into parts, and of turns whose gradients were
        read; each in the order of the rounds.
    """
    host.LOGGER.info(f"M-KD: {rounds} rounds of {STEPS[device]} steps of each: {' | '.join(workers)}")
    for worker in workers.values():
        worker.take(worker.batches + 1)  # the guidance layers' first epoch, in which they do not steer yet
    found: dict[str, dict[str, list[dict[str, Any]]]] = {k: {"whole": [], "parts": [], "reading": []} for k in workers}
    kinds = list(workers)
    for i in range(rounds):
        for kind in kinds[i % len(kinds) :] + kinds[: i % len(kinds)]:
            worker, turns = workers[kind], found[kind]
            turns["whole"].append(worker.take(STEPS[device], parts=device == "cpu"))
            # splitting a step makes a GPU wait at each part, so that its whole steps are timed apart
            turns["parts"].append(turns["whole"][-1] if device == "cpu" else worker.take(STEPS[device], parts=True))
            if kind not in {"plain", "native"}:
                turns["reading"].append(worker.take(1, reading=True))
    return found


def conclude(
    asked: ChainRequest, shared: dict[str, Any], answers: dict[str, Any], refused: dict[str, str]
) -> dict[str, Any]:
    """From what the workers answered to the figures."""
    plain = [a["step_s"] for a in answers["plain"]["whole"]]
    images = len(sample.images_of(asked.data, "train", asked.theirs.get("fraction", 1.0)))
    epochs, theirs = int(asked.theirs.get("epochs", 100)), asked.theirs
    schedule = Schedule.of(epochs, theirs.get("warmup_epochs", 3), asked.own["until"])
    often = readings_per_step(images, shared["batch"], schedule)
    rows = {}
    for kind, found in answers.items():
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
    student = asked.stages[-1]
    return {
        "data": Path(asked.data["yaml_file"]).name,
        "classes": asked.data["nc"],
        "student": Path(student["model"]).name,
        "teacher": Path(student["hears"][0]).name,
        "imgsz": int(asked.theirs.get("imgsz", 640)),
        "batch": shared["batch"],
        "device": "cpu" if shared.get("device") == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "rounds": len(plain),
        "epochs": epochs,
        "heard": schedule.end,
        "refused": refused,
        "kinds": rows,
    }
