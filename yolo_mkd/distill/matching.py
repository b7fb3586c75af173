"""What two models of any families and sizes have in common: strides, branches, classes, layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_mkd.distill.resample import Levels, at_levels, at_size, at_strides
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.exploration import inheriting
from yolo_mkd.settings import BadInput

SMALLEST = 2  # rows and columns that a map needs to have a pattern to compare


@dataclass(frozen=True)
class Match:
    """A student and a teacher, matched by role.

    Attributes:
        student: the student's spec.
        teacher: the teacher's, at its image size.
        explores: whether half of the student's neck channels explore; the other terms then use the other half.
        strides: of the head's levels that both have.
        branches: of the head that both have.
        classes: the student's class indices that the teacher has too, each with the teacher's indices of it: the class
            of the same name, or those of all the classes that `single_cls=True` merged into it.
        shared: roles of the hidden layers that both have.
        neck: those of them that are the heads' inputs.
    """

    student: ModelSpec
    teacher: ModelSpec
    explores: bool
    strides: tuple[int, ...]
    branches: tuple[str, ...]
    classes: tuple[tuple[int, tuple[int, ...]], ...]
    shared: tuple[str, ...]
    neck: tuple[str, ...]

    @classmethod
    def of(cls, student: ModelSpec, teacher: ModelSpec, explores: bool = False) -> Match:
        """Match two models; the student explores only where there is a neck layer to explore in."""
        shared = tuple(
            r for r in student.layers if r in teacher.layers and patterned(student, r) and patterned(teacher, r)
        )
        neck = tuple(r for r in shared if r.startswith("neck"))
        # one output of a coarser map is the target of several anchors, and one2one must have one anchor per object
        coarser = any(teacher.layers[r].rows < student.layers[r].rows for r in neck)
        return cls(
            student,
            teacher,
            explores and bool(neck),
            tuple(s for s in student.strides if s in teacher.strides),
            tuple(b for b in student.branches if b in teacher.branches and not (b == "one2one" and coarser)),
            matched_classes(student, teacher),
            shared,
            neck,
        )

    @property
    def resampled(self) -> bool:
        """Whether the teacher's image size differs from the student's."""
        return any(self.student.layers[r].rows != self.teacher.layers[r].rows for r in self.shared)

    def widths(self, role: str) -> tuple[int, int]:
        """How many of the student's channels of a layer are compared with the teacher's, and the teacher's channels."""
        channels = self.student.layers[role].channels
        inherit = self.explores and role in self.neck
        return inheriting(channels) if inherit else channels, self.teacher.layers[role].channels

    def heads(self, ks: Knowledge, kt: Knowledge) -> list[tuple[Outputs, Outputs, Tensor]]:
        """Student's and teacher's outputs by branch at the shared strides, and the teacher's shared classes' logits."""
        theirs = self.teacher_heads(kt, ks.levels)
        ours = {branch: at_strides(ks.branches[branch], ks.levels, self.strides) for branch in self.branches}
        return [(ours[b], theirs[b], self.shared_logits(theirs[b].logits)) for b in self.branches]

    def teacher_heads(self, kt: Knowledge, levels: Levels) -> dict[str, Outputs]:
        """The teacher's outputs by branch, at the anchors of the shared strides that the student has at `levels`."""
        given = {stride: kt.levels[stride] for stride in self.strides}
        wanted = {stride: levels[stride] for stride in self.strides}
        found = {branch: at_strides(kt.branches[branch], kt.levels, self.strides) for branch in self.branches}
        if given == wanted:
            return found
        return {branch: at_levels(outputs, given, wanted) for branch, outputs in found.items()}

    def shared_logits(self, logits: Tensor) -> Tensor:
        """The teacher's logits of the shared classes, B C A of all its classes in; of merged classes the best one."""
        if all(len(theirs) == 1 for _, theirs in self.classes):
            return of_classes(logits, [t for _, (t,) in self.classes])
        return torch.stack([logits[:, list(theirs)].amax(1) for _, theirs in self.classes], 1)

    def inherited(self, ks: Knowledge, role: str) -> Tensor:
        """The student's features of a role, only the channels that are compared with the teacher's."""
        return ks.features[role][:, : self.widths(role)[0]]

    def side_by_side(self, ks: Knowledge, kt: Knowledge, role: str) -> tuple[Tensor, Tensor]:
        """The student's inheriting channels of a layer and the teacher's features, at the student's size."""
        fs = self.inherited(ks, role)
        return fs, at_size(kt.features[role], fs.shape[2], fs.shape[3])

    def explored(self, ks: Knowledge, role: str) -> Tensor:
        """The student's exploring channels of a neck layer."""
        return ks.features[role][:, self.widths(role)[0] :]


def of_classes(logits: Tensor, chosen: list[int]) -> Tensor:
    """The logits of some classes, B C A in and out; without a copy where these are all in order."""
    return logits if chosen == list(range(logits.shape[1])) else logits[:, chosen]


def patterned(model: ModelSpec, role: str) -> bool:
    """Whether a layer's map is large enough to have a pattern to compare."""
    return min(model.layers[role].rows, model.layers[role].columns) >= SMALLEST


def matched_classes(student: ModelSpec, teacher: ModelSpec) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The student's classes that the teacher has too, each with the teacher's indices of it; see `Match.classes`."""
    if student.merged:
        theirs = tuple(t for _, t in shared_classes(student.merged, teacher.names))
        if theirs:
            return tuple((ours, theirs) for ours in student.names)
    return tuple((ours, (t,)) for ours, t in shared_classes(student.names, teacher.names))


def shared_classes(student: Mapping[int, str], teacher: Mapping[int, str]) -> list[tuple[int, int]]:
    """Pairs of student's and teacher's class index with the same name, in the student's order.

    Names are equal as they are written or, among those without such a partner, when case and surrounding spaces are
    ignored and only one class on each side has that name then.

    Raises:
        BadInput: several classes of one side have the same name and the other side has it too. They are paired by
            their indices where both sides have that name at the same indices.
    """
    ours, theirs = {i: str(n) for i, n in student.items()}, {i: str(n) for i, n in teacher.items()}
    pairs = exact_pairs(ours, theirs)
    ours = {i: name for i, name in ours.items() if i not in pairs}
    theirs = {i: name for i, name in theirs.items() if i not in pairs.values()}
    refuse_duplicates("data", ours, theirs)
    refuse_duplicates("teacher", theirs, ours)
    counts = [Counter(map(folded, names.values())) for names in (ours, theirs)]
    index = {folded(name): i for i, name in theirs.items()}
    pairs |= {i: index[folded(n)] for i, n in ours.items() if all(count[folded(n)] == 1 for count in counts)}
    return [(i, pairs[i]) for i in student if i in pairs]


def exact_pairs(ours: dict[int, str], theirs: dict[int, str]) -> dict[int, int]:
    """The teacher's class index of each student's class index whose name is written in the same way; see above."""
    pairs: dict[int, int] = {}
    for name in dict.fromkeys(ours.values()):
        at = [i for i, n in ours.items() if n == name]
        there = [i for i, n in theirs.items() if n == name]
        if len(at) == len(there) == 1 or at == there:
            pairs |= dict(zip(at, there, strict=True))
    return pairs


def refuse_duplicates(side: str, names: dict[int, str], others: dict[int, str]) -> None:
    """Refuse a name that several classes of one side have, if the other side has it too."""
    wanted = set(map(folded, others.values()))
    for name, count in Counter(names.values()).items():
        if count > 1 and folded(name) in wanted:
            indices = ", ".join(str(i) for i, n in names.items() if n == name)
            raise BadInput(
                f"the {side} has {count} classes named '{name}' ({indices}), which cannot be told apart: "
                "give each class a name of its own"
            )


def folded(name: str) -> str:
    """A class name without surrounding spaces, in lower case."""
    return name.strip().casefold()
