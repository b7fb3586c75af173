"""Which labelled objects a model finds, what the student won and lost, and which images show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torchvision.ops import box_iou

from yolo_mkd.evidence.page.schema import Box, Tally
from yolo_mkd.host.dry import label_of

CONF = 0.25  # Ultralytics' own for predictions
IOU = 0.5  # of a detection with the object that it finds
SHOWN = 3  # images for each of the two rules


def labelled_objects(image: Path, names: Mapping[int, str], task: str, merged: str = "") -> list[Box]:
    """The objects of an image's label file, each as the box around it.

    Args:
        image: the image.
        names: of the classes.
        task: detect, segment, pose or obb: what the rows of the file hold.
        merged: the name of the only class of a single_cls run; empty otherwise.
    """
    file = label_of(image)
    rows = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()] if file.is_file() else []
    found: list[Box] = []
    for label, *values in (row for row in rows if len(row) >= 5):
        numbers = [float(v) for v in values]
        if len(numbers) == 4 or task == "pose":
            x, y, w, h = numbers[:4]
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        else:  # the outline of an object, or the corners of an oriented box
            xs, ys = numbers[::2], numbers[1::2]
            box = [min(xs), min(ys), max(xs), max(ys)]
        name = merged or names.get(int(float(label)), "")
        found.append({"box": [round(min(1.0, max(0.0, v)), 4) for v in box], "name": name, "fate": ""})
    return found


def match(objects: Sequence[Box], detections: Sequence[Box]) -> set[int]:
    """The indices of the objects that detections find, and `hit` of each detection set.

    The detections take objects in the order of their confidence, each the free object of its class that it overlaps
    most, with an IoU of at least 0.5.
    """
    taken: set[int] = set()
    if not objects:
        for found in detections:
            found["hit"] = False
        return taken
    corners = torch.tensor([o["box"] for o in objects])
    for found in sorted(detections, key=lambda d: -d["conf"]):
        overlap = box_iou(torch.tensor([found["box"]]), corners)[0].tolist()
        free = [i for i, o in enumerate(objects) if i not in taken and o["name"] == found["name"]]
        best = max(free, key=lambda i: overlap[i], default=None)
        found["hit"] = best is not None and overlap[best] >= IOU
        if found["hit"] and best is not None:
            taken.add(best)
    return taken


def mark_fates(objects: Sequence[Box], reference: set[int], student: set[int]) -> None:
    """Set `fate` of each object: won, lost or empty."""
    for i, found in enumerate(objects):
        found["fate"] = "won" if i in student - reference else "lost" if i in reference - student else ""


def tally(objects: Sequence[Box], reference: Sequence[bool], student: Sequence[bool]) -> Tally:
    """How many objects were found by the reference and by the student."""
    return {
        "objects": len(objects),
        "reference": sum(reference),
        "student": sum(student),
        "won": sum(o["fate"] == "won" for o in objects),
        "lost": sum(o["fate"] == "lost" for o in objects),
    }


def choose_images(names: Sequence[str], objects: Sequence[Sequence[Box]]) -> list[tuple[int, str]]:
    """The images to show, each with the rule that chose it: those with most objects won, then those with most lost.

    Equal counts are in the order of the file names. Where fewer images than wanted have won or lost objects, those with
    most objects follow.

    Args:
        names: file names of the examined images.
        objects: of each of them, with their fates.
    """

    def count(i: int, fate: str) -> int:
        return sum(o["fate"] == fate for o in objects[i])

    chosen: dict[int, str] = {}
    for fate in ("won", "lost"):
        order = sorted(range(len(names)), key=lambda i: (-count(i, fate), names[i]))
        for i in [i for i in order if i not in chosen and count(i, fate)][:SHOWN]:
            chosen[i] = f"among the {SHOWN} images with most objects {fate}"
    order = sorted(range(len(names)), key=lambda i: (-len(objects[i]), names[i]))
    for i in [i for i in order if i not in chosen][: max(0, 2 * SHOWN - len(chosen))]:
        chosen[i] = "among the images with most objects"
    return list(chosen.items())
