"""The recorded teacher in real training: asked once about each view, replayed to every later epoch, seed and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from yolo_mkd import host
from yolo_mkd.cache.teacher import CachedTeacher, layout_of, open_cache
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import LossWeights, Targets
from yolo_mkd.settings import BadInput, preset
from yolo_mkd.trainer import MKDTrainer

ASKED = {name: float(share) for name, share in preset("recorded").items() if name in preset("nominal")} | {"soft": 0.5}


@pytest.fixture
def train(tiny_detector: Any, tmp_path: Path) -> Any:
    """Train the tiny student for four epochs of two views, from scratch."""

    def run(name: str = "run", record: Any = None, **arguments: Any) -> Any:
        mine = {k: arguments.pop(k) for k in ("views", "record_limit", "guidance") if k in arguments}
        place = str(tmp_path / "records") if record is None else record
        taught = MKDTrainer.using(tiny_detector.pt, preset="recorded", record=place, **{"views": 2, **mine})
        student = YOLO(tiny_detector.pt.parents[2] / "yolo26n.yaml")
        common: dict[str, Any] = {
            "data": tiny_detector.data, "imgsz": 64, "epochs": 4, "batch": 8, "nbs": 8, "fraction": 0.25,
            "plots": False, "optimizer": "AdamW", "lr0": 0.002, "close_mosaic": 0, "warmup_epochs": 0.5, "val": False,
            "device": "cpu", "project": str(tmp_path), "name": name, "exist_ok": True, "verbose": False,
        }  # fmt: skip
        student.train(trainer=taught, **{**common, **arguments})
        return student.trainer

    return run


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(host.load_detector("model", str(trainer.last)).state_dict())


def test_the_teacher_speaks_once_about_each_view_and_later_runs_replay_it_exactly(train: Any, asked: list[int]) -> None:
    first = train("first")
    assert sum(asked) == 24 * 2  # 24 images in two views, though shown in four epochs
    asked.clear()
    again = train("again")
    other = train("other", seed=5)  # another start and order, the same views
    assert asked == []
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(first).items())
    assert any(not torch.equal(v, weights(other)[k]) for k, v in weights(first).items())
    assert again.kd.distillers[0].teacher.teacher is None  # and its memory is free


def test_only_what_is_missing_is_asked(train: Any, asked: list[int]) -> None:
    train("one", epochs=1)  # records the first of two views
    assert sum(asked) == 24
    asked.clear()
    train("four")
    assert sum(asked) == 24


def test_views_after_mosaic_has_closed_are_recorded_on_their_own(train: Any, asked: list[int]) -> None:
    train("closed", close_mosaic=4)  # the knowledge is on for half of the run, in which mosaic is closed
    assert sum(asked) == 24 * 2
    asked.clear()
    train("open")
    assert sum(asked) == 24 * 2


def test_a_full_record_goes_on_asking(train: Any, asked: list[int]) -> None:
    trainer = train("small", record_limit=1e-5)  # 10 kB, about a record
    assert trainer.kd.distillers[0].teacher.store.full
    assert sum(asked) > 24 * 3


def test_another_augmentation_in_the_same_folder_is_refused_by_name(train: Any, tmp_path: Path) -> None:
    train("first", epochs=1)
    with pytest.raises(BadInput, match=r"augmentation\.degrees: it has 0\.0, this run 10"):
        train("turned", epochs=1, degrees=10)
    assert not (tmp_path / "turned").exists()
    headers = [json.loads(p.read_text()) for p in (tmp_path / "records").rglob("record.json")]
    assert [h["augmentation"]["degrees"] for h in headers] == [0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": 1.0}, r"guidance need: switch them off \(guidance=0, or preset=recorded\)"),
        ({"rect": True}, "rect=True"),
        ({"multi_scale": 0.5}, "multi_scale=0.5"),
    ],
)
def test_what_cannot_be_replayed_is_refused_and_leaves_no_run(
    train: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        train(**arguments)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pictures(tiny_detector: Any) -> torch.Tensor:
    import cv2
    import numpy as np

    read = [cv2.resize(cv2.imread(str(p)), (64, 64))[..., ::-1].transpose(2, 0, 1) / 255 for p in tiny_detector.images]
    return torch.tensor(np.stack(read), dtype=torch.float32)


@pytest.fixture
def teacher(tiny_detector: Any) -> LiveTeacher:
    model = host.load_detector("teacher", str(tiny_detector.pt))
    spec = host.model_spec(model, 64)
    return LiveTeacher("t", host.freeze(model), spec, list(layout_of(spec).roles))


@pytest.fixture
def recorded(teacher: LiveTeacher, tiny_detector: Any, tmp_path: Path) -> CachedTeacher:
    return open_cache(str(tmp_path), teacher, str(tiny_detector.pt), {"views": 1}, 16, [0], None)


def test_each_term_finds_in_the_record_what_it_finds_in_the_teacher(
    tiny_detector: Any, teacher: LiveTeacher, recorded: CachedTeacher, pictures: torch.Tensor
) -> None:
    torch.manual_seed(0)
    student = host.build(str(tiny_detector.pt.parents[2] / "yolo26n.yaml"), 3)
    spec = teacher.extractor.spec
    student.names = spec.names
    distiller = Distiller(host.model_spec(student, 64), spec, ASKED)
    ks = FeatureExtractor(student.train(), distiller.match.student, distiller.roles).collect(student(pictures))
    labels = Targets(torch.zeros(0, 4), torch.zeros(0)), LossWeights()
    live = distiller.losses(ks, teacher.infer(pictures), *labels)
    batch = {"img": pictures, "code": list(range(16))}
    for kt in (recorded(batch), recorded(batch)):  # first noted, then read
        assert kt.features == {}
        found = distiller.losses(ks, kt, *labels)
        assert set(found) == set(live) == {"soft", "soft_box", "attention", "relation"}
        for name, value in live.items():
            assert found[name].item() == pytest.approx(value.item(), rel=0.01), name
    assert recorded.computed == 16


def test_a_batch_is_put_together_from_the_record_and_the_teacher_in_its_own_order(
    recorded: CachedTeacher, pictures: torch.Tensor
) -> None:
    whole = recorded({"img": pictures[:6], "code": [0, 1, 2, 3, 4, 5]})
    order = [9, 4, 0, 8, 2]
    mixed = recorded({"img": pictures[order], "code": order})
    assert recorded.computed == 6 + 2
    for place, code in ((1, 4), (2, 0), (4, 2)):
        assert torch.equal(mixed.branches["one2many"].logits[place], whole.branches["one2many"].logits[code])
        assert torch.equal(mixed.maps["neck_p3"][place], whole.maps["neck_p3"][code])


def test_a_teacher_that_has_left_is_called_back_for_a_view_that_nobody_foresaw(
    recorded: CachedTeacher, pictures: torch.Tensor
) -> None:
    first = recorded({"img": pictures[:2], "code": [0, 1]})
    recorded.teacher = None
    again = recorded({"img": pictures[:3], "code": [0, 1, 17]})
    assert recorded.computed == 3
    for name, branch in first.branches.items():
        assert torch.equal(again.branches[name].logits[:2], branch.logits)
