"""What mosh-client needs of a terminal, on real PTYs and with this machine's terminfo."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import helpers
from helpers.session.terminal import FALLBACK_SIZE, FALLBACK_TERM, ensure_window, has_window, locale_of

_ROOT = Path(helpers.__file__).parent.parent


@pytest.fixture
def terminal() -> Iterator[int]:
    """Open a PTY, whose window has no size as long as nobody gives it one."""
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def _usable(term: str, fd: int) -> list[str]:
    # In a process of its own, as in a session: curses reads terminfo once in a process.
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from helpers.session.terminal import usable_term"
    code += "; print(*usable_term(sys.argv[1], 0))"
    argv = [sys.executable, "-I", "-S", "-c", code, term]
    return subprocess.run(argv, stdin=fd, capture_output=True, text=True, check=True, timeout=30).stdout.split()


@pytest.mark.parametrize(("term", "colors"), [("xterm-256color", "256"), ("linux", "8"), ("vt100", "0"), ("dumb", "0")])
def test_a_known_terminal_is_kept(term: str, colors: str, terminal: int) -> None:
    """A TERM that terminfo has is the session's, with the number of its colours."""
    assert _usable(term, terminal) == [term, colors]


@pytest.mark.parametrize(
    "term", ["", "xterm-no-such", "-x", "../../etc/passwd", "/etc/passwd", "xterm;id", "a" * 65, "xterm\n", "é", "."]
)
def test_an_unknown_terminal_becomes_a_common_one(term: str, terminal: int) -> None:
    """What terminfo does not have, and what is no name at all, becomes one that every emulator understands."""
    assert _usable(term, terminal) == [FALLBACK_TERM, "256"]


def _size(fd: int) -> tuple[int, int]:
    rows, columns = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))[:2]
    return rows, columns


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((0, 0), FALLBACK_SIZE),
        ((0, 80), FALLBACK_SIZE),
        ((24, 0), FALLBACK_SIZE),
        ((1, 1), (1, 1)),
        ((50, 200), (50, 200)),
    ],
)
def test_a_window_without_a_size_gets_one(size: tuple[int, int], expected: tuple[int, int], terminal: int) -> None:
    """Rows or columns of nothing become 24 by 80; any other size is the client's own."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    assert has_window(terminal) == (size == expected)
    ensure_window(terminal)
    assert _size(terminal) == expected


def test_what_is_no_terminal_has_no_window(tmp_path: Path) -> None:
    """A file has no window, and that is an error."""
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="ioctl"):
        ensure_window(file.fileno())


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"LANG": "en_US.UTF-8"}, {"LANG": "en_US.UTF-8"}),
        ({"LANG": "C.utf8", "LC_TIME": "de_DE.UTF-8"}, {"LANG": "C.utf8", "LC_TIME": "de_DE.UTF-8"}),
        ({"LANG": "C", "LC_CTYPE": "UTF-8"}, {}),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, {"LANG": "C", "LC_CTYPE": "C.UTF-8"}),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, {}),
        ({"LANG": "C", "LC_ALL": "en_US.UTF-8"}, {"LANG": "C", "LC_ALL": "en_US.UTF-8"}),
        ({"LANG": "en_US.ISO-8859-1"}, {}),
        ({"LANG": "POSIX"}, {}),
        ({}, {}),
        ({"LANG": ""}, {}),
        ({"LANG": "$(id).UTF-8"}, {}),
        ({"LANG": "en_US.UTF-8", "LC_TIME": "x; id"}, {"LANG": "en_US.UTF-8"}),
        ({"LANG": "en_US.UTF-8", "LC_MINE": "de_DE.UTF-8", "PATH": "/x", "LANGUAGE": "de"}, {"LANG": "en_US.UTF-8"}),
        ({"LANG": "-l.UTF-8"}, {}),
        ({"LANG": "en_US.UTF-8\n"}, {}),
    ],
)
def test_which_locale_goes_to_the_remote(environ: dict[str, str], wanted: dict[str, str]) -> None:
    """Well-formed values go on where they mean UTF-8 (LC_ALL before LC_CTYPE before LANG), else none."""
    assert locale_of(environ) == wanted


@given(
    st.dictionaries(
        st.sampled_from(["LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "LC_EVIL"]), st.text(max_size=20), max_size=4
    )
)
def test_no_value_of_a_locale_needs_quoting(environ: dict[str, str]) -> None:
    """Whatever a client sends, what goes on is plain words."""
    for name, value in locale_of(environ).items():
        assert name != "LC_EVIL"
        assert value.isascii()
        assert value.replace("_", "").replace(".", "").replace("-", "").replace("@", "").isalnum()
