"""Scenes: a small synthetic set of hardware on a messy workbench, generated from a seed.

Five classes of similar shape (nut, washer and gear are rings; a wing nut contains one) lie among distractors without
a class (coin, O-ring, bottle cap, hex plug, pin), under uneven light, shadows, blur and noise. Every image is a
function of (seed, split, index), so a larger set begins with the images of a smaller one. The labels are made from the
visible pixels of each part, for the task that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.random import Generator

from yolo_mkd.demo.labels import EXTREMES, FLIPPED, label_line
from yolo_mkd.demo.shapes import DISTRACTORS, HARDWARE, Draw, line_kernel, render_shape, rotation, smooth_noise
from yolo_mkd.settings import BadInput

SIDE = 320  # pixels, both ways
CLASSES = ("hex nut", "washer", "gear", "bolt", "wing nut")
SPLITS = ("train", "val")
LEAST_VISIBLE = 0.3  # a part of which less is visible has no label
LEAST_SIDE = 5  # pixels: a part with a narrower or lower visible box has no label


@dataclass
class Bench:
    """An image while it is drawn.

    Attributes:
        image: B G R in 0..1, SIDE SIDE 3.
        owner: number of the part on top, SIDE SIDE; 0 for the bench and for distractors.
        light: unit vector towards the lamp, x right, y down, z up.
        shade: darkness of shadows, 0..1.
    """

    image: np.ndarray
    owner: np.ndarray
    light: np.ndarray
    shade: float


def make(folder: str | Path, train: int = 480, val: int = 120, seed: int = 0, task: str = "detect") -> Path:
    """Write a data set in Ultralytics' layout.

    Args:
        folder: to write to; new or empty.
        train: number of training images.
        val: number of validation images, of other random streams than the training images.
        seed: the same seed writes the same bytes.
        task: detect, segment, pose or obb: what the labels hold; the images are the same.

    Returns:
        The path of scenes.yaml, written last: if it exists, the set is complete.

    Raises:
        BadInput: the folder is not empty, or a count is below one.
    """
    folder, counts = Path(folder).resolve(), dict(zip(SPLITS, (train, val), strict=True))
    for split, count in counts.items():
        if count < 1:
            raise BadInput(f"{split}={count} must be at least 1, for example {split}=100")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"folder={folder} is not empty: remove it or choose another folder")
    for split, count in counts.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            boxes, owner = write_image(images, seed, split, index)
            lines = [label_line(task, box, owner == int(box[5])) for box in boxes]
            (labels / f"{index:05d}.txt").write_text("".join(lines), encoding="utf-8")
    names = dict(enumerate(CLASSES))
    document = {"path": str(folder), **{split: f"images/{split}" for split in SPLITS}, "names": names}
    if task == "pose":
        document |= {"kpt_shape": [len(EXTREMES), 3], "flip_idx": [EXTREMES.index(name) for name in FLIPPED]}
    path = folder / "scenes.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def make_unlabelled(folder: str | Path, count: int, seed: int) -> Path:
    """Write images without labels to a new folder, and return it; a seed of its own gives images that no set has."""
    folder = Path(folder).resolve()
    folder.mkdir(parents=True)
    for index in range(count):
        write_image(folder, seed, "train", index)
    return folder


def write_image(folder: Path, seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Write one image to a folder, and return its boxes and owners as `scene` does."""
    image, boxes, owner = scene(seed, split, index)
    cv2.imwrite(str(folder / f"{index:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return boxes, owner


def scene(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        seed: of the whole set.
        split: `train` or `val`.
        index: of the image in its split.

    Returns:
        image: B G R, SIDE SIDE 3 uint8.
        boxes: class, x1, y1, x2, y2 of the visible pixels of each labelled part, and its number, N 6.
        owner: the number of the part on top, SIDE SIDE; 0 where there is none.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)
    light = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    owner = np.zeros((SIDE, SIDE), np.int32)
    bench = Bench(SURFACES[rng.integers(len(SURFACES))](rng).astype(np.float32), owner, light, rng.uniform(0.4, 0.8))
    scatter_clutter(bench, rng)

    near = np.exp(rng.uniform(np.log(20), np.log(70)))  # the camera's distance: the width of a typical part [pixels]
    parts = int(np.clip(rng.poisson(9 * (30 / near) ** 0.5 + 1), 2, 20))
    distractors = int(rng.integers(2, 7))
    piles = rng.uniform(0.15 * SIDE, 0.85 * SIDE, (2, 2))
    kinds = [int(k) for k in rng.integers(len(CLASSES), size=parts)] + [-1] * distractors
    drawn = []  # class, number, and its pixels without occlusion
    for number, kind in enumerate(rng.permutation(kinds), start=1):
        loose = rng.random() < 0.6
        centre = rng.uniform(0, SIDE, 2) if loose else piles[rng.integers(2)] + rng.normal(0, near, 2)
        width = float(np.clip(near * np.exp(rng.normal(0, 0.3)), 10, 130))
        draw = DISTRACTORS[rng.integers(len(DISTRACTORS))] if kind < 0 else HARDWARE[kind]
        area = place_object(bench, draw, centre, width, 0 if kind < 0 else number, rng)
        if kind >= 0:
            drawn.append((kind, number, area))
    found = [(number, visible_box(bench.owner, kind, number, area)) for kind, number, area in drawn]
    boxes = [[*box, number] for number, box in found if box is not None]
    return photograph(bench, rng), np.array(boxes, np.float32).reshape(-1, 6), bench.owner


def visible_box(owner: np.ndarray, kind: int, number: int, area: int) -> np.ndarray | None:
    """The box around the visible pixels of a part (class, x1, y1, x2, y2), or None if too little is visible."""
    ys, xs = np.nonzero(owner == number)
    if len(xs) < LEAST_VISIBLE * area or len(xs) == 0:
        return None
    x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return np.array([kind, x1, y1, x2, y2]) if min(x2 - x1, y2 - y1) >= LEAST_SIDE else None


def place_object(bench: Bench, draw: Draw, centre: np.ndarray, width: float, number: int, rng: Generator) -> int:
    """Draw one object with its shadow, with random rotation, tilt and finish.

    Args:
        bench: changed in place.
        draw: its shape.
        centre: x, y [pixels].
        width: before the tilt [pixels].
        number: written to `owner` where the object is on top.
        rng: of this image.

    Returns:
        The number of pixels that it covers, those outside the image included.
    """
    colour, alpha = render_shape(draw, width, bench.light, rng)
    x, y = (int(v) - alpha.shape[0] // 2 for v in centre)
    reach = bench.light[:2] / bench.light[2] * width * 0.12 + 1.5 * bench.light[:2]
    pad = int(np.abs(reach).max()) + max(2, int(width * 0.12))
    blocked = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    blocked = np.roll(blocked, (-round(reach[1]), -round(reach[0])), (0, 1))
    blocked = cv2.GaussianBlur(blocked, (0, 0), 0.8 + width * 0.03)
    there, here = overlap(x - pad, y - pad, blocked.shape[0])
    bench.image[there] *= 1 - bench.shade * blocked[here][..., None]
    there, here = overlap(x, y, alpha.shape[0])
    bench.image[there] += (colour[here] - bench.image[there]) * alpha[here][..., None]
    bench.owner[there][alpha[here] > 0.5] = number
    return int((alpha > 0.5).sum())


def overlap(x: int, y: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The overlap of a square patch at x, y with the image: rows and columns of the image, and of the patch."""
    x1, y1, x2, y2 = (min(max(v, 0), SIDE) for v in (x, y, x + size, y + size))
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))


# Surfaces of the bench, B G R in 0..1


def wood(rng: Generator) -> np.ndarray:
    """Planks with grain and seams."""
    tint = np.array([0.32, 0.48, 0.64]) * rng.uniform(0.6, 1.25)
    grain = 0.10 * smooth_noise(rng, SIDE, (int(rng.integers(60, 140)), 4)) + 0.06 * smooth_noise(rng, SIDE, (20, 2))
    image = tint * (1 + grain)[..., None]
    plank = int(rng.integers(50, 140))
    for y in range(int(rng.integers(plank)), SIDE, plank):
        image[y : y + plank] *= rng.uniform(0.85, 1.15)
        cv2.line(image, (0, y), (SIDE, y), (tint * 0.35).tolist(), 1, cv2.LINE_AA)
    return rotated(image, rng)


def concrete(rng: Generator) -> np.ndarray:
    """Grey concrete with speckles of every size."""
    grain = np.sum([0.06 * smooth_noise(rng, SIDE, (n, n)) for n in (4, 12, 40, 110, 250)], axis=0)
    return np.full((SIDE, SIDE, 3), rng.uniform(0.35, 0.65)) * (1 + grain)[..., None] * rng.uniform(0.93, 1.07, 3)


def cutting_mat(rng: Generator) -> np.ndarray:
    """A cutting mat: one colour with a printed grid."""
    tint = muted_colour(rng, 0.12, 0.55)
    image = tint * (1 + 0.05 * smooth_noise(rng, SIDE, (90, 90)))[..., None]
    step, paint = int(rng.integers(18, 46)), (tint + rng.uniform(0.1, 0.35)).tolist()
    for v in range(int(rng.integers(step)), SIDE, step):
        cv2.line(image, (v, 0), (v, SIDE), paint, 1, cv2.LINE_AA)
        cv2.line(image, (0, v), (SIDE, v), paint, 1, cv2.LINE_AA)
    return rotated(image, rng)


def metal_sheet(rng: Generator) -> np.ndarray:
    """Brushed metal, in the colour of the hardware."""
    grain = 0.07 * smooth_noise(rng, SIDE, (260, 3)) + 0.1 * smooth_noise(rng, SIDE, (3, 3))
    return rotated(np.array([0.62, 0.6, 0.58]) * rng.uniform(0.6, 1.2) * (1 + grain)[..., None], rng)


def pegboard(rng: Generator) -> np.ndarray:
    """A board with round holes, each similar to a washer."""
    tint = np.array([0.42, 0.55, 0.66]) * rng.uniform(0.6, 1.3)
    image = tint * (1 + 0.06 * smooth_noise(rng, SIDE, (120, 120)))[..., None]
    step = int(rng.integers(26, 60))
    radius = step * rng.uniform(0.1, 0.2)
    for x in range(step // 2, SIDE, step):
        for y in range(step // 2, SIDE, step):
            cv2.circle(image, (x * 8, y * 8), int(radius * 10), (tint * 1.2).tolist(), -1, cv2.LINE_AA, 3)
            cv2.circle(image, (x * 8, y * 8), int(radius * 8), (tint * 0.25).tolist(), -1, cv2.LINE_AA, 3)
    return rotated(image, rng)


SURFACES: tuple[Callable[[Generator], np.ndarray], ...] = (wood, wood, concrete, cutting_mat, metal_sheet, pegboard)


def muted_colour(rng: Generator, low: float, high: float) -> np.ndarray:
    """A slightly tinted grey between low and high, as of paper, ink or plastic."""
    return np.clip(rng.uniform(low, high) * (1 + rng.normal(0, 0.22, 3)), 0, 1)


def rotated(image: np.ndarray, rng: Generator) -> np.ndarray:
    """The surface at a random angle, mirrored at its edges."""
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(0, 360), rng.uniform(1, 1.3))
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def scatter_clutter(bench: Bench, rng: Generator) -> None:
    """Draw flat clutter: pencil and marker lines, drawn circles, tape, swarf, drilled holes and stains."""
    image = bench.image
    for _ in range(rng.integers(0, 3)):  # stains
        spot = np.zeros((SIDE, SIDE), np.float32)
        cv2.circle(spot, tuple(rng.integers(0, SIDE, 2).tolist()), int(rng.integers(15, 60)), 1, -1)
        image *= (1 - rng.uniform(0.1, 0.4) * cv2.GaussianBlur(spot, (0, 0), rng.uniform(1, 8)))[..., None]
    for _ in range(rng.integers(0, 3)):  # tape and paper
        box = cv2.boxPoints((rng.uniform(0, SIDE, 2).tolist(), rng.uniform(15, 110, 2).tolist(), rng.uniform(0, 180)))
        shade, cover = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
        cv2.fillConvexPoly(shade, (box + 2).astype(np.int32), 1)
        cv2.fillConvexPoly(cover, box.astype(np.int32), rng.uniform(0.6, 1))
        image *= 1 - 0.35 * cv2.GaussianBlur(shade, (0, 0), 1.5)[..., None]
        image += (muted_colour(rng, 0.3, 0.9) - image) * cv2.GaussianBlur(cover, (0, 0), 0.7)[..., None]
    for _ in range(rng.integers(0, 5)):  # handwriting: smooth strokes, one end to the other
        anchors = rng.uniform(0, SIDE, 2) + np.cumsum(rng.normal(0, 14, (int(rng.integers(3, 12)), 2)), 0)
        line = cv2.resize(anchors, (2, 12 * len(anchors)), interpolation=cv2.INTER_CUBIC)
        pen, colour = int(rng.integers(1, 3)), muted_colour(rng, 0.05, 0.8).tolist()
        cv2.polylines(image, [line.astype(np.int32)], False, colour, pen, cv2.LINE_AA)
    for _ in range(rng.integers(0, 5)):  # drawn or punched circles and hexagons
        centre, radius = rng.integers(0, SIDE, 2).tolist(), int(rng.integers(4, 28))
        colour, pen = muted_colour(rng, 0.05, 0.7).tolist(), int(rng.choice([-1, 1, 2]))
        if rng.random() < 0.6:
            cv2.circle(image, centre, radius if pen > 0 else radius // 3 + 1, colour, pen, cv2.LINE_AA)
        else:
            corners = cv2.ellipse2Poly(centre, (radius, radius), int(rng.integers(60)), 0, 360, 60)
            cv2.polylines(image, [corners], True, colour, abs(pen), cv2.LINE_AA)
    for _ in range(rng.integers(0, 50)):  # swarf
        start, colour = rng.uniform(0, SIDE, 2), muted_colour(rng, 0.1, 0.9)
        curl = np.cumsum(rotation(rng.uniform(-0.7, 0.7))[0] * rng.normal(0, 3, (4, 2)), 0)
        cv2.polylines(image, [(start + curl).astype(np.int32)], False, colour.tolist(), 1, cv2.LINE_AA)


def photograph(bench: Bench, rng: Generator) -> np.ndarray:
    """Light the bench unevenly, add a large shadow, blur and noise: the image as uint8."""
    image = bench.image
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    slope = rng.uniform(0, 0.45) / np.hypot(*bench.light[:2])
    lamp = 1 + slope * (x * bench.light[0] + y * bench.light[1]) - rng.uniform(0, 0.2) * (x**2 + y**2)
    if rng.random() < 0.4:  # the shadow of an arm, a tool or a shelf
        cover = np.zeros((SIDE, SIDE), np.float32)
        corners = rng.uniform(-0.3 * SIDE, 1.3 * SIDE, (4, 2))
        cv2.fillPoly(cover, [corners.astype(np.int32)], 1)
        lamp = lamp * (1 - rng.uniform(0.25, 0.6) * cv2.GaussianBlur(cover, (0, 0), rng.uniform(3, 14)))
    image = image * (lamp[..., None] * rng.uniform(0.6, 1.25) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), np.exp(rng.uniform(np.log(0.25), np.log(1.1))))
    if rng.random() < 0.15:  # motion blur
        kernel = line_kernel(rng.uniform(-3, 3, 2)).astype(np.float32)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    grain = rng.standard_normal(image.shape, np.float32)
    image += grain * np.float32(rng.uniform(0.005, 0.03))
    return (image.clip(0, 1) * 255).round().astype(np.uint8)
