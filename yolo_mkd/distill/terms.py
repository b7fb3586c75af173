"""M-KD's own terms between two matched models: what each reads, why it may be unable to act, and what it compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolo_mkd.distill.matching import Match
from yolo_mkd.knowledge import Knowledge, LossWeights, Targets
from yolo_mkd.knowledge.attention import attention_map, map_loss
from yolo_mkd.knowledge.exploration import exploration_loss
from yolo_mkd.knowledge.guidance import Guide
from yolo_mkd.knowledge.relation import grid_for, relation_loss, relation_matrix
from yolo_mkd.knowledge.soft_targets import box_loss, class_loss, dfl_loss

Loss = Callable[[Knowledge, Knowledge, Targets, LossWeights], Tensor]


@dataclass
class Term:
    """One kind of knowledge between this teacher and the student.

    Attributes:
        reads: what it compares, for people.
        why_not: why it cannot act; empty if it can.
        loss: the comparison itself, of the student's and the teacher's knowledge and the labels.
        roles: the hidden layers that it needs.
        adapters: modules trained beside the student for it, and dropped at the end.
        cacheable: whether the teacher cache holds all that it reads.
        head: whether it reads the head's outputs.
        labels: whether it reads the labels, so that images without any are not for it.
        branched: whether it weighs the head's branches as the detection loss does.
        name: as in `TERMS`, and as its argument.
        asked: the share of the detection gradient, or the plain gain, that the user asks for.
    """

    reads: str
    why_not: str
    loss: Loss
    roles: tuple[str, ...] = ()
    adapters: nn.Module | None = None
    cacheable: bool = False
    head: bool = False
    labels: bool = False
    branched: bool = False
    name: str = ""
    asked: float = 0.0


def mean(losses: Sequence[Tensor]) -> Tensor:
    """The mean of some scalars."""
    return sum(losses[1:], losses[0]) / len(losses)


# Soft targets


def as_detection(losses: Sequence[Tensor], match: Match, weights: LossWeights) -> Tensor:
    """The sum of the branches' losses, each weighed as the detection loss weighs that branch now."""
    by_branch = [1.0 if weights.branches is None else weights.branches[branch] for branch in match.branches]
    return torch.stack([weight * loss for weight, loss in zip(by_branch, losses, strict=True)]).sum()


def class_weights_of(match: Match, weights: LossWeights) -> list[Tensor | None]:
    """How much each of the classes that both know counts, for each branch; None is 1 each."""
    return [None if weights.classes is None else weights.classes[branch] for branch in match.branches]


def soft(match: Match) -> Term:
    """Soft targets: the teacher's class scores."""
    ours = [s for s, _ in match.classes]

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = zip(match.heads(ks, kt), class_weights_of(match, weights), strict=True)
        losses = [class_loss(s.logits[:, ours], zt, w) for (s, _, zt), w in pairs]
        return as_detection(losses, match, weights)

    classes = f"{len(ours)} of the student's {len(match.student.names)} classes, "
    return Term(classes + heads_read(match), heads_apart(match), loss, cacheable=True, head=True, branched=True)


def soft_box(match: Match) -> Term:
    """Soft targets: the teacher's boxes."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = zip(match.heads(ks, kt), class_weights_of(match, weights), strict=True)
        losses = [box_loss(s.distances, t.distances, zt, w) for (s, t, zt), w in pairs]
        return as_detection(losses, match, weights)

    why = heads_apart(match) or rotated(match)
    return Term(heads_read(match), why, loss, cacheable=True, head=True, branched=True)


def soft_dfl(match: Match) -> Term:
    """Soft targets: the teacher's box-side distributions."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = zip(match.heads(ks, kt), class_weights_of(match, weights), strict=True)
        bins = [(s.bins, t.bins, zt, w) for (s, t, zt), w in pairs]
        losses = [dfl_loss(s, t, zt, w) for s, t, zt, w in bins if s is not None and t is not None]
        return as_detection(losses, match, weights)

    why = heads_apart(match) or rotated(match) or bins_apart(match)
    return Term(heads_read(match), why, loss, head=True, branched=True)


def heads_read(match: Match) -> str:
    """The branches and strides at which the heads are compared, for people."""
    return f"{' + '.join(match.branches)}, strides {' '.join(map(str, match.strides))}"


def heads_apart(match: Match) -> str:
    """Why two heads' anchors or classes cannot be compared; empty if they can."""
    if not match.branches:
        return "the teacher's head has no anchors (RT-DETR)"
    if not match.strides:
        return "no stride in common"
    return "" if match.classes else "the teacher knows no class of this data"


def rotated(match: Match) -> str:
    """Why box sides cannot be compared where boxes are oriented; empty if they are not."""
    return "box sides of oriented boxes hang on their angle" if match.student.rotated or match.teacher.rotated else ""


def bins_apart(match: Match) -> str:
    """Why two heads' box-side distributions cannot be compared; empty if they can."""
    ours, theirs = match.student.reg_max, match.teacher.reg_max
    if 1 in {ours, theirs}:
        who = "neither head has" if ours == theirs else "only one head has"
        return f"{who} box-side distributions (reg_max=1)"
    if ours != theirs:
        return f"{ours} and {theirs} bins a box side"
    return "the teacher sees another image size, to which bins cannot be carried over" if match.resampled else ""


# Hidden layers


def attention(match: Match) -> Term:
    """Attention maps of hidden layers."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        return mean(
            [map_loss(attention_map(match.inherited(ks, r)), energy(kt, r), weights.images) for r in match.shared]
        )

    return Term(*layers_read(match.shared, 1), loss, match.shared, cacheable=True)


def energy(kt: Knowledge, role: str) -> Tensor:
    """The teacher's attention map of a role, B H W: as recorded, or of its features."""
    return kt.maps[role] if role in kt.maps else attention_map(kt.features[role])


def relation(match: Match) -> Term:
    """The relation matrix between hidden layers."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        fs = [match.inherited(ks, r) for r in match.shared]
        sizes = [(f.shape[2], f.shape[3]) for f in (*fs, *kt.features.values())]
        grid = grid_for(sizes)
        return relation_loss(relation_matrix(fs, grid), relations(kt, match.shared, grid), weights.images)

    return Term(*layers_read(match.shared, 2), loss, match.shared, cacheable=True)


def relations(kt: Knowledge, roles: Sequence[str], grid: tuple[int, int]) -> Tensor:
    """The teacher's relation matrix between some roles, B L L: as recorded, or of its features."""
    if kt.relations is None:
        return relation_matrix([kt.features[r] for r in roles], grid)
    recorded, matrix = kt.relations
    chosen = torch.tensor([recorded.index(r) for r in roles], device=matrix.device)
    return matrix[:, chosen[:, None], chosen]


def guidance(match: Match) -> Term:
    """Guidance layers between unequal widths."""
    guides = nn.ModuleDict({r: Guide(*match.widths(r)) for r in match.neck})

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        return mean([guides[r](*match.side_by_side(ks, kt, r)) for r in match.neck])

    return Term(*layers_read(match.neck, 1), loss, match.neck, guides)


def exploration(match: Match) -> Term:
    """Exploration of what the teacher does not know."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        return mean([exploration_loss(match.explored(ks, r), kt.features[r]) for r in match.neck])

    return Term(*layers_read(match.neck, 1), loss, match.neck)


def layers_read(roles: tuple[str, ...], least: int) -> tuple[str, str]:
    """The layers that a term compares, for people, and why it cannot if they are fewer than `least`."""
    few = f"{len(roles)} of at least {least} layers in common at this imgsz"
    return " ".join(roles), "" if len(roles) >= least else few
