"""How the student starts: from its own file, or from the weights of its trained teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from yolo_mkd import host
from yolo_mkd.cache.unlabelled import training_images
from yolo_mkd.distill.matching import shared_classes
from yolo_mkd.distill.sources import is_detector
from yolo_mkd.host import LOGGER
from yolo_mkd.host.spec import MERGED_NAMES
from yolo_mkd.settings import BadInput

FILE = "student-start.pt"  # in the chain's folder


def refuse_start(start: str, model: str, teachers: Sequence[str]) -> None:
    """Refuse a start from a teacher that these models do not allow.

    Args:
        start: `slice`, `fitted` or `teacher`; `plain` is always possible.
        model: the student's file.
        teachers: the teachers' files.

    Raises:
        BadInput: the student has weights of its own, or there is no single model to take them from.
    """
    if start == "plain":
        return
    if model.endswith(".pt"):
        raise BadInput(f"start={start} takes the weights of the teacher, not those of model={model}: give its .yaml")
    if len(teachers) > 1 or not is_detector(teachers[0]):
        raise BadInput(f"start={start} takes its weights from one model: give one .pt as teacher=, or start=plain")


def fill(start: str, student: Any, teacher: Any, names: Mapping[int, str]) -> tuple[float, list[host.LayerPair]]:
    """Fill a student from its teacher.

    Args:
        start: `slice` or `fitted` for the channels that matter, `teacher` for a copy.
        student: a detector.
        teacher: a trained one.
        names: the student's class names by index; rows of the head are matched by name.

    Returns:
        The share of the student's parameters and statistics that was taken, and the convolutions of a slice.

    Raises:
        BadInput: the two are not of the same family, or for a copy not of the same shapes.
    """
    pairs = dict(shared_classes(names, teacher.names))
    classes = [pairs.get(i, host.ABSENT) for i in range(host.head(student).nc)]
    try:
        return host.start_from(student, teacher, classes, sliced=start != "teacher")
    except BadInput as error:
        raise BadInput(str(error).replace("start=slice", f"start={start}", 1)) from error


def possible_slice(model: str, teachers: Sequence[str], student: Any, names: Mapping[int, str]) -> float:
    """The share that `start=slice` takes from the teacher of a student without weights; 0 where it is not possible.

    Args:
        model: the student's file.
        teachers: the files of the trained teachers.
        student: a detector; it is changed.
        names: its class names by index.
    """
    if model.endswith(".pt") or len(teachers) != 1 or not is_detector(teachers[0]):
        return 0.0
    try:
        return fill("slice", student, host.load_detector("teacher", teachers[0], transformer=True), names)[0]
    except BadInput:
        return 0.0


def write_start(folder: Path, start: str, model: str, teacher: str, arguments: Mapping[str, Any]) -> tuple[str, float]:
    """Write a student that starts from its teacher, as a stock checkpoint.

    Args:
        folder: where to write it.
        start: `slice`; `fitted`, a slice whose layers are fitted to the teacher's; or `teacher`.
        model: the student's .yaml.
        teacher: its teacher's .pt.
        arguments: Ultralytics' train arguments.

    Returns:
        The file, and the share of the student's parameters and statistics that the teacher gave.

    Raises:
        BadInput: no training image can be read to fit the layers on.
    """
    data = host.check_data(arguments["data"], fetch=False)
    names = dict(MERGED_NAMES) if arguments.get("single_cls") else dict(data["names"])
    with torch.random.fork_rng(devices=[]):  # what the teacher does not give is drawn as the seed has it
        torch.manual_seed(int(arguments.get("seed") or 0))
        student = host.build(model, len(names), data["channels"], data.get("kpt_shape"))
    student.names = names
    source = host.load_detector("teacher", teacher, transformer=True)
    taken, pairs = fill(start, student, source, names)
    if start == "fitted":
        shown = host.share_of(training_images(data), arguments.get("fraction", 1.0), "train")
        images = host.read_squares(shown, arguments.get("imgsz", 640))
        if images is None:
            raise BadInput(f"start=fitted needs training images, and none of data={arguments['data']} can be read")
        explained = host.reconstruct(student, source, pairs, images)
        LOGGER.info(
            f"M-KD: the student's {len(pairs)} layers were fitted to the teacher's on {len(images)} images: "
            f"they explain {explained:.0%} of the variance of its outputs"
        )
    file = folder / FILE
    host.write_tensors(file, {"model": student, "epoch": -1})
    return str(file), taken
