"""Records on disk: shards that are written whole or not at all, in a folder that says what they depend on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_mkd.cache.codec import Layout
from yolo_mkd.settings import BadInput

LOGGER = logging.getLogger(__name__)
FORMAT = 1  # raised when a field of a record changes its meaning
HEADER = "record.json"
PART = ".part"  # ends the name of a file that is being written
SHARD = 256  # records in a file, and the most that a kill can lose
STALE_S = 3600  # age from which such a file is a leftover of a kill
NAMED = 3  # differences that a refusal names


class Store:
    """Records by the codes of their views. Several runs may write one folder at once; each sees its own and older ones.

    Attributes:
        full: whether nothing more is stored, because of the limit or the disk.
        bytes_on_disk: size of all shards that were read or written.
    """

    def __init__(self, folder: Path, layout: Layout, limit_bytes: int | None = None):
        """Read the shards of a folder whose header is known to fit; use `open`.

        Args:
            folder: where the shards are.
            layout: of the records.
            limit_bytes: largest size of the shards together, or None.
        """
        self.folder, self.layout, self.limit_bytes = folder, layout, limit_bytes
        self.full, self.bytes_on_disk = False, 0
        self._overhead = shard_bytes(layout, 0)
        self._shards: list[np.ndarray] = []
        self._place: dict[int, tuple[int, int]] = {}  # shard and row of each code; the last shard is the one in hand
        self._hand = np.empty(SHARD, layout.dtype)
        self._held = 0
        for file in sorted(folder.glob(f"*{PART}")):
            remove_stale(file)
        for file in sorted(folder.glob("*.npy")):
            self._read(file)

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any], layout: Layout, limit_bytes: int | None = None) -> Store:
        """Open a record, or begin one in a new or empty folder.

        Args:
            folder: the record's.
            header: all that the records depend on, as JSON can hold it.
            layout: of the records.
            limit_bytes: largest size of the shards together, or None.

        Raises:
            BadInput: the folder is no record, or one of something else.
        """
        wanted = json.loads(json.dumps({"format": FORMAT, **header}))
        file = folder / HEADER
        if not file.exists():
            if folder.exists() and (not folder.is_dir() or any(f.suffix != PART for f in folder.iterdir())):
                raise BadInput(f"record={folder} is there and no record of M-KD's: give a new or an empty folder")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(file, (json.dumps(wanted, indent=2) + "\n").encode())
            except OSError as e:
                raise BadInput(f"record={folder} cannot be written ({e.strerror}): give another folder") from e
        try:
            found = dict(json.loads(file.read_bytes()))  # also just after writing: another run may have written, too
        except (OSError, ValueError, TypeError) as e:
            raise BadInput(f"record={folder}: its {HEADER} cannot be read: delete the folder, or give another") from e
        if differing := differences(found, wanted):
            named = "; ".join(differing[:NAMED])
            more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            raise BadInput(f"record={folder} is of something else ({named}{more}): use what it has, or another folder")
        return cls(folder, layout, limit_bytes)

    def _read(self, file: Path) -> None:
        try:
            shard = read_shard(file, self.layout)
        except (OSError, ValueError):
            LOGGER.warning(f"M-KD: {file} is damaged and left out: its views are recorded again; delete it")
            return
        self._place.update((code, (len(self._shards), row)) for row, code in enumerate(shard["code"].tolist()))
        self._shards.append(shard)
        self.bytes_on_disk += file.stat().st_size

    def __len__(self) -> int:
        """How many views are recorded, those in hand included."""
        return len(self._place)

    def has(self, code: int) -> bool:
        """Whether a view is recorded."""
        return code in self._place

    def missing(self, codes: Sequence[int]) -> list[int]:
        """Positions in `codes` of the views that are not recorded."""
        return [i for i, code in enumerate(codes) if code not in self._place]

    def get(self, codes: Sequence[int]) -> np.ndarray:
        """The records of some views, in the order asked.

        Raises:
            KeyError: one of them is not recorded.
        """
        records = np.empty(len(codes), self.layout.dtype)
        for i, code in enumerate(codes):
            shard, row = self._place[code]
            records[i] = self._hand[row] if shard == len(self._shards) else self._shards[shard][row]
        return records

    def put(self, records: np.ndarray) -> None:
        """Keep records, of views already recorded none; beyond the limit nothing more is kept, which is said once."""
        for record in records:
            if self.full or int(record["code"]) in self._place:
                continue
            size = self.bytes_on_disk + self._overhead + (self._held + 1) * self.layout.bytes
            if self.limit_bytes is not None and size > self.limit_bytes:
                self._stop(f"its limit of {self.limit_bytes / 2**30:.3g} GB is reached")
                continue
            self._place[int(record["code"])] = (len(self._shards), self._held)
            self._hand[self._held] = record
            self._held += 1
            if self._held == SHARD:
                self.flush()

    def flush(self) -> None:
        """Write the shard in hand, however short; where the disk cannot take it, it stays in memory."""
        if not self._held:
            return
        file = self.folder / f"{uuid.uuid4().hex}.npy"
        try:
            write_whole(file, shard_header(self.layout, self._held) + self._hand[: self._held].tobytes())
            shard = read_shard(file, self.layout)
        except OSError as e:
            self._stop(f"a shard cannot be written ({e.strerror})")
            return
        self._shards.append(shard)
        self.bytes_on_disk += file.stat().st_size
        self._held = 0

    def close(self) -> None:
        """Write what is in hand and let go of the files; the store answers nothing more."""
        self.flush()
        self._shards, self._place, self._held = [], {}, 0

    def _stop(self, reason: str) -> None:
        if not self.full:
            LOGGER.warning(f"M-KD: record={self.folder}: {reason}: other views are asked again each time")
        self.full = True


def estimate(layout: Layout, images: int, views: int) -> int:
    """Size on disk of a whole record [bytes].

    Args:
        layout: of the records.
        images: how many there are.
        views: of each image.
    """
    whole, others = divmod(images * views, SHARD)
    return whole * shard_bytes(layout, SHARD) + (shard_bytes(layout, others) if others else 0)


def shard_bytes(layout: Layout, records: int) -> int:
    """Size of a shard [bytes]."""
    return len(shard_header(layout, records)) + records * layout.bytes


def shard_header(layout: Layout, records: int) -> bytes:
    """How the .npy file of a shard begins; numpy pads it to the same length for any number of records."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(layout.dtype), "fortran_order": False, "shape": (records,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def read_shard(file: Path, layout: Layout) -> np.ndarray:
    """Map a shard's records into memory.

    Its header is compared and not parsed: numpy's parser fails on a damaged one in too many ways.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no whole shard of the layout.
    """
    start = len(shard_header(layout, 0))
    count, odd = divmod(file.stat().st_size - start, layout.bytes)
    with file.open("rb") as f:
        if odd or count < 1 or f.read(start) != shard_header(layout, count):
            raise ValueError(f"{file} is no shard")
    return np.memmap(file, layout.dtype, "r", start, (count,))


def fingerprint(images: Sequence[Path], labels: Sequence[Path] | None = None) -> str:
    """SHA-256 of a data set: names below the images' common folder, sizes in bytes and labels, in the data's order.

    Views are counted by an image's position, so the order matters. The images themselves are not read.

    Args:
        images: the image files.
        labels: the label file of each image; one that is not there counts as empty. None where no image has any.
    """
    digest = hashlib.sha256()
    root = os.path.commonpath([image.parent for image in images]) if images else ""
    for i, image in enumerate(images):
        text = labels[i].read_bytes() if labels is not None and labels[i].is_file() else b""
        name = Path(os.path.relpath(image, root)).as_posix()
        digest.update(f"{json.dumps(name)} {image.stat().st_size} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the process or the machine stops."""
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}{PART}")
    try:
        with partial.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def remove_stale(file: Path) -> None:
    """Remove a file that a killed run left half-written; a young one may be in another run's hands."""
    try:
        if time.time() - file.stat().st_mtime > STALE_S:
            file.unlink()
    except FileNotFoundError:
        return  # the other run has finished it


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """In which values two headers differ, each as `name: that of the record, that of this run`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            line
            for key in {**found, **wanted}
            for line in differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == wanted else [f"{name}: it has {short(found)}, this run {short(wanted)}"]


def short(value: Any) -> str:
    """A value in at most 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
