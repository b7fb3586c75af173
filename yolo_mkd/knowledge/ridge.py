"""Ridge regression of a 1x1 adapter: the linear map from the student's features to the teacher's, in closed form.

An adapter that starts at random and is fitted by the optimizer is far from its optimum when the loss weights are
measured, and a term whose adapter is poor gives the student a direction that the next hundred batches withdraw. The
normal equations of a few batches give the best map at once (Hoerl and Kennard, Technometrics 1970).
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

MEMORY = 0.95  # weight of the earlier batches when a new one is added: the student changes while it is fitted
RIDGE = 1e-3  # of the mean square of the student's features


class RidgeAdapter(nn.Module):
    """A 1x1 convolution with bias from the student's width to the teacher's, fitted in closed form.

    Attributes:
        map: the convolution.
    """

    gram: Tensor
    cross: Tensor

    def __init__(self, student_channels: int, teacher_channels: int):
        """Set up an adapter that has seen no batch.

        Args:
            student_channels: width of the student's features.
            teacher_channels: width of the teacher's.
        """
        super().__init__()
        self.map = nn.Conv2d(student_channels, teacher_channels, 1)
        self.register_buffer("gram", torch.zeros(student_channels + 1, student_channels + 1))
        self.register_buffer("cross", torch.zeros(student_channels + 1, teacher_channels))

    def forward(self, fs: Tensor) -> Tensor:
        """B Cs H W in, B Ct H W out."""
        return self.map(fs)

    @torch.no_grad()
    def fit(self, fs: Tensor, ft: Tensor, weight: Tensor) -> None:
        """Add a batch to the normal equations and solve them.

        Args:
            fs: the student's features, B Cs H W.
            ft: the teacher's, B Ct H W.
            weight: of each position, B 1 H W, at least 0.
        """
        x = torch.cat([fs, torch.ones_like(fs[:, :1])], 1).movedim(1, -1).flatten(0, 2)  # N Cs+1
        y, w = ft.movedim(1, -1).flatten(0, 2), weight.flatten()[:, None]
        w = w / w.sum().clamp(min=1e-12)
        gram, cross = x.t() @ (w * x), x.t() @ (w * y)
        if distributed.is_available() and distributed.is_initialized():  # else the ranks' adapters would differ
            distributed.all_reduce(gram)
            distributed.all_reduce(cross)
        self.gram.mul_(MEMORY).add_(gram)
        self.cross.mul_(MEMORY).add_(cross)
        ridge = RIDGE * self.gram.diagonal().mean() * torch.eye(len(self.gram), device=x.device)
        solved = torch.linalg.solve((self.gram + ridge).double(), self.cross.double()).float()  # Cs+1 Ct
        self.map.weight.copy_(solved[:-1].t()[..., None, None])
        assert self.map.bias is not None
        self.map.bias.copy_(solved[-1])
