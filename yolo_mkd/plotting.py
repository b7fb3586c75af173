"""What all pictures share: colours, the place of labels, and writing a picture whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yolo_mkd.report import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too; the order puts the ones that differ most first
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as the picture that the path's suffix names, whole or not at all."""
    with atomic(path) as partial:
        figure.savefig(partial, format=path.suffix[1:])
    return path


def label_heights(wanted: list[float], least: float, low: float, high: float) -> list[float]:
    """Heights for labels, near the wanted ones, `least` apart and within low..high.

    Args:
        wanted: ascending.
        least: the smallest distance of two labels.
        low: the lower end.
        high: the upper end.

    Returns:
        One height per label, ascending.
    """
    heights: list[float] = []
    for want in wanted:  # push up what stands too close to the one below
        heights.append(max(want, heights[-1] + least if heights else low + least / 2))
    ceiling = high - least / 2
    for i in range(len(heights) - 1, -1, -1):  # then push down what lies above the upper end
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - least
    return heights
