"""Terms on hidden layers that depend on where the teacher sees objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.resample import anchors_of, at_size
from yolo_mkd.distill.terms import (
    Term,
    class_weights_of,
    describe_layers,
    mean,
    no_scores,
    rotation_mismatch,
    too_few_layers,
    weighted_by_branch,
)
from yolo_mkd.knowledge import Knowledge, LossWeights, Targets, ranks
from yolo_mkd.knowledge.attention import attention_map
from yolo_mkd.knowledge.class_attention import class_attention_loss
from yolo_mkd.knowledge.correlation import pearson_loss
from yolo_mkd.knowledge.error_focus import ANCHORS, error_focus_loss, lay_over, teacher_quality
from yolo_mkd.knowledge.head_guidance import match_statistics
from yolo_mkd.knowledge.object_relation import MOST, object_gram, object_masks, object_relation_loss
from yolo_mkd.knowledge.ridge import RidgeAdapter
from yolo_mkd.knowledge.soft_targets import best_score, box_loss, class_loss

BACKGROUND = 0.02  # weight of a position without objects when an adapter is fitted


def stride_of(role: str) -> int:
    """The stride of a role: 8 for neck_p3."""
    return int(2 ** int(role.rpartition("_p")[2]))


def logits_at(match: Match, kt: Knowledge, role: str) -> Tensor:
    """The teacher's one2many logits at a role's level, of the shared classes or of all where none is: B C H W."""
    logits = kt.branches["one2many"].logits
    logits = match.shared_logits(logits) if match.classes else logits
    stride = stride_of(role)
    return anchors_of(logits, kt.levels, [stride]).unflatten(2, kt.levels[stride])


def position_weights(match: Match, kt: Knowledge, weights: LossWeights, role: str, size: tuple[int, int]) -> Tensor:
    """The weight of each position of a role: the teacher's best score there times its class's weight, B 1 H W."""
    logits = logits_at(match, kt, role)
    of_class = class_weights_of(match, weights)[0] if match.classes else None
    best = best_score(logits.flatten(2), of_class).unflatten(1, logits.shape[2:])[:, None]
    return at_size(best, *size)


def head_guidance(match: Match) -> Term:
    """Guidance through the teacher's head."""
    adapters = {r: RidgeAdapter(*match.widths(r)) for r in match.neck}

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        assert kt.head is not None
        adapted = []
        for r in match.neck:
            fs, ft = match.side_by_side(ks, kt, r)
            fs, ft = fs.float(), ft.float()
            if not fs.requires_grad:
                w = position_weights(match, kt, weights, r, (fs.shape[2], fs.shape[3]))
                adapters[r].fit(fs, ft, w + BACKGROUND)
            adapted.append(match_statistics(adapters[r](fs), ft))
        through, target = kt.head(adapted), kt.branches["one2many"]
        of_class = class_weights_of(match, weights)[0] if match.classes else None
        zs, zt = (match.shared_logits(o.logits) if match.classes else o.logits for o in (through, target))
        of_scores = class_loss(zs, zt, of_class)
        if match.teacher.rotated:  # box sides depend on the angle
            return of_scores
        return of_scores + box_loss(through.distances, target.distances, zt, of_class)

    why = no_scores(match) or head_mismatch(match)
    reads = f"{describe_layers(match.neck)} through the teacher's head"
    return Term(reads, why, loss, match.neck, nn.ModuleDict(adapters), head=True, through_head=True)


def head_mismatch(match: Match) -> str:
    """Why the student's neck cannot be the input of the teacher's head; empty if it can."""
    if match.teacher.origin or match.teacher.averaged:
        return "the teacher is not one detector with a head of its own"
    if len(match.neck) != len(match.teacher.strides):
        return "the teacher's head has levels that the student lacks"
    return "the teacher has another image size" if match.resampled else ""


def object_guidance(match: Match) -> Term:
    """Guidance where the teacher sees objects."""
    adapters = {r: RidgeAdapter(*match.widths(r)) for r in match.neck}

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        losses = []
        for r in match.neck:
            fs, ft = match.side_by_side(ks, kt, r)
            fs, ft = fs.float(), ft.float()
            w = position_weights(match, kt, weights, r, (fs.shape[2], fs.shape[3]))
            if not fs.requires_grad:
                adapters[r].fit(fs, ft, w + BACKGROUND)
            losses.append(pearson_loss(adapters[r](fs), ft, w + BACKGROUND))
        return mean(losses)

    why = no_scores(match) or too_few_layers(match.neck)
    return Term(describe_layers(match.neck), why, loss, match.neck, nn.ModuleDict(adapters), head=True)


def class_attention(match: Match) -> Term:
    """Attention maps by class."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        losses = []
        for r in match.shared:
            fs, ft = match.side_by_side(ks, kt, r)
            scores = at_size(logits_at(match, kt, r).sigmoid(), fs.shape[2], fs.shape[3])
            losses.append(class_attention_loss(attention_map(fs), attention_map(ft), scores))
        return mean(losses)

    why = no_scores(match) or too_few_layers(match.shared)
    return Term(describe_layers(match.shared), why, loss, match.shared, head=True)


def object_relation(match: Match) -> Term:
    """Relations between objects, and their change from layer to layer."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        boxes, image = targets.boxes[:MOST], targets.image[:MOST].long()
        if ranks.total(boxes.new_tensor(len(boxes))) < 3:
            return next(iter(ks.features.values())).sum() * 0
        gs, gt = [], []
        for r in match.shared:
            fs, ft = match.side_by_side(ks, kt, r)
            masks = object_masks(boxes, fs.shape[2], fs.shape[3])
            gs.append(object_gram(fs.float(), masks, image))
            gt.append(object_gram(ft.float(), masks, image))
        return object_relation_loss(gs, gt)

    roles = match.shared
    return Term(describe_layers(roles), too_few_layers(roles), loss, roles, labels=True)


def error_focus(match: Match) -> Term:
    """Exploration: labelled objects that the teacher misses."""
    teachers = {ours: i for i, (ours, _) in enumerate(match.classes)}

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        assert targets.classes is not None
        theirs = torch.tensor([teachers.get(c, -1) for c in targets.classes.tolist()], device=targets.boxes.device)
        target = kt.branches["one2many"]
        zt = match.shared_logits(target.logits) if match.classes else target.logits
        over_teacher = lay_over(targets.boxes, targets.image, kt.levels)
        missed = 1 - teacher_quality(over_teacher, zt, target.distances, theirs)
        over_student = lay_over(targets.boxes, targets.image, ks.levels)
        losses = [
            error_focus_loss(over_student, s.logits, s.distances, targets.classes, missed, ANCHORS[branch])
            for branch, s in ((b, ks.branches[b]) for b in match.branches)
        ]
        return weighted_by_branch(losses, match, weights)

    why = no_scores(match) or rotation_mismatch(match)
    return Term(
        "labelled objects that the teacher misses", why, loss, cacheable=True, head=True, labels=True, branched=True
    )
