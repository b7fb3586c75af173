"""Statistics of all samples, of the pipeline that gives Ultralytics' boxes; a drift is reported with its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_mkd.deploy.check.matching import compare_detections, detect_in_files
from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import read_image
from yolo_mkd.deploy.runtimes import open_runtime
from yolo_mkd.deploy.time import LocalTimeReport, TimedImages, measure_report, monitor, report_text, time
from yolo_mkd.deploy.time.monitor import MachineMonitor
from yolo_mkd.deploy.time.synthetic import synthetic_picture
from yolo_mkd.edge import measure
from yolo_mkd.edge.boxes import CONF, decode_boxes
from yolo_mkd.edge.measure import collect_samples, run_once, segments_of
from yolo_mkd.edge.pictures import letterbox, to_tensor
from yolo_mkd.edge.samples import FLOORS, drift, statistics
from yolo_mkd.edge.time import DeviceTimeReport
from yolo_mkd.settings import BadInput, Failed


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that only a test advances, for all modules that measure."""
    now = SimpleNamespace(ns=0)
    monkeypatch.setattr(measure, "perf_counter_ns", lambda: now.ns)
    monkeypatch.setattr(monitor, "perf_counter", lambda: now.ns / 1e9)
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


# A whole run on the test's clock


class Model:
    """A runtime whose inference takes as long as the test sets."""

    model = ExportedModel({0: "a"}, 32, (32, 32), "one2one", (1, 4, 6))
    provider, arithmetic, threads, load_ms, versions = "fake CPU", "fp32", 1, 1.0, {"fake": "1"}
    segments, accelerator = ("compute",), None

    def __init__(self, clock: SimpleNamespace, milliseconds) -> None:
        self.clock, self.milliseconds, self.runs = clock, milliseconds, 0

    def infer(self, tensor):
        took = self.milliseconds(self.runs)
        self.runs += 1
        self.clock.ns += int(took * 1e6)
        return np.zeros((1, 4, 6), np.float32), {"compute": took}


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
    """This process uses no time of the processor, as far as MachineMonitor can measure."""
    monkeypatch.setattr(monitor.os, "times", lambda: SimpleNamespace(user=0.0, system=0.0))


def timed(runtime: Model, duration: float, watch: MachineMonitor) -> LocalTimeReport:
    """The report of a run on one black picture."""
    images = TimedImages([np.zeros((32, 32, 3), np.uint8)], "one black picture")
    return measure_report(Path(__file__), "a note", runtime, images, duration, watch)


HOG_S = 171  # so that the last fifth of all samples is slow


@pytest.fixture
def hogged(clock, idle_process, tmp_path) -> dict:
    """Five minutes at 10 ms, then 30 ms with one core taken by others, the chip hot, its clock halved, throttling."""
    watch = MachineMonitor(machine(tmp_path))
    sample = watch.sample

    def sample_as_it_is_then():
        late = clock.ns > HOG_S * 1e9
        others = max(0.0, clock.ns / 1e9 - HOG_S)
        machine(tmp_path, others, 90.0 if late else 40.0, 7 * late, 1_500_000 if late else 3_000_000)
        sample()

    watch.sample = sample_as_it_is_then
    runtime = Model(clock, lambda n: 30.0 if clock.ns > HOG_S * 1e9 else 10.0)
    return timed(runtime, 300.0, watch)


def test_slow_last_fifth_is_kept_in_the_statistics(hogged):
    samples, total = hogged["samples_ms"]["end_to_end"], hogged["segments"]["end_to_end"]
    quick, slow = samples.count(10.0), samples.count(30.0)
    # the last run at 10 ms starts at 171 s; the very first and the 50 of the warm-up are no samples
    assert quick == 17101 - 51 and slow == pytest.approx((300.51 - 171.01) / 0.03, abs=2)
    assert quick + slow == len(samples) == total["n"] and slow / total["n"] == pytest.approx(0.2, abs=0.003)
    assert (total["p50_ms"], total["p90_ms"], total["p99_ms"], total["max_ms"]) == (10.0, 30.0, 30.0, 30.0)
    assert total["mean_ms"] == pytest.approx((slow * 30 + quick * 10) / len(samples))  # nothing was cut off


def test_drift_is_reported_with_all_measured_causes(hogged):
    assert not hogged["drift"]["stable"]
    reason = hogged["drift"]["reason"].split("; ")
    assert reason == [
        "the last third is 200% slower than the first",
        "cpu heat counted 7 throttle events",
        "the cpu clock went from 3000 to 1500 MHz",
        "k10temp became 50 degrees warmer",
        "other programs' load went from 0.0 to 1.0 cores",
    ]
    assert f"NO: {hogged['drift']['reason']}" in report_text(
        {**hogged, "file": "f", "bytes": 1, "images": "i", "note": "n"}
    )
    assert any("other programs used 0.4 of" in warning for warning in hogged["device"]["warnings"])


def test_steady_run_has_no_reason_and_no_warning(clock, idle_process, tmp_path):
    figures = timed(Model(clock, lambda n: 10.0), 5.0, MachineMonitor(machine(tmp_path)))
    assert figures["drift"] == {"first_third_p50_ms": 10, "last_third_p50_ms": 10, "stable": True, "reason": ""}
    assert figures["segments"]["end_to_end"]["n"] == 500 and figures["warm_up"]["runs"] == 50
    assert [w for w in figures["device"]["warnings"] if "busy" in w] == []
    assert figures["first_inference_ms"] == 10.0 and figures["runtime"] == {"fake": "1"}


def test_machine_is_sampled_once_a_second_and_outside_of_timed_samples(clock, idle_process, tmp_path, monkeypatch):
    watch = MachineMonitor(machine(tmp_path))
    read = watch.sensors.sample

    def slow_read():
        clock.ns += 3_000_000
        return read()

    monkeypatch.setattr(watch.sensors, "sample", slow_read)
    figures = timed(Model(clock, lambda n: 10.0), 5.0, watch)
    assert set(figures["samples_ms"]["end_to_end"]) == {10.0}
    assert len(watch.trace) == 6  # the first, one for each full second but the last, the last
    assert figures["device"]["temperatures_c"]["k10temp"]["mean"] == 40.0


def test_own_load_is_not_counted_as_that_of_others(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(
        monitor.os, "times", lambda: SimpleNamespace(user=clock.ns / 1e9, system=0.0)
    )  # this process is busy throughout
    watch = MachineMonitor(machine(tmp_path))
    sample = watch.sample

    def sample_as_it_is_then():
        machine(tmp_path, others=clock.ns / 1e9)
        sample()

    watch.sample = sample_as_it_is_then
    timed(Model(clock, lambda n: 10.0), 5.0, watch)
    assert watch.other_load() and max(watch.other_load()) < 0.02


def test_machine_without_sensors_is_timed_too(clock, tmp_path):
    figures = timed(Model(clock, lambda n: 10.0), 1.0, MachineMonitor(tmp_path))
    assert figures["device"]["temperatures_c"] == {} and figures["device"]["warnings"] == []


def test_warm_up_that_never_settles_stops_at_its_cap_and_is_reported(clock, tmp_path):
    runtime = Model(clock, lambda n: 10.0 if n % 2 else 30.0)
    figures = timed(runtime, 1.0, MachineMonitor(tmp_path))
    assert not figures["warm_up"]["settled"] and figures["warm_up"]["runs"] == 500
    assert figures["warm_up"]["variation_of_last_50"] == pytest.approx(0.5)


def test_slow_model_has_enough_samples_for_a_median():
    rows = collect_samples(lambda index: [1000.0 if index == 3 else 6.0], 1e-9)
    assert [row[0] for row in rows] == [6.0] * 3 + [1000.0] + [6.0] * 7
    assert statistics([row[0] for row in rows])["p50_ms"] == 6.0


def test_transfers_are_separate_segments(clock):
    runtime = Model(clock, lambda n: 10.0)
    runtime.segments = ("h2d", "compute", "d2h")
    runtime.infer = lambda tensor: (np.zeros((1, 4, 6), np.float32), {"h2d": 2.0, "compute": 3.0, "d2h": 4.0})
    assert run_once(runtime.model, runtime, np.zeros((32, 32, 3), np.uint8)) == [0, 2.0, 3.0, 4.0, 0, 0]
    assert segments_of(runtime) == ("preprocess", "h2d", "compute", "d2h", "postprocess", "end_to_end")


# The pipeline


@pytest.mark.parametrize("head", ["one2many", "one2one"])
def test_boxes_equal_those_of_ultralytics(exported, tiny_detector, head):
    runtime, pictures, found = open_runtime(exported[head], 1), tiny_detector.images[:6], 0
    assert runtime.model.head == head
    for path, theirs in zip(pictures, detect_in_files(exported[head], pictures, runtime.model, CONF), strict=True):
        picture = np.ascontiguousarray(read_image(path)[..., ::-1])
        output, _ = runtime.infer(to_tensor(letterbox(picture, runtime.model.imgsz)))
        ours = decode_boxes(output, head, picture.shape[:2], runtime.model.imgsz, CONF)
        same = compare_detections(ours.astype(float), theirs, CONF, 1e-3)
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
    monkeypatch.setattr(measure, "WARM_UP_CAP_S", 0.05)


def test_report_states_the_conditions_of_a_time(exported, tiny_detector, tmp_path, hasty, capsys):
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


def test_report_is_written_beside_its_file(exported, hasty):
    time(exported["one2many"], duration=1e-6)
    assert json.loads((exported["one2many"].parent / "tiny.time.json").read_text())["file"] == "tiny.onnx"


def test_report_has_the_fields_of_a_devices(exported, tmp_path, hasty):
    """The report contains the fields that a device's time.py writes, so that both can be compared."""
    theirs = set(DeviceTimeReport.__annotations__)
    time(exported["one2many"], duration=1e-6, json=tmp_path / "t.json")
    ours = json.loads((tmp_path / "t.json").read_text())
    assert len(theirs) > 20 and theirs | set(LocalTimeReport.__annotations__) == set(ours)


def test_table_names_the_floor_of_a_percentile_it_leaves_out(exported, tmp_path, hasty):
    figures = time(exported["one2many"], duration=1e-6, json=tmp_path / "t.json")
    assert figures["images"] == "one synthetic picture of 640 x 480"
    assert figures["segments"]["compute"]["n"] == 11
    assert "p90 needs 64, p95 needs 130, p99 needs 662" in report_text(figures)


def test_session_on_another_provider_is_a_failure(exported, monkeypatch):
    other = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider"])
    monkeypatch.setattr("yolo_mkd.deploy.runtimes.onnx_runtime.open_session", lambda path, threads: other)
    with pytest.raises(Failed, match="on AzureExecutionProvider, not on CPUExecutionProvider"):
        time(exported["one2many"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration": 0}, "duration=0 must be greater than 0, for example duration=60"),
        ({"duration": "long"}, "duration=long must be a number"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"images": "nowhere"}, "images=nowhere"),
        ({"device": "tpu"}, "device=tpu cannot run"),
    ],
)
def test_bad_argument_is_an_error_and_writes_no_report(exported, tmp_path, arguments, message):
    with pytest.raises(BadInput, match=message):
        time(exported["one2many"], json=tmp_path / "t.json", **arguments)
    assert not (tmp_path / "t.json").exists()


def test_checkpoint_is_an_error_with_advice(tmp_path):
    with pytest.raises(BadInput, match="export it first"):
        time(tmp_path / "best.pt")
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(BadInput, match="cannot be loaded by ONNX Runtime"):
        time(tmp_path / "bad.onnx")
