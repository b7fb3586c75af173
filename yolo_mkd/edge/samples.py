"""Statistics of timed samples: all of them are kept, and a percentile is given only where there are enough for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

if TYPE_CHECKING:
    Summary = dict[str, float | int | None]

# Percentile -> fewest samples n with P(at most one of n lies beyond it) <= 1 %, as MLPerf's early stopping asks
FLOORS = {50.0: 11, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
DRIFT = 0.05  # between the medians of the first and the last third


def percentile_key(percentile: float) -> str:
    """Name a percentile in the report: p90_ms, p99_9_ms."""
    return f"p{percentile:g}_ms".replace(".", "_")


def nearest_rank(samples: Sequence[float], percentile: float) -> float:
    """The smallest sample that at least `percentile` % of all do not exceed; nothing is interpolated."""
    rank = -(-len(samples) * round(percentile * 10) // 1000)  # whole numbers: 99.9 % of 1000 is rank 999
    return float(sorted(samples)[rank - 1])


def statistics(samples: Sequence[float]) -> Summary:
    """Describe all samples [ms]; a percentile is None where there are too few of them for it."""
    figures: Summary = {
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


def drift(samples: Sequence[float], causes: Sequence[str] = ()) -> dict[str, Any]:
    """Compare the medians of the first and the last third, in the order they were taken.

    Args:
        samples: end-to-end times [ms].
        causes: what the sensors saw change meanwhile.
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
