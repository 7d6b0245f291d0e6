"""What the log says of a session's beginning and end: only what has happened, and why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

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

_NO_KEY: dict[str, str | None] = {"GATEWAY_SSH_KEY_PATH": None}


def _failures(gateway: Gateway) -> int:
    """Ask a gateway how many sessions have failed."""
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    argv = gateway.room.argv([str(GATEWAYCTL), "status", "--json"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, env=environment)
    return int(json.loads(done.stdout)["failures"])


def _failed(gateway: Gateway, user: User, outcome: str, reason: str) -> None:
    """Check that a user's session has failed, once, that this is counted, and that nothing says it started."""
    found = gateway.log.wait_for(
        rf'error session_failed sid=\d+-\d+ user={user.name} .*outcome={outcome} reason="(.*)"'
    )
    assert re.search(reason, found[1]), found[1]
    assert len(gateway.log.matches(f"session_failed .*user={user.name} ")) == 1
    assert not gateway.log.matches(f"session_(started|ended) .*user={user.name} ")
    assert _failures(gateway) == 1


# Sessions that the remote does not accept


@pytest.mark.parametrize("terminal", [False, True], ids=["command", "shell"])
def test_a_session_without_an_agent_has_failed(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, *, terminal: bool
) -> None:
    """With agent pass-through the user reads how, and so does the operator."""
    gateway = start_gateway(_NO_KEY)
    argv = lab.gateway_argv(gateway, user, *([] if terminal else ["true"]), options=["-tt" if terminal else "-T"])
    assert lab.run(argv).returncode == 77
    _failed(gateway, user, "permission_denied", "use 'ssh -A'")


@pytest.mark.parametrize("terminal", [False, True], ids=["command", "shell"])
def test_a_session_whose_agent_the_remote_refuses_has_failed(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, *, terminal: bool
) -> None:
    """The client's ssh ends with 255, as direct ssh does."""
    gateway, other = start_gateway(_NO_KEY), lab.add_user()
    with lab.agent(other.key.private) as environment:
        options = ["-A", "-tt" if terminal else "-T"]
        argv = lab.gateway_argv(gateway, user, *([] if terminal else ["true"]), options=options)
        assert lab.run(argv, environment=environment).returncode in {77, 255}
    _failed(gateway, user, "permission_denied", "")


def test_a_session_with_an_agent_has_started_when_the_remote_accepts_it(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A command over ssh, and a shell over mosh, of which the table then has the port."""
    gateway = start_gateway(_NO_KEY)
    with lab.agent(user.key.private) as environment:
        argv = lab.gateway_argv(gateway, user, "exit 3", options=["-A", "-T"])
        assert lab.run(argv, environment=environment).returncode == 3
        shell = open_terminal(lab.gateway_argv(gateway, user, options=["-A"]), environment=environment)
        shell.wait_for(user.prompt)
        shell.type("exit\r")
        shell.wait_exit()
    wait_until(lambda: len(gateway.log.matches("session_ended .*ended=exit")) == 2, "both have ended")
    assert len(gateway.log.matches("session_started .*transport=(ssh|mosh) .*outcome=ok")) == 2
    assert not gateway.log.matches("session_failed")


def test_a_session_whose_key_the_remote_refuses_has_failed(make_lab: Callable[..., Lab]) -> None:
    """The gateway's key was removed there while the user's keys are remembered here."""
    lab = make_lab(rtt_ms=2)
    gateway, user = lab.start_gateway(), lab.add_user()
    assert lab.run(lab.gateway_argv(gateway, user, "true", options=["-T"])).returncode == 0
    lab.remote.authorize(user, [user.key.public])
    other = lab.add_user()
    lab.remote.authorize(other, [other.key.public, lab.gateway_key.public])
    # Its second session makes a connection of its own: the first one's master is gone with its sshd.
    lab.remote.stop_sshd()
    lab.remote.start_sshd()
    done = lab.run(lab.gateway_argv(gateway, user, "true", options=["-T"]))
    assert done.returncode == 255, done
    found = gateway.log.wait_for(rf'session_failed .*user={user.name} .*outcome=permission_denied reason="(.*)"')
    assert "the gateway's key" in found[1]
    assert len(gateway.log.matches(f"session_started .*user={user.name} ")) == 1
    assert _failures(gateway) == 1


@pytest.mark.parametrize("what", ["another host key", "no sshd"])
def test_a_session_whose_host_is_another_has_failed(make_lab: Callable[..., Lab], what: str) -> None:
    """While keys are remembered, the session is the first to see it; the log has the reason, the user ssh's words."""
    lab = make_lab(rtt_ms=2)
    gateway, user = lab.start_gateway(), lab.add_user()
    assert lab.run(lab.gateway_argv(gateway, user, "true", options=["-T"])).returncode == 0
    lab.remote.stop_sshd()
    if what == "another host key":
        lab.remote.rotate_host_keys()  # which starts it again
    done = lab.run(lab.gateway_argv(gateway, user, "true", options=["-T"]))
    assert done.returncode != 0
    assert done.stderr
    outcome = {"another host key": "host_key", "no sshd": "remote_refused"}[what]
    gateway.log.wait_for(rf"session_failed .*user={user.name} .*outcome={outcome} ")
    assert len(gateway.log.matches(f"session_started .*user={user.name} ")) == 1
    assert _failures(gateway) == 1


def test_a_refused_session_of_a_drained_gateway_is_in_the_log(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User
) -> None:
    """The operator sees who was turned away."""
    gateway = start_gateway()
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    argv = gateway.room.argv([str(GATEWAYCTL), "drain", "--message", "until noon"])
    subprocess.run(argv, capture_output=True, check=True, timeout=60, env=environment)
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 75
    _failed(gateway, user, "draining", "until noon")


# How sessions end

_WAYS = ["exit", "disconnected", "lost", "kicked", "stopped"]


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("kind", ["mosh", "ssh", "ssh with a terminal"])
def test_how_a_session_ended(
    lab: Lab,
    start_gateway: Callable[..., Gateway],
    user: User,
    open_terminal: Callable[..., Terminal],
    *,
    kind: str,
    way: str,
) -> None:
    """By itself, by a client that says goodbye or does not, by an operator, or with the gateway; with its bytes."""
    gateway = start_gateway({"GATEWAY_PTY_COMMANDS": "ssh"})
    command = () if kind == "mosh" else ("echo ready; read line",)
    ready = user.prompt if kind == "mosh" else "ready"
    options = ["-T" if kind == "ssh" else "-tt"]
    client = open_terminal(lab.gateway_argv(gateway, user, *command, options=options))
    client.wait_for(ready)
    gateway.log.wait_for("session_started ")
    if way == "exit":
        client.type("exit\r" if kind == "mosh" else "\r")
        client.wait_exit()
    elif way in {"disconnected", "lost"}:
        # OpenSSH's client says goodbye when it gets SIGHUP, as that of a closed window.
        os.kill(client.pid, signal.SIGHUP if way == "disconnected" else signal.SIGKILL)
    elif way == "kicked":
        environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
        argv = gateway.room.argv([str(GATEWAYCTL), "kick", user.name])
        subprocess.run(argv, capture_output=True, check=True, timeout=60, env=environment)
    else:
        assert gateway.stop() == 0
    transport = "mosh" if kind == "mosh" else "ssh"
    found = gateway.log.wait_for(
        rf"session_ended sid=\d+-\d+ user={user.name} client=\S+ key=SHA256:\S+ transport={transport} ended=(\S+) "
        r"seconds=\d+\.\d sent=(\S+) received=(\S+)$"
    )
    assert found[1] == way
    # The client's banner, key exchange and login alone are more; a gateway that stops may not get to see them.
    assert (way == "stopped" and found[2] == found[3] == "-") or min(int(found[2]), int(found[3])) > 1000


def test_one_of_two_sessions_of_a_connection_ends_by_itself(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """The other one ends when the client disconnects; both have the connection's sid."""
    gateway = start_gateway()
    path = lab.directory / "keys" / f"master-{user.name}"
    first = open_terminal(lab.gateway_argv(gateway, user, options=["-M", "-S", str(path)]))
    first.wait_for(user.prompt)
    done = lab.run(lab.gateway_argv(gateway, user, "exit 3", options=["-S", str(path)]))
    assert done.returncode == 3
    gateway.log.wait_for("session_ended .*transport=ssh ended=exit ")
    os.kill(first.pid, signal.SIGHUP)
    gateway.log.wait_for("session_ended .*transport=mosh ended=disconnected ")
    assert len({match[1] for match in gateway.log.matches(r"session_ended sid=(\S+) ")}) == 1
