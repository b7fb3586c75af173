"""Two timed files are told apart by an interval that holds what it says, and only where they were timed alike."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolo_mkd.deploy.time.compare import BLOCKS, SAME, change, compare, median, resampled_medians
from yolo_mkd.edge.samples import drift, statistics
from yolo_mkd.settings import BadInput

ABOUT: dict[str, Any] = {
    "schema": "yolo-mkd/time/1",
    "machine": {"processor": "AMD EPYC", "cores": 2, "system": "Linux x86_64"},
    "file": "best.onnx",
    "precision": "fp32",
    "arithmetic": "fp32",
    "provider": "CPUExecutionProvider",
    "threads": 1,
    "batch": 1,
    "streams": 1,
    "input": [1, 3, 96, 96],
    "images": "32 of a.yaml",
    "resize": "OpenCV",
    "conf": 0.25,
    "warm_up": {"settled": True},
    "device": {"model": None, "power_mode": None, "governors": {"cpu": "performance"}, "warnings": []},
}


def samples(p50: float, n: int = 1000, seed: int = 0, width: float = 0.05) -> list[float]:
    return (p50 * np.random.default_rng(seed).lognormal(0, width, n)).tolist()


def write(path: Path, times: list[float], **changes: Any) -> Path:
    """A report whose preprocess takes a millisecond and whose compute the rest."""
    columns = {"preprocess": [1.0] * len(times), "compute": [t - 1 for t in times], "end_to_end": times}
    figures = {
        **copy.deepcopy(ABOUT),
        "segments": {name: statistics(column) for name, column in columns.items()},
        "drift": drift(times),
        "samples_ms": columns,
        **changes,
    }
    path.write_text(json.dumps(figures))
    return path


def test_faster_file_is_told_with_its_interval(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(8.8, seed=1))
    result = compare(a, b)
    whole = result.changes["end_to_end"]
    assert whole.ratio[0] < 0.88 < whole.ratio[1] and whole.ratio[1] - whole.ratio[0] < 0.03
    assert whole.difference_ms[0] < -1.2 < whole.difference_ms[1] < 0
    assert result.verdict.startswith("b is 1") and "% faster (95 % interval 1" in result.verdict
    assert compare(b, a).verdict.startswith("b is 1") and "slower" in compare(b, a).verdict
    assert str(result).startswith(result.verdict) and "one run of each" in str(result)


def test_interval_of_the_verdict_is_ordered_whichever_is_faster(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(8.8, seed=1))
    for first, second in ((a, b), (b, a)):
        size, low, high = (
            float(word.strip("(%)"))
            for word in compare(first, second).verdict.replace("95 %", "").split()
            if word.strip("(%)").replace(".", "").isdigit()
        )
        assert low < size < high


def test_same_speed_is_not_distinguishable(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(10, seed=1))
    assert compare(a, b).verdict.startswith("not distinguishable: b's p50 is ")


def test_it_is_the_same_each_time(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(9.9, seed=1))
    assert str(compare(a, b)) == str(compare(a, b))


def test_segment_that_takes_no_time_is_no_division_by_zero():
    row = change([0.0] * 200, [0.0] * 200)
    assert (row.a_ms, row.difference_ms) == (0.0, (0.0, 0.0)) and str(row).endswith("-")


def test_blocks_keep_neighbours_together():
    """Samples that come in runs of alike ones make the interval as wide as the runs are few."""
    runs = np.repeat(np.random.default_rng(0).normal(10, 1, 40), 25)
    wide = resampled_medians(runs, np.random.default_rng(0)).std()
    narrow = resampled_medians(np.random.default_rng(1).permutation(runs), np.random.default_rng(0)).std()
    assert wide > 2.5 * narrow


@pytest.mark.parametrize("n", [130, BLOCKS * 7, 999])
def test_median_of_a_resample_is_that_of_the_samples_on_average(n):
    column = np.asarray(samples(10, n))
    assert resampled_medians(column, np.random.default_rng(0)).mean() == pytest.approx(np.median(column), rel=0.01)
    assert median(column) == sorted(column)[(n + 1) // 2 - 1]


def test_interval_holds_the_truth_about_as_often_as_it_says():
    missed = 0
    for seed in range(40):  # equal runs: the truth is 1
        low, high = change(samples(10, 400, 2 * seed), samples(10, 400, 2 * seed + 1)).ratio
        missed += not low <= 1 <= high
    assert missed <= 6  # 2 of 40 are to be expected; more than 6 has a chance of 1 in 200


def test_conditions_are_all_there():
    assert {label for _, label in SAME} == {
        *("schema", "processor", "number of cores", "system", "device", "power mode", "clock governor", "GPU"),
        *("threads", "batch", "streams", "input", "images", "resizing", "conf", "meaning"),
    }


@pytest.mark.parametrize(("path", "label"), SAME, ids=lambda item: str(item))
def test_what_differs_in_the_conditions_is_refused(tmp_path, path, label):
    a = write(tmp_path / "a.json", samples(10))
    other = json.loads(a.read_text())
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "yolo-mkd/time/2" if label == "schema" else "another"
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(BadInput, match=rf"a\.json and .*b\.json cannot be compared: {label} differs"):
        compare(a, tmp_path / "b.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provider": "CUDAExecutionProvider"}, "one ran on CPUExecutionProvider, the other on CUDAExecutionProvider"),
        ({"segments": {"compute": statistics(samples(9))}}, "their segments differ"),
        ({"samples_ms": None}, "the second holds no samples"),
        ({"drift": drift([10.0] * 20 + [12.0] * 10)}, r"the second is not stable \(the last third is 20% slower"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path, changes, message):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(9), **changes)
    with pytest.raises(BadInput, match=message):
        compare(a, b)


def test_too_few_samples_are_refused(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(9, 100))
    with pytest.raises(BadInput, match="the second has 100 samples, fewer than 130"):
        compare(a, b)


def test_other_runtimes_and_precisions_of_one_machine_are_compared_and_noted(tmp_path):
    a = write(tmp_path / "a.json", samples(10))
    changed = {**copy.deepcopy(ABOUT["device"]), "warnings": ["other programs kept 1.0 of 2 cores busy"]}
    b = write(
        tmp_path / "b.json", samples(7), provider="OpenVINO CPU", arithmetic="bf16", device=changed,
        warm_up={"settled": False},
    )  # fmt: skip
    text = str(compare(a, b))
    assert "arithmetic differs: fp32 and bf16" in text
    assert "b: other programs kept 1.0 of 2 cores busy" in text and "b's warm-up did not settle" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "yolo-mkd/export/1"}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(BadInput, match=r"b\.json (cannot be read as a|is no) report of time"):
        compare(write(tmp_path / "a.json", samples(10)), tmp_path / "b.json")
