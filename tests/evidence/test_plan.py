"""What `yolo-mkd plan` predicts before training is what training then measures."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from yolo_mkd import chain, cli, host
from yolo_mkd.evidence import plan as planning
from yolo_mkd.evidence.plan import accuracy, probe, sample
from yolo_mkd.evidence.plan import text as plan_text
from yolo_mkd.settings import BadInput

RUN: dict[str, Any] = {"imgsz": 64, "epochs": 1, "batch": 4, "nbs": 4, "fraction": 0.25, "device": "cpu", "seed": 3}


@pytest.fixture(scope="module", autouse=True)
def few_batches() -> Any:
    """Few batches are enough for a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "MEASURED", (4, 4))
        patch.setattr(probe, "TIMED", (2, 2))
        yield


def planned_run(detector: Any) -> dict[str, Any]:
    models = {"model": str(detector.student), "teacher": str(detector.pt), "assistant": None}
    return {**RUN, "data": str(detector.data), **models}


@pytest.fixture(scope="module")
def arguments(tiny_detector: Any) -> dict[str, Any]:
    return planned_run(tiny_detector)


@pytest.fixture(scope="module")
def untrained(untrained_detector: Any) -> dict[str, Any]:
    """The same with a teacher that was never trained."""
    return planned_run(untrained_detector)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planned")


@pytest.fixture(scope="module")
def planned(arguments: dict[str, Any], place: Path) -> dict[str, Any]:
    return planning.plan(**arguments, calibrate=False, json=place / "plan.json")


@pytest.fixture(scope="module")
def trained(arguments: dict[str, Any], place: Path) -> Path:
    return chain.train(**arguments, calibrate=False, plots=False, project=str(place), name="run")[0] / "student"


def terms(figures: dict[str, Any], stage: int = -1, teacher: int = 0) -> dict[str, dict[str, Any]]:
    return {t["term"]: t for t in figures["stages"][stage]["hops"][teacher]["terms"]}


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# What it predicts, against what happens


def test_its_shares_and_cosines_are_those_that_training_measures_on_the_same_batch(
    planned: dict[str, Any], trained: Path
) -> None:
    with open(trained / "shares.csv", encoding="utf-8") as f:
        rows = {r["term"]: r for r in csv.DictReader(f)}
    predicted = {name: t for name, t in terms(planned).items() if t["acts"]}
    assert set(rows) == set(predicted) and len(rows) == 6
    for name, t in predicted.items():
        assert t["share"]["values"][0] == pytest.approx(float(rows[name]["share"]), rel=2e-3)
        assert t["cosine"]["values"][0] == pytest.approx(float(rows[name]["cosine"]), rel=2e-3, abs=1e-3)


def test_its_disk_is_what_the_run_leaves(planned: dict[str, Any], trained: Path) -> None:
    left = sum(f.stat().st_size for f in (trained / "weights").iterdir())
    assert planned["stages"][0]["disk"]["kept"] == pytest.approx(left, rel=0.02)


def test_its_sizes_and_optimizer_updates_are_those_of_the_run(planned: dict[str, Any], trained: Path) -> None:
    stage = planned["stages"][0]
    assert {k: stage[k] for k in ("parameters", "gflops")} == host.size(trained / "weights/best.pt", 64)
    assert stage["updates"] == 6  # 24 images in batches of 4, nbs 4


def test_its_accuracy_of_a_teacher_is_that_of_stock_validation(planned: dict[str, Any], tiny_detector: Any) -> None:
    from ultralytics import YOLO

    found = YOLO(tiny_detector.pt).val(data=tiny_detector.data, imgsz=64, device="cpu", plots=False, verbose=False)
    assert planned["examined_images"] == 16
    assert planned["accuracy"]["teacher"]["map50_95"] == pytest.approx(found.box.map, abs=1e-6)
    assert found.box.map > 0.05


def test_calibration_would_set_the_gain_that_gives_the_requested_share(arguments: dict[str, Any]) -> None:
    t = terms(planning.plan(**arguments, calibrate=True, attention=0.3))["attention"]
    strengths = [v / t["nominal_gain"] for v in t["share"]["values"]]
    middle = (strengths[2] + strengths[3]) / 2  # the later half of the measurements
    assert len(strengths) == 4 and not t["at_limit"]
    assert t["gain"] == pytest.approx(0.3 / middle)


def test_memory_counts_each_saved_storage_once_and_no_weight() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 5))
    x = torch.zeros(4, 10, requires_grad=True)
    saved = probe.SavedTensorCounter(model)
    with saved:
        model(x).sum()
    assert saved.bytes == 4 * (4 * 10 + 4 * 20)  # the input, and the sigmoid's output, which the next layer saves too


def test_memory_of_weights_gradients_and_states_is_exact(planned: dict[str, Any]) -> None:
    m, count = planned["stages"][0]["memory"], planned["stages"][0]["parameters"]
    beside = sum(t["trains"] for t in terms(planned).values())
    assert 4 * count < m["parameters"] == m["average"] < 4.2 * count  # the batch norms' statistics beside the weights
    assert m["gradients"] == 4 * (count + beside)
    assert m["total_taught"] == sum(
        m[k] for k in ("parameters", "gradients", "optimizer", "average", "teachers", "activations_taught")
    )
    assert m["activations_taught"] > m["activations_plain"] > 0


# What it leaves


def test_it_prints_nothing_and_leaves_nothing_but_its_json(
    arguments: dict[str, Any], tiny_detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    before = files(tiny_detector.data.parent) | files(Path(host.run_folder(None, None, False)).parent)
    planning.plan(**arguments, json="here.json")
    assert files(tmp_path) == {tmp_path / "temporary", tmp_path / "here.json"}
    assert files(tiny_detector.data.parent) | files(Path(host.run_folder(None, None, False)).parent) == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert capfd.readouterr() == ("", "")


def test_an_interruption_leaves_nothing(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    level = host.LOGGER.level

    def interrupt(self: Any, trainer: Any) -> None:
        assert files(tmp_path / "temporary")
        raise KeyboardInterrupt

    monkeypatch.setattr(probe.Probe, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        planning.plan(**arguments, json=str(tmp_path / "never.json"))
    assert files(tmp_path) == {tmp_path / "temporary"}
    assert host.LOGGER.level == level


def test_its_json_holds_the_figures_of_the_text(planned: dict[str, Any], place: Path) -> None:
    written = json.loads((place / "plan.json").read_text(encoding="utf-8"))
    assert written["schema"] == "yolo-mkd/plan/1"
    assert {k: written[k] for k in planned} == json.loads(json.dumps(planned))
    assert plan_text.text(written) == plan_text.text(planned)


def test_the_text_has_what_was_measured_within_its_width(planned: dict[str, Any]) -> None:
    shown = plan_text.text(planned)
    soft = terms(planned)["soft"]
    assert f"{soft['share']['mean']:.2g} +- {soft['share']['sd']:.1g}" in shown
    assert f"{planned['accuracy']['teacher']['map50_95']:.3f}" in shown
    assert "soft_dfl does not act: neither head has box-side distributions" in shown
    assert shown.splitlines()[-1].endswith(planned["answer"].split()[-1])
    assert max(map(len, shown.splitlines())) <= plan_text.WIDTH + 10


# Chains


def test_the_gradients_of_an_untrained_teacher_are_left_open(arguments: dict[str, Any]) -> None:
    first = {"teacher": "yolo26n.yaml", "teacher_epochs": 5, "close_mosaic": 2}
    found = planning.plan(**{**arguments, **first})
    teacher, student = found["stages"]
    assert (teacher["name"], teacher["epochs"], teacher["hops"], teacher["memory"]["teachers"]) == ("teacher", 5, [], 0)
    assert not student["hops"][0]["known"] and "share" not in terms(found)["soft"] and terms(found)["soft"]["acts"]
    assert student["cost"]["probe"]["taught"]  # the stand-in's steps were timed all the same
    assert student["hops"][0]["parameters"] == teacher["parameters"]
    assert (teacher["mosaic_epochs"], student["mosaic_epochs"]) == (3, 0)
    assert found["accuracy"] == {}
    assert "cannot be known before the teacher is trained" in found["answer"]
    assert plan_text.text(found)


def test_an_assistants_gradients_are_measured_as_far_as_they_can_be(
    arguments: dict[str, Any], tiny_detector: Any
) -> None:
    middle = str(tiny_detector.student.with_name("middle.yaml"))
    Path(middle).write_text(Path(arguments["model"]).read_text(encoding="utf-8"), encoding="utf-8")
    found = planning.plan(**{**arguments, "assistant": middle})
    assert [s["name"] for s in found["stages"]] == ["assistant", "student"]
    assert [(h["teacher"], h["known"]) for h in found["stages"][1]["hops"]] == [("teacher", True), ("assistant", False)]
    assert "share" in terms(found, 0)["soft"] and "share" in terms(found, 1, 0)["soft"]
    assert "share" not in terms(found, 1, 1)["soft"]
    assert found["total"]["hours"] == pytest.approx(sum(s["cost"]["hours"] for s in found["stages"]))


@pytest.mark.parametrize(
    ("classes", "names", "known"),
    [
        ({0: 2, 1: 0, 2: 3}, {0: "GREEN", 1: "unmatched", 2: "red", 3: "blue"}, [0, 2, 3]),
        ({2: 0}, {0: "Blue "}, [0]),
    ],
)
def test_a_class_is_found_by_name_whatever_its_index(
    classes: dict[int, int], names: dict[int, str], known: list[int], tiny_detector: Any, tmp_path: Path
) -> None:
    from ultralytics import YOLO

    stock = YOLO(tiny_detector.pt).val(data=tiny_detector.data, imgsz=64, device="cpu", plots=False, verbose=False).box
    kept = dict.fromkeys(("train", "val"), tiny_detector.images)
    data = host.check_data(str(sample.copy(host.check_data(tiny_detector.data), kept, tmp_path, classes, names)))
    exam = accuracy.QuickEval(data, sample.images_of(data, "val"), tmp_path / "exam", "cpu")
    found = exam.score("teacher", str(tiny_detector.pt), 64)
    assert found["map50_95"] == pytest.approx(sum(stock.maps[i] for i in classes) / len(classes), abs=1e-9)
    assert sorted(found["classes"]) == known


def test_merged_classes_are_scored_as_one_without_the_detections_of_other_classes(
    tiny_detector: Any, tmp_path: Path
) -> None:
    from ultralytics import YOLO

    labels = sorted((tiny_detector.data.parent / "labels/val").glob("*.txt"))
    classes, names = {0: 0, 2: 1}, {0: "red", 1: "blue"}
    kept = dict.fromkeys(("train", "val"), tiny_detector.images)
    data = host.check_data(str(sample.copy(host.check_data(tiny_detector.data), kept, tmp_path, classes, names)))
    exam = accuracy.QuickEval(data, sample.images_of(data, "val"), tmp_path / "exam", "cpu", single_cls=True)
    found = exam.score("teacher", str(tiny_detector.pt), 64)
    assert found["classes"] == [0, 1] and len(labels) == 16
    stock = YOLO(tiny_detector.pt).val(
        data=tiny_detector.data, imgsz=64, device="cpu", plots=False, verbose=False, single_cls=True
    )
    merged = accuracy.QuickEval(
        host.check_data(tiny_detector.data), tiny_detector.images, tmp_path / "all", "cpu", True
    )
    assert merged.score("teacher", str(tiny_detector.pt), 64)["map50_95"] == pytest.approx(stock.box.map, abs=1e-9)
    # with the green boxes counted as false detections it would be lower
    with_green = YOLO(tiny_detector.pt).val(
        data=str(tmp_path / "exam/exam_teacher/data.yaml"), imgsz=64, device="cpu", plots=False, verbose=False,
        single_cls=True,
    )  # fmt: skip
    assert found["map50_95"] > with_green.box.map + 0.02


def test_label_rows_are_renamed_and_others_dropped() -> None:
    rows = ["0 0.5 0.5 0.1 0.1", "", "2 0.1 0.1 0.1 0.1", "1.0 0 0 1 1 1 0"]
    assert sample.renamed(rows, {0: 7, 1: 0}) == ["7 0.5 0.5 0.1 0.1", "0 0 0 1 1 1 0"]


def test_a_spread_of_images_is_even_and_keeps_all_where_there_are_few() -> None:
    images = [Path(str(i)) for i in range(10)]
    assert sample.evenly_spaced(images, 5) == images[::2]
    assert sample.evenly_spaced(images, 10) == images


# Its conclusion


def test_a_teacher_no_better_than_its_student_hardly_helps(
    arguments: dict[str, Any], tiny_detector: Any, tmp_path: Path
) -> None:
    same = tmp_path / "same.pt"
    torch.save({**torch.load(tiny_detector.pt, weights_only=False), "epoch": 7}, same)
    found = planning.plan(**{**arguments, "model": str(same)})
    assert "teacher_no_better" in {w["what"] for w in found["warnings"]}
    assert "hardly help" in found["answer"]


# Refusals


@pytest.mark.parametrize(
    "changes",
    [
        {"data": None},
        {"data": "gone.yaml"},
        {"teacher": "gone.pt"},
        {"teacher": "yolo26s.yaml"},
        {"imgsz": 63},
        {"attention": -1},
        {"preset": "nothing"},
        {"epochs": "many"},
        {"distill_model": "yolo26s.pt"},
        {"task": "segment"},
        {"teacher_epochs": -1},
    ],
)
def test_it_refuses_what_train_refuses_with_the_same_message(
    changes: dict[str, Any], untrained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as trains:
        chain.create({**untrained, **changes})
    with pytest.raises(BadInput) as plans:
        planning.plan(**{**untrained, **changes}, json="never.json")
    assert str(plans.value) == str(trains.value)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epoch": 3}, "epoch= is not an argument of yolo-mkd plan: did you mean epochs="), ({"resume": True}, "resume=")],
)
def test_it_refuses_what_it_cannot_predict(changes: dict[str, Any], message: str, untrained: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=message):
        planning.plan(**untrained, **changes)


def test_a_folder_that_holds_a_chain_is_refused(untrained: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "chain.yaml").write_text(yaml.safe_dump({}), encoding="utf-8")
    with pytest.raises(BadInput, match="holds a chain already"):
        planning.plan(**untrained, project=str(tmp_path), name="taken", exist_ok=True)


def test_the_command_prints_the_plan(
    planned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "plan", lambda **arguments: planned if arguments == {"epochs": 1} else None)
    assert cli.run(["plan", "epochs=1"]) == 0
    assert capsys.readouterr().out == plan_text.text(planned) + "\n"


def test_the_images_of_a_plan_are_those_that_fraction_leaves(untrained_detector: Any) -> None:
    data = host.check_data(str(untrained_detector.data))
    every = sample.images_of(data, "train")
    assert sample.images_of(data, "train", 5) == every[:5]
    assert sample.images_of(data, "val", [0.5, 3]) == sample.images_of(data, "val")[:3]
