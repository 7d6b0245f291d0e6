"""Becomes mosh-client, for a terminal over mosh."""

from __future__ import annotations

import os
import sys
import time
from _signal import (  # type: ignore[import-not-found]  # signal itself imports enum, which takes 3 ms
    SIG_IGN,
    SIGCHLD,
    SIGWINCH,
    signal,
)

from helpers.protocol.broker_client import tell
from helpers.session.program import become
from helpers.session.terminal import ensure_window

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from helpers.protocol.session_answer import MoshAnswer

NUDGES_S = (0.03, 0.03, 0.06, 0.12, 0.36, 0.6, 1.0)
"""Seconds before each nudge of mosh-client: see `nudge`. It takes some 10 ms to start, and several times that on a busy
machine; a nudge during that time has no effect."""


def become_mosh_client(socket_path: str, session: MoshAnswer, term: str, path: str, *, keep: bool) -> dict[str, object]:
    """Replace this process with mosh-client; or run it as a child, if UDP has not been seen to pass.

    Args:
        socket_path: The broker's socket.
        session: The broker's answer: address, port, key (MOSH_KEY) and predict; patience_s for such a path.
        term: The terminal type that was checked.
        path: The PATH for programs.
        keep: Whether the output stays on the screen at the end, as that of a command must. By default mosh-client uses
            the terminal's alternate screen, whose content is lost when it ends (mosh(1), --no-init).

    Returns:
        The broker's request by which the session goes over ssh: UDP does not pass.

    Raises:
        GatewayError: mosh-client cannot be started.
    """
    environ = {
        "PATH": path,
        "TERM": term,
        # mosh-client uses only the locale's character set, and the gateway may not have the user's locale.
        "LC_ALL": "C.UTF-8",
        "MOSH_KEY": str(session["key"]),
        "MOSH_PREDICTION_DISPLAY": str(session["predict"]),
        # Ctrl-^ Ctrl-Z would stop mosh-client without a shell to continue it. "" turns mosh's escapes off; ssh's own
        # ~. still works.
        "MOSH_ESCAPE_KEY": "",
        **({"MOSH_NO_TERM_INIT": "1"} if keep else {}),
    }
    ensure_window(sys.stdout.fileno())
    argv = ["mosh-client", str(session["address"]), str(session["port"])]
    if "patience_s" in session:
        from helpers.session import unproven_path  # noqa: PLC0415 - not needed for a proven path

        def heard(seconds: float) -> None:
            tell(socket_path, {"op": "udp", "ms": seconds * 1000})

        outcome, seconds = unproven_path.run_mosh_client(argv, environ, session["patience_s"], heard, keep=keep)
        server = session.get("server")
        return {"op": "fallback", "outcome": outcome, "ms": seconds * 1000, "server": server}
    nudge(os.getpid())
    become(argv, environ)
    raise AssertionError


def nudge(client: int) -> None:
    """Make mosh-client acknowledge the remote's first datagram at once, and again in case the first one was lost.

    mosh-server delays the prompt by 250 ms: it assumes a long round trip until its first datagram is acknowledged (mosh
    1.4.0, transportsender-impl.h, send_interval). By itself mosh-client acknowledges after 3 s (transportsender.h,
    ACK_INTERVAL), unless it has data to send, such as a possible change of the window's size. So a short-lived process
    sends it SIGWINCH.

    Args:
        client: The process that will be mosh-client.
    """
    # mosh-client, which this process becomes, does not reap the child, so the kernel must.
    signal(SIGCHLD, SIG_IGN)
    try:
        if os.fork():
            return
    except OSError:
        return  # the nudge is optional
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # sshd waits until no process has the terminal open
            os.dup2(null, fd)
        for wait_s in NUDGES_S:
            time.sleep(wait_s)
            os.kill(client, SIGWINCH)
    finally:
        os._exit(0)  # even after an error: this process must not go on as a second session
