"""Agent pass-through: a gateway without a key of its own, and the remote decides by the user's forwarded agent."""

from __future__ import annotations

import base64
import re
import socket
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.broker.logins import MAX_FOR_ADDRESS
from lab.users import make_key
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


@pytest.fixture
def pass_through(start_gateway: Callable[..., Gateway]) -> Gateway:
    """A gateway without a key of its own."""
    return start_gateway({"GATEWAY_SSH_KEY_PATH": None})


def test_a_forwarded_agent_logs_in(
    lab: Lab, pass_through: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """`ssh -A` gets a shell over mosh, and commands over ssh; on the remote no agent is left."""
    with lab.agent(user.key.private) as environment:
        argv = lab.gateway_argv(pass_through, user.name, options=["-A"])
        terminal = open_terminal(argv, environment=environment)
        terminal.wait_for(user.prompt)
        terminal.run('echo "[$SSH_AUTH_SOCK]"', "[]")
        assert lab.remote.processes("mosh-server", user=user)
        done = lab.run(
            lab.gateway_argv(pass_through, user.name, "echo hi; exit 3", options=["-A"]), environment=environment
        )
        assert (done.stdout, done.returncode) == (b"hi\n", 3)


def test_only_the_key_the_user_came_with_is_tried_first(lab: Lab, pass_through: Gateway, user: User) -> None:
    """An agent full of other keys does not use up the remote's patience: one connection, and no failure."""
    others = [lab.add_user().key.private for _ in range(8)]
    with lab.agent(*others, user.key.private) as environment:
        argv = lab.gateway_argv(pass_through, user, "echo hi", options=["-A"])
        assert lab.run(argv, environment=environment).stdout == b"hi\n"


def test_without_an_agent_a_sentence_says_how(
    lab: Lab, pass_through: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """The user is told of ssh -A, with a terminal and without, and nothing has reached the remote."""
    since = lab.remote.log.mark()
    for options in ((), ("-A",)):  # the latter without an agent at the client
        done = lab.run(lab.gateway_argv(pass_through, user, "id", options=options))
        assert (done.stdout, done.returncode) == (b"", 77)
        assert re.fullmatch(rb"gateway: [^\n]*use 'ssh -A'[^\n]*\n", done.stderr)
    terminal = open_terminal(lab.gateway_argv(pass_through, user), columns=150)
    assert terminal.wait_exit() == 77
    assert "use 'ssh -A'" in terminal.text
    assert lab.remote.connections(since=since) == 0


def test_an_agent_without_the_key_is_told_apart(lab: Lab, pass_through: Gateway, user: User) -> None:
    """Who forwards an agent, and came with a key that it does not have, hears of the remote's refusal alone."""
    with lab.agent() as environment:
        argv = lab.gateway_argv(pass_through, user, "id", options=["-A"])
        done = lab.run(argv, environment=environment)
    refusal = f"{user.name}@{FAR_IPV4}: Permission denied (publickey).\r\n".encode()
    assert (done.stdout, done.stderr, done.returncode) == (b"", refusal, 255)


def test_a_strangers_agent_opens_nothing(
    lab: Lab, pass_through: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Any key has a session at the gateway, also while the user is there; the remote refuses it."""
    stranger = lab.add_user()
    with lab.agent(user.key.private) as environment:
        open_terminal(lab.gateway_argv(pass_through, user.name, options=["-A"]), environment=environment).wait_for(
            user.prompt
        )
        assert (
            lab.run(
                lab.gateway_argv(pass_through, user.name, "true", options=["-A"]), environment=environment
            ).returncode
            == 0
        )
        with lab.agent(stranger.key.private) as theirs:
            terminal = open_terminal(
                lab.gateway_argv(pass_through, user.name, options=["-A"]), environment=theirs, columns=150
            )
            assert terminal.wait_exit() == 77
            assert "accepts no key of your agent" in terminal.text
            done = lab.run(lab.gateway_argv(pass_through, user.name, "id", options=["-A"]), environment=theirs)
            assert (done.stdout, done.returncode) == (b"", 255)
    assert lab.remote.accepted(stranger) == 0


def test_a_stranger_does_not_reach_the_users_agent(
    lab: Lab, pass_through: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Any key has the user's uid here, and still no way to the user's agent: three lines of sshd_config each bar it."""
    stranger, here = lab.add_user(), lab.directory / "keys" / f"stolen-from-{user.name}"
    with lab.agent(user.key.private) as environment, lab.agent(stranger.key.private) as theirs:
        argv = lab.gateway_argv(pass_through, user.name, "echo ready; cat", options=["-A", "-T"])
        open_terminal(argv, environment=environment).wait_for("ready")
        words = [Path(f"/proc/{ssh.pid}/cmdline").read_text() for ssh in pass_through.processes("ssh")]
        agents = [word.partition("=")[2] for word in "".join(words).split("\0") if word.startswith("IdentityAgent=")]
        (agent,) = [path for path in agents if _knows(pass_through.room.argv, path, user)]
        open_terminal(
            lab.gateway_argv(pass_through, user.name, options=["-A", "-N", "-L", f"{here}:{agent}"]), environment=theirs
        )
        wait_until(here.exists, "the stranger's ssh listens")
        assert not _knows(lab.near.network_argv, str(here), user)


def _knows(argv: Callable[[list[str]], list[str]], agent: str, user: User) -> bool:
    """Tell whether an agent answers on a socket, and has the user's key."""
    done = subprocess.run(argv(["env", f"SSH_AUTH_SOCK={agent}", "ssh-add", "-L"]), capture_output=True, check=False)
    return user.key.public.split()[1].encode() in done.stdout


def test_local_keys_pre_screen(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """With a local list, whoever is not on it does not get as far as the remote."""
    other = lab.add_user()
    gateway = start_gateway({"GATEWAY_SSH_KEY_PATH": None, "GATEWAY_AUTHORIZED_KEYS_CONTENT": user.key.public})
    with lab.agent(user.key.private, other.key.private) as environment:
        assert (
            lab.run(lab.gateway_argv(gateway, user, "echo hi", options=["-A"]), environment=environment).stdout
            == b"hi\n"
        )
    refused = lab.run(lab.gateway_argv(gateway, other, "echo hi"))
    assert (refused.stdout, refused.returncode) == (b"", 255)
    assert b"Permission denied (publickey)" in refused.stderr


# Destination constraints (ssh-add -h): the user's agent knows which hosts a signature is for


@contextmanager
def _constrained_agent(lab: Lab, gateway: Gateway, user: User, *destinations: str) -> Iterator[dict[str, str]]:
    """Run an agent whose one key may be used on the way to these destinations alone.

    Args:
        lab: The lab.
        gateway: GATEWAY in a destination.
        user: Whose key it is; USER in a destination.
        destinations: ssh-add's ``-h``, with REMOTE for the remote and ELSEWHERE for a host with another host key.
    """
    known_hosts = lab.directory / "keys" / f"known-hosts-of-{user.name}"
    elsewhere = f"elsewhere {lab.gateway_key.public}\n"
    known_hosts.write_text(gateway.known_hosts.read_text() + lab.known_hosts.read_text() + elsewhere)
    names = {"GATEWAY": f"[127.0.0.1]:{gateway.port}", "USER": user.name, "REMOTE": FAR_IPV4, "ELSEWHERE": "elsewhere"}
    options = []
    for destination in destinations:
        for name, value in names.items():
            destination = destination.replace(name, value)  # noqa: PLW2901 - one name after the other
        options += ["-h", destination]
    with lab.agent() as environment:
        added = lab.run(["ssh-add", "-H", str(known_hosts), *options, str(user.key.private)], environment=environment)
        assert added.returncode == 0, added.stderr
        yield environment


@pytest.mark.parametrize("destinations", [("GATEWAY", "GATEWAY>REMOTE"), ("GATEWAY", "GATEWAY>USER@REMOTE")])
def test_a_key_for_this_way_alone_logs_in(
    lab: Lab,
    pass_through: Gateway,
    user: User,
    open_terminal: Callable[..., Terminal],
    destinations: tuple[str, ...],
) -> None:
    """A key bound to the gateway, and from there to the remote, opens commands and shells."""
    with _constrained_agent(lab, pass_through, user, *destinations) as environment:
        command = lab.gateway_argv(pass_through, user.name, "echo hi", options=["-A"])
        assert lab.run(command, environment=environment).stdout == b"hi\n"
        shell = lab.gateway_argv(pass_through, user.name, options=["-A"])
        open_terminal(shell, environment=environment).wait_for(user.prompt)
    assert lab.remote.processes("mosh-server", user=user)


@pytest.mark.parametrize(
    "destinations",
    [("GATEWAY",), ("GATEWAY", "GATEWAY>other@REMOTE"), ("GATEWAY", "GATEWAY>ELSEWHERE"), ("GATEWAY", "REMOTE")],
)
def test_a_key_for_another_way_does_not(
    lab: Lab,
    pass_through: Gateway,
    user: User,
    open_terminal: Callable[..., Terminal],
    destinations: tuple[str, ...],
) -> None:
    """The agent refuses what its key is not for, and the user is told that the remote had no key of it."""
    with _constrained_agent(lab, pass_through, user, *destinations) as environment:
        command = lab.run(lab.gateway_argv(pass_through, user.name, "id", options=["-A"]), environment=environment)
        assert (command.stdout, command.returncode) == (b"", 255)
        assert b"Permission denied (publickey)" in command.stderr
        shell = lab.gateway_argv(pass_through, user.name, options=["-A"])
        terminal = open_terminal(shell, environment=environment, columns=150)
        assert terminal.wait_exit() == 77
        assert "accepts no key of your agent" in terminal.text
    assert lab.remote.accepted(user) == 0


def test_a_key_that_is_not_for_the_gateway_does_not_get_that_far(lab: Lab, pass_through: Gateway, user: User) -> None:
    """Bound to the remote alone, it does not even log in here."""
    with _constrained_agent(lab, pass_through, user, "REMOTE") as environment:
        done = lab.run(lab.gateway_argv(pass_through, user.name, "id", options=["-A"]), environment=environment)
    assert (done.stdout, done.returncode) == (b"", 255)


# root


def test_root_by_its_agent(make_lab: Callable[..., Lab]) -> None:
    """With GATEWAY_PERMIT_ROOT root's agent serves root's invented uid here, and nothing of ours runs as root."""
    lab = make_lab(rtt_ms=2)
    root = lab.add_user("root")
    gateway = lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None, "GATEWAY_PERMIT_ROOT": "true"})
    with lab.agent(root.key.private) as environment:
        command = lab.gateway_argv(gateway, "root", "id -u; exit 3", options=["-A"])
        done = lab.run(command, environment=environment)
        assert (done.stdout, done.returncode) == (b"0\n", 3), done.stderr
        terminal = lab.terminal(lab.gateway_argv(gateway, "root", options=["-A"]), environment=environment)
        terminal.wait_for(root.prompt)
        (client,) = gateway.processes("mosh-client")
        assert client.uid != 0


# How many keys the remote has patience for


@pytest.mark.parametrize("screened", [True, False], ids=["by-a-local-list", "by-the-clients-i"])
def test_few_tries_at_the_remote_are_enough(make_lab: Callable[..., Lab], *, screened: bool) -> None:
    """A remote that hangs up after two wrong keys lets a user in whose agent holds ten, the right one last."""
    lab = make_lab(rtt_ms=2)
    lab.remote.set_option("MaxAuthTries 2")
    user, others = lab.add_user(), [lab.add_user().key.private for _ in range(9)]
    local = {"GATEWAY_AUTHORIZED_KEYS_CONTENT": user.key.public} if screened else {}
    gateway = lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None, **local})
    who = user.name if screened else user
    with lab.agent(*others, user.key.private) as environment:
        # Straight to the remote, the agent's first keys use its patience up.
        direct = lab.run(lab.direct_ssh_argv(user.name, "echo hi"), environment=environment)
        assert (direct.returncode, b"Too many authentication failures" in direct.stderr) == (255, True)
        argv = lab.gateway_argv(gateway, who, "echo hi", options=["-A"])
        assert lab.run(argv, environment=environment).stdout == b"hi\n"
        shell = lab.terminal(lab.gateway_argv(gateway, who, options=["-A"]), environment=environment)
        shell.wait_for(user.prompt)


# Certificates


def test_a_certificate_in_the_agent(lab: Lab, pass_through: Gateway) -> None:
    """Where the remote knows the user's authority alone, the agent's certificate is what it is shown."""
    authority = make_key(lab.directory / "keys" / "authority-of-agents")
    user = lab.add_user(authorized=[f"cert-authority {authority.public}"])
    sign = ["ssh-keygen", "-q", "-s", str(authority.private), "-I", "test", "-n", user.name]
    subprocess.run([*sign, f"{user.key.private}.pub"], check=True, capture_output=True)
    with lab.agent(user.key.private) as environment:
        argv = lab.gateway_argv(pass_through, user.name, "echo hi", options=["-A"])
        assert lab.run(argv, environment=environment).stdout == b"hi\n"


# Strangers


class SilentAgent:
    """An agent that has a key, and never signs.

    Args:
        path: Its socket.
        key: The public key, as a line of authorized_keys.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Serve, until ``close``."""
        blob = base64.b64decode(key.split()[1])
        self._identities = struct.pack(">BI", 12, 1) + struct.pack(">I", len(blob)) + blob + struct.pack(">I", 0)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(100)
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile("rb") as stream:
            while header := stream.read(4):
                request = stream.read(int.from_bytes(header))
                # RFC draft-ietf-sshm-ssh-agent: 11 asks for the keys, 13 for a signature; everything else fails.
                if request[:1] == b"\x0b":
                    connection.sendall(struct.pack(">I", len(self._identities)) + self._identities)
                elif request[:1] != b"\x0d":
                    connection.sendall(b"\0\0\0\1\5")

    def close(self) -> None:
        """Hang up on everybody."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_strangers_do_not_flood_the_remote(make_lab: Callable[..., Lab]) -> None:
    """Twelve sessions at once, whose agent never signs, are five connections there; a user from elsewhere gets in."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user()
    # Not the key that opens the gateway: its agent would be asked for that, too.
    stranger = lab.add_user(authorized=[user.key.public])
    gateway = lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None})
    path = lab.directory / "silent-agent"
    agent = SilentAgent(path, user.key.public)
    argv, environment = lab.gateway_argv(gateway, stranger, "id", options=["-A"]), {"SSH_AUTH_SOCK": str(path)}
    with ThreadPoolExecutor(12) as pool:
        sessions = [pool.submit(lab.run, argv, environment=environment, timeout_s=90) for _ in range(12)]
        try:
            wait_until(lambda: len(gateway.log.matches("session_started ")) == 12, "all have a session")
            wait_until(lambda: lab.remote.connections() == MAX_FOR_ADDRESS, "some have a connection")
            with lab.agent(user.key.private) as theirs:
                login = lab.gateway_argv(gateway, user.name, "echo in", options=["-A", "-b", "127.0.0.3"])
                assert lab.run(login, environment=theirs).stdout == b"in\n"
            assert lab.remote.connections() == MAX_FOR_ADDRESS + 1
        finally:
            agent.close()
        assert {session.result().returncode for session in sessions} == {255}
    assert lab.remote.accepted(stranger) == 0
