"""What sshd logged about connections and their sessions, for the broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gatewayctl.sshd.connections import Connection, Connections
from gatewayctl.sshd.syslog_relay import SyslogRelay


@dataclass(frozen=True)
class SshdLog:
    """Answers the broker.

    Attributes:
        connections: sshd's connections.
        relay: Reads sshd's messages; None if they go to the machine's syslog without us.
    """

    connections: Connections
    relay: SyslogRelay | None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Args:
            request: ``connection``, the pid of sshd's process for it; ``watch``, the process of a session of it whose
                end is to be noted, or ``session``, one that has ended; both may be missing.

        Returns:
            ``client``, ``ended`` and ``traffic`` as a `Connection` has them; nothing for an invalid request.
        """
        monitor, watch, session = (request.get(name) for name in ("connection", "watch", "session"))
        if type(monitor) is not int or not {type(watch), type(session)} <= {int, type(None)}:
            return {}
        if watch is not None:
            if self.relay is not None:
                self.relay.watch_session(watch, monitor)
            return {}
        if session is None:
            found = self.connections.find(monitor)
        else:
            if self.relay is not None:
                self.relay.wait_for_session(session)
            found = self.connections.of_session(session, monitor)
        found = found or Connection()
        return {"client": found.client, "ended": found.ended, "traffic": found.traffic}
