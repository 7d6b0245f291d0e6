"""Doubles for unit tests: of time, of the log and of a connection to the remote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.broker.remote.pool import Completed
from helpers.protocol.event_log import EventLog
from helpers.remote_command import marked_lines

if TYPE_CHECKING:
    from collections.abc import Callable


class ManualClock:
    """A clock that stands still until a test sets it.

    Attributes:
        now_s: The time, in seconds.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class RecordedLog(EventLog):
    """A log that is kept in memory.

    Attributes:
        events: Each event with its fields, in order.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def _write(self, level: int, event: str, fields: dict[str, object]) -> None:
        del level
        self.events.append((event, fields))


class FakeConnection:
    """A connection to the remote (`helpers.broker.remote.pool.RemoteConnection`) without a network.

    Args:
        answer: Completes a command, given its line.

    Attributes:
        lines: The command lines that ran, in order.
        limits: For each, the most output in bytes and the timeout in seconds.
        ahead: For each, whether it ran on the gateway's own behalf.
    """

    def __init__(self, answer: Callable[[str], Completed]) -> None:
        self.address, self.alive, self.interactive = "192.0.2.1", True, False
        self.round_trip_s, self.unacknowledged, self.lost_packets = 0.1, False, False
        self.lines: list[str] = []
        self.limits: list[tuple[int, float]] = []
        self.ahead: list[bool] = []
        self._answer = answer

    def close(self) -> None:
        """Hang up."""
        self.alive = False

    def prepare(self, timeout_s: float) -> None:
        """Open no channel."""

    def run(
        self,
        command: str,
        *,
        max_bytes: int,
        timeout_s: float,
        until: Callable[[bytes], object] | None = None,
        ahead: bool = False,
    ) -> Completed:
        """Run a command; it has no status where reading stops before its end."""
        self.lines.append(command)
        self.limits.append((max_bytes, timeout_s))
        self.ahead.append(ahead)
        completed = self._answer(command)
        for line in marked_lines(completed.stdout, completed.marker):
            if until is not None and until(line) is not None:
                return Completed(completed.stdout, b"", None, completed.marker)
        return completed
