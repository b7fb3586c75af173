"""From the results of trials to rows, means, notes, tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolo_mkd.evidence.compare import findings, latency, notes, plots, tables
from yolo_mkd.evidence.compare.trials import Trial
from yolo_mkd.settings import Failed


def done(score: float, cost_s: float = 10.0, batches: Any = ((1, 2), (3, 4)), **others: Any) -> dict[str, Any]:
    return {
        "status": "done", "best": {"map50_95": score, "map50": score + 0.2, "classes": {"cat": score + 0.1}},
        "last": {"map50_95": score - 0.1}, "epochs": 10, "train_s": 99.0, "cost_s": cost_s, "start": "a",
        "batches": [list(b) for b in batches], "parameters": 7, "device": "cpu", **others,
    }  # fmt: skip


def trial(method: str, seed: int, data: str) -> Trial:
    return Trial(f"{data}/m/{method}-s{seed}", data, "m", method, seed, False, {}, {})


def rows(scores: dict[str, list[float]], data: str = "d", **others: Any) -> list[dict[str, Any]]:
    """Rows of methods by their scores at seeds 0, 1, ...; a score of -1 is a failure."""
    own = [trial(m, s, data) for m, found in scores.items() for s in range(len(found))]
    results = {
        c.name: {"status": "failed", "reason": "broke"}
        if scores[c.method][c.seed] < 0
        else done(scores[c.method][c.seed], 20.0 if c.method == "mkd" else 10.0, **others.get(c.method, {}))
        for c in own
    }
    return findings.comparison_rows(own, results, ["plain", "native"])


def test_a_row_is_compared_seed_by_seed() -> None:
    plain, mkd = rows({"plain": [0.30, 0.40, 0.50], "mkd": [0.32, 0.41, 0.53]})
    change = mkd["against"]["plain"]["map50_95"]
    assert (change["mean"], change["seeds"]) == (0.02, 3)
    assert change == mkd["classes"]["cat"]["change"]
    assert mkd["map50_95"]["mean"] == 0.42
    assert mkd["last_map50_95"]["mean"] == 0.32
    assert mkd["cost"] == 2.0
    assert plain["against"] == {}
    assert plain["cost"] == 1.0
    assert findings.NMS_FREE not in mkd  # these students have one head


def dual(nms_free: float) -> dict[str, Any]:
    """The scores of a student with two heads."""
    return {"map50_95": 0.4, "map50": 0.6, "classes": {}, "nms_free": {"map50_95": nms_free, "map50": 0.5}}


def two_heads(data: str) -> list[dict[str, Any]]:
    """Methods that are equal through NMS and differ by 0.1 and 0.2 without."""
    scores = {("plain", 0): 0.2, ("plain", 1): 0.3, ("mkd", 0): 0.3, ("mkd", 1): 0.5}
    own = [trial(m, s, data) for m, s in scores]
    return findings.comparison_rows(
        own, {c.name: done(0.0, best=dual(scores[c.method, c.seed])) for c in own}, ["plain"]
    )


def test_accuracy_without_nms_is_a_separate_figure() -> None:
    found = two_heads("one")
    plain, mkd = found
    assert (plain["map50_95"]["mean"], plain[findings.NMS_FREE]["mean"]) == (0.4, 0.25)
    assert mkd[findings.NMS_FREE]["by_seed"] == {0: 0.3, 1: 0.5}
    assert mkd["against"]["plain"][findings.NMS_FREE]["mean"] == 0.15
    assert mkd["against"]["plain"]["map50_95"]["mean"] == 0.0
    plain, mkd = findings.mean_rows(found + two_heads("two"), ["plain"])
    assert mkd[findings.NMS_FREE] == 0.4
    assert mkd["against"]["plain"][findings.NMS_FREE]["mean"] == 0.15
    mixed = findings.mean_rows(found + rows({"plain": [0.1, 0.1], "mkd": [0.2, 0.2]}, "two"), ["plain"])
    assert findings.NMS_FREE not in mixed[1]  # on one of two sets only
    assert set(mixed[1]["against"]["plain"]) == {"map50_95"}
    older = [
        row if row["method"] == "mkd" else rows({"plain": [0.1, 0.1]}, data)[0]
        for data in ("one", "two")
        for row in two_heads(data)
    ]
    found = findings.mean_rows(older, ["plain"])[1]["against"]["plain"]
    assert set(found) == {"map50_95"}  # plain's other head was not scored


def test_accuracy_without_nms_has_a_table_and_a_panel(drawn: list[Any]) -> None:
    found = document(THREE, rows=two_heads("one"))
    for text in (tables.comparison_text(found), tables.comparison_page(found)):
        lines = [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]
        begun = lines.index("without NMS mAP50-95 vs plain [95 %] vs native [95 %]")
        assert "plain 0.250 ± 0.071" in lines[begun:]
        assert any(line.startswith("mkd 0.400 ± 0.141 +0.150 [") for line in lines[begun:])
    assert "without NMS" not in tables.comparison_text(document(THREE))
    plots.draw_differences(found, Path("d.png"))
    titles = [axes.get_title("left") for axes in drawn[0].axes if axes.get_visible()]
    assert titles == ["m on one: mAP50-95 minus plain's", "m on one: mAP50-95 without NMS minus plain's"]


@pytest.mark.parametrize(("figure", "what"), [("mask_map50_95", "masks"), ("pose_map50_95", "keypoints")])
def test_masks_and_keypoints_are_compared_apart_from_boxes(figure: str, what: str, drawn: list[Any]) -> None:
    own = [trial(m, s, "one") for m in ("plain", "mkd") for s in (0, 1)]
    scores = [0.1, 0.2, 0.15, 0.27]  # differences 0.05 and 0.07
    best = [{"map50_95": 0.4, "map50": 0.6, "classes": {}, figure: score} for score in scores]
    results = {c.name: done(0.0, best=b) for c, b in zip(own, best, strict=True)}
    found = document(THREE, rows=findings.comparison_rows(own, results, ["plain"]))
    plain, mkd = found["rows"]
    assert (plain[figure]["mean"], mkd[figure]["by_seed"]) == (0.15, {0: 0.15, 1: 0.27})
    assert mkd["against"]["plain"][figure]["mean"] == 0.06
    assert mkd["against"]["plain"]["map50_95"]["mean"] == 0.0
    for text in (tables.comparison_text(found), tables.comparison_page(found)):
        lines = [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]
        assert any(
            line.startswith("mkd 0.210 ± 0.085 +0.060 [")
            for line in lines[lines.index(f"{what} mAP50-95 vs plain [95 %] vs native [95 %]") :]
        )
    plots.draw_differences(found, Path("d.png"))
    titles = [axes.get_title("left") for axes in drawn[0].axes if axes.get_visible()]
    assert titles == ["m on one: mAP50-95 minus plain's", f"m on one: mAP50-95 of {what} minus plain's"]


def test_a_failed_trial_is_listed_and_its_pair_is_left_out() -> None:
    _, mkd = rows({"plain": [0.3, 0.4], "mkd": [0.4, -1]})
    assert mkd["failed"] == {1: "broke"}
    assert mkd["against"]["plain"]["map50_95"]["verdict"] == "one seed, no interval"
    assert rows({"plain": [0.3], "mkd": [-1]})[1] == {
        **{"data": "d", "student": "m", "method": "mkd", "seeds": []},
        "failed": {0: "broke"},
    }


def test_the_mean_over_sets_is_of_the_differences_of_a_seed() -> None:
    one = rows({"plain": [0.1, 0.1], "mkd": [0.2, 0.3]}, "one")
    two = rows({"plain": [0.5, 0.5], "mkd": [0.5, 0.4]}, "two")
    assert findings.mean_rows(one, ["plain"]) == []
    plain, mkd = findings.mean_rows(one + two, ["plain"])
    assert plain["map50_95"] == 0.3
    # seed 0: (0.1 + 0.0) / 2, seed 1: (0.2 - 0.1) / 2
    assert mkd["against"]["plain"]["map50_95"] == {
        **{"mean": 0.05, "low": 0.05, "high": 0.05, "seeds": 2, "verdict": "better"}
    }


def test_a_method_without_a_result_on_one_set_has_no_mean() -> None:
    found = rows({"plain": [0.1], "mkd": [0.2]}, "one") + rows({"plain": [0.5], "mkd": [-1]}, "two")
    assert [r["method"] for r in findings.mean_rows(found, ["plain"])] == ["plain"]


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({}, "mkd: for each seed the same initial weights and the same batches as plain, to the pixel."),
        ({"start": "b"}, "mkd: other initial weights than plain."),
        ({"batches": ((1, 2), (9, 9))}, "mkd: other images or another order than plain in 1 of 2 epochs."),
        ({"batches": ((1, 9), (3, 9))}, "mkd: plain's images in plain's order, but augmented differently in 2 of 2"),
    ],
)
def test_notes_state_whether_inputs_equal_those_of_plain(changed: dict[str, Any], note: str) -> None:
    assert notes.input_notes(rows({"plain": [0.3], "mkd": [0.3]}, mkd=changed))[0].startswith(note)


def test_methods_with_equal_inputs_share_one_note() -> None:
    other = {"batches": ((1, 9), (3, 9))}
    found = rows({"plain": [0.3], "a": [0.3], "b": [0.3], "c": [0.3]}, a=other, c=other)
    assert [note.split(":")[0] for note in notes.input_notes(found)] == ["a, c", "b"]


def test_longer_has_its_own_epochs_and_is_not_compared_with_plains_batches() -> None:
    assert notes.input_notes(rows({"plain": [0.3], "longer": [0.3]}, longer={"batches": ((9, 9),)})) == []


def document(scores: dict[str, list[float]], *sets: str, **others: Any) -> dict[str, Any]:
    found = [row for data in sets or ("d",) for row in rows(scores, data)]
    whole = {
        "command": "yolo-mkd compare", "references": ["plain", "native"], "live": {}, "replayed": [],
        "rows": found, "together": 1, "latency": [],
        "mean": findings.mean_rows(found, ["plain"]), "seeds": list(range(len(scores["plain"]))), "devices": ["cpu"],
        "versions": {"torch": "2"}, "machine": {"processor": "p", "cores": 2},
        **others,
    }  # fmt: skip
    return {**whole, "notes": notes.report_notes(whole)}


def test_text_and_page_contain_the_differences_and_verdicts() -> None:
    found = document(THREE)
    for text in (tables.comparison_text(found), tables.comparison_page(found)):
        assert "+0.020 [+0.018, +0.022]" in text
        assert "mkd: better than plain, not distinguishable from native" in text
        assert "native: not distinguishable from plain" in text
        assert "+0.020*" in text
        assert "paired seeds" in text


def test_one_seed_gives_no_verdict_and_a_note() -> None:
    text = tables.comparison_text(document({"plain": [0.3], "mkd": [0.4]}))
    assert "better" not in text
    assert "One seed: there is no interval, and no difference here is evidence." in text
    assert "[+" not in text


def test_a_failure_is_in_the_table_and_in_the_notes() -> None:
    text = tables.comparison_text(document({"plain": [0.3], "mkd": [-1]}))
    assert "FAILED: d m mkd seed 0: broke" in text
    assert any(line.split()[:3] == ["mkd", "0", "FAILED"] for line in text.splitlines())


def test_notes_list_what_distorts_the_costs() -> None:
    bent = document(THREE, together=2, replayed=["recorded"], live={"mkd": "guidance needs features"})["notes"]
    assert any(note.startswith("2 trials ran at the same time") for note in bent)
    assert any(note.startswith("recorded: trained from a cache of the teacher's outputs.") for note in bent)
    assert "mkd runs the teacher in each step instead of reading its cache: guidance needs features." in bent
    assert len(document(THREE)["notes"]) == len(bent) - 3


def test_a_note_warns_of_students_that_learned_nothing() -> None:
    assert any("learned enough" in note for note in document({"plain": [0.0], "mkd": [0.001]})["notes"])
    assert not any("learned enough" in note for note in document({"plain": [0.2], "mkd": [0.3]})["notes"])


THREE = {"plain": [0.30, 0.40, 0.50], "native": [0.2, 0.4, 0.6], "mkd": [0.319, 0.42, 0.521]}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    figures: list[Any] = []
    monkeypatch.setattr(plots.plotting, "save", lambda figure, path: figures.append(figure))
    return figures


def test_the_plot_of_differences_shows_the_intervals_of_the_table(drawn: list[Any]) -> None:
    plots.draw_differences(document(THREE, "one", "two"), Path("d.png"))
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == [
        *("mean of 2: mAP50-95 minus plain's", "m on one: mAP50-95 minus plain's", "m on one: mAP50-95 minus native's"),
        *("m on two: mAP50-95 minus plain's", "m on two: mAP50-95 minus native's"),
    ]
    interval, mean = panels[1].lines[:2]  # of mkd, the lowest
    assert [t.get_text() for t in panels[1].get_yticklabels()] == ["mkd", "native"]
    assert list(interval.get_xdata()) == [0.01752, 0.02248]
    assert list(mean.get_xdata()) == [0.02]
    assert panels[1].texts[0].get_text() == "+0.020 [+0.018, +0.022]  better"


def test_the_plot_of_cost_has_a_labelled_point_for_each_method(drawn: list[Any]) -> None:
    plots.draw_accuracy_cost(document(THREE), Path("c.png"))
    assert sorted(t.get_text() for t in drawn[0].axes[0].texts) == ["mkd  0.420", "native  0.400", "plain  0.400"]
    points = [tuple(line.get_xydata()[0]) for line in drawn[0].axes[0].lines if line.get_marker() in {"o", "s", "D"}]
    assert points == [(1.0, 0.4), (1.0, 0.4), (2.0, 0.42)]


def test_a_changed_method_has_the_marker_of_its_base_and_a_shortened_label(drawn: list[Any]) -> None:
    folders = "mkd:assistant=" + "folder/" * 9 + "best.pt"
    scores = {"plain": [0.2, 0.3], "plain:epochs=9": [0.3, 0.4], folders: [0.4, 0.5]}
    plots.draw_accuracy_cost(document(scores), Path("c.png"))
    markers = [line.get_marker() for line in drawn[0].axes[0].lines if line.get_marker() in {"o", "s", "D"}]
    assert markers == ["o", "o", "D"]
    _, plain, ours = (t.get_text() for t in drawn[0].axes[0].texts)
    assert (plain, ours) == ("plain:epochs=9  0.350", f"{tables.shorten(folders)}  0.450")
    assert len(tables.shorten(folders)) <= 40


def test_the_plot_of_latency_has_a_panel_for_each_data_set_and_is_left_out_without_times(drawn: list[Any]) -> None:
    times = [{"data": d, "student": "m", "p50_ms": 4.0, "head": "one2many", "threads": 1} for d in ("one", "two")]
    plots.draw_accuracy_latency(document(THREE, "one", "two"), Path("l.png"))
    plots.draw_accuracy_latency(document(THREE, "one", "two", latency=times), Path("l.png"))
    assert len(drawn) == 1
    assert [axes.get_title("left") for axes in drawn[0].axes] == ["one", "two"]
    assert [t.get_text() for t in drawn[0].axes[0].get_legend().get_texts()] == ["plain", "native", "mkd"]


@pytest.mark.parametrize(("head", "reached"), [("one2many", 0.4), ("one2one", 0.25)])
def test_a_latency_is_plotted_against_the_accuracy_of_the_timed_head(
    drawn: list[Any], head: str, reached: float
) -> None:
    times = [{"data": "one", "student": "m", "p50_ms": 4.0, "head": head, "threads": 1}]
    plots.draw_accuracy_latency(document(THREE, rows=two_heads("one"), latency=times), Path("l.png"))
    plain = next(line for line in drawn[0].axes[0].lines if line.get_label() == "plain")
    assert list(plain.get_ydata()) == [reached]


def test_a_head_without_accuracy_has_no_plot_of_latency(drawn: list[Any]) -> None:
    times = [{"data": "d", "student": "m", "p50_ms": 4.0, "head": "one2one", "threads": 1}]
    plots.draw_accuracy_latency(document(THREE, latency=times), Path("l.png"))
    assert drawn == []


def test_a_student_is_exported_and_timed_once_for_all_its_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[str] = []

    def export(weights: Path, imgsz: int, data: str) -> Path:
        exported.append(weights.name)
        if data == "two.yaml":
            raise Failed("no match")
        return weights

    monkeypatch.setattr(latency, "export", export)
    segments = {
        "segments": {"end_to_end": {"p50_ms": 2.5, "p90_ms": 3.0}},
        "drift": {"stable": False},
        "head": "one2one",
    }
    monkeypatch.setattr(latency, "time", lambda file, data, duration, threads: segments)
    own = [
        Trial(f"{m}-{d}", d, "m", m, 0, False, {}, {"imgsz": 64, "data": f"{d}.yaml"})
        for d in ("one", "two")
        for m in "abc"
    ]
    results = {c.name: done(0.5, weights=f"{c.name}.pt") for c in own}
    results["a-one"] = {"status": "failed", "reason": "broke"}
    found = latency.measure_latency(own, results)
    assert exported == ["b-one.pt", "a-two.pt"]
    assert found[0] == {
        **{
            "data": "one",
            "student": "m",
            "p50_ms": 2.5,
            "p90_ms": 3.0,
            "head": "one2one",
            "threads": 1,
            "stable": False,
        }
    }
    assert found[1] == {"data": "two", "student": "m", "why_not": "no match"}
    lines = tables.latency_lines({"latency": found})
    assert lines[0].startswith("m on one: 2.50 ms")
    assert "NOT STABLE" in lines[0]
    assert lines[1] == "m on two: not exported: no match"
