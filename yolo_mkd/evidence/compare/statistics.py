"""How far to trust a difference: the mean of paired differences with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

CONFIDENCE = 0.95
DIGITS = 5
ONE_SEED = "one seed, no interval"
UNCLEAR = "not distinguishable"


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """The difference of two methods over the seeds that both have.

    Args:
        ours: a figure by seed.
        theirs: what it is compared with.

    Returns:
        mean, low, high (None with one seed), seeds (how many) and verdict; None where there is no common seed.
    """
    return interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def interval(differences: list[float]) -> dict[str, Any] | None:
    """The mean of some differences with the t interval about it; None where there are none."""
    if not differences:
        return None
    mean, count = fmean(differences), len(differences)
    found: dict[str, Any] = {"mean": round(mean, DIGITS), "low": None, "high": None, "seeds": count}
    if count == 1:
        return {**found, "verdict": ONE_SEED}
    half = t_quantile(count - 1) * stdev(differences) / math.sqrt(count)
    low, high = mean - half, mean + half
    verdict = UNCLEAR if low <= 0 <= high else "better" if mean > 0 else "worse"
    return {**found, "low": round(low, DIGITS), "high": round(high, DIGITS), "verdict": verdict}


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Student's t within which a share of the distribution lies, by bisection.

    Args:
        freedom: degrees of freedom, 1 or more.
        confidence: the share, both sides together.
    """
    low, high = 0.0, 1e4
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def t_within(t: float, freedom: int) -> float:
    """The probability that Student's t lies within -t to t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(3 if odd else 2, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
