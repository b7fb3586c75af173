"""A run on a CPU that is killed and resumed ends with the same weights, bit for bit, as one that was not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from yolo_mkd.host import CheckpointKeeper
from yolo_mkd.trainer import MKDTrainer

pytestmark = pytest.mark.slow
EPOCHS, BATCHES = 5, 3
ARGUMENTS: dict[str, Any] = {
    "imgsz": 64, "epochs": EPOCHS, "batch": 8, "nbs": 8, "fraction": 0.25, "optimizer": "AdamW", "lr0": 0.002,
    "close_mosaic": 1, "warmup_epochs": 0.5, "val": True, "plots": False, "device": "cpu", "exist_ok": True,
    "verbose": False, "workers": 0,
}  # fmt: skip


class Killed(BaseException):
    """Ends a training in place of SIGKILL."""


def train(folder: Path, model: Path, killed_in: int | None, **arguments: Any) -> None:
    """Train, to the end or until the first batch of an epoch, counted from 0, is done."""
    yolo, keeper = YOLO(model), CheckpointKeeper(folder)
    keeper.install(yolo)

    def kill(trainer: Any) -> None:
        if trainer.epoch == killed_in:
            raise Killed

    yolo.add_callback("on_train_batch_end", kill)
    yolo.train(**arguments)


def begin(folder: Path, model: Path, killed_in: int | None, **arguments: Any) -> None:
    place = {"project": str(folder.parent), "name": folder.name}
    train(folder, model, killed_in, **{**ARGUMENTS, **place, **arguments})


def resume(folder: Path, trainer: Any, killed_in: int | None = None) -> None:
    keeper = CheckpointKeeper(folder)
    assert not keeper.finished() and keeper.restore()
    last = folder / "weights" / "last.pt"
    train(folder, last, killed_in, resume=True, trainer=trainer, save_dir=str(folder))


def weights(file: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(file, weights_only=False)["model"].state_dict())


def columns(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with open(folder / name, encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def differing(one: Path, other: Path) -> list[str]:
    """The tensors and the epochs in which two runs differ."""
    found = []
    for name in ("last.pt", "best.pt"):
        a, b = weights(one / "weights" / name), weights(other / "weights" / name)
        assert a.keys() == b.keys()
        found += [f"{name}: {key}" for key in a if not torch.equal(a[key], b[key])]
    assert len(columns(one)) == EPOCHS
    found += [f"epoch {a['epoch']}" for a, b in zip(columns(one), columns(other), strict=True) if a != b]
    return found


ALL = {"until": 0.9}  # all terms, two of them with adapters
CACHED = {"preset": "recorded", "record": "caches", "views": 2, "until": 0.9}
POOL = {**ALL, "unlabelled": "train"}
CASES: dict[str, tuple[dict[str, Any] | None, int, dict[str, Any]]] = {
    # M-KD's options, the epoch that the kill interrupts, Ultralytics' arguments
    "plain": (None, 2, {}),
    "distilled": (ALL, 2, {}),
    "in the first epoch after the first": (ALL, 1, {}),
    "when mosaic has just been closed": (ALL, 3, {"close_mosaic": 2}),
    "after mosaic was closed": (ALL, 4, {"close_mosaic": 3}),
    "in the last epoch": (ALL, 4, {}),
    "steps of two batches, of three each": (None, 2, {"nbs": 16}),
    "distilled, steps of five batches": (ALL, 3, {"nbs": 40}),
    "a long warm-up with longer and longer steps": (None, 2, {"nbs": 40, "warmup_epochs": 4}),
    "images that do not fill the last batch": (None, 2, {"batch": 7, "nbs": 7}),
    "two teachers": ({**ALL, "assistant": "tiny"}, 2, {}),
    "from a cache": (CACHED, 3, {"close_mosaic": 2}),
    "from a cache, loaded by two processes": (CACHED, 2, {"workers": 2}),
    "unlabelled images": (POOL, 2, {}),
    "unlabelled images, mosaic just closed": (POOL, 3, {"close_mosaic": 2}),
    "unlabelled images, mosaic closed": (POOL, 4, {"close_mosaic": 3}),
    "scaled at random": (None, 2, {"multi_scale": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_weights(tiny_detector: Any, tmp_path: Path, case: str) -> None:
    options, killed_in, arguments = CASES[case]
    places = {
        "assistant": tiny_detector.pt,
        "record": str(tmp_path / "caches"),
        "unlabelled": str(tiny_detector.images[0].parents[1] / "train"),
    }
    trainer = None
    if options is not None:
        trainer = MKDTrainer.using(tiny_detector.pt, **{k: places.get(k, v) for k, v in options.items()})
    arguments = {"data": tiny_detector.data, "trainer": trainer, **arguments}
    begin(tmp_path / "whole", tiny_detector.student, None, **arguments)
    with pytest.raises(Killed):
        begin(tmp_path / "killed", tiny_detector.student, killed_in, **arguments)
    resume(tmp_path / "killed", trainer)
    assert differing(tmp_path / "whole", tmp_path / "killed") == []


def test_a_run_that_is_killed_twice_ends_with_the_same_weights_too(tiny_detector: Any, tmp_path: Path) -> None:
    trainer = MKDTrainer.using(tiny_detector.pt, **ALL)
    arguments = {"data": tiny_detector.data, "trainer": trainer, "nbs": 16, "close_mosaic": 2}
    begin(tmp_path / "whole", tiny_detector.student, None, **arguments)
    with pytest.raises(Killed):
        begin(tmp_path / "killed", tiny_detector.student, 2, **arguments)
    with pytest.raises(Killed):
        resume(tmp_path / "killed", trainer, 4)
    resume(tmp_path / "killed", trainer)
    assert differing(tmp_path / "whole", tmp_path / "killed") == []


def test_without_the_exact_state_the_comparison_would_fail(tiny_detector: Any, tmp_path: Path) -> None:
    arguments = {"data": tiny_detector.data, "trainer": None}
    begin(tmp_path / "whole", tiny_detector.student, None, **arguments)
    with pytest.raises(Killed):
        begin(tmp_path / "killed", tiny_detector.student, 2, **arguments)
    (exact,) = (tmp_path / "killed" / "weights").glob("kept-*/exact.pt")
    exact.unlink()
    resume(tmp_path / "killed", None)
    assert "last.pt: model.0.conv.weight" in differing(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_is_killed_before_its_first_copy_is_whole_begins_anew(tiny_detector: Any, tmp_path: Path) -> None:
    """Its last.pt is in half precision: resumed from it, the run would end with other weights."""
    with pytest.raises(Killed):
        begin(tmp_path / "killed", tiny_detector.student, 1, data=tiny_detector.data, trainer=None)
    for kept in (tmp_path / "killed" / "weights").glob("kept-*"):
        shutil.rmtree(kept)
    assert not CheckpointKeeper(tmp_path / "killed").restore()
