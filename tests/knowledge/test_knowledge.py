"""Every knowledge term against values derived by hand, its invariances and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from yolo_mkd.knowledge import correlation, soft_targets
from yolo_mkd.knowledge.attention import attention_loss, attention_map, normalise
from yolo_mkd.knowledge.exploration import debiased_cka, exploration_loss, hsic, inheriting
from yolo_mkd.knowledge.guidance import Guide, middle, orthonormal
from yolo_mkd.knowledge.relation import grid_for, pool, relation_loss, relation_matrix
from yolo_mkd.knowledge.soft_targets import box_loss, class_loss, class_mass, dfl_loss, emphasis, giou, mass


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def u_centred_gram(x: Tensor) -> Tensor:
    """The definition: B P C in, B P P out; no diagonal, and rows that sum to zero (Song et al., JMLR 2012, eq. 4)."""
    p = x.shape[1]
    gram = x @ x.transpose(1, 2)
    gram = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    rows = gram.sum(2, keepdim=True) / (p - 2)
    centred = gram - rows - rows.transpose(1, 2) + gram.sum((1, 2), keepdim=True) / ((p - 1) * (p - 2))
    return centred - torch.diag_embed(centred.diagonal(dim1=1, dim2=2))


class TestSoftTargets:
    def test_no_object_at_all_gives_a_small_finite_loss(self) -> None:
        zs, zt = torch.full((1, 2, 8), -9.0, requires_grad=True), torch.full((1, 2, 8), -40.0)
        assert mass(zt) == 1
        assert class_loss(zs, zt).item() < 1e-6
        assert gradient(class_loss(zs, zt), zs).isfinite().all()

    def test_equal_logits_give_no_loss_and_no_gradient(self) -> None:
        z = torch.randn(2, 3, 5, requires_grad=True)
        loss = class_loss(z, z.detach())
        assert loss.item() < 1e-7
        assert gradient(loss, z).abs().max() < 1e-7

    def test_the_gradient_of_the_class_loss_is_that_of_its_definition(self) -> None:
        zs, zt = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True), torch.randn(2, 3, 5).double()
        q = zt.sigmoid()
        plain = torch.nn.functional.binary_cross_entropy_with_logits(zs, q, reduction="none")
        defined = ((zs.sigmoid() - q).abs() * plain).sum() / mass(zt)
        assert class_loss(zs, zt).item() == pytest.approx(defined.item(), rel=1e-12)
        assert torch.allclose(gradient(class_loss(zs, zt), zs), gradient(defined, zs), atol=1e-12)
        assert torch.autograd.gradcheck(lambda z: class_loss(z, zt), zs)

    def test_the_class_loss_does_not_depend_on_the_blocks_in_which_it_is_computed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        zt, weights = torch.randn(3, 5, 7).double(), torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]).double()
        zs = torch.randn(3, 5, 7).double().requires_grad_()
        found = []
        for size, count in ((2**17, 3), (14, 9), (1, 15)):  # blocks of 5, 2 and 1 classes of each image
            monkeypatch.setattr(soft_targets, "BLOCK", size)
            assert len(soft_targets.blocks(zs)) == count
            loss = class_loss(zs, zt, weights)
            found.append((loss.item(), gradient(loss, zs)))
        for value, slope in found[1:]:
            assert value == pytest.approx(found[0][0], rel=1e-12)
            assert torch.allclose(slope, found[0][1], atol=1e-14)

    def test_known_anchor_weights_change_nothing(self) -> None:
        zs, zt, weights = torch.randn(2, 3, 9), torch.randn(2, 3, 9), torch.tensor([0.5, 1.0, 2.0])
        ready = soft_targets.anchor_weights(zt, weights)
        assert class_loss(zs, zt, anchors=ready) == class_loss(zs, zt, weights)
        d = torch.rand(2, 4, 9)
        assert box_loss(d, d.flip(1), zt, anchors=ready) == box_loss(d, d.flip(1), zt, weights)

    def test_class_loss_of_ln3_against_0(self) -> None:
        # |0.75 - 0.5| * (ln 4 - 0.5 ln 3), over N = max(1, 0.5)
        loss = class_loss(torch.tensor([[[math.log(3.0)]]]), torch.zeros(1, 1, 1))
        assert loss.item() == pytest.approx(0.209247, abs=1e-6)

    @pytest.mark.parametrize("scale", [1.0, 5.0])
    def test_equal_weights_change_nothing_where_the_teachers_scores_are_0_or_1(self, scale: float) -> None:
        sure = torch.nn.functional.one_hot(torch.randint(3, (2, 9)), 3).transpose(1, 2) * 80.0 - 40
        zs, zt, ds, dt = torch.randn(2, 3, 9), sure, torch.rand(2, 4, 9), torch.rand(2, 4, 9)
        bs, bt, equal = torch.randn(2, 4, 16, 9), torch.randn(2, 4, 16, 9), torch.full((3,), scale)
        for loss, ours, theirs in ((box_loss, ds, dt), (dfl_loss, bs, bt)):
            assert loss(ours, theirs, zt, equal).item() == pytest.approx(loss(ours, theirs, zt).item(), rel=1e-5)
        assert class_loss(zs, zt, equal).item() == pytest.approx(class_loss(zs, zt).item(), rel=1e-5)

    def test_a_weighted_class_counts_in_the_sum_and_in_the_mass(self) -> None:
        # two anchors: a sure object of the first class that the student finds, one of the second that it misses
        sure = 20.0
        zt = torch.tensor([[[sure, -sure], [-sure, sure]]])
        zs = torch.tensor([[[sure, -sure], [-sure, 0.0]]])
        missed = 0.5 * math.log(2)  # |0.5 - 1| BCE(0.5, 1)
        assert class_loss(zs, zt).item() == pytest.approx(missed / 2, rel=1e-5)
        assert class_loss(zs, zt, torch.tensor([0.5, 3.0])).item() == pytest.approx(3 * missed / 3.5, rel=1e-5)

    def test_the_gradient_of_a_weighted_class_loss_is_that_of_its_definition(self) -> None:
        zs, zt = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True), torch.randn(2, 3, 5).double()
        assert torch.autograd.gradcheck(lambda z: class_loss(z, zt, torch.tensor([0.2, 1.0, 3.0]).double()), zs)

    def test_where_the_teacher_scores_nothing_no_weight_counts(self) -> None:
        zs, zt = torch.randn(1, 3, 9), torch.full((1, 3, 9), -40.0)
        assert torch.equal(emphasis(zt, torch.tensor([0.1, 5.0, 90.0])), torch.ones(1, 9))
        assert class_loss(zs, zt, torch.tensor([0.1, 5.0, 90.0])).item() == pytest.approx(class_loss(zs, zt).item())

    def test_an_anchors_emphasis_follows_the_teachers_scores(self) -> None:
        zt = torch.tensor([0.5, 0.25]).logit().view(1, 2, 1)
        assert emphasis(zt, torch.tensor([3.0, 0.2])).item() == pytest.approx(1 + 0.5 * 2 - 0.25 * 0.8)

    def test_no_anchor_counts_less_than_the_lightest_class_that_is_seen_there(self) -> None:
        zt = torch.tensor([0.9, 0.8]).logit().view(1, 2, 1)  # scores of several classes need not stay below 1 together
        assert emphasis(zt, torch.tensor([0.1, 0.1])).item() == pytest.approx(0.1)

    def test_a_classs_mass_is_the_sum_of_its_scores_without_the_lowest(self) -> None:
        q = torch.tensor([[[0.5, 0.04, 0.9], [0.2, 0.01, 0.03]], [[0.1, 0.04, 0.02], [0.3, 0.04, 0.02]]])  # B C A
        assert class_mass(q.logit()).tolist() == pytest.approx([1.5, 0.5])

    def test_the_boxes_of_a_weighted_class_count_more(self) -> None:
        ds, dt, zt = torch.ones(1, 4, 2), torch.ones(1, 4, 2), torch.tensor([[[40.0, -40.0], [-40.0, 40.0]]])
        ds[..., 1] = 2.0  # the second object's box has four times the area: 1 - GIoU = 3/4
        assert box_loss(ds, dt, zt).item() == pytest.approx(0.375, abs=1e-5)
        assert box_loss(ds, dt, zt, torch.tensor([1.0, 3.0])).item() == pytest.approx(0.75 * 3 / 4, abs=1e-5)

    def test_loss_is_divided_by_the_teachers_mass(self) -> None:
        zs, zt = torch.randn(1, 2, 50), torch.randn(1, 2, 50) + 3
        n = zt.sigmoid().amax(1).sum().item()
        assert n > 40
        doubled = class_loss(torch.cat([zs, zs]), torch.cat([zt, zt]))
        assert doubled.item() == pytest.approx(class_loss(zs, zt).item(), rel=1e-6)

    def test_a_common_shift_of_all_classes_changes_the_loss(self) -> None:
        zt = torch.randn(1, 5, 20)
        assert class_loss(zt - 5, zt).item() > 0.1  # softmax distillation would give 0 here

    def test_giou_of_two_boxes_that_overlap_by_a_quarter(self) -> None:
        # [0 0 2 2] and [1 1 3 3] seen from the anchor (1.5, 1.5): 1/7 - 2/9
        a, b = torch.tensor([[[1.5], [1.5], [0.5], [0.5]]]), torch.tensor([[[0.5], [0.5], [1.5], [1.5]]])
        assert giou(a, b).item() == pytest.approx(-0.079365, abs=1e-5)
        assert giou(a, a).item() == pytest.approx(1, abs=1e-6)

    def test_giou_equals_torchvisions(self) -> None:
        from torchvision.ops import generalized_box_iou

        a, b = torch.rand(1, 4, 30) * 5, torch.rand(1, 4, 30) * 5
        corners = [torch.cat([-d[0, :2], d[0, 2:]]).t() for d in (a, b)]
        assert torch.allclose(giou(a, b)[0], generalized_box_iou(*corners).diagonal(), atol=1e-5)

    def test_a_box_of_negative_size_keeps_loss_and_gradient_finite(self) -> None:
        ds = torch.tensor([[[-2.0], [-2.0], [1.0], [1.0]]], requires_grad=True)
        loss = box_loss(ds, torch.ones(1, 4, 1), torch.ones(1, 1, 1))
        assert loss.isfinite()
        assert gradient(loss, ds).isfinite().all()

    def test_box_loss_weighs_anchors_by_the_teachers_score(self) -> None:
        ds, dt = torch.ones(1, 4, 2), torch.ones(1, 4, 2)
        ds[..., 1] = 2.0  # four times the area: 1 - GIoU = 3/4
        sure, unsure = torch.tensor([[[9.0, 9.0]]]), torch.tensor([[[9.0, -9.0]]])
        assert box_loss(ds, dt, sure).item() == pytest.approx(0.375, abs=1e-3)
        assert box_loss(ds, dt, unsure).item() == pytest.approx(0, abs=1e-3)

    def test_dfl_of_a_certain_teacher_and_an_even_student(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("yolo_mkd.knowledge.soft_targets.TEMPERATURE", 1.0)
        bt = torch.full((1, 4, 16, 1), -100.0)
        bt[:, :, 3] = 100.0
        loss = dfl_loss(torch.zeros(1, 4, 16, 1), bt, torch.full((1, 1, 1), 20.0))
        assert loss.item() == pytest.approx(math.log(16), abs=1e-5)

    def test_dfl_of_a_high_temperature_is_half_the_mean_squared_difference_of_centred_logits(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("yolo_mkd.knowledge.soft_targets.TEMPERATURE", 1000.0)
        bs, bt = torch.randn(1, 4, 16, 1).double(), torch.randn(1, 4, 16, 1).double()
        gap = (bs - bs.mean(2, keepdim=True)) - (bt - bt.mean(2, keepdim=True))
        expected = gap.square().sum(2).mean() / (2 * 16)
        loss = dfl_loss(bs, bt, torch.full((1, 1, 1), 40.0).double())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-2)

    def test_dfl_ignores_a_shift_of_all_bins(self) -> None:
        bs, bt, zt = torch.randn(2, 4, 16, 7), torch.randn(2, 4, 16, 7), torch.randn(2, 3, 7)
        assert dfl_loss(bs + 4, bt - 2, zt).item() == pytest.approx(dfl_loss(bs, bt, zt).item(), rel=1e-4)

    def test_class_loss_gradient_is_right(self) -> None:
        zs = torch.randn(1, 2, 3, dtype=torch.double, requires_grad=True)
        zt = torch.randn(1, 2, 3, dtype=torch.double)
        assert torch.autograd.gradcheck(lambda z: class_loss(z, zt), zs)


class TestAttention:
    def test_a_map_of_one_position_gives_zero(self) -> None:
        assert attention_loss(torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1)).item() == 0

    @pytest.mark.parametrize("scale", [37.0, 1000.0])
    def test_scale_order_and_number_of_channels_do_not_matter(self, scale: float) -> None:
        f = torch.randn(2, 6, 5, 7)
        assert attention_loss(f * scale, f).item() < 1e-6
        assert attention_loss(f[:, torch.randperm(6)], f).item() < 1e-6
        assert attention_loss(torch.cat([f, f], 1), f).item() < 1e-6

    def test_loss_is_one_minus_the_correlation_of_the_maps(self) -> None:
        fs, ft = torch.randn(1, 8, 6, 6), torch.randn(1, 3, 6, 6)
        maps = torch.stack([attention_map(fs).flatten(), attention_map(ft).flatten()])
        assert attention_loss(fs, ft).item() == pytest.approx(1 - torch.corrcoef(maps)[0, 1].item(), abs=0.02)

    def test_uncentred_chord_of_the_two_by_two_example(self) -> None:
        # energies of F = [3 0; 0 4] and [3 4; 0 0]: 9 0 0 16 and 9 16 0 0; chord^2 = 2 - 162/337
        a, b = (attention_map(torch.tensor(f).view(1, 1, 2, 2)).flatten() for f in ([3.0, 0, 0, 4], [3.0, 4, 0, 0]))
        assert (a / a.norm() - b / b.norm()).square().sum().item() == pytest.approx(1.519288, abs=1e-6)
        # centred: energies minus 6.25 have inner product 81 - 4 * 6.25^2 = -75.25 and squared norm 180.75
        fs, ft = (torch.tensor(f).view(1, 1, 2, 2) for f in ([3.0, 0, 0, 4], [3.0, 4, 0, 0]))
        loss = attention_loss(fs, ft)
        floor = 0.05**2 * 337
        assert loss.item() == pytest.approx((180.75 + 75.25) / (180.75 + floor), abs=1e-5)

    @pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, 1e3])
    def test_flat_maps_give_finite_loss_and_small_gradient(self, value: float) -> None:
        f = torch.full((1, 4, 8, 8), value, requires_grad=True)
        loss = attention_loss(f, torch.randn(1, 4, 8, 8))
        assert loss.isfinite()
        assert gradient(loss, f).abs().max() < 2

    def test_a_nearly_flat_map_has_a_bounded_gradient(self) -> None:
        energy = (1 + 1e-5 * torch.randn(1, 64)).requires_grad_()
        target = normalise(torch.randn(1, 64))
        assert gradient((normalise(energy) - target).square().sum(), energy).norm() < 10  # 457 without the floor

    def test_maps_of_unequal_size_are_pooled_to_the_smaller(self) -> None:
        small = torch.randn(1, 3, 4, 4)
        large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert attention_loss(small, large).item() < 1e-6

    def test_energy_and_its_gradient_are_those_of_the_definition(self) -> None:
        f = torch.randn(2, 6, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
        up = torch.randn(2, 3, 4)
        assert torch.allclose(attention_map(f[:, :4]), f[:, :4].square().mean(1))
        expected = torch.cat([f[:, :4] * up[:, None] / 2, torch.zeros(2, 2, 3, 4)], 1)
        assert torch.allclose(gradient((attention_map(f[:, :4]) * up).sum(), f), expected)

    def test_gradient_is_right(self) -> None:
        assert torch.autograd.gradcheck(normalise, torch.rand(2, 9, dtype=torch.double, requires_grad=True))


class TestRelation:
    def test_grid_divides_the_smallest_map_where_it_can(self) -> None:
        assert grid_for([(80, 80), (40, 40), (20, 20)]) == (10, 10)
        assert grid_for([(24, 24), (12, 12), (6, 6)]) == (6, 6)
        assert grid_for([(24, 40), (12, 20)]) == (6, 10)
        assert grid_for([(13, 2)]) == (10, 2)  # 13 has no divisor between 5 and 10

    def test_pooling_is_a_mean_and_agrees_with_adaptive_pooling(self) -> None:
        f = torch.randn(2, 3, 20, 10)
        expected = torch.nn.functional.adaptive_avg_pool2d(f, (10, 5)).flatten(2).transpose(1, 2)
        assert torch.allclose(pool(f, (10, 5)), expected, atol=1e-6)

    def test_the_gradient_of_a_cell_is_spread_over_its_positions(self) -> None:
        for grid in ((10, 5), (5, 10), (20, 10)):
            f = torch.randn(2, 3, 20, 10, requires_grad=True)
            up = torch.randn(2, grid[0] * grid[1], 3)
            reference = torch.nn.functional.adaptive_avg_pool2d(f, grid).flatten(2).transpose(1, 2)
            assert torch.allclose(
                gradient((pool(f, grid) * up).sum(), f), gradient((reference * up).sum(), f), atol=1e-6
            )

    def test_it_is_the_cosine_of_the_u_centred_grams(self) -> None:
        fs = [torch.randn(2, c, 10, 10).double() for c in (3, 8, 40)]
        grams = [u_centred_gram(f.flatten(2).transpose(1, 2)) for f in fs]
        assert max(g.sum(2).abs().max() for g in grams) < 1e-9
        found = relation_matrix(fs, (10, 10))
        for i, a in enumerate(grams):
            for j, b in enumerate(grams):
                cosine = (a * b).sum((1, 2)) / (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt()
                assert torch.allclose(found[:, i, j].double(), cosine, atol=3e-4)  # FLOOR takes up to 1.6e-4

    def test_energy_of_the_flow_matrix_is_the_inner_product_of_the_grams(self) -> None:
        a, b = torch.randn(30, 4).double(), torch.randn(30, 7).double()
        assert (a.t() @ b).square().sum().item() == pytest.approx(((a @ a.t()) * (b @ b.t())).sum().item(), rel=1e-10)

    def test_matrix_is_symmetric_with_ones_on_the_diagonal(self) -> None:
        r = relation_matrix([torch.randn(2, c, 10, 10) for c in (4, 16, 8)], (10, 10))
        assert r.shape == (2, 3, 3)
        assert torch.allclose(r, r.transpose(1, 2))
        assert torch.allclose(r.diagonal(dim1=1, dim2=2), torch.ones(2, 3), atol=1e-4)
        assert r.abs().max() <= 1 + 1e-5

    def test_matrix_is_unchanged_by_channel_rotation_scale_and_duplication(self) -> None:
        f, g = torch.randn(1, 8, 10, 10), torch.randn(1, 8, 10, 10)
        f = f + g  # so that the two layers are related
        turn = torch.linalg.qr(torch.randn(8, 8)).Q
        turned = torch.einsum("bchw,cd->bdhw", f, turn)
        expected = relation_matrix([f, g], (10, 10))
        assert expected[0, 0, 1] > 0.2
        for changed in (turned, 50 * f, torch.cat([f, f], 1)):
            assert torch.allclose(relation_matrix([changed, g], (10, 10)), expected, atol=1e-4)

    @pytest.mark.parametrize("channels", [64, 256])
    def test_independent_layers_are_unrelated_whatever_their_width(self, channels: int) -> None:
        a, b = torch.randn(40, channels, 8, 8), torch.randn(40, channels, 8, 8)
        assert relation_matrix([a, b], (8, 8))[:, 0, 1].mean().abs() < 0.01
        biased = []
        for x, y in zip(pool(a, (8, 8)), pool(b, (8, 8)), strict=True):
            k, m = ((z - z.mean(0)) @ (z - z.mean(0)).t() for z in (x, y))
            biased.append(((k * m).sum() / (k.norm() * m.norm())).item())
        assert sum(biased) / 40 > 0.45  # why it is debiased

    def test_flipping_all_maps_changes_nothing(self) -> None:
        fs = [torch.randn(1, c, 10, 10) for c in (3, 5)]
        assert torch.allclose(relation_matrix(fs, (5, 5)), relation_matrix([f.flip(3) for f in fs], (5, 5)), atol=1e-5)

    def test_a_constant_layer_gives_finite_values_and_gradients(self) -> None:
        f = torch.ones(1, 4, 8, 8, requires_grad=True)
        r = relation_matrix([f, torch.randn(1, 4, 8, 8)], (8, 8))
        loss = relation_loss(r, torch.eye(2).expand(1, 2, 2))
        assert loss.isfinite()
        assert gradient(loss, f).isfinite().all()

    def test_only_entries_off_the_diagonal_count(self) -> None:
        a, b = torch.zeros(1, 3, 3), torch.eye(3).unsqueeze(0)
        assert relation_loss(a, b).item() == 0
        b = b + 0.5
        assert relation_loss(a, b).item() == pytest.approx(0.25)

    def test_equal_models_give_no_loss_and_no_gradient(self) -> None:
        f = torch.randn(1, 4, 10, 10, requires_grad=True)
        g = torch.randn(1, 4, 10, 10)
        r = relation_matrix([f, g], (10, 10))
        loss = relation_loss(r, r.detach())
        assert loss.item() == 0
        assert gradient(loss, f).abs().max() == 0


class TestGuidance:
    @pytest.mark.parametrize(("student", "teacher", "width"), [(64, 64, 64), (32, 128, 64), (32, 64, 48), (8, 3, 3)])
    def test_the_layer_lies_between_the_two_widths(self, student: int, teacher: int, width: int) -> None:
        assert middle(student, teacher) == width
        shapes = [tuple(p.shape) for p in Guide(student, teacher).parameters()]
        assert shapes == [(width, student, 1, 1)]  # the teacher's side is not trained

    def test_loss_and_gradient_are_those_of_standardised_features(self) -> None:
        fs, ft = 3 * torch.randn(3, 5, 4, 6).double() + 7, torch.randn(3, 5, 4, 6).double() + 0.2
        fs[:, 0] = 7.0  # an inactive channel
        fs.requires_grad_()
        a, b = ((f - f.mean((0, 2, 3), keepdim=True)) for f in (fs, ft))
        a, b = (f / (f.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt() for f in (a, b))
        defined = 0.5 * (a - b).square().mean()
        found = correlation.Distance.apply(fs, ft)
        assert found.item() == pytest.approx(defined.item(), rel=1e-12)
        assert torch.allclose(gradient(found, fs), gradient(defined, fs), atol=1e-12)

    def test_the_teachers_side_is_orthonormal_and_always_the_same(self) -> None:
        rows = orthonormal(3, 7)
        assert torch.allclose(rows @ rows.t(), torch.eye(3), atol=1e-6)
        torch.manual_seed(5)
        assert torch.equal(rows, orthonormal(3, 7))

    def test_a_student_that_finds_the_teachers_projection_has_nothing_to_learn(self) -> None:
        layer, f = Guide(8, 8), torch.randn(2, 8, 5, 5)
        with torch.no_grad():
            layer.adapter.weight.copy_(layer.projection)
        assert layer(f, f).item() < 1e-6
        assert layer(-f, f).item() == pytest.approx(2, abs=1e-3)

    def test_fresh_layers_find_a_linear_relation_between_two_widths(self) -> None:
        ft = torch.randn(4, 16, 6, 6)
        fs = torch.einsum("sc,bchw->bshw", orthonormal(16, 16), ft)
        layer = Guide(16, 16)
        optimizer = torch.optim.Adam(layer.parameters(), 0.05)
        before = layer(fs, ft).item()
        for _ in range(300):
            optimizer.zero_grad()
            layer(fs, ft).backward()
            optimizer.step()
        assert before > 0.5
        assert layer(fs, ft).item() < 0.02


class TestExploration:
    @pytest.mark.parametrize(("channels", "expected"), [(1, 1), (3, 2), (64, 32)])
    def test_the_first_half_inherits(self, channels: int, expected: int) -> None:
        assert inheriting(channels) == expected

    def test_cka_of_a_thing_with_itself_its_negative_and_its_rotation_is_one(self) -> None:
        x = torch.randn(200, 6)
        turn = torch.linalg.qr(torch.randn(6, 6)).Q
        for y in (x, -x, x @ turn, 7 * x):
            assert debiased_cka(x, y).item() == pytest.approx(1, abs=1e-3)

    def test_it_is_the_inner_product_of_the_centred_grams(self) -> None:
        x, y = torch.randn(20, 3).double(), torch.randn(20, 5).double()
        expected = (u_centred_gram(x[None]) * u_centred_gram(y[None])).sum()
        assert hsic(x, y).item() == pytest.approx(expected.item(), rel=1e-9)

    def test_independent_features_have_none(self) -> None:
        assert debiased_cka(torch.randn(2000, 16), torch.randn(2000, 64)).item() < 0.05

    def test_constant_features_give_zero_and_finite_gradients(self) -> None:
        f = torch.ones(2, 3, 8, 8, requires_grad=True)
        loss = exploration_loss(f, torch.randn(2, 4, 8, 8))
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient(loss, f).isfinite().all()

    def test_descent_reaches_independence_without_collapse(self) -> None:
        x = torch.randn(4, 4, 8, 8)
        y = (x + 0.3 * torch.randn_like(x)).requires_grad_()
        adam = torch.optim.Adam([y], lr=0.05)
        for _ in range(300):
            adam.zero_grad()
            exploration_loss(y, x).backward()
            adam.step()
        assert exploration_loss(y, x).item() < 1e-3
        assert y.std() > 0.5

    def test_a_negative_distance_would_end_in_an_anti_copy(self) -> None:
        x = torch.nn.functional.normalize(torch.randn(1, 256), dim=1)
        y = (x + 0.3 * torch.randn_like(x)).requires_grad_()
        adam = torch.optim.Adam([y], lr=0.05)
        for _ in range(300):
            adam.zero_grad()
            (-(torch.nn.functional.normalize(y, dim=1) - x).abs().mean()).backward()
            adam.step()
        assert torch.cosine_similarity(y, x).item() < -0.3  # why CKA is used
