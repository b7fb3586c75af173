"""Every pair of models: which terms act, and that each has a gradient on the student. `make pairs` runs all sizes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules.head import RTDETRDecoder

from yolo_mkd import host
from yolo_mkd.distill.criterion import Criterion, Progress
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import MKDTrainer

IMGSZ = 64
ROLES = tuple(f"{place}_p{p}" for place in ("backbone", "neck") for p in (3, 4, 5))
MKD = ("soft", "soft_box", "soft_dfl", "attention", "relation", "guidance", "exploration")
GAINS = {name: TERMS[name].gain for name in MKD}


@dataclass(frozen=True)
class Family:
    sizes: str  # from smallest to largest
    dual: bool  # two heads, one2many and one2one
    bins: int  # of a box side's distribution


FAMILIES = {  # as Ultralytics documents them
    "yolov8": Family("nsmlx", dual=False, bins=16),
    "yolov9": Family("tsmce", dual=False, bins=16),
    "yolov10": Family("nsmblx", dual=True, bins=16),
    "yolo11": Family("nsmlx", dual=False, bins=16),
    "yolo12": Family("nsmlx", dual=False, bins=16),
    "yolo26": Family("nsmlx", dual=True, bins=1),
}
EVERY = [family + size for family, facts in FAMILIES.items() for size in facts.sizes]
ENDS = [family + size for family, facts in FAMILIES.items() for size in (facts.sizes[0], facts.sizes[-1])]


def acting(student: str, teacher: str) -> set[str]:
    """What must act: all but the box-side distributions, which both must have."""
    both = all(FAMILIES[name[:-1]].bins == 16 for name in (student, teacher))
    return set(MKD) if both else set(MKD) - {"soft_dfl"}


def batch(channels: int = 3, imgsz: int = IMGSZ) -> dict[str, Tensor]:
    """Two pictures with a bright box each, so that even untrained models respond where something is."""
    picture = 0.1 * torch.rand(2, channels, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.75], [0.375, 0.375, 0.5, 0.25]])
    for image, (x, y, w, h) in zip(picture, (boxes * imgsz).long().tolist(), strict=True):
        image[:, y - h // 2 : y + h // 2, x - w // 2 : x + w // 2] += 0.9
    return {"img": picture, "batch_idx": torch.arange(2), "cls": torch.tensor([[0.0], [2.0]]), "bboxes": boxes}


def built(name: str, channels: int = 3) -> Any:
    torch.manual_seed(0)
    return host.build(f"{name}.yaml", classes=3, channels=channels)


def checksum(model: nn.Module) -> list[float]:
    return [float(v.double().sum()) for v in model.state_dict().values()]


class StoredTeacher:
    """A teacher whose outputs for the one batch are computed once and kept for every student."""

    def __init__(self, name: str):
        model = built(name)
        self.name, self.spec = name, host.model_spec(model, IMGSZ)
        before = checksum(host.freeze(model))
        self.outputs = LiveTeacher(name, model, self.spec, list(ROLES)).infer(batch()["img"])
        assert checksum(model) == before, f"{name} was changed by its forward pass"
        self.checksum = checksum_of(self.outputs)

    def __call__(self, batch: dict[str, Any]) -> Knowledge:
        return self.outputs

    def prefetch(self, batch: dict[str, Any]) -> None: ...

    def flush(self) -> None: ...


def live(model: Any, student: Student, imgsz: int = IMGSZ) -> LiveTeacher:
    """A teacher that runs on each batch, with hooks on the layers that its terms with this student read."""
    spec = host.model_spec(model, imgsz)
    return LiveTeacher("t", host.freeze(model), spec, Distiller(student.spec, spec, GAINS).roles)


def named(model: Any, names: list[str]) -> Any:
    model.names = dict(enumerate(names))
    return model


def checksum_of(k: Knowledge) -> float:
    heads = [x for o in k.branches.values() for x in (o.logits, o.distances, o.bins) if x is not None]
    return sum(float(x.double().abs().sum()) for x in [*heads, *k.features.values()])


class Student:
    """A student that takes one distilled step from one teacher after another, each time from the same weights."""

    def __init__(self, model: Any, imgsz: int = IMGSZ):
        self.model = model.train()
        self.model.args = get_cfg()
        self.spec = host.model_spec(self.model, imgsz)
        self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.detection = self.model.init_criterion()
        head = host.head(self.model)
        layers = [head, *(self.model.model[i] for i in head.f)]  # every term reads one of these
        self.end = [p for layer in layers for p in layer.parameters() if p.requires_grad and p.ndim == 1]  # small ones

    def step(self, teacher: LiveTeacher | StoredTeacher, images: dict[str, Tensor]) -> Distiller:
        """One optimisation step of the detection loss and all acting terms; every claim about it is asserted."""
        self.model.load_state_dict(self.start)
        self.model.zero_grad(set_to_none=False)  # memory that is kept need not be found again
        spec = teacher.spec if isinstance(teacher, StoredTeacher) else teacher.extractor.spec
        distiller = Distiller(self.spec, spec, GAINS, calibrate=False)
        distiller.connect(teacher)
        names = [t.name for t in distiller.acting]
        extractor = FeatureExtractor(self.model, self.spec, distiller.roles)
        schedule = Schedule(warmup=0, fitted=0, end=9, epochs=9)  # full weight, and adapters steer from the start
        criterion = Criterion(self.detection, extractor, [distiller], schedule, Progress(), self.end, seed=0)
        optimizer = torch.optim.SGD([*self.model.parameters(), *distiller.adapters.parameters()], lr=0.01)
        loss, items = criterion(self.model(images["img"]), images)
        extractor.hooks.remove()
        assert loss.isfinite().all()
        ratios = distiller.balancer.epoch  # of each term's gradient on `end`
        assert set(ratios) == set(names)
        for name in names:
            assert 0 < float(items[f"kd/{name}"]) < float("inf"), f"the loss of {name} is {items[f'kd/{name}']}"
            assert 0 < ratios[name][0].strength < float("inf"), f"{name} has no gradient on the student"
        loss.sum().backward()
        optimizer.step()
        first = next(iter(self.start))
        after = self.model.state_dict()
        assert not torch.equal(after[first], self.start[first])
        assert all(v.isfinite().all() for v in after.values())
        return distiller


@pytest.fixture(scope="module")
def stored() -> dict[str, StoredTeacher]:
    return {}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, str]]]:
    """Which terms acted, by student and teacher; written to docs/pairs.md once every pair has been run."""
    found: dict[str, dict[str, str]] = {}
    yield found
    if list(found) == EVERY and all(len(row) == len(EVERY) - 1 for row in found.values()):
        write(found)


def write(found: dict[str, dict[str, str]]) -> None:
    """Draw the table: a row a student, a column a teacher."""
    kinds = sorted({kind for row in found.values() for kind in row.values()}, key=len, reverse=True)
    mark = dict(zip(kinds, "ABCDEF", strict=False))
    count = sum(map(len, found.values()))
    lines = [
        "# Which terms act between which models",
        "",
        f"Written by `make pairs`, which trains each of {len(EVERY)} students for one step with each of the others as",
        f"teacher: {count} ordered pairs of untrained models at {IMGSZ} px. In each, exactly the terms of this table",
        "act, each of them has a finite loss and a gradient on the student, and the step leaves finite weights.",
        "",
        *(f"- **{mark[kind]}**: {kind}" for kind in kinds),
        "",
        "| student \\ teacher | " + " | ".join(name.removeprefix("yolo") for name in EVERY) + " |",
        "|---|" + "---|" * len(EVERY),
    ]
    lines += [
        f"| {s} | " + " | ".join(mark[row[t]] if t in row else "" for t in EVERY) + " |" for s, row in found.items()
    ]
    docs = Path(__file__).parents[2] / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "pairs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def distil_from_all(name: str, teachers: list[str], stored: dict[str, StoredTeacher]) -> dict[str, str]:
    """One step of a student from each teacher; the terms that acted by teacher. Every pair that failed is named."""
    student, images, row, failed = Student(built(name)), batch(), {}, []
    for other in teachers:
        if other == name:
            continue
        if other not in stored:
            stored[other] = StoredTeacher(other)
        teacher = stored[other]
        try:
            distiller = student.step(teacher, images)
            dual = FAMILIES[name[:-1]].dual and FAMILIES[other[:-1]].dual
            assert {t.name for t in distiller.acting} == acting(name, other)
            assert distiller.match.branches == (("one2many", "one2one") if dual else ("one2many",))
            assert checksum_of(teacher.outputs) == teacher.checksum, "the teacher's outputs were changed"
        except (AssertionError, RuntimeError) as e:
            failed.append(f"{other} -> {name}: {e}")
            continue
        row[other] = ", ".join(t.name for t in distiller.acting)
    assert not failed, "\n".join(failed)
    return row


@pytest.mark.slow
@pytest.mark.parametrize("student", ENDS)
def test_every_family_is_distilled_from_every_other_at_its_smallest_and_largest_size(
    student: str, stored: dict[str, StoredTeacher]
) -> None:
    assert len(distil_from_all(student, ENDS, stored)) == len(ENDS) - 1


@pytest.mark.parametrize(
    ("student", "teacher", "branches", "dfl"),
    [
        ("yolo26n", "yolo11n", ("one2many",), "only one head has box-side distributions (reg_max=1)"),
        ("yolo11n", "yolo26n", ("one2many",), "only one head has box-side distributions (reg_max=1)"),
        ("yolov10n", "yolov8n", ("one2many",), ""),
        ("yolov8n", "yolov10n", ("one2many",), ""),
        ("yolov10n", "yolo26n", ("one2many", "one2one"), "only one head has box-side distributions (reg_max=1)"),
        ("yolo26n", "yolo26s", ("one2many", "one2one"), "neither head has box-side distributions (reg_max=1)"),
    ],
)
def test_heads_that_differ_share_what_both_have(student: str, teacher: str, branches: tuple[str], dfl: str) -> None:
    trained, model = Student(built(student)), built(teacher)
    running = live(model, trained)
    before = checksum(model)
    distiller = trained.step(running, batch())
    assert distiller.match.branches == branches
    assert distiller.term("soft_dfl").why_not == dfl
    assert checksum(model) == before, "the teacher changed"
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "strides"),
    [
        ("yolo26n", "yolo26n-p2", (8, 16, 32)),
        ("yolo26n-p2", "yolo26n", (8, 16, 32)),
        ("yolov8n", "yolov8n-p6", (8, 16, 32)),
        ("yolov8n-p6", "yolov8n", (8, 16, 32)),
        ("yolo26n-p6", "yolov8n-p6", (8, 16, 32, 64)),
        ("yolov8n-p6", "yolo26n-p2", (8, 16, 32)),
        ("yolov8n-p2", "yolo26n-p2", (4, 8, 16, 32)),
    ],
)
def test_p2_and_p6_models_are_matched_by_equal_stride(student: str, teacher: str, strides: tuple[int]) -> None:
    trained = Student(built(student), imgsz=128)
    distiller = trained.step(live(built(teacher), trained, imgsz=128), batch(imgsz=128))
    assert distiller.match.strides == strides
    assert distiller.match.neck == tuple(f"neck_p{s.bit_length() - 1}" for s in strides)
    both = {name[:6] for name in (student, teacher)} == {"yolov8"}
    assert {t.name for t in distiller.acting} == set(MKD) - (set() if both else {"soft_dfl"})


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["cat", "dog", "cow"], ((0, 0), (1, 1), (2, 2))),
        (["cow", " Cat", "dog"], ((0, 1), (1, 2), (2, 0))),
        (["ship", "cow", "car", "tree", "dog"], ((1, 4), (2, 1))),
    ],
)
def test_classes_are_matched_by_name(names: list[str], pairs: tuple[tuple[int, int], ...]) -> None:
    student = Student(named(built("yolo26n"), ["cat", "dog", "cow"]))
    teacher = named(host.build("yolo11n.yaml", classes=len(names)), names)
    distiller = student.step(live(teacher, student), batch())
    assert distiller.match.classes == tuple((ours, (theirs,)) for ours, theirs in pairs)
    assert {t.name for t in distiller.acting} == set(MKD) - {"soft_dfl"}


def test_without_a_shared_class_only_hidden_layers_are_distilled() -> None:
    student = Student(named(built("yolo11n"), ["cat", "dog", "cow"]))
    distiller = student.step(live(named(built("yolov8n"), ["ship", "car", "tree"]), student), batch())
    assert {t.name for t in distiller.acting} == {"attention", "relation", "guidance", "exploration"}
    for name in ("soft", "soft_box", "soft_dfl"):
        assert distiller.term(name).why_not == "the teacher has none of this data's classes"


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (6, 6)])
def test_both_models_take_images_of_other_channels(ours: int, theirs: int) -> None:
    student, model = Student(built("yolo26n", ours)), built("yolo26s", theirs)
    teacher, given, seen = live(model, student), batch(ours), []
    model.model[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    distiller = student.step(teacher, given)
    distiller.require_active_term("t.pt")
    assert {t.name for t in distiller.acting} == set(MKD) - {"soft_dfl"}
    assert seen[0].shape[1] == theirs
    assert torch.equal(seen[0], given["img"])


@pytest.mark.parametrize(("ours", "theirs"), [(3, 1), (6, 3), (3, 6), (1, 3)])
def test_a_teacher_of_other_channels_is_refused_in_one_line(ours: int, theirs: int) -> None:
    student, teacher = (host.model_spec(built("yolo26n", channels), IMGSZ) for channels in (ours, theirs))
    with pytest.raises(
        BadInput, match=f"^teacher=t.pt takes images of {theirs} channels, the data has {ours}: "
    ) as refused:
        Distiller(student, teacher, GAINS).require_active_term("t.pt")
    assert "\n" not in str(refused.value)


# RT-DETR


@pytest.fixture(scope="module")
def rtdetr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("rtdetr") / "rtdetr.pt"
    RTDETR("rtdetr-l.yaml").save(file)
    return file


def test_an_rtdetr_teacher_is_distilled_by_its_hidden_layers_and_its_decoder_does_not_run(
    rtdetr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RTDETRDecoder, "forward", lambda *_: pytest.fail("the decoder was run"))
    model, student = host.load_detector("teacher", str(rtdetr), transformer=True), Student(built("yolo26n"))
    teacher = live(model, student)
    before = checksum(model.model[:-1])
    distiller = student.step(teacher, batch())
    assert {t.name for t in distiller.acting} == {"attention", "relation", "guidance", "exploration"}
    assert distiller.match.neck == ("neck_p3", "neck_p4", "neck_p5")
    for name in ("soft", "soft_box", "soft_dfl"):
        assert distiller.term(name).why_not == "the teacher's head has no anchors (RT-DETR)"
    assert checksum(model.model[:-1]) == before, "the teacher changed"


def test_an_rtdetr_student_is_refused_in_one_line(rtdetr: Path) -> None:
    for path in ("rtdetr-l.yaml", str(rtdetr)):
        with pytest.raises(BadInput, match=r"RTDETRDecoder|RTDETRDetectionModel") as refused:
            host.build(path, classes=3)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_tiny_student_is_distilled_from_an_rtdetr_checkpoint(
    rtdetr: Path, tiny_detector: Any, tmp_path: Path
) -> None:
    student = YOLO(tiny_detector.pt)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    student.train(
        trainer=MKDTrainer.using(rtdetr), data=tiny_detector.data, imgsz=64, epochs=1, batch=4, nbs=4, fraction=0.1,
        optimizer="SGD", lr0=0.01, warmup_epochs=0, close_mosaic=0, device="cpu", workers=0, plots=False, val=False,
        project=str(tmp_path), name="run", verbose=False,
    )  # fmt: skip
    columns = csv.DictReader((tmp_path / "run/results.csv").open(encoding="utf-8")).fieldnames or []
    assert [c for c in columns if c.startswith("kd/")] == [
        *(f"kd/{name}" for name in ("attention", "relation", "guidance", "exploration")),
        "kd/weight",
    ]
    after = host.load_detector("model", str(student.trainer.last)).state_dict()
    assert all(v.isfinite().all() for v in after.values())
    assert any(not torch.equal(after[k], before[k]) for k in after)


@pytest.mark.pairs
@pytest.mark.slow
@pytest.mark.parametrize("student", EVERY)
def test_every_size_of_every_family_is_distilled_from_every_other(
    student: str, stored: dict[str, StoredTeacher], table: Any
) -> None:
    table[student] = distil_from_all(student, EVERY, stored)
