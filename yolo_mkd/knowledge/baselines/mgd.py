"""Masked generation: the teacher's features are generated from the student's masked ones (MGD, Yang et al., ECCV 2022).

L = 1 / B * sum of (G(keep * align(s)) - t)^2, with G a 3x3 convolution, ReLU and another 3x3, and one random mask an
image, the same for all its channels. Published for one-stage detectors: weight 2e-5 a level, 65 % of the positions
masked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Generates the teacher's features from the student's masked ones."""

    def __init__(self, student_channels: int, teacher_channels: int):
        """Set up the layers.

        Args:
            student_channels: width of the student's features.
            teacher_channels: width of the teacher's; where the two differ, a 1x1 convolution comes first.
        """
        super().__init__()
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, fs: Tensor, keep: Tensor) -> Tensor:
        """The generated features: B Cs H W and the mask B 1 H W in, B Ct H W out."""
        return self.generation(self.align(fs.float()) * keep)  # masked after the 1x1, so that its bias is masked too


def random_mask(f: Tensor, share: float = 0.65, generator: torch.Generator | None = None) -> Tensor:
    """A random mask of positions, each drawn independently.

    Args:
        f: features, B C H W.
        share: probability that a position is masked.
        generator: its own source of random numbers leaves all others in training as they are; the global one if None.

    Returns:
        B 1 H W: 0 where masked, 1 where kept.
    """
    device = generator.device if generator else f.device
    draws = torch.rand(len(f), 1, *f.shape[2:], generator=generator, device=device)
    return (draws >= share).float().to(f.device)


def masked_generation_loss(generated: Tensor, ft: Tensor) -> Tensor:
    """Squared distance of generated and teacher's features; masked and kept positions have the same weight.

    Args:
        generated: the generator's output, B C H W.
        ft: the teacher's features, B C H W.

    Returns:
        A scalar: the sum over channels and positions, the mean over images.
    """
    return (generated.float() - ft.float()).square().sum() / len(ft)
