"""The loss of a distilled student: Ultralytics' detection loss plus the acting knowledge terms."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.distill.balance import MEASUREMENTS, gradient_ratios
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.teachers import draw
from yolo_mkd.knowledge import Knowledge, LossWeights, Targets, ranks

PATIENCE = 20  # batches in a row in which a term may be NaN or infinite before training stops
EVERY = 50  # batches between two measurements of the gradients, which cost about one more step
MOST = 8  # measurements in a long epoch, unless the gate depends on them


@dataclass
class Progress:
    """How far a run is: the epoch, the batch in it, and how many there are."""

    epoch: int = 0
    batch: int = 0
    batches: int = 1

    @property
    def now(self) -> float:
        """The epoch with its fraction."""
        return self.epoch + self.batch / self.batches


class Criterion:
    """Callable in the place of the student's own criterion: (raw outputs, batch) -> (loss vector, items).

    The detection loss stays first and untouched. Once distillation is off nothing else is computed, and the result is
    the detection loss itself.

    Attributes:
        skipped: how often each term was left out for being NaN or infinite.
        due: decides whether a distiller's gradients are measured on this batch; probes may put their own here.
        section: a context around the parts of a step, `teacher` and `terms`; a stopwatch may put its own here.
    """

    def __init__(
        self,
        detection: Any,
        student: FeatureExtractor,
        distillers: list[Distiller],
        schedule: Schedule,
        progress: Progress,
        weights: list[nn.Parameter],
        seed: int,
        in_turn: bool = False,
    ):
        """Add distillation to a detection loss.

        Args:
            detection: the student's own criterion.
            student: collects the student's outputs.
            distillers: one for each teacher; one of them is drawn for each batch, unless `in_turn`.
            schedule: the weight of distillation over the run.
            progress: how far the run is; kept up to date by the trainer.
            weights: the student's parameters on which gradients are measured.
            seed: of the draws.
            in_turn: use one distiller after another, each for an equal part of the distilled epochs, instead of draws.
        """
        self.in_turn = in_turn
        self.detection, self.student, self.distillers, self.seed = detection, student, distillers, seed
        self.schedule, self.progress, self.weights = schedule, progress, weights
        self.columns = list(dict.fromkeys(t.name for d in distillers for t in d.acting))
        self.due: Callable[[Distiller], bool] = self._due
        self.section: Callable[[str], AbstractContextManager[Any]] = nullcontext
        self.step = 0
        self.measured: dict[str, int] = {}  # the step at which each teacher's gradients were last measured
        self.skipped: Counter[str] = Counter()
        self.in_a_row: Counter[str] = Counter()
        if hasattr(detection, "update"):  # the dual heads' epoch counter, which the trainer looks for
            self.update = detection.update

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied or pickled with the student, it is the plain detection loss: no checkpoint needs this project."""
        return copy.copy, (self.detection,)

    @property
    def on(self) -> bool:
        """Whether the next batch is distilled."""
        return self.progress.now < self.schedule.end and self.step % self.schedule.every == 0

    @property
    def weight(self) -> float:
        """The schedule's weight for the next batch."""
        return self.schedule.weight(self.progress.now)

    @property
    def distiller(self) -> Distiller:
        """The distiller of the next batch."""
        count = len(self.distillers)
        if self.in_turn:
            return self.distillers[min(int(self.progress.now / self.schedule.end * count), count - 1)]
        return self.distillers[draw(self.seed, self.step, count)]

    def fitted(self, index: int) -> float:
        """Until when a distiller's adapters learn without moving the student, and its gains are measured [epochs]."""
        if not self.in_turn:
            return self.schedule.fitted
        span = self.schedule.end / len(self.distillers)
        return index * span + min(self.schedule.fitted, span / 3)

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Let the next batch's teacher compute beside the student."""
        if self.on:
            with self.section("teacher"):
                self.distiller.teacher.prefetch(batch)

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            preds: the student's raw head outputs.
            batch: Ultralytics' batch, with `img` B C H W.

        Returns:
            The detection loss vector with the distillation loss appended (times the batch size, as Ultralytics has
            it), and the named items: the detection loss's, then each term's own loss as `kd/name`, then `kd/weight`.
            Where one batch of k is distilled, its terms and their items are k times as large, so that means are right.

        Raises:
            FloatingPointError: a term was NaN or infinite in 20 batches in a row.
        """
        images = batch["img"]
        labelled = batch.get("labelled", len(images))
        loss, items = self.detection(preds if labelled == len(images) else host.of_first(preds, labelled), batch)
        values: dict[str, Tensor] = {}
        if self.on:
            distiller = self.distiller
            with self.section("teacher"):
                kt = distiller.teacher({**batch, "preds": preds})
            with self.section("terms"), torch.autocast(images.device.type, enabled=False):  # terms need full precision
                values, total = self._distil(distiller, preds, kt, batch, loss.sum() / labelled)
            values = {name: value.detach() * self.schedule.every for name, value in values.items()}
            loss = torch.cat([loss, total.view(1) * (labelled * self.schedule.every)])
        self.step += 1
        zero = loss.new_zeros(())
        items = {**items, **{f"kd/{name}": values.get(name, zero) for name in self.columns}}
        return loss, {**items, "kd/weight": zero + self.weight}

    def _distil(
        self, distiller: Distiller, preds: Any, kt: Knowledge, batch: dict[str, Any], task: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Each term's loss, and their weighted sum per image."""
        ks = self.student.collect(preds)
        targets, weights = self.weigh(distiller, kt, batch)
        steer = self.progress.now >= self.fitted(self.distillers.index(distiller))
        values: dict[str, Tensor] = {}
        if self.due(distiller):
            values = self.measure(distiller, task, distiller.losses(ks, kt, targets, weights))
        if not values or not steer:  # adapters that only fit see a detached student, which measuring does not
            values = {**values, **distiller.losses(ks, kt, targets, weights, steer)}
        values = self._finite(values)
        return values, self.combine(distiller, values, steer, task.new_zeros(()))

    def weigh(self, distiller: Distiller, kt: Knowledge, batch: dict[str, Any]) -> tuple[Targets, LossWeights]:
        """A batch's labels, and the weights of its images, branches and classes.

        Until the gains are frozen, the teacher's scores in this batch count towards the class weights.

        Args:
            distiller: whose terms they are for.
            kt: its teacher's outputs.
            batch: Ultralytics' batch.
        """
        if self.progress.now < self.fitted(self.distillers.index(distiller)):
            distiller.balancer.observe_classes(distiller.class_masses(kt), distiller.label_counts(batch["cls"]))
        labelled, images = batch.get("labelled"), len(batch["img"])
        return (
            Targets(batch["bboxes"][:, :4].float(), batch["batch_idx"], labelled, batch["cls"].flatten().long()),
            LossWeights(
                images=None if labelled is None else image_weights(kt, labelled, images),
                branches=host.branch_weights(self.detection),
                classes=distiller.balancer.class_weights(),
            ),
        )

    def measure(self, distiller: Distiller, task: Tensor, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compare each term's gradient with the task's and update the loss weights; the losses as they were given."""
        self.measured[distiller.teacher.name] = self.step
        scales = distiller.trunk_scales(host.remaining(self.detection))
        distiller.balancer.update(gradient_ratios(task, losses, self.weights), scales)
        return losses

    def combine(self, distiller: Distiller, values: dict[str, Tensor], steer: bool, total: Tensor) -> Tensor:
        """The weighted sum of the terms, added to `total`: gain x schedule x trunk scale x loss.

        Args:
            distiller: whose gains count.
            values: each term's loss.
            steer: whether terms with adapters move the student; while only their adapters fit, they do so at full
                weight.
            total: a scalar to begin with.
        """
        scales = distiller.trunk_scales(host.remaining(self.detection))
        fitting = set() if steer else set(distiller.adapters)
        for name, value in values.items():
            factor = 1.0 if name in fitting else self.weight * scales[name]
            total = total + distiller.balancer.gain(name) * value * factor
        return total

    def _due(self, distiller: Distiller) -> bool:
        """Whether this batch's gradients are measured: evenly, and more often until the gains are frozen."""
        progress, balancer = self.progress, distiller.balancer
        last = self.measured.get(distiller.teacher.name, -math.inf)
        if self.step - last >= measurement_interval(progress.batches, balancer.gate):
            return True
        wanted = math.ceil(MEASUREMENTS / self.fitted(0))  # in an epoch
        behind = progress.batch / progress.batches >= balancer.measured / wanted
        return not balancer.frozen and balancer.measured < wanted and behind

    def _finite(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out terms that are NaN or infinite and count them, so that they never reach the optimiser."""
        bad = ranks.total((~torch.stack([v.detach() for v in values.values()]).isfinite()).int())  # on any rank
        good = (bad == 0).tolist()  # one sync with the device
        for name, fine in zip(values, good, strict=True):
            self.in_a_row[name] = 0 if fine else self.in_a_row[name] + 1
            self.skipped[name] += not fine
            if self.in_a_row[name] >= PATIENCE:
                raise FloatingPointError(
                    f"the distillation term {name} was NaN or infinite in {PATIENCE} batches in a row: "
                    f"switch it off ({name}=0), lower the learning rate, or train without half precision (amp=False)"
                )
        return {name: v for (name, v), fine in zip(values.items(), good, strict=True) if fine}


def measurement_interval(batches: int, gate: bool = False) -> int:
    """How far apart gradients are measured once gains are frozen [batches].

    Args:
        batches: of an epoch.
        gate: whether a term may be left out because of a measurement.
    """
    return EVERY if gate else max(EVERY, batches // MOST)


def image_weights(kt: Knowledge, labelled: int, images: int) -> Tensor | None:
    """The weight of each image of a joined batch: 1 with labels, else the teacher's best score in it.

    Args:
        kt: the teacher's outputs.
        labelled: images with labels, the first ones.
        images: in the batch.

    Returns:
        B in (0, 1]; None where the teacher gives no scores (RT-DETR), so that all count alike.
    """
    if not kt.branches:
        return None
    best = kt.best_scores()
    return torch.cat([torch.ones_like(best[:labelled]), best[labelled:images]])
