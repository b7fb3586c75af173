"""A plan as text: the chain, the terms of each teacher, accuracy, time, memory, warnings, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from yolo_mkd import report
from yolo_mkd.evidence.plan.advice import duration_text
from yolo_mkd.evidence.plan.schema import HopFigures, PlanFigures, StageFigures, TermFigures

WIDTH = 100
MB = 2**20
STEP_PARTS = ("student_s", "loss_s", "teacher_s", "terms_s", "backward_s")
MEMORY_PARTS = ("parameters", "gradients", "optimizer", "average", "activations_taught", "teachers", "total_taught")


def text(figures: PlanFigures) -> str:
    """The whole plan for a terminal.

    Args:
        figures: as `plan` returns them.
    """
    blocks = [chain_lines(figures)]
    blocks += [hop_lines(figures, stage, hop) for stage in figures["stages"] for hop in stage["hops"]]
    blocks += [accuracy_lines(figures), time_lines(figures), memory_lines(figures)]
    if figures["warnings"]:
        blocks.append(["Warnings", *(line for w in figures["warnings"] for line in wrap_line(w["text"], "  ! "))])
    blocks.append(wrap_line(figures["answer"], "In short: "))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def wrap_line(line: str, head: str = "  ") -> list[str]:
    """A long line as several, with a hanging indent below `head`."""
    return textwrap.wrap(line, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def table_lines(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> list[str]:
    """The lines of an indented table."""
    return textwrap.indent(report.table(rows, headers), "  ").splitlines()


def chain_lines(figures: PlanFigures) -> list[str]:
    """The models of the chain, their sizes, and which is distilled from which."""
    rows, notes = [], []
    for hop in [h for h in figures["stages"][-1]["hops"] if h["known"]]:
        rows.append([hop["teacher"], hop["file"] or "", *size_cells(hop), "-", "-"])
        notes.append(f"The {hop['teacher']} is trained already.")
    for s in figures["stages"]:
        rows.append([s["name"], s["model"], *size_cells(s), str(s["epochs"]), str(s["updates"])])
        teachers = " or ".join(f"the {h['teacher']} ({h['ratio']:.1f} x its parameters)" for h in s["hops"])
        how = f"distilled from {teachers}" if teachers else "trained on the labels only"
        notes.append(f"The {s['name']} is {how}.")
        if s["start"] != "plain":
            notes.append(f"It starts with the teacher's weights in {s['taken']:.1%} of its own (start={s['start']}).")
    images = f"{figures['train_images']} train and {figures['val_images']} val images of {figures['classes']} classes"
    return [
        f"Plan for {images} at {figures['imgsz']} px, batch {figures['batch']}. Nothing was trained.",
        *table_lines(rows, ["stage", "model", "parameters", "GFLOPs", "epochs", "updates"]),
        *wrap_line(" ".join(notes)),
        *wrap_line(figures["assistant"]),
    ]


def size_cells(model: StageFigures | HopFigures) -> list[str]:
    """A model's parameters and GFLOPs."""
    if not model["parameters"]:
        return ["-", "-"]  # boxes
    return [f"{model['parameters'] / 1e6:.2f} M", f"{model['gflops']:.2f}"]


def hop_lines(figures: PlanFigures, stage: StageFigures, hop: HopFigures) -> list[str]:
    """The terms between one teacher and one student with their gradients, and the layers that they compare."""
    lines = [f"Terms between the {hop['teacher']} and the {stage['name']}", *term_lines(figures, stage, hop)]
    if not hop["known"]:
        lines += wrap_line(
            f"The {hop['teacher']} is not trained yet, so the gradients of its terms cannot be measured."
        )
    if hop["layers"]:
        rows = [
            [role, layer_text(pair["student"]), layer_text(pair["teacher"])] for role, pair in hop["layers"].items()
        ]
        headers = ["layers", f"{stage['name']}: index, shape", f"{hop['teacher']}: index, shape"]
        lines += table_lines(rows, headers)
    return lines + [line for note in hop["notes"] for line in wrap_line(note)]


def term_lines(figures: PlanFigures, stage: StageFigures, hop: HopFigures) -> list[str]:
    """The table of the terms between one teacher and one student, and what its columns mean."""
    weight = "share" if figures["calibrate"] else "gain"
    measured = [t for t in hop["terms"] if "share" in t]
    headers = ["term", f"requested {weight}", "acts"]
    rows = [[t["term"], f"{t['asked']:.3g}", "yes" if t["acts"] else "no"] for t in hop["terms"]]
    if measured:
        headers += ["gain", "share", "cosine with task"]
        rows = [[*row, *gradient_cells(t)] for row, t in zip(rows, hop["terms"], strict=True)]
    lines = table_lines(rows, headers)
    lines += [f"  {t['term']} does not act: {t['why_not']}" for t in hop["terms"] if not t["acts"]]
    if measured:
        batches = f"{len(measured[0]['share']['values'])} batches of {stage['cost']['probe']['batch']} images"
        start = "" if stage["trained"] else f", before training: the {stage['name']} is untrained"
        lines += wrap_line(
            f"Share and cosine: of the term's gradient relative to that of the detection loss, mean +- standard "
            f"deviation over {batches}{start}."
        )
        if figures["calibrate"]:
            lines += wrap_line(
                "Gain: nominal, which gives this share -> as training would set it to give the requested share."
            )
    return lines


def gradient_cells(term: TermFigures) -> list[str]:
    """A term's gain, share and cosine; empty cells where they were not measured."""
    if "share" not in term:
        return ["", "", ""]
    share, cosine = term["share"], term["cosine"]
    gain = f"{term['nominal_gain']:.3g}" + (f" -> {term['gain']:.3g}" if term["gain"] != term["nominal_gain"] else "")
    limit = " (limit)" if term["at_limit"] else ""
    return [gain + limit, f"{share['mean']:.2g} +- {share['sd']:.1g}", f"{cosine['mean']:+.2f} +- {cosine['sd']:.2f}"]


def layer_text(layer: dict[str, int]) -> str:
    """A layer's index and its output's shape."""
    return f"{layer['layer']}: {layer['channels']}x{layer['rows']}x{layer['columns']}"


def accuracy_lines(figures: PlanFigures) -> list[str]:
    """The accuracy of the trained models on this data."""
    if not figures["accuracy"]:
        return ["Accuracy now: no model of this chain is trained yet"]
    rows = []
    for name, score in figures["accuracy"].items():
        count = len(score["classes"])
        part = "" if count == figures["classes"] else f"on {count} of {figures['classes']} classes, which it has"
        cells = [f"{score[k]:.3f}" if k in score else "-" for k in ("map50_95", "map50")]
        rows.append([name, *cells, score.get("why_not", part)])
    rows += [
        [s["name"], "-", "-", "not trained yet"] for s in figures["stages"] if s["name"] not in figures["accuracy"]
    ]
    head = f"Accuracy now, on {figures['examined_images']} of {figures['val_images']} val images"
    return [head, *table_lines(rows, ["model", "mAP50-95", "mAP50", ""])]


def time_lines(figures: PlanFigures) -> list[str]:
    """The time of a step and of the run."""
    steps, parts = [], []
    for s in figures["stages"]:
        cost, probe = s["cost"], s["cost"]["probe"]
        per_step = [f"{cost['step_plain_s']:.3g}", f"{cost['step_taught_s']:.3g}", f"{cost['extra_percent']:+.0f} %"]
        steps.append([s["name"], *per_step, duration_text(cost["hours_plain"]), duration_text(cost["hours"])])
        seconds, scale = probe["taught"] or probe["plain"], figures["batch"] / probe["batch"]
        parts.append([s["name"], *(f"{seconds[k] * scale:.2g}" if k in seconds else "-" for k in STEP_PARTS)])
    last = figures["stages"][-1]
    lines = [
        f"Time on {figures['device']} [s per step of {figures['batch']} images, measured with "
        f"{last['cost']['probe']['batch']}]",
        *table_lines(steps, ["stage", "plain", "distilled", "extra", "plain run", "this run"]),
        *table_lines(parts, ["parts of a step", "student", "loss", "teacher", "terms", "backward"]),
    ]
    if last["hops"]:
        lines += wrap_line(f"The student is distilled in {last['knowledge_epochs']} of {last['epochs']} epochs.")
    if last["hops"] and last["teacher_every"] > 1:
        lines += wrap_line(
            f"One batch of {last['teacher_every']} is distilled (teacher_every=): extra is for the mean of its steps."
        )
    if last["joined"] > 1:
        lines += wrap_line(
            f"A distilled step has {last['joined'] - 1:g} unlabelled image(s) for each labelled one; time and memory "
            "of such steps were not measured but scaled."
        )
    for s in figures["stages"]:
        for cache in s["record"]:
            lines += wrap_line(
                f"Teacher cache: the {s['name']}'s teacher runs in {cache['views']} epochs, and the others read its "
                f"outputs from the cache of {cache['bytes'] / MB:.0f} MB, {cache['bytes_per_view'] / 1024:.0f} KB a "
                f"view. A run with a complete cache takes {duration_text(s['cost']['hours_replayed'])}."
            )
    return [*lines, "  Plain run and this run include loading, updates and validation."]


def memory_lines(figures: PlanFigures) -> list[str]:
    """Memory and disk."""
    parts, limits = [], []
    for s in figures["stages"]:
        parts.append([s["name"], *(f"{s['memory'][k] / MB:.0f}" for k in MEMORY_PARTS)])
        peak = s["memory"].get("peak_taught")
        limits.append([s["name"], "-" if peak is None else f"{peak / MB:.0f}", f"{s['disk']['kept'] / MB:.1f}"])
    headers = ["memory", "weights", "gradients", "optimizer", "EMA", "activations", "teachers", "total"]
    return [
        f"Memory and disk in MB, batch {figures['batch']}",
        *table_lines(parts, headers),
        "  Counted from tensors; temporary tensors add to this, and are included in the peak on a GPU.",
        *table_lines(limits, ["", "peak on GPU", "checkpoints on disk"]),
    ]
