"""Drawings of hardware (hex nut, washer, gear, bolt, wing nut) and of distractors that resemble it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

UP = np.array([0.0, 0.0, 1.0])  # from the bench to the camera

# colours are B G R in 0..1; the last number is the gloss of the finish
FINISHES = (
    ((0.74, 0.74, 0.72), 0.9),  # zinc
    ((0.50, 0.50, 0.50), 0.7),  # steel
    ((0.36, 0.62, 0.76), 0.8),  # brass
    ((0.32, 0.45, 0.70), 0.7),  # copper
    ((0.16, 0.16, 0.17), 0.4),  # black oxide
    ((0.22, 0.34, 0.50), 0.2),  # rust
    ((0.62, 0.34, 0.20), 0.6),  # blue anodised
    ((0.22, 0.20, 0.62), 0.5),  # red lacquer
    ((0.82, 0.86, 0.88), 0.3),  # nylon
)


@dataclass
class Shape:
    """An object on the bench, seen from above.

    Attributes:
        mask: 1 where the object is, else 0, n n.
        relief: height of its upper face, 0..1, n n.
        thick: its thickness, in its own widths.
        bevel: width of its rounded edge, in its own widths.
    """

    mask: np.ndarray
    relief: np.ndarray
    thick: float
    bevel: float = 0.03


# Each shape is as large as the square [-1, 1] allows


def grid(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, radius and angle over the square [-1.05, 1.05], each n n."""
    y, x = np.mgrid[-1.05 : 1.05 : n * 1j, -1.05 : 1.05 : n * 1j].astype(np.float32)
    return x, y, np.hypot(x, y), np.arctan2(y, x)


def hexagon(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Hexagonal distance from the centre: 1 on the edge of the hexagon with corner radius 1."""
    return radius * np.cos((angle + np.pi / 6) % (np.pi / 3) - np.pi / 6) / np.cos(np.pi / 6)


def hex_nut(n: int, rng: Generator) -> Shape:
    """A hexagon with a threaded hole."""
    _, _, r, a = grid(n)
    hole = rng.uniform(0.42, 0.58)
    relief = np.clip((1.02 - r) / 0.2, 0.5, 1) * np.clip((r - hole) / 0.1, 0.3, 1)
    return Shape((hexagon(r, a) < 1) & (r > hole), relief, rng.uniform(0.25, 0.45))


def washer(n: int, rng: Generator) -> Shape:
    """A thin flat ring."""
    _, _, r, _ = grid(n)
    hole = rng.uniform(0.38, 0.64)
    return Shape((r < 1) & (r > hole), np.ones_like(r), rng.uniform(0.04, 0.1), bevel=0.02)


def gear(n: int, rng: Generator) -> Shape:
    """A toothed ring, with or without a recess."""
    _, _, r, a = grid(n)
    teeth, depth, hole = int(rng.integers(9, 19)), rng.uniform(0.13, 0.22), rng.uniform(0.18, 0.45)
    edge = 1 - depth / 2 + depth / 2 * np.clip(2.2 * np.sin(teeth * a), -1, 1)
    recess = (r > hole + 0.12) & (r < 0.92 - depth - 0.08) & (rng.random() < 0.6)
    return Shape((r < edge) & (r > hole), np.where(recess, 0.6, 1.0), rng.uniform(0.12, 0.3))


def bolt(n: int, rng: Generator) -> Shape:
    """A bolt on its side: a head of three facets and a threaded shank."""
    x, y, _, _ = grid(n)
    head, half, shank = rng.uniform(0.25, 0.5), rng.uniform(0.3, 0.55), rng.uniform(0.45, 0.62)
    shank *= half
    in_head = (x < head - 1) & (np.abs(y) < half)
    in_shank = (x >= head - 1) & (x < 1 - 0.25 * np.abs(y)) & (np.abs(y) < shank)
    pitch = rng.uniform(0.09, 0.16)
    thread = 0.85 + 0.15 * np.sin(2 * np.pi * (x + 0.4 * y) / pitch) * (x > rng.uniform(-0.6, 0.0))
    round_ = np.sqrt(np.clip(1 - (y / shank) ** 2, 0, 1)) * thread * 0.7
    facet = np.where(np.abs(y) < half / 2, 1.0, 1 - 1.2 * (np.abs(y) - half / 2))
    return Shape(in_head | in_shank, np.where(in_head, facet, round_), 0.0)


def wing_nut(n: int, rng: Generator) -> Shape:
    """A small ring between two wings."""
    x, y, r, _ = grid(n)
    body, hole = rng.uniform(0.36, 0.46), rng.uniform(0.18, 0.26)
    reach, broad, lift = rng.uniform(0.28, 0.34), rng.uniform(0.2, 0.3), rng.uniform(-0.15, 0.15)
    wings = ((np.abs(x) - (1 - reach)) / reach) ** 2 + ((y - lift * np.sign(x)) / broad) ** 2 < 1
    neck = (np.abs(x) < 1 - reach) & (np.abs(y - lift * x) < broad * 0.6)
    relief = np.where(r < body, 0.75, 1.0) * np.where(wings, 1 - 0.5 * (y / broad) ** 2, 1)
    return Shape((wings | neck | (r < body)) & (r > hole), relief, rng.uniform(0.2, 0.4), bevel=0.05)


def coin(n: int, rng: Generator) -> Shape:
    """A disc with a rim and a mark, no hole."""
    x, y, r, _ = grid(n)
    mark = np.sin(rng.uniform(4, 9) * x + 3) * np.sin(rng.uniform(4, 9) * y) > 0.3
    return Shape(r < 1, np.where(r > 0.85, 1, 0.85 + 0.08 * (mark & (r < 0.7))), 0.06, bevel=0.02)


def o_ring(n: int, rng: Generator) -> Shape:
    """A rubber ring, round where a washer is flat."""
    _, _, r, _ = grid(n)
    half = rng.uniform(0.09, 0.2)
    return Shape(np.abs(r - 1 + half) < half, np.sqrt(np.clip(1 - ((r - 1 + half) / half) ** 2, 0, 1)), 0.08)


def bottle_cap(n: int, rng: Generator) -> Shape:
    """A crimped disc: a gear's edge with no hole."""
    _, _, r, a = grid(n)
    return Shape(r < 0.95 + 0.05 * np.cos(21 * a), np.where(r > 0.8, 0.7, 1.0), rng.uniform(0.12, 0.22))


def hex_plug(n: int, rng: Generator) -> Shape:
    """A solid hexagon: a nut with no hole."""
    _, _, r, a = grid(n)
    return Shape(hexagon(r, a) < 1, np.where(r < rng.uniform(0.4, 0.7), 0.7, 1.0), rng.uniform(0.2, 0.4))


def pin(n: int, rng: Generator) -> Shape:
    """A smooth rod with rounded ends: a bolt with neither head nor thread."""
    x, y, _, _ = grid(n)
    half = rng.uniform(0.1, 0.3)
    rod = np.hypot(np.maximum(np.abs(x) - 1 + half, 0), y)
    return Shape(rod < half, np.sqrt(np.clip(1 - (rod / half) ** 2, 0, 1)) * half * 2, 0.0)


Draw = Callable[[int, Generator], Shape]  # from a grid's side n and the image's random stream
HARDWARE: tuple[Draw, ...] = (hex_nut, washer, gear, bolt, wing_nut)
DISTRACTORS: tuple[Draw, ...] = (coin, o_ring, bottle_cap, hex_plug, pin)


def render_shape(draw: Draw, width: float, light: np.ndarray, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotate, tilt, extrude, colour and light a shape: colour P P 3 and coverage P P, both in 0..1."""
    n = int(max(48, 3 * width))
    shape = draw(n, rng)
    mask = shape.mask.astype(np.uint8)
    rounded = np.clip(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (shape.bevel * n), 0, 1)
    height = (shape.relief * np.sqrt(rounded)).astype(np.float32)

    # drawn at twice the size and downsampled at the end, which smooths the edges
    turn, axis = rng.uniform(0, 2 * np.pi, 2)
    tilt = rng.uniform(0.55, 1) if shape.thick else 1.0
    matrix = rotation(axis) @ np.diag([1, tilt]) @ rotation(turn) * (2 * width / n * 1.05)
    wall = rotation(axis) @ [0, -2 * width * shape.thick * np.sqrt(1 - tilt**2)]
    side = 2 * int(width * 1.12 + np.abs(wall).max() / 2 + 3)
    move = side / 2 - matrix @ [n / 2, n / 2] + wall / 2
    affine = np.hstack([matrix, move[:, None]])
    top = cv2.warpAffine(mask.astype(np.float32), affine, (side, side))
    height = cv2.warpAffine(height, affine, (side, side))
    whole = cv2.dilate(top, line_kernel(-wall))

    colour, shine = FINISHES[rng.integers(len(FINISHES))]
    paint = np.clip(np.array(colour) * rng.uniform(0.75, 1.2) + rng.normal(0, 0.03, 3), 0.02, 1)
    grain = rng.standard_normal((side, side), np.float32)
    worn = 1 + rng.uniform(0.05, 0.3) * (smooth_noise(rng, side, (5, 5)) + 0.3 * grain)
    upper = shade_surface(height * width * 0.28, light, shine, paint)
    lower = shade_surface(cv2.GaussianBlur(whole, (0, 0), 2 + width * 0.08) * width * 0.8, light, 0.1, paint * 0.6)
    picture = (lower + (upper - lower) * top[..., None]) * worn[..., None]
    return downsample(picture).clip(0, 1), downsample(whole)


def downsample(image: np.ndarray) -> np.ndarray:
    """The image at half its size: each pixel is the mean of four."""
    return cv2.resize(image.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def rotation(angle: float) -> np.ndarray:
    """2 2 rotation matrix."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def line_kernel(vector: np.ndarray) -> np.ndarray:
    """A kernel that smears a mask along a vector [pixels]."""
    reach = int(np.ceil(np.abs(vector).max()))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    cv2.line(kernel, (reach, reach), (reach - round(vector[0]), reach - round(vector[1])), 1)
    return kernel


def shade_surface(height: np.ndarray, light: np.ndarray, shine: float, paint: np.ndarray) -> np.ndarray:
    """The colour, H W 3, of a surface of this height [pixels] under the lamp: ambient, diffuse and highlight."""
    slope_x, slope_y = cv2.Sobel(height, -1, 1, 0, scale=0.125), cv2.Sobel(height, -1, 0, 1, scale=0.125)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    diffuse = np.clip((light[2] - slope_x * light[0] - slope_y * light[1]) / length, 0, None)
    half = light + UP
    half = half / np.linalg.norm(half)  # halfway between the lamp and the camera above
    gloss = np.clip((half[2] - slope_x * half[0] - slope_y * half[1]) / length, 0, None) ** 24
    return (0.35 + 0.75 * diffuse)[..., None] * paint + (0.45 * shine * gloss)[..., None]


def smooth_noise(rng: Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise, side side, of standard deviation about 1, interpolated from a coarse grid of random values."""
    grain = rng.normal(0, 1, cells).astype(np.float32)
    return cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)
