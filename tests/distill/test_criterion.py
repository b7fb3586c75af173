"""The loss of a distilled student, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg

from yolo_mkd import host
from yolo_mkd.distill.balance import GradientBalancer
from yolo_mkd.distill.criterion import PATIENCE, Criterion, Progress
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import LossWeights, Targets

MKD = ("soft", "soft_box", "soft_dfl", "attention", "relation", "guidance", "exploration")
GAINS = {name: TERMS[name].gain for name in MKD}


class Bench:
    """A student, its criterion and a batch."""

    def __init__(
        self, weight: float = 1.0, teachers: int = 1, fitted: float = 1, calibrate: bool = False, gate: bool = False,
        **gains: float,
    ):  # fmt: skip
        torch.manual_seed(0)
        self.student = host.build("yolo26n.yaml", classes=3).train()
        self.student.args = get_cfg()
        spec = host.model_spec(self.student, 64)
        distillers = []
        for i in range(teachers):
            model = host.build("yolo26n.yaml", classes=3)
            distiller = Distiller(spec, host.model_spec(model, 64), {**GAINS, **gains}, calibrate, gate)
            distiller.connect(LiveTeacher(f"t{i}", host.freeze(model), distiller.match.teacher, distiller.roles))
            distillers.append(distiller)
        extractor = FeatureExtractor(self.student, spec, distillers[0].roles)
        schedule = Schedule(warmup=10, fitted=fitted, end=90, epochs=100)
        self.progress = Progress(round(10 * weight) if weight else 90)
        shared = host.shared_weights(self.student, spec)
        detection = self.student.init_criterion()
        self.criterion = Criterion(detection, extractor, distillers, schedule, self.progress, shared, seed=0)

    @property
    def balancer(self) -> GradientBalancer:
        return self.criterion.distillers[0].balancer

    def batch(self, images: int = 2) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        picture = torch.rand(1, 3, 64, 64, generator=generator).repeat(images, 1, 1, 1)
        box = torch.tensor([[0.5, 0.5, 0.4, 0.6]]).repeat(images, 1)
        return {"img": picture, "batch_idx": torch.arange(images), "cls": torch.ones(images, 1), "bboxes": box}

    def loss(self, images: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.batch(images)
        loss, items = self.criterion(self.student(batch["img"]), batch)
        return loss, items


@pytest.mark.slow
def test_no_term_dominates_the_detection_loss_at_its_nominal_gain(tiny_detector: Any) -> None:
    """Adapters are random at the start, and a term weighted carelessly can be twenty times the task there."""
    import cv2
    import numpy as np

    torch.manual_seed(0)
    student = host.load_detector("model", str(tiny_detector.pt)).requires_grad_(True).train()
    student.args = get_cfg()
    teacher = host.freeze(host.load_detector("teacher", str(tiny_detector.pt)))
    distiller = Distiller(host.model_spec(student, 96), host.model_spec(teacher, 96), GAINS)
    pictures, rows = [], []
    for i, path in enumerate(tiny_detector.images[:8]):
        pictures.append(cv2.resize(cv2.imread(str(path)), (96, 96))[..., ::-1].transpose(2, 0, 1) / 255)
        label = path.parents[2] / "labels" / "val" / f"{path.stem}.txt"
        rows += [[i, *map(float, line.split())] for line in label.read_text().splitlines()]
    images, labels = torch.tensor(np.stack(pictures), dtype=torch.float32), torch.tensor(rows)
    batch = {"img": images, "batch_idx": labels[:, 0], "cls": labels[:, 1:2], "bboxes": labels[:, 2:]}
    extractor = FeatureExtractor(student, distiller.match.student, distiller.roles)
    preds = student(images)
    trunk = [p for n, p in student.named_parameters() if not n.startswith("model.23.")]

    def strength(loss: Tensor) -> float:
        found = torch.autograd.grad(loss, trunk, retain_graph=True, allow_unused=True)
        return float(torch.cat([g.flatten() for g in found if g is not None]).norm())

    task = strength(student.init_criterion()(preds, batch)[0].sum() / len(images))
    kt = LiveTeacher("t", teacher, distiller.match.teacher, distiller.roles).infer(images)
    losses = distiller.losses(extractor.collect(preds), kt, Targets(labels[:, 2:], labels[:, 0]), LossWeights())
    shares = {name: GAINS[name] * strength(loss) / task for name, loss in losses.items()}
    assert all(0.05 < share < 5 for share in shares.values()), shares  # weighted by score, guidance had 7.4 here


def test_at_weight_zero_the_loss_is_the_detection_loss_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveTeacher, "infer", lambda self, images: pytest.fail("the teacher ran"))
    bench = Bench(weight=0)
    batch = bench.batch()
    preds = bench.student(batch["img"])
    assert torch.equal(bench.criterion(preds, batch)[0], bench.criterion.detection(preds, batch)[0])


def test_the_terms_are_added_with_gain_weight_and_batch_size() -> None:
    bench = Bench(weight=0.5)
    loss, items = bench.loss(images=3)
    expected = sum(GAINS[n] * items[f"kd/{n}"] for n in TERMS if f"kd/{n}" in items) * 0.5 * 3
    assert len(loss) == 4
    assert loss[3].item() == pytest.approx(float(expected), rel=1e-5)
    assert items["kd/weight"] == 0.5


@pytest.mark.parametrize("name", ["soft", "attention", "relation"])
def test_a_doubled_batch_doubles_the_loss_so_that_an_image_counts_the_same(name: str) -> None:
    bench = Bench(**{**dict.fromkeys(TERMS, 0.0), name: 1.0})
    bench.student.eval()  # so that an image's features do not depend on the batch
    host.head(bench.student).training = True
    values = [bench.loss(images=n)[1][f"kd/{name}"].item() for n in (2, 4)]
    if name == "soft":  # divided by the teacher's mass, at least 1
        assert values[1] >= values[0]
    else:
        assert values[1] == pytest.approx(values[0], rel=1e-4)


def broken(bench: Bench, name: str, value: float) -> None:
    term = bench.criterion.distillers[0].term(name)
    sound = term.loss
    term.loss = lambda ks, kt, *labels: sound(ks, kt, *labels) * value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_never_reaches_the_optimiser_and_is_counted(value: float) -> None:
    bench = Bench()
    broken(bench, "relation", value)
    loss, items = bench.loss()
    loss.sum().backward()
    assert loss.isfinite().all()
    assert items["kd/relation"] == 0
    assert items["kd/attention"] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in bench.student.parameters())
    assert bench.criterion.skipped["relation"] == 1
    assert bench.criterion.skipped["attention"] == 0


def test_training_stops_when_a_term_stays_not_finite() -> None:
    bench = Bench()
    broken(bench, "soft", float("nan"))
    for _ in range(PATIENCE - 1):
        bench.loss()
    with pytest.raises(FloatingPointError, match=r"soft was NaN .* switch it off \(soft=0\)"):
        bench.loss()


def test_a_good_batch_in_between_starts_the_count_anew() -> None:
    bench = Bench()
    bad, good = {"soft": torch.tensor(float("nan"))}, {"soft": torch.tensor(1.0)}
    for values in [bad] * (PATIENCE - 1) + [good] + [bad] * (PATIENCE - 1):
        assert bench.criterion._finite(values) == (values if values is good else {})
    with pytest.raises(FloatingPointError):
        bench.criterion._finite(bad)


def test_with_two_teachers_each_batch_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    infer = LiveTeacher.infer
    monkeypatch.setattr(LiveTeacher, "infer", lambda self, images: (used.append(self.name), infer(self, images))[1])
    bench = Bench(teachers=2)
    for _ in range(8):
        bench.loss()
    assert len(used) == 8
    assert set(used) == {"t0", "t1"}


def test_a_teacher_that_runs_in_every_third_batch_gives_the_same_mean_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    infer = LiveTeacher.infer
    monkeypatch.setattr(
        LiveTeacher, "infer", lambda self, images: (ran.append(bench.criterion.step), infer(self, images))[1]
    )
    means, items = [], []
    for every in (1, 3):
        bench = Bench()
        bench.criterion.schedule = replace(bench.criterion.schedule, every=every)
        weights = [p for p in bench.student.parameters() if p.requires_grad]
        total, values = torch.zeros(sum(p.numel() for p in weights)), []
        ran.clear()
        for _ in range(6):
            bench.student.load_state_dict(Bench().student.state_dict())  # the statistics of batch norms
            bench.criterion.student.hooks.open = bench.criterion.on
            loss, named = bench.loss()
            found = torch.autograd.grad(loss[3:].sum() + loss[0] * 0, weights, allow_unused=True)
            parts = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
            total += torch.cat([p.flatten() for p in parts]) / 6
            values.append(named["kd/attention"].item())
        assert ran == list(range(0, 6, every))
        means.append(total)
        items.append(sum(values) / 6)
    assert means[0].norm() > 0
    assert (means[1] - means[0]).norm() < 1e-4 * means[0].norm()
    assert items[1] == pytest.approx(items[0], rel=1e-5)


def test_the_dual_heads_epoch_counter_is_reached_through_it() -> None:
    bench: Any = Bench()
    before = bench.criterion.detection.o2m
    bench.criterion.update()
    assert bench.criterion.detection.o2m < before


def trunk(bench: Bench) -> list[Tensor]:
    return [p for n, p in bench.student.named_parameters() if not n.startswith("model.23.")]


def of_the_trunk(bench: Bench, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, trunk(bench), retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_while_guidance_layers_are_fitted_they_learn_at_full_gain_and_the_student_gets_no_gradient() -> None:
    only = {**dict.fromkeys(TERMS, 0.0), "guidance": 6.0}
    for fitted in (1, 20):
        bench = Bench(weight=0.5, fitted=fitted, **only)
        loss, items = bench.loss()
        weight = 1.0 if fitted > 1 else 0.5  # the schedule scales the student's gradient, not that of the layers
        assert loss[3].item() == pytest.approx(6 * weight * 2 * float(items["kd/guidance"]), rel=1e-5)
        loss[3].backward()
        adapters = list(bench.criterion.distillers[0].adapters.parameters())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk(bench)) == (fitted == 1)


def test_calibrated_terms_have_the_requested_share_of_the_gradient() -> None:
    bench = Bench(calibrate=True)
    bench.criterion.weights = trunk(bench)
    loss, _ = bench.loss()  # measures this batch
    balancer = bench.balancer
    task = of_the_trunk(bench, loss[:3].sum()).norm()
    distiller = bench.criterion.distillers[0]
    batch = bench.batch()
    preds = bench.student(batch["img"])
    kt = bench.criterion.distillers[0].teacher.infer(batch["img"])
    losses = distiller.losses(
        bench.criterion.student.collect(preds), kt, *bench.criterion.weigh(bench.criterion.distiller, kt, batch)
    )
    for name, value in losses.items():
        share = balancer.gains[name] * of_the_trunk(bench, value).norm() * 2 / task  # losses are per image
        if name not in balancer.limited():
            assert float(share) == pytest.approx(GAINS[name], rel=0.02), name


def test_a_term_a_thousand_times_as_large_ends_with_the_same_contribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_mkd.distill.balance.LIMITS", (0.0, float("inf")))
    sizes = []
    for factor in (1.0, 1000.0):
        bench = Bench(calibrate=True, **{**dict.fromkeys(TERMS, 0.0), "attention": 0.25})
        broken(bench, "attention", factor)
        sizes.append(bench.loss()[0][3].item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_the_terms_of_hidden_layers_fall_with_the_dual_heads_loss_on_the_trunk() -> None:
    bench = Bench(**{**dict.fromkeys(TERMS, 0.0), "attention": 1.0, "relation": 1.0})
    first, _ = bench.loss()
    detection: Any = bench.criterion.detection
    detection.o2m, detection.o2o = 0.1, 0.9
    last, _ = bench.loss()
    assert last[3].item() == pytest.approx(first[3].item() / 8, rel=0.02)


@pytest.mark.parametrize("branch", ["cv3", "one2one_cv3"])  # one2many's and one2one's class scores
def test_soft_targets_keep_their_share_in_each_branch_while_the_detection_loss_moves_to_the_other(branch: str) -> None:
    bench = Bench(**{**dict.fromkeys(TERMS, 0.0), "soft": 1.0})
    detection: Any = bench.criterion.detection
    head = [p for n, p in bench.student.named_parameters() if n.startswith(f"model.23.{branch}.")]
    shares = []
    for weights in ((0.8, 0.2), (0.1, 0.9)):
        detection.o2m, detection.o2o = weights
        loss, _ = bench.loss()
        norms = []
        for part in (loss[3], loss[:3].sum()):
            found = torch.autograd.grad(part, head, retain_graph=True)
            norms.append(torch.cat([g.flatten() for g in found]).norm().item())
        shares.append(norms[0] / norms[1])
    assert shares[0] > 0
    assert shares[1] == pytest.approx(shares[0], rel=0.02)


def test_at_the_end_of_a_dual_heads_run_the_measured_share_is_still_the_requested_one() -> None:
    bench = Bench(calibrate=True)
    detection: Any = bench.criterion.detection
    detection.o2m, detection.o2o = 0.1, 0.9
    bench.loss()
    found = bench.balancer.close_epoch()
    for name in set(found) - set(bench.balancer.limited()):
        assert found[name].strength == pytest.approx(GAINS[name], rel=1e-3), name


def test_the_gate_leaves_out_a_term_that_opposes_the_task_and_lets_it_back_in() -> None:
    bench = Bench(gate=True, **{**dict.fromkeys(TERMS, 0.0), "attention": 1.0, "soft": 1.0})
    term = bench.criterion.distillers[0].term("attention")
    sound, sign = term.loss, [-1.0]

    def task(ks: Any, kt: Any, targets: Any, weights: Any) -> Tensor:
        logits = ks.branches["one2many"].logits
        return sign[0] * torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))

    term.loss = task  # most anchors are background, so the task agrees with the positive sign
    _, items = bench.loss()
    assert bench.balancer.gated == {"attention"}
    bench.criterion.step = 50  # measured again
    sign[0] = 1.0
    loss, items = bench.loss()
    assert bench.balancer.gated == set()
    assert loss[3].item() == pytest.approx(2 * float(items["kd/soft"] + items["kd/attention"]), rel=1e-4)
    assert sound is not term.loss


def test_gradients_are_measured_evenly_and_more_often_until_the_gains_are_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []
    update = GradientBalancer.update
    monkeypatch.setattr(
        GradientBalancer, "update", lambda self, *a: (measured.append(bench.progress.batch), update(self, *a))
    )
    bench = Bench(calibrate=True, fitted=95, **{**dict.fromkeys(TERMS, 0.0), "soft": 1.0})
    bench.progress.batches = 120
    bench.criterion.schedule = Schedule(warmup=0, fitted=3, end=90, epochs=100)
    for bench.progress.batch in range(120):
        next_batch(bench)
    assert measured == [0, 30, 60, 90]  # 12 in three epochs
    bench.balancer.close_epoch()
    assert bench.balancer.freeze()
    measured.clear()
    for bench.progress.batch in range(120):
        next_batch(bench)
    assert measured == [20, 70]  # 50 apart, from one epoch to the next
    bench.progress.batches = 1200
    measured.clear()
    for bench.progress.batch in range(400):
        next_batch(bench)
    assert measured == [100, 250]  # 150 apart: eight in a long epoch


def next_batch(bench: Bench) -> None:
    """One batch of the criterion; its loss is computed only where gradients are measured."""
    if bench.criterion.due(bench.criterion.distillers[0]):
        bench.loss()
    else:
        bench.criterion.step += 1


def test_a_probe_decides_when_gradients_are_measured_and_times_the_parts_of_a_step() -> None:
    bench = Bench(calibrate=True, **{**dict.fromkeys(TERMS, 0.0), "soft": 1.0})
    parts: list[str] = []

    @contextmanager
    def section(name: str) -> Iterator[None]:
        parts.append(f"{name} begins")
        yield
        parts.append(f"{name} ends")

    bench.criterion.section = section
    wanted = [False, True, False]
    bench.criterion.due = lambda distiller: distiller is bench.criterion.distillers[0] and wanted[bench.criterion.step]
    counts = []
    for _ in wanted:
        bench.loss()
        counts.append(bench.balancer.measured)
    assert counts == [0, 1, 1]
    assert parts == ["teacher begins", "teacher ends", "terms begins", "terms ends"] * 3
