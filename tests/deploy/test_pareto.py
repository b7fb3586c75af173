"""Reports of one file are joined by its hash, machines are kept apart, and the front has the undominated rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd.deploy.pareto import pareto, write_pareto
from yolo_mkd.deploy.pareto.picture import draw_pareto
from yolo_mkd.deploy.pareto.tables import pareto_markdown, pareto_text
from yolo_mkd.settings import BadInput

PC = {"processor": "AMD EPYC", "cores": 2, "system": "Linux x86_64"}
ORIN = {"processor": "Jetson Orin Nano", "cores": 6, "system": "Linux aarch64"}


def save(path: Path, kind: str, **figures: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": f"yolo-mkd/{kind}/1", "machine": PC, **figures}))
    return path


def export(path: Path, digest: str, score: float | None, images: int = 72, **figures: Any) -> Path:
    accuracy = None if score is None else {"map50_95": score, "retained": 0.995, "images": images}
    return save(
        path, "export", file="best.onnx", sha256=digest, bytes=2_500_000, format="onnx", precision="fp32",
        head="one2many", names={"0": "a", "1": "b"}, source={"sha256": path.parent.name}, accuracy=accuracy, **figures,
    )  # fmt: skip


def timed(path: Path, digest: str, p50: float, place: dict[str, Any] = PC, **figures: Any) -> Path:
    return save(path, "time", **{
        "file": "best.onnx", "sha256": digest, "bytes": 2_500_000, "format": "onnx", "precision": "fp32",
        "head": "one2many", "machine": place, "provider": "CPUExecutionProvider", "threads": 1,
        "device": {"power_mode": None, "power": None}, "drift": {"stable": True},
        "segments": {"end_to_end": {"p50_ms": p50, "p90_ms": p50 * 1.2}}, **figures,
    })  # fmt: skip


@pytest.fixture
def runs(tmp_path) -> Path:
    """Three students on a PC: `slow` is dominated by `good`, which was timed on a Jetson, too, with its power."""
    for name, score, p50 in (("quick", 0.30, 2.0), ("good", 0.40, 4.0), ("slow", 0.35, 6.0)):
        export(tmp_path / name / "weights" / "best.export.json", name, score, parameters=650_000)
        timed(tmp_path / name / "weights" / "best.time.json", name, p50)
    jetson = {"power_mode": "MAXN", "power": {"mj_per_image": 31.25}}
    timed(
        tmp_path / "jetson" / "time.json", "good", 9.0, ORIN, provider="TensorRT", threads=None, format="engine",
        precision="fp16", device=jetson,
    )  # fmt: skip
    (tmp_path / "good" / "args.json").write_text('{"schema": "another/1"}')
    return tmp_path


def by_name(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["name"], r["format"]): r for r in document["rows"]}


def test_reports_of_one_file_become_one_row(runs):
    row = by_name(pareto([runs]))["good/best.onnx", "onnx"]
    assert (row["map50_95"], row["retained"], row["p50_ms"], row["bytes"]) == (0.40, 0.995, 4.0, 2_500_000)
    assert (row["runtime"], row["parameters"], row["head"], row["sha256"]) == ("CPU x1", 650_000, "one2many", "good")


def test_engine_on_a_device_inherits_the_accuracy_of_the_file_it_was_built_from(runs):
    row = by_name(pareto([runs]))["good/best.onnx", "engine"]
    assert (row["precision"], row["map50_95"], row["mj_per_image"]) == ("fp16", 0.40, 31.25)
    assert row["machine"] == "Jetson Orin Nano, 6 cores, MAXN" and row["front"]


def test_front_has_the_rows_that_no_row_of_the_same_machine_dominates(runs):
    rows = by_name(pareto([runs]))
    assert rows["quick/best.onnx", "onnx"]["front"] and rows["good/best.onnx", "onnx"]["front"]
    assert not rows["slow/best.onnx", "onnx"]["front"]


def test_equal_rows_are_both_on_the_front(tmp_path):
    for name in ("x", "y"):
        export(tmp_path / name / "e.json", name, 0.4)
        timed(tmp_path / name / "t.json", name, 3.0)
    assert [r["front"] for r in pareto([tmp_path])["rows"]] == [True, True]


def test_equally_fast_and_more_accurate_row_dominates(tmp_path):
    for name, score, p50 in (("a", 0.4, 3.0), ("b", 0.5, 3.0), ("c", 0.5, 4.0)):
        export(tmp_path / name / "e.json", name, score)
        timed(tmp_path / name / "t.json", name, p50)
    assert {r["sha256"]: r["front"] for r in pareto([tmp_path])["rows"]} == {"a": False, "b": True, "c": False}


def test_fifth_decimal_of_accuracy_does_not_count(tmp_path):
    for name, score, p50 in (("onnx", 0.42876, 3.0), ("ncnn", 0.42878, 4.0)):
        export(tmp_path / name / "e.json", name, score)
        timed(tmp_path / name / "t.json", name, p50)
    assert {r["sha256"]: r["front"] for r in pareto([tmp_path])["rows"]} == {"onnx": True, "ncnn": False}


def test_machines_and_power_modes_are_kept_apart(runs):
    timed(
        runs / "slow" / "15w.json", "slow", 12.0, ORIN, provider="TensorRT", threads=None,
        device={"power_mode": "15W", "power": None},
    )  # fmt: skip
    document = pareto([runs])
    assert document["machines"] == [
        "AMD EPYC, 2 cores",
        "Jetson Orin Nano, 6 cores, 15W",
        "Jetson Orin Nano, 6 cores, MAXN",
    ]
    assert pareto_text(document).count("p50 ms") == 3 and pareto_markdown(document).count("p50 ms") == 3
    assert {r["name"] for r in document["rows"]} == {"quick/best.onnx", "good/best.onnx", "slow/best.onnx"}


def test_file_without_time_or_without_accuracy_is_listed_but_not_on_the_front(tmp_path):
    export(tmp_path / "a" / "e.json", "a", 0.4)
    timed(tmp_path / "b" / "t.json", "b", 3.0)
    document = pareto([tmp_path])
    assert [(r["machine"], r["front"]) for r in document["rows"]] == [
        ("AMD EPYC, 2 cores", False),
        ("not timed", False),
    ]
    assert [p.name for p in write_pareto(document, tmp_path / "out")] == ["pareto.json", "pareto.md", "pareto.csv"]
    with pytest.raises(BadInput, match="no file has both"):
        draw_pareto(document, tmp_path / "p.png")


def test_bundle_gives_the_accuracy_of_its_own_onnx(tmp_path):
    save(
        tmp_path / "bundle.json", "bundle", head="one2one", names=["a", "b"], source={"sha256": "s"},
        model={"file": "model.onnx", "sha256": "m", "bytes": 5, "precision": "int8"},
        reference={"map50_95": 0.39, "retained": 0.991, "map50": 0.7},
    )  # fmt: skip
    timed(tmp_path / "time.json", "m", 5.0)
    (row,) = pareto([tmp_path])["rows"]
    assert (row["map50_95"], row["retained"], row["source"], row["p50_ms"]) == (0.39, 0.991, "s", 5.0)


def test_later_check_overrides_the_accuracy(tmp_path):
    first = export(tmp_path / "e.json", "a", None)
    second = save(tmp_path / "c.json", "check", sha256="a", accuracy={"map50_95": 0.5, "retained": 1.0, "images": 9})
    (row,) = pareto([first, second])["rows"]
    assert (row["map50_95"], row["format"]) == (0.5, "onnx")


def test_same_file_name_everywhere_is_told_apart_by_its_folder(runs):
    assert {r["name"] for r in pareto([runs])["rows"]} == {"quick/best.onnx", "good/best.onnx", "slow/best.onnx"}


def test_accuracy_on_other_images_is_an_error(tmp_path):
    export(tmp_path / "a" / "e.json", "a", 0.4)
    export(tmp_path / "b" / "e.json", "b", 0.4, images=12)
    with pytest.raises(BadInput, match=r"is of different numbers of images: check both with the same data="):
        pareto([tmp_path])


def test_second_time_of_one_file_is_an_error(runs):
    timed(runs / "again.json", "good", 4.1)
    with pytest.raises(BadInput, match=r"and .*json time one file on the same machine: keep one"):
        pareto([runs])
    timed(runs / "again.json", "good", 3.0, threads=2)
    assert len(pareto([runs])["rows"]) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ('{"schema": "yolo-mkd/train/1"}', "is not a report of export, check, time, bundle"),
        ('{"schema": "yolo-mkd/time/1", "sha256": null}', "does not state its file's SHA-256"),
    ],
)
def test_report_that_cannot_be_joined_is_an_error(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        pareto([tmp_path / "r.json"])


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="contains no reports"):
        pareto([tmp_path])


def test_table_leaves_out_empty_columns_and_all_files_have_the_same_rows(runs, tmp_path):
    document = pareto([runs / "good", runs / "quick"])
    text = pareto_text(document)
    assert "mJ/image" not in text and "mJ/image" in pareto_text(pareto([runs]))
    assert "0.4000" in text and "99.5%" in text and "650,000" in text
    written = write_pareto(document, tmp_path / "out")
    assert [p.name for p in written] == ["pareto.json", "pareto.md", "pareto.csv", "pareto.png"]
    rows = list(csv.DictReader((tmp_path / "out" / "pareto.csv").open()))
    assert [r["p50_ms"] for r in rows] == ["2.0", "4.0"] and rows[0]["sha256"] == "quick"
    assert json.loads(written[0].read_text())["schema"] == "yolo-mkd/pareto/1"


def test_picture_has_a_panel_per_machine_and_a_point_per_row(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn, savefig = [], Figure.savefig

    def keep_and_save(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    draw_pareto(pareto([runs]), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob("*.part"))
    panels = [axes for axes in drawn[0].axes]
    assert [axes.get_title(loc="left") for axes in panels] == ["AMD EPYC, 2 cores", "Jetson Orin Nano, 6 cores, MAXN"]
    points = [[line for line in axes.lines if line.get_marker() not in ("None", "")] for axes in panels]
    assert [len(found) for found in points] == [3, 1]
    assert points[0][0].get_xydata().tolist() == [[2.0, 0.30]]
    assert [text.get_text() for text in panels[0].texts] == ["quick/best.onnx", "good/best.onnx"]
