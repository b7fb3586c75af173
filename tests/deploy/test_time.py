"""The statistics hide nothing, what is timed is the pipeline whose boxes Ultralytics gives, drift has its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from yolo_mkd.deploy.time.measure import run_once
from yolo_mkd.deploy.time.watch import Watch

from yolo_mkd.deploy.check import compare, detect
from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import read_image
from yolo_mkd.deploy.runtimes import open_backend
from yolo_mkd.deploy.time import FLOORS, drift, measure, measured, statistics, synthetic_picture, table, time
from yolo_mkd.deploy.time import measure as measuring
from yolo_mkd.deploy.time import watch as watching_module
from yolo_mkd.edge import time as edge_time
from yolo_mkd.edge.boxes import CONF, boxes
from yolo_mkd.edge.pictures import letterbox, tensor
from yolo_mkd.settings import BadInput, Failed


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that only moves when a test moves it, for all that measures."""
    now = SimpleNamespace(ns=0)
    for module in (edge_time, measuring):
        monkeypatch.setattr(module, "perf_counter_ns", lambda: now.ns)
    monkeypatch.setattr(watching_module, "perf_counter", lambda: now.ns / 1e9)
    return now


# Statistics


@pytest.mark.parametrize(("percentile", "floor"), FLOORS.items())
def test_floor_is_where_one_sample_beyond_it_is_sure_to_a_hundredth(percentile, floor):
    def at_most_one_beyond(n: int) -> float:
        p = percentile / 100
        return p**n + n * (1 - p) * p ** (n - 1)

    assert at_most_one_beyond(floor) <= 0.01 < at_most_one_beyond(floor - 1)


@pytest.mark.parametrize(("key", "floor"), [("p90_ms", 64), ("p95_ms", 130), ("p99_ms", 662), ("p99_9_ms", 6636)])
def test_percentile_is_left_out_below_its_floor(key, floor):
    assert statistics([1.0] * (floor - 1))[key] is None
    assert statistics([1.0] * floor)[key] == 1.0


def test_statistics_agree_with_hand_values():
    figures = statistics([3.0, 1.0, 2.0, 6.0])
    assert (figures["n"], figures["min_ms"], figures["mean_ms"], figures["max_ms"]) == (4, 1.0, 3.0, 6.0)
    assert figures["std_ms"] == pytest.approx(3.5**0.5)
    assert figures["p50_ms"] is None  # below 11 samples


def test_change_of_less_than_a_twentieth_is_stable():
    assert drift([10.0] * 20 + [10.4] * 10)["stable"]
    assert not drift([10.0] * 20 + [9.4] * 10)["stable"]


# A whole run on a clock of the test's own


class Model:
    """A backend whose inference takes as long as the test says."""

    artefact = ExportedModel({0: "a"}, 32, (32, 32), "one2one", (1, 4, 6))
    provider, arithmetic, threads, load_ms, versions = "fake CPU", "fp32", 1, 1.0, {"fake": "1"}
    segments, accelerator = ("compute",), None

    def __init__(self, clock: SimpleNamespace, milliseconds) -> None:
        self.clock, self.milliseconds, self.runs = clock, milliseconds, 0

    def infer(self, tensor):
        took = self.milliseconds(self.runs)
        self.runs += 1
        self.clock.ns += int(took * 1e6)
        return np.zeros((1, 4, 6), np.float32), {"compute_ms": took}


def machine(root: Path, others: float = 0.0, degrees: float = 40.0, throttled: int = 0, kilohertz: int = 3_000_000):
    """A PC's /proc and /sys: `others` seconds of other programs' load so far."""
    for path, text in {
        "proc/stat": f"cpu  {round(others * 100)} 0 0 0 0 0 0 0 0 0\ncpu0 0\n",
        "sys/class/hwmon/hwmon0/name": "k10temp\n",
        "sys/class/hwmon/hwmon0/temp1_input": f"{degrees * 1000:.0f}\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": f"{throttled}\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": f"{kilohertz}\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def idle_process(monkeypatch):
    """This process uses no time of the processor, as far as Watch can tell."""
    monkeypatch.setattr(watching_module.os, "times", lambda: SimpleNamespace(user=0.0, system=0.0))


HOG_S = 171  # so that the last fifth of all samples is slow


@pytest.fixture
def hogged(clock, idle_process, tmp_path) -> dict:
    """Five minutes at 10 ms, then 30 ms with one core taken by others, the chip hot, its clock halved, throttling."""
    watch = Watch(machine(tmp_path))
    sample = watch.sample

    def sample_as_it_is_then():
        late = clock.ns > HOG_S * 1e9
        others = max(0.0, clock.ns / 1e9 - HOG_S)
        machine(tmp_path, others, 90.0 if late else 40.0, 7 * late, 1_500_000 if late else 3_000_000)
        sample()

    watch.sample = sample_as_it_is_then
    backend = Model(clock, lambda n: 30.0 if clock.ns > HOG_S * 1e9 else 10.0)
    return measured(backend, [np.zeros((32, 32, 3), np.uint8)], 300.0, watch)


def test_hog_in_the_last_fifth_is_kept_whole(hogged):
    samples, total = hogged["samples_ms"]["end_to_end"], hogged["segments"]["end_to_end"]
    quick, slow = samples.count(10.0), samples.count(30.0)
    # the last run at 10 ms starts at 171 s; the very first and the 50 of the warm-up are no samples
    assert quick == 17101 - 51 and slow == pytest.approx((300.51 - 171.01) / 0.03, abs=2)
    assert quick + slow == len(samples) == total["n"] and slow / total["n"] == pytest.approx(0.2, abs=0.003)
    assert (total["p50_ms"], total["p90_ms"], total["p99_ms"], total["max_ms"]) == (10.0, 30.0, 30.0, 30.0)
    assert total["mean_ms"] == pytest.approx((slow * 30 + quick * 10) / len(samples))  # nothing was cut off


def test_drift_is_named_with_all_that_was_seen(hogged):
    assert not hogged["drift"]["stable"]
    reason = hogged["drift"]["reason"].split("; ")
    assert reason == [
        "the last third is 200% slower than the first",
        "cpu heat counted 7 throttle events",
        "the cpu clock went from 3000 to 1500 MHz",
        "k10temp got 50 degrees warmer",
        "other programs' load went from 0.0 to 1.0 cores",
    ]
    assert f"NO: {hogged['drift']['reason']}" in table({**hogged, "file": "f", "bytes": 1, "images": "i", "note": "n"})
    assert any("other programs kept 0.4 of" in warning for warning in hogged["device"]["warnings"])


def test_steady_run_has_no_reason_and_no_warning(clock, idle_process, tmp_path):
    figures = measured(Model(clock, lambda n: 10.0), [np.zeros((32, 32, 3), np.uint8)], 5.0, Watch(machine(tmp_path)))
    assert figures["drift"] == {"first_third_p50_ms": 10, "last_third_p50_ms": 10, "stable": True, "reason": ""}
    assert figures["segments"]["end_to_end"]["n"] == 500 and figures["warm_up"]["runs"] == 50
    assert [w for w in figures["device"]["warnings"] if "busy" in w] == []
    assert figures["first_inference_ms"] == 10.0 and figures["runtime"] == {"fake": "1"}


def test_machine_is_looked_at_once_a_second_and_in_no_sample(clock, idle_process, tmp_path, monkeypatch):
    watch = Watch(machine(tmp_path))
    read = watch.sensors.read

    def slow_read():
        clock.ns += 3_000_000
        return read()

    monkeypatch.setattr(watch.sensors, "read", slow_read)
    figures = measured(Model(clock, lambda n: 10.0), [np.zeros((32, 32, 3), np.uint8)], 5.0, watch)
    assert set(figures["samples_ms"]["end_to_end"]) == {10.0}
    assert len(watch.trace) == 6  # the first, one for each full second but the last, the last
    assert figures["device"]["temperatures_c"]["k10temp"]["mean"] == 40.0


def test_own_work_is_no_load_of_others(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(
        watching_module.os, "times", lambda: SimpleNamespace(user=clock.ns / 1e9, system=0.0)
    )  # this process is busy throughout
    watch = Watch(machine(tmp_path))
    sample = watch.sample

    def sample_as_it_is_then():
        machine(tmp_path, others=clock.ns / 1e9)
        sample()

    watch.sample = sample_as_it_is_then
    measured(Model(clock, lambda n: 10.0), [np.zeros((32, 32, 3), np.uint8)], 5.0, watch)
    assert watch.others() and max(watch.others()) < 0.02


def test_machine_without_sensors_is_timed_all_the_same(clock, tmp_path):
    figures = measured(Model(clock, lambda n: 10.0), [np.zeros((32, 32, 3), np.uint8)], 1.0, Watch(tmp_path))
    assert figures["device"]["temperatures_c"] == {} and figures["device"]["warnings"] == []


def test_warm_up_that_never_settles_stops_at_its_cap_and_says_so(clock, tmp_path):
    backend = Model(clock, lambda n: 10.0 if n % 2 else 30.0)
    figures = measured(backend, [np.zeros((32, 32, 3), np.uint8)], 1.0, Watch(tmp_path))
    assert not figures["warm_up"]["settled"] and figures["warm_up"]["runs"] == 500
    assert figures["warm_up"]["variation_of_last_50"] == pytest.approx(0.5)


def test_slow_model_still_gets_a_median():
    rows = measure(lambda index: [1000.0 if index == 3 else 6.0], 1e-9)
    assert [row[0] for row in rows] == [6.0] * 3 + [1000.0] + [6.0] * 7
    assert statistics([row[0] for row in rows])["p50_ms"] == 6.0


def test_transfers_are_segments_of_their_own(clock):
    backend = Model(clock, lambda n: 10.0)
    backend.segments = ("h2d", "compute", "d2h")
    backend.infer = lambda tensor: (np.zeros((1, 4, 6), np.float32), {"h2d_ms": 2.0, "compute_ms": 3.0, "d2h_ms": 4.0})
    assert run_once(backend, np.zeros((32, 32, 3), np.uint8)) == [0, 2.0, 3.0, 4.0, 0, 0]
    assert measuring.segments_of(backend) == ("preprocess", "h2d", "compute", "d2h", "postprocess", "end_to_end")


# The pipeline


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_boxes_are_those_of_ultralytics(exported, tiny_detector, head):
    backend, pictures, found = open_backend(exported[head], 1), tiny_detector.images[:6], 0
    assert backend.artefact.head == head
    for path, theirs in zip(pictures, detect(exported[head], pictures, backend.artefact, CONF), strict=True):
        picture = np.ascontiguousarray(read_image(path)[..., ::-1])
        output, _ = backend.infer(tensor(letterbox(picture, backend.artefact.imgsz)))
        ours = boxes(output, head, picture.shape[:2], backend.artefact.imgsz, CONF)
        same = compare(ours.astype(float), theirs, CONF, 1e-3)
        assert same["checkpoint_unmatched"] == same["file_unmatched"] == 0
        assert len(ours) == len(theirs) and same["min_iou"] > 0.9999 and same["max_score_difference"] < 1e-4
        found += len(ours)
    assert found >= 12


def test_synthetic_picture_is_the_same_each_time_and_not_flat():
    picture = synthetic_picture()
    assert picture.shape == (480, 640, 3) and picture.dtype == np.uint8 and picture.std() > 20
    np.testing.assert_array_equal(picture, synthetic_picture())


# The whole


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(edge_time, "WARM_UP_CAP_S", 0.05)


def test_report_names_all_that_a_time_depends_on(exported, tiny_detector, tmp_path, hasty, capsys):
    figures = time(
        exported["one2one"], images=tiny_detector.images[:3], duration=0.3, threads=1, json=tmp_path / "t.json"
    )
    report = json.loads((tmp_path / "t.json").read_text())
    assert report["schema"] == "yolo-mkd/time/1"
    assert (report["head"], report["input"], report["threads"]) == ("one2one", [1, 3, 96, 96], 1)
    assert (report["format"], report["precision"], report["arithmetic"]) == ("onnx", "fp32", "fp32")
    assert report["provider"] == "CPUExecutionProvider" and re.fullmatch(
        r"3 of a list \([0-9a-f]{8}\)", report["images"]
    )
    assert report["load_ms"] > 0 and report["first_inference_ms"] > 0 and report["warm_up"]["runs"] >= 10
    n = report["segments"]["end_to_end"]["n"]
    assert n >= 11 and all(len(samples) == n for samples in report["samples_ms"].values())
    parts = np.sum([report["samples_ms"][s] for s in ("preprocess", "compute", "postprocess")], axis=0)
    between = np.array(report["samples_ms"]["end_to_end"]) - parts
    assert between.min() >= 0 and np.median(between) < 0.1
    assert figures["samples_ms"] == report["samples_ms"]
    printed = capsys.readouterr().out
    assert (
        "not of a Jetson" in printed and "3 of a list" in printed and "CPUExecutionProvider, in fp32, 1 thr" in printed
    )


def test_report_lies_beside_its_file(exported, hasty):
    time(exported["one2many"], duration=1e-6)
    assert json.loads((exported["one2many"].parent / "tiny.time.json").read_text())["file"] == "tiny.onnx"


def test_report_has_the_fields_of_a_bundles(exported, tmp_path, hasty):
    """What a device's time.py writes is a part of what is written here, so that one reader serves both."""
    import ast
    import inspect

    returned = ast.parse(inspect.getsource(edge_time.measured)).body[0].body[-1].value
    theirs = {key.value for key in returned.keys if key is not None}
    time(exported["one2many"], duration=1e-6, json=tmp_path / "t.json")
    ours = json.loads((tmp_path / "t.json").read_text())
    assert len(theirs) > 20 and theirs <= set(ours)


def test_table_names_the_floor_of_a_percentile_it_leaves_out(exported, tmp_path, hasty):
    figures = time(exported["one2many"], duration=1e-6, json=tmp_path / "t.json")
    assert figures["images"] == "one synthetic picture of 640 x 480"
    assert figures["segments"]["compute"]["n"] == 11
    assert "p90 needs 64, p95 needs 130, p99 needs 662" in table(figures)


def test_session_on_another_provider_is_a_failure(exported, monkeypatch):
    other = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider"])
    monkeypatch.setattr("yolo_mkd.deploy.runtimes.onnx_runtime.open_session", lambda path, threads: other)
    with pytest.raises(Failed, match="on AzureExecutionProvider, not on CPUExecutionProvider"):
        time(exported["one2many"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration": 0}, "duration=0 is no time"),
        ({"duration": "long"}, "duration=long is no time"),
        ({"threads": 0}, "threads=0 is no number"),
        ({"images": "nowhere"}, "images=nowhere"),
        ({"device": "tpu"}, "device=tpu cannot run"),
    ],
)
def test_bad_argument_is_one_line(exported, tmp_path, arguments, message):
    with pytest.raises(BadInput, match=message):
        time(exported["one2many"], json=tmp_path / "t.json", **arguments)
    assert not (tmp_path / "t.json").exists()


def test_checkpoint_is_refused_with_advice(tmp_path):
    with pytest.raises(BadInput, match="export it first"):
        time(tmp_path / "best.pt")
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(BadInput, match="cannot be loaded by ONNX Runtime"):
        time(tmp_path / "bad.onnx")
