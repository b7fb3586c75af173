"""Record a teacher: let it speak about every view that a training will show, before any training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from yolo_mkd import chain, host, report
from yolo_mkd.cache.teacher import CachedTeacher
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.host.dry import dry_run, precision, silent
from yolo_mkd.host.runs import progress
from yolo_mkd.settings import KNOWLEDGE, BadInput
from yolo_mkd.trainer import TRAINERS


def record(**arguments: Any) -> dict[str, Any]:
    """Fill the record of a teacher for a training with these arguments; what is there already is not asked again.

    Args:
        **arguments: those of train, which may come from `preset=recorded`. A chain's assistants are trained later and
            fill their own records then. `json` names a file to write the figures to.

    Returns:
        folder, views, asked (images that the teacher was asked about) and bytes.

    Raises:
        BadInput: train would refuse these arguments, or the teacher is yet to be trained.
    """
    json = arguments.pop("json", None)
    arguments = {"preset": "recorded", **arguments}
    if arguments.get("teacher_epochs"):
        raise BadInput("teacher_epochs= trains the teacher first: record it once it is trained")
    if arguments.get("resume"):
        raise BadInput("resume= goes on with a chain: give the arguments of a new one")
    if arguments.get("unlabelled"):
        raise BadInput("unlabelled= is recorded while training with it: leave it out here")
    if arguments.get("record") is False:
        raise BadInput("record=false keeps nothing: leave it out, or name a folder")
    with tempfile.TemporaryDirectory(prefix="yolo-mkd-record-") as folder:
        asked = chain.checked({**arguments, "assistant": None}, "record")
        filled = CacheBuilder()
        student = asked.stages[-1]
        knowledge = {key: asked.own[key] for key in (*KNOWLEDGE, *TERMS)}
        knowledge["record"] = asked.own["record"] or True
        trainer = TRAINERS[host.task(student["model"])].using(student["hears"][0], **knowledge)
        quiet = {"project": folder, "name": "dry", "plots": False, "verbose": False, "data": asked.data["yaml_file"]}
        model = host.write_architecture(student["model"], Path(folder))
        with silent():
            dry_run(trainer, model, {**asked.theirs, **quiet}, filled)
    host.LOGGER.info(
        f"M-KD: the teacher was asked about {filled.figures['asked']} views, {filled.figures['views']} are on record, "
        f"{filled.figures['bytes'] / 2**20:.1f} MB in {filled.figures['folder']}"
    )
    if json:
        report.write(json, "record", filled.figures)
    return filled.figures


class CacheBuilder:
    """Shows a teacher all views of a run; `host.dry.dry_run` calls it.

    Attributes:
        figures: what came of it.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def __call__(self, trainer: Any) -> None:
        """Go through the epochs whose views are new, and leave a checkpoint as a training does."""
        speaker = trainer.sources[0].teacher
        assert isinstance(speaker, CachedTeacher)
        views, closes = trainer.knowledge["views"], trainer.epochs - trainer.args.close_mosaic
        last = trainer._schedule().end
        ahead = [*range(min(views, closes, last)), *range(max(0, closes), min(max(0, closes) + views, last))]
        for epoch in sorted(set(ahead)):
            trainer.epoch = epoch
            if epoch >= closes and not trainer.train_loader.dataset.closed:
                trainer._close_dataloader_mosaic()
            trainer.train_loader.reset()
            for batch in progress(trainer.train_loader, f"recording epoch {epoch + 1}'s views"):
                if speaker.store.missing([int(code) for code in batch["code"]]):
                    with precision(trainer):
                        speaker(trainer.preprocess_batch(batch))
        speaker.store.flush()
        self.figures = {
            "folder": str(speaker.store.folder),
            "views": len(speaker.store),
            "asked": speaker.asked,
            "bytes": speaker.store.bytes_on_disk,
        }
        trainer._detach()
        trainer.save_model()
