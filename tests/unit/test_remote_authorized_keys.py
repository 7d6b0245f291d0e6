"""Which of a remote's files count, and that nothing that is printed meanwhile gets in between."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.broker.keys.key_index import MAX_CONTENT_BYTES
from helpers.broker.keys.remote_authorized_keys import AuthorizedKeys, AuthorizedKeysSources
from helpers.protocol.errors import RemoteLostError
from helpers.remote_command import standard_input
from lab.answers import MARKER, authorized_keys

_SOURCES = AuthorizedKeysSources()
_KEYS = b"ssh-ed25519 AAAA alice\n"
_KEYS_2 = b"ssh-ed25519 BBBB alice"
_ANSWER = authorized_keys(_KEYS, _KEYS_2)
_BOTH = AuthorizedKeys(_KEYS + b"\n" + _KEYS_2)


def _parse(output: bytes, status: int | None = 0, sources: AuthorizedKeysSources = _SOURCES) -> AuthorizedKeys:
    return sources.parse("alice", output, MARKER, status)


def test_files_count_in_their_order() -> None:
    """Both of sshd's own default, the first one first; a missing one is none, and an empty one is empty."""
    assert _parse(_ANSWER) == _BOTH
    assert _parse(authorized_keys(None, _KEYS_2)) == AuthorizedKeys(_KEYS_2)
    assert _parse(authorized_keys(b"", None)) == AuthorizedKeys(b"")
    assert _parse(authorized_keys(None, None)) == AuthorizedKeys(b"")


@given(st.binary(max_size=60) | st.sampled_from([_KEYS, b"\n" + _KEYS, authorized_keys(b"x", None, marker=b"other")]))
def test_text_before_and_behind_changes_nothing(text: bytes) -> None:
    """Start-up files may print what they like, also half a line, and so may jobs that outlive the command."""
    assert _parse(text + _ANSWER) == _BOTH
    assert _parse(_ANSWER + text) == _BOTH


@given(
    st.integers(len(b"\n" + MARKER + b" "), len(_ANSWER) - 1),
    st.sampled_from([_KEYS, b"\n" + _KEYS, b"\n", b"x", b"\n" * 23, b"-rw-r--r-- 1 1000 0 9 x\n"])
    | st.binary(min_size=1),
)
def test_text_in_between_lets_nobody_in(at: int, text: bytes) -> None:
    """Wherever a job in the background writes: what is believed is what the files say, or nothing."""
    try:
        found = _parse(_ANSWER[:at] + text + _ANSWER[at:])
    except RemoteLostError:
        return
    assert found.content in {_BOTH.content, _KEYS, _KEYS_2, b""}  # a list that was garbled may disqualify a file


@given(st.integers(0, len(_ANSWER) - 1))
def test_what_is_cut_short_lets_nobody_in(at: int) -> None:
    """No part of an answer is one."""
    if MARKER in _ANSWER[:at] and _ANSWER[:at].partition(MARKER)[2]:
        with pytest.raises(RemoteLostError):
            _parse(_ANSWER[:at])
    else:
        assert _parse(_ANSWER[:at]).content == b""


def test_another_marker_is_none() -> None:
    """An answer to somebody else's command is text like any other."""
    found = _parse(authorized_keys(_KEYS, None, marker=b"f" * 32))
    assert found.content == b""
    assert "runs no commands" in found.problems[0]


@pytest.mark.parametrize(
    ("mode", "uid", "counts"),
    [
        ("-rw-------", 1000, True),
        ("-rw-r--r--", 1000, True),
        ("-rwxr-xr-x", 1000, True),
        ("-r--------", 0, True),
        ("-rw-rw-r--", 1000, False),
        ("-rw-r--rw-", 1000, False),
        ("-rw-rw-rw-", 0, False),
        ("-rw-------", 1001, False),
        ("-rw-------+", 1000, True),
        ("-rw-rw----+", 1000, False),
        ("-rw-------.", 1000, True),
        ("-rw-------@", 1000, True),
    ],
)
def test_modes_of_a_file(mode: str, uid: int, *, counts: bool) -> None:
    """The user's or root's, and nobody else's to write: as StrictModes of sshd; a sign behind it means nothing."""
    found = _parse(_ANSWER.replace(b"-rw------- 1 1000", f"{mode} 1 {uid}".encode(), 1))
    assert found.content == (_BOTH.content if counts else _KEYS_2)
    assert counts or "bad ownership or modes for file /home/alice/.ssh/authorized_keys" in found.problems[0]


@pytest.mark.parametrize(
    ("mode", "uid", "counts"),
    [
        ("drwxr-xr-x", 1000, True),
        ("drwxr-x--x", 0, True),
        ("drwxr-sr-t", 1000, True),
        ("drwxrwxr-x", 1000, False),
        ("drwxr-xrwx", 1000, False),
        ("drwxrwxrwt", 0, False),
        ("drwxr-xr-x", 1001, False),
    ],
)
def test_modes_of_a_directory(mode: str, uid: int, *, counts: bool) -> None:
    """The same for each on the way up to the home; a sticky one is no better."""
    found = _parse(_ANSWER.replace(b"drwxr-xr-x 5 1000", f"{mode} 5 {uid}".encode(), 1))
    assert found.content == (_BOTH.content if counts else _KEYS_2)
    assert counts or "bad ownership or modes for directory /home/alice " in found.problems[0]


@pytest.mark.parametrize(
    ("members", "counts"),
    [
        (b"alice / ", True),
        (b"alice /", True),
        (b"alice / alice", True),
        (b"alice bob / ", False),
        (b"bob / ", False),
        (b"bob / alice", False),
        (b"alice / bob", False),
        (b"alice / alice,bob", False),
        (b"/ alice", False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("what", [b"-rw-rw-r-- 1 1000 50", b"drwxrwxr-x 2 1000 50"], ids=["file", "directory"])
def test_a_private_group_may_write(what: bytes, members: bytes, *, counts: bool) -> None:
    """A group whose one member is the user is the user, as for Debian's sshd; another group with that mode is not."""
    old = b"-rw------- 1 1000 1000" if what.startswith(b"-") else b"drwx------ 2 1000 1000"
    content = b"%s content" % MARKER
    answer = _ANSWER.replace(old, what, 1).replace(content, b"%s group 50 %s\n%s" % (MARKER, members, content), 1)
    assert _parse(answer).content == (_BOTH.content if counts else _KEYS_2)
    assert _parse(answer.replace(b"group 50", b"group 51")).content == _KEYS_2
    assert _parse(answer.replace(b"rwxrwxr-x", b"rwxrwxrwx").replace(b"rw-rw-r--", b"rw-rw-rw-")).content == _KEYS_2


_DIGITS = b"9" * 5000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b" uid 1000\n", b" uid " + _DIGITS + b"\n"),
        (b" uid 1000\n", b" uid x\n"),
        (b" uid 1000\n", b" uid -1\n"),
        (b" file 3\n", b" file " + _DIGITS + b"\n"),
        (b" file 3\n", b" file 999999999\n"),
        (b" file 3\n", b" file 0\n"),
        (b" 1 1000 1000 ", b" 1 " + _DIGITS + b" 1000 "),
        (b" 1 1000 1000 %d " % len(_KEYS), b" 1 1000 1000 " + _DIGITS + b" "),
        (b" 1 1000 1000 %d " % len(_KEYS), b" 1 1000 1000 999999999 "),
        (b" end\n", b" end" + _DIGITS + b"\n"),
        (b" content\n", b" command " + _DIGITS + b"\n"),
    ],
)
def test_numbers_that_a_hostile_remote_makes_up(old: bytes, new: bytes) -> None:
    """None of them is more than an answer that does not count."""
    assert old in _ANSWER
    with pytest.raises(RemoteLostError):
        _parse(_ANSWER.replace(old, new, 1))


def test_larger_files_let_nobody_in() -> None:
    """All together may have a MiB."""
    half = b"x" * (MAX_CONTENT_BYTES // 2)
    assert len(_parse(authorized_keys(half, half[1:])).content) == MAX_CONTENT_BYTES
    found = _parse(authorized_keys(half, half))
    assert (found.content, "larger than" in found.problems[0]) == (b"", True)


def test_a_command_comes_last_and_may_fail() -> None:
    """What it printed counts where it ended with 0, as sshd has it."""
    sources = AuthorizedKeysSources((".ssh/authorized_keys",), "/bin/keys %u")
    start = authorized_keys(_KEYS).removesuffix(b"%s end\n" % MARKER)
    for answer, found in (
        (b"%s command %d\n%s\n%s end\n" % (MARKER, len(_KEYS_2), _KEYS_2, MARKER), _BOTH),
        (b"%s failed 1\n%s end\n" % (MARKER, MARKER), AuthorizedKeys(_KEYS, _parse(b"").problems)),
    ):
        assert _parse(start + answer, 0, sources).content == found.content
    (problem,) = _parse(start + b"%s failed 1\n%s end\n" % (MARKER, MARKER), 0, sources).problems
    assert problem == "/bin/keys on the remote host does not count: it ended with status 1"


def test_tokens_are_sshds() -> None:
    """%u is the name, %h the home and %% a percent sign, in paths, absolute or below the home, and in the command."""
    name = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    home = os.path.realpath(os.path.expanduser(f"~{name}"))  # noqa: PTH111 - of any user
    with tempfile.TemporaryDirectory(prefix="keys-", dir=home) as base:
        (Path(base) / "a%b" / name).mkdir(parents=True)
        paths = (f"{base}/a%b/{name}/1", f"{base}/2", f"{base}/3", f"{base}/{name}_4", f"{base}/{name}5")
        for number, path in enumerate(paths):
            Path(path).write_bytes(b"%d\n" % number)
        below = base.removeprefix(f"{home}/")
        files = (f"{base}/a%%b/%u/1", f"%h/{below}/2", f"{below}/3", f"{base}/%u_4", f"{below}/%u5", "%h/no-such-file")
        sources = AuthorizedKeysSources(files, "/bin/echo %u %% x%h %u_6 %h7")
        argv = ["/bin/sh", "-c", sources.command_line(name)]
        done = subprocess.run(argv, input=standard_input(MARKER), capture_output=True, check=True)
    assert _parse(done.stdout, 0, sources) == AuthorizedKeys(
        f"0\n\n1\n\n2\n\n3\n\n4\n\n{name} % x{home} {name}_6 {home}7".encode()
    )
