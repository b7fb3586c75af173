"""What speaks against a training before it has begun, each with advice, and the answer in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from yolo_mkd.chain.assistant import BRIDGE, FAR

FEW_UPDATES = 200
BRIEF_UPDATES = 1000  # up to here mosaic to the end cost plain training 0.02 to 0.03 mAP50-95: see RESULTS.md
AGAINST = -0.05  # a cosine that matters, once it is clearly below 0
LEVEL = 0.01  # mAP50-95 by which a teacher should lead at least
COSTLY = 1.5  # times a plain run

Figures = dict[str, Any]


def warnings(figures: Figures) -> list[dict[str, str]]:
    """What speaks against the training.

    Args:
        figures: of `planning.foresee`.

    Returns:
        One dict a warning: `what` kind it is, the `stage` and one line of `text` with advice.
    """
    found = [
        {"what": what, "stage": stage["name"], "text": text}
        for stage in figures["stages"]
        for check in (distant, level_teacher, unmatched, silent_terms, pulls, short, mosaic, costly, large)
        for what, text in check(figures, stage)
    ]
    if figures["batch_is_automatic"]:
        text = f"the batch size is chosen when training starts: the figures are those of batch={figures['batch']}"
        found.append({"what": "batch", "stage": "", "text": text})
    return found


Found = Iterator[tuple[str, str]]


def distant(figures: Figures, stage: Figures) -> Found:
    """A teacher that is far too large for its student."""
    if stage["hops"]:
        nearest = min(stage["hops"], key=lambda h: h["ratio"])
        if nearest["ratio"] > FAR:
            much = f"the {nearest['teacher']} has {nearest['ratio']:.1f} x the parameters of the {stage['name']}"
            yield "ratio", f"{much}: {BRIDGE}"


def level_teacher(figures: Figures, stage: Figures) -> Found:
    """A teacher that is not better than its student is already."""
    ours = figures["accuracy"].get(stage["name"], {})
    for name in [h["teacher"] for h in stage["hops"] if h["known"]]:
        theirs = figures["accuracy"][name]
        score = theirs.get("map50_95", 0.0)
        if "why_not" in theirs:
            yield "teacher_unmeasured", f"the {name} {theirs['why_not']}: train one on this data (teacher_epochs=100)"
        elif score < LEVEL:
            yield "teacher_no_better", f"the {name} finds next to nothing on this data: train it on this data first"
        elif theirs["classes"] == ours.get("classes") and score - ours.get("map50_95", 0.0) < LEVEL:
            said = f"{score:.3f} against {ours['map50_95']:.3f} mAP50-95"
            yield (
                "teacher_no_better",
                f"the {name} is no better than the {stage['name']} is ({said}): find a better one",
            )


def unmatched(figures: Figures, stage: Figures) -> Found:
    """Classes and strides that only one of the two has."""
    for h in stage["hops"]:
        missing, strides = h["unknown_classes"], h["strides"]
        if 0 < len(missing) < figures["classes"]:  # a teacher that knows none is told of elsewhere
            names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            said = f"the {h['teacher']} does not know {len(missing)} of {figures['classes']} classes ({names})"
            yield "classes", f"{said}: give equal things equal names, or train a teacher on this data"
        if strides["student"] != strides["teacher"]:
            ours, theirs = (" ".join(map(str, strides[k])) or "none" for k in ("student", "teacher"))
            said = f"strides differ: {stage['name']} {ours}, {h['teacher']} {theirs}"
            yield "strides", f"{said}: only equal ones learn from each other; take a teacher with the same ones"


def silent_terms(figures: Figures, stage: Figures) -> Found:
    """Terms that cannot act, unless nobody named them and another model's kind of head is all that they lack."""
    for h in stage["hops"]:
        reasons: dict[str, list[str]] = {}
        for t in h["terms"]:
            if not t["acts"] and (t["term"] in figures["named_terms"] or not t["why_not"].startswith("neither head")):
                reasons.setdefault(t["why_not"], []).append(t["term"])
        for why, names in reasons.items():
            yield "silent", f"{' '.join(names)} cannot act between the {h['teacher']} and the {stage['name']}: {why}"


def pulls(figures: Figures, stage: Figures) -> Found:
    """Terms that pull against the task, that are dead, or whose share cannot be had with a sensible gain."""
    for h in stage["hops"]:
        for t in (t for t in h["terms"] if "share" in t):
            name, strength = f"{t['term']} (by the {h['teacher']})", t["share"]["mean"]
            if not strength or not math.isfinite(strength):
                yield "dead", f"{name} has no finite gradient on these batches: switch it off ({t['term']}=0)"
            elif t["at_limit"]:
                much = f"a share of {t['asked']:.3g} would take a gain beyond {t['gain']:.3g}, where it is limited"
                yield "limit", f"{name}: {much}: ask for less, or switch it off ({t['term']}=0)"
            if direction(t) < 0 and t["cosine"]["mean"] < AGAINST and not figures["gate"]:
                said = f"{name} pulls against the task (cosine {t['cosine']['mean']:.2f})"
                yield "against", f"{said}: switch it off ({t['term']}=0), or let gate=true leave it out"


def direction(term: Figures) -> int:
    """1 where a term pulls with the task, -1 against it, 0 where the batches do not agree (two standard errors)."""
    cosine = term["cosine"]
    doubt = 2 * cosine["sd"] / math.sqrt(len(cosine["values"]))
    return (cosine["mean"] > doubt) - (cosine["mean"] < -doubt)


def short(figures: Figures, stage: Figures) -> Found:
    """Runs in which too little is learned to tell one training from another."""
    if stage["updates"] < FEW_UPDATES:
        said = f"the {stage['name']} has about {stage['updates']} optimizer updates in {stage['epochs']} epochs"
        yield "short", f"{said}: more epochs, a smaller batch or nbs={figures['batch']} give it time to learn"


def mosaic(figures: Figures, stage: Figures) -> Found:
    """Short runs that see hardly a whole image."""
    epochs, brief = stage["epochs"], FEW_UPDATES <= stage["updates"] < BRIEF_UPDATES
    if brief and stage["mosaic_epochs"] > 0.75 * epochs:
        said = f"the {stage['name']} sees mosaics in {stage['mosaic_epochs']} of {epochs} epochs"
        yield "mosaic", f"{said}: on two sets so short a run learned more with mosaic=0 or close_mosaic={epochs // 2}"


def costly(figures: Figures, stage: Figures) -> Found:
    """Runs that take so much longer than plain ones that a longer plain one is a rival."""
    taught, plain = stage["cost"]["hours"], stage["cost"]["hours_plain"]
    if taught > COSTLY * plain:
        said = f"training the {stage['name']} takes {taught / plain:.1f} x a plain run"
        yield "costly", f"{said}, which could be that much longer: a smaller teacher or a smaller until= costs less"


def large(figures: Figures, stage: Figures) -> Found:
    """More memory than the device has."""
    has, needs = figures["device_memory"], stage["memory"].get("peak_taught", stage["memory"]["total_taught"])
    if has and needs > 0.9 * has:
        said = f"the {stage['name']} needs about {needs / 2**30:.1f} GB of the device's {has / 2**30:.1f}"
        yield "memory", f"{said}: use a smaller batch= or imgsz="


def answer(figures: Figures) -> str:
    """Will this help, and what will it cost? In plain words, and with no promise of what was not measured."""
    total, student = figures["total"], figures["stages"][-1]
    kinds = {w["what"] for w in figures["warnings"] if w["stage"] == student["name"]}
    cost = f"It takes about {hours(total['hours'])} and {total['kept'] / 2**20:.0f} MB of disk"
    return f"{prospect(figures, student, kinds)} {cost}; a plain student takes {hours(student['cost']['hours_plain'])}."


def prospect(figures: Figures, student: Figures, kinds: set[str]) -> str:
    """Whether the knowledge can help the student, as far as it can be known."""
    hops = student["hops"]
    if not hops:
        return "Every term is 0: this is plain training, and no teacher can help."
    scores = [figures["accuracy"].get(h["teacher"], {}) for h in hops if h["known"]]
    if not any(h["known"] for h in hops):
        return "Whether it helps cannot be known before the teacher is trained: train it, then plan again with its .pt."
    if kinds & {"teacher_no_better", "teacher_unmeasured"}:
        return "It will hardly help: nothing shows that this teacher is better on this data."
    ways = [direction(t) for h in hops if h["known"] for t in h["terms"] if t["acts"]]
    pulling = f"of {len(ways)} acting terms {ways.count(1)} pull clearly with the task and {ways.count(-1)} against it"
    ours = figures["accuracy"].get(student["name"], {}).get("map50_95")
    lead = f"the teacher has {scores[0]['map50_95']:.3f} mAP50-95 here, "
    lead += "the student starts from nothing" if ours is None else f"the student {ours:.3f}"
    doubt = ", in a run too short to tell" if "short" in kinds else ""
    said = f"It can help: {lead}, and {pulling}{doubt}."
    return f"{said} Only a plain training of equal length shows by how much."


def hours(value: float) -> str:
    """A time span for people."""
    return f"{value:.1f} h" if value >= 1 else f"{value * 60:.1f} min" if value * 60 >= 1 else f"{value * 3600:.0f} s"
