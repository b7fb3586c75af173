"""Images without labels: which are left out, which losses use them, and that the labelled batches stay the same."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yolo_mkd import chain, host
from yolo_mkd.cache.unlabelled import confidence_text, filter_images, find_images
from yolo_mkd.distill.criterion import Criterion, image_weights
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.attention import map_loss
from yolo_mkd.knowledge.relation import relation_loss
from yolo_mkd.settings import BadInput, preset
from yolo_mkd.trainer import MKDTrainer

OFF = dict.fromkeys(TERMS, 0.0)


def picture(seed: int, shape: tuple[int, int] = (96, 128)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def pool(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images without their labels, under other names."""
    folder = tmp_path_factory.mktemp("pool")
    train = sorted((tiny_detector.data.parent / "images" / "train").glob("*.png"))
    for i, file in enumerate(train[:20]):
        shutil.copy(file, folder / f"frame{i}.png")
    return folder


# What is trained on


def test_images_of_val_are_left_out_by_their_bytes_and_by_their_pixels(tmp_path: Path) -> None:
    for name in ("val", "same", "other"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "val/a.png"), picture(0))
    cv2.imwrite(str(tmp_path / "val/b.png"), picture(1))
    shutil.copy(tmp_path / "val/a.png", tmp_path / "same/copy.png")
    cv2.imwrite(str(tmp_path / "same/b.bmp"), picture(1))  # another format of the same pixels
    cv2.imwrite(str(tmp_path / "other/c.png"), picture(2))
    (tmp_path / "other/d.jpg").write_bytes(b"no image")
    (tmp_path / "other/e.png").write_bytes((tmp_path / "val/a.png").read_bytes()[:200])
    images = [*find_images(tmp_path / "same"), *find_images(tmp_path / "other")]
    found = filter_images(images, find_images(tmp_path / "val"))
    assert [p.name for p in found.kept] == ["c.png"]
    assert sorted(p.name for p in found.held_out) == ["b.bmp", "copy.png"]
    assert sorted(p.name for p in found.unreadable) == ["d.jpg", "e.png"]
    assert "2 left out, which are in val or test" in str(found) and "2 cannot be read" in str(found)


def test_a_folder_a_list_and_a_data_set_name_the_same_images(untrained_detector: Any, tmp_path: Path) -> None:
    folder = untrained_detector.data.parent / "images" / "train"
    lines = tmp_path / "list.txt"
    lines.write_text("\n".join(map(str, sorted(folder.glob("*.png")))))
    found = find_images(folder)
    assert len(found) == 96
    assert found == find_images(lines) == find_images(untrained_detector.data)


@pytest.mark.parametrize(("name", "message"), [("gone", "no such folder"), ("empty", "no images in it")])
def test_nothing_there_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=message):
        find_images(tmp_path / name)


# Losses


def test_a_weighted_mean_counts_an_image_as_much_as_its_weight() -> None:
    es, et = torch.rand(3, 5, 5), torch.rand(3, 5, 5)
    alone = [map_loss(es[i : i + 1], et[i : i + 1]) for i in range(3)]
    weight = torch.tensor([1.0, 0.5, 0.0])
    assert map_loss(es, et, weight).item() == pytest.approx((alone[0] + 0.5 * alone[1]).item() / 1.5, rel=1e-5)
    rs, rt = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    alone = [relation_loss(rs[i : i + 1], rt[i : i + 1]) for i in range(3)]
    assert relation_loss(rs, rt, weight).item() == pytest.approx((alone[0] + 0.5 * alone[1]).item() / 1.5, rel=1e-5)
    assert relation_loss(rs, rt, torch.ones(3)).item() == pytest.approx(relation_loss(rs, rt).item(), rel=1e-5)


def test_an_unlabelled_image_weighs_as_much_as_the_teachers_best_score_in_it() -> None:
    scores = torch.tensor([[0.1, 0.2], [0.7, 0.3], [0.02, 0.01]])  # B A
    kt = Knowledge({"one2many": Outputs(torch.logit(scores).unsqueeze(1), torch.zeros(3, 4, 2))})
    weight = image_weights(kt, labelled=1, images=3)
    assert weight is not None and torch.allclose(weight, torch.tensor([1.0, 0.7, 0.02]))
    assert image_weights(Knowledge({}), 1, 3) is None


def test_knowledge_is_split_and_joined_along_the_images() -> None:
    def some(count: int) -> Knowledge:
        outputs = Outputs(torch.rand(count, 2, 5), torch.rand(count, 4, 5), torch.rand(count, 4, 3, 5))
        roles = {"neck_p3": torch.rand(count, 6, 4, 4)}
        relations = (("neck_p3",), torch.rand(count, 1, 1))
        return Knowledge({"one2many": outputs}, roles, {8: (4, 4)}, {"neck_p3": torch.rand(count, 4, 4)}, relations)

    a, b = some(2), some(3)
    both = a.joined_with(b)
    again = both.of_first(2)
    for k in ("logits", "distances", "bins"):
        assert torch.equal(getattr(again.branches["one2many"], k), getattr(a.branches["one2many"], k))
        assert torch.equal(getattr(both.branches["one2many"], k)[2:], getattr(b.branches["one2many"], k))
    assert torch.equal(both.features["neck_p3"][2:], b.features["neck_p3"])
    assert torch.equal(again.maps["neck_p3"], a.maps["neck_p3"])
    assert both.relations is not None and a.relations is not None
    assert torch.equal(both.relations[1][:2], a.relations[1])


# Training


FIXED = {"until": 1, "calibrate": False}  # distilled to the end with the gains as they are


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the criterion took and returned, batch by batch."""
    calls: list[dict[str, Any]] = []
    inner = Criterion.__call__

    def keep(self: Any, preds: Any, batch: Any) -> Any:
        loss, items = inner(self, preds, batch)
        n = batch.get("labelled", len(batch["img"]))
        alone, _ = self.detection(host.of_first(preds, n), batch)
        calls.append({"images": len(batch["img"]), "labelled": n, "loss": loss.detach(), "alone": alone.detach()})
        calls[-1] |= {"first": batch["img"][:n].clone(), "others": batch["img"][n:].clone()}
        return loss, items

    monkeypatch.setattr(Criterion, "__call__", keep)
    return calls


@pytest.mark.slow
def test_the_detection_loss_is_of_the_labelled_images_only(train: Any, batches: list[Any], pool: Path) -> None:
    train({**FIXED, "unlabelled": str(pool)})
    assert {(c["images"], c["labelled"]) for c in batches} == {(16, 8)}
    assert len(batches) == 6  # an epoch is one pass over the 24 labelled images
    for call in batches:
        assert torch.equal(call["loss"][:-1], call["alone"])


@pytest.mark.slow
def test_the_nominal_batch_counts_all_images_of_an_update(train: Any, pool: Path) -> None:
    gathered, decays = [], []
    for options in ({}, {"unlabelled": str(pool)}):
        trainer = train({"until": 1, **options}, nbs=16, warmup_epochs=0, epochs=1)
        gathered.append(trainer.accumulate * (2 if options else 1))
        decays.append({g["weight_decay"] for g in trainer.optimizer.param_groups})
        assert trainer.args.nbs == 16
    assert gathered == [2, 2]  # batches of 8: 16 labelled images an update, or 8 and 8
    assert decays[0] == decays[1] != {0.0}


@pytest.mark.slow
def test_the_labelled_images_are_those_of_a_run_without_others(train: Any, batches: list[Any], pool: Path) -> None:
    train({**FIXED, "unlabelled": str(pool), "unlabelled_ratio": 0.5}, name="with")
    joined = list(batches)
    batches.clear()
    train(FIXED, name="without")
    assert {c["images"] for c in joined} == {12} and {c["images"] for c in batches} == {8}
    assert all(torch.equal(a["first"], b["first"]) for a, b in zip(joined, batches, strict=True))


@pytest.mark.slow
def test_every_unlabelled_image_comes_once_before_one_comes_again_and_each_time_as_another_view(
    train: Any, batches: list[Any], pool: Path
) -> None:
    trainer = train({**FIXED, "unlabelled": str(pool), "unlabelled_ratio": 0.5}, epochs=4)
    assert len(trainer.kd.unlabelled.views) == 20 and trainer.kd.unlabelled.batch == 4
    shown = torch.cat([c["others"] for c in batches])
    assert len(shown) == 48
    assert len({x.numpy().tobytes() for x in shown}) == 48


@pytest.mark.slow
def test_mosaics_of_unlabelled_images_hold_no_labelled_image(train: Any, tmp_path: Path, batches: list[Any]) -> None:
    for i in range(8):  # black frames: whatever is not black or padding is from elsewhere
        (tmp_path / "black").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"black/{i}.png"), np.zeros((96, 128, 3), np.uint8))
    train({**FIXED, "unlabelled": str(tmp_path / "black")}, epochs=1, hsv_h=0, hsv_s=0, hsv_v=0)
    others = torch.cat([c["others"] for c in batches])
    assert others.max().item() <= 114 / 255 + 1e-3
    assert torch.cat([c["first"] for c in batches]).max().item() > 0.8


@pytest.mark.slow
def test_nothing_is_joined_once_distillation_is_off(train: Any, batches: list[Any], pool: Path) -> None:
    train({**FIXED, "until": 0.5, "unlabelled": str(pool)}, epochs=4, close_mosaic=2)
    assert [c["images"] for c in batches] == [16] * 6 + [8] * 6


@pytest.mark.slow
def test_the_terms_of_joined_batches_act_and_their_gains_are_measured(train: Any, pool: Path) -> None:
    trainer = train({"until": 1, "unlabelled": str(pool)})
    with open(trainer.csv, encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert all(float(rows[-1][f"kd/{n}"]) > 0 for n in ("soft", "soft_box", "attention", "relation", "guidance"))
    assert (Path(trainer.save_dir) / "gains.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["focal_global", "masked_generation", "channel_wise", "score_l2"])
def test_every_baseline_takes_joined_batches(train: Any, pool: Path, name: str) -> None:
    trainer = train({**FIXED, **OFF, name: 1.0, "unlabelled": str(pool)}, epochs=1)
    with open(trainer.csv, encoding="utf-8") as f:
        assert float(next(csv.DictReader(f))[f"kd/{name}"]) > 0


@pytest.mark.slow
def test_the_cache_stores_unlabelled_views_too(train: Any, pool: Path, tmp_path: Path, inferred: list[int]) -> None:
    cache = {"record": str(tmp_path / "r"), "views": 1, "unlabelled": str(pool)}
    options = {**preset("recorded"), "until": 1, **cache}
    first = train(options, name="first", epochs=4)
    assert sum(inferred) == 20 + 24 + 20  # for the teacher's confidence, then each view once
    inferred.clear()
    again = train(options, name="again", epochs=4)
    assert sum(inferred) == 20
    ours, theirs = (dict(host.load_detector("model", str(t.last)).state_dict()) for t in (first, again))
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.mark.slow
def test_with_an_assistant_each_teachers_caches_count_the_views_of_their_own_images(
    tiny_detector: Any, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = Path(shutil.copy(tiny_detector.pt, tmp_path / "assistant.pt"))
    cache = {"record": str(tmp_path / "r"), "views": 8, "unlabelled": str(pool)}
    distilling = MKDTrainer.using(tiny_detector.pt, assistant, **{**preset("recorded"), "until": 0.5, **cache})
    run = {"data": tiny_detector.data, "imgsz": 64, "epochs": 4, "batch": 8, "fraction": 0.25, "close_mosaic": 2}
    quiet = {"device": "cpu", "plots": False, "project": str(tmp_path), "verbose": False}
    logged: list[str] = []
    monkeypatch.setattr(host.LOGGER, "info", logged.append)
    trainer = distilling(overrides={"model": str(tiny_detector.student), **run, **quiet})
    trainer._setup_train()
    found = [re.search(r"cache of (\S+) in \S+: 0 of the run's (\d+) views", line) for line in logged]
    # distilled for two epochs: 2 views of 24 labelled images; the 20 unlabelled ones come round three times in them
    assert [(m[1], int(m[2])) for m in found if m] == [
        *(("run/weights/last.pt", count) for count in (2 * 24, 3 * 20)),
        *(("assistant.pt", count) for count in (2 * 24, 3 * 20)),
    ]


@pytest.mark.slow
def test_a_chain_trains_its_stages_with_unlabelled_images(
    tiny_detector: Any, pool: Path, tmp_path: Path, batches: list[Any]
) -> None:
    student = str(tiny_detector.student)
    run = {"imgsz": 64, "epochs": 1, "batch": 8, "fraction": 0.25, "device": "cpu", "plots": False, "val": False}
    chain.train(
        **{"data": str(tiny_detector.data), "model": student, "teacher": str(tiny_detector.pt), "assistant": None},
        **{**run, "project": str(tmp_path), "name": "chain", "unlabelled": str(pool)},
    )
    assert {c["images"] for c in batches} == {16}


# Before training


def test_images_on_which_the_teacher_is_rarely_confident_are_a_warning() -> None:
    assert confidence_text("t", (2, 32)) == (
        "t detects an object with a score of 0.25 or more in 2 of 32 unlabelled images: the teacher is rarely "
        "confident on them: they look unlike its training data or show other classes",
        True,
    )
    assert confidence_text("t", (4, 32)) == (
        "t detects an object with a score of 0.25 or more in 4 of 32 unlabelled images",
        False,
    )
    assert confidence_text("t", None) == (
        "t has no scores at anchors, so unlabelled images count as much as labelled ones",
        False,
    )


@pytest.mark.slow
def test_the_teacher_is_confident_on_drawn_objects_and_not_on_noise(train: Any, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"noise/{i}.png"), picture(i) // 8 + 110)
    found = []
    for place in (pool, tmp_path / "noise"):
        session = train({**FIXED, "unlabelled": str(place)}, epochs=1, mosaic=0.0).kd
        found.append(session.unlabelled.confident(session.distillers[0].teacher, torch.device("cpu")))
    assert found[0][1] == 20 and found[1][1] == 8
    assert found[0][0] / 20 > found[1][0] / 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rect": True}, "rect=True"),
        ({"batch": 24, "fraction": 1.0}, "has 20 images, fewer than the 24 of a batch"),
    ],
)
def test_what_cannot_be_joined_is_refused(train: Any, pool: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        train({"until": 1, "unlabelled": str(pool)}, **changed)


@pytest.mark.parametrize("ratio", [0, -1, True, "much", float("inf")])
def test_a_ratio_must_be_a_number_above_0(ratio: Any, tiny_detector: Any) -> None:
    with pytest.raises(BadInput, match=rf"^unlabelled_ratio={ratio} .*for example unlabelled_ratio=1\.0$"):
        MKDTrainer.using(tiny_detector.pt, unlabelled_ratio=ratio)
