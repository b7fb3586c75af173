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
    words = [
        f"data={tiny_detector.data}", f"model={tiny_detector.student}", f"teacher={tiny_detector.pt}", "assistant=none",
        "soft=1", "attention=0.5", "guidance=0.25", "imgsz=64", "epochs=2", "batch=8", "fraction=0.25", "device=cpu",
        "workers=0", f"project={folder / 'runs'}", "name=run", "verbose=False",
    ]  # fmt: skip
    for command in (["-c", switch], ["-m", "yolo_mkd", "train", *words]):
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Can't pickle" not in done.stdout + done.stderr
        assert "did not store" not in done.stdout + done.stderr
    return folder


def column(folder: Path, term: str) -> list[float]:
    """A term's column of results.csv."""
    with open(folder / "runs/run/student/results.csv", newline="", encoding="utf-8") as f:
        return [float(row[f"kd/{term}"]) for row in csv.DictReader(f)]


def read_tensorboard(folder: Path, term: str, group: str = "kd") -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/run/student"))
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


def wandb_contents(folder: Path) -> Iterator[Any]:
    """The records of the training's run, first those of the training, then those of the page."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((folder / "runs/run/student/wandb").glob("offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime)
    assert len(files) == 2
    assert files[0].name == files[1].name  # one run, of which wandb sync makes one
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            yield record


def read_wandb(folder: Path, term: str, group: str = "kd") -> list[float]:
    found = []
    for record in wandb_contents(folder):
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if f"{group}/{term}" in items:
            found.append(json.loads(items[f"{group}/{term}"]))
    return found


def page_of_tensorboard(folder: Path) -> bytes:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/run/student"))
    events.Reload()
    (text,) = events.Tensors("report/text_summary")
    link = text.tensor_proto.string_val[0].decode()
    assert link.startswith("[report.html](file://")
    return Path(link.removeprefix("[report.html](file://").removesuffix(")")).read_bytes()


def page_of_mlflow(folder: Path) -> bytes:
    (file,) = (folder / "mlruns").glob("*/*/artifacts/report.html")
    assert (file.parents[1] / "params/name").read_text() == "student"
    return file.read_bytes()


def page_of_wandb(folder: Path) -> bytes:
    (artifact,) = [r.artifact for r in wandb_contents(folder) if r.artifact.type == "report"]
    assert artifact.run_id in str(next((folder / "runs/run/student/wandb").glob("offline-run-*")))
    (entry,) = artifact.manifest.contents
    assert entry.path == "report.html"
    return Path(entry.local_path).read_bytes()


def of_installed(*functions: Callable[..., Any]) -> list[Any]:
    """A test's parameter for each logger, skipped by name where it is not installed."""
    return [
        pytest.param(
            f, id=name, marks=pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed")
        )
        for name, f in zip(LOGGERS, functions, strict=True)
    ]


READERS = of_installed(read_tensorboard, read_mlflow, read_wandb)


def shares(folder: Path, term: str, column: str) -> list[float]:
    """A term's share as it acted, or its cosine, of shares.csv."""
    with open(folder / "runs/run/student/shares.csv", newline="", encoding="utf-8") as f:
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
    assert "kd_share" not in (logged / "runs/run/student/results.csv").read_text()


@pytest.mark.parametrize("read", READERS)
def test_a_logger_stores_the_columns_of_the_terms(read: Read, logged: Path) -> None:
    for term in TERMS:
        assert read(logged, term) == pytest.approx(column(logged, term), rel=1e-4)
    assert any(column(logged, "soft"))


@pytest.mark.parametrize("page_of", of_installed(page_of_tensorboard, page_of_mlflow, page_of_wandb))
def test_a_logger_stores_the_page(page_of: Callable[[Path], bytes], logged: Path) -> None:
    page = (logged / "runs/run/report.html").read_bytes()
    assert b"mAP50-95" in page
    assert page_of(logged) == page
