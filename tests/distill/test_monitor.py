"""The table and the picture of gradient shares."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from yolo_mkd.distill.balance import GradientRatio
from yolo_mkd.distill.monitor import ShareMonitor, beside_metrics
from yolo_mkd.host import LOGGER


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", lines.append)
    return lines


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "shares.csv", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_a_run_without_distillation_leaves_neither_table_nor_picture(tmp_path: Path) -> None:
    assert ShareMonitor(tmp_path, fresh=True).draw() is False
    assert list(tmp_path.iterdir()) == []


def test_each_epoch_teacher_and_term_has_a_row(tmp_path: Path, warned: list[str]) -> None:
    shares = ShareMonitor(tmp_path, fresh=True)
    shares.add(1, "t.pt", 0.5, {"soft": GradientRatio(0.48, 0.3), "relation": GradientRatio(0.1, -0.2)})
    ShareMonitor(tmp_path, fresh=False).add(2, "t.pt", 1.0, {"soft": GradientRatio(0.5, 0.1)})  # resumed
    assert [(r["epoch"], r["term"], r["weight"], r["share"], r["cosine"]) for r in rows(tmp_path)] == [
        ("1", "soft", "0.5", "0.48", "0.3"),
        ("1", "relation", "0.5", "0.1", "-0.2"),
        ("2", "soft", "1", "0.5", "0.1"),
    ]
    assert warned == []
    ShareMonitor(tmp_path, fresh=True)
    assert not (tmp_path / "shares.csv").exists()


@pytest.mark.parametrize(
    ("strength", "words"),
    [(0.0, "no gradient"), *((bad, "a gradient that is not finite") for bad in (math.nan, math.inf))],
)
def test_a_term_without_a_finite_gradient_is_named_in_a_warning(
    tmp_path: Path, warned: list[str], strength: float, words: str
) -> None:
    ShareMonitor(tmp_path, fresh=True).add(
        7, "t.pt", 1.0, {"soft": GradientRatio(0.5, 0.1), "relation": GradientRatio(strength, 0.0)}
    )
    assert len(warned) == 1
    assert f"in epoch 7 relation (teacher t.pt) had {words}: it has no effect" in warned[0]


def test_loggers_get_shares_as_they_act_and_cosines_that_are_finite(tmp_path: Path, warned: list[str]) -> None:
    ratios = {"soft": GradientRatio(0.4, 0.3), "relation": GradientRatio(math.inf, math.nan)}
    found = ShareMonitor(tmp_path, fresh=True).add(3, "big/weights/best.pt", 0.5, ratios)
    assert found == {"kd_share/big_weights_best.pt/soft": 0.2, "kd_cosine/big_weights_best.pt/soft": 0.3}


def test_callbacks_find_the_shares_among_the_metrics_and_the_trainer_keeps_its_own() -> None:
    own = {"metrics/mAP50(B)": 0.5}
    trainer = SimpleNamespace(metrics=own)
    with pytest.raises(ValueError, match="of a callback"), beside_metrics(trainer, {"kd_share/t/soft": 0.2}):
        assert trainer.metrics == {"metrics/mAP50(B)": 0.5, "kd_share/t/soft": 0.2}
        raise ValueError("of a callback")
    assert trainer.metrics is own
    with beside_metrics(SimpleNamespace(), {}):  # an early event, before there are metrics
        pass


def test_the_picture_has_a_panel_for_each_teacher(tmp_path: Path, warned: list[str]) -> None:
    shares = ShareMonitor(tmp_path, fresh=True)
    for epoch in (1, 2, 3):
        for teacher in ("large.pt", "medium.pt"):
            shares.add(
                epoch, teacher, 1.0, {"soft": GradientRatio(0.5 / epoch, 0.1), "attention": GradientRatio(0.2, 0.1)}
            )
        shares.draw()
        wide = cv2.imread(str(shares.png))
    one = tmp_path / "one"
    one.mkdir()
    alone = ShareMonitor(one, fresh=True)
    alone.add(1, "large.pt", 1.0, {"soft": GradientRatio(0.5, 0.1)})
    alone.draw()
    assert wide.std() > 10  # something is drawn
    assert wide.shape[1] > 1.7 * cv2.imread(str(alone.png)).shape[1]
