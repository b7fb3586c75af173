"""Images without labels: what is left out, what each loss sees of them, and that the labelled run stays itself."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO

from yolo_mkd import chain, host
from yolo_mkd.cache import unlabelled
from yolo_mkd.cache.unlabelled import find, sift, verdict
from yolo_mkd.distill.criterion import Criterion, trust
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
    found = sift([*find(tmp_path / "same"), *find(tmp_path / "other")], find(tmp_path / "val"))
    assert [p.name for p in found.kept] == ["c.png"]
    assert sorted(p.name for p in found.held_out) == ["b.bmp", "copy.png"]
    assert sorted(p.name for p in found.unreadable) == ["d.jpg", "e.png"]
    assert "2 left out, which are in val or test" in str(found) and "2 cannot be read" in str(found)


def test_a_folder_a_list_and_a_data_set_name_the_same_images(tiny_detector: Any, tmp_path: Path) -> None:
    folder = tiny_detector.data.parent / "images" / "train"
    lines = tmp_path / "list.txt"
    lines.write_text("\n".join(map(str, sorted(folder.glob("*.png")))))
    assert find(folder) == find(lines) == find(tiny_detector.data) and len(find(folder)) == 96


@pytest.mark.parametrize(("name", "message"), [("gone", "no such folder"), ("empty", "no images in it")])
def test_nothing_there_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=message):
        find(tmp_path / name)


# What the losses see


def test_a_weighted_mean_counts_an_image_as_much_as_its_weight() -> None:
    es, et = torch.rand(3, 5, 5), torch.rand(3, 5, 5)
    alone = [map_loss(es[i : i + 1], et[i : i + 1]) for i in range(3)]
    weight = torch.tensor([1.0, 0.5, 0.0])
    assert map_loss(es, et, weight).item() == pytest.approx((alone[0] + 0.5 * alone[1]).item() / 1.5, rel=1e-5)
    rs, rt = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    alone = [relation_loss(rs[i : i + 1], rt[i : i + 1]) for i in range(3)]
    assert relation_loss(rs, rt, weight).item() == pytest.approx((alone[0] + 0.5 * alone[1]).item() / 1.5, rel=1e-5)
    assert relation_loss(rs, rt, torch.ones(3)).item() == pytest.approx(relation_loss(rs, rt).item(), rel=1e-5)


def test_an_unlabelled_image_counts_as_much_as_the_teacher_is_certain_in_it() -> None:
    scores = torch.tensor([[0.1, 0.2], [0.7, 0.3], [0.02, 0.01]])  # B A
    said = Knowledge({"one2many": Outputs(torch.logit(scores).unsqueeze(1), torch.zeros(3, 4, 2))})
    weight = trust(said, labelled=1, images=3)
    assert weight is not None and torch.allclose(weight, torch.tensor([1.0, 0.7, 0.02]))
    assert trust(Knowledge({}), 1, 3) is None


def test_knowledge_is_cut_and_put_together_along_the_images() -> None:
    def some(count: int) -> Knowledge:
        outputs = Outputs(torch.rand(count, 2, 5), torch.rand(count, 4, 5), torch.rand(count, 4, 3, 5))
        roles = {"neck_p3": torch.rand(count, 6, 4, 4)}
        relations = (("neck_p3",), torch.rand(count, 1, 1))
        return Knowledge({"one2many": outputs}, roles, {8: (4, 4)}, {"neck_p3": torch.rand(count, 4, 4)}, relations)

    a, b = some(2), some(3)
    both = a.joined_with(b)
    again = both.first(2)
    for k in ("logits", "distances", "bins"):
        assert torch.equal(getattr(again.branches["one2many"], k), getattr(a.branches["one2many"], k))
        assert torch.equal(getattr(both.branches["one2many"], k)[2:], getattr(b.branches["one2many"], k))
    assert torch.equal(both.features["neck_p3"][2:], b.features["neck_p3"])
    assert torch.equal(again.maps["neck_p3"], a.maps["neck_p3"])
    assert both.relations is not None and a.relations is not None
    assert torch.equal(both.relations[1][:2], a.relations[1])


# Training


@pytest.fixture
def train(tiny_detector: Any, tmp_path: Path) -> Any:
    def run(name: str = "run", knowledge: dict[str, Any] | None = None, **arguments: Any) -> Any:
        taught = MKDTrainer.using(tiny_detector.pt, **{"until": 1, **(knowledge or {})})
        student = YOLO(arguments.pop("model", tiny_detector.pt.parents[2] / "yolo26n.yaml"))
        common: dict[str, Any] = {
            "data": tiny_detector.data, "imgsz": 64, "epochs": 2, "batch": 8, "nbs": 8, "fraction": 0.25,
            "plots": False, "optimizer": "AdamW", "lr0": 0.002, "close_mosaic": 0, "warmup_epochs": 0.5, "val": False,
            "device": "cpu", "project": str(tmp_path), "name": name, "exist_ok": True, "verbose": False,
        }  # fmt: skip
        student.train(trainer=taught, **{**common, **arguments})
        return student.trainer

    return run


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the criterion was given, batch by batch."""
    calls: list[dict[str, Any]] = []
    inner = Criterion.__call__

    def listen(self: Any, preds: Any, batch: Any) -> Any:
        loss, items = inner(self, preds, batch)
        n = batch.get("labelled", len(batch["img"]))
        alone, _ = self.detection(host.of_first(preds, n), batch)
        calls.append({"images": len(batch["img"]), "labelled": n, "loss": loss.detach(), "alone": alone.detach()})
        calls[-1] |= {"first": batch["img"][:n].clone(), "others": batch["img"][n:].clone()}
        return loss, items

    monkeypatch.setattr(Criterion, "__call__", listen)
    return calls


def test_the_detection_loss_sees_the_labelled_images_only(train: Any, heard: list[Any], pool: Path) -> None:
    train(knowledge={"unlabelled": str(pool), "calibrate": False})
    assert {(c["images"], c["labelled"]) for c in heard} == {(16, 8)}
    assert len(heard) == 6  # an epoch is one pass over the 24 labelled images
    for call in heard:
        assert torch.equal(call["loss"][:-1], call["alone"])


def test_the_nominal_batch_counts_all_images_of_an_update(train: Any, pool: Path) -> None:
    gathered, decays = [], []
    for knowledge in ({}, {"unlabelled": str(pool)}):
        trainer = train(knowledge=knowledge, nbs=16, warmup_epochs=0, epochs=1)
        gathered.append(trainer.accumulate * (2 if knowledge else 1))
        decays.append({g["weight_decay"] for g in trainer.optimizer.param_groups})
        assert trainer.args.nbs == 16
    assert gathered == [2, 2]  # batches of 8: 16 labelled images an update, or 8 and 8
    assert decays[0] == decays[1] != {0.0}


def test_the_labelled_images_are_those_of_a_run_without_others(train: Any, heard: list[Any], pool: Path) -> None:
    train("with", {"unlabelled": str(pool), "unlabelled_ratio": 0.5, "calibrate": False})
    joined = list(heard)
    heard.clear()
    train("without", {"calibrate": False})
    assert {c["images"] for c in joined} == {12} and {c["images"] for c in heard} == {8}
    assert all(torch.equal(a["first"], b["first"]) for a, b in zip(joined, heard, strict=True))


def test_every_image_of_the_pool_comes_once_before_one_comes_again_and_never_looks_the_same(
    train: Any, heard: list[Any], pool: Path
) -> None:
    trainer = train(knowledge={"unlabelled": str(pool), "unlabelled_ratio": 0.5, "calibrate": False}, epochs=4)
    assert len(trainer.pool.views) == 20 and trainer.pool.batch == 4
    shown = torch.cat([c["others"] for c in heard])
    assert len(shown) == 48
    assert len({x.numpy().tobytes() for x in shown}) == 48


def test_the_pools_mosaics_hold_no_labelled_image(train: Any, tmp_path: Path, heard: list[Any]) -> None:
    for i in range(8):  # black frames: whatever is not black or padding is from elsewhere
        (tmp_path / "black").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"black/{i}.png"), np.zeros((96, 128, 3), np.uint8))
    train(knowledge={"unlabelled": str(tmp_path / "black"), "calibrate": False}, epochs=1, hsv_h=0, hsv_s=0, hsv_v=0)
    others = torch.cat([c["others"] for c in heard])
    assert others.max().item() <= 114 / 255 + 1e-3
    assert torch.cat([c["first"] for c in heard]).max().item() > 0.8


def test_nothing_is_joined_once_the_knowledge_is_off(train: Any, heard: list[Any], pool: Path) -> None:
    train(knowledge={"unlabelled": str(pool), "calibrate": False}, epochs=4, close_mosaic=2)
    assert [c["images"] for c in heard] == [16] * 6 + [8] * 6


def test_unlabelled_images_move_the_student_and_the_shares_hold(train: Any, pool: Path) -> None:
    trainer = train(knowledge={"unlabelled": str(pool)})
    with open(trainer.csv, encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert all(float(rows[-1][f"kd/{n}"]) > 0 for n in ("soft", "soft_box", "attention", "relation", "guidance"))
    assert (Path(trainer.save_dir) / "gains.json").exists()


@pytest.mark.parametrize("name", ["focal_global", "masked_generation", "channel_wise", "score_l2"])
def test_every_rival_takes_joined_batches(train: Any, pool: Path, name: str) -> None:
    trainer = train(knowledge={**OFF, name: 1.0, "unlabelled": str(pool), "calibrate": False}, epochs=1)
    with open(trainer.csv, encoding="utf-8") as f:
        assert float(next(csv.DictReader(f))[f"kd/{name}"]) > 0


def test_the_record_serves_unlabelled_views_too(train: Any, pool: Path, tmp_path: Path, asked: list[int]) -> None:
    knowledge = {**preset("recorded"), "record": str(tmp_path / "r"), "views": 1, "unlabelled": str(pool)}
    first = train("first", knowledge, epochs=4)
    assert sum(asked) == 20 + 24 + 20  # to see how certain it is, then each view once
    asked.clear()
    again = train("again", knowledge, epochs=4)
    assert sum(asked) == 20
    ours, theirs = (dict(host.load_detector("model", str(t.last)).state_dict()) for t in (first, again))
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_a_chain_trains_each_stage_with_them(tiny_detector: Any, pool: Path, tmp_path: Path, heard: list[Any]) -> None:
    student = str(tiny_detector.pt.parents[2] / "yolo26n.yaml")
    run = {"imgsz": 64, "epochs": 1, "batch": 8, "fraction": 0.25, "device": "cpu", "plots": False, "val": False}
    chain.train(
        **{"data": str(tiny_detector.data), "model": student, "teacher": str(tiny_detector.pt), "assistant": None},
        **{**run, "project": str(tmp_path), "name": "chain", "unlabelled": str(pool)},
    )
    assert {c["images"] for c in heard} == {16}


# What is said before training


def test_a_pool_on_which_the_teacher_is_hardly_ever_certain_is_reported_with_advice() -> None:
    assert verdict("t", (2, 32)) == (
        "t is certain of an object (score 0.25 or more) in 2 of 32 unlabelled images: they look unlike what it was "
        "trained on, or show none of its classes: it has little to say about them",
        True,
    )
    assert verdict("t", (4, 32))[1] is False
    assert verdict("t", None)[1] is False


def test_the_teacher_is_certain_of_drawn_objects_and_not_of_noise(train: Any, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"noise/{i}.png"), picture(i) // 8 + 110)
    found = []
    for place in (pool, tmp_path / "noise"):
        trainer = train(knowledge={"unlabelled": str(place), "calibrate": False}, epochs=1, mosaic=0.0)
        found.append(trainer.pool.certain(trainer.kd.distillers[0].teacher, torch.device("cpu")))
    assert found[0][1] == 20 and found[1][1] == 8
    assert found[0][0] / 20 > found[1][0] / 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rect": True}, "rect=True"),
        ({"batch": 24, "fraction": 1.0}, "has 20 images, fewer than the 24 of a batch"),
    ],
)
def test_what_cannot_be_joined_is_refused(train: Any, pool: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        train(knowledge={"unlabelled": str(pool)}, **changed)


@pytest.mark.parametrize("ratio", [0, -1, True, "much", float("inf")])
def test_a_ratio_that_is_none_is_refused(ratio: Any) -> None:
    with pytest.raises(BadInput, match="unlabelled_ratio"):
        unlabelled.check_ratio(ratio)
