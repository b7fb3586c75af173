"""What the value of each M-KD argument must be: type, range and an example.

One table, checked with pydantic. Defaults and meanings are in `cfg/default.yaml`, in the same order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from pydantic import Field, TypeAdapter, ValidationError

from yolo_mkd.settings.errors import BadInput, short

OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}  # pydantic's error types


@dataclass(frozen=True)
class Argument:
    """The type, range and example of one argument.

    Attributes:
        adapter: pydantic's validator; strict, so that no text is taken for a number and no number for a switch.
        must_be: completes "x=value must be" for a value of the wrong type.
        in_range: completes it for a number out of range; empty where the type has no range.
        example: a valid value.
    """

    adapter: TypeAdapter[Any]
    must_be: str
    example: Any
    in_range: str = ""

    def check(self, name: str, value: Any) -> Any:
        """The value, an int as float where the type is float.

        Raises:
            BadInput: its type or range is wrong.
        """
        try:
            return self.adapter.validate_python(value, strict=True)
        except ValidationError as error:
            wrong = {e["type"] for e in error.errors(include_url=False, include_input=False)}
        needed = self.in_range if wrong & OUT_OF_RANGE else self.must_be
        if "finite_number" in wrong:
            needed = self.must_be.replace("a number", "a finite number")
        raise BadInput(f"{name}={short(value)} must be {needed}, for example {name}={written(self.example)}")


def written(value: Any) -> str:
    """A value as it is written on the command line: none, true, 0.5, a.pt."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@functools.cache
def number_argument(
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
    example: float,
) -> Argument:
    """A finite number; true, false, text, NaN and infinity are refused.

    Args:
        low: the least valid value.
        above: a bound that the value must exceed.
        high: the greatest valid value.
        below: a bound that the value must stay below.
        whole: only whole numbers.
        optional: none is valid too.
        example: for the error.
    """
    bounds = Field(ge=low, gt=above, le=high, lt=below, allow_inf_nan=None if whole else False)
    kind: Any = Annotated[int if whole else float, bounds]
    if low is not None and high is not None:
        in_range = f"between {low} and {high}"
    else:
        limits = {
            f"greater than {above}": above,
            f"at least {low}": low,
            f"at most {high}": high,
            f"less than {below}": below,
        }
        in_range = " and ".join(text for text, limit in limits.items() if limit is not None)
    joined = f" of {in_range}" if in_range.startswith("at") else f" {in_range}"
    must_be = ("a whole number" if whole else "a number") + (joined if in_range else "")
    if optional:
        kind, in_range, must_be = kind | None, f"{in_range} or none", f"{must_be}, or none"
    return Argument(TypeAdapter(kind), must_be, example, in_range)


@overload
def number(
    argument: str,
    value: Any,
    *,
    low: float | None = ...,
    above: float | None = ...,
    high: float | None = ...,
    below: float | None = ...,
    whole: Literal[True],
    example: float,
) -> int: ...


@overload
def number(
    argument: str,
    value: Any,
    *,
    low: float | None = ...,
    above: float | None = ...,
    high: float | None = ...,
    below: float | None = ...,
    whole: bool = ...,
    example: float,
) -> float: ...


def number(
    argument: str,
    value: Any,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    whole: bool = False,
    example: float,
) -> float:
    """The value of an argument that must be a finite number.

    Args:
        argument: its name, for the error.
        value: what was given.
        low: the least valid value.
        above: a bound that the value must exceed.
        high: the greatest valid value.
        below: a bound that the value must stay below.
        whole: only whole numbers, returned as int.
        example: a valid value, for the error.

    Raises:
        BadInput: it is not a number, or out of range.
    """
    return number_argument(low=low, above=above, high=high, below=below, whole=whole, example=example).check(
        argument, value
    )


def switch(argument: str, value: Any) -> bool:
    """The value of an argument that must be true or false.

    Raises:
        BadInput: it is neither.
    """
    found: bool = SWITCH.check(argument, value)
    return found


def file_path(argument: str, value: Any, example: str) -> Path:
    """The value of an argument that must be the path of a file or folder, there or not.

    Raises:
        BadInput: it is empty, a number, none or otherwise not a path; a path of digits is given in quotes.
    """
    if value == "" or (isinstance(value, str | Path) and "\0" in str(value)):
        raise BadInput(f"{argument}={short(value)} must be a file or folder, for example {argument}={example}")
    return Path(text_argument("a file or folder", example).check(argument, value))


def check_argument(name: str, value: Any) -> Any:
    """The value of an M-KD argument, with its type and range checked against `ARGUMENTS`.

    Raises:
        BadInput: they are wrong.
    """
    return ARGUMENTS[name].check(name, value)


def text_argument(must_be: str, example: Any, *kinds: Any) -> Argument:
    """A name, path or other text; `kinds` are further types."""
    valid: Any = str | Path
    for kind in kinds:
        valid = valid | kind
    return Argument(TypeAdapter(valid), must_be, example)


def choice_argument(*words: str) -> Argument:
    """One of some words; the first is the example."""
    return Argument(TypeAdapter(Annotated[str, Field(pattern=f"^({'|'.join(words)})$")]), " or ".join(words), words[0])


SWITCH = Argument(TypeAdapter(bool), "true or false", True)
PATHS = list[str | Path] | tuple[str | Path, ...]

TERM_EXAMPLES = {  # distillation terms: a share of the detection gradient, or a loss weight with calibrate=false
    "soft": 2.0,
    "soft_box": 2.0,
    "soft_dfl": 0.4,
    "attention": 0.5,
    "relation": 0.2,
    "guidance": 0.25,
    "exploration": 0.05,
    "soft_mask": 1.0,
    "soft_keypoint": 1.0,
    "soft_obb": 1.0,
    "head_guidance": 1.0,
    "object_guidance": 1.0,
    "class_attention": 0.5,
    "object_relation": 0.5,
    "error_focus": 0.5,
    # terms of other methods
    "channel_wise": 1.0,
    "masked_generation": 2e-5,
    "focal_global": 1.0,
    "pearson": 6.0,
    "localization": 0.25,
    "score_l2": 6.0,
}
TERM_NAMES = tuple(TERM_EXAMPLES)

ARGUMENTS: dict[str, Argument] = {
    "model": text_argument("a .pt or .yaml file", "yolo26n.pt"),
    "teacher": text_argument(
        "one or more teachers: .pt, .yaml or .json files, or folders of labels", "yolo26m.pt", PATHS
    ),
    "teachers": choice_argument("mean", "drawn", "sequence"),
    "teacher_classes": text_argument(
        "one or more YAML files that map class names, or none", "classes.yaml", PATHS, None
    ),
    "assistant": text_argument("auto, none, or one or more .pt or .yaml files", "auto", PATHS, None),
    "start": choice_argument("slice", "fitted", "teacher", "plain"),
    "teacher_epochs": number_argument(low=0, whole=True, example=100),
    "teacher_imgsz": number_argument(low=1, whole=True, optional=True, example=640),
    "resume": text_argument("the folder of an interrupted chain, or true for the newest", "runs/mkd/train", bool, None),
    "record": text_argument("true, false or a folder", True, bool),
    "views": number_argument(low=1, whole=True, example=8),
    "record_limit": number_argument(above=0, optional=True, example=20),
    "unlabelled": text_argument("a folder of images, a list of them or a data set's YAML file", "frames", None),
    "unlabelled_ratio": number_argument(above=0, example=1.0),
    "preset": text_argument("the name of a preset or a .yaml file", "mkd", None),
    "calibrate": SWITCH,
    "until": number_argument(above=0, high=1, example=0.5),
    "teacher_every": number_argument(low=1, whole=True, example=4),
    "soft_pw": number_argument(low=0, high=1, example=0.5),
    "gate": SWITCH,
    **{name: number_argument(low=0, example=example) for name, example in TERM_EXAMPLES.items()},
    "trust": SWITCH,
    "download": SWITCH,
}

# arguments of a distilled run beside its models and terms
KD_OPTIONS = (
    "preset",
    "calibrate",
    "gate",
    "until",
    "teacher_every",
    "teacher_imgsz",
    "teachers",
    "teacher_classes",
    "record",
    "views",
    "record_limit",
    "soft_pw",
    "unlabelled",
    "unlabelled_ratio",
)
