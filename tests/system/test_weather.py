"""On a WAN that ssh gives up on, a session through the gateway goes on as one by direct mosh does."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

from system.sessions import mosh_client_of, sshd_of

from helpers.broker.remote.pool import RIVAL_AFTER_S, RIVAL_STEP_S
from lab.processes import kill
from lab.remote import PORT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.terminal import Terminal
    from lab.users import User

    OpenTerminal = Callable[..., Terminal]


def _visit(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """Log in and out, so that the broker has a warm connection as this user."""
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    terminal.type("exit\r")
    assert terminal.wait_exit() == 0


def _log_in_at_last(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> Terminal:
    """Log in as a person does whom a try or two may tell that the remote did not answer: one does 1 time in 30."""
    for _ in range(3):
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_until(lambda its: user.prompt in its.text or "Connection to" in its.text, "it ends", timeout_s=60)
        if user.prompt in terminal.text:
            break
        assert "gateway: the remote host " in terminal.text
    terminal.wait_for(user.prompt)
    return terminal


def _broker_connection(lab: Lab, user: User) -> list[Process]:
    """List the processes of the remote's sshd that serve the broker's connection as a user."""
    title = re.compile(rf"sshd(-session)?: {re.escape(user.name)}( |@|$)")
    return [process for process in lab.remote.processes() if title.match(process.argv[0])]


def test_login_and_typing_at_29_percent_loss(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """With 29 % of all packets lost each way, somebody who was here before gets in, and what is typed arrives."""
    _visit(lab, gateway, user, open_terminal)
    with lab.wan.weather(loss=0.29):
        lost_before = lab.wan.traffic().up.lost
        terminal = _log_in_at_last(lab, gateway, user, open_terminal)
        for number in range(10):
            terminal.run(f"echo $(({number} + 4200))", f"\n{number + 4200}\n", timeout_s=60)
        assert lab.wan.traffic().up.lost > lost_before
        terminal.type("exit\r")
        assert terminal.wait_exit(timeout_s=60) == 0


def test_session_outlives_a_blackout(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """20 s without the WAN are shown on the screen and then over: what was typed in the dark has arrived."""
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    terminal.run("cd /; kept=$$", "~$ cd /")
    client, (server,) = mosh_client_of(gateway, user), lab.remote.processes("mosh-server", user=user)

    with lab.wan.weather(blackout=True):
        terminal.type('echo "typed in the dark: $((6 * 7)) in $PWD, $((kept == $$))"\r')
        # mosh counts the seconds aloud.
        terminal.wait_until(
            lambda its: bool(re.search(r"Last contact (2\d|[3-9]\d) seconds ago", its.text)),
            "20 s have passed",
            timeout_s=60,
        )
        assert "typed in the dark: 42" not in terminal.text
    terminal.wait_for("\ntyped in the dark: 42 in /, 1\n", timeout_s=60)

    terminal.wait_until(lambda its: "Last contact" not in its.text, "mosh no longer complains")
    assert mosh_client_of(gateway, user) == client
    assert lab.remote.processes("mosh-server", user=user) == [server]


def test_connection_lost_in_a_blackout_is_replaced(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """A warm connection that the remote lost in a blackout, unnoticed here, costs the next login no failure."""
    _visit(lab, gateway, user, open_terminal)
    with lab.wan.weather(blackout=True):
        doomed = _broker_connection(lab, user)
        assert doomed
        kill(doomed)
        wait_until(lambda: not _broker_connection(lab, user), "the remote has dropped the connection")

    _visit(lab, gateway, user, open_terminal)

    assert lab.remote.accepted(user) == 2


def test_connection_that_breaks_under_a_login_is_replaced(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """A warm connection that breaks once mosh-server was asked for over it costs the login no failure either."""
    _visit(lab, gateway, user, open_terminal)
    lab.remote.write_file(user, ".bashrc", "rm ~/sound 2>/dev/null && kill -9 $PPID\n")
    lab.remote.write_file(user, "sound", "")
    _visit(lab, gateway, user, open_terminal)

    assert not lab.remote.room.path(f"{user.home}/sound").exists()
    assert lab.remote.accepted(user) == 2


def test_connection_that_breaks_under_the_keys_is_no_refusal(lab: Lab, gateway: Gateway, user: User) -> None:
    """Keys that were not read to their end are not taken for none: the log says why, and the next try gets in."""
    lab.remote.write_file(user, ".bashrc", "rm ~/sound 2>/dev/null && kill -9 $PPID\n")
    lab.remote.write_file(user, "sound", "")
    denied = lab.run(lab.gateway_argv(gateway, user, "true"))
    assert denied.returncode == 255
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*remote_lost")

    wait_until(lambda: lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0, "the user gets in")


def test_connection_that_died_in_silence_is_replaced(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """A warm connection that a NAT has forgotten costs the next login no more than a new one, and it is then kept."""
    _visit(lab, gateway, user, open_terminal)
    accepted = lab.remote.log.matches(rf"Accepted \S+ for {user.name} from \S+ port (\d+) ")
    with lab.wan.weather(forgotten_ports=[int(accepted[0][1])]):
        since = gateway.log.mark()
        _visit(lab, gateway, user, open_terminal)
        started = gateway.log.wait_for(rf"session_started .*user={user.name} .*connect_ms=(\d+)", since=since)
        assert int(started[1]) > 0
        _visit(lab, gateway, user, open_terminal)

    assert lab.remote.accepted(user) == 2


def test_connection_that_hangs_is_replaced(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A warm connection that is there and silent does not hang the next login: a new one takes its place."""
    _visit(lab, gateway, user, open_terminal)
    frozen = _broker_connection(lab, user)
    assert frozen
    for process in frozen:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        _visit(lab, gateway, user, open_terminal)
    finally:
        kill(frozen)

    assert lab.remote.accepted(user) == 2


def _local_ports(lab: Lab) -> list[int]:
    """List the gateway's ends of connections to the remote's sshd that are established."""
    lines = lab.run(["ss", "-Htn", "state", "established", "dport", "=", f":{PORT}"]).stdout.decode().splitlines()
    return [int(line.split()[2].rpartition(":")[2]) for line in lines]


def test_first_connection_that_dies_in_the_handshake_gets_a_rival(make_lab: Callable[..., Lab]) -> None:
    """A first login whose packets vanish once TCP is connected gets in over a second connection, which is kept."""
    lab = make_lab(rtt_ms=400)  # far enough to meet the handshake under way
    gateway, user = lab.start_gateway(), lab.add_user()
    terminal = lab.terminal(lab.gateway_argv(gateway, user))
    ports = wait_until(lambda: _local_ports(lab), "the broker connects")
    with lab.wan.weather(forgotten_ports=ports):
        terminal.wait_for(user.prompt, timeout_s=60)
        terminal.close()
        _visit(lab, gateway, user, lab.terminal)

    assert (lab.remote.connections(), lab.remote.accepted(user)) == (2, 1)


def test_first_login_at_a_slow_remote_has_one_connection(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """Where no packet is lost, a shell that takes longer than the patience with lost packets gets no second one."""
    since = lab.remote.log.mark()
    lab.remote.write_file(user, ".bashrc", f"rm ~/slow 2>/dev/null && sleep {RIVAL_AFTER_S + 2 * RIVAL_STEP_S}\n")
    lab.remote.write_file(user, "slow", "")
    _visit(lab, gateway, user, open_terminal)

    assert not lab.remote.room.path(f"{user.home}/slow").exists()
    assert lab.remote.connections(since=since) == 1


def test_first_login_through_a_bottleneck(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """64 kB/s and 300 ms are enough for a first login, and for a page of output."""
    with lab.wan.weather(rate_kb_s=64, rtt_ms=300):
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt, timeout_s=60)
        terminal.run("seq 3000", f"2999\n3000\n{user.prompt}", timeout_s=60)
        terminal.type("exit\r")
        assert terminal.wait_exit(timeout_s=60) == 0
    wait_until(lambda: not sshd_of(gateway, user), "the session is over")
