"""A comparison end to end on tiny models: real trials, a failing one, resume, Ray, and invalid arguments."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd import host
from yolo_mkd.evidence.compare import ablate, compare, config, executors, trials, worker
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.host import clock
from yolo_mkd.settings import BadInput

pytestmark = pytest.mark.slow

METHODS = "plain,native,mkd-guidance,plain:freeze=99"


def student_of(detector: Any, folder: Path, width: float = 0.0625) -> str:
    """The tiny detector's architecture, narrower."""
    architecture = yaml.safe_load((detector.pt.parents[2] / "yolo26n.yaml").read_text())
    architecture["scales"] = {"n": [0.5, width, 1024]}
    (folder / "studentn.yaml").write_text(yaml.safe_dump(architecture, sort_keys=False))
    return str(folder / "studentn.yaml")


def arguments_for(detector: Any, folder: Path) -> dict[str, Any]:
    return {
        "data": str(detector.data), "model": student_of(detector, folder), "teacher": str(detector.pt),
        "assistant": "none", "imgsz": 32, "epochs": 2, "batch": 8, "fraction": 0.25, "device": "cpu", "seeds": 1,
        "project": str(folder / "runs"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def compared(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compared")
    document = compare(**arguments_for(tiny_detector, folder), methods=METHODS, json=str(folder / "copy.json"))
    return folder, document


def by_method(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in document["rows"]}


def test_every_method_trains_with_the_same_inputs_as_plain(compared: tuple[Path, dict[str, Any]]) -> None:
    rows = by_method(compared[1])
    assert list(rows) == METHODS.split(",")
    for method in ("native", "mkd-guidance"):
        assert rows[method]["same"] == {"start": True, "epochs": 2, "images": 2, "pixels": 2}
        (own,), (plain,) = ([c["cost_s"] for c in compared[1]["cells"] if c["method"] == m] for m in (method, "plain"))
        assert rows[method]["cost"] == pytest.approx(own / plain, abs=1e-3)
        assert set(rows[method]["against"]) == {"plain", "native"} - {method}
    assert rows["plain"]["epochs"] == 2


def test_each_run_is_validated_at_its_epochs_and_timed_until_plains_accuracy(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    folder, document = compared
    rows = by_method(document)
    for method in ("plain", "native", "mkd-guidance"):
        place = folder / "runs" / "compare" / "data" / "studentn" / f"{method}-s0"
        result = json.loads((place / trials.RESULT).read_text())
        first, last = result["curve"]
        assert (last["map50_95"], last["cost_s"]) == (result["last"]["map50_95"], result["cost_s"])
        assert 0 < first["cost_s"] < last["cost_s"]
        assert (first["images"], last["images"]) == (24, 48)  # a quarter of 96 in each of two epochs
        assert not list(place.rglob("snapshots"))
        found = rows[method]["to_plain"]["map50_95"]
        assert len(found["reached"]) + len(found["missed"]) == 1
    assert rows["plain"]["to_plain"]["map50_95"]["cost"]["mean"] == 1.0


def test_a_failed_trial_is_a_row_with_its_reason(compared: tuple[Path, dict[str, Any]]) -> None:
    row = by_method(compared[1])["plain:freeze=99"]
    assert row["seeds"] == []
    assert "froze the entire model" in row["failed"]["0"]


def test_the_folder_contains_plan_report_tables_and_plots(compared: tuple[Path, dict[str, Any]]) -> None:
    folder, document = compared
    root = folder / "runs" / "compare"
    assert {
        "compare.yaml",
        "compare.json",
        "compare.md",
        "compare.csv",
        "cost.png",
        "curve.png",
        "differences.png",
    } <= {p.name for p in root.iterdir()}
    assert document["schema"] == "yolo-mkd/compare/1"
    assert json.loads((root / "compare.json").read_text()) == document == json.loads((folder / "copy.json").read_text())
    with open(root / "compare.csv", newline="") as f:
        raw = {r["method"]: r for r in csv.DictReader(f)}
    assert float(raw["native"]["map50_95"]) == by_method(document)["native"]["map50_95"]["mean"]
    assert "froze" in raw["plain:freeze=99"]["failed"]


def test_the_figures_are_those_of_ultralytics_validation_of_best_and_last(
    compared: tuple[Path, dict[str, Any]], tiny_detector: Any, tmp_path: Path
) -> None:
    from ultralytics import YOLO

    place = compared[0] / "runs" / "compare" / "data" / "studentn" / "native-s0"
    result = json.loads((place / trials.RESULT).read_text())
    for name in ("best", "last"):
        box = YOLO(place / "run" / "weights" / f"{name}.pt").val(
            data=str(tiny_detector.data), imgsz=32, batch=8, rect=False, plots=False, device="cpu",
            project=str(tmp_path), verbose=False,
        ).box  # fmt: skip
        assert result[name]["map50_95"] == pytest.approx(box.map, abs=1e-5)
        assert set(result[name]["classes"]) == {"red", "green", "blue"}
    epochs = clock.read(place / "run")
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert {k: result[k] for k in ("train_s", "cost_s")} == worker.training_cost(epochs, "cpu")


def test_both_heads_of_a_detector_are_validated_as_by_ultralytics(tiny_detector: Any, tmp_path: Path) -> None:
    from ultralytics import YOLO

    protocol = {"data": str(tiny_detector.data), "imgsz": tiny_detector.imgsz, "batch": 8, "device": "cpu"}
    found = worker.validate_heads(tiny_detector.pt, protocol, tmp_path)
    assert found["map50_95"] != found["nms_free"]["map50_95"]
    for figures, nms in ((found, None), (found["nms_free"], False)):
        box = YOLO(tiny_detector.pt).val(**protocol, rect=False, plots=False, project=str(tmp_path), nms=nms).box
        assert (figures["map50_95"], figures["map50"]) == pytest.approx((box.map, box.map50), abs=1e-5)


def test_cost_is_processor_time_on_a_cpu_and_wall_time_on_a_gpu() -> None:
    epochs = [{"seconds": 2.0, "cpu_s": 1.5}, {"seconds": 4.0, "cpu_s": 3.25}]
    assert worker.training_cost(epochs, "cpu") == {"train_s": 6.0, "cost_s": 4.75}
    assert worker.training_cost(epochs, "NVIDIA H100") == {"train_s": 6.0, "cost_s": 6.0}


def test_resume_runs_only_failed_trials_again(
    compared: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = compared[0] / "runs" / "compare"
    run: list[str] = []
    monkeypatch.setattr(executors, "run_trial", lambda folder, *_: (run.append(Path(folder).name), "still broken")[1])
    document = compare(resume=str(root))
    assert run == ["plain_freeze=99-s0"]
    assert by_method(document)["plain:freeze=99"]["failed"] == {"0": "still broken"}
    assert by_method(document)["native"] == by_method(compared[1])["native"]
    for change, message in (
        ({"epochs": 5}, "epochs= cannot change"),
        ({"resume": "nowhere"}, r"contains no compare\.yaml"),
        ({"methods": "mkd-none"}, "unknown term none to leave out"),
    ):
        with pytest.raises(BadInput, match=message):
            compare(**{"resume": str(root), **change})


def test_methods_and_seeds_can_be_added_later(
    compared: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "compare"
    shutil.copytree(compared[0] / "runs" / "compare", root)
    run: list[str] = []
    monkeypatch.setattr(executors, "run_trial", lambda folder, *_: (run.append(Path(folder).name), "broken")[1])
    monkeypatch.chdir(tmp_path)
    document = compare(resume="compare", methods="mkd:lr0=0.1,native", seeds="1")
    everywhere = ["plain", "native", "mkd-guidance", "plain_freeze=99", "mkd_lr0=0.1"]
    assert run == ["plain_freeze=99-s0", "mkd_lr0=0.1-s0", *(f"{m}-s1" for m in everywhere)]
    assert document["seeds"] == [0, 1]
    assert f"methods={METHODS},mkd:lr0=0.1 " in document["command"] + " "
    assert by_method(document)["native"]["map50_95"] == by_method(compared[1])["native"]["map50_95"]
    added = yaml.safe_load((root / "data" / "studentn" / "mkd_lr0=0.1-s1" / "cell.yaml").read_text())
    first = yaml.safe_load((root / "data" / "studentn" / "mkd-guidance-s0" / "cell.yaml").read_text())
    assert {**first["arguments"], "guidance": 1, "lr0": 0.1, "seed": 1, "project": added["arguments"]["project"]} == {
        **added["arguments"],
        "guidance": 1,
    }
    run.clear()
    compare(resume="compare")
    assert len(run) == 7  # the added trials are part of the plan


def test_adding_methods_uses_absolute_paths_and_keeps_existing_trials(
    tiny_detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_detector.data.parent)
    arguments = {**arguments_for(tiny_detector, tmp_path), "data": tiny_detector.data.name, "methods": "plain"}
    root, plan = config.plan_comparison(arguments, "compare")
    plan["cells"][0]["arguments"]["epochs"] = 7  # as it was trained, whatever would be planned today
    monkeypatch.chdir(tmp_path)
    extended = config.extend_plan(root, plan, {"methods": "native:dis=2"})["cells"]
    assert [t["method"] for t in extended] == ["plain", "native:dis=2"]
    assert extended[0] == plan["cells"][0]
    assert extended[1]["arguments"]["data"] == str(tiny_detector.data)


def test_trials_of_other_versions_or_defaults_are_not_mixed(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root = tmp_path / "compare"
    shutil.copytree(compared[0] / "runs" / "compare", root)
    plan = yaml.safe_load((root / "compare.yaml").read_text())
    then = {"versions": {"ultralytics": "8.4.0"}, "settings": {"mkd-guidance": {"until": 0.9, "soft": 3}}}
    messages = {
        "versions": r"was begun with ultralytics 8\.4\.0: install that, or start a new comparison",
        "settings": r"mkd-guidance have changed since, it began with soft=3, until=0\.9: start a new comparison",
    }
    assert plan["settings"]["mkd-guidance"]["guidance"] == 0
    assert set(plan["settings"]) == {"mkd-guidance"}  # the others have no teacher, or Ultralytics' terms
    for key, message in messages.items():
        changed = yaml.safe_load((root / "compare.yaml").read_text())
        for name, value in then[key].items():
            changed[key][name] = {**changed[key][name], **value} if isinstance(value, dict) else value
        copied = tmp_path / key
        shutil.copytree(root, copied)
        (copied / "compare.yaml").write_text(yaml.safe_dump(changed))
        for more in ({}, {"seeds": 2}):  # one cell has failed, so it would be run again
            with pytest.raises(BadInput, match=message):
                compare(resume=str(copied), **more)
        assert (copied / "data" / "studentn" / "plain_freeze=99-s0" / "result.json").is_file()


def test_the_cost_that_longer_matches_cannot_change(tiny_detector: Any, tmp_path: Path) -> None:
    arguments = {**arguments_for(tiny_detector, tmp_path), "methods": "plain,longer,native"}
    root, plan = config.plan_comparison(arguments, "compare")
    with pytest.raises(BadInput, match="methods=mkd would change which cost longer matches"):
        config.extend_plan(root, plan, {"methods": "mkd"})


def test_a_trial_resumes_from_its_last_checkpoint(tiny_detector: Any, tmp_path: Path) -> None:
    """Plain training is interrupted after its second epoch, and the trial then trains the third only."""
    from ultralytics import YOLO

    arguments = {
        "data": str(tiny_detector.data), "model": student_of(tiny_detector, tmp_path), "imgsz": 32, "epochs": 3,
        "batch": 8, "fraction": 0.25, "device": "cpu", "seed": 0, "plots": False, "exist_ok": True,
        "project": str(tmp_path / "d/m/plain-s0"), "name": "run",
    }  # fmt: skip
    student = YOLO(arguments["model"])

    def cut(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    student.add_callback("on_model_save", cut)
    with pytest.raises(KeyboardInterrupt):
        student.train(**{k: v for k, v in arguments.items() if k != "model"})
    val = {"data": arguments["data"], "imgsz": 32, "batch": 8, "device": "cpu"}
    own = Trial("d/m/plain-s0", "d", "m", "plain", 0, False, arguments, val)
    trials.write_task(tmp_path, own, {})
    assert executors.run_trial(str(tmp_path / own.name), 1, "1") == ""
    assert [e["epoch"] for e in clock.read(tmp_path / own.name / "run")] == [3]
    found = trials.load_result(tmp_path, own)
    assert found is not None
    assert found["status"] == "done"


def test_a_killed_comparison_that_was_moved_resumes_where_it_lies(tiny_detector: Any, tmp_path: Path) -> None:
    given = {**arguments_for(tiny_detector, tmp_path), "epochs": 4, "name": "before", "record": "true"}
    words = [f"{k}={v}" for k, v in given.items()]
    before, after = tmp_path / "runs" / "before", tmp_path / "after"
    command = [sys.executable, "-m", "yolo_mkd", "compare", "methods=plain,recorded", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table = before / "data/studentn/recorded-s0/run/student/results.csv"
    while process.poll() is None and not (table.exists() and len(table.read_text().splitlines()) > 2):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (table.parents[2] / "result.json").exists()
    time.sleep(1)  # until the trial's own process has ended
    shutil.move(before, after)
    document = compare(resume=str(after))
    assert not before.exists()
    assert [c.get("failed") for c in document["cells"]] == [None, None]
    for method, stages in (("plain", "run"), ("recorded", "run/student")):
        place = after / f"data/studentn/{method}-s0"
        assert len(clock.read(place / stages)) == 4
        found = trials.load_result(
            after, Trial(f"data/studentn/{method}-s0", "data", "studentn", method, 0, True, {}, {})
        )
        assert found is not None and found["weights"] == str(place / stages / "weights/best.pt")
        assert Path(found["weights"]).is_file()
    for file in ("compare.yaml", "data/studentn/recorded-s0/run/chain.yaml"):
        cells = yaml.safe_load((after / file).read_text())
        assert f"{before}/" not in str(cells.get("cells", cells))


def test_a_finished_comparison_that_was_copied_is_added_to_in_the_copy_alone(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    original = compared[0] / "runs" / "compare"
    shutil.copytree(original, tmp_path / "copy")
    files = {f: f.stat().st_mtime_ns for f in original.rglob("*")}
    compare(resume=str(tmp_path / "copy"), seeds="1", methods="plain")
    assert {f: f.stat().st_mtime_ns for f in original.rglob("*")} == files
    assert (tmp_path / "copy/data/studentn/plain-s1/result.json").is_file()


def test_a_trial_ends_when_the_comparison_is_killed() -> None:
    program = (
        "import threading, time; from yolo_mkd.evidence.compare.worker import exit_with_parent\n"
        "threading.Thread(target=exit_with_parent, daemon=True).start(); print('here', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    begun = time.monotonic()
    child.stdin.close()
    assert child.wait(30) == 3
    assert time.monotonic() - begun < 10


def test_trials_run_as_tasks_of_a_ray_cluster(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    executor = executors.RayExecutor("auto", None)
    assert executor.slots == 1
    arguments = {"project": str(tmp_path / "d/m/x-s0"), "name": "run", "data": str(tmp_path / "gone.yaml")}
    results = executors.run_trials(tmp_path, [Trial("d/m/x-s0", "d", "m", "x", 0, False, arguments, {})], executor)
    assert "gone.yaml" in results["d/m/x-s0"]["reason"]  # it ran, in a process of its own
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_an_unreachable_cluster_is_refused_at_once(address: str) -> None:
    pytest.importorskip("ray")
    begun = time.monotonic()
    with pytest.raises(BadInput, match=f"ray={address} cannot be reached"):
        executors.RayExecutor(address, None)
    assert time.monotonic() - begun < 20


def test_without_ray_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install ray"):
        executors.RayExecutor("auto", None)


# Arguments


def test_an_ablation_is_of_the_terms_that_act(tiny_detector: Any, tmp_path: Path) -> None:
    _, plan = config.plan_comparison(arguments_for(tiny_detector, tmp_path), "ablate")
    acting = ["soft", "soft_box", "attention", "relation", "guidance", "exploration"]  # no bins in these heads
    assert [m for m in plan["methods"] if m.startswith("mkd-")] == [f"mkd-{t}" for t in acting]
    assert [m.split("=")[0] for m in plan["methods"] if m.startswith("only")] == [f"only:{t}" for t in acting]
    assert plan["references"] == ["plain", "mkd"]


def test_all_methods_that_support_it_share_one_teacher_cache(tiny_detector: Any, tmp_path: Path) -> None:
    arguments = {**arguments_for(tiny_detector, tmp_path), "record": True, "seeds": 2}
    methods = "plain,mkd,recorded,recorded-soft:lr0=0.1,only:soft=0.5,recorded:views=2"
    root, plan = config.plan_comparison({**arguments, "methods": methods}, "compare")
    places = {c["method"]: c["arguments"].get("record") for c in plan["cells"]}
    shared = str(root / "records" / "data")
    assert {m for m, place in places.items() if place == shared} == {
        "recorded",
        "recorded-soft:lr0=0.1",
        "only:soft=0.5",
    }
    assert places["recorded:views=2"] == f"{shared}-recorded_views=2"  # its views are others
    assert places["plain"] is places["mkd"] is None
    assert plan["replayed"] == [m for m, place in places.items() if place]
    assert list(plan["live"]) == ["mkd"]
    assert "guidance" in plan["live"]["mkd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "plain,mkd:attention=-1"}, "methods=mkd:attention=-1: attention=-1 must be at least 0"),
        (
            {"methods": "plain,mkd", "attention": 0.5},
            "attention= belongs to a method: .*methods=plain,mkd:attention=0.5",
        ),
        ({"methods": "plain:lr0=high"}, "methods=plain:lr0=high: .*lr0"),
        ({"dis": 2}, "belongs to a method: write methods=native"),
        ({"seed": 1}, "seed= is set by seeds="),
        ({"batch": -1}, "batch=-1 must be a number of images"),
        ({"device": "0,1"}, "device=0,1 must be one device"),
        ({"device": "0", "ray": "auto"}, "device=0 cannot be"),
        ({"data": None}, "data= is missing"),
        ({"data": "gone.yaml"}, "data=gone.yaml"),
        ({"model": "gone.yaml"}, "model=gone.yaml: no such file"),
        ({"teacher": "yolo26n.yaml"}, "teacher=yolo26n.yaml is untrained"),
        (
            {"model": "yolo26n-p6.yaml", "imgsz": 64, "methods": "native"},
            "it has 3 and the student 4: remove this method",
        ),
        ({"imgsz": 40}, "imgsz=40 is not a multiple of 32"),
        ({"epoch": 3}, "epoch= is not an argument of yolo-mkd compare: did you mean epochs="),
        ({"latency": "fast"}, "latency=fast must be true or false"),
        ({"parallel": 0}, "parallel=0 must be at least 1"),
        (
            {"record": "folder"},
            "record=folder must be true or false: the teacher caches of a comparison are in its own folder",
        ),
    ],
)
def test_invalid_arguments_are_refused_in_one_line_and_nothing_is_written(
    tiny_detector: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as e:
        compare(**{**arguments_for(tiny_detector, tmp_path), **change})
    assert "\n" not in str(e.value)
    assert not (tmp_path / "runs").exists()


def test_an_existing_chain_in_the_default_folder_is_no_obstacle(
    tiny_detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "chain.yaml").touch()
    place = {False: tmp_path / "train2", True: tmp_path / "train"}
    monkeypatch.setattr(host, "run_folder", lambda project, name, exist_ok: place[exist_ok])
    _, plan = config.plan_comparison({**arguments_for(tiny_detector, tmp_path), "methods": "plain,mkd"}, "compare")
    assert len(plan["cells"]) == 2


def test_an_ablation_takes_no_methods(tiny_detector: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="methods= cannot be given to yolo-mkd ablate"):
        ablate(**arguments_for(tiny_detector, tmp_path), methods="plain")


def test_distillation_and_pseudo_labels_train_on_as_many_images(tiny_detector: Any, tmp_path: Path) -> None:
    images = sorted((tiny_detector.data.parent / "images" / "train").glob("*.png"))
    frames = tmp_path / "frames.txt"
    frames.write_text("\n".join(map(str, images[:48])))
    arguments = {
        **arguments_for(tiny_detector, tmp_path),
        "epochs": 3,
        "close_mosaic": 2,
        "imgsz": 96,
    }  # as the teacher was trained
    del arguments["fraction"]
    ours = f"mkd:unlabelled={frames}"
    document = compare(**arguments, methods=["plain", f"pseudo:unlabelled={frames}", ours])
    rows = by_method(document)
    assert not any(row["failed"] for row in rows.values())
    # 96 labelled images and as many unlabelled in each of three epochs, against 96 + 48 in an epoch with pseudo-labels
    assert rows[f"pseudo:unlabelled={frames}"]["epochs"] == round(3 * 192 / 144)
    found = next((tmp_path / "runs").rglob("labels.json"))
    assert json.loads(found.read_text())["boxes"] > 0
    given = yaml.safe_load((found.parents[1] / "run" / "args.yaml").read_text())
    assert given["warmup_epochs"] == 4  # three epochs of joined batches
    assert given["close_mosaic"] == round(2 * 192 / 144)


@pytest.mark.parametrize(
    ("methods", "message"),
    [("pseudo", "unlabelled= is missing"), ("pseudo:unlabelled=gone", "no such folder")],
)
def test_pseudo_labels_need_images(tiny_detector: Any, tmp_path: Path, methods: str, message: str) -> None:
    arguments = arguments_for(tiny_detector, tmp_path)
    del arguments["fraction"]
    with pytest.raises(BadInput, match=message):
        compare(**arguments, methods=f"plain,{methods}")
