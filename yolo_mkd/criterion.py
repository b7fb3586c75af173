"""The loss of a distilled student: Ultralytics' detection loss plus the acting knowledge terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolo_mkd.lesson import Lesson
from yolo_mkd.teachers import Listener, Teacher, draw

PATIENCE = 20  # batches in a row in which a term may be NaN or infinite before training stops


@dataclass
class Source:
    """A teacher and what it can teach this student."""

    teacher: Teacher
    lesson: Lesson


class Criterion:
    """Callable in the place of the student's own criterion: (raw outputs, batch) -> (loss vector, items).

    The detection loss stays first and untouched. While the knowledge's weight is 0 nothing else is computed, and the
    result is the detection loss itself.

    Attributes:
        weight: gives the knowledge's weight for the batch at hand; set by the trainer.
        skipped: how often each term was left out for being NaN or infinite.
    """

    def __init__(
        self,
        detection: Callable[..., Any],
        student: Listener,
        sources: list[Source],
        weight: Callable[[], float],
        seed: int,
    ):
        """Join a detection loss with what the teachers know.

        Args:
            detection: the student's own criterion.
            student: hears the student.
            sources: the teachers, one of which is drawn for each batch.
            weight: the knowledge's weight for the next batch, in [0, 1].
            seed: of the draws.
        """
        self.detection, self.student, self.sources, self.weight, self.seed = detection, student, sources, weight, seed
        self.columns = list(dict.fromkeys(t.name for s in sources for t in s.lesson.acting))
        self.step = 0
        self.skipped: Counter[str] = Counter()
        self.in_a_row: Counter[str] = Counter()
        if hasattr(detection, "update"):  # the dual heads' epoch counter, which the trainer looks for
            self.update = detection.update

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
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
        loss, items = self.detection(preds, batch)
        weight = self.weight()
        values: dict[str, Tensor] = {}
        if weight > 0:
            images = batch["img"]
            source = self.sources[draw(self.seed, self.step, len(self.sources))]
            taught = source.teacher.speak(images)
            with torch.autocast(images.device.type, enabled=False):  # the terms need full precision
                values = self._finite(source.lesson.losses(self.student.knowledge(preds), taught))
            gains = {t.name: t.gain for t in source.lesson.acting}
            if values:
                knowledge = torch.stack([gains[name] * value for name, value in values.items()]).sum()
                loss = torch.cat([loss, knowledge.view(1) * weight * len(images)])
        self.step += 1
        zero = loss.new_zeros(())
        items = {**items, **{f"kd/{name}": values.get(name, zero).detach() for name in self.columns}}
        return loss, {**items, "kd/weight": zero + weight}

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
