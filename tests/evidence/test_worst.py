"""The worst images of exported files: which are chosen, the boxes of both sides, and the page without the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from yolo_mkd.deploy.check import check
from yolo_mkd.deploy.check.matching import pair_detections
from yolo_mkd.evidence.page import write_page
from yolo_mkd.evidence.page.worst import FOLDER, MOST_FILES, image_of, worst_images
from yolo_mkd.settings import BadInput


def image(name: str, unmatched: int, min_iou: float | None) -> dict[str, Any]:
    return {"image": name, "unmatched": unmatched, "min_iou": min_iou, "max_score_difference": 0.1}


def checked(file: str, unmatched: int, images: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of a check of a file of 20 boxes."""
    counts = {"checkpoint_detections": 20, "file_detections": 20, "checkpoint_unmatched": unmatched, "images": 8}
    detections = {**counts, "file_unmatched": 0, "worst_images": images}
    return {"file": file, "sha256": file, "source": {"file": "b", "sha256": "c"}, "parity": {"detections": detections}}


def store(folder: Path, files: list[str], **others: Any) -> None:
    """An exports.json of files without images."""
    facts = {"checkpoint": "b", "checkpoint_sha256": "c", "conf": 0.25, "compared": 8, "images": []}
    looks = [{"file": name, "sha256": name, **facts, **others} for name in files]
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / "exports.json").write_text(json.dumps({"files": looks}))


def test_boxes_are_the_same_moved_or_of_one_side_alone() -> None:
    ours = np.array([[0, 0, 20, 20, 0.9, 0], [40, 0, 60, 20, 0.8, 1], [70, 20, 90, 40, 0.7, 0]], float)
    theirs = np.array([[0, 0, 20, 20, 0.85, 0], [44, 0, 64, 20, 0.8, 1], [0, 30, 10, 40, 0.6, 0]], float)
    found = pair_detections(ours, theirs, 0.25, 0.01)
    shown = image_of(image("x.jpg", 2, 0.66), "0.jpg", (50, 25), (50, 100), found, {0: "a", 1: "b"})  # type: ignore[arg-type]
    assert [b["state"] for b in shown["checkpoint_boxes"]] == ["same", "moved", "alone"]  # IoU 1 and 16 / 24
    assert [b["state"] for b in shown["file_boxes"]] == ["same", "moved", "alone"]
    assert shown["file_boxes"][1] == {"box": [0.44, 0.0, 0.64, 0.4], "name": "b", "conf": 0.8, "state": "moved"}


def test_the_file_that_deviates_most_comes_first_and_one_without_visible_differences_is_named(tmp_path: Path) -> None:
    store(tmp_path, ["little", "much"])
    same = checked("same", 0, [image("x", 0, 0.95)])
    reports = [same, checked("little", 1, [image("x", 1, 0.9)]), checked("much", 3, [image("x", 0, 0.8)])]
    looks, notes = worst_images(tmp_path, reports)
    assert [look["file"] for look in looks] == ["much", "little"]
    assert notes == ["same: no box is missing, added or visibly moved in 8 images."]


def test_images_are_shown_of_few_files(tmp_path: Path) -> None:
    names = [f"f{k}" for k in range(MOST_FILES + 1)]
    store(tmp_path, names)
    looks, notes = worst_images(tmp_path, [checked(name, 2, [image("x", 2, None)]) for name in names])
    assert len(looks) == MOST_FILES
    assert notes == [f"f{MOST_FILES}: no images; they are shown of {MOST_FILES} files."]


def test_a_damaged_list_of_images_is_refused(tmp_path: Path) -> None:
    outside = {"image": "x", "picture": "../x.jpg", "width": 1, "height": 1, "min_iou": None}
    sides = {"max_score_difference": None, "checkpoint_boxes": [], "file_boxes": []}
    store(tmp_path, ["f"], images=[{**outside, **sides}])
    with pytest.raises(BadInput, match="must be a name inside its folder"):
        worst_images(tmp_path, [checked("f", 2, [image("x", 2, None)])])


def test_the_page_shows_the_boxes_that_the_check_did_not_match(
    tiny_detector: Any, exported: dict[str, Path], tmp_path: Path
) -> None:
    """A file against a checkpoint that finds no red rectangles: the check fails, these boxes are the file's alone."""
    run = tmp_path / "run"
    run.mkdir()
    stage = {"name": "student", "model": "s.yaml", "hears": [], "parameters": 9, "status": "running", "weights": ""}
    arguments = {"data": str(tiny_detector.data), "epochs": 1}
    chain = {"schema": "yolo-mkd/chain/2", "started": "2026-01-01T00:00:00+00:00", "versions": {}, "knowledge": {}}
    others = {"arguments": arguments, "teacher_epochs": 0, "seed": 0, "teacher": None, "stages": [stage]}
    (run / "chain.yaml").write_text(yaml.safe_dump({**chain, **others}))
    file = Path(shutil.copy(exported["one2many"], run / "tiny.onnx"))
    contents = torch.load(tiny_detector.pt, weights_only=False)
    with torch.no_grad():
        for branch in contents["model"].model[-1].cv3:
            branch[-1].bias[0] -= 9
    torch.save(contents, run / "other.pt")
    parity = check(file, run / "other.pt", data=tiny_detector.data, accuracy=False, json=run / "check.json")
    assert not parity.passed
    text = write_page(run).read_text()
    (look,) = json.loads((run / FOLDER / "exports.json").read_text())["files"]
    assert parity.detections
    for shown, worst in zip(look["images"], parity.detections.worst_images[:3], strict=True):
        assert shown["image"] == worst["image"]
        for side in ("checkpoint", "file"):
            alone = [b for b in shown[f"{side}_boxes"] if b["state"] == "alone"]
            assert len(alone) == worst[f"{side}_unmatched"]  # type: ignore[literal-required]
            assert len(shown[f"{side}_boxes"]) >= worst[side]  # type: ignore[literal-required]
    assert sum(b["state"] == "alone" and b["name"] == "red" for i in look["images"] for b in i["file_boxes"]) > 0
    assert text.count("detections of tiny.onnx") == len(look["images"]) == 3
    file.unlink()
    (run / "other.pt").unlink()
    assert write_page(run).read_text() == text  # of what was stored
    shutil.rmtree(run / FOLDER)
    assert "tiny.onnx: no images: tiny.onnx is not in the run" in write_page(run).read_text()
