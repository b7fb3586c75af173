"""M-KD's own terms between two matched models: what each compares, when it does not apply, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolo_mkd.distill.matching import Match, of_classes
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, LossWeights, Targets
from yolo_mkd.knowledge.attention import attention_map, map_loss
from yolo_mkd.knowledge.exploration import exploration_loss
from yolo_mkd.knowledge.guidance import Guide
from yolo_mkd.knowledge.relation import grid_for, relation_loss, relation_matrix
from yolo_mkd.knowledge.soft_targets import AnchorWeights, anchor_weights, box_loss, class_loss, dfl_loss

Loss = Callable[[Knowledge, Knowledge, Targets, LossWeights], Tensor]


@dataclass
class Term:
    """One loss between this teacher and the student.

    Attributes:
        reads: what it compares, as text for tables.
        why_not: why it does not apply to these models; empty if it applies.
        loss: computes it from the student's and the teacher's outputs, the labels and the loss weights.
        roles: the hidden layers that it reads.
        adapters: modules trained beside the student for it, and dropped at the end.
        cacheable: whether the teacher cache contains everything that it reads.
        head: whether it reads the head's outputs.
        through_head: whether gradients pass through a copy of the teacher's head, which only a live teacher has.
        labels: whether it needs labels, so that it is computed on labelled images only.
        branched: whether it weights the head's branches as the detection loss does.
        name: as in `TERMS`, and as its argument.
        asked: the share of the detection gradient, or the plain gain, that the user set.
    """

    reads: str
    why_not: str
    loss: Loss
    roles: tuple[str, ...] = ()
    adapters: nn.Module | None = None
    cacheable: bool = False
    head: bool = False
    through_head: bool = False
    labels: bool = False
    branched: bool = False
    name: str = ""
    asked: float = 0.0


def mean(losses: Sequence[Tensor]) -> Tensor:
    """The mean of scalars."""
    return sum(losses[1:], losses[0]) / len(losses)


# Soft targets


def weighted_by_branch(losses: Sequence[Tensor], match: Match, weights: LossWeights) -> Tensor:
    """The sum of the branches' losses, each with the detection loss's current weight of its branch."""
    by_branch = [1.0 if weights.branches is None else weights.branches[branch] for branch in match.branches]
    return torch.stack([weight * loss for weight, loss in zip(by_branch, losses, strict=True)]).sum()


def class_weights_of(match: Match, weights: LossWeights) -> list[Tensor | None]:
    """The weight of each class that both models have, C, for each branch; None means 1 each."""
    return [None if weights.classes is None else weights.classes[branch] for branch in match.branches]


def anchors_of(match: Match, zts: Sequence[Tensor], weights: LossWeights) -> list[AnchorWeights]:
    """The weights of the anchors for each branch, computed by the first term that needs them.

    Args:
        match: of the two models.
        zts: the teacher's logits of the shared classes for each branch, B C A.
        weights: of this batch.
    """
    for branch, zt, w in zip(match.branches, zts, class_weights_of(match, weights), strict=True):
        if branch not in weights.anchors:
            weights.anchors[branch] = anchor_weights(zt, w)
    return [weights.anchors[branch] for branch in match.branches]


def soft(match: Match) -> Term:
    """Soft targets: the teacher's class scores."""
    ours = [s for s, _ in match.classes]

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        heads = match.heads(ks, kt)
        pairs = zip(heads, anchors_of(match, [zt for *_, zt in heads], weights), strict=True)
        losses = [class_loss(of_classes(s.logits, ours), zt, anchors=a) for (s, _, zt), a in pairs]
        return weighted_by_branch(losses, match, weights)

    reads = f"{len(ours)} of the student's {len(match.student.names)} classes, {describe_heads(match)}"
    return Term(reads, heads_mismatch(match), loss, cacheable=True, head=True, branched=True)


def soft_box(match: Match) -> Term:
    """Soft targets: the teacher's boxes."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        heads = match.heads(ks, kt)
        pairs = zip(heads, anchors_of(match, [zt for *_, zt in heads], weights), strict=True)
        losses = [box_loss(s.distances, t.distances, zt, anchors=a) for (s, t, zt), a in pairs]
        return weighted_by_branch(losses, match, weights)

    why = heads_mismatch(match) or rotation_mismatch(match)
    return Term(describe_heads(match), why, loss, cacheable=True, head=True, branched=True)


def soft_dfl(match: Match) -> Term:
    """Soft targets: the teacher's box-side distributions."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = zip(match.heads(ks, kt), class_weights_of(match, weights), strict=True)
        bins = [(s.bins, t.bins, zt, w) for (s, t, zt), w in pairs]
        losses = [dfl_loss(s, t, zt, w) for s, t, zt, w in bins if s is not None and t is not None]
        return weighted_by_branch(losses, match, weights)

    why = heads_mismatch(match) or rotation_mismatch(match) or bins_mismatch(match)
    return Term(describe_heads(match), why, loss, head=True, branched=True)


def describe_heads(match: Match) -> str:
    """The branches and strides at which the heads are compared, as text for tables."""
    return f"{' + '.join(match.branches)}, strides {' '.join(map(str, match.strides))}"


def heads_mismatch(match: Match) -> str:
    """Why two heads' anchors or classes cannot be compared; empty if they can."""
    if not match.branches:
        return headless(match.teacher) or "the teacher's head has no anchors (RT-DETR)"
    if not match.strides:
        return "no stride in common"
    return "" if match.classes else "the teacher has none of this data's classes"


def no_scores(match: Match) -> str:
    """Why the teacher's scores are not known at positions; empty if they are."""
    if match.teacher.branches:
        return ""
    return headless(match.teacher) or "the teacher's head has no scores at anchors (RT-DETR)"


def headless(teacher: ModelSpec) -> str:
    """Why a teacher that is not one detector, and has no branches, has none; empty for one detector."""
    if teacher.averaged:
        return "no teacher has a head with classes and strides of the student's"
    return "the teacher has no detection head" if teacher.origin else ""


def rotation_mismatch(match: Match) -> str:
    """Why box sides cannot be compared if boxes are oriented; empty if they are not."""
    if match.student.rotated or match.teacher.rotated:
        return "box sides of oriented boxes depend on the angle, so they cannot be compared"
    return ""


def bins_mismatch(match: Match) -> str:
    """Why two heads' box-side distributions cannot be compared; empty if they can."""
    ours, theirs = match.student.reg_max, match.teacher.reg_max
    if 1 in {ours, theirs}:
        which = "neither head has" if ours == theirs else "only one head has"
        return f"{which} box-side distributions (reg_max=1)"
    if ours != theirs:
        return f"the heads have {ours} and {theirs} bins for each box side"
    return "the teacher has another image size, and bins cannot be resampled" if match.resampled else ""


# Hidden layers


def attention(match: Match) -> Term:
    """Attention maps of hidden layers."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        return mean(
            [map_loss(attention_map(match.inherited(ks, r)), teacher_map(kt, r), weights.images) for r in match.shared]
        )

    roles = match.shared
    return Term(describe_layers(roles), too_few_layers(roles), loss, roles, cacheable=True)


def teacher_map(kt: Knowledge, role: str) -> Tensor:
    """The teacher's attention map of a role, B H W: from its cache, or computed from its features."""
    return kt.maps[role] if role in kt.maps else attention_map(kt.features[role])


def relation(match: Match) -> Term:
    """The relation matrix between hidden layers."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        fs = [match.inherited(ks, r) for r in match.shared]
        sizes = [(f.shape[2], f.shape[3]) for f in (*fs, *kt.features.values())]
        grid = grid_for(sizes)
        return relation_loss(relation_matrix(fs, grid), teacher_relations(kt, match.shared, grid), weights.images)

    roles = match.shared
    return Term(describe_layers(roles), too_few_layers(roles, least=2), loss, roles, cacheable=True)


def teacher_relations(kt: Knowledge, roles: Sequence[str], grid: tuple[int, int]) -> Tensor:
    """The teacher's relation matrix between some roles, B L L: from its cache, or computed from its features."""
    if kt.relations is None:
        return relation_matrix([kt.features[r] for r in roles], grid)
    cached_roles, matrix = kt.relations
    chosen = torch.tensor([cached_roles.index(r) for r in roles], device=matrix.device)
    return matrix[:, chosen[:, None], chosen]


def guidance(match: Match) -> Term:
    """Guidance layers between unequal widths."""
    guides = nn.ModuleDict({r: Guide(*match.widths(r)) for r in match.neck})

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        return mean([guides[r](*match.side_by_side(ks, kt, r)) for r in match.neck])

    return Term(describe_layers(match.neck), too_few_layers(match.neck), loss, match.neck, guides)


def exploration(match: Match) -> Term:
    """Exploration: independence of the student's exploring channels from the teacher's."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        return mean([exploration_loss(match.explored(ks, r), kt.features[r]) for r in match.neck])

    return Term(describe_layers(match.neck), too_few_layers(match.neck), loss, match.neck)


def describe_layers(roles: tuple[str, ...]) -> str:
    """The layers that a term compares, as text for tables."""
    return " ".join(roles)


def too_few_layers(roles: tuple[str, ...], least: int = 1) -> str:
    """Why a term cannot be computed on fewer than `least` common layers; empty if there are enough."""
    if len(roles) >= least:
        return ""
    return f"{len(roles)} layers in common at this imgsz, and at least {least} needed"
