"""A student is plain wherever others see it: in callbacks, in checkpoints, and when stock Ultralytics resumes it."""

from __future__ import annotations

import copy
import csv
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import MKDTrainer

pytestmark = pytest.mark.slow

EVENTS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end",
    "on_model_save", "on_fit_epoch_end",
)  # fmt: skip
EPOCHS = 3
WITHOUT_MKD = "import sys; sys.modules['yolo_mkd'] = None\n"  # importing it is an error
LOAD = """
import glob, torch
for file in sorted(glob.glob(sys.argv[1] + "/on_*.pt")):
    model = torch.load(file, weights_only=False)
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    print(file.rsplit("/", 1)[1][:-3], type(model).__name__, hooks, type(model.criterion).__name__)
"""
RESUME = """
from ultralytics import YOLO
yolo = YOLO(sys.argv[1])
yolo.train(resume=True)
print("resumed to", yolo.trainer.epoch + 1)
"""


class Interrupted(Exception):
    """Raised in a callback in place of a lost process."""


@dataclass(frozen=True)
class CutOff:
    """A distilled run that was cut off in its second epoch.

    Attributes:
        folder: of the run.
        models: a file of the model as each event's callback pickled it.
        teacher: its file.
    """

    folder: Path
    models: Path
    teacher: Path

    def copy_to(self, folder: Path) -> Path:
        """Copy the run and return its last.pt."""
        shutil.copytree(self.folder, folder / "run")
        last = folder / "run/weights/last.pt"
        checkpoint = torch.load(last, weights_only=False)
        checkpoint["train_args"]["save_dir"] = str(folder / "run")
        torch.save(checkpoint, last)
        return last


@pytest.fixture(scope="module")
def cut_off(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> CutOff:
    place = tmp_path_factory.mktemp("cut_off")

    def pickler(event: str) -> Any:
        def pickle_model(trainer: Any) -> None:
            written = io.BytesIO()
            torch.save(copy.deepcopy(trainer.model), written)
            (place / f"{event}.pt").write_bytes(written.getvalue())

        return pickle_model

    def interrupt(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Interrupted

    yolo = YOLO(tiny_detector.student)
    for event in EVENTS:
        yolo.add_callback(event, pickler(event))
    yolo.add_callback("on_train_epoch_end", interrupt)
    with pytest.raises(Interrupted):
        yolo.train(
            trainer=MKDTrainer.using(tiny_detector.pt, until=1.0), data=tiny_detector.data, imgsz=64, epochs=EPOCHS,
            batch=8, nbs=8, fraction=0.25, optimizer="AdamW", lr0=0.002, close_mosaic=0, warmup_epochs=0.5,
            plots=False, device="cpu", workers=0, project=str(place), name="run",
        )  # fmt: skip
    return CutOff(place / "run", place, tiny_detector.pt)


def without_mkd(code: str, argument: Path) -> list[str]:
    """The lines that code prints in a process that cannot import yolo_mkd."""
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_MKD + code, str(argument)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout.splitlines()


def epochs_in(folder: Path) -> list[int]:
    with open(folder / "results.csv", encoding="utf-8") as f:
        return [int(row["epoch"]) for row in csv.DictReader(f)]


def test_the_model_that_a_callback_pickles_is_plain_and_loads_without_this_package(cut_off: CutOff) -> None:
    assert without_mkd(LOAD, cut_off.models) == [f"{event} DetectionModel 0 E2ELoss" for event in sorted(EVENTS)]


def test_stock_ultralytics_resumes_a_distilled_run_to_its_end(cut_off: CutOff, tmp_path: Path) -> None:
    last = cut_off.copy_to(tmp_path)
    assert f"resumed to {EPOCHS}" in without_mkd(RESUME, last)
    assert epochs_in(last.parents[1]) == [1, 2, 3]


def test_a_distilled_run_is_resumed_with_its_teacher(cut_off: CutOff, tmp_path: Path) -> None:
    last = cut_off.copy_to(tmp_path)
    assert (last.parent / "mkd.pt").is_file()
    yolo = YOLO(last)
    yolo.train(resume=True, trainer=MKDTrainer.using(cut_off.teacher, until=1.0))
    assert yolo.trainer.epoch + 1 == EPOCHS
    with open(last.parents[1] / "results.csv", encoding="utf-8") as f:
        assert all(float(row["kd/soft"]) > 0 for row in csv.DictReader(f))
    assert not (last.parent / "mkd.pt").exists()
    assert "mkd" in torch.load(last, weights_only=False)


def test_a_run_cannot_be_resumed_with_other_terms(cut_off: CutOff, tmp_path: Path) -> None:
    last = cut_off.copy_to(tmp_path)
    with pytest.raises(BadInput) as refused:
        YOLO(last).train(resume=True, trainer=MKDTrainer.using(cut_off.teacher, until=1.0, guidance=0))
    assert "\n" not in str(refused.value) and "terms" in str(refused.value)
