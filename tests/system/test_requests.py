"""What mosh cannot carry goes over ssh: the same bytes and statuses as when the remote is dialled directly."""

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
    from lab.users import User


@pytest.mark.parametrize(
    "command",
    [
        "true",
        "exit 7",
        "echo out; echo err >&2; exit 3",
        "kill -9 $$",
        "printf 'no newline'",
        "echo \"$(id -un)\" '$HOME' \\\\ ; echo 'a  b'",
        "echo first\necho second",
        "cat; echo done",
        "tty; echo $TERM",
        "echo " + "x" * 30_000,
    ],
)
def test_a_command_is_as_if_dialled_directly(lab: Lab, gateway: Gateway, user: User, command: str) -> None:
    """Output, errors and exit status of a command are those of direct ssh, byte for byte."""
    stdin = b"some\ninput"
    through = lab.run(lab.gateway_argv(gateway, user, command), stdin=stdin)
    direct = lab.run(lab.direct_ssh_argv(user, command), stdin=stdin)
    assert (through.stdout, through.stderr, through.returncode) == (direct.stdout, direct.stderr, direct.returncode)


def test_bytes_pass_unchanged_both_ways(lab: Lab, gateway: Gateway, user: User) -> None:
    """A megabyte of random bytes comes back as it went, with NUL and everything."""
    data = os.urandom(1_000_000)
    assert lab.run(lab.gateway_argv(gateway, user, "cat"), stdin=data, timeout_s=60).stdout == data


def test_a_shell_without_a_terminal_reads_its_script(lab: Lab, gateway: Gateway, user: User) -> None:
    """`ssh -T` runs what comes on standard input, and ends with its status."""
    done = lab.run(lab.gateway_argv(gateway, user, options=["-T"]), stdin=b"echo hello\nexit 5\n")
    assert (done.stdout, done.returncode) == (b"hello\n", 5)


def test_sftp_and_scp_copy_files(lab: Lab, gateway: Gateway, user: User) -> None:
    """Both of scp's protocols, and sftp, bring a file there and back."""
    here = lab.directory / f"copied-{user.name}"
    here.write_bytes(os.urandom(50_000))
    argv = lab.gateway_argv(gateway, user)
    options = [*argv[1 : argv.index("--") - 2], "-P", str(gateway.port)]
    for legacy in ([], ["-O"]):
        back = here.with_suffix(".back")
        back.unlink(missing_ok=True)
        for source, target in ((here, f"{user.name}@127.0.0.1:f"), (f"{user.name}@127.0.0.1:f", back)):
            done = lab.run(["scp", *legacy, *options, str(source), str(target)])
            assert (done.returncode, done.stderr) == (0, b"")
        assert back.read_bytes() == here.read_bytes()
    listed = lab.run(["sftp", *options, "-b", "-", f"{user.name}@127.0.0.1"], stdin=b"ls f\n")
    assert (listed.returncode, listed.stdout.split()) == (0, [b"sftp>", b"ls", b"f", b"f"])


def test_other_subsystems_are_refused(lab: Lab, gateway: Gateway, user: User) -> None:
    """What is no sftp starts nothing."""
    done = lab.run(lab.gateway_argv(gateway, user, "netconf", options=["-s"]))
    assert (done.stdout, done.returncode) == (b"", 255)


def test_sessions_share_a_connection_that_is_the_users_own(lab: Lab, gateway: Gateway) -> None:
    """The second command makes no connection to the remote, another user's does, and homes are private."""
    first, second = lab.add_user(), lab.add_user()
    for _ in range(3):
        assert lab.run(lab.gateway_argv(gateway, first, "true")).returncode == 0
    accepted = lab.remote.accepted(first)
    assert accepted == 2  # the broker's and ssh's
    assert lab.run(lab.gateway_argv(gateway, first, "true")).returncode == 0
    assert lab.remote.accepted(first) == accepted
    assert lab.run(lab.gateway_argv(gateway, second, "true")).returncode == 0
    assert lab.remote.accepted(second) == 2
    masters = [process for process in gateway.processes("ssh") if process.uid]
    homes = {home.stat().st_uid: home.stat().st_mode & 0o777 for home in (gateway.directory / "run/home").iterdir()}
    for uid in {process.uid for process in masters}:
        assert homes[uid] == 0o700


def test_no_shared_connection_survives_the_gateway(lab: Lab, start_gateway: Callable[..., Gateway]) -> None:
    """SIGTERM ends the ssh that waits for the next session, and the remote sees its connection close."""
    user, gateway = lab.add_user(), start_gateway()
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0
    assert gateway.processes("ssh")
    assert gateway.stop() == 0
    wait_until(lambda: not lab.remote.processes(user=user), "nothing of the user's runs on the remote")


def test_a_killed_master_breaks_no_login(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """A master that was killed leaves its socket behind, and the next command makes a connection of its own."""
    gateway = start_gateway()
    argv = lab.gateway_argv(gateway, user, "echo ok")
    assert lab.run(argv).stdout == b"ok\n"
    (master,) = gateway.processes("ssh")
    os.kill(master.pid, signal.SIGKILL)
    done = lab.run(argv)
    assert (done.stdout, done.returncode) == (b"ok\n", 0)


@pytest.mark.parametrize("options", [["-tt"], []])
def test_a_keys_command_is_all_that_runs(lab: Lab, gateway: Gateway, options: list[str]) -> None:
    """With a terminal and without, the key's command runs, hears of the client's, and its status comes back."""
    user = lab.add_user()
    lab.remote.authorize(
        user, [f'command="echo forced: $SSH_ORIGINAL_COMMAND; exit 9" {user.key.public}', lab.gateway_key.public]
    )
    done = lab.run(lab.gateway_argv(gateway, user, "rm -rf 'a b'; $(id)", options=options))
    assert done.stdout.rstrip(b"\r\n") == b"forced: rm -rf 'a b'; $(id)"
    assert done.returncode == 9


def test_a_terminals_command_may_go_over_ssh(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """GATEWAY_PTY_COMMANDS=ssh: the command has a terminal, and its exit status survives."""
    gateway = start_gateway({"GATEWAY_PTY_COMMANDS": "ssh"})
    done = lab.run(lab.gateway_argv(gateway, user, "tty; exit 5", options=["-tt"]))
    assert done.stdout.startswith(b"/dev/pts/")
    assert done.returncode == 5


@pytest.mark.parametrize(
    "options",
    [["-W", "127.0.0.1:22"], ["-N", "-R", "0:127.0.0.1:22", "-o", "ExitOnForwardFailure=yes"]],
    ids=["W", "R"],
)
def test_nothing_is_forwarded(lab: Lab, gateway: Gateway, user: User, options: list[str]) -> None:
    """What asks for a way through the gateway ends, having opened nothing."""
    done = lab.run(lab.gateway_argv(gateway, user, options=options))
    assert done.returncode == 255
    assert b"SSH-" not in done.stdout


def test_agent_and_x11_are_not_forwarded(lab: Lab, gateway: Gateway, user: User) -> None:
    """With the gateway's key, neither the gateway nor the remote gets at the user's agent or display."""
    with lab.agent(user.key.private) as environment:
        argv = lab.gateway_argv(gateway, user, 'echo "$SSH_AUTH_SOCK$DISPLAY"', options=["-A", "-X"])
        assert lab.run(argv, environment={**environment, "DISPLAY": ":9"}).stdout == b"\n"
