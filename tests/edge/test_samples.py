"""No sample is dropped, a percentile needs enough of them, and a drift lists what the sensors measured."""

from __future__ import annotations

import numpy as np
import pytest

from yolo_mkd.edge import measure, samples


def test_statistics_agree_with_hand_values():
    figures = samples.statistics([4.0, 1.0, 2.0, 3.0] * 5)
    assert figures == {
        "n": 20, "min_ms": 1.0, "mean_ms": 2.5, "max_ms": 4.0, "std_ms": pytest.approx(1.25**0.5),
        "p50_ms": 2.0, "p90_ms": None, "p95_ms": None, "p99_ms": None, "p99_9_ms": None,
    }  # fmt: skip


@pytest.mark.parametrize(("percentile", "floor"), samples.FLOORS.items())
def test_percentile_is_left_out_below_the_floor_of_early_stopping(percentile, floor):
    def at_most_one_beyond(n: int) -> float:
        p = percentile / 100
        return p**n + n * (1 - p) * p ** (n - 1)

    assert at_most_one_beyond(floor) <= 0.01 < at_most_one_beyond(floor - 1)
    key = samples.percentile_key(percentile)
    assert samples.statistics([1.0] * (floor - 1))[key] is None
    assert samples.statistics([1.0] * floor)[key] == 1.0


@pytest.mark.parametrize(
    ("count", "percentile", "value"),
    [(1, 50, 1), (4, 50, 2), (5, 50, 3), (10, 90, 9), (11, 90, 10), (100, 99, 99), (101, 99, 100), (1000, 99.9, 999)],
)
def test_percentile_is_the_nearest_rank(count, percentile, value):
    shuffled = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert samples.nearest_rank(list(shuffled), percentile) == value


def test_drift_lists_causes_only_where_there_is_one():
    steady = [10.0, 10.1] * 30
    assert samples.drift(steady, ["the gpu clock went from 900 to 600 MHz"])["reason"] == ""
    slower = [10.0] * 40 + [12.0] * 20
    assert samples.drift(slower, ["gpu-thermal became 12 degrees warmer"])["reason"] == (
        "the last third is 20% slower than the first; gpu-thermal became 12 degrees warmer"
    )
    assert not samples.drift(slower)["stable"]


def test_no_sample_is_dropped_when_the_last_fifth_is_slow(monkeypatch):
    clock = [0]

    def run(index: int) -> list[float]:
        took = 10 if index < 80 else 40
        clock[0] += took * 1_000_000
        return [float(took)]

    monkeypatch.setattr(measure, "perf_counter_ns", lambda: clock[0])
    rows = measure.collect_samples(run, 80 * 0.010 + 20 * 0.040)
    assert len(rows) == 100 and [row[0] for row in rows].count(40.0) == 20


def test_warm_up_ends_when_it_settles_or_after_ten_seconds(monkeypatch):
    clock = [0]

    def runner(times):
        def run(index: int) -> list[float]:
            clock[0] += int(times(index) * 1e6)
            return [times(index)]

        return run

    monkeypatch.setattr(measure, "perf_counter_ns", lambda: clock[0])
    settled = measure.warm_up(runner(lambda index: 100.0 if index < 5 else 10.0))
    assert settled["settled"] and settled["runs"] == 55
    restless = measure.warm_up(runner(lambda index: 10.0 if index % 2 else 30.0))
    assert not restless["settled"] and restless["runs"] == 500 and restless["seconds"] == pytest.approx(10.0)
