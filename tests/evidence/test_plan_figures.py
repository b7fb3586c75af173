"""From the measurements of a plan to a run's cost, and to warnings with advice: values derived by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.evidence.plan.advice import direction, verdict, warnings
from yolo_mkd.evidence.plan.cost import Run, disk, duration, memory

# Cost, by hand


PROBED: dict[str, Any] = {
    "batch": 4,
    "plain": {"step_s": 1.0},
    "taught": {"step_s": 1.5},
    "load_s": 0.1,
    "update_s": 0.2,
    "reading_s": 0.5,
    "val_s_per_image": 0.01,
    "memory": {
        "parameters": 10, "gradients": 20, "optimizer": 30, "average": 40, "teachers": 50, "saved_plain": 100,
        "saved_taught": 200,
    },
    "disk": {"while_training": 7, "beside": 1, "at_the_end": 2},
}  # fmt: skip


def run_of(**changes: Any) -> Run:
    schedule = Schedule(warmup=1, fitted=1, end=8, epochs=10)
    given = {"epochs": 10, "batch": 8, "images": 33, "val_images": 100, "nbs": 16, "schedule": schedule, "hours": None}
    return Run(**{**given, "save_period": -1, "validates": True, **changes})


def test_the_duration_sums_steps_gradient_measurements_loading_updates_and_validations() -> None:
    found = duration(run_of(), PROBED)
    plain = (
        50 * 2.0 + 50 * 0.2 + 25 * 0.2 + 11 * 1.0
    )  # 5 batches x 10 epochs; an update every other; 10 + 1 validations
    assert found["hours_plain"] == pytest.approx(plain / 3600)
    assert found["hours"] == pytest.approx((plain + 40 * 1.0 + 12.8 * 1.0) / 3600)  # 40 taught: 12 readings, one in 50
    assert found["extra_percent"] == pytest.approx(50)


def test_a_cached_teacher_costs_time_only_in_the_epochs_that_run_it() -> None:
    probed = {**PROBED, "taught": {"step_s": 1.5, "teacher_s": 0.3}}
    live, kept = duration(run_of(), probed), duration(run_of(asked=2), probed)
    assert live["hours"] - kept["hours"] == pytest.approx(5 * 6 * 0.3 * 2 / 3600)  # 5 batches in 6 of 8 epochs
    assert live["hours"] - live["hours_replayed"] == pytest.approx(5 * 8 * 0.3 * 2 / 3600)


def test_a_teacher_that_runs_in_one_batch_of_four_adds_a_quarter() -> None:
    schedule = Schedule(warmup=1, fitted=1, end=8, epochs=10, every=4)
    each, seldom = duration(run_of(), PROBED), duration(run_of(schedule=schedule), PROBED)
    assert seldom["extra_percent"] == pytest.approx(each["extra_percent"] / 4)
    # 10 distilled steps and not 40, and 10 readings and not 12.8
    assert each["hours"] - seldom["hours"] == pytest.approx((30 * 1.0 + 2.8 * 1.0) / 3600)


def test_unlabelled_images_lengthen_the_distilled_steps_only() -> None:
    found, alone = duration(run_of(joined=1.5), PROBED), duration(run_of(), PROBED)
    assert found["hours_plain"] == alone["hours_plain"]
    taught, readings, loads = 40 * 1.5 * 2 * 0.5, 12.8 * 0.5 * 2 * 0.5, 40 * 0.5 * 0.1 * 2
    updates = 25 * 0.2  # nbs=16 is reached with two batches of 8, and with one of 8 and 4 more
    assert found["hours"] - alone["hours"] == pytest.approx((taught + readings + loads + updates) / 3600)
    assert memory(run_of(joined=1.5), PROBED)["activations_taught"] == 600


def test_a_time_limit_is_the_duration() -> None:
    assert duration(run_of(hours=2.0), PROBED)["hours"] == 2.0


def test_a_stage_without_teachers_costs_a_plain_run() -> None:
    found = duration(run_of(), {**PROBED, "taught": {}, "reading_s": 0.0})
    assert found["hours"] == found["hours_plain"] and found["extra_percent"] == 0


def test_only_activations_grow_with_the_batch() -> None:
    found = memory(run_of(), PROBED)
    assert (found["total_plain"], found["total_taught"]) == (100 + 200, 100 + 50 + 400)


def test_periodic_checkpoints_stay_on_disk() -> None:
    assert disk(run_of(), PROBED) == {"peak": 15, "kept": 4}
    assert disk(run_of(save_period=4), PROBED) == {"peak": 15 + 14, "kept": 4 + 14}


# Advice


def healthy() -> dict[str, Any]:
    term = {
        "term": "soft",
        "asked": 0.5,
        "acts": True,
        "why_not": "",
        "nominal_gain": 1.0,
        "gain": 1.2,
        "at_limit": False,
    }
    term |= {
        "share": {"mean": 0.4, "sd": 0.1, "values": [0.4] * 4},
        "cosine": {"mean": 0.2, "sd": 0.1, "values": [0.2] * 4},
    }
    lacks = {
        "term": "soft_dfl",
        "asked": 0.1,
        "acts": False,
        "why_not": "neither head has box-side distributions (reg_max=1)",
    }
    strides = {"student": [8, 16, 32], "teacher": [8, 16, 32]}
    hop = {
        "teacher": "teacher",
        "known": True,
        "ratio": 4.0,
        "terms": [term, lacks],
        "strides": strides,
        "unknown_classes": [],
    }
    stage = {"name": "student", "hops": [hop], "updates": 900, "epochs": 60, "mosaic_epochs": 45}
    stage["memory"] = {"total_taught": 2**30}
    stage["cost"] = {"hours": 1.5, "hours_plain": 1.0}
    scores = {"teacher": {"classes": [0, 1], "map50_95": 0.5}, "student": {"classes": [0, 1], "map50_95": 0.3}}
    return {
        "stages": [stage], "accuracy": scores, "batch": 16, "batch_is_automatic": False, "classes": 2, "gate": False,
        "named_terms": [], "device_memory": 2**33, "total": {"hours": 2.0, "kept": 2**21},
    }  # fmt: skip


def test_a_healthy_plan_has_no_warning_and_a_verdict() -> None:
    assert warnings(healthy()) == []
    assert verdict({**healthy(), "warnings": []}) == (
        "It can help: the teacher has 0.500 mAP50-95 here, the student 0.300, and of the gradients of 1 acting terms, "
        "1 clearly agree with the task and 0 oppose it. Only a comparison with plain training of equal length shows "
        "by how much. It takes about 2.0 h and 2 MB of disk; training the student alone takes 1.0 h."
    )


CHANGES: list[tuple[str, tuple[Any, ...], Any]] = [
    ("ratio", ("stages", 0, "hops", 0, "ratio"), 8.1),
    ("teacher_no_better", ("accuracy", "teacher", "map50_95"), 0.305),
    ("teacher_no_better", ("accuracy",), {"teacher": {"classes": [0, 1], "map50_95": 0.001}}),
    ("teacher_unmeasured", ("accuracy", "teacher"), {"classes": [], "why_not": "has no class of this data"}),
    ("classes", ("stages", 0, "hops", 0, "unknown_classes"), ["cat"]),
    ("strides", ("stages", 0, "hops", 0, "strides", "teacher"), [4, 8, 16]),
    ("silent", ("named_terms",), ["soft_dfl"]),
    ("silent", ("stages", 0, "hops", 0, "terms", 1, "why_not"), "no stride in common"),
    ("dead", ("stages", 0, "hops", 0, "terms", 0, "share", "mean"), 0.0),
    ("dead", ("stages", 0, "hops", 0, "terms", 0, "share", "mean"), float("nan")),
    ("limit", ("stages", 0, "hops", 0, "terms", 0, "at_limit"), True),
    ("against", ("stages", 0, "hops", 0, "terms", 0, "cosine", "mean"), -0.2),
    ("short", ("stages", 0, "updates"), 199),
    ("mosaic", ("stages", 0, "mosaic_epochs"), 46),
    ("costly", ("stages", 0, "cost", "hours"), 1.51),
    ("memory", ("device_memory",), 2**30),
    ("batch", ("batch_is_automatic",), True),
]


@pytest.mark.parametrize(("what", "path", "value"), CHANGES)
def test_each_problem_gives_one_warning_with_advice(what: str, path: tuple[Any, ...], value: Any) -> None:
    figures = copy.deepcopy(healthy())
    target: Any = figures
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    found = warnings(figures)
    assert [w["what"] for w in found] == [what]
    assert ":" in found[0]["text"] and "\n" not in found[0]["text"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("accuracy", "student"), {"classes": [0], "map50_95": 0.6}),  # scores on other classes cannot be compared
        (("stages", 0, "hops", 0, "ratio"), 8.0),
        (("stages", 0, "updates"), 200),
        (("device_memory",), None),
        (("stages", 0, "hops", 0, "terms", 0, "cosine", "mean"), -0.09),  # within two standard errors of 0
    ],
)
def test_values_within_the_limits_give_no_warning(path: tuple[Any, ...], value: Any) -> None:
    figures = copy.deepcopy(healthy())
    target: Any = figures
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert warnings(figures) == []


def test_only_a_short_run_is_advised_against_mosaic() -> None:
    figures = copy.deepcopy(healthy())
    stage = figures["stages"][0]
    stage |= {"mosaic_epochs": 60, "updates": 1000}
    assert warnings(figures) == []
    stage["updates"] = 999
    (found,) = warnings(figures)
    assert found["text"].startswith(
        "the student is trained on mosaics in 60 of 60 epochs: on two data sets a run as short was more accurate with "
        "mosaic=0"
    )


def test_with_a_gate_an_opposing_gradient_gives_no_warning() -> None:
    figures = {**copy.deepcopy(healthy()), "gate": True}
    figures["stages"][0]["hops"][0]["terms"][0]["cosine"]["mean"] = -0.2
    assert warnings(figures) == []


@pytest.mark.parametrize(("mean", "sign"), [(0.11, 1), (0.09, 0), (-0.09, 0), (-0.11, -1)])
def test_the_direction_of_a_gradient_is_clear_beyond_two_standard_errors(mean: float, sign: int) -> None:
    assert direction({"cosine": {"mean": mean, "sd": 0.1, "values": [mean] * 4}}) == sign
