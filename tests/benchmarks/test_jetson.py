"""The recipe for a Jetson, run with a stand-in for docker: the image by JetPack, the steps, and the one JSON file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/jetson/jetson.sh"
# writes down its arguments; a check prints its verdict, a timing writes its file
DOCKER = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
*--check*) echo '{"check": {"passed": '$PASSED'}}'; [ $PASSED = true ] ;;
*time.py*) echo '{"schema": "yolo-mkd/time/1"}' > "$BUNDLE/jetson.part/time.json" ;;
*"run.py --build"*) exit $BUILT ;;
esac
"""
pytestmark = pytest.mark.slow  # starts processes


@pytest.fixture
def jetson(tmp_path):
    """A function that runs the recipe as on a Jetson with this release; returns the process and docker's calls."""
    bundle, tools = tmp_path / "a bundle", tmp_path / "tools"
    bundle.mkdir()
    tools.mkdir()
    (bundle / "bundle.json").write_text('{"schema": "yolo-mkd/bundle/1"}')
    (tools / "docker").write_text(DOCKER)
    (tools / "docker").chmod(0o755)

    def run(release: str, passed: str = "true", built: str = "0") -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "release").write_text(release)
        environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "BUNDLE": str(bundle),
            "RELEASE_FILE": str(tmp_path / "release"), "PASSED": passed, "BUILT": built,
        }  # fmt: skip
        done = subprocess.run(["sh", SCRIPT, bundle, "5"], env=environment, capture_output=True, text=True)
        log = tmp_path / "log"
        return done, log.read_text().splitlines() if log.exists() else []

    run.bundle = bundle
    return run


def release(major: int, revision: str) -> str:
    return f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64"


@pytest.mark.parametrize(
    ("major", "revision", "image"),
    [(36, "4.3", "nvcr.io/nvidia/l4t-jetpack:r36.4.0"), (38, "2.0", "nvcr.io/nvidia/tensorrt:25.09-py3")],
)
def test_engine_is_built_checked_and_timed_and_one_file_has_all(jetson, major, revision, image):
    done, calls = jetson(release(major, revision))
    assert done.returncode == 0, done.stderr
    assert f"--build-arg BASE={image}" in calls[0]
    assert [c.split("yolo-mkd-jetson python3 ")[1] for c in calls[1:]] == [
        "run.py --build --fp16",
        "run.py --check --json --backend tensorrt --fp16",
        "time.py --seconds 5 --backend tensorrt --fp16 --out jetson.part/time.json",
    ]
    assert json.loads((jetson.bundle / "jetson.json").read_text()) == {
        "schema": "yolo-mkd/jetson/1", "l4t": f"{major}.{revision}", "image": image,
        "bundle": {"schema": "yolo-mkd/bundle/1"}, "check": {"check": {"passed": True}},
        "time": {"schema": "yolo-mkd/time/1"},
    }  # fmt: skip
    assert not (jetson.bundle / "jetson.part").exists()


def test_failed_check_is_reported_with_exit_code_1(jetson):
    done, _ = jetson(release(36, "4.3"), passed="false")
    assert done.returncode == 1
    assert json.loads((jetson.bundle / "jetson.json").read_text())["check"] == {"check": {"passed": False}}


def test_engine_that_cannot_be_built_is_an_error_of_one_line(jetson):
    done, calls = jetson(release(36, "4.3"), built="2")
    assert done.returncode == 2 and len(calls) == 2 and not (jetson.bundle / "jetson.json").exists()
    assert done.stderr == "jetson.sh: the engine was not built: see the message above\n"


def test_other_jetpack_is_refused_before_anything_is_built(jetson):
    done, calls = jetson(release(35, "4.1"))
    assert done.returncode == 2 and calls == []
    assert done.stderr == "jetson.sh: L4T '35.4.1' is not of JetPack 6 (36) or 7 (38, 39): install one of them\n"
