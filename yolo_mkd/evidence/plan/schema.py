"""The fields of a plan's figures, as `plan(json=)` writes them. Times are in seconds or hours, sizes in bytes."""

from __future__ import annotations

from typing import Any, TypedDict


class Summary(TypedDict):
    """A mean over batches, its standard deviation and the values."""

    mean: float
    sd: float
    values: list[float]


class TermFigures(TypedDict, total=False):
    """One term between a teacher and a student; gradients only where the teacher is trained already.

    Attributes:
        term: its name.
        asked: the share, or the gain without calibration.
        acts: whether it takes part.
        why_not: why it does not; empty if it does.
        reads: what it compares.
        trains: parameters of its adapters.
        nominal_gain: the gain without a measurement.
        share: its gradient over the detection loss's at the nominal gain.
        gain: the gain that gives the share that is asked for.
        at_limit: whether that gain is at a limit.
        cosine: of the angle between the two gradients.
    """

    term: str
    asked: float
    acts: bool
    why_not: str
    reads: str
    trains: int
    nominal_gain: float
    share: Summary
    gain: float
    at_limit: bool
    cosine: Summary


class HopFigures(TypedDict):
    """One teacher of a stage.

    Attributes:
        teacher: its name in the chain.
        file: its file name; None for a stand-in of a model that the chain has yet to train.
        known: whether it is the trained teacher itself.
        parameters: how many it has.
        gflops: at the teacher's image size.
        ratio: its parameters over the student's.
        terms: in the order of `TERMS`.
        layers: the layers compared, by role.
        strides: of student and teacher.
        unknown_classes: the data's classes that it lacks.
        notes: what is matched only in part.
    """

    teacher: str
    file: str | None
    known: bool
    parameters: int
    gflops: float
    ratio: float
    terms: list[TermFigures]
    layers: dict[str, dict[str, dict[str, int]]]
    strides: dict[str, tuple[int, ...]]
    unknown_classes: list[str]
    notes: list[str]


class StageFigures(TypedDict):
    """One training of the chain.

    Attributes:
        name: of the stage.
        model: the model's file name.
        trained: whether it starts from trained weights.
        start: `slice` or `teacher` where its teacher gives weights, `plain` where it has its own.
        taken: the share of them that its teacher gives.
        parameters: how many the model has.
        gflops: at the image size of the run.
        epochs: of the run.
        knowledge_epochs: of them with distillation.
        updates: of the optimizer, about.
        mosaic_epochs: epochs with mosaic.
        optimizer: its class.
        hears: names of its teachers.
        hops: its teachers.
        cost: of a step and of the run, and what was measured (`probe`).
        memory: by part, and in total with and without teachers.
        disk: of checkpoints at the peak, and kept.
        joined: images of a distilled batch for each labelled one.
        teacher_every: batches of which one is distilled.
        record: the teacher caches.
    """

    name: str
    model: str
    trained: bool
    start: str
    taken: float
    parameters: int
    gflops: float
    epochs: int
    knowledge_epochs: int
    updates: int
    mosaic_epochs: int
    optimizer: str
    hears: list[str]
    hops: list[HopFigures]
    cost: dict[str, Any]
    memory: dict[str, int]
    disk: dict[str, int]
    joined: float
    teacher_every: int
    record: list[dict[str, int]]


class PlanFigures(TypedDict, total=False):
    """A plan.

    Attributes:
        data: the data set's YAML file.
        classes: how many it has.
        train_images: in its training split.
        val_images: in its validation split.
        device: that measured.
        device_memory: of a GPU.
        imgsz: image size of the run [pixels].
        batch: images a step.
        batch_is_automatic: whether Ultralytics chooses the batch when training starts.
        calibrate: whether gains are measured.
        gate: whether opposing terms are left out.
        named_terms: terms that the user set.
        assistant: how it was chosen.
        stages: of the chain.
        examined_images: on which accuracy was measured.
        accuracy: of the trained models, by name.
        total: hours and disk of all stages.
        warnings: each with `what`, `stage` and `text`.
        answer: the verdict.
        seconds: that planning took.
    """

    data: str
    classes: int
    train_images: int
    val_images: int
    device: str
    device_memory: int | None
    imgsz: int
    batch: int
    batch_is_automatic: bool
    calibrate: bool
    gate: bool
    named_terms: list[str]
    assistant: str
    stages: list[StageFigures]
    examined_images: int
    accuracy: dict[str, dict[str, Any]]
    total: dict[str, float]
    warnings: list[dict[str, str]]
    answer: str
    seconds: float
