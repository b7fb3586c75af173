"""The loss of a distilled student: Ultralytics' detection loss plus the acting knowledge terms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.distill.balance import READINGS, GradientBalancer, read
from yolo_mkd.distill.distiller import Lesson
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.teachers import FeatureExtractor, LiveTeacher, Teacher, draw
from yolo_mkd.knowledge import Knowledge, Truth

PATIENCE = 20  # batches in a row in which a term may be NaN or infinite before training stops
EVERY = 50  # batches between two measurements of the gradients, which cost about one more step
MOST = 8  # of them in a long epoch, unless the gate hangs on them


@dataclass
class Source:
    """A teacher, what it can teach this student, and how much each term weighs."""

    teacher: Teacher
    lesson: Lesson
    balance: GradientBalancer


@dataclass
class Progress:
    """Where a run is: the epoch, the batch in it, and how many there are."""

    epoch: int = 0
    batch: int = 0
    batches: int = 1

    @property
    def now(self) -> float:
        """The epoch with its fraction."""
        return self.epoch + self.batch / self.batches


class Criterion:
    """Callable in the place of the student's own criterion: (raw outputs, batch) -> (loss vector, items).

    The detection loss stays first and untouched. Once the knowledge is off nothing else is computed, and the result is
    the detection loss itself.

    Attributes:
        skipped: how often each term was left out for being NaN or infinite.
    """

    def __init__(
        self,
        detection: Any,
        student: FeatureExtractor,
        sources: list[Source],
        schedule: Schedule,
        moment: Progress,
        weights: list[nn.Parameter],
        seed: int,
    ):
        """Join a detection loss with what the teachers know.

        Args:
            detection: the student's own criterion.
            student: hears the student.
            sources: the teachers, one of which is drawn for each batch.
            schedule: when the knowledge speaks.
            moment: where the run is; kept up to date by the trainer.
            weights: the student's, on which gradients are measured.
            seed: of the draws.
        """
        self.detection, self.student, self.sources, self.seed = detection, student, sources, seed
        self.schedule, self.moment, self.weights = schedule, moment, weights
        self.columns = list(dict.fromkeys(t.name for s in sources for t in s.lesson.acting))
        self.step = 0
        self.measured: dict[str, int] = {}  # the step at which each teacher's gradients were last measured
        self.skipped: Counter[str] = Counter()
        self.in_a_row: Counter[str] = Counter()
        if hasattr(detection, "update"):  # the dual heads' epoch counter, which the trainer looks for
            self.update = detection.update

    @property
    def on(self) -> bool:
        """Whether the knowledge still speaks."""
        return self.moment.now < self.schedule.end

    @property
    def weight(self) -> float:
        """The schedule's weight for the next batch."""
        return self.schedule.weight(self.moment.now)

    @property
    def source(self) -> Source:
        """The teacher that the next batch hears."""
        return self.sources[draw(self.seed, self.step, len(self.sources))]

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Let a live teacher look at the next batch while the student does."""
        if self.on and isinstance(self.source.teacher, LiveTeacher):
            self.source.teacher.prefetch(batch)

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            preds: the student's raw head outputs.
            batch: Ultralytics' batch, with `img` B C H W.

        Returns:
            The detection loss vector with the knowledge's loss appended (times the batch size, as Ultralytics has it),
            and the named items: the detection loss's, then each term's own loss as `kd/name`, then `kd/weight`.

        Raises:
            FloatingPointError: a term was NaN or infinite in 20 batches in a row.
        """
        images = batch["img"]
        labelled = batch.get("labelled", len(images))
        loss, items = self.detection(preds if labelled == len(images) else host.first(preds, labelled), batch)
        values: dict[str, Tensor] = {}
        if self.on:
            source = self.source
            taught = source.teacher(batch)
            with torch.autocast(images.device.type, enabled=False):  # the terms need full precision
                values, total = self._knowledge(source, preds, taught, batch, loss.sum() / labelled)
            loss = torch.cat([loss, total.view(1) * labelled])
        self.step += 1
        zero = loss.new_zeros(())
        items = {**items, **{f"kd/{name}": values.get(name, zero).detach() for name in self.columns}}
        return loss, {**items, "kd/weight": zero + self.weight}

    def truth(self, batch: dict[str, Any], source: Source, kt: Knowledge) -> Truth:
        """A batch's labels and what weighs them now, as the terms take them.

        Args:
            batch: Ultralytics' batch.
            source: whose terms they are.
            kt: what its teacher says about the batch; until gains are frozen, classes are weighed by this too.
        """
        if self.moment.now < self.schedule.fitted:
            source.balance.weigh(source.lesson.masses(kt), source.lesson.labels(batch["cls"]))
        boxes, branches = batch["bboxes"][:, :4].float(), host.branch_weights(self.detection)
        return Truth(boxes, batch["batch_idx"], branches=branches, classes=source.balance.classes())

    def _knowledge(
        self, source: Source, preds: Any, kt: Any, batch: dict[str, Any], task: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Each term's loss, and their weighted sum per image."""
        lesson, balance = source.lesson, source.balance
        ks, truth = self.student.knowledge(preds), self.truth(batch, source, kt)
        if "labelled" in batch:
            truth = replace(truth, labelled=batch["labelled"], weight=trust(kt, batch["labelled"], len(batch["img"])))
        stays = lesson.staying(host.remaining(self.detection))
        steer = self.moment.now >= self.schedule.fitted
        if self._due(source):
            self.measured[source.teacher.name] = self.step
            full = lesson.losses(ks, kt, truth)
            balance.hear(read(task, full, self.weights), stays)
            values = full if steer else {**full, **lesson.losses(ks, kt, truth, steer)}
        else:
            values = lesson.losses(ks, kt, truth, steer)
        values = self._finite(values)
        apart = set() if steer else set(lesson.parts)  # while only the parts of a term learn, they do so at full weight
        total = task.new_zeros(())
        for name, value in values.items():
            total = total + balance.gain(name) * value * (1.0 if name in apart else self.weight * stays[name])
        return values, total

    def _due(self, source: Source) -> bool:
        """Whether this batch's gradients are measured: evenly, and more often until the gains are frozen."""
        moment, balance = self.moment, source.balance
        last = self.measured.get(source.teacher.name, -math.inf)
        if self.step - last >= spacing(moment.batches, balance.gate):
            return True
        wanted = math.ceil(READINGS / self.schedule.fitted)  # in an epoch
        return not balance.frozen and balance.heard < wanted and moment.batch / moment.batches >= balance.heard / wanted

    def _finite(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out terms that are NaN or infinite and count them, so that they never reach the optimiser."""
        good = torch.stack([v.detach() for v in values.values()]).isfinite().tolist()  # one sync with the device
        for name, fine in zip(values, good, strict=True):
            self.in_a_row[name] = 0 if fine else self.in_a_row[name] + 1
            self.skipped[name] += not fine
            if self.in_a_row[name] >= PATIENCE:
                raise FloatingPointError(
                    f"the knowledge term {name} was NaN or infinite in {PATIENCE} batches in a row: "
                    f"switch it off ({name}=0), lower the learning rate, or train without half precision (amp=False)"
                )
        return {name: v for (name, v), fine in zip(values.items(), good, strict=True) if fine}


def spacing(batches: int, gate: bool = False) -> int:
    """How far apart gradients are measured once gains are frozen [batches].

    Args:
        batches: of an epoch.
        gate: whether a term may be left out on what is measured.
    """
    return EVERY if gate else max(EVERY, batches // MOST)


def trust(kt: Knowledge, labelled: int, images: int) -> Tensor | None:
    """How much each image of a joined batch counts: 1 with labels, else the teacher's best score in it.

    Args:
        kt: the teacher's knowledge.
        labelled: images with labels, the first ones.
        images: in the batch.

    Returns:
        B in (0, 1]; None where the teacher gives no scores (RT-DETR), so that all count alike.
    """
    if not kt.branches:
        return None
    best = next(iter(kt.branches.values())).logits.sigmoid().amax((1, 2))  # B
    return torch.cat([torch.ones_like(best[:labelled]), best[labelled:images]])
