"""A training of one kind in a process of its own, which takes some steps whenever it is told to.

It is Ultralytics' own loop from loading to the optimizer's step. Orders come as JSON lines on standard input, and
what was measured goes back the same way; the parent gives them to one worker at a time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import torch
from ultralytics import YOLO

from yolo_mkd import host
from yolo_mkd.cache.store import estimate
from yolo_mkd.cache.teacher import CachedTeacher
from yolo_mkd.evidence.cost.stopwatch import Stopwatch
from yolo_mkd.host.dry import PLAIN
from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import TRAINERS, MKDTrainer

PARTS = ("data", "teacher", "student", "loss", "terms", "backward", "update")


class StopTraining(Exception):
    """The parent wants no more steps."""


class StepServer:
    """Ultralytics callbacks that let a training go on for as many steps as the parent orders.

    Attributes:
        answers: the stream for results, one JSON object a line.
    """

    def __init__(self, answers: TextIO):
        self.answers = answers
        self.order: dict[str, Any] = {}
        self.left, self.started = 0, 0.0
        self.watch = Stopwatch()

    def start(self, trainer: Any) -> None:
        """Put the stopwatch around the parts of a step, and wait for the first order."""
        on_cuda = trainer.device.type == "cuda"
        self.watch.clock = lambda: now(trainer) if on_cuda else time.perf_counter()
        attach(self.watch, trainer)
        if isinstance(trainer, MKDTrainer) and trainer.kd.criterion is not None:
            trainer.kd.criterion.due = lambda distiller: bool(self.order.get("reading"))
            trainer.kd.criterion.section = self.watch.section
        self.send({"ready": True, "batches": len(trainer.train_loader)})
        self.next_order(trainer)

    def loaded(self, trainer: Any) -> None:
        """A batch has come out of the loader."""
        self.watch.begin("backward")  # and all that no other part claims

    def stepped(self, trainer: Any) -> None:
        """A step is over."""
        self.left -= 1
        if self.left:
            self.watch.begin("data")
            return
        self.watch.stop()
        steps = self.order["steps"]
        self.send(
            {
                "step_s": (now(trainer) - self.started) / steps,
                "parts": {part: self.watch.seconds[part] / steps for part in PARTS} if self.watch.on else {},
                "batch": trainer.batch_size,
                "peak_bytes": peak(trainer),
                **kept(trainer),
            }
        )
        self.next_order(trainer)

    def next_order(self, trainer: Any) -> None:
        """Wait until the parent wants steps.

        Raises:
            StopTraining: it wants no more.
        """
        line = sys.stdin.readline()
        if not line:
            raise StopTraining
        self.order = json.loads(line)
        self.left, self.watch.on = self.order["steps"], self.order["parts"]
        self.watch.seconds.clear()
        self.started = now(trainer)
        self.watch.begin("data")

    def send(self, result: dict[str, Any]) -> None:
        """Send a result to the parent."""
        self.answers.write(json.dumps(result) + "\n")
        self.answers.flush()


def now(trainer: Any) -> float:
    """The time [s], once the device has done what it was given."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()


def peak(trainer: Any) -> int:
    """The most memory held so far [bytes]: the device's, or on a CPU the whole process's."""
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kept(trainer: Any) -> dict[str, Any]:
    """The size of the record and what its formula says [bytes], and whether the teacher is still asked."""
    teacher = trainer.kd.distillers[0].teacher if isinstance(trainer, MKDTrainer) else None
    if not isinstance(teacher, CachedTeacher):
        return {}
    images = len(trainer.train_loader.dataset)
    formula = estimate(teacher.layout, images, max(1, round(teacher.computed / images)))
    return {"store_bytes": teacher.store.bytes_on_disk, "formula_bytes": formula}


def attach(watch: Stopwatch, trainer: Any) -> None:
    """Put a stopwatch around the parts of a trainer's step."""
    model = host.unwrap_model(trainer.model)
    watch.around(trainer, "preprocess_batch", "data")
    watch.around(trainer, "optimizer_step", "update")
    if hasattr(model, "teacher_model"):  # Ultralytics' own distillation: what is left of its loss is the projectors'
        watch.around(model, "loss", "terms")
        watch.around(model.teacher_model, "predict", "teacher")
        model = model.student_model
    watch.around(model, "loss", "loss")
    watch.around(model, "predict", "student")


def work(spec: dict[str, Any], answers: TextIO) -> None:
    """Train until the parent has had enough.

    Args:
        spec: model, arguments (Ultralytics'), teacher and knowledge (M-KD's arguments; absent for stock trainers).
        answers: the stream for results, one JSON object a line.

    Raises:
        BadInput: this kind of training cannot be had for this pair.
    """
    pace = StepServer(answers)
    yolo = YOLO(spec["model"])
    trainer: Any = PLAIN[host.task(spec["model"])]
    if spec.get("knowledge"):
        trainer = TRAINERS[host.task(spec["model"])].using(spec["teacher"], **spec["knowledge"])
    events: dict[str, Callable[[Any], None]] = {
        "on_train_start": pace.start,
        "on_train_batch_start": pace.loaded,
        "on_train_batch_end": pace.stepped,
    }
    for event, callback in events.items():
        yolo.add_callback(event, callback)
    try:
        yolo.train(trainer=trainer, **spec["arguments"])
    except StopTraining:
        return
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise BadInput(host.one_line(error)) from error


def main() -> None:
    """Do what the first line of standard input says."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # all that is printed goes to the log
    try:
        work(json.loads(sys.stdin.readline()), answers)
    except BadInput as error:
        answers.write(json.dumps({"refused": str(error)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
