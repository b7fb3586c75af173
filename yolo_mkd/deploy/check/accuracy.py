"""mAP of a checkpoint and of its exported file on the same images through the same letterbox, and the share kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_mkd.deploy import exported_model as artefacts
from yolo_mkd.deploy.check.matching import MAX_DET, NMS_IOU
from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.settings import BadInput

# share of the checkpoint's mAP50-95 that passes, and that passes with a warning. MLPerf's edge gates for int8 are
# 99 % and 95 %; fp32 has nothing to lose, so it gets no warning
FLOORS = {"fp32": (0.999, 0.999), "fp16": (0.999, 0.95), "int8": (0.99, 0.95)}
WORST = 10  # images
NO_LABELS = "images have no labels; give data="


@dataclass(frozen=True)
class Scores:
    """What one file scores on a data set's val split."""

    map50_95: float
    map50: float
    classes: dict[int, float]  # AP50-95 of the classes that have labels
    images: dict[str, float]  # AP50-95 of each labelled image by itself


@dataclass(frozen=True)
class Accuracy:
    """How much of its checkpoint's mAP a file keeps; printed, it is a few lines."""

    verdict: str  # passed | warning | failed | not measured
    reason: str = ""  # one line, of a failure
    note: str = ""  # one line: why it was not measured, or what the warning is
    images: int = 0
    checkpoint_map50_95: float | None = None
    checkpoint_map50: float | None = None
    map50_95: float | None = None
    map50: float | None = None
    retained: float | None = None  # of the checkpoint's map50_95
    passes_at: float | None = None
    warns_at: float | None = None
    classes: list[dict[str, Any]] = field(default_factory=list)  # name, checkpoint, file, change; the worst first
    worst_images: list[dict[str, Any]] = field(default_factory=list)  # image, checkpoint, file, change

    def __str__(self) -> str:
        if self.verdict == "not measured":
            return f"{'':10}mAP not measured: {self.note}"
        gate = f"passes at {self.passes_at:.1%}" + (
            f", warns down to {self.warns_at:.0%}" if self.warns_at != self.passes_at else ""
        )
        lines = [
            f"{'':10}mAP50-95 {self.checkpoint_map50_95:.4f} -> {self.map50_95:.4f}: {self.retained:.2%} kept "
            f"({gate}), mAP50 {self.checkpoint_map50:.4f} -> {self.map50:.4f}, {self.images} labelled images"
        ]
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


def measure(
    path: str | Path,
    data: str | Path,
    imgsz: tuple[int, int] | None = None,
    head: str | None = None,
) -> Scores:
    """Measure mAP with Ultralytics' validator: conf 0.001, one image at a time, letterboxed to the full size.

    Args:
        path: a .pt checkpoint or an exported file.
        data: the data.yaml whose val split is used, all of it.
        imgsz: height and width [pixels], needed for a checkpoint; an exported file has its own.
        head: one2one or one2many, of a checkpoint that has both; an exported file has its own.

    Raises:
        BadInput: the size is missing, or the exported file cannot be read.
    """
    from yolo_mkd.host.scoring import score

    path, kind = Path(path), "checkpoint"
    if path.suffix != ".pt":
        about = artefacts.read(path)
        imgsz, head, kind = about.imgsz, about.head, about.precision
    if imgsz is None:
        raise BadInput(f"model={path} is a checkpoint: give the image size to measure it at")
    height, width = imgsz
    print(f"mAP of    {path.name} ({kind}, {head or 'one2many'}) on {data}, {height}x{width}")
    found = score(
        path, str(data), imgsz, head == "one2one", NMS_IOU, MAX_DET,
        lambda done, count: print(f"{'':10}{done} of {count} images", flush=True),
    )  # fmt: skip
    return Scores(**found)


def compare(
    source: Path,
    path: Path,
    artefact: ExportedModel,
    data: str | None,
    names: dict[int, str],
    reference: Scores | None = None,
) -> Accuracy:
    """Measure what share of its checkpoint's mAP a file keeps, head by like head.

    Args:
        source: the checkpoint.
        path: the exported file.
        artefact: the file's description.
        data: the labelled data set; without one nothing is measured.
        names: the checkpoint's classes.
        reference: the checkpoint's scores, where they are known already.
    """
    if why := unmeasurable(data, names):
        return Accuracy("not measured", note=why)
    assert data is not None  # said by unmeasurable
    ours = reference or measure(source, data, artefact.imgsz, artefact.head)
    if not ours.map50_95:
        return Accuracy("not measured", note="the checkpoint's own mAP is 0 on this data: train it further")
    return judge(ours, measure(path, data), artefact.precision, names)


def unmeasurable(data: str | None, names: dict[int, str]) -> str:
    """Why mAP cannot be measured on a data set, or nothing."""
    from yolo_mkd import host
    from yolo_mkd.host.files import first_labels

    if data is None:
        return NO_LABELS
    found = host.check_data(data, fetch=False)
    if dict(found["names"]) != names:
        theirs = ", ".join(found["names"].values())
        return f"the data's classes ({theirs[:60]}) are not the checkpoint's; give its own data="
    if not first_labels(found["val"])[1]:
        return "the val " + NO_LABELS.replace("data=", "a data= with labels")
    return ""


def judge(ours: Scores, theirs: Scores, precision: str, names: dict[int, str]) -> Accuracy:
    """Hold a file's scores against its checkpoint's.

    Args:
        ours: the checkpoint's scores.
        theirs: the file's.
        precision: of the file: fp32, fp16 or int8.
        names: the classes.
    """
    passes, warns = FLOORS[precision]
    retained = theirs.map50_95 / ours.map50_95
    kept = f"{precision} keeps {retained:.2%} of mAP50-95 ({theirs.map50_95:.4f} of {ours.map50_95:.4f})"
    reason = note = ""
    if retained < warns:
        reason = f"{kept}, less than {warns:.1%}"
    elif retained < passes:
        note = f"{kept}, less than {passes:.1%}"
        if precision == "int8":
            note += ": sensitivity=true shows which layers cost it"
    return Accuracy(
        "failed" if reason else "warning" if note else "passed", reason, note, images=len(ours.images),
        checkpoint_map50_95=ours.map50_95, checkpoint_map50=ours.map50, map50_95=theirs.map50_95, map50=theirs.map50,
        retained=retained, passes_at=passes, warns_at=warns,
        classes=changes("name", {names[c]: ap for c, ap in ours.classes.items()},
                        {names[c]: ap for c, ap in theirs.classes.items()}),
        worst_images=changes("image", ours.images, theirs.images)[:WORST],
    )  # fmt: skip


def changes(key: str, ours: dict[str, float], theirs: dict[str, float]) -> list[dict[str, Any]]:
    """Both sides' AP50-95 and the change, the largest loss first."""
    rows = []
    for name, before in ours.items():
        after = theirs.get(name, 0.0)
        said = Path(name).name if key == "image" else name
        rows.append({key: said, "checkpoint": before, "file": after, "change": after - before})
    return sorted(rows, key=lambda row: row["change"])
