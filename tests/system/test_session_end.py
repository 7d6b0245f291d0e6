"""However a session ends, nothing of it stays: no mosh-server on the remote, no process on the gateway."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.sessions import mosh_client_of, sshd_of, uid_of, wait_gone

from lab.processes import all_processes, kill
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.terminal import Terminal
    from lab.users import User

    OpenTerminal = Callable[..., Terminal]

_TCP_LISTEN = "0A"  # Linux, net/tcp_states.h


def _log_in(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, *options: str) -> tuple[Terminal, int]:
    """Open a session, and return its terminal and the user's uid on the gateway."""
    terminal = open_terminal(lab.gateway_argv(gateway, user, options=options))
    terminal.wait_for(user.prompt)
    # Of two, the one that printed where the other listens is about to end.
    wait_until(lambda: len(lab.remote.processes("mosh-server", user=user)) == 1, "there is one mosh-server")
    return terminal, uid_of(gateway, user)


def _descendants(pid: int) -> list[Process]:
    """List what a process started, and what that started."""
    children = [process for process in all_processes() if process.parent_pid == pid]
    return children + [its for child in children for its in _descendants(child.pid)]


@pytest.mark.parametrize("keys", ["exit\r", "\x04", "exec true\r"], ids=["exit", "Ctrl-D", "exec"])
def test_logout(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, keys: str) -> None:
    """The end of the shell is the end of the session, with status 0 as by direct mosh."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    terminal.type(keys)

    assert terminal.wait_exit() == 0
    wait_gone(lab, gateway, user, uid)


def test_logout_leaves_a_background_job(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A job in the background does not hold the session open, and lives on as after a logout from direct ssh."""
    direct = open_terminal(lab.direct_ssh_argv(user))
    direct.wait_for(user.prompt)
    direct.run("nohup sleep 1234 >/dev/null 2>&1 </dev/null &", "[1]")
    direct.type("exit\r")
    assert direct.wait_exit() == 0
    left_by_ssh = len(lab.remote.processes("sleep", user=user))

    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    terminal.run("nohup sleep 1234 >/dev/null 2>&1 </dev/null &", "[1]")
    terminal.type("exit\r")

    assert terminal.wait_exit() == 0
    wait_gone(lab, gateway, user, uid)
    assert len(lab.remote.processes("sleep", user=user)) == 2 * left_by_ssh == 2


def test_job_that_holds_the_terminal(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A job that keeps the terminal open holds mosh up after the logout, here as by direct mosh; `~.` leaves."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    terminal.run("sleep 1234 &", "[1]")
    terminal.run("exit", "\nlogout")
    terminal.type("\r~.")

    assert terminal.wait_exit() in {0, 255}
    wait_gone(lab, gateway, user, uid)


def test_tilde_dot(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """`~.` leaves at once with ssh's own status, in the midst of a running program."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    terminal.run("sleep 1234; echo not yet", "sleep 1234")
    wait_until(lambda: lab.remote.processes("sleep", user=user), "the program runs")
    terminal.type("\r~.")

    assert terminal.wait_exit() == 255
    wait_gone(lab, gateway, user, uid)
    wait_until(lambda: not lab.remote.processes("sleep", user=user), "the program has got its SIGHUP")


def test_client_killed(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A client that is killed with SIGKILL takes its session along, the mosh-server on the remote too."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    os.kill(terminal.pid, signal.SIGKILL)

    assert terminal.wait_exit() == -signal.SIGKILL
    wait_gone(lab, gateway, user, uid)


def test_client_closes_the_window(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A window that is closed (SIGHUP) ends the session."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    os.kill(terminal.pid, signal.SIGHUP)

    assert terminal.wait_exit() != 0
    wait_gone(lab, gateway, user, uid)


def test_connection_cut(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A connection to the gateway that breaks ends the session on both sides, with ssh's own status."""
    carry = "exec 3<>/dev/tcp/%h/%p; cat <&3 & exec cat >&3"
    terminal, uid = _log_in(lab, gateway, user, open_terminal, "-o", f"ProxyCommand=bash -c {shlex.quote(carry)}")
    carriers = [process for process in _descendants(terminal.pid) if process.name == "cat"]
    assert len(carriers) == 2
    kill(carriers)

    assert terminal.wait_exit() == 255
    wait_gone(lab, gateway, user, uid)


def test_mosh_server_ends(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A mosh-server that is told to end (SIGTERM) says goodbye, and the client is back at its own prompt."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    (server,) = lab.remote.processes("mosh-server", user=user)
    os.kill(server.pid, signal.SIGTERM)

    assert terminal.wait_exit() == 0
    wait_gone(lab, gateway, user, uid)


def test_mosh_server_killed(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A mosh-server that was killed leaves a user who can still leave by `~.`, and log in anew."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    (server,) = lab.remote.processes("mosh-server", user=user)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "mosh-server is gone")
    terminal.type("\r~.")

    assert terminal.wait_exit() == 255
    again, _ = _log_in(lab, gateway, user, open_terminal)
    again.type("exit\r")
    assert again.wait_exit() == 0
    # mosh-client waits 10 s for an answer to its goodbye (mosh 1.4.0, transportsender.h).
    wait_gone(lab, gateway, user, uid, timeout_s=40)


def test_mosh_client_killed(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A mosh-client that was killed ends the client's connection and nobody else's."""
    other = lab.add_user()
    bystander, _ = _log_in(lab, gateway, other, open_terminal)
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    os.kill(mosh_client_of(gateway, user).pid, signal.SIGKILL)

    assert terminal.wait_exit() == 255
    wait_until(lambda: not gateway.processes(uid=uid), "the gateway has no process of the user")
    bystander.run("echo $((6 * 7))", "\n42\n")


@pytest.mark.parametrize("victim", ["session", "both"])
def test_sshd_killed(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, victim: str) -> None:
    """The gateway's sshd, killed in a session, leaves neither mosh-client nor mosh-server behind."""
    terminal, uid = _log_in(lab, gateway, user, open_terminal)
    monitor, session = sshd_of(gateway, user)
    kill([session] if victim == "session" else [monitor, session])

    assert terminal.wait_exit() == 255
    wait_gone(lab, gateway, user, uid)


def test_sigterm_ends_the_gateway_and_its_sessions(
    lab: Lab, start_gateway: Callable[..., Gateway], open_terminal: OpenTerminal
) -> None:
    """SIGTERM tells everybody, disconnects them, says goodbye to the remote, exits 0 and leaves nothing behind."""
    gateway = start_gateway()
    machine_mounts = Path(f"/proc/{gateway.room.pid}/mountinfo").read_text().splitlines()
    users = [lab.add_user() for _ in range(2)]
    terminals = [_log_in(lab, gateway, user, open_terminal)[0] for user in users]

    # Container engines send SIGKILL 10 s after SIGTERM.
    assert gateway.stop(timeout_s=9) == 0

    assert [terminal.wait_exit() for terminal in terminals] == [255, 255]
    for terminal in terminals:
        # It stands on the screen that is left when mosh-client, which draws on the other one, has ended.
        before, sentence, _ = bytes(terminal.raw).partition(b"gateway: shutting down")
        assert sentence
        assert before.rindex(b"\x1b[?1049l") > before.rindex(b"\x1b[?1049h")
    for user in users:
        wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "mosh-server is gone")  # noqa: B023
    assert gateway.processes() == []
    # A container of somebody else's may have gone meanwhile, and its mounts with it.
    assert set(Path(f"/proc/{gateway.room.pid}/mountinfo").read_text().splitlines()) <= set(machine_mounts)
    network = Path(f"/proc/{gateway.room.pid}/net")
    listening = {
        int(fields[1].rpartition(":")[2], 16)
        for name in ("tcp", "tcp6")
        for fields in map(str.split, (network / name).read_text().splitlines()[1:])
        if fields[3] == _TCP_LISTEN
    }
    assert gateway.port not in listening
    assert str(gateway.directory) not in (network / "unix").read_text()


def test_sigterm_leaves_no_socket_file(start_gateway: Callable[..., Gateway]) -> None:
    """A gateway that has ended has no door left that only looks like one: its sockets are gone from the disk."""
    gateway = start_gateway()

    assert gateway.stop() == 0

    assert [path for path in gateway.directory.rglob("*") if path.is_socket()] == []
