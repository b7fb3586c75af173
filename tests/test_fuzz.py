"""Random arguments of every command, and random damage to every file that is read: one line, never a traceback.

Bounded and derandomized here; FUZZ_EXAMPLES=2000 tries more. The counts of a long run are in docs/reliability.md.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolo_mkd import cli
from yolo_mkd.chain.document import read_chain
from yolo_mkd.deploy.pareto import pareto
from yolo_mkd.deploy.time.compare import read_time_report
from yolo_mkd.edge.bundle import Bundle, EdgeError, read_bundle, sha256
from yolo_mkd.edge.check import read_expected
from yolo_mkd.evidence.card import write_card
from yolo_mkd.evidence.compare import load_plan, trial_figures
from yolo_mkd.evidence.compare.findings import comparison_rows, mean_rows
from yolo_mkd.evidence.compare.trials import Trial, load_result, load_task
from yolo_mkd.evidence.page import write_page
from yolo_mkd.settings import BadInput, Failed, defaults, preset, resolve

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FEW = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
COUNTS: Counter[str] = Counter()

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
    | st.sampled_from(["../x", "/proc/x", "", "nan", "1e999", "cuda:9", "best.pt", "a,b", "[1", "{}"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = [
    *("data", "imgsz", "epochs", "batch", "device", "seed", "optimizer", "freeze", "classes", "workers", "json"),
    *("methods", "seeds", "parallel", "format", "quantize", "head", "target", "calibration", "sensitivity", "conf"),
    *("against", "images", "opset", "duration", "threads", "log", "times", "out", "samples", "reports", "rounds"),
    *(
        "source",
        "cfg",
        "single_cls",
        "fraction",
        "warmup_epochs",
        "close_mosaic",
        "nms",
        "accuracy",
        "latency",
        "trust",
    ),
    *defaults(),
]


def outcome(attempt: Callable[[], Any], what: str) -> None:
    """Count how an attempt ends; anything but success or a refusal in one line is raised."""
    COUNTS[f"{what}: tried"] += 1
    try:
        attempt()
    except (BadInput, Failed, EdgeError) as refused:
        assert str(refused) and "\n" not in str(refused)
        COUNTS[f"{what}: refused"] += 1
    else:
        COUNTS[f"{what}: accepted"] += 1


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """Print the counts where they are asked for."""
    yield
    if "FUZZ_EXAMPLES" in os.environ:
        print("\n".join(f"{name} {count}" for name, count in sorted(COUNTS.items())))


@pytest.mark.parametrize("command", [*cli.COMMANDS])
@FEW
@given(arguments=st.dictionaries(st.sampled_from(NAMES), SCALARS.map(str), min_size=1, max_size=4))
def test_random_arguments_of_a_command(
    command: str, arguments: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("fuzz")
    before = Path.cwd()
    words = [f"{key}={value}" for key, value in arguments.items() if key not in {"project", "resume"}]
    if command == "demo":  # its defaults are valid, and it trains for minutes
        words.append("nothing=1")
    os.chdir(place)
    try:
        outcome(lambda: cli.run([command, *words]), "arguments")
        assert command in {"demo", "pareto"} or not [p for p in place.rglob("chain.yaml")]
    finally:
        os.chdir(before)


@FEW
@given(arguments=st.dictionaries(st.sampled_from([*defaults()]), VALUES, min_size=1, max_size=3))
def test_random_values_from_python(arguments: dict[str, Any]) -> None:
    outcome(lambda: resolve(arguments), "values")


def paths(contents: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in nested dicts and lists."""
    found = [before] if before else []
    items = (
        contents.items() if isinstance(contents, dict) else enumerate(contents) if isinstance(contents, list) else ()
    )
    return found + [p for key, value in items for p in paths(value, (*before, key))]


def changed(contents: Any, path: tuple[Any, ...], value: Any, remove: bool) -> Any:
    """A copy with one value replaced or removed."""
    copy = json.loads(json.dumps(contents))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


SCORES = {"map50_95": 0.5, "map50": 0.6, "classes": {"a": 0.5}}
STAGE = {"name": "student", "model": "s.yaml", "hears": ["t.pt"], "parameters": 1, "status": "waiting"}
TASK: dict[str, Any] = {
    "name": "d/s/plain-s0", "data": "d", "student": "s", "method": "plain", "seed": 0, "chain": False,
    "arguments": {"project": "/r/d/s/plain-s0", "name": "run", "epochs": 1}, "val": {"data": "d.yaml"},
    "longer": None, "pseudo": None,
}  # fmt: skip
TIMED = {
    "schema": "yolo-mkd/time/1", "file": "m.onnx", "sha256": "0" * 64, "provider": "CPUExecutionProvider",
    "machine": {"processor": "p", "cores": 2, "system": "s"}, "device": {"warnings": []}, "warm_up": {"settled": True},
    "segments": {"end_to_end": {"n": 3, "p50_ms": 1.0, "p90_ms": 2.0}}, "samples_ms": {"end_to_end": [1.0, 1.0, 2.0]},
    "drift": {"stable": True, "reason": ""}, "precision": "fp32", "threads": 1,
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "chain.yaml": {
        "schema": "yolo-mkd/chain/2", "started": "then", "versions": {"python": "3"}, "knowledge": {"until": 0.5},
        "teacher_epochs": 0, "seed": 0, "arguments": {"epochs": 3, "imgsz": 64}, "teacher": None, "stages": [STAGE],
    },
    "compare.yaml": {
        "schema": "yolo-mkd/comparison/2", "started": "then", "verb": "compare", "asked": {}, "command": "",
        "files": {}, "versions": {}, "methods": {"plain": {}}, "settings": {}, "references": [], "seeds": [0],
        "device": None, "teacher": None, "live": {}, "replayed": [], "latency": False, "cells": [TASK],
    },
    "cell.yaml": TASK,
    "result.json": {
        "status": "done", "best": SCORES, "last": SCORES, "parameters": 1, "epochs": 1, "train_s": 1.0, "cost_s": 1.0,
        "whole_s": 1.0, "start": "", "batches": [["a", "b"]], "device": "cpu", "weights": "/r/d/s/plain-s0/run/w.pt",
    },
    "time.json": TIMED,
    "report.json": {
        "schema": "yolo-mkd/export/1", "file": "m.onnx", "sha256": "0" * 64, "names": {"0": "a"}, "head": "one2one",
        "accuracy": {"map50_95": 0.5, "images": 3}, "source": {"sha256": "1"}, "format": "onnx", "bytes": 1,
    },
    "bundle.json": {
        "schema": "yolo-mkd/bundle/1", "names": ["a"], "imgsz": [96, 96], "head": "one2one", "output": [1, 300, 6],
        "model": {"file": "model.onnx", "precision": "fp32", "sha256": ""},
    },
    "expected.json": {"conf": 0.25, "images": [{"file": "0.png", "canvas_sha256": "", "boxes": [[0, 0, 9, 9, 1, 0]]}]},
    "preset.yaml": {"attention": 0.5, "only": {"soft": 1.0}},
}  # fmt: skip


def read(kind: str, folder: Path, file: Path) -> Any:
    """Read a file as the product does."""
    if kind == "expected.json":
        model = folder / "model.onnx"
        return read_expected(Bundle(folder, model, "", ["a"], (96, 96), "one2one", "fp32", {}))
    readers: dict[str, Callable[[], Any]] = {
        "chain.yaml": lambda: read_chain(file),
        "compare.yaml": lambda: load_plan(folder),
        "cell.yaml": lambda: load_task(folder),
        "result.json": lambda: load_result(folder, Trial(**TASK)),
        "time.json": lambda: read_time_report(file),
        "report.json": lambda: pareto([file]),
        "bundle.json": lambda: read_bundle(folder),
        "preset.yaml": lambda: preset(str(file)),
    }
    return readers[kind]()


@pytest.mark.parametrize("kind", FILES)
@FEW
@given(data=st.data())
def test_random_damage_to_a_file(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    contents = FILES[kind]
    if kind == "bundle.json":
        (folder / "model.onnx").write_bytes(b"graph")
        digest = sha256(folder / "model.onnx")
        contents = {**contents, "model": {**contents["model"], "sha256": digest}}
    places = {
        "result.json": folder / TASK["name"],
        "cell.yaml": folder / TASK["name"],
        "expected.json": folder / "sample",
    }
    place = places.get(kind, folder)
    place.mkdir(parents=True, exist_ok=True)
    how = data.draw(st.sampled_from(["value", "value", "value", "removed", "cut", "bytes"]))
    path = data.draw(st.sampled_from(paths(contents)))
    damaged = changed(contents, path, data.draw(VALUES), how == "removed")
    raw = written(kind, damaged)
    raw = raw[: data.draw(st.integers(0, len(raw)))] if how == "cut" else raw
    raw = data.draw(st.binary(max_size=40)) if how == "bytes" else raw
    (place / kind).write_bytes(raw)
    outcome(lambda: read(kind, place if kind == "cell.yaml" else folder, place / kind), kind)


TALLY = {"objects": 1, "reference": 0, "student": 1, "won": 1, "lost": 0}
OBJECT = {"box": [0.1, 0.1, 0.5, 0.5], "name": "a", "fate": "won", "found_by": ["student"]}
MAPS = {"backbone_p3": {"teacher": "0.jpg", "student": "1.jpg"}, "neck_p3": {"teacher": "2.jpg", "student": "3.jpg"}}
LOOKS = {
    "schema": "yolo-mkd/looks/1", "versions": {}, "machine": {}, "data": "d.yaml", "imgsz": 64, "examined": 3,
    "compared": 1, "val_images": 4, "conf": 0.25, "iou": 0.5, "reference": "teacher", "layers": [*MAPS],
    "models": [
        {"role": role, "label": role, "file": "m.pt", "sha256": "0", "parameters": 9, "map50_95": 0.4, "map50": 0.5,
         "classes": {"a": 0.4}, "attention": dict.fromkeys(MAPS, 0.5), "relation": [[1.0, 0.5], [0.5, 1.0]]}
        for role in ("teacher", "student")
    ],
    "tally": TALLY, "tally_by_class": {"a": TALLY},
    "images": [
        {"file": "i.jpg", "picture": "0.jpg", "reason": "most won", "width": 64, "height": 48, "won": 1, "lost": 0,
         "objects": [OBJECT], "detections": {r: [{**OBJECT, "conf": 0.5, "hit": True}] for r in ("teacher", "student")},
         "maps": MAPS, "correlation": {layer: dict.fromkeys(maps, 0.5) for layer, maps in MAPS.items()}},
    ],
}  # fmt: skip
DONE = {"status": "done", "weights": "/w.pt", "sha256": "1", "metrics": {"map50_95": 0.3, "map50": 0.5}, "seconds": 9.0}


def comparison() -> dict[str, Any]:
    """The contents of compare.json for two methods and seeds."""
    trials = [
        Trial(**{**TASK, "name": f"d/s/{m}-s{seed}", "method": m, "seed": seed})
        for m in ("plain", "mkd")
        for seed in (0, 1)
    ]
    results: Any = {t.name: {**FILES["result.json"], "cost_s": 1.0 + t.seed} for t in trials}
    rows = comparison_rows(trials, results, ["plain"])
    found = {
        "schema": "yolo-mkd/compare/1", "versions": {}, "machine": {}, "command": "", "started": "", "methods": {},
        "settings": {}, "references": ["plain"], "seeds": [0, 1], "teacher": {"file": "t.pt", "sha256": "0"},
        "live": {}, "replayed": [], "latency": [], "devices": [], "together": 1,
        "rows": rows, "mean": mean_rows(rows, ["plain"]),
        "cells": [trial_figures(t, results[t.name], rows) for t in trials], "notes": ["a note"],
    }  # fmt: skip
    copy: dict[str, Any] = json.loads(json.dumps(found))
    return copy


PAGE: dict[str, dict[str, Any]] = {
    "chain.yaml": {
        **FILES["chain.yaml"], "arguments": {"data": "d.yaml"}, "teacher": {"file": "/t.pt", "sha256": "0"},
        "stages": [{**STAGE, **DONE}],
    },
    "report/looks.json": LOOKS,
    "plan.json": {"schema": "yolo-mkd/plan/1", "answer": "yes", "warnings": [{"stage": "student", "text": "small"}]},
    "m.json": {
        **FILES["report.json"],
        "parity": {
            "passed": True, "reason": "", "detections": {
                "checkpoint_detections": 1, "file_detections": 1, "checkpoint_unmatched": 0, "file_unmatched": 0,
                "min_iou": 0.9, "max_score_difference": 0.1,
                "worst_images": [{"image": "i.jpg", "unmatched": 1, "min_iou": 0.5, "max_score_difference": 0.1}],
            },
        },
    },
    "compare.json": comparison(),
    "compare.yaml": FILES["compare.yaml"],
}  # fmt: skip


def written(file: str, contents: Any) -> bytes:
    """The contents of a JSON or YAML file, to be stored."""
    text = json.dumps(contents) if file.endswith("json") else yaml.safe_dump(contents, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("file", PAGE)
@settings(FEW, max_examples=EXAMPLES // 2)  # a page takes some 50 ms
@given(data=st.data())
def test_random_damage_to_the_files_of_a_page(
    file: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "report").mkdir()
    run = "compare.json" if file.startswith("compare") else "chain.yaml"
    (folder / run).write_bytes(written(run, PAGE[run]))
    path = data.draw(st.sampled_from(paths(PAGE[file])))
    damaged = changed(PAGE[file], path, data.draw(VALUES), data.draw(st.booleans()))
    raw = written(file, damaged)
    cut = data.draw(st.sampled_from([len(raw)] * 4 + [len(raw) // 2]))
    (folder / file).write_bytes(raw[:cut])
    outcome(lambda: write_page(folder), "files of a page")
    if run == "chain.yaml":
        outcome(lambda: write_card(folder), "files of a page")


@FEW
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_random_bytes_as_a_checkpoint(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    from yolo_mkd import host

    file = tmp_path_factory.mktemp("fuzz") / "x.pt"
    file.write_bytes(raw)
    outcome(lambda: host.load_detector("model", str(file)), "checkpoint")
    assert not COUNTS["checkpoint: accepted"]


@pytest.mark.parametrize("kind", ["data", "model", "cfg", "teacher_classes"])
@FEW
@given(data=st.data())
def test_random_damage_to_a_yaml_file_of_the_user(
    kind: str, data: st.DataObject, untrained_detector: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from yolo_mkd import host
    from yolo_mkd.distill.boxes.files import read_mapping

    file = tmp_path_factory.mktemp("fuzz") / "f.yaml"
    sources: dict[str, Any] = {
        "data": {**yaml.safe_load(untrained_detector.data.read_text()), "names": ["a", "b", "c"], "nc": 3},
        "model": yaml.safe_load(untrained_detector.student.read_text()),
        "cfg": {"epochs": 3, "imgsz": 64, "cache": False, "scale": 0.5, "optimizer": "AdamW"},
        "teacher_classes": {"person": "a", "car": "b"},
    }
    use: dict[str, Callable[[], Any]] = {
        "data": lambda: host.check_usable(host.check_data(str(file), fetch=False), "detect"),
        "model": lambda: (host.task(str(file)), host.build(str(file), 3)),
        "cfg": lambda: host.check_arguments(host.with_cfg_file({"cfg": str(file)})),
        "teacher_classes": lambda: read_mapping(file, {0: "a", 1: "b"}),
    }
    path = data.draw(st.sampled_from(paths(sources[kind])))
    damaged = changed(sources[kind], path, data.draw(VALUES), data.draw(st.booleans()))
    file.write_bytes(yaml.safe_dump(damaged, allow_unicode=True).encode("utf-8", "surrogatepass"))
    outcome(use[kind], f"{kind} of the user")


@FEW
@given(
    name=st.sampled_from(sorted(set(NAMES) - {"project", "resume", "device", "json"})),
    value=SCALARS.map(str) | st.sampled_from(["[]", "[1,2", "{a: b}", "1,2", "[[1]]", "[nan]", "None", "true", "-5"]),
)
def test_one_wrong_argument_of_a_valid_training(
    name: str, value: str, untrained_detector: Any, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from yolo_mkd import chain
    from yolo_mkd.chain import stages

    files = {
        k: str(getattr(untrained_detector, v)) for k, v in (("data", "data"), ("model", "student"), ("teacher", "pt"))
    }
    stage = {"name": "student", "model": files["model"], "hears": [files["teacher"]], "parameters": 1}
    monkeypatch.setattr(stages, "build_stages", lambda *given: [{**stage, "status": "done"}])  # takes a second
    monkeypatch.setattr(chain, "summary", lambda *given: "")
    place = tmp_path_factory.mktemp("fuzz")
    given = {
        **files,
        "epochs": "1",
        "imgsz": "64",
        "device": "cpu",
        "plots": "False",
        "project": str(place),
        name: value,
    }
    before = Path.cwd()
    os.chdir(place)
    try:
        outcome(lambda: cli.run(["train", *(f"{k}={v}" for k, v in given.items())]), "one argument of train")
    finally:
        os.chdir(before)
