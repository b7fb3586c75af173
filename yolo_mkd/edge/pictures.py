"""Reading and letterboxing of pictures: with OpenCV or Pillow, else PNG, PPM and NPY with numpy alone.

A picture is H W 3, RGB, uint8. The letterbox gives the result of Ultralytics': grey 114, bilinear, centred.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .bundle import EdgeError

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]
try:
    from PIL import Image, ImageDraw
except ImportError:
    Image = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

GREY = 114
INK = (230, 30, 90)
FIXED = 2048  # OpenCV's bilinear weights are whole numbers of 1/2048
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def read_picture(path: Path) -> Picture:
    """Read a picture with OpenCV or Pillow; without both, PNG (8-bit RGB), PPM (P6) and NPY (H W 3, RGB).

    Raises:
        EdgeError: the file is missing, or cannot be decoded here.
    """
    if not path.is_file():
        raise EdgeError(f"{path}: no such file")
    try:
        picture = decode_file(path)
    except (OSError, SyntaxError, ValueError):  # what numpy and Pillow raise for a damaged file
        picture = None
    if picture is None or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise EdgeError(f"{path} cannot be read as a picture: install opencv-python or pillow, or give PNG, PPM or NPY")
    return np.ascontiguousarray(picture)


def decode_file(path: Path) -> Picture | None:
    """Decode NPY with numpy, other files with OpenCV, else Pillow, else this module; None where none of them can."""
    if path.suffix == ".npy":
        array: Picture = np.load(str(path), allow_pickle=False)
        return array
    if cv2 is not None:
        found = cv2.imread(str(path))
        return None if found is None else found[..., ::-1]
    if Image is not None:
        return np.asarray(Image.open(path).convert("RGB"))
    content = path.read_bytes()
    return read_png(content) if content.startswith(PNG_MAGIC) else read_ppm(content)


def read_ppm(content: bytes) -> Picture | None:
    """Decode a binary PPM of 8 bits; None for other contents."""
    fields: list[int] = []
    at = 2
    while content[:2] == b"P6" and len(fields) < 3 and at < len(content):
        end = at + 1
        if content[at : at + 1] == b"#":
            end = content.find(b"\n", at) % (len(content) + 1)
        elif content[at : at + 1].isdigit():
            while content[end : end + 1].isdigit():
                end += 1
            fields.append(int(content[at:end]))
        at = end
    if len(fields) < 3 or fields[2] != 255 or len(content) - at - 1 < fields[0] * fields[1] * 3:
        return None
    return np.frombuffer(content, np.uint8, fields[0] * fields[1] * 3, at + 1).reshape(fields[1], fields[0], 3)


def read_png(content: bytes) -> Picture | None:
    """Decode a PNG of 8-bit RGB that is not interlaced; None for other contents."""
    at, packed, header = len(PNG_MAGIC), b"", b""
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + size]
        packed += body if kind == b"IDAT" else b""
        header = body if kind == b"IHDR" else header
        at += size + 12
    try:
        width, height, *kind_of = struct.unpack(">IIBBBBB", header)
        lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 3 * width)
    except (struct.error, zlib.error, ValueError):  # damaged, or lines of another size
        return None
    if kind_of != [8, 2, 0, 0, 0]:
        return None
    picture = np.zeros((height + 1, width + 1, 3), np.uint8)  # a border of zeros above and to the left
    for y in range(height):
        line, out, above = lines[y, 1:].reshape(width, 3), picture[y + 1], picture[y]
        if lines[y, 0] == 0:
            out[1:] = line
        elif lines[y, 0] == 1:
            out[1:] = np.cumsum(line, 0, dtype=np.uint8)
        elif lines[y, 0] == 2:
            out[1:] = line + above[1:]
        else:
            unfilter(line, out, above, paeth=lines[y, 0] == 4)
    return picture[1:, 1:]


def unfilter(line: Picture, out: Picture, above: Picture, paeth: bool) -> None:
    """Undo PNG's filters 3 (mean) and 4 (Paeth), in which each byte needs the one before it."""
    for channel in range(3):
        up, left, corner, done = above[1:, channel].tolist(), 0, 0, []
        for value, b in zip(line[:, channel].tolist(), up):
            if paeth:
                distances = abs(b - corner), abs(left - corner), abs(left + b - 2 * corner)
                nearest = min(distances)
                guess = left if distances[0] == nearest else b if distances[1] == nearest else corner
            else:
                guess = (left + b) // 2
            left, corner = (value + guess) & 255, b
            done.append(left)
        out[1:, channel] = done


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture as a PNG that `read_png` decodes fast: each line is stored as its difference to the one above."""
    height, width, _ = picture.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = 2
    flat = picture.reshape(height, -1)
    lines[:, 1:] = flat - np.vstack([np.zeros_like(flat[:1]), flat[:-1]])
    content = PNG_MAGIC
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


def save_drawing(path: Path, picture: Picture, detections: list[dict[str, Any]]) -> None:
    """Draw boxes with their names and scores, and save the picture as a PNG.

    Raises:
        EdgeError: neither OpenCV nor Pillow is installed.
    """
    labels = [([round(v) for v in d["box"]], f"{d['name']} {d['score']:.2f}") for d in detections]
    if cv2 is not None:
        canvas = picture.copy()
        for (x1, y1, x2, y2), label in labels:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), INK, 2)
            cv2.putText(canvas, label, (x1, max(y1 - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
    elif Image is not None:
        image = Image.fromarray(picture)
        pen = ImageDraw.Draw(image)
        for (x1, y1, x2, y2), label in labels:
            pen.rectangle((x1, y1, x2, y2), outline=INK, width=2)
            pen.text((x1, max(y1 - 12, 0)), label, fill=INK)
        canvas = np.asarray(image)
    else:
        raise EdgeError("--save needs OpenCV or Pillow: pip install pillow")
    write_png(path, canvas)


def letterbox_placement(shape: tuple[int, int], imgsz: tuple[int, int]) -> tuple[int, int, int, int]:
    """Position of a picture in its letterbox: height and width, top and left margin [pixels]."""
    gain = min(imgsz[0] / shape[0], imgsz[1] / shape[1])
    height, width = (max(round(side * gain), 1) for side in shape)
    return height, width, round((imgsz[0] - height) / 2 - 0.1), round((imgsz[1] - width) / 2 - 0.1)


def letterbox(picture: Picture, imgsz: tuple[int, int], own: bool = False) -> Picture:
    """Fit a picture into a grey canvas of the model's size: H W 3, RGB.

    Args:
        picture: H W 3, RGB.
        imgsz: height and width of the canvas.
        own: resize with numpy even where OpenCV is installed.
    """
    height, width, top, left = letterbox_placement((picture.shape[0], picture.shape[1]), imgsz)
    canvas = np.full((imgsz[0], imgsz[1], 3), GREY, np.uint8)
    if (height, width) != picture.shape[:2]:
        if cv2 is None or own:
            picture = resize_bilinear(picture, height, width)
        else:
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas[top : top + height, left : left + width] = picture
    return canvas


def to_tensor(canvas: Picture) -> NDArray[np.float32]:
    """Convert a canvas to the model's input: 1 3 H W, RGB, 0..1."""
    planes = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], dtype=np.float32)
    return planes / np.float32(255)


def resize_bilinear(picture: Picture, height: int, width: int) -> Picture:
    """Resize bilinearly in OpenCV's integer arithmetic: 11 bits of weight per side, rounded once at the end."""
    left, right, far = neighbours(picture.shape[1], width)
    above, below, low = neighbours(picture.shape[0], height)
    rows = np.unique(np.concatenate([above, below]))
    part = picture[rows].astype(np.int32)
    across = (part[:, left] * (FIXED - far)[:, None] + part[:, right] * far[:, None]) >> 4  # rows W 3
    low = low[:, None, None]
    upper, lower = across[np.searchsorted(rows, above)], across[np.searchsorted(rows, below)]
    return ((((upper * (FIXED - low)) >> 16) + ((lower * low) >> 16) + 2) >> 2).astype(np.uint8)


def neighbours(size: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """The two source pixels of each pixel along one side, and the second one's weight in 1/2048.

    Args:
        size: pixels of the source.
        wanted: pixels of the result.
    """
    place = ((np.arange(wanted) + 0.5) * (size / wanted) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    weight = np.rint((place - first.astype(np.float32)) * np.float32(FIXED)).astype(np.int32)
    return np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1), weight
