"""The cached teacher in real training: run once for each view, read from disk in every later epoch, seed and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_mkd import host
from yolo_mkd.cache.teacher import CachedTeacher, layout_of, open_cache
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import LossWeights, Targets
from yolo_mkd.settings import BadInput, preset

MKD = ("soft", "soft_box", "soft_dfl", "attention", "relation", "guidance", "exploration")
SHARES = {name: float(share) for name, share in preset("recorded").items() if name in MKD} | {"soft": 0.5}


@pytest.fixture
def cached(train: Any, tmp_path: Path) -> Any:
    """Train for four epochs of two views with a teacher cache: `cached(name, options, **arguments)`."""

    def run(name: str = "run", options: dict[str, Any] | None = None, **arguments: Any) -> Any:
        own = {"preset": "recorded", "record": str(tmp_path / "caches"), "views": 2, **(options or {})}
        return train(own, name=name, **{"epochs": 4, **arguments})

    return run


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(host.load_detector("model", str(trainer.last)).state_dict())


@pytest.mark.slow
def test_the_teacher_runs_once_for_each_view_and_later_runs_repeat_exactly(cached: Any, inferred: list[int]) -> None:
    first = cached("first")
    assert sum(inferred) == 24 * 2  # 24 images in two views, though shown in four epochs
    inferred.clear()
    again = cached("again")
    other = cached("other", seed=5)  # another start and order, the same views
    assert inferred == []
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(first).items())
    assert any(not torch.equal(v, weights(other)[k]) for k, v in weights(first).items())
    assert again.kd.distillers[0].teacher.teacher is None  # and its memory is free


@pytest.mark.slow
def test_the_teacher_runs_only_for_missing_views(cached: Any, inferred: list[int]) -> None:
    cached("one", epochs=1)  # stores the first of two views
    assert sum(inferred) == 24
    inferred.clear()
    cached("four")
    assert sum(inferred) == 24


@pytest.mark.slow
def test_views_after_mosaic_has_closed_are_cached_on_their_own(cached: Any, inferred: list[int]) -> None:
    cached("closed", close_mosaic=4)  # distillation is on for half of the run, in which mosaic is closed
    assert sum(inferred) == 24 * 2
    inferred.clear()
    cached("open")
    assert sum(inferred) == 24 * 2


@pytest.mark.slow
def test_once_the_cache_is_full_the_teacher_runs_on_each_batch(cached: Any, inferred: list[int]) -> None:
    trainer = cached("small", {"record_limit": 1e-5})  # 10 kB, about one entry
    assert trainer.kd.distillers[0].teacher.store.full
    assert sum(inferred) > 24 * 3


@pytest.mark.slow
def test_another_augmentation_in_the_same_folder_is_refused_by_name(cached: Any, tmp_path: Path) -> None:
    cached("first", epochs=1)
    with pytest.raises(BadInput, match=r"augmentation\.degrees: it has 0\.0, this run 10"):
        cached("turned", epochs=1, degrees=10)
    assert not (tmp_path / "turned").exists()
    headers = [json.loads(p.read_text()) for p in (tmp_path / "caches").rglob("record.json")]
    assert [h["augmentation"]["degrees"] for h in headers] == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"options": {"guidance": 1.0}},
            r"guidance need more of the teacher: switch them off \(guidance=0, or preset=recorded\)",
        ),
        ({"rect": True}, "rect=True"),
        ({"multi_scale": 0.5}, "multi_scale=0.5"),
    ],
)
def test_what_cannot_be_cached_is_refused_and_leaves_no_run(
    cached: Any, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        cached(**changed)
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
def cache(teacher: LiveTeacher, tiny_detector: Any, tmp_path: Path) -> CachedTeacher:
    """An empty cache of one view of the 16 pictures."""
    return open_cache(str(tmp_path), teacher, str(tiny_detector.pt), {"views": 1}, 16, [0], None)


def test_each_term_is_the_same_from_the_cache_as_from_the_live_teacher(
    tiny_detector: Any, teacher: LiveTeacher, cache: CachedTeacher, pictures: torch.Tensor
) -> None:
    torch.manual_seed(0)
    student = host.build(str(tiny_detector.student), 3)
    spec = teacher.extractor.spec
    student.names = spec.names
    distiller = Distiller(host.model_spec(student, 64), spec, SHARES)
    ks = FeatureExtractor(student.train(), distiller.match.student, distiller.roles).collect(student(pictures))
    labels = Targets(torch.zeros(0, 4), torch.zeros(0)), LossWeights()
    live = distiller.losses(ks, teacher.infer(pictures), *labels)
    batch = {"img": pictures, "code": list(range(16))}
    for kt in (cache(batch), cache(batch)):  # first stored, then read
        assert kt.features == {}
        found = distiller.losses(ks, kt, *labels)
        assert set(found) == set(live) == {"soft", "soft_box", "attention", "relation"}
        for name, value in live.items():
            assert found[name].item() == pytest.approx(value.item(), rel=0.01), name
    assert cache.computed == 16


def test_a_batch_is_joined_from_the_cache_and_the_teacher_in_its_own_order(
    cache: CachedTeacher, pictures: torch.Tensor
) -> None:
    whole = cache({"img": pictures[:6], "code": [0, 1, 2, 3, 4, 5]})
    order = [9, 4, 0, 8, 2]
    mixed = cache({"img": pictures[order], "code": order})
    assert cache.computed == 6 + 2
    for place, code in ((1, 4), (2, 0), (4, 2)):
        assert torch.equal(mixed.branches["one2many"].logits[place], whole.branches["one2many"].logits[code])
        assert torch.equal(mixed.maps["neck_p3"][place], whole.maps["neck_p3"][code])


def test_damaged_views_are_computed_again_counted_and_named_in_one_warning(
    cache: CachedTeacher, teacher: LiveTeacher, pictures: torch.Tensor, tiny_detector: Any, tmp_path: Path
) -> None:
    batch = {"img": pictures, "code": list(range(16))}
    whole = cache(batch)
    cache.flush()
    (file,) = cache.store.folder.glob("*.npy")
    content = bytearray(file.read_bytes())
    for row in (2, 3, 5, 11):  # of one view each
        content[-16 * 4 - (16 - row) * cache.layout.bytes + 40] ^= 1
    file.write_bytes(content)
    again = open_cache(str(tmp_path), teacher, str(tiny_detector.pt), {"views": 1}, 16, [0], None)
    found = again(batch)
    assert again.computed == 4 and again.store.warnings == []
    for name, branch in whole.branches.items():
        assert torch.equal(found.branches[name].logits, branch.logits)
    again.flush()
    (warning,) = again.store.warnings
    assert "4 cached views were damaged" in warning
    assert "view 0 of image 2, view 0 of image 3, view 0 of image 5 and 1 more" in warning
    again.flush()
    assert len(again.store.warnings) == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_teacher_of_a_complete_cache_is_loaded_again_in_the_runs_precision_for_an_unforeseen_view(
    cache: CachedTeacher,
    teacher: LiveTeacher,
    pictures: torch.Tensor,
    tiny_detector: Any,
    tmp_path: Path,
    precision: torch.dtype,
) -> None:
    teacher.model.to(precision)
    stored = cache({"img": pictures, "code": list(range(16))})
    cache.flush()
    complete = open_cache(str(tmp_path), teacher, str(tiny_detector.pt), {"views": 1}, 16, [0], None)
    assert complete.teacher is None
    again = complete({"img": pictures[:3], "code": [0, 1, 17]})
    assert complete.computed == 1
    assert complete.teacher is not None
    assert {p.dtype for p in complete.teacher.model.parameters()} == {precision}
    for name, branch in stored.branches.items():
        assert torch.equal(again.branches[name].logits[:2], branch.logits[:2])
        assert again.branches[name].logits[2].isfinite().all()
