"""MKDTrainer in Ultralytics' own loop: what it adds, what it leaves alone, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from yolo_mkd import host
from yolo_mkd.distill.balance import GradientBalancer, class_weights
from yolo_mkd.distill.criterion import Criterion
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import LossWeights
from yolo_mkd.session import DistillationSession
from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import MKDTrainer

OFF = dict.fromkeys(TERMS, 0.0)
# yolo26 heads have no box-side distributions
ACTING = ["soft", "soft_box", "attention", "relation", "guidance", "exploration"]


@dataclass(frozen=True)
class Run:
    trainer: Any  # finished
    images: list[torch.Tensor]  # of each batch as the model takes them, B C H W


@pytest.fixture(scope="module")
def observed_run(train_into: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that trains with the given options of M-KD, None for stock Ultralytics, and keeps the images."""
    preprocess = host.DetectionTrainer.preprocess_batch

    def run(options: dict[str, Any] | None) -> Run:
        images: list[torch.Tensor] = []

        def keep(self: Any, batch: dict[str, Any]) -> dict[str, Any]:
            batch = preprocess(self, batch)
            images.append(batch["img"].clone())
            return batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host.DetectionTrainer, "preprocess_batch", keep)
            return Run(train_into(tmp_path_factory.mktemp("observed"), options, val=True), images)

    return run


@pytest.fixture(scope="module")
def plain(observed_run: Any) -> Run:
    """A run of stock Ultralytics."""
    return observed_run(None)


@pytest.fixture(scope="module")
def distilled(observed_run: Any) -> Run:
    """The same run, distilled with the default options."""
    return observed_run({})


def rows(trainer: Any) -> list[dict[str, str]]:
    with open(trainer.csv, encoding="utf-8") as f:
        return list(csv.DictReader(f))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(host.load_detector("model", str(path)).state_dict())


@pytest.mark.slow
def test_zero_gains_train_bit_for_bit_as_stock_and_never_run_the_teacher(
    train: Any, plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveTeacher, "infer", lambda self, images: pytest.fail("the teacher ran"))
    zero = train(OFF, name="zero", val=True)
    expected, found = weights(plain.trainer.last), weights(zero.last)
    assert list(found) == list(expected)
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.slow
def test_a_distilled_run_takes_the_same_images_as_a_plain_one(plain: Run, distilled: Run) -> None:
    assert len(plain.images) == len(distilled.images) == 6
    assert all(torch.equal(a, b) for a, b in zip(plain.images, distilled.images, strict=True))


@pytest.mark.slow
def test_each_acting_term_has_a_column_with_values_and_no_validation_column(train: Any) -> None:
    trainer = train({"until": 1}, val=True)
    columns = list(rows(trainer)[0])
    assert [c for c in columns if "kd/" in c] == [*(f"kd/{name}" for name in ACTING), "kd/weight"]
    for name in ACTING:
        assert float(rows(trainer)[1][f"kd/{name}"]) > 0, name
    assert len(rows(trainer)) == 2
    assert set(map(len, rows(trainer))) == {len(columns)}


@pytest.mark.slow
@pytest.mark.parametrize(("close_mosaic", "until", "distilled"), [(2, 1, 4), (2, 0.75, 3), (0, 0.5, 2)])
def test_the_teacher_does_not_run_once_distillation_is_off(
    train: Any, inferred: list[int], close_mosaic: int, until: float, distilled: int
) -> None:
    trainer = train({"until": until}, epochs=4, close_mosaic=close_mosaic, val=True)
    assert sum(inferred) == distilled * 24
    assert [float(r["kd/soft"]) > 0 for r in rows(trainer)] == [epoch < distilled for epoch in range(4)]


@pytest.mark.slow
def test_a_teacher_that_runs_in_every_second_batch_distils_those(train: Any, inferred: list[int]) -> None:
    trainer = train({"teacher_every": 2, "calibrate": False}, epochs=2)
    assert inferred == [8, 8, 8]  # of 6 batches
    assert all(float(r["kd/soft"]) > 0 for r in rows(trainer))


@pytest.mark.slow
def test_a_head_that_no_term_reads_is_removed_and_the_terms_are_the_same(train: Any) -> None:
    only = {**OFF, "attention": 1.0, "calibrate": False}
    without, whole = train(only, epochs=1, name="without"), train({**only, "soft": 1e-9}, epochs=1, name="whole")
    assert not list(without.kd.distillers[0].teacher.model.model[-1].parameters())
    assert list(whole.kd.distillers[0].teacher.model.model[-1].parameters())
    assert float(rows(without)[0]["kd/attention"]) == pytest.approx(float(rows(whole)[0]["kd/attention"]), rel=1e-4)


@pytest.mark.slow
def test_soft_targets_weigh_classes_by_the_teachers_scores_until_gains_are_frozen(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[dict[str, torch.Tensor]] = []
    observe = GradientBalancer.observe_classes
    monkeypatch.setattr(
        GradientBalancer, "observe_classes", lambda self, *batch: (observed.append(batch[0]), observe(self, *batch))[1]
    )
    used: list[LossWeights] = []
    weigh = Criterion.weigh
    monkeypatch.setattr(Criterion, "weigh", lambda *args: (weighed := weigh(*args), used.append(weighed[1]))[0])
    trainer = train({"soft_pw": 1, "until": 1})
    assert (len(observed), len(used)) == (2, 6)  # a third of the two epochs of three batches: the schedule's warm-up
    total = {branch: sum(o[branch] for o in observed) for branch in ("one2many", "one2one")}
    for branch, mass in total.items():
        assert mass.max() > 1
        assert torch.allclose(used[-1].classes[branch], class_weights(mass, 1.0))
    assert all(torch.equal(used[1].classes[b], used[5].classes[b]) for b in total)
    gains = json.loads((trainer.save_dir / "gains.json").read_text(encoding="utf-8"))
    written = gains["teachers"][0]["classes"]["one2one"]
    assert list(written) == ["red", "green", "blue"]
    assert list(written.values()) == pytest.approx(used[-1].classes["one2one"].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "names"), [([0, 2], ["red", "blue"]), (1, ["green"])])
def test_classes_that_the_user_leaves_out_are_not_distilled(train: Any, classes: Any, names: list[str]) -> None:
    trainer = train({"soft_pw": 1}, classes=classes)
    gains = json.loads((trainer.save_dir / "gains.json").read_text(encoding="utf-8"))
    assert list(gains["teachers"][0]["classes"]["one2one"]) == names


@pytest.mark.slow
def test_without_a_power_soft_targets_weigh_anchors_alike(train: Any) -> None:
    even = train({"soft_pw": 0}, epochs=1, name="even")
    rare = train({"soft_pw": 1}, epochs=1, name="rare")
    assert json.loads((even.save_dir / "gains.json").read_text(encoding="utf-8"))["teachers"][0]["classes"] == {}
    assert rows(even)[0]["kd/soft"] != rows(rare)[0]["kd/soft"]
    assert float(rows(even)[0]["kd/attention"]) == pytest.approx(float(rows(rare)[0]["kd/attention"]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("native", "amp", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_on_a_processor_the_teacher_alone_runs_in_bfloat16_where_that_is_native_and_wanted(
    train: Any, monkeypatch: pytest.MonkeyPatch, native: bool, amp: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(host.models, "native_bfloat16", lambda: native)
    logged: list[str] = []
    monkeypatch.setattr("yolo_mkd.session.LOGGER.info", logged.append)
    trainer = train({}, epochs=1, amp=amp)
    assert {p.dtype for p in trainer.kd.distillers[0].teacher.model.parameters()} == {expected}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    precision = str(expected).removeprefix("torch.")
    assert [line.strip().endswith(precision) for line in logged if "teacher precision" in line] == [True]
    assert all(float(rows(trainer)[0][f"kd/{name}"]) > 0 for name in ACTING)


@pytest.mark.parametrize(
    ("amp", "ultralytics", "expected"),
    [(True, True, "float16"), ("bf16", True, "bfloat16"), (True, False, "float32"), (False, False, "float32")],
)
def test_on_a_gpu_the_teacher_runs_in_the_precision_that_the_student_trains_in(
    monkeypatch: pytest.MonkeyPatch, amp: Any, ultralytics: bool, expected: str
) -> None:
    monkeypatch.setattr(host.models, "native_bfloat16", lambda: True)  # of the processor beside it
    trainer: Any = SimpleNamespace(amp=ultralytics, args=SimpleNamespace(amp=amp), device=torch.device("cuda"))
    assert host.frozen_precision(trainer) == getattr(torch, expected)


@pytest.mark.slow
def test_the_terms_of_a_teacher_in_bfloat16_are_the_same(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.models, "native_bfloat16", lambda: True)
    fixed = {"calibrate": False, "relation": 0.1}
    frozen = {"lr0": 0.0, "optimizer": "SGD", "epochs": 1, "weight_decay": 0.0, "warmup_bias_lr": 0.0}
    full, half = (train(fixed, name=f"amp-{amp}", amp=amp, **frozen) for amp in (False, True))
    for name in ACTING:  # 0.2 % here, up to 1.3 % on photographs
        expected = pytest.approx(float(rows(full)[0][f"kd/{name}"]), rel=0.01)
        assert float(rows(half)[0][f"kd/{name}"]) == expected, name


@pytest.mark.slow
def test_adapters_are_trained_and_dropped_and_the_teacher_is_untouched(train: Any, tiny_detector: Any) -> None:
    before: dict[str, torch.Tensor] = {}
    teacher: dict[str, torch.Tensor] = {}

    class Watched(MKDTrainer.using(tiny_detector.pt)):  # type: ignore[misc]
        def _setup_train(self) -> None:
            super()._setup_train()
            before.update({k: v.clone() for k, v in self.kd.adapters.state_dict().items()})
            teacher.update({k: v.clone() for k, v in self.kd.distillers[0].teacher.model.state_dict().items()})

    trainer = train(trainer=Watched)
    assert len(before) == 6  # in each level the student's side and the teacher's, which is fixed
    changed = {k for k, v in trainer.kd.adapters.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.endswith("adapter.weight")}
    assert not trainer.kd.state_file.exists()
    assert all(torch.equal(v, teacher[k]) for k, v in trainer.kd.distillers[0].teacher.model.state_dict().items())
    assert not trainer.kd.distillers[0].teacher.model.model[0].training


@pytest.mark.slow
def test_the_checkpoint_is_the_plain_students(plain: Run, distilled: Run) -> None:
    shapes = [{k: v.shape for k, v in weights(run.trainer.best).items()} for run in (plain, distilled)]
    assert list(shapes[0]) == list(shapes[1])
    assert shapes[0] == shapes[1]
    program = (
        "import sys; sys.modules['yolo_mkd'] = None\n"  # as if it were not installed
        "import numpy; from ultralytics import YOLO\n"
        f"YOLO({str(distilled.trainer.best)!r}).predict(numpy.zeros((64, 64, 3), 'uint8'), imgsz=64, verbose=False)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_a_resumed_run_continues_where_it_was_cut_off_with_the_same_adapters(
    train: Any, tiny_detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_mkd.distill.criterion.EVERY", 1)  # shares of each epoch
    kept: dict[str, torch.Tensor] = {}
    gains: dict[str, float] = {}
    found: dict[str, Any] = {}

    class Cut(MKDTrainer.using(tiny_detector.pt, until=1)):  # type: ignore[misc]
        def save_model(self) -> bool:
            super().save_model()
            if self.epoch == 1:
                kept.update({k: v.clone() for k, v in self.kd.adapters.state_dict().items()})
                gains.update(self.kd.distillers[0].balancer.gains)
                raise KeyboardInterrupt
            return True

    class Watched(MKDTrainer.using(tiny_detector.pt, until=1)):  # type: ignore[misc]
        def watch(self) -> None:
            if not found:
                found.update(epoch=self.epoch, updates=self.kd.criterion.detection.updates)
                balancer = self.kd.distillers[0].balancer
                found["gains"], found["frozen"] = dict(balancer.gains), balancer.frozen
                found["adapters"] = {k: v.clone() for k, v in self.kd.adapters.state_dict().items()}

        def _setup_train(self) -> None:
            super()._setup_train()
            self.add_callback("on_train_epoch_start", Watched.watch)

    with pytest.raises(KeyboardInterrupt):
        train(trainer=Cut, epochs=4, val=True)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert last.with_name("mkd.pt").exists()
    student = YOLO(last)
    student.train(resume=True, trainer=Watched)
    assert found["epoch"] == 2
    assert found["updates"] == 2  # the dual heads' own schedule continues too
    assert all(torch.equal(v, kept[k]) for k, v in found["adapters"].items())
    assert found["frozen"]
    assert found["gains"] == gains
    assert [r["epoch"] for r in rows(student.trainer)] == ["1", "2", "3", "4"]
    with open(last.parents[1] / "shares.csv", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    assert [r["epoch"] for r in table if r["term"] == "soft"] == ["1", "2", "3", "4"]
    assert {r["term"] for r in table} == set(ACTING)
    written = json.loads((last.parents[1] / "gains.json").read_text())["teachers"][0]
    assert written["gains"] == gains
    assert torch.load(student.trainer.best, weights_only=False)["mkd"]["teachers"] == [written]
    assert not last.with_name("mkd.pt").exists()


@pytest.mark.slow
def test_a_teacher_without_an_active_term_is_refused_and_leaves_nothing_behind(
    train: Any, tiny_detector: Any, tmp_path: Path
) -> None:
    stranger = YOLO(tiny_detector.pt)
    stranger.model.names = {0: "ship", 1: "car", 2: "tree"}
    stranger.save(tmp_path / "stranger.pt")
    with pytest.raises(BadInput, match=r"no distillation term .*stranger.* none of this data's classes"):
        train(trainer=MKDTrainer.using(tmp_path / "stranger.pt", **{**OFF, "soft": 1.0}))
    assert not (tmp_path / "run").exists()


def test_a_ddp_worker_does_not_count_its_batches_twice(
    untrained_detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilling = MKDTrainer.using(untrained_detector.pt)
    overrides = {"model": "yolo26n.yaml", "data": untrained_detector.data, "device": "cpu", "project": str(tmp_path)}
    parent = distilling(overrides=overrides)
    worker = distilling(overrides=overrides, _callbacks=parent.callbacks)
    counted: list[Any] = []
    monkeypatch.setattr(DistillationSession, "end_batch", lambda self: counted.append(self))
    worker.run_callbacks("on_train_batch_end")
    assert counted == [worker.kd]


def test_adapters_get_the_mean_gradient_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)])
    adapters[0].weight.grad = torch.tensor([[1.0, 2.0]])  # the other layer has no gradient on this rank
    trainer = MKDTrainer.__new__(MKDTrainer)
    trainer.world_size = 2
    trainer.kd = DistillationSession(trainer, (), {})
    trainer.kd.adapters = adapters
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda grad: grad.add_(3.0))  # the other rank's is 3
    monkeypatch.setattr(host.DetectionTrainer, "optimizer_step", lambda self: None)
    trainer.optimizer_step()
    assert adapters[0].weight.grad.tolist() == [[2.0, 2.5]]
    assert adapters[1].weight.grad.tolist() == [[1.5, 1.5]]


def test_a_trainer_without_a_teacher_is_refused_with_advice(untrained_detector: Any) -> None:
    with pytest.raises(BadInput, match=r"MKDTrainer\.using\(teacher="):
        YOLO(untrained_detector.student).train(trainer=MKDTrainer, data=untrained_detector.data)


@pytest.mark.parametrize("gain", [-1, True, float("nan"), "much"])
def test_a_gain_must_be_a_number_of_0_or_more(untrained_detector: Any, gain: Any) -> None:
    with pytest.raises(BadInput, match=r"attention=.* must be .*at least 0"):
        MKDTrainer.using(untrained_detector.pt, attention=gain)


def test_a_misspelt_gain_names_its_neighbour(untrained_detector: Any) -> None:
    with pytest.raises(BadInput, match="did you mean guidance="):
        MKDTrainer.using(untrained_detector.pt, guidence=1)


class TestBadTeacher:
    def test_a_missing_file_is_named_with_the_places_searched(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"teacher=.*no such file; looked in"):
            MKDTrainer.using(tmp_path / "gone.pt")

    def test_a_checkpoint_of_something_else(self, tmp_path: Path) -> None:
        torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "linear.pt")
        with pytest.raises(BadInput, match=r"\(Linear, .* must be a YOLO model of the task detect, segment, pose, obb"):
            MKDTrainer.using(tmp_path / "linear.pt")

    def test_a_corrupted_file(self, tmp_path: Path) -> None:
        (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
        with pytest.raises(BadInput, match="cannot be read as an Ultralytics checkpoint"):
            MKDTrainer.using(tmp_path / "bad.pt")

    def test_a_classifier(self, tmp_path: Path) -> None:
        YOLO("yolo11n-cls.yaml").save(tmp_path / "other.pt")
        with pytest.raises(BadInput, match="must be a YOLO model of the task detect, segment, pose, obb"):
            MKDTrainer.using(tmp_path / "other.pt")

    def test_a_fused_model(self, untrained_detector: Any, tmp_path: Path) -> None:
        fused = YOLO(untrained_detector.pt)
        fused.fuse()
        fused.save(tmp_path / "fused.pt")
        with pytest.raises(BadInput, match="fused"):
            MKDTrainer.using(tmp_path / "fused.pt")

    def test_an_architecture_without_weights(self) -> None:
        with pytest.raises(BadInput, match="untrained"):
            MKDTrainer.using("yolo26n.yaml")


@pytest.mark.slow
def test_a_compiled_student_has_the_same_terms_and_gains(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graphs of torch.compile but not its code generation, which takes ten minutes on a CPU."""
    original, compiled = torch.compile, []

    def without_code(model: Any, mode: str, backend: str) -> Any:
        compiled.append(model)
        return original(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_code)
    plain = train({}, name="plain", epochs=1)
    fast = train({}, name="fast", epochs=1, compile=True)
    assert len(compiled) == 1
    for name in ACTING:
        assert float(rows(fast)[0][f"kd/{name}"]) == pytest.approx(float(rows(plain)[0][f"kd/{name}"]), rel=0.02), name
    gains = [t.kd.distillers[0].balancer.gains for t in (plain, fast)]
    assert gains[1] == pytest.approx(gains[0], rel=0.05)


@pytest.mark.slow
def test_a_recovery_from_nan_keeps_adapters_gains_and_the_table_of_shares(
    train: Any, tiny_detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_mkd.distill.criterion.EVERY", 1)  # shares of each epoch

    class Stumbling(MKDTrainer.using(tiny_detector.pt, until=1)):  # type: ignore[misc]
        def _handle_nan_recovery(self, epoch: int) -> bool:
            if epoch == 1 and not self.nan_recovery_attempts:
                self.loss = self.loss * float("nan")
            return bool(super()._handle_nan_recovery(epoch))

    trainer = train(trainer=Stumbling, epochs=3)
    with open(trainer.save_dir / "shares.csv", encoding="utf-8") as f:
        epochs = [row["epoch"] for row in csv.DictReader(f) if row["term"] == "soft"]
    assert epochs == ["1", "2", "2", "3"]  # the second was repeated
    assert [r["epoch"] for r in rows(trainer)] == ["1", "2", "3"]
    assert float(rows(trainer)[2]["kd/attention"]) > 0
