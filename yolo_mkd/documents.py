"""Reading of the files that yolo-mkd writes: whole, and by a declared schema; a damaged one is refused in one line.

The schemas are the TypedDicts of the writers. Names that become paths are `InnerPath`: they cannot leave their folder.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from yolo_mkd.settings import BadInput, load_yaml
from yolo_mkd.settings.errors import short

LARGEST = 2**28  # bytes of a file that is read; ours are far smaller
CHARACTERS = 100  # of a reason in a message

Document = TypeVar("Document")


def inner(name: str) -> str:
    """The name of a file or folder below another, unchanged.

    Raises:
        ValueError: it is empty, absolute, or leads out of its folder.
    """
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\\" in name or "\0" in name
    if outside or not name or ".." in name.split("/") or not PurePosixPath(name).parts:
        raise ValueError("must be a name inside its folder")
    return name


InnerPath = Annotated[str, AfterValidator(inner)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def read_text(file: Path, named: str, advice: str) -> str:
    """The text of a file in UTF-8.

    Args:
        file: to be read.
        named: how the message begins.
        advice: how it ends.

    Raises:
        BadInput: it is missing, no regular file, too large, or not text.
    """
    try:
        if not file.is_file():
            raise FileNotFoundError("no such file")
        if file.stat().st_size > LARGEST:
            raise ValueError("it is larger than 256 MB")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"{named} cannot be read ({reason(error)}): {advice}") from error


def read_json(file: Path, named: str, advice: str) -> Any:
    """The contents of a JSON file; arguments and errors as in `read_text`."""
    text = read_text(file, named, advice)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{named} is damaged ({reason(error)}): {advice}") from error


def read_yaml(file: Path, named: str, advice: str) -> Any:
    """The contents of a YAML file; arguments and errors as in `read_text`."""
    text = read_text(file, named, advice)
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError of an impossible date
        raise BadInput(f"{named} is damaged ({reason(error)}): {advice}") from error


def validated(schema: TypeAdapter[Document], contents: Any, named: str, advice: str) -> Any:
    """The contents, unchanged, of a file that fits its schema; fields that the schema does not have are allowed.

    Args:
        schema: of the file.
        contents: as `read_json` or `read_yaml` returns them.
        named: how the message begins.
        advice: how it ends.

    Raises:
        BadInput: a field is missing, or has a wrong type or value; the message names the first one.
    """
    try:
        schema.validate_json(json.dumps(contents), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{named} is damaged ({short(place)}: {reason(first['msg'])}): {advice}") from error
    except (TypeError, ValueError, RecursionError) as error:  # of json: a key that is no text, circles, too deep
        raise BadInput(f"{named} is damaged ({reason(error)}): {advice}") from error
    return contents


def reason(error: BaseException | str) -> str:
    """An error as part of a line: its first characters, without quotes around values and line breaks."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r"\s+", " ", text).strip(" .") or type(error).__name__
    return text[:CHARACTERS]
