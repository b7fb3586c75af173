"""What files may do: a checkpoint that holds code is refused by every command, and code of a data set is not run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from yolo_mkd import MKD, MKDTrainer, chain, cli, host
from yolo_mkd.host.trust import SAFE_LOAD, no_installs, read_contents, tasks
from yolo_mkd.settings import BadInput

SHORT = ["epochs=1", "imgsz=64", "batch=4", "device=cpu"]


class MakesFolder:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


@pytest.fixture
def hostile(tmp_path: Path, marker: Path) -> Path:
    file = tmp_path / "hostile.pt"
    torch.save({"model": MakesFolder(marker), "train_args": {}, "epoch": 0, "optimizer": {}}, file)
    return file


def run(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code and the error output of a command line."""
    monkeypatch.setattr(sys, "argv", ["yolo-mkd", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), capsys.readouterr().err


COMMANDS = {
    "train model": ["train", "data={data}", "model={bad}", "teacher={good}", *SHORT],
    "train teacher": ["train", "data={data}", "model={student}", "teacher={bad}", *SHORT],
    "train assistant": ["train", "data={data}", "model={student}", "teacher={good}", "assistant={bad}", *SHORT],
    "plan model": ["plan", "data={data}", "model={bad}", "teacher={good}", *SHORT],
    "plan teacher": ["plan", "data={data}", "model={student}", "teacher={bad}", *SHORT],
    "record teacher": ["record", "data={data}", "model={student}", "teacher={bad}", *SHORT],
    "cost teacher": ["cost", "data={data}", "model={student}", "teacher={bad}", *SHORT],
    "compare teacher": ["compare", "data={data}", "model={student}", "teacher={bad}", "seeds=1", *SHORT],
    "compare model": ["compare", "data={data}", "model={bad}", "teacher={good}", "seeds=1", *SHORT],
    "ablate teacher": ["ablate", "data={data}", "model={student}", "teacher={bad}", "seeds=1", *SHORT],
    "export": ["export", "model={bad}"],
    "export unverified": ["export", "model={bad}", "format=torchscript"],
    "check": ["check", "model={onnx}", "against={bad}", "data={data}"],
    "bundle": ["bundle", "model={bad}", "data={data}", "out={out}"],
    "val": ["val", "model={bad}", "data={data}"],
    "predict": ["predict", "model={bad}", "source={data}"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=list(COMMANDS))
def test_no_command_runs_code_of_a_checkpoint_and_one_line_names_it(
    words: list[str], untrained_detector: Any, hostile: Path, marker: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (onnx := tmp_path / "best.onnx").touch()
    named = {
        "data": untrained_detector.data, "student": untrained_detector.student, "good": untrained_detector.pt,
        "bad": hostile, "onnx": onnx, "out": tmp_path / "out",
    }  # fmt: skip
    before = sorted(p.name for p in tmp_path.iterdir())
    code, text = run([word.format(**named) for word in words], capsys, monkeypatch)
    assert code == 2 and not marker.exists()
    line = text.strip().splitlines()[-1]
    assert "hostile.pt holds code beside weights (posix.mkdir)" in line.replace("nt.mkdir", "posix.mkdir")
    assert "trust=true" in line and "Traceback" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_time_takes_no_checkpoint(
    hostile: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run(["time", f"model={hostile}"], capsys, monkeypatch)
    assert code == 2 and "must be an .onnx" in text and not marker.exists()


def test_trust_lets_the_code_run_and_only_for_that_command(
    hostile: Path, marker: Path, untrained_detector: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["train", f"data={untrained_detector.data}", f"model={untrained_detector.student}", f"teacher={hostile}"]
    code, text = run([*words, *SHORT, "trust=true"], capsys, monkeypatch)
    assert code == 2 and "cannot be read as an Ultralytics checkpoint" in text  # what it holds is no model
    assert marker.is_dir()
    assert tasks.SAFE_LOAD and os.environ[SAFE_LOAD] == "1"
    marker.rmdir()
    code, text = run([*words, *SHORT], capsys, monkeypatch)
    assert code == 2 and "trust=true" in text and not marker.exists()
    code, text = run([*words, *SHORT, "trust=yes please"], capsys, monkeypatch)
    assert code == 2 and "trust=yes please must be true or false" in text


def test_the_python_api_refuses_it_too(hostile: Path, marker: Path, untrained_detector: Any) -> None:
    refused = r"hostile.pt holds code beside weights \(\w+.mkdir\)"
    with pytest.raises(BadInput, match=refused):
        MKDTrainer.using(teacher=hostile)
    with pytest.raises(BadInput, match=refused):
        MKD(untrained_detector.student, teacher=hostile).train(data=str(untrained_detector.data), epochs=1, imgsz=64)
    with pytest.raises(BadInput, match=refused):
        host.runs.metrics(hostile)
    with pytest.raises(BadInput, match=refused):
        host.size(hostile, 64)
    with pytest.raises(BadInput, match=refused):
        host.annotate(hostile, {})
    assert not marker.exists()
    with pytest.raises(BadInput, match="cannot be read"):
        MKDTrainer.using(teacher=hostile, trust=True)
    assert marker.exists()


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_chain_is_not_resumed_from_a_checkpoint_that_holds_code(
    name: str, hostile: Path, marker: Path, untrained_detector: Any, tmp_path: Path
) -> None:
    arguments = {
        "data": str(untrained_detector.data), "model": str(untrained_detector.student), "imgsz": 64, "epochs": 2,
        "teacher": str(untrained_detector.pt), "project": str(tmp_path), "name": "chain", "device": "cpu",
        "assistant": None,
    }  # fmt: skip
    folder, made = chain.create(arguments)
    made["stages"][0]["status"] = "running"
    chain.save(folder, made)
    weights = folder / "student" / "weights"
    weights.mkdir(parents=True)
    resumable = {**read_contents(untrained_detector.pt), "epoch": 0, "optimizer": {}, "train_args": {"epochs": 2}}
    torch.save(resumable, weights / "last.pt")
    shutil.copy(hostile, weights / name)
    with pytest.raises(BadInput, match=rf"{name} holds code beside weights .* trust=true"):
        chain.train(resume=str(folder))
    assert not marker.exists()
    assert (weights / name).exists()  # nothing was thrown away


def test_a_damaged_file_of_a_published_name_is_neither_replaced_nor_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a fetch")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ultralytics.utils.downloads.safe_download", no_network)
    Path("yolo26n.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(BadInput, match=r"teacher=yolo26n.pt cannot be read as an Ultralytics checkpoint"):
        host.load_detector("teacher", "yolo26n.pt")
    assert Path("yolo26n.pt").read_bytes() == b"PK\x03\x04 cut off"


def test_nothing_is_installed_for_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import checks

    with no_installs():
        assert not checks.AUTOINSTALL


@pytest.mark.parametrize(
    "download", ["import os\nos.mkdir('{marker}')\n", "bash {marker}.sh", "https://x.org/a.zip\nos.mkdir('{marker}')"]
)
@pytest.mark.parametrize("command", ["train", "record", "cost", "compare", "plan", "val"])
def test_download_code_is_not_run(
    command: str, download: str, marker: Path, untrained_detector: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = tmp_path / "data.yaml"
    text = download.format(marker=marker)
    data.write_text(yaml.safe_dump({"path": "gone", "train": "a", "val": "b", "names": ["x"], "download": text}))
    models = [f"model={untrained_detector.student}", f"teacher={untrained_detector.pt}", *SHORT]
    words = models if command != "val" else [f"model={untrained_detector.pt}"]
    code, text = run([command, f"data={data}", *words], capsys, monkeypatch)
    assert code == 2 and not marker.exists()
    assert "download: is code, which is not run" in text and "download=true" in text and "Traceback" not in text


def test_download_code_is_run_where_it_is_asked_for_and_never_by_plan(
    marker: Path, untrained_detector: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, code = tmp_path / "data.yaml", f"import os\nos.mkdir({str(marker)!r})\n"
    data.write_text(yaml.safe_dump({"path": "gone", "train": "a", "val": "b", "names": ["x"], "download": code}))
    words = [f"data={data}", f"model={untrained_detector.student}", f"teacher={untrained_detector.pt}", *SHORT]
    code, text = run(["plan", *words, "download=true"], capsys, monkeypatch)
    assert code == 2 and "plan runs none" in text and not marker.exists()
    code, text = run(["train", *words, "download=true"], capsys, monkeypatch)
    assert code == 2 and "no images for 'train'" in text  # the code here makes none
    assert marker.is_dir()


def test_neither_a_preset_nor_an_argument_file_can_permit_anything(
    untrained_detector: Any, hostile: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "given.yaml"
    file.write_text("trust: true\n")
    words = ["train", f"data={untrained_detector.data}", f"model={untrained_detector.student}", f"teacher={hostile}"]
    for named in (f"preset={file}", f"cfg={file}"):
        code, text = run([*words, *SHORT, named], capsys, monkeypatch)
        assert code == 2 and "trust= is" in text and not marker.exists()
    code, text = run(["compare", *words[1:], "methods=mkd:trust=true", *SHORT], capsys, monkeypatch)
    assert code == 2 and not marker.exists()
