"""Checkpoints that survive a kill: one good generation beside the files that Ultralytics writes in place.

Ultralytics overwrites last.pt and best.pt each epoch. A kill or a full disk in the middle leaves a file that is cut
off, and the run cannot be resumed. So each epoch's checkpoints are copied once they are written, except those of the
epoch in which training ends: a run that is killed between that epoch and the end of its final validation repeats it.
With the copies lies the state that Ultralytics does not save, see `exact`.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, TypedDict

import torch
from ultralytics.utils import LOGGER, RANK

from yolo_mkd import report
from yolo_mkd.host.exact import ExactRun, approximations, read_state
from yolo_mkd.host.files import check_data
from yolo_mkd.host.models import UNREADABLE
from yolo_mkd.host.runs import write_tensors
from yolo_mkd.host.trust import read_contents
from yolo_mkd.settings import BadInput, Failed

RECORD = "stage.json"
KEPT = "kept-"  # begins the name of a generation's folder
MANIFEST = "kept.json"
TABLES = ("results.csv", "shares.csv")  # whose first column is the epoch, from 1
FILES = ("last.pt", "best.pt", "mkd.pt")  # of a generation; the last two where they exist
EXACT = "exact.pt"  # in it, where the run is one process


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
        run: follows the training.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.run = ExactRun()
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
        yolo.add_callback("on_train_start", self.on_train_start)
        yolo.add_callback("on_model_save", self.on_model_save)
        yolo.add_callback("on_train_end", self.on_train_end)
        if RANK == -1:
            yolo.add_callback("on_train_epoch_start", self.run.begin_epoch)
            yolo.add_callback("on_train_batch_end", self.run.end_batch)
            yolo.add_callback("on_train_epoch_end", self.run.end_epoch)

    def on_train_start(self, trainer: Any) -> None:
        """Continue a resumed run from its exact state, where there is one."""
        epoch = trainer.start_epoch - 1
        if RANK != -1 or epoch < 0:
            return
        state = read_state(self._kept(epoch) / EXACT) if self._exact(epoch) else None
        if state is None:
            LOGGER.warning(f"M-KD: {self.folder.name} is resumed from weights in half precision")
            return
        self.run.restore(trainer, state)
        reasons = "; ".join(approximations(trainer))
        how = f"as nearly as possible ({reasons})" if reasons else "exactly"
        LOGGER.info(f"M-KD: {self.folder.name} continues {how} where epoch {epoch + 1} ended")

    def on_model_save(self, trainer: Any) -> None:
        """Copy the epoch's checkpoints, unless training ends with it, and note the epoch."""
        if RANK not in {-1, 0}:
            return
        try:
            if not trainer.stop:
                self._keep(int(trainer.epoch), trainer)
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

    def _kept(self, epoch: int) -> Path:
        """The folder of an epoch's generation."""
        return self.weights / f"{KEPT}{epoch}"

    def _keep(self, epoch: int, trainer: Any) -> None:
        """Copy the checkpoints into a folder of their own, its manifest last, then remove older ones."""
        older, target = self._generations(), self._kept(epoch)
        shutil.rmtree(target, ignore_errors=True)
        try:
            target.mkdir()
            for name in FILES:
                if (self.weights / name).is_file():
                    with report.atomic(target / name) as partial:
                        shutil.copyfile(self.weights / name, partial)
            if (state := self.run.state(trainer)) is not None:
                write_tensors(target / EXACT, dict(state))
            digests = {file.name: report.sha256(file) for file in target.iterdir()}
            report.write_text(target / MANIFEST, json.dumps({"epoch": epoch, "files": digests}))
        except (OSError, Failed):
            shutil.rmtree(target, ignore_errors=True)  # what there is of it takes space
            raise
        for kept in older:
            if kept != target:
                shutil.rmtree(kept, ignore_errors=True)

    def _generations(self) -> list[Path]:
        """The folders of all generations, the newest first."""
        found = [p for p in self.weights.glob(f"{KEPT}*") if p.name.removeprefix(KEPT).isdecimal()]
        return sorted(found, key=epoch_of, reverse=True)

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
        kept = next(filter(self._whole, self._generations()), None)
        last = None if ending else self._resumable_epoch()
        if last == 0 and kept is None:
            return False  # killed before the first copy was whole: an epoch again costs less than an inexact resume
        if last is not None:
            data = (checkpoint(self.weights / "last.pt") or {}).get("train_args", {}).get("data")
            check_data(data, fetch=False)  # Ultralytics resumes on the data that last.pt names
            if kept is None or not self._exact(epoch_of(kept)) or last != epoch_of(kept) + 1:
                self._trim_tables(last)
                return True
            why = f"it was stopped before all of epoch {last + 1} was saved"
        else:
            why = "its last epoch is repeated" if ending else "last.pt, best.pt or mkd.pt is damaged"
        if kept is None:
            return False
        LOGGER.warning(f"M-KD: {self.folder.name}: {why}: resuming from the copy of epoch {epoch_of(kept) + 1}")
        self._put_back(kept)
        self._trim_tables(epoch_of(kept))
        return True

    def _put_back(self, kept: Path) -> None:
        for name in FILES:
            if (kept / name).is_file():
                with report.atomic(self.weights / name) as partial:
                    shutil.copyfile(kept / name, partial)
            else:
                (self.weights / name).unlink(missing_ok=True)

    def _whole(self, kept: Path) -> bool:
        """Whether the checkpoints of a generation are as its manifest has them."""
        names = {name for name in manifest(kept) if name != EXACT}
        return "last.pt" in names and all(self._intact(kept, name) for name in names)

    def _exact(self, epoch: int) -> bool:
        """Whether the exact state of an epoch is there and whole."""
        return self._intact(self._kept(epoch), EXACT)

    def _intact(self, kept: Path, name: str) -> bool:
        """Whether a file of a generation has the SHA-256 in its manifest."""
        return (kept / name).is_file() and report.sha256(kept / name) == manifest(kept).get(name)

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


def epoch_of(kept: Path) -> int:
    """The epoch of a generation, from 0."""
    return int(kept.name.removeprefix(KEPT))


def manifest(kept: Path) -> dict[str, str]:
    """The SHA-256 of each file of a generation; empty where its manifest is missing or damaged."""
    try:
        files = json.loads((kept / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def checkpoint(file: Path) -> dict[str, Any] | None:
    """A checkpoint's contents; None where it is missing or damaged.

    Raises:
        BadInput: it holds code and is not trusted.
    """
    try:
        return read_contents(file)
    except BadInput:
        raise
    except UNREADABLE:  # cut off while it was written
        return None


def unfinished_epoch(last: Path) -> int | None:
    """The epoch of an unfinished run's checkpoint, from 0; None where it cannot be resumed."""
    found = checkpoint(last)
    if found is None or found.get("optimizer") is None:
        return None
    epoch = int(found.get("epoch", -1))
    return epoch if 0 <= epoch < int(found.get("train_args", {}).get("epochs", 0)) - 1 else None
