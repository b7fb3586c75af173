"""The teacher cache on disk: shards of entries, each written whole or not at all, and a header with their settings.

A shard is a .npy file of entries, followed by the CRC-32 of each entry, which numpy ignores. Shards that were written
without these checksums can be read, but damage inside their entries is not found.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_mkd.cache.codec import Layout
from yolo_mkd.host import LOGGER
from yolo_mkd.report import PART, atomic
from yolo_mkd.settings import BadInput, Failed

FORMAT = 1  # raised when a field of an entry changes its meaning
HEADER = "record.json"
SHARD = 256  # entries in a file, and the most that a kill can lose
STALE_S = 3600  # age from which a .part file counts as left over by a killed process
NAMED = 3  # differences that an error lists; the others are counted
SHOWN = 40  # characters of a value in such a list
CHECKSUM = np.dtype("<u4")  # of an entry: its CRC-32


@dataclass(frozen=True)
class Shard:
    """A shard's file, mapped into memory.

    Attributes:
        file: where it is.
        entries: of the layout's type.
        checksums: one for each entry; None in a shard that was written without.
    """

    file: Path
    entries: np.ndarray
    checksums: np.ndarray | None

    def intact(self, row: int) -> bool:
        """Whether an entry has the checksum that it was written with."""
        return self.checksums is None or zlib.crc32(self.entries[row].tobytes()) == int(self.checksums[row])


class Store:
    """Cached entries by the code of their view.

    Several processes may write one folder at once; each reads its own entries and those that were there when it opened
    the folder.

    Attributes:
        full: whether nothing more is stored, because of the limit or the disk.
        bytes_on_disk: size of all shards that were read or written.
        damaged: codes of the entries that were found damaged and dropped.
        warnings: the warnings logged so far.
    """

    def __init__(self, folder: Path, layout: Layout, limit_bytes: int | None = None):
        """Read the shards of a folder whose header was compared already; use `open`.

        Args:
            folder: where the shards are.
            layout: of the entries.
            limit_bytes: largest size of the shards together, or None.
        """
        self.folder, self.layout, self.limit_bytes = folder, layout, limit_bytes
        self.full, self.bytes_on_disk = False, 0
        self.damaged: list[int] = []
        self.warnings: list[str] = []
        self._overhead = shard_bytes(layout, 0)
        self._shards: list[Shard] = []
        self._place: dict[int, tuple[int, int]] = {}  # shard and row of each code; one past the last shard is pending
        self._pending = np.empty(SHARD, layout.dtype)  # entries that are not on disk yet
        self._pending_count = 0
        for file in sorted(folder.glob(f"*{PART}")):
            remove_stale(file)
        for file in sorted(folder.glob("*.npy"), key=lambda f: (f.stat().st_mtime_ns, f.name)):
            self._load_shard(file)  # a view that was computed again replaces its damaged entry

    @classmethod
    def open(cls, folder: Path, header: Mapping[str, Any], layout: Layout, limit_bytes: int | None = None) -> Store:
        """Open a cache, or create it in a new or empty folder.

        Args:
            folder: the cache's.
            header: all settings that the entries depend on, as JSON can hold them.
            layout: of the entries.
            limit_bytes: largest size of the shards together, or None.

        Raises:
            BadInput: the folder holds other files, or a cache that was built with other settings.
        """
        wanted = json.loads(json.dumps({"format": FORMAT, **header}))
        file = folder / HEADER
        if not file.exists():
            if folder.exists() and (not folder.is_dir() or any(f.suffix != PART for f in folder.iterdir())):
                raise BadInput(f"record={folder} exists but is not a teacher cache: use a new or an empty folder")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic(file) as partial:
                    partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            except (OSError, BadInput, Failed) as e:
                raise BadInput(f"record={folder} cannot be written ({write_failure(e)}): use another folder") from e
        try:
            found = dict(json.loads(file.read_bytes()))  # also just after writing: another process may have written it
        except (OSError, ValueError, TypeError) as e:
            raise BadInput(
                f"record={folder}: its {HEADER} cannot be read: delete the folder, or use another one"
            ) from e
        if differing := differences(found, wanted):
            named = "; ".join(differing[:NAMED])
            more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            raise BadInput(
                f"record={folder} was built with other settings ({named}{more}): restore them, or use another folder"
            )
        return cls(folder, layout, limit_bytes)

    def _load_shard(self, file: Path) -> None:
        try:
            shard = map_shard(file, self.layout)
        except (OSError, ValueError):
            self.warn(f"{file} is damaged and was skipped: its views are computed again; delete the file")
            return
        self._place.update((code, (len(self._shards), row)) for row, code in enumerate(shard.entries["code"].tolist()))
        self._shards.append(shard)
        self.bytes_on_disk += file.stat().st_size

    def __len__(self) -> int:
        """How many views are cached, those included that are not on disk yet."""
        return len(self._place)

    def has(self, code: int) -> bool:
        """Whether a view is cached."""
        return code in self._place

    def missing(self, codes: Sequence[int]) -> list[int]:
        """Positions in `codes` of the views that are not cached, or whose entry is found damaged now and dropped."""
        for code in codes:
            shard, row = self._place.get(code, (len(self._shards), 0))
            if shard < len(self._shards) and not self._shards[shard].intact(row):
                self.damaged.append(code)
                del self._place[code]
        return [i for i, code in enumerate(codes) if code not in self._place]

    def get(self, codes: Sequence[int]) -> np.ndarray:
        """The entries of some views, in the order of `codes`; `missing` checks them.

        Raises:
            KeyError: one of them is not cached.
        """
        entries = np.empty(len(codes), self.layout.dtype)
        for i, code in enumerate(codes):
            shard, row = self._place[code]
            entries[i] = self._pending[row] if shard == len(self._shards) else self._shards[shard].entries[row]
        return entries

    def put(self, entries: np.ndarray) -> None:
        """Store entries, except those of views that are cached already; none beyond the limit, which is logged once."""
        for entry in entries:
            if self.full or int(entry["code"]) in self._place:
                continue
            size = self.bytes_on_disk + self._overhead + (self._pending_count + 1) * entry_bytes(self.layout)
            if self.limit_bytes is not None and size > self.limit_bytes:
                self._stop_storing(f"the limit of {self.limit_bytes / 2**30:.3g} GB is reached")
                continue
            self._place[int(entry["code"])] = (len(self._shards), self._pending_count)
            self._pending[self._pending_count] = entry
            self._pending_count += 1
            if self._pending_count == SHARD:
                self.flush()

    def flush(self) -> None:
        """Write the pending entries as a shard, however few; if the disk cannot take them, they stay in memory."""
        if not self._pending_count:
            return
        file = self.folder / f"{uuid.uuid4().hex}.npy"
        try:
            with atomic(file) as partial, partial.open("wb") as f:
                f.write(shard_header(self.layout, self._pending_count))
                f.write(self._pending[: self._pending_count].tobytes())
                f.write(checksums(self._pending[: self._pending_count]).tobytes())
            shard = map_shard(file, self.layout)
        except (OSError, BadInput, Failed) as e:
            self._stop_storing(f"a shard cannot be written ({write_failure(e)})")
            return
        self._shards.append(shard)
        self.bytes_on_disk += file.stat().st_size
        self._pending_count = 0

    def close(self) -> None:
        """Write the pending entries and release the files; afterwards the store is empty."""
        self.flush()
        self._shards, self._place, self._pending_count = [], {}, 0

    def warn(self, message: str) -> None:
        """Log a warning and keep it."""
        self.warnings.append(message)
        LOGGER.warning(f"M-KD: {message}")

    def _stop_storing(self, reason: str) -> None:
        if not self.full:
            self.warn(f"record={self.folder}: {reason}: the teacher runs again for each view that is not cached")
        self.full = True


def estimate(layout: Layout, images: int, views: int) -> int:
    """Size on disk of a complete cache [bytes].

    Args:
        layout: of the entries.
        images: how many there are.
        views: of each image.
    """
    whole, others = divmod(images * views, SHARD)
    return whole * shard_bytes(layout, SHARD) + (shard_bytes(layout, others) if others else 0)


def shard_bytes(layout: Layout, entries: int) -> int:
    """Size of a shard [bytes]."""
    return len(shard_header(layout, entries)) + entries * entry_bytes(layout)


def entry_bytes(layout: Layout) -> int:
    """Size of an entry on disk, with its checksum [bytes]."""
    return layout.bytes + CHECKSUM.itemsize


def checksums(entries: np.ndarray) -> np.ndarray:
    """The CRC-32 of each entry."""
    return np.array([zlib.crc32(entry.tobytes()) for entry in entries], CHECKSUM)


def shard_header(layout: Layout, entries: int) -> bytes:
    """The first bytes of a shard's .npy file; numpy pads them to the same length for any number of entries."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(layout.dtype), "fortran_order": False, "shape": (entries,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def map_shard(file: Path, layout: Layout) -> Shard:
    """Map a shard's entries into memory.

    Its header is compared and not parsed: numpy's parser fails on a damaged one in too many ways.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a complete shard of the layout.
    """
    start = len(shard_header(layout, 0))
    with file.open("rb") as f:
        header, size = f.read(start), os.fstat(f.fileno()).st_size - start
    for each in (entry_bytes(layout), layout.bytes):
        count, odd = divmod(size, each)
        if not odd and count > 0 and header == shard_header(layout, count):
            entries = np.memmap(file, layout.dtype, "r", start, (count,))
            end = start + count * layout.bytes
            found = None if each == layout.bytes else np.memmap(file, CHECKSUM, "r", end, (count,))
            return Shard(file, entries, found)
    raise ValueError(f"{file} is not a shard of this layout")


def fingerprint(images: Sequence[Path], labels: Sequence[Path] | None = None) -> str:
    """SHA-256 of a data set: names below the images' common folder, sizes in bytes and labels, in the data's order.

    The order matters, since the code of a view contains the image's position. The images themselves are not read.

    Args:
        images: the image files.
        labels: the label file of each image; a missing one counts as empty. None for images without labels.
    """
    digest = hashlib.sha256()
    root = os.path.commonpath([image.parent for image in images]) if images else ""
    for i, image in enumerate(images):
        text = labels[i].read_bytes() if labels is not None and labels[i].is_file() else b""
        name = Path(os.path.relpath(image, root)).as_posix()
        digest.update(f"{json.dumps(name)} {image.stat().st_size} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def remove_stale(file: Path) -> None:
    """Remove a .part file that a killed process left over; a young one may belong to a process that is writing it."""
    try:
        if time.time() - file.stat().st_mtime > STALE_S:
            file.unlink()
    except FileNotFoundError:
        return  # the other process has finished it


def write_failure(error: OSError | BadInput | Failed) -> str:
    """Why a file could not be written, in the operating system's words."""
    return getattr(error.__cause__ or error, "strerror", None) or str(error)


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """The values in which two headers differ, each as `name: it has ..., this run ...`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            line
            for key in {**found, **wanted}
            for line in differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == wanted else [f"{name}: it has {shortened(found)}, this run {shortened(wanted)}"]


def shortened(value: Any) -> str:
    """A value as JSON, its middle cut out beyond 40 characters."""
    text = json.dumps(value)
    end = SHOWN // 2 - 2
    return text if len(text) <= SHOWN else f"{text[:end]}...{text[-end:]}"
