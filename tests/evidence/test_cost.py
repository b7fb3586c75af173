"""What `yolo-mkd cost` measures: seconds that add up, ratios derived by hand, and real trainings in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import cli
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.evidence.cost import cost
from yolo_mkd.evidence.cost.figures import cost_table, ratios, readings_per_step
from yolo_mkd.evidence.cost.stopwatch import Stopwatch
from yolo_mkd.evidence.cost.worker import PARTS
from yolo_mkd.settings import BadInput


class Clock:
    """A clock that its test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Model:
    def __init__(self, clock: Clock, watch: Stopwatch):
        self.clock = clock
        watch.around(self, "loss", "loss")
        watch.around(self, "predict", "student")

    def predict(self) -> str:
        self.clock.now += 5
        return "boxes"

    def loss(self) -> str:
        self.clock.now += 2
        boxes = self.predict()
        self.clock.now += 1
        return boxes


def test_each_second_counts_once_for_the_innermost_part() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    model = Model(clock, watch)
    assert model.loss() == "boxes" and not watch.seconds  # off
    watch.on = True
    watch.begin("data")
    clock.now += 10
    watch.begin("backward")
    assert model.loss() == "boxes"
    clock.now += 20
    watch.stop()
    clock.now += 100  # between two turns
    assert watch.seconds == {"data": 10, "loss": 3, "student": 5, "backward": 20}


def test_a_part_that_raises_is_left() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    model = Model(clock, watch)
    model.predict = lambda: 1 / 0  # type: ignore[assignment, return-value]
    watch.on = True
    watch.begin("backward")
    with pytest.raises(ZeroDivisionError):
        model.loss()
    clock.now += 4
    watch.stop()
    assert watch.seconds == {"loss": 2, "backward": 4}


def test_a_ratio_is_the_geometric_mean_over_rounds_with_students_interval() -> None:
    found = ratios([2.0, 8.0, 4.0], [2.0, 2.0, 2.0])  # ratios 1, 4, 2: logs 0, 2 ln 2, ln 2
    assert found["mean"] == pytest.approx(2.0)
    # the logs' deviation is ln 2, so the interval is ln 2 (1 -+ 4.303 / sqrt 3)
    assert found["low"] == pytest.approx(2 ** (1 - 4.303 / 3**0.5), rel=1e-3)
    assert found["high"] == pytest.approx(2 ** (1 + 4.303 / 3**0.5), rel=1e-3)


def test_a_disturbance_that_meets_both_alike_changes_no_ratio() -> None:
    assert ratios([3.0, 30.0, 3.0], [2.0, 20.0, 2.0])["high"] == pytest.approx(1.5)


def test_gradients_are_measured_once_in_50_batches_eight_times_an_epoch_at_most_and_twelve_times_more() -> None:
    # 1600 images in batches of 16: 100 batches, 2 measurements in each of the 90 epochs, and 12 before the gains freeze
    schedule = Schedule.of(100, 3, until=0.9)
    assert readings_per_step(1600, 16, schedule) == pytest.approx((2 * 90 + 12) / (100 * 90))
    assert readings_per_step(16_000, 16, schedule) == pytest.approx((8 * 90 + 12) / (1000 * 90))
    assert readings_per_step(160, 16, Schedule.of(20, 3, until=1)) == pytest.approx((200 / 50 + 12) / (10 * 20))


@pytest.fixture(scope="module")
def arguments(untrained_detector: Any) -> dict[str, Any]:
    student = str(untrained_detector.student)
    chosen = {"imgsz": 64, "batch": 8, "device": "cpu", "epochs": 4}
    return {**chosen, "data": str(untrained_detector.data), "model": student, "teacher": str(untrained_detector.pt)}


@pytest.fixture(scope="module")
def measured(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    file = tmp_path_factory.mktemp("cost") / "cost.json"
    return cost(**arguments, rounds=3, json=file), file


@pytest.mark.slow
def test_every_kind_of_training_is_measured_in_every_round(measured: Any) -> None:
    figures, _ = measured
    kinds = figures["kinds"]
    assert list(kinds) == ["plain", "native", "live", "live, recorded's terms", "recording", "recorded"]
    assert figures["refused"] == {}
    assert (figures["heard"], figures["epochs"]) == (4, 4)
    assert all(len(row["steps_s"]) == 3 for row in kinds.values())
    assert kinds["plain"]["ratio"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.slow
def test_the_parts_of_a_step_add_up_to_it(measured: Any) -> None:
    for kind, row in measured[0]["kinds"].items():
        for step, parts in zip(row["steps_s"], row["parts_s"], strict=True):
            assert set(parts) == set(PARTS)
            assert sum(parts.values()) == pytest.approx(step, rel=0.02), kind


@pytest.mark.slow
def test_each_kind_spends_time_on_its_own_parts_alone(measured: Any) -> None:
    kinds = measured[0]["kinds"]
    spends = {kind: {p for p, s in row["parts"].items() if s > 0} for kind, row in kinds.items()}
    assert spends["plain"] == set(PARTS) - {"teacher", "terms"}
    assert all(spends[kind] == set(PARTS) for kind in kinds if kind != "plain")
    assert (
        kinds["recorded"]["store_bytes"] == kinds["recorded"]["formula_bytes"]
    )  # complete, so that the teacher never runs again


@pytest.mark.slow
def test_table_picture_and_json_hold_the_figures(measured: Any) -> None:
    figures, file = measured
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["schema"] == "yolo-mkd/cost/1" and written["kinds"] == figures["kinds"]
    assert file.with_suffix(".png").stat().st_size > 10_000
    lines = cost_table(figures).splitlines()
    assert sum(line.startswith("  recorded ") for line in lines) == 2
    assert "1.000 1.000-1.000" in " ".join(cost_table(figures).split())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounds": 2}, "rounds=2 must be at least 3"),
        ({"batch": -1}, "batch=-1 must be at least 1"),
        ({"batch": 500}, "has 96 train images, fewer than batch=500"),
        ({"data": "gone.yaml"}, "gone.yaml"),
        ({"epoch": 3}, "epoch= is not an argument of yolo-mkd cost"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: dict[str, Any], changed: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cost(**{**arguments, **changed})


def test_a_pair_that_native_refuses_is_a_line_in_the_table() -> None:
    row = {
        **{"step_s": 1.0, "images_per_s": 8.0, "ratio": {"mean": 1.0, "low": 1.0, "high": 1.0}, "reading_s": 0.0},
        **{"reading_share": 0.0, "peak_bytes": 2**20, "parts": dict.fromkeys(PARTS, 0.1)},
    }
    figures = {
        **{"student": "s", "teacher": "t", "classes": 3, "imgsz": 64, "batch": 8, "device": "cpu", "threads": 1},
        **{"refused": {"native": "other levels"}, "kinds": {"plain": row}, "heard": 50, "epochs": 100},
        "teacher_every": 1,
    }
    text = " ".join(cost_table(figures).split())
    assert "native cannot be measured: other levels" in text
    assert "Distillation is on in 50 of 100 epochs" in text


def test_the_command_prints_the_table(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import yolo_mkd.evidence.cost

    monkeypatch.setattr(yolo_mkd.evidence.cost, "cost", lambda **given: {"given": given})
    monkeypatch.setattr(
        "yolo_mkd.evidence.cost.figures.cost_table", lambda figures: f"rounds {figures['given']['rounds']}"
    )
    assert cli.run(["cost", "rounds=4"]) == 0
    assert capsys.readouterr().out == "rounds 4\n"
