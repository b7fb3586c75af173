"""Guidance: student and teacher meet in a layer of a width between theirs, where their neck features are compared.

The hint of FitNets (Romero et al., ICLR 2015) between unequal widths, in the form of PKD (Cao et al., NeurIPS 2022).
The student's side of the guidance layer is trained with the student and then dropped. The teacher's side is a fixed
orthonormal projection: two trained sides would agree on something easy, and in the end on nothing.

All positions count alike. Weighted by the teacher's score, as Ultralytics weights its own feature loss, the term's
gradient on the trunk was 40 times as large while the adapters were fresh and 2.6 times once they had fitted (bccd,
yolo26 at width 0.125 from yolo26n): at its nominal gain it drowned the detection loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_mkd.knowledge.correlation import pearson_loss


class Guide(nn.Module):
    """A guidance layer between two widths."""

    projection: Tensor

    def __init__(self, student_channels: int, teacher_channels: int):
        """Set up both sides.

        Args:
            student_channels: width of the student's features.
            teacher_channels: width of the teacher's.
        """
        super().__init__()
        width = middle(student_channels, teacher_channels)
        self.adapter = nn.Conv2d(student_channels, width, 1, bias=False)
        self.register_buffer("projection", orthonormal(width, teacher_channels)[..., None, None])

    def forward(self, fs: Tensor, ft: Tensor) -> Tensor:
        """Compare B Cs H W with B Ct H W: the mean over the layer's channels of 1 - correlation, in [0, 2]."""
        return pearson_loss(self.adapter(fs.float()), F.conv2d(ft.float(), self.projection))


def middle(student_channels: int, teacher_channels: int) -> int:
    """The width between two: their geometric mean, as a multiple of 8, and no more than the teacher's."""
    return min(8 * max(1, round(math.sqrt(student_channels * teacher_channels) / 8)), teacher_channels)


def orthonormal(rows: int, columns: int) -> Tensor:
    """Rows of unit length at right angles to each other, always the same for a size: R C, R <= C."""
    random = torch.randn(columns, rows, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(random)[0].t()
