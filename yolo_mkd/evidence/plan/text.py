"""A plan as text for people: the chain, what each teacher can teach, accuracy, cost, warnings, and the answer."""

from __future__ import annotations

import textwrap
from typing import Any

from yolo_mkd.evidence.plan.advice import hours

WIDTH = 100
MB = 2**20

Figures = dict[str, Any]


def text(figures: Figures) -> str:
    """All of a plan.

    Args:
        figures: as `planning.plan` returns them.
    """
    parts = [chain(figures)]
    parts += [lesson(figures, stage, hop) for stage in figures["stages"] for hop in stage["hops"]]
    parts += [accuracy(figures), time(figures), space(figures)]
    if figures["warnings"]:
        parts.append(["Warnings", *(line for w in figures["warnings"] for line in wrapped(w["text"], "  ! "))])
    parts.append(wrapped(figures["answer"], "In short: "))
    return "\n\n".join("\n".join(lines) for lines in parts)


def wrapped(line: str, head: str = "  ") -> list[str]:
    """A long line in several, with a hanging indent."""
    return textwrap.wrap(line, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def table(heads: str, rows: list[list[str]]) -> list[str]:
    """Rows under their headings.

    Args:
        heads: the headings with `|` between them; `<` before one aligns its column to the left.
        rows: the cells; a row may end early.
    """
    names = heads.split("|")
    columns = [[n.removeprefix("<"), *(r[i] for r in rows if i < len(r))] for i, n in enumerate(names)]
    widths = [max(map(len, column)) for column in columns]

    def line(cells: list[str]) -> str:
        placed = [
            c.ljust(w) if n.startswith("<") else c.rjust(w) for c, w, n in zip(cells, widths, names, strict=False)
        ]
        return f"  {'  '.join(placed)}".rstrip()

    return [line([n.removeprefix("<") for n in names]), *map(line, rows)]


def chain(figures: Figures) -> list[str]:
    """The models, their sizes and who teaches whom."""
    rows = []
    for hop in [h for h in figures["stages"][-1]["hops"] if h["known"]]:
        rows.append([hop["teacher"], hop["file"], *size(hop), "-", "-", "trained already"])
    for s in figures["stages"]:
        ratios = " or ".join(f"{h['teacher']} ({h['ratio']:.1f} x)" for h in s["hops"])
        rows.append([s["name"], s["model"], *size(s), str(s["epochs"]), str(s["updates"]), ratios or "the labels only"])
    images = f"{figures['train_images']} train and {figures['val_images']} val images of {figures['classes']} classes"
    return [
        f"Plan for {images} at {figures['imgsz']} px, batch {figures['batch']}. Nothing was trained.",
        *table("<stage|<model|parameters|GFLOPs|epochs|updates|<learns from", rows),
        *wrapped(figures["assistant"]),
    ]


def size(model: Figures) -> list[str]:
    """A model's parameters and GFLOPs."""
    return [f"{model['parameters'] / 1e6:.2f} M", f"{model['gflops']:.2f}"]


def lesson(figures: Figures, stage: Figures, hop: Figures) -> list[str]:
    """What one teacher can teach: terms with their gradients, and the layers that they read."""
    asked = "share" if figures["calibrate"] else "gain"
    measured = [t for t in hop["terms"] if "share" in t]
    rows = [[t["term"], f"{t['asked']:.3g}", "yes" if t["acts"] else "no", *pull(t)] for t in hop["terms"]]
    lines = [f"What the {hop['teacher']} can teach the {stage['name']}"]
    lines += table(
        f"<term|asked {asked}|<acts|gain|gives share|<cosine with task" if measured else f"<term|asked {asked}|<acts",
        rows,
    )
    lines += [f"  {t['term']} does not act: {t['why_not']}" for t in hop["terms"] if not t["acts"]]
    if measured:
        many = f"{len(measured[0]['share']['values'])} batches of {stage['cost']['probe']['batch']} images"
        start = "" if stage["trained"] else f", at the start: the {stage['name']} is untrained"
        lines += wrapped(f"Gradients, mean +- spread over {many}{start}. Share: of the detection loss's gradient.")
        if figures["calibrate"]:
            lines += wrapped(
                "Gain: nominal, with the share it gives -> as training would set it to give the share asked."
            )
    if not hop["known"]:
        lines += wrapped(f"The {hop['teacher']} is not trained yet, so how its terms pull cannot be known.")
    at = [[role, place(pair["student"]), place(pair["teacher"])] for role, pair in hop["layers"].items()]
    lines += table(f"<layers|<{stage['name']}: index, shape|<{hop['teacher']}: index, shape", at) if at else []
    return lines + [line for note in hop["notes"] for line in wrapped(note)]


def pull(term: Figures) -> list[str]:
    """A term's gains, share and cosine, where its teacher is known."""
    if "share" not in term:
        return []
    share, cosine = term["share"], term["cosine"]
    gains = f"{term['nominal_gain']:.3g}" + (f" -> {term['gain']:.3g}" if term["gain"] != term["nominal_gain"] else "")
    limit = " (at its limit)" if term["at_limit"] else ""
    return [gains + limit, f"{share['mean']:.2g} +- {share['sd']:.1g}", f"{cosine['mean']:+.2f} +- {cosine['sd']:.2f}"]


def place(tap: Figures) -> str:
    """A layer's index and its output's shape."""
    return f"{tap['layer']}: {tap['channels']}x{tap['rows']}x{tap['columns']}"


def accuracy(figures: Figures) -> list[str]:
    """What the trained models reach on this data now."""
    if not figures["accuracy"]:
        return ["Accuracy now: no model of this chain is trained yet"]
    rows = []
    for name, score in figures["accuracy"].items():
        known = len(score["classes"])
        part = "" if known == figures["classes"] else f"on the {known} of {figures['classes']} classes that it knows"
        told = [f"{score[k]:.3f}" if k in score else "-" for k in ("map50_95", "map50")]
        rows.append([name, *told, score.get("why_not", part)])
    rows += [
        [s["name"], "-", "-", "not trained yet"] for s in figures["stages"] if s["name"] not in figures["accuracy"]
    ]
    head = f"Accuracy now, on {figures['examined_images']} of {figures['val_images']} val images"
    return [head, *table("<model|mAP50-95|mAP50|<", rows)]


def time(figures: Figures) -> list[str]:
    """The time of a step and of the run."""
    rows = []
    for s in figures["stages"]:
        cost, probe = s["cost"], s["cost"]["probe"]
        parts, scale = probe["taught"] or probe["plain"], figures["batch"] / probe["batch"]
        split = [f"{parts[k] * scale:.2g}" if k in parts else "-" for k in PARTS]
        steps = [f"{cost['step_plain_s']:.3g}", f"{cost['step_taught_s']:.3g}", f"{cost['extra_percent']:+.0f} %"]
        rows.append([s["name"], *steps, *split, hours(cost["hours_plain"]), hours(cost["hours"])])
    probe, last = figures["stages"][-1]["cost"]["probe"], figures["stages"][-1]
    heads = "<stage|plain|taught|extra|student|its loss|teacher|terms|backward|plain run|this run"
    lines = [
        f"Time on {figures['device']} [s a step of {figures['batch']} images, measured with {probe['batch']}]",
        *table(heads, rows),
    ]
    if last["hops"]:
        lines += wrapped(f"The student is taught for {last['knowledge_epochs']} of {last['epochs']} epochs.")
    if last["joined"] > 1:
        lines += wrapped(
            f"A taught step has {last['joined'] - 1:g} unlabelled images for each labelled one; steps with them were "
            "not measured but scaled, as was their memory."
        )
    for s in figures["stages"]:
        for kept in s["record"]:
            lines += wrapped(
                f"Recorded: the {s['name']}'s teacher is asked in {kept['views']} epochs and replayed in the others; "
                f"its record takes {kept['bytes'] / MB:.0f} MB, {kept['bytes_per_view'] / 1024:.0f} KB a view. A run "
                f"that finds it complete takes {hours(s['cost']['hours_replayed'])}."
            )
    return [*lines, "  Plain run and this run include loading, updates and validation."]


PARTS = ("student_s", "loss_s", "teacher_s", "terms_s", "backward_s")
HELD = ("parameters", "gradients", "optimizer", "average", "activations_taught", "teachers", "total_taught")


def space(figures: Figures) -> list[str]:
    """Memory and disk."""
    rows = []
    for s in figures["stages"]:
        held = [f"{s['memory'][k] / MB:.0f}" for k in HELD]
        peak = s["memory"].get("peak_taught")
        rows.append([s["name"], *held, "-" if peak is None else f"{peak / MB:.0f}", f"{s['disk']['kept'] / MB:.1f}"])
    heads = "<stage|weights|gradients|optimizer|average|activations|teachers|all|peak on GPU|disk"
    return [
        f"Memory and disk in MB, batch {figures['batch']}",
        *table(heads, rows),
        "  Counted from tensors; what lives only for a moment comes on top, but is in a GPU's peak.",
    ]
