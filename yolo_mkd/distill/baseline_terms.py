"""The baseline methods as terms between two matched models, each in its published form: sums over the neck's levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, cat, nn

from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.resample import anchors_of, at_size
from yolo_mkd.distill.terms import (
    Term,
    bins_mismatch,
    describe_heads,
    describe_layers,
    heads_mismatch,
    no_scores,
    rotation_mismatch,
    too_few_layers,
)
from yolo_mkd.knowledge import Knowledge, LossWeights, Targets
from yolo_mkd.knowledge.baselines.cwd import channel_wise_loss, connector
from yolo_mkd.knowledge.baselines.fgd import FocalGlobal, focal_global_loss
from yolo_mkd.knowledge.baselines.ld import localization_loss
from yolo_mkd.knowledge.baselines.mgd import Generator, masked_generation_loss, random_mask
from yolo_mkd.knowledge.baselines.pkd import bridges, pkd_loss
from yolo_mkd.knowledge.baselines.ultralytics_l2 import projector, score_l2_loss, teacher_score


def total(losses: list[Tensor]) -> Tensor:
    """The sum of scalars."""
    return sum(losses[1:], losses[0])


def channel_wise(match: Match) -> Term:
    """Channel-wise distillation (CWD)."""
    connectors = nn.ModuleDict({r: connector(*match.widths(r)) for r in match.neck})

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = {r: match.side_by_side(ks, kt, r) for r in match.neck}
        return total([channel_wise_loss(connectors[r](fs.float()), ft) for r, (fs, ft) in pairs.items()])

    return Term(describe_layers(match.neck), too_few_layers(match.neck), loss, match.neck, connectors)


def masked_generation(match: Match) -> Term:
    """Masked generative distillation (MGD)."""
    generators = nn.ModuleDict({r: Generator(*match.widths(r)) for r in match.neck})
    random = torch.Generator().manual_seed(0)  # its own, so that the run's data do not change

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        losses = []
        for r in match.neck:
            fs, ft = match.side_by_side(ks, kt, r)
            losses.append(masked_generation_loss(generators[r](fs.float(), random_mask(fs, generator=random)), ft))
        return total(losses)

    return Term(describe_layers(match.neck), too_few_layers(match.neck), loss, match.neck, generators)


def focal_global(match: Match) -> Term:
    """Focal and global distillation (FGD)."""
    adapters = {r: FocalGlobal(*match.widths(r)) for r in match.neck}

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = {r: match.side_by_side(ks, kt, r) for r in match.neck}
        return total([focal_global_loss(adapters[r], fs.float(), ft, targets) for r, (fs, ft) in pairs.items()])

    reads, why_not = describe_layers(match.neck), too_few_layers(match.neck)
    return Term(reads, why_not, loss, match.neck, nn.ModuleDict(adapters), labels=True)


def pearson(match: Match) -> Term:
    """Pearson distillation (PKD); a 1x1 convolution bridges unequal widths."""
    adapters = bridges({r: match.widths(r) for r in match.neck})

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        pairs = {r: match.side_by_side(ks, kt, r) for r in match.neck}
        adapted = [adapters[r](fs.float()) if r in adapters else fs for r, (fs, _) in pairs.items()]
        return pkd_loss(adapted, [ft for _, ft in pairs.values()])

    reads, why_not = describe_layers(match.neck), too_few_layers(match.neck)
    return Term(reads, why_not, loss, match.neck, adapters if len(adapters) else None)


def localization(match: Match) -> Term:
    """Localization distillation (LD), on the one2many branch."""

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        s, t, _ = match.heads(ks, kt)[0]
        assert s.bins is not None and t.bins is not None  # else the term does not apply
        levels = {k: v for k, v in ks.levels.items() if k in match.strides}
        return localization_loss(s.bins, t.bins, s.logits, targets, levels)

    why_not = heads_mismatch(match) or rotation_mismatch(match) or bins_mismatch(match)
    return Term(describe_heads(match), why_not, loss, head=True, labels=True)


def score_l2(match: Match) -> Term:
    """Ultralytics' own distillation: score-weighted squared differences of neck features."""
    projectors = nn.ModuleDict({r: projector(*match.widths(r)) for r in match.neck})

    def loss(ks: Knowledge, kt: Knowledge, targets: Targets, weights: LossWeights) -> Tensor:
        score = teacher_score([branch.logits for branch in kt.branches.values()])  # B A
        projected, features, scores = [], [], []
        for r in match.neck:
            fs, ft = match.side_by_side(ks, kt, r)
            stride = next(s for s in kt.levels if r == f"neck_p{int(math.log2(s))}")
            of_level = anchors_of(score, kt.levels, [stride]).unflatten(1, (1, *kt.levels[stride]))  # B 1 H W
            projected.append(projectors[r](fs.float()))
            features.append(ft)
            scores.append(at_size(of_level, fs.shape[2], fs.shape[3]).flatten(1))
        return score_l2_loss(projected, features, cat(scores, 1))

    why_not = no_scores(match) or too_few_layers(match.neck)
    return Term(describe_layers(match.neck), why_not, loss, match.neck, projectors, head=True)
