"""What carries a terminal: GATEWAY_TRANSPORT, and what the remote has."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


def _leave(terminal: Terminal, user: User) -> None:
    """Check that a terminal has a prompt over ssh: mosh would lose the status."""
    terminal.wait_for(user.prompt)
    terminal.type("exit 5\r")
    assert terminal.wait_exit() == 5, terminal.framed()


def test_a_shell_goes_over_ssh_if_the_operator_says_so(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """GATEWAY_TRANSPORT=ssh: no datagram is sent, no mosh-server is started, and the log says ssh."""
    gateway = start_gateway({"GATEWAY_TRANSPORT": "ssh"})
    before = lab.wan.traffic().up.packets("udp")
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    assert not lab.remote.processes("mosh-server", user=user)
    _leave(terminal, user)
    assert "gateway:" not in terminal.text
    assert lab.wan.traffic().up.packets("udp") == before
    gateway.log.wait_for(rf"session_ended .*user={user.name} .*transport=ssh ended=exit")


@pytest.mark.parametrize("lacks", ["a mosh-server", "a UTF-8 locale"])
def test_a_shell_goes_over_ssh_if_the_remote_has_no_mosh(make_lab: Callable[..., Lab], lacks: str) -> None:
    """One line says what the remote lacks; when it has it, the next session is mosh's again."""
    lab = make_lab(rtt_ms=2)
    user, gateway = lab.add_user("alice"), lab.start_gateway()
    without = lab.remote.without_mosh_server if lacks == "a mosh-server" else lab.remote.without_utf8_locale
    with without():
        terminal = lab.terminal(lab.gateway_argv(gateway, user), columns=200)
        _leave(terminal, user)
    (line,) = [line for line in terminal.lines if line.startswith("gateway: ")]
    assert line.startswith(f"gateway: the remote host has no {lacks.removeprefix('a ')}")
    assert line.endswith("; this session goes over ssh")
    wait_until(lambda: gateway.log.matches("session_ended .*transport=ssh"), "the log has the session's end")
    (started,) = gateway.log.matches("session_started .*")
    assert " transport=ssh " in started[0]

    lab.terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    assert lab.remote.processes("mosh-server", user=user)


# Where UDP is blocked


def _blocked_login(lab: Lab, gateway: Gateway, user: User, environment: dict[str, str] | None = None) -> Terminal:
    """Log in where UDP does not pass, check that ssh takes over, and leave."""
    options = ["-A"] if environment else []
    terminal = lab.terminal(lab.gateway_argv(gateway, user, options=options), columns=150, environment=environment)
    _leave(terminal, user)
    assert "gateway: UDP does not get through to the remote host; this session goes over ssh" in terminal.text
    return terminal


def test_ssh_takes_over_where_udp_is_blocked(make_lab: Callable[..., Lab]) -> None:
    """The first session finds out, and the next one sends no datagram; no mosh-server is left; the log has it."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user("alice"), lab.start_gateway()
    with lab.wan.weather(udp_blocked=True):
        _blocked_login(lab, gateway, user)
        wait_until(lambda: not lab.remote.processes("mosh-server"), "the mosh-server has been ended")
        gateway.log.wait_for(r"info udp sid=\S+ user=alice remote=192\.0\.2\.2 udp_port=60001 outcome=silent ms=")
        gateway.log.wait_for("session_ended .*user=alice .*transport=ssh ended=exit")
        assert len(gateway.log.matches("session_started .*user=alice")) == 1
        sent = lab.wan.traffic().up.packets("udp")
        assert sent > 0
        _blocked_login(lab, gateway, user)
        assert lab.wan.traffic().up.packets("udp") == sent
    assert not gateway.processes("mosh-client")


def test_udp_that_passes_is_found_by_the_first_session(make_lab: Callable[..., Lab]) -> None:
    """It logs so, and is mosh's; the second is mosh-client alone. Both end with nothing left behind."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user("alice"), lab.start_gateway()
    for parents in (1, 0):
        terminal = lab.terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)
        (client,) = gateway.processes("mosh-client")
        assert ("-v" in client.argv) == (parents == 1)
        gateway.log.wait_for(r"info udp .*udp_port=60001 outcome=passes ms=")
        terminal.type("exit\r")
        assert terminal.wait_exit() == 0
        wait_until(lambda: not lab.remote.processes("mosh-server"), "the mosh-server has ended")
    assert len(gateway.log.matches(r": info udp ")) == 1
    assert not gateway.log.matches("session_ended .*transport=ssh")


def test_a_client_that_leaves_while_the_path_is_unproven_leaves_nothing(make_lab: Callable[..., Lab]) -> None:
    """Its terminal hangs up: mosh-client says goodbye, and the mosh-server ends."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user("alice"), lab.start_gateway()
    terminal = lab.terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    assert lab.remote.processes("mosh-server")
    terminal.close()
    wait_until(lambda: not lab.remote.processes("mosh-server"), "the mosh-server has ended")
    wait_until(lambda: not gateway.processes("mosh-client"), "the mosh-client has ended")


def test_blocked_udp_with_the_users_own_agent(make_lab: Callable[..., Lab]) -> None:
    """Agent pass-through falls back, too, and each session finds out for itself."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user("alice"), lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None})
    with lab.agent(user.key.private) as environment, lab.wan.weather(udp_blocked=True):
        _blocked_login(lab, gateway, user, dict(environment))
        before = lab.wan.traffic().up.packets("udp")
        _blocked_login(lab, gateway, user, dict(environment))
        assert lab.wan.traffic().up.packets("udp") > before


def test_udp_that_the_gateways_kernel_prohibits_is_refused(make_lab: Callable[..., Lab]) -> None:
    """The session does not wait for a silence, and the log says what it was."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user("alice"), lab.start_gateway()
    rule = ["ip", "rule", "add", "ipproto", "udp", "dport", "60001-60999", "prohibit"]
    assert lab.run(rule).returncode == 0
    _blocked_login(lab, gateway, user)
    gateway.log.wait_for(r"info udp .*user=alice .*outcome=refused ms=")


def test_a_session_falls_back_though_the_broker_is_killed(make_lab: Callable[..., Lab]) -> None:
    """Killed while the session waits for a datagram: the next broker answers, and the session has its shell."""
    lab = make_lab(rtt_ms=20)
    user, gateway = lab.add_user("alice"), lab.start_gateway()
    with lab.wan.weather(udp_blocked=True):
        terminal = lab.terminal(lab.gateway_argv(gateway, user), columns=150)
        wait_until(lambda: gateway.processes("mosh-client"), "the session waits")
        os.kill(gateway.broker.pid, signal.SIGKILL)
        _leave(terminal, user)
    assert "this session goes over ssh" in terminal.text
    wait_until(lambda: not gateway.processes("mosh-client"), "no mosh-client is left")
