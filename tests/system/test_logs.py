"""The log: a login's lines belong together, a refusal says why, nobody forges a line, and no secret is in it."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
import pytest

from lab import client
from lab.gateway import ADDRESS, GATEWAYCTL
from lab.users import make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

# What a line of ours begins with, to be looked for where a client's words were logged.
_FORGERY = "2026-01-31T12:00:00.000Z broker[8]: info session_started sid=1-1 user=forged outcome=ok"
# The same of sshd's, without a colon: there sshd itself cuts a user name off.
_FORGED_VERDICT = "Accepted publickey for forged from 192.0.2.66 port 4711 ssh2"
_OURS = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]{12}Z (?:broker|gatewayctl)\[\d+\]: (?:debug|info|warning|error) (\w+)(.*)")


def _fields(line: str) -> dict[str, str]:
    """Read the ``key=value`` words of one of our lines."""
    return dict(re.findall(r' (\w+)=("(?:[^"\\]|\\.)*"|\S*)', line))


def _events(gateway: Gateway, since: int, **wanted: str) -> list[tuple[str, dict[str, str]]]:
    """Return our own events with these fields, in order."""
    matches = [match for line in gateway.log.lines(since=since) if (match := _OURS.fullmatch(line))]
    events = [(match[1], _fields(match[2])) for match in matches]
    return [(event, fields) for event, fields in events if wanted.items() <= fields.items()]


def _fingerprint(lab: Lab, key: Path) -> str:
    """Return a key's fingerprint by OpenSSH's own tool."""
    return lab.run(["ssh-keygen", "-l", "-f", str(key)]).stdout.decode().split()[1]


def _intact(gateway: Gateway, since: int) -> None:
    """Check that no line is a forgery, and that no byte is one that a terminal would obey."""
    text = "\n".join(gateway.log.path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[since:])
    assert not [line for line in text.split("\n") if line.startswith((_FORGERY[:10], _FORGED_VERDICT, "forged"))]
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|$)", text)  # sshd ends its lines with CR LF
    assert not _events(gateway, since, user="forged")


# One login


def test_lines_of_a_login_belong_together(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Key and session lines of one login share a sid, the session's has the client's address that sshd's lines have."""
    since = gateway.log.mark()
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    gateway.log.wait_for(rf"session_started .*user={user.name} ", since=since)

    events = _events(gateway, since, user=user.name)
    session = events[-1][1]
    client, port = session["client"].rsplit(":", 1)
    pattern = rf"Accepted publickey for {user.name} from (\S+) port (\d+) .* (\S+)$"
    accepted = gateway.log.wait_for(pattern, since=since)
    # Of the second question about the key, to prove that it is the client's, sshd knows the answer.
    assert [event for event, _ in events] == ["key_permitted", "session_started"]
    assert {fields["sid"] for _, fields in events} == {session["sid"]}
    assert session["sid"] != "-"
    assert accepted.groups() == (client, port, _fingerprint(lab, user.key.private))
    assert session["key"] == events[0][1]["key"] == accepted[3]
    assert (session["remote"], session["outcome"]) == ("192.0.2.2", "ok")
    assert 60001 <= int(session["udp_port"]) <= 60999
    assert {"connect_ms", "mosh_server_ms", "ms"} <= session.keys()
    assert {"fetch_ms", "source", "ms"} <= events[0][1].keys()
    assert events[0][1]["client"] == session["client"]
    # sshd's own lines have the process id with which the sid begins, whichever of its processes logged them.
    lines = [line for line in gateway.log.lines(since=since) if f"port {port}" in line]
    assert {match[1] for line in lines if (match := re.search(r" sshd\S*\[(\d+)\]: ", line))} == {
        session["sid"].partition("-")[0]
    }


def test_a_command_has_five_lines(lab: Lab, gateway: Gateway, user: User) -> None:
    """The key, sshd's verdict, the session's begin and end, and the end of the connection: each once."""
    since = gateway.log.mark()
    assert lab.run(lab.gateway_argv(gateway, user, "exit 3", options=["-T"])).returncode == 3
    gateway.log.wait_for(rf"session_ended .*user={user.name} ", since=since)
    gateway.log.wait_for(rf"Disconnected from user {user.name} ", since=since)
    # Each line has the user's name, and the shared gateway has other users.
    words = [line.split(": ", 1)[1] for line in gateway.log.lines(since=since) if re.search(rf"\b{user.name}\b", line)]
    patterns = (
        "info key_permitted ",
        f"Accepted publickey for {user.name} ",
        "info session_started ",
        "info session_ended ",
        f"Disconnected from user {user.name} ",
    )
    assert sorted(words) == sorted(word for pattern in patterns for word in words if word.startswith(pattern))
    assert len(words) == len(patterns)


def test_at_level_debug_no_line_of_sshd_is_left_out(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User
) -> None:
    """The lines that repeat others are there too."""
    gateway = start_gateway({"GATEWAY_LOG_LEVEL": "debug"})
    lab.run(lab.gateway_argv(gateway, user, "true", options=["-T"]))
    for text in ("Connection from 127.0.0.1 ", "Accepted key ", "Starting session: ", "Received disconnect from "):
        gateway.log.wait_for(rf"\]: {text}")


def test_two_logins_have_two_ids(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Two logins of the same user can be told apart by their sid."""
    since = gateway.log.mark()
    for _ in range(2):
        open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    sids = [fields["sid"] for event, fields in _events(gateway, since, user=user.name) if event == "session_started"]
    assert len(set(sids)) == 2


_OWN_LOG = """
mount -t tmpfs dev "$0" && touch "$0/null" "$0/urandom" && mount --bind /dev/null "$0/null" &&
mount --bind /dev/urandom "$0/urandom" && ln -s "$0.socket" "$0/log" && mkdir "$0/pts" &&
mount --rbind /dev/pts "$0/pts" && ln -s pts/ptmx "$0/ptmx" && mount --rbind "$0" /dev && exec "$@"
"""


def test_syslog_has_sshds_lines_as_well(lab: Lab, user: User) -> None:
    """With GATEWAY_LOG=syslog they are there with the same process id, the facility auth, and no time of ours."""
    directory = lab.directory / "dev-logs"
    directory.mkdir()
    host_key = make_key(directory.with_name("syslog-host-key"))
    known_hosts = directory.with_name("syslog-known-hosts")
    known_hosts.write_text(f"[{ADDRESS}]:1023 {host_key.public}\n")
    settings = {
        "REMOTE_HOST": "192.0.2.2",
        "REMOTE_KNOWN_HOSTS": str(lab.known_hosts),
        "GATEWAY_SSH_KEY_PATH": str(lab.gateway_key.private),
        "GATEWAY_HOST": ADDRESS,
        "GATEWAY_PORT": "1023",  # where no other gateway of the worker's is
        "GATEWAY_RUNTIME_DIR": str(directory.with_name("syslog-run")),
        "GATEWAY_HOST_KEY_PATH": str(host_key.private),
        "GATEWAY_LOG": "syslog",
    }
    serve = ["unshare", "--mount", "sh", "-c", _OWN_LOG, str(directory), str(GATEWAYCTL), "serve"]
    argv = client.ssh_argv(
        user, host=ADDRESS, port=1023, known_hosts=known_hosts, key=None, options=["-T"], command=["exit 3"]
    )
    logged: list[str] = []

    def has(pattern: str) -> bool:
        with suppress(BlockingIOError):
            while True:
                logged.append(syslog.recv(8192).decode().rstrip("\0"))
        return any(re.match(pattern, line) for line in logged)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(f"{directory}.socket")
        Path(f"{directory}.socket").chmod(0o666)
        syslog.settimeout(0)
        with lab.background(serve, environment=settings) as gateway:
            wait_until(lambda: has(r"<38>gatewayctl\[\d+\]: info ready "), "the gateway is ready")
            assert lab.run(argv).returncode == 3
            wait_until(lambda: has(rf"<38>sshd\S*: Disconnected from user {user.name} "), "the client has left")
            wait_until(lambda: has(r"<38>broker\[\d+\]: info session_ended "), "the session has ended")
            gateway.terminate()
            gateway.wait(20)
    lines = [line for line in logged if re.search(rf"(sshd\S*: .* for {user.name} from|from user {user.name}) ", line)]
    assert len(lines) == 2, lines
    (pid,) = {match[1] for line in lines if (match := re.match(r"<38>sshd[a-z-]*\[(\d+)\]: ", line))}
    assert [line for line in logged if f"session_ended sid={pid}-" in line]


# Refusals


def test_refusals_say_why(lab: Lab, gateway: Gateway, user: User) -> None:
    """A wrong key, users whom the remote does not know or lets run nothing, and a name that is none are told apart."""
    since = gateway.log.mark()
    other = lab.add_user()
    unknown = f"no-{user.name}"
    keys, nologin = [other.key.public, lab.gateway_key.public], "/usr/sbin/nologin"
    shut_out = lab.remote.add_user(f"shut-{user.name}", other.key, shell=nologin, authorized=keys)
    for name in (user.name, unknown, shut_out.name, "a b"):
        lab.run(lab.gateway_argv(gateway, name, key=other.key.private, options=["-W", "127.0.0.1:9"]))

    (wrong,) = _events(gateway, since, user=user.name)
    (stranger,) = _events(gateway, since, user=unknown)
    assert wrong[0] == stranger[0] == "key_refused"
    assert wrong[1]["key"] == _fingerprint(lab, other.key.private)
    assert wrong[1]["reason"] == '"no line for this key"'
    ((_, fields),) = _events(gateway, since, user=shut_out.name)
    assert str(fields["reason"]).startswith('"the remote host runs no commands for this account')
    assert stranger[1]["reason"].startswith("\"permission_denied: the remote host does not let the gateway's key in")
    gateway.log.wait_for(r"Invalid user a b from", since=since)
    assert _events(gateway, since, user='"a b"') == []


def test_failed_session_says_why(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A login that got in and no session has a line with the reason and the same sid, and none that says it started."""
    gateway = start_gateway({"REMOTE_MOSH_SERVER": "/no/such/server", "GATEWAY_TRANSPORT": "mosh"})
    open_terminal(lab.gateway_argv(gateway, user)).wait_exit()

    events = _events(gateway, 0, user=user.name)
    assert [event for event, _ in events] == ["key_permitted", "session_failed"]
    assert len({fields["sid"] for _, fields in events}) == 1
    assert events[-1][1]["outcome"] == "no_mosh_server"
    assert "/no/such/server" in events[-1][1]["reason"]


# Forgeries


@pytest.mark.parametrize(
    "name",
    [
        f"x\n{_FORGERY}",
        f"x\r\n{_FORGERY}\r\n",
        "x\nforged",
        f"x from 192.0.2.66 port 4711\n{_FORGED_VERDICT}",
        f"x\r{_FORGED_VERDICT}",
        "x\x1b[2J\x1b]0;forged\x07",
        "x user=forged outcome=ok",
        'x" user=forged "',
        "x\u2028forged",
        "x\x9b2J",
    ],
    ids=["newline", "crlf", "short", "verdict", "return", "escape", "fields", "quotes", "separator", "c1"],
)
def test_user_name_forges_no_line(lab: Lab, gateway: Gateway, name: str) -> None:
    """A user name with line ends, escape sequences or fields in it is one line of the log, of which it begins none."""
    since = gateway.log.mark()
    connection = lab.near.connect(ADDRESS, gateway.port, timeout_s=20.0)
    port = connection.getsockname()[1]
    with closing(paramiko.Transport(connection)) as transport:
        transport.start_client(timeout=20.0)
        with suppress(paramiko.AuthenticationException):
            transport.auth_publickey(name, paramiko.Ed25519Key.from_private_key_file(str(lab.gateway_key.private)))
    gateway.log.wait_for(rf"port {port} \[preauth\]", since=since)  # sshd's last word on it
    gateway.log.wait_for("Invalid user x", since=since)

    _intact(gateway, since)


@pytest.mark.parametrize("banner", [f"SSH-2.0-x\x1b[2J {_FORGERY}\r\n", f"{_FORGERY}\n\x1b[2J\n", "SSH-1.0-forged\r\n"])
def test_banner_forges_no_line(lab: Lab, gateway: Gateway, banner: str) -> None:
    """What a client says before anything else begins no line of the log either."""
    since = gateway.log.mark()
    with closing(lab.near.connect(ADDRESS, gateway.port, timeout_s=20.0)) as connection:
        port = connection.getsockname()[1]
        connection.sendall(banner.encode())
        with suppress(OSError):  # sshd may have hung up already
            connection.shutdown(1)
            while connection.recv(4096):
                pass
    gateway.log.wait_for(rf"127.0.0.1 port {port}\b", since=since)

    _intact(gateway, since)


def test_environment_forges_no_line(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """TERM, LANG, LC_* and the command, with line ends and escape sequences in them, begin no line of any log level."""
    gateway = start_gateway({"GATEWAY_LOG_LEVEL": "debug"})
    evil = f"C.UTF-8\n{_FORGERY}\n\x1b[2Jforged user=forged"
    environment = {"TERM": f"xterm\n{_FORGERY}\x1b[2J", "LANG": evil, "LC_ALL": evil, "LC_forged": evil}
    options = ["-tt", "-o", "SendEnv=LANG LC_*"]
    command = f"true\n{_FORGERY}\nforged\x1b[2J"
    for words in ((), (command,)):
        terminal = open_terminal(lab.gateway_argv(gateway, user, *words, options=options), environment=environment)
        if words:
            terminal.wait_exit()
        else:
            terminal.wait_for(user.prompt)

    gateway.log.wait_for("session_started")
    _intact(gateway, 0)


def test_remote_forges_no_line(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """What a hostile mosh-server writes begins no line of the log."""
    script = "/home/forger"
    path = lab.remote.room.path(script)
    path.write_text(f"#!/bin/sh\nprintf '%b' 'x\\n{_FORGERY}\\n\\033[2J\\nforged\\n' >&2\nexit 1\n")
    path.chmod(0o755)
    gateway = start_gateway({"REMOTE_MOSH_SERVER": script})
    assert open_terminal(lab.gateway_argv(gateway, user)).wait_exit() == 73

    gateway.log.wait_for("session_failed .*outcome=mosh_server")
    _intact(gateway, 0)


# Secrets


def test_no_secret_is_logged(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """At the most talkative level no line has the gateway's private key, a session's MOSH_KEY or a key's blob."""
    gateway = start_gateway({"GATEWAY_LOG_LEVEL": "debug"})
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    os.kill(gateway.broker.pid, signal.SIGKILL)
    gateway.log.wait_for("broker_restarted")
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    clients = gateway.processes("mosh-client")
    environments = [Path(f"/proc/{client.pid}/environ").read_text().split("\0") for client in clients]
    keys = [word.removeprefix("MOSH_KEY=") for words in environments for word in words if word.startswith("MOSH_KEY=")]
    assert len(keys) == 2
    private = lab.gateway_key.private.read_text().splitlines()[1:-1]

    assert gateway.stop() == 0
    text = gateway.log_text()
    assert "session_started" in text
    for secret in (*keys, *private, user.key.public.split()[1], "MOSH_KEY", "PRIVATE KEY"):
        assert secret not in text
