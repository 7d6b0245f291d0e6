"""Connections to the remote's sshd, with paramiko; its exceptions are mapped here."""

from __future__ import annotations

import io
import logging
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from helpers import happy_eyeballs
from helpers.broker.remote import tcp_info
from helpers.broker.remote.addresses import Addresses, numeric
from helpers.broker.remote.attempt import Attempt
from helpers.broker.remote.pipelined_transport import NoCommonAlgorithmError as NoCommonError
from helpers.broker.remote.pipelined_transport import PipelinedTransport, PromptedError
from helpers.broker.remote.pool import Completed, LoginLostError, LoginTimeoutError, NoRoomError
from helpers.broker.remote.tcp_info import TcpInfo
from helpers.protocol.broker_config import KEY_SETTINGS
from helpers.protocol.deadlines import CONNECT_TIMEOUT_S
from helpers.protocol.errors import (
    GatewayError,
    NoCommonAlgorithmError,
    PermissionDeniedError,
    RemoteLostError,
    RemoteRefusedError,
    RemoteTimeoutError,
    SettingsError,
)
from helpers.remote_command import behind_marker, new_marker, standard_input
from helpers.ssh.agent import Identity
from helpers.ssh.known_hosts import KnownHosts, fingerprint

KEEPALIVE_S = 15
"""Seconds of silence after which a keepalive is sent, so that a connection that died is noticed."""

DEAD_AFTER_MS = 10_000
"""Milliseconds that sent data may stay unacknowledged before the kernel gives the connection up (tcp(7),
TCP_USER_TIMEOUT)."""

BEGUN_FRESH_S = 1.0
"""Seconds after the login within which the output of the command that began with it may be used."""

_NEEDS_PASSPHRASE = (
    f"{KEY_SETTINGS}: it needs a passphrase, which nobody is there to type; remove it: ssh-keygen -p -f KEY"
)
_READ_BYTES = 32768
_SFTP_INIT, _SFTP_VERSION = b"\0\0\0\5\1\0\0\0\3", b"\0\0\0\0\2"
"""draft-ietf-secsh-filexfer-02, section 4: SSH_FXP_INIT of version 3, and the type of its answer after the length."""

_TCP_THIN_LINEAR_TIMEOUTS = 16  # Linux, linux/tcp.h; Python's socket has no name for it
_STDERR_MAX_BYTES = 8192
_NAMES_MAX_CHARS = 300


def load_key(text: str, certificate: str | None = None) -> paramiko.PKey:
    """Read the gateway's private key.

    Args:
        text: The key file: OpenSSH's format or PEM, PKCS #8 included; ed25519, ECDSA or RSA.
        certificate: The text of its ``-cert.pub``, if it has one.

    Raises:
        SettingsError: The key needs a passphrase or is not valid, or the certificate is not for it.
    """
    if text.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----"):
        raise SettingsError(_NEEDS_PASSPHRASE)
    text = _without_pkcs8(text)
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = kind.from_private_key(io.StringIO(text))
        except paramiko.PasswordRequiredException as exc:
            raise SettingsError(_NEEDS_PASSPHRASE) from exc
        except (paramiko.SSHException, ValueError, IndexError, TypeError, AssertionError):
            continue  # AssertionError: the two halves of an ed25519 key do not match (paramiko, ed25519key.py)
        if certificate is not None:
            _certify(key, certificate)
        return key
    msg = f"{KEY_SETTINGS}: it is not a private key in OpenSSH's or PEM format (ed25519, ECDSA or RSA)"
    raise SettingsError(msg)


def _without_pkcs8(text: str) -> str:
    """Convert a key from PKCS #8 (RFC 5958; ``ssh-keygen -m PKCS8``), which paramiko cannot read, to OpenSSH format."""
    if not text.startswith("-----BEGIN PRIVATE KEY-----"):
        return text
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    try:
        return serialization.load_pem_private_key(text.encode(), None).private_bytes(*form).decode("ascii")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return text


def _certify(key: paramiko.PKey, certificate: str) -> None:
    """Attach a certificate to its key after checking that it is one for this key; paramiko checks only its type."""
    try:
        found = serialization.load_ssh_public_identity(certificate.encode())
        if isinstance(found, serialization.SSHCertificate) and found.type is serialization.SSHCertificateType.USER:
            form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            if found.public_key().public_bytes(*form).decode("ascii").split()[1] == key.get_base64():
                key.load_certificate(certificate)
                return
    except (ValueError, UnsupportedAlgorithm):
        pass  # not a certificate
    msg = f"{KEY_SETTINGS}: the -cert.pub beside it is not a user certificate for this key; have the key signed again"
    raise SettingsError(msg)


def identity(key: paramiko.PKey) -> Identity:
    """Return the agent's identity for a key. It signs with the key's own algorithm, for RSA with SHA-2 (RFC 8332)."""
    algorithms = {"rsa-sha2-256", "rsa-sha2-512"} if key.get_name() == "ssh-rsa" else {key.get_name()}

    def sign(data: bytes, algorithm: str) -> bytes | None:
        return key.sign_ssh_data(data, algorithm).asbytes() if algorithm in algorithms else None

    certificate = [] if key.public_blob is None else [key.public_blob.key_blob]
    return Identity((*certificate, key.asbytes()), sign)


def silence_paramiko() -> None:
    """Disable paramiko's own log, which quotes the remote."""
    logger = logging.getLogger("paramiko")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


class Connection:
    """One authenticated connection to the remote, as one user.

    Args:
        transport: An authenticated transport.
        address: The remote's numeric address, which UDP uses too.
        command: The command that runs on the transport's ``begun`` channel; None if none was begun.
        marker: That command's marker.

    Attributes:
        interactive: Whether the login took keyboard-interactive authentication, without a prompt, after the key.
    """

    def __init__(
        self, transport: PipelinedTransport, address: str, command: str | None = None, marker: bytes = b""
    ) -> None:
        self._transport, self.address = transport, address
        self._spare, self._begun = transport.spare, transport.begun
        self._begun_command, self._begun_marker, self._begun_s = command, marker, time.monotonic()
        self._lock = threading.Lock()
        self._has_room = True
        self.interactive = transport.interactive

    @property
    def alive(self) -> bool:
        """Whether the connection is up, as far as the gateway can tell."""
        return self._transport.is_active()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    @property
    def round_trip_s(self) -> float:
        """The remote kernel's longest likely response time, in seconds (RFC 6298)."""
        return self._tcp_info().round_trip_s

    @property
    def unacknowledged(self) -> bool:
        """Whether the remote's kernel has not yet acknowledged data that was retransmitted."""
        return self._tcp_info().unacknowledged

    @property
    def lost_packets(self) -> bool:
        """Whether packets have been lost since the connection was made."""
        return self._tcp_info().lost_packets

    def _tcp_info(self) -> TcpInfo:
        sock = self._transport.sock
        assert isinstance(sock, socket.socket)  # noqa: S101 - a channel only if one transport runs over another
        return tcp_info.read(sock)

    def prepare(self, timeout_s: float) -> None:
        """Open a channel for the next command, which saves that command one round trip."""
        with self._lock:
            ready = self._spare is not None and not self._spare.closed
        if ready:
            return
        with suppress(GatewayError):  # the next command reports the failure
            channel = self._open(timeout_s)
            with self._lock:
                unused, self._spare = self._spare, channel
            if unused is not None:
                _close(unused)

    def run(
        self,
        command: str,
        *,
        max_bytes: int,
        timeout_s: float,
        until: Callable[[bytes], object] | None = None,
        ahead: bool = False,
    ) -> Completed:
        """Run a command without a PTY.

        Args:
            command: The command line for the user's shell on the remote, from `helpers.remote_command`.
            max_bytes: Most output, in bytes, that is read.
            timeout_s: Longest time for the whole command, in seconds.
            until: Called with the text behind the marker in each line that has it; reading stops once it returns
                something other than None.
            ahead: Whether no login waits for the command. It then leaves the open channel to a login that may come
                meanwhile, unless the remote has refused a second channel.

        Raises:
            RemoteTimeoutError: It took too long.
            NoRoomError: The remote has no channel for it.
            RemoteLostError: The connection broke, or the remote wrote more than ``max_bytes``.
        """
        deadline = time.monotonic() + timeout_s
        channel = None if ahead else self._take_begun(command)
        begun = channel is not None
        if channel is None and not (ahead and self._has_room):
            with self._lock:
                channel, self._spare = self._spare, None
        if channel is None or (channel.closed and not begun):
            channel = self._open(timeout_s)
        marker = self._begun_marker if begun else new_marker()
        try:
            if not begun:
                self._transport.exec_unanswered(channel.remote_chanid, command, standard_input(marker))
            return _read(channel, max_bytes, deadline, marker, until)
        except TimeoutError as exc:
            msg = (
                f"the remote host did not finish a command within {timeout_s:.0f} s; it may be overloaded, or a"
                " start-up file of the user's shell there waits for something"
            )
            raise RemoteTimeoutError(msg) from exc
        except (OSError, EOFError, paramiko.SSHException) as exc:
            msg = "the connection to the remote host broke"
            raise RemoteLostError(msg) from exc
        finally:
            _close(channel)

    def answers_sftp(self, timeout_s: float) -> bool:
        """Check whether the remote's subsystem sftp answers a client's first message; it is closed again.

        Raises:
            RemoteTimeoutError, NoRoomError, RemoteLostError: As `run`.
        """
        channel = self._open(timeout_s)
        channel.settimeout(timeout_s)
        try:
            channel.invoke_subsystem("sftp")
            channel.sendall(_SFTP_INIT)
            answer = b""
            while len(answer) < len(_SFTP_VERSION) and (chunk := channel.recv(len(_SFTP_VERSION) - len(answer))):
                answer += chunk
        except (OSError, EOFError, paramiko.SSHException):
            return False
        finally:
            _close(channel)
        return len(answer) == len(_SFTP_VERSION) and answer[-1:] == _SFTP_VERSION[-1:]

    def _take_begun(self, command: str) -> paramiko.Channel | None:
        """Take the channel of the command that began with the login, if it is this command."""
        with self._lock:
            channel, self._begun = self._begun, None
        if channel is None:
            return None
        # Its output is as old as the connection: a later request must not take it for a fresh answer.
        if command == self._begun_command and time.monotonic() - self._begun_s < BEGUN_FRESH_S:
            return channel
        _close(channel)
        return None

    def _open(self, timeout_s: float) -> paramiko.Channel:
        try:
            channel = self._transport.open_channel_in(timeout_s)
        except TimeoutError as exc:
            msg = f"the remote host did not answer within {timeout_s:.0f} s"
            raise RemoteTimeoutError(msg) from exc
        except (OSError, EOFError, paramiko.SSHException) as exc:
            msg = "the connection to the remote host broke"
            raise RemoteLostError(msg) from exc
        if channel is None:
            self._has_room = False  # MaxSessions 1 (sshd_config(5)), as on some hosts
            msg = "the remote host has no room for another session; see MaxSessions in its sshd_config"
            raise NoRoomError(msg)
        return channel


def _close(channel: paramiko.Channel) -> None:
    """Close a channel. If its connection is broken, paramiko raises the error of a write, which is ignored."""
    with suppress(OSError, EOFError, paramiko.SSHException):
        channel.close()


def _read(
    channel: paramiko.Channel, max_bytes: int, deadline: float, marker: bytes, until: Callable[[bytes], object] | None
) -> Completed:
    output = bytearray()
    checked = 0
    while True:
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = channel.recv(_READ_BYTES)
        output += chunk
        if len(output) > max_bytes:
            msg = f"the remote host wrote more than {max_bytes} bytes"
            raise RemoteLostError(msg)
        while until is not None and (end := output.find(b"\n", checked)) >= 0:
            marked = behind_marker(bytes(output[checked:end]), marker)
            if marked is not None and until(marked) is not None:
                # What has arrived by now: mosh-server wrote its pid before the line that was waited for.
                told = channel.recv_stderr(_STDERR_MAX_BYTES) if channel.recv_stderr_ready() else b""
                return Completed(bytes(output), told, None, marker)
            checked = end + 1
        if not chunk:
            break
    if not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    stderr = bytearray()
    while len(stderr) < _STDERR_MAX_BYTES and (chunk := channel.recv_stderr(_STDERR_MAX_BYTES - len(stderr))):
        stderr += chunk
    status = channel.exit_status
    # paramiko also ends a channel when the transport breaks. It sends EOF in answer to the remote's close.
    if not channel.eof_sent and (status < 0 or not channel.eof_received):
        raise EOFError
    return Completed(bytes(output), bytes(stderr), None if status < 0 else status, marker)


class _WrongGuessError(RemoteLostError):
    """The handshake broke, perhaps because the guessed key exchange method was wrong."""


@dataclass(frozen=True)
class Remote:
    """The remote host, and the gateway's credentials there.

    Attributes:
        host: REMOTE_HOST.
        port: REMOTE_PORT.
        known_hosts: Its host keys; None accepts any host key.
        key: The gateway's private key; None if it has none, and then it makes no connections.
        unchecked: Called with the type and fingerprint of each host key that was accepted without a check.
        guessed_kex: The key exchange method that was negotiated last; empty before the first time.
        addresses: Its addresses.
    """

    host: str
    port: int
    known_hosts: KnownHosts | None
    key: paramiko.PKey | None
    unchecked: Callable[[str], None] = lambda _: None
    guessed_kex: deque[str] = field(default_factory=lambda: deque(maxlen=1))
    addresses: Addresses = field(init=False)

    def __post_init__(self) -> None:
        """Share the addresses and their failures among all connections."""
        object.__setattr__(self, "addresses", Addresses(self.host, self.port))

    def connect(
        self, user: str, command: Callable[[str], str] | None = None, attempt: Attempt | None = None
    ) -> Connection:
        """Connect and authenticate as one user.

        Args:
            user: A valid user name.
            command: Returns the first command line for the remote's numeric address. If the remote is OpenSSH, the
                command is sent with the login. None for none.
            attempt: Gets the connection's socket, so that its owner can give the attempt up.

        Raises:
            RemoteUnresolvedError: The host has no address.
            RemoteRefusedError: The host refuses connections.
            RemoteTimeoutError: The host does not answer in time.
            RemoteLostError: The connection broke.
            LoginTimeoutError, LoginLostError: The same two, after the host key was verified.
            HostKeyError: The host key is unknown, changed or revoked.
            NoCommonAlgorithmError: The host shares no algorithm of one kind with the gateway.
            PermissionDeniedError: The host refuses the gateway's key for this user.
        """
        if self.key is None:
            raise self._denied(user)
        attempt = attempt or Attempt()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        if self.known_hosts is not None:
            self.known_hosts.keys()
        guessed_kex = self.guessed_kex[-1] if self.guessed_kex else None
        try:
            return self._connect(user, self.key, command, attempt, guessed_kex=guessed_kex, deadline=deadline)
        except _WrongGuessError:
            attempt.check()
            # The remote's settings have changed since the last time.
            self.guessed_kex.clear()
            return self._connect(user, self.key, command, attempt, guessed_kex=None, deadline=deadline)

    def _connect(
        self,
        user: str,
        key: paramiko.PKey,
        command: Callable[[str], str] | None,
        attempt: Attempt,
        *,
        guessed_kex: str | None,
        deadline: float,
    ) -> Connection:
        sock, address = self._connect_tcp()
        transport = None
        try:
            attempt.connected(sock)
            transport = PipelinedTransport(sock, guessed_kex)
            self._handshake(transport, deadline)
            line, marker = None if command is None else command(address), new_marker()
            begun = None if line is None else (line, standard_input(marker))
            self._authenticate(transport, user, key, begun, deadline)
            transport.set_keepalive(KEEPALIVE_S)
        except BaseException:
            (transport or sock).close()
            raise
        return Connection(transport, address, line, marker)

    def verify_host_key(self) -> None:
        """Connect, verify the host key, and disconnect.

        Raises:
            GatewayError: As `connect` does before it authenticates.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        sock, _ = self._connect_tcp()
        with closing(sock), closing(PipelinedTransport(sock, None)) as transport:
            self._handshake(transport, deadline)

    def _connect_tcp(self) -> tuple[socket.socket, str]:
        addresses = self.addresses.resolve()
        names = [numeric(address) for address in addresses]
        try:
            sock, number = happy_eyeballs.connect(addresses, _tcp_socket)
        except OSError as exc:
            raise self._tcp_error(exc, names) from exc
        self.addresses.connected(names[number], names[:number])
        # getpeername() fails if the remote has closed the connection already.
        return sock, names[number]

    def _tcp_error(self, error: OSError, names: list[str]) -> GatewayError:
        where = f"the remote host {self.host} port {self.port}"
        tried = f" (tried {', '.join(names)})" if len(names) > 1 else ""
        if isinstance(error, ConnectionRefusedError):
            return RemoteRefusedError(f"{where} refuses connections{tried}; is sshd running there?")
        if isinstance(error, TimeoutError):
            return RemoteTimeoutError(f"{where} does not answer{tried}")
        return RemoteLostError(f"{where} cannot be reached{tried} ({error.strerror or error})")

    def _handshake(self, transport: PipelinedTransport, deadline: float) -> None:
        known = self.known_hosts.keys() if self.known_hosts is not None else None
        if known is not None and known.trusted:
            _prefer(transport, known.key_types)
        left_s = max(0.1, deadline - time.monotonic())
        transport.banner_timeout = transport.handshake_timeout = left_s
        try:
            transport.start_client(timeout=left_s)
            if not transport.initial_kex_done:
                raise TimeoutError
            key = transport.get_remote_server_key()
        except paramiko.ssh_exception.IncompatiblePeer as exc:
            raise self._incompatible(exc) from exc
        except (OSError, EOFError, paramiko.SSHException) as exc:
            if time.monotonic() >= deadline - 0.1 or isinstance(exc, TimeoutError):
                msg = f"the remote host {self.host} did not finish the SSH handshake in time"
                raise RemoteTimeoutError(msg) from exc
            msg = (
                f"the remote host {self.host} port {self.port} broke off the SSH handshake; if its sshd is OpenSSH 9.8 "
                "or newer, is the gateway's address in PerSourcePenaltyExemptList there?"
            )
            # A server that drops connections (MaxStartups) does so before it sends its identification.
            lost = _WrongGuessError if transport.guessed_kex and transport.remote_version else RemoteLostError
            raise lost(msg) from exc
        if transport.agreed is not None:
            self.guessed_kex.append(transport.agreed)
        if self.known_hosts is not None:
            self.known_hosts.verify(key.get_name(), key.asbytes())
        else:
            self.unchecked(f"{key.get_name()} {fingerprint(key.asbytes())}")

    def _authenticate(
        self,
        transport: PipelinedTransport,
        user: str,
        key: paramiko.PKey,
        command: tuple[str, bytes] | None,
        deadline: float,
    ) -> None:
        try:
            partial = transport.authenticate(user, key, command, max(0.1, deadline - time.monotonic()))
        except (OSError, EOFError, paramiko.SSHException) as exc:
            if transport.refused or isinstance(exc, PromptedError):
                raise self._refusal(user, transport) from exc
            late = isinstance(exc, paramiko.AuthenticationException) and transport.is_active()
            if late or time.monotonic() >= deadline - 0.1:
                msg = f"the remote host {self.host} did not finish the login as {user} in time"
                raise LoginTimeoutError(msg) from exc
            msg = (
                f"the remote host {self.host} broke off the login as {user}; is the gateway's public key in"
                f" ~{user}/.ssh/authorized_keys there, and the account neither expired nor locked?"
            )
            raise LoginLostError(msg) from exc
        if partial:
            raise self._refusal(user, transport)

    def _incompatible(self, error: Exception) -> NoCommonAlgorithmError:
        where = f"the remote host {self.host} port {self.port}"
        if not isinstance(error, NoCommonError):
            return NoCommonAlgorithmError(f"{where} does not speak SSH 2.0, which the gateway does")
        return NoCommonAlgorithmError(
            f"{where} and the gateway have no {error.kind} in common: the gateway has {_names(error.ours)}; "
            f"the remote offers {_names(error.theirs)}; add one of the gateway's to {error.keyword} in its sshd_config"
        )

    def _refusal(self, user: str, transport: PipelinedTransport) -> PermissionDeniedError:
        """Explain why the remote has refused a login."""
        methods = _names(transport.methods)
        if transport.partial:
            return PermissionDeniedError(
                f"the remote host accepts the gateway's key as {user}, and then asks for {methods}, which the gateway "
                "cannot answer; exempt the gateway's address from AuthenticationMethods in the remote's sshd_config"
            )
        if transport.methods and "publickey" not in transport.methods:
            return PermissionDeniedError(
                f"the remote host takes no public key as {user}, but {methods}; see PubkeyAuthentication and "
                "AuthenticationMethods in its sshd_config"
            )
        denied = self._denied(user)
        if str(transport.remote_version).startswith("SSH-2.0-dropbear"):
            # dropbear 2022.83: "Bad public key options", only in its own log.
            return PermissionDeniedError(
                f"{denied.message}; its sshd is dropbear, which ignores a line with an option that it does not know, "
                "such as from=, pty or no-user-rc"
            )
        return denied

    def _denied(self, user: str) -> PermissionDeniedError:
        return PermissionDeniedError(
            f"the remote host does not let the gateway's key in as {user}; "
            f"add the gateway's public key to ~{user}/.ssh/authorized_keys there"
        )


def _tcp_socket(family: int) -> socket.socket:
    """Make a socket for a connection to the remote.

    Raises:
        OSError: The kernel does not support the family, as where IPv6 is disabled.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    # Before connect(): Nagle's algorithm would otherwise add round trips to the handshake.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)
    # A packet that is lost again is retransmitted after one round trip, without exponential backoff (tcp(7)).
    with suppress(OSError):  # gVisor does not support it
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
    return sock


def _names(names: Iterable[str]) -> str:
    """Format a list of names from the remote for display: checked as in RFC 4251 section 6, and shortened."""
    text = ", ".join(re.sub(r"[^!-~]+", "?", name) for name in names) or "nothing"
    return text if len(text) <= _NAMES_MAX_CHARS else f"{text[:_NAMES_MAX_CHARS]}..."


def _prefer(transport: paramiko.Transport, key_types: list[str]) -> None:
    """Prefer the host key types in known_hosts, as ssh(1) does: a key of another type would be unknown."""
    options = transport.get_security_options()
    known = {"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in key_types else set()
    known.update(key_types)
    options.key_types = sorted(options.key_types, key=lambda name: name not in known)
