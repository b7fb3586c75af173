"""The chain end to end on tiny models: stages, chain.yaml, resuming, and refusals that leave nothing."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_PATH

from yolo_mkd import MKD, chain, host
from yolo_mkd.chain import assistant
from yolo_mkd.chain.stages import build_stages, validate
from yolo_mkd.settings import BadInput, defaults, shipped
from yolo_mkd.trainer import MKDTrainer


@pytest.fixture
def arguments(untrained_detector: Any, tmp_path: Path) -> dict[str, Any]:
    """A chain of one epoch a stage, from a tiny teacher through an assistant to a narrower student."""
    architecture = yaml.safe_load(untrained_detector.student.read_text())
    for name, width in (("student", 0.0625), ("assistant", 0.08)):
        architecture["scales"] = {"n": [0.5, width, 1024]}
        (tmp_path / f"{name}n.yaml").write_text(yaml.safe_dump(architecture, sort_keys=False))
    return {
        "model": str(tmp_path / "studentn.yaml"), "teacher": str(untrained_detector.pt),
        "assistant": str(tmp_path / "assistantn.yaml"), "data": str(untrained_detector.data), "imgsz": 64, "epochs": 1,
        "batch": 8, "fraction": 0.25, "plots": False, "device": "cpu", "project": str(tmp_path / "runs"),
    }  # fmt: skip


@pytest.mark.slow
def test_a_chain_trains_each_stage_and_writes_chain_yaml(
    arguments: dict[str, Any], untrained_detector: Any, tmp_path: Path
) -> None:
    mkd = MKD(arguments.pop("model"), teacher=arguments.pop("teacher"), assistant=arguments.pop("assistant"))
    student = mkd.train(**arguments, json=tmp_path / "copy.json")
    folder = tmp_path / "runs" / "train"
    assert mkd.folder == folder
    assert Path(student.ckpt_path) == folder / "student" / "weights" / "best.pt"
    for stage in ("assistant", "student"):
        assert {"args.yaml", "results.csv", "weights"} <= {p.name for p in (folder / stage).iterdir()}
    record = yaml.safe_load((folder / "chain.yaml").read_text())
    assert record["teacher"]["sha256"] == hashlib.sha256(untrained_detector.pt.read_bytes()).hexdigest()
    assert [(s["name"], s["hears"], s["status"]) for s in record["stages"]] == [
        ("assistant", [str(untrained_detector.pt)], "done"),
        ("student", [str(untrained_detector.pt), "assistant"], "done"),
    ]
    for s in record["stages"]:
        assert s["sha256"] == hashlib.sha256(Path(s["weights"]).read_bytes()).hexdigest()
        assert s["parameters"] == sum(p.numel() for p in YOLO(s["weights"]).model.parameters())
        assert 0 <= s["metrics"]["map50_95"] <= 1
    written = json.loads((folder / "chain.json").read_text())
    assert written["schema"] == chain.SCHEMA
    assert json.loads((tmp_path / "copy.json").read_text()) == written


@pytest.mark.slow
def test_an_interrupted_chain_is_resumed_at_its_stage(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    save_model = MKDTrainer.save_model

    def cut_in_the_student(self: Any) -> bool:
        saved = save_model(self)
        trained.append(f"{self.save_dir.name} {self.epoch}")
        if trained == ["assistant 0", "assistant 1", "student 0"]:
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr(MKDTrainer, "save_model", cut_in_the_student)
    with pytest.raises(KeyboardInterrupt):
        chain.train(**{**arguments, "epochs": 2})
    folder = tmp_path / "runs" / "train"
    status = [s["status"] for s in yaml.safe_load((folder / "chain.yaml").read_text())["stages"]]
    assert status == ["done", "running"]
    assistant_before = (folder / "assistant" / "weights" / "best.pt").read_bytes()
    _, record = chain.train(resume=str(folder))
    again = ["student 0", "student 1"]  # anew: no copy of its first epoch was made
    assert trained == ["assistant 0", "assistant 1", "student 0", *again]
    assert [s["status"] for s in record["stages"]] == ["done", "done"]
    assert (folder / "assistant" / "weights" / "best.pt").read_bytes() == assistant_before


@pytest.mark.slow
def test_weights_that_lie_in_the_folder_are_not_mistaken_for_the_chains_own(
    arguments: dict[str, Any], untrained_detector: Any, tmp_path: Path
) -> None:
    stray = tmp_path / "runs" / "train" / "student" / "weights" / "best.pt"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(untrained_detector.pt.read_bytes())
    _, record = chain.train(**{**arguments, "assistant": None, "exist_ok": True})
    assert record["stages"][0]["sha256"] != record["teacher"]["sha256"]
    assert Path(record["stages"][0]["weights"]) == stray


def test_a_chain_is_resumed_only_with_the_teacher_that_it_was_begun_with(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    _, record = chain.create({**arguments, "assistant": None})
    record["teacher"]["sha256"] = "another"
    chain.save(tmp_path, record)
    with pytest.raises(BadInput, match="has changed"):
        chain.train(resume=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"device": "cuda:9"}, "device=cuda:9 cannot be used, since no CUDA GPU"), ({"batch": -5}, "batch=-5 must be")],
)
def test_what_may_differ_when_a_chain_is_resumed_is_checked_too(
    change: dict[str, Any], message: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    chain.save(tmp_path, chain.create({**arguments, "assistant": None})[1])
    before = (tmp_path / "chain.yaml").read_bytes()
    with pytest.raises(BadInput, match=message):
        chain.train(resume=str(tmp_path), **change)
    assert (tmp_path / "chain.yaml").read_bytes() == before


@pytest.mark.slow
def test_with_teacher_epochs_the_teacher_is_trained_first(arguments: dict[str, Any], tmp_path: Path) -> None:
    arguments |= {"teacher": str(tmp_path / "assistantn.yaml"), "assistant": None, "teacher_epochs": 1}
    _, record = chain.train(**arguments)
    assert [(s["name"], s["hears"]) for s in record["stages"]] == [("teacher", []), ("student", ["teacher"])]


def test_two_assistants_make_a_longer_chain_in_which_all_larger_models_are_teachers(
    arguments: dict[str, Any], untrained_detector: Any
) -> None:
    own = {**defaults(), "model": arguments["model"], "teacher": arguments["teacher"]}
    own["assistant"] = f"{arguments['assistant']},yolo26n-w125.yaml"
    stages = build_stages(own, {"nc": 3, "channels": 3, "names": {0: "red", 1: "green", 2: "blue"}}, {"imgsz": 64})
    teacher = str(untrained_detector.pt)
    assert [(s["name"], s["hears"]) for s in stages] == [
        ("assistant1", [teacher]),
        ("assistant2", [teacher, "assistant1"]),
        ("student", [teacher, "assistant1", "assistant2"]),
    ]


def bad_files(folder: Path) -> dict[str, str]:
    """Model files that cannot be built, and a data set whose only label file mixes boxes and outlines."""
    import cv2
    import numpy as np

    layer = [-1, 1, "CBAM", [64]]
    models = {
        "cbam": yaml.safe_dump({"nc": 3, "backbone": [layer], "head": [[[0], 1, "Detect", ["nc"]]]}),
        "broken": "backbone: [",
        "short": "nc: 3\nhead: [1]",
    }
    for name, text in models.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "mixed/images").mkdir(parents=True)
    (folder / "mixed/labels").mkdir()
    cv2.imwrite(str(folder / "mixed/images/a.png"), np.zeros((32, 32, 3), np.uint8))
    (folder / "mixed/labels/a.txt").write_text("0 .5 .5 .2 .2\n0 .1 .1 .2 .1 .2 .2 .1 .2\n")
    mixed = {"path": str(folder / "mixed"), "train": "images", "val": "images", "names": ["red", "green", "blue"]}
    (folder / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    return {name.upper(): str(folder / f"{name}.yaml") for name in (*models, "mixed")}


REFUSED = [
    ({"data": None}, "data= is missing"),
    ({"data": "nowhere.yaml"}, "data=nowhere.yaml"),
    ({"data": "EMPTY"}, "no images for 'train'"),
    ({"teacher": "gone.pt"}, "teacher=gone.pt: no such file; looked in"),
    ({"teacher": "yolo26n.yaml"}, r"is untrained: .*teacher_epochs=100"),
    ({"teacher": "SAME", "model": "SAME"}, "is the student itself"),
    ({"assistant": "gone.yaml"}, "assistant=gone.yaml: no such file"),
    ({"model": "yolo26n.txt"}, "must be a .pt or a .yaml file"),
    ({"model": "yolo11n-seg.yaml"}, "has no outlines"),
    ({"imgsz": 100}, "imgsz=100 is not a multiple of 32, the largest stride of teacher: use imgsz=96"),
    ({"imgsz": 96, "model": "yolo26n-p6.yaml"}, "imgsz=96 is not a multiple of 64, the largest stride of model"),
    ({"teacher_imgsz": 100}, "teacher_imgsz=100 is not a multiple of 32, the largest stride of teacher"),
    ({"preset": "saef"}, "preset=saef does not exist"),
    ({"imgsz": "big"}, "imgsz=big must be a whole number of pixels"),
    ({"epochs": "many"}, "epochs"),
    ({"optimzer": "SGD"}, "did you mean optimizer="),
    ({"guidence": 1}, "did you mean guidance="),
    ({"attention": -1}, "attention=-1 must be at least 0"),
    (
        {"imgsz": 32, **dict.fromkeys(("soft", "soft_box", "attention", "relation", "guidance", "exploration"), 0)},
        "no distillation term applies to teacher=.* and this student: soft_dfl: ",
    ),
    ({"teacher_epochs": -2}, "teacher_epochs=-2"),
    ({"distill_model": "yolo26s.pt"}, "Ultralytics' own distillation"),
    ({"task": "segment"}, "task=segment"),
    ({"resume": "nowhere"}, "cannot change when a chain is resumed"),
    ({"save_dir": "here"}, "save_dir= would put all stages in one folder"),
    ({"freeze": 24}, r"freeze=24 freezes all 24 layers of assistant, .*: use a smaller number, for example freeze=12"),
    ({"freeze": (0, 99)}, r"freeze=\[0, 99\]: assistant has no layer 99: its layers are 0 to 23"),
    ({"freeze": "abc"}, "freeze=abc must be a number of layers"),
    ({"model": "CBAM"}, r"model=.*cbam.yaml has the module CBAM, which this version of Ultralytics does not have"),
    ({"model": "BROKEN"}, r"model=.*broken.yaml cannot be read as a model's architecture"),
    ({"model": "SHORT"}, r"model=.*short.yaml has no head"),
    ({"data": "MIXED"}, "none of the 1 images for 'train' can be used: .* labels mix segment and detection rows"),
    ({"imgsz": [96, 160]}, r"imgsz=\[96, 160\]: images are squares while training: .* imgsz=160, and rect=True"),
    ({"batch": 1.5}, "batch=1.5 must be a whole number of images"),
    ({"batch": -5}, "batch=-5 must be a whole number of images"),
    ({"batch": 0}, "batch=0 must be"),
    ({"optimizer": "abc"}, "optimizer=abc is not known: choose from auto, SGD"),
    ({"warmup_epochs": float("nan")}, "warmup_epochs=nan must be a finite number"),
    ({"seed": 2**32}, "seed=4294967296 must be between 0 and 4294967295"),
    ({"seed": -1}, "seed"),
    ({"device": 0}, "device=0 cannot be used, since no CUDA GPU was found: use device=cpu"),
    ({"device": "cuda:9"}, "device=cuda:9 cannot be used, since no CUDA GPU was found"),
    ({"device": "abc"}, "device=abc cannot be used"),
    ({"json": "/proc/x/y.json"}, "json=/proc/x/y.json cannot be written"),
    ({"project": "/proc/x"}, "project=/proc/x/.*chain.yaml cannot be written"),
    ({"classes": [0, 3]}, r"classes=\[0, 3\]: the data has no class 3: give indices of its 3 classes"),
    ({"classes": "red"}, "classes=red: the data has no class red"),
    ({"cfg": "gone.yaml"}, r"cfg=gone.yaml cannot be read"),
    ({"cfg": "EMPTY", "data": None}, "names= is not an argument of yolo-mkd train"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    empty = tmp_path / "empty.yaml"
    (tmp_path / "images").mkdir()
    empty.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images", "val": "images", "names": ["a"]}))
    places = {"EMPTY": str(empty), "SAME": arguments["teacher"], **bad_files(tmp_path)}
    changed = {k: places.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(BadInput, match=message) as e:
        chain.train(**{**arguments, **changed})
    assert "\n" not in str(e.value)
    assert not (tmp_path / "runs").exists()


def test_the_arguments_of_a_cfg_file_are_taken_and_those_that_are_given_win(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    stock = yaml.safe_load(Path(DEFAULT_CFG_PATH).read_text(encoding="utf-8"))
    (tmp_path / "full.yaml").write_text(
        yaml.safe_dump({**stock, **{k: arguments[k] for k in ("data", "model", "imgsz")}, "epochs": 7, "lr0": 0.002})
    )
    rest = {k: v for k, v in arguments.items() if k not in {"data", "model", "imgsz"}}
    found = validate({**rest, "cfg": str(tmp_path / "full.yaml"), "epochs": 3}, "train")
    assert found.data["yaml_file"] == arguments["data"]
    assert found.stages[-1]["model"] == arguments["model"]
    assert (found.theirs["imgsz"], found.theirs["epochs"], found.theirs["lr0"]) == (arguments["imgsz"], 3, 0.002)
    assert not {"cfg", "mode", "task"} & set(found.theirs)


def test_a_folder_without_a_chain_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no chain\.yaml there"):
        chain.train(resume=str(tmp_path))


@pytest.mark.parametrize(
    ("student", "teacher", "chosen"),
    [
        ("yolo26n.yaml", "yolo26m.yaml", "yolo26s.yaml"),
        ("yolo26n.yaml", "yolo26x.yaml", "yolo26s.yaml"),
        ("yolo26s.yaml", "yolo26x.yaml", "yolo26m.yaml"),
        ("yolo26n.yaml", "yolo26s.yaml", None),
        ("yolo26m.yaml", "yolo26x.yaml", None),  # l has hardly more parameters than m
        ("yolo26n-w125.yaml", "yolo26s.yaml", "yolo26n.yaml"),
        ("yolo11n.yaml", "yolo26m.yaml", None),
    ],
)
def test_the_assistant_lies_midway(student: str, teacher: str, chosen: str | None) -> None:
    name, reason = assistant.choose(host.find_model("model", student), host.find_model("teacher", teacher))
    assert name == chosen
    assert reason


def test_a_checkpoints_family_and_size_are_its_architectures(untrained_detector: Any) -> None:
    assert assistant.family_and_size(str(untrained_detector.pt)) == ("yolo26", "n")
    assert assistant.family_and_size("yolov8x.yaml") == ("yolov8", "x")
    assert assistant.family_and_size("cfg/models/yolo26n-w125.yaml") == ("yolo26", "")


@pytest.mark.parametrize("path", sorted((shipped("cfg") / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_narrow_model_has_the_size_in_its_first_comment_and_stock_ultralytics_builds_it(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documented = int(re.search(r"80 classes: ([\d,]+) parameters", path.read_text()).group(1).replace(",", ""))
    assert host.find_model("model", path.name) == str(path)
    written = host.write_architecture(str(path), tmp_path)
    assert sum(p.numel() for p in YOLO(written).model.parameters()) == documented
    assert host.parameters(str(path)) == documented
    assert "no model scale passed" not in caplog.text


def test_ultralytics_own_models_are_left_where_they_are(tmp_path: Path) -> None:
    assert host.write_architecture("yolo26n.yaml", tmp_path) == "yolo26n.yaml"
    assert not list(tmp_path.iterdir())
