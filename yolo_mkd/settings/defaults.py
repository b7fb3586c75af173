"""M-KD's arguments in full: the defaults of `cfg/default.yaml`, then a preset, then what the user gives."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from yolo_mkd.settings.arguments import TERM_NAMES, check_argument
from yolo_mkd.settings.errors import BadInput, refuse_unknown, short
from yolo_mkd.settings.values import value_of
from yolo_mkd.settings.yaml_text import load_yaml

NOMINAL_GAINS = {  # loss weights of the terms that nobody sets, with calibrate=false
    "soft": 1.0,
    "soft_box": 1.0,
    "soft_dfl": 0.02,
    "attention": 1.0,
    "relation": 1.0,
    "guidance": 6.0,
    "exploration": 0.15,
}
REMOVED_PRESETS = {  # of 0.1, with what they meant
    "safe": "gate=true relation=0 exploration=0",
    "free": "guidance=0 exploration=0",
    "nominal": "calibrate=false",
}


def shipped(folder: str) -> Path:
    """The folder `cfg` or `weights` that travels with the package, in a wheel and in a clone alike."""
    package = Path(__file__).parents[1]
    inside, beside = package / folder, package.parent / folder
    return inside if inside.is_dir() else beside  # an editable install leaves both at the top of the clone


def help_text() -> str:
    """The text of `cfg/default.yaml`: each argument with its default and its meaning as a comment."""
    return (shipped("cfg") / "default.yaml").read_text(encoding="utf-8").rstrip()


@functools.cache
def defaults() -> dict[str, Any]:
    """M-KD's arguments with their defaults, from `cfg/default.yaml`."""
    return dict(yaml.safe_load(help_text()))


class Meaning(NamedTuple):
    """An argument as help shows it; `default` is its text in `cfg/default.yaml`."""

    name: str
    default: str
    meaning: str


def argument_sections() -> dict[str, list[Meaning]]:
    """M-KD's arguments by the headings of `cfg/default.yaml`, in its order."""
    sections: dict[str, list[Meaning]] = {}
    heading = ""
    for line in help_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line:
            setting, _, meaning = line.partition("#")
            name, _, default = setting.partition(":")
            default = default.strip().replace("null", "none")
            sections.setdefault(heading, []).append(Meaning(name, default, meaning.strip()))
    return sections


def preset_names() -> list[str]:
    """The names of the presets in `cfg/presets`."""
    return sorted(p.stem for p in (shipped("cfg") / "presets").glob("*.yaml"))


def preset(name: Any) -> dict[str, Any]:
    """The arguments of a preset.

    Args:
        name: one of `cfg/presets`, or a .yaml file. In the file, `only: {soft: 1.0}` sets every other term to 0.

    Raises:
        BadInput: there is no such preset, or it sets something that is not an M-KD argument.
    """
    if name is None:
        return {}
    text = str(check_argument("preset", name))
    if text.endswith((".yaml", ".yml")):
        file, exists = Path(text), os.path.isfile(text)
    else:
        file, exists = shipped("cfg") / "presets" / f"{text}.yaml", text in preset_names()
    if not exists and text in REMOVED_PRESETS:
        raise BadInput(f"preset={text} was removed in 0.2.0: use {REMOVED_PRESETS[text]}")
    if not exists:
        known = ", ".join(preset_names())
        raise BadInput(f"preset={short(text)} does not exist: choose from {known}, or give a .yaml file")
    try:
        found = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise BadInput(f"preset={text} is not a valid YAML file: {' '.join(str(e).split())}") from e
    if not isinstance(found, dict):
        raise BadInput(f"preset={text} contains no arguments: write lines such as attention: 0.5")
    found = {str(key): from_text(str(key), value) for key, value in found.items()}
    if "only" in found:
        found = {**only(found.pop("only"), found, text), **found}
    if permission := {"trust", "download"} & found.keys():
        raise BadInput(f"{min(permission)}= is not taken from a file (preset={short(name)}): give it beside preset=")
    refuse_unknown(found, set(defaults()) - {"preset", "resume"}, "train")
    return found


def only(terms: Any, others: dict[str, Any], name: str) -> dict[str, float]:
    """Every term: those of a preset's `only:` with their values, all others 0.

    Args:
        terms: the value of `only:`.
        others: the preset's other lines.
        name: the preset, for the error.

    Raises:
        BadInput: it is not a mapping of terms, or a term is given outside it too.
    """
    if not isinstance(terms, dict) or not terms:
        raise BadInput(f"preset={name}: only must map terms to values, for example only: {{soft: 2.0}}")
    unknown = [key for key in terms if key not in TERM_NAMES]
    if unknown:
        raise BadInput(f"preset={name}: {unknown[0]} in only is not a term: choose from {', '.join(TERM_NAMES)}")
    outside = [key for key in others if key in TERM_NAMES]
    if outside:
        raise BadInput(f"preset={name}: {outside[0]} is a term outside only: move it into only")
    return {**dict.fromkeys(TERM_NAMES, 0.0), **{key: from_text(key, value) for key, value in terms.items()}}


def from_text(key: str, value: Any) -> Any:
    """A value of a YAML file, its text read as on the command line: 2e-5 is text in YAML 1.1."""
    return value_of(key, value) if isinstance(value, str) else value


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """M-KD's arguments in full, types and ranges checked: defaults < preset < given.

    With calibrate=false the terms that neither the preset nor `given` sets have their `NOMINAL_GAINS`.

    Args:
        given: the user's arguments; those that are not M-KD's are returned unchanged.

    Raises:
        BadInput: there is no such preset, or a value has a wrong type or is out of range.
    """
    chosen = {**preset(given.get("preset")), **given}
    nominal = {} if chosen.get("calibrate", True) else NOMINAL_GAINS
    own = {**defaults(), **nominal, **chosen}
    for name in defaults():
        own[name] = check_argument(name, own[name])
    own["assistant"] = None if own["assistant"] == "none" else own["assistant"]  # as a word, from Python
    return own
