"""Command lines for the remote whose output start-up files of the user's shell cannot forge.

sshd passes the command to the user's login shell, which reads its start-up files first (``.bashrc``, ``.zshenv``,
``config.fish``). These may print text of other people (news, motd), change the directory, and define aliases and
functions. So the shell is replaced at once by ``/bin/sh``, and only lines that begin with a marker are valid:

- The marker is random, and new for each command.
- It is sent on standard input. The command line would show it to every user of the remote (ps(1)).
- ``/bin/sh`` prints it before each line. Output of a background job that a start-up file has started does not have it.

This uses the standard library only: sessions import it for agent pass-through.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Iterator

NO_MARKER_STATUS = 113
"""Exit status of a `marked` command without a marker on standard input: a start-up file has read it."""

_MARKER_BYTES = 16  # 128 bits, as many as mosh's key
_SCRIPT_FORBIDDEN = frozenset("'\\!\n")
"""Characters that single quotes do not protect: a backslash in fish and xonsh, an exclamation mark and a newline in
csh."""

_CALLED = "cd echo printf test readlink id ls cat getent grep head cut"  # by scripts; not special built-in utilities
_BEGIN = f"IFS= read -r gw_mark || exit {NO_MARKER_STATUS}; unset -f {_CALLED}"


def new_marker() -> bytes:
    """Make a marker: 32 hexadecimal digits."""
    return os.urandom(_MARKER_BYTES).hex().encode("ascii")


def marked(script: str, words: str = "") -> str:
    """Return the command line that runs a script on the remote, with any login shell.

    The script runs in ``/bin/sh`` with the marker in ``$gw_mark``. It must print the marker and a blank before each
    line, and begin with ``echo``: earlier output may lack a newline at its end.

    Args:
        script: For POSIX sh; a constant without single quotes, backslashes, exclamation marks and newlines, which
            some shells interpret within single quotes. Its variables must not have names that users export: xonsh
            substitutes those within quotes.
        words: The script's arguments, from ``$1`` on; words that need no quoting in any shell.

    Raises:
        ValueError: The script contains such a character.
    """
    if not _SCRIPT_FORBIDDEN.isdisjoint(script):
        msg = "the script has a character that single quotes do not protect in every shell"
        raise ValueError(msg)
    # ``exec`` and a path bypass aliases and functions. If sh is bash, it still imports functions from the environment;
    # ``unset`` removes them, since a special built-in utility is found before any function (POSIX).
    return f"exec /bin/sh -c '{_BEGIN}; {script}' gateway {words}".rstrip()


def standard_input(marker: bytes) -> bytes:
    """Return the whole standard input of a `marked` command."""
    return marker + b"\n"


def marked_lines(output: bytes, marker: bytes) -> Iterator[bytes]:
    """Yield the text behind the marker, for each complete line that begins with it.

    Args:
        output: The command's standard output, all of it or what was read so far.
        marker: The command's marker.
    """
    for line in output.split(b"\n")[:-1]:
        if (found := behind_marker(line, marker)) is not None:
            yield found


def behind_marker(line: bytes, marker: bytes) -> bytes | None:
    """Return a line's text behind the marker and its blank, or None if the line does not begin with it."""
    prefix = marker + b" "
    return line.removeprefix(prefix) if line.startswith(prefix) else None


def why_not_run(status: int | None, said: bytes) -> str:
    """Explain why a `marked` command did not run, if its output has no marker.

    Args:
        status: The exit status of the user's shell; None if a signal ended it.
        said: The shell's output, unchecked.
    """
    if status == NO_MARKER_STATUS:
        return "a start-up file of the user's shell on the remote host reads standard input, which it must leave alone"
    told = printable(said)
    return (
        "the remote host runs no commands for this account, perhaps because it is for sftp alone"
        f" (status {'unknown' if status is None else status}{', ' if told else ''}{told})"
    )


def printable(text: bytes) -> str:
    """Return the printable part of a remote's output, at most its last 200 characters."""
    shown = "".join(char if " " <= char <= "~" else " " for char in text[-2000:].decode("ascii", "replace"))
    return " ".join(shown.split())[-200:]
