"""A teacher that speaks once: what it says about a view of an image is kept, and replayed when the view comes back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_mkd import host
from yolo_mkd.cache.codec import Layout, decode, encode
from yolo_mkd.cache.store import Store, estimate
from yolo_mkd.distill.matching import patterned
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.host import LOGGER
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import BadInput

GB = 2**30
SEEING = ("ultralytics", "torch", "numpy", "opencv-python", "albumentations")  # versions that decide what a view shows


class CachedTeacher:
    """In the place of a teacher: known views are replayed; about others it is asked, and what it says is noted.

    Attributes:
        name: the teacher's.
        teacher: who is asked; none once every view is recorded, so that its memory is free.
        asked: about how many images it had to be asked.
    """

    def __init__(self, teacher: LiveTeacher, store: Store, layout: Layout, file: str, complete: bool):
        """Put a record before a teacher.

        Args:
            teacher: who is asked about views that are not recorded.
            store: the record.
            layout: of the record's entries.
            file: the teacher's .pt.
            complete: every view that the run should show is recorded.
        """
        self.name, self.asked, self.store, self.layout = teacher.name, 0, store, layout
        self.file, self.spec = file, teacher.extractor.spec
        self.teacher: LiveTeacher | None = None if complete else teacher

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """What the teacher says about a batch whose images carry their views in `code`."""
        codes = [int(code) for code in batch["code"]]
        entries = np.zeros(len(codes), self.layout.dtype)
        missing = self.store.missing(codes)
        known = sorted(set(range(len(codes))) - set(missing))
        if known:
            entries[known] = self.store.get([codes[i] for i in known])
        if missing:
            images = batch.get("teacher_img", batch["img"])[missing]
            said = self._asked(images.device).infer(images)
            entries[missing] = encode(self.layout, [codes[i] for i in missing], said)
            self.store.put(entries[missing])
            self.asked += len(missing)
        return decode(self.layout, entries, batch["img"].device)

    def flush(self) -> None:
        """Write what was noted to the disk."""
        self.store.flush()

    def _asked(self, device: torch.device) -> LiveTeacher:
        """The teacher, called back where an epoch that Ultralytics repeats shows a view that was not foreseen."""
        if self.teacher is None:
            model = host.freeze(host.load_detector("teacher", self.file, transformer=True))
            self.teacher = LiveTeacher(self.name, model.to(device), self.spec, list(self.layout.roles))
        return self.teacher


def layout_of(spec: ModelSpec) -> Layout:
    """The layout of a teacher's record: all that any student may want of it."""
    side = max(tap.rows * stride for tap, stride in zip(necks(spec), spec.strides, strict=True))
    return Layout(
        classes=len(spec.names),
        levels={s: (side // s, side // s) for s in spec.strides},
        branches=spec.branches,
        roles={r: (tap.rows, tap.columns) for r, tap in spec.taps.items() if patterned(spec, r)},
    )


def necks(spec: ModelSpec) -> list[Any]:
    """The head's inputs in the order of its strides."""
    return [tap for role, tap in spec.taps.items() if role.startswith("neck")]


def open_record(
    place: bool | str | Path,
    teacher: LiveTeacher,
    file: str,
    seen: Mapping[str, Any],
    images: int,
    keys: Sequence[int],
    limit_gb: float | None,
    unlabelled: bool = False,
) -> CachedTeacher:
    """Open the record of one teacher on one data set, or begin it.

    Args:
        place: True for the usual folder, or the folder that holds records.
        teacher: the teacher, with taps on every role of its layout.
        file: its .pt.
        seen: all that decides which pictures the views are: data, image size, views, augmentation.
        images: how many there are in the training set.
        keys: numbers of the views that the run will show.
        limit_gb: largest size of the record [GB].
        unlabelled: whether the images are a run's unlabelled ones, whose record lies beside that of the others.

    Raises:
        BadInput: a record there is of something else, or the disk is too small.
    """
    layout = layout_of(teacher.extractor.spec)
    sha = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    header = {"teacher": sha, **seen, "versions": versions(), "layout": layout.described()}
    whole = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    root = host.records_folder() if place is True else Path(str(place))
    kind = "-unlabelled" if unlabelled else ""
    folder = root / f"{Path(file).stem}-{whole[:12] if place is True else sha[:12]}{kind}"
    size = estimate(layout, images, len(keys))
    limit = None if limit_gb is None else int(limit_gb * GB)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    store = Store.open(folder, header, layout, limit)
    if min(size, limit or size) - store.bytes_on_disk > free:
        raise BadInput(
            f"record={place}: the record takes {size / GB:.1f} GB and {free / GB:.1f} GB are free: "
            "use fewer views=, a record_limit=, or another folder"
        )
    there = sum(store.has(key * images + i) for key in keys for i in range(images))
    LOGGER.info(
        f"M-KD: record of {teacher.name} in {folder}: {there} of the run's {images * len(keys)} views are there, "
        f"{size / 2**20:.0f} MB when all are"
    )
    return CachedTeacher(teacher, store, layout, file, complete=there == images * len(keys))


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a view shows."""
    found = {}
    for name in SEEING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed, so it decides nothing
    return found
