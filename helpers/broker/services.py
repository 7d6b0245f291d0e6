"""Composes the broker's services. Each identifies its peer by SO_PEERCRED, never by the request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from helpers.broker.accounts.locks import Locks
from helpers.broker.accounts.service import AccountService
from helpers.broker.accounts.uid_table import UidTable
from helpers.broker.clients import Clients
from helpers.broker.keys.service import KeyService
from helpers.broker.keys.sources import KeySource
from helpers.broker.privileged_client import PrivilegedClient
from helpers.broker.remote.addresses import Addresses
from helpers.broker.remote.pool import Connections
from helpers.broker.server import Handler
from helpers.broker.sessions.open_sessions import OpenSessions
from helpers.broker.sessions.service import SessionService
from helpers.broker.sessions.session_ends import SessionEnds
from helpers.broker.sessions.session_starter import SessionStarter
from helpers.broker.sessions.signing import SigningService
from helpers.broker.sessions.udp_paths import UdpPaths
from helpers.broker.status import StatusService
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.event_log import EventLog
from helpers.ssh import agent
from helpers.ssh.known_hosts import KnownHosts


@dataclass(frozen=True)
class Dependencies:
    """The services' dependencies.

    Attributes:
        config: The broker's settings.
        uids: Names and uids.
        locks: Names that the operator has locked.
        open_sessions: The table of sessions.
        session_ends: Reports the ends of sessions.
        source: The source of keys.
        connections: The connections to the remote.
        addresses: The remote's addresses.
        known_hosts: The remote's host keys; None if any host key is accepted.
        identity: The gateway's key, which signs logins; None if the gateway has none.
        privileged: The client of the supervisor's privileged server.
        log: Receives each decision.
        supervisor: The process that started sshd, for session ids.
    """

    config: BrokerConfig
    uids: UidTable
    locks: Locks
    open_sessions: OpenSessions
    session_ends: SessionEnds
    source: KeySource
    connections: Connections
    addresses: Addresses
    known_hosts: KnownHosts | None
    identity: agent.Identity | None
    privileged: PrivilegedClient
    log: EventLog
    supervisor: int


class Services:
    """The broker's services.

    Args:
        dependencies: Their dependencies.

    Attributes:
        accounts: Answers nss-systemd.
        keys: Answers AuthorizedKeysCommand.
        sessions: Answers the session helper.
        signing: Answers sessions' ssh.
        status: Answers ``gatewayctl``.
    """

    def __init__(self, dependencies: Dependencies) -> None:
        config, log = dependencies.config, dependencies.log
        self._dependencies = dependencies
        self._tasks: set[asyncio.Task[str | None]] = set()
        clients = Clients(dependencies.supervisor, config.gateway_trusted_proxies, dependencies.privileged)
        self.accounts = AccountService(config, dependencies.uids, dependencies.locks, log, self._login_begins)
        warm_up = _do_nothing if dependencies.identity is None else dependencies.connections.warm_up
        self.keys = KeyService(config, self.accounts, dependencies.source, clients, log, warm_up)
        udp = UdpPaths(log)
        starter = SessionStarter(
            config, dependencies.connections, dependencies.known_hosts, dependencies.addresses, udp
        )
        self.sessions = SessionService(
            config.access_mode,
            self.accounts,
            starter,
            clients,
            dependencies.connections,
            dependencies.open_sessions,
            dependencies.session_ends,
            log,
            udp,
        )
        self.signing = SigningService(
            self.accounts, dependencies.identity, dependencies.known_hosts, log, self.sessions
        )
        counters = {
            "connections": lambda: len(dependencies.connections),
            "lookups": lambda: self.accounts.lookups,
            "keys_offered": lambda: self.keys.offered,
            "keys_permitted": lambda: self.keys.permitted,
            "key_files_read": lambda: dependencies.source.files_read,
            "sessions": lambda: self.sessions.started,
            "failures": lambda: self.sessions.failed + dependencies.session_ends.failed,
        }
        self.status = StatusService(config, counters, self.accounts.drained, udp.described)

    @property
    def handlers(self) -> dict[str, Handler]:
        """The handler of each ``op``."""
        return {
            "authorized_keys": self.keys.authorized_keys,
            "session": self.sessions.session,
            "sessions": self.sessions.sessions,
            "started": self.sessions.has_started,
            "failed": self.sessions.has_failed,
            "udp": self.sessions.udp_passes,
            "fallback": self.sessions.fall_back,
            "over_ssh": self.sessions.goes_over_ssh,
            "kick": self.sessions.kick,
            "login": self.sessions.login,
            "logged_in": self.sessions.logged_in,
            "root": self.accounts.root,
            "lock": self.keys.lock,
            "drain": self.accounts.drain,
            "status": self.status.status,
        }

    def _login_begins(self, user: str, uid: int) -> None:
        """Prepare the login during the SSH handshake: sshd has just looked the name up, and asks for keys next."""
        self._dependencies.source.prepare(user)
        if user in self._dependencies.config.passwords:
            # A login by password makes no key request, which otherwise makes the home.
            task = asyncio.ensure_future(self._dependencies.privileged.make_home(user, uid))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _do_nothing(user: str) -> None:
    """Do nothing: without a key of its own the gateway cannot connect."""
