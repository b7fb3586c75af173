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
    types = int if whole else (int, float)
    valid = isinstance(value, types) and not isinstance(value, bool) and math.isfinite(value)
    ranges = []
    if at_least is not None:
        ranges.append(f"of at least {at_least:g}")
        valid = valid and value >= at_least
    if above is not None:
        ranges.append(f"greater than {above:g}")
        valid = valid and value > above
    if at_most is not None:
        ranges.append(f"at most {at_most:g}")
        valid = valid and value <= at_most
    if below is not None:
        ranges.append(f"less than {below:g}")
        valid = valid and value < below
    if not valid:
        words = " ".join(["a whole number" if whole else "a number", " and ".join(ranges)]).strip()
        raise BadInput(f"{name}={value} must be {words}, for example {name}={example:g}")
