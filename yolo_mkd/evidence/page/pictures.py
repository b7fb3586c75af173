"""Pictures beside looks.json: small copies of images, and attention maps laid over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from yolo_mkd.report import atomic

SIDE = 480  # longest side of a copy [pixels]
SMALL = 280  # longest side of an attention map [pixels]; there is one for each image, layer and model
MAP_SHARE = 0.62  # of the colours in an overlay; the rest is the image in grey


def save_copy(image: Path, path: Path) -> tuple[int, int]:
    """Write a small copy of an image; its width and height [pixels]."""
    with Image.open(image) as opened:
        copy = ImageOps.exif_transpose(opened).convert("RGB")  # turned as Ultralytics loads it
    copy.thumbnail((SIDE, SIDE))
    save(copy, path, quality=82)
    return copy.size


def save_overlay(picture: Path, energy: NDArray[Any], path: Path) -> None:
    """Write an attention map in colours over the grey picture.

    Args:
        picture: the copy of the image.
        energy: H W, at least 0; scaled from its 1st to its 99th percentile.
        path: to write.
    """
    from matplotlib import colormaps

    with Image.open(picture) as opened:
        grey = opened.convert("L")
    grey.thumbnail((SMALL, SMALL))
    low, high = np.percentile(energy, (1, 99))
    scaled = np.clip((energy - low) / max(high - low, 1e-12), 0, 1)
    smooth = Image.fromarray((scaled * 255).astype(np.uint8)).resize(grey.size, Image.Resampling.BILINEAR)
    colours = Image.fromarray((colormaps["inferno"](np.asarray(smooth) / 255)[..., :3] * 255).astype(np.uint8))
    save(Image.blend(grey.convert("RGB"), colours, MAP_SHARE), path, quality=78)


def save(picture: Image.Image, path: Path, quality: int) -> None:
    """Write a JPEG, whole or not at all."""
    with atomic(path) as partial:
        picture.save(partial, format="JPEG", quality=quality, optimize=True)
