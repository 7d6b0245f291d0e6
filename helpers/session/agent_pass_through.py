"""Sessions without a gateway key: the session's ssh logs in on the remote with the user's forwarded agent.

Sessions share nothing, not even those of one user: a client without the agent must not use another session's login.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from helpers import happy_eyeballs, mosh
from helpers.protocol.broker_client import ask
from helpers.protocol.deadlines import ANSWER_TIMEOUT_S
from helpers.protocol.errors import (
    GatewayError,
    MoshServerError,
    NoLocaleError,
    PermissionDeniedError,
    RemoteTimeoutError,
    local_error,
)
from helpers.protocol.messages import decode, encode, error_answer, result_of
from helpers.remote_command import new_marker, standard_input

MAX_OUTPUT_BYTES = 64 * 1024
"""Most output, in bytes for each stream, that is read from the remote before its mosh-server's line."""


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


class Login:
    """One login on the remote with the user's agent: waits for the broker to give it a turn, and starts a watcher.

    The watcher is a separate process, since this one becomes ssh. The broker counts the login until the watcher exits.
    It exits when ssh has logged in, which ``LocalCommand`` (ssh_config(5)) reports, or has ended; it ends ssh if the
    login takes too long. After it has a turn, it writes two files, so that there are never more of them than turns, and
    removes them when it exits.

    Args:
        socket_path: The broker's socket.
        connection: SSH_CONNECTION.
        key: The first line of SSH_USER_AUTH's file (sshd_config(5), ExposeAuthInfo).
        home: The session's own directory.
    """

    def __init__(self, socket_path: str, connection: str, key: str, home: str) -> None:
        ssh = os.getpid()
        self._heard, said = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                # A double fork, so that the watcher is not a child of ssh, which would not reap it.
                if os.fork() == 0:
                    _watch(ssh, said, socket_path, {"connection": connection, "key": key}, home)
            except OSError as error:
                os.write(said, encode(error_answer(local_error(error))))
            finally:
                os._exit(0)  # even after an error: this process must not go on as a second session
        os.close(said)
        os.waitpid(child, 0)

    def wait(self, patience_s: float | None = None) -> dict[str, Any] | None:
        """Wait for the turn.

        Args:
            patience_s: Seconds after which to return without a turn; None waits for the broker's answer.

        Returns:
            ``options`` for ssh, and ``identity``, its IdentityFile or None; None after ``patience_s``.

        Raises:
            GatewayError: The broker refuses a turn.
        """
        if not select.select([self._heard], [], [], patience_s)[0]:
            return None
        with os.fdopen(self._heard, "rb") as pipe:
            return result_of(decode(pipe.readline(MAX_OUTPUT_BYTES) or b"{}"))


def _watch(ssh: int, said: int, socket_path: str, login: dict[str, Any], home: str) -> NoReturn:
    login_file, identity = f"{home}/login-{os.getpid()}", f"{home}/identity-{os.getpid()}"
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        process = os.pidfd_open(ssh)
        seconds, fifo = 0.0, -1
        try:
            seconds = float(ask(socket_path, {"op": "login", **login})["seconds"])
            options = ["PermitLocalCommand=yes", f"LocalCommand=echo 1<>{login_file}"]
            fifo = _make_fifo(login_file)
            answer: dict[str, Any] = {
                "result": {"options": options, "identity": _write_identity(login["key"], identity)}
            }
        except GatewayError as error:
            answer = error_answer(error)
        except OSError as error:
            answer = error_answer(local_error(error))
        os.write(said, encode(answer))
        os.close(said)
        if "result" in answer:
            ready = select.select([process, fifo], [], [], seconds)[0]
            if fifo in ready:
                ask(socket_path, {"op": "logged_in", "session": ssh, **login})
            elif not ready:
                os.write(2, b"gateway: the login on the remote host took too long; does your agent wait for you?\r\n")
                signal.pidfd_send_signal(process, signal.SIGTERM)
    finally:
        # Even after an error: this process must not go on as a second session.
        for path in (login_file, f"{identity}.pub"):
            with suppress(OSError):
                Path(path).unlink()
        os._exit(0)


def _make_fifo(path: str) -> int:
    """Make the FIFO to which LocalCommand writes after ssh has logged in, and open it for reading."""
    Path(path).unlink(missing_ok=True)  # left by a killed process with the same pid
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _write_identity(user_auth: str, path: str) -> str | None:
    """Write the public key that the user logged in with, so that ssh offers it before the agent's other keys.

    Args:
        user_auth: The first line of SSH_USER_AUTH's file.
        path: The value of ssh's IdentityFile: the public key's file without its ``.pub``, for which ssh does not report
            the missing private key.

    Returns:
        The path; None if the user logged in without a key.
    """
    words = user_auth.split(" ")
    if words[0] != "publickey":
        return None
    Path(f"{path}.pub").write_text(" ".join(words[1:3]) + "\n", encoding="ascii")
    return path


class MoshServer:
    """Starts mosh-server on the remote over ssh, in the first locale that the remote has.

    Args:
        wanted: ``commands``, to try in turn; ``program`` for messages; ``predict``, passed on.
        ssh: Returns ssh's command line up to the host, for one login: each command makes one.
        environ: ssh's environment.
        timeout_s: Longest time for each command, in seconds.
    """

    def __init__(
        self,
        wanted: Mapping[str, Any],
        ssh: Callable[[], list[str]],
        environ: Mapping[str, str],
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._wanted, self._ssh, self._environ, self._timeout_s = wanted, ssh, environ, timeout_s
        self._commands = list(wanted["commands"])
        self._start()

    def _start(self) -> None:
        argv = [*self._ssh(), self._commands.pop(0)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, env=self._environ, stdin=pipe, stdout=pipe, stderr=pipe)
        self._marker = new_marker()
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # type: ignore[union-attr] # stdin is a pipe
            stdin.write(standard_input(self._marker))
        self._deadline = time.monotonic() + self._timeout_s
        self._output, self._errors = bytearray(), bytearray()
        self._streams = selectors.DefaultSelector()
        self._streams.register(self._process.stdout, selectors.EVENT_READ, self._output)  # type: ignore[arg-type]
        self._streams.register(self._process.stderr, selectors.EVENT_READ, self._errors)  # type: ignore[arg-type]

    def wait(self, patience_s: float | None = None) -> dict[str, Any] | None:
        """Wait for mosh-server.

        Args:
            patience_s: Seconds after which to return without an answer; None waits until the deadline.

        Returns:
            Its ``port`` and ``key``, ``predict``, and ``address`` if the remote has several; None if ``patience_s``
            ended before the deadline.

        Raises:
            GatewayError: The remote starts no session; the sentence is the reason.
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
        # UDP uses the address that TCP reached; with only one address it is in the broker's answer.
        reached = happy_eyeballs.connected_to(errors)
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
