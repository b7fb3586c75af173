"""What the tests share: a small detector that works, trained once a session, its exports, and short trainings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

COLOURS = {"red": (40, 40, 230), "green": (40, 230, 40), "blue": (230, 40, 40)}  # BGR: a swap of channels changes class
IMGSZ = 96


SHORT_RUN: dict[str, Any] = {  # two epochs of three batches, from scratch
    "imgsz": 64, "epochs": 2, "batch": 8, "nbs": 8, "fraction": 0.25, "optimizer": "AdamW", "lr0": 0.002,
    "close_mosaic": 0, "warmup_epochs": 0.5, "val": False, "plots": False, "device": "cpu", "exist_ok": True,
    "verbose": False,
}  # fmt: skip


@dataclass(frozen=True)
class TinyDetector:
    pt: Path  # plain Ultralytics checkpoint, yolo26 at width 0.1, both heads
    data: Path  # 96 pictures to train on, 16 others as val
    images: list[Path]  # those of val, 96 x 128
    student: Path  # the architecture of a student of the same size
    imgsz: int = IMGSZ


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of single tests."""
    parser.addoption(
        "--kills", type=int, default=0, help="faults that integration/test_kills.py makes, also in trainings"
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs the trained detector as slow."""
    for item in items:
        if "tiny_detector" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


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
def untrained_detector(tmp_path_factory: pytest.TempPathFactory) -> TinyDetector:
    """The data, the architecture, and a checkpoint of it that has the classes' names but was never trained."""
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
    pt = root / "untrained" / "weights" / "last.pt"
    pt.parent.mkdir(parents=True)
    (pt.parent / "yolo26n.yaml").write_text(yaml.safe_dump({**model, "nc": len(names)}, sort_keys=False))
    untrained = YOLO(pt.parent / "yolo26n.yaml", task="detect")
    untrained.model.names = names
    untrained.save(pt)
    return TinyDetector(pt, data, images[96:], root / "yolo26n.yaml")


@pytest.fixture(scope="session")
def tiny_detector(untrained_detector: TinyDetector) -> TinyDetector:
    """A detector that finds most rectangles, trained for six epochs by stock Ultralytics."""
    from ultralytics import YOLO

    root = untrained_detector.data.parent
    YOLO(untrained_detector.student, task="detect").train(
        data=untrained_detector.data, imgsz=IMGSZ, epochs=6, batch=4, nbs=4, optimizer="MuSGD", lr0=0.01, lrf=1.0,
        warmup_epochs=0, mosaic=0, close_mosaic=0, scale=0.1, translate=0.05, hsv_h=0, hsv_s=0, hsv_v=0, device="cpu",
        amp=False, workers=0, plots=False, val=False, project=str(root), name="run", verbose=False, seed=0,
    )  # fmt: skip
    return replace(untrained_detector, pt=root / "run/weights/last.pt")


@pytest.fixture(scope="session")
def exported(tiny_detector: TinyDetector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny detector as ONNX by stock Ultralytics, once for each head."""
    from ultralytics import YOLO

    files = {}
    for head, nms in (("one2many", None), ("one2one", False)):
        pt = shutil.copy(tiny_detector.pt, tmp_path_factory.mktemp(head) / "tiny.pt")
        files[head] = Path(YOLO(pt).export(format="onnx", imgsz=IMGSZ, nms=nms))
    return files


@pytest.fixture(scope="session")
def train_into(tiny_detector: TinyDetector) -> Callable[..., Any]:
    """A function that trains the tiny student shortly in a folder and returns its trainer."""
    from ultralytics import YOLO

    from yolo_mkd.trainer import MKDTrainer

    def run(
        folder: Path,
        options: dict[str, Any] | None = None,
        name: str = "run",
        trainer: Any = None,
        model: Path | None = None,
        **arguments: Any,
    ) -> Any:
        """Train for the epochs of `SHORT_RUN`.

        Args:
            folder: the parent of the run's folder.
            options: M-KD's arguments, to distil from the tiny detector; None trains as stock Ultralytics does.
            name: of the run's folder.
            trainer: a trainer class in place of the one that the options give.
            model: what to train; the tiny detector's architecture by default.
            arguments: Ultralytics' that differ from `SHORT_RUN`.
        """
        if options is not None:
            trainer = MKDTrainer.using(tiny_detector.pt, **options)
        student = YOLO(model or tiny_detector.student)
        own = {"data": tiny_detector.data, "project": str(folder), "name": name}
        student.train(trainer=trainer, **{**SHORT_RUN, **own, **arguments})
        return student.trainer

    return run


@pytest.fixture
def train(train_into: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """As `train_into`, in the test's own folder: `train(options, name=..., trainer=..., model=..., **arguments)`."""
    return partial(train_into, tmp_path)


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images teachers computed their outputs for, call by call."""
    from yolo_mkd.distill.teachers import LiveTeacher

    counts: list[int] = []
    infer = LiveTeacher.infer

    def counted(teacher: LiveTeacher, images: Any) -> Any:
        counts.append(len(images))
        return infer(teacher, images)

    monkeypatch.setattr(LiveTeacher, "infer", counted)
    return counts
