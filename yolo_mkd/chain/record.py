"""Build a teacher cache: the teacher's outputs for every view that a training will show, before any training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from yolo_mkd import host, report
from yolo_mkd.cache.teacher import CachedTeacher
from yolo_mkd.chain.stages import validate
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.host.dry import close_mosaic, dry_run, precision, silent
from yolo_mkd.host.runs import progress
from yolo_mkd.session import DistillationSession
from yolo_mkd.settings import KD_OPTIONS, BadInput
from yolo_mkd.trainer import TRAINERS


def record(**arguments: Any) -> dict[str, Any]:
    """Fill the cache of a teacher for a training with these arguments; what is stored already is not computed again.

    Args:
        **arguments: those of train, with `preset=recorded` unless another is given. A chain's assistants are trained
            later and fill their own caches then. `json` names a file to write the figures to.

    Returns:
        folder, views, asked (images for which the teacher ran) and bytes.

    Raises:
        BadInput: train would refuse these arguments, or the teacher is yet to be trained.
    """
    json = arguments.pop("json", None)
    arguments = {"preset": "recorded", **arguments}
    if arguments.get("teacher_epochs"):
        raise BadInput("teacher_epochs= trains the teacher first: build its cache once it is trained")
    if arguments.get("resume"):
        raise BadInput("resume= continues a chain: give the arguments of a new one")
    if arguments.get("unlabelled"):
        raise BadInput("unlabelled= images are cached while training with them: leave it out here")
    if arguments.get("record") is False:
        raise BadInput("record=false stores nothing: leave it out, or name a folder")
    with tempfile.TemporaryDirectory(prefix="yolo-mkd-record-") as folder:
        asked = validate({**arguments, "assistant": None}, "record")
        builder = CacheBuilder()
        student = asked.stages[-1]
        options = {key: asked.own[key] for key in (*KD_OPTIONS, *TERMS)}
        options["record"] = asked.own["record"] or True
        trainer = TRAINERS[host.task(student["model"])].using(student["hears"][0], **options)
        quiet = {"project": folder, "name": "dry", "plots": False, "verbose": False, "data": asked.data["yaml_file"]}
        model = host.write_architecture(student["model"], Path(folder))
        with silent():
            dry_run(trainer, model, {**asked.theirs, **quiet}, builder)
    host.LOGGER.info(
        f"M-KD: the teacher ran on {builder.figures['asked']} views, {builder.figures['views']} are cached, "
        f"{builder.figures['bytes'] / 2**20:.1f} MB in {builder.figures['folder']}"
    )
    if json:
        report.write(json, "record", builder.figures)
    return builder.figures


class CacheBuilder:
    """Shows a teacher all views of a run; `host.dry.dry_run` calls it.

    Attributes:
        figures: folder, views, asked and bytes, once it has run.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def __call__(self, trainer: Any) -> None:
        """Go through the epochs whose views are new, and leave a checkpoint as a training does."""
        session: DistillationSession = trainer.kd
        teacher = session.distillers[0].teacher
        assert isinstance(teacher, CachedTeacher)
        views, closes = session.options["views"], trainer.epochs - trainer.args.close_mosaic
        last = session.schedule.end
        ahead = [*range(min(views, closes, last)), *range(max(0, closes), min(max(0, closes) + views, last))]
        for epoch in sorted(set(ahead)):
            trainer.epoch = epoch
            if epoch >= closes and not trainer.train_loader.dataset.closed:
                close_mosaic(trainer)
            trainer.train_loader.reset()
            for batch in progress(trainer.train_loader, f"caching the views of epoch {epoch + 1}"):
                if teacher.store.missing([int(code) for code in batch["code"]]):
                    with precision(trainer):
                        teacher(trainer.preprocess_batch(batch))
        teacher.flush()
        self.figures = {
            "folder": str(teacher.store.folder),
            "views": len(teacher.store),
            "asked": teacher.computed,
            "bytes": teacher.store.bytes_on_disk,
        }
        session.detach()
        trainer.save_model()
