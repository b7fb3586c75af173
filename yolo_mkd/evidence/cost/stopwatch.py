"""A stopwatch that splits a training step into parts, each second counted once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Counts seconds by part. A part that is entered inside another takes its time away from that one.

    Attributes:
        on: whether it counts; while it does not, what it was put around runs as it was.
        seconds: by part, so far.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Make a stopwatch.

        Args:
            clock: the time [s], once the device has done what it was given.
        """
        self.on, self.clock = False, clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def begin(self, part: str) -> None:
        """Begin with a part that lasts until another one begins or is entered."""
        self._turn()
        self._open = [part]

    def stop(self) -> None:
        """Stop counting until the next beginning."""
        self._turn()
        self._open = []

    def around(self, owner: Any, method: str, part: str) -> None:
        """Count the time that a method takes, on this one object, as a part."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.section(part):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    @contextmanager
    def section(self, part: str) -> Iterator[None]:
        """Count the time inside this context as a part."""
        if not self.on:
            yield
            return
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost part."""
        if self.on:
            now = self.clock()
            if self._open:
                self.seconds[self._open[-1]] += now - self._since
            self._since = now
