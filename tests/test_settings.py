"""Reading the user's words, and refusing bad ones in one line."""

from __future__ import annotations

import pytest

from yolo_mkd.lesson import TERMS
from yolo_mkd.settings import BadInput, defaults, help_text, parse, refuse_unknown


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


def test_every_term_has_a_gain_with_the_nominal_value() -> None:
    gains = {name: defaults()[name] for name in TERMS}
    assert gains == dict(zip(TERMS, (1, 1, 0.02, 1, 1, 6, 0.15), strict=True))
