"""Read a detector's boxes: a JSON file in COCO's results format, or a folder of label files with scores."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from yolo_mkd import host
from yolo_mkd.distill.matching import folded
from yolo_mkd.settings import BadInput, load_yaml
from yolo_mkd.settings.errors import short

LEAST_SCORE = 0.05  # boxes below are left out: soft targets count such scores as no detection
NAMED = 5  # names that a message lists; the others are counted


class Rows(NamedTuple):
    """The boxes of one image.

    Attributes:
        boxes: N 4, centre x, centre y, width and height as shares of the image.
        scores: N.
        classes: N, the data's class indices.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Entry(NamedTuple):
    """One box as a file has it: `box` is left, top, width and height in pixels, or centre and size as shares."""

    image: str
    category: int | str
    box: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Detections:
    """The boxes of one file or folder that belong to the images of a data set.

    Attributes:
        images: the boxes of each image that has any, by its path.
        classes: the data's class indices that the file has.
        foreign: how many boxes were left out because the data has no such class, by class.
    """

    images: dict[str, Rows]
    classes: frozenset[int]
    foreign: Counter[str]


def read_detections(
    source: str, images: Sequence[Path], names: Mapping[int, str], mapping: str | Path | None = None
) -> Detections:
    """Read the boxes of a teacher.

    Args:
        source: a .json file, or a folder of .txt files.
        images: the images to find boxes for, labelled and unlabelled ones.
        names: the data's class names by index.
        mapping: a YAML file that maps the file's classes, names or numbers, to the data's class names; None means that
            classes are matched by name.

    Raises:
        BadInput: the file is not what it should be, has no box of these images, or none of the data's classes.
    """
    path = Path(source)
    in_pixels = path.is_file()
    own_names: dict[int | str, str] = dict(names.items())
    if in_pixels:
        entries, own_names = read_json(path)
    else:
        entries = list(read_folder(path))
    if not entries:
        raise BadInput(f"teacher={source} contains no boxes: give a detector's results on the training images")
    wanted = read_mapping(mapping, names)
    by_key = images_by_key(source, images)
    found: dict[Path, list[tuple[Entry, int]]] = defaultdict(list)
    foreign: Counter[str] = Counter()
    of_data = 0
    for entry in entries:
        image = by_key.get(entry.image)
        if image is None:
            continue
        of_data += 1
        index = class_index(source, entry.category, own_names, names, wanted)
        if index is None:
            foreign[own_names.get(entry.category, str(entry.category))] += 1
        elif entry.score >= LEAST_SCORE:
            found[image].append((entry, index))
    if not of_data:
        shown = f"'{entries[0].image}', the data '{images[0].name}'"
        raise BadInput(
            f"teacher={source} has boxes of none of the data's {len(images)} training images (it has for example "
            f"{shown}): give results on these images, named by image_id or file_name"
        )
    if not found:
        theirs = f"it has {listed(foreign)}; " if foreign else f"no score reaches {LEAST_SCORE}; "
        raise BadInput(
            f"teacher={source} has no box of a class of the data ({theirs}the data has {listed(names.values())}): "
            "map its classes to the data's with teacher_classes=map.yaml"
        )
    rows = {str(image): as_rows(each, image if in_pixels else None) for image, each in found.items()}
    return Detections(rows, frozenset(i for each in found.values() for _, i in each), foreign)


def as_rows(entries: Sequence[tuple[Entry, int]], image: Path | None) -> Rows:
    """The boxes of an image as arrays; those in pixels are divided by the size of `image`."""
    boxes = np.array([entry.box for entry, _ in entries], np.float32)
    if image is not None:
        height, width = host.image_shape(image)
        boxes[:, :2] += boxes[:, 2:] / 2
        boxes /= np.array([width, height, width, height], np.float32)
    # a box may reach beyond the image, and augmentation moves corners: clip them and go back to centres
    low, high = np.clip(boxes[:, :2] - boxes[:, 2:] / 2, 0, 1), np.clip(boxes[:, :2] + boxes[:, 2:] / 2, 0, 1)
    boxes = np.concatenate([(low + high) / 2, high - low], 1)
    scores = np.array([entry.score for entry, _ in entries], np.float32)
    classes = np.array([index for _, index in entries], np.int64)
    seen = (boxes[:, 2:] > 0).all(1)
    return Rows(boxes[seen], scores[seen], classes[seen])


def read_json(file: Path) -> tuple[list[Entry], dict[int | str, str]]:
    """The boxes of a JSON file, and its class names where it has them.

    The file is a list of results with `image_id` or `file_name`, `category_id`, `bbox` (left, top, width, height in
    pixels) and `score`, or an object with such results as `annotations` and with `images` and `categories`.

    Raises:
        BadInput: it is not JSON, or not of this form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadInput(f"teacher={file} is not a JSON file ({host.one_line(e)[:120]}): give COCO results") from e
    whole = content if isinstance(content, dict) else {}
    results = whole.get("annotations") if whole else content
    if not isinstance(results, list):
        raise BadInput(
            f"teacher={file} is not in COCO's results format: it must be a list of boxes, or an object with annotations"
        )
    files = {str(i.get("id")): str(i.get("file_name")) for i in dicts(whole.get("images"))}
    names: dict[int | str, str] = {
        c["id"]: str(c["name"]) for c in dicts(whole.get("categories")) if "id" in c and "name" in c
    }
    entries = []
    for number, result in enumerate(results):
        try:
            box = tuple(float(value) for value in result["bbox"])
            score, category = float(result["score"]), result.get("category_name", result["category_id"])
            image = result.get("file_name") or files.get(str(result["image_id"])) or str(result["image_id"])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            reason = f"lacks {e}" if isinstance(e, KeyError) else host.one_line(e)[:80]
            raise BadInput(
                f"teacher={file}: result {number} {reason}: each needs image_id, category_id, bbox and score"
            ) from e
        refuse_values(f"teacher={file}: result {number}", box, score)
        if not isinstance(category, str | int):
            raise BadInput(
                f"teacher={file}: result {number} has category_id {short(category)}: give a number or a name"
            )
        entries.append(Entry(image_key(image), category, box, score))
    return entries, names


def dicts(values: Any) -> list[dict[str, Any]]:
    """The dicts of a list; none where it is not a list."""
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def read_folder(folder: Path) -> Iterator[Entry]:
    """The boxes of all label files in a folder and its subfolders: class, centre x, centre y, width, height, score.

    Raises:
        BadInput: a row has another number of values, or values that cannot be.
    """
    for file in sorted(folder.rglob("*.txt")):
        for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            where = f"teacher={folder}: {file.name} line {number}"
            if len(words) != 6:
                raise BadInput(
                    f"{where} has {len(words)} values: each line needs class, centre x, centre y, width, height and "
                    "score, as yolo predict writes with save_txt=True save_conf=True"
                )
            try:
                category, (*box, score) = int(float(words[0])), map(float, words[1:])
            except (ValueError, OverflowError) as e:
                raise BadInput(f"{where} has a value that is not a number: {short(line)}") from e
            refuse_values(where, tuple(box), score)
            yield Entry(file.stem, category, tuple(box), score)


def refuse_values(where: str, box: tuple[float, ...], score: float) -> None:
    """Refuse a box that is not four finite numbers with a size, or a score outside 0 to 1."""
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
        raise BadInput(
            f"{where} has the box {short(list(box))}: it must be four finite numbers with a size of 0 or more"
        )
    if not 0 <= score <= 1:
        raise BadInput(f"{where} has the score {score}: it must be between 0 and 1")


def image_key(image: str) -> str:
    """The key of an image in a results file: the stem of its file name; a number without leading zeros."""
    name = image.replace("\\", "/").rpartition("/")[2]
    stem = Path(name).stem if Path(name).suffix[1:].lower() in host.IMAGE_SUFFIXES else name
    return str(int(stem)) if stem.isdecimal() else stem


def images_by_key(source: str, images: Sequence[Path]) -> dict[str, Path]:
    """The images by their key.

    Raises:
        BadInput: two images have the same one.
    """
    found: dict[str, Path] = {}
    for image in dict.fromkeys(images):
        for key in {image.stem, image_key(image.name)}:
            if found.setdefault(key, image) != image:
                raise BadInput(
                    f"teacher={source}: the images {found[key]} and {image} have the same name, so boxes cannot be "
                    "assigned to them: give each image a name of its own"
                )
    return found


def read_mapping(mapping: str | Path | None, names: Mapping[int, str]) -> dict[str, int] | None:
    """The data's class index of each class of the teacher's, from a YAML file such as `person: pedestrian`.

    Raises:
        BadInput: the file cannot be read, or names a class that the data does not have.
    """
    if mapping is None:
        return None
    try:
        content = load_yaml(Path(mapping).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise BadInput(f"teacher_classes={mapping} cannot be read ({host.one_line(e)[:120]}): give a YAML file") from e
    if not isinstance(content, dict) or not content:
        raise BadInput(
            f"teacher_classes={mapping} must map the teacher's classes to the data's, for example person: pedestrian"
        )
    index = {folded(str(name)): i for i, name in names.items()}
    for theirs, ours in content.items():
        if folded(str(ours)) not in index:
            raise BadInput(
                f"teacher_classes={mapping} maps {short(theirs)} to {short(ours)}, which is not a class of the data: "
                f"choose from {listed(names.values())}"
            )
    return {folded(str(theirs)): index[folded(str(ours))] for theirs, ours in content.items()}


def class_index(
    source: str,
    category: int | str,
    own_names: Mapping[Any, str],
    names: Mapping[int, str],
    mapping: Mapping[str, int] | None,
) -> int | None:
    """The data's class index of a file's class; None where the data does not have it.

    Raises:
        BadInput: the file has numbers only, and nothing gives their names.
    """
    name = own_names.get(category)
    if mapping is not None:
        return mapping.get(folded(str(category)), mapping.get(folded(str(name))))
    if name is None and not isinstance(category, str):
        if own_names:
            return None
        raise BadInput(
            f"teacher={source} has class numbers without names, for example {category}: give the data's name of each "
            "with teacher_classes=map.yaml, one line NUMBER: NAME for each"
        )
    wanted = folded(str(category if name is None else name))
    return next((i for i, n in names.items() if folded(str(n)) == wanted), None)


def listed(names: Any) -> str:
    """Some names as text, at most five."""
    names = list(map(str, names))
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
