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

from helpers.session.program import become
from helpers.session.terminal import ensure_window

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from helpers.protocol.session_answer import MoshAnswer

NUDGES_S = (0.03, 0.03, 0.06, 0.12, 0.36, 0.6, 1.0)
"""Seconds before each time that mosh-client is nudged: see `nudge`. It takes some 10 ms to start, and on a busy machine
several times that, in which a nudge goes unnoticed."""


def become_mosh_client(session: MoshAnswer, term: str, path: str, *, keep: bool) -> None:
    """Replace this process with mosh-client.

    Args:
        session: The broker's answer: address, port, key (MOSH_KEY) and predict.
        term: The terminal type that was checked.
        path: Where programs are looked for.
        keep: Leave on the screen what is there at the end, as a command's output has to be. By itself mosh-client
            draws on the terminal's other screen, which goes with it (mosh(1), --no-init).

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
        **({"MOSH_NO_TERM_INIT": "1"} if keep else {}),
    }
    ensure_window(sys.stdout.fileno())
    nudge(os.getpid())
    become(["mosh-client", str(session["address"]), str(session["port"])], environ)


def nudge(client: int) -> None:
    """Have mosh-client answer the remote's first datagram at once, and again lest that was lost.

    mosh-server holds the prompt back for 250 ms: it takes the way for a long one until it hears how soon its first
    datagram was answered (mosh 1.4.0, transportsender-impl.h, send_interval). By itself mosh-client does so after 3 s
    (transportsender.h, ACK_INTERVAL), unless it has news, as that the window may have changed. It is told so by a
    process that then is gone.

    Args:
        client: The process that will be mosh-client.
    """
    # mosh-client, which this process becomes, takes no notice of its end, and so the kernel is not to wait for that.
    signal(SIGCHLD, SIG_IGN)
    try:
        if os.fork():
            return
    except OSError:
        return  # it helps, and is not needed
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # sshd waits until nobody has the terminal
            os.dup2(null, fd)
        for wait_s in NUDGES_S:
            time.sleep(wait_s)
            os.kill(client, SIGWINCH)
    finally:
        os._exit(0)  # whatever happened: this process must not go on as a second session
