"""One process at a time in a run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_mkd.locking import exclusive
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
