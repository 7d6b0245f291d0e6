"""A pipelined SSH handshake: the client sends messages without waiting for replies that it can predict.

RFC 4253 and 4252 let a client send its KEXINIT and its half of the key exchange with its identification, and the
authentication request with the service request; sshd also accepts channel requests and a command with them. Including
TCP's, a login with a command's output takes 4 round trips; paramiko alone takes 9. Nothing that authenticates is sent
before `PipelinedTransport.authenticate`, which the caller calls after it has verified the host key.

paramiko has no public interface for any of this, so this module overrides and calls its private methods.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.common import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_EOF,
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_REQUEST,
    cMSG_USERAUTH_INFO_RESPONSE,
)
from paramiko.kex_curve25519 import KexCurve25519
from paramiko.packet import Packetizer

_MSG_KEX_ECDH_REPLY = 31  # RFC 5656 section 4, RFC 8731
_GUESSABLE = ("mlkem768x25519-", "curve25519-")
# sshd's disconnect message if the first failure is one too many (sshd_config(5), MaxAuthTries 1; auth.c).
_TOO_MANY_FAILURES = b"Too many authentication failures"
_MAX_PACKET_BYTES = 256 * 1024  # as OpenSSH's PACKET_MAX_SIZE (packet.c); RFC 4253 section 6.1 wants 35000
_MAX_EXTENSIONS = 1024  # as in OpenSSH (kex.c, kex_input_ext_info)
_MAX_IDENTIFICATION_BYTES = 64 * 1024  # including the lines that may precede it, RFC 4253 section 4.2
_POLL_S = 0.1  # paramiko has no event for the end of a transport
# paramiko's names of the server's lists and of ours, the word for one entry, and sshd_config(5)'s keyword.
_NEGOTIATED = (
    ("kex_algo_list", "preferred_kex", "key exchange method", "KexAlgorithms"),
    ("server_key_algo_list", "preferred_keys", "host key algorithm", "HostKeyAlgorithms"),
    ("client_encrypt_algo_list", "preferred_ciphers", "cipher", "Ciphers"),
    ("server_encrypt_algo_list", "preferred_ciphers", "cipher", "Ciphers"),
    ("client_mac_algo_list", "preferred_macs", "MAC", "MACs"),
    ("server_mac_algo_list", "preferred_macs", "MAC", "MACs"),
    ("client_compress_algo_list", "preferred_compression", "compression method", "Compression"),
    ("server_compress_algo_list", "preferred_compression", "compression method", "Compression"),
)
# Entries in the list of key exchange methods that are not methods (RFC 8308; OpenSSH, PROTOCOL section 1.10).
_NO_METHODS = ("ext-info-", "kex-strict-")


class NoCommonAlgorithmError(paramiko.ssh_exception.IncompatiblePeer):
    """The server shares no algorithm of one kind with us.

    Attributes:
        kind: The kind, such as ``cipher``.
        keyword: The keyword of sshd_config(5) that configures sshd's algorithms of this kind.
        ours: The names of our algorithms.
        theirs: The names of the server's algorithms, unchecked.
    """

    def __init__(self, kind: str, keyword: str, ours: tuple[str, ...], theirs: list[str]) -> None:
        super().__init__(f"no common {kind}")
        self.kind, self.keyword, self.ours, self.theirs = kind, keyword, ours, theirs


class PromptedError(paramiko.SSHException):
    """The server's keyboard-interactive authentication sent a prompt (RFC 4256)."""


class _BoundedPacketizer(Packetizer):
    """Limits the size of packets and of the identification, which are read before the server is authenticated."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._identification_bytes = 0

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:  # noqa: FBT001, FBT002 - paramiko's API
        if n > _MAX_PACKET_BYTES:
            raise paramiko.SSHException("the server announces too long a packet")
        taken: bytes = super().read_all(n, check_rekey)
        return taken

    def _read_timeout(self, timeout: float) -> bytes:
        taken: bytes = super()._read_timeout(timeout)
        self._identification_bytes += len(taken)
        if self._identification_bytes > _MAX_IDENTIFICATION_BYTES:
            raise paramiko.SSHException("the server does not end its identification")
        return taken


def _feed(channel: paramiko.Channel, message: paramiko.Message) -> None:
    channel._feed(message)
    _check_window(channel)


def _feed_extended(channel: paramiko.Channel, message: paramiko.Message) -> None:
    channel._feed_extended(message)
    _check_window(channel)


def _check_window(channel: paramiko.Channel) -> None:
    """Check that a server sends no more than its window allows. paramiko does not check it."""
    if len(channel.in_buffer) + len(channel.in_stderr_buffer) > channel.in_window_size:
        raise paramiko.SSHException("the server sends more than its window")


class PipelinedTransport(paramiko.Transport):
    """A client's transport with a pipelined handshake.

    Args:
        sock: A connected socket.
        guessed_kex: The key exchange method to guess, usually the one negotiated last time: our half of the exchange is
            then sent without waiting for the server's KEXINIT. With None, or a method that cannot be begun early, it
            waits. If the guess is wrong, the server closes the connection.

    Attributes:
        guessed_kex: The method that was begun early; None for none.
        agreed: The method that was negotiated.
        begun: The channel on which the first command runs; None if none was begun.
        spare: A channel that is open for the next command; None if there is none.
        refused: Whether the server has refused the login.
        methods: The server's last list of methods that can continue, unchecked; see `refused`.
        partial: Whether the server accepted the key, and requires another method after it.
        interactive: Whether keyboard-interactive authentication without a prompt completed the login.
    """

    # RFC 8731's name. paramiko has the method only under its earlier name, with @libssh.org.
    _kex_info = paramiko.Transport._kex_info | {"curve25519-sha256": KexCurve25519}
    _preferred_kex = tuple(
        name
        for known in paramiko.Transport._preferred_kex
        for name in (("curve25519-sha256", known) if known == "curve25519-sha256@libssh.org" else (known,))
    )

    # The interval, in seconds, at which paramiko checks whether the transport was closed. At paramiko's own 0.1 an
    # idle connection wakes the broker ten times a second. `close` wakes the thread, and keepalives need no more.
    _active_check_timeout = 5.0
    _channel_handler_table = paramiko.Transport._channel_handler_table | {
        MSG_CHANNEL_DATA: _feed,
        MSG_CHANNEL_EXTENDED_DATA: _feed_extended,
    }

    def __init__(self, sock: socket.socket, guessed_kex: str | None = None) -> None:
        super().__init__(sock, packetizer_class=_BoundedPacketizer)
        is_usable = guessed_kex is not None and guessed_kex.startswith(_GUESSABLE) and guessed_kex in self.preferred_kex
        self.guessed_kex = guessed_kex if is_usable else None
        self.agreed: str | None = None
        self.begun: paramiko.Channel | None = None
        self.spare: paramiko.Channel | None = None
        self.refused = self.partial = self.interactive = False
        self.methods: list[str] = []
        self._early: Any = None

    def close(self) -> None:
        """Close the connection at once."""
        # Closing a socket that a thread reads from does not wake the thread (close(2)).
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        super().close()

    def get_exception(self) -> Exception | None:
        """Return why paramiko's thread ended. Another exception than SSH's was caused by the server's data."""
        reason: Exception | None = super().get_exception()
        if isinstance(reason, ValueError | LookupError | TypeError | AttributeError | AssertionError):
            return paramiko.SSHException(f"the server's packet makes no sense ({type(reason).__name__})")
        return reason

    @property
    def is_openssh(self) -> bool:
        """Whether the server identifies itself as OpenSSH."""
        return str(self.remote_version).startswith("SSH-2.0-OpenSSH_")

    def _check_banner(self) -> None:
        # Our identification has just been sent. RFC 4253 section 7.1: KEXINIT may follow it at once.
        self._send_kex_init()
        if self.guessed_kex is not None:
            # Without first_kex_packet_follows: if the guess is right, the packet is the one that comes next anyway.
            self._early = self._kex_info[self.guessed_kex](self)
            self._early.start_kex()
        super()._check_banner()

    def _send_kex_init(self) -> None:
        # paramiko's run() sends it too, after reading the server's identification. After each exchange it is None.
        if self.local_kex_init is None:
            super()._send_kex_init()

    def _negotiate_keys(self, message: paramiko.Message) -> None:
        early, self._early = self._early, None
        if early is None:
            super()._negotiate_keys(message)
        else:
            self._parse_kex_init(message)
            if type(self.kex_engine) is not type(early):
                raise paramiko.SSHException("another key exchange method was negotiated than was guessed")
            self.kex_engine = early
            self._expect_packet(_MSG_KEX_ECDH_REPLY)
        if self.agreed is None:
            methods = [name for name in self.preferred_kex if self._kex_info[name] is type(self.kex_engine)]
            self.agreed = methods[0] if methods else None

    def _parse_kex_init(self, message: paramiko.Message) -> None:
        try:
            super()._parse_kex_init(message)
        except paramiko.ssh_exception.IncompatiblePeer:
            message.rewind()
            offered = self._really_parse_kex_init(message)
            for theirs, ours, kind, keyword in _NEGOTIATED:
                names = [name for name in offered[theirs] if not name.startswith(_NO_METHODS)]
                if not set(names) & set(getattr(self, ours)):
                    raise NoCommonAlgorithmError(kind, keyword, getattr(self, ours), names) from None
            raise

    def _parse_ext_info(self, message: paramiko.Message) -> None:
        # paramiko would loop up to 4 billion times, and closing the connection would not stop it.
        if message.get_int() > _MAX_EXTENSIONS:
            raise paramiko.SSHException("the server announces too many extensions")
        message.rewind()
        super()._parse_ext_info(message)
        if isinstance(self.auth_handler, _PipelinedAuth):
            self.auth_handler.proceed()

    def _parse_disconnect(self, message: paramiko.Message) -> None:
        message.get_int()
        self.refused = self.refused or message.get_string().startswith(_TOO_MANY_FAILURES)

    def authenticate(
        self, user: str, key: paramiko.PKey, command: tuple[str, bytes] | None, timeout_s: float
    ) -> list[str]:
        """Log in; with OpenSSH, begin a command and open a channel for the next one in the same packets.

        sshd (9.2, 10.0) answers a channel request that arrives before the login has succeeded after it. Other servers
        may treat it as a protocol error, so it is sent to OpenSSH only.

        Args:
            user: The user name.
            key: The private key.
            command: The command to begin, and its standard input; None for none.
            timeout_s: Longest time, in seconds.

        Returns:
            The methods that must follow for authentication to complete; empty if it is complete.

        Raises:
            paramiko.SSHException: The server refuses, or the transport broke.
        """
        self.auth_timeout = timeout_s
        done = threading.Event()
        self.auth_handler = handler = _PipelinedAuth(self, command)
        handler.auth_publickey(user, key, done)
        # Only an RSA key needs EXT_INFO, which Nagle's algorithm in sshd may delay for a round trip.
        if self.server_extensions or (self.is_openssh and "rsa" not in key.get_name()):
            handler.proceed()
        partial: list[str] = handler.wait_for_response(done)
        if "keyboard-interactive" in partial:
            # The server answered the channel requests before the login was complete, so it has dropped them.
            handler.discard_channels()
            partial = handler.go_on_interactively(user)
            self.interactive = not partial
        if handler.opened and not partial:
            self._await_channels(handler.opened, command is not None, timeout_s)
        return partial

    def _await_channels(self, opened: list[paramiko.Channel], is_begun: bool, timeout_s: float) -> None:  # noqa: FBT001
        """Wait for the answers to the channel requests that were sent with the login: they directly follow its own."""
        deadline = time.monotonic() + timeout_s
        live = [channel if self._await_channel(channel, deadline) else None for channel in opened]
        if is_begun:
            self.begun = live.pop(0)
            if self.begun is None or self.begun.remote_chanid != 0:
                raise paramiko.SSHException("the server opened another channel than its first")
        self.spare = live[0]

    def _await_channel(self, channel: paramiko.Channel, deadline: float) -> bool:
        """Wait for the answer to a channel request, and return whether the channel was opened.

        `paramiko.Transport.open_channel` stores the reason of a refusal where another refused thread may take it.
        """
        # paramiko removes the event when the answer arrives.
        event = self.channel_events.get(channel.chanid)
        while event is not None and not event.wait(_POLL_S):
            if not self.is_active():
                break
            if time.monotonic() > deadline:
                raise TimeoutError
        # paramiko sets the event when the channel is opened and keeps it when it closes: the command may have ended.
        if not channel.active and not self.is_active():
            raise EOFError
        return bool(channel.active)

    def open_channel_in(self, timeout_s: float) -> paramiko.Channel | None:
        """Open a session channel.

        Args:
            timeout_s: Longest time, in seconds.

        Returns:
            The channel; None if the server refuses one.

        Raises:
            TimeoutError: The server did not answer in time.
            EOFError: The transport broke.
            paramiko.SSHException: The server does not complete a key exchange.
        """
        channel = self.ask_for_channel()
        return channel if self._await_channel(channel, time.monotonic() + timeout_s) else None

    def ask_for_channel(self) -> paramiko.Channel:
        """Request a session channel without waiting: the first part of `paramiko.Transport.open_channel`."""
        with self.lock:
            number = self._next_channel()
            window, packet = self.default_window_size, self.default_max_packet_size
            channel = paramiko.Channel(number)
            self._channels.put(number, channel)
            self.channel_events[number] = threading.Event()
            self.channels_seen[number] = True
            channel._set_transport(self)
            channel._set_window(window, packet)
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_OPEN)
        message.add_string("session")
        for value in (number, window, packet):
            message.add_int(value)
        self._send_user_message(message)
        return channel

    def exec_unanswered(self, remote_channel: int, command: str, stdin: bytes) -> None:
        """Request a command without a reply, and send all of its standard input.

        `paramiko.Channel.exec_command` waits for the reply, which costs a round trip: Nagle's algorithm in sshd holds
        the first data back until the reply is acknowledged. RFC 4254 section 5.4: want_reply may be false.

        Args:
            remote_channel: The server's number of the channel.
            command: The command line.
            stdin: Its whole standard input, far smaller than a channel's first window.
        """
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(remote_channel)
        message.add_string("exec")
        message.add_boolean(False)  # noqa: FBT003 - paramiko's API
        message.add_string(command)
        data = paramiko.Message()
        data.add_byte(cMSG_CHANNEL_DATA)
        data.add_int(remote_channel)
        data.add_string(stdin)
        end = paramiko.Message()
        end.add_byte(cMSG_CHANNEL_EOF)
        end.add_int(remote_channel)
        with self.corked():
            for each in (message, data, end):
                self._send_user_message(each)

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Send the data of this block in as few TCP segments as possible: fewer segments are lost less often."""
        self._cork(on=True)
        try:
            yield
        finally:
            self._cork(on=False)

    def _cork(self, *, on: bool) -> None:
        assert isinstance(self.sock, socket.socket)  # noqa: S101 - a channel only if one transport runs over another
        with suppress(OSError):  # closed, or not TCP (in a test)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, int(on))


class _PipelinedAuth(AuthHandler):
    """Sends the authentication request as soon as the signature algorithm is known: at once, or at EXT_INFO.

    For a server that is not OpenSSH and sends no EXT_INFO it waits for SERVICE_ACCEPT, as paramiko does.

    Attributes:
        opened: The channels that were requested.
    """

    def __init__(self, transport: PipelinedTransport, command: tuple[str, bytes] | None) -> None:
        super().__init__(transport)
        self._command = command
        self._lock = threading.Lock()
        self._requested = self._sent = False
        self.opened: list[paramiko.Channel] = []

    def _request_auth(self) -> None:
        super()._request_auth()
        self._requested = True

    def _parse_userauth_failure(self, message: paramiko.Message) -> None:
        methods, partial = message.get_list(), message.get_boolean()
        message.rewind()
        transport = self.transport
        transport.refused = True
        if partial or not transport.partial:
            transport.methods, transport.partial = methods, partial
        super()._parse_userauth_failure(message)

    def _parse_userauth_info_request(self, message: paramiko.Message) -> None:
        if self.auth_method != "keyboard-interactive":
            raise paramiko.SSHException("the server asks before it was told that it may")
        for _ in ("name", "instruction", "language tag"):
            message.get_binary()
        if message.get_int() > 0:
            raise PromptedError
        # RFC 4256 section 3.4: as many responses as prompts.
        response = paramiko.Message()
        response.add_byte(cMSG_USERAUTH_INFO_RESPONSE)
        response.add_int(0)
        self.transport._send_message(response)

    def go_on_interactively(self, user: str) -> list[str]:
        """Continue with keyboard-interactive authentication after the server has accepted the key.

        Not before it: a server that prompts for a password counts an empty response as a failed login.

        Returns:
            The methods that must follow for authentication to complete; empty if it is complete.

        Raises:
            PromptedError: The server sent a prompt.
            paramiko.SSHException: The server refuses, or the transport broke.
        """
        self.auth_event = done = threading.Event()
        self.auth_method, self.username, self.submethods = "keyboard-interactive", user, ""
        self._send_request()
        partial: list[str] = self.wait_for_response(done)
        return partial

    def discard_channels(self) -> None:
        """Discard the channels that were requested with the login."""
        for channel in self.opened:
            self.transport.channel_events.pop(channel.chanid, None)
            channel._unlink()
        self.opened = []

    def _send_request(self) -> None:
        service = paramiko.Message()
        service.add_string("ssh-userauth")
        super()._parse_service_accept(paramiko.Message(service.asbytes()))

    def _parse_service_accept(self, message: paramiko.Message) -> None:
        if message.get_text() == "ssh-userauth":
            self.proceed()

    def proceed(self) -> None:
        """Send the authentication request once, after the service request; called by both threads."""
        with self._lock:
            if self._sent or not self._requested:
                return
            self._sent = True
            self._send_request()
            transport = self.transport
            if not transport.is_openssh:
                return
            self.opened = [transport.ask_for_channel()]
            if self._command is not None:
                # sshd numbers channels from 0, and this is its first.
                transport.exec_unanswered(0, *self._command)
                self.opened.append(transport.ask_for_channel())
