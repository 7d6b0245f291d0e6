"""A session helper's request: what is whole becomes a session, everything else is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.broker.sessions.session_starter import MAX_COMMAND_CHARS, SFTP_REQUEST, SessionRequest, parse_request
from helpers.protocol.errors import ProtocolError
from helpers.ssh.authorized_keys import encode_command

_TERMINAL = {"colors": 256, "locale": {"LANG": "C.UTF-8"}, "window": True}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def _request(**fields: Any) -> dict[str, Any]:
    """Write a request for a shell, with changes."""
    return {"terminal": None, "command": None, "original_command": None, **fields}


def test_a_shell_has_no_command() -> None:
    """Neither the client nor the key asks for a command."""
    assert parse_request(_request()) == SessionRequest(None, None, None, forced=False)


def test_a_clients_command_rules_where_no_key_has_one() -> None:
    """It is the command, and there is no other that it was asked for in place of."""
    wanted = parse_request(_request(original_command="uptime"))
    assert (wanted.command, wanted.original_command, wanted.forced, wanted.subsystem) == ("uptime", None, False, None)


def test_sftp_is_a_subsystem() -> None:
    """What sshd says for the subsystem sftp asks the remote for the same."""
    assert parse_request(_request(original_command=SFTP_REQUEST)).subsystem == "sftp"
    assert parse_request(_request(original_command=f"{SFTP_REQUEST} ")).subsystem is None


@pytest.mark.parametrize(
    ("asked", "told"), [(None, None), ("uptime", "uptime"), ("", ""), (SFTP_REQUEST, "internal-sftp")]
)
def test_a_keys_command_rules_all(asked: str | None, told: str | None) -> None:
    """Shell, command or sftp: the key's command runs, and is told what the client asked for."""
    wanted = parse_request(_request(command=encode_command(b"backup 'a b'"), original_command=asked))
    assert (wanted.command, wanted.original_command, wanted.forced) == ("backup 'a b'", told, True)
    assert wanted.subsystem is None


def test_a_keys_command_may_have_the_name_of_sshds_word_for_sftp() -> None:
    """It is a command then, and no subsystem."""
    assert parse_request(_request(command=encode_command(SFTP_REQUEST.encode()))).subsystem is None


@pytest.mark.parametrize(
    ("command", "options"),
    [("internal-sftp", ""), ("internal-sftp -R -d %h", " -R -d %h"), ("internal-sftp\t-u  027 ", " -u  027 ")],
)
def test_sshds_own_sftp_server_is_a_program_there(command: str, options: str) -> None:
    """``command="internal-sftp"`` runs sftp-server with the same options for sftp, and refuses everything else."""
    carried = encode_command(command.encode())
    sftp = parse_request(_request(command=carried, original_command=SFTP_REQUEST))
    assert sftp.command is not None
    assert sftp.command.startswith("exec env PATH=/usr/lib/openssh:")
    assert sftp.command.endswith(f" sftp-server{options}")
    assert (sftp.subsystem, sftp.original_command, sftp.forced) == (None, "internal-sftp", True)
    for asked in (None, "id", "internal-sftp", f"{SFTP_REQUEST} x"):
        other = parse_request(_request(command=carried, original_command=asked))
        assert (other.command, other.original_command, other.forced) == (
            "echo This service allows sftp connections only.; exit 1",
            asked,
            True,
        )


@pytest.mark.parametrize("command", ["internal-sftp-2", "internal-sftp; id", " internal-sftp", "Internal-sftp"])
def test_what_only_looks_like_it_is_a_command(command: str) -> None:
    """As for sshd, the name is a whole word at the beginning."""
    carried = encode_command(command.encode())
    assert parse_request(_request(command=carried, original_command=SFTP_REQUEST)).command == command


@pytest.mark.parametrize(
    "options", ["-d 'a b'", "; id", "$(id)", "-u 0\nid", "-R\udcff", "`id`", "> f", "~", "*", "!1"]
)
def test_options_that_a_shell_would_read_are_refused(options: str) -> None:
    """Sshd hands them to no shell, and here one stands between."""
    for asked in (SFTP_REQUEST, "id"):
        carried = encode_command(f"internal-sftp {options}".encode("utf-8", "surrogateescape"))
        with pytest.raises(ProtocolError, match="internal-sftp"):
            parse_request(_request(command=carried, original_command=asked))


@pytest.mark.parametrize("length", [MAX_COMMAND_CHARS, MAX_COMMAND_CHARS + 1])
def test_commands_have_a_longest(length: int) -> None:
    """One character more is refused with a sentence."""
    if length == MAX_COMMAND_CHARS:
        assert parse_request(_request(original_command="x" * length)).command == "x" * length
    else:
        with pytest.raises(ProtocolError, match="longer than 40000 characters"):
            parse_request(_request(original_command="x" * length))


@pytest.mark.parametrize("command", [7, True, [], {}, "a\0b", "\ud800", b"bytes"])
@pytest.mark.parametrize("field", ["original_command", "command"])
def test_what_is_no_command_is_refused(field: str, command: object) -> None:
    """Other types, NUL, and text that stands for no bytes."""
    with pytest.raises(ProtocolError):
        parse_request(_request(**{field: command}))


def test_bytes_that_are_no_utf8_are_a_command() -> None:
    """They come as the environment holds them, and are carried as they are."""
    assert parse_request(_request(original_command="echo \udcff")).command == "echo \udcff"


@pytest.mark.parametrize(
    "terminal",
    [
        7,
        [],
        {},
        {"colors": 256},
        {"locale": {}},
        {"colors": True, "locale": {}, "window": True},
        {"colors": "256", "locale": {}, "window": True},
        {"colors": -1, "locale": {}, "window": True},
        {"colors": 257, "locale": {}, "window": True},
        {"colors": 8, "locale": []},
        {"colors": 8, "locale": {"PATH": "x"}, "window": True},
        {"colors": 8, "locale": {"LC_": "x"}, "window": True},
        {"colors": 8, "locale": {"LANG": "C;id"}, "window": True},
        {"colors": 8, "locale": {"LANG": "-l"}, "window": True},
        {"colors": 8, "locale": {"LANG": "C\n"}, "window": True},
        {"colors": 8, "locale": {"LANG": 7}, "window": True},
        {"colors": 8, "locale": {"LANG": ""}, "window": True},
        {"colors": 8, "locale": {}},
        {"colors": 8, "locale": {}, "window": 1},
    ],
)
def test_what_is_no_terminal_is_refused(terminal: object) -> None:
    """Colours out of range, and locales that are no plain words."""
    with pytest.raises(ProtocolError):
        parse_request(_request(terminal=terminal))


def test_a_terminal_is_taken_as_it_is() -> None:
    """Colours and locale arrive."""
    terminal = parse_request(_request(terminal=_TERMINAL)).terminal
    assert terminal is not None
    assert (terminal.colors, terminal.locale) == (256, {"LANG": "C.UTF-8"})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it is no clock, and machines are busy
@given(st.dictionaries(st.sampled_from(["terminal", "command", "original_command", "other"]), _JSON))
def test_no_request_is_a_fault(request: dict[str, Any]) -> None:
    """Whatever the fields hold, it is a session or a refusal; nothing else escapes."""
    with suppress(ProtocolError):
        wanted = parse_request(request)
        assert wanted.command is None or "\0" not in wanted.command
