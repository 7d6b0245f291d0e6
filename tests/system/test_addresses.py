"""A remote with several addresses: whichever way a session takes, it uses the first one that connects."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from helpers.protocol.errors import RemoteLostError
from lab.gateway import REMOTE_NAME
from lab.wan import FAR_IPV4, FAR_IPV6, INTERFACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

# The far side's: the remote's sshd listens on all of them. RFC 5737, RFC 3849.
_OTHER_IPV4, _THIRD_IPV4, _OTHER_IPV6 = "198.51.100.2", "198.51.100.3", "2001:db8:1::2"
_ALL = (FAR_IPV4, _OTHER_IPV4, _THIRD_IPV4, FAR_IPV6, _OTHER_IPV6)


class Addresses:
    """The remote's addresses, and what becomes of a connection to each.

    Args:
        lab: A lab of the test's own.
    """

    def __init__(self, lab: Lab) -> None:
        """Give the remote all of them."""
        self.lab = lab
        for address in (_OTHER_IPV4, _THIRD_IPV4, _OTHER_IPV6):
            prefix = f"{address}/{128 if ':' in address else 32}"
            lab.remote.room.run(["ip", "address", "add", prefix, "dev", INTERFACE, *(["nodad"] * (":" in address))])
            lab.near.run(["ip", "route", "add", prefix, "dev", INTERFACE])
        lab.known_hosts.write_text(lab.remote.known_hosts(REMOTE_NAME, *_ALL))

    def gateway(self, *addresses: str, **settings: str | None) -> Gateway:
        """Start a gateway whose remote has these addresses, the family of the first one preferred (gai.conf(5))."""
        gateway = self.lab.start_gateway({"REMOTE_HOST": REMOTE_NAME, **settings}, wait=False)
        hosts = "".join(f"{address} {REMOTE_NAME}\n" for address in addresses)
        (gateway.directory / "hosts").write_text(f"{hosts}127.0.0.1 localhost\n::1 localhost\n")
        if ":" not in addresses[0]:
            preferences = gateway.directory / "gai.conf"
            preferences.write_text("precedence ::ffff:0:0/96 100\n")
            gateway.room.run(["mount", "--no-mtab", "--bind", str(preferences), "/etc/gai.conf"])
        gateway.wait_ready()
        return gateway

    def refuse(self, address: str) -> None:
        """Have the remote refuse TCP at an address."""
        self._rule(address, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")

    def drop(self, address: str) -> None:
        """Have an address fall silent, for what is established as well."""
        self._rule(address, "-j", "DROP")

    def _rule(self, address: str, *rule: str) -> None:
        program = "ip6tables" if ":" in address else "iptables"
        self.lab.remote.room.run([program, "-w", "-I", "INPUT", "-d", address, *rule])

    def logins(self, address: str, *, since: int = 0) -> int:
        """Count the connections that reached the remote's sshd at an address."""
        return len(self.lab.remote.log.matches(rf"Connection from \S+ port \d+ on {re.escape(address)} ", since=since))


@pytest.fixture
def remote(make_lab: Callable[..., Lab]) -> Addresses:
    """A remote with five addresses."""
    return Addresses(make_lab(rtt_ms=20))


def _shell(lab: Lab, gateway: Gateway, user: User, address: str, environment: Mapping[str, str] | None = None) -> None:
    """Log in, and see that mosh-client talks to an address."""
    who = user if environment is None else user.name
    options = () if environment is None else ("-A",)
    terminal = lab.terminal(lab.gateway_argv(gateway, who, options=options), environment=environment)
    terminal.wait_for(user.prompt)
    (client,) = gateway.processes("mosh-client")
    assert address in client.argv
    terminal.type("exit\r")
    terminal.wait_exit()


@contextmanager
def _way(remote: Addresses, way: str, *addresses: str) -> Iterator[tuple[Gateway, User, Mapping[str, str] | None]]:
    """Start a gateway with its own key, or without one and for a user's agent; yields what a session needs."""
    user = remote.lab.add_user()
    if way == "key":
        yield remote.gateway(*addresses), user, None
    else:
        with remote.lab.agent(user.key.private) as environment:
            yield remote.gateway(*addresses, GATEWAY_SSH_KEY_PATH=None), user, environment


def _sessions(remote: Addresses, gateway: Gateway, user: User, environment: Mapping[str, str] | None, to: str) -> None:
    """Have a shell, a command and a transfer, each of which must use one address."""
    lab, since = remote.lab, remote.lab.remote.log.mark()
    _shell(lab, gateway, user, to, environment)
    who = user if environment is None else user.name
    options = () if environment is None else ("-A",)
    done = lab.run(lab.gateway_argv(gateway, who, "echo hi; exit 3", options=options), environment=environment)
    assert (done.stdout, done.stderr, done.returncode) == (b"hi\n", b"", 3)
    done = lab.run(lab.gateway_argv(gateway, who, "sftp", options=[*options, "-s"]), environment=environment)
    assert (done.stderr, done.returncode) == (b"", 0)
    reached = {address for address in _ALL if remote.logins(address, since=since)}
    assert reached == {to}


_FAILURES = {
    "the first connects": ((FAR_IPV4, _OTHER_IPV4), (), (), FAR_IPV4),
    "the first refuses": ((FAR_IPV4, _OTHER_IPV4), (FAR_IPV4,), (), _OTHER_IPV4),
    "two refuse": ((FAR_IPV4, _OTHER_IPV4, _THIRD_IPV4), (FAR_IPV4, _OTHER_IPV4), (), _THIRD_IPV4),
    "the first is silent": ((FAR_IPV4, _OTHER_IPV4), (), (FAR_IPV4,), _OTHER_IPV4),
    "two are silent": ((FAR_IPV4, _OTHER_IPV4, _THIRD_IPV4), (), (FAR_IPV4, _OTHER_IPV4), _THIRD_IPV4),
    "IPv6 is silent": ((FAR_IPV6, _OTHER_IPV6, FAR_IPV4), (), (FAR_IPV6, _OTHER_IPV6), FAR_IPV4),
    "IPv4 refuses": ((FAR_IPV4, _OTHER_IPV4, FAR_IPV6), (FAR_IPV4, _OTHER_IPV4), (), FAR_IPV6),
}


@pytest.mark.parametrize("way", ["key", "agent"])
@pytest.mark.parametrize("case", _FAILURES)
def test_the_first_address_that_connects(remote: Addresses, case: str, way: str) -> None:
    """Shells (TCP and UDP), commands and transfers use it, by the gateway's key and by a user's agent."""
    addresses, refusing, silent, reached = _FAILURES[case]
    for address in refusing:
        remote.refuse(address)
    for address in silent:
        remote.drop(address)
    with _way(remote, way, *addresses) as (gateway, user, environment):
        _sessions(remote, gateway, user, environment, reached)


@pytest.mark.parametrize("first", ["shell", "command"])
@pytest.mark.parametrize("way", ["key", "agent"])
def test_an_address_that_dies(remote: Addresses, way: str, first: str) -> None:
    """What falls silent, with a warm connection to it and a shared one, is replaced for commands and shells alike."""
    with _way(remote, way, FAR_IPV4, _OTHER_IPV4) as (gateway, user, environment):
        _sessions(remote, gateway, user, environment, FAR_IPV4)
        remote.drop(FAR_IPV4)
        if first == "command":
            who, options = (user, ()) if environment is None else (user.name, ("-A",))
            argv = remote.lab.gateway_argv(gateway, who, "echo hi", options=options)
            assert remote.lab.run(argv, environment=environment).stdout == b"hi\n"
        _sessions(remote, gateway, user, environment, _OTHER_IPV4)


@pytest.mark.parametrize("way", ["key", "agent"])
def test_no_address_connects(remote: Addresses, way: str) -> None:
    """The sentence says which addresses were tried."""
    for address in (FAR_IPV4, _OTHER_IPV4, _THIRD_IPV4):
        remote.refuse(address)
    with _way(remote, way, FAR_IPV4, _OTHER_IPV4, _THIRD_IPV4) as (gateway, user, environment):
        who, options = (user, ()) if environment is None else (user.name, ("-A",))
        done = remote.lab.run(remote.lab.gateway_argv(gateway, who, "true", options=options), environment=environment)
        assert done.returncode == 255
        said = done.stderr.decode() + gateway.log_text()
        assert f"{FAR_IPV4}, {_OTHER_IPV4}, {_THIRD_IPV4}" in said
        assert "refuse" in said.lower()
        if environment is not None:
            argv = remote.lab.gateway_argv(gateway, who, options=options)
            terminal = remote.lab.terminal(argv, environment=environment, columns=200)
            assert terminal.wait_exit() == RemoteLostError.status
            sentence = f"gateway: the remote host cannot be reached: {FAR_IPV4}, {_OTHER_IPV4}, {_THIRD_IPV4}: "
            assert terminal.lines[0] == f"{sentence}Connection refused"


@pytest.mark.parametrize("way", ["key", "agent"])
def test_the_first_address_costs_nothing_more(remote: Addresses, way: str) -> None:
    """Where it connects, the others get no connection, and the remote none that is not used."""
    with _way(remote, way, FAR_IPV4, _OTHER_IPV4) as (gateway, user, environment):
        lab = remote.lab
        _sessions(remote, gateway, user, environment, FAR_IPV4)
        assert lab.remote.connections() == lab.remote.accepted(user)
