"""Statistics of timed samples: no sample is dropped, and a percentile is given only where there are enough for it."""

from __future__ import annotations

from typing import Any, Sequence, TypedDict

import numpy as np

# Percentile -> fewest samples n with P(at most one of n lies beyond it) <= 1 %, as MLPerf's early stopping requires
FLOORS = {50.0: 11, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
DRIFT = 0.05  # largest change between the medians of the first and the last third of a stable run


class Drift(TypedDict):
    """Whether the times of a run stayed the same from its first to its last third."""

    first_third_p50_ms: float
    last_third_p50_ms: float
    stable: bool
    reason: str  # one line; empty when stable


def percentile_key(percentile: float) -> str:
    """The name of a percentile in the report: p90_ms, p99_9_ms."""
    return f"p{percentile:g}_ms".replace(".", "_")


def nearest_rank(samples: Sequence[float], percentile: float) -> float:
    """The smallest sample that at least `percentile` % of all samples do not exceed; nothing is interpolated."""
    rank = -(-len(samples) * round(percentile * 10) // 1000)  # whole numbers: 99.9 % of 1000 is rank 999
    return float(sorted(samples)[rank - 1])


def statistics(samples: Sequence[float]) -> dict[str, Any]:
    """Count, minimum, mean, maximum, standard deviation and percentiles of samples [ms].

    A percentile is None where there are too few samples for it.
    """
    figures: dict[str, Any] = {
        "n": len(samples),
        "min_ms": float(np.min(samples)),
        "mean_ms": float(np.mean(samples)),
        "max_ms": float(np.max(samples)),
        "std_ms": float(np.std(samples)),
    }
    for percentile, floor in FLOORS.items():
        enough = len(samples) >= floor
        figures[percentile_key(percentile)] = nearest_rank(samples, percentile) if enough else None
    return figures


def drift(samples: Sequence[float], causes: Sequence[str] = ()) -> Drift:
    """Compare the medians of the first and the last third of a run.

    Args:
        samples: end-to-end times [ms], in the order taken.
        causes: what the sensors measured to change meanwhile.
    """
    third = max(len(samples) // 3, 1)
    first, last = nearest_rank(samples[:third], 50), nearest_rank(samples[-third:], 50)
    change = last / first - 1
    stable = abs(change) <= DRIFT
    reason = f"the last third is {abs(change):.0%} {'slower' if change > 0 else 'faster'} than the first"
    reason = "; ".join([reason, *(causes or ["the sensors show no cause"])])
    return {
        "first_third_p50_ms": first,
        "last_third_p50_ms": last,
        "stable": stable,
        "reason": "" if stable else reason,
    }
