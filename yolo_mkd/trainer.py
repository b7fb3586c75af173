"""MKDTrainer: Ultralytics' trainers with teachers. All else is Ultralytics' own training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.distill.monitor import BAR_NAMES, beside_metrics
from yolo_mkd.distill.sources import find_teachers, is_detector, refuse_own_teacher
from yolo_mkd.session import DistillationSession
from yolo_mkd.settings import KD_OPTIONS, BadInput, refuse_unknown, resolve

ADVICE = "use MKDTrainer, MKDSegmentationTrainer, MKDPoseTrainer or MKDOBBTrainer, by the model's task"
NATIVE_TOO = "distill_model= is Ultralytics' own distillation: leave it out, the teacher here is teacher="

ONE_TEACHER = "assistant= works with one teacher: leave it out (assistant=none), or give one teacher"


class MKDTrainer(host.Ranked, host.DetectionTrainer):
    """Trains a student detector that is also distilled from one or more trained teachers.

    The student is never changed: teachers, adapters and hooks live beside it, so that its checkpoints are those of the
    plain model.

    Example:
        >>> from ultralytics import YOLO
        >>> from yolo_mkd import MKDTrainer
        >>> trainer = MKDTrainer.using(teacher="yolo26m.pt")
        >>> YOLO("yolo26n.pt").train(data="coco8.yaml", epochs=3, trainer=trainer)  # doctest: +SKIP

    Attributes:
        teachers: the teachers' files.
        kd_options: M-KD's arguments, resolved.
        trusts: whether the models may hold code beside weights.
        kd: the run's distillation.
    """

    teachers: ClassVar[tuple[str, ...]] = ()
    kd_options: ClassVar[dict[str, Any]] = {}
    trusts: ClassVar[bool] = False

    @classmethod
    def using(
        cls,
        teacher: str | Path | Sequence[str | Path],
        assistant: str | Path | Sequence[str | Path] = (),
        trust: bool = False,
        **options: Any,
    ) -> type[MKDTrainer]:
        """The trainer class for `YOLO(...).train(trainer=...)` with these teachers.

        Args:
            teacher: a trained model's .pt file, a .json file or a folder with a detector's boxes, or several of them.
            assistant: trained assistants' .pt files; each batch uses one of the teacher and the assistants.
            trust: load files that hold code beside weights; loading them can run anything.
            options: the share of any term, such as `attention=0.5` or `guidance=0`, and `preset`, `calibrate`, `gate`
                and `teacher_imgsz`; the rest as in `cfg/default.yaml`.

        Raises:
            BadInput: a file is missing or no detector, or an argument is unknown or out of range.
        """
        refuse_unknown(options, {*TERMS, *KD_OPTIONS}, "train")
        resolved = resolve(options)
        with host.trusting(trust or host.trusts()):
            named = find_teachers([teacher] if isinstance(teacher, str | Path) else teacher)
        assistants = [assistant] if isinstance(assistant, str | Path) else list(assistant)
        if len(named) > 1 and assistants:
            raise BadInput(ONE_TEACHER)
        middle = [host.find_model("assistant", a) for a in assistants]
        for argument, path in [*(("teacher", p) for p in named), *(("assistant", p) for p in middle)]:
            if not is_detector(path):
                continue
            if not path.endswith(".pt"):
                raise BadInput(f"{argument}={path} is untrained: give a trained .pt file")
            with host.trusting(trust):
                host.load_detector(argument, path, transformer=True)
        chosen = {k: resolved[k] for k in (*TERMS, *KD_OPTIONS)}
        if middle:
            chosen["teachers"] = "drawn"  # of the teacher and its assistants
        members = {"teachers": (*named, *middle), "kd_options": chosen, "trusts": trust, "__module__": cls.__module__}
        return type(cls.__name__, (cls,), members)

    def __init__(self, *args: Any, **kwargs: Any):
        """As Ultralytics' trainer.

        Raises:
            BadInput: no teacher was given, or an argument is refused as `yolo-mkd train` refuses it.
        """
        if not self.teachers:
            name = type(self).__name__
            raise BadInput(f"{name} has no teacher: use trainer={name}.using(teacher='yolo26m.pt')")
        self.refuse_conflicts(kwargs.get("overrides") or (args[1] if len(args) > 1 else None) or {})
        self.kd = DistillationSession(self, self.teachers, self.kd_options)
        super().__init__(*args, **kwargs)

    @classmethod
    def refuse_conflicts(cls, given: dict[str, Any]) -> None:
        """Refuse Ultralytics' arguments that cannot work here, before anything is written.

        Raises:
            BadInput: Ultralytics' own distillation, a model of another task, the teacher itself as the student, or a
                value that cannot work.
        """
        if given.get("distill_model"):
            raise BadInput(NATIVE_TOO)
        host.check_values(given)
        if not given.get("resume"):
            refuse_own_teacher(cls.teachers, str(given.get("model") or ""))
        own = next(task for task, kind in reversed(TRAINERS.items()) if issubclass(cls, kind))
        if given.get("task", own) not in {None, own}:
            raise BadInput(f"{cls.__name__} trains models of the task {own}, this one is of {given['task']}: {ADVICE}")

    # Before training

    def train(self) -> None:
        """Train as Ultralytics does, with checkpoints that hold weights alone unless they are trusted."""
        with host.trusting(self.trusts):
            super().train()

    def get_dataset(self) -> Any:
        """Read the data set as Ultralytics does, without running the code that its YAML may hold.

        Raises:
            BadInput: it cannot be read or used; an empty run folder is removed.
        """
        with self.kd.discarding_empty_run():
            data = host.check_data(self.args.data)
            host.check_labels(data, self.args.task)
            host.check_usable(data, self.args.task, bool(self.args.single_cls))
        return super().get_dataset()

    def set_model_attributes(self) -> None:
        """Attach the data's classes to the student, then match it with its teachers."""
        super().set_model_attributes()
        self.kd.prepare()

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build Ultralytics' optimizer, with the terms' adapters among what it trains."""
        return super().build_optimizer(self.kd.trained_modules(model), *args, **kwargs)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build Ultralytics' data set; the one to train on has the teacher's image size."""
        size = self.kd.teacher_imgsz if mode == "train" else self.args.imgsz
        with host.override_configs(self.args, {"imgsz": size}):
            dataset = super().build_dataset(img_path, mode, batch)
        if mode == "train":
            host.widen_shapes(dataset, self.kd.side_multiple)
        return dataset

    def _build_train_pipeline(self) -> None:
        nbs = self.args.nbs / self.kd.images_per_labelled  # nbs counts all images of an update
        with host.override_configs(self.args, {"nbs": nbs}):
            super()._build_train_pipeline()
        self.kd.wrap_loader()

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        self.kd.close_mosaic()

    def _setup_train(self) -> None:
        super()._setup_train()
        self.kd.start()

    # While training

    def run_callbacks(self, event: str) -> None:
        """Run an event's callbacks on a plain student, which loggers may copy and pickle, then distillation's own."""
        if event == "on_train_end":
            self.kd.draw_shares()
        validated = event == "on_fit_epoch_end" and self.epoch == self.kd.progress.epoch  # it comes after the last too
        with self.kd.plain_student(), beside_metrics(self, self.kd.shares if validated else {}):
            super().run_callbacks(event)
        self.kd.follow(event)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Preprocess as Ultralytics does; where the teacher has an image size of its own, scale to the student's."""
        return self.kd.prepare_batch(batch, super().preprocess_batch)

    def optimizer_step(self) -> None:
        """Step as Ultralytics does, after averaging the adapters' gradients over the ranks of a DDP run."""
        self.kd.average_adapter_gradients()
        super().optimizer_step()

    def label_loss_items(self, loss_items: dict[str, Tensor] | None = None, prefix: str = "train") -> Any:
        """Name the columns of results.csv: the terms keep their `kd/` names and have no validation columns."""
        labelled = super().label_loss_items(loss_items, prefix)
        kept = [k for k in labelled if prefix == "train" or "/kd/" not in k]
        names = {k: k.removeprefix(f"{prefix}/") if "/kd/" in k else k for k in kept}
        return [names[k] for k in kept] if loss_items is None else {names[k]: labelled[k] for k in kept}

    def progress_string(self) -> str:
        """Head the progress bar's columns, with names of the terms that fit."""
        full: tuple[str, ...] = self.loss_names
        self.loss_names: tuple[str, ...] = tuple(BAR_NAMES.get(name, name) for name in full)
        heading = str(super().progress_string())
        self.loss_names = full
        return heading

    # Checkpoints: the student's own

    def save_model(self) -> bool:
        """Save the plain student, and the distillation's state in a file of its own."""
        with self.kd.saving():
            return bool(super().save_model())

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        with self.kd.loading(ckpt) as whole:
            super()._load_checkpoint_state(whole)

    def final_eval(self) -> None:
        """Evaluate as Ultralytics does, warn of what was skipped, and annotate the checkpoints."""
        self.kd.log_skipped()
        self.kd.detach()
        for file in filter(Path.is_file, (self.last, self.best)):
            host.refuse_code("model", file)  # of a resumed run it may be another's, and Ultralytics loads it unsafely
        super().final_eval()
        self.kd.finish()


class MKDSegmentationTrainer(MKDTrainer, host.SegmentationTrainer):
    """As MKDTrainer, for a segmentation student."""


class MKDPoseTrainer(MKDTrainer, host.PoseTrainer):
    """As MKDTrainer, for a pose student."""


class MKDOBBTrainer(MKDTrainer, host.OBBTrainer):
    """As MKDTrainer, for a student of oriented boxes."""


TRAINERS: dict[str, type[MKDTrainer]] = {
    "detect": MKDTrainer,
    "segment": MKDSegmentationTrainer,
    "pose": MKDPoseTrainer,
    "obb": MKDOBBTrainer,
}
