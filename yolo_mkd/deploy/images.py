"""The pictures that a check or a timing runs on: those the user names, or a data set's val split, evenly spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.settings import BadInput

MOST_IMAGES = 32  # ours: enough to see a fault, few enough to wait for


def find_images(images: Any, data: str | Path | None, trained_on: str | None = None) -> list[Path]:
    """Find the image files that `images=` or `data=` names, or those of the data set a checkpoint was trained on.

    Raises:
        BadInput: both are given, or there is no image.
    """
    from yolo_mkd import host

    if images is not None and data is not None:
        raise BadInput("images= and data= are both given: keep one of them")
    if images is not None:
        found = []
        for place in map(Path, [images] if isinstance(images, str | Path) else images):
            inside = host.images_in(place) if place.is_dir() else []
            if not inside and not place.is_file():
                raise BadInput(f"images={place}: {'no images in it' if place.is_dir() else 'no such file or folder'}")
            found += inside or [place]
        return found
    if data is not None:
        return val_images("data", data)
    try:
        return val_images("data", trained_on or "")
    except BadInput as error:
        cause = f"data set {trained_on} is not here" if trained_on else "data set is not recorded"
        raise BadInput(
            f"no images: the checkpoint's {cause}: give images= (a folder) or data= (a data.yaml)"
        ) from error


def val_images(argument: str, data: str | Path) -> list[Path]:
    """At most 32 images of a data set's val split, evenly spread; nothing is downloaded."""
    return spread(split_images(argument, data, "val"))


def split_images(argument: str, data: str | Path, split: str) -> list[Path]:
    """All images of a data set's train, val or test split, none where it has no such split; nothing is downloaded."""
    from yolo_mkd import host

    places = host.check_data(data, argument, fetch=False).get(split) or []
    return [p for place in (places if isinstance(places, list) else [places]) for p in host.images_in(Path(place))]


def spread(items: list[Path], most: int = MOST_IMAGES) -> list[Path]:
    """At most `most` items, evenly spread from the first to the last."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / max(most - 1, 1))] for k in range(most)]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as BGR uint8, H W 3."""
    import cv2

    image = cv2.imread(str(path))
    if image is None:
        raise BadInput(f"{path} cannot be read as an image: remove it or give other images=")
    return np.asarray(image, dtype=np.uint8)
