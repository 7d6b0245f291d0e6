"""How many times a login crosses the WAN, counted; and that no remote is upset by what is said ahead of time."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.broker.remote.connection import Remote, load_key
from helpers.broker.remote.pipelined_transport import PipelinedTransport
from helpers.protocol.errors import HostKeyError, PermissionDeniedError, RemoteLostError
from helpers.ssh.known_hosts import KnownHosts
from lab.remote import PORT
from lab.room import PLAIN_ENVIRONMENT, entered_network
from lab.users import make_key
from lab.waiting import wait_until
from lab.wan import FAR_IPV4, NEAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import paramiko

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

_COMMAND = "cat .ssh/authorized_keys"


@pytest.fixture
def own(make_lab: Callable[..., Lab]) -> Lab:
    """A lab whose remote the test may change."""
    return make_lab(rtt_ms=20)


def _log_in(lab: Lab, argv: list[str], user: User) -> None:
    terminal = lab.terminal(argv)
    try:
        terminal.wait_for(user.prompt)
    finally:
        terminal.close()


def _turns(lab: Lab, argv: list[str], user: User) -> int:
    """Log in, and tell how often the two ends of port 22 took turns: two are a round trip, TCP's own not counted."""
    before = lab.wan.traffic().turns.get(PORT, 0)
    _log_in(lab, argv, user)
    return lab.wan.traffic().turns.get(PORT, 0) - before


def test_round_trips_of_a_login(make_lab: Callable[..., Lab]) -> None:
    """A cold login takes fewer than 5 round trips over SSH, a warm one fewer than 3; ssh itself takes more than 8."""
    # Far enough for what a side does between two packets to be short beside it.
    lab = make_lab(rtt_ms=100)
    gateway, known, users = lab.start_gateway(), lab.add_user(), [lab.add_user() for _ in range(3)]
    _log_in(lab, lab.gateway_argv(gateway, known), known)  # the gateway learns which key exchange the remote wants
    # Each has a turn or two for the channel that is closed, and the one that is asked for ahead, meanwhile. On a busy
    # machine what a side says in one go may come in pieces, and the other answer each: one of three tries is enough.
    assert any(_turns(lab, lab.gateway_argv(gateway, user), user) < 2 * 5 for user in users)
    assert any(_turns(lab, lab.gateway_argv(gateway, known), known) < 2 * 3 for _ in users)
    assert _turns(lab, lab.direct_ssh_argv(known), known) > 2 * 8


def test_another_key_exchange_than_foreseen(own: Lab) -> None:
    """A remote that was told to agree on something else since is tried once more, and the login works."""
    gateway, first, second, third = own.start_gateway(), own.add_user(), own.add_user(), own.add_user()
    _log_in(own, own.gateway_argv(gateway, first), first)
    own.remote.set_option("KexAlgorithms ecdh-sha2-nistp256")
    since = own.remote.log.mark()
    _log_in(own, own.gateway_argv(gateway, second), second)
    assert len(own.remote.log.matches("^Connection from ", since=since)) == 2
    _log_in(own, own.gateway_argv(gateway, third), third)
    assert len(own.remote.log.matches("^Connection from ", since=since)) == 3


@pytest.mark.parametrize("line", ["MaxSessions 1", "RekeyLimit 16K 1s", "LogLevel DEBUG3", "Banner /etc/hostname"])
def test_a_remote_with_other_settings(own: Lab, line: str) -> None:
    """First and later logins work where the remote opens one channel at a time, changes keys often, or says more."""
    own.remote.set_option(line)
    gateway, user = own.start_gateway(), own.add_user()
    for _ in range(2):
        _log_in(own, own.gateway_argv(gateway, user), user)
    assert own.remote.accepted(user) == 1


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_keys_of_other_types(own: Lab, kind: str) -> None:
    """An RSA key, which is signed with as EXT_INFO says, and an ECDSA one get the gateway in."""
    key = make_key(own.directory / "keys" / kind, kind=kind)
    gateway = own.start_gateway({"GATEWAY_SSH_KEY_PATH": str(key.private)})
    user = own.add_user()
    own.remote.authorize(user, [user.key.public, key.public])
    for each in (user, user):
        _log_in(own, own.gateway_argv(gateway, each), each)
    assert own.remote.log.matches(rf"Accepted publickey for {user.name} from \S+ port \d+ ssh2: {kind.upper()} ")


class Dialled:
    """The broker's way to the remote, without the rest of the gateway, and an sshd that is not OpenSSH's.

    Args:
        lab: Where the remote is.
    """

    def __init__(self, lab: Lab) -> None:
        """Start dropbear on a port of its own."""
        self.lab, self.port = lab, 2022
        key = lab.directory / "remote" / "dropbear"
        subprocess.run(["dropbearkey", "-t", "ed25519", "-f", str(key)], check=True, capture_output=True)
        self.process = subprocess.Popen(
            lab.remote.room.argv(["dropbear", "-F", "-E", "-s", "-p", str(self.port), "-r", str(key)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=PLAIN_ENVIRONMENT,
            start_new_session=True,
        )
        wait_until(self._listens, "dropbear listens")

    def _listens(self) -> bool:
        with entered_network(f"/proc/{self.lab.near.pid}/ns/net"):
            try:
                Remote(FAR_IPV4, self.port, None, None)._connect_tcp()[0].close()
            except Exception:  # noqa: BLE001 - not yet
                return False
        return True

    def remote(self, port: int, known_hosts: Path | None = None) -> Remote:
        """Make the broker's remote for a port, with the gateway's key."""
        known = None if known_hosts is None else KnownHosts(known_hosts, FAR_IPV4, port)
        return Remote(FAR_IPV4, port, known, load_key(self.lab.gateway_key.private.read_text()))


@pytest.fixture
def dialled(own: Lab) -> Iterator[Dialled]:
    """Dropbear beside the remote's own sshd."""
    dialled = Dialled(own)
    with entered_network(f"/proc/{own.near.pid}/ns/net"):
        yield dialled
    dialled.process.terminate()
    dialled.process.wait()


def test_a_remote_that_is_not_openssh(dialled: Dialled) -> None:
    """Dropbear is told nothing ahead of its own words, lets the gateway in, and refuses it, in its own time."""
    remote, user, stranger = dialled.remote(dialled.port), dialled.lab.add_user(), dialled.lab.add_user(authorized=[])
    for _ in range(2):
        connection = remote.connect(user.name, lambda _: _COMMAND)
        for _ in range(2):
            done = connection.run(_COMMAND, max_bytes=10_000, timeout_s=10)
            assert (done.stdout.decode(), done.status) == (
                dialled.lab.remote.read_file(user, ".ssh/authorized_keys"),
                0,
            )
        done = connection.run("echo ahead", max_bytes=100, timeout_s=10, ahead=True)
        assert (done.stdout, done.status) == (b"ahead\n", 0)
        connection.close()
        with pytest.raises(RemoteLostError):
            connection.run("echo ahead", max_bytes=100, timeout_s=10, ahead=True)
    with pytest.raises(PermissionDeniedError):
        remote.connect(stranger.name, lambda _: _COMMAND)


@pytest.mark.parametrize("options", ["restrict,pty", 'from="192.0.2.1"', "no-user-rc"])
def test_a_line_that_dropbear_ignores(dialled: Dialled, options: str) -> None:
    """A key whose line has an option that dropbear does not know is refused; the sentence says so of dropbear alone."""
    lab = dialled.lab
    user = lab.add_user(authorized=[f"{options} {lab.gateway_key.public}"])
    with pytest.raises(PermissionDeniedError, match=r"; its sshd is dropbear, .* such as from=, pty or no-user-rc$"):
        dialled.remote(dialled.port).connect(user.name)
    dialled.remote(PORT).connect(user.name).close()
    with pytest.raises(PermissionDeniedError, match=r"authorized_keys there$"):
        dialled.remote(PORT).connect(lab.add_user(authorized=[]).name)


@pytest.mark.parametrize(("number", "port"), [(0, PORT), (1, 2022)], ids=["sshd", "dropbear"])
def test_the_narrowed_key_gets_in(dialled: Dialled, number: int, port: int) -> None:
    """What SECURITY.md says to write before the gateway's key on the remote leaves shells, commands and terminals."""
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    lines = re.findall(r"^(\S+) ssh-ed25519 AAAA… gateway$", text, re.MULTILINE)
    assert len(lines) == 2
    lab = dialled.lab
    options = lines[number].replace("192.0.2.10", NEAR_IPV4)
    settings = {"REMOTE_PORT": str(port), "GATEWAY_PTY_COMMANDS": "ssh", "REMOTE_IGNORE_HOST_KEY": "true"}
    gateway, user = lab.start_gateway(settings), lab.add_user()
    lab.remote.authorize(user, [user.key.public, f"{options} {lab.gateway_key.public}"])
    _log_in(lab, lab.gateway_argv(gateway, user), user)
    assert lab.run(lab.gateway_argv(gateway, user, "echo hi; exit 3")).returncode == 3
    assert lab.run(lab.gateway_argv(gateway, user, "test -t 0; exit $((3 + $?))", options=["-tt"])).returncode == 3


def test_what_began_with_the_connection_is_no_older_than_it(dialled: Dialled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command's output is taken once, and only at once: keys that were revoked since are not seen again."""
    lab, user = dialled.lab, dialled.lab.add_user()
    remote = dialled.remote(PORT)
    command = f"{_COMMAND}; touch begun"
    monkeypatch.setattr("helpers.broker.remote.connection.BEGUN_FRESH_S", 60.0)  # however slow the machine is
    connection = remote.connect(user.name, lambda _: command)
    wait_until((lab.remote.room.path(user.home) / "begun").exists, "the first command has run")
    lab.remote.authorize(user, ["changed"])
    assert lab.gateway_key.public.encode() in connection.run(command, max_bytes=10_000, timeout_s=10).stdout
    assert connection.run(command, max_bytes=10_000, timeout_s=10).stdout == b"changed\n"
    connection.close()
    monkeypatch.undo()

    lab.remote.authorize(user, [lab.gateway_key.public])
    for command in (_COMMAND, "echo other"):
        if command == _COMMAND:
            monkeypatch.setattr("helpers.broker.remote.connection.BEGUN_FRESH_S", 0.0)
        connection = remote.connect(user.name, lambda _: _COMMAND)
        done = connection.run("echo now", max_bytes=100, timeout_s=10)
        assert (done.stdout, done.status) == (b"now\n", 0)
        connection.close()
        monkeypatch.undo()


def test_a_first_command_that_is_over_before_anybody_looks(dialled: Dialled, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the command's output, end and status may be there before the login's caller goes on."""
    user = dialled.lab.add_user()
    look = PipelinedTransport._await_channels

    def late(transport: PipelinedTransport, opened: list[paramiko.Channel], *arguments: Any) -> None:
        wait_until(lambda: opened[0].closed, "the command is over")
        look(transport, opened, *arguments)

    monkeypatch.setattr(PipelinedTransport, "_await_channels", late)
    connection = dialled.remote(PORT).connect(user.name, lambda _: "echo early; exit 3")
    done = connection.run("echo early; exit 3", max_bytes=100, timeout_s=10)
    assert (done.stdout, done.status) == (b"early\n", 3)
    connection.close()


@pytest.mark.parametrize(("most", "refused"), [(1, 1), (3, 0)])
def test_a_remote_with_few_sessions(dialled: Dialled, most: int, refused: int) -> None:
    """What runs ahead leaves the channel that is ready; where MaxSessions has no room beside it, that is tried once."""
    lab, user = dialled.lab, dialled.lab.add_user()
    lab.remote.set_option(f"MaxSessions {most}")
    connection = dialled.remote(PORT).connect(user.name)

    def is_ready() -> bool:  # the remote may not yet have closed the last command's
        connection.prepare(10)
        return connection._spare is not None

    worked = 0
    for _ in range(4):
        wait_until(is_ready, "a channel is ready")
        spare, since = connection._spare, lab.remote.log.mark()
        with suppress(RemoteLostError):
            worked += connection.run("echo ahead", max_bytes=100, timeout_s=10, ahead=True).stdout == b"ahead\n"
            assert (connection._spare is spare) == (most > 1)
            assert not lab.remote.log.matches("no more sessions", since=since)
    assert worked == 4 - refused
    connection.close()


def test_nothing_authenticates_before_the_host_key_is_known(dialled: Dialled, tmp_path: Path) -> None:
    """A host that shows the wrong key is never told a user's name, however early the rest is said."""
    lab, user = dialled.lab, dialled.lab.add_user()
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(lab.remote.known_hosts())
    wrong.write_text(f"{FAR_IPV4} {' '.join(lab.gateway_key.public.split()[:2])}\n")
    before = dialled.remote(PORT, right)
    before.connect(user.name, lambda _: _COMMAND).close()
    remote = dialled.remote(PORT, wrong)
    remote.guessed_kex.extend(before.guessed_kex)
    assert remote.guessed_kex
    since = lab.remote.log.mark()
    other = lab.add_user()
    with pytest.raises(HostKeyError):
        remote.connect(other.name, lambda _: _COMMAND)
    closed = lab.remote.log.wait_for(r"(Connection (closed|reset) by|Disconnected from) .*\[preauth\]", since=since)
    assert "user" not in closed.string
    assert not [line for line in lab.remote.log.lines(since=since) if other.name in line]


def test_a_refused_login_says_so(own: Lab, gateway: Gateway) -> None:
    """What was sent behind a login that is refused does not hide why: nobody has the gateway's key there."""
    del gateway
    user = own.add_user(authorized=[])
    other = own.start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": user.key.public})
    done = own.run(own.gateway_argv(other, user, options=["-tt"]))
    assert b"does not let the gateway's key in as" in done.stdout + done.stderr
