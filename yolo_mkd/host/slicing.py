"""Start a narrower or shallower student from the channels of its trained teacher that matter.

The two models are walked layer by layer. Each convolution keeps the output channels of the largest expected norm; what
reads them keeps the same input channels, through residual sums, concatenations, splits, attention heads, depthwise
convolutions and the head. The student then computes what the teacher does with all other channels set to zero.

Sources: batch normalisation scale as importance, Liu et al., "Network Slimming", ICCV 2017; groups of channels that
are only removed together, Fang et al., "DepGraph", CVPR 2023.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from yolo_mkd.host.reconstruction import LayerPair
from yolo_mkd.settings import BadInput

ABSENT = -1  # in place of a channel that the teacher does not have: the student's own start stays
SCORES = re.compile(r"\.(one2one_)?cv3\.\d+\.\d+\.(weight|bias)$")  # one row a class
ADVICE = "give the .yaml of a smaller model of the teacher's family, for example yolo26n.yaml for yolo26s.pt"


@dataclass(frozen=True)
class Kept:
    """Which channels of a teacher's tensor the student's tensor has.

    Attributes:
        index: the teacher's channel of each of the student's, or `ABSENT`.
        width: how many the teacher has.
    """

    index: Tensor
    width: int

    @staticmethod
    def all(width: int) -> Kept:
        """All of them, in their order."""
        return Kept(torch.arange(width), width)

    @staticmethod
    def none(student: int, teacher: int) -> Kept:
        """None of them."""
        return Kept(torch.full((student,), ABSENT), teacher)

    @staticmethod
    def concatenated(parts: Sequence[Kept]) -> Kept:
        """Those of tensors that are concatenated."""
        shifted, width = [], 0
        for part in parts:
            shifted.append(torch.where(part.index < 0, ABSENT, part.index + width))
            width += part.width
        return Kept(torch.cat(shifted), width)


def chosen(importance: Tensor, count: int) -> Kept:
    """The `count` most important channels in their order; `ABSENT` for those that the student has beyond them."""
    best = importance.topk(min(count, len(importance))).indices.sort().values
    return Kept(torch.cat([best, torch.full((count - len(best),), ABSENT)]), len(importance))


def output_norm(conv: Any) -> Tensor:
    """The expected norm of each output channel of a convolution with batch normalisation and activation, C.

    The normalised value is taken as standard normal, z: sqrt(E act(scale z + shift)^2), by summation over z.
    """
    z = torch.linspace(-4, 4, 65)
    density = torch.exp(-(z**2) / 2)
    scale, shift = conv.bn.weight.detach().float().cpu(), conv.bn.bias.detach().float().cpu()
    values = conv.act(scale[:, None] * z + shift[:, None])
    return (values**2 @ (density / density.sum())).sqrt()


def added(block: Any) -> list[Any] | None:
    """The convolutions whose outputs a block adds to its input; None if it replaces its input."""
    kind = type(block).__name__
    if kind == "Bottleneck":
        return [block.cv2] if block.add else None
    if kind == "PSABlock":
        return [block.attn.proj, block.ffn[1]] if block.add else None
    if kind == "Sequential":
        parts = [added(inner) for inner in block]
        return None if None in parts else [conv for part in parts if part for conv in part]
    return None


@dataclass
class Slicer:
    """Fills a student from its teacher.

    Attributes:
        classes: the teacher's class of each of the student's, or `ABSENT`.
        taken: how many of the student's parameters and statistics come from the teacher.
        pairs: the convolutions that were sliced, with those that they were sliced from.
        omitted: the teacher's blocks that the student does not have.
        differing: how many blocks of the student are of another kind than the teacher's and keep their own start.
    """

    classes: Sequence[int]

    def __post_init__(self) -> None:
        self.taken = 0
        self.pairs: list[LayerPair] = []
        self.omitted: list[nn.Module] = []
        self.differing = 0

    @torch.no_grad()
    def model(self, s: DetectionModel, t: DetectionModel) -> None:
        """Fill a whole student.

        Args:
            s: the student.
            t: the teacher.

        Raises:
            BadInput: the two are not of the same family, or of one that cannot be sliced.
        """
        ours, theirs = list(s.model), list(t.model)
        if len(ours) != len(theirs):
            raise BadInput(f"start=slice: the student has {len(ours)} layers, the teacher {len(theirs)}: {ADVICE}")
        outputs: list[Kept] = []
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if type(a) is not type(b) or a.f != b.f:
                kinds = f"{type(a).__name__} in the student and {type(b).__name__} in the teacher"
                raise BadInput(f"start=slice: layer {i} is {kinds}, or reads other layers: {ADVICE}")
            last = outputs[-1] if outputs else Kept.all(int(t.yaml.get("channels", 3)))
            if isinstance(a.f, int):
                outputs.append(self.block(a, b, last if a.f == -1 else outputs[a.f]))
            else:
                read = [last if j == -1 else outputs[j] for j in a.f]
                outputs.append(self._join(a, b, read))

    def _join(self, s: Any, t: Any, read: list[Kept]) -> Kept:
        """A layer that reads several others: a concatenation, or the head."""
        if type(s).__name__ == "Concat":
            return Kept.concatenated(read)
        self._head(s, t, read)
        return read[0]

    def block(self, s: Any, t: Any, x: Kept) -> Kept:
        """Fill one module, whose input has the channels x, and return the channels of its output.

        Raises:
            BadInput: it is of a kind that cannot be sliced.
        """
        kind = type(s).__name__
        if kind not in self.KINDS or type(t).__name__ != kind:
            raise BadInput(
                f"start=slice cannot slice {kind}: it works on detectors and oriented boxes of YOLOv8, YOLO11 and "
                "YOLO26; start=teacher copies models of equal shapes"
            )
        return self.KINDS[kind](self, s, t, x)

    # Convolutions

    def conv(self, s: Any, t: Any, x: Kept, out: Kept | None = None, beside: Sequence[Any] = ()) -> Kept:
        """A convolution with batch normalisation.

        Args:
            s: the student's.
            t: the teacher's.
            x: the channels of its input.
            out: those of its output, where they are not free.
            beside: the teacher's convolutions whose outputs are added to it.
        """
        grouped = s.conv.groups > 1 or t.conv.groups > 1
        depthwise = grouped and all(c.groups == c.in_channels for c in (s.conv, t.conv))
        if s.conv.kernel_size != t.conv.kernel_size or (grouped and not depthwise):
            raise BadInput(f"start=slice: a convolution of the student and the teacher's differ in kind: {ADVICE}")
        if out is None:
            importance = output_norm(t) + sum(output_norm(other) for other in beside)
            out = x if depthwise else chosen(importance, s.conv.out_channels)
        self._fill(s.conv.weight, t.conv.weight, out, None if depthwise else x)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self._fill(getattr(s.bn, name), getattr(t.bn, name), out)
        self.pairs.append(LayerPair.of(s, t, out.index))
        return out

    def _fill(self, s: Tensor, t: Tensor, out: Kept, x: Kept | None = None) -> None:
        """Take the rows `out` of a tensor, and of each row the columns `x`; columns that are absent become 0."""
        rows = out.index >= 0
        values = t.detach().to(s)[out.index[rows]]
        if x is not None:
            values = values[:, x.index.clamp(min=0)]
            values[:, x.index < 0] = 0
        s.data[rows] = values
        self.taken += values.numel() - (0 if x is None else int((x.index < 0).sum()) * values[:, :1].numel())

    # Blocks

    def bottleneck(self, s: Any, t: Any, x: Kept) -> Kept:
        """Two convolutions, with the input added where both models add it."""
        if s.add != t.add:
            raise BadInput(f"start=slice: a block of only one of the models adds its input: {ADVICE}")
        return self.conv(s.cv2, t.cv2, self.conv(s.cv1, t.cv1, x), x if t.add else None)

    def sequence(self, s: Any, t: Any, x: Kept) -> Kept:
        """Blocks one after another; of those that add to their input, a shallower student has the most important."""
        places = list(range(len(t)))
        if len(s) != len(t):
            parts = [added(inner) for inner in t]
            if len(s) > len(t) or None in parts:
                raise BadInput(f"start=slice: the student has {len(s)} blocks where the teacher has {len(t)}: {ADVICE}")
            norms = torch.stack([sum((output_norm(c).sum() for c in part or []), torch.zeros(())) for part in parts])
            places = chosen(norms, len(s)).index.tolist()
            self.omitted += [inner for i, inner in enumerate(t) if i not in places]
        for inner, place in zip(s, places, strict=True):
            x = self.block(inner, t[place], x)
        return x

    def _split(self, s: Any, t: Any, x: Kept, beside: Sequence[Any]) -> tuple[Kept, Kept]:
        """The two halves of cv1's output; to the second one the outputs `beside` are added."""
        first, second = output_norm(t.cv1).split(t.c)
        halves = chosen(first, s.c), chosen(second + sum(output_norm(conv) for conv in beside), s.c)
        self.conv(s.cv1, t.cv1, x, Kept.concatenated(halves))
        return halves

    def c2f(self, s: Any, t: Any, x: Kept) -> Kept:
        """C2f and C3k2: the blocks' outputs are concatenated, so a shallower student has the first ones."""
        if len(s.m) > len(t.m):
            raise BadInput(f"start=slice: the student has {len(s.m)} blocks where the teacher has {len(t.m)}: {ADVICE}")
        pairs = list(zip(s.m, t.m, strict=False))
        alike = [a for a, b in pairs if same_kinds(a, b)]
        beside = list(chain.from_iterable(added(b) or [] for _, b in pairs)) if len(alike) == len(pairs) else []
        parts = [*self._split(s, t, x, beside)]
        for a, b in pairs:
            same = same_kinds(a, b)
            self.differing += not same
            parts.append(self.block(a, b, parts[-1]) if same else Kept.none(s.c, t.c))
            if not same:
                self.omitted.append(b)
        self.omitted += list(t.m)[len(s.m) :]
        more = [Kept.none(0, t.c)] * (len(t.m) - len(s.m))
        return self.conv(s.cv2, t.cv2, Kept.concatenated([*parts, *more]))

    def c2psa(self, s: Any, t: Any, x: Kept) -> Kept:
        """Attention blocks on the second half of the channels."""
        first, second = self._split(s, t, x, added(t.m) or [])
        return self.conv(s.cv2, t.cv2, Kept.concatenated([first, self.sequence(s.m, t.m, second)]))

    def c3(self, s: Any, t: Any, x: Kept) -> Kept:
        """C3 and C3k: blocks beside a convolution."""
        inner = self.sequence(s.m, t.m, self.conv(s.cv1, t.cv1, x, beside=added(t.m) or []))
        return self.conv(s.cv3, t.cv3, Kept.concatenated([inner, self.conv(s.cv2, t.cv2, x)]))

    def sppf(self, s: Any, t: Any, x: Kept) -> Kept:
        """The same channels pooled over growing windows."""
        if (s.n, s.add) != (t.n, t.add):
            raise BadInput(f"start=slice: SPPF of the student and of the teacher differ: {ADVICE}")
        inner = self.conv(s.cv1, t.cv1, x)
        return self.conv(s.cv2, t.cv2, Kept.concatenated([inner] * (t.n + 1)), x if t.add else None)

    def psa_block(self, s: Any, t: Any, x: Kept) -> Kept:
        """Attention and two convolutions, both added to the input."""
        if not (s.add and t.add):
            raise BadInput(f"start=slice: an attention block that does not add its input cannot be sliced: {ADVICE}")
        self.attention(s.attn, t.attn, x)
        return self.conv(s.ffn[1], t.ffn[1], self.conv(s.ffn[0], t.ffn[0], x), x)

    def attention(self, s: Any, t: Any, x: Kept) -> Kept:
        """The heads of the largest values; in each, queries and keys keep the same channels."""
        norms = output_norm(t.qkv).view(t.num_heads, -1)
        queries, keys, values = norms.split([t.key_dim, t.key_dim, t.head_dim], 1)  # heads x channels
        places = chosen(values.norm(dim=1), s.num_heads).index.tolist()
        read, held = [], []
        width = 2 * t.key_dim + t.head_dim
        for place in places:
            if place == ABSENT:
                read.append(Kept.none(2 * s.key_dim + s.head_dim, 0))
                held.append(torch.full((s.head_dim,), ABSENT))
                continue
            both = chosen(queries[place] * keys[place], s.key_dim)
            value = chosen(values[place], s.head_dim)
            inner = Kept.concatenated([both, both, value]).index
            read.append(Kept(torch.where(inner < 0, ABSENT, inner + place * width), 0))
            held.append(torch.where(value.index < 0, ABSENT, value.index + place * t.head_dim))
        out = Kept(torch.cat([part.index for part in read]), t.num_heads * width)
        self.conv(s.qkv, t.qkv, x, out)
        self._scale_queries(s, t, out)
        inside = Kept(torch.cat(held), t.num_heads * t.head_dim)
        self.conv(s.pe, t.pe, inside, inside)
        return self.conv(s.proj, t.proj, inside, x)

    def _scale_queries(self, s: Any, t: Any, out: Kept) -> None:
        """Let attention's scale, which depends on the number of keys, be the teacher's, and absent queries be 0."""
        for values in (s.qkv.bn.weight.data, s.qkv.bn.bias.data):
            heads = values.view(s.num_heads, -1)[:, : s.key_dim]
            own = out.index.view(s.num_heads, -1)[:, : s.key_dim] >= 0
            heads.mul_(math.sqrt(s.key_dim / t.key_dim)).mul_(own)
        self.pairs[-1].factor.view(s.num_heads, -1)[:, : s.key_dim] = math.sqrt(s.key_dim / t.key_dim)

    # The head

    def _head(self, s: Any, t: Any, read: list[Kept]) -> None:
        """Every branch of a detection head at every level."""
        if type(s).__name__ not in SLICED_HEADS:
            raise BadInput(
                f"start=slice cannot slice the head {type(s).__name__}: it works on detectors and oriented boxes; "
                "start=teacher copies models of equal shapes"
            )
        for name in ("cv2", "cv3", "cv4", "one2one_cv2", "one2one_cv3", "one2one_cv4"):
            ours, theirs = getattr(s, name, None), getattr(t, name, None)
            if (ours is None) != (theirs is None):
                raise BadInput(f"start=slice: only one of the models has the branch {name} in its head: {ADVICE}")
            for a, b, x in zip(ours or (), theirs or (), read, strict=False):
                self._branch(a, b, x, name.endswith("cv3"))

    def _branch(self, s: Any, t: Any, x: Kept, scores: bool) -> None:
        """Convolutions, and a last one whose outputs have a meaning of their own: classes, sides or bins."""
        *ours, end = s
        *theirs, their_end = t
        for a, b in zip(ours, theirs, strict=True):
            x = self.block(a, b, x)
        if not scores and end.out_channels != their_end.out_channels:
            raise BadInput(
                f"start=slice: the student's head has {end.out_channels} outputs where the teacher's has "
                f"{their_end.out_channels}: {ADVICE}"
            )
        rows = Kept(torch.tensor(self.classes), their_end.out_channels) if scores else Kept.all(end.out_channels)
        self._fill(end.weight, their_end.weight, rows, x)
        self._fill(end.bias, their_end.bias, rows)
        self.pairs.append(LayerPair.of(end, their_end, rows.index))

    def _unchanged(self, s: Any, t: Any, x: Kept) -> Kept:
        """A module without weights that keeps its channels."""
        return x

    KINDS: ClassVar[dict[str, Callable[..., Kept]]] = {
        **dict.fromkeys(("Conv", "DWConv"), conv),
        **dict.fromkeys(("C2f", "C3k2"), c2f),
        **dict.fromkeys(("C3", "C3k"), c3),
        **{"C2PSA": c2psa, "PSABlock": psa_block, "Attention": attention, "SPPF": sppf},
        **{"Bottleneck": bottleneck, "Sequential": sequence, "Upsample": _unchanged},
    }


SLICED_HEADS = {"Detect", "OBB", "OBB26"}


def start_from(
    student: DetectionModel, teacher: DetectionModel, classes: Sequence[int], sliced: bool
) -> tuple[float, list[LayerPair]]:
    """Fill a student from its teacher.

    Args:
        student: it is changed.
        teacher: a trained detector.
        classes: the teacher's class of each of the student's, or `ABSENT`.
        sliced: take the channels that matter; else all of a teacher of equal shapes.

    Returns:
        The share of the student's parameters and statistics that was taken, and the convolutions of a slice.

    Raises:
        BadInput: the two are not of the same family, or for a copy not of the same shapes.
    """
    total = sum(value.numel() for value in student.state_dict().values() if value.is_floating_point())
    if not sliced:
        return copy_weights(student, teacher, classes) / total, []
    slicer = Slicer(classes)
    slicer.model(student, teacher)
    return slicer.taken / total, slicer.pairs


@torch.no_grad()
def copy_weights(student: DetectionModel, teacher: DetectionModel, classes: Sequence[int]) -> int:
    """Copy a teacher of equal shapes, the rows of the scores by class, and return how many values were copied."""
    ours, theirs = student.state_dict(), teacher.state_dict()
    taken, rows = 0, torch.tensor(classes)
    for name in dict.fromkeys([*ours, *theirs]):
        by_class = SCORES.search(name) is not None
        shapes = [list(state[name].shape)[by_class:] if name in state else None for state in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise BadInput(
                f"start=teacher needs equal shapes, but {name} has {shapes[0]} in the student and {shapes[1]} in the "
                "teacher: give the teacher's own .yaml, or start=slice for a smaller one"
            )
        values = theirs[name][rows[rows >= 0]] if by_class else theirs[name]
        ours[name][rows >= 0 if by_class else ...] = values.to(ours[name])
        taken += values.numel() if values.is_floating_point() else 0
    return taken


def same_kinds(s: nn.Module, t: nn.Module) -> bool:
    """Whether two blocks are of the same kind, and sequences of the same kinds."""
    if type(s) is not type(t):
        return False
    if isinstance(s, nn.Sequential) and isinstance(t, nn.Sequential):
        return len(s) == len(t) and all(map(same_kinds, s, t))
    return True
