"""Commands whose output counts behind a marker alone, whatever the user's shell is and does first."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.remote_command import (
    NO_MARKER_STATUS,
    behind_marker,
    marked,
    marked_lines,
    new_marker,
    printable,
    standard_input,
)

_SHELLS = [
    *(("sh",), ("bash",)),
    *((name,) for name in ("dash", "zsh", "fish", "tcsh", "xonsh", "ksh93", "mksh") if shutil.which(name)),
    *([("busybox", "sh")] if shutil.which("busybox") else []),
]


def _run(argv: tuple[str, ...], line: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*argv, "-c", line], input=stdin, capture_output=True, check=False, timeout=30)


def test_markers_differ() -> None:
    """Each has 32 hexadecimal digits of its own."""
    markers = {new_marker() for _ in range(100)}
    assert len(markers) == 100
    assert all(re.fullmatch(rb"[0-9a-f]{32}", marker) for marker in markers)


@pytest.mark.parametrize("shell", _SHELLS, ids=" ".join)
def test_a_script_runs_in_any_shell(shell: tuple[str, ...]) -> None:
    """It gets its marker and its words, its output counts, and its exit status arrives."""
    marker = new_marker()
    done = _run(shell, marked('echo; echo "$gw_mark $# $1 ${2%/*}"; exit 7', "a=b /c/d"), standard_input(marker))
    assert (list(marked_lines(done.stdout, marker)), done.returncode) == ([b"2 a=b /c"], 7)


@pytest.mark.parametrize("shell", _SHELLS, ids=" ".join)
@pytest.mark.parametrize("stdin", [b"", b"0123"], ids=["none", "no newline"])
def test_a_script_without_its_marker_does_nothing(shell: tuple[str, ...], stdin: bytes) -> None:
    """Where standard input was read by a start-up file, the status says so."""
    done = _run(shell, marked("echo ran"), stdin)
    assert (done.stdout, done.returncode) == (b"", NO_MARKER_STATUS)


def test_functions_of_the_environment_are_left_out() -> None:
    """What bash exports, and sh would take in where it is bash, does not stand for what the script calls."""
    line = f"exec() {{ echo hidden; }}; cd() {{ echo hidden; }}; export -f cd exec; {marked('cd / && echo $gw_mark x')}"
    hidden = "cd() { echo hidden; }; cat() { echo hidden; }; export -f cd cat; "
    script = marked('cd / && echo "$gw_mark ${PWD-}"; cat /dev/null')
    assert _run(("bash",), hidden + script, b"m\n").stdout == b"m /\n"
    assert b"hidden" in _run(("bash",), line, b"m\n").stdout  # what does not begin with the script is another matter


@pytest.mark.parametrize("script", ["echo 'x'", "echo \\n", "! true", "echo\necho"])
def test_scripts_that_some_shell_would_read_otherwise(script: str) -> None:
    """Single quotes, backslashes, exclamation marks and newlines are refused."""
    with pytest.raises(ValueError, match="single quotes"):
        marked(script)


def test_text_before_the_marker_does_not_count() -> None:
    """Nor does a line in which the marker stands elsewhere, or one that is not whole."""
    output = b"motd\nxM 1\nM 2\n M 3\nM\nM4\nM  5\nM 6"
    assert list(marked_lines(output, b"M")) == [b"2", b" 5"]
    assert behind_marker(b"M", b"M") is None


@given(st.binary(max_size=4000))
def test_what_a_remote_wrote_is_one_printable_line(text: bytes) -> None:
    """Of 200 characters at most, without an escape sequence."""
    assert re.fullmatch(r"[\x20-\x7e]{0,200}", printable(text))
