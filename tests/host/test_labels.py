"""The images that are left of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import host


@pytest.mark.parametrize(
    ("fraction", "split", "left"),
    [
        (1.0, "train", 10),
        (1, "train", 10),
        (0.34, "train", 3),
        (0.01, "train", 1),
        (4, "train", 4),  # a number of images
        (40, "train", 10),
        (4, "val", 10),  # one value is for train
        ([0.5, 3], "train", 5),
        ([0.5, 3], "val", 3),
        ([0.5, 3], "test", 10),
    ],
)
def test_fraction_leaves_the_first_images_as_ultralytics_does(fraction: Any, split: str, left: int) -> None:
    images = [Path(f"{i}.png") for i in range(10)]
    assert host.share_of(images, fraction, split) == images[:left]
