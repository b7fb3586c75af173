"""MKDTrainer: Ultralytics' detection trainer with teachers. All else is Ultralytics' own training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from yolo_mkd import host
from yolo_mkd.balance import Schedule
from yolo_mkd.criterion import Criterion, Source
from yolo_mkd.host import LOGGER, DetectionTrainer, unwrap_model
from yolo_mkd.lesson import TERMS, Lesson, check_gains
from yolo_mkd.settings import BadInput, defaults, refuse_unknown
from yolo_mkd.teachers import Listener, Teacher

WIDTH = 11  # of a column in Ultralytics' progress bar


class MKDTrainer(DetectionTrainer):
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
    gains: ClassVar[dict[str, float]] = {}

    @classmethod
    def using(
        cls, teacher: str | Path, assistant: str | Path | Sequence[str | Path] = (), **gains: float
    ) -> type[MKDTrainer]:
        """The trainer class for `YOLO(...).train(trainer=...)` with these teachers.

        Args:
            teacher: a trained detector's .pt file.
            assistant: trained assistants' .pt files; each batch hears one of the teacher and the assistants.
            gains: gain of any term, such as `attention=0.5` or `guidance=0`; the rest as in `cfg/default.yaml`.

        Raises:
            BadInput: a file is missing or no detector, or a gain is unknown or negative.
        """
        refuse_unknown(gains, TERMS, "train")
        gains = check_gains(dict(gains))
        assistants = [assistant] if isinstance(assistant, str | Path) else list(assistant)
        paths = [host.find_model("teacher", teacher), *(host.find_model("assistant", a) for a in assistants)]
        for argument, path in zip(["teacher"] + ["assistant"] * len(assistants), paths, strict=True):
            if not path.endswith(".pt"):
                raise BadInput(f"{argument}={path} is untrained: give a trained .pt file")
            host.load_detector(argument, path)
        chosen = {name: gains.get(name, float(defaults()[name])) for name in TERMS}
        return type(cls.__name__, (cls,), {"teachers": tuple(paths), "gains": chosen, "__module__": cls.__module__})

    def __init__(self, *args: Any, **kwargs: Any):
        """As DetectionTrainer.

        Raises:
            BadInput: no teacher was given, or compilation, which would lose the taps.
        """
        if not self.teachers:
            raise BadInput("MKDTrainer has no teacher: use trainer=MKDTrainer.using(teacher='yolo26m.pt')")
        if (kwargs.get("overrides") or {}).get("compile"):
            raise BadInput("compile= is not supported with knowledge distillation yet: leave it out")
        super().__init__(*args, **kwargs)
        self.sources: list[Source] = []
        self.adapters = nn.ModuleList()
        self.listener: Listener | None = None
        own = {
            "on_train_epoch_start": MKDTrainer._start_epoch,
            "on_train_batch_end": MKDTrainer._end_batch,
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
        anatomy = host.anatomy(student, self.args.imgsz)
        if not any(self.gains.values()):
            LOGGER.warning("M-KD: every gain is 0, so this is plain training and the teacher is not asked")
            return
        with torch.random.fork_rng(devices=[]):  # a distilled run sees the same data as a plain one of its seed
            torch.manual_seed(self.args.seed)  # adapters start alike on every rank
            try:
                self.sources = [self._source(path, anatomy) for path in self.teachers]
            except BadInput:
                host.discard_empty_run(self.save_dir)
                raise
        self.adapters = nn.ModuleList([s.lesson.adapters for s in self.sources]).to(self.device)
        self.anatomy = anatomy

    def _source(self, path: str, student: Any) -> Source:
        model = host.freeze(host.load_detector("teacher", path)).to(self.device)
        teacher = host.anatomy(model, self.args.imgsz)
        lesson = Lesson(student, teacher, self.gains)
        lesson.refuse_silence(path)
        return Source(Teacher(short_name(path), model, teacher, lesson.roles), lesson)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build Ultralytics' optimizer, with the adapters' weights among its parameters."""
        if self.adapter_weights:
            # Ultralytics looks for the student under this name when a model holds more than the student
            model = nn.ModuleDict({"student_model": unwrap_model(model), "adapters": self.adapters})
        return super().build_optimizer(model, *args, **kwargs)

    def _setup_train(self) -> None:
        super()._setup_train()
        self._attach()
        for source in self.sources:
            LOGGER.info(describe(source, self.anatomy))
        if self.sources:
            each = " (each batch hears one of the teachers)" if len(self.sources) > 1 else ""
            LOGGER.info(f"M-KD: {self._schedule()}{each}\n")

    def _attach(self) -> None:
        """Put taps on the student and the knowledge beside its criterion; Ultralytics' copies of it stay plain."""
        if not self.sources:
            return
        student = unwrap_model(self.model)
        roles = list(dict.fromkeys(r for s in self.sources for r in s.lesson.roles))
        self.listener = Listener(student, self.anatomy, roles)
        detection = getattr(student, "criterion", None) or student.init_criterion()
        student.criterion = Criterion(detection, self.listener, self.sources, self._weight, self.args.seed)

    def _detach(self) -> None:
        """Leave the student as stock Ultralytics knows it."""
        if self.listener is None:
            return
        self.listener.taps.remove()
        self.listener = None
        student = unwrap_model(self.model)
        student.criterion = student.criterion.detection

    # While training

    def _start_epoch(self) -> None:
        self.schedule = self._schedule()
        self.batches_done = 0
        self._listen()

    def _schedule(self) -> Schedule:
        return Schedule.of(self.epochs, self.args.warmup_epochs, self.args.close_mosaic)

    def _end_batch(self) -> None:
        self.batches_done += 1
        self._listen()

    def _listen(self) -> None:
        if self.listener is not None:
            self.listener.taps.open = self._weight() > 0

    def _weight(self) -> float:
        """The knowledge's weight for the next batch."""
        return self.schedule.weight(self.epoch + self.batches_done / len(self.train_loader))

    def optimizer_step(self) -> None:
        """Step as Ultralytics does, after averaging the adapters' gradients over the ranks of a DDP run."""
        if self.world_size > 1:
            for p in self.adapter_weights:  # DDP wraps the student only
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

    # Checkpoints: the student's own, and the adapters in a file beside it until the run is over

    @property
    def adapter_weights(self) -> list[nn.Parameter]:
        """The weights of all guidance adapters; none where guidance is off."""
        return list(self.adapters.parameters())

    @property
    def adapters_file(self) -> Path:
        """Where an interrupted run keeps its adapters."""
        return Path(self.wdir) / "adapters.pt"

    def save_model(self) -> bool:
        """Save the plain student, and the adapters in a file of their own."""
        saved = bool(super().save_model())
        if self.adapter_weights:
            torch.save(self.adapters.state_dict(), self.adapters_file)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        attached = self.listener is not None
        self._detach()  # Ultralytics copies the student here
        super()._load_checkpoint_state(ckpt)
        if self.adapter_weights:
            if self.adapters_file.exists():
                state = torch.load(self.adapters_file, map_location=self.device, weights_only=True)
                self.adapters.load_state_dict(state)
            else:
                LOGGER.warning(f"M-KD: {self.adapters_file} is gone, so the guidance adapters start anew")
        if attached:
            self._attach()

    def final_eval(self) -> None:
        """Evaluate as Ultralytics does, report what was skipped, and drop the adapters."""
        if self.listener is not None:
            for name, count in unwrap_model(self.model).criterion.skipped.items():
                if count:
                    LOGGER.warning(f"M-KD: {name} was NaN or infinite in {count} batches and was left out there")
        self._detach()
        super().final_eval()
        self.adapters_file.unlink(missing_ok=True)


def short_name(path: str) -> str:
    """A teacher's file as people tell it from another: `yolo26m.pt`, or `assistant/weights/best.pt`."""
    parts = Path(path).parts
    return "/".join(parts[-3:]) if parts[-2:-1] == ("weights",) else parts[-1]


def describe(source: Source, student: Any) -> str:
    """The table before training: per term whether it acts and why not, and the layers read with their shapes."""
    lesson = source.lesson
    ratio = lesson.teacher.parameters / student.parameters
    size = f"{lesson.teacher.parameters / 1e6:.2f} M parameters, {ratio:.1f} x the student"
    lines = ["", f"M-KD: {source.teacher.name} teaches ({size})", f"  {'term':<12}{'gain':>6}  acts  reads"]
    for t in lesson.terms:
        why = t.reads if t.acts else f"because {t.why_not}" if t.why_not else "because its gain is 0"
        extra = ""
        if t.name == "guidance" and t.acts:
            extra = f", adapters of {sum(p.numel() for p in lesson.adapters.parameters()):,} parameters"
        lines.append(f"  {t.name:<12}{t.gain:>6.3g}  {'yes' if t.acts else 'no':<4}  {why}{extra}")
    if lesson.roles:
        lines.append(f"  {'role':<12}  {'student: layer, shape':<26}  teacher: layer, shape")
        lines += [f"  {r:<12}  {student.taps[r]!s:<26}  {lesson.teacher.taps[r]}" for r in lesson.roles]
    if lesson.splits:
        lines.append("  the neck's first half of channels inherits from the teacher, the rest explores")
    apart = sorted(set(student.strides) ^ set(lesson.teacher.strides))
    if apart:
        lines.append(f"  strides differ: {student.strides} and {lesson.teacher.strides}; only equal ones are matched")
    return "\n".join(lines)
