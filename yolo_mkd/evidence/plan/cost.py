"""The cost of a stage: from what was measured on a few images to the whole run that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from yolo_mkd.distill.balance import MEASUREMENTS
from yolo_mkd.distill.criterion import measurement_interval
from yolo_mkd.distill.schedule import Schedule


@dataclass(frozen=True)
class Run:
    """The run that is asked for.

    Attributes:
        epochs: how many.
        batch: images a step.
        images: in the training split.
        val_images: in the validation split.
        nbs: images that one optimizer update gathers, as Ultralytics has it.
        schedule: of the knowledge.
        hours: what the user limits the run to [h]; None is unlimited.
        save_period: epochs between checkpoints that are kept; -1 is none.
        validates: whether every epoch is validated.
        asked: epochs in which the teacher is asked; in the others its record is replayed. None is all that it teaches.
        joined: images in a taught step for each labelled one, with those that have no label.
    """

    epochs: int
    batch: int
    images: int
    val_images: int
    nbs: int
    schedule: Schedule
    hours: float | None
    save_period: int
    validates: bool
    asked: int | None = None
    joined: float = 1.0

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return math.ceil(self.images / self.batch)

    @property
    def updates(self) -> int:
        """Optimizer updates in the whole run, about: the warm-up has some more."""
        joined = 1 + (self.joined - 1) / self.schedule.every
        gathered = min(max(round(self.nbs / joined / self.batch), 1), self.batches * self.epochs)
        return math.ceil(self.batches * self.epochs / gathered)


def duration(run: Run, probed: dict[str, Any]) -> dict[str, float]:
    """How long a step and the whole run take.

    Args:
        run: the run that is asked for.
        probed: seconds, as `probe.Probe` found them.

    Returns:
        Seconds of a step with and without teachers, what the teachers add to the mean step of a distilled epoch [%],
        hours of the run, of a plain one and of one that finds its record complete. Steps are scaled from the probe's
        batch by the number of images.
    """
    scale = run.batch / probed["batch"]
    plain, taught = probed["plain"]["step_s"] * scale, probed["taught"].get("step_s", 0.0) * scale * run.joined
    steps = run.batches * run.epochs
    every = run.schedule.every
    on = math.ceil(run.batches * run.schedule.end / every) if taught else 0
    wanted = on / measurement_interval(run.batches) + MEASUREMENTS
    reading = min(wanted, on) * probed["reading_s"] * scale * run.joined
    validation = probed["val_s_per_image"] * run.val_images * (run.epochs + 1 if run.validates else 2)
    more = (run.joined - 1) * on  # loads of unlabelled images, in batches

    def around(loads: float, updates: int) -> float:
        return probed["load_s"] * scale * loads + probed["update_s"] * updates + validation

    beside = around(steps + more, run.updates)
    alone = steps * plain + around(steps, replace(run, joined=1).updates)
    replayed = taught - probed["taught"].get("teacher_s", 0.0) * scale * run.joined
    asked = on if run.asked is None else min(on, math.ceil(run.batches * run.asked / every))
    rest = (steps - on) * plain + reading + beside
    hours = (asked * taught + (on - asked) * replayed + rest) / 3600
    return {
        "step_plain_s": plain,
        "step_taught_s": taught or plain,
        "extra_percent": 100 * (taught / plain - 1) / every if taught else 0.0,
        "load_s": probed["load_s"] * scale,
        "validation_s": probed["val_s_per_image"] * run.val_images,
        "hours": hours if run.hours is None else run.hours,
        "hours_plain": alone / 3600 if run.hours is None else run.hours,
        "hours_replayed": (on * replayed + rest) / 3600 if run.hours is None else run.hours,
    }


def memory(run: Run, probed: dict[str, Any]) -> dict[str, int]:
    """What the run holds in memory [bytes]: weights as counted, activations scaled to its batch.

    Args:
        run: the run that is asked for.
        probed: bytes, as `probe.Probe` found them.
    """
    found, scale = probed["memory"], run.batch / probed["batch"]
    student = sum(found[k] for k in ("parameters", "gradients", "optimizer", "average"))
    plain = round(found.get("saved_plain", 0) * scale)
    taught = round(found.get("saved_taught", 0) * scale * run.joined)
    return {
        **{k: v for k, v in found.items() if not k.startswith("saved")},
        "activations_plain": plain,
        "activations_taught": taught or plain,
        "total_plain": student + plain,
        "total_taught": student + found["teachers"] + (taught or plain),
    }


def disk(run: Run, probed: dict[str, Any]) -> dict[str, int]:
    """Checkpoints on disk [bytes]: while the run trains, and once it is done."""
    one = probed["disk"]
    periodic = (run.epochs - 1) // run.save_period * one["while_training"] if run.save_period > 0 else 0
    return {
        "peak": 2 * one["while_training"] + one["beside"] + periodic,
        "kept": 2 * one["at_the_end"] + periodic,
    }
