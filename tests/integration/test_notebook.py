"""The notebook: without outputs in the repository, and run from top to bottom on a small generated set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "notebooks" / "distil_your_detector.ipynb"
SMALL = """
EXAMPLE = {"train": 8, "val": 4, "epochs": 1, "seeds": 1, "imgsz": 96}
OUT = "small"
"""


def test_the_notebook_has_no_outputs() -> None:
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), cell["id"]
        assert cell.get("execution_count") is None


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of the results, and the notebook after its execution with few images and one epoch."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook: Any = nbformat.read(FILE, as_version=4)
    (at,) = (i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(SMALL))
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return folder / "small", notebook


@pytest.mark.slow
def test_every_cell_runs_and_leaves_its_files(executed: tuple[Path, Any]) -> None:
    folder, notebook = executed
    for file in ("train/report.html", "compare/report.html", "train/card.md", "bundle/bundle.json", "bundle.tar.gz"):
        assert (folder / file).stat().st_size > 500, file
    report = json.loads((folder / "compare/compare.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["plain", "mkd"]
    assert "| plain " in (folder / "train/card.md").read_text()  # the comparison is of the training's settings
    shown = [str(o) for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert any("<iframe srcdoc" in text for text in shown)
    assert any("'map50_95'" in text for text in shown)
