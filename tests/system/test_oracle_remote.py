"""The remote of the lab is what a gateway would meet: real users, a real sshd, a real mosh-server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.terminal import Terminal
    from lab.users import User


def test_direct_ssh_shows_the_prompt(lab: Lab, user: User, open_terminal: Callable[..., Terminal]) -> None:
    """OpenSSH's client, straight over the WAN, lands in the user's shell, and its exit status comes back."""
    terminal = open_terminal(lab.direct_ssh_argv(user))
    terminal.wait_for(user.prompt)
    terminal.run("whoami; stty size", f"{user.name}\n24 80")
    terminal.type("exit 3\r")

    assert terminal.wait_exit() == 3
    assert lab.remote.accepted(user) == 1


def test_direct_mosh_survives_29_percent_loss(lab: Lab, user: User, open_terminal: Callable[..., Terminal]) -> None:
    """The wrapper of mosh works where ssh gives up, and leaves no server behind."""
    terminal = open_terminal(lab.direct_mosh_argv(user))
    terminal.wait_for(user.prompt)
    with lab.wan.weather(loss=0.29):
        terminal.run("echo $((6 * 7))", "\n42", timeout_s=60)
        assert len(lab.remote.processes("mosh-server", user=user)) == 1
    terminal.type("exit\r")

    assert terminal.wait_exit() == 0
    assert lab.wan.traffic().up.packets("udp") > 0
    wait_until(lambda: not lab.remote.processes(user=user), "mosh-server is gone")


@pytest.mark.parametrize("name", ["www-data", ".x", "root"])
def test_odd_users_can_log_in(make_lab: Callable[..., Lab], name: str) -> None:
    """Names that look like dot files or the system's own are users like any other."""
    lab = make_lab()
    user = lab.add_user(name)

    result = lab.run(lab.direct_ssh_argv(user, "id -un"))

    assert (result.stdout, result.returncode) == (f"{name}\n".encode(), 0)


def test_users_of_the_host_do_not_exist(lab: Lab) -> None:
    """What the host has in its accounts is not on the remote."""
    assert "postgres" not in lab.remote.room.run(["getent", "passwd"]).stdout
    assert lab.remote.room.run(["hostname"]).stdout == "remote\n"


def test_wrong_key_is_refused(lab: Lab, user: User) -> None:
    """A key that is not in authorized_keys opens nothing."""
    lab.remote.authorize(user, [lab.gateway_key.public])

    result = lab.run(lab.direct_ssh_argv(user, "true"))

    assert result.returncode == 255
    assert b"Permission denied (publickey)" in result.stderr


def test_agent_of_the_lab_logs_in(lab: Lab, user: User) -> None:
    """A name without a key leaves it to the agent."""
    argv = lab.direct_ssh_argv(user.name, "id -un")
    with lab.agent(lab.gateway_key.private, user.key.private) as environment:
        assert lab.run(argv, environment=environment).returncode == 0

    assert lab.run(argv).returncode == 255


def test_host_keys_change(make_lab: Callable[..., Lab]) -> None:
    """After a rotation the old pins are refused, and the new ones are good."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    argv = lab.direct_ssh_argv(user, "true")

    lab.remote.rotate_host_keys()
    changed = lab.run(argv)
    lab.pin_host_keys()
    pinned = lab.run(argv)

    assert b"REMOTE HOST IDENTIFICATION HAS CHANGED" in changed.stderr
    assert (changed.returncode, pinned.returncode) == (255, 0)


def test_stopped_sshd_refuses(make_lab: Callable[..., Lab]) -> None:
    """Without its daemon the remote refuses connections, and takes them again when it is back."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    argv = lab.direct_ssh_argv(user, "true")
    terminal = lab.terminal(lab.direct_ssh_argv(user))
    terminal.wait_for(user.prompt)

    lab.remote.stop_sshd()
    refused = lab.run(argv)
    lab.remote.start_sshd()

    assert b"Connection refused" in refused.stderr
    assert terminal.wait_exit() == 255
    assert lab.run(argv).returncode == 0


def test_parts_of_the_remote_can_be_missing(make_lab: Callable[..., Lab]) -> None:
    """mosh-server and the UTF-8 locales go away and come back."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    argv = lab.direct_ssh_argv(user, "mosh-server new -l LANG=C.UTF-8 -- true")

    with lab.remote.without_mosh_server():
        no_server = lab.run(argv)
    with lab.remote.without_utf8_locale():
        no_locale = lab.run(argv)
    whole = lab.run(argv)

    assert no_server.returncode == 127
    assert b"UTF-8 native locale" in no_locale.stderr
    assert no_locale.returncode == 1
    assert b"MOSH CONNECT " in whole.stdout
