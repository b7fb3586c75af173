"""What a method's name means: a base, `-term` for what is taken away, `:argument=value` for what is changed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.settings import BadInput, defaults, preset, shipped, value_of

STOCK = {  # trained by Ultralytics alone
    "plain": "stock Ultralytics, without a teacher",
    "longer": "plain, for as many epochs as cost what the distilled run cost",
    "native": "Ultralytics' own distillation (distill_model=)",
    "pseudo": "stock Ultralytics on unlabelled images with the teacher's boxes as labels",
}
OURS = {  # trained by yolo-mkd; the presets of cfg/presets are further names
    "mkd": "yolo-mkd train with its defaults",
    "only": "yolo-mkd train with every term off but those that are named",
}
FIXED = {  # the same for every method, or the comparison's own to give
    *("data", "model", "seed", "imgsz", "project", "name", "exist_ok", "save_dir", "resume", "distill_model"),
    *("record", "teacher_epochs", "task", "time", "json"),
}


@dataclass(frozen=True)
class Method:
    """One way to train a student.

    Attributes:
        name: as the user wrote it.
        base: the name's first part: one of `STOCK` or `OURS`, or a preset.
        changes: arguments of train that this method sets.
    """

    name: str
    base: str
    changes: dict[str, Any]

    @property
    def stock(self) -> bool:
        """Whether Ultralytics alone trains it."""
        return self.base in STOCK

    @property
    def hears(self) -> bool:
        """Whether it has a teacher."""
        return self.base not in {"plain", "longer"}


def read_all(names: str | Sequence[str], known: Collection[str]) -> list[Method]:
    """Read `methods=`.

    Args:
        names: separated by commas, or a list.
        known: Ultralytics' arguments.

    Raises:
        BadInput: a name cannot be read or is given twice, or `longer` has nothing to be measured by.
    """
    words = [str(n).strip() for n in (names.split(",") if isinstance(names, str) else names)]
    methods = [read(word, known) for word in words if word]
    if not methods:
        raise BadInput("methods= names no method: give for example methods=plain,native,mkd")
    for name in {m.name for m in methods}:
        if sum(m.name == name for m in methods) > 1:
            raise BadInput(f"methods= names {name} twice: keep one of them")
    if any(m.base == "longer" for m in methods) and not ("plain" in {m.name for m in methods} and reference(methods)):
        raise BadInput("methods=longer takes its epochs from the cost of plain and of a distilled method: name both")
    return methods


def read(name: str, known: Collection[str]) -> Method:
    """Read one method, such as `mkd-relation-guidance:soft=1:lr0=0.001`.

    Args:
        name: base, then any number of `-term`, then any number of `:argument=value`.
        known: Ultralytics' arguments.

    Raises:
        BadInput: it cannot be read; the message says which part.
    """
    head, *words = name.split(":")
    base, *removed = head.split("-")
    presets = {p.stem for p in (shipped("cfg") / "presets").glob("*.yaml")}
    bases = [*STOCK, *OURS, *sorted(presets - {*STOCK, *OURS})]
    if base not in bases:
        near = difflib.get_close_matches(base, bases, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(bases)}"
        raise BadInput(f"methods={name}: {base} is no method: {hint}")
    changes: dict[str, Any] = {}
    if base == "only":
        changes.update(dict.fromkeys(TERMS, 0))
    elif base in presets - {*OURS}:
        changes["preset"] = base
    for term in removed:
        if term not in TERMS or base in STOCK:
            raise BadInput(f"methods={name}: {base} has no term {term} to leave out: terms are {', '.join(TERMS)}")
        changes[term] = 0
    extra = {"teacher", *(["unlabelled"] if base == "pseudo" else [])}
    allowed = ({*known} | (extra if base in STOCK else {*defaults()})) - FIXED
    if base == "longer":
        allowed -= {"epochs"}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise BadInput(f"methods={name}: '{word}' is not of the form argument=value: write for example mkd:soft=1")
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            why = "is the same for all methods" if key in FIXED else "is no argument of this method"
            raise BadInput(f"methods={name}: {key}= {why}" + (f": did you mean {near[0]}=?" if near else ""))
        changes[key] = value_of(key, text)
    if base == "only" and not any(changes[t] for t in TERMS):
        raise BadInput(f"methods={name} names no term: write for example only:soft=0.5")
    return Method(name, base, changes)


def reference(methods: Sequence[Method]) -> Method | None:
    """The method whose cost `longer` is given: mkd, else the first of ours, else native."""
    ranked = sorted((m for m in methods if m.hears), key=lambda m: (m.name != "mkd", m.stock))
    return ranked[0] if ranked else None


def ablation(acting: Sequence[str], whole: str) -> list[str]:
    """The methods of an ablation: plain, the whole, the whole without each term, and each term alone.

    Args:
        acting: terms that act between these models.
        whole: the method that is taken apart, `mkd` or `recorded`.
    """
    shares = {**defaults(), **({} if whole == "mkd" else preset(whole))}
    without = [f"{whole}-{term}" for term in acting] if len(acting) > 1 else []
    return ["plain", whole, *without, *(f"only:{term}={shares[term]}" for term in acting)]
