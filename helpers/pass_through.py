"""The way in without a key of the gateway's: the user's own agent, forwarded, logs in on the remote.

Nothing here is shared between sessions, not even of one user: whoever came without the agent must not profit from
another session's.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from helpers import dial
from helpers.broker import mosh
from helpers.broker.remote_command import new_marker, standard_input
from helpers.client import ask
from helpers.errors import GatewayError, MoshServerError, NoLocaleError, PermissionDeniedError, RemoteTimeoutError
from helpers.protocol import ANSWER_TIMEOUT_S, decode, encode, error_answer, result_of

LOGIN_S = 60.0
"""Longest time, in seconds, that ssh may take to log in: some agents ask their user, or wait for a key's touch."""

MAX_OUTPUT_BYTES = 64 * 1024
"""Most output, in bytes and for each stream, that is taken from the remote before its mosh-server has spoken."""


def forwarded_agent(environ: Mapping[str, str]) -> str:
    """Find the agent that the user forwarded.

    Raises:
        PermissionDeniedError: There is none.
    """
    path = environ.get("SSH_AUTH_SOCK")
    if not path:
        msg = "this gateway has no key of its own and needs your SSH agent; use 'ssh -A' with an agent running"
        raise PermissionDeniedError(msg)
    return path


def write_identity(user_auth: str, home: str) -> str | None:
    """Write down which key the user came with, so that ssh offers it to the remote before the agent's others.

    Args:
        user_auth: The first line of SSH_USER_AUTH's file (sshd_config(5), ExposeAuthInfo).
        home: The session's own directory.

    Returns:
        What ssh's IdentityFile is to be: the public key's file without its ``.pub``, so that ssh knows that there is no
        private one and does not complain of it; None where the user came without a key.
    """
    words = user_auth.split(" ")
    if words[0] != "publickey":
        return None
    path = f"{home}/identity-{os.getpid()}"
    try:
        Path(f"{path}.pub").write_text(" ".join(words[1:3]) + "\n", encoding="ascii")
    except OSError as exc:
        raise _homeless(exc) from exc
    return path


def take_turn(socket_path: str, connection: str, home: str) -> list[str]:
    """Wait until the broker lets one more ssh log in on the remote, and have the login watched.

    A process of its own watches, since this one becomes ssh: the broker counts the login for as long as it lives. It
    leaves when ssh says, by ``LocalCommand`` (ssh_config(5)), that it is logged in, or has ended, and ends ssh after
    `LOGIN_S`.

    Args:
        socket_path: The broker's socket.
        connection: SSH_CONNECTION.
        home: The session's own directory.

    Returns:
        ssh's options.

    Raises:
        GatewayError: The broker gives no turn.
    """
    ssh, path = os.getpid(), f"{home}/login-{os.getpid()}"
    heard, said = os.pipe()
    try:
        os.mkfifo(path, 0o600)
    except OSError as exc:
        raise _homeless(exc) from exc
    child = os.fork()
    if child == 0:
        # Twice, so that the watcher is not a child of ssh's, which would not collect it.
        if os.fork() == 0:
            _watch(ssh, path, said, socket_path, connection)
        os._exit(0)
    os.close(said)
    os.waitpid(child, 0)
    with os.fdopen(heard, "rb") as pipe:
        answer = pipe.readline(MAX_OUTPUT_BYTES)
    result_of(decode(answer or b"{}"))
    return ["PermitLocalCommand=yes", f"LocalCommand=echo 1<>{path}"]


def _watch(ssh: int, path: str, said: int, socket_path: str, connection: str) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        process, fifo = os.pidfd_open(ssh), os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            answer: dict[str, Any] = {"result": ask(socket_path, {"op": "login", "connection": connection})}
        except GatewayError as error:
            answer = error_answer(error)
        os.write(said, encode(answer))
        os.close(said)
        if "result" in answer and not select.select([process, fifo], [], [], LOGIN_S)[0]:
            os.write(2, b"gateway: the login on the remote host took too long; does your agent wait for you?\r\n")
            signal.pidfd_send_signal(process, signal.SIGTERM)
    finally:
        # Whatever happened: this process must not go on as a second session.
        with suppress(OSError):
            Path(path).unlink()
        os._exit(0)


def _homeless(exc: OSError) -> GatewayError:
    return GatewayError(f"the session has no home directory on the gateway ({exc.strerror}); log in again")


class MoshServer:
    """Starts mosh-server on the remote by ssh, in the first locale that the remote knows.

    Args:
        wanted: ``commands``, to try in turn; ``program`` for messages; ``predict``, handed on.
        ssh: ssh's command line, up to the host.
        environ: ssh's environment.
        timeout_s: Longest time for each command, in seconds.
    """

    def __init__(
        self, wanted: Mapping[str, Any], ssh: list[str], environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        """Start the first one."""
        self._wanted, self._ssh, self._environ, self._timeout_s = wanted, ssh, environ, timeout_s
        self._commands = list(wanted["commands"])
        self._start()

    def _start(self) -> None:
        argv = [*self._ssh, self._commands.pop(0)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, env=self._environ, stdin=pipe, stdout=pipe, stderr=pipe)
        self._marker = new_marker()
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # type: ignore[union-attr] # a pipe was asked for
            stdin.write(standard_input(self._marker))
        self._deadline = time.monotonic() + self._timeout_s
        self._output, self._errors = bytearray(), bytearray()
        self._streams = selectors.DefaultSelector()
        self._streams.register(self._process.stdout, selectors.EVENT_READ, self._output)  # type: ignore[arg-type]
        self._streams.register(self._process.stderr, selectors.EVENT_READ, self._errors)  # type: ignore[arg-type]

    def wait(self, patience_s: float | None = None) -> dict[str, Any] | None:
        """Wait for mosh-server.

        Args:
            patience_s: Seconds after which to come back without one; None waits until the deadline.

        Returns:
            Its ``port`` and ``key``, ``predict``, and ``address`` where the remote has several; None when patience ran
            out before the deadline.

        Raises:
            GatewayError: The remote has no session; the sentence says why.
        """
        until = self._deadline if patience_s is None else min(self._deadline, time.monotonic() + patience_s)
        while self._streams.get_map():
            left_s = until - time.monotonic()
            if left_s <= 0 and until < self._deadline:
                return None
            if left_s <= 0:
                self._process.kill()
                msg = "the remote host did not answer in time"
                raise RemoteTimeoutError(msg)
            self._read(left_s)
        return self._ended()

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._streams.select(timeout_s):
            chunk = os.read(key.fd, MAX_OUTPUT_BYTES)
            key.data.extend(chunk)
            if not chunk:
                self._streams.unregister(key.fileobj)
            elif len(key.data) > MAX_OUTPUT_BYTES:
                self._process.kill()
                msg = f"the remote host wrote more than {MAX_OUTPUT_BYTES} bytes before mosh-server did"
                raise MoshServerError(msg)

    def _ended(self) -> dict[str, Any] | None:
        status = self._process.wait()
        output, errors = bytes(self._output), bytes(self._errors)
        # UDP goes where TCP went; with one address the broker has told it.
        reached = dial.connected_to(errors)
        if reached is not None:
            errors = errors.partition(b"\n")[2]
        endpoint = mosh.find_mosh_connect(output, self._marker)
        if endpoint is not None:
            answer = {"port": endpoint.port, "key": endpoint.key, "predict": self._wanted["predict"]}
            return answer if reached is None else {**answer, "address": reached}
        failure = mosh.ssh_failure(status, output, errors, self._marker, str(self._wanted["program"]))
        if not isinstance(failure, NoLocaleError) or not self._commands:
            raise failure
        self._start()
        return self.wait(0.0)
