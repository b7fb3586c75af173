"""Who may import whom: knowledge flows one way through the package, without circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import yolo_mkd

ROOT = Path(yolo_mkd.__file__).parent
# what of this package each part may import; `host` alone may reach into Ultralytics
ALLOWED = {
    "knowledge": {"knowledge"},
    "settings": set(),
    "report": set(),
    "taps": set(),
    "balance": set(),
    "schedule": set(),
    "host": {"host", "knowledge", "settings", "taps"},
    "lesson": {"lesson", "knowledge", "settings", "taps"},
    "teachers": {"host", "knowledge", "taps"},
    "record": {"record", "host", "knowledge", "lesson", "settings", "taps", "teachers"},
    "criterion": {"host", "balance", "knowledge", "lesson", "record", "schedule", "teachers"},
    "shares": {"balance", "host"},
    "pseudo": {"host", "settings", "unlabelled"},
    "unlabelled": {"host", "knowledge", "record", "settings", "teachers"},
    "trainer": {
        *("host", "balance", "criterion", "lesson", "record", "report", "schedule", "settings", "shares", "teachers"),
        "unlabelled",
    },
    "assistant": {"host", "settings"},
    "chain": {"assistant", "host", "report", "lesson", "record", "settings", "trainer", "unlabelled"},
    "planning": {
        *("planning", "assistant", "balance", "chain", "criterion", "host", "knowledge", "lesson", "report"),
        *("record", "schedule", "settings", "teachers", "trainer"),
    },
    "comparing": {
        *("comparing", "board", "chain", "exporting", "host", "lesson", "pseudo", "report", "settings", "timing"),
        "unlabelled",
    },
    "edge": {"edge"},
    "artefact": {"settings"},
    "images": {"host", "settings"},
    "exporting": {"exporting", "artefact", "host", "images", "parity", "report", "settings"},
    "parity": {"parity", "artefact", "host", "images", "report", "settings"},
    "bundling": {"artefact", "edge", "exporting", "images", "parity", "report", "settings"},
    "backends": {"backends", "artefact", "settings"},
    "timing": {"timing", "artefact", "backends", "edge", "images", "report", "settings"},
    "tradeoff": {"tradeoff", "board", "report", "settings"},
    "recording": {"chain", "host", "lesson", "record", "report", "settings", "trainer"},
    "costing": {
        *("costing", "balance", "chain", "criterion", "host", "lesson", "planning", "record", "report", "schedule"),
        *("settings", "trainer"),
    },
}


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


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in ALLOWED], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_part_imports_only_what_it_may(path: Path) -> None:
    ours = {i.split(".")[1] for i in imports(path) if i.startswith("yolo_mkd.")}
    assert ours <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_host_reaches_into_ultralytics(path: Path) -> None:
    theirs = {i for i in imports(path) if i.split(".")[0] == "ultralytics"}
    assert part(path) == "host" or theirs <= {"ultralytics.YOLO"}


@pytest.mark.parametrize("path", sorted((ROOT / "knowledge").rglob("*.py")), ids=lambda p: p.name)
def test_knowledge_is_pure_torch(path: Path) -> None:
    assert {i.split(".")[0] for i in imports(path)} <= {
        "torch",
        "yolo_mkd",
        "__future__",
        "dataclasses",
        "math",
        "typing",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_the_command_line(path: Path) -> None:
    assert not any(i.startswith("yolo_mkd.cli") for i in imports(path))
