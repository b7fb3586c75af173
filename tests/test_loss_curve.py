"""The loss curve of one tiny distilled run, pinned: a refactoring must not move it.

Student, teacher and data are the demo's, so nothing is trained beforehand; 20 batches of 4 images at 96 pixels. The
figures were recorded with torch 2.14 on a processor with AVX-512; the tolerance allows for other processors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ultralytics import YOLO

from yolo_mkd import MKDTrainer, scenes
from yolo_mkd.settings import shipped

TOTAL: list[float] = []
TERMS: dict[str, list[float]] = {}


def curve(folder: Path) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted loss of each batch, and each term's own loss by its name."""
    data = scenes.make(folder / "scenes", train=20, val=4)
    totals: list[float] = []
    terms: dict[str, list[float]] = {}

    def note(trainer: Any) -> None:
        totals.append(float(trainer.loss.detach()))
        for name, value in trainer.loss_items.items():
            terms.setdefault(name, []).append(float(value))

    student = YOLO(shipped("weights") / "scenes-start-w125.pt")
    student.add_callback("on_train_batch_end", note)
    student.train(
        data=data, imgsz=96, epochs=4, batch=4, nbs=4, optimizer="AdamW", lr0=0.001, warmup_epochs=1, close_mosaic=1,
        device="cpu", amp=False, workers=0, plots=False, val=False, seed=0, verbose=False,
        project=str(folder), name="run",
        trainer=MKDTrainer.using(shipped("weights") / "scenes-teacher-yolo26n.pt", until=1.0),
    )  # fmt: skip
    return totals, terms


def test_twenty_batches_give_the_pinned_losses(tmp_path: Path) -> None:
    totals, terms = curve(tmp_path)
    assert totals == pytest.approx(TOTAL, rel=2e-3)
    for name, pinned in TERMS.items():
        assert terms[name][:: len(terms[name]) // 4] == pytest.approx(pinned, rel=5e-3, abs=1e-5), name
