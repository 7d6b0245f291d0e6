"""Agent pass-through: a gateway without a key of its own, and the remote decides by the user's forwarded agent."""

from __future__ import annotations

import json
import re
import resource
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gatewayctl.supervisor.unproved_connections import MAX_FOR_SOURCE
from helpers.broker.sessions.login_limiter import MAX_STRANGERS
from lab.agents import SilentAgent
from lab.gateway import GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
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


def _open_sessions(gateway: Gateway, user: User) -> int:
    """Count a user's sessions, also those that the remote has not accepted."""
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    argv = gateway.room.argv([str(GATEWAYCTL), "sessions", "--json"])
    done = subprocess.run(argv, capture_output=True, check=True, timeout=60, env=environment)
    return sum(session["user"] == user.name for session in json.loads(done.stdout))


@contextmanager
def _idle_logins(lab: Lab, gateway: Gateway, number: int, addresses: int) -> Iterator[User]:
    """Begin logins as a stranger from a number of addresses, whose agent never signs; they end with the block.

    Yields:
        The stranger.
    """
    # Not the key that opens the gateway: its agent would be asked for that, too.
    signer = lab.add_user()
    stranger = lab.add_user(authorized=[signer.key.public])
    path = lab.directory / "silent-agent"
    agent = SilentAgent(path, signer.key.public)
    with ThreadPoolExecutor(number) as pool:
        sessions = []
        for each in range(number):
            options = ["-A", "-b", f"127.0.1.{each % addresses + 1}"]
            argv = lab.gateway_argv(gateway, stranger, "id", options=options)
            environment = {"SSH_AUTH_SOCK": str(path)}
            sessions.append(pool.submit(lab.run, argv, environment=environment, timeout_s=90))
        try:
            wait_until(lambda: _open_sessions(gateway, stranger) == number, "all have a session")
            yield stranger
        finally:
            agent.close()
        assert {session.result().returncode for session in sessions} <= {75, 255}
        assert lab.remote.accepted(stranger) == 0


@pytest.fixture
def strict(make_lab: Callable[..., Lab]) -> tuple[Lab, Gateway]:
    """A lab of its own, whose gateway has no key."""
    lab = make_lab(rtt_ms=2)
    return lab, lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None})


@pytest.mark.parametrize(("addresses", "connections"), [(1, 3), (2, 5)])
def test_strangers_leave_turns_for_newcomers(strict: tuple[Lab, Gateway], addresses: int, connections: int) -> None:
    """Ten logins that never end, from one address or two, do not keep out a user who was never here before."""
    lab, gateway = strict
    user = lab.add_user()
    with _idle_logins(lab, gateway, 10, addresses):
        wait_until(lambda: lab.remote.connections() == connections, "some have a connection")
        with lab.agent(user.key.private) as theirs:
            login = lab.gateway_argv(gateway, user.name, "echo in", options=["-A", "-b", "127.0.0.3"])
            assert lab.run(login, environment=theirs).stdout == b"in\n"
        assert lab.remote.connections() == connections + 1


def test_strangers_who_hold_all_their_turns_keep_no_user_out(strict: tuple[Lab, Gateway]) -> None:
    """Who has logged in before, with this key or from this address, does not wait for strangers from everywhere."""
    lab, gateway = strict
    by_key, by_address, own = lab.add_user(), lab.add_user(), "127.0.0.9"
    second = make_key(lab.directory / "keys" / "second-of-a-user")
    with lab.agent(by_key.key.private, by_address.key.private) as theirs:

        def log_in(user: User, key: Path, address: str) -> bytes:
            options = ["-A", "-b", address]
            return lab.run(
                lab.gateway_argv(gateway, user.name, "echo in", options=options, key=key), environment=theirs
            ).stdout

        assert log_in(by_key, by_key.key.private, "127.0.0.8") == b"in\n"
        assert log_in(by_address, by_address.key.private, own) == b"in\n"
        before = lab.remote.connections()
        with _idle_logins(lab, gateway, 3 * MAX_STRANGERS, MAX_STRANGERS):
            wait_until(lambda: lab.remote.connections() == before + MAX_STRANGERS, "they hold their turns")
            assert log_in(by_key, by_key.key.private, "127.0.1.1") == b"in\n"
            assert log_in(by_address, second.private, own) == b"in\n"


def test_a_name_is_a_strangers_until_the_remote_lets_it_in(strict: tuple[Lab, Gateway]) -> None:
    """A session that the remote refuses, or that has no agent, leaves no trace of a user who had one."""
    lab, gateway = strict
    user, stranger = lab.add_user(), lab.add_user()
    table = gateway.directory / "run/state/users.sqlite3"

    def names() -> set[str]:
        with closing(sqlite3.connect(f"file:{table}?mode=ro", uri=True)) as database:
            return {name for (name,) in database.execute("SELECT name FROM users WHERE sessions > 0")}

    with lab.agent(user.key.private) as environment:
        refused = lab.gateway_argv(gateway, stranger, "id", options=["-A"])
        assert lab.run(refused, environment=environment).returncode == 255
        assert lab.run(lab.gateway_argv(gateway, stranger, "id")).returncode == 77
        assert names() == set()
        assert lab.run(lab.gateway_argv(gateway, user, "true", options=["-A"]), environment=environment).returncode == 0
        wait_until(lambda: names() == {user.name}, "the user's name is one that had a session")


@contextmanager
def _idle_connections(lab: Lab, gateway: Gateway, key: Path, address: str, number: int) -> Iterator[list[bool]]:
    """Hold connections without a session, as `ssh -N` does, each as another name; they end with the block.

    Yields:
        For each, whether it was let in.
    """
    options = ["-A", "-N", "-v", "-b", address]
    with ExitStack() as stack:

        def connect(each: int) -> bool:
            argv = lab.gateway_argv(gateway, f"nobody{each}", options=options, key=key)
            client = stack.enter_context(
                subprocess.Popen(
                    lab.near.network_argv(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(client.kill)
            assert client.stderr is not None
            return any(b"Entering interactive session" in line for line in client.stderr)

        at_once = number - 10  # the last ones one after the other, since those under way count
        pool = stack.enter_context(ThreadPoolExecutor(5))  # a client ends with the thread that started it
        let_in = list(pool.map(connect, range(at_once)))
        yield let_in + [connect(each) for each in range(at_once, number)]


def test_one_address_has_so_many_connections_that_the_remote_has_not_let_in(strict: tuple[Lab, Gateway]) -> None:
    """Of 55 idle connections of one address fifty stay; from elsewhere, and by a key that was here, others get in."""
    lab, gateway = strict
    user, newcomer, stranger = lab.add_user(), lab.add_user(), make_key(lab.directory / "keys" / "stranger")
    with lab.agent(user.key.private, newcomer.key.private) as agent:

        def says(who: User, address: str) -> bytes:
            argv = lab.gateway_argv(gateway, who, "echo in", options=["-A", "-b", address])
            return lab.run(argv, environment=agent).stdout

        assert says(user, "127.0.0.3") == b"in\n"
        with _idle_connections(lab, gateway, stranger.private, "127.0.1.1", MAX_FOR_SOURCE + 5) as let_in:
            assert (sum(let_in), len(let_in)) == (MAX_FOR_SOURCE, MAX_FOR_SOURCE + 5)
            refused = rf'key_refused .* reason="127\.0\.1\.1 has more than {MAX_FOR_SOURCE} connections'
            assert len(gateway.log.matches(refused)) == 5
            assert says(newcomer, "127.0.1.1") == b""
            assert says(user, "127.0.1.1") == b"in\n"
            assert says(newcomer, "127.0.0.4") == b"in\n"
        wait_until(lambda: says(newcomer, "127.0.1.1") == b"in\n", "the address has room again")


def test_a_process_that_cannot_be_started_is_one_sentence(strict: tuple[Lab, Gateway]) -> None:
    """Wherever a session meets the limit of processes, it ends with a sentence and a status, and never a traceback."""
    lab, gateway = strict
    user = lab.add_user()
    most = resource.prlimit(gateway.listener.pid, resource.RLIMIT_NPROC)[1]
    statuses = []
    with lab.agent(user.key.private) as environment:
        for processes in (1, 2, 3, 64):
            resource.prlimit(gateway.listener.pid, resource.RLIMIT_NPROC, (processes, most))
            argv = lab.gateway_argv(gateway, user, "echo in", options=["-A"])
            done = lab.run(argv, environment=environment)
            if done.returncode == 71:
                assert re.fullmatch(rb"gateway: the gateway lacks processes, [^\n]* try again in [^\n]*\n", done.stderr)
            statuses.append(done.returncode)
    assert statuses == [255, 71, 71, 0]


# What a login leaves behind


def _files(gateway: Gateway) -> list[str]:
    """List what is in the homes."""
    return sorted(path.name for path in (gateway.directory / "run/home").glob("*/[!.]*"))


def test_a_login_leaves_no_file(strict: tuple[Lab, Gateway]) -> None:
    """Neither one that the remote let in, while its shell goes on, nor one that is refused or cannot be made."""
    lab, gateway = strict
    user, stranger = lab.add_user(), lab.add_user()
    with lab.agent(user.key.private) as environment:
        shell = lab.terminal(lab.gateway_argv(gateway, user, options=["-A"]), environment=environment)
        shell.wait_for(user.prompt)
        wait_until(lambda: _files(gateway) == [], "the login's files are gone")
        for who, command in ((user, "exit 3"), (stranger, "id")):
            lab.run(lab.gateway_argv(gateway, who, command, options=["-A"]), environment=environment)
            wait_until(lambda: _files(gateway) == [], "the login's files are gone")
    assert lab.run(lab.gateway_argv(gateway, user, "id")).returncode == 77
    assert _files(gateway) == []


def test_logins_that_wait_for_a_turn_write_nothing(strict: tuple[Lab, Gateway]) -> None:
    """Of twelve logins from one address those that have a turn have two files each, and none is left."""
    lab, gateway = strict
    with _idle_logins(lab, gateway, 12, 1):
        wait_until(lambda: lab.remote.connections() == 3, "three have a turn")
        assert len(_files(gateway)) == 2 * 3
    wait_until(lambda: _files(gateway) == [], "nothing is left")


@pytest.mark.parametrize(("transport", "status"), [("mosh", 66), ("auto", 5)])
def test_each_try_at_a_locale_shows_the_remote_the_key_the_user_came_with(
    make_lab: Callable[..., Lab], transport: str, status: int
) -> None:
    """Where the remote has no UTF-8 locale of its own, each locale is a login, and each offers the right key first."""
    lab = make_lab(rtt_ms=2)
    gateway = lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None, "GATEWAY_TRANSPORT": transport})
    lab.remote.set_option("MaxAuthTries 2")
    user, others = lab.add_user(), [lab.add_user().key.private for _ in range(6)]
    with lab.agent(*others, user.key.private) as environment, lab.remote.without_utf8_locale():
        terminal = lab.terminal(lab.gateway_argv(gateway, user, options=["-A"]), environment=environment, columns=150)
        if transport == "auto":
            terminal.wait_for(user.prompt)
            terminal.type("exit 5\r")
        assert terminal.wait_exit() == status
        assert "no UTF-8 locale" in terminal.text
        assert ("this session goes over ssh" in terminal.text) == (transport == "auto")
    assert lab.remote.accepted(user) >= 2
    wait_until(lambda: _files(gateway) == [], "the logins' files are gone")
