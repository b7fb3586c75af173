"""The cost of one stage of a chain and its terms' gradients, measured on a few real batches without training it."""

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
from yolo_mkd.distill.balance import GradientRatio, gradient_ratios
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.host.dry import disk, precision

MEASURED = (2, 8)  # batches at least and at most on which gradients are measured
TIMED = (3, 12)  # and steps are timed
PARTS = ("student_s", "loss_s", "teacher_s", "terms_s")  # of a forward pass

Batch = dict[str, Any]


@dataclass
class Probe:
    """Measures on a trainer that is set up and will not train; `host.dry.dry_run` calls it.

    Attributes:
        seconds: that gradients and steps may take together, about [s].
        distillers: the trainer's, after the call.
        ratios: of each of them, one dict of gradient ratios by term for each batch.
        figures: costs.
        args: all of Ultralytics' arguments.
    """

    seconds: float
    distillers: list[Distiller] = field(default_factory=list)
    ratios: list[list[dict[str, GradientRatio]]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    args: Any = None

    def __call__(self, trainer: Any) -> None:
        """Measure everything, and leave a checkpoint."""
        started = time.perf_counter()
        trainer.epoch, self.args = 0, trainer.args
        self.distillers = trainer.kd.distillers if hasattr(trainer, "kd") else []
        batches = prepared(trainer)
        reading_s = self._measure(trainer, batches, started + self.seconds / 2)
        steps = time_steps(trainer, batches, self.distillers, started + self.seconds)
        batch = next(batches)[0]
        self.figures = {
            "batch": len(batch["img"]),
            "reading_s": reading_s,
            **steps,
            "memory": memory(trainer, batch, self.distillers),
            "val_s_per_image": validation_s(trainer) / len(trainer.test_loader.dataset),
            "disk": disk(trainer),
            "size": host.size(trainer.last, trainer.args.imgsz),
            "optimizer": type(trainer.optimizer).__name__,
        }

    def _measure(self, trainer: Any, batches: Iterator[tuple[Batch, float]], deadline: float) -> float:
        """Measure gradients while there is time; how long one batch of one teacher took beyond its forward pass [s]."""
        self.ratios = [[] for _ in self.distillers]
        took: list[float] = []
        while self.distillers and len(took) < MEASURED[1] and (len(took) < MEASURED[0] or clock(trainer) < deadline):
            found, seconds = measure(trainer, next(batches)[0], self.distillers)
            took.append(seconds / len(self.distillers))
            for own, ratios in zip(self.ratios, found, strict=True):
                own.append(ratios)
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


def measure(trainer: Any, batch: Batch, distillers: list[Distiller]) -> tuple[list[dict[str, GradientRatio]], float]:
    """Measure one batch's gradient ratios of each distiller as in training; the ratios and the time it took [s]."""
    criterion = host.unwrap_model(trainer.model).criterion
    criterion.student.hooks.open = True
    with precision(trainer):
        preds = trainer.model(batch["img"])
        loss, _ = criterion.detection(preds, batch)
        outputs = [d.teacher({**batch, "preds": preds}) for d in distillers]
    ks, task, found = criterion.student.collect(preds), loss.sum() / len(batch["img"]), []
    started = clock(trainer)
    for distiller, kt in zip(distillers, outputs, strict=True):
        losses = distiller.losses(ks, kt, *criterion.weigh(distiller, kt, batch))
        found.append(gradient_ratios(task, losses, criterion.weights))
        distiller.balancer.update(found[-1], distiller.trunk_scales(host.remaining(criterion.detection)))
    return found, clock(trainer) - started


def forward(trainer: Any, batch: Batch, distiller: Distiller | None) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, with or without a teacher, and the seconds of each part."""
    student = host.unwrap_model(trainer.model)
    student.criterion = getattr(student, "criterion", None) or student.init_criterion()
    criterion, images = student.criterion, batch["img"]
    if hasattr(criterion, "student"):
        criterion.student.hooks.open = distiller is not None
    marks = [clock(trainer)]
    with precision(trainer):
        preds = trainer.model(images)
        marks.append(clock(trainer))
        loss, trainer.loss_items = getattr(criterion, "detection", criterion)(preds, batch)
        total = loss.sum()
        marks.append(clock(trainer))
        if distiller:
            kt = distiller.teacher({**batch, "preds": preds})
            marks.append(clock(trainer))
    if distiller:
        losses = distiller.losses(criterion.student.collect(preds), kt, *criterion.weigh(distiller, kt, batch))
        total = total + len(images) * torch.stack([distiller.balancer.gains[n] * v for n, v in losses.items()]).sum()
        marks.append(clock(trainer))
    return total, {part: end - begin for part, (begin, end) in zip(PARTS, pairwise(marks), strict=False)}


def step(trainer: Any, batch: Batch, distiller: Distiller | None) -> dict[str, float]:
    """Time a forward and backward pass, part by part [s]; no weight changes."""
    total, parts = forward(trainer, batch, distiller)
    started = clock(trainer)
    trainer.scaler.scale(total).backward()
    parts["backward_s"] = clock(trainer) - started
    trainer.optimizer.zero_grad()
    return {**parts, "step_s": sum(parts.values())}


def time_steps(
    trainer: Any, batches: Iterator[tuple[Batch, float]], distillers: list[Distiller], deadline: float
) -> dict[str, Any]:
    """Time steps with and without teachers in turn on the same batches, then the optimizer; medians [s].

    Several teachers take turns, as in training, and the mean of their medians counts.
    """
    loads: list[float] = []
    plain: list[dict[str, float]] = []
    taught: list[list[dict[str, float]]] = [[] for _ in distillers]
    step(trainer, next(batches)[0], None)  # the first one allocates
    while len(plain) < TIMED[1] and (len(plain) < TIMED[0] or clock(trainer) < deadline):
        batch, seconds = next(batches)
        loads.append(seconds)
        turn = len(plain) % max(1, len(distillers))
        plain_first = len(plain) % 2 == 1
        for is_distilled in (False, True) if plain_first else (True, False):
            if not is_distilled:
                plain.append(step(trainer, batch, None))
            elif distillers:
                taught[turn].append(step(trainer, batch, distillers[turn]))
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


def memory(trainer: Any, batch: Batch, distillers: list[Distiller]) -> dict[str, Any]:
    """What a training holds in memory [bytes], counted from its tensors once the optimizer has stepped.

    The sum leaves out what lives for a moment only. On CUDA the peaks of a step are there as well.
    """
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    states = [t for state in trainer.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    models = [d.teacher.model for d in distillers if isinstance(d.teacher, LiveTeacher)]
    found: dict[str, Any] = {
        "parameters": size_of([*trainer.model.parameters(), *trainer.model.buffers()]),
        "gradients": size_of(trained),
        "optimizer": size_of(states),
        "average": size_of([*trainer.ema.ema.parameters(), *trainer.ema.ema.buffers()]),
        "teachers": sum(size_of([*m.parameters(), *m.buffers()]) for m in models),
    }
    turns: dict[str, Distiller | None] = {"plain": None, **({"taught": distillers[0]} if distillers else {})}
    for name, distiller in turns.items():
        saved = SavedTensorCounter(trainer.model, *(d.adapters for d in distillers))
        with saved:
            forward(trainer, batch, distiller)
        found[f"saved_{name}"] = saved.bytes
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
            step(trainer, batch, distiller)
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
