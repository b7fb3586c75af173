"""TensorBoard and MLflow's file store store the distillation's columns: what each wrote is read back."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LOGGERS = ("tensorboard", "mlflow")
TERMS = ("soft", "attention", "guidance")
RUN = """
import json, sys
from ultralytics import YOLO
from ultralytics.utils import SETTINGS
from yolo_mkd import MKDTrainer

teacher, student, arguments = json.loads(sys.argv[1])
assert SETTINGS["tensorboard"] and SETTINGS["mlflow"]
YOLO(student).train(trainer=MKDTrainer.using(teacher, soft=1, attention=0.5, guidance=0.25), **arguments)
"""


@pytest.fixture(scope="module")
def logged(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one distilled training with every installed logger switched on in Ultralytics' own settings."""
    folder = tmp_path_factory.mktemp("loggers")
    switches = {name: True for name in LOGGERS}
    switch = f"from ultralytics import settings; settings.update({switches})"
    own = {
        "YOLO_CONFIG_DIR": str(folder / "config"), "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    # Ultralytics switches loggers off where it runs inside of pytest
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "GITHUB"))} | own
    arguments = {
        "data": str(tiny_detector.data), "imgsz": 64, "epochs": 2, "batch": 8, "fraction": 0.25, "device": "cpu",
        "workers": 0, "project": str(folder / "runs"), "name": "run", "plots": False, "verbose": False,
    }  # fmt: skip
    words = json.dumps([str(tiny_detector.pt), str(tiny_detector.student), arguments])
    for command in ([switch], [RUN, words]):
        done = subprocess.run(
            [sys.executable, "-c", *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Can't pickle" not in done.stdout + done.stderr
    return folder


def column(folder: Path, term: str) -> list[float]:
    """A term's column of results.csv."""
    with open(folder / "runs/run/results.csv", newline="", encoding="utf-8") as f:
        return [float(row[f"kd/{term}"]) for row in csv.DictReader(f)]


def read_tensorboard(folder: Path, term: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/run"))
    events.Reload()
    return [event.value for event in events.Scalars(f"kd/{term}")]


def read_mlflow(folder: Path, term: str) -> list[float]:
    (file,) = (folder / "mlruns").glob(f"*/*/metrics/kd/{term}")
    return [float(line.split()[1]) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_logger_stores_the_columns_of_the_terms(logger: str, logged: Path) -> None:
    if importlib.util.find_spec(logger) is None:
        pytest.skip(f"{logger} is not installed")
    read = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}[logger]
    for term in TERMS:
        assert read(logged, term) == pytest.approx(column(logged, term), rel=1e-4)
    assert any(column(logged, "soft"))
