"""Two time reports are compared by a valid interval, and only where they were measured under the same conditions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolo_mkd.deploy.time.compare import (
    BLOCKS,
    SAME_CONDITIONS,
    compare_medians,
    compare_times,
    median,
    resampled_medians,
)
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


def test_faster_file_is_reported_with_its_interval(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(8.8, seed=1))
    result = compare_times(a, b)
    whole = result.changes["end_to_end"]
    assert whole.ratio[0] < 0.88 < whole.ratio[1] and whole.ratio[1] - whole.ratio[0] < 0.03
    assert whole.difference_ms[0] < -1.2 < whole.difference_ms[1] < 0
    assert result.verdict.startswith("b is 1") and "% faster (95 % interval 1" in result.verdict
    assert compare_times(b, a).verdict.startswith("b is 1") and "slower" in compare_times(b, a).verdict
    assert str(result).startswith(result.verdict) and "one run of each" in str(result)


def test_interval_of_the_verdict_is_ordered_whichever_is_faster(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(8.8, seed=1))
    for first, second in ((a, b), (b, a)):
        size, low, high = (
            float(word.strip("(%)"))
            for word in compare_times(first, second).verdict.replace("95 %", "").split()
            if word.strip("(%)").replace(".", "").isdigit()
        )
        assert low < size < high


def test_same_speed_is_not_distinguishable(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(10, seed=1))
    assert compare_times(a, b).verdict.startswith("not distinguishable: b's p50 is ")


def test_comparison_is_deterministic(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(9.9, seed=1))
    assert str(compare_times(a, b)) == str(compare_times(a, b))


def test_segment_that_takes_no_time_does_not_divide_by_zero():
    row = compare_medians([0.0] * 200, [0.0] * 200)
    assert (row.a_ms, row.difference_ms) == (0.0, (0.0, 0.0)) and row.cells()[-1] == "-"


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


def test_interval_contains_the_true_ratio_at_about_its_confidence_level():
    missed = 0
    for seed in range(40):  # equal runs: the truth is 1
        low, high = compare_medians(samples(10, 400, 2 * seed), samples(10, 400, 2 * seed + 1)).ratio
        missed += not low <= 1 <= high
    assert missed <= 6  # 2 of 40 are to be expected; more than 6 has a chance of 1 in 200


def test_all_conditions_are_compared():
    assert {label for _, label in SAME_CONDITIONS} == {
        *("schema", "processor", "number of cores", "system", "device", "power mode", "clock governor", "GPU"),
        *("threads", "batch", "streams", "input", "images", "resizing", "conf", "meaning"),
    }


@pytest.mark.parametrize(("path", "label"), SAME_CONDITIONS, ids=lambda item: str(item))
def test_different_conditions_are_an_error(tmp_path, path, label):
    a = write(tmp_path / "a.json", samples(10))
    other = json.loads(a.read_text())
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "yolo-mkd/time/2" if label == "schema" else "another"
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(BadInput, match=rf"a\.json and .*b\.json cannot be compared: {label} differs"):
        compare_times(a, tmp_path / "b.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provider": "CUDAExecutionProvider"}, "one ran on CPUExecutionProvider, the other on CUDAExecutionProvider"),
        ({"segments": {"compute": statistics(samples(9))}}, "their segments differ"),
        ({"samples_ms": None}, "the second has no samples"),
        ({"drift": drift([10.0] * 20 + [12.0] * 10)}, r"the second is not stable \(the last third is 20% slower"),
    ],
)
def test_reports_that_cannot_be_compared_are_an_error_with_the_reason(tmp_path, changes, message):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(9), **changes)
    with pytest.raises(BadInput, match=message):
        compare_times(a, b)


def test_too_few_samples_are_an_error(tmp_path):
    a, b = write(tmp_path / "a.json", samples(10)), write(tmp_path / "b.json", samples(9, 100))
    with pytest.raises(BadInput, match="the second has 100 samples, fewer than 130"):
        compare_times(a, b)


def test_other_runtimes_and_precisions_of_one_machine_are_compared_and_noted(tmp_path):
    a = write(tmp_path / "a.json", samples(10))
    changed = {**copy.deepcopy(ABOUT["device"]), "warnings": ["other programs used 1.0 of 2 cores"]}
    b = write(
        tmp_path / "b.json", samples(7), provider="OpenVINO CPU", arithmetic="bf16", device=changed,
        warm_up={"settled": False},
    )  # fmt: skip
    text = str(compare_times(a, b))
    assert "arithmetic differs: fp32 and bf16" in text
    assert "b: other programs used 1.0 of 2 cores" in text and "b: the warm-up did not settle" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "yolo-mkd/export/1"}'])
def test_other_files_are_an_error(tmp_path, content):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(BadInput, match=r"b\.json (is damaged|is not a time report)"):
        compare_times(write(tmp_path / "a.json", samples(10)), tmp_path / "b.json")
