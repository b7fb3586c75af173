"""The baselines that use labels, against values derived by hand and plain loops."""

from __future__ import annotations

import copy
import math
from statistics import mean, stdev

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_mkd.knowledge import Targets
from yolo_mkd.knowledge.baselines.fgd import FocalGlobal, GlobalContext, attention, focal_global_loss, masks
from yolo_mkd.knowledge.baselines.ld import anchor_boxes, iou, localization_loss, nearest, offset, regions

LN3 = math.log(3)
NO_LABELS = Targets(torch.zeros(0, 4), torch.zeros(0))
ONE_LABEL = Targets(torch.tensor([[0.5, 0.4, 0.3, 0.5]]), torch.tensor([1.0]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


class TestFocalGlobal:
    def test_masks_of_two_overlapping_boxes_and_of_an_empty_image(self) -> None:
        # on 4 rows and 8 columns: x 1 to 3, y 1.5 to 2.5 fills columns 1-3 and rows 1-3, nine positions;
        # x 2.25 to 2.75, y 2.4 to 2.6 fills columns 2-3 and rows 2-3, four positions
        truth = Targets(torch.tensor([[0.25, 0.5, 0.25, 0.25], [0.3125, 0.625, 0.0625, 0.05]]), torch.zeros(2))
        objects, background = masks(truth, 2, 4, 8)
        expected = torch.zeros(4, 8)
        expected[1:4, 1:4] = 1 / 9
        expected[2:4, 2:4] = 1 / 4
        assert torch.allclose(objects[0], expected)
        assert torch.allclose(background[0], (expected == 0) / 23)
        assert objects[1].max() == 0
        assert torch.allclose(background[1], torch.full((4, 8), 1 / 32))

    def test_a_box_of_the_whole_image_leaves_no_background(self) -> None:
        objects, background = masks(Targets(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.zeros(1)), 1, 4, 8)
        assert torch.allclose(objects, torch.full((1, 4, 8), 1 / 45))  # columns 0-8 and rows 0-4, cut at the edge
        assert background.max() == 0

    def test_attention_of_one_active_position_in_one_of_two_channels(self) -> None:
        # |f| averages ln(3) / 2 there and 0 elsewhere; over T = 0.5 that is ln 3 and 0: softmax 3/4 and 1/4, times 2
        positions, channels = attention(torch.tensor([-LN3, 0, 0, 0]).view(1, 2, 1, 2))
        assert torch.allclose(positions, torch.tensor([1.5, 0.5]).view(1, 1, 2))
        assert torch.allclose(channels, torch.tensor([[1.5, 0.5]]))

    @pytest.mark.parametrize(
        ("weights", "truth", "expected"),
        [
            ((1, 0, 0, 0), NO_LABELS, 0),
            ((0, 1, 0, 0), NO_LABELS, 0.5 * 1.5 * 1.5 * LN3**2),
            ((1, 0, 0, 0), "whole", 1.5 * 1.5 * LN3**2 / 6),  # columns 0-2, rows 0-1
            ((0, 1, 0, 0), "whole", 0),
            ((0, 0, 1, 0), NO_LABELS, 2),  # 0.5 for each of 2 positions and 2 channels
            ((0, 0, 0, 1), NO_LABELS, LN3**2),
            ((), NO_LABELS, 1e-3 * 1.125 * LN3**2 + 1e-3 * 2 + 1e-5 * LN3**2),
            ((), "whole", 2e-3 * 0.375 * LN3**2 + 1e-3 * 2 + 1e-5 * LN3**2),
        ],
    )
    def test_a_student_of_zeros_and_one_active_position(
        self, weights: tuple, truth: Targets | str, expected: float
    ) -> None:
        # teacher as above, weights S_t C_t = 1.5 * 1.5 at its active position; the student's attention is 1 everywhere
        labels = Targets(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.zeros(1)) if isinstance(truth, str) else truth
        fs, ft = torch.zeros(1, 2, 1, 2), torch.tensor([LN3, 0, 0, 0]).view(1, 2, 1, 2)
        loss = focal_global_loss(FocalGlobal(2, 2), fs, ft, labels, *weights)
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)

    def test_loss_and_gradient_are_those_of_the_published_form(self) -> None:
        parts = FocalGlobal(4, 6)
        for context in (parts.student_context, parts.teacher_context):
            nn.init.normal_(context.think[-1].weight)
        fs, ft = torch.randn(2, 4, 5, 7, requires_grad=True), torch.randn(2, 6, 5, 7)
        exact, t, double = fs.detach().double().requires_grad_(), ft.double(), copy.deepcopy(parts).double()
        s = double.align(exact)
        (ss, cs), (st, ct) = ([(x.abs().mean(d) / 0.5) for d in (1, (2, 3))] for x in (s, t))
        ss, st = (x.flatten(1).softmax(1).view(2, 5, 7) * 35 for x in (ss, st))
        cs, ct = (x.softmax(1) * 6 for x in (cs, ct))
        objects, background = masks(ONE_LABEL, 2, 5, 7)
        scale = (st[:, None] * ct[..., None, None]).sqrt()
        expected = torch.zeros((), dtype=torch.double)
        for weight, mask in ((0.3, objects), (0.2, background)):
            root = scale * mask[:, None].double().sqrt()
            expected = expected + weight * F.mse_loss(s * root, t * root, reduction="sum") / 2
        expected = expected + 0.7 * (F.l1_loss(ss, st, reduction="sum") + F.l1_loss(cs, ct, reduction="sum")) / 2
        context = F.mse_loss(double.student_context(s), double.teacher_context(t), reduction="sum")
        expected = expected + 0.1 * context / 2
        loss = focal_global_loss(parts, fs, ft, ONE_LABEL, 0.3, 0.2, 0.7, 0.1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(gradient(loss, fs), gradient(expected, exact).float(), rtol=1e-4, atol=1e-5)

    def test_a_context_block_first_adds_nothing_then_its_context(self) -> None:
        block = GlobalContext(2)
        f = torch.randn(2, 2, 3, 3)
        assert torch.equal(block(f), f)
        # one channel ln 3 and 0, weighed by 1: softmax 3/4 and 1/4, context 0.75 ln 3
        block = GlobalContext(2)
        block.look, block.think = nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Identity())
        nn.init.ones_(block.look.weight)
        out = block(torch.tensor([LN3, 0]).view(1, 1, 1, 2))
        assert torch.allclose(out.flatten(), torch.tensor([1.75 * LN3, 0.75 * LN3]))

    def test_every_part_beside_the_student_learns(self) -> None:
        parts = FocalGlobal(4, 6)
        fs, ft = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
        optimiser = torch.optim.SGD(parts.parameters(), lr=0.1)
        for _ in range(2):  # the blocks' first layers get a gradient once their last ones have moved
            optimiser.zero_grad()
            focal_global_loss(parts, fs, ft, NO_LABELS).backward()
            optimiser.step()
        without = [n for n, p in parts.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []


def boxes_at(*centres: tuple[float, float, float, float]) -> Tensor:
    """Pixels of an image of 64 x 32 as shares of it."""
    return torch.tensor(centres) / torch.tensor([64.0, 32.0, 64.0, 32.0])


LEVELS = {4: (8, 16), 8: (4, 8), 16: (2, 4)}  # of an image of 64 x 32 pixels


def plain_regions(truth: Targets, batch: int) -> tuple[list[list[float]], list[list[float]]]:
    """Both regions with plain numbers, label by label and anchor by anchor."""
    anchors = [
        ((x + 0.5) * k, (y + 0.5) * k, 8 * k, k) for k, (h, w) in LEVELS.items() for y in range(h) for x in range(w)
    ]
    main, valuable = ([[0.0] * len(anchors) for _ in range(batch)] for _ in range(2))
    for box, image in zip(truth.boxes.tolist(), truth.image.int().tolist(), strict=True):
        x, y, w, h = (v * size for v, size in zip(box, (64, 32, 64, 32), strict=True))
        overlaps, dious, distances = [], [], []
        for ax, ay, side, _ in anchors:
            across = max(0.0, min(x + w / 2, ax + side / 2) - max(x - w / 2, ax - side / 2))
            down = max(0.0, min(y + h / 2, ay + side / 2) - max(y - h / 2, ay - side / 2))
            hull = [max(p + m / 2, a + side / 2) - min(p - m / 2, a - side / 2) for p, m, a in ((x, w, ax), (y, h, ay))]
            overlaps.append(across * down / (w * h + side**2 - across * down))
            distances.append(math.hypot(x - ax, y - ay))
            dious.append(overlaps[-1] - distances[-1] ** 2 / (hull[0] ** 2 + hull[1] ** 2))
        near = []
        for stride in LEVELS:
            level = [i for i, a in enumerate(anchors) if a[3] == stride]
            near += sorted(level, key=lambda i: distances[i])[:9]
        tau = mean(overlaps[i] for i in near) + stdev(overlaps[i] for i in near)
        for i, (ax, ay, _, _) in enumerate(anchors):
            within = abs(ax - x) < w / 2 - 0.01 and abs(ay - y) < h / 2 - 0.01
            if i in near and overlaps[i] >= tau and within:
                main[image][i] = 1.0
            if 0.25 * tau <= dious[i] < tau:
                valuable[image][i] = max(valuable[image][i], overlaps[i])
    return main, valuable


class TestRegions:
    def test_anchor_boxes_are_squares_of_eight_strides_level_by_level(self) -> None:
        boxes = anchor_boxes({2: (1, 2), 4: (1, 1)}, torch.device("cpu"))
        assert boxes.tolist() == [[-7, -7, 9, 9], [-5, -7, 11, 9], [-14, -14, 18, 18]]

    def test_overlap_and_distance_equal_torchvisions(self) -> None:
        from torchvision.ops import box_iou, distance_box_iou

        a, b = (torch.cat([x[:, :2], x[:, :2] + x[:, 2:] + 0.1], 1) for x in (torch.rand(5, 4), torch.rand(9, 4)))
        assert torch.allclose(iou(a, b), box_iou(a, b), atol=1e-6)
        assert torch.allclose(iou(a, b) - offset(a, b), distance_box_iou(a, b), atol=1e-5)

    def test_nine_of_each_level_are_near_or_all_there_are(self) -> None:
        # centres at 1 3 ... 23; the nine nearest to 9 are 1 ... 17, and the one at 8 of the next level is its only one
        levels = {2: (1, 12), 16: (1, 1)}
        box = torch.tensor([[1.0, -7, 17, 9]])
        found = nearest(box, anchor_boxes(levels, box.device), levels)
        assert sorted(found[0].tolist()) == [*range(9), 12]

    def test_twelve_anchors_in_a_row(self) -> None:
        # a label of the anchors' own size, 16, centred on the fifth of them: at a distance d IoU = (16 - d) / (16 + d)
        # and DIoU = IoU - d^2 / ((16 + d)^2 + 256). Of the nine nearest, d = 0 2 2 4 4 6 6 8 8, the mean is 0.592368
        # and the deviation 0.218975, so tau = 0.811343 and a quarter of it 0.202836.
        # DIoU: 1, .770881, .575641, .409091, .256410 (d = 8), .123473 (d = 10)
        truth = Targets(torch.tensor([[9 / 24, 0.5, 16 / 24, 8.0]]), torch.zeros(1))
        main, valuable = regions(truth, {2: (1, 12)}, 1)
        assert main[0].tolist() == [0.0] * 4 + [1.0] + [0.0] * 7
        expected = [1 / 3, 5 / 11, 0.6, 7 / 9, 0, 7 / 9, 0.6, 5 / 11, 1 / 3, 0, 0, 0]
        assert torch.allclose(valuable[0], torch.tensor(expected), atol=1e-6)

    def test_regions_equal_those_of_a_plain_loop(self) -> None:
        size = torch.rand(12, 2) * 0.6 + 0.05
        truth = Targets(torch.cat([torch.rand(12, 2), size], 1), torch.arange(12) % 3)
        main, valuable = regions(truth, LEVELS, 4)
        expected_main, expected_valuable = plain_regions(truth, 4)
        assert torch.equal(main, torch.tensor(expected_main))
        assert torch.allclose(valuable, torch.tensor(expected_valuable), atol=1e-5)
        assert main[:3].sum(1).min() > 0
        assert main[3].max() == valuable[3].max() == 0  # an image without labels
        assert (valuable[0] > 0).sum() > 27  # it reaches beyond the nearest 9 of 3 levels

    def test_an_anchor_outside_its_label_is_not_main(self) -> None:
        # 2 x 2 pixels around (32, 16), where four cells meet at every stride: no anchor's centre is inside
        main, _ = regions(Targets(boxes_at((32, 16, 2, 2)), torch.zeros(1)), LEVELS, 1)
        assert main.max() == 0

    def test_no_labels_give_empty_regions(self) -> None:
        main, valuable = regions(NO_LABELS, LEVELS, 3)
        assert main.shape == valuable.shape == (3, 168)
        assert main.max() == valuable.max() == 0

    def test_a_label_without_area_gives_finite_regions(self) -> None:
        main, valuable = regions(Targets(boxes_at((20, 10, 0, 0)), torch.zeros(1)), LEVELS, 1)
        assert main.max() == valuable.max() == 0


# a label of the anchors' own size, 16, on the middle of three, whose centres are at 1 3 5: IoU 7/9 1 7/9,
# tau = 0.851852 + 0.128300, DIoU .770881 1 .770881
THREE = {2: (1, 3)}
ON_THE_MIDDLE = Targets(torch.tensor([[0.5, 0.5, 16 / 6, 8.0]]), torch.zeros(1))


class TestLocalization:
    def test_three_anchors_and_two_bins(self) -> None:
        # softmax(t / 10) = 3/4 1/4 against 1/2 1/2: KL = 0.75 ln 1.5 + 0.25 ln 0.5, times 100, mean of 2 bins;
        # the middle anchor counts with the student's score 1/2, its neighbours with 7/9 / 4 each
        bt = torch.zeros(1, 4, 2, 3)
        bt[:, :, 0] = 10 * LN3
        divergence = 50 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
        zs = torch.tensor([[0.0, 0, 0], [-3, -3, -3]])[None]
        loss = localization_loss(torch.zeros_like(bt), bt, zs, ON_THE_MIDDLE, THREE)
        assert loss.item() == pytest.approx(divergence * (0.5 + 2 * 7 / 36), rel=1e-5)
        batch = [torch.cat([x, x]) for x in (torch.zeros_like(bt), bt, zs)]  # the second image has no label
        assert localization_loss(*batch, ON_THE_MIDDLE, THREE).item() == pytest.approx(loss.item() / 2, rel=1e-5)

    def test_gradient_is_the_gap_of_the_softened_distributions(self) -> None:
        bs, bt, zs = torch.randn(1, 4, 8, 3) * 20, torch.randn(1, 4, 8, 3) * 20, torch.randn(1, 2, 3)
        bs.requires_grad_()
        weight = torch.tensor([7 / 36, zs.sigmoid()[0, :, 1].max().item(), 7 / 36])
        gap = (bs / 10).softmax(2) - (bt / 10).softmax(2)
        loss = localization_loss(bs, bt, zs, ON_THE_MIDDLE, THREE)
        assert torch.allclose(gradient(loss, bs), 10 / (4 * 8) * gap * weight, atol=1e-6)

    def test_each_side_counts(self) -> None:
        bt, zs = torch.randn(1, 4, 8, 3), torch.zeros(1, 1, 3)
        losses = []
        for side in range(4):
            bs = bt.clone()
            bs[:, side, 0] += 30
            losses.append(localization_loss(bs, bt, zs, ON_THE_MIDDLE, THREE).item())
        assert min(losses) > 1

    def test_a_shift_of_all_bins_does_not_matter(self) -> None:
        bs, bt, zs = torch.randn(1, 4, 8, 3), torch.randn(1, 4, 8, 3), torch.zeros(1, 1, 3)
        moved = localization_loss(bs + 4, bt - 2, zs, ON_THE_MIDDLE, THREE).item()
        assert moved == pytest.approx(localization_loss(bs, bt, zs, ON_THE_MIDDLE, THREE).item(), rel=1e-3)

    def test_scores_weigh_but_do_not_learn(self) -> None:
        bs, bt = torch.randn(1, 4, 8, 3, requires_grad=True), torch.randn(1, 4, 8, 3)
        zs = torch.zeros(1, 2, 3, requires_grad=True)
        localization_loss(bs, bt, zs, ON_THE_MIDDLE, THREE).backward()
        assert zs.grad is None

    def test_no_labels_give_no_loss_and_no_gradient(self) -> None:
        bs, bt = torch.randn(2, 4, 8, 168, requires_grad=True), torch.randn(2, 4, 8, 168)
        loss = localization_loss(bs, bt, torch.zeros(2, 1, 168), NO_LABELS, LEVELS)
        assert loss.item() == 0
        assert gradient(loss, bs).abs().max() == 0
