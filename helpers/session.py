"""sshd's ForceCommand: gets a mosh session from the broker and becomes mosh-client.

It runs as the user's own uid on sshd's PTY. After the ``execve`` no Python is left.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from helpers.client import Question, ask
from helpers.errors import GatewayError, NoTerminalError
from helpers.terminal import ensure_window, locale_of, usable_term

PROGRESS_AFTER_S = 0.5
"""Seconds without an answer after which the user is told what is being waited for."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells have it."""

CARRIER = "GATEWAY_COMMAND"
"""Holds a key's ``command=`` in base64. Only a line of the broker's sets it: sshd takes no such name from a client."""


def main(argv: list[str]) -> int:
    """Start the session.

    Args:
        argv: The broker's socket.

    Returns:
        The exit status when there is no session: that of the error (`helpers.errors`), or 130 after Ctrl-C.
    """
    try:
        (socket_path,) = argv
        if os.geteuid() == 0:
            drop_root(socket_path)
        start(socket_path, os.environ)
    except GatewayError as error:
        print(f"gateway: {error.message}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def drop_root(socket_path: str) -> None:
    """Become root's own invented uid, so that nothing of ours meets the network as the gateway's root.

    Raises:
        GatewayError: The broker does not permit root.
    """
    uid = int(ask(socket_path, {"op": "root"})["uid"])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def start(socket_path: str, environ: Mapping[str, str]) -> None:
    """Check the terminal, ask for a session, become mosh-client.

    Args:
        socket_path: The broker's socket.
        environ: What sshd gave the session; LANG, LC_* and TERM in it are the client's and unchecked.

    Raises:
        NoTerminalError: The client asked for no PTY.
        GatewayError: The broker has no session for us, or mosh-client is missing here.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        msg = "mosh needs a terminal, and this request has none; use 'ssh -t'"
        raise NoTerminalError(msg)
    term, colors = usable_term(environ.get("TERM", ""), sys.stdout.fileno())
    ensure_window(sys.stdout.fileno())
    request = {
        "op": "session",
        "colors": colors,
        "locale": locale_of(environ),
        "command": environ.get(CARRIER),
        "original_command": environ.get("SSH_ORIGINAL_COMMAND"),
        "connection": environ.get("SSH_CONNECTION", ""),
        "key": accepted_key(environ.get("SSH_USER_AUTH", "")),
    }
    become_mosh_client(wait_with_progress(Question(socket_path, request)), term, environ.get("PATH", os.defpath))


def accepted_key(user_auth_path: str) -> str:
    """Read which key sshd accepted, for the log.

    Args:
        user_auth_path: The file named by SSH_USER_AUTH (sshd_config(5), ExposeAuthInfo).

    Returns:
        Its first line, as ``publickey ssh-ed25519 AAAA...``, or "" where there is none.
    """
    try:
        with open(user_auth_path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib costs 4 ms
            return file.readline(32 * 1024).rstrip("\n")
    except OSError:
        return ""


def wait_with_progress(question: Question) -> dict[str, Any]:
    """Wait for the broker, saying so on the terminal once it takes longer than `PROGRESS_AFTER_S`.

    Returns:
        The session: see `helpers.broker.server`.

    Raises:
        GatewayError: There is none; the sentence says why.
    """
    started = time.monotonic()
    shown = False
    try:
        while (answer := question.wait(PROGRESS_AFTER_S)) is None:
            shown = True
            waited_s = time.monotonic() - started
            print(f"\r\x1b[Kgateway: reaching the remote host, {waited_s:.0f} s", end="", file=sys.stderr, flush=True)
        return answer
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def become_mosh_client(session: Mapping[str, Any], term: str, path: str) -> None:
    """Replace this process with mosh-client.

    Args:
        session: The broker's answer: address, port, key (MOSH_KEY) and predict.
        term: The terminal type that was checked.
        path: Where programs are looked for.

    Raises:
        GatewayError: mosh-client cannot be started.
    """
    environ = {
        "PATH": path,
        "TERM": term,
        # mosh-client asks its locale for the character set alone, and the gateway need not have the user's.
        "LC_ALL": "C.UTF-8",
        "MOSH_KEY": str(session["key"]),
        "MOSH_PREDICTION_DISPLAY": str(session["predict"]),
        # Ctrl-^ Ctrl-Z would stop mosh-client with no shell about to continue it. "" turns mosh's escapes off;
        # ssh's own ~. still leaves.
        "MOSH_ESCAPE_KEY": "",
    }
    try:
        os.execvpe("mosh-client", ["mosh-client", str(session["address"]), str(session["port"])], environ)  # noqa: S606, S607
    except OSError as exc:
        msg = f"mosh-client cannot be started on the gateway ({exc.strerror}); tell the gateway's operator"
        raise GatewayError(msg) from exc
