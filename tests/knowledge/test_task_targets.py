"""Soft targets for masks, keypoints and oriented boxes: values derived by hand, properties, and bounded gradients."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, pi, sqrt

import pytest
import torch
from torch import Tensor

from yolo_mkd.knowledge.keypoints import keypoint_loss
from yolo_mkd.knowledge.masks import MOST, mask_loss, pixels_inside
from yolo_mkd.knowledge.oriented_boxes import hellinger, oriented_box_loss
from yolo_mkd.knowledge.soft_targets import at_anchors, best_anchors

approx = pytest.approx


def scores(*values: float) -> Tensor:
    """Logits of one class with these scores, 1 1 A."""
    return torch.tensor(values).logit().view(1, 1, -1)


def test_the_best_anchors_are_those_of_the_highest_weighted_score() -> None:
    zt = torch.cat([scores(0.9, 0.1, 0.2, 0.1), scores(0.1, 0.6, 0.1, 0.1)], 1)
    score, index = best_anchors(zt, None, 2)
    assert sorted(zip(index[0].tolist(), score[0].tolist(), strict=True)) == [(0, approx(0.9)), (1, approx(0.6))]
    # u of anchor 1 with weights 1 and 3: 1 + 0.6 (3 - 1) / max(1, 0.7) = 2.2; of anchor 0 1.2
    score, index = best_anchors(zt, torch.tensor([1.0, 3.0]), 1)
    assert (index.item(), score.item()) == (1, approx(0.6 * 2.2))
    x = torch.arange(8.0).view(1, 2, 4)
    assert at_anchors(x, torch.tensor([[3, 1]])).tolist() == [[[3, 1], [7, 5]]]


# Masks


def flat_masks(logit: float, prototypes: int, size: int = 4) -> tuple[Tensor, Tensor]:
    """Coefficients and prototypes of one anchor whose mask has this logit everywhere."""
    ones = torch.ones(1, prototypes, size, size)
    return torch.full((1, prototypes, 1), logit / prototypes), ones


HALF = torch.tensor([0.0, 0.0, 0.5, 1.0]).view(1, 4, 1)  # the left half of the image


def test_masks_of_two_probabilities_differ_by_their_divergence_and_their_dice() -> None:
    """p = 1/2 and q = 3/4 on the box's 8 of 16 pixels: KL = 3/4 ln(3/2) + 1/4 ln(1/2), sums 8 pq and 8 (pp + qq)."""
    found = mask_loss(*flat_masks(0.0, 3), *flat_masks(log(3), 2), HALF, scores(1 - 1e-6))
    divergence = 0.75 * log(1.5) + 0.25 * log(0.5)
    dice = 1 - (2 * 8 * 3 / 8 + 1) / (8 * (1 / 4 + 9 / 16) + 1)
    assert found.item() == approx(divergence + dice, rel=1e-4)


def test_the_number_and_the_size_of_prototypes_do_not_count() -> None:
    ours, theirs = flat_masks(1.5, 7, 8), flat_masks(1.5, 2, 4)
    assert mask_loss(*ours, *theirs, HALF, scores(0.9)).item() == approx(0, abs=1e-6)


def test_only_the_teachers_box_counts() -> None:
    cs, ps = flat_masks(1.0, 1)
    ps, teacher = ps * torch.tensor([0.0, 0.0, 9.0, -9.0]), flat_masks(0.0, 1)  # by column: wrong on the right half
    assert mask_loss(cs, ps, *teacher, HALF, scores(0.9)).item() == approx(0, abs=1e-6)
    assert mask_loss(cs, ps, *teacher, 2 * HALF, scores(0.9)).item() > 1


def test_pixels_are_inside_by_their_centres() -> None:
    box = torch.tensor([0.3, 0.0, 0.9, 0.5]).view(1, 4, 1)  # columns at 1/8, 3/8, 5/8, 7/8
    assert pixels_inside(box, 2, 4)[0, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 0]]


def test_masks_are_weighted_by_the_teachers_score_and_drawn_at_its_best_anchors_alone() -> None:
    (c, p), boxes = flat_masks(log(3), 1), HALF.expand(-1, -1, 2)
    both = torch.cat([c * 0, c], 2)  # wrong at anchor 0, right at anchor 1
    wrong = mask_loss(both[:, :, :1], p, c, p, HALF, scores(0.8)).item()
    found = mask_loss(both, p, c.expand(-1, -1, 2), p, boxes, scores(0.8, 0.6)).item()
    # one anchor alone: 0.8 w / max(1, 0.8); two: 0.8 w / (0.8 + 0.6)
    assert found == approx(wrong / 1.4, rel=1e-4)
    many = torch.cat([c.expand(-1, -1, MOST), c * 0], 2)  # the last anchor is wrong and has the lowest score
    zt = scores(*[0.9] * MOST, 0.2)
    assert mask_loss(many, p, c.expand(-1, -1, MOST + 1), p, HALF.expand(-1, -1, MOST + 1), zt) == approx(0, abs=1e-6)


# Keypoints

SIDES = torch.tensor([1.0, 2.0, 3.0, 2.0]).view(1, 4, 1)  # a box of 4 x 4 strides


def keypoint(x: float, y: float, visible: float | None = None) -> Tensor:
    """One keypoint at one anchor, 1 1 D 1; `visible` is a probability."""
    values = [x, y] if visible is None else [x, y, log(visible / (1 - visible))]
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)


def test_a_keypoint_at_a_distance_counts_in_units_of_the_object() -> None:
    """d = 5, s^2 = 16, sigma = 1/2: e = 25 / (2 x 16 x 1), and the loss is sqrt(1 + 25/16) - 1."""
    found = keypoint_loss(keypoint(3, 4), keypoint(0, 0), SIDES, scores(1 - 1e-6), [0.5])
    assert found.item() == approx(sqrt(1 + 25 / 16) - 1, rel=1e-4)
    twice = keypoint_loss(keypoint(6, 8), keypoint(0, 0), 2 * SIDES, scores(1 - 1e-6), [0.5])
    assert twice.item() == approx(found.item(), rel=1e-5)


def test_near_the_teachers_keypoint_the_loss_is_one_minus_oks() -> None:
    d = 0.05
    similarity = exp(-(d**2) / (2 * 16 * (2 * 0.1) ** 2))
    found = keypoint_loss(keypoint(d, 0), keypoint(0, 0), SIDES, scores(1 - 1e-6), [0.1])
    assert found.item() == approx(1 - similarity, rel=0.01)


def test_visibility_is_a_soft_target_and_weights_the_positions() -> None:
    """Two keypoints that the teacher sees with 3/4 and 1/4, both off by 4 = s: the weights sum to 1."""
    off = torch.cat([keypoint(4, 0, 0.5), keypoint(0, 4, 0.5)], 1)
    teacher = torch.cat([keypoint(0, 0, 0.75), keypoint(0, 0, 0.25)], 1)
    distance = sqrt(1 + 16 / (16 * 1)) - 1
    divergence = 0.75 * log(1.5) + 0.25 * log(0.5)  # of either
    found = keypoint_loss(off, teacher, SIDES, scores(1 - 1e-6), [0.5, 0.5])
    assert found.item() == approx(distance + divergence, rel=1e-4)
    plain = keypoint_loss(off[:, :, :2], teacher, SIDES, scores(1 - 1e-6), [0.5, 0.5])
    assert plain.item() == approx(distance, rel=1e-4)


# Oriented boxes


def box(width: float, height: float, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Box sides around a centre at x, y along the box's axes, 1 4 1."""
    return torch.tensor([width / 2 - x, height / 2 - y, width / 2 + x, height / 2 + y]).view(1, 4, 1)


def distance(a: Tensor, b: Tensor, turn: float = 0.0) -> float:
    return hellinger(a, b, torch.tensor([[turn]])).item()


def test_a_box_twice_as_wide_as_high_that_is_turned_by_90_degrees_is_at_one_fifth() -> None:
    """Variances 4 1 and 1 4: |(S1 + S2) / 2| = 25/4 and sqrt(|S1| |S2|) = 4, so exp(-D) = (16 / 25)^(1/2) = 4/5."""
    assert distance(box(200, 100), box(200, 100), pi / 2) == approx(0.2, abs=1e-4)
    assert distance(box(200, 100), box(100, 200), pi / 2) == approx(0, abs=1e-5)  # the same box
    assert distance(box(100, 100), box(100, 100), 1.0) == approx(0, abs=1e-5)  # a square has no angle


@pytest.mark.parametrize(("aspect", "turn"), [(3, 0.3), (8, 0.1), (2, 1.2)])
def test_an_angle_counts_as_far_as_the_box_is_long(aspect: float, turn: float) -> None:
    expected = 1 - (1 + (aspect - 1 / aspect) ** 2 * torch.tensor(turn).sin().item() ** 2 / 4) ** -0.5
    assert distance(box(100 * aspect, 100), box(100 * aspect, 100), turn) == approx(expected, abs=1e-4)


def test_a_shift_by_half_the_width_and_a_double_size() -> None:
    """d = w / 2, S1 + S2 = w^2 / 6: D = (w^2 / 4) (6 / w^2) / 4 = 3/8. Sizes 1 and 2: exp(-D) = 4/5 for each side."""
    assert distance(box(100, 60, x=50), box(100, 60)) == approx(1 - exp(-3 / 8), abs=1e-4)
    assert distance(box(200, 200), box(100, 100)) == approx(1 - 0.8, abs=1e-3)


def test_centres_lie_along_the_boxes_own_axes() -> None:
    """A centre 30 to the right along an axis that is turned by 90 degrees is 30 down in the other box's frame."""
    assert distance(box(100, 60, x=30), box(60, 100, y=30), pi / 2) == approx(0, abs=1e-4)
    assert distance(box(100, 60, x=30), box(60, 100, y=-30), pi / 2) > 0.1


def test_a_shifted_and_turned_box_is_as_far_as_the_general_formula_of_two_gaussians_says() -> None:
    """Student: 80 x 20 at (12, 5) along axes turned by 0.5; teacher: 60 x 30 at (-6, 4)."""
    c, s = torch.tensor(0.5).cos().item(), torch.tensor(0.5).sin().item()
    turned = torch.tensor([[c, -s], [s, c]])
    covariance = turned @ torch.diag(torch.tensor([80.0, 20.0]) ** 2 / 12) @ turned.T
    straight = torch.diag(torch.tensor([60.0, 30.0]) ** 2 / 12)
    d = turned @ torch.tensor([12.0, 5.0]) - torch.tensor([-6.0, 4.0])
    mean = (covariance + straight) / 2
    spread = mean.det() / (covariance.det() * straight.det()).sqrt()
    expected = 1 - torch.exp(-(d @ mean.inverse() @ d) / 8) / spread.sqrt()
    assert distance(box(80, 20, 12, 5), box(60, 30, -6, 4), 0.5) == approx(expected.item(), abs=1e-3)


def test_oriented_boxes_are_compared_by_the_difference_of_their_angles() -> None:
    sides, angles = box(200, 100).expand(-1, -1, 2), torch.tensor([[0.4, 1.0]])
    zt = scores(0.9, 0.6)
    assert oriented_box_loss(sides, angles, sides, angles + pi, zt).item() == approx(0, abs=1e-5)
    turned = angles + torch.tensor([[0.0, pi / 2]])  # by 90 degrees at the second anchor
    assert oriented_box_loss(sides, turned, sides, angles, zt).item() == approx(0.2 * 0.6 / 1.5, abs=1e-4)


# All three

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # of student's and teacher's 2 9 A and logits
    "masks": lambda s, t, zt: mask_loss(
        s[:, :4], torch.ones(2, 4, 6, 6), t[:, :4], torch.ones(2, 4, 6, 6), HALF.expand(2, -1, zt.shape[2]), zt
    ),
    "keypoints": lambda s, t, zt: keypoint_loss(
        s[:, :6].unflatten(1, (2, 3)), t[:, :6].unflatten(1, (2, 3)), t[:, 5:9].abs(), zt, [0.05, 0.5]
    ),
    "oriented boxes": lambda s, t, zt: oriented_box_loss(s[:, :4], s[:, 4], t[:, :4], t[:, 4], zt),
}
SIZES = {"zero": 0.0, "tiny": 1e-6, "usual": 1.0, "large": 50.0, "huge": 1e4}


@pytest.mark.parametrize("name", LOSSES)
def test_equal_outputs_cost_nothing_and_pull_nowhere(name: str) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 9, 21)).requires_grad_()
    loss = LOSSES[name](x, x.detach(), torch.randn(2, 3, 21))
    assert loss.item() == approx(0, abs=1e-5)
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-3


@pytest.mark.parametrize("teacher", SIZES)
@pytest.mark.parametrize("student", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_bounded_whatever_the_heads_give(name: str, student: str, teacher: str) -> None:
    """Each by its own bound: 1 for a logit, 1 / (2 sigma s) = 10 for a position, 1 / sqrt(FLOOR) = 10 for a side."""
    torch.manual_seed(0)
    s = (SIZES[student] * torch.randn(2, 9, 21)).requires_grad_()
    loss = LOSSES[name](s, SIZES[teacher] * torch.randn(2, 9, 21), torch.randn(2, 3, 21))
    gradient = torch.autograd.grad(loss, s)[0]
    assert loss.isfinite()
    assert loss >= -1e-5
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 20


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_follows_the_gradient_reaches_the_teacher(name: str) -> None:
    torch.manual_seed(0)
    t, zt = torch.randn(2, 9, 21), torch.randn(2, 3, 21)
    t[:, :4] = t[:, :4].abs() + 1
    s = torch.ones(2, 9, 21, requires_grad=True)
    optimizer = torch.optim.Adam([s], 0.05)
    first = LOSSES[name](s, t, zt).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = LOSSES[name](s, t, zt)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * first
