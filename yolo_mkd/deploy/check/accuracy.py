"""mAP of a checkpoint and of its exported file on the same images with the same letterbox, and the share retained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from yolo_mkd.deploy.check.thresholds import Thresholds, compare_thresholds
from yolo_mkd.deploy.exported_model import ExportedModel, read_exported_model
from yolo_mkd.edge.boxes import MAX_DET, NMS_IOU
from yolo_mkd.settings import BadInput

if TYPE_CHECKING:
    from yolo_mkd.host.scoring import Curves

# share of the checkpoint's mAP50-95 that passes, and that passes with a warning. MLPerf's edge gates for int8 are
# 99 % and 95 %; fp32 must be exact, so it has no warning
FLOORS = {"fp32": (0.999, 0.999), "fp16": (0.999, 0.95), "int8": (0.99, 0.95)}
LEAST_MAP = 0.01  # our choice: a checkpoint below it finds almost nothing, and the share of almost nothing is noise
WORST = 10  # images
NO_LABELS = "images have no labels; give data="

Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class Scores:
    """The mAP of one file on a data set's val split."""

    map50_95: float
    map50: float
    classes: dict[int, float]  # AP50-95 of the classes that have labels
    images: dict[str, float]  # AP50-95 of each labelled image alone
    curves: Curves | None = None  # by score threshold; None where nothing was detected


class ClassChange(TypedDict):
    """AP50-95 of one class on both sides."""

    name: str
    checkpoint: float
    file: float
    change: float


class ImageChange(TypedDict):
    """AP50-95 of one image on both sides."""

    image: str
    checkpoint: float
    file: float
    change: float


@dataclass(frozen=True)
class Accuracy:
    """The share of its checkpoint's mAP that a file retains; printed, it is a few lines."""

    verdict: str  # passed | warning | failed | not measured
    reason: str = ""  # one line, of a failure
    note: str = ""  # one line: why it was not measured, or the warning
    images: int = 0
    checkpoint_map50_95: float | None = None
    checkpoint_map50: float | None = None
    map50_95: float | None = None
    map50: float | None = None
    retained: float | None = None  # of the checkpoint's map50_95
    passes_at: float | None = None
    warns_at: float | None = None
    classes: list[ClassChange] = field(default_factory=list)  # the largest loss first
    worst_images: list[ImageChange] = field(default_factory=list)
    thresholds: Thresholds | None = None
    other_head: str = ""  # the checkpoint's other head, where it was measured
    other_head_map50_95: float | None = None

    def __str__(self) -> str:
        if self.verdict == "not measured":
            return f"{'':10}mAP not measured: {self.note}"
        gate = f"passes at {self.passes_at:.1%}"
        if self.warns_at != self.passes_at:
            gate += f", with a warning at {self.warns_at:.0%}"
        lines = [
            f"{'':10}mAP50-95 {self.checkpoint_map50_95:.4f} -> {self.map50_95:.4f}: {self.retained:.2%} retained "
            f"({gate}), mAP50 {self.checkpoint_map50:.4f} -> {self.map50:.4f}, {self.images} labelled images"
        ]
        if self.thresholds:
            lines.append(str(self.thresholds))
        if self.verdict == "warning":
            lines.append(f"WARNING   {self.note}")
        if self.verdict != "passed":
            lines += [
                f"{'':10}class {c['name']}: {c['checkpoint']:.4f} -> {c['file']:.4f} ({c['change']:+.4f})"
                for c in self.classes[:5]
            ]
            lines += [
                f"{'':10}worst: {w['image']}: {w['checkpoint']:.3f} -> {w['file']:.3f}" for w in self.worst_images[:3]
            ]
        return "\n".join(lines)


def measure_map(
    path: str | Path,
    data: str | Path,
    imgsz: tuple[int, int] | None = None,
    head: str | None = None,
    single_cls: bool = False,
) -> Scores:
    """Measure mAP with Ultralytics' validator: conf 0.001, one image at a time, letterboxed to the full size.

    Args:
        path: a .pt checkpoint or an exported file.
        data: the data.yaml whose val split is used, all of it.
        imgsz: height and width [pixels], required for a checkpoint; an exported file states its own.
        head: one2one or one2many, of a checkpoint that has both; an exported file states its own.
        single_cls: count all classes of the data as one, for a model that was trained so.

    Raises:
        BadInput: the size is missing, or the exported file cannot be read.
    """
    from yolo_mkd.host.scoring import score

    path, kind = Path(path), "checkpoint"
    if path.suffix != ".pt":
        model = read_exported_model(path)
        imgsz, head, kind = model.imgsz, model.head, model.precision
    if imgsz is None:
        raise BadInput(f"model={path} is a checkpoint, for which imgsz= is required, for example imgsz=640")
    height, width = imgsz
    print(f"mAP of    {path.name} ({kind}, {head or 'one2many'}) on {data}, {height}x{width}")

    def print_progress(done: int, count: int) -> None:
        print(f"{'':10}{done} of {count} images", flush=True)

    return Scores(**score(path, str(data), imgsz, head == "one2one", NMS_IOU, MAX_DET, print_progress, single_cls))


def compare_accuracy(
    source: Path, path: Path, model: ExportedModel, data: str | None, names: dict[int, str], single_cls: bool = False
) -> Accuracy:
    """Measure the share of its checkpoint's mAP that a file retains, with the same head on both sides.

    Args:
        source: the checkpoint.
        path: the exported file.
        model: the file's metadata.
        data: the labelled data set; without one nothing is measured.
        names: the checkpoint's classes.
        single_cls: whether it was trained with all classes of its data as one.
    """
    if why := why_not_measurable(data, names, single_cls):
        return Accuracy("not measured", note=why)
    assert data is not None  # excluded by why_not_measurable
    ours = measure_map(source, data, model.imgsz, model.head, single_cls)
    if ours.map50_95 < LEAST_MAP:
        return finds_nothing(ours)
    return judge_accuracy(ours, measure_map(path, data, single_cls=single_cls), model.precision, names)


def measure_other_head(
    found: Accuracy, source: Path, model: ExportedModel, trained: Any, data: str | None, single_cls: bool = False
) -> Accuracy:
    """Add the mAP of the checkpoint's other head, where it has two and mAP was measured.

    Args:
        found: the outcome for the exported head.
        source: the checkpoint.
        model: the file's metadata.
        trained: the checkpoint's model.
        data: the labelled data set.
        single_cls: whether it was trained with all classes of its data as one.
    """
    from yolo_mkd import host

    if found.map50_95 is None or data is None or "one2one" not in host.branches_of(host.head(trained)):
        return found
    other = "one2many" if model.head == "one2one" else "one2one"
    scores = measure_map(source, data, model.imgsz, other, single_cls)
    return replace(found, other_head=other, other_head_map50_95=scores.map50_95)


def finds_nothing(ours: Scores) -> Accuracy:
    """The outcome for a checkpoint that finds almost nothing: the share that a file retains is not judged."""
    found = "nothing" if not ours.map50_95 else "almost nothing"
    note = (
        f"the checkpoint finds {found} on this data (mAP50-95 {ours.map50_95:.4f}), so its detections alone "
        "were judged: train it further"
    )
    return Accuracy(
        "not measured",
        note=note,
        images=len(ours.images),
        checkpoint_map50_95=ours.map50_95,
        checkpoint_map50=ours.map50,
    )


def why_not_measurable(data: str | None, names: dict[int, str], single_cls: bool = False) -> str:
    """Why mAP cannot be measured on a data set, in one line; empty when it can."""
    from yolo_mkd import host
    from yolo_mkd.host.files import first_labels

    if data is None:
        return NO_LABELS
    found = host.check_data(data, fetch=False)
    if dict(found["names"]) != names and not single_cls:
        theirs = ", ".join(found["names"].values())
        return f"the data's classes ({theirs[:60]}) differ from the checkpoint's; give its own data="
    if not first_labels(found["val"])[1]:
        return "the val images have no labels; give a data= with labels"
    return ""


def judge_accuracy(ours: Scores, theirs: Scores, precision: str, names: dict[int, str]) -> Accuracy:
    """Compare a file's mAP with its checkpoint's, against the precision's gate.

    Args:
        ours: the checkpoint's scores.
        theirs: the file's.
        precision: of the file: fp32, fp16 or int8.
        names: the classes.
    """
    passes, warns = FLOORS[precision]
    retained = theirs.map50_95 / ours.map50_95
    summary = f"{precision} retains {retained:.2%} of mAP50-95 ({theirs.map50_95:.4f} of {ours.map50_95:.4f})"
    verdict, reason, note = "passed", "", ""
    if retained < warns:
        verdict, reason = "failed", f"{summary}, less than {warns:.1%}"
    elif retained < passes:
        verdict, note = "warning", f"{summary}, less than {passes:.1%}"
        if precision == "int8":
            note += ": sensitivity=true measures the loss of each block, unless training fixed the ranges"
    classes: list[ClassChange] = [
        {"name": names[label], "checkpoint": before, "file": after, "change": after - before}
        for label, (before, after) in side_by_side(ours.classes, theirs.classes).items()
    ]
    images: list[ImageChange] = [
        {"image": Path(file).name, "checkpoint": before, "file": after, "change": after - before}
        for file, (before, after) in side_by_side(ours.images, theirs.images).items()
    ]
    return Accuracy(
        verdict,
        reason,
        note,
        images=len(ours.images),
        checkpoint_map50_95=ours.map50_95,
        checkpoint_map50=ours.map50,
        map50_95=theirs.map50_95,
        map50=theirs.map50,
        retained=retained,
        passes_at=passes,
        warns_at=warns,
        classes=sorted(classes, key=lambda row: row["change"]),
        worst_images=sorted(images, key=lambda row: row["change"])[:WORST],
        thresholds=compare_thresholds(ours.curves, theirs.curves, names) if ours.curves and theirs.curves else None,
    )


def side_by_side(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> dict[Key, tuple[float, float]]:
    """Both values of every key of `ours`; 0 where `theirs` lacks it, such as a class that the file never detects."""
    return {key: (before, theirs.get(key, 0.0)) for key, before in ours.items()}
