"""The baselines on features against values derived by hand, another formulation and Ultralytics' own code."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from yolo_mkd.knowledge import Targets
from yolo_mkd.knowledge.baselines.cwd import channel_wise_loss, connector
from yolo_mkd.knowledge.baselines.fgd import FocalGlobal, focal_global_loss
from yolo_mkd.knowledge.baselines.ld import localization_loss
from yolo_mkd.knowledge.baselines.mgd import Generator, masked_generation_loss, random_mask
from yolo_mkd.knowledge.baselines.pkd import bridges, pkd_loss
from yolo_mkd.knowledge.baselines.ultralytics_l2 import projector, score_l2_loss, teacher_score
from yolo_mkd.knowledge.correlation import pearson_loss, standardise

LN3 = math.log(3)
CHANNELS = 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def labels(batch: int) -> Targets:
    """The same label in every other image."""
    return Targets(torch.tensor([[0.5, 0.4, 0.3, 0.5]]).repeat(batch // 2, 1), torch.arange(1.0, batch, 2))


def masked(fs: Tensor, ft: Tensor) -> Tensor:
    torch.manual_seed(1)
    return masked_generation_loss(Generator(CHANNELS, CHANNELS)(fs, random_mask(fs[:1])), ft)


def focal(fs: Tensor, ft: Tensor) -> Tensor:
    torch.manual_seed(1)
    return focal_global_loss(FocalGlobal(CHANNELS, CHANNELS), fs, ft, labels(len(fs)))


def scored(fs: Tensor, ft: Tensor) -> Tensor:
    return score_l2_loss([fs], [ft], teacher_score([ft.flatten(2)]))


def bins(fs: Tensor, ft: Tensor) -> Tensor:
    """Features of 8 x 8 positions, taken for the distributions of one level at stride 8, each side alike."""
    sides = [f.flatten(2)[:, None].expand(-1, 4, -1, -1) for f in (fs, ft)]
    return localization_loss(*sides, fs.flatten(2), labels(len(fs)), {8: (8, 8)})


LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [pearson_loss, channel_wise_loss, masked, focal, scored, bins]


class TestAll:
    @pytest.mark.parametrize("value", [0.0, 1e-6, 1.0, 1e4], ids=["zero", "tiny", "one", "huge"])
    @pytest.mark.parametrize("loss", LOSSES)
    def test_flat_maps_give_finite_loss_and_gradient(self, loss: Callable, value: float) -> None:
        noise = torch.randn(2, CHANNELS, 8, 8)
        flat = torch.full_like(noise, value).requires_grad_()
        for s, t in ((flat, noise), (flat, flat.detach()), (flat * 1, noise * value)):
            assert loss(s, t).isfinite()
            assert gradient(loss(s, t), flat).isfinite().all()

    @pytest.mark.parametrize("scale", [1e-6, 1e4])
    @pytest.mark.parametrize("loss", LOSSES)
    def test_tiny_and_huge_maps_give_finite_loss_and_gradient(self, loss: Callable, scale: float) -> None:
        fs = (scale * torch.randn(2, CHANNELS, 8, 8)).requires_grad_()
        value = loss(fs, scale * torch.randn(2, CHANNELS, 8, 8))
        assert value.isfinite()
        assert gradient(value, fs).isfinite().all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_half_precision_changes_less_than_one_percent(self, loss: Callable) -> None:
        fs, ft = torch.randn(2, CHANNELS, 8, 8), torch.randn(2, CHANNELS, 8, 8)
        expected = loss(fs, ft)
        assert expected > 0
        half = loss(fs.bfloat16(), ft.bfloat16())
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(expected.item(), rel=0.01)

    @pytest.mark.parametrize("loss", [masked_generation_loss, scored])
    def test_squares_beyond_half_precision_do_not_overflow(self, loss: Callable) -> None:
        fs, ft = torch.full((1, 2, 4, 4), 300.0).half(), torch.zeros(1, 2, 4, 4).half()
        assert loss(fs, ft).isfinite()  # 300^2 is more than 65504

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_same_batch_twice_has_the_same_mean(self, loss: Callable) -> None:
        fs, ft = torch.randn(2, CHANNELS, 8, 8), torch.randn(2, CHANNELS, 8, 8)
        twice = loss(fs.repeat(2, 1, 1, 1), ft.repeat(2, 1, 1, 1))
        assert twice.item() == pytest.approx(loss(fs, ft).item(), rel=1e-5)

    @pytest.mark.parametrize("loss", [pearson_loss, channel_wise_loss, focal, scored, bins])
    def test_equal_features_give_no_loss(self, loss: Callable) -> None:
        f = torch.randn(2, CHANNELS, 8, 8)
        assert abs(loss(f, f).item()) < 1e-6


class TestPearson:
    def test_two_orders_of_three_values(self) -> None:
        # 1 2 3 and 1 3 2 deviate by -1 0 1 and -1 1 0: correlation 1 / 2
        fs, ft = torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3), torch.tensor([1.0, 3, 2]).view(1, 1, 1, 3)
        assert pearson_loss(fs, ft).item() == pytest.approx(0.5, abs=1e-4)
        assert pearson_loss(-fs, fs).item() == pytest.approx(2, abs=1e-4)

    def test_loss_and_gradient_are_those_of_one_minus_correlation(self) -> None:
        fs, ft = torch.randn(3, 4, 5, 6, requires_grad=True), torch.randn(3, 4, 5, 6)
        exact = fs.detach().double().requires_grad_()
        a, b = (f.transpose(0, 1).flatten(1) for f in (exact, ft.double()))
        expected = 1 - torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]).mean()
        loss = pearson_loss(fs, ft)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
        assert torch.allclose(gradient(loss, fs), gradient(expected, exact).float(), atol=1e-6)

    def test_scale_and_offset_of_a_channel_do_not_matter(self) -> None:
        f = torch.randn(2, 3, 5, 5)
        scale, offsets = (
            torch.tensor([2.0, 50.0, 0.5]).view(1, 3, 1, 1),
            torch.tensor([9.0, -3.0, 0.0]).view(1, 3, 1, 1),
        )
        assert pearson_loss(f * scale + offsets, f).item() < 1e-4

    def test_an_inactive_channel_stays_near_0(self) -> None:
        noise = 1e-6 * torch.randn(2, 3, 5, 5)
        assert standardise(noise).abs().max() < 0.01  # divided by its deviation alone it would reach 2

    def test_standardised_channels_have_mean_0_and_variance_1_over_images_and_positions(self) -> None:
        # 1 3 | 5 7 in two images: mean 4, variance 5; 0 0 | 0 4: mean 1, variance 3
        f = torch.tensor([[[[1.0, 3]], [[0, 0]]], [[[5, 7]], [[0, 4]]]])  # B C 1 W
        expected = [[[-3, -1], [-1, -1]], [[1, 3], [-1, 3]]]
        deviation = torch.tensor([5.0, 3.0]).sqrt().view(1, 2, 1)
        assert torch.allclose(standardise(f).squeeze(2), torch.tensor(expected) / deviation, atol=1e-4)


class TestPKD:
    def test_levels_are_summed(self) -> None:
        # correlation 1/2 of 1 2 3 with 1 3 2, -1 of a map with its negative, 1 of a map with itself: 1/2 + 2 + 0
        first, second = torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3), torch.tensor([1.0, 3, 2]).view(1, 1, 1, 3)
        coarse = torch.tensor([4.0, 0, 1, 1]).view(1, 1, 2, 2)
        assert pkd_loss([first], [second]).item() == pytest.approx(0.5, abs=1e-4)
        assert pkd_loss([first, coarse, first], [second, -coarse, first]).item() == pytest.approx(2.5, abs=1e-4)

    def test_each_level_gets_the_gradient_of_its_own_loss(self) -> None:
        fs = [torch.randn(2, 3, size, size, requires_grad=True) for size in (4, 2)]
        ft = [torch.randn(2, 3, size, size) for size in (4, 2)]
        together = torch.autograd.grad(pkd_loss(fs, ft), fs)
        for s, t, found in zip(fs, ft, together, strict=True):
            assert torch.allclose(found, gradient(pearson_loss(s, t), s), atol=1e-7)
            assert found.abs().max() > 1e-3

    def test_levels_of_another_number_are_an_error(self) -> None:
        f = torch.randn(1, 2, 4, 4)
        with pytest.raises(ValueError, match="shorter"):
            pkd_loss([f, f], [f])

    def test_only_unequal_widths_are_bridged_by_one_weight_per_pair_of_channels(self) -> None:
        found = bridges({"neck_p3": (4, 4), "neck_p4": (3, 5), "neck_p5": (6, 2)})
        shapes = {role: [tuple(p.shape) for p in bridge.parameters()] for role, bridge in found.items()}
        assert shapes == {"neck_p4": [(5, 3, 1, 1)], "neck_p5": [(2, 6, 1, 1)]}
        assert len(bridges({"neck_p3": (4, 4)})) == 0


class TestChannelWise:
    @pytest.mark.parametrize(("temperature", "expected"), [(1.0, 2 * math.tanh(1)), (2.0, 4 * math.tanh(0.5))])
    def test_two_positions_in_opposite_order(self, temperature: float, expected: float) -> None:
        # standardised: -1 1 and 1 -1. p = sigmoid(2 / T): KL = (2 p - 1) ln(p / (1 - p)) = tanh(1 / T) 2 / T, times T^2
        fs, ft = torch.tensor([0.0, 7]).view(1, 1, 1, 2), torch.tensor([5.0, 2]).view(1, 1, 1, 2)
        assert channel_wise_loss(fs, ft, temperature).item() == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_loss_and_gradient_are_those_of_the_formula(self, temperature: float) -> None:
        fs, ft = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
        exact = fs.detach().double().requires_grad_()

        def softened(f: Tensor) -> Tensor:
            variance, centre = torch.var_mean(f, (0, 2, 3), correction=0, keepdim=True)
            return (((f - centre) / (variance + 1e-5).sqrt()).flatten(2) / temperature).softmax(2)

        s, t = softened(exact), softened(ft.double())
        expected = temperature**2 / (2 * 3) * sum((t[b, c] * (t[b, c] / s[b, c]).log()).sum() for b, c in PAIRS)
        loss = channel_wise_loss(fs, ft, temperature)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(gradient(loss, fs), gradient(expected, exact).float(), atol=1e-6)

    def test_it_measures_from_the_teachers_side(self) -> None:
        fs, ft = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4) ** 3
        assert abs(channel_wise_loss(fs, ft) - channel_wise_loss(ft, fs)) > 0.01

    def test_moving_both_maps_changes_nothing(self) -> None:
        fs, ft = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        moved = channel_wise_loss(fs.roll(1, 3), ft.roll(1, 3)).item()
        assert moved == pytest.approx(channel_wise_loss(fs, ft).item(), rel=1e-5)
        assert abs(moved - channel_wise_loss(fs.roll(1, 3), ft).item()) > 0.01

    def test_a_connector_has_one_weight_per_pair_of_channels(self) -> None:
        assert [tuple(p.shape) for p in connector(3, 5).parameters()] == [(5, 3, 1, 1)]


PAIRS = [(b, c) for b in range(2) for c in range(3)]


class TestMaskedGeneration:
    def test_the_mask_hides_its_share_of_positions_in_each_image(self) -> None:
        keep = random_mask(torch.zeros(3, 7, 100, 100))
        assert keep.shape == (3, 1, 100, 100)
        assert set(keep.unique().tolist()) == {0.0, 1.0}
        assert (keep.mean((1, 2, 3)) - 0.35).abs().max() < 0.02  # 4 standard deviations
        assert not torch.equal(keep[0], keep[1])
        assert random_mask(torch.zeros(1, 1, 9, 9), share=0.0).min() == 1
        assert random_mask(torch.zeros(1, 1, 9, 9), share=1.0).max() == 0

    def test_a_generator_of_its_own_leaves_all_other_randomness_alone(self) -> None:
        f = torch.zeros(2, 3, 8, 8)
        before = torch.get_rng_state()
        first, second = (random_mask(f, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), before)

    def test_squares_summed_over_positions_and_averaged_over_images(self) -> None:
        # kept 2 against 5, masked 0 against 3: 9 + 9; the second image is restored exactly
        generator = Generator(1, 1)
        for layer in (generator.generation[0], generator.generation[2]):
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
        keep = torch.tensor([1.0, 0, 1, 1]).view(2, 1, 1, 2)
        ft = torch.tensor([5.0, 3, 2, 2]).view(2, 1, 1, 2)
        restored = generator(torch.full((2, 1, 1, 2), 2.0), keep)
        assert masked_generation_loss(restored, ft).item() == pytest.approx((9 + 9 + 0) / 2)

    def test_gradient_is_twice_the_gap_over_the_images(self) -> None:
        restored, ft = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 4, 4)
        expected = 2 * (restored - ft) / 3
        assert torch.allclose(gradient(masked_generation_loss(restored, ft), restored), expected, atol=1e-6)

    def test_masked_positions_have_no_influence(self) -> None:
        generator = Generator(4, 6)
        keep = random_mask(torch.zeros(2, 4, 8, 8))
        f = torch.randn(2, 4, 8, 8)
        restored = generator(f, keep)
        assert restored.shape == (2, 6, 8, 8)
        assert torch.equal(generator(f + 9 * torch.randn_like(f) * (1 - keep), keep), restored)
        nn.init.ones_(generator.align.bias)  # not the alignment's bias either
        blank = generator(f, torch.zeros_like(keep))
        nn.init.zeros_(generator.align.bias)
        assert torch.equal(generator(f, torch.zeros_like(keep)), blank)

    def test_features_of_equal_width_are_not_aligned(self) -> None:
        shapes = [tuple(p.shape) for p in Generator(4, 4).parameters()]
        assert shapes == [(4, 4, 3, 3), (4,)] * 2
        assert [tuple(p.shape) for p in Generator(2, 4).parameters()] == [(4, 2, 1, 1), (4,), *shapes]


class TestScoreL2:
    def test_score_is_the_best_class_of_the_branches_mean_logit(self) -> None:
        first, second = torch.tensor([[[LN3], [-9.0]]]), torch.tensor([[[-LN3], [-7.0]]])
        assert teacher_score([first, second]).tolist() == [[0.5]]
        assert teacher_score([first]).item() == pytest.approx(0.75)

    def test_two_positions_two_channels_and_two_levels(self) -> None:
        # squared gaps 1 and 4 with scores 0.75 and 0.25, the other channel equal: 1.75 / 2; the second level: 9 / 2
        ps = [torch.tensor([1.0, 2, 0, 0]).view(1, 2, 1, 2), torch.tensor([3.0, 0]).view(1, 2, 1, 1)]
        ft = [torch.zeros_like(p) for p in ps]
        loss = score_l2_loss(ps, ft, torch.tensor([[0.75, 0.25, 0.1]]))
        assert loss.item() == pytest.approx(1.75 / 2 + 9 / 2, rel=1e-6)

    def test_gradient_is_twice_the_weighted_gap(self) -> None:
        fs, ft, scores = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5), torch.rand(2, 20)
        expected = 2 * (fs - ft) * scores.view(2, 1, 4, 5) / (3 * scores.sum())
        assert torch.allclose(gradient(score_l2_loss([fs], [ft], scores), fs), expected, atol=1e-7)

    def test_a_teacher_without_scores_gives_no_loss(self) -> None:
        loss = score_l2_loss([torch.randn(1, 2, 2, 2)], [torch.randn(1, 2, 2, 2)], torch.zeros(1, 4))
        assert loss.item() == 0

    def test_it_equals_ultralytics_own_loss_of_each_level(self) -> None:
        from ultralytics.nn.distill_model import DistillationModel

        sizes = ((8, 6), (4, 3), (2, 2))
        ps, ft = ([torch.randn(2, 5, *size) for size in sizes] for _ in range(2))
        scores = torch.rand(2, sum(h * w for h, w in sizes))
        theirs = tuple(s[:, None] for s in scores.split([h * w for h, w in sizes], 1))
        for i in range(3):
            expected = DistillationModel.loss_sl2(None, ps[i], ft[i], i, theirs)
            assert score_l2_loss(ps[i : i + 1], ft[i : i + 1], theirs[i][:, 0]).item() == pytest.approx(
                expected.item(), abs=1e-6
            )

    @pytest.mark.parametrize("family", ["yolo26", "yolo11"])
    def test_it_equals_the_dis_loss_of_ultralytics_distillation_model(self, family: str) -> None:
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.distill_model import DistillationModel
        from ultralytics.nn.tasks import DetectionModel

        student, teacher = (DetectionModel(f"{family}{size}.yaml", nc=3, verbose=False) for size in "ns")
        for model in (student, teacher):
            model.args = get_cfg(overrides={"imgsz": 64})
        for module in teacher.modules():  # fresh heads score close to 0 everywhere
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
            elif isinstance(module, nn.Conv2d) and module.out_channels == 3:
                nn.init.normal_(module.weight, std=0.3)
                nn.init.zeros_(module.bias)
        teacher.train()(torch.rand(4, 3, 64, 64))
        theirs = DistillationModel(teacher, student).train()
        batch = {
            "img": torch.rand(2, 3, 64, 64),
            "cls": torch.zeros(1, 1),
            "bboxes": torch.full((1, 4), 0.5),
            "batch_idx": torch.zeros(1),
        }
        _, items = theirs.loss(batch)

        widths = [(theirs._student_feats[i].shape[1], theirs._teacher_feats[i].shape[1]) for i in range(3)]
        assert all(s < t for s, t in widths)
        projectors = [projector(s, t) for s, t in widths]
        for ours, weights in zip(projectors, theirs.projector, strict=True):
            ours.load_state_dict(weights.state_dict())
        outputs = theirs._teacher_feats[3][1]
        branches = [outputs[b] for b in ("one2many", "one2one")] if "one2many" in outputs else [outputs]
        assert len(branches) == (2 if family == "yolo26" else 1)
        scores = teacher_score([branch["scores"] for branch in branches])
        assert scores.std() > 0.05
        projected = [p(theirs._student_feats[i]) for i, p in enumerate(projectors)]
        loss = score_l2_loss(projected, [theirs._teacher_feats[i] for i in range(3)], scores)
        assert 6 * loss.item() == pytest.approx(items["dis_loss"].item(), rel=1e-6)
        assert loss.item() > 1e-3
