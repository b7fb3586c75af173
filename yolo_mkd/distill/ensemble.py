"""Several teachers as one: the mean of their outputs, each aligned with the student, class by class.

Each teacher counts for the classes that it has, so that teachers of different class sets together cover the data's
classes. Scores are averaged as probabilities; boxes are weighted by each teacher's best score at the anchor, as in
weighted boxes fusion (Solovyev et al., 2021). Attention maps and relation matrices do not depend on a model's width and
are averaged too; features of different models have no mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_mkd.distill.matching import Match
from yolo_mkd.distill.resample import Levels
from yolo_mkd.distill.teachers import Teacher
from yolo_mkd.distill.terms import heads_mismatch, teacher_map, teacher_relations
from yolo_mkd.host.spec import LayerSpec, ModelSpec
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.relation import grid_for
from yolo_mkd.knowledge.soft_targets import best_score

LEAST, MOST = 1e-9, 1 - 2**-12  # mean scores are clipped to these, so that logits are finite
TINY = 1e-12  # smallest divisor


def with_heads(matches: Sequence[Match]) -> list[Match]:
    """Those teachers whose heads can be compared with the student's."""
    return [m for m in matches if not heads_mismatch(m)]


def with_layers(matches: Sequence[Match]) -> list[Match]:
    """Those teachers that have hidden layers in common with the student."""
    return [m for m in matches if m.shared]


def common_roles(matches: Sequence[Match]) -> tuple[str, ...]:
    """The hidden layers that the student shares with each teacher that has any."""
    layered = with_layers(matches)
    return tuple(r for r in layered[0].shared if all(r in m.shared for m in layered)) if layered else ()


def ensemble_spec(student: ModelSpec, teachers: Sequence[ModelSpec]) -> ModelSpec:
    """The spec of the mean of several teachers, in the student's classes, strides and branches.

    Args:
        student: the student's spec.
        teachers: theirs.
    """
    matches = [Match.of(student, teacher) for teacher in teachers]
    heads = with_heads(matches)
    known = {ours for m in heads for ours, _ in m.classes}
    layers = {r: smallest([m.teacher.layers[r] for m in with_layers(matches)]) for r in common_roles(matches)}
    return replace(
        student,
        names={i: name for i, name in student.names.items() if i in known},
        strides=tuple(s for s in student.strides if heads and all(s in m.strides for m in heads)),
        branches=tuple(b for b in student.branches if heads and all(b in m.branches for m in heads)),
        reg_max=1,
        layers=layers,
        parameters=sum(t.parameters for t in teachers),
        merged={},
        origin=f"the mean of {len(teachers)} teachers",
        averaged=True,
    )


def smallest(layers: Sequence[LayerSpec]) -> LayerSpec:
    """A layer of the smallest size among some; its channels are those of all together."""
    rows, columns = min(layer.rows for layer in layers), min(layer.columns for layer in layers)
    return LayerSpec(layers[0].layer, sum(layer.channels for layer in layers), rows, columns)


class EnsembleTeacher:
    """The mean of several teachers, each live, cached or only boxes.

    Attributes:
        name: of all of them.
        members: the teachers.
        matches: of each with the student.
        spec: as `ensemble_spec` gives it.
    """

    def __init__(self, members: Sequence[Teacher], matches: Sequence[Match], spec: ModelSpec):
        self.name = " + ".join(m.name for m in members)
        self.members, self.matches, self.spec = members, matches, spec
        self._roles = common_roles(matches)

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """The mean outputs for a batch, at the student's anchors."""
        found = list(zip([m(batch) for m in self.members], self.matches, strict=True))
        height, width = batch["img"].shape[2:]
        levels = {s: (math.ceil(height / s), math.ceil(width / s)) for s in self.spec.strides}
        heads = [(kt, m) for kt, m in found if not heads_mismatch(m)]
        layered = [(kt, m) for kt, m in found if m.shared]
        branches = {b: self._mean_outputs(heads, b, levels) for b in self.spec.branches}
        if not self._roles:
            return Knowledge(branches, levels=levels)
        maps = {r: mean_map([teacher_map(kt, r) for kt, _ in layered]) for r in self._roles}
        matrices = [relations_of(kt, self._roles) for kt, _ in layered]
        return Knowledge(branches, {}, levels, maps, (self._roles, torch.stack(matrices).mean(0)))

    def _mean_outputs(self, heads: Sequence[tuple[Knowledge, Match]], branch: str, levels: Levels) -> Outputs:
        """The mean of the teachers' outputs of one branch."""
        aligned = []
        for kt, match in heads:
            at = replace(match, strides=self.spec.strides)
            outputs = at.teacher_heads(kt, levels)[branch]
            aligned.append((match, outputs, match.shared_logits(outputs.logits)))
        _, first, some = aligned[0]
        total = some.new_zeros(len(some), max(self.spec.names) + 1, some.shape[2])  # B C A
        count = some.new_zeros(total.shape[1])
        boxes, mass = torch.zeros_like(first.distances), some.new_zeros(len(some), 1, some.shape[2])
        for match, outputs, logits in aligned:
            ours = torch.tensor([s for s, _ in match.classes], device=total.device)
            total.index_add_(1, ours, logits.sigmoid())
            count.index_add_(0, ours, torch.ones_like(count[: len(ours)]))
            weight = best_score(logits)[:, None] + TINY
            boxes, mass = boxes + weight * outputs.distances, mass + weight
        q = total / count.clamp(min=1)[:, None]
        return Outputs(q.clamp(LEAST, MOST).logit(), boxes / mass)

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Let each teacher begin with the next batch."""
        for member in self.members:
            member.prefetch(batch)

    def flush(self) -> None:
        """Write what was computed and is to be kept."""
        for member in self.members:
            member.flush()


def mean_map(maps: Sequence[Tensor]) -> Tensor:
    """The mean of attention maps, each scaled to a mean of 1: B H W each in, B H W of the smallest size out."""
    size = min(m.shape[1] for m in maps), min(m.shape[2] for m in maps)
    pooled = [F.adaptive_avg_pool2d(m, size) if m.shape[1:] != size else m for m in maps]
    return torch.stack([m / m.mean((1, 2), keepdim=True).clamp(min=TINY) for m in pooled]).mean(0)


def relations_of(kt: Knowledge, roles: tuple[str, ...]) -> Tensor:
    """A teacher's relation matrix between some roles, B L L, at a grid of its own."""
    sizes = [(f.shape[2], f.shape[3]) for r, f in kt.features.items() if r in roles]
    return teacher_relations(kt, roles, grid_for(sizes) if sizes else (1, 1))
