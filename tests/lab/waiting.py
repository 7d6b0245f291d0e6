"""Waiting for something with a deadline: the only place in the tests that sleeps."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")

_POLL_S = 0.01


def wait_until(ask: Callable[[], _T], what: str, *, timeout_s: float = 20.0) -> _T:
    """Ask again and again until the answer is true, and return it.

    Args:
        ask: A question without side effects.
        what: Completes the sentence "gave up waiting until ...".
        timeout_s: Seconds until it is an AssertionError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := ask():
            return answer
        if time.monotonic() > deadline:
            message = f"gave up waiting until {what} ({timeout_s:g} s)"
            raise AssertionError(message)
        time.sleep(_POLL_S)


async def turn_until(true: Callable[[], object]) -> None:
    """Let the event loop turn until something is true; the limit is the test's own.

    It is for what happens in threads and in the code under test, where nothing sets an event of asyncio's.
    """
    while not true():  # noqa: ASYNC110 - see above
        await asyncio.sleep(0)


class LogFile:
    """A log that some process appends to.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path."""
        self.path = path

    def lines(self, *, since: int = 0) -> list[str]:
        """Return the complete lines from the ``since``-th on."""
        try:
            text = self.path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return []
        return text.split("\n")[since:-1]

    def mark(self) -> int:
        """Return the number of lines so far, for ``since``."""
        return len(self.lines())

    def matches(self, pattern: str, *, since: int = 0) -> list[re.Match[str]]:
        """Return a match for each line in which the regular expression is found."""
        found = (re.search(pattern, line) for line in self.lines(since=since))
        return [match for match in found if match]

    def wait_for(self, pattern: str, *, since: int = 0, timeout_s: float = 20.0) -> re.Match[str]:
        """Wait for a line in which the regular expression is found; AssertionError at the deadline."""
        what = f"{self.path.name} has a line with {pattern!r}"
        return wait_until(lambda: self.matches(pattern, since=since), what, timeout_s=timeout_s)[0]
