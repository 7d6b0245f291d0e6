"""Runs a command on the remote so that no start-up file of the user's shell can change what is read of it.

sshd gives the command to the user's login shell, which reads its start-up files first (``.bashrc``, ``.zshenv``,
``config.fish``). These may print text of other people (news, motd), change the directory, and define aliases and
functions. So the shell is replaced at once by ``/bin/sh``, and a line of its output counts only behind a marker:

- The marker is random, and new for each command.
- It travels on standard input. The command line would show it to every user of the remote (ps(1)).
- ``/bin/sh`` puts it before each line that counts, so that text of a job that a start-up file left in the background
  cannot pass for such a line either.

Standard library alone: sessions import this for agent pass-through.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Iterator

NO_MARKER_STATUS = 113
"""Exit status of a `marked` command that found no marker on standard input: a start-up file has read it."""

_MARKER_BYTES = 16  # 128 bits, as a key of mosh's: a guess is as good as guessing that
_SCRIPT_FORBIDDEN = frozenset("'\\!\n")
"""What single quotes do not protect: a backslash in fish and xonsh, an exclamation mark in csh, which also ends them at
a newline."""

_CALLED = "cd echo printf test readlink id ls cat getent grep head cut"  # by scripts, and no special built-in utilities
_BEGIN = f"IFS= read -r gw_mark || exit {NO_MARKER_STATUS}; unset -f {_CALLED}"


def new_marker() -> bytes:
    """Make a marker: 32 hexadecimal digits."""
    return os.urandom(_MARKER_BYTES).hex().encode("ascii")


def marked(script: str, words: str = "") -> str:
    """Write the command line that runs a script on the remote, whatever the user's shell is.

    The script runs in ``/bin/sh`` with the marker in ``$gw_mark``. It must write the marker and a blank before each
    line that counts, and begin with ``echo``: text without a newline at its end may stand before.

    Args:
        script: For POSIX sh; a constant without single quotes, backslashes, exclamation marks and newlines, which
            some shell reads within single quotes. Its variables should not be ones that users export: xonsh
            replaces those within quotes.
        words: The script's arguments, from ``$1`` on, as they stand on a command line: plain words in every shell.

    Raises:
        ValueError: The script has such a character.
    """
    if not _SCRIPT_FORBIDDEN.isdisjoint(script):
        msg = "the script has a character that single quotes do not protect in every shell"
        raise ValueError(msg)
    # ``exec`` and a path pass over aliases and functions. Where sh is bash it imports functions from the environment
    # all the same, and ``unset`` removes them: it is a special built-in utility, found before any function (POSIX).
    return f"exec /bin/sh -c '{_BEGIN}; {script}' gateway {words}".rstrip()


def standard_input(marker: bytes) -> bytes:
    """Return what a `marked` command is given on standard input, after which that ends."""
    return marker + b"\n"


def marked_lines(output: bytes, marker: bytes) -> Iterator[bytes]:
    """Yield what stands behind the marker, for each whole line that begins with it.

    Args:
        output: All of the command's standard output, or what there is of it so far.
        marker: The command's marker.
    """
    for line in output.split(b"\n")[:-1]:
        if (found := behind_marker(line, marker)) is not None:
            yield found


def behind_marker(line: bytes, marker: bytes) -> bytes | None:
    """Return what stands behind the marker and its blank in a line, or None where the line does not begin with it."""
    prefix = marker + b" "
    return line.removeprefix(prefix) if line.startswith(prefix) else None


def why_not_run(status: int | None, said: bytes) -> str:
    """Say why a `marked` command did not run, when its output has no marker.

    Args:
        status: The exit status of the user's shell; None if a signal ended it.
        said: What it printed, unchecked.
    """
    if status == NO_MARKER_STATUS:
        return "a start-up file of the user's shell on the remote host reads standard input, which it must leave alone"
    told = printable(said)
    return (
        "the remote host runs no commands for this account, perhaps because it is for sftp alone"
        f" (status {'unknown' if status is None else status}{', ' if told else ''}{told})"
    )


def printable(text: bytes) -> str:
    """Take what may be shown on a terminal, the last 200 characters at most, from what a remote wrote."""
    shown = "".join(char if " " <= char <= "~" else " " for char in text[-2000:].decode("ascii", "replace"))
    return " ".join(shown.split())[-200:]
