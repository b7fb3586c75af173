"""Load and augment unlabelled images with Ultralytics' own data set and loader, separately from the labelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.build import build_dataloader
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOCAL_RANK

KEYPOINT = 3  # x, y and visibility


class Unlabelled(YOLODataset):
    """Ultralytics' data set for images without labels: no label files or caches are read or written.

    Mosaics combine images of this data set only.
    """

    def get_img_files(self, img_path: Any) -> list[str]:
        """The files as given; `fraction` applies to the labelled images only."""
        return list(img_path)

    def get_labels(self) -> list[dict[str, Any]]:
        """Empty labels for every image; the images' shapes are read when they are loaded."""
        points = (0, *self.data.get("kpt_shape", (0, KEYPOINT))) if self.use_keypoints else None
        return [
            {
                "im_file": file,
                "shape": None,
                "cls": np.zeros((0, 1), np.float32),
                "bboxes": np.zeros((0, 4), np.float32),
                "segments": [],
                "keypoints": None if points is None else np.zeros(points, np.float32),
                "normalized": True,
                "bbox_format": "xywh",
            }
            for file in self.im_files
        ]


def unlabelled_dataset(trainer: Any, files: list[Path], imgsz: int) -> Unlabelled:
    """The data set of a trainer's unlabelled images, with the same augmentation as the labelled ones.

    Args:
        trainer: an Ultralytics trainer with its data set loaded.
        files: the images.
        imgsz: image size [pixels].
    """
    args = trainer.args
    return Unlabelled(
        img_path=[str(f) for f in files],
        imgsz=imgsz,
        batch_size=trainer.batch_size,
        augment=True,
        hyp=args,
        cache=args.cache or None,
        stride=int(trainer.stride),
        prefix="unlabelled: ",
        task=args.task,
        data=trainer.data,
    )


def unlabelled_loader(trainer: Any, dataset: Any, batch: int) -> Any:
    """An endless loader, built as Ultralytics builds its own, whose batches all have the same size.

    Args:
        trainer: an Ultralytics trainer.
        dataset: of unlabelled images.
        batch: images a batch, on this rank.
    """
    return build_dataloader(
        dataset,
        batch=batch,
        workers=trainer.args.workers,
        shuffle=True,
        rank=LOCAL_RANK,
        drop_last=True,
        device=trainer.device,
    )
