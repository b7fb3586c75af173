"""What a model card states: the figures of the training, its exports and its comparison, and no path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd.evidence.card import write_card
from yolo_mkd.evidence.card.text import model_name, plain, without_folders
from yolo_mkd.settings import BadInput

TERMS = {"soft": 2.0, "attention": 0.5, "relation": 0.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished chain of a teacher and a student, with data of three images to train on and one of val."""
    import cv2
    import numpy as np

    for name in ("train/a", "train/b", "train/c", "val/d"):
        file = tmp_path / "cells" / "images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.zeros((32, 32, 3), np.uint8))
    data = tmp_path / "cells.yaml"
    place = {"path": str(tmp_path / "cells"), "train": "images/train", "val": "images/val"}
    data.write_text(yaml.safe_dump({**place, "names": {0: "red|cell", 1: "platelet"}}))
    chain: dict[str, Any] = {
        "schema": "yolo-mkd/chain/2", "started": "2026-01-01T00:00:00+00:00", "versions": {"yolo-mkd": "0.2.0"},
        "knowledge": {"preset": None, "calibrate": True, "until": 0.5, "unlabelled": "/somewhere/frames", **TERMS},
        "teacher_epochs": 0, "seed": 3, "arguments": {"data": str(data), "epochs": 40, "imgsz": 160},
        "teacher": {"file": "/home/someone/runs/big/weights/best.pt", "sha256": "ab12"},
        "stages": [
            {"name": "student", "model": "/home/someone/small.yaml", "hears": ["/home/big/weights/best.pt"],
             "parameters": 678374, "status": "done", "weights": "/home/someone/run/student/weights/best.pt",
             "sha256": "cd34", "seconds": 90.0, "metrics": {"map50_95": 0.41234, "map50": 0.71234}},
        ],
    }  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    return folder


def changed(run: Path, **values: Any) -> None:
    """Change fields of the chain."""
    file = run / "chain.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))


def card(run: Path, **arguments: Any) -> tuple[dict[str, Any], str]:
    """The front matter of the card of a run, and its Markdown."""
    _, front, text = write_card(run, **arguments).read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def row(text: str, first: str) -> list[str]:
    """The cells of the first table row that begins with this cell."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").replace(r"\|", "!").split("|")]


def test_the_front_matter_is_what_hugging_face_reads(run: Path) -> None:
    front, _ = card(run)
    assert front["license"] == "agpl-3.0"
    assert (front["library_name"], front["pipeline_tag"]) == ("ultralytics", "object-detection")
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert (model["name"], result["dataset"]["name"], result["dataset"]["split"]) == ("small", "cells", "val")
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"mAP50-95": 0.41234, "mAP50": 0.71234}


def test_the_task_follows_from_what_was_measured(run: Path) -> None:
    stages = yaml.safe_load((run / "chain.yaml").read_text())["stages"]
    stages[0]["metrics"] |= {"mask_map50_95": 0.3, "mask_map50": 0.6}
    changed(run, stages=stages)
    front, text = card(run)
    assert front["pipeline_tag"] == "image-segmentation"
    assert row(text, "student") == ["student", "small", "678,374", "0.412", "0.712", "0.300", "0.600"]


def test_the_text_has_the_figures_of_the_training(run: Path) -> None:
    _, text = card(run)
    assert "# small, distilled from big on cells" in text
    assert "validation images of cells at 160 pixels" in text
    assert "One training with seed 3" in text
    assert "cells.yaml: 3 images to train on and 1 to validate on." in text
    assert r"2 classes: red\|cell, platelet." in text
    assert "images without labels (frames)" in text
    assert "- student: small, 678,374 parameters, distilled from big, 1.5 minutes." in text
    assert row(text, "soft")[2] == "2"
    assert row(text, "attention")[2] == "0.5"
    assert "| relation " not in text  # its figure is 0
    assert "share of the detection loss's gradient" in text
    assert "in the first 50 % of the epochs" in text
    assert "AGPL-3.0" in text
    assert [row(text, "teacher")[2], text.count("cd34")] == ["ab12", 1]
    assert "Not measured: no file was exported" in text
    assert "until=0.5" in text
    assert "/home" not in text
    assert str(run.parent) not in text


def test_gains_given_by_hand_and_a_whole_run_are_described_as_such(run: Path) -> None:
    changed(run, knowledge={"preset": None, "calibrate": False, "until": 1.0, **TERMS})
    _, text = card(run)
    assert "A figure is the weight of a term's loss" in text
    assert "Distillation was on to the last epoch." in text
    assert "without labels" not in text


def test_a_card_of_data_that_are_gone_states_it(run: Path) -> None:
    changed(run, arguments={"data": "/gone/cells.yaml"})
    _, text = card(run)
    assert "cells.yaml, which was not at its place" in text
    assert "images to train on" not in text


def test_latency_is_that_of_the_students_own_files(run: Path) -> None:
    for name, source, p50 in (("best.onnx", "cd34", 3.25), ("fast.onnx", "cd34", 1.5), ("other.onnx", "ffff", 9.0)):
        digest = f"of {name}"
        facts = {"file": name, "bytes": 2_800_000, "sha256": digest, "source": {"sha256": source}}
        known = {"head": "one2one", "format": "onnx", "precision": "fp32", "accuracy": {"map50_95": 0.4101}}
        exported = {"schema": "yolo-mkd/export/1", **facts, **known}
        timed = {
            "schema": "yolo-mkd/time/1", **facts, "provider": "CPUExecutionProvider", "threads": 1,
            "machine": {"processor": "a processor", "cores": 2}, "drift": {"stable": name != "fast.onnx"},
            "segments": {"end_to_end": {"p50_ms": p50, "p90_ms": 4.5}},
        }  # fmt: skip
        for kind, report in (("export", exported), ("time", timed)):
            (run / f"{name}.{kind}.json").write_text(json.dumps(report))
    _, text = card(run)
    assert row(text, "best.onnx") == ["best.onnx", "onnx fp32", "one2one", "2.80", "0.410", "3.25", "4.50", "CPU x1"]
    assert row(text, "fast.onnx")[-3:] == ["1.50", "4.50", "CPU x1, drifting"]
    assert "on a processor, 2 cores." in text
    assert "other.onnx" not in text


def comparison(run: Path, **changes: Any) -> Path:
    """A comparison of the run's settings with plain training."""
    known = {"calibrate": True, "until": 0.5, "unlabelled": "frames", **TERMS}
    change = {"mean": 0.0391, "low": 0.0342, "high": 0.0434, "seeds": 3, "verdict": "better"}
    labels = {"data": "cells", "student": "small", "epochs": 40.0, "seeds": [0, 1, 2], "failed": {}}
    document: dict[str, Any] = {
        "schema": "yolo-mkd/compare/1", "versions": {}, "machine": {}, "command": "", "started": "", "methods": {},
        "references": ["plain"], "seeds": [0, 1, 2], "live": {}, "replayed": [], "latency": [], "devices": ["cpu"],
        "together": 1, "mean": [], "cells": [], "notes": [], "teacher": {"file": "best.pt", "sha256": "ab12"},
        "settings": {"soft": {**known, "attention": 0.0}, "mkd": known},
        "rows": [
            {**labels, "method": "plain", "against": {}},
            {**labels, "method": "soft", "against": {"plain": {"map50_95": {**change, "mean": 0.9}}}},
            {**labels, "method": "mkd", "against": {"plain": {"map50_95": change, "nms_free_map50_95": None}}},
        ],
    }  # fmt: skip
    folder = run.parent / "compare"
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps({**document, **changes}))
    return folder


def test_an_interval_is_that_of_the_method_with_the_runs_settings(run: Path) -> None:
    _, text = card(run, compare=comparison(run))
    assert row(text, "plain") == ["plain", "mAP50-95", "+0.039 [+0.034, +0.043]", "3"]
    assert "0.900" not in text
    assert "were not measured" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher": {"file": "best.pt", "sha256": "other"}}, "is of another teacher"),
        ({"rows": []}, "no method of these settings with small on cells for 40 epochs"),
        ({"settings": {}}, "no method of these settings"),
    ],
)
def test_a_comparison_of_something_else_is_refused(run: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        write_card(run, compare=comparison(run, **changes))
    assert not (run / "card.md").exists()


def test_an_unfinished_training_and_a_comparison_have_no_card(run: Path) -> None:
    with pytest.raises(BadInput, match="is a comparison"):
        write_card(comparison(run, cells=[], references=[], seeds=[]))
    stages = yaml.safe_load((run / "chain.yaml").read_text())["stages"]
    changed(run, stages=[{**stages[0], "status": "running"}])
    with pytest.raises(BadInput, match="unfinished"):
        write_card(run)


def test_names_are_text_and_folders_are_left_out() -> None:
    assert plain("a_b|<c>\nd") == r"a\_b\|\<c\> d"
    assert model_name("runs/big/weights/best.pt") == "big"
    assert model_name("yolo26n.pt") == "yolo26n"
    value = {"a": "/x/y.yaml", "b": ["/z/w.pt", "v"], "c": 1}
    assert without_folders(value) == {"a": "y.yaml", "b": ["w.pt", "v"], "c": 1}
