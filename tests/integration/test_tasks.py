"""Segment, pose and oriented-box students: which terms act, short runs through the chain, and what is refused."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import ultralytics
import yaml
from ultralytics import YOLO

from yolo_mkd import MKD, chain, host
from yolo_mkd.chain import assistant
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.compare import worker
from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import TRAINERS, MKDTrainer

COLOURS = {"red": (40, 40, 230), "green": (40, 230, 40), "blue": (230, 40, 40)}
SIDE = 64  # of the square pictures [pixels]
ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}
OWN_TERM = {"segment": "soft_mask", "pose": "soft_keypoint", "obb": "soft_obb"}
HIDDEN = {"attention", "relation", "guidance", "exploration"}
COMMON: dict[str, Any] = {
    "imgsz": SIDE, "epochs": 2, "batch": 8, "nbs": 8, "plots": False, "optimizer": "AdamW", "lr0": 0.002,
    "close_mosaic": 0, "warmup_epochs": 0.5, "device": "cpu", "workers": 0, "verbose": False, "seed": 0,
}  # fmt: skip


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Noise with up to four turned rectangles, white and black at their ends; class, corners and ends of each."""
    picture = rng.integers(90, 140, (SIDE, SIDE, 3), dtype=np.uint8)
    things = []
    for at in rng.permutation(4)[: rng.integers(1, 5)]:
        cls, angle = int(rng.integers(3)), rng.uniform(0, 180)
        centre, long = (np.array([at % 2, at // 2]) + 0.5) * SIDE / 2, rng.uniform(18, 26)
        corners = cv2.boxPoints((centre.tolist(), (long, rng.uniform(9, 13)), angle))
        along = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * (long / 2 - 4)
        ends = np.stack([centre - along, centre + along])
        cv2.fillPoly(picture, [corners.round().astype(int)], list(COLOURS.values())[cls])
        for (x, y), shade in zip(ends.round().astype(int).tolist(), (255, 0), strict=True):
            cv2.circle(picture, (x, y), 2, (shade, shade, shade), -1)
        things.append((cls, corners / SIDE, ends / SIDE))
    return picture, things


def label(task: str, cls: int, corners: np.ndarray, ends: np.ndarray) -> str:
    """One row of a label file."""
    low, high = corners.min(0), corners.max(0)
    box = [*((low + high) / 2), *(high - low)]
    points = [value for end in ends for value in (*end, 2)]
    values = {"detect": box, "pose": box + points}.get(task, corners.ravel())
    return f"{cls} " + " ".join(f"{v:.5f}" for v in values)


def make_data(root: Path, task: str) -> Path:
    """A data set of 16 pictures to train on and 8 others."""
    rng = np.random.default_rng(0)
    for i in range(24):
        picture, things = draw(rng)
        split = "train" if i < 16 else "val"
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images" / split / f"{i}.png"), picture)
        (root / "labels" / split / f"{i}.txt").write_text("\n".join(label(task, *thing) for thing in things))
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": dict(enumerate(COLOURS))}
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump(data | ({"kpt_shape": [2, 3], "flip_idx": [0, 1]} if task == "pose" else {})))
    return file


def make_model(folder: Path, family: str, task: str, width: float) -> Path:
    """A narrow model of three classes."""
    stock = (
        Path(ultralytics.__file__).parent / "cfg/models" / family.removeprefix("yolo") / f"{family}{ENDINGS[task]}.yaml"
    )
    model = {**yaml.safe_load(stock.read_text(encoding="utf-8")), "nc": 3, "scales": {"n": [0.5, width, 1024]}}
    model |= {"kpt_shape": [2, 3]} if task == "pose" else {}
    file = folder / f"{family}n-w{round(1000 * width)}{ENDINGS[task]}.yaml"
    file.write_text(yaml.safe_dump(model, sort_keys=False))
    return file


def make_teacher(folder: Path, family: str, task: str) -> Path:
    """An untrained teacher's checkpoint with the classes' names."""
    model = YOLO(make_model(folder, family, task, 0.25))
    model.model.names = dict(enumerate(COLOURS))
    model.save(folder / "teacher.pt")
    return folder / "teacher.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make_data(tmp_path_factory.mktemp(task), task) for task in ENDINGS}


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, MKD]:
    """A chain of each task: a teacher trained for one epoch and the student distilled from it."""
    chains = {}
    for task in ("segment", "pose", "obb"):
        folder = tmp_path_factory.mktemp(f"chain_{task}")
        student, teacher = (make_model(folder, "yolo26", task, width) for width in (0.1, 0.25))
        mkd = chains[task] = MKD(student, teacher=teacher, teacher_epochs=1, assistant=None)
        model = mkd.train(data=data[task], task=task, project=str(folder / "runs"), **{OWN_TERM[task]: 1}, **COMMON)
        assert model.task == task
    return chains


PAIRS = [  # student's family and task, teacher's, acting soft targets
    ("yolo26", "segment", "yolo26", "segment", {"soft", "soft_box", "soft_mask"}),
    ("yolo26", "pose", "yolo26", "pose", {"soft", "soft_box", "soft_keypoint"}),
    ("yolo26", "obb", "yolo26", "obb", {"soft", "soft_obb"}),
    ("yolo11", "segment", "yolo11", "segment", {"soft", "soft_box", "soft_dfl", "soft_mask"}),
    ("yolov8", "pose", "yolov8", "pose", {"soft", "soft_box", "soft_dfl", "soft_keypoint"}),
    ("yolo26", "obb", "yolo12", "obb", {"soft", "soft_obb"}),
    ("yolo26", "segment", "yolo26", "detect", {"soft", "soft_box"}),
    ("yolov8", "pose", "yolo26", "detect", {"soft", "soft_box"}),
    ("yolo26", "obb", "yolov8", "detect", {"soft"}),
    ("yolo26", "detect", "yolo26", "segment", {"soft", "soft_box"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task", "teacher_family", "teacher_task", "soft"), PAIRS)
def test_one_step_has_a_gradient_for_exactly_the_terms_that_the_heads_share(
    family: str,
    task: str,
    teacher_family: str,
    teacher_task: str,
    soft: set[str],
    data: dict[str, Path],
    tmp_path: Path,
) -> None:
    teacher = make_teacher(tmp_path, teacher_family, teacher_task)
    student = make_model(tmp_path, family, task, 0.125)
    overrides = {**COMMON, "model": str(student), "data": str(data[task]), "project": str(tmp_path), "task": task}
    trainer = TRAINERS[task].using(teacher, **dict.fromkeys(OWN_TERM.values(), 1))(overrides=overrides)
    trainer._setup_train()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    loss, items = trainer.model(batch)
    loss.sum().backward()
    ratios = trainer.kd.distillers[0].balancer.epoch
    assert set(ratios) == soft | HIDDEN
    assert all(0 < r.strength < math.inf for (r,) in ratios.values())
    assert {k for k in items if "kd/" in k} == {f"kd/{name}" for name in ratios} | {"kd/weight"}
    assert torch.stack(list(items.values())).isfinite().all()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


PART = {"mask": "seg", "pose": "pose"}  # of Ultralytics' metrics
OWN = {"segment": ("mask", "M"), "pose": ("pose", "P"), "obb": (None, "B")}


@pytest.mark.slow
@pytest.mark.parametrize("task", OWN)
def test_a_chain_of_each_task_trains_and_stores_its_metrics(task: str, trained: dict[str, MKD], data: Any) -> None:
    student = trained[task].folder / "student"
    acting = {"soft", OWN_TERM[task], *HIDDEN} | ({"soft_box"} if task != "obb" else set())
    with open(student / "results.csv", encoding="utf-8") as f:
        results = list(csv.DictReader(f))
    assert len(results) == 2
    assert {c for c in results[0] if "kd/" in c} == {f"kd/{name}" for name in acting} | {"kd/weight"}
    assert all(float(results[0][f"kd/{name}"]) > 0 for name in acting)
    with open(student / "shares.csv", encoding="utf-8") as f:
        shares = [row for row in csv.DictReader(f) if row["epoch"] == "1"]
    assert {row["term"] for row in shares} == acting
    assert all(0 < float(row["share"]) < math.inf for row in shares)
    own, letter = OWN[task]
    figures = trained[task].chain["stages"][-1]["metrics"]
    kinds = {"map50_95", "map50", "precision", "recall"}
    assert set(figures) == kinds | ({f"{own}_map50_95", f"{own}_map50"} if own else set())
    best = torch.load(student / "weights/best.pt", weights_only=False)["train_metrics"]
    key = f"{own}_map50_95" if own else "map50_95"
    assert figures[key] == round(best[f"metrics/mAP50-95({letter})"], 5)


@pytest.mark.slow
def test_a_comparison_scores_masks_and_keypoints_as_stock_ultralytics_does(
    trained: dict[str, MKD], data: dict[str, Path], tmp_path: Path
) -> None:
    for task, (own, _) in OWN.items():
        best = trained[task].folder / "student/weights/best.pt"
        protocol = {"data": str(data[task]), "imgsz": SIDE, "device": "cpu", "batch": 8, "workers": 0, "conf": 1e-4}
        found = worker.validate_checkpoint(best, protocol, tmp_path)
        assert set(found) == {"map50_95", "map50", "classes"} | ({f"{own}_map50_95"} if own else set())
        stock = YOLO(best).val(**protocol, rect=False, plots=False, project=str(tmp_path), name="stock", exist_ok=True)
        figures = {"map50_95": stock.box.map} | ({f"{own}_map50_95": getattr(stock, PART[own]).map} if own else {})
        assert {name: found[name] for name in figures} == pytest.approx(figures, abs=1e-5)


@pytest.mark.slow
def test_the_summary_has_columns_for_masks_and_keypoints_only_where_there_are_some(trained: dict[str, MKD]) -> None:
    text = {task: chain.summary(mkd.folder, mkd.chain) for task, mkd in trained.items()}
    assert ["mask mAP50-95" in text[task] for task in OWN] == [True, False, False]
    assert ["pose mAP50-95" in text[task] for task in OWN] == [False, True, False]
    mkd = trained["pose"]
    detector = {**mkd.chain["stages"][0], "metrics": {"map50_95": 0.25, "map50": 0.5}}
    rows = chain.summary(mkd.folder, {**mkd.chain, "stages": [detector, mkd.chain["stages"][-1]]}).splitlines()
    assert rows[2].split()[2:6] == ["0.250", "0.500", "nan", "nan"]


@pytest.mark.slow
def test_stock_ultralytics_uses_what_comes_out(trained: dict[str, MKD], data: dict[str, Path], tmp_path: Path) -> None:
    files = {task: str(mkd.folder / "student/weights/best.pt") for task, mkd in trained.items()}
    program = (
        "import sys; sys.modules['yolo_mkd'] = None\n"  # as if it were not installed
        "import numpy; from ultralytics import YOLO\n"
        f"for task, file in {files}.items():\n"
        "    model = YOLO(file)\n"
        "    assert model.task == task and 'mkd' in model.ckpt\n"
        "    model.predict(numpy.zeros((64, 64, 3), 'uint8'), imgsz=64, verbose=False)\n"
        f"common, pose = {COMMON | {'epochs': 1, 'project': str(tmp_path)}}, YOLO({files['pose']!r})\n"
        f"pose.val(data={str(data['pose'])!r}, imgsz=64, device='cpu', plots=False, project={str(tmp_path)!r})\n"
        f"YOLO({files['obb']!r}).train(data={str(data['obb'])!r}, **common)\n"
        f"YOLO({files['segment']!r}).export(format='onnx', imgsz=64)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-1000:]
    assert Path(files["segment"]).with_suffix(".onnx").exists()


@pytest.mark.slow
def test_without_terms_a_pose_student_is_trained_bit_for_bit_as_by_stock_ultralytics(
    data: dict[str, Path], tmp_path: Path
) -> None:
    zero = TRAINERS["pose"].using(make_teacher(tmp_path, "yolo26", "pose"), **dict.fromkeys(TERMS, 0))
    found = []
    for name, trainer in (("stock", None), ("zero", zero)):
        model = YOLO(make_model(tmp_path, "yolo26", "pose", 0.125))
        model.train(data=data["pose"], project=str(tmp_path), name=name, trainer=trainer, **COMMON)
        found.append(host.load_detector("model", str(tmp_path / name / "weights/last.pt")).state_dict())
    assert list(found[0]) == list(found[1])
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


@pytest.mark.slow
def test_an_interrupted_segment_chain_is_resumed(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model, epochs = MKDTrainer.save_model, []

    def cut(self: Any) -> bool:
        saved = save_model(self)
        epochs.append(self.epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr(MKDTrainer, "save_model", cut)
    models = {
        "model": make_model(tmp_path, "yolo26", "segment", 0.125),
        "teacher": make_teacher(tmp_path, "yolo26", "segment"),
    }
    place = {"data": data["segment"], "project": str(tmp_path / "runs")}
    with pytest.raises(KeyboardInterrupt):
        chain.train(**models, assistant=None, soft_mask=1, **place, **COMMON)
    _, record = chain.train(resume=str(tmp_path / "runs/train"))
    assert epochs == [0, 1, 1]  # from the copy of the first: that of the second was not made
    assert "mask_map50" in record["stages"][0]["metrics"]


@pytest.mark.parametrize(("student", "teacher", "chosen"), [
    ("yolo26n-seg.yaml", "yolo26m-seg.yaml", "yolo26s-seg.yaml"),
    ("yolov8s-pose.yaml", "yolov8x.yaml", "yolov8m-pose.yaml"),
    ("yolo11n-obb.yaml", "yolo11x-obb.yaml", "yolo11s-obb.yaml"),
    ("yolov9c-seg.yaml", "yolov9e-seg.yaml", None),  # there are no others
])  # fmt: skip
def test_the_assistant_has_the_students_task(student: str, teacher: str, chosen: str | None) -> None:
    assert assistant.choose(student, teacher)[0] == chosen


REFUSED = [  # task of the student, task of the data, what is changed in the data and in the arguments, the message
    ("segment", "detect", {}, {}, r"\.txt has no outlines, which a model of the task segment needs"),
    ("obb", "detect", {}, {}, r"\.txt has no outlines, which a model of the task obb needs"),
    ("segment", "pose", {}, {}, "has no outlines"),
    ("pose", "detect", {}, {}, "kpt_shape is missing: pose models need"),
    ("pose", "pose", {"kpt_shape": [2]}, {}, r"kpt_shape is \[2\]: pose models need"),
    ("pose", "pose", {"kpt_shape": [1, 3], "flip_idx": []}, {}, r"has 11 values in a row, kpt_shape \[1, 3\] needs 8"),
    ("pose", "pose", {"flip_idx": [0]}, {}, "flip_idx has 1 entries, kpt_shape 2 keypoints"),
    ("segment", "segment", {}, {"task": "detect"}, "task=detect, but model=.* is of the task segment"),
    ("detect", "detect", {}, {"task": "pose"}, "task=pose, but model=.* is of the task detect"),
    ("segment", "segment", {}, {"model": "yolo26n-cls.yaml"}, "has the head Classify"),
    ("segment", "segment", {}, {"model": "yolo26n-depth.yaml"}, "has the head Depth"),
    ("segment", "segment", {}, {"model": "yolo26n-sem.yaml"}, "has the head SemanticSegment"),
    ("segment", "segment", {}, {"model": "DATA"}, "has no head, so it is not a model"),
    ("segment", "segment", {}, {"assistant": "yolo26n-pose.yaml"}, "kpt_shape is missing"),
]


@pytest.mark.parametrize(("task", "kind", "edit", "change", "message"), REFUSED)
def test_a_student_that_the_data_cannot_train_is_refused_in_one_line_and_nothing_is_left(
    task: str,
    kind: str,
    edit: dict[str, Any],
    change: dict[str, Any],
    message: str,
    data: dict[str, Path],
    tmp_path: Path,
) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(data[kind].read_text()), **edit}))
    models = {
        "model": make_model(tmp_path, "yolo26", task, 0.125),
        "teacher": make_teacher(tmp_path, "yolo26", "detect"),
    }
    arguments = {**models, "assistant": None, "data": file, "project": str(tmp_path / "runs"), **COMMON, **change}
    with pytest.raises(BadInput, match=message) as e:
        chain.train(**{k: file if v == "DATA" else v for k, v in arguments.items()})
    assert "\n" not in str(e.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["yolo26n-cls", "yolo26n-depth", "yolo26n-sem", "yoloe-26n-seg", "yolov8n-world"])
def test_a_teacher_of_a_task_without_boxes_or_with_text_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    YOLO(f"{name}.yaml").save(tmp_path / "teacher.pt")
    with pytest.raises(BadInput, match=r"teacher=.* must be a YOLO model of the task detect, segment, pose, obb") as e:
        MKDTrainer.using(tmp_path / "teacher.pt")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("task", OWN)
def test_a_fused_teacher_is_refused_in_one_line(task: str, tmp_path: Path) -> None:
    model = YOLO(make_teacher(tmp_path, "yolo26", task))
    model.fuse()
    model.save(tmp_path / "fused.pt")
    with pytest.raises(BadInput, match=r"teacher=.* is fused for inference") as e:
        TRAINERS[task].using(tmp_path / "fused.pt")
    assert "\n" not in str(e.value)
