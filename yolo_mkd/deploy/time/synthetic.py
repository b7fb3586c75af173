"""The picture that is timed where no images are given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # H W 3, RGB


def synthetic_picture(height: int = 480, width: int = 640) -> Picture:
    """Generate a picture with the statistics of a photo: smooth gradients, a few objects with edges, some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = 127 + 60 * np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(4 * x * y)], axis=-1)
    for _ in range(12):
        top, left = rng.integers(height - 80), rng.integers(width - 80)
        picture[top : top + rng.integers(20, 80), left : left + rng.integers(20, 80)] = rng.integers(0, 255, 3)
    return np.asarray(np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255), dtype=np.uint8)
