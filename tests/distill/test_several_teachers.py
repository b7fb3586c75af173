"""Several teachers: their mean, class by class, and one after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_mkd.distill.criterion import Criterion, Progress
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.ensemble import EnsembleTeacher, ensemble_spec, mean_map
from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.sources import checksum, find_teachers, groups_of, mappings_of, refuse_options
from yolo_mkd.host.spec import LayerSpec, ModelSpec
from yolo_mkd.knowledge import Knowledge, LossWeights, Outputs, Targets
from yolo_mkd.session import DistillationSession
from yolo_mkd.settings import BadInput, defaults

NAMES = {0: "car", 1: "person"}
LAYERS = {
    f"{place}_p{p}": LayerSpec(i, 4, 64 >> p, 64 >> p)
    for i, p in enumerate((3, 4, 5))
    for place in ("backbone", "neck")
}
LEVELS = {8: (8, 8), 16: (4, 4), 32: (2, 2)}
ANCHORS = 64 + 16 + 4


def spec(names: dict[int, str] = NAMES, **changes: Any) -> ModelSpec:
    return replace(ModelSpec(names, (8, 16, 32), ("one2many",), 1, False, LAYERS, 3, 100), **changes)


class Fixed:
    """A teacher that gives the same score of each class and the same box at every anchor."""

    def __init__(self, scores: list[float], side: float, seed: int = 0):
        self.name, self.scores, self.side = f"fixed{seed}", scores, side
        generator = torch.Generator().manual_seed(seed)
        self.features = {r: torch.rand(1, 4, s.rows, s.columns, generator=generator) for r, s in LAYERS.items()}

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        logits = torch.tensor(self.scores).logit()[None, :, None].expand(1, -1, ANCHORS)
        return Knowledge(
            {"one2many": Outputs(logits, torch.full((1, 4, ANCHORS), self.side))}, dict(self.features), dict(LEVELS)
        )

    def prefetch(self, batch: dict[str, Any]) -> None: ...

    def flush(self) -> None: ...


BATCH = {"img": torch.zeros(1, 3, 64, 64)}


def mean_of(teachers: list[Fixed], specs: list[ModelSpec], student: ModelSpec | None = None) -> Knowledge:
    student = student or spec()
    matches = [Match.of(student, each) for each in specs]
    return EnsembleTeacher(teachers, matches, ensemble_spec(student, specs))(BATCH)


def test_scores_are_averaged_and_boxes_weighted_by_score() -> None:
    found = mean_of([Fixed([0.8, 0.1], 1.0), Fixed([0.2, 0.3], 3.0)], [spec(), spec()]).branches["one2many"]
    assert found.logits[0, :, 5].sigmoid().tolist() == pytest.approx([0.5, 0.2], abs=1e-6)
    # the best scores are 0.8 and 0.3, so the sides are (0.8 x 1 + 0.3 x 3) / 1.1
    assert found.distances[0, :, 5].tolist() == pytest.approx([1.7 / 1.1] * 4, abs=1e-6)


def test_teachers_of_other_classes_together_cover_the_data_s() -> None:
    cars, people = spec({0: "car"}), spec({0: "tree", 1: "person"})
    covered = ensemble_spec(spec(), [cars, people])
    assert covered.names == NAMES
    found = mean_of([Fixed([0.9], 1.0), Fixed([0.7, 0.4], 3.0)], [cars, people]).branches["one2many"]
    assert found.logits[0, :, 0].sigmoid().tolist() == pytest.approx([0.9, 0.4], abs=1e-6)
    # the tree's 0.7 is of no class of the data, so the second teacher's box counts 0.4
    assert found.distances[0, 0, 0].item() == pytest.approx((0.9 * 1 + 0.4 * 3) / 1.3, abs=1e-6)


def test_two_equal_teachers_give_the_losses_of_one() -> None:
    asked = {name: float(defaults()[name]) for name in ("soft", "soft_box", "attention", "relation")}
    student, teacher = Fixed([0.3, 0.6], 2.0, seed=1)(BATCH), Fixed([0.8, 0.1], 1.0)
    one = Distiller(spec(), spec(), asked)
    several = Distiller(spec(), ensemble_spec(spec(), [spec(), spec()]), asked)
    targets, weights = Targets(torch.zeros(0, 4), torch.zeros(0)), LossWeights()
    alone = one.losses(student, teacher(BATCH), targets, weights)
    both = several.losses(student, mean_of([teacher, teacher], [spec(), spec()]), targets, weights)
    assert set(both) == set(alone) == set(asked)
    for name, value in both.items():
        assert value.item() == pytest.approx(alone[name].item(), abs=1e-5), name


def test_features_of_several_teachers_have_no_mean() -> None:
    asked = {name: 1.0 for name in TERMS}
    several = Distiller(spec(), ensemble_spec(spec(), [spec(), spec(parameters=50)]), asked)
    assert {t.name for t in several.acting} == {"soft", "soft_box", "attention", "relation", "error_focus"}
    assert several.term("guidance").why_not.startswith("features of several teachers have no mean")
    assert not several.match.explores
    assert several.match.teacher.parameters == 150


def test_teachers_without_a_class_of_the_data_teach_the_hidden_layers_together() -> None:
    dogs, trees = spec({0: "dog"}), spec({0: "tree"})
    asked = dict.fromkeys(("soft", "error_focus", "attention", "relation"), 1.0)
    several = Distiller(spec(), ensemble_spec(spec(), [dogs, trees]), asked)
    assert {t.name for t in several.acting} == {"attention", "relation"}
    for name in ("soft", "error_focus"):
        assert several.term(name).why_not == "no teacher has a head with classes and strides of the student's"
    trainer = SimpleNamespace(args=SimpleNamespace(imgsz=64))
    session = DistillationSession(trainer, [], {"teacher_imgsz": None})
    session.spec, session.distillers = spec(), [several]
    assert session.side_multiple == 32
    student, mean = (
        Fixed([0.3, 0.6], 2.0, seed=1)(BATCH),
        mean_of([Fixed([0.8], 1.0), Fixed([0.1], 1.0)], [dogs, trees]),
    )
    losses = several.losses(student, mean, Targets(torch.zeros(0, 4), torch.zeros(0)), LossWeights())
    assert losses["attention"] > 0 and not mean.branches


def test_attention_maps_are_scaled_before_their_mean() -> None:
    a, b = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[300.0, 100.0]]])
    assert mean_map([a, b]).tolist() == [[[1.0, 1.0]]]


def test_a_teacher_without_layers_counts_for_the_head_only() -> None:
    boxes = spec(layers={}, origin="boxes")
    together = ensemble_spec(spec(), [spec(), boxes])
    assert set(together.layers) == set(LAYERS)
    assert Distiller(spec(), boxes, {"attention": 1.0, "soft": 1.0}).term("attention").why_not == (
        "the teacher has no hidden layers"
    )


# One after another


def criterion(in_turn: bool, count: int = 2) -> Criterion:
    distillers = [SimpleNamespace(acting=[], name=i) for i in range(count)]
    schedule = Schedule.of(epochs=12, warmup_epochs=3, until=1.0)
    detection: Any = SimpleNamespace()
    made: Any = Criterion(detection, detection, distillers, schedule, Progress(), [], 0, in_turn)  # type: ignore[arg-type]
    return made


def test_teachers_in_turn_share_the_distilled_epochs() -> None:
    made = criterion(in_turn=True)
    order = []
    for epoch in range(12):
        made.progress.epoch = epoch
        order.append(made.distillers.index(made.distiller))
    assert order == [0] * 6 + [1] * 6
    assert (made.fitted(0), made.fitted(1)) == (2.0, 8.0)  # a third of each one's six epochs


def test_drawn_teachers_are_fitted_at_once() -> None:
    made = criterion(in_turn=False)
    assert made.fitted(0) == made.fitted(1) == made.schedule.fitted == 3


# What is asked for


def test_a_path_with_a_comma_is_one_teacher(tmp_path: Path) -> None:
    file, folder = tmp_path / "a,b.json", tmp_path / "labels"
    file.write_text("[]")
    folder.mkdir()
    assert find_teachers(f"{file},{folder}") == [str(file), str(folder)]
    assert find_teachers([str(file)]) == [str(file)]


@pytest.mark.parametrize(
    ("named", "message"), [("missing.json", "no such file: give a detector's results"), ("", "teacher= is empty")]
)
def test_a_teacher_that_is_not_there_is_refused(named: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        find_teachers(named)


def test_a_teacher_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BadInput, match="twice: give each teacher once"):
        find_teachers([str(tmp_path / "a.json"), str(tmp_path / "a.json")])


def test_teachers_are_grouped_as_they_act() -> None:
    assert groups_of(["a", "b"], "mean") == [["a", "b"]]
    assert groups_of(["a", "b"], "drawn") == groups_of(["a", "b"], "sequence") == [["a"], ["b"]]


def test_mapping_files_are_for_all_boxes_or_one_each() -> None:
    boxes = ["a.pt", "b.json", "c.json"]
    assert mappings_of(boxes, "m.yaml") == {"b.json": "m.yaml", "c.json": "m.yaml"}
    assert mappings_of(boxes, "none,n.yaml") == {"c.json": "n.yaml"}
    assert mappings_of(boxes, None) == {}
    with pytest.raises(BadInput, match="has 3 files for 2 teachers of boxes"):
        mappings_of(boxes, "a.yaml,b.yaml,c.yaml")
    with pytest.raises(BadInput, match="no teacher is one: leave it out"):
        mappings_of(["a.pt"], "m.yaml")


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ({"record": True}, "detect", "is boxes already: leave record= out"),
        ({"record": False}, "segment", "has boxes only, and the student is of the task segment"),
    ],
)
def test_boxes_refuse_what_they_cannot_do(options: dict[str, Any], task: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        refuse_options(["a.json"], options, task)


def test_a_checksum_covers_every_label_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    first = checksum(str(tmp_path))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    second = checksum(str(tmp_path))
    assert len({first, second, checksum(str(tmp_path), str(tmp_path))}) == 3
