"""Gains from gradients: what is measured, how gains follow from it, and when they are final."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from yolo_mkd.distill.balance import LIMITS, GradientBalancer, GradientRatio, TermWeight, class_weights, gradient_ratios


def weights(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([v])) for v in values]


def balancer(**options: bool) -> GradientBalancer:
    return GradientBalancer({"a": TermWeight(asked=0.5, gain=2.0, share=0.25)}, **options)


def updated(b: GradientBalancer, *strengths: float, remaining: float = 1.0) -> GradientBalancer:
    for strength in strengths:
        b.update({"a": GradientRatio(strength, 0.1)}, {"a": remaining})
    return b


def test_strength_and_cosine_of_two_known_gradients() -> None:
    x, y = weights(1.0, 1.0)
    task, loss = 3 * x + 4 * y, 10 * x  # gradients (3, 4) and (10, 0)
    found = gradient_ratios(task.sum(), {"a": loss.sum()}, [x, y])["a"]
    assert found.strength == pytest.approx(2.0)
    assert found.cosine == pytest.approx(0.6)


def test_a_loss_that_does_not_reach_the_weights_has_no_strength() -> None:
    x, y = weights(1.0, 1.0)
    losses = {"elsewhere": (y * 2).sum(), "constant": torch.tensor(3.0)}
    found = gradient_ratios((x * 2).sum(), losses, [x])
    assert {name: r.strength for name, r in found.items()} == {"elsewhere": 0.0, "constant": 0.0}


def test_measuring_leaves_the_graph_and_the_gradients_alone() -> None:
    (x,) = weights(2.0)
    task, loss = x.square().sum(), (x**3).sum()
    gradient_ratios(task, {"a": loss}, [x])
    assert x.grad is None
    (task + loss).backward()
    assert x.grad is not None
    assert x.grad.item() == 4 + 12


def test_small_half_precision_gradients_do_not_vanish() -> None:
    (x,) = weights(1.0)
    half = x.half() * 1.0  # the gradient passes in fp16, whose smallest value is 6e-8
    found = gradient_ratios((half.float() * 1e-8).sum(), {"a": (half.float() * 2e-8).sum()}, [x])["a"]
    assert found.strength == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("masses", "power", "expected"),
    [
        ([8.0, 2.0], 1.0, [5 / 8, 5 / 2]),  # either class has half of the weight
        ([9.0, 1.0], 0.5, [5 / 6, 5 / 2]),  # 1/3 and 1, times 10 over 9/3 + 1
        ([8.0, 2.0], 0.0, [1.0, 1.0]),
        ([8.0, 2.0, 0.0], 1.0, [5 / 8, 5 / 2, 1.0]),  # a class that the teacher has not seen
        ([3.5, 0.5], 1.0, [4 / 5.25, 4 / 1.5]),  # 2/7 and 1: less than one anchor counts as one
    ],
)
def test_rare_classes_weigh_more(masses: list[float], power: float, expected: list[float]) -> None:
    found = class_weights(torch.tensor(masses), power)
    assert found.tolist() == pytest.approx(expected)
    assert (found * torch.tensor(masses)).sum().item() == pytest.approx(sum(masses))


def test_class_weights_follow_all_observed_batches_and_survive_a_resumed_run() -> None:
    b = balancer()
    b.power = 0.5
    assert b.class_weights() is None
    for mass in ([6.0, 0.0], [2.0, 2.0]):
        b.observe_classes({"one2many": torch.tensor(mass), "one2one": torch.ones(2)}, torch.tensor([3, 1]))
    again = balancer()
    again.power = 0.5
    again.restore(b.state())
    found = again.class_weights()
    assert found is not None
    assert found["one2many"].tolist() == pytest.approx([5 / 6, 5 / 3])
    assert found["one2one"].tolist() == pytest.approx([1.0, 1.0])
    again.power = 0.0
    assert again.class_weights() is None


def test_a_class_that_no_label_names_takes_no_weight_from_the_others() -> None:
    b = balancer()
    b.power = 1.0
    mass = torch.tensor([8.0, 90.0, 2.0])  # as with classes=[0, 2], of a teacher that has all three
    for labels in ([2, 0, 0], [1, 0, 1]):
        b.observe_classes({"one2many": mass.clone()}, torch.tensor(labels))
    found = b.class_weights()
    assert found is not None
    assert found["one2many"].tolist() == pytest.approx([5 / 8, 1.0, 5 / 2])


def test_before_any_measurement_a_term_has_the_gain_that_usually_gives_its_share() -> None:
    assert balancer().gains == {"a": 4.0}  # gain 2 gives a quarter, a half is requested


def test_without_calibration_the_figure_is_the_gain_and_stays() -> None:
    b = updated(balancer(calibrate=False), 0.01, 7.0)
    assert b.gains == {"a": 0.5}
    assert b.frozen
    assert not b.freeze()


def test_the_gain_is_the_median_of_the_later_half_of_the_measurements() -> None:
    b = updated(balancer(), 100.0, 90.0, 0.2, 0.1, 0.4)  # the first two are of a student that has only just begun
    assert b.gains["a"] == pytest.approx(0.5 / 0.2)


def test_frozen_gains_stay() -> None:
    b = updated(balancer(), 0.25)
    assert b.freeze()
    assert updated(b, 9.0).gains["a"] == 2.0
    assert not b.freeze()  # only once


def test_nothing_measured_is_not_frozen() -> None:
    assert not balancer().freeze()


@pytest.mark.parametrize("dead", [0.0, math.nan, math.inf])
def test_a_measurement_without_a_finite_gradient_changes_no_gain_but_shows_in_the_epoch(dead: float) -> None:
    b = updated(balancer(), 0.25, dead, 0.25)
    assert b.gains["a"] == 2.0
    found = updated(balancer(), dead).close_epoch()["a"].strength
    assert found == 0 or not math.isfinite(found)


@pytest.mark.parametrize(("strength", "limit"), [(1e-9, LIMITS[1]), (1e9, LIMITS[0])])
def test_a_gain_beyond_the_limits_is_clamped_and_named(strength: float, limit: float) -> None:
    b = updated(balancer(), strength)
    assert b.gains["a"] == limit * 4.0
    assert b.limited() == ["a"]
    assert updated(balancer(), 0.25).limited() == []


def test_the_dual_heads_fading_task_does_not_change_the_gain() -> None:
    early, late = updated(balancer(), 0.25), updated(balancer(), 2.0, remaining=0.125)  # the task has an eighth left
    assert early.gains == late.gains
    assert early.close_epoch()["a"].strength == late.close_epoch()["a"].strength == 0.5


def test_an_epoch_reports_the_mean_share_as_the_gain_has_it_and_starts_anew() -> None:
    b = updated(balancer(), 0.25)
    b.freeze()
    updated(b, 0.75)
    assert b.measured == 2
    assert b.close_epoch() == {"a": GradientRatio(pytest.approx((0.25 + 0.75) * 2.0 / 2), pytest.approx(0.1))}
    assert b.measured == 0
    assert b.close_epoch() == {}


def test_a_gated_term_has_no_weight_and_keeps_its_gain() -> None:
    b = updated(balancer(gate=True), 0.25)
    b.update({"a": GradientRatio(0.25, -0.2)}, {"a": 1.0})
    assert b.gain("a") == 0
    assert b.gains["a"] == 2.0
    b.update({"a": GradientRatio(0.25, 0.0)}, {"a": 1.0})
    assert b.gain("a") == 2.0
    b = balancer()  # without a gate
    b.update({"a": GradientRatio(0.25, -0.2)}, {"a": 1.0})
    assert b.gain("a") == 2.0


def test_a_resumed_run_continues_with_the_same_gains_and_gate() -> None:
    b = updated(balancer(gate=True), 0.1, 0.2)
    b.freeze()
    b.update({"a": GradientRatio(0.2, -1.0)}, {"a": 1.0})
    other = balancer(gate=True)
    other.restore(b.state())
    assert (other.gains, other.frozen, other.history, other.gated) == (b.gains, True, b.history, {"a"})


@pytest.mark.parametrize("gains", [{}, {"a": math.nan}, {"a": math.inf}, {"a": -1.0}])
def test_a_state_whose_gain_is_missing_or_no_finite_number_is_refused(gains: dict[str, float]) -> None:
    b = updated(balancer(), 0.1, 0.2)
    own = dict(b.gains)
    with pytest.raises((KeyError, ValueError), match="a"):
        b.restore({**b.state(), "gains": gains})
    assert b.gains == own


def one_rank(rank: int, folder: Path) -> None:
    """What one of two processes measures on a batch of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, y = weights(1.0, 1.0)
    task, loss = 3 * x + 4 * y, 10 * (x if rank == 0 else y)  # the mean gradients are 3 4 and 5 5
    found = gradient_ratios(task.sum(), {"a": loss.sum()}, [x, y])["a"]
    b = balancer()
    b.power = 1.0
    b.observe_classes({"one2one": torch.tensor([8.0, 0.0] if rank == 0 else [0.0, 2.0])}, torch.eye(2)[rank])
    torch.save({"ratio": found, "classes": b.class_weights()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_measure_the_same_ratio_and_weigh_classes_alike(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert (found["ratio"].strength, found["ratio"].cosine) == (pytest.approx(2**0.5), pytest.approx(0.7 * 2**0.5))
        torch.testing.assert_close(found["classes"]["one2one"], torch.tensor([5 / 8, 5 / 2]))  # of masses 8 and 2
