"""The fields of what a comparison writes: compare.yaml (the plan), result.json (a trial) and compare.json (the report).

These names are on disk, so a change of one needs a new schema version.
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, Required, TypedDict

from yolo_mkd.chain.document import TeacherFile
from yolo_mkd.documents import Number


class ComparisonPlan(TypedDict):
    """The contents of compare.yaml.

    Attributes:
        schema: `yolo-mkd/comparison/2`.
        started: date and time, ISO 8601.
        verb: compare or ablate.
        asked: the user's arguments.
        command: the same as a command line.
        files: absolute paths of data sets, students, teacher and assistant.
        versions: of the packages.
        methods: by name, the arguments that each one changes.
        settings: by distilled method, M-KD's arguments with defaults and preset filled in.
        references: methods that the others are compared with.
        seeds: of all trials.
        device: the device argument, if given.
        teacher: None if no method has a teacher.
        live: by method, why it runs the teacher although record=true.
        replayed: methods that read a teacher cache.
        latency: whether the students are exported and timed.
        cells: the fields of each `Trial`.
    """

    schema: str
    started: str
    verb: str
    asked: dict[str, Any]
    command: str
    files: dict[str, Any]
    versions: dict[str, str]
    methods: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    references: list[str]
    seeds: list[int]
    device: Any
    teacher: TeacherFile | None
    live: dict[str, str]
    replayed: list[str]
    latency: bool
    cells: list[dict[str, Any]]


class TaskScores(TypedDict, total=False):
    """The mAP50-95 of what a segmentation or pose head has beside boxes."""

    mask_map50_95: Number
    pose_map50_95: Number


class HeadScores(TaskScores):
    """The accuracy of a checkpoint through one head; `classes` holds the mAP50-95 of each class in val.

    For an oriented-box head the figures are those of oriented boxes.
    """

    map50_95: Number
    map50: Number
    classes: dict[str, Number]


class CheckpointScores(HeadScores, total=False):
    """The accuracy through NMS and, for a model with a one2one head, without NMS."""

    nms_free: HeadScores


class CurvePoint(TypedDict):
    """The accuracy of a student at one point of its run, validated outside the clock.

    Attributes:
        epoch: of the student's training, from 1.
        images: that it was trained on until then, with those of earlier stages of a chain.
        train_s: wall-clock time of the training loops until then, with those of earlier stages [s].
        cost_s: the same in processor time if trained on a CPU [s].
        map50_95: through NMS.
        nms_free_map50_95: through the one2one head; None if the student has no such head.
    """

    epoch: int
    images: int
    train_s: float
    cost_s: float
    map50_95: float
    nms_free_map50_95: float | None


class TrialResult(TypedDict, total=False):
    """The contents of a trial's result.json.

    Attributes:
        status: done or failed.
        reason: why it failed; nothing else is there then.
        best: scores of best.pt.
        last: scores of last.pt.
        parameters: of the student.
        gflops: of the student at the image size of the validation.
        epochs: of the student's training.
        train_s: wall-clock time of the training loops of all stages [s].
        cost_s: the same in processor time if trained on a CPU [s].
        whole_s: wall-clock time of the trial, with set-up and validation [s].
        start: digest of the student's initial weights.
        batches: for each epoch, digests of the images in their order and of their pixels.
        weights: path of best.pt.
        device: cpu, mps or the GPU's name.
        curve: accuracy along the run, the last point that of last.pt; absent where an earlier version trained.
    """

    status: Required[Literal["done", "failed"]]
    reason: str
    best: CheckpointScores
    last: CheckpointScores
    parameters: int
    gflops: Number
    epochs: int
    train_s: Number
    cost_s: Number
    whole_s: Number
    start: str
    batches: list[list[str]]
    weights: str
    device: str
    curve: list[CurvePoint]


class Difference(TypedDict):
    """The mean of paired differences with its interval; low and high are None with one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int
    verdict: str


class Ratio(TypedDict):
    """The geometric mean of paired ratios with its interval.

    Attributes:
        mean: of the ratios; a lower bound if `bound`.
        low: of the 95 % t interval of the logarithms; None with one seed or if `bound`.
        high: as `low`.
        seeds: how many.
        bound: whether some seed never reached the target and counts with the whole length of its run.
        verdict: faster, slower or not distinguishable where there is an interval.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    bound: bool
    verdict: str


class TimeToAccuracy(TypedDict):
    """How long a method trains until its accuracy reaches plain's final one and stays there.

    Attributes:
        target: plain's final accuracy, that of last.pt, mean over the seeds; each seed has its own target.
        reached: seeds that reach it and stay there.
        missed: seeds that never do.
        cost: until then, as a ratio to plain's.
        images: until then, as a ratio to plain's.
        cost_s: until then, by seed [s]; None if never.
        images_seen: until then, by seed; None if never.
        cost_ratios: to plain's cost, by seed, of the whole run if never; absent in comparisons of earlier versions.
        images_ratios: to plain's images, likewise.
    """

    target: float
    reached: list[int]
    missed: list[int]
    cost: Ratio
    images: Ratio
    cost_s: dict[int, float | None]
    images_seen: dict[int, int | None]
    cost_ratios: NotRequired[dict[int, float]]
    images_ratios: NotRequired[dict[int, float]]


class MeanTime(TypedDict):
    """The mean over data sets and students of the time to plain's final accuracy.

    Attributes:
        target: plain's final accuracy, mean over seeds, data sets and students.
        reached: seeds that reach it and stay there on each.
        missed: seeds that do not on some.
        cost: until then, as a ratio to plain's.
        images: until then, as a ratio to plain's.
    """

    target: float
    reached: list[int]
    missed: list[int]
    cost: Ratio
    images: Ratio


class Figure(TypedDict):
    """A figure over the seeds; deviation is None with one seed."""

    mean: float
    deviation: float | None
    by_seed: dict[int, float]


class ClassFigure(TypedDict):
    """The mAP50-95 of one class, and its difference from plain."""

    mean: float
    change: Difference | None


class InputMatch(TypedDict):
    """Whether the runs of a method had the same inputs as the plain runs with the same seeds.

    Attributes:
        start: whether all began with the same weights.
        epochs: how many epochs both have.
        images: in how many of them the batches held the same images in the same order.
        pixels: in how many of them the pixels were equal too.
    """

    start: bool
    epochs: int
    images: int
    pixels: int


class RowLabels(TypedDict):
    """What a row is about, and the reason of each failed seed."""

    data: str
    student: str
    method: str
    seeds: list[int]
    failed: dict[int, str]


class Row(RowLabels, total=False):
    """One data set, student and method; without a finished trial, a row has the fields of `RowLabels` only.

    Attributes:
        map50_95: of best.pt.
        map50: of best.pt.
        last_map50_95: of last.pt.
        nms_free_map50_95: of best.pt through the one2one head, if the student has one.
        mask_map50_95: of best.pt's masks, if the student draws masks.
        pose_map50_95: of best.pt's keypoints, if the student has keypoints.
        epochs: mean over seeds.
        train_s: wall-clock time, mean over seeds [s].
        cost: as a multiple of plain's; None without a plain run.
        parameters: of the student.
        against: by reference and figure, the difference.
        classes: by class name.
        same: None for plain and longer, and without a plain run.
        to_plain: by figure, the time to plain's final accuracy, where pairs of runs have curves of it.
    """

    map50_95: Figure
    map50: Figure
    last_map50_95: Figure
    nms_free_map50_95: Figure
    mask_map50_95: Figure
    pose_map50_95: Figure
    epochs: float
    train_s: float
    cost: float | None
    parameters: int
    against: dict[str, dict[str, Difference | None]]
    classes: dict[str, ClassFigure]
    same: InputMatch | None
    to_plain: dict[str, TimeToAccuracy]


class MeanRow(TypedDict, total=False):
    """The mean of one method over data sets and students."""

    method: str
    map50_95: float
    nms_free_map50_95: float
    mask_map50_95: float
    pose_map50_95: float
    cost: float | None
    against: dict[str, dict[str, Difference | None]]
    to_plain: dict[str, MeanTime]


class Latency(TypedDict, total=False):
    """The latency of one exported student, or why it was not exported.

    Attributes:
        data: the data set's label.
        student: the student's label.
        p50_ms: median, end to end.
        p90_ms: 90th percentile, end to end.
        head: the exported head, one2many or one2one.
        threads: of the runtime.
        stable: whether the times did not drift.
        why_not: the error of the export.
    """

    data: str
    student: str
    p50_ms: float
    p90_ms: float
    head: str
    threads: int
    stable: bool
    why_not: str


class Comparison(TypedDict):
    """The contents of compare.json; `settings` is absent in comparisons of earlier versions."""

    schema: str
    versions: dict[str, str]
    machine: dict[str, Any]
    command: str
    started: str
    methods: dict[str, dict[str, Any]]
    settings: NotRequired[dict[str, dict[str, Any]]]
    references: list[str]
    seeds: list[int]
    teacher: TeacherFile | None
    live: dict[str, str]
    replayed: list[str]
    latency: list[Latency]
    devices: list[str]
    together: int
    rows: list[Row]
    mean: list[MeanRow]
    cells: list[dict[str, Any]]
    notes: list[str]
