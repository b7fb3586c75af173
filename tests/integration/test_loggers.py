"""TensorBoard, MLflow's file store and W&B offline store what distillation computes: what each wrote is read back."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LOGGERS = ("tensorboard", "mlflow", "wandb")
Read = Callable[..., list[float]]
TERMS = ("soft", "attention", "guidance")
RUN = """
import json, sys
from ultralytics import YOLO
from ultralytics.utils import SETTINGS
from yolo_mkd import MKDTrainer

teacher, student, arguments = json.loads(sys.argv[1])
assert SETTINGS["tensorboard"] and SETTINGS["mlflow"] and SETTINGS["wandb"]
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
        "MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore",
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


def read_tensorboard(folder: Path, term: str, group: str = "kd") -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/run"))
    events.Reload()
    return [event.value for event in events.Scalars(f"{group}/{term}")]


def read_mlflow(folder: Path, term: str, group: str = "kd") -> list[float]:
    (file,) = (folder / "mlruns").glob(f"*/*/metrics/{group}/{term}")
    return [float(line.split()[1]) for line in file.read_text().splitlines()]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a W&B file: after its 7 bytes, blocks of 32 KiB hold parts behind CRC, length and kind."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (rest := 32768 - at % 32768) < 7:
            at += rest  # too short for a part
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(folder: Path, term: str, group: str = "kd") -> list[float]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / "runs/run/wandb").glob("offline-run-*/*.wandb")
    found = []
    for data in wandb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if f"{group}/{term}" in items:
            found.append(json.loads(items[f"{group}/{term}"]))
    return found


READERS = [
    pytest.param(
        read, id=name, marks=pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed")
    )
    for name, read in zip(LOGGERS, (read_tensorboard, read_mlflow, read_wandb), strict=True)
]


def shares(folder: Path, term: str, column: str) -> list[float]:
    """A term's share as it acted, or its cosine, of shares.csv."""
    with open(folder / "runs/run/shares.csv", newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["term"] == term]
    if column == "cosine":
        return [float(row["cosine"]) for row in rows]
    return [float(row["share"]) * float(row["weight"]) for row in rows]


@pytest.mark.parametrize("read", READERS)
def test_a_logger_stores_the_gradient_shares_and_results_csv_does_not(
    read: Callable[..., list[float]], logged: Path
) -> None:
    for term in TERMS:
        for kind in ("share", "cosine"):
            found = read(logged, term, f"kd_{kind}/run_weights_last.pt")
            assert found == pytest.approx(shares(logged, term, kind), rel=2e-3, abs=1e-6)
    assert any(shares(logged, "soft", "share"))
    assert "kd_share" not in (logged / "runs/run/results.csv").read_text()


@pytest.mark.parametrize("read", READERS)
def test_a_logger_stores_the_columns_of_the_terms(read: Read, logged: Path) -> None:
    for term in TERMS:
        assert read(logged, term) == pytest.approx(column(logged, term), rel=1e-4)
    assert any(column(logged, "soft"))
