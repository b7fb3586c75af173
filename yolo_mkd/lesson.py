"""A lesson: what one teacher can pass on to the student. Which terms act, what they read, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, cat, nn

from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.attention import attention_loss
from yolo_mkd.knowledge.exploration import exploration_loss, inheriting
from yolo_mkd.knowledge.guidance import adapter, guidance_loss
from yolo_mkd.knowledge.relation import grid_for, relation_loss, relation_matrix
from yolo_mkd.knowledge.soft_targets import box_loss, class_loss, dfl_loss
from yolo_mkd.settings import BadInput
from yolo_mkd.taps import Anatomy

TERMS = ("soft", "soft_box", "soft_dfl", "attention", "relation", "guidance", "exploration")
SMALLEST = 2  # rows and columns of a map below which it holds no pattern to compare


@dataclass
class Term:
    """One kind of knowledge between this teacher and the student.

    Attributes:
        name: as in `TERMS`, and as the gain's argument.
        gain: what its loss is multiplied by.
        reads: what it compares, for people.
        why_not: why it cannot act; empty if it can.
        loss: the comparison itself, of the student's and the teacher's knowledge.
    """

    name: str
    gain: float
    reads: str
    why_not: str
    loss: Callable[[Knowledge, Knowledge], Tensor]

    @property
    def acts(self) -> bool:
        """Whether the term takes part in training."""
        return self.gain > 0 and not self.why_not


class Lesson:
    """The terms between one teacher and the student.

    Attributes:
        terms: all of them, in the order of `TERMS`.
        adapters: the guidance layers, trained beside the student and dropped at the end.
        roles: the hidden layers that acting terms read.
    """

    def __init__(self, student: Anatomy, teacher: Anatomy, gains: dict[str, float]):
        """Match two models and decide which terms act.

        Args:
            student: the student's anatomy.
            teacher: the teacher's.
            gains: gain of each term by name.
        """
        self.student, self.teacher, self.gains = student, teacher, gains
        self.strides = [s for s in student.strides if s in teacher.strides]
        self.branches = [b for b in student.branches if b in teacher.branches]
        self.classes = shared_classes(student.names, teacher.names)
        self.shared = [r for r in student.taps if r in teacher.taps and self._patterned(r)]
        self.neck = [r for r in self.shared if r.startswith("neck")]
        self.adapters = nn.ModuleDict()
        explore = self._hidden("exploration", self.neck, 1, self._exploration_loss)
        self.splits = explore.acts
        self.terms = [
            self._soft("soft", self._class_loss),
            self._soft("soft_box", self._box_loss),
            self._soft("soft_dfl", self._dfl_loss),
            self._hidden("attention", self.shared, 1, self._attention_loss),
            self._hidden("relation", self.shared, 2, self._relation_loss),
            self._hidden("guidance", self.neck, 1, self._guidance_loss),
            explore,
        ]
        if self.term("guidance").acts:
            for role in self.neck:
                channels = student.taps[role].channels
                channels = inheriting(channels) if self.splits else channels
                self.adapters[role] = adapter(channels, teacher.taps[role].channels)

    def term(self, name: str) -> Term:
        """The term of that name."""
        return next(t for t in self.terms if t.name == name)

    @property
    def acting(self) -> list[Term]:
        """The terms that take part in training."""
        return [t for t in self.terms if t.acts]

    @property
    def roles(self) -> list[str]:
        """The hidden layers that the acting terms read."""
        names = {t.name for t in self.acting}
        if names & {"attention", "relation"}:
            return self.shared
        return self.neck if names & {"guidance", "exploration"} else []

    def refuse_silence(self, teacher: str) -> None:
        """Refuse to train with a teacher that can teach this student nothing.

        Args:
            teacher: its file, for the message.

        Raises:
            BadInput: gains are given and no term can act, or the two see images of different kinds.
        """
        if self.teacher.channels != self.student.channels:
            kinds = f"{self.teacher.channels} channels, the data has {self.student.channels}"
            raise BadInput(
                f"teacher={teacher} sees images of {kinds}: train a teacher on this data (teacher_epochs=100)"
            )
        if not self.acting and any(self.gains.values()):
            reasons = "; ".join(f"{t.name}: {t.why_not or 'gain 0'}" for t in self.terms)
            raise BadInput(f"teacher={teacher} can teach this student nothing ({reasons})")

    def losses(self, ks: Knowledge, kt: Knowledge) -> dict[str, Tensor]:
        """Each acting term's loss, without its gain, as a mean over the images of the batch."""
        return {t.name: t.loss(ks, kt) for t in self.acting}

    # Deciding which terms act

    def _patterned(self, role: str) -> bool:
        return min(self.student.taps[role].rows, self.student.taps[role].columns) >= SMALLEST

    def _soft(self, name: str, loss: Callable[[Knowledge, Knowledge], Tensor]) -> Term:
        why = ""
        if not self.strides:
            why = "no stride in common"
        elif not self.classes:
            why = "the teacher knows no class of this data"
        elif name == "soft_dfl" and (self.student.reg_max == 1 or self.teacher.reg_max == 1):
            who = "neither head has" if self.student.reg_max == self.teacher.reg_max else "only one head has"
            why = f"{who} box-side distributions (reg_max=1)"
        elif name == "soft_dfl" and self.student.reg_max != self.teacher.reg_max:
            why = f"{self.student.reg_max} and {self.teacher.reg_max} bins a box side"
        classes = f"{len(self.classes)} of the student's {len(self.student.names)} classes, " if name == "soft" else ""
        strides = " ".join(map(str, self.strides))
        return Term(name, self.gains[name], f"{classes}{' + '.join(self.branches)}, strides {strides}", why, loss)

    def _hidden(self, name: str, roles: list[str], least: int, loss: Callable[[Knowledge, Knowledge], Tensor]) -> Term:
        why = "" if len(roles) >= least else f"{len(roles)} of at least {least} layers in common at this imgsz"
        return Term(name, self.gains[name], " ".join(roles), why, loss)

    # What each term compares

    def _heads(self, ks: Knowledge, kt: Knowledge) -> list[tuple[Outputs, Outputs, Tensor]]:
        """Pairs of student's and teacher's outputs by branch, and the teacher's logits of the shared classes."""
        theirs = [t for _, t in self.classes]
        pairs = []
        for branch in self.branches:
            s = at_strides(ks.branches[branch], ks.levels, self.strides)
            t = at_strides(kt.branches[branch], kt.levels, self.strides)
            pairs.append((s, t, t.logits[:, theirs]))
        return pairs

    def _mean(self, losses: list[Tensor]) -> Tensor:
        return sum(losses[1:], losses[0]) / len(losses)

    def _class_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        ours = [s for s, _ in self.classes]
        return self._mean([class_loss(s.logits[:, ours], zt) for s, _, zt in self._heads(ks, kt)])

    def _box_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        return self._mean([box_loss(s.distances, t.distances, zt) for s, t, zt in self._heads(ks, kt)])

    def _dfl_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        pairs = [(s.bins, t.bins, zt) for s, t, zt in self._heads(ks, kt)]
        return self._mean([dfl_loss(s, t, zt) for s, t, zt in pairs if s is not None and t is not None])

    def _inherited(self, ks: Knowledge, role: str) -> Tensor:
        """The student's channels that are to follow the teacher: all, or half of the neck's while it explores."""
        f = ks.features[role]
        return f[:, : inheriting(f.shape[1])] if self.splits and role in self.neck else f

    def _attention_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        return self._mean([attention_loss(self._inherited(ks, r), kt.features[r]) for r in self.shared])

    def _relation_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        fs, ft = [self._inherited(ks, r) for r in self.shared], [kt.features[r] for r in self.shared]
        grid = grid_for([(f.shape[2], f.shape[3]) for f in fs])
        return relation_loss(relation_matrix(fs, grid), relation_matrix(ft, grid))

    def _guidance_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        adapted = {r: self.adapters[r](self._inherited(ks, r).float()) for r in self.neck}  # B Cs H W -> B Ct H W
        return self._mean([guidance_loss(adapted[r], kt.features[r]) for r in self.neck])

    def _exploration_loss(self, ks: Knowledge, kt: Knowledge) -> Tensor:
        explored = [ks.features[r][:, inheriting(ks.features[r].shape[1]) :] for r in self.neck]
        return self._mean([exploration_loss(f, kt.features[r]) for f, r in zip(explored, self.neck, strict=True)])


def check_gains(gains: dict[str, object]) -> dict[str, float]:
    """The gains as numbers.

    Raises:
        BadInput: one is negative, infinite or no number.
    """
    for name, gain in gains.items():
        if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0 <= gain < float("inf"):
            raise BadInput(f"{name}={gain} is no gain: give a number of 0 or more")
    return {name: float(gain) for name, gain in gains.items() if isinstance(gain, int | float)}


def shared_classes(student: dict[int, str], teacher: dict[int, str]) -> list[tuple[int, int]]:
    """Pairs of student's and teacher's class index with the same name, whatever its case and outer spaces."""
    index = {str(name).strip().lower(): i for i, name in teacher.items()}
    pairs = [(i, index.get(str(name).strip().lower())) for i, name in student.items()]
    return [(i, t) for i, t in pairs if t is not None]


def anchors_of(x: Tensor, levels: dict[int, tuple[int, int]], strides: list[int]) -> Tensor:
    """The anchors of some strides only: ... A in, ... A' out."""
    if list(levels) == list(strides):
        return x
    parts = dict(zip(levels, x.split([rows * columns for rows, columns in levels.values()], dim=-1), strict=True))
    return cat([parts[s] for s in strides], dim=-1)


def at_strides(outputs: Outputs, levels: dict[int, tuple[int, int]], strides: list[int]) -> Outputs:
    """One branch's outputs at some strides only."""
    bins = None if outputs.bins is None else anchors_of(outputs.bins, levels, strides)
    return Outputs(anchors_of(outputs.logits, levels, strides), anchors_of(outputs.distances, levels, strides), bins)
