"""PKD: Pearson correlation of neck features, Cao et al., NeurIPS 2022.

Published weight: 6 a level, and 10 from a ResNeXt-101. The paper needs equal widths; a 1x1 convolution bridges unequal
ones here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from yolo_mkd.knowledge.baselines.cwd import connector
from yolo_mkd.knowledge.correlation import pearson_loss


def bridges(widths: Mapping[str, tuple[int, int]]) -> nn.ModuleDict:
    """One 1x1 convolution for each layer whose widths differ.

    Args:
        widths: channels of the student's and of the teacher's features, by role.
    """
    return nn.ModuleDict({role: connector(*both) for role, both in widths.items() if len(set(both)) > 1})


def pkd_loss(fs: list[Tensor], ft: list[Tensor]) -> Tensor:
    """Sum over levels of half the mean squared difference of standardised features.

    Args:
        fs: the student's features by level, B C H W, of the teacher's widths.
        ft: the teacher's, B C H W.

    Returns:
        A scalar in [0, 2 x levels]; 0 where every channel is perfectly correlated.
    """
    losses = [pearson_loss(s, t) for s, t in zip(fs, ft, strict=True)]
    return sum(losses[1:], losses[0])
