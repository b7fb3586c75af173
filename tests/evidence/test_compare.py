"""Methods, seeds, intervals and equal cost of a comparison, and its trials: order, failures, resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd import host
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.compare import config, executors, methods, statistics, trials
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.settings import BadInput

KNOWN = host.arguments()


# Statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_the_t_quantile_is_that_of_printed_tables(freedom: int, quantile: float) -> None:
    assert statistics.t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_the_t_quantile_is_exact_for_one_and_two_degrees_of_freedom() -> None:
    # closed forms of the quantile p = 0.975: tan(pi (p - 1/2)) and (2p - 1) / sqrt(2 p (1 - p))
    assert statistics.t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-9)
    assert statistics.t_quantile(2) == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025), rel=1e-9)


def test_the_interval_of_three_pairs_is_the_one_derived_by_hand() -> None:
    # differences 0.01 0.02 0.03: mean 0.02, deviation 0.01, so 4.3027 x 0.01 / sqrt(3) = 0.02484 on either side
    found = statistics.paired_difference({0: 0.31, 1: 0.42, 2: 0.53}, {0: 0.3, 1: 0.4, 2: 0.5})
    expected = {"mean": 0.02, "low": -0.00484, "high": 0.04484, "seeds": 3, "verdict": "not distinguishable"}
    assert found == expected


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.019, 0.02, 0.021], "better"),
        ([-0.019, -0.02, -0.021], "worse"),
        ([0.0, 0.0], "not distinguishable"),
        ([0.3], "one seed, no interval"),
    ],
)
def test_a_verdict_follows_from_the_interval(differences: list[float], verdict: str) -> None:
    found = statistics.mean_interval(differences)
    assert found is not None
    assert found["verdict"] == verdict
    assert (found["low"] is None) == (len(differences) == 1)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = statistics.paired_difference({0: 0.5, 1: 0.6, 7: 9.0}, {0: 0.4, 1: 0.5, 3: 0.0})
    assert found is not None
    assert (found["mean"], found["seeds"]) == (0.1, 2)
    assert statistics.paired_difference({0: 0.5}, {1: 0.5}) is None


# Methods


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("plain", {}),
        ("native:dis=2", {"dis": 2}),
        ("mkd", {}),
        ("mkd-relation", {"relation": 0}),
        ("mkd-relation-guidance:soft=1:lr0=1e-3", {"relation": 0, "guidance": 0, "soft": 1, "lr0": 0.001}),
        ("mkd:assistant=none", {"assistant": None}),
        ("channel_wise", {"preset": "channel_wise"}),
        ("recorded-soft:views=4", {"preset": "recorded", "soft": 0, "views": 4}),
        ("only:soft=0.5", {**dict.fromkeys(TERMS, 0), "soft": 0.5}),
    ],
)
def test_a_methods_name_is_parsed_into_its_changes(name: str, changes: dict[str, Any]) -> None:
    assert methods.parse_method(name, KNOWN).changes == changes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "methods= is empty"),
        ("plian", "unknown method plian: did you mean plain"),
        ("quantum", "unknown method quantum: choose from plain, longer, native, pseudo, mkd, only"),
        ("mkd-relations", "unknown term relations to leave out: choose from soft"),
        ("plain-soft", "plain has no terms, so -soft cannot be left out"),
        ("mkd:sfot=1", "sfot= is not an argument of this method: did you mean soft="),
        ("plain:soft=1", "soft= is not an argument of this method"),
        ("mkd:soft", "'soft' must have the form argument=value"),
        ("mkd:data=b.yaml", "data= must be the same for all methods"),
        ("mkd:seed=3", "seed= must be the same for all methods"),
        ("only", "switches no term on"),
        ("only:lr0=0.1", "switches no term on"),
        ("plain,plain", "contains plain twice"),
        ("longer,mkd", "add both"),
        ("plain,longer", "add both"),
        ("plain,longer:epochs=3,mkd", "epochs= is not an argument of this method"),
    ],
)
def test_an_invalid_method_is_refused_in_one_line(names: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as e:
        methods.parse_methods(names, KNOWN)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        ("plain,native,recorded,mkd", "mkd"),
        ("plain,native,recorded", "recorded"),
        ("plain,native", "native"),
        ("plain", None),
    ],
)
def test_longer_matches_the_cost_of_mkd_or_else_of_another_distilled_method(names: str, reference: str | None) -> None:
    found = methods.cost_reference(methods.parse_methods(names, KNOWN))
    assert (found and found.name) == reference


def test_an_ablation_leaves_each_term_out_and_runs_each_alone() -> None:
    assert methods.ablation_methods(["soft", "guidance"], "mkd") == [
        *("plain", "mkd", "mkd-soft", "mkd-guidance", "only:soft=2.0", "only:guidance=0.25")
    ]
    assert methods.ablation_methods(["soft"], "recorded") == ["plain", "recorded", "only:soft=2.0"]


# Trials


def test_longer_has_as_many_epochs_as_cost_what_the_distilled_run_cost() -> None:
    plain = {"cost_s": 60.0, "epochs": 30}
    assert trials.equal_cost_epochs(plain, {"cost_s": 98.0}) == 49
    assert trials.equal_cost_epochs(plain, {"cost_s": 0.1}) == 1


def test_the_epochs_without_mosaic_scale_with_the_training() -> None:
    assert trials.scaled_length({"epochs": 30, "close_mosaic": 4}, 49) == {"epochs": 49, "close_mosaic": 7}
    assert trials.scaled_length({}, 150) == {"epochs": 150, "close_mosaic": 15}  # Ultralytics' own: 10 of 100


@pytest.mark.parametrize(("given", "seeds"), [(3, [0, 1, 2]), ("0,1,5", [0, 1, 5]), ([7], [7]), ("4,", [4])])
def test_seeds_are_a_count_or_a_list(given: Any, seeds: list[int]) -> None:
    assert config.parse_seeds(given) == seeds


@pytest.mark.parametrize("given", [0, -1, True, None, "a", "1,1", 2.5, []])
def test_invalid_seeds_are_refused(given: Any) -> None:
    with pytest.raises(BadInput, match=r"seeds=.*for example seeds=3"):
        config.parse_seeds(given)


def test_files_of_the_same_name_are_labelled_with_their_folder() -> None:
    assert list(trials.short_labels("data", ["a/data.yaml", "b/data.yaml", "c.yaml"])) == ["a-data", "b-data", "c"]
    assert list(trials.short_labels("model", ["runs/one/weights/best.pt", "two/weights/best.pt"])) == ["one", "two"]
    with pytest.raises(BadInput, match=r"data=a/data\.yaml,a/data\.yaml: two of these have the same name and folder"):
        trials.short_labels("data", ["a/data.yaml", "a/data.yaml"])


def test_each_method_has_a_folder_of_its_own() -> None:
    names = ["mkd:soft=1", "mkd_soft=1", "mkd-soft"]
    assert [trials.folder_name(n, names) for n in names] == ["mkd_soft=1-0", "mkd_soft=1-1", "mkd-soft"]


@pytest.mark.parametrize(
    ("begun_with", "installed", "refused"),
    [("0.1.0", "0.2.0", False), ("0.1.0", "0.1.0", False), ("0.0.9", "0.2.0", True), ("0.1.0", "0.3.0", True)],
)
def test_a_comparison_resumes_with_another_release_only_if_it_trains_identically(
    begun_with: str, installed: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.report, "versions", lambda: {"yolo-mkd": installed, "torch": "2.9"})
    plan: Any = {"versions": {"yolo-mkd": begun_with, "torch": "2.9"}, "cells": [], "settings": {}}
    if refused:
        with pytest.raises(BadInput, match=f"was begun with yolo-mkd {begun_with}: install that"):
            config.refuse_changed_settings(tmp_path, plan)
    else:
        config.refuse_changed_settings(tmp_path, plan)


# Running, with trials that train nothing


COST = {"plain": 10.0, "mkd": 25.0, "longer": 24.0}


class FakeExecutor:
    """Trials end at once; a name in `broken` fails, and one in `cut` interrupts the comparison."""

    def __init__(self, slots: int = 1, broken: tuple[str, ...] = (), cut: str = ""):
        self.slots, self.broken, self.cut = slots, broken, cut
        self.begun: list[str] = []
        self.most = 0
        self.closed = False

    def submit(self, folder: Path) -> Path:
        self.begun.append(folder.name)
        return folder

    def wait_any(self, handles: list[Path]) -> tuple[Path, str]:
        self.most = max(self.most, len(handles))
        folder = handles[0]
        if folder.name == self.cut:
            raise KeyboardInterrupt
        if folder.name in self.broken:
            return folder, "RuntimeError: broke"
        method = folder.name.split("-")[0]
        (folder / trials.RESULT).write_text(json.dumps(done(0.5, COST[method])))
        return folder, ""

    def close(self) -> None:
        self.closed = True


def done(score: float, cost_s: float) -> dict[str, Any]:
    scores = {"map50_95": score, "map50": score, "classes": {}}
    same = {"best": scores, "last": scores, "parameters": 1, "start": "", "batches": [], "device": "cpu"}
    return {"status": "done", "epochs": 10, "train_s": cost_s, "cost_s": cost_s, "whole_s": cost_s + 1, **same}


def trial(method: str, seed: int = 0, longer: bool = False) -> Trial:
    place = f"d/m/{{}}-s{seed}"
    after = (place.format("plain"), place.format("mkd")) if longer else None
    return Trial(place.format(method), "d", "m", method, seed, method == "mkd", {"epochs": 10}, {}, after)


@pytest.fixture
def three() -> list[Trial]:
    return [trial("plain"), trial("longer", longer=True), trial("mkd")]


def test_longer_waits_for_the_trials_whose_cost_sets_its_epochs(three: list[Trial], tmp_path: Path) -> None:
    executor = FakeExecutor(slots=3)
    results = executors.run_trials(tmp_path, three, executor)
    assert executor.begun == ["plain-s0", "mkd-s0", "longer-s0"]
    assert executor.most == 2
    assert executor.closed
    assert set(results) == {c.name for c in three}
    task = yaml.safe_load((tmp_path / three[1].name / trials.TASK).read_text())
    assert task["arguments"]["epochs"] == 25  # one second an epoch, and mkd took 25


def test_no_more_trials_at_a_time_than_slots(tmp_path: Path) -> None:
    executor = FakeExecutor(slots=2)
    executors.run_trials(tmp_path, [trial("plain", seed) for seed in range(5)], executor)
    assert executor.most == 2
    assert len(executor.begun) == 5


def test_a_failed_trial_is_a_result_and_the_others_run(three: list[Trial], tmp_path: Path) -> None:
    results = executors.run_trials(tmp_path, three, FakeExecutor(broken=("plain-s0",)))
    assert results[three[0].name]["reason"] == "RuntimeError: broke"
    assert results[three[2].name]["status"] == "done"
    assert "follow from the cost of d/m/plain-s0, which failed" in results[three[1].name]["reason"]


def test_an_interrupted_comparison_resumes_with_the_interrupted_trial(three: list[Trial], tmp_path: Path) -> None:
    cut = FakeExecutor(cut="mkd-s0")
    with pytest.raises(KeyboardInterrupt):
        executors.run_trials(tmp_path, three, cut)
    assert cut.closed
    assert cut.begun == ["plain-s0", "mkd-s0"]
    again = FakeExecutor()
    executors.run_trials(tmp_path, three, again)
    assert again.begun == ["mkd-s0", "longer-s0"]


def test_the_epochs_of_longer_do_not_change_when_it_is_resumed(three: list[Trial], tmp_path: Path) -> None:
    results = {three[0].name: done(0.5, 10.0), three[2].name: done(0.5, 25.0)}
    assert trials.write_task(tmp_path, three[1], results) == ""
    before = (tmp_path / three[1].name / trials.TASK).read_text()
    results[three[2].name]["cost_s"] = 99.0
    trials.write_task(tmp_path, three[1], results)
    assert (tmp_path / three[1].name / trials.TASK).read_text() == before


def test_the_remaining_time_is_estimated_from_the_same_methods(three: list[Trial]) -> None:
    more = [*three, trial("plain", 1), trial("mkd", 1)]
    ended = {three[0].name: done(0.5, 99.0), three[2].name: done(0.5, 199.0)}
    assert (
        executors.TrialProgress(more, ended, 1).time_left() == "; about 8 min left"
    )  # 100 + 200, and longer: their mean, 150
    assert executors.TrialProgress(more, ended, 2).time_left() == "; about 4 min left"
    assert executors.TrialProgress(more, {}, 1).time_left() == ""


@pytest.mark.parametrize(
    ("wanted", "parallel", "threads"),
    [("8", 1, 8), ("8", 2, 6), ("1", 2, 1), ("64", 3, 4), ("8", 99, 1), ("4,2", 1, 1)],
)
def test_parallel_trials_share_the_cores(
    wanted: str, parallel: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(executors.os, "cpu_count", lambda: 12)
    assert executors.threads_per_trial(parallel) == threads


@pytest.mark.parametrize(
    ("log", "code", "why"),
    [
        ("Traceback\n  ...\nValueError: heads differ\n\n", 1, "ValueError: heads differ"),
        ("Epoch 1", -9, "stopped by signal 9 (out of memory?)"),
        ("Epoch 1", -15, "stopped by signal 15"),
        ("", 1, "ended with exit code 1 and an empty log"),
    ],
)
def test_the_reason_of_a_failure_is_the_last_line_of_the_log_or_the_signal(
    log: str, code: int, why: str, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text(log)
    assert executors.failure_reason(tmp_path / "log.txt", code) == why
