"""The benchmark of unlabelled images: the labels that it keeps, the length of its runs, its tables and plot."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import labels
import pytest
from pretraining import run_length, start_arguments


def pictures(count: int) -> dict[str, set[int]]:
    """Images with one frequent, one middling and one rare class, some with none."""
    chance = random.Random(1)
    odds = (0.9, 0.4, 0.08)
    return {f"{i:04}.jpg": {c for c, odd in enumerate(odds) if chance.random() < odd} for i in range(count)}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_each_class_keeps_its_share(share: float) -> None:
    images = pictures(400)
    kept, others = labels.split_images(images, share, seed=0)
    assert len(kept) == round(400 * share)
    assert sorted(kept + others) == sorted(images)
    total, left = (Counter(c for i in group for c in images[i]) for group in (images, kept))
    for c, n in total.items():
        assert left[c] / n == pytest.approx(share, abs=0.05), c


def test_the_split_depends_on_the_seed_only() -> None:
    images = pictures(200)
    assert labels.split_images(images, 0.25, seed=3) == labels.split_images(images, 0.25, seed=3)
    assert labels.split_images(images, 0.25, seed=3) != labels.split_images(images, 0.25, seed=4)


def test_every_share_trains_for_the_same_number_of_batches() -> None:
    assert run_length(205, 600) == {"epochs": 46, "close_mosaic": 4}  # 13 batches an epoch
    assert run_length(51, 600) == {"epochs": 150, "close_mosaic": 15}  # 4
    assert run_length(1439, 540, batch=128) == {"epochs": 45, "close_mosaic": 4}  # 12


def test_trainings_before_a_comparison_have_their_own_batch_size_and_the_given_device() -> None:
    assert start_arguments({"batch": 128, "imgsz": 160}) == {"batch": 16, "nbs": 16}
    given = {"start_batch": 64, "device": 0, "workers": 2}
    assert start_arguments(given) == {"batch": 64, "nbs": 64, "device": 0, "workers": 2}


def test_closed_gaps_and_differences_are_computed_from_the_seeds() -> None:
    methods = {"plain": {0: 0.20, 1: 0.22}, "pseudo": {0: 0.25, 1: 0.25}, "mkd + unlabelled": {0: 0.28, 1: 0.30}}
    rows = {
        r["method"]: r for r in labels.share_rows({0.25: methods}, {"plain": {0: 0.30, 1: 0.32}, "longer": {0: 0.40}})
    }
    assert rows["mkd + unlabelled"]["closed"] == pytest.approx({"plain": 0.8, "longer": 0.421})  # of 0.10 and 0.19
    assert rows["mkd + unlabelled"]["to_plain"]["mean"] == pytest.approx(0.08)
    assert rows["mkd + unlabelled"]["to_pseudo"]["mean"] == pytest.approx(0.04)
    assert rows["mkd + unlabelled"]["to_pseudo"]["verdict"] == "not distinguishable"  # 0.03 and 0.05, two seeds
    assert rows["pseudo"]["to_pseudo"] is None


def test_without_a_gain_from_all_labels_there_is_no_gap_to_close() -> None:
    methods = {"plain": {0: 0.3}, "pseudo": {0: 0.2}}
    rows = labels.share_rows({0.5: methods}, {"plain": {0: 0.3}})
    assert [row["closed"] for row in rows] == [{"plain": None}, {"plain": None}]
    hardly = labels.share_rows({0.5: methods}, {"plain": {0: 0.3039}, "longer": {0: 0.3041}})
    assert hardly[1]["closed"] == {"plain": None, "longer": pytest.approx(-24.4, abs=0.1)}
    assert labels.share_table(rows, {"plain": {0: 0.3}}, {}).count("%") == 5  # of labels and intervals, none of a gap


def test_each_head_has_its_tables_and_its_panel(tmp_path: Path) -> None:
    gains = {"through NMS": 0.0, "without NMS": 0.1}
    methods = {"plain": 0.2, "pseudo": 0.3, "mkd + unlabelled": 0.3}
    by_share = {
        share: {
            head: {m: {0: score + (gain if "mkd" in m else 0), 1: score} for m, score in methods.items()}
            for head, gain in gains.items()
        }
        for share in (0.1, 0.5)
    }
    whole = {"plain": {"through NMS": {0: 0.4}, "without NMS": {0: 0.5}}}
    teachers = {share: {"through NMS": 0.61, "without NMS": 0.62} for share in by_share}
    text = labels.write_report("set", "a=b", by_share, whole, teachers, tmp_path)
    first, second = (" ".join(page.split()) for page in text.split("mAP50-95 without NMS:"))
    assert "| 50% | mkd + unlabelled | 0.300 | +0.100 [+0.100, +0.100] | +0.000 [+0.000, +0.000] | 50% |" in first
    assert "| 50% | mkd + unlabelled | 0.350 | +0.150" in second
    assert ("| 10% | the teacher | 0.610" in first, "| 10% | the teacher | 0.620" in second) == (True, True)
    found = json.loads((tmp_path / "labels-set.json").read_text())
    assert found["heads"]["without NMS"]["all_labels"] == {"plain": {"0": 0.5}}
    assert (tmp_path / "labels-set.md").read_text() == text
    assert (tmp_path / "labels-set.png").stat().st_size > 10_000
