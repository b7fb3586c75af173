"""What a comparison asks for and how it runs: methods, intervals, equal cost, cells in order, going on after a cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolo_mkd import host
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.compare import config as asking
from yolo_mkd.evidence.compare import executors as running
from yolo_mkd.evidence.compare import methods, statistics
from yolo_mkd.evidence.compare import trials as cells
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.settings import BadInput

KNOWN = host.arguments()


# Statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_students_t_is_that_of_the_printed_tables(freedom: int, quantile: float) -> None:
    assert statistics.t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_the_interval_of_three_pairs_is_the_one_derived_by_hand() -> None:
    # differences 0.01 0.02 0.03: mean 0.02, deviation 0.01, so 4.3027 x 0.01 / sqrt(3) = 0.02484 on either side
    found = statistics.paired({0: 0.31, 1: 0.42, 2: 0.53}, {0: 0.3, 1: 0.4, 2: 0.5})
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
def test_a_verdict_is_what_the_interval_allows(differences: list[float], verdict: str) -> None:
    found = statistics.interval(differences)
    assert found is not None
    assert found["verdict"] == verdict
    assert (found["low"] is None) == (len(differences) == 1)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = statistics.paired({0: 0.5, 1: 0.6, 7: 9.0}, {0: 0.4, 1: 0.5, 3: 0.0})
    assert found is not None
    assert (found["mean"], found["seeds"]) == (0.1, 2)
    assert statistics.paired({0: 0.5}, {1: 0.5}) is None


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
def test_a_methods_name_says_what_it_changes(name: str, changes: dict[str, Any]) -> None:
    assert methods.read(name, KNOWN).changes == changes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "names no method"),
        ("plian", "plian is no method: did you mean plain"),
        ("quantum", "quantum is no method: choose from plain, longer, native, pseudo, mkd, only"),
        ("mkd-relations", "has no term relations to leave out"),
        ("plain-soft", "plain has no term soft to leave out"),
        ("mkd:sfot=1", "sfot= is no argument of this method: did you mean soft="),
        ("plain:soft=1", "soft= is no argument of this method"),
        ("mkd:soft", "'soft' is not of the form argument=value"),
        ("mkd:data=b.yaml", "data= is the same for all methods"),
        ("mkd:seed=3", "seed= is the same for all methods"),
        ("only", "names no term"),
        ("only:lr0=0.1", "names no term"),
        ("plain,plain", "names plain twice"),
        ("longer,mkd", "name both"),
        ("plain,longer", "name both"),
        ("plain,longer:epochs=3,mkd", "epochs= is no argument of this method"),
    ],
)
def test_a_name_that_means_nothing_is_refused(names: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as e:
        methods.read_all(names, KNOWN)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("names", "reference"),
    [("plain,native,safe,mkd", "mkd"), ("plain,native,safe", "safe"), ("plain,native", "native"), ("plain", None)],
)
def test_longer_is_given_the_cost_of_mkd_or_what_comes_next_to_it(names: str, reference: str | None) -> None:
    found = methods.reference(methods.read_all(names, KNOWN))
    assert (found and found.name) == reference


def test_an_ablation_takes_one_term_away_and_shows_each_alone() -> None:
    assert methods.ablation(["soft", "guidance"], "mkd") == [
        *("plain", "mkd", "mkd-soft", "mkd-guidance", "only:soft=2.0", "only:guidance=0.25")
    ]
    assert methods.ablation(["soft"], "recorded") == ["plain", "recorded", "only:soft=2.0"]


# Cells


def test_longer_has_the_epochs_that_cost_what_the_distilled_run_cost() -> None:
    plain = {"cost_s": 60.0, "epochs": 30}
    assert cells.epochs_for(plain, {"cost_s": 98.0}) == 49
    assert cells.epochs_for(plain, {"cost_s": 0.1}) == 1


def test_the_end_without_mosaic_grows_with_the_training() -> None:
    assert cells.lengthened({"epochs": 30, "close_mosaic": 4}, 49) == {"epochs": 49, "close_mosaic": 7}
    assert cells.lengthened({}, 150) == {"epochs": 150, "close_mosaic": 15}  # Ultralytics' own: 10 of 100


@pytest.mark.parametrize(("given", "seeds"), [(3, [0, 1, 2]), ("0,1,5", [0, 1, 5]), ([7], [7]), ("4,", [4])])
def test_seeds_are_a_count_or_a_list(given: Any, seeds: list[int]) -> None:
    assert asking.seeds_of(given) == seeds


@pytest.mark.parametrize("given", [0, -1, True, None, "a", "1,1", 2.5, []])
def test_what_is_no_seed_is_refused(given: Any) -> None:
    with pytest.raises(BadInput, match=r"seeds=.*such as seeds=3"):
        asking.seeds_of(given)


def test_files_of_one_name_are_told_apart_by_their_folder() -> None:
    assert list(cells.labels("data", ["a/data.yaml", "b/data.yaml", "c.yaml"])) == ["a-data", "b-data", "c"]
    assert list(cells.labels("model", ["runs/one/weights/best.pt", "two/weights/best.pt"])) == ["one", "two"]
    with pytest.raises(BadInput, match="cannot be told apart"):
        cells.labels("data", ["a/data.yaml", "a/data.yaml"])


def test_each_method_has_a_folder_of_its_own() -> None:
    names = ["mkd:soft=1", "mkd_soft=1", "mkd-soft"]
    assert [cells.slug(n, names) for n in names] == ["mkd_soft=1-0", "mkd_soft=1-1", "mkd-soft"]


# Running, with cells that train nothing


COST = {"plain": 10.0, "mkd": 25.0, "longer": 24.0}


class Pretend:
    """A pool whose cells end at once; a name in `broken` fails, and one in `cut` interrupts the comparison."""

    def __init__(self, slots: int = 1, broken: tuple[str, ...] = (), cut: str = ""):
        self.slots, self.broken, self.cut = slots, broken, cut
        self.begun: list[str] = []
        self.most = 0
        self.closed = False

    def submit(self, folder: Path) -> Path:
        self.begun.append(folder.name)
        return folder

    def first(self, handles: list[Path]) -> tuple[Path, str]:
        self.most = max(self.most, len(handles))
        folder = handles[0]
        if folder.name == self.cut:
            raise KeyboardInterrupt
        if folder.name in self.broken:
            return folder, "RuntimeError: broke"
        method = folder.name.split("-")[0]
        (folder / cells.RESULT).write_text(json.dumps(done(0.5, COST[method])))
        return folder, ""

    def close(self) -> None:
        self.closed = True


def done(score: float, cost_s: float) -> dict[str, Any]:
    return {"status": "done", "best": {"map50_95": score}, "epochs": 10, "cost_s": cost_s, "whole_s": cost_s + 1}


def cell(method: str, seed: int = 0, longer: bool = False) -> Trial:
    place = f"d/m/{{}}-s{seed}"
    after = (place.format("plain"), place.format("mkd")) if longer else None
    return Trial(place.format(method), "d", "m", method, seed, method == "mkd", {"epochs": 10}, {}, after)


@pytest.fixture
def three() -> list[Trial]:
    return [cell("plain"), cell("longer", longer=True), cell("mkd")]


def test_longer_waits_for_the_costs_that_decide_its_epochs(three: list[Trial], tmp_path: Path) -> None:
    pool = Pretend(slots=3)
    results = running.run_all(tmp_path, three, pool)
    assert pool.begun == ["plain-s0", "mkd-s0", "longer-s0"]
    assert pool.most == 2
    assert pool.closed
    assert set(results) == {c.name for c in three}
    task = yaml.safe_load((tmp_path / three[1].name / cells.TASK).read_text())
    assert task["arguments"]["epochs"] == 25  # one second an epoch, and mkd took 25


def test_never_more_cells_at_a_time_than_there_is_room_for(tmp_path: Path) -> None:
    pool = Pretend(slots=2)
    running.run_all(tmp_path, [cell("plain", seed) for seed in range(5)], pool)
    assert pool.most == 2
    assert len(pool.begun) == 5


def test_a_cell_that_breaks_is_a_result_and_the_rest_goes_on(three: list[Trial], tmp_path: Path) -> None:
    results = running.run_all(tmp_path, three, Pretend(broken=("plain-s0",)))
    assert results[three[0].name]["reason"] == "RuntimeError: broke"
    assert results[three[2].name]["status"] == "done"
    assert "follow from the cost of d/m/plain-s0, which failed" in results[three[1].name]["reason"]


def test_a_comparison_that_was_cut_off_goes_on_with_the_cell_in_hand(three: list[Trial], tmp_path: Path) -> None:
    cut = Pretend(cut="mkd-s0")
    with pytest.raises(KeyboardInterrupt):
        running.run_all(tmp_path, three, cut)
    assert cut.closed
    assert cut.begun == ["plain-s0", "mkd-s0"]
    again = Pretend()
    running.run_all(tmp_path, three, again)
    assert again.begun == ["mkd-s0", "longer-s0"]


def test_the_epochs_of_longer_stay_when_it_goes_on(three: list[Trial], tmp_path: Path) -> None:
    results = {three[0].name: done(0.5, 10.0), three[2].name: done(0.5, 25.0)}
    assert cells.start(tmp_path, three[1], results) == ""
    before = (tmp_path / three[1].name / cells.TASK).read_text()
    results[three[2].name]["cost_s"] = 99.0
    cells.start(tmp_path, three[1], results)
    assert (tmp_path / three[1].name / cells.TASK).read_text() == before


def test_time_left_is_what_the_same_methods_took(three: list[Trial]) -> None:
    more = [*three, cell("plain", 1), cell("mkd", 1)]
    ended = {three[0].name: done(0.5, 99.0), three[2].name: done(0.5, 199.0)}
    assert (
        running.TrialProgress(more, ended, 1).rest() == "; about 8 min left"
    )  # 100 + 200, and longer: their mean, 150
    assert running.TrialProgress(more, ended, 2).rest() == "; about 4 min left"
    assert running.TrialProgress(more, {}, 1).rest() == ""


@pytest.mark.parametrize(
    ("wanted", "parallel", "threads"),
    [("8", 1, 8), ("8", 2, 6), ("1", 2, 1), ("64", 3, 4), ("8", 99, 1), ("4,2", 1, 1)],
)
def test_cells_at_a_time_share_the_cores(
    wanted: str, parallel: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(running.os, "cpu_count", lambda: 12)
    assert running.shared_threads(parallel) == threads


@pytest.mark.parametrize(
    ("log", "code", "why"),
    [
        ("Traceback\n  ...\nValueError: heads differ\n\n", 1, "ValueError: heads differ"),
        ("Epoch 1", -9, "stopped by signal 9 (out of memory?)"),
        ("Epoch 1", -15, "stopped by signal 15"),
        ("", 1, "ended with exit code 1 and said nothing"),
    ],
)
def test_the_reason_of_a_failure_is_its_last_word(log: str, code: int, why: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(log)
    assert running.reason(tmp_path / "log.txt", code) == why
