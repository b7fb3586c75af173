"""One process at a time in a run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yolo_mkd.locking import LOCK, STALE_S, exclusive, workspace
from yolo_mkd.settings import BadInput

HOLD = "import sys, time, pathlib; from yolo_mkd.locking import exclusive\nwith exclusive(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_with_the_owners_number_and_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match=f"in use by process {owner.pid} on ") as refused, exclusive(tmp_path):
        pass
    assert "\n" not in str(refused.value)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with exclusive(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock.json").read_text()
    assert not (tmp_path / ".lock.json").exists()


def nothing(folder: Path) -> None:
    """No run of this command leaves anything to be rescued."""


def test_a_workspace_is_empty_and_is_removed_also_after_an_error(tmp_path: Path) -> None:
    (tmp_path / ".job-a" / "old").mkdir(parents=True)
    (tmp_path / ".job-a" / "older").touch()
    with pytest.raises(ZeroDivisionError), workspace(tmp_path / ".job-a", nothing) as folder:
        assert [p.name for p in folder.iterdir() if not p.name.startswith(LOCK)] == []
        (folder / "half").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_runs_are_rescued_and_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    names = [".job-killed", ".job-used", ".job-young", ".job-earlier", ".other-killed", "job-mine"]
    for name in names:
        (tmp_path / name).mkdir()
    for name in (".job-killed", ".other-killed"):
        (tmp_path / name / LOCK).touch()
    os.utime(tmp_path / ".job-earlier", (time.time() - STALE_S - 5,) * 2)  # of a version without locks
    rescued: list[str] = []
    with exclusive(tmp_path / ".job-used"), workspace(tmp_path / ".job-new", lambda f: rescued.append(f.name)):
        left = {p.name for p in tmp_path.iterdir()}
    assert left == {".job-used", ".job-young", ".job-new", ".other-killed", "job-mine"}
    assert rescued == [".job-killed", ".job-new", ".job-new"]  # before and after its own use


def test_a_workspace_in_use_is_refused(tmp_path: Path) -> None:
    with workspace(tmp_path / ".job-a", nothing) as folder:
        (folder / "half").touch()
        with pytest.raises(BadInput, match="in use by process"), workspace(tmp_path / ".job-a", nothing):
            pass
        assert (folder / "half").exists()
