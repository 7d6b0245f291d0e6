"""GATEWAY_STOP_TIMEOUT: after SIGTERM open sessions go on, and new clients find the port closed."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from lab.gateway import ADDRESS, GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

_HOUR = {"GATEWAY_STOP_TIMEOUT": "3600"}


def _is_closed(lab: Lab, gateway: Gateway) -> bool:
    """Tell whether the gateway's port refuses connections."""
    try:
        lab.near.connect(ADDRESS, gateway.port).close()
    except ConnectionRefusedError:
        return True
    return False


def _stop(lab: Lab, gateway: Gateway) -> None:
    """Send SIGTERM, and wait until the gateway takes no new clients."""
    gateway.signal(signal.SIGTERM)
    gateway.log.wait_for(r"warning stopping sessions=[1-9]")
    wait_until(lambda: _is_closed(lab, gateway), "the port is closed")


def test_open_sessions_go_on_until_they_end(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A shell over mosh and a command over ssh, with its exit status; the last one's end is the gateway's."""
    gateway = start_gateway(_HOUR)
    shell = open_terminal(lab.gateway_argv(gateway, user))
    shell.wait_for(user.prompt)
    command = open_terminal(lab.gateway_argv(gateway, user, "echo ready; read line; exit 7", options=["-T"]))
    command.wait_for("ready")
    _stop(lab, gateway)
    refused = lab.run(lab.gateway_argv(gateway, user, "echo in"))
    assert (refused.returncode, b"Connection refused" in refused.stderr) == (255, True)
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    listed = gateway.room.argv([str(GATEWAYCTL), "sessions", "--json"])
    done = subprocess.run(listed, capture_output=True, check=True, timeout=60, env=environment)
    assert sorted(session["transport"] for session in json.loads(done.stdout)) == ["mosh", "ssh"]
    checked = gateway.room.argv([str(GATEWAYCTL), "healthcheck"])
    done = subprocess.run(checked, capture_output=True, check=False, timeout=60, env=environment)
    assert done.returncode == 1
    shell.run("echo $((40 + 2))", "42")
    command.type("\r")
    assert command.wait_exit() == 7
    shell.run("echo $((40 + 3))", "43")
    shell.type("exit\r")
    assert shell.wait_exit() == 0
    assert gateway.wait_exit() == 0
    assert len(gateway.log.matches("session_ended .*ended=exit ")) == 2
    assert gateway.processes() == []


@pytest.mark.parametrize("by", ["a second signal", "the end of its time"])
def test_sessions_end_after_their_time(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal], by: str
) -> None:
    """The user reads why, and nothing stays on the remote or here."""
    gateway = start_gateway({"GATEWAY_STOP_TIMEOUT": "1"} if by == "the end of its time" else _HOUR)
    shell = open_terminal(lab.gateway_argv(gateway, user), columns=100)
    shell.wait_for(user.prompt)
    if by == "a second signal":
        _stop(lab, gateway)
    gateway.signal(signal.SIGTERM)
    shell.wait_exit()
    assert b"gateway: shutting down, and your session with it" in bytes(shell.raw)
    assert gateway.wait_exit() == 0
    assert gateway.log.matches("session_ended .*ended=stopped ")
    wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "its mosh-server is gone")
    assert gateway.processes() == []


def test_without_sessions_the_gateway_ends_at_once(start_gateway: Callable[..., Gateway]) -> None:
    """There is nothing to wait for."""
    gateway = start_gateway(_HOUR)
    assert gateway.stop() == 0
    assert not gateway.log.matches("warning stopping ")


def test_a_broker_that_is_killed_meanwhile_ends_no_session(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """The supervisor starts another one, and the session's end is seen all the same."""
    gateway = start_gateway(_HOUR)
    shell = open_terminal(lab.gateway_argv(gateway, user))
    shell.wait_for(user.prompt)
    _stop(lab, gateway)
    subprocess.run(["kill", "-9", str(gateway.broker.pid)], check=True)
    gateway.log.wait_for("broker_restarted")
    shell.run("echo $((40 + 2))", "42")
    shell.type("exit\r")
    assert shell.wait_exit() == 0
    assert gateway.wait_exit() == 0
