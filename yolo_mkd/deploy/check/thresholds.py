"""What a conversion does to scores: the shift of matched scores in logits, and the thresholds with the best F1."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.edge.boxes import CONF, box_iou, pair_boxes

if TYPE_CHECKING:
    from yolo_mkd.deploy.check.matching import Rows
    from yolo_mkd.host.scoring import Curves

# our choices
LEAST_SCORE = 0.1  # of the checkpoint: pairs below it are mostly background
EXTREME = 0.001  # scores closer to 0 and 1 have logits that one rounding step moves far
FEWEST_PAIRS = 20  # fewer give no reliable median
LEAST_SHIFT = 0.1  # logits: moves a score of 0.25 by 0.02
CONSTANT = 0.1  # logits between the quartiles of a shift that is the same for all scores
LEAST_RECALL_LOST = 0.02


class ClassThreshold(TypedDict):
    """The thresholds with a class's best F1, and its recall at them."""

    name: str
    checkpoint: float  # the checkpoint's best threshold
    file: float  # the file's
    checkpoint_recall: float  # of the checkpoint at its own threshold
    recall: float  # of the file at the checkpoint's threshold
    recall_lost: float  # between these two
    own_recall: float  # of the file at its own threshold


@dataclass(frozen=True)
class Thresholds:
    """The thresholds with the best mean F1 of a checkpoint and its file, at IoU 0.5; printed, one line and classes."""

    checkpoint: float
    file: float
    checkpoint_f1: float
    f1: float  # of the file at its own threshold
    f1_at_checkpoints: float  # of the file at the checkpoint's threshold
    checkpoint_recall: float
    recall: float  # of the file at the checkpoint's threshold
    recall_lost: float
    classes: list[ClassThreshold]  # the largest loss of recall first

    def __str__(self) -> str:
        lines = [
            f"{'':10}best F1 {self.checkpoint_f1:.4f} at conf {self.checkpoint:.3f} -> {self.f1:.4f} at "
            f"{self.file:.3f}; at the checkpoint's {self.checkpoint:.3f} recall {self.checkpoint_recall:.4f} -> "
            f"{self.recall:.4f}"
        ]
        lines += [
            f"{'':10}class {c['name']}: at conf {c['checkpoint']:.3f} recall {c['checkpoint_recall']:.4f} -> "
            f"{c['recall']:.4f}; its best F1 is now at {c['file']:.3f}, recall {c['own_recall']:.4f}"
            for c in self.classes[:5]
            if c["recall_lost"] >= LEAST_RECALL_LOST
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ScoreShift:
    """By how much the scores of matched detections changed, in logits; printed, one line."""

    pairs: int
    logits: float  # median of file - checkpoint
    lower_quartile: float
    upper_quartile: float
    conf: float  # the file's threshold that corresponds to 0.25 of the checkpoint

    @property
    def constant(self) -> bool:
        """Whether all scores moved by nearly the same."""
        return self.upper_quartile - self.lower_quartile <= CONSTANT

    def __str__(self) -> str:
        direction = "lower" if self.logits < 0 else "higher"
        spread = f"quartiles {self.lower_quartile:+.2f} and {self.upper_quartile:+.2f}, {self.pairs} pairs"
        kind = "a constant " if self.constant else "a median of "
        return (
            f"the file's scores are {direction} by {kind}{abs(self.logits):.2f} logits ({spread}): use conf "
            f"{self.conf:.3f} where the checkpoint had {CONF:g}"
        )


def score_shift(expected: list[Rows], got: list[Rows]) -> ScoreShift | None:
    """The shift of matched detections' scores in logits; None where there is no clear one.

    A shift is clear where the median is at least 0.1 logits and three quarters of at least 20 pairs moved in its
    direction. mAP does not show it, since it depends on the order of the scores alone.

    Args:
        expected: the checkpoint's detections, per image, to scores far below 0.1.
        got: the file's, likewise.
    """
    moved: list[float] = []
    for ours, theirs in zip(expected, got, strict=True):
        pairs = pair_boxes(ours, theirs, box_iou(ours, theirs))
        moved += [logit(theirs[j, 4]) - logit(ours[i, 4]) for i, j in pairs if ours[i, 4] >= LEAST_SCORE]
    if len(moved) < FEWEST_PAIRS:
        return None
    low, middle, high = (float(q) for q in np.quantile(moved, (0.25, 0.5, 0.75)))
    if abs(middle) < LEAST_SHIFT or low * high <= 0:
        return None
    return ScoreShift(len(moved), middle, low, high, 1 / (1 + exp(-(logit(CONF) + middle))))


def logit(score: float) -> float:
    """The logit of a score; scores within 0.001 of 0 or 1 count as that far from it."""
    kept = min(max(float(score), EXTREME), 1 - EXTREME)
    return log(kept / (1 - kept))


def compare_thresholds(ours: Curves, theirs: Curves, names: dict[int, str]) -> Thresholds:
    """The thresholds with the best F1 on both sides, and the recall lost at the checkpoint's.

    Args:
        ours: the checkpoint's curves.
        theirs: the file's, of the same images.
        names: the classes.
    """
    conf = ours["conf"]

    def best(curve: NDArray[np.float64]) -> int:
        return int(curve.argmax())

    classes: list[ClassThreshold] = []
    for row, label in enumerate(ours["classes"]):
        old, new = best(ours["f1"][row]), best(theirs["f1"][row])
        before, after = float(ours["recall"][row, old]), float(theirs["recall"][row, old])
        classes.append(
            {
                "name": names[label],
                "checkpoint": float(conf[old]),
                "file": float(conf[new]),
                "checkpoint_recall": before,
                "recall": after,
                "recall_lost": before - after,
                "own_recall": float(theirs["recall"][row, new]),
            }
        )
    f1, their_f1 = ours["f1"].mean(0), theirs["f1"].mean(0)
    old, new = best(f1), best(their_f1)
    recall, their_recall = float(ours["recall"][:, old].mean()), float(theirs["recall"][:, old].mean())
    return Thresholds(
        checkpoint=float(conf[old]),
        file=float(conf[new]),
        checkpoint_f1=float(f1[old]),
        f1=float(their_f1[new]),
        f1_at_checkpoints=float(their_f1[old]),
        checkpoint_recall=recall,
        recall=their_recall,
        recall_lost=recall - their_recall,
        classes=sorted(classes, key=lambda c: -c["recall_lost"]),
    )
