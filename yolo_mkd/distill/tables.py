"""Tables for people: what acts between two models before training, and the gains once they are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yolo_mkd.distill.distiller import TERMS, Lesson


def lesson_table(lesson: Lesson, teacher: str, calibrate: bool) -> str:
    """Which terms act and why the others cannot, and the layers read with their shapes.

    Args:
        lesson: of the two models.
        teacher: its name.
        calibrate: whether the figures asked for are shares of the detection gradient, not plain gains.
    """
    match = lesson.match
    ratio = match.teacher.parameters / match.student.parameters
    size = f"{match.teacher.parameters / 1e6:.2f} M parameters, {ratio:.1f} x the student"
    asked = "share" if calibrate else "gain"
    lines = ["", f"M-KD: {teacher} teaches ({size})", f"  {'term':<18}{asked:>7}  acts  reads"]
    for t in lesson.terms:
        extra = f", trains {sum(p.numel() for p in t.parts.parameters()):,} parameters beside it" if t.parts else ""
        why = f"because {t.why_not}" if t.why_not else t.reads + extra
        lines.append(f"  {t.name:<18}{t.asked:>7.3g}  {'no' if t.why_not else 'yes':<4}  {why}")
    off = [name for name in TERMS if name not in {t.name for t in lesson.terms}]
    if off:
        lines.append(f"  not asked for: {', '.join(off)}")
    if lesson.roles:
        lines.append(f"  {'role':<18}  {'student: layer, shape':<26}  teacher: layer, shape")
        lines += [f"  {r:<18}  {match.student.taps[r]!s:<26}  {match.teacher.taps[r]}" for r in lesson.roles]
    return "\n".join(lines + [f"  {note}" for note in notes(lesson)])


def notes(lesson: Lesson) -> list[str]:
    """What is matched only in part, in plain words."""
    match, found = lesson.match, []
    if match.explores:
        found.append("the neck's first half of channels inherits from the teacher, the rest explores")
    if match.student.strides != match.teacher.strides:
        ours, theirs = match.student.strides, match.teacher.strides
        found.append(f"strides differ: student {ours}, teacher {theirs}; only equal ones are matched")
    if 0 < len(match.classes) < len(match.student.names):
        known = {s for s, _ in match.classes}
        missing = [name for i, name in match.student.names.items() if i not in known]
        found.append(f"the teacher does not know {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    if match.resampled:
        found.append("the teacher sees the images at another size; its maps are brought to the student's")
    if match.student.channels < match.teacher.channels:
        found.append("the images are grey and are shown to the colour teacher as grey")
    return found


def gains_table(sources: Iterable[Any], epoch: float) -> str:
    """The frozen gains: of each teacher's terms, what was asked for and the gain that gives it."""
    lines = [f"\nM-KD: gains measured and frozen after {epoch:.3g} epochs"]
    for s in sources:
        limited = s.balance.limited()
        for name, wish in s.balance.weights_asked.items():
            note = "  (at its limit: this share cannot be had with a sensible gain)" if name in limited else ""
            figures = f"share {wish.asked:<6.3g} gain {s.balance.gains[name]:<9.4g}"
            lines.append(f"  {s.teacher.name:<28} {name:<18} {figures} nominal {s.balance.usual(name):.4g}{note}")
        for branch, weights in class_weights(s).items():
            ends = f"{max(weights, key=weights.__getitem__)} {max(weights.values()):.2f}"
            ends += f" down to {min(weights, key=weights.__getitem__)} {min(weights.values()):.2f}"
            lines.append(f"  {s.teacher.name:<28} soft targets of {branch} weigh classes: {ends}")
    return "\n".join(lines)


def class_weights(source: Any) -> dict[str, dict[str, float]]:
    """How much soft targets weigh each class, by branch of the head and name; nothing where all weigh alike."""
    match = source.lesson.match
    names = [match.student.names[ours] for ours, _ in match.classes]
    found = source.balance.classes() or {}
    return {branch: dict(zip(names, weights.tolist(), strict=True)) for branch, weights in found.items()}


def gains_record(sources: list[Any]) -> list[dict[str, Any]]:
    """What each teacher's terms were asked for and the gains that they were given, as plain values."""
    return [
        {
            "teacher": s.teacher.name,
            "calibrated": s.balance.calibrate,
            "asked": {n: w.asked for n, w in s.balance.weights_asked.items()},
            "gains": dict(s.balance.gains),
            "classes": class_weights(s),
        }
        for s in sources
    ]
