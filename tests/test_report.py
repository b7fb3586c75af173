"""Whole-file writes, SHA-256 and tables."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from yolo_mkd import report
from yolo_mkd.settings import BadInput, Failed


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = report.write_text(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(RuntimeError), report.atomic(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert os.listdir(file.parent) == ["a.txt"]


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(BadInput, match="not a regular file"):
            report.write_text(place, "x")
    with pytest.raises(BadInput, match="cannot be written"):
        report.write_text("/proc/x", "x")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        report.write_text(tmp_path / "file" / "below", "x")


def test_a_full_disk_is_a_failure_of_the_work_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"No space left on device.*free some space"), report.atomic(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_the_digest_of_a_file_larger_than_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert report.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_tables_align_the_first_column_left_and_the_others_right() -> None:
    rows = [["a", "1.0"], ["long", "10.00"]]
    assert [line.split() for line in report.table(rows, ["name", "x"]).splitlines()] == [["name", "x"], *rows]
    ends = {
        line.index(cell) + len(cell)
        for line, cell in zip(report.table(rows, ["n", "x"]).splitlines()[1:], ("1.0", "10.00"), strict=True)
    }
    assert len(ends) == 1
    assert report.table(rows, ["name", "x"], markdown=True).splitlines()[1] == "|:-------|------:|"
