"""Runs mosh-client as a child where UDP has not been seen to pass, so that ssh can take its place.

mosh-client itself is the probe: with ``-v`` it writes "Received state" to its standard error when the remote's first
datagram has arrived (mosh 1.4.0, transport-impl.h). Nothing is ever sent with the session's key by other programs.
"""

from __future__ import annotations

import _socket as socket  # as in helpers.protocol.broker_client
import os
import select
import sys
import termios
import time
from _signal import (  # type: ignore[import-not-found]  # as in mosh_client
    SIG_DFL,
    SIGCHLD,
    SIGHUP,
    SIGKILL,
    SIGTERM,
    signal,
)

from helpers.session.mosh_client import nudge

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

_RECEIVED = b"Received"

_CLOSE = (
    "\x1b[?1l\x1b[0m\x1b[?25h\x1b[?1003l\x1b[?1002l\x1b[?1001l\x1b[?1000l\x1b[?1015l\x1b[?1006l\x1b[?1005l\x1b[?2004l"
)
"""What mosh-client writes when it ends (mosh 1.4.0, terminaldisplayinit.cc, Display::close), and the end of bracketed
paste."""

_LEAVE_SCREEN = "\x1b[?1049l"
"""Leaves the alternate screen (xterm, ctlseqs)."""


def run_mosh_client(
    argv: list[str], environ: Mapping[str, str], patience_s: float, heard: Callable[[float], None], *, keep: bool
) -> tuple[str, float]:
    """Run mosh-client; exit with its status, or return if it hears nothing from the remote.

    Args:
        argv: mosh-client's command line.
        environ: Its environment.
        patience_s: Seconds after which the path counts as blocked.
        heard: Called when the remote's first datagram has arrived, with the seconds that it took.
        keep: Whether mosh-client leaves the terminal's screen as it is.

    Returns:
        ``silent`` or ``refused``, and after how many seconds. mosh-client has ended, and the terminal is as before.
    """
    saved = termios.tcgetattr(0)
    ours, theirs = _socketpair()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.dup2(theirs, 2)
            nudge(os.getpid())
            signal(SIGCHLD, SIG_DFL)
            os.execvpe(argv[0], [argv[0], "-v", *argv[1:]], environ)  # noqa: S606
        finally:
            os._exit(127)  # even after an error: this process must not go on as a second session
    os.close(theirs)

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return  # it has ended already

    # A terminal that hangs up sends SIGHUP to this process alone; `gatewayctl kick` sends SIGTERM.
    for number in (SIGHUP, SIGTERM):
        signal(number, pass_on)
    outcome = _wait(child, ours, argv[-2], int(argv[-1]), began + patience_s)
    seconds = time.monotonic() - began
    os.close(ours)
    if outcome is None or outcome == "passes":
        if outcome is not None:
            heard(seconds)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:  # sshd tells the client of a signal, not of a status
            if -code != SIGKILL:
                signal(-code, SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)
    os.kill(child, SIGKILL)
    os.waitpid(child, 0)
    for number in (SIGHUP, SIGTERM):
        signal(number, SIG_DFL)
    termios.tcsetattr(0, termios.TCSANOW, saved)
    sys.stdout.write(_CLOSE + ("\r\n" if keep else _LEAVE_SCREEN))
    sys.stdout.flush()
    return outcome, seconds


def _socketpair() -> tuple[int, int]:
    """Make two connected datagram sockets: writing to one whose other end is closed sends no SIGPIPE (unix(7))."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return ours.detach(), theirs.detach()


def _wait(child: int, ears: int, address: str, port: int, deadline: float) -> str | None:
    """Wait until the path is known.

    Returns:
        ``passes``, ``silent`` or ``refused``; None if mosh-client has ended by itself.
    """
    poll = select.poll()
    process = os.pidfd_open(child)
    poll.register(process, select.POLLIN)
    poll.register(ears, select.POLLIN)
    errors = _knock(address, port)
    if errors is None:
        os.close(process)
        return "refused"
    poll.register(errors.fileno(), select.POLLIN)
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                if fd == ears and _RECEIVED in os.read(ears, 65536):
                    return "passes"
                if fd == process:
                    return None
                if fd == errors.fileno() and _is_refused(errors):
                    return "refused"
        return "silent"
    finally:
        os.close(process)
        errors.close()


def _knock(address: str, port: int) -> socket.socket | None:
    """Send a datagram of one byte, which mosh-server ignores, over a connected socket.

    mosh-client's own socket is not connected, so the kernel does not report ICMP errors on it (udp(7)).

    Returns:
        The socket, which becomes readable if there is an error; None if the kernel refuses at once.
    """
    knock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        knock.connect((address, port))
        knock.send(b"\0")
    except OSError:
        knock.close()
        return None
    return knock


def _is_refused(knock: socket.socket) -> bool:
    try:
        knock.recv(1)
    except OSError:
        return True
    return False
