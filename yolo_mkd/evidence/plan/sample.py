"""A copy of a few images of a data set with their labels, so that nothing is written beside the data itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yolo_mkd import host
from yolo_mkd.host.dry import label_of

KEPT = ("names", "channels", "kpt_shape", "flip_idx", "kpt_names")  # of a data set's description


def images_of(data: Mapping[str, Any], split: str, fraction: Any = 1.0) -> list[Path]:
    """The images of a split.

    Args:
        data: the data set, as `host.check_data` returns it.
        split: `train` or `val`.
        fraction: Ultralytics' argument.
    """
    places = data[split] if isinstance(data[split], list) else [data[split]]
    found = [image for place in places for image in host.images_in(Path(place))]
    return host.share_of(found, fraction, split)


def evenly_spaced(images: list[Path], count: int) -> list[Path]:
    """At most `count` of the images, evenly spaced from first to last."""
    if len(images) <= count:
        return images
    return [images[i * len(images) // count] for i in range(count)]


def copy(
    data: Mapping[str, Any],
    splits: Mapping[str, list[Path]],
    folder: Path,
    classes: Mapping[int, int] | None = None,
    names: Mapping[int, str] | None = None,
) -> Path:
    """Copy images with their labels, and write a data set's YAML file for them.

    Args:
        data: the data set with the images.
        splits: the images by split.
        folder: to copy to; created if missing.
        classes: the index in `names` of each class to keep; labels of other classes are dropped. None keeps all.
        names: of the classes in the copy; None keeps those of the data set.

    Returns:
        The YAML file of the copy.
    """
    for split, images in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        distinct = len({image.stem for image in images}) == len(images)
        for i, image in enumerate(images):
            # the name stays where it can, since a teacher's boxes are found by it
            stem = image.stem if distinct else f"{i:06}"
            copied = folder / "images" / split / f"{stem}{image.suffix.lower()}"
            shutil.copyfile(image, copied)
            label = label_of(image)
            if label.is_file():
                text = label.read_text(encoding="utf-8-sig")
                kept = text if classes is None else "\n".join(renamed(text.splitlines(), classes))
                label_of(copied).write_text(kept, encoding="utf-8")
    description = {k: data[k] for k in KEPT if data.get(k) is not None}
    description.update({split: f"images/{split}" for split in splits}, path=str(folder.resolve()))
    description.setdefault("train", "images/val")  # Ultralytics requires both
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({**description, "names": dict(names or data["names"])}), encoding="utf-8")
    return file


def renamed(rows: list[str], classes: Mapping[int, int]) -> list[str]:
    """Label rows with other class indices; rows of classes without one are dropped."""
    split = [row.split(maxsplit=1) for row in rows if row.strip()]
    return [f"{classes[int(float(c))]} {rest}" for c, rest in split if int(float(c)) in classes]
