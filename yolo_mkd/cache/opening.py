"""Open the caches of one teacher for a run: of the labelled images and, where there are any, of the unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_mkd import host
from yolo_mkd.cache.store import fingerprint
from yolo_mkd.cache.teacher import CachedTeacher, JoinedTeacher, open_cache
from yolo_mkd.cache.unlabelled import UnlabelledLoader
from yolo_mkd.cache.views import shown
from yolo_mkd.distill.teachers import LiveTeacher


def cached_teacher(
    trainer: Any,
    options: Mapping[str, Any],
    end: int,
    imgsz: int,
    teacher: LiveTeacher,
    file: str,
    unlabelled: UnlabelledLoader | None,
    files: Sequence[Path],
) -> CachedTeacher | JoinedTeacher:
    """The cache of a teacher.

    Args:
        trainer: an Ultralytics trainer with its loaders built.
        options: M-KD's arguments, resolved.
        end: the epoch after the last with distillation.
        imgsz: image size of the teacher [pixels].
        teacher: the teacher.
        file: its .pt.
        unlabelled: the loader of the unlabelled images, if there are any.
        files: these images.
    """
    views, data = options["views"], trainer.train_loader.dataset
    header = {
        "data": fingerprint([Path(f) for f in data.im_files], [Path(f) for f in data.label_files]),
        "imgsz": imgsz,
        "views": views,
        "augmentation": host.augmentation(trainer.args),
    }
    closes = trainer.epochs - trainer.args.close_mosaic
    keys = shown(views, trainer.start_epoch, end, closes)
    place, limit = options["record"], options["record_limit"]
    cached = open_cache(place, teacher, file, header, len(data), keys, limit)
    if unlabelled is None:
        return cached
    header["data"] = fingerprint(files)
    more = unlabelled.keys(trainer.start_epoch, end, closes, len(trainer.train_loader))
    count = len(unlabelled.views)
    return JoinedTeacher(cached, open_cache(place, teacher, file, header, count, more, limit, unlabelled=True))
