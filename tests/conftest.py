"""A small detector that really detects, trained once a session: red, green and blue rectangles on noise."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

COLOURS = {"red": (40, 40, 230), "green": (40, 230, 40), "blue": (230, 40, 40)}  # BGR: a swap of channels changes class
IMGSZ = 96


@dataclass(frozen=True)
class TinyDetector:
    pt: Path  # plain Ultralytics checkpoint, yolo26 at width 0.1, both heads
    data: Path  # 96 pictures to train on, 16 others as val
    images: list[Path]  # those of val, 96 x 128
    imgsz: int = IMGSZ


def draw(rng: np.random.Generator, height: int = 96, width: int = 128) -> tuple[np.ndarray, list[str]]:
    """One BGR picture with two or three rectangles, and its label lines."""
    picture = rng.integers(90, 140, (height, width, 3), dtype=np.uint8)
    lines = []
    for left in rng.permutation([4, 46, 88])[: rng.integers(2, 4)]:
        cls, w, h, top = rng.integers(3), rng.integers(24, 36), rng.integers(28, 56), rng.integers(4, 36)
        picture[top : top + h, left : left + w] = list(COLOURS.values())[cls]
        lines.append(f"{cls} {(left + w / 2) / width} {(top + h / 2) / height} {w / width} {h / height}")
    return picture, lines


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory: pytest.TempPathFactory) -> TinyDetector:
    import cv2
    import ultralytics
    from ultralytics import YOLO

    root = tmp_path_factory.mktemp("tiny_detector")
    rng, images = np.random.default_rng(0), []
    for index in range(112):
        split = "train" if index < 96 else "val"
        picture, lines = draw(rng)
        images.append(root / "images" / split / f"{index:03}.png")
        label = root / "labels" / split / f"{index:03}.txt"
        images[-1].parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images[-1]), picture)
        label.write_text("\n".join(lines))
    data = root / "data.yaml"
    names = dict(enumerate(COLOURS))
    data.write_text(yaml.safe_dump({"path": str(root), "train": "images/train", "val": "images/val", "names": names}))

    stock = Path(ultralytics.__file__).parent / "cfg/models/26/yolo26.yaml"
    model = {**yaml.safe_load(stock.read_text(encoding="utf-8")), "scales": {"n": [0.5, 0.1, 1024]}}
    (root / "yolo26n.yaml").write_text(yaml.safe_dump(model, sort_keys=False))
    YOLO(root / "yolo26n.yaml", task="detect").train(
        data=data, imgsz=IMGSZ, epochs=6, batch=4, nbs=4, optimizer="MuSGD", lr0=0.01, lrf=1.0, warmup_epochs=0,
        mosaic=0, close_mosaic=0, scale=0.1, translate=0.05, hsv_h=0, hsv_s=0, hsv_v=0, device="cpu", amp=False,
        workers=0, plots=False, val=False, project=str(root), name="run", verbose=False, seed=0,
    )  # fmt: skip
    return TinyDetector(root / "run/weights/last.pt", data, images[96:])


@pytest.fixture(scope="session")
def exported(tiny_detector: TinyDetector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny detector as ONNX by stock Ultralytics, once for each head."""
    from ultralytics import YOLO

    files = {}
    for head, nms in (("one2many", None), ("one2one", False)):
        pt = shutil.copy(tiny_detector.pt, tmp_path_factory.mktemp(head) / "tiny.pt")
        files[head] = Path(YOLO(pt).export(format="onnx", imgsz=IMGSZ, nms=nms))
    return files


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images a teacher was asked about, call by call."""
    from yolo_mkd.distill.teachers import LiveTeacher

    counts: list[int] = []
    infer = LiveTeacher.infer
    monkeypatch.setattr(LiveTeacher, "infer", lambda self, images: (counts.append(len(images)), infer(self, images))[1])
    return counts
