"""What the user asked for: M-KD's own arguments, told apart from Ultralytics', and every refusal of a bad one.

Defaults and their one-line meanings are the text of `cfg/default.yaml`. Nothing here imports torch or Ultralytics.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

# what shapes the knowledge beside the terms themselves
KNOWLEDGE = (
    *("preset", "calibrate", "gate", "until", "teacher_imgsz", "record", "views", "record_limit"),
    *("soft_pw", "unlabelled", "unlabelled_ratio"),
)


class BadInput(ValueError):
    """An argument, file or data set of the user's that cannot work; the message is one line and says what to do."""


class Failed(RuntimeError):
    """The input was fine and the work itself failed, such as an export that does not match its model; one line."""


def shipped(folder: str) -> Path:
    """The folder `cfg` or `weights` that travels with the package, in a wheel and in a clone alike."""
    inside, beside = Path(__file__).parent / folder, Path(__file__).parent.parent / folder
    return inside if inside.is_dir() else beside  # an editable install leaves both at the top of the clone


@functools.cache
def defaults() -> dict[str, Any]:
    """M-KD's arguments with their defaults, from `cfg/default.yaml`."""
    return dict(yaml.safe_load((shipped("cfg") / "default.yaml").read_text(encoding="utf-8")))


def preset(name: Any) -> dict[str, Any]:
    """The arguments of a preset: one of `cfg/presets` by its name, or a .yaml file of the user's.

    Raises:
        BadInput: no such preset, or it holds what is no argument of M-KD's.
    """
    if name is None:
        return {}
    file = Path(str(name)) if str(name).endswith((".yaml", ".yml")) else shipped("cfg") / "presets" / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in (shipped("cfg") / "presets").glob("*.yaml")))
        raise BadInput(f"preset={name}: no such preset: choose from {names}, or give a .yaml file")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise BadInput(f"preset={name} is no valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(found, dict):
        raise BadInput(f"preset={name} holds no arguments: write lines such as attention: 0.5")
    refuse_unknown(found, set(defaults()) - {"preset", "resume"}, "train")
    return found


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """M-KD's arguments in full: defaults < preset < given.

    Without calibration the terms that nobody set take their nominal gains, of the preset `nominal`.

    Raises:
        BadInput: no such preset, or a switch is neither true nor false, or an image size no number.
    """
    chosen = {**preset(given.get("preset")), **given}
    own = {**defaults(), **({} if chosen.get("calibrate", True) else preset("nominal")), **chosen}
    own["assistant"] = None if own["assistant"] == "none" else own["assistant"]  # the command line's word, from Python
    for name in ("calibrate", "gate"):
        if not isinstance(own[name], bool):
            raise BadInput(f"{name}={own[name]} is neither true nor false")
    until = own["until"]
    if isinstance(until, bool) or not isinstance(until, int | float) or not 0 < until <= 1:
        raise BadInput(f"until={until} is no share of the epochs: use for example until=0.5")
    power = own["soft_pw"]
    if isinstance(power, bool) or not isinstance(power, int | float) or not 0 <= power <= 1:
        raise BadInput(f"soft_pw={power} is no power between 0 and 1: use for example soft_pw=0.5")
    for name, meaning, example in (("teacher_imgsz", "number of pixels", 640), ("views", "number of views", 8)):
        count = own[name]
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise BadInput(f"{name}={count} is no {meaning}: use for example {name}={example}")
    limit = own["record_limit"]
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
        raise BadInput(f"record_limit={limit} is no size in GB: use for example record_limit=20")
    if own["views"] is None or not isinstance(own["record"], bool | str | Path):
        raise BadInput(f"record={own['record']} views={own['views']}: give record=true or a folder, and views=8")
    return own


def help_text() -> str:
    """`cfg/default.yaml` as it stands: its comments are the help."""
    return (shipped("cfg") / "default.yaml").read_text(encoding="utf-8").rstrip()


def parse(words: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` words into a dict, values read as YAML (`2`, `0.5`, `true`, `none`, `[0,1]`).

    Raises:
        BadInput: a word has no `=`, no key or no value, or names a key twice.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not key or not text:
            raise BadInput(f"'{word}' is not of the form key=value: write for example epochs=100")
        if key in arguments:
            raise BadInput(f"{key}= is given twice: keep one of them")
        arguments[key] = value_of(key, text)
    return arguments


def value_of(key: str, text: str) -> Any:
    """Read one value as YAML would, with `none` for nothing and `1e-3` for a number; names and paths stay text."""
    if text.lower() in {"none", "null"}:
        return None
    if key in {"name", "project"}:
        return text
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def refuse_unknown(arguments: Iterable[str], known: Iterable[str], verb: str) -> None:
    """Refuse the first argument that is not known, naming its nearest neighbours.

    Raises:
        BadInput: an argument is not among `known`.
    """
    known = sorted(set(known))
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(f'{n}=' for n in near)}?" if near else f"see yolo-mkd help {verb}"
            raise BadInput(f"{key}= is no argument of yolo-mkd {verb}: {hint}")
