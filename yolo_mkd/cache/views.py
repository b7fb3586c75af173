"""Reproducible augmented views of images: each depends on the image, the view's number and the seed only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch

from yolo_mkd.settings import BadInput

Place = tuple[int, int]  # index of the image, number of the view


class Views:
    """A training data set whose pictures, boxes, masks and keypoints are reproducible to the byte.

    `views[index, view]` is a sample of the data set, with its `code` (see `split_code`). Every other attribute is the
    data set's own. Once mosaic is closed, an image has other views, with other codes.

    Attributes:
        dataset: Ultralytics' own.
        views: V, the number of views of an image while mosaic is open; there are V others once it is closed.
        seed: of the views.
        closed: whether mosaic is closed.
    """

    def __init__(self, dataset: Any, views: int, seed: int):
        """Wrap a data set; mosaics then combine any of its images.

        Args:
            dataset: Ultralytics' data set with augmentation, mosaic open.
            views: V, at least 1.
            seed: another seed gives other views; in a DDP run all ranks use the same one.

        Raises:
            BadInput: views is below 1.
        """
        if views < 1:
            raise BadInput(f"views={views} is too few: give 1 or more")
        self.dataset, self.views, self.seed, self.closed = dataset, views, seed, False
        self._prepare_transforms()

    def install(self, loader: Any, epoch: Callable[[], int]) -> None:
        """Make a loader return view `epoch % V` of each image, in its own order, with `code` in each batch.

        Args:
            loader: Ultralytics' training loader of this data set, before its first batch.
            epoch: returns the epoch, from 0, whenever the loader starts again: at first and when mosaic is closed.
        """
        sampler = ViewBatchSampler(loader.batch_sampler.sampler, self.views, epoch)
        # torch's DataLoader refuses to set these two attributes after its __init__, so its __setattr__ is bypassed
        object.__setattr__(loader, "dataset", self)
        object.__setattr__(loader, "batch_sampler", sampler)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        index, view = place
        with random_states_kept():
            self._seed_generators(index, view)
            sample: dict[str, Any] = self.dataset[index]
        sample["code"] = (view + self.views * self.closed) * len(self) + index
        return sample

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not set yet while a worker unpickles this object
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def close_mosaic(self, hyp: Any) -> None:
        """Close mosaic and all that mixes images, as Ultralytics does for a run's last epochs.

        Args:
            hyp: Ultralytics' arguments.
        """
        self.dataset.close_mosaic(hyp)
        self.closed = True
        self._prepare_transforms()

    def _prepare_transforms(self) -> None:
        """Make the transforms depend on the random states only; closing mosaic builds new ones."""
        self._seeded_transforms = []
        for transform in nested_transforms(self.dataset.transforms):
            if hasattr(transform, "buffer_enabled"):
                transform.buffer_enabled = False  # else mosaics combine the images that this process loaded last
            if hasattr(getattr(transform, "transform", None), "set_random_seed"):
                self._seeded_transforms.append(transform.transform)  # albumentations has its own generator

    def _seed_generators(self, index: int, view: int) -> None:
        # 32 bits, which every generator accepts; two views that share a seed are of different images
        seed = int(np.random.SeedSequence([self.seed, index, view, self.closed]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's generator too
        for transform in self._seeded_transforms:
            transform.set_random_seed(seed)


class ViewBatchSampler:
    """Endless batches of (index, view); the view follows the epoch, also for batches that a loader prefetches.

    Attributes:
        sampler: Ultralytics' sampler of one epoch's batches, from which its loader takes their number.
        views: V, the number of views of an image.
        epoch: returns the epoch of the next batch whenever the iteration starts again.
    """

    def __init__(self, sampler: Any, views: int, epoch: Callable[[], int]):
        self.sampler, self.views, self.epoch = sampler, views, epoch

    def __iter__(self) -> Iterator[list[Place]]:
        for epoch in count(self.epoch()):
            if hasattr(self.sampler.sampler, "set_epoch"):  # of a DDP run, whose order depends on nothing else
                self.sampler.sampler.set_epoch(epoch)
            for indices in self.sampler:
                yield [(index, epoch % self.views) for index in indices]


def split_code(code: int, images: int) -> tuple[int, int]:
    """The image and the view that a sample's code stands for.

    Args:
        code: of a sample.
        images: how many the data set has.

    Returns:
        The image's index and the view's key: its number, plus V if mosaic was closed.
    """
    key, index = divmod(code, images)
    return index, key


def shown(views: int, first: int, end: int, closes: int) -> list[int]:
    """The sorted keys of all views that a range of epochs uses: 0 to V-1 with mosaic open, V to 2V-1 once it is closed.

    Args:
        views: V.
        first: the first epoch.
        end: the epoch after the last.
        closes: the epoch from which on mosaic is closed.
    """
    return sorted({epoch % views + (views if epoch >= closes else 0) for epoch in range(first, end)})


def require_fixed_size(args: Any) -> None:
    """Refuse arguments that make a picture depend on more than image, view and seed.

    Args:
        args: Ultralytics' arguments of the run.

    Raises:
        BadInput: the image size would differ from batch to batch.
    """
    if args.rect:
        raise BadInput("rect=True gives each batch its own image size, so views cannot be cached: use rect=False")
    if args.multi_scale:
        raise BadInput(
            f"multi_scale={args.multi_scale} gives each batch its own image size, so views cannot be cached: "
            "use multi_scale=0"
        )


def nested_transforms(transform: Any) -> Iterator[Any]:
    """A transform of Ultralytics and all those inside it, depth first; one that is shared comes repeatedly."""
    yield transform
    inner: Iterable[Any] = [*getattr(transform, "transforms", ()), getattr(transform, "pre_transform", None)]
    for each in inner:
        if each is not None:
            yield from nested_transforms(each)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch on the CPU at the end of the context."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
