"""The two errors that end a command with one line, and the refusal of unknown argument names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST = 80  # characters of a value that an error shows


class BadInput(ValueError):
    """An argument, file or data set that cannot be used; the message is one line and says what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a value in it may have line breaks


class Failed(RuntimeError):
    """The input was valid and the work failed, such as an export that does not match its model; one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


def refuse_unknown(arguments: Iterable[str], known: Iterable[str], command: str) -> None:
    """Refuse the first argument that is not among `known`, and name the nearest ones.

    Args:
        arguments: names to check.
        known: names that the command accepts.
        command: the command, for the message.

    Raises:
        BadInput: an argument is not among `known`.
    """
    known = sorted(set(known))
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(f'{n}=' for n in near)}?" if near else f"see yolo-mkd help {command}"
            raise BadInput(f"{short(key)}= is not an argument of yolo-mkd {command}: {hint}")


def short(value: Any) -> str:
    """A value as an error shows it: on one line, and at most 80 characters of it."""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
