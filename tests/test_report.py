"""A file is written whole or not at all, also where several processes write the same one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import report
from yolo_mkd.settings import BadInput, Failed


def test_the_file_appears_at_the_end_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / "new" / "figures.json"
    with report.atomic(file) as partial:
        partial.write_text("whole")
        assert not file.exists() and partial.parent == file.parent
    assert file.read_text() == "whole"
    assert [f.name for f in file.parent.iterdir()] == ["figures.json"]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), report.atomic(file) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("FOLDER", "is not a regular file"),
        ("FIFO", "is not a regular file"),
        ("/dev/null", "json=/dev/null is not a regular file"),
        ("FILE/under.json", "json=.* cannot be written \\("),
        ("/proc/x.json", r"json=/proc/x.json cannot be written \("),
        ("", "json= must be a file or folder"),
        (7, "json=7 must be a file or folder"),
        ("a\0b", "must be a file or folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "fifo")
    text = value
    if isinstance(value, str):
        places = {"FOLDER": tmp_path, "FIFO": tmp_path / "fifo", "FILE": tmp_path / "file"}
        for name, place in places.items():
            text = text.replace(name, str(place))
    with pytest.raises(BadInput, match=message) as e:
        report.check_writable("json", text)
    assert "\n" not in str(e.value)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["fifo", "file"]


def test_a_file_that_can_be_written_is_not_made_by_the_check(tmp_path: Path) -> None:
    report.check_writable("json", None)
    report.check_writable("json", tmp_path / "new/deeper/figures.json")
    (tmp_path / "old.json").write_text("old")
    report.check_writable("json", str(tmp_path / "old.json"))
    assert [f.name for f in tmp_path.iterdir()] == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


def test_temporary_names_are_unique_and_carry_the_process_and_the_ending(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with report.atomic(file) as first:
        first.write_text("first")
        with report.atomic(file) as second:
            second.write_text("second")
        assert file.read_text() == "second"
    assert file.read_text() == "first"  # the last to finish
    assert first != second
    assert all(p.name.startswith(f"figures.json.{os.getpid()}-") and p.suffix == report.PART for p in (first, second))


def test_many_processes_may_write_one_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    code = (
        "import sys\nfrom pathlib import Path\nfrom yolo_mkd import report\n"
        "for _ in range(50):\n    report.write_text(Path(sys.argv[1]), sys.argv[2] * 10**5)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), letter]) for letter in "abc"]
    assert [w.wait() for w in writers] == [0, 0, 0]
    text = file.read_text()
    assert len(text) == 10**5 and len(set(text)) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["figures.json"]


def test_a_folder_in_the_place_of_the_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^[^\n]* is not a regular file and cannot be written: name another file$"):
        report.write_text(tmp_path, "text")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BadInput, match=r"^[^\n]* cannot be written \([^\n]*\): name a file in a folder of yours$"):
        report.write_text(tmp_path / "file" / "below", "text")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_report_has_its_schema_versions_and_machine_before_the_figures(tmp_path: Path) -> None:
    written = json.loads(report.write(tmp_path / "time.json", "time", {"p50_ms": 1.5}, version=3).read_text())
    assert list(written) == ["schema", "versions", "machine", "p50_ms"]
    assert written["schema"] == "yolo-mkd/time/3" and written["p50_ms"] == 1.5
    assert {"python", "torch"} <= set(written["versions"])


def test_the_sha256_of_a_file_is_the_standard_one(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert report.sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_table_keeps_its_cells_as_text() -> None:
    rows = [["yolo26n", "0.50", "1e3"], ["x", "12.5", ""]]
    cells = [line.split() for line in report.table(rows, ["model", "mAP", "steps"]).splitlines()]
    assert cells == [["model", "mAP", "steps"], ["yolo26n", "0.50", "1e3"], ["x", "12.5"]]
    markdown = report.table(rows, ["model", "mAP", "steps"], markdown=True).splitlines()
    assert [cell.strip() for cell in markdown[2].strip("|").split("|")] == ["yolo26n", "0.50", "1e3"]
    assert [line.count("|") for line in markdown] == [4] * 4


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
