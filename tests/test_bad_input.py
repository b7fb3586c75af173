"""Files and arguments that would run for ever, fill the memory or train something else: one line, from Python too."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics import YOLO

from yolo_mkd import MKD, MKDTrainer, bundle, check, cli, export, host, pareto, plan, write_page
from yolo_mkd.deploy.exported_model import folder_metadata
from yolo_mkd.distill.boxes.files import read_mapping
from yolo_mkd.documents import read_yaml
from yolo_mkd.host.files import unusable
from yolo_mkd.settings import BadInput, load_yaml, preset

LETTERS = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(  # 10 values, then 100, ... 10^9
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise(LETTERS)
)
DEEP = f"x: {'[' * 800}{']' * 800}\n"
CIRCLE = "x: &x [*x]\n"
ENDLESS = {"bomb": (BOMB, "aliases repeat"), "deep": (DEEP, "nested deeper"), "circle": (CIRCLE, "contains itself")}


@pytest.mark.parametrize(("text", "message"), ENDLESS.values(), ids=list(ENDLESS))
def test_endless_yaml_is_refused_and_quickly(text: str, message: str) -> None:
    before = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        load_yaml(text)
    assert time.perf_counter() - before < 1


def test_yaml_with_ordinary_aliases_is_read_as_by_pyyaml() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\nmore: {<<: *base, c: 3}\nlist: [*base, *base]\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(text)["more"] == {"a": 1, "b": [1, 2], "c": 3}
    nested: Any = 1
    for _ in range(99):
        nested = [nested]
    assert load_yaml(yaml.safe_dump(nested)) == nested  # 100 levels
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        load_yaml(yaml.safe_dump([nested]))
    assert load_yaml("") is None


def test_levels_behind_an_alias_count_too() -> None:
    half = f"{'[' * 60}{']' * 60}"
    assert load_yaml(f"a: &a {half}\nb: {half}") is not None
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        load_yaml(f"a: &a {half}\nb: {'[' * 60}*a{']' * 60}")


READERS: dict[str, Callable[[Path], Any]] = {
    "data": lambda file: host.check_data(str(file)),
    "val": lambda file: host.check_download(str(file)),
    "model": lambda file: host.build(str(file), 3),
    "task": lambda file: host.task(str(file)),
    "cfg": lambda file: host.with_cfg_file({"cfg": str(file)}),
    "preset": lambda file: preset(str(file)),
    "teacher_classes": lambda file: read_mapping(file, {0: "a"}),
    "document": lambda file: read_yaml(file, "resume=x", "restore it"),
}


@pytest.mark.parametrize(("text", "message"), ENDLESS.values(), ids=list(ENDLESS))
@pytest.mark.parametrize("kind", READERS)
def test_every_yaml_that_is_read_is_bounded(kind: str, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=message) as refused:
        READERS[kind](file)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_endless_metadata_of_an_exported_folder_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text(BOMB)
    assert folder_metadata(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nc": 10**9}, "1000000000 classes"),
        ({"nc": "1e300"}, "1e[+]300 classes"),
        ({"nc": float("inf")}, "inf classes"),
    ],
)
def test_more_classes_than_fit_into_memory_are_refused(
    change: dict[str, Any], message: str, untrained_detector: Any, tmp_path: Path
) -> None:
    for argument, source in (("data", untrained_detector.data), ("model", untrained_detector.student)):
        contents = {k: v for k, v in yaml.safe_load(source.read_text()).items() if k not in {"names", "nc"}}
        file = tmp_path / f"{argument}.yaml"
        file.write_text(yaml.safe_dump({**contents, **change}))
        with pytest.raises(BadInput, match=f"{argument}=.* has {message}, and 100000 are the most"):
            host.check_data(str(file)) if argument == "data" else host.build(str(file), 3)


def test_names_are_counted_as_classes() -> None:
    host.files.check_classes({"names": ["a"] * 100_000}, "data=d.yaml")
    with pytest.raises(BadInput, match=r"data=d\.yaml has 100001 classes"):
        host.files.check_classes({"names": dict.fromkeys(range(100_001), "a"), "nc": 2}, "data=d.yaml")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 10**9, "Conv", [64, 3, 2]], "layers, and 1000 are the most"),
        ([-1, 1, "Conv", [10**9, 3, 2]], "1000000000 cannot be the size of a layer"),
        ([-1, 1, "Conv", [64, 10**6, 2]], "1000000 cannot be the size of a layer"),
        ([-1, 1, "Conv", [64, float("nan"), 2]], "nan cannot be the size of a layer"),
    ],
)
def test_a_model_that_would_take_hours_to_build_is_refused(
    row: list[Any], message: str, untrained_detector: Any, tmp_path: Path
) -> None:
    contents = yaml.safe_load(untrained_detector.student.read_text())
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump({**contents, "backbone": [row, *contents["backbone"]]}))
    with pytest.raises(BadInput, match=message):
        host.build(str(file), 3)


def test_the_activation_of_a_model_runs_no_code(untrained_detector: Any, tmp_path: Path) -> None:
    contents, marker = yaml.safe_load(untrained_detector.student.read_text()), tmp_path / "was-run"
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump({**contents, "activation": f"__import__('os').mkdir({str(marker)!r})"}))
    with pytest.raises(BadInput, match="cannot be built"):
        host.build(str(file), 3)
    assert not marker.exists()


@pytest.mark.parametrize("how", ["folder", "capitals", "bare yml"])
def test_download_code_of_a_data_set_named_in_another_way_is_not_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "was-run"
    file = {"folder": "set/data.yaml", "capitals": "DATA.YAML", "bare yml": "only.yml"}[how]
    given = {"folder": "set", "capitals": "DATA.YAML", "bare yml": "only"}[how]
    Path(file).parent.mkdir(exist_ok=True)
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    contents = {"path": "gone", "train": "a", "val": "b", "names": ["x"], "download": code}
    Path(file).write_text(yaml.safe_dump(contents))
    with pytest.raises(BadInput, match="download: is code, which is not run"):
        host.check_data(given)
    assert not marker.exists()


@pytest.mark.parametrize("place", [None, 3, "list.txt"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_names_no_images_is_one_line(
    split: str, place: Any, untrained_detector: Any, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    place = str(tmp_path / place) if isinstance(place, str) else place
    contents = {**yaml.safe_load(untrained_detector.data.read_text()), split: place}
    (data := tmp_path / "data.yaml").write_text(yaml.safe_dump(contents))
    with pytest.raises(BadInput, match=r"data=.*data\.yaml: ") as refused:
        host.check_data(str(data))
    assert "\n" not in str(refused.value)


# Python as the command line


def by_trainer(student: Path, teacher: Path, **arguments: Any) -> None:
    YOLO(student).train(trainer=MKDTrainer.using(teacher=teacher), **arguments)


def by_mkd(student: Path, teacher: Path, **arguments: Any) -> None:
    MKD(student, teacher=teacher).train(**arguments)


def by_command_line(student: Path, teacher: Path, **arguments: Any) -> None:
    cli.run(["train", f"model={student}", f"teacher={teacher}", *(f"{k}={v}" for k, v in arguments.items())])


def by_plan(student: Path, teacher: Path, **arguments: Any) -> None:
    plan(model=str(student), teacher=str(teacher), **arguments)


WAYS = [by_trainer, by_mkd, by_command_line, by_plan]


@pytest.fixture
def arguments(untrained_detector: Any, tmp_path: Path) -> dict[str, Any]:
    place = {"project": str(tmp_path / "runs"), "name": "run"}
    return {"data": str(untrained_detector.data), "epochs": 1, "imgsz": 64, "batch": 8, "device": "cpu", **place}


def refused(way: Callable[..., None], student: Path, teacher: Path, arguments: dict[str, Any]) -> str:
    """The one line with which a way to train refuses something; nothing is left on the disk."""
    with pytest.raises(BadInput) as error:
        way(student, teacher, **arguments)
    assert "\n" not in str(error.value)
    assert not list(Path(arguments["project"]).rglob("*"))
    return str(error.value)


@pytest.mark.parametrize("way", WAYS)
def test_a_teacher_is_not_its_own_student(
    way: Callable[..., None], arguments: dict[str, Any], untrained_detector: Any, tmp_path: Path
) -> None:
    pt = untrained_detector.pt
    (copy := tmp_path / "copy.pt").write_bytes(pt.read_bytes())
    for student in (pt, copy):
        assert "is the student itself: give a larger" in refused(way, student, pt, arguments)


@pytest.mark.parametrize("way", WAYS)
def test_an_image_size_that_is_no_multiple_of_the_stride_is_refused(
    way: Callable[..., None], arguments: dict[str, Any], untrained_detector: Any
) -> None:
    text = refused(way, untrained_detector.student, untrained_detector.pt, {**arguments, "imgsz": 100})
    assert text.startswith("imgsz=100 is not a multiple of 32") and text.endswith("use imgsz=96")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_usable_image_is_refused(
    split: str, way: Callable[..., None], arguments: dict[str, Any], untrained_detector: Any, tmp_path: Path
) -> None:
    (place := tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(3):
        (place / f"{i}.png").write_bytes(untrained_detector.images[0].read_bytes())
        (tmp_path / "labels" / f"{i}.txt").write_text("7 0.5 0.5 0.1 0.1\n")  # a class that the data does not have
    contents = {**yaml.safe_load(untrained_detector.data.read_text()), split: str(place)}
    (data := tmp_path / "data.yaml").write_text(yaml.safe_dump(contents))
    text = refused(way, untrained_detector.student, untrained_detector.pt, {**arguments, "data": str(data)})
    assert f"none of the 3 images for '{split}' can be used" in text


def test_a_damaged_image_is_named_as_such_and_a_heif_image_by_the_package_that_it_needs(
    untrained_detector: Any, tmp_path: Path
) -> None:
    (image := tmp_path / "x.png").write_bytes(b"not an image")
    contents = {**yaml.safe_load(untrained_detector.data.read_text()), "train": str(tmp_path)}
    (data := tmp_path / "data.yaml").write_text(yaml.safe_dump(contents))
    with pytest.raises(BadInput) as refused:
        host.check_usable(host.check_data(str(data)), "detect")
    assert "pi_heif" not in str(refused.value)
    message = f"{image}: ignoring corrupt image/label: No module named 'pi_heif'"
    assert unusable(str(image), message) == f"{image}: it is damaged, or no image"
    assert unusable(str(image), "negative label values") == "negative label values"
    image.write_bytes(b"\0\0\0\x18ftypheic")
    assert unusable(str(image), message) == message


@pytest.mark.parametrize(
    "value", [3, 1.5, b"x", {"a": 1}, [object()], [], float("nan")], ids=lambda value: type(value).__name__
)
def test_a_value_of_another_type_is_one_line_from_python(value: Any, untrained_detector: Any) -> None:
    pt, images = untrained_detector.pt, untrained_detector.images
    attempts: dict[str, Callable[[], Any]] = {
        "format": lambda: export(pt, format=value, images=images),
        "head": lambda: export(pt, head=value, images=images),
        "quantize": lambda: export(pt, quantize=value, images=images),
        "images": lambda: export(pt, images=value),
        "model": lambda: check(value, pt, images=images),
        "run": lambda: write_page(value),
        "reports": lambda: pareto(value),
        "out": lambda: bundle(pt, untrained_detector.data, out=value),
        "plain": lambda: write_page(Path(__file__).parent, plain=value),
    }
    for name, attempt in attempts.items():
        with pytest.raises(BadInput, match=f"^{name}=") as refused:
            attempt()
        assert "\n" not in str(refused.value)


def by_record(student: Path, teacher: Path, **arguments: Any) -> None:
    command_line("record", student, teacher, arguments)


def by_cost(student: Path, teacher: Path, **arguments: Any) -> None:
    command_line("cost", student, teacher, arguments)


def by_compare(student: Path, teacher: Path, **arguments: Any) -> None:
    command_line("compare", student, teacher, arguments)


def by_ablate(student: Path, teacher: Path, **arguments: Any) -> None:
    command_line("ablate", student, teacher, arguments)


def command_line(command: str, student: Path, teacher: Path, arguments: dict[str, Any]) -> None:
    cli.run([command, f"model={student}", f"teacher={teacher}", *(f"{k}={v}" for k, v in arguments.items())])


@pytest.mark.parametrize("way", [*WAYS, by_record, by_cost, by_compare, by_ablate])
@pytest.mark.parametrize("channels", [1, 4, "grey"])
def test_images_of_other_than_three_channels_are_refused_before_training(
    channels: Any, way: Callable[..., None], arguments: dict[str, Any], untrained_detector: Any, tmp_path: Path
) -> None:
    contents = {**yaml.safe_load(untrained_detector.data.read_text()), "channels": channels}
    (data := tmp_path / "data.yaml").write_text(yaml.safe_dump(contents))
    text = refused(way, untrained_detector.student, untrained_detector.pt, {**arguments, "data": str(data)})
    assert "channels" in text and ("models of 3 channels only" in text or channels == "grey")


def test_trust_reaches_the_processes_of_trials_and_only_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolo_mkd.evidence.compare import executors

    code = f"import os, sys; open({str(tmp_path / 'seen')!r}, 'a').write(os.environ[{host.SAFE_LOAD!r}])"
    started = executors.subprocess.Popen
    monkeypatch.setattr(executors.subprocess, "Popen", lambda c, **k: started([sys.executable, "-c", code], **k))
    monkeypatch.setenv(host.SAFE_LOAD, "0")  # of a cluster's machine; what the comparison passes on decides
    executors.run_trial(str(tmp_path), 1, host.safe_load())
    with host.trusting(True):
        monkeypatch.setenv(host.SAFE_LOAD, "1")
        executors.run_trial(str(tmp_path), 1, host.safe_load())
    assert (tmp_path / "seen").read_text() == "10"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"epochs": True}, "epochs=True must be a number"),
        ({"cache": -5}, "cache=-5 is not known: choose from true, false, ram, disk"),
        ({"compile": "fast"}, "compile=fast is not known: choose from true, false, default"),
        ({"copy_paste_mode": "yes"}, "copy_paste_mode=yes is not known: choose from flip, mixup"),
        ({"split": "all"}, "split=all is not known: choose from train, val, test, minival"),
        ({"augmentations": -1}, "augmentations=-1 must be a list of Albumentations' transforms"),
        ({"pretrained": "yes"}, "pretrained=yes must be true, false or a .pt file"),
        ({"pretrained": "gone.pt"}, "pretrained=gone.pt: no such file"),
        ({"exist_ok": "maybe"}, "'exist_ok=maybe' is of invalid type"),
    ],
)
def test_arguments_at_which_training_would_fail_or_that_it_would_ignore(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(message)}"):
        host.check_arguments(argument)


def test_what_ultralytics_takes_is_taken() -> None:
    host.check_arguments(host.arguments())
    for argument in ({"cache": "RAM"}, {"compile": "max-autotune"}, {"multi_scale": True}, {"augmentations": [{}]}):
        host.check_arguments(argument)


def test_a_split_that_the_data_does_not_have_is_refused(arguments: dict[str, Any], untrained_detector: Any) -> None:
    text = refused(by_mkd, untrained_detector.student, untrained_detector.pt, {**arguments, "split": "test"})
    assert text.startswith("split=test, but data=") and "leave split= out" in text
