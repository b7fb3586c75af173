"""Time to accuracy: how long each method trains until it has plain's final accuracy and keeps it, as a ratio to plain.

Each seed has its own target, the accuracy of plain's last.pt, so that plain itself always reaches it, and the same rule
applies to plain's run. A run that never reaches it counts with its whole length, which makes the ratio a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple, cast

from yolo_mkd.evidence.compare.schema import CurvePoint, TimeToAccuracy, TrialResult
from yolo_mkd.evidence.compare.statistics import DIGITS, paired_ratio


class Reached(NamedTuple):
    """Where a run reaches an accuracy and stays there: cost [s] and images until then."""

    cost_s: float
    images: float


def points_of(curve: Sequence[CurvePoint], figure: str) -> list[CurvePoint]:
    """The points of a curve that have an accuracy, `map50_95` or `nms_free_map50_95`; none without such a head."""
    return [p for p in curve if p[figure] is not None]  # type: ignore[literal-required]


def accuracies(points: Sequence[CurvePoint], figure: str) -> list[float]:
    """The accuracy of each of some points, which all have it."""
    return [cast(float, p[figure]) for p in points]  # type: ignore[literal-required]


def reached_and_held(curve: Sequence[CurvePoint], figure: str, target: float) -> Reached | None:
    """Where an accuracy is reached for good, linear between two points; None if the run ends below it.

    A run that is there at its first point has reached it at that point or before; the point counts.

    Args:
        curve: in the order of the run.
        figure: `map50_95` or `nms_free_map50_95`.
        target: the accuracy.
    """
    scores = accuracies(curve, figure)
    below = [i for i, score in enumerate(scores) if score < target]
    if not below:
        return Reached(curve[0]["cost_s"], curve[0]["images"])
    last = below[-1]
    if last == len(curve) - 1:
        return None
    (before, after), (low, high) = list(pairwise(curve))[last], list(pairwise(scores))[last]
    part = (target - low) / (high - low)
    cost = before["cost_s"] + part * (after["cost_s"] - before["cost_s"])
    return Reached(cost, before["images"] + part * (after["images"] - before["images"]))


def time_to_plain(
    own: Mapping[int, TrialResult], plain: Mapping[int, TrialResult], figure: str
) -> TimeToAccuracy | None:
    """The time of a method to plain's final accuracy over the seeds of which both have a curve; None without any.

    Args:
        own: the method's results by seed.
        plain: plain's.
        figure: the accuracy that counts.
    """
    curves = {}
    for s in set(own) & set(plain):
        pair = [points_of(runs[s].get("curve", []), figure) for runs in (own, plain)]
        if all(pair):
            curves[s] = pair
    if not curves:
        return None
    targets = {s: accuracies(theirs, figure)[-1] for s, (_, theirs) in curves.items()}
    found = {s: reached_and_held(ours, figure, targets[s]) for s, (ours, _) in curves.items()}
    missed = sorted(s for s, point in found.items() if point is None)
    pairs = []
    for s, (ours, theirs) in curves.items():
        base = reached_and_held(theirs, figure, targets[s])
        assert base is not None, "plain ends at its own final accuracy"
        pairs.append((found[s] or Reached(ours[-1]["cost_s"], ours[-1]["images"]), base))
    return {
        "target": round(fmean(targets.values()), DIGITS),
        "reached": sorted(set(found) - set(missed)),
        "missed": missed,
        "cost": paired_ratio([(a.cost_s, b.cost_s) for a, b in pairs], bound=bool(missed)),
        "images": paired_ratio([(a.images, b.images) for a, b in pairs], bound=bool(missed)),
        "cost_s": {s: point and round(point.cost_s, 3) for s, point in found.items()},
        "images_seen": {s: point and round(point.images) for s, point in found.items()},
    }
