"""Facts about the remote: to which of its addresses and ports UDP passes.

Sessions report them, each about its own first datagrams. They are kept in memory: a new broker learns them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from helpers.protocol.event_log import EventLog

PASSES, SILENT, REFUSED = "passes", "silent", "refused"
"""What a session found: the remote's datagrams arrived; none did; an ICMP message or the kernel refused ours."""

OUTCOMES = (PASSES, SILENT, REFUSED)

PROVEN_S = 600.0
"""Seconds for which a path that passes is not watched again."""

BLOCKED_S = 300.0
"""Seconds after which one session tries a blocked path again."""

PORTS_AHEAD = 16
"""How many ports above one that passes count as proven, too. mosh-servers take the next free port, so each new highest
one would otherwise be unproven, and an unproven session keeps Python in memory."""

MAX_MS = 60_000.0
"""Longest time, in milliseconds, that a session may report."""


@dataclass
class _Silence:
    """A port without an answer.

    Attributes:
        port: The lowest such port.
        outcome: `SILENT` or `REFUSED`.
        ms: How long the session waited, in milliseconds.
        at_s: Time of the last report.
        retry_s: Time from which one session tries again.
        users: The users whose sessions reported it.
    """

    port: int
    outcome: str
    ms: float
    at_s: float
    retry_s: float
    users: set[str] = field(default_factory=set)

    def holds_for(self, user: str) -> bool:
        """Whether it counts for a user.

        A user's mosh-server may lie, so one user's reports count for that user alone; those of two users count for all.
        """
        return user in self.users or len(self.users) > 1


@dataclass
class _Proof:
    """A port with an answer: the highest one, its time in milliseconds, and when it was last seen."""

    port: int
    ms: float
    at_s: float


class UdpPaths:
    """The facts.

    Args:
        log: Receives each report.
        clock: Seconds, monotonic.
    """

    def __init__(self, log: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._proofs: dict[str, _Proof] = {}
        self._silences: dict[str, _Silence] = {}

    def is_proven(self, user: str, address: str, port: int) -> bool:
        """Whether UDP has passed to a port within `PROVEN_S`, and is not blocked for a user.

        A higher port counts, too, and one that is lower by `PORTS_AHEAD` at most.
        """
        if self.is_blocked(user, address, port):
            return False
        proof = self._proofs.get(address)
        return proof is not None and port <= proof.port + PORTS_AHEAD and self._clock() - proof.at_s <= PROVEN_S

    def has_blocked(self, user: str) -> bool:
        """Whether any address is blocked for a user."""
        return any(silence.holds_for(user) for silence in self._silences.values())

    def is_blocked(self, user: str, address: str, port: int) -> bool:
        """Whether UDP does not pass to a port for a user's sessions."""
        silence = self._silences.get(address)
        return silence is not None and port >= silence.port and silence.holds_for(user)

    def take_retry(self, address: str) -> bool:
        """Whether a session is to try a blocked path again: one may, each `BLOCKED_S`."""
        silence, now = self._silences.get(address), self._clock()
        if silence is None or now < silence.retry_s:
            return False
        silence.retry_s = now + BLOCKED_S
        return True

    def note(  # noqa: PLR0917 - one report
        self, user: str, sid: str | None, address: str, port: int, outcome: str, ms: float, *, keep: bool = True
    ) -> None:
        """Log and keep what a user's session found.

        Args:
            user: The user's name.
            sid: The session's id in the log.
            address: The remote's numeric address.
            port: mosh-server's port.
            outcome: One of `OUTCOMES`.
            ms: After how many milliseconds.
            keep: Whether to keep it.
        """
        self._log.info("udp", sid=sid, user=user, remote=address, udp_port=port, outcome=outcome, ms=ms)
        if not keep:
            return
        now = self._clock()
        silence = self._silences.get(address)
        if outcome == PASSES:
            proof = self._proofs.get(address)
            highest = proof.port if proof is not None and now - proof.at_s <= PROVEN_S else 0
            self._proofs[address] = _Proof(max(port, highest), ms, now)
            if silence is not None and port >= silence.port:
                del self._silences[address]
            return
        users = {user} | (silence.users if silence is not None else set())
        lowest = min(port, silence.port) if silence is not None else port
        self._silences[address] = silence = _Silence(lowest, outcome, ms, now, now + BLOCKED_S, users)
        if len(users) > 1:
            self._proofs.pop(address, None)

    def described(self) -> list[dict[str, object]]:
        """Describe each fact for ``gatewayctl status``.

        Returns:
            ``remote``, ``udp_port``, ``outcome``, ``ms`` and ``age_s``; of a blocked path also ``users``, how many have
            reported it.
        """
        now = self._clock()
        facts: list[dict[str, object]] = [
            {"remote": remote, "udp_port": its.port, "outcome": PASSES, "ms": its.ms, "age_s": round(now - its.at_s, 1)}
            for remote, its in self._proofs.items()
        ]
        return facts + [
            {
                "remote": remote,
                "udp_port": its.port,
                "outcome": its.outcome,
                "ms": its.ms,
                "age_s": round(now - its.at_s, 1),
                "users": len(its.users),
            }
            for remote, its in self._silences.items()
        ]
