"""The demo from end to end, with few images and one epoch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from yolo_mkd import demo, host, report
from yolo_mkd.demo.summary import DISTILLED, PLAIN
from yolo_mkd.settings import shipped

pytestmark = pytest.mark.slow


def test_the_demo_trains_exports_times_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LABELLED", 16), ("UNLABELLED", 12), ("VAL", 8), ("TIMED_S", 0.2), ("SHOWN", 2)):
        monkeypatch.setattr(demo, name, value)
    demo.demo(project=str(tmp_path), epochs=1, json=tmp_path / "copy.json")
    folder = tmp_path / "demo"
    document = json.loads((folder / "demo.json").read_text())
    assert document["schema"] == "yolo-mkd/demo/1"
    assert json.loads((tmp_path / "copy.json").read_text()) == document
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == ["teacher", PLAIN, DISTILLED]
    assert rows[PLAIN]["parameters"] == rows[DISTILLED]["parameters"] < rows["teacher"]["parameters"]
    assert document["pictures"] == {"train": 16, "unlabelled": 12, "val": 8, "seed": 0}
    assert rows["teacher"]["map50_95"] > 0.1
    assert all(row["p50_ms"] > 0 for row in document["rows"])
    assert (folder / "demo.png").stat().st_size > 50_000
    chain = yaml.safe_load((folder / "chain" / "chain.yaml").read_text())
    assert [s["name"] for s in chain["stages"]] == ["student"]
    assert Path(chain["knowledge"]["unlabelled"]) == folder / "unlabelled"
    assert "also used images without labels" in (folder / "report.html").read_text()
    # same start, seed and arguments: only the trainer and the place differ
    plain, distilled = (
        yaml.safe_load((folder / place / "args.yaml").read_text()) for place in ("plain", "chain/student")
    )
    differ = {k for k in plain if plain[k] != distilled[k]}
    assert differ <= {"project", "name", "save_dir", "exist_ok"}


def test_the_shipped_weights_match_their_readme() -> None:
    text = (shipped("weights") / "README.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"\| `([\w.-]+)` \| `([0-9a-f]{64})` \|", text))
    assert set(described) == {p.name for p in shipped("weights").glob("*.pt")} == set(demo.WEIGHTS.values())
    for name, sha256 in described.items():
        assert report.sha256(shipped("weights") / name) == sha256
        assert f"{(shipped('weights') / name).stat().st_size:,}" in text
        assert host.load_detector("model", str(shipped("weights") / name)).names[0] == "hex nut"
