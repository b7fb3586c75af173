"""Who may import whom: imports go one way through the package, without circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import yolo_mkd

ROOT = Path(yolo_mkd.__file__).parent
BASE = {"settings", "report", "documents", "plotting", "locking"}  # for every part but knowledge
ORDER = ["knowledge", "host", "distill", "cache", "session", "trainer", "chain", "deploy", "evidence", "demo", "cli"]
ALLOWED = {part: {*ORDER[: i + 1], *BASE} for i, part in enumerate(ORDER)}
ALLOWED |= {"knowledge": {"knowledge"}, "edge": {"edge"}, "host": {"host", "knowledge", "settings", "report"}}
ALLOWED |= {part: BASE for part in BASE} | {"deploy": ALLOWED["deploy"] | {"edge"}}
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in ALLOWED], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_part_imports_only_what_lies_below_it(path: Path) -> None:
    ours = {i.split(".")[1] for i in imports(path) if i.startswith("yolo_mkd.")}
    assert ours - {"__version__"} <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_host_reaches_into_ultralytics(path: Path) -> None:
    theirs = {i for i in imports(path) if i.split(".")[0] == "ultralytics"}
    assert part(path) == "host" or theirs <= {"ultralytics.YOLO"}


@pytest.mark.parametrize("path", sorted((ROOT / "knowledge").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_knowledge_is_pure_torch(path: Path) -> None:
    known = {"torch", "yolo_mkd", "__future__", "collections", "dataclasses", "math", "typing"}
    assert {i.split(".")[0] for i in imports(path)} <= known
