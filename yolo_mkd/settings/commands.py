"""The arguments of single commands, for their help: read from a function, or declared here for `**arguments`.

Tests compare what is declared here with what the commands accept and refuse.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from yolo_mkd.settings.arguments import TERM_NAMES, written
from yolo_mkd.settings.defaults import defaults

WIDTH = 120  # characters of a help line
JSON = "also write the figures to this JSON file"


class Option(NamedTuple):
    """An argument of one command; `default` is written as on the command line, and empty where it must be given."""

    name: str
    default: str
    meaning: str


COMPARE = (
    Option("data", "", "a data set's YAML file, or several with commas"),
    Option("model", str(defaults()["model"]), "the student, or several with commas"),
    Option(
        "methods",
        "plain,longer,native,mkd",
        "ways to train, with commas: plain (stock Ultralytics), longer (plain, for as long as mkd costs), native "
        "(Ultralytics' own distillation), pseudo (the teacher's boxes on unlabelled images as labels), mkd (the "
        "defaults), only (no term but those named), or a preset; mkd-relation leaves a term out, mkd:soft=1:lr0=0.01 "
        "changes arguments",
    ),
    Option("seeds", "3", "how many seeds, or which: 0,1,5"),
    Option("record", "false", "true: one teacher cache for all methods that can use it"),
    Option("latency", "false", "true: export and time each student too, for accuracy against latency"),
    Option("parallel", "1", "trainings at a time; with ray= as many as the cluster holds"),
    Option("ray", "none", "address of a Ray cluster, or auto"),
    Option("project", "none", "folder for the comparison's folder, by default runs/mkd"),
    Option("name", "compare", "the comparison's folder"),
    Option("json", "none", "a copy of the report, compare.json"),
    Option(
        "resume", "none", "folder of an interrupted comparison, or of a finished one that methods= and seeds= extend"
    ),
)

OWN: dict[str, tuple[Option, ...]] = {  # arguments of the commands that take those of training, beside them
    "train": (Option("json", "none", "a copy of the summary, chain.json"),),
    "plan": (Option("json", "none", JSON),),
    "record": (
        Option("preset", "recorded", "as in training; preset=recorded has only terms that a cache can serve"),
        Option("record", "true", "the folder of the cache; true: in runs/mkd/records"),
        Option("json", "none", JSON),
    ),
    "compare": COMPARE,
    "ablate": tuple(
        option._replace(default="ablate") if option.name == "name" else option
        for option in COMPARE
        if option.name != "methods"
    ),
}

OF_A_METHOD = {*TERM_NAMES, "preset", "calibrate", "gate", "start", "teacher_epochs"}  # not shared by methods
NOT_OF_TRAINING: dict[str, set[str]] = {  # M-KD arguments that a command refuses, or that have no effect on it
    "train": set(),
    "plan": {"resume", "download"},
    "record": {"resume", "teacher_epochs", "assistant", "unlabelled", "unlabelled_ratio"},
    "cost": {
        *("assistant", "start", "teacher_epochs", "resume"),
        *("record", "views", "record_limit", "unlabelled", "unlabelled_ratio"),
        "calibrate",
    },
    "compare": OF_A_METHOD,
    "ablate": OF_A_METHOD,
}

OF_THE_CHAIN = {"distill_model", "save_dir"}
OF_A_COMPARISON = {*OF_THE_CHAIN, "dis", "seed", "time", "exist_ok", "task"}
ULTRALYTICS_REFUSED: dict[str, set[str]] = {  # Ultralytics' arguments that a command refuses
    "train": OF_THE_CHAIN,
    "plan": OF_THE_CHAIN,
    "record": OF_THE_CHAIN,
    "cost": OF_THE_CHAIN,
    "compare": OF_A_COMPARISON,
    "ablate": OF_A_COMPARISON,
}


def options_of(function: Callable[..., Any]) -> list[Option]:
    """The arguments of a function, from its signature and the `Args:` of its docstring; `**arguments` is left out."""
    meanings = documented(inspect.getdoc(function) or "")
    found = []
    for p in inspect.signature(function).parameters.values():
        if p.kind in {p.VAR_KEYWORD, p.VAR_POSITIONAL}:
            continue
        default = "" if p.default is p.empty else written(p.default)
        found.append(Option(p.name, default, meanings.get(p.name, "")))
    return found


def documented(docstring: str) -> dict[str, str]:
    """The arguments that a Google-style docstring describes under `Args:`, each with its text on one line."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, flags=re.MULTILINE)
    if section is None:
        return {}
    entries = re.split(r"^ {4}(?=\S)", section.group(1), flags=re.MULTILINE)
    pairs = (entry.partition(":") for entry in entries if ":" in entry)
    return {name.strip(): " ".join(text.split()).rstrip(".") for name, _, text in pairs}


def listing(heading: str, options: Iterable[Option]) -> str:
    """Arguments under a heading, one a line as key=default and meaning; long meanings are wrapped."""
    options = list(options)
    named = [f"{option.name}={option.default}" for option in options]
    indent = min(max(map(len, named)), 32) + 4
    lines = [heading]
    for start, option in zip(named, options, strict=True):
        meaning = option.meaning if option.default else f"(required) {option.meaning}"
        head = f"  {start}"
        first = head.ljust(indent) if len(head) < indent else head + "  "
        lines += textwrap.wrap(
            first + meaning, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
        )
    return "\n".join(lines)
