"""Augmented views of images that can be drawn again: each a function of image, view number and seed alone."""

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
    """A data set for training whose pictures, boxes, masks and keypoints are the same to the byte wherever drawn.

    `views[index, view]` is a sample as the data set's own, with its `code`; `decode` reads that. All else is passed on
    to the data set. Once mosaic is closed, an image has other views, of other codes.

    Attributes:
        dataset: Ultralytics' own.
        views: V, how many views an image has while mosaic is open, and as many once it is closed.
        seed: of the views.
        closed: whether mosaic is closed.
    """

    def __init__(self, dataset: Any, views: int, seed: int):
        """Take over a data set, whose mosaics then have partners from all its images.

        Args:
            dataset: Ultralytics' data set with augmentation, mosaic open.
            views: V, at least 1.
            seed: another seed gives other views; of a DDP run, that of all ranks.

        Raises:
            BadInput: views is below 1.
        """
        if views < 1:
            raise BadInput(f"views={views} is too few: give 1 or more")
        self.dataset, self.views, self.seed, self.closed = dataset, views, seed, False
        self._take_over()

    def install(self, loader: Any, epoch: Callable[[], int]) -> None:
        """Let a loader give view `epoch % V` of each image, in its own order, with `code` in each batch.

        Args:
            loader: Ultralytics' for training on this data set, before its first batch.
            epoch: tells the epoch, from 0, whenever the loader begins anew: at the start and when mosaic is closed.
        """
        passes = ViewBatchSampler(loader.batch_sampler.sampler, self.views, epoch)
        object.__setattr__(loader, "dataset", self)  # torch lets nobody set these two once a loader is made
        object.__setattr__(loader, "batch_sampler", passes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        index, view = place
        with random_states_kept():
            self._sow(index, view)
            sample: dict[str, Any] = self.dataset[index]
        sample["code"] = (view + self.views * self.closed) * len(self) + index
        return sample

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def close_mosaic(self, hyp: Any) -> None:
        """Close mosaic and all that mixes images, as Ultralytics does for a run's last epochs.

        Args:
            hyp: Ultralytics' arguments.
        """
        self.dataset.close_mosaic(hyp)
        self.closed = True
        self._take_over()

    def _take_over(self) -> None:
        """Make the transforms, which closing mosaic builds anew, depend on the random states alone."""
        self._sown = []
        for part in walk(self.dataset.transforms):
            if hasattr(part, "buffer_enabled"):
                part.buffer_enabled = False  # else partners are the images that this process has loaded last
            if hasattr(getattr(part, "transform", None), "set_random_seed"):
                self._sown.append(part.transform)  # albumentations, which has a generator of its own

    def _sow(self, index: int, view: int) -> None:
        # 32 bits, which all generators take: where two views share a seed, they are still of different images
        seed = int(np.random.SeedSequence([self.seed, index, view, self.closed]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's generator too
        for transform in self._sown:
            transform.set_random_seed(seed)


class ViewBatchSampler:
    """Batches without end, each index with the view of its epoch, whenever a loader asks for them in advance.

    Attributes:
        sampler: of one epoch's batches; Ultralytics' loader asks it for their number.
    """

    def __init__(self, sampler: Any, views: int, epoch: Callable[[], int]):
        self.sampler, self.views, self.epoch = sampler, views, epoch

    def __iter__(self) -> Iterator[list[Place]]:
        for epoch in count(self.epoch()):
            for indices in self.sampler:
                yield [(index, epoch % self.views) for index in indices]


def decode(code: int, images: int) -> tuple[int, int]:
    """Which picture a code stands for.

    Args:
        code: of a sample.
        images: how many the data set has.

    Returns:
        The image's index, and the view's number, plus V if mosaic was closed.
    """
    key, index = divmod(code, images)
    return index, key


def shown(views: int, first: int, end: int, closes: int) -> list[int]:
    """The keys of all views that some epochs show, each once: 0 to V-1 with mosaic open, V to 2V-1 once it is closed.

    Args:
        views: V.
        first: the first epoch.
        end: the epoch after the last.
        closes: the epoch from which on mosaic is closed.
    """
    return sorted({e % views + views * (e >= closes) for e in range(first, end)})


def require_fixed_size(args: Any) -> None:
    """Refuse what makes a picture depend on more than image, view and seed.

    Args:
        args: Ultralytics' arguments of the run.

    Raises:
        BadInput: images would have sizes of their batch.
    """
    if args.rect:
        raise BadInput("rect=True gives each batch a size of its own, so views cannot be drawn again: use rect=False")
    if args.multi_scale:
        raise BadInput(
            f"multi_scale={args.multi_scale} gives each batch a size of its own, so views cannot be drawn "
            "again: use multi_scale=0"
        )


def walk(transform: Any) -> Iterator[Any]:
    """A transform of Ultralytics and all that it is made of; what two parts share comes twice."""
    yield transform
    parts: Iterable[Any] = [*getattr(transform, "transforms", ()), getattr(transform, "pre_transform", None)]
    for part in parts:
        if part is not None:
            yield from walk(part)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Give the random states of Python, numpy and torch on the CPU back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
