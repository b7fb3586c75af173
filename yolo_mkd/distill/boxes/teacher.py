"""The teacher that is only boxes: soft class and box targets at the anchors that the student's assigner gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_mkd import host
from yolo_mkd.distill.boxes.files import Detections, listed, read_detections
from yolo_mkd.distill.boxes.fusion import fuse, objects
from yolo_mkd.distill.matching import Match
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.settings import BadInput

FIRST_CODE = 10**6  # classes of labels are below; a float32, as which labels travel, is exact up to 16 million
LAST_CODE = 2**24
LEAST, MOST = 1e-9, 1 - 2**-12  # scores are clipped to these, so that logits are finite


class BoxTeacher:
    """Boxes from files, as a teacher.

    An image without boxes counts as one in which the teacher found nothing.

    Attributes:
        name: of the teacher, in tables and logs.
        spec: what it has: classes, and the student's strides and branches.
        match: with the student; set by `connect`.
        detection: the student's criterion, whose assigner gives boxes to anchors; set before training.
        first: code of its first box.
    """

    def __init__(self, name: str, spec: ModelSpec, images: Mapping[str, tuple[np.ndarray, np.ndarray]], first: int):
        """Take the objects of all images.

        Args:
            name: of the teacher.
            spec: see above.
            images: for each image's path the boxes of its objects, N 4, and their scores, N C.
            first: code of the first box.

        Raises:
            BadInput: there are too many boxes to give each a code.
        """
        self.name, self.spec, self.first = name, spec, first
        self.match: Match | None = None
        self.detection: Any = None
        self.boxes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        count = 0
        for image, (boxes, _) in images.items():
            self.boxes[image] = boxes, first + count + np.arange(len(boxes))
            count += len(boxes)
        if first + count > LAST_CODE:
            raise BadInput(f"teacher={name} has {count:,} boxes, too many: leave out those with low scores")
        scores = [s for _, s in images.values()]
        self._scores = torch.from_numpy(np.concatenate(scores)) if scores else torch.zeros(0, len(spec.names))
        self.last = first + count

    def connect(self, match: Match) -> None:
        """Take which of its classes the student has."""
        self.match = match

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        """The targets of a batch: `teacher_boxes` of `separate` and the student's raw outputs `preds` are needed."""
        assert self.match is not None and self.detection is not None, "connect the teacher first"
        scores, labels, rows = self._of_batch(batch["teacher_boxes"])
        preds, student = batch["preds"], self.match.student
        _, levels = host.outputs(preds, student.strides, student.reg_max)
        found = host.assign(self.detection, preds, rows[:, 0], labels, rows[:, 2:])
        return Knowledge({name: targets(scores, each) for name, each in found.items()}, levels=levels)

    def _of_batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scores, the student's class index and the rows of this teacher's boxes in a batch, image by image."""
        assert self.match is not None
        own = rows[(rows[:, 1] >= self.first) & (rows[:, 1] < self.last)]
        own = own[own[:, 0].argsort(stable=True)]
        scores = self._scores.to(rows.device)[own[:, 1].long() - self.first]  # N C
        shared = self.match.shared_logits(scores[..., None])[..., 0]  # N C', of the classes that both have
        best, label = shared.max(1)
        ours = torch.tensor([s for s, _ in self.match.classes], device=rows.device)
        kept = best > 0  # of a class that this run trains
        return scores[kept], ours[label[kept]], own[kept]

    def prefetch(self, batch: dict[str, Any]) -> None:
        """Does nothing: boxes are there already."""

    def flush(self) -> None:
        """Boxes are on disk already."""


def targets(scores: Tensor, assigned: host.Assigned) -> Outputs:
    """Dense outputs of one branch: scores of N objects, N C, and their anchors in."""
    images, anchors = assigned.row.shape
    if not len(scores):
        q = assigned.target.new_zeros(images, scores.shape[1], anchors)
    else:
        q = (scores[assigned.row] * assigned.target[..., None]).mT  # B C A
    return Outputs(q.clamp(LEAST, MOST).logit(), assigned.distances)


def beside(teachers: Sequence[BoxTeacher]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each image's path the boxes of all teachers and their codes."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for teacher in teachers:
        for image, both in teacher.boxes.items():
            pairs = [found[image], both] if image in found else [both]
            found[image] = np.concatenate([b for b, _ in pairs]), np.concatenate([c for _, c in pairs])
    return found


def separate(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose teachers' boxes are apart from its labels.

    Returns:
        The batch with `teacher_boxes`, M 6: image, code, and centre and size as shares of the image.
    """
    code = batch["cls"].view(-1)
    theirs = code >= FIRST_CODE
    rows = torch.cat([batch["batch_idx"].view(-1, 1), code[:, None], batch["bboxes"][:, :4]], 1)[theirs]
    own = {key: batch[key][~theirs] for key in ("cls", "bboxes", "batch_idx")}
    return {**batch, **own, "teacher_boxes": rows.float()}


def open_boxes(
    files: Sequence[str],
    images: Sequence[Path],
    student: ModelSpec,
    names: Mapping[int, str],
    mappings: Sequence[str | None],
    first: int = FIRST_CODE,
) -> BoxTeacher:
    """The teacher of one or more files of boxes; several are fused.

    Args:
        files: JSON files or folders of label files.
        images: labelled and unlabelled training images.
        student: the student's spec.
        names: the data's class names.
        mappings: the file that maps each one's classes, or None.
        first: code of its first box.

    Raises:
        BadInput: a file cannot be used.
    """
    found = [read_detections(file, images, names, mapping) for file, mapping in zip(files, mappings, strict=True)]
    for file, each in zip(files, found, strict=True):
        if each.foreign:
            host.LOGGER.warning(
                f"M-KD: teacher={file}: {each.foreign.total():,} boxes are left out, the data has no class "
                f"{listed(each.foreign)}; teacher_classes= can map them"
            )
    rows = one_set(found)
    made = {image: objects(each, max(names) + 1) for image, each in rows.items()}
    count, classes = sum(len(boxes) for boxes, _ in made.values()), frozenset[int]().union(*(d.classes for d in found))
    source = "boxes" if len(files) == 1 else f"boxes of {len(files)} detectors, fused"
    spec = replace(
        student,
        names={i: n for i, n in names.items() if i in classes},
        reg_max=1,
        layers={},
        parameters=0,
        merged={},
        origin=f"{source}: {count:,} objects in {len(made):,} of {len(set(images)):,} images",
    )
    return BoxTeacher(" + ".join(Path(f).name for f in files), spec, made, first)


def one_set(found: Sequence[Detections]) -> dict[str, Any]:
    """The boxes of each image: those of the only file, or of all files fused."""
    if len(found) == 1:
        return dict(found[0].images)
    knows = [each.classes for each in found]
    images = dict.fromkeys(image for each in found for image in each.images)
    return {image: fuse([each.images.get(image) for each in found], knows) for image in images}
