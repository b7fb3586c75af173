"""A lesson: what one teacher can pass on to the student. Which terms act, what they read, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolo_mkd.distill import baseline_terms as rivals
from yolo_mkd.distill import terms
from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.terms import Term
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, Truth
from yolo_mkd.knowledge.soft_targets import class_mass
from yolo_mkd.settings import BadInput


@dataclass(frozen=True)
class TermSpec:
    """A kind of knowledge.

    Attributes:
        between: makes its term between two matched models.
        gain: its plain gain where nothing is measured.
        share: the share of the detection gradient that this gain usually gives.
    """

    between: Callable[[Match], Term]
    gain: float
    share: float


TERMS = {  # gains and shares of M-KD's terms: gradient ratios on yolo26n's trunk; rivals: as published
    "soft": TermSpec(terms.soft, 1.0, 0.8),
    "soft_box": TermSpec(terms.soft_box, 1.0, 0.4),
    "soft_dfl": TermSpec(terms.soft_dfl, 0.02, 0.16),
    "attention": TermSpec(terms.attention, 1.0, 0.25),
    "relation": TermSpec(terms.relation, 1.0, 0.1),
    "guidance": TermSpec(terms.guidance, 6.0, 1.0),
    "exploration": TermSpec(terms.exploration, 0.15, 0.05),
    "channel_wise": TermSpec(rivals.channel_wise, 1.0, 1.0),
    "masked_generation": TermSpec(rivals.masked_generation, 2e-5, 1.0),
    "focal_global": TermSpec(rivals.focal_global, 1.0, 1.0),
    "pearson": TermSpec(rivals.pearson, 6.0, 1.0),
    "localization": TermSpec(rivals.localization, 0.25, 0.1),
    "score_l2": TermSpec(rivals.score_l2, 6.0, 1.0),
}


class Lesson:
    """The terms between one teacher and the student.

    Attributes:
        match: what the two have in common.
        terms: those that are asked for, in the order of `TERMS`.
        parts: what acting terms train beside the student, by term; dropped at the end.
    """

    def __init__(self, student: ModelSpec, teacher: ModelSpec, asked: dict[str, float]):
        """Match two models and decide which terms act.

        Args:
            student: the student's spec.
            teacher: the teacher's.
            asked: share or gain of each term by name; absent is off.
        """
        self.match = Match.of(student, teacher, explores=asked.get("exploration", 0) > 0)
        self.terms = []
        for name, kind in TERMS.items():
            if asked.get(name, 0) > 0:
                term = kind.between(self.match)
                term.name, term.asked = name, asked[name]
                self.terms.append(term)
        self.parts = nn.ModuleDict({t.name: t.parts for t in self.acting if t.parts is not None})

    def term(self, name: str) -> Term:
        """The term of that name, which must be asked for."""
        return next(t for t in self.terms if t.name == name)

    @property
    def acting(self) -> list[Term]:
        """The terms that take part in training."""
        return [t for t in self.terms if not t.why_not]

    @property
    def roles(self) -> list[str]:
        """The hidden layers that the acting terms read."""
        needed = {role for t in self.acting for role in t.roles}
        return [r for r in self.match.shared if r in needed]

    def require_active_term(self, teacher: str) -> None:
        """Refuse to train with a teacher that can teach this student nothing.

        Args:
            teacher: its file, for the message.

        Raises:
            BadInput: shares are asked for and no term can act, or the teacher cannot see this data's images.
        """
        ours, theirs = self.match.student.channels, self.match.teacher.channels
        if theirs != ours and (ours, theirs) != (1, 3):  # a grey image is shown to a colour teacher as grey
            kinds = f"{theirs} channels, the data has {ours}"
            raise BadInput(
                f"teacher={teacher} sees images of {kinds}: train a teacher on this data (teacher_epochs=100)"
            )
        if self.terms and not self.acting:
            reasons = "; ".join(f"{t.name}: {t.why_not}" for t in self.terms)
            raise BadInput(f"teacher={teacher} can teach this student nothing ({reasons})")

    def require_cacheable(self) -> None:
        """Refuse to replay a teacher to terms that need more of it than a record holds.

        Raises:
            BadInput: such a term acts.
        """
        if names := [t.name for t in self.acting if not t.replayable]:
            off = " ".join(f"{name}=0" for name in names)
            raise BadInput(
                f"record= keeps no teacher's features, which {' '.join(names)} need: "
                f"switch them off ({off}, or preset=recorded), or leave record= out to ask the teacher each time"
            )

    def staying(self, remaining: float) -> dict[str, float]:
        """What is to be left of each acting term as the detection loss leaves the trunk.

        Terms that weigh the head's branches as the detection loss does follow it by themselves.

        Args:
            remaining: what is left of the detection loss's first weight on the trunk.
        """
        return {t.name: 1.0 if t.branched else remaining for t in self.acting}

    def masses(self, kt: Knowledge) -> dict[str, Tensor]:
        """How much score the teacher gives to each class that both know, C, by branch; nothing where no term asks."""
        theirs = [t for _, t in self.match.classes]
        asked = self.match.branches if any(t.branched for t in self.acting) else ()
        return {branch: class_mass(kt.branches[branch].logits[:, theirs]) for branch in asked}

    def labels(self, classes: Tensor) -> Tensor:
        """How many of a batch's labels each class has that both know: the student's class of N labels in, C out."""
        ours = torch.tensor([s for s, _ in self.match.classes], device=classes.device)
        return (classes.view(-1, 1) == ours).sum(0)

    def losses(self, ks: Knowledge, kt: Knowledge, truth: Truth, steer: bool = True) -> dict[str, Tensor]:
        """Each acting term's loss, without its gain, as a mean over the images of the batch.

        Args:
            ks: the student's knowledge.
            kt: the teacher's.
            truth: the batch's labels.
            steer: let terms with parts of their own move the student; else only their parts learn.
        """
        deaf = ks if steer else ks.detached()
        found = {}
        for t in self.acting:
            ours, theirs = ks if t.parts is None else deaf, kt
            if t.labels and truth.labelled is not None:
                ours, theirs = ours.first(truth.labelled), theirs.first(truth.labelled)
            found[t.name] = t.loss(ours, theirs, truth)
        return found


def check_asked(asked: dict[str, object]) -> dict[str, float]:
    """The shares or gains as numbers.

    Raises:
        BadInput: one is negative, infinite or no number.
    """
    for name, value in asked.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise BadInput(f"{name}={value} is no gain: give a number of 0 or more")
    return {name: float(value) for name, value in asked.items() if isinstance(value, int | float)}
