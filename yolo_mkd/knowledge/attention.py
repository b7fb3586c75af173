"""Attention maps: where a hidden layer is active, comparable between layers of any width.

After Zagoruyko and Komodakis (ICLR 2017), with p = 2, but centred: every map has a positive mean, which carries no
information, and without it the loss is one minus the correlation of the two maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_mkd.knowledge import mean_over_images

FLOOR = 0.05  # share of a map's energy below which its contrast counts as noise; keeps the gradients of flat maps small
EPS = 1e-12


def attention_map(f: Tensor) -> Tensor:
    """Energy of each position, mean over channels of the squares: B C H W in, B H W out."""
    energy: Tensor = Energy.apply(f)
    return energy


class Energy(torch.autograd.Function):
    """Mean over channels of the squares; nothing is saved but the features, which the model itself keeps.

    On a CPU it works image by image: small buffers are used again, where one of all images comes from the system anew.
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor) -> Tensor:
        """B C H W in, B H W out, in fp32: squares of half-precision features under- and overflow."""
        ctx.save_for_backward(f)
        if f.device.type != "cpu":
            return f.float().square().mean(1)
        return torch.stack([image.float().square().mean(0) for image in f])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> Tensor:
        """The gradient with respect to the features, in their precision."""
        (f,) = ctx.saved_tensors
        return (f * (up * (2 / f.shape[1])).unsqueeze(1)).to(f.dtype)


def normalise(energy: Tensor) -> Tensor:
    """Centre each map and scale it to unit length: B N in, B N out; a flat map becomes 0, not amplified noise."""
    centred = energy - energy.mean(1, keepdim=True)
    floor = FLOOR * energy.norm(dim=1, keepdim=True)
    return centred / (centred.square().sum(1, keepdim=True) + floor.square() + EPS).sqrt()


def attention_loss(fs: Tensor, ft: Tensor) -> Tensor:
    """Loss between the attention maps of two layers.

    Args:
        fs: the student's features, B Cs H W.
        ft: the teacher's features of the same role, B Ct H' W'; the larger of the two maps is pooled.

    Returns:
        A scalar, see `map_loss`; invariant to the scale, order and number of channels.
    """
    return map_loss(attention_map(fs), attention_map(ft))


def map_loss(es: Tensor, et: Tensor, weight: Tensor | None = None) -> Tensor:
    """Half the squared distance of two normalised maps: about 1 - correlation, in [0, 2].

    Args:
        es: the student's attention maps, B H W.
        et: the teacher's, B H' W'.
        weight: of each image, B; 1 each if None.

    Returns:
        A scalar, the mean over images.
    """
    size = (min(es.shape[1], et.shape[1]), min(es.shape[2], et.shape[2]))
    es, et = (F.adaptive_avg_pool2d(e, size) if e.shape[1:] != size else e for e in (es, et))
    return mean_over_images(0.5 * (normalise(es.flatten(1)) - normalise(et.flatten(1))).square().sum(1), weight)
