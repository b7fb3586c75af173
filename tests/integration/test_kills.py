"""Whatever ends a command at whichever write: finished work is kept, and the next run ends as if nothing had happened.

Without `--kills N` only record, export and bundle are tried: trainings take a minute for each fault on a busy machine.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import kills
import pytest
import yaml

pytestmark = pytest.mark.slow
SHORT = [
    "imgsz=32",
    "epochs=2",
    "batch=8",
    "nbs=8",
    "fraction=0.25",
    "optimizer=AdamW",
    "lr0=0.002",
    "close_mosaic=1",
    "warmup_epochs=0.5",
    "plots=False",
    "device=cpu",
    "workers=0",
    "verbose=False",
    "exist_ok=True",
]
LIMITS = (0, 700, 20_000)  # sizes at which a write ends [bytes]: a report, a table, a checkpoint
KINDS = ("kill", "torn", "kill", "full", "time")


def architecture(detector: Any, folder: Path, name: str, width: float) -> Path:
    described = yaml.safe_load((detector.pt.parents[2] / "yolo26n.yaml").read_text())
    described["scales"] = {"n": [0.5, width, 1024]}
    (folder / f"{name}n.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return folder / f"{name}n.yaml"


def jobs_of(detector: Any, shared: Path) -> list[kills.Job]:
    """A chain with an assistant, a cached teacher, a cache alone, an export, a bundle over an old one, a comparison."""
    student, assistant = (architecture(detector, shared, *each) for each in (("student", 0.04), ("assistant", 0.07)))
    common = [f"data={detector.data}", f"model={student}", f"teacher={detector.pt}", *SHORT]
    cached = [*common, "preset=recorded", "views=2", "assistant=none"]

    def training(verb: str, plan: str, *words: str) -> dict[str, Any]:
        def begin(folder: Path) -> list[str]:
            caches = [f"record={folder / 'caches'}"] if "preset=recorded" in words else []
            return [verb, *words, *caches, f"project={folder}", "name=run"]

        def again(folder: Path) -> list[str]:
            return [verb, f"resume={folder / 'run'}"] if (folder / "run" / plan).is_file() else begin(folder)

        return {"prepare": lambda folder: None, "words": begin, "again": again}

    def copied(folder: Path) -> None:
        shutil.copy(detector.pt, folder / "student.pt")

    def replacing(folder: Path) -> None:
        copied(folder)
        if not (shared / "old").is_dir():
            from yolo_mkd.deploy.bundle import bundle

            bundle(detector.pt, detector.data, shared / "old" / "packed", head="one2many", imgsz=64, samples=2)
        shutil.copytree(shared / "old", folder, dirs_exist_ok=True)

    def export(folder: Path) -> list[str]:
        return ["export", f"model={folder / 'student.pt'}", "format=onnx", "imgsz=64", f"data={detector.data}"]

    def bundle_again(folder: Path) -> list[str]:
        place = [f"model={folder / 'student.pt'}", f"data={detector.data}", f"out={folder / 'packed'}"]
        return ["bundle", *place, "imgsz=64", "samples=2"]

    def record(folder: Path) -> list[str]:
        return ["record", *cached, f"record={folder / 'caches'}"]

    compared = [w for w in common if w != "exist_ok=True"]
    compared += ["assistant=none", "seeds=1", "methods=plain,mkd"]
    return [
        kills.Job("chain", **training("train", "chain.yaml", *common, f"assistant={assistant}")),
        kills.Job("cached", **training("train", "chain.yaml", *cached), cache_may_lack=True),
        kills.Job("record", lambda folder: None, record, record),
        kills.Job("export", copied, export, export),
        kills.Job("bundle", replacing, bundle_again, bundle_again),
        kills.Job("compare", **training("compare", "compare.yaml", *compared)),
    ]


QUICK = ("record", "export", "bundle")
SHARE = {"chain": 4, "cached": 2, "record": 1, "export": 1, "bundle": 1, "compare": 1}  # of ten faults


@pytest.fixture(scope="module")
def trials(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> kills.Trials:
    root = tmp_path_factory.mktemp("kills")
    (root / "shared").mkdir()
    return kills.Trials(root, jobs_of(tiny_detector, root / "shared"))


def faults_of(name: str, changes: int, seconds: float, count: int) -> list[kills.Fault]:
    """Faults of all kinds, spread over the changes that a job makes, the same for a job each time."""
    drawn, found = random.Random(name), []
    for i in range(count):
        kind, at = KINDS[i % len(KINDS)], drawn.randrange(i * changes // count, (i + 1) * changes // count) + 1
        if kind == "time":
            at = drawn.randrange(int(1000 * seconds)) + 1
        found.append(kills.Fault(kind, at, LIMITS[i // len(KINDS) % len(LIMITS)]))
    return found


@pytest.mark.parametrize("name", SHARE)
def test_a_command_that_was_ended_ends_as_if_nothing_had_happened(
    trials: kills.Trials, name: str, request: pytest.FixtureRequest
) -> None:
    asked = request.config.getoption("--kills")
    if name not in QUICK and not asked:
        pytest.skip("trainings are tried with --kills N")
    job, count = trials.jobs[name], max(1, (asked or 10) * SHARE[name] // 10)
    changes = trials.expect(job)
    faults = faults_of(name, changes, trials.seconds[name], count)
    wrong = {fault: found for fault in faults if (found := trials.wrong(job, fault))}
    assert wrong == {}
