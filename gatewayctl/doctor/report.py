"""Runs steps one after the other, and reports each as a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from helpers.protocol.errors import GatewayError, local_error

OK, FAIL, SKIP = "ok", "fail", "skip"


class SkippedError(Exception):
    """A step makes no sense here.

    Args:
        reason: One sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        name: Its name, in the first column.
        run: Returns what it found in a few words; raises `SkippedError`, or `GatewayError` with the remedy.
        needs: The names of earlier steps without which it is skipped.
    """

    name: str
    run: Callable[[], str]
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """A step's result.

    Attributes:
        step: The step's name.
        outcome: ``ok``, ``fail`` or ``skip``.
        ms: Milliseconds that it took; None if it was skipped.
        detail: What was found, why it failed and the remedy, or why it was skipped.
        code: The error's code (`helpers.protocol.errors`); None without an error.
        status: The error's exit status; 0 without an error.
    """

    step: str
    outcome: str
    ms: float | None
    detail: str
    code: str | None = None
    status: int = 0


def examine(steps: Sequence[Step]) -> Iterator[Row]:
    """Run the steps; yield each row as soon as it is known."""
    outcomes: dict[str, str] = {}
    for step in steps:
        missing = next((name for name in step.needs if outcomes.get(name) != OK), None)
        row = _run(step) if missing is None else Row(step.name, SKIP, None, f"it needs the step {missing}")
        outcomes[step.name] = row.outcome
        yield row


def _run(step: Step) -> Row:
    began = time.monotonic()
    try:
        detail, outcome, error = step.run(), OK, None
    except SkippedError as exc:
        return Row(step.name, SKIP, None, exc.reason)
    except (GatewayError, OSError) as exc:
        error = exc if isinstance(exc, GatewayError) else local_error(exc)
        detail, outcome = error.message, FAIL
    ms = round((time.monotonic() - began) * 1000, 1)
    return Row(step.name, outcome, ms, detail, error.code if error else None, error.status if error else 0)
