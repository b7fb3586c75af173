"""The command line as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import cli
from yolo_mkd.settings import BadInput, Failed


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "yolo_mkd.cli", *words], capture_output=True, text=True)


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["help", "train"], ["train", "--help"]])
def test_help_answers_without_heavy_imports(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        f"import sys; from yolo_mkd import cli; sys.argv = ['yolo-mkd', *{words!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'ultralytics', 'numpy', 'cv2', 'onnxruntime'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "yolo-mkd" in found.stdout


def test_the_help_of_train_is_the_comments_of_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["help", "train"]) == 0
    assert "attention: 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["help", verb]) == 0
    assert f"yolo-mkd {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian is no verb: did you mean train?"),
        (["help", "nothing"], "nothing is no verb"),
        (["train", "epochs"], "'epochs' is not of the form key=value"),
        (["train", "epoch=3"], "epoch= is no argument of yolo-mkd train: did you mean epochs="),
        (["time"], "model= is missing"),
        (["time", "model=a.onnx", "duratoin=3"], "did you mean duration="),
        (["time", "a.json"], "time compares two reports"),
        (["time", "a.json", "b.json", "threads=1"], "time compares two reports"),
        (["time", "gone.json", "also-gone.json"], "gone.json"),
        (["time", "log=gone.txt"], "gone.txt"),
        (["pareto"], "reports= is missing"),
        (["val"], "model= is missing"),
        (["check", "model=gone.onnx", "against=gone.pt"], "gone"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    found = command(*words)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("error", "code"), [(BadInput("bad"), 2), (Failed("broke"), 1), (KeyboardInterrupt(), 130)])
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**arguments: Any) -> None:
        raise error

    monkeypatch.setitem(cli.VERBS, "train", fail)
    monkeypatch.setattr(sys, "argv", ["yolo-mkd", "train"])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == code


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, yolo_mkd; assert 'torch' not in sys.modules; assert yolo_mkd.__version__"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_are_functions_and_classes_in_any_order_of_import() -> None:
    program = (
        "import yolo_mkd.deploy.export, yolo_mkd.deploy.check, yolo_mkd.deploy.time\n"
        "from yolo_mkd import MKD, MKDTrainer, BadInput, check, export, time\n"
        "assert all(map(callable, (MKD, MKDTrainer, BadInput, check, export, time)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import yolo_mkd

    with pytest.raises(AttributeError):
        yolo_mkd.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "source=nowhere.jpg"], "nowhere.jpg"),
        (["predict", "sorce=a.jpg"], "did you mean source="),
        (["val", "data=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_ultralytics_refuses_is_one_line_too(words: list[str], message: str, tiny_detector: Any) -> None:
    found = command(*words, f"model={tiny_detector.pt}")
    assert found.returncode == 2
    assert message in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


def test_val_is_ultralytics_own(tiny_detector: Any, tmp_path: Path) -> None:
    found = command("val", f"model={tiny_detector.pt}", f"data={tiny_detector.data}", "imgsz=96", f"project={tmp_path}")
    assert found.returncode == 0, found.stderr
    assert "mAP50-95" in found.stdout
