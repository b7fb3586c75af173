"""Images and their labels: boxes that move through augmentation, the anchors they get, and the share of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from ultralytics.data.utils import IMG_FORMATS, exif_size, get_split_fraction
from ultralytics.utils.instance import Instances
from ultralytics.utils.loss import E2ELoss
from ultralytics.utils.tal import bbox2dist, make_anchors

IMAGE_SUFFIXES = IMG_FORMATS
CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], np.float32)  # of a box, from its centre


def image_shape(file: Path) -> tuple[int, int]:
    """Height and width of an image [pixels], turned as its EXIF data say, as Ultralytics loads it."""
    with Image.open(file) as image:
        width, height = exif_size(image)
    return height, width


class LabelsWithBoxes:
    """Ultralytics' `get_image_and_label` of a data set, with further boxes beside the labels of each image.

    Augmentation then moves and crops them exactly as it does the labels. Their class is a code of 10^6 or more.
    """

    def __init__(self, dataset: Any, boxes: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        """Prepare a data set's images.

        Args:
            dataset: Ultralytics' data set.
            boxes: for each image's path its N further boxes, N 4 (centre and size as shares), and their codes, N.
        """
        self.dataset, self.boxes = dataset, boxes
        # Ultralytics takes boxes from outlines where there are any, so then each box needs one
        self.outlined = any(len(label["segments"]) for label in dataset.labels)

    def __call__(self, index: int) -> dict[str, Any]:
        """The image, its labels and the further boxes, before augmentation."""
        label: dict[str, Any] = type(self.dataset).get_image_and_label(self.dataset, index)
        found = self.boxes.get(str(Path(label["im_file"])))
        if found is None:
            return label
        boxes, codes = found
        points = label["instances"].segments.shape[1]
        segments = outlines(boxes, points) if self.outlined else np.zeros((0, points, 2), np.float32)
        own = Instances(boxes.copy(), segments, None, bbox_format="xywh", normalized=True)
        label["instances"] = Instances.concatenate([label["instances"], own])
        label["cls"] = np.concatenate([label["cls"], codes[:, None].astype(np.float32)])
        return label


def outlines(boxes: np.ndarray, points: int) -> np.ndarray:
    """The outline of each box as a polygon of `points` points: N 4 in, N points 2 out."""
    corners = boxes[:, None, :2] + CORNERS * boxes[:, None, 2:]
    return corners[:, np.arange(points) * len(CORNERS) // points]


def add_boxes(dataset: Any, boxes: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Let a data set load further boxes with its images; see `LabelsWithBoxes`."""
    dataset.get_image_and_label = LabelsWithBoxes(dataset, boxes)


@dataclass
class Assigned:
    """Which box each of A anchors of a branch is responsible for.

    Attributes:
        row: B A, index of the anchor's box among those given; 0 where it has none.
        target: B A in [0, 1], the class target that the detection loss would have there; 0 where it has no box.
        distances: B 4 A, the box's sides from the anchor in stride units.
    """

    row: Tensor
    target: Tensor
    distances: Tensor


@torch.no_grad()
def assign(detection: Any, preds: Any, image: Tensor, labels: Tensor, boxes: Tensor) -> dict[str, Assigned]:
    """Give boxes to anchors as the student's own detection loss gives its labels.

    Args:
        detection: the student's criterion.
        preds: its raw head outputs for B images.
        image: N, ascending, the image of each box.
        labels: N, the student's class index of each box.
        boxes: N 4, centre and size as shares of the image.

    Returns:
        The assignment of each branch of the head.
    """
    raw = preds[1] if isinstance(preds, tuple) else preds
    if isinstance(detection, E2ELoss):
        losses, outputs = {"one2many": detection.one2many, "one2one": detection.one2one}, raw
    else:
        losses, outputs = {"one2many": detection}, {"one2many": raw.get("one2many", raw)}
    return {name: assign_branch(loss, outputs[name], image, labels, boxes) for name, loss in losses.items()}


def assign_branch(loss: Any, raw: dict[str, Any], image: Tensor, labels: Tensor, boxes: Tensor) -> Assigned:
    """The assignment of one branch, with the steps of `v8DetectionLoss.get_assigned_targets_and_loss`."""
    scores, sides = raw["scores"].float().mT.contiguous(), raw["boxes"].float().mT.contiguous()  # B A C, B A 4K
    anchors, strides = make_anchors(raw["feats"], loss.stride, 0.5)  # A 2, A 1
    anchors, strides = anchors.float(), strides.float()
    size = torch.tensor(raw["feats"][0].shape[2:], device=scores.device) * loss.stride[0]
    rows = torch.cat([image.view(-1, 1).float(), labels.view(-1, 1).float(), boxes.float()], 1)
    padded = loss.preprocess(rows, len(scores), scale_tensor=size[[1, 0, 1, 0]].float())
    given, corners = padded.split((1, 4), 2)
    valid = corners.sum(2, keepdim=True).gt(0.0)
    decoded = loss.bbox_decode(anchors, sides) * strides
    _, target_boxes, target_scores, foreground, index = loss.assigner(
        scores.sigmoid(), decoded, anchors * strides, given, corners, valid
    )
    first = torch.searchsorted(image.contiguous().long(), torch.arange(len(scores), device=image.device))  # B
    row = torch.where(foreground, first[:, None] + index.long(), 0)
    distances = bbox2dist(anchors, target_boxes / strides) if len(boxes) else torch.zeros_like(target_boxes)
    return Assigned(row, target_scores.amax(2) * foreground, (distances * foreground[..., None]).mT)


def share_of(images: Sequence[Path], fraction: Any, split: str) -> list[Path]:
    """The images of a split that Ultralytics' argument `fraction` leaves, the first ones.

    Args:
        images: all of the split.
        fraction: a ratio, a number of images, or a list of those for train, val and test; one value is for train.
        split: `train`, `val` or `test`.
    """
    share = get_split_fraction(fraction, split)
    count = share if isinstance(share, int) else max(1, round(len(images) * share))
    return list(images[:count])
