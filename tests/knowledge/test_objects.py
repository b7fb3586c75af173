"""Hidden-layer losses that depend on where the objects are, and the closed-form adapter: known values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_mkd.knowledge.class_attention import class_attention_loss
from yolo_mkd.knowledge.correlation import pearson_loss, standardise
from yolo_mkd.knowledge.error_focus import error_focus_loss, lay_over, teacher_quality
from yolo_mkd.knowledge.object_relation import object_gram, object_masks, object_relation_loss
from yolo_mkd.knowledge.ridge import RidgeAdapter


def test_equal_weights_give_the_unweighted_correlation() -> None:
    torch.manual_seed(0)
    fs, ft = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    ones = torch.full((2, 1, 4, 5), 7.0)
    assert pearson_loss(fs, ft, ones).item() == pytest.approx(pearson_loss(fs, ft).item(), abs=1e-6)
    assert torch.allclose(standardise(fs, ones / ones.sum()), standardise(fs), atol=1e-5)


def test_positions_of_weight_0_do_not_count_in_a_correlation() -> None:
    """1 2 1 2 against 1 2 2 1: correlation 0 over all, 1 over the first two, 1/2 over three, -1 over the last two."""
    fs, ft = torch.tensor([1.0, 2, 1, 2]).view(1, 1, 1, 4), torch.tensor([1.0, 2, 2, 1]).view(1, 1, 1, 4)
    for weight, loss in (
        ([1, 1, 1, 1], 1.0),
        ([1, 1, 1, 0], 0.5),
        ([1, 1, 0, 0], 0.0),
        ([0, 0, 1, 1], 2.0),
        ([3, 3, 1, 1], 0.5),
    ):
        found = pearson_loss(fs, ft, torch.tensor(weight).float().view(1, 1, 1, 4))
        assert found.item() == pytest.approx(loss, abs=1e-3)


def test_an_adapter_is_fitted_to_a_linear_map_in_one_batch() -> None:
    torch.manual_seed(0)
    adapter, fs = RidgeAdapter(4, 6), torch.randn(8, 4, 5, 5)
    ft = torch.einsum("dc,bchw->bdhw", torch.randn(6, 4), fs) + torch.arange(6.0).view(1, 6, 1, 1)
    before = (adapter(fs) - ft).square().mean()
    adapter.fit(fs, ft, torch.ones(8, 1, 5, 5))
    assert (adapter(fs) - ft).square().mean() < 1e-4 * before


def test_an_adapter_is_fitted_where_the_weight_is() -> None:
    """The teacher doubles the student on the left half and negates it on the right one."""
    torch.manual_seed(0)
    fs, left = torch.randn(4, 1, 6, 6), torch.zeros(4, 1, 6, 6)
    left[..., :3] = 1
    for weight, slope in ((left, 2.0), (1 - left, -1.0)):
        adapter = RidgeAdapter(1, 1)
        adapter.fit(fs, torch.where(left > 0, 2 * fs, -fs), weight)
        assert adapter.map.weight.item() == pytest.approx(slope, rel=0.01)


def one_class(scores: list[float]) -> Tensor:
    return torch.tensor(scores).view(1, 1, 1, -1)


def test_attention_by_class_compares_where_the_class_is() -> None:
    """Energies agree on the first four positions and are opposite on the last four."""
    es = torch.tensor([1.0, 4, 1, 4, 1, 4, 1, 4]).view(1, 1, 8)
    et = torch.tensor([1.0, 4, 1, 4, 4, 1, 4, 1]).view(1, 1, 8)
    there = class_attention_loss(es, et, one_class([1.0, 1, 1, 1, 0, 0, 0, 0]))
    elsewhere = class_attention_loss(es, et, one_class([0.0, 0, 0, 0, 1, 1, 1, 1]))
    assert there.item() < 0.2 < 1.8 < elsewhere.item()
    assert class_attention_loss(es, 9 * es, one_class([0.5] * 8)).item() == pytest.approx(0, abs=1e-5)
    assert class_attention_loss(es, et, one_class([0.01] * 8)).item() == 0  # no class is present


def test_the_mask_of_an_object_has_its_positions_and_at_least_one() -> None:
    """On a map of 4 x 4: the left upper quarter, and a box smaller than a position."""
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.9, 0.1, 0.01, 0.01]])
    quarter, small = object_masks(boxes, 4, 4)
    assert quarter.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert small.nonzero().tolist() == [[0, 3]]


def test_relations_between_objects_do_not_depend_on_width_and_scale() -> None:
    torch.manual_seed(0)
    f, image = torch.randn(2, 3, 4, 4), torch.tensor([0, 0, 1])
    masks = object_masks(torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [0.5, 0.5, 1, 1]]), 4, 4)
    gram = object_gram(f, masks, image)
    assert gram.diagonal().tolist() == pytest.approx([1, 1, 1], abs=0.1)
    assert torch.allclose(object_gram(torch.cat([f, f], 1) * 5, masks, image), gram, atol=1e-3)


def test_a_change_between_layers_counts_beside_the_layers() -> None:
    """Two layers off by +0.1 and -0.1: 0.01 for the layers and 0.04 for the change; both by +0.1: 0.01 and 0."""
    gram = torch.eye(3)
    assert object_relation_loss([gram + 0.1, gram - 0.1], [gram, gram]).item() == pytest.approx(0.05)
    assert object_relation_loss([gram + 0.1, gram + 0.1], [gram, gram]).item() == pytest.approx(0.01)


LEVELS = {8: (4, 4)}


def sides_at(x: float, y: float, w: float, h: float) -> Tensor:
    """Sides, in stride units, that draw one box (in shares of a 4 x 4 map) from each of its anchors: 1 4 16."""
    return lay_over(torch.tensor([[x, y, w, h]]), torch.zeros(1), LEVELS).sides


def test_a_teacher_that_detects_an_object_leaves_nothing_to_explore() -> None:
    """Score 0.8 on the right box: quality 0.8. Half of the box: 0.4. Another class or no such class: 0."""
    box = (0.5, 0.5, 0.5, 0.5)
    objects = lay_over(torch.tensor([box]), torch.zeros(1), LEVELS)
    zt = torch.full((1, 2, 16), -20.0)
    zt[:, 0] = torch.tensor(0.8).logit()
    right, half = sides_at(*box), sides_at(0.375, 0.5, 0.25, 0.5)
    for sides, cls, quality in ((right, 0, 0.8), (half, 0, 0.4), (right, 1, 0), (right, -1, 0)):
        found = teacher_quality(objects, zt, sides, torch.tensor([cls]))
        assert found.item() == pytest.approx(quality, abs=1e-4), (cls, quality)


def test_only_anchors_inside_an_object_count_for_it() -> None:
    """The box covers the middle 2 x 2 of 4 x 4 anchors; a confident teacher outside it does not see the object."""
    objects = lay_over(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.zeros(1), LEVELS)
    assert objects.inside.nonzero()[:, 1].tolist() == [5, 6, 9, 10]
    zt = torch.full((1, 1, 16), -20.0)
    zt[..., 0] = 20
    assert teacher_quality(objects, zt, objects.sides, torch.tensor([0])).item() < 1e-6


def test_a_missed_object_trains_the_student_by_its_weight() -> None:
    objects = lay_over(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.zeros(1), LEVELS)
    zs, ds = torch.zeros(1, 1, 16, requires_grad=True), objects.sides.clone()
    weight, cls = torch.tensor([0.5]), torch.tensor([0])
    loss = error_focus_loss(objects, zs, ds, cls, weight, 1)
    # right box: target 1 at score 0.5: |0.5 - 1| x log 2, and no box loss; half of it for the weight
    assert loss.item() == pytest.approx(0.5 * 0.5 * 0.6931, abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, zs)
    assert gradient.sum() < 0  # a higher score lowers the loss
    assert gradient.nonzero().shape[0] == 1
    assert error_focus_loss(objects, zs, ds, cls, torch.zeros(1), 1).item() == 0
    shifted = sides_at(0.75, 0.5, 0.5, 0.5)  # IoU 1/3, GIoU 1/3: the hull is the union
    loss = error_focus_loss(objects, zs, shifted, cls, torch.ones(1), 1)
    assert loss.item() == pytest.approx(2 / 3 + (0.5 - 1 / 3) * 0.6931, abs=1e-4)


def test_no_objects_give_no_loss() -> None:
    none = lay_over(torch.zeros(0, 4), torch.zeros(0), LEVELS)
    zs, ds = torch.zeros(2, 3, 16, requires_grad=True), torch.ones(2, 4, 16)
    empty = torch.zeros(0)
    assert error_focus_loss(none, zs, ds, empty.long(), empty, 8).item() == 0
