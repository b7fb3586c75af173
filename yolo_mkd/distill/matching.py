"""What two models of any families and sizes have in common: strides, branches, classes, layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from yolo_mkd.distill.resample import at_levels, at_size, at_strides
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.exploration import inheriting

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
        classes: pairs of student's and teacher's class index with the same name.
        shared: roles of the hidden layers that both have.
        neck: those of them that are the heads' inputs.
    """

    student: ModelSpec
    teacher: ModelSpec
    explores: bool
    strides: tuple[int, ...]
    branches: tuple[str, ...]
    classes: tuple[tuple[int, int], ...]
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
            tuple(shared_classes(student.names, teacher.names)),
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
        theirs = [t for _, t in self.classes]
        given = {stride: kt.levels[stride] for stride in self.strides}
        wanted = {stride: ks.levels[stride] for stride in self.strides}
        pairs = []
        for branch in self.branches:
            s = at_strides(ks.branches[branch], ks.levels, self.strides)
            t = at_strides(kt.branches[branch], kt.levels, self.strides)
            if given != wanted:
                t = at_levels(t, given, wanted)
            pairs.append((s, t, t.logits[:, theirs]))
        return pairs

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


def patterned(model: ModelSpec, role: str) -> bool:
    """Whether a layer's map is large enough to have a pattern to compare."""
    return min(model.layers[role].rows, model.layers[role].columns) >= SMALLEST


def shared_classes(student: dict[int, str], teacher: dict[int, str]) -> list[tuple[int, int]]:
    """Pairs of student's and teacher's class index with the same name, ignoring case and surrounding spaces."""
    index = {str(name).strip().lower(): i for i, name in teacher.items()}
    pairs = [(i, index.get(str(name).strip().lower())) for i, name in student.items()]
    return [(i, t) for i, t in pairs if t is not None]
