"""The steps on the remote host: its host key, the gateway's login as a user, and what a session needs there."""

from __future__ import annotations

import re
import time
from contextlib import suppress

from gatewayctl.doctor.report import SkippedError
from helpers import mosh, udp_probe
from helpers.broker.keys.remote_authorized_keys import MAX_OUTPUT_BYTES, AuthorizedKeysSources
from helpers.broker.remote.connection import Connection, Remote
from helpers.broker.remote.pool import Completed
from helpers.protocol.errors import (
    GatewayError,
    HostKeyError,
    MoshServerError,
    NoLocaleError,
    NoMoshServerError,
    PermissionDeniedError,
    RemoteLostError,
)
from helpers.remote_command import marked, marked_lines

RUN_TIMEOUT_S = 10.0
"""Longest time, in seconds, for each command on the remote host."""

MAX_CLOCK_DIFFERENCE_S = 60
"""Most seconds that the clocks may differ: certificates and ``expiry-time=`` are judged by the gateway's."""

_MAX_BYTES = 64 * 1024
_NONE = "there is none but the gateway's"
_SILENCE_TIMEOUT_S = 5
_PID = re.compile(rb"pid = ([0-9]{1,10})\]")
_VERSION = 'gw_out=$("$1" --version 2>/dev/null | head -n 1) || exit; echo; echo "$gw_mark $gw_out"'
_DATE = 'echo; echo "$gw_mark $(date +%s)"'
_KILL = 'echo; kill "$1"; echo "$gw_mark $?"'


class RemoteHost:
    """The remote host, as the broker sees it.

    Args:
        remote: The remote host, with the gateway's credentials.
        user: A user name; None if none was given.
        sources: Where users' keys are; None if the gateway does not read them there.
        mosh_server: REMOTE_MOSH_SERVER.
        mosh_ports: REMOTE_MOSH_PORTS.
    """

    def __init__(
        self, remote: Remote, user: str | None, sources: AuthorizedKeysSources | None, mosh_server: str, mosh_ports: str
    ) -> None:
        self._remote, self._user, self._sources = remote, user, sources
        self._mosh_server, self._mosh_ports = mosh_server, mosh_ports
        self._host_key_error: HostKeyError | None = None
        self._open: Connection | None = None
        self._started: Completed | None = None
        self._udp: udp_probe.UdpResult | None = None

    def agree(self) -> str:
        """Exchange keys: algorithms come first, and the host key is the next step's."""
        try:
            self._remote.verify_host_key()
        except HostKeyError as exc:
            self._host_key_error = exc
        return self._remote.guessed_kex[-1] if self._remote.guessed_kex else "key exchange done"

    def verify_host_key(self) -> str:
        """Say whether the host key is the pinned one."""
        if self._host_key_error is not None:
            raise self._host_key_error
        if self._remote.known_hosts is None:
            return "any: REMOTE_IGNORE_HOST_KEY is on"
        return f"as in {self._remote.known_hosts.path}"

    def log_in(self) -> str:
        """Log in as the user with the gateway's key."""
        if self._remote.key is None:
            raise SkippedError("the gateway has no key: users' agents log in")
        if self._user is None:
            raise SkippedError("give --user NAME")
        self._open = self._remote.connect(self._user)
        return f"as {self._user}"

    def read_keys(self) -> str:
        """Read the user's authorized_keys, by the broker's rules."""
        if self._sources is None:
            raise SkippedError("keys come from the gateway's settings, or any key passes")
        user = str(self._user)
        completed = self._run(self._sources.command_line(user), MAX_OUTPUT_BYTES)
        found = self._sources.parse(user, completed.stdout, completed.marker, completed.status)
        own = b"" if self._remote.key is None else self._remote.key.get_base64().encode("ascii")
        lines = [line.strip() for line in found.content.splitlines()]
        keys = [line for line in lines if line and not line.startswith(b"#") and own not in line]
        where = ", ".join(self._sources.files) + (f" and {self._sources.command}" if self._sources.command else "")
        problems = "; ".join(found.problems)
        if not keys:
            msg = f"no key of {user} counts in {where}"
            raise PermissionDeniedError(f"{msg}: {problems or _NONE}")
        return f"{len(keys)} in {where}{'; ' if problems else ''}{problems}"

    def find_mosh_server(self) -> str:
        """Ask mosh-server for its version."""
        completed = self._run(marked(_VERSION, self._mosh_server))
        version = next(marked_lines(completed.stdout, completed.marker), b"").decode("ascii", "replace").strip()
        if not version.startswith("mosh"):
            msg = f"the remote host has no {self._mosh_server}"
            raise NoMoshServerError(f"{msg}; install mosh there, or set REMOTE_MOSH_SERVER to where it is")
        return version

    def start_mosh_server(self) -> str:
        """Start a mosh-server for `try_udp`, in the first locale that the remote host has."""
        assert self._open is not None  # noqa: S101 - it needs `log_in`
        failure: GatewayError = NoLocaleError("the remote host has no UTF-8 locale")
        for locale in mosh.Terminal(256, {}).locales:
            line = mosh.server_command(
                mosh.Terminal(256, locale),
                address=self._open.address,
                program=self._mosh_server,
                ports=self._mosh_ports,
                silence_timeout_s=_SILENCE_TIMEOUT_S,
                run=mosh.RunCommand("exec cat"),
            )
            self._started = completed = self._run(line)
            if mosh.find_mosh_connect(completed.stdout, completed.marker) is not None:
                return " ".join(f"{name}={value}" for name, value in locale.items())
            failure = mosh.failure(
                completed.status, completed.stdout, completed.stderr, completed.marker, self._mosh_server
            )
            if not isinstance(failure, NoLocaleError):
                break
        raise failure

    def try_udp(self, round_trip_s: float) -> str:
        """Try whether UDP gets through to that mosh-server, and end it."""
        assert self._open is not None  # noqa: S101 - it needs `start_mosh_server`
        assert self._started is not None  # noqa: S101 - the same
        endpoint = mosh.find_mosh_connect(self._started.stdout, self._started.marker)
        assert endpoint is not None  # noqa: S101 - the same
        try:
            self._udp = udp_probe.probe(self._open.address, endpoint.port, endpoint.key, round_trip_s)
        except OSError as exc:
            msg = f"mosh-client cannot be started on the gateway ({exc.strerror}); apt-get install mosh"
            raise MoshServerError(msg) from exc
        finally:
            self._end(self._started.stderr)
        if self._udp.outcome == "passes":
            return f"port {endpoint.port}, first answer after {self._udp.ms:.0f} ms"
        how = "is refused" if self._udp.outcome == "refused" else "does not get through"
        msg = f"UDP {how} to port {endpoint.port} of the remote host, or its answers do not come back"
        raise RemoteLostError(
            f"{msg}; open {self._mosh_ports} (REMOTE_MOSH_PORTS) in the packet filters between the two"
        )

    def report_large_datagrams(self) -> str:
        """Say whether large datagrams get through, as a full screen takes them."""
        assert self._udp is not None  # noqa: S101 - the same
        if not self._udp.large:
            msg = "small datagrams get through, and datagrams of 1,252 bytes do not"
            raise RemoteLostError(f"{msg}: mosh would freeze at the first full screen; check the tunnel's MTU")
        return "1,252 bytes"

    def compare_clocks(self) -> str:
        """Compare the remote host's clock with ours."""
        began = time.time()
        completed = self._run(marked(_DATE))
        middle = (began + time.time()) / 2
        said = next(marked_lines(completed.stdout, completed.marker), b"").strip()
        if not said.isdigit():
            raise SkippedError("the remote host's date(1) prints no seconds")
        difference = int(said) - middle
        if abs(difference) > MAX_CLOCK_DIFFERENCE_S:
            msg = f"the remote host's clock differs by {difference:.0f} s"
            raise RemoteLostError(f"{msg}; certificates and expiry-time= are judged by the gateway's: synchronize both")
        return f"{abs(difference):.0f} s"

    def open_sftp(self) -> str:
        """Open the subsystem sftp."""
        assert self._open is not None  # noqa: S101 - it needs `log_in`
        if not self._open.answers_sftp(RUN_TIMEOUT_S):
            msg = "the remote host's subsystem sftp, which sftp and scp need, does not answer"
            raise RemoteLostError(f"{msg}; add Subsystem sftp internal-sftp to its sshd_config")
        return "it answers"

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()

    def _end(self, stderr: bytes) -> None:
        """End a mosh-server that no client may have reached: it would wait for a minute."""
        if (found := _PID.search(stderr)) is not None:
            with suppress(GatewayError):  # what was found about UDP counts
                self._run(marked(_KILL, found[1].decode("ascii")))

    def _run(self, line: str, max_bytes: int = _MAX_BYTES) -> Completed:
        assert self._open is not None  # noqa: S101 - it needs `log_in`
        return self._open.run(line, max_bytes=max_bytes, timeout_s=RUN_TIMEOUT_S)
