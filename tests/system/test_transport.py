"""What carries a terminal: GATEWAY_TRANSPORT, and what the remote has."""

from __future__ import annotations

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
