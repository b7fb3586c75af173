"""The loss curve of one tiny distilled run, pinned: a refactoring must not move it.

Student, teacher and data are the demo's, so nothing is trained beforehand; 20 batches of 4 images at 96 pixels. The
figures were recorded with torch 2.14 on a processor with AVX-512; the tolerance allows for other processors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ultralytics import YOLO

from yolo_mkd import MKDTrainer
from yolo_mkd.demo import scenes
from yolo_mkd.settings import shipped

TOTAL = [
    65.705,
    68.566,
    67.02,
    75.302,
    87.687,
    96.698,
    92.898,
    77.642,
    77.078,
    66.979,
    51.722,
    46.143,
    30.191,
    32.281,
    29.601,
    19.549,
    19.051,
    22.003,
    19.653,
    19.261,
]
TERMS = {  # of the first batch of each epoch
    "box_loss": [2.8046, 3.0955, 2.5891, 2.7752],
    "cls_loss": [3.1821, 2.5936, 2.6174, 2.1092],
    "l1_loss": [0.016369, 0.026542, 0.022688, 0.021627],
    "kd/soft": [1.3215, 1.0942, 1.0034, 0],
    "kd/soft_box": [0.40967, 0.4111, 0.32125, 0],
    "kd/attention": [0.48571, 0.41675, 0.3403, 0],
    "kd/relation": [0.046192, 0.065761, 0.049788, 0],
    "kd/guidance": [0.97213, 0.95282, 0.89191, 0],
    "kd/exploration": [0.45958, 0.48041, 0.44357, 0],
    "kd/weight": [0, 1, 0.55, 0],
}


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
        trainer=MKDTrainer.using(shipped("weights") / "scenes-teacher-yolo26n.pt", until=0.75),
    )  # fmt: skip
    return totals, terms


@pytest.mark.slow
def test_twenty_batches_give_the_pinned_losses(tmp_path: Path) -> None:
    totals, terms = curve(tmp_path)
    assert totals == pytest.approx(TOTAL, rel=2e-3)
    for name, pinned in TERMS.items():
        assert terms[name][:: len(terms[name]) // 4] == pytest.approx(pinned, rel=5e-3, abs=1e-5), name
