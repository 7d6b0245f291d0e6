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
    assert header.split() == ["sid", "user", "client", "transport", "since", "for"]
    assert [row.split()[:2] for row in rows] == [[its["sid"], user.name] for its in (by_mosh, by_ssh)]
    shell.type("exit\r")
    command.close()
    wait_until(lambda: _open(gateway) == [], "both have ended")
    wait_until(lambda: sorted(_ended(gateway)) == sorted(started), "the log has both ends")
    line = gateway.log.matches(r"session_ended .*transport=mosh.*")[0].string
    assert re.search(rf"user={user.name} client=127\.0\.0\.1:\d+ transport=mosh seconds=\d+\.\d$", line)


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
    assert _open(gateway) == [before]
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
