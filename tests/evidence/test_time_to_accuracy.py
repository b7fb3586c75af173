"""Time to plain's final accuracy, from curves whose answer is known, and its table, columns and picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd.evidence import compare
from yolo_mkd.evidence.compare import curves, findings, notes, statistics, tables, worker
from yolo_mkd.evidence.compare.time_to_accuracy import reached_and_held, time_to_plain
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.host import clock, snapshots

MAP = "map50_95"


def curve(*scores: float, epoch_s: float = 10.0, nms_free: float | None = None) -> list[dict[str, Any]]:
    """A curve with a point an epoch of 100 images; `nms_free` is added to the accuracy of the other head."""
    return [
        {"epoch": i, "images": 100 * i, "train_s": epoch_s * i, "cost_s": epoch_s * i, "map50_95": score,
         "nms_free_map50_95": None if nms_free is None else score + nms_free}
        for i, score in enumerate(scores, 1)
    ]  # fmt: skip


def result(points: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "status": "done", "best": {"map50_95": 0.5, "map50": 0.6, "classes": {}}, "last": {"map50_95": 0.4},
        "epochs": len(points), "train_s": 9.0, "cost_s": 10.0, "start": "a", "batches": [], "parameters": 7,
        "curve": points,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "target", "cost", "images"),
    [
        ((0.1, 0.2, 0.3, 0.4), 0.3, 30.0, 300.0),  # exactly at the third point
        ((0.1, 0.2, 0.3, 0.4), 0.25, 25.0, 250.0),  # half way between the second and the third
        ((0.1, 0.4, 0.2, 0.4), 0.3, 35.0, 350.0),  # reached at 2, lost at 3, held from between 3 and 4
        ((0.5, 0.4, 0.6, 0.7), 0.3, 10.0, 100.0),  # there at the first point
        ((0.0, 0.3, 0.3, 0.3), 0.3, 20.0, 200.0),  # equal counts as reached
    ],
)
def test_an_accuracy_is_reached_where_the_curve_stays_at_it(
    scores: tuple[float, ...], target: float, cost: float, images: float
) -> None:
    found = reached_and_held(curve(*scores), MAP, target)
    assert found == pytest.approx((cost, images))


@pytest.mark.parametrize("scores", [(0.1, 0.2, 0.2), (0.1, 0.9, 0.2)])
def test_an_accuracy_that_the_run_does_not_end_with_is_never_reached(scores: tuple[float, ...]) -> None:
    assert reached_and_held(curve(*scores), MAP, 0.3) is None


def test_the_ratio_and_its_interval_are_those_derived_by_hand() -> None:
    # ratios 1/2 and 1/8: geometric mean 1/4; logs -ln 2 and -3 ln 2, deviation sqrt(2) ln 2, so the half width is
    # 12.7062 x sqrt(2) ln 2 / sqrt(2) = 12.7062 ln 2
    found = statistics.paired_ratio([(1.0, 2.0), (1.0, 8.0)])
    assert found["mean"] == 0.25
    assert found["low"] == pytest.approx(0.25 * 2**-12.7062, abs=1e-5)
    assert found["high"] == pytest.approx(0.25 * 2**12.7062, rel=1e-4)
    assert found["verdict"] == "not distinguishable"
    assert statistics.paired_ratio([(1.0, 2.0), (1.0, 2.02)])["verdict"] == "faster"
    assert statistics.paired_ratio([(3.0, 2.0), (3.1, 2.0)])["verdict"] == "slower"
    assert statistics.paired_ratio([(1.0, 2.0)])["low"] is None


def test_each_seed_has_plains_last_accuracy_as_its_own_target() -> None:
    plain = {0: result(curve(0.1, 0.2, 0.3, 0.4)), 1: result(curve(0.1, 0.2, 0.3, 0.6))}
    ours = {0: result(curve(0.2, 0.4, 0.5, 0.5, epoch_s=20)), 1: result(curve(0.2, 0.4, 0.6, 0.7, epoch_s=20))}
    found = time_to_plain(ours, plain, MAP)  # 40 s and 200 images of 40 and 400; 60 s and 300 of 40 and 400
    assert found is not None
    assert found["target"] == 0.5
    assert (found["reached"], found["missed"]) == ([0, 1], [])
    assert found["cost_s"] == {0: 40.0, 1: 60.0}
    assert found["images_seen"] == {0: 200, 1: 300}
    assert found["cost"]["mean"] == pytest.approx(math.sqrt(1.0 * 1.5), abs=1e-5)
    assert found["images"]["mean"] == pytest.approx(math.sqrt(0.5 * 0.75), abs=1e-5)


def test_plain_is_measured_by_the_same_rule_against_itself() -> None:
    plain = {0: result(curve(0.1, 0.5, 0.4, 0.4))}  # above its own end from 0.75 of the second epoch on
    found = time_to_plain(plain, plain, MAP)
    assert found is not None
    assert found["cost_s"] == {0: 17.5}
    assert found["cost"]["mean"] == 1.0


def test_a_run_that_never_gets_there_is_counted_and_makes_the_ratio_a_bound() -> None:
    plain = {s: result(curve(0.1, 0.2, 0.3, 0.4)) for s in (0, 1)}
    ours = {0: result(curve(0.2, 0.4, 0.5, 0.5)), 1: result(curve(0.2, 0.3, 0.3, 0.3, epoch_s=40))}
    found = time_to_plain(ours, plain, MAP)
    assert found is not None
    assert (found["reached"], found["missed"]) == ([0], [1])
    assert found["cost_s"] == {0: 20.0, 1: None}
    cost = found["cost"]  # 20 of 40 s, and at least 160 of 40 s
    assert (cost["mean"], cost["low"], cost["bound"], cost["seeds"]) == (1.41421, None, True, 2)


def test_runs_without_a_curve_or_a_second_head_have_no_time() -> None:
    plain, older = {0: result(curve(0.1, 0.4))}, {0: {**result([]), "curve": []}}
    assert time_to_plain(older, plain, MAP) is None
    assert time_to_plain(plain, plain, findings.NMS_FREE) is None
    assert time_to_plain({1: result(curve(0.4))}, plain, MAP) is None  # no plain run of that seed


@pytest.mark.parametrize(
    ("epochs", "points", "chosen"),
    [(30, 10, range(3, 31, 3)), (4, 10, [1, 2, 3, 4]), (7, 3, [3, 5, 7])],
)
def test_the_points_are_evenly_spaced_and_end_with_the_run(epochs: int, points: int, chosen: Any) -> None:
    found = [e for e in range(1, epochs + 1) if snapshots.is_point(e, epochs, points)]
    assert found == list(chosen)


def test_a_curve_counts_the_time_and_images_of_earlier_stages_too() -> None:
    def epoch(seconds: float, seen: int) -> dict[str, Any]:
        return {"seconds": seconds, "cpu_s": 2 * seconds, "seen": seen}

    stages = [[epoch(5.0, 10)], [epoch(1.0, 20), epoch(2.0, 20), epoch(3.0, 20)]]
    scores: Any = {2: {"map50_95": 0.1}, 3: {"map50_95": 0.2, "nms_free": {"map50_95": 0.3}}}
    found = worker.accuracy_curve(stages, scores, "cpu")
    assert found == [
        {"epoch": 2, "images": 50, "train_s": 8.0, "cost_s": 16.0, "map50_95": 0.1, "nms_free_map50_95": None},
        {"epoch": 3, "images": 70, "train_s": 11.0, "cost_s": 22.0, "map50_95": 0.2, "nms_free_map50_95": 0.3},
    ]
    assert worker.accuracy_curve(stages, scores, "NVIDIA H100")[0]["cost_s"] == 8.0
    uncounted = [[{"seconds": 1.0, "cpu_s": 1.0, "seen": None}]]
    assert worker.accuracy_curve(uncounted, {1: scores[2]}, "cpu") == []


def test_a_clock_of_an_earlier_version_has_no_count_of_images(tmp_path: Path) -> None:
    older = "epoch,seconds,cpu_s,start,images,pixels\n1,2.5,2.0,a,b,c\n"
    (tmp_path / clock.FILE).write_text(older)
    assert [(e["epoch"], e["seconds"], e["seen"]) for e in clock.read(tmp_path)] == [(1, 2.5, None)]
    (tmp_path / clock.FILE).write_text(older.replace("pixels", "pixels,seen").replace("c\n", "c,40\n"))
    assert clock.read(tmp_path)[0]["seen"] == 40


# The report


def study() -> tuple[list[Trial], dict[str, Any], list[Any]]:
    """Two seeds each of plain, of a method that is there in half the cost, and of one that fails to get there once."""
    runs = {
        ("plain", 0): curve(0.1, 0.2, 0.3, 0.4, nms_free=-0.1),
        ("plain", 1): curve(0.1, 0.2, 0.3, 0.4, nms_free=-0.1),
        ("mkd", 0): curve(0.2, 0.4, 0.5, 0.5, nms_free=-0.1),
        ("mkd", 1): curve(0.2, 0.4, 0.5, 0.6, nms_free=-0.2),
        ("native", 0): curve(0.2, 0.3, 0.3, 0.3, nms_free=-0.1),
        ("native", 1): curve(0.2, 0.3, 0.4, 0.4, nms_free=0.0),
    }
    trials = [Trial(f"d/m/{m}-s{s}", "d", "m", m, s, False, {}, {}) for m, s in runs]
    results = {t.name: result(runs[t.method, t.seed]) for t in trials}
    return trials, results, findings.comparison_rows(trials, results, ["plain"])


def report() -> Any:
    trials, results, rows = study()
    whole = {
        "command": "yolo-mkd compare", "references": ["plain"], "live": {}, "replayed": [], "rows": rows,
        "together": 1, "latency": [], "mean": [], "seeds": [0, 1], "devices": ["cpu"], "versions": {"torch": "2"},
        "machine": {"processor": "p", "cores": 2},
        "cells": [compare.trial_figures(t, results[t.name], rows) for t in trials],
    }  # fmt: skip
    return {**whole, "notes": notes.report_notes(whole)}


def test_text_and_page_hold_the_times_of_both_heads_and_the_runs_that_never_get_there() -> None:
    found = report()
    for text in (tables.comparison_text(found), tables.comparison_page(found)):
        lines = [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]
        assert "mkd 0.400 2 of 2 0.50 [0.50, 0.50] 0.50 [0.50, 0.50]" in lines
        assert "native 0.400 1 of 2 at least 0.87 at least 0.87" in lines  # sqrt(1 x 0.75)
        assert any("native: 1 of 2 runs never hold plain's final accuracy" in line for line in lines)
        assert any("mkd: faster than plain to its accuracy" in line for line in lines)
        assert "mkd 0.300 2 of 2 0.61 [0.05, 8.05] 0.61 [0.05, 8.05]" in lines  # without NMS: 20 and 30 s of 40
        assert "stays at or above that of plain's last.pt" in " ".join(text.split())
    assert "curve.png" in tables.comparison_page(found)


def test_the_table_of_trials_has_the_time_of_each_run(tmp_path: Path) -> None:
    tables.write_csv(tmp_path / "compare.csv", report())
    with open(tmp_path / "compare.csv", newline="") as f:
        rows = {(r["method"], r["seed"]): r for r in csv.DictReader(f)}
    assert rows["mkd", "1"]["to_plain_cost_s"] == "20.0"
    assert rows["mkd", "1"]["to_plain_images"] == "200"
    assert rows["mkd", "1"]["nms_free_to_plain_cost_s"] == "30.0"
    assert rows["native", "0"]["to_plain_cost_s"] == ""
    assert "curve" not in rows["mkd", "1"]


def test_the_picture_has_a_line_with_its_band_for_each_method_and_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(curves.plotting, "save", lambda figure, path: drawn.append(figure))
    curves.draw_curves(report(), tmp_path / "curve.png")
    panels = drawn[0].axes
    assert [a.get_title("left") for a in panels] == ["m on d: mAP50-95", "m on d: mAP50-95 without NMS"]
    labels = [t.get_text() for t in panels[0].get_legend().get_texts()]
    assert labels == ["plain's final", "plain", "mkd", "native"]
    assert len(panels[0].collections) == 3  # a band each
    mkd = next(line for line in panels[0].lines if line.get_label() == "mkd")
    assert (mkd.get_xdata()[0], mkd.get_xdata()[-1]) == (0.25, 1.0)  # of plain's 40 s
    assert mkd.get_ydata()[-1] == pytest.approx(0.55)
    assert list(panels[0].lines[0].get_ydata()) == [0.4, 0.4]
    drawn.clear()
    curves.draw_curves({**report(), "cells": [{"student": "m", "data": "d", "failed": "broke"}]}, tmp_path / "c.png")
    assert drawn == []
