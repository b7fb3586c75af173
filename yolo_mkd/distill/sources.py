"""What `teacher=` can name: a detector's .pt, boxes in a .json or a folder, any network; one of them or several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from yolo_mkd import host, report
from yolo_mkd.distill.boxes.teacher import FIRST_CODE, BoxTeacher, open_boxes
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.ensemble import EnsembleTeacher, ensemble_spec
from yolo_mkd.distill.matching import Match, patterned
from yolo_mkd.distill.network_files import file_of, files_of, find_network, is_network, load_network
from yolo_mkd.distill.networks import Network, NetworkTeacher, network_spec
from yolo_mkd.distill.normalisation import normalisation_warning
from yolo_mkd.distill.teachers import LiveTeacher, Teacher, teacher_name
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.settings import BadInput, split_commas


def is_boxes(teacher: str) -> bool:
    """Whether a teacher is only boxes: a .json file, or a folder of label files."""
    return Path(teacher).suffix == ".json" or Path(teacher).is_dir()


def is_detector(teacher: str) -> bool:
    """Whether a teacher is a detector of Ultralytics, with layers and a head."""
    return not (is_boxes(teacher) or is_network(teacher))


def find_teachers(named: Any, argument: str = "teacher") -> list[str]:
    """The files that `teacher=` names, one or several with commas.

    Raises:
        BadInput: one is missing, or is given twice.
    """
    found = []
    for name in split_commas(named):
        if is_network(name):
            found.append(find_network(argument, name))
        elif not is_boxes(name):
            found.append(host.find_model(argument, name))
        elif Path(name).exists():
            found.append(str(Path(name).resolve()))
        else:
            raise BadInput(f"{argument}={name}: no such file: give a detector's results on the training images")
    if not found:
        raise BadInput(f"{argument}= is empty: give a trained .pt, for example {argument}=yolo26m.pt")
    if twice := [file for i, file in enumerate(found) if file in found[:i]]:
        raise BadInput(f"{argument}= has {twice[0]} twice: give each teacher once")
    return found


def refuse_own_teacher(teachers: Sequence[str], student: str) -> None:
    """Refuse a student that is one of its teachers: all that is compared would be equal.

    Args:
        teachers: their files.
        student: its file.

    Raises:
        BadInput: a teacher is the same file, or a checkpoint that is a copy of it.
    """
    for teacher in teachers:
        same = Path(teacher).resolve() == Path(student).resolve()
        if not same and teacher.endswith(".pt") and student.endswith(".pt") and Path(student).is_file():
            same = report.sha256(teacher) == report.sha256(student)
        if same:
            raise BadInput(f"teacher={teacher} is the student itself: give a larger, trained teacher")


def checksum(*teachers: str) -> str:
    """SHA-256 of a teacher's file; of a folder, that of its files' names and contents; of several, that of theirs."""
    if len(teachers) > 1:
        return hashlib.sha256("".join(map(checksum, teachers)).encode()).hexdigest()
    (teacher,) = teachers
    if is_network(teacher):
        sums = [report.sha256(file) for file in files_of(teacher)] or [hashlib.sha256(teacher.encode()).hexdigest()]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    if not Path(teacher).is_dir():
        return report.sha256(teacher)
    whole = hashlib.sha256()
    for file in sorted(Path(teacher).rglob("*.txt")):
        whole.update(str(file.relative_to(teacher)).encode() + file.read_bytes())
    return whole.hexdigest()


def present(teacher: str) -> bool:
    """Whether a teacher's file or folder is there; torchvision and timm have those that are named after them."""
    file = file_of(teacher) if is_network(teacher) else Path(teacher)
    return file is None or file.exists()


def groups_of(teachers: Sequence[str], together: str) -> list[list[str]]:
    """The teachers in groups: each group acts as one teacher."""
    return [list(teachers)] if together == "mean" else [[teacher] for teacher in teachers]


@dataclass
class OpenedTeacher:
    """One teacher of a run, or several that act as one.

    Attributes:
        distiller: between it and the student.
        members: what it consists of, each with its file and its match with the student.
    """

    distiller: Distiller
    members: list[tuple[str, LiveTeacher | BoxTeacher, Match]]

    @property
    def live(self) -> list[LiveTeacher]:
        """Those that are models."""
        return [teacher for _, teacher, _ in self.members if isinstance(teacher, LiveTeacher)]

    @property
    def boxes(self) -> list[BoxTeacher]:
        """Those that are only boxes."""
        return [teacher for _, teacher, _ in self.members if isinstance(teacher, BoxTeacher)]

    def connect(self, cached: Mapping[int, Teacher]) -> None:
        """Give the distiller its teacher.

        Args:
            cached: the cache of a live teacher, by its `id`; the others run on each batch.
        """
        teachers: list[Teacher] = [cached.get(id(teacher), teacher) for _, teacher, _ in self.members]
        if len(teachers) == 1:
            self.distiller.connect(teachers[0])
        else:
            matches = [match for _, _, match in self.members]
            self.distiller.connect(EnsembleTeacher(teachers, matches, self.distiller.match.teacher))


@dataclass
class Opening:
    """Opens the teachers of one student.

    Attributes:
        student: the student's spec.
        names: the data's class names.
        images: its labelled and unlabelled training images.
        imgsz: image size of the teachers [pixels].
        own_size: whether that differs from the student's.
        options: M-KD's arguments, resolved.
        asked: share or gain of each term.
        mappings: the file that maps the classes of each teacher of boxes, where there is one.
        device: of the teachers.
        code: of the next teacher's first box.
    """

    student: ModelSpec
    names: Mapping[int, str]
    images: Sequence[Path]
    imgsz: int
    own_size: bool
    options: Mapping[str, Any]
    asked: dict[str, float]
    mappings: Mapping[str, str] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    code: int = field(default=FIRST_CODE)

    def open(self, files: Sequence[str]) -> OpenedTeacher:
        """Open the teachers of one group, matched with the student.

        Raises:
            BadInput: one cannot be used, or no term acts.
        """
        options = self.options
        if is_network(files[0]) and len(files) == 1:
            return self._open_network(files[0])
        models = [file for file in files if not is_boxes(file)]
        boxes = [file for file in files if is_boxes(file)]
        loaded = [self._load(file) for file in models]
        specs = [host.model_spec(model, self.imgsz) for model in loaded]
        box_teacher = self._open_boxes(boxes) if boxes else None
        theirs = [*specs, *([box_teacher.spec] if box_teacher else [])]
        spec = theirs[0] if len(theirs) == 1 else ensemble_spec(self.student, theirs)
        distiller = Distiller(self.student, spec, self.asked, options["calibrate"], options["gate"], options["soft_pw"])
        distiller.require_active_term(", ".join(files))
        if options["record"] and models:
            distiller.require_cacheable()
        matches = [distiller.match] if len(theirs) == 1 else [Match.of(self.student, each) for each in theirs]
        members: list[tuple[str, LiveTeacher | BoxTeacher, Match]] = []
        for file, model, own, match in zip(models, loaded, specs, matches, strict=False):
            roles = [r for r in own.layers if patterned(own, r)] if options["record"] else distiller.roles
            frozen = host.freeze(model)
            if not options["record"] and not any(t.head for t in distiller.acting):
                host.remove_head(frozen)
            through = any(t.through_head for t in distiller.acting)
            members.append((file, LiveTeacher(teacher_name(file), frozen, own, roles, through), match))
        if box_teacher:
            box_teacher.connect(matches[-1])
            members.append((boxes[0], box_teacher, matches[-1]))
        return OpenedTeacher(distiller, members)

    def spec_of(self, files: Sequence[str], models: Mapping[str, ModelSpec]) -> ModelSpec:
        """The spec of the teachers of one group, those that are models given by their file or stage.

        Raises:
            BadInput: a file of boxes cannot be used.
        """
        if is_network(files[0]) and len(files) == 1:
            return network_spec(self._load_network(files[0]), self.student, self.imgsz)[0]
        boxes = [file for file in files if is_boxes(file)]
        theirs = [models[file] for file in files if file not in boxes]
        theirs += [self._open_boxes(boxes).spec] if boxes else []
        return theirs[0] if len(theirs) == 1 else ensemble_spec(self.student, theirs)

    def _open_network(self, file: str) -> OpenedTeacher:
        """A network, with a warning where its normalisation seems to be another."""
        network = self._load_network(file)
        network.model.to(self.device)
        spec, maps = network_spec(network, self.student, self.imgsz)
        how = (self.options["calibrate"], self.options["gate"], self.options["soft_pw"])
        distiller = Distiller(self.student, spec, self.asked, *how)
        distiller.require_active_term(file)
        if self.images and (warning := normalisation_warning(network, self.images, self.imgsz)):
            host.LOGGER.warning(f"M-KD: {warning}")
        teacher = NetworkTeacher(teacher_name(file), network, maps, distiller.roles)
        return OpenedTeacher(distiller, [(file, teacher, distiller.match)])

    def _load_network(self, file: str) -> Network:
        """A network, which has no image size of its own where the user chose one.

        Raises:
            BadInput: it has another one.
        """
        network = load_network(file)
        if self.own_size and network.size not in {None, self.imgsz}:
            raise BadInput(
                f"teacher_imgsz={self.imgsz}, but teacher={file} takes images of {network.size} pixels alone: "
                "leave teacher_imgsz= out"
            )
        return network

    def _load(self, file: str) -> Any:
        """A detector, on the device."""
        model = host.load_detector("teacher", file, transformer=True).to(self.device)
        if self.own_size:
            host.check_imgsz(self.imgsz, model, "teacher", "teacher_imgsz")
        return model

    def _open_boxes(self, files: Sequence[str]) -> BoxTeacher:
        """A teacher of boxes; several files are fused."""
        mappings = [self.mappings.get(file) for file in files]
        teacher = open_boxes(files, self.images, self.student, self.names, mappings, self.code)
        self.code = teacher.last
        return teacher


def mappings_of(teachers: Sequence[str], named: Any) -> dict[str, str]:
    """The file of `teacher_classes=` for each teacher of boxes: one for all, or one each; none skips one.

    Raises:
        BadInput: there is another number of files, or no teacher is boxes.
    """
    boxes = [teacher for teacher in teachers if is_boxes(teacher)]
    files = [] if named is None else split_commas(named)
    if files and not boxes:
        raise BadInput("teacher_classes= maps the classes of boxes in a file, and no teacher is one: leave it out")
    if len(files) > 1 and len(files) != len(boxes):
        raise BadInput(
            f"teacher_classes= has {len(files)} files for {len(boxes)} teachers of boxes: give one for all, or one for "
            "each in the order of teacher=, none for one that needs none"
        )
    each = files * len(boxes) if len(files) == 1 else files
    return {teacher: file for teacher, file in zip(boxes, each, strict=False) if file.lower() != "none"}


def refuse_options(teachers: Sequence[str], options: Mapping[str, Any], task: str) -> None:
    """Refuse arguments that these teachers cannot take.

    Args:
        teachers: their files.
        options: M-KD's arguments, resolved.
        task: of the student.

    Raises:
        BadInput: see the messages.
    """
    networks = [teacher for teacher in teachers if is_network(teacher)]
    if networks and options["record"]:
        raise BadInput(
            f"record= stores what a detector computes, and teacher={networks[0]} is a network whose maps are too large "
            "to store: leave record= out"
        )
    if networks and len(teachers) > 1 and options["teachers"] == "mean":
        raise BadInput(f"teachers=mean takes detectors and boxes, and {networks[0]} is none: use drawn or sequence")
    boxes = [teacher for teacher in teachers if is_boxes(teacher)]
    if boxes and task != "detect":
        raise BadInput(
            f"teacher={boxes[0]} has boxes only, and the student is of the task {task}: give a .pt of this task"
        )
    if boxes and options["record"] and len(boxes) == len(teachers):
        raise BadInput(
            f"record= caches what a model computes, and teacher={boxes[0]} is boxes already: leave record= out"
        )
