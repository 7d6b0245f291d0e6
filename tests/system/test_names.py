"""User names: which ones get in, which cost the remote not one packet, and that nobody is anybody else."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING

import paramiko
import pytest

from lab.bench import Lab
from lab.gateway import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import KeyPair, User

_LONGEST = "Longest.name_that-is_allowed.".ljust(64, "x")


@pytest.fixture(scope="module")
def quiet_gateway(_able: None) -> Iterator[tuple[Lab, Gateway]]:
    """A gateway through which nobody ever logs in: whatever crosses its WAN was caused by a refused name."""
    with Lab(rtt_ms=2) as lab:
        yield lab, lab.start_gateway()


def _offer(lab: Lab, gateway: Gateway, name: str, key: KeyPair) -> bool:
    """Log in with a client that sends any name at all: whether the gateway accepts the key."""
    connection = lab.near.connect(ADDRESS, gateway.port, timeout_s=20.0)
    with closing(paramiko.Transport(connection)) as transport:
        transport.start_client(timeout=20.0)
        try:
            transport.auth_publickey(name, paramiko.Ed25519Key.from_private_key_file(str(key.private)))
        except paramiko.AuthenticationException:
            return False
        return True


# Let in


@pytest.mark.parametrize("name", ["www-data", ".x", "_a.B-9", "a-", "0a", _LONGEST])
def test_odd_name_is_a_user_like_any_other(
    lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal], name: str
) -> None:
    """A name of letters, digits, dot, dash and underscore lands in the shell of the remote's user of that name."""
    user = lab.add_user(name)
    terminal = open_terminal(lab.gateway_argv(gateway, user), columns=160)

    terminal.wait_for(user.prompt)
    terminal.run("id -un; pwd", f"{name}\n{user.home}")
    terminal.type("exit\r")

    assert terminal.wait_exit() == 0
    assert lab.remote.accepted(user) == 1


@pytest.mark.parametrize("name", ["-v", "-F-n", "-oProxyCommand", "--", "--help"])
def test_name_is_never_an_option(lab: Lab, gateway: Gateway, user: User, name: str) -> None:
    """A name that looks like an option reaches the remote's sshd as that name, which Debian's files cannot hold."""
    since = lab.remote.log.mark()

    assert not _offer(lab, gateway, name, user.key)
    assert [match[1] for match in lab.remote.log.matches(r"^Invalid user (.*) from ", since=since)] == [name]


def test_option_as_a_name_starts_no_session_of_another(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """With local keys ``-v`` gets as far as the session, which says that the remote does not let it in."""
    gateway = start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": user.key.public})
    config = lab.directory / "ssh_config"
    config.write_text("User -v\n")  # as an option of ssh it would be refused
    argv = lab.gateway_argv(gateway, user, options=["-F", str(config)])
    argv.remove(f"-l{user.name}")
    terminal = open_terminal(argv, columns=200)

    assert terminal.wait_exit() == 77
    assert "the remote host does not let the gateway's key in as -v;" in terminal.text


def test_style_is_sshds_own(lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]) -> None:
    """``a:b`` logs in as ``a``: sshd itself splits a name at its first colon."""
    argv = lab.gateway_argv(gateway, f"{user.name}:www-data", key=user.key.private)
    terminal = open_terminal(argv)

    terminal.wait_for(user.prompt)


def test_role_is_nobody_else(lab: Lab, gateway: Gateway, user: User) -> None:
    """``a/b`` is refused, or is ``a`` where sshd reads a role in it (Debian's does), and never anybody else."""
    since = gateway.log.mark()
    entered = _offer(lab, gateway, f"{user.name}/www-data", user.key)

    verdict = gateway.log.wait_for(r": (Accepted|Failed) publickey for (.*?) from ", since=since)
    assert (verdict[1] == "Accepted") is entered
    assert not entered or verdict[2] == user.name


# Refused


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a$",
        "../x",
        "/a",
        "a\nb",
        "alice\n",
        "a\x00b",
        "a\x1b[2Jb",
        "ä",
        "a\u202eb",
        "\uff41lice",
        "a+b",
        "a@b",
        "a,b",
        "a'b",
        "$(id)",
        "a=b",
        "x" * 65,
        "x" * 4000,
        "4711",
        ".",
        "..",
        "-",
        "root",
        "sshd",
        "nobody",
        "gateway+auth",
        "gateway+root",
    ],
    ids=ascii,
)
def test_refused_name_costs_the_remote_no_packet(quiet_gateway: tuple[Lab, Gateway], name: str) -> None:
    """A name that is none, or the gateway's own, is refused like a wrong key, and the remote hears nothing of it."""
    lab, gateway = quiet_gateway

    assert not _offer(lab, gateway, name, lab.gateway_key)
    assert lab.wan.traffic().up.packets() == 0


def test_quiet_gateway_would_have_let_a_user_in(make_lab: Callable[..., Lab]) -> None:
    """The same client and key get in under a name that is one, and the remote does hear of it."""
    lab = make_lab(rtt_ms=2)
    lab.add_user("alice", authorized=[lab.gateway_key.public])
    gateway = lab.start_gateway()

    assert _offer(lab, gateway, "alice", lab.gateway_key)
    assert lab.wan.traffic().up.packets("tcp", 22) > 0


# root


def test_root_is_permitted_on_request(make_lab: Callable[..., Lab]) -> None:
    """With GATEWAY_PERMIT_ROOT=true, root@ is the remote's root, and neither its mosh-client nor its ssh is ours."""
    lab = make_lab(rtt_ms=2)
    user, root = lab.add_user("alice"), lab.add_user("root")
    gateway = lab.start_gateway({"GATEWAY_PERMIT_ROOT": "true"})

    terminals = [lab.terminal(lab.gateway_argv(gateway, who)) for who in (user, root)]
    for terminal, who in zip(terminals, (user, root), strict=True):
        terminal.wait_for(who.prompt)
    terminals[1].run("id -u", "\n0")

    uids = {process.uid for process in gateway.processes("mosh-client")}
    assert len(uids) == 2
    assert 0 not in uids
    assert gateway.broker.uid not in uids

    done = lab.run(lab.gateway_argv(gateway, root, "id -u; cat; exit 3"), stdin=b"in")
    assert (done.stdout, done.stderr, done.returncode) == (b"0\nin", b"", 3)
    # The connection that root's sessions share stays for a minute.
    (master,) = gateway.processes("ssh")
    assert master.uid in uids


def test_permitted_root_needs_a_key_as_well(make_lab: Callable[..., Lab]) -> None:
    """GATEWAY_PERMIT_ROOT lets nobody in whose key root's own file on the remote does not have."""
    lab = make_lab(rtt_ms=2)
    user, root = lab.add_user("alice"), lab.add_user("root")
    gateway = lab.start_gateway({"GATEWAY_PERMIT_ROOT": "true"})

    refused = lab.run(lab.gateway_argv(gateway, root, key=user.key.private))

    assert refused.returncode == 255
    assert b"Permission denied (publickey)" in refused.stderr


# Uids


def _new_uids(gateway: Gateway, before: set[int]) -> set[int]:
    """Return the uids of the sessions that have begun since there were these."""
    return {process.uid for process in gateway.processes("mosh-client")} - before


def test_users_have_uids_of_their_own(lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal]) -> None:
    """Two users' sessions run as two uids, neither of them the broker's, root's or a user's of the host."""
    owners: list[int] = []
    for user in (lab.add_user(), lab.add_user()):
        before = {process.uid for process in gateway.processes("mosh-client")}
        open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
        owners += _new_uids(gateway, before)

    assert len(set(owners)) == len(owners) == 2
    assert min(owners) > 65535
    assert gateway.broker.uid not in owners


def test_uids_outlive_the_broker(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """After the broker was killed a user has the same uid as before, and a new user another one."""
    gateway = start_gateway()
    other = lab.add_user()
    lab.terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    (uid,) = {process.uid for process in gateway.processes("mosh-client")}

    killed = gateway.broker.pid
    os.kill(killed, signal.SIGKILL)
    gateway.log.wait_for("broker_restarted")
    for who in (other, user):
        lab.terminal(lab.gateway_argv(gateway, who)).wait_for(who.prompt)

    uids = [process.uid for process in gateway.processes("mosh-client")]
    assert gateway.broker.pid != killed
    assert uids.count(uid) == 2
    assert len(set(uids)) == 2
