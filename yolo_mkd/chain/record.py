"""Build a teacher cache before training: compute the teacher's outputs for every view that a training will use."""

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


@host.permitting
def record(**arguments: Any) -> dict[str, Any]:
    """Build the cache of a teacher for a training with these arguments; cached views are not computed again.

    Args:
        **arguments: those of train, with `preset=recorded` unless another is given. A chain's assistants are trained
            later, and their caches are built then. `json` is the file to write the figures to.

    Returns:
        `folder`, `views` (cached), `asked` (views for which the teacher ran) and `bytes`.

    Raises:
        BadInput: train would refuse these arguments, or the teacher is not trained yet.
    """
    json = arguments.pop("json", None)
    report.check_writable("json", json)
    arguments = {"preset": "recorded", **arguments}
    if arguments.get("teacher_epochs"):
        raise BadInput("teacher_epochs= trains the teacher first: build its cache once it is trained")
    if arguments.get("resume"):
        raise BadInput("resume= continues a chain that has started: give the arguments of a new one")
    if arguments.get("unlabelled"):
        raise BadInput("unlabelled= images are cached while training with them: leave it out here")
    if arguments.get("record") is False:
        raise BadInput("record=false stores nothing: leave it out, or name a folder")
    with tempfile.TemporaryDirectory(prefix="yolo-mkd-record-") as folder:
        request = validate({**arguments, "assistant": None}, "record")
        if len(request.stages[-1]["hears"]) > 1:
            raise BadInput("record fills the cache of one teacher: run it for each, or train with record=true")
        builder = CacheBuilder()
        student = request.stages[-1]
        options = {key: request.own[key] for key in (*KD_OPTIONS, *TERMS)}
        options["record"] = request.own["record"] or True
        trainer = TRAINERS[host.task(student["model"])].using(student["hears"][0], **options)
        quiet = {"project": folder, "name": "dry", "plots": False, "verbose": False, "data": request.data["yaml_file"]}
        model = host.write_architecture(student["model"], Path(folder))
        with silent():
            dry_run(trainer, model, {**request.theirs, **quiet}, builder)
    for warning in builder.warnings:  # suppressed above together with Ultralytics' own log
        host.LOGGER.warning(f"M-KD: {warning}")
    figures = builder.figures
    host.LOGGER.info(
        f"M-KD: the teacher ran on {figures['asked']} views, {figures['views']} are cached, "
        f"{figures['bytes'] / 2**20:.1f} MB in {figures['folder']}"
    )
    if json:
        report.write(json, "record", figures)
    return figures


class CacheBuilder:
    """Runs a teacher on all views of a training; `host.dry.dry_run` calls it in place of the epochs.

    Attributes:
        figures: folder, views, asked and bytes, after the call.
        warnings: those of the cache, after the call.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.warnings: list[str] = []

    def __call__(self, trainer: Any) -> None:
        """Compute the views of each epoch that are not cached, and write a checkpoint as a training does."""
        session: DistillationSession = trainer.kd
        teacher = session.distillers[0].teacher
        assert isinstance(teacher, CachedTeacher)
        views, closes = session.options["views"], trainer.epochs - trainer.args.close_mosaic
        end, closed_from = session.schedule.end, max(0, closes)
        with_mosaic = range(min(views, closes, end))
        without_mosaic = range(closed_from, min(closed_from + views, end))
        for epoch in sorted({*with_mosaic, *without_mosaic}):
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
        self.warnings = teacher.store.warnings
        session.detach()
        trainer.save_model()
