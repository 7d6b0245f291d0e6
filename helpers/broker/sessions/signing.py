"""Signs the logins of the sessions' own ssh with the gateway's key."""

from __future__ import annotations

from helpers.broker.accounts.service import AccountService
from helpers.broker.peer_credentials import Peer
from helpers.broker.sessions.service import SessionService
from helpers.protocol.errors import GatewayError, PermissionDeniedError
from helpers.protocol.event_log import EventLog
from helpers.ssh import agent
from helpers.ssh.known_hosts import KnownHosts


class SigningService:
    """An agent for each user, which signs that user's own login on the remote and nothing else.

    Args:
        accounts: The users.
        identity: The gateway's key; None if the gateway has none.
        known_hosts: The remote's host keys; None if any host key is accepted.
        log: Receives refusals.
        sessions: The sessions, whose ssh asks for signatures: it does so when the remote accepts the key.
    """

    def __init__(
        self,
        accounts: AccountService,
        identity: agent.Identity | None,
        known_hosts: KnownHosts | None,
        log: EventLog,
        sessions: SessionService,
    ) -> None:
        self._accounts, self._identity, self._known_hosts, self._log = accounts, identity, known_hosts, log
        self._sessions = sessions

    def answer(self, peer: Peer, message: bytes) -> bytes:
        """Answer one message to the agent for the user who owns the peer's uid: see `helpers.ssh.agent`."""
        try:
            user = self._accounts.owner(peer, "agent")
            if self._identity is None:
                msg = "the gateway has no key"
                raise PermissionDeniedError(msg)
            answer = agent.answer(message, user, self._identity, self._accept_host_key)
        except GatewayError as error:
            self._log.warning("agent_refused", uid=peer.uid, pid=peer.pid, reason=error.message)
            return agent.FAILURE
        if agent.is_signature(answer):
            self._sessions.accepted(peer, user)
        else:
            self._sessions.authenticates(peer)
        return answer

    def _accept_host_key(self, key_type: str, blob: bytes) -> None:
        if self._known_hosts is not None:
            self._known_hosts.verify(key_type, blob)
