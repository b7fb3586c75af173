"""MKDTrainer: Ultralytics' trainers with teachers. All else is Ultralytics' own training loop."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from yolo_mkd import host, report
from yolo_mkd.cache import unlabelled
from yolo_mkd.cache.store import fingerprint
from yolo_mkd.cache.teacher import CachedTeacher, layout_of, open_record
from yolo_mkd.cache.unlabelled import JoinedTeacher, UnlabelledLoader
from yolo_mkd.cache.views import Views, refuse, shown
from yolo_mkd.distill.balance import GradientBalancer, TermWeight
from yolo_mkd.distill.criterion import Criterion, Progress, Source
from yolo_mkd.distill.distiller import TERMS, Lesson, check_asked
from yolo_mkd.distill.monitor import Shares
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.tables import gains_record, gains_table, lesson_table
from yolo_mkd.distill.teachers import FeatureExtractor, LiveTeacher
from yolo_mkd.host import LOGGER, unwrap_model
from yolo_mkd.settings import KNOWLEDGE, BadInput, refuse_unknown, resolve

WIDTH = 11  # of a column in Ultralytics' progress bar


class MKDTrainer(host.DetectionTrainer):
    """Trains a student detector that also learns from one or more trained teachers.

    The student is never changed: teachers, adapters and taps live beside it, so that its checkpoints are those of the
    plain model.

    Example:
        >>> from ultralytics import YOLO
        >>> from yolo_mkd import MKDTrainer
        >>> trainer = MKDTrainer.using(teacher="yolo26m.pt")
        >>> YOLO("yolo26n.pt").train(data="coco8.yaml", epochs=3, trainer=trainer)  # doctest: +SKIP
    """

    teachers: ClassVar[tuple[str, ...]] = ()
    knowledge: ClassVar[dict[str, Any]] = {}

    @classmethod
    def using(
        cls, teacher: str | Path, assistant: str | Path | Sequence[str | Path] = (), **knowledge: Any
    ) -> type[MKDTrainer]:
        """The trainer class for `YOLO(...).train(trainer=...)` with these teachers.

        Args:
            teacher: a trained model's .pt file.
            assistant: trained assistants' .pt files; each batch hears one of the teacher and the assistants.
            knowledge: the share of any term, such as `attention=0.5` or `guidance=0`, and `preset`, `calibrate`,
                `gate` and `teacher_imgsz`; the rest as in `cfg/default.yaml`.

        Raises:
            BadInput: a file is missing or no detector, or an argument is unknown or out of range.
        """
        refuse_unknown(knowledge, {*TERMS, *KNOWLEDGE}, "train")
        settled = resolve(knowledge)
        assistants = [assistant] if isinstance(assistant, str | Path) else list(assistant)
        paths = [host.find_model("teacher", teacher), *(host.find_model("assistant", a) for a in assistants)]
        for argument, path in zip(["teacher"] + ["assistant"] * len(assistants), paths, strict=True):
            if not path.endswith(".pt"):
                raise BadInput(f"{argument}={path} is untrained: give a trained .pt file")
            host.load_detector(argument, path, transformer=True)
        chosen = {**check_asked({n: settled[n] for n in TERMS}), **{k: settled[k] for k in KNOWLEDGE}}
        return type(cls.__name__, (cls,), {"teachers": tuple(paths), "knowledge": chosen, "__module__": cls.__module__})

    def __init__(self, *args: Any, **kwargs: Any):
        """As Ultralytics' trainer.

        Raises:
            BadInput: no teacher was given.
        """
        if not self.teachers:
            name = type(self).__name__
            raise BadInput(f"{name} has no teacher: use trainer={name}.using(teacher='yolo26m.pt')")
        super().__init__(*args, **kwargs)
        self.sources: list[Source] = []
        self.parts = nn.ModuleList()
        self.extractor: FeatureExtractor | None = None
        self.moment = Progress()
        self.pool: UnlabelledLoader | None = None
        own = {
            "on_train_epoch_start": MKDTrainer._start_epoch,
            "on_train_batch_end": MKDTrainer._end_batch,
            "on_train_epoch_end": MKDTrainer._end_epoch,
            "on_train_end": MKDTrainer._draw,
            "teardown": MKDTrainer._detach,
        }
        for event, callback in own.items():
            if callback not in self.callbacks[event]:  # a DDP worker is given its parent's callbacks
                self.add_callback(event, callback)

    # Before training

    def set_model_attributes(self) -> None:
        """Attach the data's classes to the student, then match it with its teachers."""
        super().set_model_attributes()
        student = unwrap_model(self.model)
        self.spec = host.model_spec(student, self.args.imgsz, self.args.classes)
        asked = {name: self.knowledge[name] for name in TERMS}
        if not any(asked.values()):
            LOGGER.warning("M-KD: every term is 0, so this is plain training and the teacher is not asked")
            return
        with torch.random.fork_rng(devices=[]):  # a distilled run sees the same data as a plain one of its seed
            torch.manual_seed(self.args.seed)  # adapters start alike on every rank
            try:
                if self.knowledge["record"]:
                    refuse(self.args)
                if self.knowledge["unlabelled"]:
                    self._unlabelled = unlabelled.chosen(self.knowledge["unlabelled"], self.data, self.args)
                self.sources = [self._source(path, asked) for path in self.teachers]
            except BadInput:
                host.discard_empty_run(self.save_dir)
                raise
        self.parts = nn.ModuleList([s.lesson.parts for s in self.sources]).to(self.device)
        if self.args.compile:
            host.keep_graphs()  # gradients are measured on graphs that the backward pass then needs

    def _source(self, path: str, asked: dict[str, float]) -> Source:
        model = host.load_detector("teacher", path, transformer=True).to(self.device)
        if self._rescales:
            host.check_imgsz(self.knowledge["teacher_imgsz"], model, "teacher", "teacher_imgsz")
        spec = host.model_spec(model, self.knowledge["teacher_imgsz"] or self.args.imgsz)
        lesson = Lesson(self.spec, spec, asked)
        lesson.require_active_term(path)
        if self.knowledge["record"]:
            lesson.require_cacheable()
        weights_asked = {t.name: TermWeight(t.asked, TERMS[t.name].gain, TERMS[t.name].share) for t in lesson.acting}
        balance = GradientBalancer(
            weights_asked, self.knowledge["calibrate"], self.knowledge["gate"], power=self.knowledge["soft_pw"]
        )
        roles = list(layout_of(spec).roles) if self.knowledge["record"] else lesson.roles
        model = host.freeze(model)
        if not self.knowledge["record"] and not any(t.head for t in lesson.acting):
            host.silence(model)
        return Source(LiveTeacher(short_name(path), model, spec, roles), lesson, balance)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build Ultralytics' optimizer, with the weights of the terms' parts among its parameters."""
        if self.part_weights:
            # Ultralytics looks for the student under this name when a model holds more than the student
            model = nn.ModuleDict({"student_model": unwrap_model(model), "parts": self.parts})
        return super().build_optimizer(model, *args, **kwargs)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build Ultralytics' data set; the one to train on has the teacher's image size."""
        larger = {"imgsz": self.knowledge["teacher_imgsz"]} if mode == "train" and self._rescales else {}
        with host.override_configs(self.args, larger):
            return super().build_dataset(img_path, mode, batch)

    def _build_train_pipeline(self) -> None:
        joined = 1 + self.knowledge["unlabelled_ratio"] if self.sources and self.knowledge["unlabelled"] else 1
        with host.override_configs(self.args, {"nbs": self.args.nbs / joined}):  # nbs counts all images of an update
            super()._build_train_pipeline()
        if self.sources and self.knowledge["record"]:  # let the loader show views that can come back
            Views(self.train_loader.dataset, self.knowledge["views"], 0).install(self.train_loader, self._next_epoch)
        if joined > 1:
            self.pool = UnlabelledLoader(self, self._unlabelled, self.knowledge, self._next_epoch)

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self.pool is not None:
            self.pool.close_mosaic(copy(self.args))

    def _next_epoch(self) -> int:
        """The epoch that the loader is about to begin, also before the first."""
        return int(getattr(self, "epoch", None) or self.start_epoch)

    def _record(self) -> None:
        """Put a record before each teacher."""
        views, data = self.knowledge["views"], self.train_loader.dataset
        seen = {
            "data": fingerprint([Path(f) for f in data.im_files], [Path(f) for f in data.label_files]),
            "imgsz": self.knowledge["teacher_imgsz"] or self.args.imgsz,
            "views": views,
            "augmentation": host.augmentation(self.args),
        }
        closed = self.epochs - self.args.close_mosaic
        keys = shown(views, self.start_epoch, self._schedule().end, closed)
        for source, file in zip(self.sources, self.teachers, strict=True):
            teacher = source.teacher
            assert isinstance(teacher, LiveTeacher)
            place, limit = self.knowledge["record"], self.knowledge["record_limit"]
            source.teacher = open_record(place, teacher, file, seen, len(data), keys, limit)
            if self.pool is not None:
                others = {**seen, "data": fingerprint(self._unlabelled)}
                keys = self.pool.keys(self.start_epoch, self._schedule().end, closed, len(self.train_loader))
                apart = open_record(place, teacher, file, others, len(self.pool.views), keys, limit, unlabelled=True)
                source.teacher = JoinedTeacher(source.teacher, apart)

    def _setup_train(self) -> None:
        super()._setup_train()
        precision = host.frozen_precision(self)  # known only now
        for source in self.sources:
            assert isinstance(source.teacher, LiveTeacher)
            source.teacher.model.to(precision)
        if self.pool is not None:
            self.pool.introduce([s.teacher for s in self.sources], self.device)
        if self.sources and self.knowledge["record"]:
            try:
                self._record()
            except BadInput:
                host.discard_empty_run(self.save_dir)
                raise
        self._attach()
        self.shares = Shares(Path(self.save_dir), fresh=not self.start_epoch)
        if self.sources:
            for s in self.sources:
                LOGGER.info(lesson_table(s.lesson, s.teacher.name, self.knowledge["calibrate"]))
            each = " (each batch hears one of the teachers)" if len(self.sources) > 1 else ""
            LOGGER.info(f"M-KD: {self._schedule()}{each}, teachers speak in {precision}\n".replace("torch.", ""))

    def _attach(self) -> None:
        """Put taps on the student and the knowledge beside its criterion; Ultralytics' copies of it stay plain."""
        if not self.sources:
            return
        student = unwrap_model(self.model)
        roles = list(dict.fromkeys(r for s in self.sources for r in s.lesson.roles))
        self.extractor = FeatureExtractor(student, self.spec, roles)
        detection = getattr(student, "criterion", None) or student.init_criterion()
        weights = host.shared_weights(student, self.spec)
        self.moment.batches = len(self.train_loader)
        student.criterion = Criterion(
            detection, self.extractor, self.sources, self._schedule(), self.moment, weights, self.args.seed
        )

    def _detach(self) -> None:
        """Leave the student as stock Ultralytics knows it."""
        if self.extractor is None:
            return
        for source in self.sources:
            if isinstance(source.teacher, CachedTeacher | JoinedTeacher):
                source.teacher.flush()
        self.extractor.taps.remove()
        self.extractor = None
        student = unwrap_model(self.model)
        student.criterion = student.criterion.detection

    # While training

    def _schedule(self) -> Schedule:
        return Schedule.of(self.epochs, self.args.warmup_epochs, self.args.close_mosaic, self.knowledge["until"])

    def _start_epoch(self) -> None:
        self.moment.epoch, self.moment.batch, self.moment.batches = self.epoch, 0, len(self.train_loader)
        if self.extractor is not None:
            criterion = unwrap_model(self.model).criterion
            criterion.schedule = self._schedule()  # a run that is given hours learns its epochs as it goes
            self.extractor.taps.open = criterion.on

    def _end_batch(self) -> None:
        self.moment.batch += 1
        if self.moment.now >= self._schedule().fitted and any([s.balance.freeze() for s in self.sources]):
            self._report_gains()

    def _report_gains(self) -> None:
        """Write the frozen gains into the run's folder."""
        if host.RANK not in {-1, 0}:
            return
        LOGGER.info(gains_table(self.sources, self.moment.now))
        report.write(Path(self.save_dir) / "gains.json", "gains", {"teachers": gains_record(self.sources)})

    def _end_epoch(self) -> None:
        if self.extractor is None or self.epoch >= self._schedule().end:
            return
        weight = self._schedule().weight(self.epoch + 0.5)
        for source in self.sources:
            found = source.balance.close_epoch()
            if host.RANK in {-1, 0}:
                self.shares.add(self.epoch + 1, source.teacher.name, weight, found)

    def _draw(self) -> None:
        if self.sources and self.args.plots:
            self.shares.draw()

    @property
    def _rescales(self) -> bool:
        """Whether the teacher sees the images at a size of its own."""
        return self.knowledge["teacher_imgsz"] not in {None, self.args.imgsz}

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Preprocess as Ultralytics does; where the teacher sees a size of its own, scale to the student's."""
        criterion = None if self.extractor is None else unwrap_model(self.model).criterion
        if self.pool is not None and criterion is not None and criterion.on:
            batch = self.pool.join(batch)
        loaded = batch["img"]
        batch = super().preprocess_batch(batch)
        if self._rescales:
            batch["teacher_img"] = loaded.to(batch["img"].device).float() / 255
            if not self.args.multi_scale:  # else Ultralytics has brought them to about the student's size
                zoom = self.args.imgsz / self.knowledge["teacher_imgsz"]
                size = [max(1, round(side * zoom / self.stride)) * self.stride for side in loaded.shape[2:]]
                batch["img"] = F.interpolate(batch["img"], size, mode="bilinear", antialias=True)
        if criterion is not None and self.device.type == "cuda":
            criterion.prefetch(batch)
        return batch

    def optimizer_step(self) -> None:
        """Step as Ultralytics does, after averaging the parts' gradients over the ranks of a DDP run."""
        if self.world_size > 1:
            for p in self.part_weights:  # DDP wraps the student only
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                distributed.all_reduce(p.grad)
                p.grad /= self.world_size
        super().optimizer_step()

    def label_loss_items(self, loss_items: dict[str, Tensor] | None = None, prefix: str = "train") -> Any:
        """Name the columns of results.csv: the terms keep their `kd/` names and have no validation columns."""
        labelled = super().label_loss_items(loss_items, prefix)
        kept = [k for k in labelled if prefix == "train" or "/kd/" not in k]
        names = {k: k.removeprefix(f"{prefix}/") if "/kd/" in k else k for k in kept}
        return [names[k] for k in kept] if loss_items is None else {names[k]: labelled[k] for k in kept}

    def progress_string(self) -> str:
        """Head the progress bar's columns, with the terms' names cut to its width."""
        full: tuple[str, ...] = self.loss_names
        self.loss_names: tuple[str, ...] = tuple(name[: WIDTH - 1] for name in full)
        heading = str(super().progress_string())
        self.loss_names = full
        return heading

    # Checkpoints: the student's own, and what a resumed run needs in a file beside it until the run is over

    @property
    def part_weights(self) -> list[nn.Parameter]:
        """The weights that are trained beside the student; none where no term has parts."""
        return list(self.parts.parameters())

    @property
    def state_file(self) -> Path:
        """Where an interrupted run keeps its parts and gains."""
        return Path(self.wdir) / "mkd.pt"

    def save_model(self) -> bool:
        """Save the plain student, and what belongs to its teachers in a file of its own."""
        saved = bool(super().save_model())
        if self.sources:
            state = {"parts": self.parts.state_dict(), "balance": [s.balance.state() for s in self.sources]}
            torch.save(state, self.state_file)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        attached = self.extractor is not None
        self._detach()  # Ultralytics copies the student here
        super()._load_checkpoint_state(ckpt)
        if self.sources:
            if self.state_file.exists():
                state = torch.load(self.state_file, map_location=self.device, weights_only=True)
                self.parts.load_state_dict(state["parts"])
                for source, balance in zip(self.sources, state["balance"], strict=True):
                    source.balance.restore(balance)
            else:
                LOGGER.warning(f"M-KD: {self.state_file} is gone, so the guidance layers and gains start anew")
        if attached:
            self._attach()

    def final_eval(self) -> None:
        """Evaluate as Ultralytics does, report what was skipped, and leave a record in the checkpoints."""
        if self.extractor is not None:
            for name, count in (+unwrap_model(self.model).criterion.skipped).items():
                LOGGER.warning(f"M-KD: {name} was NaN or infinite in {count} batches and was left out there")
        self._detach()
        super().final_eval()
        if self.sources and host.RANK in {-1, 0}:
            for file in filter(Path.exists, (self.last, self.best)):
                host.annotate(file, {"teachers": gains_record(self.sources), "versions": report.versions()})
            self.state_file.unlink(missing_ok=True)


class MKDSegmentationTrainer(MKDTrainer, host.SegmentationTrainer):
    """As MKDTrainer, for a segmentation student: the terms act on the part of the head that all tasks share."""


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


def short_name(path: str) -> str:
    """A teacher's file as people tell it from another: `yolo26m.pt`, or `assistant/weights/best.pt`."""
    parts = Path(path).parts
    return "/".join(parts[-3:]) if parts[-2:-1] == ("weights",) else parts[-1]
