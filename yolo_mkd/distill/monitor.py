"""What acts and how strongly: the table before training, gains.json, and the gradient shares epoch by epoch."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from yolo_mkd.distill.balance import GradientRatio
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.host import LOGGER

BAR_NAMES = {  # names of the terms that fit the progress bar's columns; results.csv has the full ones
    **{"kd/soft": "kd/cls", "kd/soft_box": "kd/box", "kd/soft_dfl": "kd/dfl", "kd/attention": "kd/att"},
    **{"kd/soft_mask": "kd/mask", "kd/soft_keypoint": "kd/kpt", "kd/soft_obb": "kd/obb"},
    **{"kd/relation": "kd/rel", "kd/guidance": "kd/guide", "kd/exploration": "kd/expl", "kd/weight": "kd/weight"},
    **{"kd/channel_wise": "kd/cwd", "kd/masked_generation": "kd/mgd", "kd/focal_global": "kd/fgd"},
    **{"kd/pearson": "kd/pkd", "kd/localization": "kd/ld", "kd/score_l2": "kd/l2"},
}
COLUMNS = ("epoch", "teacher", "term", "weight", "share", "cosine")


class ShareMonitor:
    """A run's table of gradient shares, one row for each epoch in which they were measured, teacher and term.

    `share` is the term's gradient over the detection loss's with its gain, `weight` the schedule's factor on top,
    `cosine` that of the angle between the two gradients: below 0 the term opposes the task. Terms with adapters
    (guidance) do not move the student before the gains are frozen; until then their share is the one to come.

    Attributes:
        csv: the table, shares.csv.
        png: its picture, shares.png.
    """

    def __init__(self, folder: Path, fresh: bool):
        """Open the table.

        Args:
            folder: the run's.
            fresh: the run starts anew, so that an older table is removed.
        """
        self.csv, self.png = folder / "shares.csv", folder / "shares.png"
        if fresh:
            self.csv.unlink(missing_ok=True)

    def add(self, epoch: int, teacher: str, weight: float, ratios: dict[str, GradientRatio]) -> dict[str, float]:
        """Append one epoch of one teacher, and warn of terms without a finite gradient.

        Args:
            epoch: counted from 1.
            teacher: its name.
            weight: the schedule's weight in the middle of the epoch.
            ratios: each term's mean share at full weight, and cosine.

        Returns:
            The same for loggers, as `logged_shares`.
        """
        begun = self.csv.exists()
        with open(self.csv, "a", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            if not begun:
                writer.writerow(COLUMNS)
            for term, r in ratios.items():
                writer.writerow([epoch, teacher, term, f"{weight:.4g}", f"{r.strength:.4g}", f"{r.cosine:.4g}"])
        for term, r in ratios.items():
            if not r.strength or not math.isfinite(r.strength):
                kind = "no gradient" if r.strength == 0 else "a gradient that is not finite"
                LOGGER.warning(f"M-KD: in epoch {epoch} {term} (teacher {teacher}) had {kind}: it has no effect")
        return logged_shares(teacher, weight, ratios)

    def draw(self) -> bool:
        """Draw each term's share over the epochs, as it acted: times the weight; whether there was anything to draw."""
        if not self.csv.exists():
            return False
        import matplotlib.pyplot as plt

        with open(self.csv, encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        teachers = list(dict.fromkeys(r["teacher"] for r in rows))
        figure, axes = plt.subplots(1, len(teachers), figsize=(7 * len(teachers), 4.5), sharey=True, squeeze=False)
        for axis, teacher in zip(axes[0], teachers, strict=True):
            own = [r for r in rows if r["teacher"] == teacher]
            for term in dict.fromkeys(r["term"] for r in own):
                points = [(int(r["epoch"]), float(r["share"]) * float(r["weight"])) for r in own if r["term"] == term]
                axis.plot(*zip(*points, strict=True), label=term, marker="." if len(points) < 30 else None)
            axis.set(title=f"teacher {teacher}", xlabel="epoch", yscale="log")
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("gradient, as a share of the detection loss's")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        figure.savefig(self.png, dpi=150)
        plt.close(figure)
        return True


def logged_shares(teacher: str, weight: float, ratios: dict[str, GradientRatio]) -> dict[str, float]:
    """Figures for loggers: the share of each term as it acted, and its cosine; without those that are not finite.

    Args:
        teacher: its name, which is part of theirs: kd_share/TEACHER/soft.
        weight: the schedule's weight in the middle of the epoch.
        ratios: each term's mean share at full weight, and cosine.
    """
    whose = re.sub(r"[^\w.-]+", "_", teacher)
    found = {f"kd_share/{whose}/{term}": weight * r.strength for term, r in ratios.items()}
    found |= {f"kd_cosine/{whose}/{term}": r.cosine for term, r in ratios.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


@contextmanager
def beside_metrics(trainer: Any, shares: Mapping[str, float]) -> Iterator[None]:
    """Let callbacks, those of loggers among them, find the shares in the trainer's metrics; results.csv has none."""
    if not shares:
        yield
        return
    metrics = trainer.metrics
    trainer.metrics = {**metrics, **shares}
    try:
        yield
    finally:
        trainer.metrics = metrics


# Before training


def terms_table(distiller: Distiller, teacher: str) -> str:
    """Which terms act and why the others cannot, and the layers compared with their shapes.

    Args:
        distiller: of the two models.
        teacher: its name.
    """
    match = distiller.match
    ratio = match.teacher.parameters / match.student.parameters
    size = f"{match.teacher.parameters / 1e6:.2f} M parameters, {ratio:.1f} x the student"
    size = ", ".join(filter(None, (match.teacher.origin, size if match.teacher.parameters else "")))
    asked = "share" if distiller.balancer.calibrate else "gain"
    lines = ["", f"M-KD: teacher {teacher} ({size})", f"  {'term':<18}{asked:>7}  acts  compares"]
    for t in distiller.terms:
        trained = sum(p.numel() for p in t.adapters.parameters()) if t.adapters else 0
        extra = f", trains {trained:,} parameters beside it" if trained else ""
        why = f"because {t.why_not}" if t.why_not else t.reads + extra
        lines.append(f"  {t.name:<18}{t.asked:>7.3g}  {'no' if t.why_not else 'yes':<4}  {why}")
    off = [name for name in TERMS if name not in {t.name for t in distiller.terms}]
    if off:
        lines.append(f"  not asked for: {', '.join(off)}")
    if distiller.roles:
        lines.append(f"  {'role':<18}  {'student: layer, shape':<26}  teacher: layer, shape")
        lines += [f"  {r:<18}  {match.student.layers[r]!s:<26}  {match.teacher.layers[r]}" for r in distiller.roles]
    return "\n".join(lines + [f"  {note}" for note in notes(distiller)])


def notes(distiller: Distiller) -> list[str]:
    """What is matched only in part, one sentence each."""
    match, found = distiller.match, []
    if match.explores:
        found.append("the neck's first half of channels follows the teacher, the rest explores")
    if match.student.strides != match.teacher.strides:
        ours, theirs = match.student.strides, match.teacher.strides
        found.append(f"strides differ: student {ours}, teacher {theirs}; only equal ones are matched")
    if 0 < len(match.classes) < len(match.student.names):
        known = {s for s, _ in match.classes}
        missing = [name for i, name in match.student.names.items() if i not in known]
        found.append(f"the teacher lacks {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    if match.student.merged:
        merged = [match.teacher.names[t] for _, theirs in match.classes for t in theirs]
        best = f"the best score of the teacher's {', '.join(merged[:5])}{' ...' if len(merged) > 5 else ''}"
        found.append(f"single_cls=True merges the data's classes: the soft target of the one class is {best}")
    if match.resampled:
        found.append("the teacher takes the images at another size; its maps are resampled to the student's")
    return found


# Once the gains are frozen


class FrozenGains(TypedDict):
    """One teacher's part of gains.json.

    Attributes:
        teacher: its name.
        calibrated: whether the gains were measured.
        asked: the share or gain asked for, by term.
        gains: the factor of each term's loss.
        classes: the weight of each class in soft targets, by branch and class name.
    """

    teacher: str
    calibrated: bool
    asked: dict[str, float]
    gains: dict[str, float]
    classes: dict[str, dict[str, float]]


def frozen_gains(distillers: Iterable[Distiller]) -> list[FrozenGains]:
    """The gains of each teacher's terms, as gains.json and the checkpoints hold them."""
    return [
        {
            "teacher": d.teacher.name,
            "calibrated": d.balancer.calibrate,
            "asked": {n: w.asked for n, w in d.balancer.asked.items()},
            "gains": dict(d.balancer.gains),
            "classes": named_class_weights(d),
        }
        for d in distillers
    ]


def named_class_weights(distiller: Distiller) -> dict[str, dict[str, float]]:
    """The weight of each class in soft targets, by branch of the head and class name; empty where all weigh alike."""
    match = distiller.match
    names = [match.student.names[ours] for ours, _ in match.classes]
    found = distiller.balancer.class_weights() or {}
    return {branch: dict(zip(names, weights.tolist(), strict=True)) for branch, weights in found.items()}


def gains_table(distillers: Iterable[Distiller], epoch: float) -> str:
    """The frozen gains as text: of each teacher's terms, what was asked for and the gain that gives it."""
    lines = [f"\nM-KD: gains measured and frozen after {epoch:.3g} epochs"]
    for d in distillers:
        limited = d.balancer.limited()
        for name, weight in d.balancer.asked.items():
            note = "  (at its limit: this share cannot be reached with a sensible gain)" if name in limited else ""
            figures = f"share {weight.asked:<6.3g} gain {d.balancer.gains[name]:<9.4g}"
            lines.append(f"  {d.teacher.name:<28} {name:<18} {figures} nominal {weight.nominal:.4g}{note}")
        for branch, weights in named_class_weights(d).items():
            ends = f"{max(weights, key=weights.__getitem__)} {max(weights.values()):.2f}"
            ends += f" down to {min(weights, key=weights.__getitem__)} {min(weights.values()):.2f}"
            lines.append(f"  {d.teacher.name:<28} class weights of soft targets, {branch}: {ends}")
    return "\n".join(lines)
