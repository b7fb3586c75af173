"""A training from the command line, as continuous integration runs it: arguments in a file, output in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

LONGEST = 160  # characters of a line of progress


@pytest.fixture(scope="module")
def piped(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a chain whose teacher is trained first, and what it wrote to a pipe."""
    folder = tmp_path_factory.mktemp("piped")
    arguments = {
        "data": str(tiny_detector.data), "model": str(tiny_detector.student), "teacher": str(tiny_detector.pt),
        "teacher_epochs": 1, "assistant": "none", "epochs": 2, "imgsz": 64, "batch": 8, "fraction": 0.25,
        "device": "cpu", "workers": 0, "plots": False, "project": str(folder), "name": "run",
    }  # fmt: skip
    (folder / "my.yaml").write_text(yaml.safe_dump(arguments))
    environment = {k: v for k, v in os.environ.items() if k not in {"GITHUB_ACTIONS", "JPY_PARENT_PID"}}
    words = [sys.executable, "-m", "yolo_mkd", "train", "cfg=my.yaml", "batch=4"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output[-2000:]
    return folder / "run", output


def test_a_file_of_arguments_may_hold_everything_and_the_command_line_wins(piped: tuple[Path, str]) -> None:
    chain = yaml.safe_load((piped[0] / "chain.yaml").read_text())
    assert [s["name"] for s in chain["stages"]] == ["teacher", "student"]
    assert (chain["arguments"]["epochs"], chain["arguments"]["batch"]) == (2, 4)


def test_a_pipe_gets_one_short_line_an_epoch(piped: tuple[Path, str]) -> None:
    output = piped[1]
    assert "\r" not in output
    assert "\x1b[K" not in output
    lines = [line for line in output.splitlines() if line.startswith("M-KD: ") and ": epoch " in line]
    assert [line.split(": box ")[0] for line in lines] == [
        "M-KD: teacher, stage 1 of 2: epoch 1 of 1",
        "M-KD: student, stage 2 of 2: epoch 1 of 2",
        "M-KD: student, stage 2 of 2: epoch 2 of 2",
    ]
    assert "with the stages after it" in lines[0]
    assert " left" in lines[1]
    assert "GPU_mem" not in output
    assert max(map(len, lines)) <= LONGEST
    assert all(line.count("━") <= 12 for line in output.splitlines())  # a bar is drawn once


def test_a_training_ends_with_its_card(piped: tuple[Path, str]) -> None:
    assert "trained without a teacher" in (piped[0] / "card.md").read_text()
    assert "M-KD: model card: run/card.md" in piped[1].replace(f"{piped[0].parent}/", "")
