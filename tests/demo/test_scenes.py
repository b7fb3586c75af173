"""Scenes: equal for equal seeds, with labels that match the visible pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolo_mkd.demo import labels, scenes
from yolo_mkd.demo.shapes import DISTRACTORS, HARDWARE
from yolo_mkd.settings import BadInput


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.suffix in {".jpg", ".txt"})
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def empty_bench() -> scenes.Bench:
    grey = np.full((scenes.SIDE, scenes.SIDE, 3), 0.5, np.float32)
    return scenes.Bench(grey, np.zeros((scenes.SIDE, scenes.SIDE), np.int32), np.array([0.6, 0.0, 0.8]), 0.0)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_writes_others(tmp_path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        scenes.make(tmp_path / name, train=3, val=2, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert len(first) == 10
    assert first == again
    assert all(first[name] != other[name] for name in first if name.endswith(".jpg"))


def test_a_larger_set_begins_with_the_images_of_a_smaller_one(tmp_path) -> None:
    scenes.make(tmp_path / "small", train=2, val=1)
    scenes.make(tmp_path / "large", train=3, val=2)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert small.items() < large.items()


def test_images_without_labels_are_others_than_those_of_a_set(tmp_path) -> None:
    scenes.make(tmp_path / "set", train=3, val=1, seed=0)
    folder = scenes.make_unlabelled(tmp_path / "unlabelled", 3, seed=2)
    assert sorted(p.name for p in folder.iterdir()) == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert list(tmp_path.rglob("*.txt")) == list((tmp_path / "set").rglob("*.txt"))
    known = {p.read_bytes() for p in (tmp_path / "set").rglob("*.jpg")}
    assert known.isdisjoint(p.read_bytes() for p in folder.iterdir())


def test_train_and_val_contain_different_images(tmp_path) -> None:
    scenes.make(tmp_path / "set", train=4, val=4)
    pictures = [data for name, data in contents(tmp_path / "set").items() if name.endswith(".jpg")]
    assert len(set(pictures)) == 8


def test_the_yaml_is_what_ultralytics_reads(tmp_path) -> None:
    path = scenes.make(tmp_path / "set", train=2, val=1)
    document = yaml.safe_load(path.read_text())
    assert path == tmp_path / "set" / "scenes.yaml"
    assert document["path"] == str(tmp_path / "set")
    assert document["names"] == {0: "hex nut", 1: "washer", 2: "gear", 3: "bolt", 4: "wing nut"}
    assert [len(list((tmp_path / "set" / document[split]).iterdir())) for split in ("train", "val")] == [2, 1]


def test_every_label_file_says_what_the_scene_says_and_lies_inside(tmp_path) -> None:
    scenes.make(tmp_path / "set", train=6, val=1)
    for index in range(6):
        text = (tmp_path / "set" / "labels" / "train" / f"{index:05d}.txt").read_text()
        read = np.array([line.split() for line in text.splitlines()], float)
        image, boxes, _ = scenes.scene(0, "train", index)
        corners = np.hstack([read[:, 1:3] - read[:, 3:] / 2, read[:, 1:3] + read[:, 3:] / 2]) * scenes.SIDE
        assert image.shape == (scenes.SIDE, scenes.SIDE, 3)
        assert corners == pytest.approx(boxes[:, 1:5], abs=0.01)
        assert (read[:, 0] == boxes[:, 0]).all()
        assert corners.min() > -0.01 and corners.max() < scenes.SIDE + 0.01
        assert (boxes[:, 3:5] - boxes[:, 1:3]).min() >= scenes.LEAST_SIDE


@pytest.fixture(scope="module")
def many_boxes() -> np.ndarray:
    return np.concatenate([scenes.scene(0, "train", index)[1] for index in range(20)])


def test_every_class_occurs_and_none_is_rare(many_boxes: np.ndarray) -> None:
    assert (np.bincount(many_boxes[:, 0].astype(int), minlength=5) > 0.1 * len(many_boxes)).all()


def test_the_images_contain_small_and_large_parts(many_boxes: np.ndarray) -> None:
    sides = (many_boxes[:, 3:5] - many_boxes[:, 1:3]).max(1)
    assert np.percentile(sides, 10) < 27 and np.percentile(sides, 90) > 50


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_the_labels_of_every_task_lie_on_the_same_parts(task: str, tmp_path) -> None:
    path = scenes.make(tmp_path / "set", train=2, val=1, task=task)
    text = (tmp_path / "set" / "labels" / "train" / "00001.txt").read_text()
    _, boxes, owner = scenes.scene(0, "train", 1)
    inward = np.array([0.5, 0.5, -0.5, -0.5])  # from a pixel's edge to its centre
    assert len(text.splitlines()) == len(boxes) > 2
    for line, box in zip(text.splitlines(), boxes, strict=True):
        visible = owner == box[5]
        values = np.array(line.split(), float)[1:] * scenes.SIDE
        ys, xs = np.nonzero(visible)
        assert line.split()[0] == str(int(box[0]))
        if task == "pose":
            left, top, right, bottom = values[4:].reshape(4, 3)[:, :2]
            assert [left[0], top[1], right[0], bottom[1]] == pytest.approx(box[1:5] + inward, abs=0.01)
            assert left[1] == pytest.approx(ys[xs == xs.min()].mean() + 0.5, abs=0.01)
            continue
        drawn = np.zeros_like(visible, np.uint8)
        cv2.fillPoly(drawn, [(values.reshape(-1, 2) - 0.5).round().astype(int)], 1)
        assert (drawn.astype(bool) & visible).sum() > 0.9 * largest(visible).sum()
    document = yaml.safe_load(path.read_text())
    assert (document.get("kpt_shape"), document.get("flip_idx")) == (
        ([4, 3], [2, 1, 0, 3]) if task == "pose" else (None, None)
    )


def largest(visible: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(visible.astype(np.uint8), connectivity=8)
    return pieces == 1 + stats[1:count, cv2.CC_STAT_AREA].argmax()


def test_the_box_of_a_turned_rectangle_is_that_rectangle_and_its_outline_has_its_area() -> None:
    canvas = np.zeros((200, 200), np.uint8)
    given = np.array([[60, 40], [140, 100], [110, 140], [30, 80]])  # sides 100 and 50, turned by atan(3 / 4)
    cv2.fillPoly(canvas, [given], 1)
    corners = labels.oriented_box(canvas > 0) * 200
    sides = np.linalg.norm(corners - np.roll(corners, 1, 0), axis=1)
    assert sorted(sides) == pytest.approx([51, 51, 101, 101], abs=1)  # the pixels' edges are half a pixel further out
    turns = np.degrees(np.arctan2(*(corners - np.roll(corners, 1, 0)).T[::-1])) % 90
    assert turns == pytest.approx([36.87] * 4, abs=1)
    assert cv2.contourArea((labels.outline(canvas > 0) * 200).astype(np.float32)) == pytest.approx(5000, rel=0.01)


@pytest.mark.parametrize("kind", range(5))
def test_a_box_spans_the_pixels_that_the_part_was_drawn_on(kind: int) -> None:
    bench = empty_bench()
    area = scenes.place_object(bench, HARDWARE[kind], np.array([150.0, 170.0]), 40.0, 1, np.random.default_rng(kind))
    ys, xs = np.nonzero(np.abs(bench.image - 0.5).max(2) > 0.03)
    box = scenes.visible_box(bench.owner, kind, 1, area)
    assert box is not None and box[0] == kind
    assert box[1:] == pytest.approx([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], abs=2)
    assert 15 < max(box[3:] - box[1:3]) < 130


def test_a_part_at_the_edge_has_the_box_of_its_pixels_in_the_image() -> None:
    bench = empty_bench()
    area = scenes.place_object(bench, HARDWARE[1], np.array([0.0, 160.0]), 60.0, 1, np.random.default_rng(0))
    box = scenes.visible_box(bench.owner, 1, 1, area)
    assert box is not None and box[1] == 0
    assert (bench.owner == 1).sum() == pytest.approx(area / 2, rel=0.1)


@pytest.mark.parametrize(
    ("shown", "area", "box"),
    [
        (100, 100, [2, 10, 10, 20, 20]),
        (60, 200, [2, 10, 10, 20, 16]),  # three tenths visible
        (60, 201, None),  # a little less
        (40, 100, None),  # enough visible, but only 4 pixels high
        (0, 100, None),
    ],
)
def test_a_part_mostly_hidden_or_too_small_has_no_label(shown: int, area: int, box: list[int] | None) -> None:
    owner = np.zeros((scenes.SIDE, scenes.SIDE), np.int32)
    owner[np.arange(shown) // 10 + 10, np.arange(shown) % 10 + 10] = 7  # rows of ten pixels, from 10, 10
    found = scenes.visible_box(owner, 2, 7, area)
    assert (None if found is None else found.tolist()) == box


def test_an_object_on_top_shrinks_the_box_and_a_distractor_has_none() -> None:
    bench, rng = empty_bench(), np.random.default_rng(0)
    area = scenes.place_object(bench, HARDWARE[1], np.array([160.0, 160.0]), 60.0, 1, rng)
    alone = scenes.visible_box(bench.owner, 1, 1, area)
    for draw in DISTRACTORS:
        scenes.place_object(bench, draw, np.array([185.0, 160.0]), 60.0, 0, rng)
    covered = scenes.visible_box(bench.owner, 1, 1, area)
    assert alone is not None and covered is not None
    assert covered[3] < alone[3] - 5
    assert set(np.unique(bench.owner)) == {0, 1}


@pytest.mark.parametrize("counts", [{"train": 0}, {"val": -1}])
def test_an_empty_split_is_refused_and_nothing_is_written(tmp_path, counts: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=f"{next(iter(counts))}="):
        scenes.make(tmp_path / "set", **counts)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_not_empty_is_not_changed(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        scenes.make(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_written_image_equals_the_drawn_one_except_for_compression(tmp_path) -> None:
    scenes.make(tmp_path / "set", train=1, val=1)
    read = cv2.imread(str(tmp_path / "set" / "images" / "train" / "00000.jpg")).astype(float)
    assert np.abs(read - scenes.scene(0, "train", 0)[0]).mean() < 6
