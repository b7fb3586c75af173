"""The command line's key=value words, read by the rules of Ultralytics' own `yolo` command.

Re-implemented from `ultralytics.cfg`, so that a mistake is reported without importing it; a test compares both.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from yolo_mkd.settings.errors import BadInput, short

WORDS = {"none": None, "true": True, "false": False}
VERBATIM = {"name", "project"}  # kept as text: name=7 is a folder


def parse(words: Iterable[str], is_switch: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """The arguments of a command line.

    Args:
        words: `key=value`, also as `key = value` or `--key=value`; a trailing comma is dropped.
        is_switch: whether a name may stand alone, which means true; by default none may.

    Raises:
        BadInput: a word has no `=`, no key or no value, repeats a key, or has an unmatched bracket.
    """
    arguments: dict[str, Any] = {}
    for word in merge(words):
        key, equals, text = word.partition("=")
        key, text = key.strip(), text.strip()
        if not equals and is_switch is not None and is_switch(key):
            text = "true"
        elif not equals or not key or not text:
            raise BadInput(f"'{short(word)}' is not of the form key=value: write for example epochs=100")
        if key in arguments:
            raise BadInput(f"{key}= is given twice: keep one of them")
        arguments[key] = value_of(key, text)
    return arguments


def merge(words: Iterable[str]) -> list[str]:
    """The words with spaces around `=` and inside brackets joined, leading dashes and one trailing comma removed.

    Raises:
        BadInput: a bracket is unmatched.
    """
    rest, merged = list(words), list[str]()
    opened: list[str] = []  # the words since an unmatched "["
    while rest:
        word = rest.pop(0)
        if word == "=" and merged and rest:
            word = f"{merged.pop()}={rest.pop(0)}"
        elif word.endswith("=") and rest and "=" not in rest[0]:
            word += rest.pop(0)
        elif word.startswith("=") and merged:
            word = merged.pop() + word
        opened.append(word)
        joined = "".join(opened)
        if joined.count("[") == joined.count("]"):
            merged.append(joined)
            opened = []
    if opened:
        raise BadInput(f"'{short(opened[0])}' has an unmatched [ or ]: close it, for example imgsz=[96,160]")
    return [word.removeprefix("--").removesuffix(",") for word in merged]


def value_of(key: str, text: str) -> Any:
    """The value of one argument, as `ultralytics.cfg.parse_key_value_pair` reads it.

    none, true and false in any case; a Python literal such as 2, 1e-3, 0,1 (a tuple), [0,1] or a quoted text; a
    constant of an imported module such as cv2.COLORMAP_JET; else the text. `name` and `project` stay text.
    """
    if key in VERBATIM and text.lower() != "none":
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unusual escape in a quoted text
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        constant = module_constant(text)
        return text if constant is None else constant


def module_constant(text: str) -> int | float | None:
    """The number that `module.CONSTANT` names, or none."""
    name, _, constant = text.rpartition(".")
    if not constant.isupper():
        return None
    if name == "cv2":  # Ultralytics has always imported it
        import cv2  # noqa: F401
    value = getattr(sys.modules.get(name), constant, None)
    return value if isinstance(value, int | float) else None


def split_commas(value: Any) -> list[str]:
    """The items of a value that may hold several: a list, or a text with commas.

    A text, or a part of it, that is an existing path is one item although it has a comma.

    Args:
        value: a list, tuple, path, number or text.
    """
    if not isinstance(value, str):
        items = value if isinstance(value, list | tuple) else [value]
        return [str(item).strip() for item in items if str(item).strip()]
    parts, items = value.split(","), []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if os.path.exists(",".join(parts[:n]).strip())), 1)
        items.append(",".join(parts[:count]).strip())
        del parts[:count]
    return [item for item in items if item]
