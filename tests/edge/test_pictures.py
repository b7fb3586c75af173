"""Pictures read and letterboxed without OpenCV have the pixels that OpenCV gives."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from yolo_mkd.edge import pictures
from yolo_mkd.edge.bundle import EdgeError


@pytest.fixture
def bare(monkeypatch):
    """Neither OpenCV nor Pillow, as on a device with numpy alone."""
    monkeypatch.setattr(pictures, "cv2", None)
    monkeypatch.setattr(pictures, "Image", None)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "target"),
    [((480, 640), (144, 192)), ((333, 500), (426, 640)), ((96, 128), (480, 640)), ((97, 201), (31, 64)),
     ((480, 640), (240, 320)), ((7, 5), (64, 64)), ((1, 9), (3, 33)), ((500, 375), (1, 2))],
)  # fmt: skip
def test_numpy_resizes_within_one_grey_level_of_opencv(source, target):
    picture = noise(*source)
    theirs = cv2.resize(picture, target[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    ours = pictures.resize_bilinear(picture, *target).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (100, 640), (33, 47), (192, 192)])
@pytest.mark.parametrize("imgsz", [(192, 192), (96, 160)])
def test_letterbox_gives_the_pixels_of_ultralytics(bare, shape, imgsz):
    from ultralytics.data.augment import LetterBox

    picture = noise(*shape)
    theirs = LetterBox(imgsz, auto=False)(image=picture).astype(int)
    ours = pictures.letterbox(picture, imgsz).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1


def test_tensor_is_rgb_planes_from_0_to_1():
    canvas = np.zeros((2, 3, 3), np.uint8)
    canvas[0, 0] = (255, 51, 0)
    given = pictures.to_tensor(canvas)
    assert given.shape == (1, 3, 2, 3) and given.dtype == np.float32
    assert given[0, :, 0, 0].tolist() == [1.0, np.float32(0.2), 0.0]


def test_png_is_lossless_with_and_without_opencv(tmp_path, monkeypatch):
    picture = noise(31, 47)
    pictures.write_png(tmp_path / "a.png", picture)
    assert (pictures.read_picture(tmp_path / "a.png") == picture).all()
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == picture).all()
    monkeypatch.setattr(pictures, "cv2", None)
    assert (pictures.read_picture(tmp_path / "a.png") == picture).all()  # Pillow
    monkeypatch.setattr(pictures, "Image", None)
    assert (pictures.read_picture(tmp_path / "a.png") == picture).all()


def filtered(picture: np.ndarray, kind: int) -> bytes:
    """A PNG whose every line uses one of the five filters, encoded byte by byte as in the PNG specification."""
    height, width, _ = picture.shape
    flat = picture.reshape(height, -1).astype(int)
    lines = b""
    for y in range(height):
        out = bytearray([kind])
        for x in range(3 * width):
            a = flat[y, x - 3] if x >= 3 else 0
            b = flat[y - 1, x] if y else 0
            c = flat[y - 1, x - 3] if y and x >= 3 else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((flat[y, x] - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        lines += bytes(out)
    body = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    packed = zlib.compress(lines)
    body += [(b"tEXt", b"k\0v"), (b"IDAT", packed[:20]), (b"IDAT", packed[20:]), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in body)
    return pictures.PNG_MAGIC + b"".join(chunks)


@pytest.mark.parametrize("kind", range(5))
def test_every_filter_of_png_is_undone(kind):
    picture = noise(9, 7)
    content = filtered(picture, kind)
    assert (cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] == picture).all()
    assert (pictures.read_png(content) == picture).all()


def test_ppm_and_npy_are_read_without_opencv(bare, tmp_path):
    picture = noise(5, 8)
    (tmp_path / "a.ppm").write_bytes(b"P6\n# made by hand\n8 5\n255\n" + picture.tobytes())
    np.save(tmp_path / "a.npy", picture)
    assert (pictures.read_picture(tmp_path / "a.ppm") == picture).all()
    assert (pictures.read_picture(tmp_path / "a.npy") == picture).all()


@pytest.mark.parametrize(
    "content", [b"", b"P6", b"P6 9 9 255\n", b"P6 2 2 65535\n" + bytes(24), b"\xff\xd8\xff\xe0 JPEG"]
)
def test_file_that_numpy_cannot_decode_is_a_one_line_error(bare, tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(EdgeError, match=r"a\.jpg cannot be read as a picture: install opencv-python or pillow"):
        pictures.read_picture(tmp_path / "a.jpg")
    with pytest.raises(EdgeError, match=r"b\.png: no such file"):
        pictures.read_picture(tmp_path / "b.png")


READ = """
import sys
from pathlib import Path
from yolo_mkd.edge import pictures
setattr(pictures, sys.argv[1], None)
for name in sys.argv[2:]:
    try:
        print(pictures.read_picture(Path(name)).shape)
    except pictures.EdgeError as error:
        print(error)
"""


@pytest.mark.parametrize("missing", ["Image", "cv2"])
def test_file_that_opencv_or_pillow_cannot_decode_is_a_one_line_error(tmp_path, missing):
    pictures.write_png(tmp_path / "whole.png", noise(40, 60))
    (tmp_path / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "c.npy").write_bytes(b"no array")
    np.save(tmp_path / "d.npy", np.zeros((4, 4, 3)))  # not of bytes
    names = [str(tmp_path / name) for name in ("whole.png", "a.png", "b.jpg", "c.npy", "d.npy")]
    # a process of its own: Ultralytics replaces Pillow's open where it was imported
    done = subprocess.run([sys.executable, "-c", READ, missing, *names], capture_output=True, text=True)
    first, *others = done.stdout.splitlines()
    assert first == "(40, 60, 3)" and len(others) == 4, done.stderr
    assert all(f"{name} cannot be read as a picture" in line for name, line in zip(names[1:], others, strict=True))


def test_damaged_png_is_a_one_line_error(bare, tmp_path):
    whole = filtered(noise(9, 7), 2)
    for cut in (9, 30, 60, len(whole) - 40):
        (tmp_path / "a.png").write_bytes(whole[:cut])
        with pytest.raises(EdgeError, match=r"a\.png cannot be read"):
            pictures.read_picture(tmp_path / "a.png")


def test_boxes_are_drawn_with_opencv_or_pillow_and_an_error_without(tmp_path, monkeypatch):
    found = [{"name": "cell", "score": 0.9, "box": [4.2, 15.0, 30.0, 40.0]}]
    picture = np.zeros((50, 60, 3), np.uint8)
    for library in ("cv2", "Image"):
        pictures.save_drawing(tmp_path / "a.png", picture, found)
        drawn = pictures.read_png((tmp_path / "a.png").read_bytes())
        assert drawn[30, 4].tolist() == list(pictures.INK) and drawn[30, 15].tolist() == [0, 0, 0]
        monkeypatch.setattr(pictures, library, None)
    assert not picture.any()
    with pytest.raises(EdgeError, match="--save needs OpenCV or Pillow"):
        pictures.save_drawing(tmp_path / "a.png", picture, found)
