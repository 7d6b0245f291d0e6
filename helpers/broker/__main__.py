"""The broker's process: ``python3 -I -m helpers.broker``.

The supervisor starts it as the gateway's own unprivileged uid, with the settings on standard input and these file
descriptors: 3, 4 and 5 are listening sockets for the helpers, nss-systemd and ssh's agent requests; 6 is the socket
over which it requests privileged operations; to 7 it writes one line: ``{"result": {}}`` once it serves, or the error.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sqlite3
import sys
from pathlib import Path

from helpers.broker.accounts.locks import Locks
from helpers.broker.accounts.uid_table import UidTable
from helpers.broker.keys.cached_remote_keys import RemoteKeys
from helpers.broker.keys.local_keys import ContentKeys, PathKeys
from helpers.broker.keys.remote_authorized_keys import AuthorizedKeysSources
from helpers.broker.keys.sources import AnyKeySource, KeySource, LocalKeySource, RemoteKeySource
from helpers.broker.keys.sshd_key_cache import SshdKeyCache
from helpers.broker.privileged_client import PrivilegedClient
from helpers.broker.remote.connection import Remote, identity, load_key, silence_paramiko
from helpers.broker.remote.pool import Connections
from helpers.broker.remote.verdicts import Verdicts
from helpers.broker.server import Server
from helpers.broker.services import Dependencies, Services
from helpers.broker.sessions.open_sessions import OpenSessions
from helpers.broker.sessions.session_ends import SessionEnds
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.deadlines import DRAIN_S
from helpers.protocol.errors import GatewayError, SettingsError
from helpers.protocol.event_log import EventLog
from helpers.protocol.free_space import is_short
from helpers.protocol.messages import encode, error_answer
from helpers.ssh.known_hosts import KnownHosts

LISTENING_FDS = (3, 4, 5)
PRIVILEGED_FD = 6
STATUS_FD = 7

SWEEP_S = 30.0
"""Seconds between checks for idle connections."""


def build_dependencies(config: BrokerConfig, log: EventLog) -> Dependencies:
    """Build the broker's dependencies from its settings.

    Raises:
        SettingsError: The gateway's key, or a file that the settings name, cannot be used.
        GatewayError: There is no space for the table of users.
    """
    key = None if config.ssh_key is None else load_key(config.ssh_key, config.ssh_certificate)
    own_key = b"" if key is None else key.get_base64().encode("ascii")
    known_hosts = _known_hosts(config, log)

    def unchecked(host_key: str) -> None:
        log.warning("host_key_ignored", remote=config.remote_host, host_key=host_key)

    remote = Remote(config.remote_host, config.remote_port, known_hosts, key, unchecked)
    privileged = PrivilegedClient(socket.socket(fileno=PRIVILEGED_FD), lambda: signal.raise_signal(signal.SIGTERM))
    ends = SessionEnds(log, privileged, remote.verify_host_key, by_agent=config.access_mode.passes_agent_through)
    uids, locks, open_sessions = _tables(config, ends)
    verdicts = Verdicts(config.gateway_cache_ttl)
    connections = Connections(remote.connect, known=uids.had_session, verdicts=verdicts)
    return Dependencies(
        config=config,
        uids=uids,
        locks=locks,
        open_sessions=open_sessions,
        session_ends=ends,
        source=_key_source(config, uids, connections, privileged, own_key),
        connections=connections,
        addresses=remote.addresses,
        known_hosts=known_hosts,
        identity=None if key is None else identity(key),
        privileged=privileged,
        log=log,
        supervisor=os.getppid(),
    )


def _known_hosts(config: BrokerConfig, log: EventLog) -> KnownHosts | None:
    if config.known_hosts is None:
        log.warning("host_key_ignored", remote=config.remote_host, reason="REMOTE_IGNORE_HOST_KEY=true")
        return None
    known_hosts = KnownHosts(Path(config.known_hosts), config.remote_host, config.remote_port)
    try:
        known = known_hosts.keys()
    except GatewayError as exc:
        raise SettingsError(f"REMOTE_KNOWN_HOSTS: {exc.message}") from exc
    if not known.trusted:
        log.warning("host_key_unknown", remote=known_hosts.name, known_hosts=config.known_hosts)
    return known_hosts


def _tables(config: BrokerConfig, ends: SessionEnds) -> tuple[UidTable, Locks, OpenSessions]:
    try:
        uids = range(config.uid_start, config.uid_stop)
        table = UidTable(config.users_path, uids, is_short=lambda: is_short(config.state_dir))
        return table, Locks(config.locks_path), OpenSessions(config.sessions_path, ends)
    except sqlite3.Error as exc:
        msg = f"a table in {config.state_dir} cannot be used ({exc})"
        # A full disk may be temporary, so it is not reported as a wrong setting: systemd then restarts the gateway.
        raise (GatewayError if exc.sqlite_errorcode == sqlite3.SQLITE_FULL else SettingsError)(msg) from exc


def _key_source(
    config: BrokerConfig, uids: UidTable, connections: Connections, privileged: PrivilegedClient, own_key: bytes
) -> KeySource:
    if config.access_mode.any_key_passes:
        return AnyKeySource(privileged)
    if config.gateway_authorized_keys_content is not None:
        return LocalKeySource(ContentKeys(config.gateway_authorized_keys_content.encode("utf-8")), privileged)
    if config.gateway_authorized_keys_path is not None:
        path = Path(config.gateway_authorized_keys_path)
        if not os.access(path, os.R_OK):
            msg = (
                f"GATEWAY_AUTHORIZED_KEYS_PATH {path} cannot be read by the gateway's own user; "
                f"it holds public keys: chmod 0644 {path}, and let everyone enter its directory"
            )
            raise SettingsError(msg)
        return LocalKeySource(PathKeys(path), privileged)
    sshd_keys = SshdKeyCache(privileged, lambda user: uids.uid_of(user, allocate=False))
    sources = AuthorizedKeysSources(tuple(config.authorized_keys_files), config.remote_authorized_keys_command)
    ttl_s, verdicts = config.gateway_cache_ttl, connections.verdicts
    keys = RemoteKeys(connections, ttl_s, own_key, sources, on_file=sshd_keys.fetched, verdicts=verdicts)
    return RemoteKeySource(keys, sshd_keys, privileged)


async def serve(dependencies: Dependencies) -> None:
    """Serve until SIGTERM; then finish the requests that were accepted and return."""
    services, connections = Services(dependencies), dependencies.connections
    server = Server(services.handlers, services.accounts.account, services.signing.answer, dependencies.log)
    servers = await server.listen(*(socket.socket(fileno=fd) for fd in LISTENING_FDS))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    os.write(STATUS_FD, encode({"result": {}}))
    os.close(STATUS_FD)
    fresh = asyncio.create_task(services.keys.run())
    dependencies.open_sessions.tend()
    while not stop.is_set():
        try:
            async with asyncio.timeout(SWEEP_S):
                await stop.wait()
        except TimeoutError:
            connections.sweep()
            dependencies.open_sessions.tend()
    fresh.cancel()
    # The supervisor holds the sockets too, so new connections wait in their queues for the next broker.
    await server.stop_accepting(servers)
    try:
        async with asyncio.timeout(DRAIN_S):
            await server.idle()
    except TimeoutError:
        pass
    await dependencies.open_sessions.settle()
    connections.close()


def main() -> int:
    """Run the broker; returns an exit status."""
    config = BrokerConfig.from_json(sys.stdin.buffer.read())
    log = EventLog("broker", config.gateway_log_level, syslog=config.syslog)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the key
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # one for each warm connection
    # Ctrl-C in a terminal reaches the whole process group; the supervisor stops the broker by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    silence_paramiko()
    try:
        dependencies = build_dependencies(config, log)
    except GatewayError as error:
        os.write(STATUS_FD, encode(error_answer(error)))
        return error.status
    asyncio.run(serve(dependencies))
    # Skips joining paramiko's threads, which may be waiting for a remote that does not answer.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
