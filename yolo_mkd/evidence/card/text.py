"""Values as the text of a card: names that Markdown does not read as markup, and no path of the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MARKUP = re.compile(r"([\\`*_{}\[\]<>#|])")


def plain(text: Any) -> str:
    """A name from a file as Markdown text: on one line, with its markup escaped."""
    return MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def model_name(file: str) -> str:
    """A model's name: its file's, or that of its run where the file has a name that every run gives."""
    path = Path(file)
    return path.parts[-3] if path.name in {"best.pt", "last.pt"} and len(path.parts) > 2 else path.stem


def without_folders(value: Any) -> Any:
    """A value, and all values in it, in which an absolute path is its last part; other text is returned as it is."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
