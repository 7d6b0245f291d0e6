"""When there is no session: one clear sentence on the user's terminal, a status of its own, and no long wait."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from lab.users import make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import KeyPair, User

_FAKE = "fake-mosh-server"


def _with_local_keys(lab: Lab, **settings: str) -> tuple[Gateway, KeyPair]:
    """Start a gateway with local keys, so that logins get as far as the session whatever the remote does."""
    key = make_key(lab.directory / "keys" / f"local-{len(list(lab.directory.glob('gateway-*')))}")
    gateway = lab.start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": key.public, **settings})
    return gateway, key


def _wait_for_failure(terminal: Terminal, status: int) -> str:
    """Wait until the session ends with a status, and return its one sentence; nothing else of ours is on screen."""
    assert terminal.wait_exit() == status, terminal.framed()
    lines = [line for line in terminal.lines if line]
    assert lines[-1].startswith("Connection to ")
    (sentence,) = lines[:-1]
    assert sentence.startswith("gateway: ")
    return sentence.removeprefix("gateway: ")


@pytest.fixture(scope="module")
def local(shared_lab: Lab) -> Iterator[tuple[Gateway, KeyPair]]:
    """One such gateway for all tests that leave the remote as it is."""
    gateway, key = _with_local_keys(shared_lab)
    yield gateway, key
    gateway.close()


@pytest.fixture(scope="module")
def faked(shared_lab: Lab) -> Iterator[tuple[Gateway, KeyPair]]:
    """One whose mosh-server is what the user's home directory has under that name."""
    gateway, key = _with_local_keys(shared_lab, REMOTE_MOSH_SERVER=f"/home/{_FAKE}")
    yield gateway, key
    gateway.close()


# The remote


def test_remote_that_is_down(make_lab: Callable[..., Lab]) -> None:
    """A remote without sshd refuses, and the sentence asks whether it runs."""
    lab = make_lab(rtt_ms=2)
    gateway, key = _with_local_keys(lab)
    lab.remote.stop_sshd()
    terminal = lab.terminal(lab.gateway_argv(gateway, "alice", key=key.private), columns=200)

    assert _wait_for_failure(terminal, 69) == (
        "the remote host 192.0.2.2 port 22 refuses connections; is sshd running there?"
    )


def test_remote_that_does_not_answer(
    lab: Lab, local: tuple[Gateway, KeyPair], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A remote that no packet reaches is asked more often than the kernel would, then given up; a sentence says so."""
    with lab.wan.weather(blackout=True):
        lost = lab.wan.traffic().up.lost
        terminal = open_terminal(lab.gateway_argv(local[0], user, key=local[1].private), columns=200)
        sentence = _wait_for_failure(terminal, 75)

    assert lab.wan.traffic().up.lost - lost >= 5
    assert sentence == "the remote host 192.0.2.2 port 22 does not answer"


def test_remote_with_one_session_for_each_connection(make_lab: Callable[..., Lab]) -> None:
    """Where MaxSessions is 1, first logins of one user that begin together have a connection each."""
    lab = make_lab(rtt_ms=20)
    lab.remote.set_option("MaxSessions 1")
    gateway, key = _with_local_keys(lab)
    user = lab.add_user()
    lab.remote.write_file(user, ".bashrc", "until test -e go; do sleep 0.1; done\n")
    terminals = [lab.terminal(lab.gateway_argv(gateway, user, key=key.private)) for _ in range(4)]
    wait_until(lambda: lab.remote.accepted(user) >= len(terminals), "each has a connection")
    lab.remote.write_file(user, "go", "")

    for terminal in terminals:
        terminal.wait_for(user.prompt)


def test_remote_that_goes_silent_over_a_warm_connection(
    lab: Lab, local: tuple[Gateway, KeyPair], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A remote that goes dark between two logins is given up too, though the connection to it looks alive."""
    first = open_terminal(lab.gateway_argv(local[0], user, key=local[1].private))
    first.wait_for(user.prompt)
    first.type("exit\r")
    assert first.wait_exit() == 0

    with lab.wan.weather(blackout=True):
        terminal = open_terminal(lab.gateway_argv(local[0], user, key=local[1].private), columns=200)
        _wait_for_failure(terminal, 75)


def test_remote_without_an_address(lab: Lab, user: User, open_terminal: Callable[..., Terminal]) -> None:
    """A REMOTE_HOST that no DNS knows is named, with what to check."""
    gateway, key = _with_local_keys(lab, REMOTE_HOST="no-such-host.invalid")
    terminal = open_terminal(lab.gateway_argv(gateway, user, key=key.private), columns=200)

    assert _wait_for_failure(terminal, 68) == (
        "the remote host no-such-host.invalid has no address; check REMOTE_HOST and the gateway's DNS"
    )
    gateway.close()


def test_remote_that_shuts_the_gateway_out(
    lab: Lab, local: tuple[Gateway, KeyPair], open_terminal: Callable[..., Terminal]
) -> None:
    """A user whose file on the remote does not have the gateway's key reads what to add where."""
    user = lab.add_user(authorized=[])
    terminal = open_terminal(lab.gateway_argv(local[0], user, key=local[1].private), columns=200)

    sentence = _wait_for_failure(terminal, 77)
    assert sentence.endswith(f"add the gateway's public key to ~{user.name}/.ssh/authorized_keys there")


def test_failure_that_has_passed_is_forgotten(lab: Lab, open_terminal: Callable[..., Terminal]) -> None:
    """When the reason is gone and GATEWAY_CACHE_TTL over, the next login succeeds."""
    gateway, key = _with_local_keys(lab, GATEWAY_CACHE_TTL="1")
    user = lab.add_user(authorized=[])
    argv = lab.gateway_argv(gateway, user, key=key.private)
    _wait_for_failure(open_terminal(argv, columns=200), 77)

    lab.remote.authorize(user, [lab.gateway_key.public])

    wait_until(lambda: lab.run([*argv, "true"]).returncode == 0, "the next login succeeds")
    gateway.close()


# mosh-server


def test_no_mosh_server(make_lab: Callable[..., Lab]) -> None:
    """A remote without mosh is told apart, with what to install there."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    gateway = lab.start_gateway({"GATEWAY_TRANSPORT": "mosh"})
    with lab.remote.without_mosh_server():
        sentence = _wait_for_failure(lab.terminal(lab.gateway_argv(gateway, user), columns=200), 72)

    assert sentence == (
        "the remote host has no mosh-server; install mosh there, or set REMOTE_MOSH_SERVER to where it is"
    )


def test_wrong_path_of_mosh_server(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """A REMOTE_MOSH_SERVER that is not there is named."""
    gateway = start_gateway({"REMOTE_MOSH_SERVER": "/opt/no-such/mosh-server", "GATEWAY_TRANSPORT": "mosh"})

    sentence = _wait_for_failure(lab.terminal(lab.gateway_argv(gateway, user), columns=200), 72)
    assert sentence.startswith("the remote host has no /opt/no-such/mosh-server; ")


_GARBAGE = {
    "silent": ("exit 0", 73),
    "fails": ("echo 'no pseudo-terminals left' >&2; exit 1", 73),
    "port 0": ("echo 'MOSH CONNECT 0 4NeCCgvZFe2RnPgrcU1PQw'", 73),
    "port 65536": ("echo 'MOSH CONNECT 65536 4NeCCgvZFe2RnPgrcU1PQw'", 73),
    "short key": ("echo 'MOSH CONNECT 60001 4NeCCgvZFe2RnPgrcU1PQ'", 73),
    "options": ("echo 'MOSH CONNECT 60001 4NeCCgvZFe2RnPgrcU1PQw --help'", 73),
    "torn off": ("printf 'MOSH CONNECT 60001 4NeCCgvZFe2RnPgrcU1'", 73),
    "too much": ("head -c 100000 /dev/zero | tr '\\0' x", 74),
    "escapes": (r"printf '\033[2J\033]0;owned\007\nforged\n' >&2; exit 3", 73),
    "killed": ("kill -9 $$", 73),
}


@pytest.mark.parametrize(("script", "status"), _GARBAGE.values(), ids=_GARBAGE.keys())
def test_mosh_server_that_makes_no_sense(
    lab: Lab,
    faked: tuple[Gateway, KeyPair],
    user: User,
    open_terminal: Callable[..., Terminal],
    *,
    script: str,
    status: int,
) -> None:
    """Whatever else than one whole MOSH CONNECT line comes back is no session, and none of it reaches the terminal."""
    path = lab.remote.room.path(f"/home/{_FAKE}")
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    terminal = open_terminal(lab.gateway_argv(faked[0], user, key=faked[1].private), columns=200)

    _wait_for_failure(terminal, status)
    assert b"owned\x07" not in terminal.raw
    assert b"\x1b[2J" not in terminal.raw
    assert not any(line.startswith("forged") for line in terminal.lines)


def test_mosh_server_after_a_noisy_profile(
    lab: Lab, faked: tuple[Gateway, KeyPair], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A line of its own before and after MOSH CONNECT, as from a shell's start-up file, does no harm."""
    path = lab.remote.room.path(f"/home/{_FAKE}")
    path.write_text('#!/bin/sh\necho "Welcome! MOSH CONNECT soon"\necho\nexec mosh-server "$@"\n')
    path.chmod(0o755)

    open_terminal(lab.gateway_argv(faked[0], user, key=faked[1].private)).wait_for(user.prompt)


def test_no_locale(make_lab: Callable[..., Lab]) -> None:
    """A remote without any UTF-8 locale is told apart, with what to install there."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    gateway = lab.start_gateway({"GATEWAY_TRANSPORT": "mosh"})
    with lab.remote.without_utf8_locale():
        sentence = _wait_for_failure(lab.terminal(lab.gateway_argv(gateway, user), columns=200), 66)

    assert sentence == ("the remote host has no UTF-8 locale, which mosh needs; install C.UTF-8 or en_US.UTF-8")
    assert lab.remote.processes("mosh-server") == []


# The gateway


def test_broker_that_dies_while_it_is_asked(make_lab: Callable[..., Lab]) -> None:
    """A session that waits for a broker that is killed hears of it, and the next login finds the next broker."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    gateway, key = _with_local_keys(lab)
    argv = lab.gateway_argv(gateway, user, key=key.private)
    with lab.wan.weather(blackout=True):
        terminal = lab.terminal(argv, columns=200)
        terminal.wait_for("gateway: reaching")
        os.kill(gateway.broker.pid, signal.SIGKILL)
        sentence = _wait_for_failure(terminal, 71)

    assert sentence == "the gateway's broker went away before it answered; try again"
    gateway.log.wait_for("broker_restarted")
    lab.terminal(argv).wait_for(user.prompt)


def test_broker_that_does_not_come_back(make_lab: Callable[..., Lab]) -> None:
    """A second terminal over a connection that is open is refused soon, and does not hang, when there is no broker."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    gateway = lab.start_gateway()
    control = ["-o", f"ControlPath={lab.directory}/mux"]
    argv = lab.gateway_argv(gateway, user)
    at = argv.index("ControlPath=none")
    argv[at - 1 : at + 1] = control
    lab.terminal([*argv[:1], "-M", *argv[1:]]).wait_for(user.prompt)

    (gateway.directory / "run/state/users.sqlite3").write_bytes(b"broken" * 1000)
    os.kill(gateway.broker.pid, signal.SIGKILL)
    gateway.log.wait_for("broker_not_started")
    terminal = lab.terminal(argv, columns=200)

    # 71 where the session's helper can say so; 255 where sshd itself cannot look its user up any more.
    assert terminal.wait_exit(timeout_s=15) in {71, 255}
    assert gateway.log.matches(r"error broker_not_started reason=\"a table in ")


def test_gateway_that_is_told_to_leave(make_lab: Callable[..., Lab]) -> None:
    """With a session open, SIGTERM ends session, mosh-server and gateway, before a container engine loses patience."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    gateway = lab.start_gateway()
    terminal = lab.terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)

    assert gateway.stop(timeout_s=8) == 0
    terminal.wait_exit()
    wait_until(lambda: not lab.remote.processes("mosh-server"), "mosh-server, which was told goodbye, is gone")


# The terminal


def test_interrupt_while_waiting(
    lab: Lab, local: tuple[Gateway, KeyPair], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Ctrl-C ends the wait with status 130 and leaves a clean line."""
    with lab.wan.weather(blackout=True):
        terminal = open_terminal(lab.gateway_argv(local[0], user, key=local[1].private))
        terminal.wait_for("gateway: reaching the remote host")
        terminal.type("\x03")

        assert terminal.wait_exit() == 130
    assert [line for line in terminal.lines if line] == ["Connection to 127.0.0.1 closed."]


def test_progress_comes_and_goes(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A login that takes long says what it waits for, and leaves nothing of it on the screen when it goes on."""
    first = open_terminal(lab.gateway_argv(gateway, user))
    first.wait_for(user.prompt)

    with lab.wan.weather(blackout=True):
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for("gateway: reaching the remote host")
    terminal.wait_for(user.prompt)

    assert "gateway: " not in terminal.text
    terminal.run("echo $((6 * 7))", "\n42")


def test_quick_login_shows_no_progress(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A login over a warm connection shows nothing of ours before the prompt."""
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    def shows_nothing() -> bool:
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)
        return b"gateway:" not in terminal.raw

    # On a busy machine not every login is quick.
    wait_until(shows_nothing, "a login shows nothing of ours")


def test_hanging_up_while_waiting(
    lab: Lab, local: tuple[Gateway, KeyPair], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A window that is closed during the wait leaves no process on the gateway and no mosh-server on the remote."""
    gateway, key = local
    with lab.wan.weather(blackout=True):
        terminal = open_terminal(lab.gateway_argv(gateway, user, key=key.private))
        terminal.wait_for("gateway: reaching")
        helpers = [process for process in gateway.processes() if "session" in process.argv]
        terminal.close()
        pids = {process.pid for process in helpers}
        wait_until(lambda: not pids & {its.pid for its in gateway.processes()}, "the session's helper is gone")

    assert len(helpers) == 1
    assert lab.remote.processes("mosh-server", user=user) == []
