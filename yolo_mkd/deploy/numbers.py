"""Validation of one numeric argument, with an error that states the allowed range and an example."""

from __future__ import annotations

import math
from typing import Any

from yolo_mkd.settings import BadInput


def require_number(
    name: str,
    value: Any,
    example: float,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Validate that an argument is a finite number, or a whole number, within a range; true and false are not numbers.

    Args:
        name: the argument.
        value: its value.
        example: a valid value, for the error.
        at_least: the smallest valid value.
        at_most: the largest valid value.
        above: all valid values are greater than this one.
        below: all valid values are less than this one.
        whole: only whole numbers are valid.

    Raises:
        BadInput: the value is of another type or outside the range.
    """
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    bounds = (
        ("of at least", at_least, lambda bound: value >= bound),
        ("greater than", above, lambda bound: value > bound),
        ("at most", at_most, lambda bound: value <= bound),
        ("less than", below, lambda bound: value < bound),
    )
    if number and all(bound is None or holds(bound) for _, bound, holds in bounds):
        return
    ranges = " and ".join(f"{words} {bound:g}" for words, bound, _ in bounds if bound is not None)
    kind = "a whole number" if whole else "a number"
    raise BadInput(f"{name}={value} must be {kind}{' ' if ranges else ''}{ranges}, for example {name}={example:g}")
