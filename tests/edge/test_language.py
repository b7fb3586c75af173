"""The device's modules are Python 3.8 and import each other, numpy and a runtime alone."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from yolo_mkd.deploy.bundle import LAUNCHER
from yolo_mkd.edge import bundle

EDGE = Path(bundle.__file__).parent


@pytest.mark.parametrize("path", sorted(EDGE.glob("*.py")), ids=lambda p: p.name)
def test_scripts_are_python_3_8_and_import_only_each_other_numpy_and_a_runtime(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    assert found <= {*sys.stdlib_module_names, "numpy", "cv2", "PIL", "onnxruntime"}
    text = path.read_text(encoding="utf-8")
    for newer in ("removeprefix", "removesuffix", "strict=", "match ", "functools.cache\n", "is_relative_to"):
        assert newer not in text, f"{newer} came after 3.8"
    ast.parse(LAUNCHER.format(summary="summary", name="run"), feature_version=(3, 8))


def test_script_named_time_does_not_hide_the_time_module():
    assert "time" in sys.builtin_module_names  # found before any file
