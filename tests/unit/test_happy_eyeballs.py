"""Which of several addresses is reached, how often each is tried, and how ssh is handed the connection."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import helpers
from gatewayctl.sshd.config import PYTHON_OPTIONS
from helpers.broker.remote.addresses import DEMOTED_S, Addresses, numeric
from helpers.happy_eyeballs import connect, connected_to, proxy_options
from helpers.protocol.errors import RemoteUnresolvedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LAUNCH = Path(helpers.__file__).with_name("launch.py")
_Place = tuple[int, tuple[str, int]]


@contextmanager
def _silent() -> Iterator[_Place]:
    """A port that answers no SYN: its queue of connections is full (listen(2))."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - socket's API
            filler.connect_ex(server.getsockname())
        yield socket.AF_INET, server.getsockname()


@pytest.fixture
def places() -> Iterator[dict[str, _Place]]:
    """Addresses: one that is served, one that refuses, two that are silent, and one of no family."""
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as closed, _silent() as one, _silent() as two:
        closed.bind(("127.0.0.1", 0))
        yield {
            "good": (socket.AF_INET, good.getsockname()),
            "closed": (socket.AF_INET, closed.getsockname()),
            "silent": one,
            "silent too": two,
            "none": (socket.AF_UNSPEC, ("192.0.2.1", 22)),
        }


class _Tried:
    """Makes sockets, and counts the attempts by address."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: Counter[object] = Counter()

    def make(self, family: int) -> socket.socket:
        tried = self

        class Counted(socket.socket):
            def connect(self, address: object) -> None:
                tried.addresses[address] += 1
                super().connect(address)  # type: ignore[arg-type]

        made = Counted(family, socket.SOCK_STREAM)
        self.sockets.append(made)
        return made


def _connect(places: dict[str, _Place], names: Sequence[str], tried: _Tried) -> str:
    sock, number = connect([places[name] for name in names], tried.make, (0.1, 0.1, 0.1, 0.3), 0.02)
    with sock:
        assert sock.gettimeout() is None
        assert sock.getpeername() == places["good"][1]
    return names[number]


@pytest.mark.parametrize(
    "names",
    [
        ["good"],
        ["closed", "good"],
        ["none", "good"],
        ["silent", "good"],
        ["silent", "closed", "none", "silent too", "good"],
        ["closed", "silent", "good", "silent too"],
    ],
    ids=" ".join,
)
def test_the_first_that_connects(places: dict[str, _Place], names: list[str]) -> None:
    """Those before it are tried once each, those behind it not at all, and no socket but the connected one is left."""
    tried = _Tried()
    assert _connect(places, names, tried) == "good"
    before = names[: names.index("good") + 1]
    assert tried.addresses == {places[name][1]: 1 for name in before if name != "none"}
    assert {sock.fileno() for sock in tried.sockets} == {-1}


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["closed"], ConnectionRefusedError),
        (["none", "closed", "closed"], ConnectionRefusedError),
        (["closed", "none"], ConnectionRefusedError),
        (["none"], OSError),
        (["silent"], TimeoutError),
        (["closed", "silent"], TimeoutError),
    ],
    ids=str,
)
def test_none_connects(places: dict[str, _Place], names: list[str], error: type[OSError]) -> None:
    """What is told is the kind that helps most: silence, then a refusal."""
    with pytest.raises(error):
        _connect(places, names, _Tried())


@pytest.mark.parametrize(
    ("names", "most"), [(["silent"], [4]), (["silent", "silent too"], [2, 2]), (["silent", "closed"], [3, 1])]
)
def test_silence_is_asked_again(places: dict[str, _Place], names: list[str], most: list[int]) -> None:
    """Four times in all, however many addresses there are: what is lost on the way is sent again."""
    tried = _Tried()
    with pytest.raises(TimeoutError):
        _connect(places, names, tried)
    assert [tried.addresses[places[name][1]] for name in names] == most


# ssh's ProxyCommand


def _dial(*arguments: str) -> tuple[subprocess.CompletedProcess[bytes], list[int]]:
    """Run the dialler as ssh does; returns the files that it passed on."""
    ours, its = socket.socketpair()
    with ours, its:
        argv = [sys.executable, *PYTHON_OPTIONS, str(_LAUNCH), "dial", *arguments]
        done = subprocess.run(
            argv, stdin=its.fileno(), stdout=its.fileno(), stderr=subprocess.PIPE, check=False, timeout=30
        )
        its.close()
        _, files, _, _ = socket.recv_fds(ours, 10, 10)
    return done, files


@pytest.mark.parametrize("say", [True, False])
def test_ssh_is_handed_the_connection(places: dict[str, _Place], *, say: bool) -> None:
    """One connected socket, and one line about it for who asks for it."""
    _, (host, port) = places["good"]
    done, files = _dial("say" if say else "quiet", str(port), "127.0.0.2", host)
    (file,) = files
    with socket.socket(fileno=file) as connected:
        assert connected.getpeername() == (host, port)
    assert (done.returncode, connected_to(done.stderr)) == (0, host if say else None)
    assert say or not done.stderr


def test_ssh_is_told_why_there_is_none(places: dict[str, _Place]) -> None:
    """One line, and nothing is passed on."""
    _, (host, port) = places["closed"]
    done, files = _dial("say", str(port), host, "127.0.0.2")
    said = f"gateway: the remote host cannot be reached: {host}, 127.0.0.2: Connection refused\n"
    assert (done.returncode, done.stderr.decode(), files, connected_to(done.stderr)) == (1, said, [], None)


@pytest.mark.parametrize("errors", [b"", b"gateway: connected to 192.0.2.1", b"x\ngateway: connected to 192.0.2.1\n"])
def test_what_the_remote_writes_is_not_the_address(errors: bytes) -> None:
    """Only a whole first line counts, since ssh has not spoken to the remote before it."""
    assert connected_to(errors) is None


def test_every_word_is_quoted() -> None:
    """For ssh, which expands tokens, and for the shell that it gives the command to."""
    command, passes = proxy_options(["/a b/py%thon", "it's"], ["192.0.2.1", "fe80::1%eth0"], 22, say=True)
    words = shlex.split(command.removeprefix("ProxyCommand=").replace("%%", "%"))
    assert words == ["/a b/py%thon", "it's", "dial", "say", "22", "192.0.2.1", "fe80::1%eth0"]
    assert command.count("%") == 4
    assert passes == "ProxyUseFdpass=yes"


# The order


def _resolves(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> list[str]:
    answer = [(10 if ":" in host else 2, 1, 6, "", (host, 22)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    return list(hosts)


def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's order is kept in each family, and the first family stays the first; none comes twice."""
    _resolves(monkeypatch, "::1", "::2", "::3", "192.0.2.1", "::1", "192.0.2.2")
    addresses = Addresses("remote.example", 22)
    assert [numeric(each) for each in addresses.resolve()] == ["::1", "192.0.2.1", "::2", "192.0.2.2", "::3"]
    assert addresses.starting_with("192.0.2.1") == ["192.0.2.1", "::1", "::2", "192.0.2.2", "::3"]
    assert addresses.starting_with("192.0.2.9")[:2] == ["192.0.2.9", "::1"]


def test_an_address_that_failed_is_tried_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ten minutes, or until it connects; where all of them failed, the order is what it was."""
    now = 0.0
    hosts = _resolves(monkeypatch, "192.0.2.1", "192.0.2.2", "192.0.2.3")
    addresses = Addresses("remote.example", 22, lambda: now)

    def order() -> list[str]:
        return [numeric(each) for each in addresses.resolve()]

    addresses.connected("192.0.2.2", ["192.0.2.1"])
    assert order() == ["192.0.2.2", "192.0.2.3", "192.0.2.1"]
    addresses.connected("192.0.2.1", ["192.0.2.2", "192.0.2.3"])
    assert order() == hosts
    now = DEMOTED_S
    assert order() == hosts


def test_a_host_without_an_address() -> None:
    """It is named."""
    with pytest.raises(RemoteUnresolvedError, match=r"no-such-host\.invalid"):
        Addresses("no-such-host.invalid", 22).resolve()
