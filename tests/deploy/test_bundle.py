"""A bundle runs with numpy and ONNX Runtime alone, and its check finds faults on the device."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from yolo_mkd.deploy import bundle as bundle_module
from yolo_mkd.deploy import bundle_samples
from yolo_mkd.deploy.bundle import bundle, compress, refuse_other_folder, switch
from yolo_mkd.edge import bundle as edge_bundle
from yolo_mkd.edge import measure as edge_measure
from yolo_mkd.edge import run as edge_run
from yolo_mkd.edge import time as edge_time
from yolo_mkd.edge.bundle import SCHEMA
from yolo_mkd.locking import workspace
from yolo_mkd.settings import BadInput, Failed

pytestmark = pytest.mark.slow

EDGE = Path(edge_bundle.__file__).parent
REFUSED = ("torch", "ultralytics", "cv2", "PIL", "yolo_mkd", "onnx", "matplotlib", "yaml")
# runs a script as `python script` would, where the packages above are not installed
BARE = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {REFUSED}:
            raise ImportError(name + " is not on the device")
sys.meta_path.insert(0, Refuse())
script, sys.argv = sys.argv[1], sys.argv[1:]
sys.path[0] = script.rsplit("/", 1)[0]
runpy.run_path(script, run_name="__main__")
"""


def device(script: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", BARE, str(script), *words], capture_output=True, text=True, cwd="/")


@pytest.fixture(scope="module", params=["one2many", "one2one"])
def packed(request, tiny_detector, tmp_path_factory) -> Path:
    """A bundle of each head."""
    out = tmp_path_factory.mktemp("bundles") / request.param
    return bundle(tiny_detector.pt, tiny_detector.data, out, head=request.param, imgsz=96)


@pytest.fixture
def place(packed, tmp_path) -> Path:
    """A copy of a bundle, as a device has it, with a warm-up of at most 0.2 s."""
    copied = Path(shutil.copytree(packed, tmp_path / "device"))
    edit(
        copied / "edge/measure.py",
        "WARM_UP_CAP_S, WARM_UP_LEAST_RUNS = 10.0, 10",
        "WARM_UP_CAP_S, WARM_UP_LEAST_RUNS = 0.2, 10",
    )
    return copied


def edit(path: Path, right: str, wrong: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong), encoding="utf-8")


@pytest.fixture(scope="module")
def export_again(tiny_detector, tmp_path_factory):
    """An export that was made once, without labels, for tests of what comes after it."""
    from yolo_mkd.deploy.export import export

    onnx = export(shutil.copy(tiny_detector.pt, tmp_path_factory.mktemp("once")), imgsz=96, images=tiny_detector.images)

    def again(model, *_, **__):
        for file in (onnx, onnx.with_suffix(".export.json")):
            shutil.copy(file, Path(model).parent)
        return Path(model).parent / onnx.name

    return again


def test_bundle_contains_all_facts_that_a_device_needs(packed, tiny_detector):
    facts = json.loads((packed / "bundle.json").read_text())
    assert facts["schema"] == "yolo-mkd/bundle/1"
    assert facts["names"] == ["red", "green", "blue"] and facts["imgsz"] == [96, 96] and facts["stride"] == 32
    assert facts["head"] == packed.name
    assert facts["output"] == ([1, 7, 189] if packed.name == "one2many" else [1, 189, 6])
    assert facts["model"]["sha256"] == edge_bundle.sha256(packed / "model.onnx")
    assert facts["source"]["sha256"] == edge_bundle.sha256(tiny_detector.pt)
    assert (facts["model"]["precision"], facts["model"]["opset"]) == ("fp32", 18)
    assert facts["preprocess"]["letterbox"] == 114 and facts["preprocess"]["colour"] == "RGB"
    found = facts["reference"]
    assert 0.3 < found["map50_95"] <= found["map50"] <= 1 and found["images"] == 16
    assert found["retained"] == pytest.approx(1, abs=1e-3)
    assert found["command"] == "yolo-mkd check model=model.onnx against=last.pt data=data.yaml"
    assert facts["thresholds"]["conf"] == 0.25 and 0 < facts["thresholds"]["best_f1"] < 1
    assert set(facts["thresholds"]["classes"]) == {"red", "green", "blue"}
    assert "AGPL-3.0" in facts["licence"]
    readme = (packed / "README.txt").read_text()
    assert f"head {packed.name}, fp32" in readme and f"{facts['reference']['map50_95']:.4f}" in readme
    files = {str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file()}
    modules = {f"edge/{p.name}" for p in EDGE.glob("*.py")}
    samples = {f"sample/{n:02}.png" for n in range(8)} | {"sample/expected.json"}
    assert files == {"bundle.json", "model.onnx", "README.txt", "run.py", "time.py"} | modules | samples


def test_no_path_of_the_machine_that_made_it_is_inside(packed, tiny_detector, tmp_path):
    content = b"".join(p.read_bytes() for p in packed.rglob("*") if p.is_file())
    for place in (tiny_detector.data.parent, packed.parent, Path.home(), EDGE.parent.parent):
        assert str(place).encode() not in content
    assert b"https://" in content  # a link is no path
    with tarfile.open(compress(Path(shutil.copytree(packed, tmp_path / "packed")))) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}
        assert {m.name.split("/")[0] for m in tar} == {"packed"}


def test_samples_of_large_pictures_are_shrunk():
    assert bundle_samples.shrink(np.zeros((400, 800, 3), np.uint8), 120).shape == (60, 120, 3)
    assert bundle_samples.shrink(np.zeros((40, 80, 3), np.uint8), 120).shape == (40, 80, 3)


def test_check_passes_with_numpy_and_onnx_runtime_alone(place):
    done = device(place / "run.py", "--check")
    assert done.returncode == 0, done.stderr
    assert "check     passed" in done.stdout and "pixels    identical to the bundle's" in done.stdout
    assert "8 pictures" in done.stdout and " 0 without a partner" in done.stdout


FAULTS = {
    "other padding": ("pictures", "GREY = 114", "GREY = 0", "the letterbox differs from the bundle's"),
    "stretched": ("pictures", "1) for side in shape)", "1) for side in shape); height, width = imgsz",
                  "the letterbox differs from the bundle's"),
    "placed at the top": ("pictures", "- 0.1), round(", "- 9.1), round(", "the letterbox differs from the bundle's"),
    "BGR pictures": ("pictures", "return np.ascontiguousarray(picture)",
                     "return np.ascontiguousarray(picture[..., ::-1])", "red and blue are swapped"),
    "BGR tensors": ("pictures", "(canvas.transpose(", "(canvas[..., ::-1].transpose(", "boxes have no partner"),
    "not scaled": ("pictures", "planes / np.float32(255)", "planes", ""),
    "letterbox not undone": ("boxes", "found[:, :4] -= np.array([left, top, left, top], np.float32)", "pass", ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_and_names_a_fault_in_the_pipeline(place, fault):
    module, right, wrong, reason = FAULTS[fault]
    edit(place / "edge" / f"{module}.py", right, wrong)
    done = device(place / "run.py", "--check")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED: {reason}" in done.stdout or (reason and reason in done.stdout)


def test_check_with_other_weights_fails_even_when_the_hash_is_adjusted(place):
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(place / "model.onnx")
    for tensor in [t for t in graph.graph.initializer if len(t.dims) == 4][:3]:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.3), tensor.name))
    onnx.save(graph, place / "model.onnx")
    done = device(place / "run.py", "--check")
    assert done.returncode == 2 and "model.onnx does not belong to this bundle (its SHA-256 differs)" in done.stderr
    facts = json.loads((place / "bundle.json").read_text())
    facts["model"]["sha256"] = edge_bundle.sha256(place / "model.onnx")
    (place / "bundle.json").write_text(json.dumps(facts))
    done = device(place / "run.py", "--check")
    assert done.returncode == 1 and "check     FAILED" in done.stdout


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: (p / "model.onnx").write_bytes((p / "model.onnx").read_bytes()[:-1]),
            "does not belong to this bundle",
        ),
        (lambda p: (p / "model.onnx").unlink(), "model.onnx is missing: copy the bundle again"),
        (lambda p: (p / "bundle.json").write_text("{"), "bundle.json cannot be read"),
        (
            lambda p: (p / "bundle.json").write_text('{"schema": "yolo-mkd/bundle/9"}'),
            "bundle.json has schema yolo-mkd/bundle/9",
        ),
        (lambda p: (p / "sample/expected.json").unlink(), "expected.json cannot be read"),
        (lambda p: (p / "sample/03.png").unlink(), "03.png: no such file"),
    ],
)
def test_damaged_bundle_is_a_one_line_error(place, capsys, damage, message):
    damage(place)
    assert edge_run.main(["--check"], place) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("run.py: ") and printed.count("\n") == 1


def test_boxes_of_a_picture_are_the_expected_ones(place):
    expected = json.loads((place / "sample/expected.json").read_text())
    conf = expected["conf"]
    names = [str(place / "sample" / image["file"]) for image in expected["images"]]
    done = device(place / "run.py", *names, "--json", "--conf", str(conf))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["pictures"]
    assert [f["file"] for f in found] == names
    for image, one in zip(expected["images"], found, strict=True):
        wanted = [row for row in image["boxes"] if row[4] > conf]
        assert [d["name"] for d in one["detections"]] == [["red", "green", "blue"][int(row[5])] for row in wanted]
        np.testing.assert_allclose([d["box"] for d in one["detections"]], [row[:4] for row in wanted], atol=0.06)


def test_threshold_is_the_bundles_unless_another_is_given(place, capsys):
    facts = json.loads((place / "bundle.json").read_text())
    facts["thresholds"]["conf"] = 0.123
    (place / "bundle.json").write_text(json.dumps(facts))
    for words, conf in (([], 0.123), (["--conf", "0.5"], 0.5)):
        assert edge_run.main([str(place / "sample/00.png"), "--json", *words], place) == 0
        assert json.loads(capsys.readouterr().out)["conf"] == conf


def test_detections_are_printed_and_drawn(place, tmp_path, capsys):
    sample = place / "sample/00.png"
    assert edge_run.main([str(sample), "--save", str(tmp_path / "drawn")], place) == 0
    out = capsys.readouterr().out
    assert f"{sample}: " in out and any(f"  {name} " in out for name in ("red", "green", "blue"))
    assert (tmp_path / "drawn/00.png").read_bytes() != sample.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.png"], "gone.png: no such file"),
        (["--check", "--conf", "2"], "--conf 2.0 must be between 0 and 1"),
        (["--check", "--threads", "0"], "--threads 0 must be at least 1"),
        (["--check", "--device", "cuda"], "onnxruntime has no CUDAExecutionProvider here"),
        (["--check", "--backend", "tensorrt"], "tensorrt cannot be imported"),
        (["--build"], "tensorrt cannot be imported"),
    ],
)
def test_bad_option_is_a_one_line_error(place, capsys, words, message):
    assert edge_run.main(words, place) == 2
    assert message in capsys.readouterr().err


def test_help_is_printed_without_options(place, capsys):
    assert edge_run.main([], place) == 2
    assert "python run.py --check" in capsys.readouterr().out


def test_time_keeps_every_sample_in_the_report_of_yolo_mkd_time(place):
    done = device(place / "time.py", "--seconds", "0.3", "--threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "time.json").read_text())
    assert report["schema"] == "yolo-mkd/time/1" and set(report) == set(edge_time.DeviceTimeReport.__annotations__)
    assert report["sha256"] == edge_bundle.sha256(place / "model.onnx")
    assert (report["provider"], report["threads"], report["precision"]) == ("CPUExecutionProvider", 1, "fp32")
    assert (
        set(report["samples_ms"]) == set(report["segments"]) == {"preprocess", "compute", "postprocess", "end_to_end"}
    )
    for name, figures in report["segments"].items():
        assert figures["n"] == len(report["samples_ms"][name]) >= 11
        assert figures["max_ms"] == max(report["samples_ms"][name])
    parts = zip(*(report["samples_ms"][name] for name in ("preprocess", "compute", "postprocess")), strict=True)
    rest = [total - sum(one) for total, one in zip(report["samples_ms"]["end_to_end"], parts, strict=True)]
    assert min(rest) > -1e-6 and float(np.median(rest)) < 0.5
    assert report["device"]["power"] is None and "power     not measured" in done.stdout
    assert str(place) not in json.dumps(report)


def test_time_on_a_jetson_reports_power_clocks_and_warnings(place, tmp_path, capsys, monkeypatch):
    from test_sensors import RELEASE, gpu, ina3221, write

    monkeypatch.setattr(edge_measure, "WARM_UP_CAP_S", 0.2)
    root = write(tmp_path / "jetson", {
        **ina3221("sys/class/hwmon/hwmon1", [("VDD_IN", 5000, 1600)]),
        **gpu("sys/class/devfreq/17000000.gpu", 624750000, 1020000000),
        "etc/nv_tegra_release": RELEASE.format(36, "4.3"), "var/lib/nvpmodel/status": "pmode:0000",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >", "proc/device-tree/model": "NVIDIA Jetson Orin Nano",
    })  # fmt: skip
    before = {p: p.read_text() for p in root.rglob("*") if p.is_file()}
    words = ["--seconds", "0.2", "--idle", "0.2", "--root", str(root), "--out", str(tmp_path / "r.json")]
    assert edge_time.main(words, place) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    device_ = report["device"]
    assert device_["power"]["mean_w"] == device_["power"]["idle_w"] == pytest.approx(8.0)
    assert device_["power"]["mj_per_image"] == pytest.approx(8.0 * report["segments"]["end_to_end"]["mean_ms"])
    assert (device_["l4t"], device_["power_mode"]) == ("36.4.3", "15W")
    assert report["machine"]["processor"] == "NVIDIA Jetson Orin Nano"
    assert len(device_["warnings"]) == 3 and len(device_["trace"]) >= 3
    printed = capsys.readouterr().out
    assert "warning   the power mode is 15W, not MAXN" in printed and "mean 8.00 W, idle 8.00 W" in printed
    assert {p: p.read_text() for p in root.rglob("*") if p.is_file()} == before  # nothing was set


def test_reports_of_a_bundle_are_compared_by_yolo_mkd_time(place, tmp_path, monkeypatch):
    from yolo_mkd.deploy.time.compare import compare_times, why_not_comparable

    monkeypatch.setattr(edge_measure, "WARM_UP_CAP_S", 0.1)
    monkeypatch.setattr(edge_measure, "collect_samples", lambda run, seconds: [run(n) for n in range(130)])
    assert edge_time.main(["--out", str(tmp_path / "a.json"), "--root", str(tmp_path)], place) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    report["drift"] = {"stable": True, "reason": ""}  # whatever this machine did meanwhile
    assert why_not_comparable(report, report) == ""
    (tmp_path / "a.json").write_text(json.dumps(report))
    assert "not distinguishable" in str(compare_times(tmp_path / "a.json", tmp_path / "a.json"))
    assert "images differs" in why_not_comparable(report, {**report, "images": "8 samples of the bundle (00000000)"})


@pytest.mark.parametrize("seconds", ["-1", "inf", "nan"])
def test_invalid_seconds_are_an_error(place, capsys, seconds):
    assert edge_time.main(["--seconds", seconds], place) == 2
    assert "must be a finite number of at least 0" in capsys.readouterr().err and not (place / "time.json").exists()


def test_engine_is_built_checked_and_timed_through_the_scripts(place, capsys, monkeypatch):
    from fake_tensorrt import Cudart, tensorrt

    from yolo_mkd.edge import cuda, tensor_rt

    cudart = Cudart()
    monkeypatch.setattr(edge_measure, "WARM_UP_CAP_S", 0.2)
    monkeypatch.setattr(cuda, "open_library", lambda: cudart)
    monkeypatch.setattr(tensor_rt, "import_tensorrt", lambda: tensorrt("10.3.0", cudart))
    assert edge_run.main(["--build", "--check"], place) == 0
    assert "runtime   TensorRT, fp32, tensorrt 10.3.0, cuda 12.6" in capsys.readouterr().out
    assert edge_time.main(["--seconds", "0.1"], place) == 0
    report = json.loads((place / "time.json").read_text())
    assert list(report["segments"]) == ["preprocess", "h2d", "compute", "d2h", "postprocess", "end_to_end"]
    assert set(report["samples_ms"]["compute"]) == {3.0}
    assert (report["provider"], report["accelerator"], report["arithmetic"]) == ("TensorRT", "Orin", "fp32")


def test_other_folder_is_not_replaced(tmp_path, packed):
    place = tmp_path / "mine"
    refuse_other_folder(place)
    place.mkdir()
    with pytest.raises(BadInput, match="mine exists and is not a bundle: give a new folder"):
        refuse_other_folder(place)
    shutil.copy(packed / "bundle.json", place)
    refuse_other_folder(place)
    (tmp_path / "other.tar.gz").touch()
    with pytest.raises(BadInput, match=r"other\.tar\.gz exists without its folder"):
        refuse_other_folder(tmp_path / "other")


@pytest.mark.parametrize("samples", [0, 1, 33, 2.5, True])
def test_invalid_number_of_samples_is_an_error(tiny_detector, tmp_path, samples):
    with pytest.raises(BadInput, match="between 2 and 32, for example samples=8"):
        bundle(tiny_detector.pt, tiny_detector.data, tmp_path / "out", samples=samples)
    assert not list(tmp_path.iterdir())


def test_bundle_replaces_an_older_one_and_its_archive(tiny_detector, tmp_path, capsys):
    pt, place = Path(shutil.copy(tiny_detector.pt, tmp_path / "tiny.pt")), tmp_path / "out"
    place.mkdir()
    (place / "bundle.json").write_text('{"schema": "yolo-mkd/bundle/0"}')
    (place / "stale").touch()
    (tmp_path / "out.tar.gz").write_bytes(b"stale")
    assert bundle(pt, tiny_detector.data, place, head="one2one", samples=2) == place
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.tar.gz", "tiny.pt"]
    assert not (place / "stale").exists()
    facts = json.loads((place / "bundle.json").read_text())
    assert (facts["head"], facts["samples"], facts["source"]["file"]) == ("one2one", 2, "tiny.pt")
    with tarfile.open(tmp_path / "out.tar.gz") as tar:
        tar.extractall(tmp_path / "device", filter="data")
    assert device(tmp_path / "device/out/run.py", "--check").returncode == 0
    printed = capsys.readouterr().out
    assert "check     passed" in printed and ".bundle-" not in printed


class Killed(BaseException):
    """Ends a function in place of SIGKILL."""


def staged(parent: Path, old: bool) -> Path:
    """The temporary folder of a run whose new bundle is complete, beside an old bundle or nothing."""
    folder = parent / ".bundle-out"
    versions = {folder / "ready": "new", **({parent: "old"} if old else {})}
    for where, version in versions.items():
        (where / "out").mkdir(parents=True)
        (where / "out/bundle.json").write_text(json.dumps({"schema": SCHEMA, "version": version}))
        (where / "out.tar.gz").write_text(version)
    return folder


def in_place(parent: Path) -> tuple[str | None, str | None]:
    """The versions of folder and archive."""
    facts, archive = parent / "out/bundle.json", parent / "out.tar.gz"
    return (
        json.loads(facts.read_text())["version"] if facts.exists() else None,
        archive.read_text() if archive.exists() else None,
    )


@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "new"])
@pytest.mark.parametrize("step", range(5))
def test_a_kill_at_any_step_of_the_switch_never_mixes_two_bundles_and_the_next_run_ends_it(
    tmp_path, monkeypatch, step, old
):
    folder, done = staged(tmp_path, old), []

    def counted(function):
        def call(*args, **kwargs):
            if len(done) == step:
                raise Killed
            done.append(function)
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        for module, name in ((os, "rename"), (os, "replace"), (Path, "unlink")):
            patched.setattr(module, name, counted(getattr(module, name)))
        switch(folder)
    assert in_place(tmp_path) in {(v, a) for v in ("old", "new") for a in (v, None)} | {(None, None)}
    (folder / ".lock").touch()
    with workspace(tmp_path / ".bundle-another", rescue=switch):  # as the next run begins
        assert in_place(tmp_path) == ("new", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.tar.gz"]


def test_a_run_that_was_killed_before_its_bundle_was_complete_changes_nothing(tmp_path):
    folder = staged(tmp_path, old=True)
    (folder / "ready").rename(folder / "making")
    with workspace(folder, rescue=switch):
        pass
    assert in_place(tmp_path) == ("old", "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.tar.gz"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"check_samples": lambda *_: {"passed": False, "reason": "boxes moved"}},
            "does not pass its own check: boxes moved",
        ),
        ({"detect_in_files": lambda *_: [np.zeros((0, 6))] * 2}, "do not detect what Ultralytics does: "),
        ({"decode_boxes": lambda *_: np.zeros((0, 6), np.float32)}, "nothing is detected on the 2 samples"),
    ],
)
def test_bundle_that_fails_leaves_nothing(tiny_detector, export_again, tmp_path, monkeypatch, broken, message):
    for name, stand_in in broken.items():
        module = bundle_module if hasattr(bundle_module, name) else bundle_samples
        monkeypatch.setattr(module, name, stand_in)
    monkeypatch.setattr("yolo_mkd.deploy.bundle.export", export_again)
    with pytest.raises(Failed, match=message):
        bundle(tiny_detector.pt, tiny_detector.data, tmp_path / "out", samples=2)
    assert not list(tmp_path.iterdir())


def test_bundle_of_data_without_labels_states_that_map_was_not_measured(
    tiny_detector, export_again, tmp_path, monkeypatch
):
    monkeypatch.setattr("yolo_mkd.deploy.bundle.export", export_again)
    place = bundle(tiny_detector.pt, tiny_detector.data, tmp_path / "out", samples=2)
    assert json.loads((place / "bundle.json").read_text())["reference"]["map50_95"] is None
    assert "mAP was not measured" in (place / "README.txt").read_text()


def test_bundle_is_made_where_opencv_rounds_differently_from_numpy(tiny_detector, export_again, tmp_path, monkeypatch):
    import cv2

    def rounding(picture, size, interpolation):
        resized = resize(picture, size, interpolation=interpolation)
        return np.where(np.indices(resized.shape).sum(0) % 9, resized, np.minimum(resized, 254) + 1).astype(np.uint8)

    resize = cv2.resize
    monkeypatch.setattr("yolo_mkd.deploy.bundle.export", export_again)
    monkeypatch.setattr(cv2, "resize", rounding)
    place = bundle(tiny_detector.pt, tiny_detector.data, tmp_path / "out", samples=4)
    monkeypatch.undo()
    expected = json.loads((place / "sample/expected.json").read_text())
    assert expected["against_ultralytics"]["min_iou"] < 0.9999  # Ultralytics detected in other pixels
    done = device(place / "run.py", "--check")
    assert done.returncode == 0 and "pixels    identical to the bundle's" in done.stdout
