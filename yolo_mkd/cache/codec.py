"""Encode a teacher's outputs for one image as a cache entry of fixed size, and decode it.

The anchors with the highest scores are stored in half precision, all others in six bytes each: score, class and box
sides. The others cannot be left out: they can hold 63 % of the teacher's mass N (bccd at 640 pixels, yolo26 trained at
192). With one mean score and no boxes in their place the class loss was 63 % off and the box loss 113 %; with the six
bytes no image of 16 is more than 0.3 % off. The worst case for the class loss is many classes with independent
background scores: 80 of them, drawn at random, put it 2 % off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.attention import attention_map
from yolo_mkd.knowledge.relation import grid_for, relation_matrix
from yolo_mkd.settings import BadInput

STEPS = 255  # of an 8-bit number
FAINT = -16.0  # lower logits are stored as this one, a score of a ten-millionth
LEAST, MOST = 1e-9, 1 - 2**-12  # probabilities are clipped to these, so that logits are finite
TINY = 1e-30  # smallest divisor


@dataclass(frozen=True)
class Layout:
    """The fields of an entry and their sizes.

    Attributes:
        classes: C, how many classes the head has.
        levels: anchors of each level as {stride: (rows, columns)}, in the order of the A axis.
        branches: of the head.
        roles: hidden layers, with the rows and columns of each.
        top: how many anchors are stored in half precision.
        best: how many classes of each of these anchors are stored; the others share the sum of their scores.
    """

    classes: int
    levels: dict[int, tuple[int, int]]
    branches: tuple[str, ...]
    roles: dict[str, tuple[int, int]]
    top: int = 300
    best: int = 2

    @property
    def anchors(self) -> int:
        """A, over all levels."""
        return sum(rows * columns for rows, columns in self.levels.values())

    @property
    def kept(self) -> int:
        """How many anchors are stored in half precision, at most all."""
        return min(self.top, self.anchors)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """An entry as a numpy structured type; its first field is the view's `code`."""
        fields: list[Any] = [("code", np.uint64)]
        fields += [(branch, self._branch()) for branch in self.branches]
        if self.roles:
            fields += [("maps", [(role, np.uint8, size) for role, size in self.roles.items()])]
            fields += [("peaks", np.float32, (len(self.roles),))]
            fields += [("relations", np.float16, (len(self.roles) * (len(self.roles) + 1) // 2,))]
        return np.dtype(fields)

    def _branch(self) -> list[Any]:
        index = np.uint16 if self.anchors <= 2**16 else np.uint32
        label = np.uint8 if self.classes <= 2**8 else np.uint16
        best = min(self.best, self.classes)
        fields: list[Any] = [
            ("index", index, (self.kept,)),
            ("label", label, (self.kept, best)),
            ("score", np.float16, (self.kept, best)),
            ("sides", np.float16, (self.kept, 4)),
            ("rest", np.float16, (self.kept,)),  # sum of an anchor's scores for its other classes
        ]
        if self.kept < self.anchors:
            fields += [
                ("outer_label", label, (self.anchors,)),
                ("outer_score", np.uint8, (self.anchors,)),  # logits in equal steps between the two of `span`
                ("outer_sides", np.uint8, (4, self.anchors)),  # square roots, as shares of the square root of `reach`
                ("outer_rest", np.float32),  # as `rest`, summed over all other anchors
                ("span", np.float32, (2,)),  # the lowest and the highest logit
                ("reach", np.float32),  # the longest box side
            ]
        return fields

    @property
    def bytes(self) -> int:
        """Size of an entry [bytes]."""
        return self.dtype.itemsize

    def described(self) -> dict[str, Any]:
        """The layout as a dict for JSON that keeps the order of levels and roles."""
        return {
            "classes": self.classes,
            "levels": [[stride, *size] for stride, size in self.levels.items()],
            "branches": list(self.branches),
            "roles": [[role, *size] for role, size in self.roles.items()],
            "top": self.top,
            "best": self.best,
        }

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Layout:
        """The layout that `described` returned as a dict."""
        levels = {int(stride): (rows, columns) for stride, rows, columns in described["levels"]}
        roles = {role: (rows, columns) for role, rows, columns in described["roles"]}
        branches = tuple(described["branches"])
        return cls(described["classes"], levels, branches, roles, described["top"], described["best"])


@torch.no_grad()
def encode(layout: Layout, codes: Sequence[int], kt: Knowledge) -> np.ndarray:
    """Encode a teacher's outputs for a batch.

    Args:
        layout: of the entries.
        codes: of the views, one for each of the B images.
        kt: the teacher's outputs, with features.

    Returns:
        B entries of the layout's type.

    Raises:
        BadInput: the images have another size than the layout's.
    """
    sizes = {role: (f.shape[2], f.shape[3]) for role, f in kt.features.items() if role in layout.roles}
    if sizes != layout.roles or (layout.branches and list(kt.levels.items()) != list(layout.levels.items())):
        raise BadInput("record= caches images of one size and this batch has another: use multi_scale=0 rect=False")
    entries = np.zeros(len(codes), layout.dtype)
    entries["code"] = codes
    for branch in layout.branches:
        encode_branch(layout, entries[branch], kt.branches[branch])
    for i, role in enumerate(layout.roles):
        energy = attention_map(kt.features[role])  # B H W
        peak = energy.amax((1, 2))
        # square roots keep small values: one layer's loss was at most 4.8 % off, 8.2 % with equal steps of the energy;
        # the loss of all six on average 0.11 and 0.12 % (bccd at 192 pixels, a student that has learned the maps)
        entries["maps"][role] = to_bytes((energy / peak.clamp(min=TINY)[:, None, None]).sqrt())
        entries["peaks"][:, i] = peak.cpu()
    if layout.roles:
        matrix = relation_matrix([kt.features[role] for role in layout.roles], grid_for(list(layout.roles.values())))
        rows, columns = np.triu_indices(len(layout.roles))
        entries["relations"] = matrix.cpu().numpy()[:, rows, columns]
    return entries


def encode_branch(layout: Layout, entries: np.ndarray, outputs: Outputs) -> None:
    """Write one branch's outputs into its fields of B entries."""
    z, d = outputs.logits.float(), outputs.distances.float()  # B C A, B 4 A
    q = z.sigmoid()
    index = q.amax(1).topk(layout.kept, 1).indices.sort(1).values  # B K
    columns = index[:, None].expand(-1, layout.classes, -1)  # B C K
    inner = q.gather(2, columns)
    score, label = inner.topk(min(layout.best, layout.classes), 1)  # B best K
    entries["index"] = index.cpu()
    entries["label"] = label.mT.cpu()
    entries["score"] = score.mT.cpu()
    entries["sides"] = d.gather(2, index[:, None].expand(-1, 4, -1)).mT.cpu()
    entries["rest"] = inner.scatter(1, label, 0.0).sum(1).cpu()
    if layout.kept == layout.anchors:
        return
    best, label = z.amax(1), z.argmax(1, keepdim=True)  # B A, B 1 A
    low, high = best.amin(1).clamp(min=FAINT), best.scatter(1, index, FAINT).amax(1).clamp(min=FAINT)
    reach = d.amax((1, 2)).clamp(min=TINY)
    entries["outer_label"] = label[:, 0].cpu()
    entries["outer_score"] = to_bytes((best - low[:, None]) / (high - low).clamp(min=TINY)[:, None])
    entries["outer_sides"] = to_bytes((d.clamp(min=0) / reach[:, None, None]).sqrt())
    entries["outer_rest"] = q.scatter(2, columns, 0.0).scatter(1, label, 0.0).sum((1, 2)).cpu()
    entries["span"] = torch.stack((low, high), 1).cpu()
    entries["reach"] = reach.cpu()


def to_bytes(shares: Tensor) -> np.ndarray:
    """Shares in equal steps of 8 bits, clipped to [0, 1]."""
    return (shares.clamp(0, 1) * STEPS).round().byte().cpu().numpy()


def decode(layout: Layout, entries: np.ndarray, device: torch.device | str) -> Knowledge:
    """Decode a teacher's outputs for a batch.

    Args:
        layout: of the entries.
        entries: B of them.
        device: of the tensors returned.

    Returns:
        Knowledge with dense branches, and attention maps and relation matrices instead of features. Classes that were
        not stored share the sum of their scores equally.
    """

    def tensor(values: np.ndarray) -> Tensor:
        wide = {"<u2": np.int32, "<u4": np.int64}.get(values.dtype.str, values.dtype)  # torch hardly supports unsigned
        return torch.from_numpy(values.astype(wide)).to(device)

    branches = {
        name: decode_branch(layout, {k: tensor(entries[name][k]) for k in entries[name].dtype.names or ()})
        for name in layout.branches
    }
    if not layout.roles:
        return Knowledge(branches, levels=layout.levels)
    peaks = tensor(entries["peaks"])  # B L
    maps = {
        role: (tensor(entries["maps"][role]).float() / STEPS).square() * peaks[:, i, None, None]
        for i, role in enumerate(layout.roles)
    }
    rows, columns = np.triu_indices(len(layout.roles))
    matrix = torch.empty(len(entries), len(layout.roles), len(layout.roles), device=device)
    matrix[:, rows, columns] = matrix[:, columns, rows] = tensor(entries["relations"]).float()
    return Knowledge(branches, {}, layout.levels, maps, (tuple(layout.roles), matrix))


def decode_branch(layout: Layout, fields: dict[str, Tensor]) -> Outputs:
    """One branch's dense outputs from its fields of B entries."""
    index, images = fields["index"].long()[:, None], len(fields["index"])  # B 1 K
    if layout.kept < layout.anchors:
        low, high = fields["span"].unbind(1)
        best = fields["outer_score"].float() / STEPS * (high - low)[:, None] + low[:, None]
        best = best.sigmoid().scatter(1, index[:, 0], 0.0)[:, None]  # B 1 A, 0 where stored in half precision
        # in proportion to the best score: an equal share would exceed the best score where that is low
        rest = best[:, 0] / best.sum(2).clamp(min=TINY) * fields["outer_rest"][:, None]
        q = scores_of_all_classes(best, fields["outer_label"].long()[:, None], rest, layout.classes)
        d = (fields["outer_sides"].float() / STEPS).square() * fields["reach"][:, None, None]
    else:
        q = torch.empty(images, layout.classes, layout.anchors, device=index.device)
        d = torch.empty(images, 4, layout.anchors, device=index.device)
    inner = scores_of_all_classes(
        fields["score"].float().mT, fields["label"].long().mT, fields["rest"].float(), layout.classes
    )  # B C K
    q.scatter_(2, index.expand(-1, layout.classes, -1), inner)
    d.scatter_(2, index.expand(-1, 4, -1), fields["sides"].float().mT)
    return Outputs(q.clamp_(LEAST, MOST).logit_(), d)


def scores_of_all_classes(score: Tensor, label: Tensor, rest: Tensor, classes: int) -> Tensor:
    """Scores of all classes, from those of the best classes and the sum of the others.

    Args:
        score: of the best classes, B best K.
        label: indices of these classes, B best K.
        rest: sum of the other classes' scores, B K.
        classes: C.

    Returns:
        Scores, B C K.
    """
    others = rest[:, None] / max(1, classes - score.shape[1])
    return others.repeat(1, classes, 1).scatter_(1, label, score)
