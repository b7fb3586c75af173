"""Files that yolo-mkd wrote and somebody edited: every damaged field is one line, and no name leaves its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd import chain
from yolo_mkd.chain.document import read_chain
from yolo_mkd.documents import inner, read_json, read_yaml
from yolo_mkd.edge.bundle import EdgeError, inside, read_bundle, sha256
from yolo_mkd.evidence.compare.trial import Trial, check_task
from yolo_mkd.evidence.compare.trials import load_result
from yolo_mkd.settings import BadInput

OUTSIDE = ["../x", "/etc/x", "a/../../x", "C:\\x", "a\\b", "", "..", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="inside its folder"):
        inner(name)
    with pytest.raises(EdgeError, match="is not the name of a file"):
        inside(Path("bundle"), name)


def test_a_name_inside_its_folder_is_returned_unchanged() -> None:
    assert inner("data/student n/mkd:x=1-s0") == "data/student n/mkd:x=1-s0"
    assert inside(Path("bundle"), "00.png") == Path("bundle/00.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "cannot be read"), (b"[" * 100_000, "is damaged"), (b"{", "is damaged")],
)
def test_a_file_that_is_not_text_or_too_deep_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(content)
    for read in (read_json, read_yaml):
        with pytest.raises(BadInput, match=message) as refused:
            read(file, str(file), "restore it")
        assert "\n" not in str(refused.value) and str(refused.value).endswith(": restore it")


CHAIN: dict[str, Any] = {
    "schema": chain.SCHEMA,
    "started": "2026-01-01T00:00:00",
    "versions": {"python": "3.11"},
    "knowledge": {"attention": 0.5, "until": 0.5},
    "teacher_epochs": 0,
    "seed": 0,
    "arguments": {"epochs": 3, "data": "d.yaml"},
    "teacher": None,
    "stages": [{"name": "student", "model": "s.yaml", "hears": [], "parameters": 1, "status": "waiting"}],
}
STAGE = CHAIN["stages"][0]


def test_a_whole_chain_is_read_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(CHAIN))
    assert read_chain(file) == CHAIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"stages": [{**STAGE, "name": name}]}, "stages.0.name") for name in ("../out", "/elsewhere/out", "a/b", 7)),
        ({"stages": []}, "do not end in one student"),
        ({"stages": [STAGE, STAGE]}, "do not end in one student"),
        ({"stages": "none"}, "stages"),
        ({"stages": [{**STAGE, "status": "paused"}]}, "stages.0.status"),
        ({"stages": [{**STAGE, "status": "done"}]}, "is done without its metrics"),
        ({"arguments": {"save_dir": "/elsewhere/out"}}, "save_dir= is not an argument"),
        ({"arguments": {"project": "/elsewhere/out"}}, "project= is not an argument"),
        ({"arguments": {"trust": True}}, "trust= is not an argument"),
        ({"arguments": {"batch": -5}}, "batch=-5 must be"),
        ({"knowledge": {"trust": True}}, "trust= is not an argument"),
        ({"knowledge": {"until": 7}}, "until=7 must be"),
        ({"teacher": {"file": 3, "sha256": ""}}, "teacher.file"),
        ({"seed": "0"}, "seed"),
        ({"teacher_epochs": -1}, "teacher_epochs=-1 must be"),
    ],
)
def test_a_damaged_chain_is_one_line_that_names_the_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump({**CHAIN, **change}))
    with pytest.raises(BadInput) as refused:
        chain.train(resume=str(tmp_path))
    assert message in str(refused.value) and "is damaged" in str(refused.value) and "\n" not in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] == ["chain.yaml", *[p.name for p in tmp_path.glob("*.lock")]]


@pytest.mark.parametrize("missing", list(CHAIN))
def test_a_chain_without_a_field_is_refused(missing: str, tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({k: v for k, v in CHAIN.items() if k != missing}))
    with pytest.raises(BadInput, match="not written by this version" if missing == "schema" else missing):
        chain.train(resume=str(tmp_path))


TASK: dict[str, Any] = {
    "name": "data/student/plain-s0",
    "data": "data",
    "student": "student",
    "method": "plain",
    "seed": 0,
    "chain": False,
    "arguments": {"project": "/runs/compare/data/student/plain-s0", "name": "run", "epochs": 1},
    "val": {},
    "longer": None,
    "pseudo": None,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../out"}, "inside its folder"),
        ({"name": "/out"}, "inside its folder"),
        ({"arguments": {**TASK["arguments"], "project": "/elsewhere"}}, "not its own folder"),
        ({"arguments": {**TASK["arguments"], "name": "../out"}}, "not its own folder"),
        ({"arguments": {**TASK["arguments"], "save_dir": "/out"}}, "save_dir= is not an argument"),
        ({"arguments": {**TASK["arguments"], "trust": True}}, "trust= is not an argument"),
        ({"arguments": {**TASK["arguments"], "download": True}}, "download= is not an argument"),
        ({"seed": "zero"}, "seed"),
        ({"arguments": []}, "arguments"),
    ],
)
def test_a_trial_that_would_write_elsewhere_or_permit_itself_something_is_refused(
    change: dict[str, Any], message: str
) -> None:
    check_task(TASK, "compare.yaml")
    with pytest.raises(BadInput, match=message):
        check_task({**TASK, **change}, "compare.yaml")


SCORES = {"map50_95": 0.5, "map50": 0.6, "classes": {}}
RESULT: dict[str, Any] = {
    **{"status": "done", "best": SCORES, "last": SCORES, "parameters": 1, "epochs": 1, "train_s": 1.0, "cost_s": 1.0},
    **{"whole_s": 1.0, "start": "", "batches": [], "device": "cpu"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "/etc/best.pt"}, "not in the folder of its trial"),
        ({"weights": "/x/data/student/plain-s0/../../../best.pt"}, "not in the folder of its trial"),
        ({"status": "perhaps"}, "status"),
        ({"best": {**SCORES, "map50_95": float("nan")}}, "best.map50_95"),
        ({"status": "failed"}, "reason"),
    ],
)
def test_a_damaged_result_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    trial = Trial(**TASK)
    file = tmp_path / trial.name / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(RESULT))
    assert load_result(tmp_path, trial) == RESULT
    file.write_text(json.dumps({**RESULT, **change}))
    with pytest.raises(BadInput, match=message):
        load_result(tmp_path, trial)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "file"), "../model.onnx"), (("model", "file"), None), (("model", "precision"), "int4"),
        (("model",), 3), (("names",), []), (("names",), [1]), (("imgsz",), [96]), (("imgsz",), [True, 96]),
        (("head",), "two"), (("output",), "x"), (("model", "sha256"), None),
    ],
)  # fmt: skip
def test_a_damaged_bundle_json_is_one_line(place: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    facts: dict[str, Any] = {
        "schema": "yolo-mkd/bundle/1", "names": ["a"], "imgsz": [96, 96], "head": "one2one", "output": [1, 300, 6],
        "model": {"file": "model.onnx", "sha256": sha256(tmp_path / "model.onnx"), "precision": "fp32"},
    }  # fmt: skip
    (tmp_path / "bundle.json").write_text(json.dumps(facts))
    assert read_bundle(tmp_path).model == tmp_path / "model.onnx"
    inner_part: Any = facts
    for key in place[:-1]:
        inner_part = inner_part[key]
    inner_part[place[-1]] = value
    (tmp_path / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(EdgeError, match="copy the bundle again"):
        read_bundle(tmp_path)
