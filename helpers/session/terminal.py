"""Checks the terminal for mosh-client before a mosh-server is started.

mosh-client fails with an unknown TERM, without a UTF-8 locale and in a window of 0x0, and would leave its mosh-server
waiting on the remote for a minute (mosh 1.4.0).
"""

from __future__ import annotations

import _curses as curses  # curses itself adds nothing that is needed
import os

from helpers.protocol.messages import MAX_COLORS, is_locale_value, is_term

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Mapping

FALLBACK_TERM = "xterm-256color"
"""Replaces an unknown TERM: all terminal emulators in use are compatible with it."""

FALLBACK_SIZE = (24, 80)
"""Rows and columns for a window that has none, those of a VT100."""

_LOCALE_NAMES = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_NUMERIC",
    "LC_TIME",
    "LC_COLLATE",
    "LC_MONETARY",
    "LC_MESSAGES",
    "LC_PAPER",
    "LC_NAME",
    "LC_ADDRESS",
    "LC_TELEPHONE",
    "LC_MEASUREMENT",
    "LC_IDENTIFICATION",
)


def usable_term(term: str, fd: int) -> tuple[str, int]:
    """Choose a terminal type that this machine's terminfo has.

    Args:
        term: The client's TERM, unchecked.
        fd: The terminal's file descriptor.

    Returns:
        ``term`` if terminfo has it, else `FALLBACK_TERM`; and its number of colours, 0-256.
    """
    for name in (term, FALLBACK_TERM):
        if is_term(name):
            try:
                curses.setupterm(name, fd)
            except curses.error:
                continue
            return name, max(0, min(curses.tigetnum("colors"), MAX_COLORS))
    return FALLBACK_TERM, MAX_COLORS


def has_window(fd: int) -> bool:
    """Check whether a terminal has a size: a client without a terminal of its own (``ssh -tt </dev/null``) sends 0x0.

    Raises:
        OSError: ``fd`` is not a terminal.
    """
    return all(os.get_terminal_size(fd))


def ensure_window(fd: int) -> None:
    """Set the size of a window without rows or columns to `FALLBACK_SIZE`.

    Raises:
        OSError: ``fd`` is not a terminal.
    """
    if not has_window(fd):
        import termios  # noqa: PLC0415 - rarely needed

        termios.tcsetwinsize(fd, FALLBACK_SIZE)


def locale_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the client's locale for the remote, if mosh can use it.

    Args:
        environ: The session's environment, unchecked: sshd's AcceptEnv accepts LANG and LC_*.

    Returns:
        The variables with well-formed locale names, or none if the resulting character set (LC_ALL before LC_CTYPE
        before LANG, locale(7)) is not UTF-8.
    """
    wanted = {name: environ[name] for name in _LOCALE_NAMES if is_locale_value(environ.get(name, ""))}
    ctype = wanted.get("LC_ALL") or wanted.get("LC_CTYPE") or wanted.get("LANG") or ""
    charset = ctype.partition("@")[0].lower()
    return wanted if charset.endswith((".utf-8", ".utf8")) else {}
