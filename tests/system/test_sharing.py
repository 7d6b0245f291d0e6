"""Sessions of one user share a connection to the remote: it saves round trips, and costs nothing when it breaks."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from system.sessions import lookup_uid, masters_of

from lab.remote import PORT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

_SESSIONS = 12  # more than MaxSessions of the remote's sshd, which is 10


def _home_of(gateway: Gateway, user: User) -> Path:
    """Return a user's home directory on the gateway."""
    return gateway.directory / "run/home" / str(lookup_uid(gateway, user))


def _sockets_in(home: Path) -> list[Path]:
    """List the sockets in a home."""
    return [path for path in home.iterdir() if path.is_socket()]


def _is_gone(lab: Lab, user: User) -> bool:
    """Tell whether nothing of a user's is left on the remote."""
    return not lab.remote.processes(user=user)


def _run_ok(lab: Lab, gateway: Gateway, user: User) -> None:
    """Run a command, and see that it has its own output, no more, and its own status."""
    done = lab.run(lab.gateway_argv(gateway, user, "echo ok; exit 4"))
    assert (done.stdout, done.stderr, done.returncode) == (b"ok\n", b"", 4)


def test_the_second_session_makes_no_connection(lab: Lab, gateway: Gateway) -> None:
    """The first command brings the broker's login and ssh's, the following ones none; another user has both anew."""
    first, second = lab.add_user(), lab.add_user()
    _run_ok(lab, gateway, first)
    assert lab.remote.accepted(first) == 2
    for _ in range(3):
        _run_ok(lab, gateway, first)
    assert lab.remote.accepted(first) == 2
    _run_ok(lab, gateway, second)
    assert lab.remote.accepted(second) == 2
    (one,), (other,) = masters_of(gateway, first), masters_of(gateway, second)
    assert one.uid != other.uid


def test_a_later_command_takes_three_round_trips(make_lab: Callable[..., Lab]) -> None:
    """`ssh gateway true` over the shared connection: is it alive, a channel, the command; directly it takes eight."""
    lab = make_lab(rtt_ms=100)
    user, gateway = lab.add_user(), lab.start_gateway()
    _run_ok(lab, gateway, user)

    def round_trips(argv: list[str]) -> float:
        """Count those that a command costs: two turns each."""
        before = lab.wan.traffic().turns[PORT]
        assert lab.run(argv).returncode == 0
        return (lab.wan.traffic().turns[PORT] - before) / 2

    # The least of three: the broker's own connection may have to say something meanwhile.
    shared, direct = (
        min(round_trips(argv) for _ in range(3))
        for argv in (lab.gateway_argv(gateway, user, "true"), lab.direct_ssh_argv(user, "true"))
    )
    assert shared <= 3
    assert direct >= 8  # 9 with OpenSSH 9.2


def test_sessions_that_begin_together_have_clean_outputs(lab: Lab, gateway: Gateway, user: User) -> None:
    """Twelve first commands at once, and twelve more when connections are there, bring their own bytes and no more."""
    argvs = [lab.gateway_argv(gateway, user, f"cat; echo err >&2; exit {number}") for number in range(_SESSIONS)]
    for _ in range(2):
        pipe = subprocess.PIPE
        clients = [
            subprocess.Popen(lab.near.network_argv(argv), stdin=pipe, stdout=pipe, stderr=pipe, env=lab.environment())
            for argv in argvs
        ]
        # All are held open until all have begun.
        wait_until(lambda: len(lab.remote.processes("cat", user=user)) == _SESSIONS, "all of them run", timeout_s=40)
        done = [(*client.communicate(b"in", timeout=40), client.returncode) for client in clients]
        assert done == [(b"in", b"err\n", number) for number in range(_SESSIONS)]
    # The first twelve did not make a connection each that would wait for a minute.
    assert len(masters_of(gateway, user)) < 6


@pytest.mark.parametrize("fault", ["killed", "stopped", "cut off", "remote restarted"])
def test_a_broken_connection_breaks_no_login(make_lab: Callable[..., Lab], fault: str) -> None:
    """A shared connection that ended, hangs, or whose packets vanish, is passed over; the next session shares again."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user(), lab.start_gateway()
    _run_ok(lab, gateway, user)
    (master,) = masters_of(gateway, user)
    if fault == "remote restarted":
        lab.remote.stop_sshd()
        lab.remote.start_sshd()
    elif fault == "cut off":
        lines = lab.run(["ss", "-Htnp", "dport", "=", f":{PORT}"]).stdout.decode().splitlines()
        (local,) = (line.split()[3] for line in lines if f"pid={master.pid}," in line)
        lab.wan.change(forgotten_ports=(int(local.rpartition(":")[2]),))
    else:
        os.kill(master.pid, signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
    _run_ok(lab, gateway, user)
    accepted = lab.remote.accepted(user)
    _run_ok(lab, gateway, user)
    assert lab.remote.accepted(user) == accepted
    assert [its for its in masters_of(gateway, user) if its.pid != master.pid]


@pytest.mark.parametrize("trouble", ["no network", "no room"])
def test_a_login_in_trouble_ends_no_running_session(make_lab: Callable[..., Lab], trouble: str) -> None:
    """A session that begins while the WAN is down, or where the remote takes one a connection, harms no other."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user(), lab.start_gateway()
    lab.remote.set_option("MaxSessions 1")
    argv = lab.near.network_argv(lab.gateway_argv(gateway, user, "echo ready; cat; exit 4"))
    with ExitStack() as stack:
        clients: list[subprocess.Popen[bytes]] = []

        def begin() -> None:
            pipe = subprocess.PIPE
            clients.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=lab.environment()))
            stack.callback(clients[-1].kill)

        begin()
        wait_until(lambda: masters_of(gateway, user) and lab.remote.processes("cat", user=user), "the first one runs")
        uid = lookup_uid(gateway, user)
        with lab.wan.weather(loss=1.0 if trouble == "no network" else 0.0):
            begin()
            wait_until(lambda: len(gateway.processes("ssh", uid=uid)) > 2, "the second one has its ssh")
        done = [(*its.communicate(b"in", timeout=40), its.returncode) for its in reversed(clients)]
    assert done == [(b"ready\nin", b"", 4)] * 2


def test_homes_are_private(lab: Lab, gateway: Gateway) -> None:
    """Each home is its owner's alone, nobody can make or replace one, nor reach another user's shared connection."""
    first, second = lab.add_user(), lab.add_user()
    for user in (first, second):
        _run_ok(lab, gateway, user)
        status, uid = _home_of(gateway, user).stat(), lookup_uid(gateway, user)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (uid, uid, 0o700)
    parent = _home_of(gateway, first).parent.stat()
    assert (parent.st_uid, parent.st_mode & 0o022) == (0, 0)
    (path,) = _sockets_in(_home_of(gateway, first))
    assert path.stat().st_mode & 0o077 == 0
    uid = lookup_uid(gateway, second)
    as_second = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    done = subprocess.run(
        [*as_second, sys.executable, "-I", "-c", connect, str(path)], check=False, capture_output=True
    )
    assert done.returncode == 1
    assert b"PermissionError" in done.stderr


def test_none_survives_the_gateway(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """SIGTERM ends the connections that wait, one that hangs and one in use; its client hears of it; nothing stays."""
    gateway, idle = start_gateway(), lab.add_user()
    for _ in range(2):
        _run_ok(lab, gateway, idle)
        os.kill(masters_of(gateway, idle)[-1].pid, signal.SIGSTOP)
    terminal = open_terminal(lab.gateway_argv(gateway, user, "echo ready; cat"))
    terminal.wait_for("ready")
    home = _home_of(gateway, user)
    assert masters_of(gateway, user)
    assert gateway.stop() == 0
    assert terminal.wait_exit() == 255
    assert gateway.processes() == []
    for its in (user, idle):
        wait_until(functools.partial(_is_gone, lab, its), "nothing of the user runs on the remote")
    assert not (home.exists() and _sockets_in(home))
