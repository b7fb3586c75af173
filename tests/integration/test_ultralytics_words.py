"""What a user of Ultralytics expects of a training works alike: cfg=, trainer=, callbacks, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO

from yolo_mkd import MKD, MKDTrainer

pytestmark = pytest.mark.slow

SHORT = {"imgsz": 64, "epochs": 1, "batch": 8, "fraction": 0.25, "device": "cpu", "workers": 0, "plots": False}


@pytest.fixture
def cfg(tiny_detector: Any, tmp_path: Path) -> Path:
    """A file of Ultralytics' arguments with the data in it."""
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({**SHORT, "data": str(tiny_detector.data), "project": str(tmp_path)}))
    return file


def test_a_model_trained_with_the_trainer_has_results_and_validates_again(tiny_detector: Any, cfg: Path) -> None:
    model, seen = YOLO(tiny_detector.student), []
    model.add_callback("on_fit_epoch_end", lambda trainer: seen.append(type(trainer.model).__name__))
    results = model.train(cfg=str(cfg), trainer=MKDTrainer.using(tiny_detector.pt), name="run")
    assert set(seen) == {"DetectionModel"}
    assert Path(results.save_dir) == cfg.parent / "run"
    assert model.metrics is results
    assert results.box.map == pytest.approx(results.results_dict["metrics/mAP50-95(B)"])
    again = model.val(imgsz=64, workers=0, device="cpu", plots=False, project=str(cfg.parent))  # data= as in training
    assert again.box.map == pytest.approx(results.box.map, abs=0.01)
    assert len(model.predict(tiny_detector.images[0], imgsz=64, verbose=False)) == 1


def test_a_chain_takes_a_file_and_callbacks_and_returns_what_ultralytics_returns(tiny_detector: Any, cfg: Path) -> None:
    models = {"model": str(tiny_detector.student), "teacher": str(tiny_detector.pt), "assistant": str(tiny_detector.pt)}
    twin = cfg.parent / "twin.pt"  # of another name: a chain refuses its teacher as its assistant
    torch.save({**torch.load(tiny_detector.pt, weights_only=False), "epoch": 7}, twin)
    cfg.write_text(yaml.safe_dump({**yaml.safe_load(cfg.read_text()), **models, "assistant": str(twin)}))
    chain, seen = MKD(), []
    chain.add_callback("on_train_end", lambda trainer: seen.append(trainer.args.name))
    student = chain.train(cfg=str(cfg), name="chain")
    assert seen == ["assistant", "student"]
    assert chain.chain is not None
    assert student.metrics is chain.results
    assert chain.results.box.map == pytest.approx(chain.chain["stages"][-1]["metrics"]["map50_95"], abs=1e-4)
    assert student.val(imgsz=64, workers=0, device="cpu", plots=False, project=str(cfg.parent)).box.map >= 0
