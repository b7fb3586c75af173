"""Shapes of rectangular training images that a student and its teachers can both take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def shared_multiple(loaded: int, imgsz: int, loaded_stride: int, stride: int) -> int:
    """The smallest multiple for sides of the loaded images with which the scaled images fit the student exactly.

    Args:
        loaded: image size of the loaded images, which the teachers take [pixels].
        imgsz: image size of the student [pixels].
        loaded_stride: the largest stride of the teachers and of the student.
        stride: the student's largest stride.

    Returns:
        A multiple of `loaded_stride` that, times imgsz / loaded, is a multiple of `stride`; at most `loaded` where
        both sizes are multiples of their strides.
    """
    # k loaded_stride imgsz / loaded must be a multiple of stride
    return loaded_stride * (stride * loaded // math.gcd(stride * loaded, loaded_stride * imgsz))


def widen_shapes(dataset: Any, multiple: int) -> None:
    """Round the batch shapes of a rectangular training set up to multiples; its letterbox pads the difference.

    Args:
        dataset: Ultralytics' data set; nothing changes where it is not rectangular.
        multiple: of each side [pixels].
    """
    if getattr(dataset, "rect", False):
        dataset.batch_shapes = np.ceil(dataset.batch_shapes / multiple).astype(int) * multiple
