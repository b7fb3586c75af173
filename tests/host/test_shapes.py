"""Shapes of rectangular images that a student and its teachers can both take."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from yolo_mkd.host import shared_multiple, widen_shapes


@pytest.mark.parametrize(
    ("loaded", "imgsz", "loaded_stride", "stride", "multiple"),
    [
        (640, 640, 32, 32, 32),
        (640, 320, 32, 32, 64),
        (192, 96, 32, 32, 64),
        (192, 128, 32, 32, 96),
        (320, 640, 32, 32, 32),
        (640, 640, 64, 32, 64),  # a teacher with P6
        (640, 320, 64, 64, 128),
        (640, 416, 32, 32, 640),
    ],
)
def test_the_multiple_is_the_smallest_that_fits_both(
    loaded: int, imgsz: int, loaded_stride: int, stride: int, multiple: int
) -> None:
    assert shared_multiple(loaded, imgsz, loaded_stride, stride) == multiple
    fits = [n for n in range(loaded_stride, loaded + 1, loaded_stride) if n * imgsz % (loaded * stride) == 0]
    assert fits[0] == multiple


def test_shapes_are_rounded_up_and_square_sets_are_left_alone() -> None:
    dataset = SimpleNamespace(rect=True, batch_shapes=np.array([[160, 192], [192, 128]]))
    widen_shapes(dataset, 64)
    assert dataset.batch_shapes.tolist() == [[192, 192], [192, 128]]
    square = SimpleNamespace(rect=False)
    widen_shapes(square, 64)
    assert vars(square) == {"rect": False}
