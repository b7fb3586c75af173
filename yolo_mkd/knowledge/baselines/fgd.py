"""Focal and global distillation: objects and background apart, and global context (FGD, Yang et al., CVPR 2022).

L = sum of w (s - t)^2 + gamma (|S_s - S_t| + |C_s - C_t|) + delta |G_s(s) - G_t(t)|^2, a sum over channels and
positions and a mean over images, with the weights w = (alpha M_objects + beta M_background) S_t C_t. S and C are the
attention of positions and channels, softmax(mean |f| / T) scaled to a mean of 1, G is a global context block.
Objects have the weight 1 / area, the background 1 / its number of positions. The defaults are the weights published
for YOLOX, by level. T = 0.5 as published; on YOLO's features, whose mean |f| is about 0.2 to 0.4, S and C are then
nearly uniform.

The public code is followed: a box reaches from floor(left) to ceil(right) inclusive, one position further right and
down than it touches, and the teacher's context block is trained along with the student's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_mkd.knowledge import Targets

TEMPERATURE = 0.5


class GlobalContext(nn.Module):
    """Adds a context vector, pooled from the whole map, to each position (GcBlock of GCNet, Cao et al., ICCVW 2019).

    Attributes:
        look: the attention over positions; the names of both layers are those in checkpoints.
        think: the transform of the pooled context.
    """

    def __init__(self, channels: int):
        """Set up a block that at first adds nothing.

        Args:
            channels: width of the features.
        """
        super().__init__()
        hidden = channels // 2
        self.look = nn.Conv2d(channels, 1, 1, bias=False)  # a bias would cancel in the softmax
        self.think = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LayerNorm([hidden, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )
        nn.init.kaiming_normal_(self.look.weight, nonlinearity="relu")
        for parameter in self.think[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, f: Tensor) -> Tensor:
        """Add the context: B C H W in and out."""
        attention = self.look(f).flatten(2).softmax(2)  # B 1 HW
        context = (f.flatten(2) * attention).sum(2)[..., None, None]  # B C 1 1
        return f + self.think(context)


class FocalGlobal(nn.Module):
    """The layers trained beside the student: the adapter to the teacher's width and both context blocks."""

    def __init__(self, student_channels: int, teacher_channels: int):
        """Set up the layers.

        Args:
            student_channels: width of the student's features.
            teacher_channels: width of the teacher's; where the two differ, a 1x1 convolution comes first.
        """
        super().__init__()
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.student_context = GlobalContext(teacher_channels)
        self.teacher_context = GlobalContext(teacher_channels)


def focal_global_loss(
    adapters: FocalGlobal,
    fs: Tensor,
    ft: Tensor,
    targets: Targets,
    alpha: float = 2e-3,
    beta: float = 1e-3,
    gamma: float = 1e-3,
    delta: float = 1e-5,
) -> Tensor:
    """The weighted sum of the four parts.

    Args:
        adapters: the layers trained beside the student.
        fs: the student's features, B Cs H W.
        ft: the teacher's, B Ct H W.
        targets: the labels of the batch.
        alpha: weight of the objects.
        beta: weight of the background.
        gamma: weight of the attention.
        delta: weight of the global context (lambda in the paper).

    Returns:
        A scalar, the mean over images.
    """
    fs, ft = adapters.align(fs.float()), ft.float()
    (ss, cs), (st, ct) = attention(fs), attention(ft)
    batch, _, rows, columns = ft.shape
    objects, background = masks(targets, batch, rows, columns)
    weight = (alpha * objects + beta * background) * st  # B H W
    focal = ((fs - ft).square() * weight[:, None] * ct[..., None, None]).sum()
    attentive = (ss - st).abs().sum() + (cs - ct).abs().sum()
    context = (adapters.student_context(fs) - adapters.teacher_context(ft)).square().sum()
    return (focal + gamma * attentive + delta * context) / len(ft)


def attention(f: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of positions and channels: B C H W in, B H W and B C out, each with a mean of 1."""
    magnitude = f.abs()
    positions = magnitude.mean(1).flatten(1) / TEMPERATURE  # B HW
    channels = magnitude.mean((2, 3)) / TEMPERATURE  # B C
    scaled = positions.softmax(1) * positions.shape[1]
    return scaled.view(len(f), *f.shape[2:]), channels.softmax(1) * f.shape[1]


def masks(targets: Targets, batch: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The weights of the positions as objects and as background.

    Args:
        targets: the labels of the batch.
        batch: number of images.
        rows: of the map.
        columns: of the map.

    Returns:
        Two tensors B H W: 1 / area of the smallest box there, else 0; and 1 / number of positions outside all boxes,
        else 0.
    """
    boxes, image = targets.boxes.float(), targets.image.long()
    size = boxes.new_tensor([columns, rows])
    low = ((boxes[:, :2] - boxes[:, 2:] / 2) * size).floor()  # N 2
    high = ((boxes[:, :2] + boxes[:, 2:] / 2) * size).ceil()
    x, y = (torch.arange(n, device=boxes.device) for n in (columns, rows))
    across = (low[:, :1] <= x) & (x <= high[:, :1])  # N W
    down = (low[:, 1:] <= y) & (y <= high[:, 1:])  # N H
    share = 1 / (high - low + 1).prod(1)  # N
    covered = (down[:, :, None] & across[:, None]) * share[:, None, None]  # N H W
    index = image[:, None, None].expand_as(covered)
    objects = boxes.new_zeros(batch, rows, columns).scatter_reduce(0, index, covered, "amax")
    background = (objects == 0).float()
    return objects, background / background.sum((1, 2), keepdim=True).clamp(min=1)
