"""Open sessions: what `gatewayctl sessions` lists, and the line that the log has when each ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lab.gateway import GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


def _ctl(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    command = gateway.room.argv([str(GATEWAYCTL), *arguments])
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def _open(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_ctl(gateway, "sessions", "--json").stdout)
    return found


def _ended(gateway: Gateway) -> list[str]:
    """List the ids of the sessions whose end the log has."""
    return [match[1] for match in gateway.log.matches(r"info session_ended sid=(\S+) ")]


def test_sessions_are_listed_while_they_are_open(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A shell over mosh and a command over ssh, by the ids of their lines in the log; nothing when both have ended."""
    gateway = start_gateway()
    assert _open(gateway) == []
    shell = open_terminal(lab.gateway_argv(gateway, user))
    shell.wait_for(user.prompt)
    command = open_terminal(lab.gateway_argv(gateway, user, "echo ready; cat", options=["-T"]))
    command.wait_for("ready")
    by_mosh, by_ssh = _open(gateway)
    started = {match[1]: match[2] for match in gateway.log.matches(r"session_started sid=(\S+) .*transport=(\S+)")}
    assert started == {by_mosh["sid"]: "mosh", by_ssh["sid"]: "ssh"}
    assert (by_mosh["transport"], by_ssh["transport"], by_ssh["udp_port"]) == ("mosh", "ssh", None)
    assert {(its["user"], its["client"].rpartition(":")[0]) for its in (by_mosh, by_ssh)} == {(user.name, "127.0.0.1")}
    header, *rows = _ctl(gateway, "sessions").stdout.splitlines()
    assert header.split() == ["sid", "user", "client", "transport", "since", "for", "idle", "sent", "received"]
    assert (by_mosh["idle"] >= 0, by_ssh["idle"]) == (True, None)
    assert {its["stage"] for its in (by_mosh, by_ssh)} == {"logged_in"}
    assert min(its[way] for its in (by_mosh, by_ssh) for way in ("sent", "received")) > 1000
    assert [row.split()[:2] for row in rows] == [[its["sid"], user.name] for its in (by_mosh, by_ssh)]
    shell.type("exit\r")
    command.close()
    wait_until(lambda: _open(gateway) == [], "both have ended")
    wait_until(lambda: sorted(_ended(gateway)) == sorted(started), "the log has both ends")
    line = gateway.log.matches(r"session_ended .*transport=mosh.*")[0].string
    assert re.search(
        rf"user={user.name} client=127\.0\.0\.1:\d+ key=SHA256:\S+ transport=mosh ended=exit seconds=\d+\.\d sent=\d+",
        line,
    )


@pytest.mark.parametrize("what", ["a reload", "a killed broker"])
def test_the_table_outlives_its_broker(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal], what: str
) -> None:
    """A session of another broker is listed, and its end is in the log once."""
    gateway = start_gateway()
    shell = open_terminal(lab.gateway_argv(gateway, user))
    shell.wait_for(user.prompt)
    (before,) = _open(gateway)
    broker = gateway.broker
    if what == "a reload":
        gateway.signal(signal.SIGHUP)
        gateway.log.wait_for(r"\breloaded\b")
    else:
        os.kill(broker.pid, signal.SIGKILL)
        gateway.log.wait_for("broker_restarted")
    changing = dict.fromkeys(("idle", "sent", "received"))
    assert [its | changing for its in _open(gateway)] == [before | changing]
    shell.type("exit\r")
    wait_until(lambda: _ended(gateway) == [before["sid"]], "the log has its end")
    assert _open(gateway) == []
    assert gateway.stop() == 0
    assert _ended(gateway) == [before["sid"]]


def test_each_session_that_the_gateways_end_ends_has_its_line(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """SIGTERM ends them, and the log says so for each."""
    gateway = start_gateway()
    for _ in range(3):
        open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    sids = [session["sid"] for session in _open(gateway)]
    assert gateway.stop() == 0
    assert sorted(_ended(gateway)) == sorted(sids)
    assert len(sids) == 3


def test_only_root_may_list_sessions(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """Another uid is refused, and a gateway that does not run is told as such."""
    gateway = start_gateway()
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--", str(GATEWAYCTL), "sessions"]
    argv = gateway.room.argv(as_nobody)
    refused = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert gateway.stop() == 0
    done = _ctl(gateway, "sessions")
    assert (done.returncode, done.stdout) == (71, "")
    assert done.stderr.startswith("gatewayctl: no gateway runs in ")


# Ending them


def test_a_kicked_session_ends_on_all_sides(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """The user reads the operator's sentence, the client ends, no mosh-server stays, and another session goes on."""
    gateway = start_gateway()
    terminals = []
    for _ in range(2):
        terminals.append(open_terminal(lab.gateway_argv(gateway, user), columns=100))
        terminals[-1].wait_for(user.prompt)
    ended, living = terminals
    older, _ = _open(gateway)
    sid = older["sid"]
    done = _ctl(gateway, "kick", sid, "--message", "maintenance at 12:00\x1b[2J")
    assert (done.returncode, done.stdout) == (0, f"Ended {sid} of {user.name}.\n")
    ended.wait_exit()
    # It stands on the screen that is left when mosh-client, which draws on the other one, has ended.
    before, sentence, _ = bytes(ended.raw).partition(b"gateway: maintenance at 12:00?[2J\r\n")
    assert sentence
    assert before.rindex(b"\x1b[?1049l") > before.rindex(b"\x1b[?1049h")
    wait_until(lambda: len(lab.remote.processes("mosh-server", user=user)) == 1, "its mosh-server is gone")
    wait_until(lambda: _ended(gateway) == [sid], "the log has its end")
    living.run("echo $((40 + 2))", "42")


def test_a_kicked_user_has_no_session_left(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Shells and commands end; another user's do not."""
    gateway, other = start_gateway(), lab.add_user()
    shell = open_terminal(lab.gateway_argv(gateway, user))
    command = open_terminal(lab.gateway_argv(gateway, user, "echo ready; cat", options=["-T"]))
    others = open_terminal(lab.gateway_argv(gateway, other))
    for terminal, word in ((shell, user.prompt), (command, "ready"), (others, other.prompt)):
        terminal.wait_for(word)
    assert _ctl(gateway, "kick", user.name).returncode == 0
    shell.wait_exit()
    assert command.wait_exit() != 0
    wait_until(lambda: [its["user"] for its in _open(gateway)] == [other.name], "one session is left")
    others.run("echo $((40 + 2))", "42")


def test_a_locked_name_is_refused_until_the_lock_is_lifted(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User
) -> None:
    """Also by a key that sshd accepts from its own file; after a reload too, and no other name is."""
    gateway, other = start_gateway(), lab.add_user()

    def says(who: User) -> bytes:
        return lab.run(lab.gateway_argv(gateway, who, "echo in")).stdout

    assert says(user) == says(user) == b"in\n"
    done = _ctl(gateway, "kick", user.name, "--lock", "5")
    assert (done.returncode, done.stdout) == (0, f"Locked {user.name} for 5 min.\n")
    assert says(user) == b""
    assert gateway.log.matches(rf'key_refused .*user={user.name} .*reason="user_name: {user.name} is locked ')
    assert says(other) == b"in\n"
    gateway.signal(signal.SIGHUP)
    gateway.log.wait_for(r"\breloaded\b")
    assert says(user) == b""
    assert _ctl(gateway, "kick", user.name, "--lock", "0").stdout == f"Lifted the lock of {user.name}.\n"
    assert says(user) == b"in\n"


def test_a_connection_that_is_open_starts_no_session_of_a_locked_name(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A client that has logged in before the lock reads why."""
    gateway = start_gateway()
    path = lab.directory / "keys" / f"master-{user.name}"
    master = ["-S", str(path)]
    open_terminal(lab.gateway_argv(gateway, user, options=[*master, "-M", "-N"]))
    wait_until(path.exists, "the client's connection is open")
    assert lab.run(lab.gateway_argv(gateway, user, "echo in", options=master)).stdout == b"in\n"
    assert _ctl(gateway, "kick", user.name, "--lock", "5").returncode == 0
    done = lab.run(lab.gateway_argv(gateway, user, "echo in", options=master))
    assert (done.stdout, done.returncode) == (b"", 77)
    assert done.stderr.startswith(f"gateway: {user.name} is locked on the gateway until ".encode())


@pytest.mark.parametrize("who", ["1-1", "nobody-here", "", "../x", "-1"])
def test_a_session_that_is_not_there_is_told(start_gateway: Callable[..., Gateway], who: str) -> None:
    """One line and a status; nothing is signalled."""
    done = _ctl(start_gateway(), "kick", "--", who)
    assert (done.returncode, done.stdout) == (67, "")
    assert done.stderr == f"gatewayctl: there is no open session {who}; gatewayctl sessions lists them\n"


# Draining


def test_a_drained_gateway_keeps_its_sessions_and_starts_none(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """New logins read why, load balancers see it, a reload changes nothing, and --off ends it."""
    gateway = start_gateway()
    shell = open_terminal(lab.gateway_argv(gateway, user))
    shell.wait_for(user.prompt)
    done = _ctl(gateway, "drain", "--message", "maintenance until noon")
    assert (done.returncode, done.stdout) == (0, "Accepts no new sessions. Open: 1.\n")
    for _ in range(2):
        refused = lab.run(lab.gateway_argv(gateway, user, "echo in"))
        assert (refused.stdout, refused.stderr, refused.returncode) == (b"", b"gateway: maintenance until noon\n", 75)
        told = _ctl(gateway, "healthcheck")
        assert (told.returncode, told.stdout) == (
            1,
            "unhealthy: drain: accepts no new sessions: maintenance until noon\n",
        )
        assert _ctl(gateway, "healthcheck", "--live").stdout == "healthy\n"
        assert "WARNING: draining: maintenance until noon" in _ctl(gateway, "status").stdout
        gateway.signal(signal.SIGHUP)
        gateway.log.wait_for(r"\breloaded\b")
    shell.run("echo $((40 + 2))", "42")
    assert _ctl(gateway, "drain", "--off").stdout == "Accepts sessions again. Open: 1.\n"
    assert lab.run(lab.gateway_argv(gateway, user, "echo in")).stdout == b"in\n"
    assert _ctl(gateway, "healthcheck").returncode == 0
