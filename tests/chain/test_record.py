"""`yolo-mkd record` runs the teacher on all views that a training will show, so that training never runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import chain, cli
from yolo_mkd.chain.record import record
from yolo_mkd.settings import BadInput


@pytest.fixture
def arguments(untrained_detector: Any, tmp_path: Path) -> dict[str, Any]:
    models = {"model": str(untrained_detector.student), "teacher": str(untrained_detector.pt)}
    run = {"imgsz": 64, "epochs": 4, "batch": 8, "fraction": 0.25, "close_mosaic": 3, "device": "cpu"}
    return {"data": str(untrained_detector.data), **models, **run, "record": str(tmp_path / "r")}


@pytest.mark.slow
def test_training_finds_every_view_in_the_cache(arguments: dict[str, Any], inferred: list[int], tmp_path: Path) -> None:
    found = record(**arguments, views=1, json=tmp_path / "record.json")
    # distillation is on for two of four epochs: one with mosaic, one after it has closed
    assert sum(inferred) == found["asked"] == found["views"] == 24 * 2
    assert json.loads((tmp_path / "record.json").read_text())["bytes"] == found["bytes"] > 0
    inferred.clear()
    again = record(**arguments, views=1)
    assert again["asked"] == 0 and again["bytes"] == found["bytes"] and inferred == []
    run = {"project": str(tmp_path), "name": "run", "plots": False, "val": False, "assistant": None}
    chain.train(**arguments, **run, views=1, preset="recorded")
    assert inferred == []


@pytest.mark.slow
def test_building_a_cache_leaves_no_run_behind(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(**arguments, views=1)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher_epochs": 5}, "build its cache once it is trained"),
        ({"record": False}, "record=false stores nothing"),
        ({"preset": "mkd"}, "guidance"),
        ({"unlabelled": "frames"}, "images are cached while training"),
        ({"resume": "somewhere"}, "resume="),
        ({"viewss": 2}, "did you mean views="),
    ],
)
def test_what_cannot_be_cached_is_refused(arguments: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        record(**{**arguments, **changed})
    assert not Path(arguments["record"]).exists()


@pytest.mark.slow
def test_the_command_takes_words(arguments: dict[str, Any], tmp_path: Path) -> None:
    words = [f"{k}={v}" for k, v in arguments.items()]
    assert cli.run(["record", *words, "views=1"]) == 0
    assert list((tmp_path / "r").rglob("*.npy"))
