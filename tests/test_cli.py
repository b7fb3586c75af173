"""The command line as a user meets it."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import cli
from yolo_mkd.settings import BadInput, Failed, defaults
from yolo_mkd.settings.commands import NOT_OF_TRAINING, OWN, ULTRALYTICS_REFUSED, Option, options_of

TRAINING = ["train", "plan", "record", "cost", "compare", "ablate"]  # commands that take the arguments of training


def command(*words: str, module: str = "yolo_mkd.cli") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)


def listed(text: str) -> dict[str, str]:
    """The arguments that a help text lists, with their defaults."""
    return dict(re.findall(r"^  (\w+)=(\S*)", text, flags=re.MULTILINE))


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["help", name]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [[], ["help"], ["--help"], ["help", "train"], ["train", "--help"], ["help", "compare"], ["record", "-h"]]
)
def test_help_needs_no_heavy_imports(words: list[str]) -> None:
    program = (
        f"import sys; from yolo_mkd import cli; sys.argv = ['yolo-mkd', *{words!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'ultralytics', 'numpy', 'cv2', 'onnxruntime'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "yolo-mkd" in found.stdout


def test_the_package_runs_as_a_module() -> None:
    found = command("help", module="yolo_mkd")
    assert found.returncode == 0
    assert found.stdout == command("help").stdout
    assert command("trian", module="yolo_mkd").returncode == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example_and_short_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(name, capsys)
    assert f"yolo-mkd {name}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_help_of_train_lists_every_argument_with_its_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of("train", capsys)
    assert set(listed(text)) == {*defaults(), "json"}
    assert listed(text)["attention"] == "0.5"
    assert re.search(r"^  attention=0.5 +attention maps of hidden layers in backbone and neck$", text, re.MULTILINE)


def functions() -> dict[str, list[Callable[..., Any]]]:
    import yolo_mkd
    from yolo_mkd.demo import demo
    from yolo_mkd.deploy.time.trtexec import ingest

    names = ("export", "check", "bundle", "pareto", "cost")
    return {name: [getattr(yolo_mkd, name)] for name in names} | {"time": [yolo_mkd.time, ingest], "demo": [demo]}


@pytest.mark.parametrize("name", ["export", "check", "time", "bundle", "pareto", "demo", "cost"])
def test_help_lists_every_parameter_of_the_function_that_runs_with_its_meaning(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(name, capsys)
    own = [option for function in functions()[name] for option in options_of(function)]
    assert own
    assert all(len(option.meaning) > 5 for option in own), [o for o in own if not o.meaning]
    if name == "cost":
        assert {"rounds": "6", "json": "none"}.items() <= listed(text).items()
    else:
        assert set(listed(text)) == {option.name for option in own}


def test_options_come_from_the_signature_and_the_docstring() -> None:
    def work(model: str, size: int = 3, dry: bool = False, json: str | None = None, **more: Any) -> None:
        """Do it.

        Args:
            model: the file: a .pt,
                over two lines.
            size: how many [pixels].
            dry: do nothing.
            **more: others.

        Returns:
            json: nothing.
        """

    assert options_of(work) == [
        Option("model", "", "the file: a .pt, over two lines"),
        Option("size", "3", "how many [pixels]"),
        Option("dry", "false", "do nothing"),
        Option("json", "none", ""),
    ]


@pytest.mark.parametrize("name", ["compare", "ablate"])
def test_help_of_a_comparison_lists_what_it_takes_and_nothing_that_it_refuses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from yolo_mkd.evidence.compare import ON_RESUME
    from yolo_mkd.evidence.compare.config import OWN as ACCEPTED
    from yolo_mkd.evidence.compare.config import REFUSED

    text = help_of(name, capsys)
    refused = {*REFUSED} - {"trust", "download"} | ({"methods"} if name == "ablate" else set())
    assert not refused & set(listed(text))
    assert {*ACCEPTED, *ON_RESUME} - refused <= set(listed(text))
    assert set(listed(text)) == ({*defaults(), *ACCEPTED, "data", "project", "name"}) - refused
    assert NOT_OF_TRAINING[name] == set(REFUSED) & set(defaults()) - {"trust", "download"}
    assert ULTRALYTICS_REFUSED[name] == set(REFUSED) - set(defaults())
    assert all(f"{key}" in text.splitlines()[-1] for key in ULTRALYTICS_REFUSED[name])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("plan", {"resume": "runs"}),
        ("record", {"resume": "runs"}),
        ("record", {"teacher_epochs": 3}),
        ("record", {"unlabelled": "frames"}),
        *((name, {key: "a.pt"}) for name in ("train", "plan", "record") for key in ("distill_model", "save_dir")),
    ],
)
def test_what_help_leaves_out_is_refused_by_name(
    name: str, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(iter(given))
    assert key not in listed(help_of(name, capsys))
    with pytest.raises(BadInput, match=f"^{key}="):
        cli.COMMANDS[name](data="coco8.yaml", **given)


@pytest.mark.parametrize("name", TRAINING)
def test_a_commands_own_arguments_are_listed_once_and_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from yolo_mkd import host

    text = help_of(name, capsys)
    names = re.findall(r"^  (\w+)=", text, flags=re.MULTILINE)
    assert len(names) == len(set(names))
    known = {*host.arguments(), *defaults(), "json", "rounds", "methods", "seeds", "latency", "parallel", "ray"}
    assert {option.name for option in OWN.get(name, ())} <= known


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["benchmark"], "unknown command 'benchmark'; available: train, plan, record, cost, compare, ablate, export, "),
        (["help", "nothing"], "unknown command 'nothing'; available: train, "),
        (["train", "epochs"], "'epochs' is not of the form key=value"),
        (["train", "epoch=3"], "epoch= is not an argument of yolo-mkd train: did you mean epochs="),
        (["train", "imgsz=[96"], "'imgsz=[96' has an unmatched [ or ]"),
        (
            ["train", "data=coco8.yaml", "until=2"],
            "until=2 must be greater than 0 and at most 1, for example until=0.5",
        ),
        (["train", "data=coco8.yaml", "gate", "until=2"], "until=2 must be"),
        (["time"], "model= is missing: see yolo-mkd help time"),
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


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput("bad"), 2), (Failed("broke"), 1), (KeyboardInterrupt(), 130), (FULL, 1)]
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**arguments: Any) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "train", fail)
    monkeypatch.setattr(sys, "argv", ["yolo-mkd", "train"])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == code


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["gate", "rect"], {"gate": True, "rect": True}),
        (["--epochs=3", "classes=0,2"], {"epochs": 3, "classes": (0, 2)}),
        (["imgsz=[96,", "160]", "assistant", "=", "none"], {"imgsz": [96, 160], "assistant": None}),
    ],
)
def test_words_are_read_as_by_yolo(
    words: list[str], arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setitem(cli.COMMANDS, "train", lambda **found: given.update(found))
    assert cli.run(["train", *words]) == 0
    assert given == arguments


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, yolo_mkd; assert 'torch' not in sys.modules; assert yolo_mkd.__version__"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_is_found_and_every_home_is_public() -> None:
    import yolo_mkd

    assert set(yolo_mkd.__all__) == {*yolo_mkd.HOMES, "__version__"}
    assert all(getattr(yolo_mkd, name) is not None for name in yolo_mkd.__all__)


@pytest.mark.slow
def test_public_names_are_functions_and_classes_in_any_order_of_import() -> None:
    program = (
        "import yolo_mkd.deploy.export, yolo_mkd.deploy.check, yolo_mkd.deploy.time\n"
        "from yolo_mkd import MKD, MKDTrainer, BadInput, bundle, check, export, pareto, time\n"
        "assert all(map(callable, (MKD, MKDTrainer, BadInput, bundle, check, export, pareto, time)))"
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
    words = [f"model={tiny_detector.pt}", f"data={tiny_detector.data}", "imgsz=96", f"project={tmp_path}"]
    found = command("val", *words)
    assert found.returncode == 0, found.stderr
    assert "mAP50-95" in found.stdout


def test_predict_takes_several_classes(tiny_detector: Any, tmp_path: Path) -> None:
    words = [f"model={tiny_detector.pt}", f"source={tiny_detector.images[0]}", "imgsz=96", f"project={tmp_path}"]
    found = command("predict", *words, "classes=0,1", "save=False")
    assert found.returncode == 0, found.stderr
    assert "blue" not in found.stdout  # class 2
