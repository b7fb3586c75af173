"""What files may do: by default a checkpoint holds weights and known classes alone, and a data set's YAML runs no code.

A .pt is a pickle, and loading a pickle can run any code. Ultralytics has a loader that constructs only classes of
Ultralytics and PyTorch; importing this package turns it on, in this process and in those that it starts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from ultralytics.nn import tasks
from ultralytics.utils import YAML, checks

from yolo_mkd.settings import BadInput, BoundedLoader, switch

SAFE_LOAD = "ULTRALYTICS_SAFE_LOAD"  # Ultralytics' own switch, which it reads when it is imported
# what a refusal of torch's restricted loader, or of Ultralytics' `_SafeLoad`, names
REFUSED = re.compile(r"GLOBAL (?P<a>[\w.]+)|(?P<b>unsafe getattr\([^)]*\))|instance of class (?P<c>[\w.]+)")
MOST_NAMES = 3  # that a message shows

Result = TypeVar("Result")
_download: ContextVar[bool] = ContextVar("download", default=False)


def load_safely() -> None:
    """Turn Ultralytics' safe loader on, unless the user's environment says otherwise."""
    if SAFE_LOAD not in os.environ:
        os.environ[SAFE_LOAD] = "1"
        tasks.SAFE_LOAD = True


def safe_load() -> str:
    """The value of the environment variable `SAFE_LOAD` with which another process loads checkpoints as this one."""
    return "1" if tasks.SAFE_LOAD else "0"


def permitting(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function with the arguments `trust` and `download` beside its own, which hold while it runs."""

    @functools.wraps(function)
    def run(*arguments: Any, trust: Any = False, download: Any = False, **named: Any) -> Result:
        token = _download.set(switch("download", download))
        try:
            with trusting(trust):
                return function(*arguments, **named)
        finally:
            _download.reset(token)

    return run


def may_run_downloads() -> bool:
    """Whether `download=true` was given, so that the code under `download:` in a data set's YAML may run."""
    return _download.get()


def trusts() -> bool:
    """Whether `trust=true` was given, so that files may hold code beside weights."""
    return not tasks.SAFE_LOAD


@contextlib.contextmanager
def trusting(trust: Any) -> Iterator[None]:
    """Within, checkpoints may hold any code if `trust` is true, also in processes that are started within.

    Raises:
        BadInput: it is neither true nor false.
    """
    if not switch("trust", trust):
        yield
        return
    before, variable = tasks.SAFE_LOAD, os.environ.get(SAFE_LOAD)
    tasks.SAFE_LOAD, os.environ[SAFE_LOAD] = False, "0"
    try:
        yield
    finally:
        tasks.SAFE_LOAD = before
        if variable is None:
            del os.environ[SAFE_LOAD]
        else:
            os.environ[SAFE_LOAD] = variable


@contextlib.contextmanager
def no_installs() -> Iterator[None]:
    """Stop Ultralytics from installing packages."""
    before = checks.AUTOINSTALL
    checks.AUTOINSTALL = False
    try:
        yield
    finally:
        checks.AUTOINSTALL = before


@contextlib.contextmanager
def refusing_code(path: str | Path, argument: str) -> Iterator[Path]:
    """Give the file to load within, on this disk, and refuse it in one line if it holds code.

    Args:
        path: of a checkpoint.
        argument: the argument that names it, for the message; may be empty.

    Raises:
        BadInput: it holds code and is not trusted.
        one of `models.UNREADABLE`: it is missing or damaged.
    """
    file = Path(path).absolute()  # by its bare name Ultralytics would replace a damaged file by a download
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    named = f"{argument}={path}" if argument else str(path)
    if tasks.SAFE_LOAD and not tasks._SafeLoad.SUPPORTED:
        raise BadInput(
            f"{named} cannot be loaded safely with torch {torch.__version__}: install torch 2.6 or newer, or, "
            "if you know where the file comes from, add trust=true"
        )
    try:
        with no_installs():
            yield file
    except TypeError as error:
        if found := code_in(file, error):
            raise BadInput(
                f"{named} holds code beside weights ({found}), which loading it could run: use another file, or, "
                "if you know where this one comes from, add trust=true"
            ) from error
        raise
    except (
        LookupError,
        AssertionError,
        OverflowError,
        struct.error,
    ) as error:  # of bytes that are no pickle in the restricted loader
        raise TypeError(f"it is not a checkpoint: torch.load fails at {error}") from error


def read_checkpoint(path: str | Path, argument: str = "") -> tuple[Any, dict[str, Any]]:
    """A checkpoint's model in float32 and eval mode, and the contents with it; errors as in `refusing_code`."""
    with refusing_code(path, argument) as file:
        model, contents = tasks.load_checkpoint(file)
    return model, contents


def read_contents(path: str | Path, argument: str = "") -> dict[str, Any]:
    """A checkpoint's contents as they are in the file; errors as in `refusing_code`."""
    with refusing_code(path, argument) as file:
        return dict(tasks.torch_safe_load(file)[0])


def refuse_code(argument: str, path: str | Path) -> None:
    """Refuse a checkpoint that holds code and is not trusted; one that cannot be read is left to its reader.

    Raises:
        BadInput: see above.
    """
    with contextlib.suppress(RuntimeError, EOFError, OSError, pickle.UnpicklingError, TypeError, ImportError):
        read_contents(path, argument)


def code_in(file: Path, error: BaseException) -> str:
    """The names of what the safe loader refused in a checkpoint; empty where it failed for another reason.

    Args:
        file: the checkpoint.
        error: of loading it.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, pickle.UnpicklingError):
        cause = cause.__cause__
    if cause is None:
        return ""
    match = REFUSED.search(str(cause))
    if match is None:
        return ""
    with contextlib.suppress(ValueError, RuntimeError, OSError, pickle.UnpicklingError):
        names = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(file)))
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            return ", ".join(names[:MOST_NAMES]) + more
    return match.group(match.lastgroup or 0)


def read_bounded_yaml() -> None:
    """Let Ultralytics read every YAML file, of data and of models, with `BoundedLoader`."""
    YAML._get_instance().SafeLoader = BoundedLoader
