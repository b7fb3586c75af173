"""The syntax of `methods=`: a base, `-term` for a term to leave out, `:argument=value` for an argument to change."""

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
    "only": "yolo-mkd train with every term off except those that are named",
}
FIXED = {  # the same for every method, or set by the comparison
    *("data", "model", "seed", "imgsz", "project", "name", "exist_ok", "save_dir", "resume", "distill_model"),
    *("record", "teacher_epochs", "task", "time", "json", "trust", "download"),
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
    def distilled(self) -> bool:
        """Whether it has a teacher, be it for distillation or for pseudo-labels."""
        return self.base not in {"plain", "longer"}


def parse_methods(names: str | Sequence[str], ultralytics: Collection[str]) -> list[Method]:
    """Parse `methods=`.

    Args:
        names: separated by commas, or a list.
        ultralytics: the names of Ultralytics' arguments.

    Raises:
        BadInput: a name cannot be parsed or is given twice, or `longer` has no method to take its epochs from.
    """
    words = [str(n).strip() for n in (names.split(",") if isinstance(names, str) else names)]
    methods = [parse_method(word, ultralytics) for word in words if word]
    given = [m.name for m in methods]
    if not methods:
        raise BadInput("methods= is empty: give for example methods=plain,native,mkd")
    for name in given:
        if given.count(name) > 1:
            raise BadInput(f"methods= contains {name} twice: remove one of them")
    if any(m.base == "longer" for m in methods) and not ("plain" in given and cost_reference(methods)):
        raise BadInput(
            "methods=longer takes its epochs from the cost of plain and of a distilled method: add both, for example "
            "methods=plain,longer,mkd"
        )
    return methods


def parse_method(name: str, ultralytics: Collection[str]) -> Method:
    """Parse one method, such as `mkd-relation-guidance:soft=1:lr0=0.001`.

    Args:
        name: base, then any number of `-term`, then any number of `:argument=value`.
        ultralytics: the names of Ultralytics' arguments.

    Raises:
        BadInput: it cannot be parsed; the message names the part.
    """
    head, *words = name.split(":")
    base, *removed = head.split("-")
    presets = {p.stem for p in (shipped("cfg") / "presets").glob("*.yaml")}
    bases = [*STOCK, *OURS, *sorted(presets - {*STOCK, *OURS})]
    if base not in bases:
        near = difflib.get_close_matches(base, bases, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(bases)}"
        raise BadInput(f"methods={name}: unknown method {base}: {hint}")
    changes: dict[str, Any] = {}
    if base == "only":
        changes.update(dict.fromkeys(TERMS, 0))
    elif base in presets - {*OURS}:
        changes["preset"] = base
    for term in removed:
        if base in STOCK:
            raise BadInput(f"methods={name}: {base} has no terms, so -{term} cannot be left out: remove -{term}")
        if term not in TERMS:
            raise BadInput(f"methods={name}: unknown term {term} to leave out: choose from {', '.join(TERMS)}")
        changes[term] = 0
    allowed = changeable_arguments(base, ultralytics)
    for word in words:
        key, value = parse_change(name, word, allowed)
        changes[key] = value
    if base == "only" and not any(changes[term] for term in TERMS) and "start" not in changes:
        raise BadInput(f"methods={name} switches no term on: write for example only:soft=0.5")
    return Method(name, base, changes)


def changeable_arguments(base: str, ultralytics: Collection[str]) -> set[str]:
    """The arguments that a method with this base may change."""
    if base not in STOCK:
        return {*ultralytics, *defaults()} - FIXED
    extra = {"teacher", "unlabelled"} if base == "pseudo" else {"teacher"}
    computed = {"epochs"} if base == "longer" else set()
    return {*ultralytics, *extra} - FIXED - computed


def parse_change(name: str, word: str, allowed: Collection[str]) -> tuple[str, Any]:
    """Parse one `argument=value` of a method.

    Args:
        name: the whole method, for messages.
        word: the part to parse.
        allowed: arguments that the method may change.

    Raises:
        BadInput: it is not of this form, or the argument cannot be changed.
    """
    key, equals, text = word.partition("=")
    if not equals or not text:
        raise BadInput(f"methods={name}: '{word}' must have the form argument=value, for example mkd:soft=1")
    if key in FIXED:
        raise BadInput(f"methods={name}: {key}= must be the same for all methods: remove it from this one")
    if key not in allowed:
        near = difflib.get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}=?" if near else "remove it"
        raise BadInput(f"methods={name}: {key}= is not an argument of this method: {hint}")
    return key, value_of(key, text)


def cost_reference(methods: Sequence[Method]) -> Method | None:
    """The method whose cost `longer` matches: mkd, else the first of ours, else native."""
    ranked = sorted((m for m in methods if m.distilled), key=lambda m: (m.name != "mkd", m.stock))
    return ranked[0] if ranked else None


def ablation_methods(acting: Sequence[str], whole: str) -> list[str]:
    """The methods of an ablation: plain, the whole method, the whole without each term, and each term alone.

    Args:
        acting: terms that act between these models.
        whole: the method that is ablated, `mkd` or `recorded`.
    """
    shares = {**defaults(), **({} if whole == "mkd" else preset(whole))}
    without = [f"{whole}-{term}" for term in acting] if len(acting) > 1 else []
    return ["plain", whole, *without, *(f"only:{term}={shares[term]}" for term in acting)]
