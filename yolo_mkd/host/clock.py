"""Time and data of each epoch: seconds of training without validation, and digests of initial weights and batches."""

from __future__ import annotations

import csv
import time
import zlib
from pathlib import Path
from typing import Any

from ultralytics.utils import RANK
from ultralytics.utils.callbacks.base import default_callbacks
from ultralytics.utils.torch_utils import unwrap_model

FILE = "clock.csv"
COLUMNS = ("epoch", "seconds", "cpu_s", "start", "images", "pixels", "seen")


class Clock:
    """Ultralytics callbacks that write one row for each epoch of this process's trainings to `clock.csv`.

    `start` is a digest of the student's weights before its first step, `images` of the files in the order of the
    epoch's batches, `pixels` of their augmented pixels. Two runs with equal digests had the same initial weights and
    data. `seconds` are wall-clock time; `cpu_s` is this process's CPU time, which other programs do not lengthen.
    `seen` is how many images the student was trained on, unlabelled ones included.

    Attributes:
        images: digest of the epoch's files so far.
        pixels: digest of the epoch's pixels so far.
        seen: images of the epoch so far.
    """

    def __init__(self) -> None:
        self.images = self.pixels = self.seen = 0

    @classmethod
    def install(cls) -> Clock:
        """Make every training that starts in this process from now on write its `clock.csv`."""
        clock = cls()
        for event in ("on_train_start", "on_train_epoch_start", "on_train_epoch_end"):
            default_callbacks[event].append(getattr(clock, event))
        return clock

    def on_train_start(self, trainer: Any) -> None:
        """Compute the digest of the student's weights, and from now on those of every batch."""
        if RANK not in {-1, 0}:
            return
        self.file = Path(trainer.save_dir) / FILE
        if not trainer.start_epoch:
            self.file.unlink(missing_ok=True)
        self.start = weights_digest(trainer.model)
        preprocess = trainer.preprocess_batch

        def with_digests(batch: dict[str, Any]) -> Any:
            self.images = zlib.crc32("\n".join(batch["im_file"]).encode(), self.images)
            sampled = batch["img"][..., ::8, ::8].contiguous().cpu().numpy()  # enough to distinguish two augmentations
            self.pixels = zlib.crc32(sampled.tobytes(), self.pixels)
            prepared = preprocess(batch)
            self.seen += len(prepared["img"])
            return prepared

        trainer.preprocess_batch = with_digests

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Start the epoch's clock."""
        self.images = self.pixels = self.seen = 0
        self.wall_started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Write the epoch's row."""
        if RANK not in {-1, 0}:
            return
        has_header = self.file.exists()
        with open(self.file, "a", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            if not has_header:
                writer.writerow(COLUMNS)
            seconds, cpu_s = time.perf_counter() - self.wall_started, time.process_time() - self.cpu_started
            digests = [f"{d:08x}" for d in (self.start, self.images, self.pixels)]
            writer.writerow([trainer.epoch + 1, f"{seconds:.4f}", f"{cpu_s:.4f}", *digests, self.seen])


def weights_digest(model: Any) -> int:
    """A digest of a student's weights; Ultralytics' own distillation wraps the student together with its teacher."""
    model, digest = unwrap_model(model), 0
    for value in getattr(model, "student_model", model).state_dict().values():
        digest = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), digest)
    return digest


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `clock.csv`, a dict of the columns for each epoch; the last row of a repeated epoch.

    `seen` is None where an earlier version has written the file.
    """
    with open(folder / FILE, newline="", encoding="utf-8") as f:
        rows = {int(r["epoch"]): r for r in csv.DictReader(f)}
    return [numbers(rows[epoch]) for epoch in sorted(rows)]


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `clock.csv` with numbers in place of their text."""
    seen = int(row["seen"]) if row.get("seen") else None
    times = {k: float(row[k]) for k in ("seconds", "cpu_s")}
    return {**row, "epoch": int(row["epoch"]), **times, "seen": seen}
