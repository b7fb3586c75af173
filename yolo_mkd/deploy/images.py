"""The images that a check, a timing or a bundle uses: those the user names, or an even choice of a val split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.settings import BadInput, file_path

MOST_IMAGES = 32  # our choice: enough to find a fault, few enough to be fast

Item = TypeVar("Item")


def find_images(images: Any, data: str | Path | None, trained_on: str | None = None) -> list[Path]:
    """The image files that `images=` or `data=` names, or those of the data set a checkpoint was trained on.

    Raises:
        BadInput: both are given, or no image is found.
    """
    if images is not None and data is not None:
        raise BadInput("images= and data= cannot be combined: remove one of them")
    if images is not None:
        places = images if isinstance(images, list | tuple) else [images]
        if not places:
            raise BadInput("images= is an empty list: give a folder, a file or a list of files")
        return [image for place in places for image in images_at(file_path("images", place, "frames"))]
    if data is not None:
        return val_images("data", data)
    try:
        return val_images("data", trained_on or "")
    except BadInput as error:
        cause = f"its data set {trained_on} was not found" if trained_on else "the checkpoint names no data set"
        raise BadInput(f"no images ({cause}): give images= (a folder) or data= (a data.yaml)") from error


def refuse_channels(argument: str, source: Path, trained: Any) -> None:
    """Refuse a checkpoint whose images are not colour images, since no exported file of it could be checked here.

    Args:
        argument: the argument that names it, for the message.
        source: its file.
        trained: its model.

    Raises:
        BadInput: its images do not have 3 channels.
    """
    channels = int(trained.yaml.get("channels", 3))
    if channels != 3:
        raise BadInput(
            f"{argument}={source} takes images of {channels} channel{'s' if channels > 1 else ''}: yolo-mkd exports, "
            "checks, times and bundles models of 3 channels: use yolo export of Ultralytics, whose file is not checked"
        )


def images_at(place: Path) -> list[Path]:
    """The image file at a path, or all images of a folder.

    Raises:
        BadInput: the path does not exist, or the folder has no images.
    """
    from yolo_mkd import host

    found = host.images_in(place) if place.is_dir() else [place]
    if place.is_dir() and not found:
        raise BadInput(f"images={place} contains no images: give another folder")
    if not place.exists():
        raise BadInput(f"images={place}: no such file or folder")
    return list(found)


def val_images(argument: str, data: str | Path) -> list[Path]:
    """At most 32 evenly spaced images of a data set's val split; nothing is downloaded."""
    return evenly_spaced(split_images(argument, data, "val"))


def split_images(argument: str, data: str | Path, split: str) -> list[Path]:
    """All images of a data set's train, val or test split, none where it has no such split; nothing is downloaded."""
    from yolo_mkd import host

    places = host.check_data(data, argument, fetch=False).get(split) or []
    return [p for place in (places if isinstance(places, list) else [places]) for p in host.images_in(Path(place))]


def evenly_spaced(items: list[Item], most: int = MOST_IMAGES) -> list[Item]:
    """At most `most` items at even distances, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / max(most - 1, 1))] for k in range(most)]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as BGR uint8, H W 3.

    Raises:
        BadInput: it cannot be decoded.
    """
    import cv2

    image = cv2.imread(str(path))
    if image is None:
        raise BadInput(f"{path} cannot be read as an image: remove it, or give other images=")
    return np.asarray(image, dtype=np.uint8)
