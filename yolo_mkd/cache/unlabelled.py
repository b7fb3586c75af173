"""Unlabelled images: find them, filter them, and join them to the labelled batches.

A teacher needs no labels. The detection loss is computed on the labelled images only, so an unlabelled image never
counts as background; the knowledge terms are computed on all images.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from yolo_mkd import host
from yolo_mkd.cache.views import Views
from yolo_mkd.distill.boxes.teacher import separate
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.host.pool import unlabelled_dataset, unlabelled_loader
from yolo_mkd.settings import BadInput

NAMED = 5  # unreadable files that the log lists; the others are counted
EXAMINED = 32  # images on which the teacher's confidence is measured before training
CERTAIN = 0.25  # the lowest score that Ultralytics' predict shows by default
HARDLY = 0.1  # our choice: share of confident images below which a warning is logged
FRESH = 10**6  # views of an image without a cache: more than the epochs of any run, so no view repeats


class LoaderPosition(TypedDict):
    """Where the loader of unlabelled images is.

    Attributes:
        closed: whether mosaic is closed.
        generator: state of its generator before its iterator was made.
        first: the epoch in which that was.
        drawn: batches since then.
        now: state of its generator.
    """

    closed: bool
    generator: torch.Tensor
    first: int
    drawn: int
    now: torch.Tensor


@dataclass(frozen=True)
class FilterReport:
    """The unlabelled images to train on, and those that were left out.

    Attributes:
        kept: the images to train on.
        held_out: images whose bytes or pixels are in val or test as well.
        unreadable: files that are damaged or not images.
    """

    kept: list[Path]
    held_out: list[Path]
    unreadable: list[Path]

    def __str__(self) -> str:
        text = f"{len(self.kept)} unlabelled images"
        if self.held_out:
            text += f"; {len(self.held_out)} left out, which are in val or test as well"
        if self.unreadable:
            named = ", ".join(str(p) for p in self.unreadable[:NAMED])
            text += f"; {len(self.unreadable)} cannot be read: {named}"
            text += ", ..." if len(self.unreadable) > NAMED else ""
        return text


def find_images(unlabelled: Any) -> list[Path]:
    """The images that `unlabelled=` names.

    Args:
        unlabelled: a folder, a text file that lists images, or a data set's YAML, whose train split is used.

    Raises:
        BadInput: the path does not exist or has no images.
    """
    place = Path(str(unlabelled))
    if place.suffix in {".yaml", ".yml"}:
        split = host.check_data(str(unlabelled), "unlabelled")["train"]
        places = [Path(p) for p in (split if isinstance(split, list) else [split])]
    elif place.exists():
        places = [place]
    else:
        raise BadInput(f"unlabelled={unlabelled}: no such folder, list or data set: give a folder of images")
    found = [image for p in places for image in host.images_in(p)]
    if not found:
        raise BadInput(f"unlabelled={unlabelled}: no images in it: give a folder of images")
    return found


def held_out(data: dict[str, Any]) -> list[Path]:
    """The images of a data set's val and test splits.

    Args:
        data: as `host.check_data` returns it.
    """
    places = [p for split in ("val", "test") if data.get(split) for p in listed(data[split])]
    return [image for p in places for image in host.images_in(Path(p))]


def training_images(data: dict[str, Any]) -> list[Path]:
    """The images of a data set's train split, as its loader names them.

    Args:
        data: as `host.check_data` returns it.
    """
    return [image for place in listed(data["train"]) for image in host.images_in(Path(place))]


def listed(places: str | list[str]) -> list[str]:
    """One place or several as a list."""
    return places if isinstance(places, list) else [places]


def filter_images(images: Sequence[Path], kept_out: Iterable[Path]) -> FilterReport:
    """Leave out images that cannot be read and images of val or test.

    Args:
        images: the unlabelled images.
        kept_out: images of val and test; an image with the same bytes or the same pixels is left out.
    """
    known_bytes, known_pixels = set(), defaultdict(set)
    for file in kept_out:
        data = file.read_bytes()
        known_bytes.add(digest(data))
        if (pixels := decode_image(data)) is not None:
            known_pixels[pixels.shape].add(digest(pixels))
    kept, twins, unreadable = [], [], []
    for file in dict.fromkeys(images):
        data = file.read_bytes() if file.is_file() else b""
        pixels = decode_image(data)
        if pixels is None:
            unreadable.append(file)
        elif digest(data) in known_bytes or digest(pixels) in known_pixels.get(pixels.shape, ()):
            twins.append(file)
        else:
            kept.append(file)
    return FilterReport(kept, twins, unreadable)


def decode_image(data: bytes) -> np.ndarray | None:
    """An image's pixels, H W 3; None if the bytes are not a complete image."""
    import cv2

    if not data:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if pixels is None else np.asarray(pixels)


def digest(content: bytes | np.ndarray) -> bytes:
    """SHA-256 of bytes or pixels."""
    return hashlib.sha256(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()).digest()


def unlabelled_images(unlabelled: Any, data: dict[str, Any], args: Any) -> list[Path]:
    """The unlabelled images to train on; how many were left out is logged.

    Args:
        unlabelled: as `find_images` takes it.
        data: the labelled data set, as `host.check_data` returns it.
        args: Ultralytics' arguments of the run.

    Raises:
        BadInput: no image is left, or `rect=True` would give each batch its own image size.
    """
    if args.rect:
        raise BadInput(
            "rect=True gives each batch its own image size, which unlabelled images cannot follow: use rect=False"
        )
    report = filter_images(find_images(unlabelled), held_out(data))
    if not report.kept:
        raise BadInput(f"unlabelled={unlabelled}: {report}: no image is left to train on, give others")
    host.LOGGER.info(f"M-KD: {report}")
    return report.kept


class UnlabelledLoader:
    """The unlabelled images of a training, and the batches that they are joined to.

    Attributes:
        views: the data set, whose augmentation is independent of the labelled images'.
        batch: unlabelled images in each batch, on this rank.
    """

    def __init__(self, trainer: Any, files: list[Path], options: dict[str, Any], epoch: Callable[[], int]):
        """Make the loader.

        Args:
            trainer: an Ultralytics trainer with its loaders built.
            files: the images.
            options: M-KD's arguments, resolved.
            epoch: returns the current epoch when the loader starts again.

        Raises:
            BadInput: there are fewer images than a batch takes.
        """
        ratio, cached = float(options["unlabelled_ratio"]), bool(options["record"])
        self.batch = max(1, round(ratio * trainer.train_loader.batch_size))
        if len(files) < self.batch:
            raise BadInput(
                f"unlabelled= has {len(files)} images, fewer than the {self.batch} of a batch: "
                "give more images, a smaller unlabelled_ratio= or a smaller batch="
            )
        dataset = unlabelled_dataset(trainer, files, options["teacher_imgsz"] or trainer.args.imgsz)
        views = options["views"] if cached else FRESH
        self.views = Views(dataset, views, seed=0 if cached else trainer.args.seed)
        self._loader = unlabelled_loader(trainer, dataset, self.batch)
        self.views.install(self._loader, epoch)
        self._batches = self._endless()
        self._trainer, self._epoch = trainer, epoch
        self._begin()

    def _begin(self) -> None:
        """Note the state of the generator before the loader's next iterator is made."""
        self._began, self._first, self._drawn = self._loader.generator.get_state(), 0, 0
        self._saved: LoaderPosition | None = None

    def position(self) -> LoaderPosition:
        """Where the loader is, for a resumed run."""
        now = self._loader.generator.get_state()
        return {
            "closed": self.views.closed,
            "generator": self._began,
            "first": self._first,
            "drawn": self._drawn,
            "now": now,
        }

    def restore(self, position: LoaderPosition) -> None:
        """Continue from a position with the next batch, once mosaic is as it was or has been closed."""
        self._saved = position

    def _continue(self, saved: LoaderPosition) -> None:
        """Draw the order of the images before a kill again, and leave out the batches that were used."""
        if saved["closed"] != self.views.closed:  # mosaic was closed just now, which made a new iterator
            saved = {**saved, "generator": saved["now"], "first": self._epoch(), "drawn": 0}
        self._loader.generator.set_state(saved["generator"].cpu())
        self._begin()
        sampler = host.ContinuedSampler(self._loader.batch_sampler, saved["drawn"], self._trainer, saved["first"])
        object.__setattr__(self._loader, "batch_sampler", sampler)
        self._first, self._drawn = saved["first"], saved["drawn"]

    def keys(self, first: int, end: int, closes: int, batches: int) -> list[int]:
        """The keys of the views that a run with a teacher cache uses, numbered as in `cache.views.shown`.

        Args:
            first: the first epoch.
            end: the epoch after the last with distillation.
            closes: the epoch from which on mosaic is closed.
            batches: of an epoch.
        """
        batches_per_pass = len(self._loader)  # over all unlabelled images
        views = self.views.views
        before = math.ceil(max(0, min(closes, end) - first) * batches / batches_per_pass)  # passes with mosaic open
        after = math.ceil(max(0, end - max(closes, first)) * batches / batches_per_pass)  # and once it is closed
        keys = {(first + i) % views for i in range(before)} | {(closes + i) % views + views for i in range(after)}
        return sorted(keys)

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self._loader

    def close_mosaic(self, hyp: Any) -> None:
        """Close mosaic, as for the labelled images."""
        self.views.close_mosaic(hyp)
        self._loader.reset()
        self._batches = self._endless()
        saved = self._saved
        self._begin()
        self._saved = saved

    def log_confidence(self, teachers: Iterable[LiveTeacher], device: torch.device) -> None:
        """Log before training how confident the teachers are on these images."""
        for teacher in teachers:
            text, doubtful = confidence_text(teacher.name, self.confident(teacher, device))
            log = host.LOGGER.warning if doubtful else host.LOGGER.info
            log(f"M-KD: {text}")

    def confident(self, teacher: LiveTeacher, device: torch.device) -> tuple[int, int] | None:
        """Measure a teacher's confidence on augmented unlabelled images.

        Returns:
            The number of images in which the best class score is at least 0.25, and the number of images examined;
            None if the teacher has no scores at anchors.
        """
        count = min(EXAMINED, len(self.views))
        shown = [self.views[i * len(self.views) // count, 0]["img"] for i in range(count)]
        found = 0
        for images in torch.stack(shown).split(self.batch):
            kt = teacher.infer(images.to(device).float() / 255)
            if not kt.branches:
                return None
            found += int((kt.best_scores() >= CERTAIN).sum())
        return found, count

    def join(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Append the next unlabelled images to a batch, before it is moved to the device.

        Returns:
            The batch with all images, the labels of the first `labelled` of them, and the view codes of the others as
            `pool_code`.
        """
        if self._saved is not None:
            self._continue(self._saved)
        if not self._drawn:
            self._first = self._epoch()
        more = next(self._batches)
        self._drawn += 1
        joined = {**batch, "labelled": len(batch["img"]), "img": torch.cat([batch["img"], more["img"]])}
        for key in ("im_file", "ori_shape", "resized_shape"):
            joined[key] = [*batch[key], *more[key]]
        joined["pool_code"] = more["code"]
        if "teacher_boxes" in batch:
            theirs = separate(more)["teacher_boxes"]
            theirs[:, 0] += len(batch["img"])
            joined["teacher_boxes"] = torch.cat([batch["teacher_boxes"], theirs])
        return joined


def confidence_text(name: str, confident: tuple[int, int] | None) -> tuple[str, bool]:
    """A teacher's confidence on the unlabelled images as one line of text, and whether it is a warning.

    Args:
        name: the teacher's.
        confident: as `UnlabelledLoader.confident` returns it.
    """
    if confident is None:
        return f"{name} has no scores at anchors, so unlabelled images count as much as labelled ones", False
    found, count = confident
    text = f"{name} detects an object with a score of {CERTAIN} or more in {found} of {count} unlabelled images"
    if found >= HARDLY * count:
        return text, False
    advice = "the teacher is rarely confident on them: they look unlike its training data or show other classes"
    return f"{text}: {advice}", True
