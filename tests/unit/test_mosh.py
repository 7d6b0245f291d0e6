"""What is said to mosh-server and what it says: hostile on both sides."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.mosh import (
    LOCALE_FALLBACKS,
    MAX_LINE_BYTES,
    MoshEndpoint,
    RunCommand,
    Terminal,
    failure,
    parse_mosh_connect,
    server_command,
    ssh_failure,
)
from helpers.protocol.errors import (
    GatewayError,
    HostKeyError,
    MoshServerError,
    NoCommonAlgorithmError,
    NoLocaleError,
    NoMoshServerError,
    PermissionDeniedError,
    RemoteLostError,
)
from helpers.remote_command import standard_input
from lab.answers import MARKER

_KEY = b"4NeCCgvZFe2RnPgrcU1PQw"
# sh and bash are always there; the others are tried where they are.
_SHELLS = ["sh", "bash", *filter(shutil.which, ("dash", "busybox", "ksh", "ksh93", "zsh", "fish", "tcsh", "csh"))]
_COMMANDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60) | st.text(
    st.sampled_from("'\"\\$`!#&|;<>(){}[]*?~^%= \t\n-éa1"), max_size=30
)


def _command(run: RunCommand | None, program: str = "mosh-server", address: str = "192.0.2.1") -> str:
    terminal = Terminal(256, {"LANG": "de_DE.UTF-8"})
    return server_command(
        terminal, address=address, program=program, ports="60001:60999", silence_timeout_s=60, run=run
    )


def test_the_command_for_a_shell() -> None:
    """A login shell is what mosh-server starts by itself: plain words behind a script that is always the same."""
    start, words = _command(None).split("' gateway ")
    assert words == (
        "env MOSH_SERVER_NETWORK_TMOUT=60 mosh-server new -i 0.0.0.0 -c 256 -p 60001:60999 -l LANG=de_DE.UTF-8"
    )
    assert _command(RunCommand("x")).startswith(start)


def test_ipv6_is_bound_to_where_the_remote_has_it() -> None:
    """The family of the remote's address tells which wildcard mosh-server binds to."""
    assert " -i :: " in _command(None, address="2001:db8::1")


@given(command=_COMMANDS, original=st.none() | _COMMANDS)
def test_the_command_line_is_one_line_of_plain_words(command: str, original: str | None) -> None:
    """Nothing that a client or a key file wrote is in the line but as base64; the rest is the same for all commands."""
    line = _command(RunCommand(command, original))
    assert line.isascii()
    assert line.isprintable()
    start, words, constant = re.split("(?<=' gateway) | -- ", line)
    empty = re.split("(?<=' gateway) | -- ", _command(RunCommand("")))
    assert [start, constant] == [empty[0], empty[2]]
    assert re.fullmatch(r"[A-Za-z0-9 =+/_.:-]*", words)


@given(raw=st.binary(max_size=40).filter(lambda raw: b"\0" not in raw))
def test_bytes_that_are_no_text_arrive_as_they_were(raw: bytes) -> None:
    """A command of undecodable bytes, which os.environ holds as surrogates, is carried byte for byte."""
    command = os.fsdecode(raw)
    (word,) = [word for word in _command(RunCommand(command)).split() if word.startswith("GATEWAY_COMMAND=")]
    done = subprocess.run(["base64", "-d"], input=word.partition("=")[2].encode(), capture_output=True, check=True)
    assert done.stdout == raw


@pytest.fixture(scope="session")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with a mosh-server that runs what it is given, and a shell that writes down what it is told."""
    directory = tmp_path_factory.mktemp("remote")
    scripts = {
        "mosh-server": '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n',
        "login-shell": (
            f'#!/bin/sh\n[ $# = 2 ] && [ "$1" = -c ] || exit 9\nprintf %s "$2" >{directory}/command\n'
            f'printf %s "${{SSH_ORIGINAL_COMMAND-unset}}" >{directory}/original\n'
            f"env | grep ^GATEWAY_ >{directory}/left || :\n"
        ),
    }
    for name, text in scripts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return directory


def _run_by(shell: str, line: str, remote: Path) -> tuple[bytes, bytes, bytes]:
    for name in ("command", "original", "left"):
        (remote / name).unlink(missing_ok=True)
    argv = [shell, *(["sh"] if shell == "busybox" else []), "-c", line]
    environ = {"PATH": f"{remote}:{os.environ['PATH']}", "SHELL": str(remote / "login-shell"), "HOME": str(remote)}
    done = subprocess.run(
        argv, env=environ, cwd=remote, capture_output=True, check=False, timeout=30, input=standard_input(MARKER)
    )
    assert (done.returncode, done.stderr) == (0, b"")
    command, original, left = ((remote / name).read_bytes() for name in ("command", "original", "left"))
    return command, original, left


@pytest.mark.parametrize("line_of", ["mosh-server", "ssh"])
@pytest.mark.parametrize("shell", _SHELLS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(command="'; touch pwned; '", original="$(touch pwned) `touch pwned` \\' \" ! % * ?")
@example(command='printf "%s\\n" "$HOME" \'x\'; # é\n-n', original="rsync --server -e.Lsfx . dir/")
@given(command=_COMMANDS.map(str.rstrip), original=_COMMANDS.map(str.rstrip))
def test_any_shell_runs_exactly_the_carried_command(
    shell: str, line_of: str, command: str, original: str, remote: Path
) -> None:
    """The user's shell gets the command as it was, and the client's request as SSH_ORIGINAL_COMMAND."""
    run = RunCommand(command, original)
    line = _command(run) if line_of == "mosh-server" else run.line
    expected = (command.encode(), original.encode() or b"unset", b"")
    assert _run_by(shell, line, remote) == expected
    assert not (remote / "pwned").exists()


def test_a_command_of_the_clients_own_has_no_original(remote: Path) -> None:
    """SSH_ORIGINAL_COMMAND is set where a key's command rules, and only there."""
    assert _run_by("sh", _command(RunCommand("uptime")), remote) == (b"uptime", b"unset", b"")


def test_newlines_at_the_end_are_no_part_of_a_command(remote: Path) -> None:
    """A shell's command substitution drops them; the commands mean the same without."""
    assert _run_by("sh", _command(RunCommand("uptime\n\n", "x\n")), remote)[:2] == (b"uptime", b"x")


def test_a_program_with_a_path() -> None:
    """REMOTE_MOSH_SERVER stands in the line as it is."""
    assert shlex.split(_command(None, "/opt/homebrew/bin/mosh-server"))[7] == "/opt/homebrew/bin/mosh-server"


def test_which_locales_are_offered() -> None:
    """The client's first, if there is one, then those that most systems have."""
    own = {"LANG": "de_DE.UTF-8"}
    assert Terminal(8, own).locales == (own, *LOCALE_FALLBACKS)
    assert Terminal(8, {}).locales == LOCALE_FALLBACKS


@pytest.mark.parametrize("end", [b"", b"\r"])
@pytest.mark.parametrize("port", [1, 60001, 65535])
def test_the_line_that_is_waited_for(port: int, end: bytes) -> None:
    """The port and the key are read from mosh-server's own line."""
    assert parse_mosh_connect(b"MOSH CONNECT %d %s%s" % (port, _KEY, end)) == MoshEndpoint(port, _KEY.decode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"MOSH CONNECT",
        b"MOSH CONNECT 0 " + _KEY,
        b"MOSH CONNECT 01 " + _KEY,
        b"MOSH CONNECT -1 " + _KEY,
        b"MOSH CONNECT 65536 " + _KEY,
        b"MOSH CONNECT 99999 " + _KEY,
        b"MOSH CONNECT 600010 " + _KEY,
        b"MOSH CONNECT 60001 " + _KEY[:-1],
        b"MOSH CONNECT 60001 " + _KEY + b"A",
        b"MOSH CONNECT 60001 " + _KEY[:-1] + b"=",
        b"MOSH CONNECT 60001 " + _KEY[:-1] + b"\n",
        b"MOSH CONNECT 60001 " + _KEY + b"\n",
        b"MOSH CONNECT 60001 " + _KEY + b" x",
        b" MOSH CONNECT 60001 " + _KEY,
        b"motd: MOSH CONNECT 60001 " + _KEY,
        b"mosh connect 60001 " + _KEY,
        b"MOSH  CONNECT 60001 " + _KEY,
        b"MOSH CONNECT \xd9\xa1 " + _KEY,
        b"MOSH CONNECT 60001 " + _KEY + b"\r\r",
        b"x" * (MAX_LINE_BYTES + 1),
    ],
)
def test_lines_that_are_something_else(line: bytes) -> None:
    """A port that is none, a key that is none, anything before or behind: not the line."""
    assert parse_mosh_connect(line) is None


@given(st.binary(max_size=80) | st.binary(max_size=30).map(lambda tail: b"MOSH CONNECT " + tail))
def test_any_line_is_an_endpoint_or_nothing(line: bytes) -> None:
    """What the remote writes gives a port that there is and a key of 22 plain characters, or nothing."""
    endpoint = parse_mosh_connect(line)
    if endpoint is not None:
        assert 1 <= endpoint.port <= 65535
        assert re.fullmatch(r"[A-Za-z0-9/+]{22}", endpoint.key)


def test_the_key_is_in_no_representation() -> None:
    """A session's key is a secret: whoever logs an endpoint does not log it."""
    endpoint = MoshEndpoint(60001, _KEY.decode())
    assert _KEY.decode() not in f"{endpoint} {endpoint!r} {[endpoint]}"


@pytest.mark.parametrize(
    ("status", "stderr", "kind"),
    [
        (1, b"mosh-server needs a UTF-8 native locale to run.\n", NoLocaleError),
        (127, b"sh: 1: mosh-server: not found", NoMoshServerError),
        (126, b"permission denied", NoMoshServerError),
        (127, b"", NoMoshServerError),
        (1, b"bind: Address already in use", MoshServerError),
        (None, b"", MoshServerError),
        (0, b"", MoshServerError),
    ],
)
def test_why_there_is_no_session(status: int | None, stderr: bytes, kind: type[GatewayError]) -> None:
    """No locale, no mosh-server and a mosh-server that failed are told apart."""
    assert type(failure(status, b"\n%s \n" % MARKER, stderr, MARKER, "mosh-server")) is kind


@pytest.mark.parametrize(
    ("status", "said", "sentence"),
    [
        (1, b"This service allows sftp connections only.\n", "runs no commands .*sftp connections only"),
        (1, b"MOSH CONNECT 60001 " + _KEY + b"\n", "runs no commands"),
        (None, b"", "status unknown"),
        (113, b"motd\n", "reads standard input"),
    ],
)
def test_an_account_that_runs_no_commands_is_told(status: int | None, said: bytes, sentence: str) -> None:
    """Without the marker nothing ran: the sentence names what was said instead, and is no mosh-server's."""
    error = failure(status, said, b"", MARKER, "mosh-server")
    assert isinstance(error, PermissionDeniedError)
    assert re.search(sentence, error.message)


@pytest.mark.parametrize(
    ("stderr", "kind", "said"),
    [
        (b"alice@x: Permission denied (publickey).\r\n", PermissionDeniedError, "no key of your agent"),
        (b"alice@x: Permission denied (publickey,password).\r\n", PermissionDeniedError, "no key of your agent"),
        (b"alice@x: Permission denied (password).\r\n", PermissionDeniedError, "wants password beside"),
        (b"alice@x: Permission denied (\x1b]0;x).\r\n", PermissionDeniedError, "no key of your agent"),
        (
            b"Unable to negotiate with x: no matching cipher found.\r\n",
            NoCommonAlgorithmError,
            "no algorithm in common",
        ),
        (b"Host key verification failed.\r\n", HostKeyError, "not the one"),
        (
            b"gateway: the remote host cannot be reached: a, b: refused\nproxy dialer\n",
            RemoteLostError,
            ": a, b: refused",
        ),
        (b"ssh: connect to host x: Connection refused\r\n", RemoteLostError, "Connection refused"),
    ],
)
def test_why_ssh_brought_no_session(stderr: bytes, kind: type[GatewayError], said: str) -> None:
    """What ssh says of the remote tells the kinds apart; nothing but printable text of it is shown."""
    error = ssh_failure(255, b"", stderr, MARKER, "mosh-server")
    assert type(error) is kind
    assert said in error.message
    assert error.message.isprintable()


@given(st.none() | st.integers(0, 255), st.binary(max_size=300))
def test_what_the_remote_wrote_is_shown_as_one_short_line(status: int | None, stderr: bytes) -> None:
    """Whatever it wrote, the sentence is printable ASCII and short: no escape sequence reaches the user's terminal."""
    message = failure(status, b"\n%s \n" % MARKER, stderr, MARKER, "mosh-server").message
    assert re.fullmatch(r"[\x20-\x7e]{10,400}", message)
