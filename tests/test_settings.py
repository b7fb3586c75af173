"""Reading the user's words, and refusing bad ones in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.settings import BadInput, defaults, help_text, parse, refuse_unknown, resolve, shipped


def test_no_words_give_no_arguments() -> None:
    assert parse([]) == {}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("epochs=100", 100),
        ("lr0=1e-3", 0.001),
        ("plots=false", False),
        ("assistant=none", None),
        ("device=0,1", "0,1"),
        ("device=[0,1]", [0, 1]),
        ("name=7", "7"),
        ("teacher=a=b.pt", "a=b.pt"),
        ("model=yolo11s-e2e.pt", "yolo11s-e2e.pt"),
    ],
)
def test_values_are_read_as_people_write_them(word: str, value: object) -> None:
    assert list(parse([word]).values()) == [value]


@pytest.mark.parametrize("words", [["epochs"], ["=3"], ["epochs="], ["epochs=1", "epochs=2"]])
def test_words_that_are_no_pair_are_refused_on_one_line(words: list[str]) -> None:
    with pytest.raises(BadInput) as e:
        parse(words)
    assert "\n" not in str(e.value)


def test_a_misspelt_argument_names_its_nearest_neighbours() -> None:
    with pytest.raises(BadInput, match=r"atention= is no argument of yolo-mkd train: did you mean attention="):
        refuse_unknown(["atention"], defaults(), "train")


def test_every_default_has_its_meaning_beside_it() -> None:
    lines = [line for line in help_text().splitlines() if line and not line.startswith("#")]
    assert {line.split(":")[0] for line in lines} == set(defaults())
    assert all(line.partition("#")[2].strip() for line in lines)


PRESETS = sorted(p.stem for p in (shipped("cfg") / "presets").glob("*.yaml"))
RIVALS = ["channel_wise", "focal_global", "localization", "masked_generation", "pearson", "score_l2"]


def test_there_is_a_preset_for_the_paper_for_good_students_for_strangers_and_for_each_rival() -> None:
    assert sorted(["mkd", "safe", "free", "nominal", "recorded", *RIVALS]) == PRESETS


def test_a_preset_goes_before_defaults_and_an_argument_before_a_preset() -> None:
    assert resolve({})["exploration"] == defaults()["exploration"] > 0
    assert resolve({"preset": "safe"})["exploration"] == 0
    assert resolve({"preset": "safe"})["gate"] is True
    own = resolve({"preset": "safe", "exploration": 0.3, "gate": False})
    assert (own["exploration"], own["gate"], own["soft"]) == (0.3, False, defaults()["soft"])


def test_the_papers_preset_is_the_default_and_has_all_its_parts() -> None:
    assert {n: resolve({"preset": "mkd"})[n] for n in TERMS} == {n: resolve({})[n] for n in TERMS}
    assert all(resolve({"preset": "mkd"})[n] > 0 for n in set(TERMS) - set(RIVALS))
    assert resolve({"preset": "mkd"})["until"] == resolve({})["until"] == 0.5


@pytest.mark.parametrize("name", RIVALS)
def test_a_rivals_preset_is_that_rival_alone_at_its_published_gain(name: str) -> None:
    own = resolve({"preset": name})
    assert own["until"] == 1
    assert {n: own[n] for n in TERMS if own[n]} == {name: TERMS[name].gain}
    assert own["calibrate"] is False


def test_none_as_a_word_means_one_hop_from_python_too() -> None:
    assert resolve({"assistant": "none"})["assistant"] is resolve({"assistant": None})["assistant"] is None


def test_without_calibration_what_nobody_set_has_its_nominal_gain() -> None:
    own = resolve({"calibrate": False, "attention": 0.5})
    expected = {n: TERMS[n].gain for n in set(TERMS) - set(RIVALS)} | dict.fromkeys(RIVALS, 0)
    assert {n: own[n] for n in TERMS} == {**expected, "attention": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "saef"}, "preset=saef: no such preset: choose from channel_wise, "),
        ({"calibrate": "yes"}, "calibrate=yes is neither true nor false"),
        ({"gate": 1}, "gate=1 is neither true nor false"),
        ({"until": 0}, "until=0 is no share of the epochs"),
        ({"soft_pw": 1.5}, "soft_pw=1.5 is no power between 0 and 1"),
        ({"soft_pw": True}, "soft_pw=True is no power between 0 and 1"),
        ({"soft_pw": "rare"}, "soft_pw=rare is no power between 0 and 1"),
        ({"until": 1.5}, "until=1.5 is no share of the epochs"),
        ({"until": True}, "until=True is no share of the epochs"),
        ({"until": "end"}, "until=end is no share of the epochs"),
        ({"teacher_imgsz": "big"}, "teacher_imgsz=big is no number of pixels"),
        ({"views": 0}, "views=0 is no number of views"),
        ({"record": 3}, "give record=true or a folder"),
        ({"record_limit": -1}, "record_limit=-1 is no size in GB"),
        ({"teacher_imgsz": True}, "teacher_imgsz=True is no number of pixels"),
        ({"preset": "gone.yaml"}, "preset=gone.yaml: no such preset"),
    ],
)
def test_bad_settings_are_refused_by_name(given: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolve(given)


def test_a_preset_of_the_users_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("attention: 0.7  # more\n")
    assert resolve({"preset": str(tmp_path / "mine.yaml")})["attention"] == 0.7
    for text, message in (("atention: 1", "did you mean attention="), ("- 1", "holds no arguments"), ("a: [", "YAML")):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(BadInput, match=message):
            resolve({"preset": str(tmp_path / "mine.yaml")})
