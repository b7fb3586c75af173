"""The cached teacher: its outputs for each view are computed once, stored, and read from disk from then on."""

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

from yolo_mkd import host, report
from yolo_mkd.cache.codec import Layout, decode, encode
from yolo_mkd.cache.store import Store, estimate
from yolo_mkd.distill.matching import patterned
from yolo_mkd.distill.teachers import LiveTeacher, teacher_images
from yolo_mkd.host import LOGGER
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import BadInput

GB = 2**30
# their versions decide which picture a view is
VIEW_PACKAGES = ("ultralytics", "torch", "numpy", "opencv-python", "albumentations")


class CachedTeacher:
    """A teacher whose outputs are read from its cache; those that are missing are computed and stored.

    Attributes:
        name: of the teacher.
        teacher: the live teacher that computes missing outputs; None if every view is cached, to free its memory.
        computed: for how many images the live teacher ran.
        store: the cache.
        layout: of the cache's entries.
        file: the teacher's .pt.
        spec: the teacher's spec.
    """

    def __init__(self, teacher: LiveTeacher, store: Store, layout: Layout, file: str, complete: bool):
        """Put a cache before a teacher.

        Args:
            teacher: computes the outputs for views that are not cached.
            store: the cache.
            layout: of the cache's entries.
            file: the teacher's .pt.
            complete: whether every view that the run will use is cached.
        """
        self.name, self.computed, self.store, self.layout = teacher.name, 0, store, layout
        self.file, self.spec = file, teacher.extractor.spec
        self._precision = next(teacher.model.parameters()).dtype
        self.teacher: LiveTeacher | None = None if complete else teacher

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """The teacher's outputs for a batch whose images carry their views in `code`."""
        codes = [int(code) for code in batch["code"]]
        entries = np.zeros(len(codes), self.layout.dtype)
        missing = self.store.missing(codes)
        cached = sorted(set(range(len(codes))) - set(missing))
        if cached:
            entries[cached] = self.store.get([codes[i] for i in cached])
        if missing:
            images = teacher_images(batch)[missing]
            computed = self._live(images.device).infer(images)
            entries[missing] = encode(self.layout, [codes[i] for i in missing], computed)
            self.store.put(entries[missing])
            self.computed += len(missing)
        return decode(self.layout, entries, batch["img"].device)

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Does nothing: reading from disk is too fast to be worth overlapping."""

    def flush(self) -> None:
        """Write what was computed to the disk."""
        self.store.flush()

    def _live(self, device: torch.device) -> LiveTeacher:
        """The live teacher; loaded again if Ultralytics repeats an epoch with a view that is not cached."""
        if self.teacher is None:
            model = host.freeze(host.load_detector("teacher", self.file, transformer=True))
            model.to(device, self._precision)
            self.teacher = LiveTeacher(self.name, model, self.spec, list(self.layout.roles))
        return self.teacher


class JoinedTeacher:
    """Two caches of one teacher, for labelled and for unlabelled images, used as one teacher.

    Attributes:
        name: of the teacher.
        labelled: outputs for the labelled images, the first ones of a batch.
        unlabelled: outputs for the others.
    """

    def __init__(self, labelled: CachedTeacher, unlabelled: CachedTeacher):
        self.name, self.labelled, self.unlabelled = labelled.name, labelled, unlabelled

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """The teacher's outputs for a batch, with unlabelled images behind the labelled ones or without."""
        if "labelled" not in batch:
            return self.labelled(batch)
        n = batch["labelled"]
        images = {k: batch[k] for k in ("img", "teacher_img") if k in batch}
        head: dict[str, Any] = {k: v[:n] for k, v in images.items()}
        rest: dict[str, Any] = {k: v[n:] for k, v in images.items()}
        head["code"], rest["code"] = batch["code"], batch["pool_code"]
        return self.labelled(head).joined_with(self.unlabelled(rest))

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Does nothing, as for one cache."""

    def flush(self) -> None:
        """Write what was computed to the disk."""
        self.labelled.flush()
        self.unlabelled.flush()


def layout_of(spec: ModelSpec) -> Layout:
    """The layout of a teacher's cache: everything that the cacheable terms of any student can read."""
    side = max(layer.rows * stride for layer, stride in zip(necks(spec), spec.strides, strict=True))
    return Layout(
        classes=len(spec.names),
        levels={s: (side // s, side // s) for s in spec.strides},
        branches=spec.branches,
        roles={r: (layer.rows, layer.columns) for r, layer in spec.layers.items() if patterned(spec, r)},
    )


def necks(spec: ModelSpec) -> list[Any]:
    """The head's inputs in the order of its strides."""
    return [layer for role, layer in spec.layers.items() if role.startswith("neck")]


def open_cache(
    place: bool | str | Path,
    teacher: LiveTeacher,
    file: str,
    header: Mapping[str, Any],
    images: int,
    keys: Sequence[int],
    limit_gb: float | None,
    unlabelled: bool = False,
) -> CachedTeacher:
    """Open the cache of one teacher on one data set, or create it.

    Args:
        place: True for the usual folder, or the folder that holds caches.
        teacher: the teacher, with hooks on every role of its layout.
        file: its .pt.
        header: all settings that decide which pictures the views are: data, image size, views, augmentation.
        images: how many there are in the training set.
        keys: numbers of the views that the run will use.
        limit_gb: largest size of the cache [GB]; None is unlimited.
        unlabelled: whether the images are unlabelled ones, whose cache is a folder of its own.

    Raises:
        BadInput: the cache was built with other settings, or the disk is too small.
    """
    layout = layout_of(teacher.extractor.spec)
    sha = report.sha256(file)
    header = {"teacher": sha, **header, "versions": versions(), "layout": layout.described()}
    whole = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    root = host.caches_folder() if place is True else Path(str(place))
    kind = "-unlabelled" if unlabelled else ""
    folder = root / f"{Path(file).stem}-{whole[:12] if place is True else sha[:12]}{kind}"
    size = estimate(layout, images, len(keys))
    limit = None if limit_gb is None else int(limit_gb * GB)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    store = Store.open(folder, header, layout, limit)
    if min(size, limit or size) - store.bytes_on_disk > free:
        raise BadInput(
            f"record={place}: the teacher cache needs {size / GB:.1f} GB and {free / GB:.1f} GB are free: "
            "use fewer views=, set record_limit=, or use another folder"
        )
    stored = sum(store.has(key * images + i) for key in keys for i in range(images))
    LOGGER.info(
        f"M-KD: cache of {teacher.name} in {folder}: {stored} of the run's {images * len(keys)} views are cached, "
        f"{size / 2**20:.0f} MB once complete"
    )
    return CachedTeacher(teacher, store, layout, file, complete=stored == images * len(keys))


def versions() -> dict[str, str]:
    """Versions of the packages that decide which picture a view is."""
    found = {}
    for name in VIEW_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed, so it has no influence
    return found
