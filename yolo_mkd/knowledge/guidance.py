"""Guidance: compares neck features of student and teacher in a guidance layer whose width lies between theirs.

The hint of FitNets (Romero et al., ICLR 2015) between unequal widths, in the form of PKD (Cao et al., NeurIPS 2022).
The student's adapter is trained with the student and dropped at the end. The teacher's side is a fixed orthonormal
projection: with two trained sides the loss could fall without the student learning from the teacher.

All positions have the same weight. Weighted by the teacher's score, as Ultralytics weights its own feature loss, the
term's gradient on the trunk was 40 times as large with new adapters and 2.6 times with fitted ones (bccd, yolo26 at
width 0.125 from yolo26n): at its nominal gain it exceeded the detection loss's by far.
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
        """The mean over the layer's channels of 1 - correlation, in [0, 2]: B Cs H W and B Ct H W in, a scalar out."""
        return pearson_loss(self.adapter(fs.float()), self.project(ft))

    def project(self, ft: Tensor) -> Tensor:
        """The teacher's features at the guidance layer's width, B Ct H W in; image by image on a CPU, as attention."""
        if ft.device.type != "cpu":
            return F.conv2d(ft.float(), self.projection)
        matrix = self.projection.flatten(1)
        return torch.stack([matrix @ image.float().flatten(1) for image in ft]).unflatten(2, ft.shape[2:])


def middle(student_channels: int, teacher_channels: int) -> int:
    """The guidance layer's width: the geometric mean of two, as a multiple of 8, and at most the teacher's."""
    return min(8 * max(1, round(math.sqrt(student_channels * teacher_channels) / 8)), teacher_channels)


def orthonormal(rows: int, columns: int) -> Tensor:
    """A matrix with orthonormal rows, always the same for a size: R C, R <= C."""
    random = torch.randn(columns, rows, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(random)[0].t()
