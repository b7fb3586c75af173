"""M-KD's arguments: the declared table, defaults and presets, and values read as Ultralytics reads them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.settings import (
    ARGUMENTS,
    KD_OPTIONS,
    NOMINAL_GAINS,
    TERM_NAMES,
    BadInput,
    argument_sections,
    check_argument,
    defaults,
    file_path,
    help_text,
    number,
    parse,
    preset,
    preset_names,
    refuse_unknown,
    resolve,
    shipped,
    split_commas,
    switch,
    value_of,
)

CANDIDATES = [  # off by default
    *("soft_mask", "soft_keypoint", "soft_obb"),
    *("head_guidance", "object_guidance", "class_attention", "object_relation", "error_focus"),
]
BASELINES = ["channel_wise", "focal_global", "localization", "masked_generation", "pearson", "score_l2"]


@pytest.mark.parametrize("module", ["yolo_mkd", "yolo_mkd.settings", "yolo_mkd.settings.commands", "yolo_mkd.cli"])
def test_importing_it_imports_no_torch_and_no_ultralytics(module: str) -> None:
    heavy = "{'torch', 'ultralytics', 'numpy', 'cv2', 'onnxruntime'}"
    program = f"import sys, {module}; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# The declared table


def test_the_table_and_the_defaults_file_name_the_same_arguments_in_the_same_order() -> None:
    assert list(ARGUMENTS) == list(defaults())
    assert [m.name for meanings in argument_sections().values() for m in meanings] == list(ARGUMENTS)
    assert tuple(TERMS) == TERM_NAMES
    assert set(KD_OPTIONS) == set(ARGUMENTS) - {
        *TERM_NAMES,
        "model",
        "teacher",
        "assistant",
        "start",
        "teacher_epochs",
        "resume",
        "trust",
        "download",
    }


def test_every_default_and_every_example_is_valid() -> None:
    for name, argument in ARGUMENTS.items():
        assert check_argument(name, defaults()[name]) == defaults()[name]
        assert argument.check(name, argument.example) == argument.example
        assert argument.check(name, value_of(name, str(argument.example))) == argument.example


def test_every_default_has_a_meaning_and_the_text_of_its_value() -> None:
    for meaning in (m for meanings in argument_sections().values() for m in meanings):
        assert len(meaning.meaning) > 10
        assert value_of(meaning.name, meaning.default) == defaults()[meaning.name]
    assert all(len(line) <= 120 for line in help_text().splitlines())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"until": 2}, "until=2 must be greater than 0 and at most 1, for example until=0.5"),
        ({"until": 0}, "until=0 must be greater than 0 and at most 1, for example until=0.5"),
        ({"until": True}, "until=True must be a number greater than 0 and at most 1, for example until=0.5"),
        ({"until": "end"}, "until=end must be a number greater than 0 and at most 1, for example until=0.5"),
        ({"until": math.nan}, "until=nan must be a finite number greater than 0 and at most 1, for example until=0.5"),
        ({"until": None}, "until=None must be a number greater than 0 and at most 1, for example until=0.5"),
        ({"teacher_every": 0}, "teacher_every=0 must be at least 1, for example teacher_every=4"),
        ({"teacher_every": 1.5}, "teacher_every=1.5 must be a whole number of at least 1, for example teacher_every=4"),
        ({"soft_pw": 1.5}, "soft_pw=1.5 must be between 0 and 1, for example soft_pw=0.5"),
        ({"soft_pw": False}, "soft_pw=False must be a number between 0 and 1, for example soft_pw=0.5"),
        ({"soft_pw": [0.5]}, "soft_pw=[0.5] must be a number between 0 and 1, for example soft_pw=0.5"),
        ({"attention": -1}, "attention=-1 must be at least 0, for example attention=0.5"),
        ({"attention": math.inf}, "attention=inf must be a finite number of at least 0, for example attention=0.5"),
        ({"guidance": "on"}, "guidance=on must be a number of at least 0, for example guidance=0.25"),
        ({"unlabelled_ratio": 0}, "unlabelled_ratio=0 must be greater than 0, for example unlabelled_ratio=1.0"),
        (
            {"unlabelled_ratio": "x"},
            "unlabelled_ratio=x must be a number greater than 0, for example unlabelled_ratio=1.0",
        ),
        (
            {"teacher_imgsz": "big"},
            "teacher_imgsz=big must be a whole number of at least 1, or none, for example teacher_imgsz=640",
        ),
        ({"teacher_imgsz": 0}, "teacher_imgsz=0 must be at least 1 or none, for example teacher_imgsz=640"),
        (
            {"teacher_imgsz": (96, 160)},
            "teacher_imgsz=(96, 160) must be a whole number of at least 1, or none, for example teacher_imgsz=640",
        ),
        ({"teacher_epochs": -1}, "teacher_epochs=-1 must be at least 0, for example teacher_epochs=100"),
        ({"views": 0}, "views=0 must be at least 1, for example views=8"),
        ({"views": 2.5}, "views=2.5 must be a whole number of at least 1, for example views=8"),
        ({"views": True}, "views=True must be a whole number of at least 1, for example views=8"),
        ({"record": 3}, "record=3 must be true, false or a folder, for example record=true"),
        ({"record": None}, "record=None must be true, false or a folder, for example record=true"),
        ({"record_limit": -1}, "record_limit=-1 must be greater than 0 or none, for example record_limit=20"),
        ({"calibrate": "yes"}, "calibrate=yes must be true or false, for example calibrate=true"),
        ({"gate": 1}, "gate=1 must be true or false, for example gate=true"),
        (
            {"teacher": 5},
            "teacher=5 must be one or more teachers: .pt, .yaml or .json files, or folders of labels, for example "
            "teacher=yolo26m.pt",
        ),
        ({"assistant": [1]}, "must be auto, none, or one or more .pt or .yaml files, for example assistant=auto"),
        ({"gate": "a\nb" * 99}, "gate=a ba ba"),
        ({"preset": "saef"}, "preset=saef does not exist: choose from channel_wise, "),
        ({"preset": "gone.yaml"}, "preset=gone.yaml does not exist: choose from "),
        ({"preset": "../default"}, "preset=../default does not exist: choose from "),
        ({"preset": ["mkd"]}, "preset=['mkd'] must be the name of a preset or a .yaml file, for example preset=mkd"),
        ({"preset": "safe"}, "preset=safe was removed in 0.2.0: use gate=true relation=0 exploration=0"),
    ],
)
def test_a_bad_value_is_refused_on_one_line_with_the_rule_and_an_example(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as e:
        resolve(given)
    assert message in str(e.value)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


def test_a_number_of_another_command_is_checked_the_same_way() -> None:
    assert number("threads", 4, low=1, whole=True, example=4) == 4
    assert number("duration", 60, above=0, example=60) == 60.0
    assert isinstance(number("duration", 60, above=0, example=60), float)
    for value, message in (
        (0, "samples=0 must be between 2 and 32, for example samples=8"),
        (2.0, "samples=2.0 must be a whole number between 2 and 32, for example samples=8"),
        (True, "samples=True must be a whole number between 2 and 32, for example samples=8"),
        (10**400, "samples=1000"),
    ):
        with pytest.raises(BadInput, match="for example samples=8") as e:
            number("samples", value, low=2, high=32, whole=True, example=8)
        assert str(e.value).startswith(message)
        assert len(str(e.value)) < 200
    with pytest.raises(
        BadInput, match=r"^duration=10{79}\.\.\. must be a number greater than 0, for example duration=60$"
    ):
        number("duration", 10**400, above=0, example=60)
    assert switch("latency", True) is True
    with pytest.raises(BadInput, match="latency=fast must be true or false, for example latency=true"):
        switch("latency", "fast")


def test_a_path_of_another_command_is_text_or_a_path() -> None:
    assert file_path("out", "no", "student-bundle") == file_path("out", Path("no"), "student-bundle") == Path("no")
    for value, shown in (
        (None, "None"),
        (7, "7"),
        (True, "True"),
        (("a", "b"), "('a', 'b')"),
        ("", ""),
        ("a\0", "a\0"),
    ):
        with pytest.raises(BadInput) as e:
            file_path("out", value, "student-bundle")
        assert str(e.value) == f"out={shown} must be a file or folder, for example out=student-bundle"


BAD = [
    None,
    True,
    0,
    -1,
    7,
    1.5,
    10**400,
    math.nan,
    -math.inf,
    "",
    "x",
    "x\0",
    "a" * 9999,
    [],
    [1],
    (0, 1),
    {},
    {"a": 1},
]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_value_is_accepted_or_refused_on_one_line_that_names_the_argument(name: str) -> None:
    for value in [*BAD, b"x", 1j, object(), Path("x"), [["a"]], {1}]:
        try:
            assert set(resolve({name: value})) == set(defaults())
        except BadInput as e:
            assert str(e).startswith(f"{name}=")
            assert "\n" not in str(e)
            assert len(str(e)) < 400


# Defaults and presets


def test_the_presets_are_the_papers_the_soft_targets_the_caches_and_one_for_each_other_method() -> None:
    assert preset_names() == sorted(["mkd", "soft", "recorded", *BASELINES])


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_valid_and_sets_every_term_of_mkd(name: str) -> None:
    assert set(NOMINAL_GAINS) <= set(preset(name))
    assert set(resolve({"preset": name})) == set(defaults())


def test_a_preset_overrides_defaults_and_an_argument_overrides_a_preset() -> None:
    assert resolve({})["exploration"] == defaults()["exploration"] == 0.05
    assert resolve({"preset": "recorded"})["exploration"] == 0
    assert resolve({"preset": "recorded"})["until"] == 1
    own = resolve({"preset": "recorded", "exploration": 0.3, "until": 0.4})
    assert (own["exploration"], own["until"], own["soft"], own["record"]) == (0.3, 0.4, 2.0, True)


def test_the_papers_preset_is_the_default_and_has_all_its_terms() -> None:
    assert {n: resolve({"preset": "mkd"})[n] for n in TERMS} == {n: resolve({})[n] for n in TERMS}
    assert all(resolve({"preset": "mkd"})[n] > 0 for n in set(TERMS) - {*BASELINES, *CANDIDATES})
    assert resolve({"preset": "mkd"})["until"] == resolve({})["until"] == 1


def test_the_preset_soft_is_the_soft_targets_alone_at_their_default_shares() -> None:
    own = resolve({"preset": "soft"})
    assert {n: own[n] for n in TERMS if own[n]} == {"soft": 2.0, "soft_box": 2.0}
    assert own | {"preset": None} == defaults() | {n: own[n] for n in TERMS}
    assert (own["soft"], own["soft_box"]) == (defaults()["soft"], defaults()["soft_box"])


@pytest.mark.parametrize("name", BASELINES)
def test_the_preset_of_another_method_is_that_method_alone_at_its_published_weight(name: str) -> None:
    own = resolve({"preset": name})
    assert own["until"] == 1
    assert {n: own[n] for n in TERMS if own[n]} == {name: TERMS[name].gain}
    assert own["calibrate"] is False


def test_the_cached_teachers_preset_has_only_terms_that_a_cache_can_serve() -> None:
    own = resolve({"preset": "recorded"})
    expected = {"soft": 2.0, "soft_box": 2.0, "attention": 0.5, "relation": 0.2}
    assert {n: own[n] for n in TERMS if own[n]} == expected


def test_none_as_a_word_means_no_assistant_from_python_too() -> None:
    assert resolve({"assistant": "none"})["assistant"] is resolve({"assistant": None})["assistant"] is None


def test_without_calibration_unset_terms_have_their_nominal_loss_weights() -> None:
    assert {n: TERMS[n].gain for n in set(TERMS) - {*BASELINES, *CANDIDATES}} == NOMINAL_GAINS
    own = resolve({"calibrate": False, "attention": 0.5})
    expected = {**NOMINAL_GAINS, **dict.fromkeys([*BASELINES, *CANDIDATES], 0), "attention": 0.5}
    assert {n: own[n] for n in TERMS} == expected
    assert resolve({"preset": "soft", "calibrate": False})["guidance"] == 0  # the preset sets it


def test_the_terms_are_resolved_to_floats_and_other_arguments_pass_unchanged() -> None:
    own = resolve({"attention": 1, "epochs": "any"})
    assert isinstance(own["attention"], float)
    assert own["epochs"] == "any"


def test_a_preset_may_be_a_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("attention: 0.7  # more\n")
    assert resolve({"preset": str(file)})["attention"] == 0.7
    assert resolve({"preset": file})["soft"] == 2.0
    file.write_text("until: 0.9\nonly: {soft: 1, channel_wise: 0.5}\n")
    own = resolve({"preset": str(file)})
    assert {n: own[n] for n in TERMS if own[n]} == {"soft": 1.0, "channel_wise": 0.5}
    assert own["until"] == 0.9
    file.write_text("teacher_imgsz: none\nonly: {masked_generation: 2e-5}\n")  # text for YAML 1.1
    own = resolve({"preset": str(file)})
    assert (own["masked_generation"], own["teacher_imgsz"]) == (0.00002, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atention: 1", "did you mean attention="),
        ("preset: mkd", "preset= is not an argument"),
        ("1: 2", "1= is not an argument"),
        ("- 1", "contains no arguments"),
        ("", "contains no arguments"),
        ("a: [", "is not a valid YAML file"),
        ("until: 2020-13-45", "is not a valid YAML file"),
        ("[" * 5000, "is not a valid YAML file"),
        ("attention: -1", "attention=-1 must be at least 0"),
        ("only: soft", "only must map terms to values, for example only: {soft: 2.0}"),
        ("only: {until: 1}", "until in only is not a term: choose from soft, soft_box"),
        ("only: {soft: 1}\nattention: 1", "attention is a term outside only: move it into only"),
        ("only: {soft: -1}", "soft=-1 must be at least 0"),
    ],
)
def test_a_bad_preset_file_is_refused_on_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadInput) as e:
        resolve({"preset": str(tmp_path / "mine.yaml")})
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_preset_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is not a valid YAML file"):
        resolve({"preset": str(tmp_path / "mine.yaml")})


# The command line's values

VALUES = {  # values of each argument, with " | " between them
    "epochs": "100 | 1_000 | 1e2 | 010 | 0x10 | 5, | - 5",
    "lr0": "1e-3 | .5 | -1 | nan | inf | 1e999 | 1/2 | 50%",
    "plots": "false | True | TRUE | yes | no | on | off",
    "out": "no | none | None | NONE | null | ~",
    "classes": "0,2 | 0, | [0,2] | (0, 2) | 0, 2 | {0, 2} | person,car",
    "imgsz": "96,160 | [96, 160]",
    "device": "0 | 0,1 | [0,1] | cpu | cuda:0 | -1",
    "name": "7 | true | none | 1e3 | 'a' | a b",
    "project": "0,1 | None | runs/a",
    "data": r"/x/my #1 set/d.yaml | a: b | {a: 1} | {'a': 1} | C:\data\x.yaml | a,b.yaml | 'a b.yaml'",
    "source": '"a b.jpg" | it\'s | *.jpg | https://x.y/z?a=b |  a  | é.jpg',
    "model": "yolo11s-e2e.pt | 1e5.pt | a=b.pt",
    "assistant": "a.pt,b.pt",
    "methods": "plain,mkd:soft=1",
    "seeds": "3 | 0,1,5",
    "time": "01:30 | 2024-01-01",
    "tag": r"!!x | b'x' | 1j | '\d' | \n | ... | print(1)",
    "interpolation": "cv2.INTER_AREA | cv2.NOTHING | os.SEEK_END | nothing.HERE",
}
WORDS = [f"{key}={text}" for key, texts in VALUES.items() for text in texts.split(" | ")]


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # of Ultralytics' parser
@pytest.mark.parametrize("word", WORDS)
def test_a_value_is_read_as_ultralytics_reads_it(word: str) -> None:
    from ultralytics.cfg import parse_key_value_pair

    key, value = parse_key_value_pair(word.removesuffix(","))  # the trailing comma goes before, in its entry point
    found = parse([word])
    assert list(found) == [key]
    assert type(found[key]) is type(value)
    assert found[key] == value or (value != value and found[key] != found[key])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("classes=0,2", (0, 2)),
        ("imgsz=96,160", (96, 160)),
        ("data=/x/my #1 set/d.yaml", "/x/my #1 set/d.yaml"),
        ("data=a: b", "a: b"),
        ("out=no", "no"),
        ("assistant=none", None),
        ("lr0=1e-3", 0.001),
        ("plots=True", True),
        ("device=[0,1]", [0, 1]),
        ("name=7", "7"),
    ],
)
def test_values_that_yaml_would_read_otherwise(word: str, value: object) -> None:
    assert list(parse([word]).values()) == [value]


@pytest.mark.parametrize(
    "words",
    [
        ["epochs", "=", "3"],
        ["epochs=", "3"],
        ["epochs", "=3"],
        ["imgsz=[3,", "640,", "640]", "epochs=3"],
        ["imgsz", "=", "[3,", "640,", "640]"],
        ["a=1", "b", "=", "2", "c=", "3"],
        ["data=a[0]", "epochs=1"],
        ["epochs=", "lr0=1"],
    ],
)
def test_spaces_around_equals_and_in_brackets_are_joined_as_ultralytics_joins_them(words: list[str]) -> None:
    from ultralytics.cfg import merge_equals_args

    from yolo_mkd.settings.values import merge

    assert merge(words) == merge_equals_args(words)


def test_leading_dashes_are_dropped_and_a_switch_may_stand_alone() -> None:
    assert parse(["--epochs=3", "gate"], lambda word: word == "gate") == {"epochs": 3, "gate": True}


def test_no_words_give_no_arguments() -> None:
    assert parse([]) == {}


@pytest.mark.parametrize(
    "words", [["epochs"], ["=3"], ["epochs="], ["epochs=1", "epochs=2"], ["imgsz=[96"], ["a=1]"], ["="], ["=", "="]]
)
def test_words_that_are_not_a_pair_are_refused_on_one_line(words: list[str]) -> None:
    with pytest.raises(BadInput) as e:
        parse(words)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["[" * 200 + "]" * 200, "(" * 9000, "9" * 9000, "\x00", "\ud800", "-" * 9000 + "1"])
def test_hostile_text_stays_text_or_a_value(text: str) -> None:
    parse([f"a={text}"])


def test_commas_separate_items_but_not_inside_an_existing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.pt", "x,y,z"):
        (tmp_path / name).touch()
    assert split_commas("a.pt,b.pt") == ["a.pt", "b.pt"]
    assert split_commas("a,b.pt") == ["a,b.pt"]
    assert split_commas("c.pt, a,b.pt ,x,y,z,d") == ["c.pt", "a,b.pt", "x,y,z", "d"]
    assert split_commas("a,b,pt") == ["a", "b", "pt"]
    assert split_commas((0, 1, 5)) == ["0", "1", "5"]
    assert split_commas(Path("a,b")) == ["a,b"]
    assert split_commas(3) == ["3"]
    assert split_commas("") == split_commas([]) == []


def test_a_misspelt_argument_names_its_nearest_neighbours() -> None:
    message = "^atention= is not an argument of yolo-mkd train: did you mean attention=.*\\?$"
    with pytest.raises(BadInput, match=message):
        refuse_unknown(["atention"], defaults(), "train")


def test_the_shipped_folders_are_found() -> None:
    assert yaml.safe_load((shipped("cfg") / "default.yaml").read_text(encoding="utf-8")) == defaults()
    assert (shipped("weights") / "README.md").is_file()
