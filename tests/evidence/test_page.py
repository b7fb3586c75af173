"""What a page says: objects won and lost, the images chosen, intervals, gradients, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd.evidence.page import objects, training, write_page
from yolo_mkd.evidence.page.blocks import Page, axis_ends, bar
from yolo_mkd.evidence.page.comparison import (
    first_difference,
    interval_bars,
    planned,
    short_name,
    where_lines,
)
from yolo_mkd.evidence.page.exports import export_charts
from yolo_mkd.evidence.page.looks import inside
from yolo_mkd.settings import BadInput


def thing(x: float, name: str = "a", **others: Any) -> dict[str, Any]:
    return {"box": [x, 0.0, x + 0.2, 0.2], "name": name, **others}


def test_a_detection_finds_the_free_object_of_its_class_that_it_overlaps_most() -> None:
    labelled = [thing(0.0), thing(0.5), thing(0.5, "b")]
    # IoU of boxes shifted by 0.05 of 0.2: 0.15 / 0.25 = 0.6; by 0.1: 0.1 / 0.3 = 0.33
    detections = [thing(0.05, conf=0.6), thing(0.0, conf=0.5), thing(0.6, conf=0.9), thing(0.5, "c", conf=0.8)]
    assert objects.match(labelled, detections) == {0}
    assert [d["hit"] for d in detections] == [True, False, False, False]
    assert objects.match([], detections) == set()
    assert not any(d["hit"] for d in detections)


def test_an_object_is_won_by_the_student_and_lost_to_the_reference() -> None:
    labelled = [thing(0), thing(1), thing(2), thing(3)]
    objects.mark_fates(labelled, {0, 1}, {1, 2})
    assert [o["fate"] for o in labelled] == ["lost", "", "won", ""]
    count = objects.tally(labelled, [True, True, False, False], [False, True, True, False])
    assert count == {"objects": 4, "reference": 2, "student": 2, "won": 1, "lost": 1}


def test_images_are_chosen_by_their_won_and_lost_objects() -> None:
    fates = {"a": [""] * 9, "b": ["won"], "c": ["won", "won"], "d": ["lost"], "e": ["won", "lost", "lost"], "f": [""]}
    chosen = objects.choose_images(list(fates), [[{"fate": f} for f in own] for own in fates.values()])
    names = [list(fates)[i] for i, _ in chosen]
    assert names == ["c", "b", "e", "d", "a", "f"]  # c, b and e won most; of the others d lost; then most objects
    assert "won" in chosen[2][1]
    assert "lost" in chosen[3][1]


@pytest.mark.parametrize(
    ("row", "task", "box"),
    [
        ("1 0.5 0.5 0.2 0.4", "detect", [0.4, 0.3, 0.6, 0.7]),
        ("1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6", "obb", [0.1, 0.2, 0.5, 0.6]),
        ("1 0.1 0.3 0.4 0.9 0.8 0.2", "segment", [0.1, 0.2, 0.8, 0.9]),
        ("1 0.5 0.5 0.2 0.4 0.1 0.1 2", "pose", [0.4, 0.3, 0.6, 0.7]),
    ],
)
def test_labels_of_every_task_give_boxes(tmp_path: Path, row: str, task: str, box: list[float]) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels/x.txt").write_text(row + "\n")
    (found,) = objects.labelled_objects(tmp_path / "images/x.jpg", {1: "cell"}, task)
    assert found["box"] == pytest.approx(box)
    assert found["name"] == "cell"


def test_the_letterbox_is_cut_off_a_layers_features() -> None:
    import torch

    features = torch.arange(64.0).view(1, 1, 8, 8)
    assert inside(features, (480, 640, 3))[0, 0, :, 0].tolist() == [8, 16, 24, 32, 40, 48]  # 6 of 8 rows, centred
    assert inside(features, (640, 480, 3)).shape[2:] == (8, 6)


def difference(mean: float, low: float | None, high: float | None, verdict: str) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "seeds": 3, "verdict": verdict}


def test_a_bar_has_the_place_of_its_interval_on_the_axis() -> None:
    found = bar("x", "", (0.0, 0.01, 0.02), (-0.01, 0.03), "better")
    assert (found.left, found.width, found.mark, found.zero) == (25.0, 50.0, 50.0, 25.0)
    assert axis_ends([0.5]) == pytest.approx((-0.03, 0.53))
    better, unclear = interval_bars(
        [
            ("mkd", difference(0.02, 0.01, 0.03, "better")),
            ("native", difference(0.0, -0.01, 0.01, "not distinguishable")),
        ]
    )
    assert (better.state, unclear.state) == ("better", "unclear")
    assert better.text == "+0.020 [+0.010, +0.030]"
    assert better.left > better.zero > unclear.left


def test_the_answer_is_the_last_methods_difference_from_the_first_reference() -> None:
    change = difference(0.02, 0.01, 0.03, "better")
    rows: list[Any] = [
        {"method": "plain", "against": {}},
        {"method": "native", "against": {"plain": {"map50_95": difference(0, -1, 1, "not distinguishable")}}},
        {"method": "mkd", "against": {"plain": {"map50_95": change}}},
    ]
    assert first_difference(rows, ["plain"]) == ("mkd", "plain", change)
    assert first_difference(rows[:1], ["plain"]) is None


def test_a_heading_has_no_folders_of_paths() -> None:
    assert short_name("mkd:unlabelled=/a b/c/more:unlabelled_ratio=3") == "mkd:unlabelled=more:unlabelled_ratio=3"
    assert short_name("only:soft=2:until=0.5") == "only:soft=2:until=0.5"


def test_classes_that_differ_clearly_are_named_with_the_largest_gain_first() -> None:
    changes = {
        "bolt": difference(-0.02, -0.03, -0.01, "worse"),
        "ball": difference(0.05, 0.01, 0.09, "better"),
        "nut": difference(0.05, -0.1, 0.2, "not distinguishable"),
    }
    classes = {n: {"mean": 0.5, "change": c} for n, c in changes.items()}
    against = {"plain": {"map50_95": difference(0.02, -0.01, 0.05, "not distinguishable")}}
    row: Any = {"method": "mkd", "against": against, "classes": classes}
    plain: Any = {"method": "plain", "against": {}}
    (line,) = where_lines("set: ", [plain, row])
    assert line == (
        "set: mkd: not distinguishable from plain. Classes that differ clearly from plain: ball +0.050, bolt -0.020."
    )
    row["classes"] = {}
    assert where_lines("", [row]) == ["mkd: not distinguishable from plain."]


def chain_of(folder: Path) -> dict[str, Any]:
    """A chain's folder without models, as an old run has it whose checkpoints are deleted."""
    stage = folder / "student"
    stage.mkdir(parents=True)
    (stage / "results.csv").write_text(
        "epoch,train/box_loss,kd/soft,kd/weight,metrics/mAP50-95(B)\n1,2.0,1.5,0.5,0.1\n2,1.0,0,0,0.3\n"
    )
    (stage / "shares.csv").write_text(
        "epoch,teacher,term,weight,share,cosine\n1,big/weights/best.pt,soft,0.5,0.4,0.7\n2,big/weights/best.pt,soft,1,0.4,0.6\n"
    )
    chain = {
        "schema": "yolo-mkd/chain/2", "started": "2026-01-01T00:00:00+00:00", "versions": {"yolo-mkd": "0.2.0"},
        "knowledge": {"preset": None, "soft": 1.0, "attention": 0.5}, "teacher_epochs": 0, "seed": 0,
        "arguments": {"data": "gone.yaml", "epochs": 2, "project": "a b"},
        "teacher": {"file": "/gone/big/weights/best.pt", "sha256": "ab12"},
        "stages": [
            {"name": "student", "model": "small.yaml", "hears": ["/gone/big/weights/best.pt"], "parameters": 1000000,
             "status": "done", "weights": "/gone/best.pt", "sha256": "cd34", "seconds": 90.0,
             "metrics": {"map50_95": 0.3, "map50": 0.5}},
        ],
    }  # fmt: skip
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    return chain


def test_the_page_of_a_run_whose_models_are_gone_has_its_figures(tmp_path: Path) -> None:
    chain_of(tmp_path / "run")
    text = write_page(tmp_path / "run").read_text()
    assert "The student reaches 0.300 mAP50-95." in text
    assert "ab12" in text
    assert "cd34" in text
    assert "is not a file on this disk, so no images are shown" in text
    assert text.count("<svg") == 5  # accuracy, detection loss, distillation losses, shares, cosines
    assert "Distillation was on in 1 of 2 epochs" in text
    assert 'id="attention"' not in text
    assert "http-equiv" in text
    assert 'src="http' not in text


def test_the_command_of_a_chain_names_what_differs_from_the_defaults(tmp_path: Path) -> None:
    words = training.command_of(chain_of(tmp_path / "run")).split(" ", 2)[2]  # type: ignore[arg-type]
    assert words == (
        "model=small.yaml teacher=/gone/big/weights/best.pt assistant=none soft=1.0 data=gone.yaml epochs=2 "
        "project='a b'"
    )


@pytest.mark.parametrize(
    ("make", "plain", "reason"),
    [
        (False, None, "holds no finished run"),
        (True, "none.pt", "plain=none.pt: no such file"),
    ],
)
def test_what_has_no_page_is_refused(tmp_path: Path, make: bool, plain: str | None, reason: str) -> None:
    if make:
        chain_of(tmp_path / "run")
    with pytest.raises(BadInput, match=reason):
        write_page(tmp_path / "run", plain=plain)


def test_the_plan_that_is_given_is_copied_and_its_warnings_are_shown(tmp_path: Path) -> None:
    chain_of(tmp_path / "run")
    found = [
        {"what": "gap", "stage": "student", "text": "the teacher is far"},
        {"what": "batch", "stage": "", "text": "small"},
    ]
    plan = {"schema": "yolo-mkd/plan/1", "answer": "Likely to help.", "warnings": found}
    (tmp_path / "p.json").write_text(json.dumps(plan))
    text = write_page(tmp_path / "run", plan=tmp_path / "p.json").read_text()
    assert "<li>student: the teacher is far</li><li>small</li>" in text
    assert "Likely to help." in text
    (tmp_path / "p.json").unlink()
    assert write_page(tmp_path / "run").read_text() == text
    assert json.loads((tmp_path / "run/plan.json").read_text()) == plan


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("{}", "is not a report of yolo-mkd plan"),
        ("[", "is damaged"),
        ('{"schema": "yolo-mkd/plan/1", "answer": "x", "warnings": [{"text": 3}]}', "is damaged"),
    ],
)
def test_another_file_is_no_plan(tmp_path: Path, contents: str, reason: str) -> None:
    chain_of(tmp_path / "run")
    (tmp_path / "p.json").write_text(contents)
    with pytest.raises(BadInput, match=reason):
        write_page(tmp_path / "run", plan=tmp_path / "p.json")
    assert not (tmp_path / "run/plan.json").exists()


def exported_file(folder: Path, name: str, p50_ms: float | None, retained: float | None, stable: bool = True) -> None:
    """The reports of an exported file."""
    facts = {"file": name, "bytes": 100, "sha256": f"of {name}", "names": {"0": "cell"}}
    parts = {"format": "onnx", "precision": "fp32", "head": "one2one"}
    accuracy = {"map50_95": 0.4, "retained": retained, "images": 8}
    report = {"schema": "yolo-mkd/export/1", **facts, **parts, "accuracy": accuracy}
    (folder / f"{name}.json").write_text(json.dumps(report))
    if p50_ms is not None:
        timed = {
            "schema": "yolo-mkd/time/1", **facts, "provider": "CPUExecutionProvider", "threads": 1,
            "machine": {"processor": "a processor", "cores": 2}, "drift": {"stable": stable},
            "segments": {"end_to_end": {"p50_ms": p50_ms, "p90_ms": None}},
        }  # fmt: skip
        (folder / f"{name}.time.json").write_text(json.dumps(timed))


def test_a_chart_shows_the_accuracy_that_timed_files_keep(tmp_path: Path) -> None:
    exported_file(tmp_path, "a.onnx", 2.0, 1.0)
    exported_file(tmp_path, "b.onnx", 1.0, 0.97, stable=False)
    exported_file(tmp_path, "untimed.onnx", None, 0.9)
    exported_file(tmp_path, "unmeasured.onnx", 1.5, None)
    (chart,) = export_charts(tmp_path)
    assert chart.title == "Accuracy kept against latency: a processor, 2 cores"
    assert ["a.onnx, CPU x1" in chart.svg, "b.onnx, CPU x1" in chart.svg] == [True, True]
    assert chart.caption == "Times that drifted: b.onnx."
    assert "untimed.onnx" not in chart.svg
    assert "unmeasured.onnx" not in chart.svg
    assert "100.0%" in chart.svg
    assert "var(--ink)" in chart.svg
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export_charts(empty) == []


@pytest.mark.parametrize(("images", "caveat"), [(200, " Measured on 120 of 200 validation images."), (120, "")])
def test_a_figure_of_some_of_the_images_says_of_how_many(images: int, caveat: str) -> None:
    figures = {"map50_95": 0.3, "map50": 0.5, "parameters": 10, "label": "student"}
    models = [{"role": role, **figures} for role in ("plain", "student")]
    looks: Any = {"models": models, "examined": 120, "val_images": images, "reference": "student", "tally": {}}
    chain: Any = {"stages": [{"seconds": 60.0}], "knowledge": {}}
    page = Page("training", "run", "")
    training.answer(page, chain, looks)
    assert page.caveat.endswith(f"several seeds.{caveat}")


def test_where_names_the_objects_and_the_false_detections_of_both() -> None:
    models: list[dict[str, Any]] = [
        {"role": "plain", "label": "plain student", "classes": {"nut": 0.3}, "false_detections": 14},
        {"role": "student", "label": "distilled student", "classes": {"nut": 0.4}, "false_detections": 36},
    ]
    tally = {"won": 8, "lost": 2, "objects": 16}
    looks: Any = {"models": models, "reference": "plain", "tally": tally, "examined": 4, "conf": 0.25}
    assert training.where_it_helped(looks) == [
        "Objects at confidence 0.25: 8 found by the student and missed by the plain student, 2 the other way round, of "
        "16 in 4 images; false detections: 36 against 14.",
        "Classes: nut +0.100 AP50-95 against the plain student.",
    ]
    del models[0]["false_detections"]  # looks.json of an older version
    assert "false detections" not in training.where_it_helped(looks)[0]


@pytest.mark.parametrize(
    ("file", "contents", "reason"),
    [
        ("chain.yaml", {"stages": []}, r"run=.*chain.yaml is damaged \(its stages are none.*: restore it from a copy"),
        ("chain.yaml", {"seed": "x"}, r"run=.*chain.yaml is damaged \(seed: "),
        ("chain.yaml", {"schema": "yolo-mkd/chain/1"}, "was not written by this version"),
        ("chain.yaml", {"arguments": {}}, "figures of its files do not fit together .KeyError: 'data'.: restore"),
        (
            "report/looks.json",
            {"schema": "yolo-mkd/looks/1"},
            r"looks.json is damaged \(versions: .*: remove its",
        ),
        ("plan.json", {"schema": "yolo-mkd/plan/1"}, r"plan.json is damaged \(answer: "),
        ("compare.json", {"schema": "yolo-mkd/compare/1"}, r"run=.*compare.json is damaged .*compare resume="),
        ("compare.json", {"schema": "yolo-mkd/check/1"}, "is not a report of yolo-mkd compare"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(tmp_path: Path, file: str, contents: dict[str, Any], reason: str) -> None:
    run = tmp_path / "run"
    chain = chain_of(run)
    (run / "report").mkdir()
    (run / file).write_text(json.dumps({**chain, **contents} if file == "chain.yaml" else contents))
    with pytest.raises(BadInput, match=reason):
        write_page(run)
    assert not (run / "report.html").exists()


def test_a_trial_of_an_edited_plan_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    cell = {"name": "../x", "data": "d", "student": "s", "method": "plain", "seed": 0, "arguments": {}}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"cells": [cell]}))
    with pytest.raises(BadInput, match=r"compare.yaml is damaged \(cells.0.name: .*inside its folder"):
        planned(tmp_path)


def test_garbage_in_the_gradient_shares_is_one_line(tmp_path: Path) -> None:
    chain_of(tmp_path / "run")
    (tmp_path / "run/student/shares.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"shares.csv cannot be read"):
        write_page(tmp_path / "run")
    (tmp_path / "run/student/shares.csv").write_text("epoch,teacher\n1,t\n")
    with pytest.raises(BadInput, match=r"figures of its files do not fit together .KeyError: 'term'"):
        write_page(tmp_path / "run")
