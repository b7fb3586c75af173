"""The package's strings are plain technical English: models compute and files contain; they do not speak or hear."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import yolo_mkd
from yolo_mkd.settings import shipped

ROOT = Path(yolo_mkd.__file__).parent
QUAINT = re.compile(
    r"\b(speak|speaks|spoken|spoke|hear|hears(?!:)|heard|silent|silently|silence|silenced|torn|riddle|foresee|foresees"
    r"|tells|knows no|teaches nothing|go on with|goes on with)\b|(?<!there )\bis no (?!such)[a-z.]+\b",
    re.IGNORECASE,
)
KEYS = {"heard", "hears", "silent"}  # fields of files that older versions have written
FILES = sorted(ROOT.rglob("*.py"))


def strings(file: Path) -> list[tuple[int, str]]:
    """The texts of a module by line: messages, docstrings and the constant parts of f-strings; field names are none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [(n.lineno, n.value) for n in nodes if n.value not in KEYS]


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_string_personifies(file: Path) -> None:
    found = [f"{line}: {match.group()}" for line, text in strings(file) for match in QUAINT.finditer(text)]
    assert not found


@pytest.mark.parametrize("file", sorted(shipped("cfg").rglob("*.yaml")), ids=lambda p: p.name)
def test_no_comment_of_a_settings_file_personifies(file: Path) -> None:
    assert not QUAINT.findall(file.read_text(encoding="utf-8"))
