"""Checkpoints that survive a kill: one good generation beside the files that Ultralytics writes in place.

Ultralytics overwrites last.pt and best.pt each epoch. A kill or a full disk in the middle leaves a file that is cut
off, and the run cannot be resumed. So each epoch's checkpoints are copied once they are written, except those of the
epoch in which training ends: a run that is killed between that epoch and the end of its final validation repeats it.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, TypedDict

import torch
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, RANK

from yolo_mkd import report
from yolo_mkd.host.models import UNREADABLE
from yolo_mkd.settings import Failed

RECORD = "stage.json"
KEPT = "kept-"  # begins the name of a generation's folder
MANIFEST = "kept.json"
TABLES = ("results.csv", "shares.csv")  # whose first column is the epoch, from 1
FILES = ("last.pt", "best.pt", "mkd.pt")  # of a generation; the last two where they exist


class StageRecord(TypedDict):
    """The contents of stage.json.

    Attributes:
        epoch: the last epoch whose checkpoint was written, from 0.
        ending: whether training ends with this epoch.
        finished: whether the final validation is over; only then the run is done.
        best_sha256: of the finished best.pt; empty before.
    """

    epoch: int
    ending: bool
    finished: bool
    best_sha256: str


class CheckpointKeeper:
    """Keeps a good generation of one run's checkpoints, and restores it.

    Attributes:
        folder: the run's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._warned = False

    @property
    def weights(self) -> Path:
        """Where Ultralytics writes its checkpoints."""
        return self.folder / "weights"

    def install(self, yolo: Any) -> None:
        """Watch the next training of an Ultralytics model.

        Args:
            yolo: the model, an `ultralytics.YOLO`.
        """
        yolo.add_callback("on_model_save", self.on_model_save)
        yolo.add_callback("on_train_end", self.on_train_end)

    def on_model_save(self, trainer: Any) -> None:
        """Copy the epoch's checkpoints, unless training ends with it, and note the epoch."""
        if RANK not in {-1, 0}:
            return
        try:
            if not trainer.stop:
                self._keep(int(trainer.epoch))
            self._write({"epoch": int(trainer.epoch), "ending": bool(trainer.stop), "finished": False})
        except (OSError, Failed) as error:  # of a full disk: the older generation stays
            if not self._warned:
                LOGGER.warning(f"M-KD: {self.weights}: the checkpoint cannot be copied ({error})")
            self._warned = True

    def on_train_end(self, trainer: Any) -> None:
        """Record that the run is finished, and remove the copies."""
        if RANK not in {-1, 0}:
            return
        best = self.weights / "best.pt"
        found = report.sha256(best) if best.is_file() else ""
        self._write({"epoch": int(trainer.epoch), "ending": True, "finished": True, "best_sha256": found})
        for kept in self.weights.glob(f"{KEPT}*"):
            shutil.rmtree(kept, ignore_errors=True)

    def _write(self, record: dict[str, Any]) -> None:
        report.write_text(self.folder / RECORD, json.dumps({"best_sha256": "", **record}) + "\n")

    def _keep(self, epoch: int) -> None:
        """Copy the checkpoints into a folder of their own, its manifest last, then remove older ones."""
        older = list(self.weights.glob(f"{KEPT}*"))
        target = self.weights / f"{KEPT}{epoch}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        digests = {}
        for name in FILES:
            if (self.weights / name).is_file():
                shutil.copyfile(self.weights / name, target / name)
                digests[name] = report.sha256(target / name)
        report.write_text(target / MANIFEST, json.dumps({"epoch": epoch, "files": digests}))
        for kept in older:
            if kept != target:
                shutil.rmtree(kept, ignore_errors=True)

    # Afterwards

    def record(self) -> StageRecord | None:
        """The run's record; None where there is none that can be read."""
        try:
            found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        complete = isinstance(found, dict) and StageRecord.__annotations__.keys() <= found.keys()
        return found if complete else None

    def finished(self) -> bool:
        """Whether the run is done by its own record, and its best.pt is the one that was recorded."""
        record, best = self.record(), self.weights / "best.pt"
        return bool(record and record["finished"] and best.is_file() and report.sha256(best) == record["best_sha256"])

    def restore(self) -> bool:
        """Make last.pt one that can be resumed, from the copies where it is damaged or of the run's last epoch.

        Returns:
            Whether the run can be resumed; else it has to begin anew.
        """
        record = self.record()
        ending = bool(record and record["ending"])
        if not ending and (last := self._resumable_epoch()) is not None:
            self._trim_tables(last)
            return True
        for kept in sorted(self.weights.glob(f"{KEPT}*"), key=lambda p: int(p.name.removeprefix(KEPT)), reverse=True):
            if self._whole(kept):
                why = "its last epoch is repeated" if ending else "last.pt, best.pt or mkd.pt is damaged"
                epoch = int(kept.name.removeprefix(KEPT))
                LOGGER.warning(f"M-KD: {self.folder.name}: {why}: resuming from the copy of epoch {epoch + 1}")
                self._put_back(kept)
                self._trim_tables(epoch)
                return True
        return False

    def _put_back(self, kept: Path) -> None:
        for name in FILES:
            if (kept / name).is_file():
                with report.atomic(self.weights / name) as partial:
                    shutil.copyfile(kept / name, partial)
            else:
                (self.weights / name).unlink(missing_ok=True)

    def _whole(self, kept: Path) -> bool:
        """Whether a generation is as its manifest has it."""
        try:
            files = json.loads((kept / MANIFEST).read_text(encoding="utf-8"))["files"]
            return "last.pt" in files and all(report.sha256(kept / name) == digest for name, digest in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _trim_tables(self, epoch: int) -> None:
        """Drop the rows of epochs after this one, counted from 0: a resumed run writes them again."""
        for table in (self.folder / name for name in TABLES):
            if not table.is_file():
                continue
            with open(table, newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            kept = [row for row in rows if row and row[0].strip().isdecimal() and int(row[0]) <= epoch + 1]
            if len(kept) < len(rows):
                with report.atomic(table) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
                    csv.writer(file, lineterminator="\n").writerows([header, *kept])

    def _resumable_epoch(self) -> int | None:
        """The epoch of last.pt if the files in place belong together and hold all that a resumed run needs."""
        last, best, state = (self.weights / name for name in FILES)
        epoch = unfinished_epoch(last)
        if epoch is None or (best.exists() and checkpoint(best) is None):
            return None
        if not state.exists():
            return epoch
        try:
            own = torch.load(state, map_location="cpu", weights_only=True).get("epoch", epoch)
        except UNREADABLE:
            return None
        return epoch if own == epoch else None


def checkpoint(file: Path) -> dict[str, Any] | None:
    """A checkpoint's contents; None where it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        return dict(load_checkpoint(file)[1])
    except UNREADABLE:  # cut off while it was written
        return None


def unfinished_epoch(last: Path) -> int | None:
    """The epoch of an unfinished run's checkpoint, from 0; None where it cannot be resumed."""
    found = checkpoint(last)
    if found is None or found.get("optimizer") is None:
        return None
    epoch = int(found.get("epoch", -1))
    return epoch if 0 <= epoch < int(found.get("train_args", {}).get("epochs", 0)) - 1 else None
