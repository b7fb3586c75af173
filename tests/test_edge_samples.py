"""The device's statistics are those of yolo-mkd time, and a drift names what the sensors saw."""

from __future__ import annotations

import numpy as np
import pytest

from yolo_mkd import timing
from yolo_mkd.edge import samples
from yolo_mkd.edge import time as edge_time


@pytest.mark.parametrize("n", [1, 11, 63, 64, 130, 662, 7000])
def test_statistics_are_those_of_yolo_mkd_time(n):
    times = np.random.default_rng(n).gamma(9, 2, n).tolist()
    assert samples.statistics(times) == timing.statistics(times)
    assert samples.FLOORS == timing.FLOORS


def test_drift_names_its_causes_only_when_there_is_one():
    steady = [10.0, 10.1] * 30
    assert samples.drift(steady, ["the gpu clock went from 900 to 600 MHz"])["reason"] == ""
    slower = [10.0] * 40 + [12.0] * 20
    assert samples.drift(slower, ["gpu-thermal got 12 degrees warmer"])["reason"] == (
        "the last third is 20% slower than the first; gpu-thermal got 12 degrees warmer"
    )
    assert not samples.drift(slower)["stable"]


def test_no_sample_is_dropped_when_the_last_fifth_is_slow(monkeypatch):
    clock = [0]

    def run(index: int) -> list[float]:
        took = 10 if index < 80 else 40
        clock[0] += took * 1_000_000
        return [float(took)]

    monkeypatch.setattr(edge_time, "perf_counter_ns", lambda: clock[0])
    rows = edge_time.measure(run, 80 * 0.010 + 20 * 0.040)
    assert len(rows) == 100 and [row[0] for row in rows].count(40.0) == 20


def test_warm_up_ends_when_it_settles_or_after_ten_seconds(monkeypatch):
    clock = [0]

    def runner(times):
        def run(index: int) -> list[float]:
            clock[0] += int(times(index) * 1e6)
            return [times(index)]

        return run

    monkeypatch.setattr(edge_time, "perf_counter_ns", lambda: clock[0])
    settled = edge_time.warm_up(runner(lambda index: 100.0 if index < 5 else 10.0))
    assert settled["settled"] and settled["runs"] == 55
    restless = edge_time.warm_up(runner(lambda index: 10.0 if index % 2 else 30.0))
    assert not restless["settled"] and restless["runs"] == 500 and restless["seconds"] == pytest.approx(10.0)
