"""Strangers: what they can make the gateway do to the remote and to other users, and what they can learn from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from bench.load import pss_mb
from helpers.broker.remote.pool import MAX_CONNECTING, MAX_STRANGERS
from lab.gateway import ADDRESS
from lab.waiting import wait_until
from lab.wan import NEAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway


def _refuse(lab: Lab, gateway: Gateway, names: list[str], key: Path) -> list[bytes]:
    """Offer a key as each of these users, all at once; every one is refused. Returns what each was told."""

    def offer(name: str) -> bytes:
        done = lab.run(lab.gateway_argv(gateway, name, "id", key=key), timeout_s=60)
        assert (done.stdout, done.returncode) == (b"", 255)
        return done.stderr

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(offer, names))


def _established(lab: Lab) -> int:
    """Count the TCP connections to the remote's sshd, those that nobody has accepted yet included."""
    command = ["ss", "--no-header", "--tcp", "--numeric", "state", "established", "sport", "=", ":22"]
    found = subprocess.run(lab.remote.room.argv(command), capture_output=True, text=True, check=True)
    return len(found.stdout.splitlines())


def _lookups(gateway: Gateway) -> int:
    argv = [sys.executable, "-m", "gatewayctl", "status", "--json"]
    argv += ["--gateway-runtime-dir", gateway.settings["GATEWAY_RUNTIME_DIR"]]
    return int(json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=30).stdout)["lookups"])


def test_a_name_costs_the_remote_one_connection(make_lab: Callable[..., Lab]) -> None:
    """However often and however fast: ten names, existing or not, offered three times, are ten connections."""
    lab = make_lab(rtt_ms=2)
    gateway, key = lab.start_gateway(), lab.add_user().key.private
    names = [f"nobody{number}" for number in range(5)]
    names += [lab.add_user(authorized=[lab.gateway_key.public]).name for _ in range(3)]
    names += [lab.add_user(authorized=[]).name for _ in range(2)]
    _refuse(lab, gateway, names * 2, key)
    _refuse(lab, gateway, names, key)
    assert lab.remote.connections() == len(names)


@pytest.mark.parametrize("mode", ["local-keys", "any-key"])
def test_a_name_costs_as_little_where_the_remote_is_not_asked_for_keys(make_lab: Callable[..., Lab], mode: str) -> None:
    """Whoever knows a key of the local list, or needs none: the remote refuses an invented name once, not each time."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user()
    local = {"GATEWAY_AUTHORIZED_KEYS_CONTENT": user.key.public}
    gateway = lab.start_gateway(local if mode == "local-keys" else {"GATEWAY_ACCEPT_ANY_KEY": "true"})
    known = lab.directory / "keys" / "known"
    known.touch(0o600)  # of its private half a stranger has nothing
    known.with_suffix(".pub").write_text(user.key.public)
    for _ in range(4):
        _refuse(lab, gateway, ["nobody1", "nobody2"], known)
    assert lab.remote.connections() == 2
    if mode == "any-key":
        for _ in range(3):
            done = lab.run(lab.gateway_argv(gateway, "nobody1", "id", key=user.key.private))
            assert (done.stdout, done.returncode) == (b"", 77)
        assert lab.remote.connections() == 2
    assert lab.run(lab.gateway_argv(gateway, user, "echo in")).stdout == b"in\n"


def test_refusals_read_alike(make_lab: Callable[..., Lab]) -> None:
    """A wrong key, a user who does not let the gateway in, and nobody at all are told the same, word for word."""
    lab = make_lab(rtt_ms=2)
    gateway, key = lab.start_gateway(), lab.add_user().key.private
    names = ["nobody1", lab.add_user().name, lab.add_user(authorized=[]).name, "root", "a.valid-name"]
    said = {
        text.replace(name.encode(), b"NAME")
        for name, text in zip(names, _refuse(lab, gateway, names, key), strict=True)
    }
    assert said == {b"NAME@127.0.0.1: Permission denied (publickey).\r\n"}


def test_only_so_many_connections_are_made_at_once(make_lab: Callable[..., Lab]) -> None:
    """With a remote that accepts and says nothing, thirty names have seven connections between them."""
    lab = make_lab(rtt_ms=2)
    gateway, key = lab.start_gateway(), lab.add_user().key.private
    with ThreadPoolExecutor(1) as pool:
        with lab.remote.hung():
            offers = pool.submit(_refuse, lab, gateway, [f"nobody{number}" for number in range(30)], key)
            wait_until(lambda: _lookups(gateway) >= 30, "sshd has asked for all names")
            wait_until(lambda: _established(lab) >= MAX_STRANGERS, "the gateway connects")
            assert _lookups(gateway) >= 30
            assert _established(lab) == MAX_STRANGERS
        offers.result()
    assert lab.remote.connections() == 30


def test_strangers_leave_room_for_users(make_lab: Callable[..., Lab]) -> None:
    """While invented names wait for a remote that is slow, a user without a warm connection is not behind them."""
    lab = make_lab(rtt_ms=2)
    gateway, user = lab.start_gateway(), lab.add_user()
    argv = lab.gateway_argv(gateway, user, "echo in")
    assert lab.run(argv).stdout == b"in\n"
    gateway.signal(signal.SIGHUP)
    gateway.log.wait_for(" reloaded")
    with ThreadPoolExecutor(2) as pool:
        with lab.remote.hung():
            offers = pool.submit(_refuse, lab, gateway, [f"nobody{number}" for number in range(20)], user.key.private)
            wait_until(lambda: _lookups(gateway) >= 20, "sshd has asked for all names")
            # Beside them there is the one that the user's ssh left for the next.
            wait_until(lambda: _established(lab) == 1 + MAX_STRANGERS, "the gateway connects for some of them")
            login = pool.submit(lab.run, argv)
            wait_until(lambda: _established(lab) == 1 + MAX_STRANGERS + 1, "the gateway connects for the user")
        assert login.result().stdout == b"in\n"
        offers.result()


def test_a_stranger_costs_little_while_the_remote_is_asked(make_lab: Callable[..., Lab]) -> None:
    """Each who waits takes three processes, none of them Python, and 4 MB; a user gets in meanwhile."""
    lab = make_lab(rtt_ms=2)
    gateway, user, number = lab.start_gateway(), lab.add_user(), 20
    argv = lab.gateway_argv(gateway, user, "echo in")
    assert lab.run(argv).stdout == b"in\n"
    quiet = gateway.processes()
    with ThreadPoolExecutor(1) as pool:
        with lab.remote.hung():
            names = [f"nobody{count}" for count in range(number)]
            offers = pool.submit(_refuse, lab, gateway, names, user.key.private)
            wait_until(lambda: len(gateway.processes("cat")) == number, "all wait for the remote")
            crowded = gateway.processes()
            taken_mb = sum(pss_mb(its.pid) for its in crowded) - sum(pss_mb(its.pid) for its in quiet)
            assert len(crowded) - len(quiet) <= 3 * number
            assert taken_mb < 4 * number
            assert lab.run(argv).stdout == b"in\n"
        offers.result()


def test_a_remote_that_is_down_is_left_alone(make_lab: Callable[..., Lab]) -> None:
    """Forty names, while the remote refuses connections, cost it about as many packets as ten; later ones none."""
    lab = make_lab(rtt_ms=2)
    gateway, key = lab.start_gateway(), lab.add_user().key.private
    lab.remote.stop_sshd()
    before = lab.wan.traffic().up.packets("tcp", 22)
    _refuse(lab, gateway, [f"nobody{number}" for number in range(40)], key)
    # One SYN for each connection that was under way before the breaker opened, and for each try after a pause.
    assert lab.wan.traffic().up.packets("tcp", 22) - before <= 2 * MAX_CONNECTING


@pytest.mark.parametrize("option", ["MaxAuthTries 1", "UsePAM yes"])
def test_a_remote_that_hangs_up_on_some_is_not_down(make_lab: Callable[..., Lab], option: str) -> None:
    """Where sshd ends the connection of whom it refuses, names that are tried in vain keep out nobody else."""
    lab = make_lab(rtt_ms=2)
    lab.remote.set_option(option)
    gateway, user = lab.start_gateway(), lab.add_user()
    names = [f"nobody{number}" for number in range(4)]
    if option == "UsePAM yes":
        names = [lab.add_user().name for _ in names]
        lab.remote.expire(*names)
    _refuse(lab, gateway, names, user.key.private)
    _refuse(lab, gateway, [user.name], lab.add_user().key.private)
    gateway.log.wait_for(rf'key_refused .*user={user.name} .*reason="no line for this key"')

    # sshd's last words may be lost: Nagle holds them back, and they go with a socket that is closed with data unread.
    reasons = {
        "UsePAM yes": "remote_lost: .* as NAME; is the",
        "MaxAuthTries 1": "(permission_denied|remote_lost): .* NAME",
    }
    for name in names:
        gateway.log.wait_for(rf'key_refused .*user={name} .*reason="{reasons[option].replace("NAME", name)}')
    assert lab.remote.connections() == len(names) + 1


def test_a_remote_that_penalizes_is_told_to_spare_the_gateway(make_lab: Callable[..., Lab]) -> None:
    """A new sshd bans the gateway for strangers' names, and the log says what to set; once it is set, users get in."""
    lab = make_lab(rtt_ms=2)
    if not lab.remote.understands("PerSourcePenalties=yes"):
        pytest.skip("the remote's sshd penalizes nobody before OpenSSH 9.8")
    # Which failures count, and how much, differs by version.
    lab.remote.set_option("PerSourcePenalties noauth:10s authfail:10s")
    key = lab.add_user().key.private
    for exempt in (False, True):
        if exempt:
            lab.remote.set_option(f"PerSourcePenaltyExemptList {NEAR_IPV4}")
        gateway, user = lab.start_gateway(), lab.add_user()
        for number in range(6):
            _refuse(lab, gateway, [f"nobody{number}"], key)
        assert lab.run(lab.gateway_argv(gateway, user, "echo in")).stdout == (b"in\n" if exempt else b"")
        assert ("PerSourcePenaltyExemptList" in gateway.log_text()) == (not exempt)


# The door


@pytest.fixture
def crowd() -> Iterator[ExitStack]:
    """Holds connections open for the length of a test."""
    with ExitStack() as stack:
        yield stack


def _crowd_in(lab: Lab, gateway: Gateway, stack: ExitStack, number: int) -> list[bytes]:
    """Open connections that never log in, from one address; returns the first bytes that each was sent."""
    heard = []
    for _ in range(number):
        connection = stack.enter_context(lab.near.connect(ADDRESS, gateway.port, timeout_s=20.0))
        try:
            heard.append(connection.recv(4))
        except ConnectionError:
            heard.append(b"")
    return heard


def test_a_crowd_from_one_address_leaves_room_for_others(make_lab: Callable[..., Lab], crowd: ExitStack) -> None:
    """PerSourceMaxStartups turns the fifty-first away; a user from another address gets in."""
    lab = make_lab(rtt_ms=2)
    gateway, user = lab.start_gateway(), lab.add_user()
    heard = _crowd_in(lab, gateway, crowd, 55)
    assert heard[:50] == [b"SSH-"] * 50
    assert b"SSH-" not in heard[50:]
    argv = lab.gateway_argv(gateway, user, "echo in", options=["-b", "127.0.0.3"])
    assert lab.run(argv).stdout == b"in\n"


def test_a_crowd_behind_a_trusted_proxy_is_not_one_source(make_lab: Callable[..., Lab], crowd: ExitStack) -> None:
    """With GATEWAY_TRUSTED_PROXIES all may come from one address."""
    lab = make_lab(rtt_ms=2)
    gateway, user = lab.start_gateway({"GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8"}), lab.add_user()
    assert _crowd_in(lab, gateway, crowd, 55) == [b"SSH-"] * 55
    assert lab.run(lab.gateway_argv(gateway, user, "echo in")).stdout == b"in\n"
