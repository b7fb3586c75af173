"""Paired differences of two methods, with their 95 % confidence interval (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from scipy import stats

from yolo_mkd.evidence.compare.schema import Difference, Ratio

CONFIDENCE = 0.95
DIGITS = 5
ONE_SEED = "one seed, no interval"
UNCLEAR = "not distinguishable"


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The difference of two methods over the seeds that both have; None without a common seed.

    Args:
        ours: a figure by seed.
        theirs: the same figure of the reference, by seed.
    """
    return mean_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def mean_interval(differences: Sequence[float]) -> Difference | None:
    """The mean of some differences with its t interval and verdict; None without differences.

    The verdict is `better` or `worse` where the interval excludes 0, else `not distinguishable`; a single difference
    has no interval.
    """
    if not differences:
        return None
    mean, count = fmean(differences), len(differences)
    if count == 1:
        return {"mean": round(mean, DIGITS), "low": None, "high": None, "seeds": count, "verdict": ONE_SEED}
    half = t_quantile(count - 1) * stdev(differences) / math.sqrt(count)
    low, high = mean - half, mean + half
    verdict = UNCLEAR if low <= 0 <= high else "better" if mean > 0 else "worse"
    return {
        "mean": round(mean, DIGITS),
        "low": round(low, DIGITS),
        "high": round(high, DIGITS),
        "seeds": count,
        "verdict": verdict,
    }


def paired_ratio(pairs: Sequence[tuple[float, float]], bound: bool = False) -> Ratio:
    """The geometric mean of paired ratios, with the t interval of their logarithms and a verdict.

    Args:
        pairs: of a duration and the reference's, each above 0; at least one.
        bound: whether some duration is only known to be longer, so that the mean is a lower bound without interval.
    """
    logs = [math.log(ours / theirs) for ours, theirs in pairs]
    mean, count = fmean(logs), len(logs)
    low = high = None
    verdict = "lower bound" if bound else ONE_SEED
    if count > 1 and not bound:
        half = t_quantile(count - 1) * stdev(logs) / math.sqrt(count)
        verdict = UNCLEAR if mean - half <= 0 <= mean + half else "faster" if mean < 0 else "slower"
        low, high = (round(math.exp(end), DIGITS) for end in (mean - half, mean + half))
    ratio = round(math.exp(mean), DIGITS)
    return {"mean": ratio, "low": low, "high": high, "seeds": count, "bound": bound, "verdict": verdict}


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which a share `confidence` of Student's distribution lies between -t and t.

    Args:
        degrees: degrees of freedom, 1 or more.
        confidence: the share, both sides together.
    """
    return float(stats.t.ppf((1 + confidence) / 2, degrees))
