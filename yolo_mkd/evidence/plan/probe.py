"""What one stage of a chain costs and where its terms pull, measured on a few real batches without training it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from yolo_mkd import host
from yolo_mkd.distill.balance import GradientRatio, read
from yolo_mkd.distill.criterion import Source
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.host.dry import disk, precision

HEARD = (2, 8)  # batches at least and at most on which gradients are measured
TIMED = (3, 12)  # and steps are timed
PARTS = ("student_s", "loss_s", "teacher_s", "terms_s")  # of a forward pass

Batch = dict[str, Any]


@dataclass
class Probe:
    """Measures on a trainer that is set up and will not train; `host.dry.dry_run` calls it.

    Attributes:
        seconds: that gradients and steps may take together, about [s].
        sources: the trainer's teachers with their lessons, after the call.
        readings: of each of them, one dict of readings by term for each batch.
        figures: costs.
        args: all of Ultralytics' arguments.
    """

    seconds: float
    sources: list[Source] = field(default_factory=list)
    readings: list[list[dict[str, GradientRatio]]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    args: Any = None

    def __call__(self, trainer: Any) -> None:
        """Measure everything, and leave a checkpoint."""
        started = time.perf_counter()
        trainer.epoch, self.args, self.sources = 0, trainer.args, getattr(trainer, "sources", [])
        if self.sources:
            host.unwrap_model(trainer.model).criterion.ask = lambda batch: None  # parts are timed one after another
        batches = prepared(trainer)
        reading_s = self._hear(trainer, batches, started + self.seconds / 2)
        steps = time_steps(trainer, batches, self.sources, started + self.seconds)
        batch = next(batches)[0]
        self.figures = {
            "batch": len(batch["img"]),
            "reading_s": reading_s,
            **steps,
            "memory": memory(trainer, batch, self.sources),
            "val_s_per_image": validation_s(trainer) / len(trainer.test_loader.dataset),
            "disk": disk(trainer),
            "size": host.size(trainer.last, trainer.args.imgsz),
            "optimizer": type(trainer.optimizer).__name__,
        }

    def _hear(self, trainer: Any, batches: Iterator[tuple[Batch, float]], deadline: float) -> float:
        """Measure gradients while there is time; how long one batch of one teacher took beyond its forward pass [s]."""
        self.readings = [[] for _ in self.sources]
        took: list[float] = []
        while self.sources and len(took) < HEARD[1] and (len(took) < HEARD[0] or clock(trainer) < deadline):
            found, seconds = hear(trainer, next(batches)[0], self.sources)
            took.append(seconds / len(self.sources))
            for own, readings in zip(self.readings, found, strict=True):
                own.append(readings)
        return median(took) if took else 0.0


def clock(trainer: Any) -> float:
    """Now, once the device has done what it was given [s]."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()


def prepared(trainer: Any) -> Iterator[tuple[Batch, float]]:
    """The trainer's own batches, augmented and on its device, with the seconds that each took to load; without end."""
    while True:
        loader = iter(trainer.train_loader)
        for _ in range(len(trainer.train_loader)):
            started = clock(trainer)
            with precision(trainer):
                batch = trainer.preprocess_batch(next(loader))
            yield batch, clock(trainer) - started


def hear(trainer: Any, batch: Batch, sources: list[Source]) -> tuple[list[dict[str, GradientRatio]], float]:
    """Let each source's balance hear one batch's gradients as in training, and return them and the time it took [s]."""
    criterion = host.unwrap_model(trainer.model).criterion
    criterion.student.taps.open = True
    with precision(trainer):
        preds = trainer.model(batch["img"])
        loss, _ = criterion.detection(preds, batch)
        taught = [s.teacher(batch) for s in sources]
    ks, task, found = criterion.student.knowledge(preds), loss.sum() / len(batch["img"]), []
    started = clock(trainer)
    for source, kt in zip(sources, taught, strict=True):
        losses = source.lesson.losses(ks, kt, criterion.truth(batch, source, kt))
        found.append(read(task, losses, criterion.weights))
        source.balance.hear(found[-1], source.lesson.staying(host.remaining(criterion.detection)))
    return found, clock(trainer) - started


def forward(trainer: Any, batch: Batch, source: Source | None) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, with or without a teacher, and the seconds of each part."""
    student = host.unwrap_model(trainer.model)
    student.criterion = getattr(student, "criterion", None) or student.init_criterion()
    criterion, images = student.criterion, batch["img"]
    if hasattr(criterion, "student"):
        criterion.student.taps.open = source is not None
    marks = [clock(trainer)]
    with precision(trainer):
        preds = trainer.model(images)
        marks.append(clock(trainer))
        loss, trainer.loss_items = getattr(criterion, "detection", criterion)(preds, batch)
        total = loss.sum()
        marks.append(clock(trainer))
        if source:
            kt = source.teacher(batch)
            marks.append(clock(trainer))
    if source:
        losses = source.lesson.losses(criterion.student.knowledge(preds), kt, criterion.truth(batch, source, kt))
        total = total + len(images) * torch.stack([source.balance.gains[n] * v for n, v in losses.items()]).sum()
        marks.append(clock(trainer))
    return total, {part: end - begin for part, (begin, end) in zip(PARTS, pairwise(marks), strict=False)}


def step(trainer: Any, batch: Batch, source: Source | None) -> dict[str, float]:
    """Time a forward and backward pass, part by part [s]; no weight changes."""
    total, parts = forward(trainer, batch, source)
    started = clock(trainer)
    trainer.scaler.scale(total).backward()
    parts["backward_s"] = clock(trainer) - started
    trainer.optimizer.zero_grad()
    return {**parts, "step_s": sum(parts.values())}


def time_steps(
    trainer: Any, batches: Iterator[tuple[Batch, float]], sources: list[Source], deadline: float
) -> dict[str, Any]:
    """Time steps with and without teachers in turn on the same batches, then the optimizer; medians [s].

    Several teachers take turns, as in training, and the mean of their medians counts.
    """
    loads: list[float] = []
    plain: list[dict[str, float]] = []
    taught: list[list[dict[str, float]]] = [[] for _ in sources]
    step(trainer, next(batches)[0], None)  # the first one allocates
    while len(plain) < TIMED[1] and (len(plain) < TIMED[0] or clock(trainer) < deadline):
        batch, seconds = next(batches)
        loads.append(seconds)
        turn = len(plain) % max(1, len(sources))
        for is_taught in (False, True)[:: 1 if len(plain) % 2 else -1]:
            if not is_taught:
                plain.append(step(trainer, batch, None))
            elif sources:
                taught[turn].append(step(trainer, batch, sources[turn]))
    each = [medians(rows) for rows in taught if rows]
    return {
        "timed": len(plain),
        "load_s": median(loads),
        "plain": medians(plain),
        "taught": {part: fmean(row[part] for row in each) for part in each[0]} if each else {},
        "update_s": update_s(trainer, next(batches)[0]),
    }


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each part."""
    return {part: median(row[part] for row in rows) for part in rows[0]}


def update_s(trainer: Any, batch: Batch) -> float:
    """How long the optimizer and the moving average take for one update [s], the second time."""
    seconds = 0.0
    for _ in range(2):
        trainer.scaler.scale(forward(trainer, batch, None)[0]).backward()
        started = clock(trainer)
        trainer.optimizer_step()
        seconds = clock(trainer) - started
    return seconds


def memory(trainer: Any, batch: Batch, sources: list[Source]) -> dict[str, Any]:
    """What a training holds in memory [bytes], counted from its tensors once the optimizer has stepped.

    The sum leaves out what lives for a moment only. On CUDA the peaks of a step are there as well.
    """
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    states = [t for state in trainer.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    models = [s.teacher.model for s in sources if isinstance(s.teacher, LiveTeacher)]
    found: dict[str, Any] = {
        "parameters": size_of([*trainer.model.parameters(), *trainer.model.buffers()]),
        "gradients": size_of(trained),
        "optimizer": size_of(states),
        "average": size_of([*trainer.ema.ema.parameters(), *trainer.ema.ema.buffers()]),
        "teachers": sum(size_of([*m.parameters(), *m.buffers()]) for m in models),
    }
    turns: dict[str, Source | None] = {"plain": None, **({"taught": sources[0]} if sources else {})}
    for name, source in turns.items():
        saved = SavedTensorCounter(trainer.model, *(s.lesson.parts for s in sources))
        with saved:
            forward(trainer, batch, source)
        found[f"saved_{name}"] = saved.bytes
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
            step(trainer, batch, source)
            found[f"peak_{name}"] = torch.cuda.max_memory_allocated(trainer.device)
    return found


def size_of(tensors: list[Tensor]) -> int:
    """The bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


class SavedTensorCounter(saved_tensors_hooks):
    """Counts what a forward pass keeps for its backward pass, each storage once and weights not at all.

    Attributes:
        bytes: the count so far.
    """

    def __init__(self, *models: nn.Module):
        """Start a count.

        Args:
            models: whose weights and statistics are there anyway.
        """
        own = [t for m in models for t in (*m.parameters(), *m.buffers())]
        self.seen = {t.untyped_storage().data_ptr() for t in own}
        self.bytes = 0
        super().__init__(self._keep, lambda kept: kept)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def validation_s(trainer: Any) -> float:
    """How long the trainer's own validation of its few images takes [s]."""
    started = clock(trainer)
    trainer.validator(trainer)
    return clock(trainer) - started
