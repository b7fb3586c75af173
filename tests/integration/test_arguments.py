"""Ultralytics' arguments that change what a distilled run trains: classes, layers, sizes and lengths."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch


def rows(trainer: Any) -> list[dict[str, str]]:
    with open(trainer.csv, encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.mark.slow
def test_with_single_cls_the_soft_targets_act_and_only_those_of_the_chosen_classes(train: Any) -> None:
    merged = train({"until": 1}, single_cls=True)
    assert all(float(row["kd/soft"]) > 0 for row in rows(merged))
    assert merged.kd.distillers[0].match.classes == ((0, (0, 1, 2)),)
    assert torch.load(merged.last, weights_only=False)["model"].names == {0: "item"}
    chosen = train({"until": 1}, single_cls=True, classes=[1, 2], epochs=1)
    assert chosen.kd.distillers[0].match.classes == ((0, (1, 2)),)
