"""One distilled run of a trainer: teachers, adapters, loss weights, teacher cache, unlabelled images and their state.

`MKDTrainer` holds Ultralytics' overrides and hands everything else over to this, in the order of a run: `prepare`,
`wrap_loader`, `start`, then `attach`, the events that `follow` receives, `prepare_batch`, and `detach` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, nn

from yolo_mkd import host, report
from yolo_mkd.cache.opening import cached_teacher
from yolo_mkd.cache.unlabelled import UnlabelledLoader, training_images, unlabelled_images
from yolo_mkd.cache.views import Views, require_fixed_size
from yolo_mkd.distill.boxes.teacher import BoxTeacher, beside, separate
from yolo_mkd.distill.criterion import Criterion, Progress
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.monitor import ShareMonitor, frozen_gains, gains_table, terms_table
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.sources import OpenedTeacher, Opening, groups_of, is_detector, mappings_of, refuse_options
from yolo_mkd.distill.state import RunState
from yolo_mkd.distill.teachers import LiveTeacher, Teacher
from yolo_mkd.host import LOGGER, unwrap_model

HOW = {  # several teachers act
    "drawn": "each batch uses one of the teachers",
    "sequence": "one teacher after another, each for an equal part of the distilled epochs",
}


class DistillationSession:
    """The distillation of one run; inert where every term is 0.

    Attributes:
        distillers: one for each teacher.
        adapters: modules trained beside the student, one ModuleDict for each teacher.
        progress: how far the run is.
        extractor: the student's hooks; None while it is plain.
        criterion: the student's distilled criterion; None while it is plain.
        unlabelled: the loader of the unlabelled images; None without.
        shares: the epoch's gradient shares, as loggers get them.
    """

    def __init__(self, trainer: Any, teachers: Sequence[str], options: dict[str, Any]):
        """Begin with nothing loaded.

        Args:
            trainer: an Ultralytics trainer.
            teachers: the teachers' files.
            options: M-KD's arguments, resolved.
        """
        self.trainer, self.files, self.options = trainer, teachers, options
        self.distillers: list[Distiller] = []
        self.adapters, self.progress = nn.ModuleList(), Progress()
        self.extractor: FeatureExtractor | None = None
        self.criterion: Criterion | None = None
        self.unlabelled: UnlabelledLoader | None = None
        self.shares: dict[str, float] = {}
        self._opened: list[OpenedTeacher] = []
        self._positions: dict[str, Any] = {}
        self._unlabelled_files: list[Path] = []

    # Before training

    @property
    def student(self) -> Any:
        """The student, without the wrapper of a DDP run."""
        return unwrap_model(self.trainer.model)

    @property
    def schedule(self) -> Schedule:
        """The schedule of the run as its length is known now: a run that is given hours learns it as it goes."""
        options, warmup = self.options, self.trainer.args.warmup_epochs
        return Schedule.of(self.trainer.epochs, warmup, options["until"], options["teacher_every"])

    @property
    def teacher_imgsz(self) -> int:
        """The image size that the teachers take [pixels]."""
        return int(self.options["teacher_imgsz"] or self.trainer.args.imgsz)

    @property
    def rescales(self) -> bool:
        """Whether the teachers take the images at a size of their own."""
        return self.teacher_imgsz != self.trainer.args.imgsz

    @property
    def side_multiple(self) -> int:
        """What sides of rectangular training images are multiples of, so that teachers and student both take them."""
        strides = [max(d.match.teacher.strides, default=0) for d in self.distillers]
        own = max(32, *self.spec.strides)
        return host.shared_multiple(self.teacher_imgsz, self.trainer.args.imgsz, max(own, *strides, 0), own)

    @property
    def images_per_labelled(self) -> float:
        """Images of a batch for each labelled one, in the mean of the distilled epochs."""
        joined = self.distillers and self.options["unlabelled"]
        return 1 + self.options["unlabelled_ratio"] / self.schedule.every if joined else 1.0

    def prepare(self) -> None:
        """Match the student, which has the data's classes now, with its teachers.

        Raises:
            BadInput: they cannot be matched; an empty run folder is removed.
        """
        args = self.trainer.args
        with self.discarding_empty_run():
            host.check_imgsz(args.imgsz, self.student, "model")
            args.freeze = host.check_freeze(args.freeze, self.student)  # Ultralytics freezes next, and ignores a tuple
            # with single_cls Ultralytics has replaced the data's names
            names = host.check_data(args.data, fetch=False)["names"] if args.single_cls else self.student.names
            spec = host.model_spec(self.student, args.imgsz)
            self.spec = spec.of_data(names, spec.channels, args.single_cls, args.classes)
        asked = {name: self.options[name] for name in TERMS}
        if not any(asked.values()):
            LOGGER.warning("M-KD: all distillation weights are 0: training without a teacher")
            return
        with torch.random.fork_rng(devices=[]):  # a distilled run sees the same data as a plain one of its seed
            torch.manual_seed(args.seed)  # adapters start alike on every rank
            with self.discarding_empty_run():
                if self.options["record"]:
                    require_fixed_size(args)
                if self.options["unlabelled"]:
                    self._unlabelled_files = unlabelled_images(self.options["unlabelled"], self.trainer.data, args)
                refuse_options(self.files, self.options, args.task)
                opening = self._opening(names, asked)
                self._opened = [opening.open(group) for group in groups_of(self.files, self.options["teachers"])]
        self.distillers = [opened.distiller for opened in self._opened]
        self.adapters = nn.ModuleList([d.adapters for d in self.distillers]).to(self.trainer.device)
        if args.compile:
            host.keep_graphs()  # gradients are measured on graphs that the backward pass then needs

    def _opening(self, names: Mapping[int, str], asked: dict[str, float]) -> Opening:
        """What opens the teachers of this run."""
        labelled = [] if all(map(is_detector, self.files)) else training_images(self.trainer.data)
        maps = mappings_of(self.files, self.options["teacher_classes"])
        how = (self.teacher_imgsz, self.rescales, self.options, asked, maps, self.trainer.device)
        return Opening(self.spec, names, labelled + self._unlabelled_files, *how)

    def discarding_empty_run(self) -> AbstractContextManager[None]:
        """A context that removes the run's folder on BadInput, if it holds nothing but its arguments."""
        return host.discarding_empty_run(Path(self.trainer.save_dir))

    def trained_modules(self, model: nn.Module) -> nn.Module:
        """The modules that the optimizer trains: the student, and the terms' adapters where there are any."""
        if not self.adapter_weights:
            return model
        # Ultralytics looks for the student under this name when a model holds more than the student
        return nn.ModuleDict({"student_model": unwrap_model(model), "adapters": self.adapters})

    def wrap_loader(self) -> None:
        """Let the training loader give views that can be drawn again, and build the one of unlabelled images."""
        if not self.distillers:
            return
        self._add_boxes(self.trainer.train_loader.dataset)
        if self.options["record"]:
            loader = self.trainer.train_loader
            Views(loader.dataset, self.options["views"], 0).install(loader, self.next_epoch)
        if self.options["unlabelled"]:
            self.unlabelled = UnlabelledLoader(self.trainer, self._unlabelled_files, self.options, self.next_epoch)
            self._add_boxes(self.unlabelled.views.dataset)

    @property
    def _boxes(self) -> list[BoxTeacher]:
        """The teachers that are only boxes."""
        return [teacher for opened in self._opened for teacher in opened.boxes]

    def _add_boxes(self, dataset: Any) -> None:
        """Let a data set load the boxes of teachers with its images."""
        if self._boxes:
            host.add_boxes(dataset, beside(self._boxes))

    def next_epoch(self) -> int:
        """The epoch that the loader is about to begin, also before the first."""
        return int(getattr(self.trainer, "epoch", None) or self.trainer.start_epoch)

    def start(self) -> None:
        """Connect the teachers, live or cached, put the criterion in place and log what acts."""
        precision = host.frozen_precision(self.trainer)  # known only now
        live = [teacher for opened in self._opened for teacher in opened.live]
        for teacher in live:
            teacher.to(precision)
        if self.unlabelled is not None:
            self.unlabelled.log_confidence(live, self.trainer.device)
        with self.discarding_empty_run():
            for opened in self._opened:
                models = [(t, file) for file, t, _ in opened.members if isinstance(t, LiveTeacher)]
                cached = {id(t): self._cached(t, file) for t, file in models} if self.options["record"] else {}
                opened.connect(cached)
                if cached:  # a complete cache needs no model, and its memory is free
                    opened.members = [member for member in opened.members if id(member[1]) not in cached]
        if self.distillers and (warning := self.schedule.inert(len(self.trainer.train_loader))):
            LOGGER.warning(f"M-KD: {warning}")
        self.attach()
        self.monitor = ShareMonitor(Path(self.trainer.save_dir), fresh=not self.trainer.start_epoch)
        for distiller in self.distillers:
            LOGGER.info(terms_table(distiller, distiller.teacher.name))
        if self.distillers:
            each = f" ({HOW[self.options['teachers']]})" if len(self.distillers) > 1 else ""
            LOGGER.info(f"M-KD: {self.schedule}{each}, teacher precision {precision}\n".replace("torch.", ""))

    def _cached(self, teacher: LiveTeacher, file: str) -> Teacher:
        """A teacher's cache of the labelled images and, where there are any, of the unlabelled ones."""
        pool, end = (self.unlabelled, self._unlabelled_files), self.schedule.end
        return cached_teacher(self.trainer, self.options, end, self.teacher_imgsz, teacher, file, *pool)

    # While training

    def attach(self) -> None:
        """Put hooks on the student and distillation beside its criterion; Ultralytics' copies of it stay plain."""
        if not self.distillers:
            return
        student = self.student
        roles = list(dict.fromkeys(r for d in self.distillers for r in d.roles))
        self.extractor = FeatureExtractor(student, self.spec, roles)
        detection = getattr(student, "criterion", None) or student.init_criterion()
        self.progress.batches = len(self.trainer.train_loader)
        for boxes in self._boxes:
            boxes.detection = detection
        last = (host.shared_weights(student, self.spec), self.trainer.args.seed, self.options["teachers"] == "sequence")
        self.criterion = Criterion(detection, self.extractor, self.distillers, self.schedule, self.progress, *last)
        student.criterion = self.criterion
        vars(self.criterion).update(self._positions.get("criterion", {}))

    def detach(self) -> None:
        """Leave the student as stock Ultralytics made it."""
        if self.extractor is None or self.criterion is None:
            return
        for distiller in self.distillers:
            distiller.teacher.flush()
        self.extractor.hooks.remove()
        self.student.criterion = self.criterion.detection
        self.extractor = self.criterion = None

    @contextmanager
    def plain_student(self) -> Iterator[None]:
        """Take hooks and criterion off the student while callbacks run, which may copy, pickle or log it.

        A compiled student keeps them: its graph was made with them.
        """
        criterion, extractor = self.criterion, self.extractor
        if criterion is None or extractor is None or self.trainer.args.compile:
            yield
            return
        extractor.hooks.remove()
        self.student.criterion = criterion.detection
        try:
            yield
        finally:
            if self.extractor is extractor:  # else a callback has detached them for good
                extractor.hooks.attach()
                self.student.criterion = criterion

    def follow(self, event: str) -> None:
        """Act on one of Ultralytics' events, after the user's own callbacks."""
        if event == "on_train_epoch_start":
            self.begin_epoch()
        elif event == "on_train_batch_end":
            self.end_batch()
        elif event == "on_train_epoch_end":
            self.end_epoch()
        elif event == "teardown":  # also after an error
            self.detach()

    def begin_epoch(self) -> None:
        """Follow the trainer into its next epoch."""
        self.progress.epoch, self.progress.batch, self.shares = self.trainer.epoch, 0, {}
        self.progress.batches = len(self.trainer.train_loader)
        if self.criterion is not None:
            self.criterion.schedule = self.schedule

    def prepare_batch(self, batch: dict[str, Any], preprocess: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Join unlabelled images, preprocess, and scale to the student's size where the teacher has its own.

        Args:
            batch: as the loader gave it.
            preprocess: Ultralytics' own.
        """
        criterion, args = self.criterion, self.trainer.args
        if criterion is not None:
            criterion.student.hooks.open = criterion.on
        if self._boxes:
            batch = separate(batch)
        if self.unlabelled is not None and criterion is not None and criterion.on:
            batch = self.unlabelled.join(batch)
        loaded, batch = batch["img"], preprocess(batch)
        if self.rescales:
            batch["teacher_img"] = loaded.to(batch["img"].device).float() / 255
            if not args.multi_scale:  # else Ultralytics has brought them to about the student's size
                size = [round(side * args.imgsz / self.teacher_imgsz) for side in loaded.shape[2:]]
                batch["img"] = F.interpolate(batch["img"], size, mode="bilinear", antialias=True)
        if criterion is not None and self.trainer.device.type == "cuda":
            criterion.prefetch(batch)
        return batch

    def average_adapter_gradients(self) -> None:
        """Average the adapters' gradients over the ranks of a DDP run, which wraps the student only."""
        world = self.trainer.world_size
        for p in self.adapter_weights if world > 1 else ():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            distributed.all_reduce(p.grad)
            p.grad /= world

    def end_batch(self) -> None:
        """Count a batch, and freeze the gains once adapters are fitted."""
        self.progress.batch += 1
        if self.criterion is None:
            return
        fitted = [d for i, d in enumerate(self.distillers) if self.progress.now >= self.criterion.fitted(i)]
        frozen = [d.balancer.freeze() for d in fitted]
        if any(frozen) and host.RANK in {-1, 0}:
            LOGGER.info(gains_table(self.distillers, self.progress.now))
            gains = {"teachers": frozen_gains(self.distillers)}
            report.write(Path(self.trainer.save_dir) / "gains.json", "gains", gains)

    def end_epoch(self) -> None:
        """Note the epoch's gradient shares."""
        epoch, schedule = self.trainer.epoch, self.schedule
        if self.extractor is None or epoch >= schedule.end:
            return
        for distiller in self.distillers:
            ratios, weight = distiller.balancer.close_epoch(), schedule.weight(epoch + 0.5)
            if host.RANK in {-1, 0}:
                self.shares |= self.monitor.add(epoch + 1, distiller.teacher.name, weight, ratios)

    def draw_shares(self) -> None:
        """Draw the gradient shares, where plots are asked for."""
        if self.distillers and self.trainer.args.plots and self.monitor.draw():
            self.trainer.on_plot(self.monitor.png)  # for loggers

    def close_mosaic(self) -> None:
        """Close the mosaic of the unlabelled images, as Ultralytics does for the labelled ones."""
        if self.unlabelled is not None:
            self.unlabelled.close_mosaic(copy(self.trainer.args))

    # The state that a resumed run needs, in a file beside the checkpoints until the run is over

    @property
    def adapter_weights(self) -> list[nn.Parameter]:
        """The parameters that are trained beside the student; none where no term has adapters."""
        return list(self.adapters.parameters())

    @property
    def state_file(self) -> Path:
        """Where an interrupted run keeps its adapters and gains."""
        return Path(self.trainer.wdir) / "mkd.pt"

    @property
    def state(self) -> RunState:
        """The adapters and loss weights, to be saved and restored."""
        return RunState(self.distillers, self.adapters)

    @property
    def positions(self) -> dict[str, Any]:
        """Where the criterion and the loader of unlabelled images are."""
        criterion, pool = self.criterion, self.unlabelled
        counters = {} if criterion is None else {"step": criterion.step, "measured": criterion.measured}
        return {"criterion": counters, **({} if pool is None else {"unlabelled": pool.position()})}

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let the trainer save a plain student with its own part of the optimizer, then save what is beside it."""
        with self.plain_student(), self.state.student_optimizer(self.trainer):
            yield
        if self.distillers and host.RANK in {-1, 0}:
            self.state.save(self.state_file, self.trainer.optimizer, int(self.trainer.epoch), self.positions)

    @contextmanager
    def loading(self, ckpt: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Give the trainer a checkpoint with the adapters' optimizer state, and a plain student to load it into."""
        attached = self.extractor is not None
        self.detach()  # Ultralytics copies the student
        yield self.state.with_adapters(ckpt, self.state_file, self.trainer)
        if self.distillers:
            self._positions = self.state.load(self.state_file, self.trainer.device)
            if self.unlabelled is not None and "unlabelled" in self._positions:
                self.unlabelled.restore(self._positions["unlabelled"])
        if attached:
            self.attach()

    def finish(self) -> None:
        """Annotate the finished checkpoints with the gains, and remove the state file."""
        if self.distillers and host.RANK in {-1, 0}:
            for file in filter(Path.exists, (self.trainer.last, self.trainer.best)):
                host.annotate(file, {"teachers": frozen_gains(self.distillers), "versions": report.versions()})
            self.state_file.unlink(missing_ok=True)

    def log_skipped(self) -> None:
        """Warn of terms that were left out of batches."""
        if self.criterion is not None:
            for name, count in (+self.criterion.skipped).items():
                LOGGER.warning(f"M-KD: {name} was NaN or infinite in {count} batches and was left out there")
