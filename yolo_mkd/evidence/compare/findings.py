"""What the cells' results say: a row for each data set, student and method, and the mean over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from yolo_mkd.evidence.compare.statistics import CONFIDENCE, DIGITS, interval, paired
from yolo_mkd.evidence.compare.trials import Trial

NMS_FREE = "nms_free_map50_95"
FIGURES = {  # of a result, by what the tables call them; None where the student has no such head
    "map50_95": lambda r: r["best"]["map50_95"],
    "map50": lambda r: r["best"]["map50"],
    "last_map50_95": lambda r: r["last"]["map50_95"],
    NMS_FREE: lambda r: r["best"].get("nms_free", {}).get("map50_95"),
}
ALIKE = "in each seed the same start and the same batches as plain, to the pixel"
LEARNED = 0.01  # mAP50-95 below which a student has learned nothing
Results = dict[str, dict[str, Any]]


def rows_of(cells: Sequence[Trial], results: Results, references: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each data set, student and method, in the order of the cells.

    Args:
        cells: all that were to run.
        results: what became of each, by name.
        references: methods that the others are compared with, seed by seed.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for cell in cells:
        methods = groups.setdefault((cell.data, cell.student), {})
        methods.setdefault(cell.method, {})[cell.seed] = results[cell.name]
    return [
        {"data": data, "student": student, "method": method, **row(method, methods, references)}
        for (data, student), methods in groups.items()
        for method in methods
    ]


def row(method: str, methods: dict[str, dict[int, dict[str, Any]]], references: Sequence[str]) -> dict[str, Any]:
    """The figures of one method among those of its data set and student."""
    done = {name: {s: r for s, r in runs.items() if r["status"] == "done"} for name, runs in methods.items()}
    own, plain = done[method], done.get("plain", {})
    found: dict[str, Any] = {
        "seeds": sorted(own),
        "failed": {s: r["reason"] for s, r in methods[method].items() if r["status"] != "done"},
    }
    if not own:
        return found
    for name, figure in FIGURES.items():
        if values := by_seed(own, figure):
            found[name] = {
                "mean": round(fmean(values.values()), DIGITS),
                "deviation": round(stdev(values.values()), DIGITS) if len(values) > 1 else None,
                "by_seed": values,
            }
    ratios = [r["cost_s"] / plain[s]["cost_s"] for s, r in own.items() if s in plain]
    classes = list(dict.fromkeys(c for r in own.values() for c in r["best"]["classes"]))
    return {
        **found,
        "epochs": round(fmean(r["epochs"] for r in own.values()), 1),
        "train_s": round(fmean(r["train_s"] for r in own.values()), 2),
        "cost": round(fmean(ratios), 3) if ratios else None,
        "parameters": next(iter(own.values()))["parameters"],
        "against": {
            other: {
                name: paired(by_seed(own, figure), by_seed(done[other], figure))
                for name, figure in FIGURES.items()
                if name in found
            }
            for other in references
            if other in done and other != method
        },
        "classes": {
            c: {
                "mean": round(fmean(scored(own, c).values()), DIGITS),
                "change": paired(scored(own, c), scored(plain, c)),
            }
            for c in classes
        },
        "same": None
        if method == "plain" or method.startswith("longer")
        else same(own, plain),  # longer plans otherwise
    }


def by_seed(runs: dict[int, dict[str, Any]], figure: Any) -> dict[int, float]:
    """One figure of those runs that have it, by seed."""
    return {s: value for s, r in runs.items() if (value := figure(r)) is not None}


def scored(runs: dict[int, dict[str, Any]], name: str) -> dict[int, float]:
    """A class's mAP50-95 in those runs whose val has it, by seed."""
    return {s: r["best"]["classes"][name] for s, r in runs.items() if name in r["best"]["classes"]}


def same(own: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Whether a method's runs were given what the plain run of their seed was given; None without such a run.

    Returns:
        start: whether all began with the same weights.
        epochs, images, pixels: how many epochs both have, and in how many the batches were of the same images in the
        same order, and of the same pixels.
    """
    pairs = [(r, plain[s]) for s, r in own.items() if s in plain]
    if not pairs:
        return None
    both = [ab for a, b in pairs for ab in zip(a["batches"], b["batches"], strict=False)]
    return {
        "start": all(a["start"] == b["start"] for a, b in pairs),
        "epochs": len(both),
        "images": sum(a[0] == b[0] for a, b in both),
        "pixels": sum(a[1] == b[1] for a, b in both),
    }


def mean_rows(rows: Sequence[dict[str, Any]], references: Sequence[str]) -> list[dict[str, Any]]:
    """The mean over data sets and students, a row a method; none where there is one of each only.

    The differences of a seed are averaged over data sets and students first, and the interval is over the seeds: it
    says what another seed would give on these sets, and nothing about other sets.
    """
    groups = list(dict.fromkeys((r["data"], r["student"]) for r in rows))
    if len(groups) < 2:
        return []
    found = []
    for method in dict.fromkeys(r["method"] for r in rows):
        own = {(r["data"], r["student"]): r for r in rows if r["method"] == method and r["seeds"]}
        if len(own) < len(groups):
            continue  # a mean over fewer sets is not comparable
        costs = [r["cost"] for r in own.values() if r["cost"] is not None]
        figures = [name for name in ("map50_95", NMS_FREE) if all(name in r for r in own.values())]
        against = {}
        for other in references:
            base = {(r["data"], r["student"]): r for r in rows if r["method"] == other and r["seeds"]}
            if other == method or len(base) < len(groups):
                continue
            changes = {name: mean_change(own, base, name) for name in figures if all(name in r for r in base.values())}
            if changes["map50_95"]:
                against[other] = changes
        found.append(
            {
                "method": method,
                **{name: round(fmean(r[name]["mean"] for r in own.values()), DIGITS) for name in figures},
                "cost": round(fmean(costs), 3) if costs else None,
                "against": against,
            }
        )
    return found


def mean_change(own: dict[Any, dict[str, Any]], base: dict[Any, dict[str, Any]], figure: str) -> dict[str, Any] | None:
    """A seed's differences in a figure averaged over data sets and students, with the interval over the seeds."""
    pairs = [(own[group][figure]["by_seed"], base[group][figure]["by_seed"]) for group in own]
    gained = [{s: v - theirs[s] for s, v in ours.items() if s in theirs} for ours, theirs in pairs]
    seeds = set.intersection(*map(set, gained))
    return interval([fmean(g[s] for g in gained) for s in sorted(seeds)])


def notes(document: dict[str, Any]) -> list[str]:
    """How to read the figures, and what would mislead if it were left out; a sentence or two each."""
    rows, seeds = document["rows"], document["seeds"]
    said = [
        "mAP50-95 is that of best.pt, the checkpoint that Ultralytics picked by its own validation on the same images; "
        "`last` is that of the last epoch's. Both are validated alike: rect=False, the rest Ultralytics' defaults, so "
        "through NMS."
    ]
    if any(NMS_FREE in r for r in rows):
        said.append("Without NMS is the same best.pt through its one2one head, which `yolo-mkd export` prefers.")
    if len(seeds) == 1:
        said.append("One seed: there is no interval, and no difference here is evidence.")
    else:
        count = sum(len(r.get("against", {})) for r in rows)
        many = f" Of {count} such intervals about {count * (1 - CONFIDENCE):.1f} miss by chance." if count > 5 else ""
        said.append(
            f"A difference is the mean over {len(seeds)} paired seeds with its 95 % t interval; where that holds 0 the "
            f"methods are not distinguishable.{many}"
        )
    said.append(
        "Cost is that of the training loop, without validation and set-up, as a multiple of plain's; of a chain, all "
        "its stages. Training the teacher is not counted. On a processor it is taken in processor time, which other "
        "programs do not lengthen, on a GPU by the clock; `train s` is by the clock."
    )
    if document["replayed"]:
        who = ", ".join(document["replayed"])
        said.append(
            f"{who}: a record of the teacher, replayed. The cell that came first filled it, which its cost holds."
        )
    if document["together"] > 1:
        said.append(f"{document['together']} cells ran at a time and slowed one another, so costs are rough.")
    if any(r["seeds"] for r in rows) and max(r["map50_95"]["mean"] for r in rows if r["seeds"]) < LEARNED:
        said.append("No student has learned anything worth comparing: give more epochs=, or a trained .pt as model=.")
    said += pairing(rows)
    said += [f"{method} asks the teacher itself, not its record: {why}." for method, why in document["live"].items()]
    for r in rows:
        for seed, why in r["failed"].items():
            said.append(f"FAILED: {r['data']} {r['student']} {r['method']} seed {seed}: {why}")
    return said


def pairing(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each method was given beside what plain was given: start, images, order, pixels."""
    same: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        if r["seeds"] and r["same"]:
            same.setdefault(r["method"], []).append(r["same"])
    said: dict[str, list[str]] = {}
    for method, found in same.items():
        said.setdefault(unlike(found) or ALIKE, []).append(method)
    return [f"{', '.join(methods)}: {what}." for what, methods in said.items()]


def unlike(same: Sequence[dict[str, Any]]) -> str:
    """How the runs of a method differed from plain's in what they were given; nothing if they did not."""
    epochs, images, pixels = (sum(s[k] for s in same) for k in ("epochs", "images", "pixels"))
    said = [] if all(s["start"] for s in same) else ["started from other weights than plain"]
    if images < epochs:
        said.append(f"saw other images or another order than plain in {epochs - images} of {epochs} epochs")
    elif pixels < epochs:
        said.append(f"saw plain's images in plain's order, augmented otherwise in {epochs - pixels} of {epochs} epochs")
    return " and ".join(said)
