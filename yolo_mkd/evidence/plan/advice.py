"""Warnings about a planned training, each with advice, and the verdict: is it likely to help, and at what cost?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from yolo_mkd.chain.assistant import BRIDGE, FAR
from yolo_mkd.evidence.plan.schema import PlanFigures, StageFigures, TermFigures

FEW_UPDATES = 200
BRIEF_UPDATES = 1000  # up to here mosaic to the end cost plain training 0.02 to 0.03 mAP50-95: see RESULTS.md
OF_ANOTHER_TASK = ("neither head", "the student has no")  # what only a head of another kind would have
AGAINST = -0.05  # a cosine that matters, once it is clearly below 0
LEAST_LEAD = 0.01  # mAP50-95 by which a teacher should be better than its student
COSTLY = 1.5  # times a plain run

Found = Iterator[tuple[str, str]]  # the kind of a warning and its text


def warnings(figures: PlanFigures) -> list[dict[str, str]]:
    """The warnings about a training.

    Args:
        figures: of a plan, without warnings and verdict.

    Returns:
        One dict a warning: `what` kind it is, the `stage` and one line of `text` with advice.
    """
    found = [
        {"what": what, "stage": stage["name"], "text": text}
        for stage in figures["stages"]
        for check in CHECKS
        for what, text in check(figures, stage)
    ]
    if figures["batch_is_automatic"]:
        text = f"the batch size is chosen when training starts: these figures are for batch={figures['batch']}"
        found.append({"what": "batch", "stage": "", "text": text})
    return found


def large_teacher(figures: PlanFigures, stage: StageFigures) -> Found:
    """A teacher that is far larger than its student."""
    if stage["hops"]:
        nearest = min(stage["hops"], key=lambda h: h["ratio"])
        if nearest["ratio"] > FAR:
            ratio = f"the {nearest['teacher']} has {nearest['ratio']:.1f} x the parameters of the {stage['name']}"
            yield "ratio", f"{ratio}: {BRIDGE}"


def weak_teacher(figures: PlanFigures, stage: StageFigures) -> Found:
    """A teacher that is not better than its student is now, or that cannot be measured on this data."""
    ours = figures["accuracy"].get(stage["name"], {})
    measured = [h["teacher"] for h in stage["hops"] if h["known"] and h["teacher"] in figures["accuracy"]]
    for name in measured:
        theirs = figures["accuracy"][name]
        score = theirs.get("map50_95", 0.0)
        if "why_not" in theirs:
            yield "teacher_unmeasured", f"the {name} {theirs['why_not']}: train one on this data (teacher_epochs=100)"
        elif score < LEAST_LEAD:
            yield "teacher_no_better", f"the {name} detects next to nothing on this data: train it on this data first"
        elif theirs["classes"] == ours.get("classes") and score - ours.get("map50_95", 0.0) < LEAST_LEAD:
            scores = f"{score:.3f} against {ours['map50_95']:.3f} mAP50-95"
            text = f"the {name} is not better than the {stage['name']} is now ({scores}): use a better teacher"
            yield "teacher_no_better", text


def partial_match(figures: PlanFigures, stage: StageFigures) -> Found:
    """Classes and strides that only the teacher or only the student has."""
    for h in stage["hops"]:
        missing, strides = h["unknown_classes"], h["strides"]
        if 0 < len(missing) < figures["classes"]:  # a teacher without any of them is unmeasured
            names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            lacks = f"the {h['teacher']} lacks {len(missing)} of {figures['classes']} classes ({names})"
            yield "classes", f"{lacks}: give equal classes equal names, or train a teacher on this data"
        if strides["student"] != strides["teacher"]:
            ours, theirs = (" ".join(map(str, strides[k])) or "none" for k in ("student", "teacher"))
            differ = f"strides differ: {stage['name']} {ours}, {h['teacher']} {theirs}"
            yield "strides", f"{differ}: only matching strides are distilled; prefer a teacher with the same strides"


def inactive_terms(figures: PlanFigures, stage: StageFigures) -> Found:
    """Terms that cannot act; those that the user did not name and that need another kind of head are left out."""
    for h in stage["hops"]:
        reasons: dict[str, list[str]] = {}
        for t in h["terms"]:
            if not t["acts"] and (t["term"] in figures["named_terms"] or not t["why_not"].startswith(OF_ANOTHER_TASK)):
                reasons.setdefault(t["why_not"], []).append(t["term"])
        for why, names in reasons.items():
            yield "silent", f"{' '.join(names)} cannot act between the {h['teacher']} and the {stage['name']}: {why}"


def term_gradients(figures: PlanFigures, stage: StageFigures) -> Found:
    """Terms whose gradient opposes the task, is zero or not finite, or cannot have its share with a sensible gain."""
    for h in stage["hops"]:
        for t in (t for t in h["terms"] if "share" in t):
            name, strength = f"{t['term']} (of the {h['teacher']})", t["share"]["mean"]
            if not strength or not math.isfinite(strength):
                yield "dead", f"{name} has no finite gradient on these batches: switch it off ({t['term']}=0)"
            elif t["at_limit"]:
                limit = f"a share of {t['asked']:.3g} needs a gain above the limit of {t['gain']:.3g}"
                yield "limit", f"{name}: {limit}: use a smaller share, or switch it off ({t['term']}=0)"
            if direction(t) < 0 and t["cosine"]["mean"] < AGAINST and not figures["gate"]:
                opposes = f"the gradient of {name} opposes that of the task (cosine {t['cosine']['mean']:.2f})"
                yield "against", f"{opposes}: switch it off ({t['term']}=0), or use gate=true"


def direction(term: TermFigures) -> int:
    """1 for a gradient along that of the task, -1 against it, 0 if the sign is not clear (two standard errors)."""
    cosine = term["cosine"]
    doubt = 2 * cosine["sd"] / math.sqrt(len(cosine["values"]))
    return (cosine["mean"] > doubt) - (cosine["mean"] < -doubt)


def short_run(figures: PlanFigures, stage: StageFigures) -> Found:
    """Runs with too few updates to compare two trainings."""
    if stage["updates"] < FEW_UPDATES:
        updates = f"the {stage['name']} has about {stage['updates']} optimizer updates in {stage['epochs']} epochs"
        yield "short", f"{updates}: use more epochs, a smaller batch or nbs={figures['batch']}"


def mosaic_in_short_run(figures: PlanFigures, stage: StageFigures) -> Found:
    """Short runs that train on mosaics nearly to their end."""
    epochs, brief = stage["epochs"], FEW_UPDATES <= stage["updates"] < BRIEF_UPDATES
    if brief and stage["mosaic_epochs"] > 0.75 * epochs:
        mosaics = f"the {stage['name']} is trained on mosaics in {stage['mosaic_epochs']} of {epochs} epochs"
        better = f"mosaic=0 or close_mosaic={epochs // 2}"
        yield "mosaic", f"{mosaics}: on two data sets a run as short was more accurate with {better}"


def costly_run(figures: PlanFigures, stage: StageFigures) -> Found:
    """Runs that take so much longer than plain ones that a longer plain run is an alternative."""
    distilled, plain = stage["cost"]["hours"], stage["cost"]["hours_plain"]
    if distilled > COSTLY * plain:
        ratio = f"training the {stage['name']} takes {distilled / plain:.1f} x as long as a plain run"
        yield "costly", f"{ratio}, which could have that many more epochs: use a smaller teacher or a smaller until="


def memory_limit(figures: PlanFigures, stage: StageFigures) -> Found:
    """Runs that need more than 90 % of the device's memory."""
    has, needs = figures["device_memory"], stage["memory"].get("peak_taught", stage["memory"]["total_taught"])
    if has and needs > 0.9 * has:
        memory = f"the {stage['name']} needs about {needs / 2**30:.1f} GB of the device's {has / 2**30:.1f}"
        yield "memory", f"{memory}: use a smaller batch= or imgsz="


CHECKS = (
    large_teacher,
    weak_teacher,
    partial_match,
    inactive_terms,
    term_gradients,
    short_run,
    mosaic_in_short_run,
    costly_run,
    memory_limit,
)


def verdict(figures: PlanFigures) -> str:
    """Whether distillation is likely to help, and what it costs, without a promise of what was not measured.

    Args:
        figures: of a plan, with its warnings.
    """
    total, student = figures["total"], figures["stages"][-1]
    kinds = {w["what"] for w in figures["warnings"] if w["stage"] == student["name"]}
    cost = f"It takes about {duration_text(total['hours'])} and {total['kept'] / 2**20:.0f} MB of disk"
    plain = f"training the student alone takes {duration_text(student['cost']['hours_plain'])}"
    return f"{expected_benefit(figures, student, kinds)} {cost}; {plain}."


def expected_benefit(figures: PlanFigures, student: StageFigures, kinds: set[str]) -> str:
    """Whether distillation can help the student, as far as that can be measured before training.

    Args:
        figures: of a plan.
        student: the figures of its last stage.
        kinds: of the warnings about the student.
    """
    hops = student["hops"]
    if not hops:
        return "All terms are 0: this is plain training, without a teacher."
    scores = [figures["accuracy"].get(h["teacher"], {}) for h in hops if h["known"]]
    if not any(h["known"] for h in hops):
        return "Whether it helps cannot be known before the teacher is trained: train it, then plan again with its .pt."
    if kinds & {"teacher_no_better", "teacher_unmeasured"}:
        return "It will hardly help: the teacher was not measured to be better on this data."
    signs = [direction(t) for h in hops if h["known"] for t in h["terms"] if t["acts"]]
    gradients = (
        f"of the gradients of {len(signs)} acting terms, {signs.count(1)} clearly agree with the task and "
        f"{signs.count(-1)} oppose it"
    )
    ours = figures["accuracy"].get(student["name"], {}).get("map50_95")
    theirs = scores[0].get("map50_95")
    lead = "the student is untrained" if ours is None else f"the student {ours:.3f}"
    if theirs is None:
        lead = "the accuracy of a teacher that is not one model is not measured here"
    else:
        lead = f"the teacher has {theirs:.3f} mAP50-95 here, {lead}"
    doubt = ", but the run is too short to tell" if "short" in kinds else ""
    return (
        f"It can help: {lead}, and {gradients}{doubt}. Only a comparison with plain training of equal length shows by "
        "how much."
    )


def duration_text(hours: float) -> str:
    """A duration with its unit: h from 1 h, min from 1 min, else s."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
