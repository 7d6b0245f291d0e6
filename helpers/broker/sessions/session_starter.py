"""Starts sessions on the remote: a mosh-server for a terminal; everything else goes over ssh."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helpers import mosh
from helpers.broker.remote.addresses import Addresses, numeric
from helpers.broker.remote.pool import Connections
from helpers.broker.sessions.udp_paths import UdpPaths
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import GatewayError, NoLocaleError, NoMoshServerError, ProtocolError
from helpers.protocol.messages import MAX_COLORS, is_locale_value
from helpers.protocol.session_answer import MoshAnswer, SessionAnswer, SshAnswer
from helpers.ssh.authorized_keys import decode_command
from helpers.ssh.known_hosts import KnownHosts

MOSH_OUTPUT_MAX_BYTES = 64 * 1024
"""Most output, in bytes, that a login shell may write before mosh-server's line."""

PATIENCE_S = 1.1
"""Seconds, on top of a round trip, after which UDP counts as blocked: of 1,500 sessions with 29 % loss each way none
waited longer (measured)."""

UNKNOWN_RTT_S = 0.5
"""A round trip, in seconds, where none was measured."""

NO_UDP = "UDP does not get through to the remote host"
"""Why a session goes over ssh."""

MAX_COMMAND_CHARS = 40_000
"""Longest command, in characters, that is accepted: in base64 it still fits into one argument (128 KiB on Linux)."""

SFTP_REQUEST = "gateway-subsystem-sftp"
"""The command that sshd runs for a client's request of the subsystem sftp: see ``sshd_config.d``."""

SFTP_COMMAND = "internal-sftp"
"""The value of SSH_ORIGINAL_COMMAND on the remote for sftp under a key's ``command=``: scripts can rely on this name on
every host, since the path of sftp-server differs."""

_SFTP_ALONE = "echo This service allows sftp connections only.; exit 1"
"""sshd's reply to everything but sftp for a key with ``command="internal-sftp"`` (session.c, do_child)."""

_SFTP_SERVER = (
    "exec env PATH=/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh:/usr/libexec/ssh:/usr/libexec:/usr/lib/misc"
    " sftp-server"
)
"""Runs sftp-server from the directories in which systems install it; the line means the same in every shell."""

_SFTP_OPTIONS = re.compile(r"[A-Za-z0-9._/%+=:, -]*", re.ASCII)

_LOCALE_NAME = re.compile(r"LANG|LC_[A-Z]{1,16}", re.ASCII)


@dataclass(frozen=True)
class SessionRequest:
    """A session helper's request, checked.

    Attributes:
        terminal: The terminal for mosh; None for a request that mosh cannot carry.
        command: The command to run, a key's ``command=`` or else the client's; None for a login shell.
        original_command: The client's command if a key's ``command=`` replaces it; None otherwise.
        forced: Whether a key's ``command=`` replaces the client's.
        window: Whether the terminal has a size. A terminal without one was requested by a program (Ansible) that reads
            the command's output.
    """

    terminal: mosh.Terminal | None
    command: str | None
    original_command: str | None
    forced: bool
    window: bool = True

    @property
    def subsystem(self) -> str | None:
        """The subsystem to request from the remote; None for a command or a shell."""
        return "sftp" if self.command == SFTP_REQUEST and not self.forced else None


def parse_request(request: Mapping[str, Any]) -> SessionRequest:
    """Check a session helper's request.

    Args:
        request: ``terminal``: None, or an object with ``colors`` (0-256), ``locale`` and ``window``; ``command``: a
            key's, as `helpers.ssh.authorized_keys.encode_command` wrote it, or None; ``original_command``: the
            client's, or None.

    Raises:
        ProtocolError: The request is not valid.
    """
    carried, original = request.get("command"), request.get("original_command")
    for text in (original, carried):
        if text is not None:
            _check_command(text)
    terminal = request.get("terminal")
    checked = None if terminal is None else _terminal(terminal)
    window = terminal is None or terminal["window"]
    if carried is None:
        return SessionRequest(checked, original, None, forced=False, window=window)
    sftp = original == SFTP_REQUEST
    command = _replace_internal_sftp(decode_command(carried), sftp=sftp)
    return SessionRequest(checked, command, SFTP_COMMAND if sftp else original, forced=True, window=window)


def _replace_internal_sftp(command: str, *, sftp: bool) -> str:
    """Replace ``internal-sftp``, sshd's own sftp server, by a program: to a shell it is no command.

    Args:
        command: A key's ``command=``. The options that follow the name, such as ``-R``, are those of sftp-server(8).
        sftp: Whether the client asked for the subsystem sftp.

    Raises:
        ProtocolError: An option contains a character that a shell might interpret; sshd itself uses no shell for it.
    """
    name, options = command[: len(SFTP_COMMAND)], command[len(SFTP_COMMAND) :]
    if name != SFTP_COMMAND or options[:1].strip(" \t"):
        return command
    options = options.replace("\t", " ")
    if not _SFTP_OPTIONS.fullmatch(options):
        msg = "the options that the key gives internal-sftp are not ones that this gateway carries"
        raise ProtocolError(msg)
    return _SFTP_SERVER + options if sftp else _SFTP_ALONE


def _check_command(text: object) -> None:
    if not isinstance(text, str) or len(text) > MAX_COMMAND_CHARS:
        msg = f"the command is longer than {MAX_COMMAND_CHARS} characters"
        raise ProtocolError(msg)
    try:
        encoded = text.encode("utf-8", "surrogateescape")  # as os.environ encodes bytes that are not UTF-8
    except UnicodeEncodeError as exc:
        msg = "the command is not text"
        raise ProtocolError(msg) from exc
    if b"\0" in encoded:
        msg = "the command has a NUL in it"
        raise ProtocolError(msg)


def _terminal(terminal: object) -> mosh.Terminal:
    given = terminal if isinstance(terminal, dict) else {}
    colors, locale = given.get("colors"), given.get("locale")
    if (
        not isinstance(colors, int)
        or isinstance(colors, bool)
        or not 0 <= colors <= MAX_COLORS
        or not isinstance(locale, dict)
        or not isinstance(given.get("window"), bool)
    ):
        msg = "the session's terminal is incomplete"
        raise ProtocolError(msg)
    for name, value in locale.items():
        if not (_LOCALE_NAME.fullmatch(name) and isinstance(value, str) and is_locale_value(value)):
            msg = "the session's locale is not valid"
            raise ProtocolError(msg)
    return mosh.Terminal(colors, locale)


@dataclass(frozen=True)
class Started:
    """A session that was started.

    Attributes:
        answer: The answer for the session helper.
        log: The fields for the log.
    """

    answer: SessionAnswer
    log: dict[str, object]

    @property
    def transport(self) -> str:
        """The session's transport: ``mosh`` or ``ssh``."""
        return "mosh" if self.answer["transport"] == "mosh" or "mosh" in self.answer else "ssh"


@dataclass(frozen=True)
class SshStarted(Started):
    """A session that goes over ssh, or starts its mosh-server over ssh."""

    answer: SshAnswer


class SessionStarter:
    """Starts sessions.

    Args:
        config: The broker's settings.
        connections: The connections to the remote.
        known_hosts: The remote's host keys; None if any host key is accepted.
        addresses: The remote's addresses.
        udp: Where UDP passes.
    """

    def __init__(
        self,
        config: BrokerConfig,
        connections: Connections,
        known_hosts: KnownHosts | None,
        addresses: Addresses,
        udp: UdpPaths,
    ) -> None:
        self._udp = udp
        self._config, self._connections, self._known_hosts = config, connections, known_hosts
        self._addresses, self._by_agent = addresses, config.access_mode.passes_agent_through

    async def start(self, user: str, request: SessionRequest) -> Started:
        """Start a session.

        Args:
            user: The name that owns the session's uid.
            request: The session's request.

        Raises:
            GatewayError: The remote starts no session for it; the sentence is the reason.
        """
        if request.terminal is None or self._by_agent or not self._mosh_carries(request):
            return await self._ssh(user, request)
        retry = False
        if self._falls_back and self._udp.has_blocked(user) and (address := await self._blocked_address(user)):
            retry = self._udp.take_retry(address)
            if not retry:
                return await self.over_ssh(user, request, NO_UDP)
        try:
            return await self._mosh(user, request, request.terminal, retry=retry)
        except (NoMoshServerError, NoLocaleError) as error:
            if not self._falls_back:
                raise
            return await self.over_ssh(user, request, error.message)

    async def over_ssh(self, user: str, request: SessionRequest, reason: str) -> SshStarted:
        """Start a session over ssh that mosh was to carry.

        Args:
            user: The name that owns the session's uid.
            request: The session's request.
            reason: Why mosh does not carry it, for the user.

        Raises:
            GatewayError: The remote starts no session for it; the sentence is the reason.
        """
        started = await self._ssh(user, request, over_ssh=True)
        started.answer["pty"] = True
        started.answer["notice"] = f"{reason}; this session goes over ssh"
        return started

    async def _blocked_address(self, user: str) -> str | None:
        """Return the address that the user's next connection reaches, if none of its ports is open to UDP."""
        connection = self._connections.connection(user)
        address = (await self._resolve())[0] if connection is None else connection.address
        first = int(self._config.remote_mosh_ports.partition(":")[0])
        return address if self._udp.is_blocked(user, address, first) else None

    async def end_mosh_server(self, user: str, pid: int) -> None:
        """End a mosh-server of a user's that its client does not reach; on failure it ends by itself later."""
        await self._connections.run_in_background(user, mosh.end_command(pid), max_bytes=MOSH_OUTPUT_MAX_BYTES)

    @property
    def _falls_back(self) -> bool:
        """Whether terminals go over ssh where mosh does not work."""
        return self._config.gateway_transport == "auto"

    def _mosh_carries(self, request: SessionRequest) -> bool:
        """Whether mosh is to carry a terminal: a shell's, and a command's unless its output or status is needed."""
        if self._config.gateway_transport == "ssh":
            return False
        by_ssh = request.forced or not request.window or self._config.gateway_pty_commands == "ssh"
        return request.command is None or not by_ssh

    async def _mosh(
        self, user: str, request: SessionRequest, terminal: mosh.Terminal, *, retry: bool = False
    ) -> Started:
        """Start a mosh-server, in the first locale that the remote has.

        Args:
            user: The name that owns the session's uid.
            request: The session's request.
            terminal: Its terminal.
            retry: Whether it tries a blocked path again.
        """
        config = self._config
        failure: GatewayError | None = None
        for locale in terminal.locales:
            command = functools.partial(self._mosh_command, request, terminal.colors, locale)
            ran = await self._connections.run(
                user, command, max_bytes=MOSH_OUTPUT_MAX_BYTES, until=mosh.parse_mosh_connect
            )
            completed = ran.completed
            endpoint = mosh.find_mosh_connect(completed.stdout, completed.marker)
            if endpoint is not None:
                times = {"connect_ms": ran.connect_ms, "mosh_server_ms": ran.run_ms}
                answer: MoshAnswer = {
                    "transport": "mosh",
                    "address": ran.address,
                    "port": endpoint.port,
                    "key": endpoint.key,
                    "predict": config.gateway_mosh_predict,
                }
                if self._falls_back:
                    server = mosh.find_server_pid(completed.stderr)
                    if self._is_closed(user, ran.address, endpoint.port, retry=retry):
                        if server is not None:
                            await self.end_mosh_server(user, server)
                        return await self.over_ssh(user, request, NO_UDP)
                    self._watch_unproven(user, answer, server)
                return Started(answer, {"remote": ran.address, "udp_port": endpoint.port, **times})
            failure = mosh.failure(
                completed.status, completed.stdout, completed.stderr, completed.marker, config.remote_mosh_server
            )
            if not isinstance(failure, NoLocaleError):
                break
        assert failure is not None  # noqa: S101 - there is always one locale to try
        raise failure

    def _is_closed(self, user: str, address: str, port: int, *, retry: bool) -> bool:
        """Whether a port is beyond those that a firewall leaves open, and no session is to try it again now."""
        return self._udp.is_blocked(user, address, port) and not retry and not self._udp.take_retry(address)

    def _watch_unproven(self, user: str, answer: MoshAnswer, server: int | None) -> None:
        """Have the session watch its path if that is not proven."""
        if not self._udp.is_proven(user, answer["address"], answer["port"]):
            connection = self._connections.connection(user)
            answer["patience_s"] = PATIENCE_S + (connection.round_trip_s if connection else UNKNOWN_RTT_S)
            answer["server"] = server

    def _mosh_command(self, request: SessionRequest, colors: int, locale: Mapping[str, str], address: str) -> str:
        return mosh.server_command(
            mosh.Terminal(colors, locale),
            address=address,
            program=self._config.remote_mosh_server,
            ports=self._config.remote_mosh_ports,
            silence_timeout_s=self._config.gateway_session_timeout,
            run=_run(request),
        )

    async def _ssh(self, user: str, request: SessionRequest, *, over_ssh: bool = False) -> SshStarted:
        """Answer with what the session's own ssh needs; fail for a user whom the remote has just refused.

        Args:
            user: The name that owns the session's uid.
            request: The session's request.
            over_ssh: Whether ssh also carries what mosh is to carry.
        """
        if not self._by_agent:
            self._connections.verdicts.check_refusal(user)
        connection = self._connections.connection(user)
        addresses = await self._resolve() if connection is None else self._addresses.starting_with(connection.address)
        # ssh may reach any of these addresses; a mosh-server on :: also serves IPv4 on Linux and macOS.
        address = next((each for each in addresses if ":" in each), addresses[0])
        terminal = request.terminal if self._mosh_carries(request) and not over_ssh else None
        run = _run(request) if request.forced else None
        answer: SshAnswer = {
            "transport": "ssh",
            "address": addresses[0],
            "addresses": addresses,
            "host": self._config.remote_host,
            "port": self._config.remote_port,
            "host_key_alias": self._known_hosts.known_name if self._known_hosts else self._config.remote_host,
            "known_hosts": self._config.known_hosts,
            # Without a gateway key, ssh uses the agent that the user forwarded.
            "agent": None if self._by_agent else self._config.agent_socket,
            "user": user,
            # With agent pass-through each session must authenticate: any client gets the uid of the name it claims.
            "share": not self._by_agent,
            # Only if a login on the remote was completed so: if it prompts for a password, that is a failed login.
            "interactive": connection is not None and connection.interactive,
            "subsystem": request.subsystem,
            "command": run.line if run else None if request.subsystem else request.command,
            "pty": request.terminal is not None and terminal is None,
        }
        if terminal is not None:
            answer["mosh"] = {
                "commands": [
                    self._mosh_command(request, terminal.colors, locale, address) for locale in terminal.locales
                ],
                "program": self._config.remote_mosh_server,
                "predict": self._config.gateway_mosh_predict,
                "falls_back": self._falls_back,
            }
        # ssh checks the host key of its own connection, unless REMOTE_IGNORE_HOST_KEY is on.
        unchecked = {} if self._known_hosts else {"host_key": "ignored"}
        return SshStarted(answer, {"remote": ",".join(addresses), **unchecked})

    async def _resolve(self) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(None, self._addresses.resolve)
        return [numeric(address) for address in found]


def _run(request: SessionRequest) -> mosh.RunCommand | None:
    return None if request.command is None else mosh.RunCommand(request.command, request.original_command)
