"""What unit tests put in the place of time and of the log."""

from __future__ import annotations

from helpers.protocol.event_log import EventLog


class ManualClock:
    """A clock that stands still until a test sets it.

    Attributes:
        now_s: What it shows, in seconds.
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
