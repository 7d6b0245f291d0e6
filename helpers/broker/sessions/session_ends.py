"""Logs how sessions ended; and of those that the remote never accepted, why they failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from helpers.broker.client_traffic import Traffic
from helpers.broker.privileged_client import PrivilegedClient, SshdConnection
from helpers.broker.sessions.open_sessions import AUTHENTICATING, LOGGED_IN, OpenSession
from helpers.protocol.errors import GatewayError, PermissionDeniedError, RemoteLostError
from helpers.protocol.event_log import EventLog

LOOK_EVERY_S = 10.0
"""Seconds for which a look at the remote counts, so that failing logins do not make more connections there."""

EXIT = "exit"
"""How a session ends by itself, also if the remote ends it."""

_ENDS = {"closed": "disconnected", "lost": "lost", "stopped": "stopped"}
"""How a session ends with its connection."""


class SessionEnds:
    """Reports the ends of sessions.

    Args:
        log: Receives a line for each.
        privileged: Says what sshd logged about a session's connection.
        by_agent: Whether sessions log in on the remote with the users' own agents.
        look: Connects to the remote, verifies its host key and disconnects; blocks; raises `GatewayError`.
        clock: Seconds since the epoch.

    Attributes:
        failed: How many sessions the remote has not accepted.
    """

    def __init__(
        self,
        log: EventLog,
        privileged: PrivilegedClient,
        look: Callable[[], None],
        *,
        by_agent: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._privileged, self._by_agent, self._look, self._clock = log, privileged, by_agent, look, clock
        self._looking: asyncio.Future[GatewayError | None] | None = None
        self._looked_s = 0.0
        self.failed = 0

    async def watch(self, session: OpenSession) -> None:
        """Have the supervisor note how a session ends, in the order in which sshd logs and the session ends."""
        if session.sid is not None:
            await self._privileged.watch_session(session.pid, _monitor(session.sid))

    async def report(self, session: OpenSession, traffic: Traffic | None) -> None:
        """Log the end of a session.

        Args:
            session: The session.
            traffic: The client's bytes; None if it has left already.
        """
        connection = SshdConnection()
        if session.sid is not None:
            connection = await self._privileged.connection(_monitor(session.sid), session.pid)
        ended = session.ended or _ENDS.get(str(connection.ended), EXIT)
        if session.stage != LOGGED_IN:
            await self._report_failure(session, ended)
            return
        bytes_ = traffic or connection.traffic
        self._log.info(
            "session_ended",
            **_names(session),
            transport=session.transport,
            ended=ended,
            seconds=round(self._clock() - session.since, 1),
            sent=None if bytes_ is None else bytes_.sent,
            received=None if bytes_ is None else bytes_.received,
        )

    async def _report_failure(self, session: OpenSession, ended: str) -> None:
        if ended == EXIT:
            error = await self._reason(session)
            self.failed_to_start(session, error.code, error.message)
        else:
            seconds = round(self._clock() - session.since, 1)
            self._log.info("session_abandoned", **_names(session), ended=ended, seconds=seconds)

    def failed_to_start(self, session: OpenSession, outcome: str, reason: str) -> None:
        """Log that a session did not start.

        Args:
            session: The session.
            outcome: A code of `helpers.protocol.errors`.
            reason: One sentence.
        """
        self.failed += 1
        ms = (self._clock() - session.since) * 1000
        self._log.error("session_failed", **_names(session), outcome=outcome, reason=reason, ms=ms)

    async def _reason(self, session: OpenSession) -> GatewayError:
        """Return why the remote did not accept a session's ssh, whose own words only the user has."""
        if session.stage == AUTHENTICATING:
            return PermissionDeniedError("the remote host did not accept the gateway's key for the session's ssh")
        error = await self._looked()
        if error is not None:
            return error
        if self._by_agent:
            return PermissionDeniedError("the remote host accepted no key of the user's agent")
        return RemoteLostError("the session's ssh ended before it logged in on the remote host")

    async def _looked(self) -> GatewayError | None:
        """Look at the remote, once for all sessions that fail within `LOOK_EVERY_S`."""
        now = self._clock()
        if self._looking is None or now - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._error)
        return await asyncio.shield(self._looking)

    def _error(self) -> GatewayError | None:
        try:
            self._look()
        except GatewayError as error:
            return error
        return None


def _monitor(sid: str) -> int:
    return int(sid.partition("-")[0])


def _names(session: OpenSession) -> dict[str, object]:
    return {"sid": session.sid, "user": session.user, "client": session.client, "key": session.key}
