"""A distiller: one teacher, the terms between it and the student, and their loss weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from yolo_mkd.distill import baseline_terms, object_terms, task_terms, terms
from yolo_mkd.distill.balance import GradientBalancer, TermWeight
from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.teachers import Teacher
from yolo_mkd.distill.terms import Term
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, LossWeights, Targets
from yolo_mkd.knowledge.soft_targets import class_mass
from yolo_mkd.settings import NOMINAL_GAINS, BadInput


@dataclass(frozen=True)
class TermSpec:
    """How a term is made, and its plain gain.

    Attributes:
        between: makes the term between two matched models.
        gain: its plain gain where nothing is measured.
        share: the share of the detection gradient that this gain usually gives.
    """

    between: Callable[[Match], Term]
    gain: float
    share: float


TERMS = {  # gains and shares of M-KD's terms: gradient ratios on yolo26n's trunk; baselines: as published
    "soft": TermSpec(terms.soft, NOMINAL_GAINS["soft"], 0.8),
    "soft_box": TermSpec(terms.soft_box, NOMINAL_GAINS["soft_box"], 0.4),
    "soft_dfl": TermSpec(terms.soft_dfl, NOMINAL_GAINS["soft_dfl"], 0.16),
    "attention": TermSpec(terms.attention, NOMINAL_GAINS["attention"], 0.25),
    "relation": TermSpec(terms.relation, NOMINAL_GAINS["relation"], 0.1),
    "guidance": TermSpec(terms.guidance, NOMINAL_GAINS["guidance"], 1.0),
    "exploration": TermSpec(terms.exploration, NOMINAL_GAINS["exploration"], 0.05),
    "soft_mask": TermSpec(task_terms.soft_mask, 1.0, 1.0),
    "soft_keypoint": TermSpec(task_terms.soft_keypoint, 1.0, 1.0),
    "soft_obb": TermSpec(task_terms.soft_obb, 1.0, 1.0),
    "head_guidance": TermSpec(object_terms.head_guidance, 1.0, 1.0),
    "object_guidance": TermSpec(object_terms.object_guidance, 1.0, 1.0),
    "class_attention": TermSpec(object_terms.class_attention, 1.0, 0.5),
    "object_relation": TermSpec(object_terms.object_relation, 1.0, 0.5),
    "error_focus": TermSpec(object_terms.error_focus, 1.0, 0.5),
    "channel_wise": TermSpec(baseline_terms.channel_wise, 1.0, 1.0),
    "masked_generation": TermSpec(baseline_terms.masked_generation, 2e-5, 1.0),
    "focal_global": TermSpec(baseline_terms.focal_global, 1.0, 1.0),
    "pearson": TermSpec(baseline_terms.pearson, 6.0, 1.0),
    "localization": TermSpec(baseline_terms.localization, 0.25, 0.1),
    "score_l2": TermSpec(baseline_terms.score_l2, 6.0, 1.0),
}


class Distiller:
    """The terms between one teacher and the student, and their loss weights.

    Attributes:
        match: what the two models have in common.
        terms: those that are asked for, in the order of `TERMS`.
        adapters: modules that acting terms train beside the student, by term; dropped at the end.
        balancer: the loss weights of the acting terms.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        asked: dict[str, float],
        calibrate: bool = True,
        gate: bool = False,
        soft_pw: float = 0.0,
    ):
        """Match two models and decide which terms act.

        Args:
            student: the student's spec.
            teacher: the teacher's, at the image size that it takes.
            asked: share or gain of each term by name; absent is off.
            calibrate: measure the gains, so that `asked` are shares of the detection gradient; else `asked` are gains.
            gate: leave a term out while its gradient opposes the task's.
            soft_pw: power of the class weights of soft targets.
        """
        self.match = Match.of(student, teacher, explores=asked.get("exploration", 0) > 0 and not teacher.averaged)
        named = {name: spec for name, spec in TERMS.items() if asked.get(name, 0) > 0}
        made = {name: spec.between(self.match) for name, spec in named.items()}
        self.terms = [
            replace(t, name=n, asked=asked[n], why_not=missing_of(teacher, t) or t.why_not) for n, t in made.items()
        ]
        self.adapters = nn.ModuleDict({t.name: t.adapters for t in self.acting if t.adapters is not None})
        weights = {t.name: TermWeight(t.asked, TERMS[t.name].gain, TERMS[t.name].share) for t in self.acting}
        self.balancer = GradientBalancer(weights, calibrate, gate, power=soft_pw)
        self._teacher: Teacher | None = None

    @property
    def teacher(self) -> Teacher:
        """The teacher that was connected."""
        assert self._teacher is not None, "connect a teacher first"
        return self._teacher

    def connect(self, teacher: Teacher) -> None:
        """Give the distiller its teacher, once it is known whether its outputs are computed or read from a cache."""
        self._teacher = teacher

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
        """Refuse a teacher from which no term can be distilled into this student.

        Args:
            teacher: its file, for the message.

        Raises:
            BadInput: terms are asked for and none can act, or the teacher takes images of other channels.
        """
        ours, theirs = self.match.student.channels, self.match.teacher.channels
        if theirs != ours:
            raise BadInput(
                f"teacher={teacher} takes images of {theirs} channels, the data has {ours}: "
                "train a teacher on this data (teacher_epochs=100)"
            )
        if self.terms and not self.acting:
            reasons = "; ".join(f"{t.name}: {t.why_not}" for t in self.terms)
            raise BadInput(f"no distillation term applies to teacher={teacher} and this student: {reasons}")

    def require_cacheable(self) -> None:
        """Refuse terms that need more of the teacher than its cache holds.

        Raises:
            BadInput: such a term acts.
        """
        if names := [t.name for t in self.acting if not t.cacheable]:
            off = " ".join(f"{name}=0" for name in names)
            raise BadInput(
                f"record= stores scores, boxes and attention maps, and {' '.join(names)} need more of the teacher: "
                f"switch them off ({off}, or preset=recorded), or leave record= out to run the teacher on each batch"
            )

    def trunk_scales(self, remaining: float) -> dict[str, float]:
        """The factor of each acting term as the detection loss leaves the trunk.

        Terms that weigh the head's branches as the detection loss does follow it by themselves.

        Args:
            remaining: what is left of the detection loss's first weight on the trunk.
        """
        return {t.name: 1.0 if t.branched else remaining for t in self.acting}

    def class_masses(self, kt: Knowledge) -> dict[str, Tensor]:
        """The sum of the teacher's scores for each class that both have, C, by branch; empty where no term needs it."""
        needed = self.match.branches if any(t.branched for t in self.acting) else ()
        return {branch: class_mass(self.match.shared_logits(kt.branches[branch].logits)) for branch in needed}

    def label_counts(self, classes: Tensor) -> Tensor:
        """How many labels of a batch each class has that both models have: the class of N labels in, C out."""
        ours = torch.tensor([s for s, _ in self.match.classes], device=classes.device)
        return (classes.view(-1, 1) == ours).sum(0)

    def losses(
        self, ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights, steer: bool = True
    ) -> dict[str, Tensor]:
        """Each acting term's loss, without its gain, as a mean over the images of the batch.

        Args:
            ks: the student's outputs.
            kt: the teacher's.
            targets: the batch's labels.
            weights: how much images, branches and classes count.
            steer: let terms with adapters move the student; else only their adapters learn.
        """
        detached = ks if steer else ks.detached()
        found = {}
        for t in self.acting:
            ours, theirs = ks if t.adapters is None else detached, kt
            if t.labels and targets.labelled is not None:
                ours, theirs = ours.of_first(targets.labelled), theirs.of_first(targets.labelled)
            found[t.name] = t.loss(ours, theirs, targets, weights)
        return found


def missing_of(teacher: ModelSpec, term: Term) -> str:
    """What a term reads and a teacher that is not one detector lacks; empty if it lacks nothing."""
    if teacher.origin and not teacher.layers and not term.head:
        return "the teacher has no hidden layers"
    if teacher.averaged and term.roles and not term.cacheable:
        return "features of several teachers have no mean (teachers=drawn or teachers=sequence use one at a time)"
    return ""
