"""The schedule of distillation's weight."""

from __future__ import annotations

import pytest

from yolo_mkd.distill.schedule import Schedule


def test_a_run_of_one_epoch_is_distilled() -> None:
    schedule = Schedule.of(epochs=1, warmup_epochs=3, until=0.5)
    assert schedule.end == 1
    assert schedule.weight(0.5) > 0


@pytest.mark.parametrize(
    ("epochs", "until", "end"),
    [(100, 0.5, 50), (3, 0.5, 2), (2, 0.1, 1), (15, 0.5, 8), (100, 0.95, 95), (15, 0.25, 4), (15, 1, 15), (1, 1, 1)],
)
def test_distillation_ends_after_the_share_of_the_epochs_that_is_asked_for(epochs: int, until: float, end: int) -> None:
    schedule = Schedule.of(epochs, 3, until=until)
    assert schedule.end == end
    assert schedule.weight(end - 1e-6) == pytest.approx(0.1, abs=1e-3)  # it has fallen by then
    assert schedule.weight(end) == 0


@pytest.mark.parametrize(("share", "weight"), [(0, 1), (0.25, 0.868), (0.5, 0.55), (0.75, 0.232)])
def test_cosine_falls_from_1_to_a_tenth_as_damo_yolo_has_it(share: float, weight: float) -> None:
    assert Schedule(warmup=0, fitted=1, end=100, epochs=100).weight(100 * share) == pytest.approx(weight, abs=5e-4)
    assert Schedule(warmup=0, fitted=1, end=100, epochs=100).weight(100 - 1e-6) == pytest.approx(0.1, abs=1e-4)


def test_warm_up_is_linear_and_meets_the_cosine() -> None:
    schedule = Schedule.of(epochs=100, warmup_epochs=4, until=1)
    assert [schedule.weight(e) for e in (0, 1, 2, 4)] == pytest.approx([0, 0.25, 0.5, 1])


@pytest.mark.parametrize(
    ("epochs", "warmup", "until", "batches", "inert"),
    [(1, 3, 1, 1, True), (1, 0, 1, 1, False), (1, 3, 1, 2, False), (2, 3, 0.5, 1, True), (2, 3, 1, 1, False)],
)
def test_a_run_in_which_the_weight_stays_0_has_a_warning(
    epochs: int, warmup: float, until: float, batches: int, inert: bool
) -> None:
    schedule = Schedule.of(epochs, warmup, until=until)
    weights = [schedule.weight(epoch + i / batches) for epoch in range(epochs) for i in range(batches)]
    assert (max(weights) == 0) == inert
    found = schedule.inert(batches)
    assert bool(found) == inert and "\n" not in found
    assert not inert or all(f"{name}=" in found for name in ("epochs", "until", "batch", "warmup_epochs"))


def test_a_run_whose_only_distilled_batch_is_its_first_has_a_warning() -> None:
    assert "teacher_every=" in Schedule.of(1, 3, until=1, every=8).inert(8)
    assert not Schedule.of(1, 3, until=1, every=8).inert(9)


def test_its_text_shows_when_distillation_is_off() -> None:
    assert str(Schedule.of(100, 3, until=0.5)).endswith("off for the last 50 of 100 epochs")
    assert str(Schedule.of(9, 3, 1, every=4)).endswith("in one batch of 4, whose terms count 4 times")


@pytest.mark.parametrize(("epochs", "warmup", "fitted"), [(100, 3, 3), (100, 0, 1), (100, 0.2, 1), (2, 3, 2 / 3)])
def test_guidance_layers_are_fitted_over_the_warm_up_and_at_least_an_epoch(
    epochs: int, warmup: float, fitted: float
) -> None:
    assert Schedule.of(epochs, warmup, until=1).fitted == pytest.approx(fitted)
