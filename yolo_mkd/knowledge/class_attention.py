"""Attention maps by class: how a layer's energy is distributed over the positions where the teacher sees a class.

The attention map of Zagoruyko and Komodakis (ICLR 2017), compared once for each class with the teacher's scores of
the class as weights of the positions, so that a rare class counts as much as a frequent one.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
LEAST = 0.5  # sum of the scores of a class in a batch below which it has no say


def class_attention_loss(es: Tensor, et: Tensor, scores: Tensor) -> Tensor:
    """Mean over the classes present of 1 - the score-weighted correlation of the log energies, in [0, 2].

    Args:
        es: the student's attention maps, B H W.
        et: the teacher's, B H W.
        scores: the teacher's score of each class at each position, B C H W.
    """
    present = scores.sum((0, 2, 3)) > LEAST
    if not present.any():
        return es.sum() * 0
    floor = scores.amax(1, keepdim=True).mean() * 0.1  # background positions give the contrast
    w = scores[:, present] + floor  # B C' H W
    w = w / w.sum((0, 2, 3), keepdim=True)
    s, t = ((e + EPS).log()[:, None] for e in (es, et))
    s, t = (x - (w * x).sum((0, 2, 3), keepdim=True) for x in (s, t))
    both = (w * s * t).sum((0, 2, 3))
    size = ((w * s * s).sum((0, 2, 3)) * (w * t * t).sum((0, 2, 3)) + EPS).sqrt()
    return torch.mean(1 - both / size)
