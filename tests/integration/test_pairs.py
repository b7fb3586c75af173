"""Every pair of models: which terms act, and that each of them moves the student. `make pairs` runs all sizes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules.head import RTDETRDecoder

from yolo_mkd import host
from yolo_mkd.distill.balance import GradientBalancer, TermWeight
from yolo_mkd.distill.criterion import Criterion, Distiller, Progress
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import BadInput, preset
from yolo_mkd.trainer import MKDTrainer

IMGSZ = 64
ROLES = tuple(f"{place}_p{p}" for place in ("backbone", "neck") for p in (3, 4, 5))
MKD = ("soft", "soft_box", "soft_dfl", "attention", "relation", "guidance", "exploration")
GAINS = {name: float(preset("nominal")[name]) for name in MKD}


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
    """Two pictures with a bright box each, so that even untrained models see alike where something is."""
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


class Said:
    """A teacher's answer to the batch, kept, so that a teacher of every student is asked once."""

    def __init__(self, name: str):
        model = built(name)
        self.name, self.spec = name, host.model_spec(model, IMGSZ)
        before = checksum(host.freeze(model))
        self.said = LiveTeacher(name, model, self.spec, list(ROLES)).infer(batch()["img"])
        assert checksum(model) == before, f"{name} changed when it was asked"
        self.kept = checksum_of(self.said)

    def answer(self, batch: dict[str, Tensor]) -> Knowledge:
        return self.said


def live(model: Any, pupil: Any, imgsz: int = IMGSZ) -> Any:
    """A teacher that is asked anew each time."""
    spec = host.model_spec(model, imgsz)
    roles = Distiller(pupil.spec, spec, GAINS).roles
    teacher = LiveTeacher("t", host.freeze(model), spec, roles)
    return SimpleNamespace(name="t", spec=spec, answer=teacher.answer)


def named(model: Any, names: list[str]) -> Any:
    model.names = dict(enumerate(names))
    return model


def checksum_of(k: Knowledge) -> float:
    heads = [x for o in k.branches.values() for x in (o.logits, o.distances, o.bins) if x is not None]
    return sum(float(x.double().abs().sum()) for x in [*heads, *k.features.values()])


class Pupil:
    """A student that is taught one step by one teacher after another, each time from the same weights."""

    def __init__(self, model: Any, imgsz: int = IMGSZ):
        self.model = model.train()
        self.model.args = get_cfg()
        self.spec = host.model_spec(self.model, imgsz)
        self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.detection = self.model.init_criterion()
        head = host.head(self.model)
        layers = [head, *(self.model.model[i] for i in head.f)]  # every term reads one of these
        self.end = [p for layer in layers for p in layer.parameters() if p.requires_grad and p.ndim == 1]  # small ones

    def step(self, teacher: Any, shown: dict[str, Tensor], asked: dict[str, float] = GAINS) -> Distiller:
        """One optimisation step of the detection loss and all acting terms; every claim about it is asserted."""
        self.model.load_state_dict(self.start)
        self.model.zero_grad(set_to_none=False)  # memory that is kept need not be found again
        distiller = Distiller(self.spec, teacher.spec, asked)
        names = [t.name for t in distiller.acting]
        balance = GradientBalancer(
            {n: TermWeight(asked[n], TERMS[n].gain, TERMS[n].share) for n in names}, calibrate=False
        )
        extractor = FeatureExtractor(self.model, self.spec, distiller.roles)
        criterion = Criterion(  # measures each term's gradient on the weights that it is given
            self.detection,
            extractor,
            [Distiller(teacher, distiller, balance)],
            Schedule(0, 0, 9, 9),
            Progress(),
            self.end,
            0,
        )
        optimizer = torch.optim.SGD([*self.model.parameters(), *distiller.adapters.parameters()], lr=0.01)
        loss, items = criterion(self.model(shown["img"]), shown)
        extractor.hooks.remove()
        assert loss.isfinite().all()
        assert set(balance.epoch) == set(names)
        for name in names:
            assert 0 < float(items[f"kd/{name}"]) < float("inf"), f"the loss of {name} is {items[f'kd/{name}']}"
            assert 0 < balance.epoch[name][0].strength < float("inf"), f"{name} moves nothing"
        loss.sum().backward()
        optimizer.step()
        first = next(iter(self.start))
        after = self.model.state_dict()
        assert not torch.equal(after[first], self.start[first])
        assert all(v.isfinite().all() for v in after.values())
        return distiller


@pytest.fixture(scope="module")
def said() -> dict[str, Said]:
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
        f"Written by `make pairs`, which teaches each of {len(EVERY)} students one step by each of the others: {count}",
        f"ordered pairs of untrained models at {IMGSZ} px. In each, exactly the terms of this table act, each of them",
        "has a finite loss and a gradient on the student, and the step leaves finite weights.",
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


def teach_by_all(student: str, teachers: list[str], said: dict[str, Said]) -> dict[str, str]:
    """One step from each teacher; what acted by teacher, and every pair that failed by name."""
    pupil, shown, row, failed = Pupil(built(student)), batch(), {}, []
    for teacher in teachers:
        if teacher == student:
            continue
        if teacher not in said:
            said[teacher] = Said(teacher)
        one = said[teacher]
        try:
            distiller = pupil.step(one, shown)
            dual = FAMILIES[student[:-1]].dual and FAMILIES[teacher[:-1]].dual
            assert {t.name for t in distiller.acting} == acting(student, teacher)
            assert distiller.match.branches == (("one2many", "one2one") if dual else ("one2many",))
            assert checksum_of(one.said) == one.kept, "the teacher's knowledge was changed"
        except (AssertionError, RuntimeError) as e:
            failed.append(f"{teacher} -> {student}: {e}")
            continue
        row[teacher] = ", ".join(t.name for t in distiller.acting)
    assert not failed, "\n".join(failed)
    return row


@pytest.mark.parametrize("student", ENDS)
def test_every_family_teaches_every_other_at_its_smallest_and_largest_size(student: str, said: dict[str, Said]) -> None:
    assert len(teach_by_all(student, ENDS, said)) == len(ENDS) - 1


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
    pupil, model = Pupil(built(student)), built(teacher)
    teaching = live(model, pupil)
    before = checksum(model)
    distiller = pupil.step(teaching, batch())
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
    pupil = Pupil(built(student), imgsz=128)
    distiller = pupil.step(live(built(teacher), pupil, imgsz=128), batch(imgsz=128))
    assert distiller.match.strides == strides
    assert distiller.match.neck == tuple(f"neck_p{s.bit_length() - 1}" for s in strides)
    both = {name[:6] for name in (student, teacher)} == {"yolov8"}
    assert {t.name for t in distiller.acting} == set(MKD) - (set() if both else {"soft_dfl"})


@pytest.mark.parametrize(
    ("known", "pairs"),
    [
        (["cat", "dog", "cow"], ((0, 0), (1, 1), (2, 2))),
        (["cow", " Cat", "dog"], ((0, 1), (1, 2), (2, 0))),
        (["ship", "cow", "car", "tree", "dog"], ((1, 4), (2, 1))),
    ],
)
def test_classes_meet_by_name(known: list[str], pairs: tuple[tuple[int, int], ...]) -> None:
    pupil = Pupil(named(built("yolo26n"), ["cat", "dog", "cow"]))
    teacher = named(host.build("yolo11n.yaml", classes=len(known)), known)
    distiller = pupil.step(live(teacher, pupil), batch())
    assert distiller.match.classes == pairs
    assert {t.name for t in distiller.acting} == set(MKD) - {"soft_dfl"}


def test_without_a_shared_class_only_hidden_layers_teach() -> None:
    pupil = Pupil(named(built("yolo11n"), ["cat", "dog", "cow"]))
    distiller = pupil.step(live(named(built("yolov8n"), ["ship", "car", "tree"]), pupil), batch())
    assert {t.name for t in distiller.acting} == {"attention", "relation", "guidance", "exploration"}
    for name in ("soft", "soft_box", "soft_dfl"):
        assert distiller.term(name).why_not == "the teacher knows no class of this data"


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (1, 3), (6, 6)])
def test_images_of_other_channels_are_seen_by_both(ours: int, theirs: int) -> None:
    pupil, model = Pupil(built("yolo26n", ours)), built("yolo26s", theirs)
    teacher, shown, seen = live(model, pupil), batch(ours), []
    model.model[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    distiller = pupil.step(teacher, shown)
    distiller.require_active_term("t.pt")
    assert {t.name for t in distiller.acting} == set(MKD) - {"soft_dfl"}
    assert seen[0].shape[1] == theirs
    assert all(torch.equal(seen[0][:, i], shown["img"][:, i % ours]) for i in range(theirs))


@pytest.mark.parametrize(("ours", "theirs"), [(3, 1), (6, 3), (3, 6), (1, 6)])
def test_a_teacher_of_other_channels_is_refused_in_one_line(ours: int, theirs: int) -> None:
    student, teacher = (host.model_spec(built("yolo26n", channels), IMGSZ) for channels in (ours, theirs))
    with pytest.raises(BadInput, match=f"sees images of {theirs} channels, the data has {ours}") as refused:
        Distiller(student, teacher, GAINS).require_active_term("t.pt")
    assert "\n" not in str(refused.value)


# RT-DETR


@pytest.fixture(scope="module")
def rtdetr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("rtdetr") / "rtdetr.pt"
    RTDETR("rtdetr-l.yaml").save(file)
    return file


def test_an_rtdetr_teacher_teaches_by_its_hidden_layers_and_its_decoder_rests(
    rtdetr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RTDETRDecoder, "forward", lambda *_: pytest.fail("the decoder was run"))
    model, pupil = host.load_detector("teacher", str(rtdetr), transformer=True), Pupil(built("yolo26n"))
    teaching = live(model, pupil)
    before = checksum(model.model[:-1])
    distiller = pupil.step(teaching, batch())
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


def test_a_tiny_student_is_trained_by_an_rtdetr_checkpoint(rtdetr: Path, tiny_detector: Any, tmp_path: Path) -> None:
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
@pytest.mark.parametrize("student", EVERY)
def test_every_size_of_every_family_teaches_every_other(student: str, said: dict[str, Said], table: Any) -> None:
    table[student] = teach_by_all(student, EVERY, said)
