"""What each epoch of a run took and saw: seconds of training without validation, and digests of start and batches."""

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
COLUMNS = ("epoch", "seconds", "cpu_s", "start", "images", "pixels")


class Clock:
    """Watches the trainings of this process through Ultralytics' callbacks; one row an epoch in `clock.csv`.

    `start` is a digest of the student's weights before its first step, `images` of the files in the order of the
    epoch's batches, `pixels` of what augmentation made of them. Two runs with equal digests were given the same.
    `seconds` are those of the clock on the wall, `cpu_s` those that this process had of the processors, which other
    programs on the machine do not lengthen.
    """

    def __init__(self) -> None:
        self.images = self.pixels = 0

    @classmethod
    def install(cls) -> Clock:
        """Let every training that begins in this process from now on write its `clock.csv`."""
        clock = cls()
        for event in ("on_train_start", "on_train_epoch_start", "on_train_epoch_end"):
            default_callbacks[event].append(getattr(clock, event))
        return clock

    def on_train_start(self, trainer: Any) -> None:
        """Look at the student's weights, and at every batch from here on."""
        if RANK not in {-1, 0}:
            return
        self.file = Path(trainer.save_dir) / FILE
        if not trainer.start_epoch:
            self.file.unlink(missing_ok=True)
        self.start = weights_digest(trainer.model)
        preprocess = trainer.preprocess_batch

        def seen(batch: dict[str, Any]) -> Any:
            self.images = zlib.crc32("\n".join(batch["im_file"]).encode(), self.images)
            some = batch["img"][..., ::8, ::8].contiguous().cpu().numpy()  # enough to tell two augmentations apart
            self.pixels = zlib.crc32(some.tobytes(), self.pixels)
            return preprocess(batch)

        trainer.preprocess_batch = seen

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Start the epoch's clock."""
        self.images = self.pixels = 0
        self.since = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Write the epoch's row."""
        if RANK not in {-1, 0}:
            return
        begun = self.file.exists()
        with open(self.file, "a", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            if not begun:
                writer.writerow(COLUMNS)
            took = (time.perf_counter() - self.since[0], time.process_time() - self.since[1])
            digests = [f"{d:08x}" for d in (self.start, self.images, self.pixels)]
            writer.writerow([trainer.epoch + 1, *(f"{s:.4f}" for s in took), *digests])


def weights_digest(model: Any) -> int:
    """A digest of a student's weights; Ultralytics' own distillation holds the student beside its teacher."""
    model, digest = unwrap_model(model), 0
    for value in getattr(model, "student_model", model).state_dict().values():
        digest = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), digest)
    return digest


def read(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run, a dict of the columns for each; of an epoch that was repeated, the last time."""
    with open(folder / FILE, newline="", encoding="utf-8") as f:
        rows = {int(r["epoch"]): r for r in csv.DictReader(f)}
    return [{**rows[e], "epoch": e, **{k: float(rows[e][k]) for k in ("seconds", "cpu_s")}} for e in sorted(rows)]
