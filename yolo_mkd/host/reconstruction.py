"""Fit the layers of a sliced student to those of its teacher, one after another, by ridge regression.

What a layer of a sliced student reads lacks the channels that were left out, so that its outputs are not the teacher's.
In the order in which they run, each convolution gets the weights that bring its outputs nearest to the teacher's of the
same channels, given what it reads in the student. This needs images, but no labels.

Sources: reconstruction by least squares after channels are removed, He, Zhang and Sun, "Channel Pruning for
Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1; from the inputs that the approximated network itself
computes, Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.data.augment import LetterBox
from ultralytics.nn.tasks import DetectionModel

PIXELS, FEWEST, MOST = 256 * 192**2, 32, 256  # of the images that layers are fitted on, and how many they are
POSITIONS = 8192  # of a layer's output that are compared, drawn evenly, and as many by the teacher's score
RIDGE = 1e-3  # towards the sliced weights, relative to the mean square of the inputs
LEAST_VARIANCE, LEAST_NORM = 1e-6, 1e-6


@dataclass(frozen=True)
class LayerPair:
    """A convolution of the student and the teacher's that it was sliced from.

    Attributes:
        student: with batch normalisation, or a plain one.
        teacher: the same kind.
        index: the teacher's channel of each output of the student, or a negative number.
        factor: what the teacher's outputs are multiplied by for the student, N; other than 1 in queries of attention.
    """

    student: Any
    teacher: Any
    index: Tensor
    factor: Tensor

    @staticmethod
    def of(student: Any, teacher: Any, index: Tensor) -> LayerPair:
        """Two layers with outputs in the same units."""
        return LayerPair(student, teacher, index, torch.ones(len(index)))


@dataclass(frozen=True)
class Target:
    """What a layer of the teacher computes at some positions.

    Attributes:
        places: batch, image in it, row and column of each position, four times M.
        values: before the activation, M N, for the N outputs that both models have.
        even: which positions were drawn evenly, M bool.
    """

    places: tuple[Tensor, Tensor, Tensor, Tensor]
    values: Tensor
    even: Tensor


def read_squares(files: Sequence[Path], imgsz: int) -> Tensor | None:
    """Evenly spaced images in the middle of grey squares, N 3 H W in [0, 1], red first; None if none can be read.

    Args:
        files: all images of the training.
        imgsz: side of the squares [pixels].
    """
    count = min(MOST, max(FEWEST, PIXELS // imgsz**2))
    found = (cv2.imread(str(file)) for file in files[:: max(1, len(files) // count)][:count])
    square = LetterBox((imgsz, imgsz))
    read = [torch.from_numpy(cv2.cvtColor(square(image=x), cv2.COLOR_BGR2RGB)) for x in found if x is not None]
    return torch.stack(read).permute(0, 3, 1, 2).float() / 255 if read else None


class Reached(Exception):
    """The layer was reached whose input was asked for."""


@torch.no_grad()
def reconstruct(student: DetectionModel, teacher: DetectionModel, pairs: Sequence[LayerPair], images: Tensor) -> float:
    """Fit a sliced student's layers to its teacher's, and return the mean share of variance that they explain.

    Args:
        student: it is changed.
        teacher: a trained detector.
        pairs: their convolutions.
        images: N 3 H W in [0, 1].
    """
    modes = [(m, m.training) for model in (student, teacher) for m in model.modules()]
    try:
        for model in (student, teacher):
            model.eval()
            model.model[-1].training = True  # of the head alone: its raw outputs, not decoded
        batches = list(images.split(16))
        targets = targets_of(teacher, pairs, batches)
        return fit_layers(student, {pair.student: pair for pair in pairs}, targets, batches)
    finally:
        for module, mode in modes:
            module.training = mode


def targets_of(teacher: DetectionModel, pairs: Sequence[LayerPair], batches: Sequence[Tensor]) -> dict[Any, Target]:
    """What the teacher's layers compute on images, by the student's layer."""
    generator = torch.Generator().manual_seed(0)
    count = POSITIONS // len(batches) + 1
    found: dict[Any, list[tuple[Tensor, ...]]] = {pair.student: [] for pair in pairs}
    batch, scores = 0, torch.empty(0)

    def sampler(pair: LayerPair) -> Any:
        def sample(module: Any, inputs: Any, out: Tensor) -> None:
            _, _, height, width = out.shape
            objects = F.adaptive_max_pool2d(scores, (height, width)).flatten()
            evenly = torch.randperm(len(objects), generator=generator)[:count]
            pick = torch.cat([evenly, torch.multinomial(objects, count, replacement=True, generator=generator)])
            image, row, column = pick // (height * width), pick // width % height, pick % width
            held = pair.index >= 0
            values = out[image, :, row, column][:, pair.index[held]] * pair.factor[held]
            even = torch.arange(len(pick)) < len(evenly)
            found[pair.student].append((torch.full_like(image, batch), image, row, column, values, even))

        return sample

    for batch, images in enumerate(batches):  # noqa: B007 - read by the hooks
        scores = score_map(teacher(images))
        handles = [last_linear(pair.teacher).register_forward_hook(sampler(pair)) for pair in pairs]
        try:
            teacher(images)
        finally:
            for handle in handles:
                handle.remove()
    joined = {layer: [torch.cat(part) for part in zip(*parts, strict=True)] for layer, parts in found.items() if parts}
    return {layer: Target((b, i, y, x), values, even) for layer, (b, i, y, x, values, even) in joined.items()}


def score_map(raw: dict[str, Any]) -> Tensor:
    """The largest class score around each place of the finest level, over all levels, B 1 H W."""
    raw = raw.get("one2many", raw)
    sizes = [level.shape[2:] for level in raw["feats"]]
    best = raw["scores"].sigmoid().amax(1, keepdim=True).split([h * w for h, w in sizes], 2)
    levels = [F.interpolate(part.unflatten(2, size), sizes[0]) for part, size in zip(best, sizes, strict=True)]
    return torch.stack(levels).amax(0).clamp(min=1e-6)


def last_linear(layer: Any) -> nn.Module:
    """The module whose output is that of a layer before its activation."""
    return layer.bn if hasattr(layer, "bn") else layer


def fit_layers(
    student: DetectionModel, pairs: dict[Any, LayerPair], targets: dict[Any, Target], batches: Sequence[Tensor]
) -> float:
    """Fit the layers in the order in which they run, each to its target; the mean share of variance explained."""
    outputs: list[list[Tensor]] = [[] for _ in batches]
    explained = []
    for module in student.model:
        read = [
            images if module.i == 0 else inputs_of(module, done) for images, done in zip(batches, outputs, strict=True)
        ]
        for layer in [layer for layer in order_of(module, read[0]) if layer in targets]:
            patches = patches_of(module, layer, read, targets[layer])
            explained.append(fit(layer, pairs[layer].index >= 0, patches, targets[layer]))
        if module is not student.model[-1]:
            for done, x in zip(outputs, read, strict=True):
                done.append(module(x))
                if module.i and module.i - 1 not in student.save:
                    done[module.i - 1] = torch.empty(0)  # no later layer reads it
    return sum(explained) / len(explained)


def inputs_of(module: Any, outputs: Sequence[Tensor]) -> Any:
    """What a layer of a YOLO reads."""
    return outputs[module.f] if isinstance(module.f, int) else [outputs[i] for i in module.f]


def order_of(module: Any, x: Any) -> list[Any]:
    """The modules inside a layer, itself too, in the order in which they run."""
    order: list[Any] = []
    handles = [m.register_forward_pre_hook(lambda inner, _: order.append(inner)) for m in module.modules()]
    try:
        module([part[:1] for part in x] if isinstance(x, list) else x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return order


def patches_of(module: Any, layer: Any, read: Sequence[Any], target: Target) -> Tensor:
    """What a convolution inside a module reads at the target's positions, M C k k."""
    conv = layer.conv if hasattr(layer, "conv") else layer
    (size, _), (pad, _), (stride, _) = conv.kernel_size, conv.padding, conv.stride
    span = torch.arange(size)
    batch, image, row, column = target.places
    parts: list[Tensor] = []

    def keep(inner: Any, inputs: tuple[Tensor, ...]) -> None:
        padded = F.pad(inputs[0], (pad, pad, pad, pad))
        here = batch == len(parts)
        y, x = row[here, None, None] * stride + span[:, None], column[here, None, None] * stride + span
        parts.append(padded[image[here, None, None], :, y, x].permute(0, 3, 1, 2))
        raise Reached

    handle = conv.register_forward_pre_hook(keep)
    try:
        for x in read:
            with suppress(Reached):
                module(x)
    finally:
        handle.remove()
    return torch.cat(parts)


def fit(layer: Any, held: Tensor, patches: Tensor, target: Target) -> float:
    """Fit one convolution, and return the share of the target's variance that it then explains.

    Args:
        layer: with batch normalisation, or a plain one with a bias.
        held: which of its outputs have a target.
        patches: what it reads, M C k k.
        target: what its outputs should be.
    """
    values = target.values
    conv = layer.conv if hasattr(layer, "conv") else layer
    gain = torch.ones(conv.out_channels)
    if hasattr(layer, "bn"):
        gain = layer.bn.weight / (layer.bn.running_var + layer.bn.eps).sqrt()
    now = (conv.weight * gain[:, None, None, None])[held].flatten(1)  # N K
    if conv.groups == 1:
        patches = patches.flatten(1)[None]  # one regression for all outputs
        wanted, start = (values - values.mean(0))[None], now.T[None]
    else:  # depthwise: one regression an output
        patches = patches[:, held].flatten(2).transpose(0, 1)
        wanted, start = (values - values.mean(0)).T[..., None], now[..., None]
    mean = patches.mean(1, keepdim=True)
    solved = ridge(patches - mean, wanted, start)
    fitted = (patches - mean) @ solved  # groups M outputs
    weight = solved[0].T if conv.groups == 1 else solved[..., 0]
    offset = (mean @ solved).flatten()  # of the convolution's outputs
    if hasattr(layer, "bn"):
        # batch normalisation divides by the weights' scale, but an optimiser's steps are relative to it: keep it
        norms = [rows.norm(dim=1).clamp(min=LEAST_NORM) for rows in (conv.weight[held].flatten(1), weight)]
        scale = norms[0] / norms[1]
        weight = weight * scale[:, None]
        evenly = fitted[:, target.even]  # the statistics of whole images, as in training
        variance, shift = evenly.var(1).flatten().clamp(min=LEAST_VARIANCE), evenly.mean(1).flatten()
        layer.bn.running_mean[held] = (offset + shift) * scale
        layer.bn.running_var[held] = variance * scale**2
        layer.bn.weight[held] = (variance * scale**2 + layer.bn.eps).sqrt() / scale
        layer.bn.bias[held] = values.mean(0) + shift
    else:
        conv.bias[held] = values.mean(0) - offset
    conv.weight[held] = weight.reshape(conv.weight[held].shape)
    return float(1 - (wanted - fitted).square().sum() / wanted.square().sum().clamp(min=LEAST_VARIANCE))


def ridge(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """The w that minimises |y - x w|^2 + r |w - start|^2, G K N in float64 inside.

    Args:
        x: inputs of mean 0, G M K.
        y: targets of mean 0, G M N.
        start: weights to stay near, G K N.
    """
    gram = (x.transpose(1, 2) @ x).double()
    strength = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=LEAST_VARIANCE)[:, None, None]
    right = (x.transpose(1, 2) @ y).double() + strength * start.double()
    return torch.linalg.solve(gram + strength * torch.eye(gram.shape[1], dtype=torch.float64), right).to(x)
