"""The broker's sockets: each client gets one answer, or is hung up on, and never sees the text of an internal fault."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.broker.accounts import userdb
from helpers.broker.peer_credentials import Peer
from helpers.broker.server import AGENT_MAX_CONNECTIONS, Handler, Server
from helpers.protocol.errors import HostKeyError
from helpers.protocol.messages import MAX_REQUEST_BYTES, encode
from helpers.ssh.agent import MAX_MESSAGE_BYTES
from lab.fakes import RecordedLog
from lab.waiting import turn_until

pytestmark = pytest.mark.timeout(20)


class Served:
    """A server on three real sockets, with handlers that a test needs.

    Attributes:
        log: The events that it logged.
        peers: The peers that asked, in order.
        gate: The handler ``wait`` waits for it.
        entered: It has been asked.
        kept: The three sockets once more, as the supervisor has them.
    """

    def __init__(self, directory: Path) -> None:
        """Prepare; nothing listens yet."""
        self.log, self.peers = RecordedLog(), list[Peer]()
        self.gate, self.entered = asyncio.Event(), asyncio.Event()
        self.paths = [directory / name for name in ("broker", "userdb", "agent")]
        handlers: dict[str, Handler] = {
            "echo": self._echo,
            "text": self._text,
            "refuse": self._refuse,
            "fail": self._fail,
            "wait": self._wait,
            "late": self._late,
        }
        self.server = Server(handlers, self._account, self._agent, self.log)
        self.listening: list[asyncio.Server] = []
        self.kept: list[socket.socket] = []

    async def listen(self) -> None:
        """Start to serve."""
        sockets = []
        for path in self.paths:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(os.fspath(path))
            sock.listen()
            sockets.append(sock)
            self.kept.append(sock.dup())
        self.listening = await self.server.listen(*sockets)

    async def _echo(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        self.peers.append(peer)
        return request

    async def _text(self, peer: Peer, request: dict[str, Any]) -> bytes:
        del peer, request
        return b"a\xff\nb\n"

    async def _refuse(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        del peer, request
        msg = "it changed"
        raise HostKeyError(msg)

    async def _fail(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        del peer, request
        msg = "a secret"
        raise RuntimeError(msg)

    async def _wait(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        del peer, request
        self.entered.set()
        await self.gate.wait()
        return {}

    async def _late(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        del peer, request
        raise TimeoutError

    def _account(self, peer: Peer, key: str | int) -> userdb.Account | None:
        self.peers.append(peer)
        if key == "fault":
            msg = "a secret"
            raise RuntimeError(msg)
        return userdb.Account("alice", 70_000, "/home") if key in ("alice", 70_000) else None

    def _agent(self, peer: Peer, message: bytes) -> bytes:
        self.peers.append(peer)
        return message[::-1]

    async def say(self, which: int, data: bytes, *, end: bool = True) -> bytes:
        """Connect, write, and read until the server hangs up."""
        reader, writer = await asyncio.open_unix_connection(self.paths[which])
        with suppress(ConnectionError):
            writer.write(data)
            if end:
                writer.write_eof()
            await writer.drain()
        try:
            return await reader.read()
        finally:
            writer.close()

    async def ask(self, request: bytes) -> dict[str, Any]:
        """Ask the broker and read its one line."""
        answer = await self.say(0, request)
        assert answer.endswith(b"\n")
        assert answer.count(b"\n") == 1
        message = json.loads(answer)
        assert isinstance(message, dict)
        return message


MAX_STARTUPS = 300
"""Logins that sshd lets be under way at once (60-abuse.conf)."""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """Start a server, and end it with its connections after the test."""
    with tempfile.TemporaryDirectory() as directory:
        served = Served(Path(directory))
        await served.listen()
        yield served
        served.gate.set()
        for server in served.listening:
            server.close()
        for sock in served.kept:
            sock.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait([task], timeout=5)


_ME = Peer(os.getpid(), os.geteuid())


async def test_a_request_is_answered_once(served: Served) -> None:
    """One line in, one line out, then the server hangs up; the kernel names the client, not the request."""
    request = {"op": "echo", "uid": 0, "pid": 1, "peer": "root"}
    assert await served.ask(encode(request) + encode({"op": "fail"})) == {"result": request}
    assert served.peers == [_ME]
    assert served.log.events == []


async def test_an_answer_may_be_text(served: Served) -> None:
    """Bytes leave as they are, and then the server hangs up."""
    assert await served.say(0, encode({"op": "text"})) == b"a\xff\nb\n"


async def test_a_request_in_pieces(served: Served) -> None:
    """A request may come byte by byte."""
    reader, writer = await asyncio.open_unix_connection(served.paths[0])
    for byte in encode({"op": "echo"}):
        writer.write(bytes([byte]))
        await writer.drain()
    assert json.loads(await reader.read()) == {"result": {"op": "echo"}}
    writer.close()


async def test_an_error_of_ours_is_told(served: Served) -> None:
    """The client gets the sentence, the code and the status."""
    error = {"code": "host_key", "message": "it changed", "status": 76}
    assert await served.ask(encode({"op": "refuse"})) == {"error": error}


async def test_a_fault_is_logged_and_not_told(served: Served) -> None:
    """An internal fault refuses this request without its text; the log says where it happened."""
    answer = await served.ask(encode({"op": "fail"}))
    assert answer["error"]["code"] == "internal"
    assert "secret" not in str(answer)
    ((event, fields),) = served.log.events
    assert (event, fields["op"], fields["uid"]) == ("fault", "fail", os.geteuid())
    assert "test_server.py" in str(fields["where"])
    assert "result" in await served.ask(encode({"op": "echo"}))


async def test_work_that_takes_too_long_is_the_remotes(served: Served) -> None:
    """A deadline that passes is reported as a timeout of the remote."""
    assert (await served.ask(encode({"op": "late"})))["error"]["code"] == "remote_timeout"


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"hello\n",
        b'{"op":"echo"}',
        b'{"op":"nothing"}\n',
        b'{"op":null}\n',
        b'{"op":["echo"]}\n',
        b'{"op":"__class__"}\n',
        b"\xff\xff\n",
        b"[" * 50_000 + b"\n",
        b"x" * (MAX_REQUEST_BYTES + 1) + b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused(request_: bytes, served: Served) -> None:
    """Garbage, half a line, an unknown op and a line without end get a protocol error, and the next one is served."""
    assert (await served.ask(request_))["error"]["code"] == "protocol"
    assert (await served.ask(encode({"op": "echo"})))["result"] == {"op": "echo"}
    assert served.peers == [_ME]


async def test_a_request_without_end_is_cut_off(served: Served) -> None:
    """A client that goes on writing is hung up on, and gets no result; others are served."""
    with suppress(ConnectionError):
        assert b"result" not in await served.say(0, b"x" * (8 * MAX_REQUEST_BYTES))
    assert (await served.ask(encode({"op": "echo"})))["result"] == {"op": "echo"}


async def test_the_longest_request_is_read(served: Served) -> None:
    """A request of the largest size is answered."""
    padding = MAX_REQUEST_BYTES - len(encode({"op": "echo", "x": ""}))
    answer = await served.ask(encode({"op": "echo", "x": "y" * padding}))
    assert len(answer["result"]["x"]) == padding


async def test_an_asker_who_says_nothing_holds_up_nobody(served: Served) -> None:
    """Silent connections, and one whose work takes long, do not keep the next client waiting."""
    silent = [await asyncio.open_unix_connection(path) for path in served.paths]
    waiting = asyncio.create_task(served.ask(encode({"op": "wait"})))
    assert (await served.ask(encode({"op": "echo"})))["result"] == {"op": "echo"}
    await served.entered.wait()
    idle = asyncio.create_task(served.server.idle())
    await asyncio.sleep(0)
    served.gate.set()
    assert await waiting == {"result": {}}
    for _, writer in silent:
        writer.close()
    await idle


async def test_an_asker_who_leaves_is_let_go(served: Served) -> None:
    """A client that hangs up before the answer costs nothing: the server counts down, and serves on."""
    _, writer = await asyncio.open_unix_connection(served.paths[0])
    writer.write(encode({"op": "wait"}))
    await writer.drain()
    await served.entered.wait()
    writer.close()
    served.gate.set()
    await served.server.idle()
    assert "result" in await served.ask(encode({"op": "echo"}))


def _lookup(**parameters: object) -> bytes:
    return json.dumps({"method": "io.systemd.UserDatabase.GetUserRecord", "parameters": parameters}).encode() + b"\0"


async def test_lookups_share_a_connection(served: Served) -> None:
    """nss-systemd may ask several times over one connection; each gets an answer, and the kernel names the client."""
    answers = (await served.say(1, _lookup(userName="alice") + _lookup(uid=5) + b"junk\0")).split(b"\0")
    assert [json.loads(answer).get("error", "").rpartition(".")[2] for answer in answers[:-1]] == [
        "",
        "NoRecordFound",
        "InvalidParameter",
    ]
    assert served.peers == [_ME, _ME]


@pytest.mark.parametrize("data", [b"", b"half a call", b"x" * (8 * userdb.MAX_REQUEST_BYTES)])
async def test_what_is_no_varlink_is_hung_up_on(data: bytes, served: Served) -> None:
    """A call without an end gets no answer, and service goes on."""
    with suppress(ConnectionResetError):
        assert await served.say(1, data) == b""
    assert b"alice" in await served.say(1, _lookup(userName="alice"))


async def test_a_fault_in_a_lookup_is_logged_and_finds_nobody(served: Served) -> None:
    """A lookup that fails (a full disk, say) gives no record; the log names it as it does any fault."""
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    answer = await served.say(1, _lookup(userName="fault"))
    assert b"record" not in answer
    assert b"secret" not in answer
    assert b"alice" in await served.say(1, _lookup(userName="alice"))
    assert [event for event, _ in served.log.events] == ["fault"]
    assert unhandled == []


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(4) + message


async def test_agent_messages_are_answered_in_turn(served: Served) -> None:
    """Each message, its length in front, gets an answer framed the same way."""
    assert await served.say(2, _framed(b"abc") + _framed(b"de")) == _framed(b"cba") + _framed(b"ed")
    assert served.peers == [_ME, _ME]


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", b"\0\0\0\0", (MAX_MESSAGE_BYTES + 1).to_bytes(4), b"\xff" * 8, b"\0\0\0\x05abc"]
)
async def test_what_is_no_agent_message_is_hung_up_on(data: bytes, served: Served) -> None:
    """An empty message, one without end and half of one get no answer."""
    with suppress(ConnectionResetError):
        assert await served.say(2, data) == b""
    assert served.peers == []
    assert await served.say(2, _framed(b"abc")) == _framed(b"cba")


async def test_who_logs_in_on_the_remote_has_the_agent_to_the_end(served: Served) -> None:
    """A broker that is to end goes on for an ssh that has asked for the keys, and has yet to ask for a signature."""
    reader, writer = await asyncio.open_unix_connection(served.paths[2])
    writer.write(_framed(b"ab"))
    assert await reader.readexactly(6) == _framed(b"ba")
    idle = asyncio.create_task(served.server.idle())
    assert (await served.ask(encode({"op": "echo"})))["result"] == {"op": "echo"}
    assert not idle.done()
    writer.write(_framed(b"cd"))
    assert await reader.readexactly(6) == _framed(b"dc")
    writer.close()
    await idle


async def test_one_user_cannot_take_all_of_the_agent(served: Served) -> None:
    """One connection more than a uid may have is closed at once; when one of the others leaves there is room again."""
    held = [await asyncio.open_unix_connection(served.paths[2]) for _ in range(AGENT_MAX_CONNECTIONS)]
    for reader, writer in held:
        writer.write(_framed(b"ab"))
        assert await reader.readexactly(6) == _framed(b"ba")
    assert await served.say(2, b"", end=False) == b""
    held[0][1].close()
    await turn_until(lambda: served.server._agents[os.geteuid()] < AGENT_MAX_CONNECTIONS)
    assert await served.say(2, _framed(b"abc")) == _framed(b"cba")
    for _, writer in held:
        writer.close()


async def test_the_sockets_outlive_a_broker_that_ends(served: Served) -> None:
    """A broker that is told to end leaves the sockets where they are: they are the next broker's too."""
    for server in served.listening:
        server.close()
    assert all(path.is_socket() for path in served.paths)


@pytest.mark.parametrize("turns", range(10))
@pytest.mark.parametrize("which", [0, 1])
async def test_nobody_falls_between_two_brokers(which: int, turns: int, served: Served) -> None:
    """A client that comes while a broker ends gets its answer, or is left for the next broker, at any moment."""
    said = [encode({"op": "echo"}), _lookup(userName="alice")][which]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(served.paths[which]))
        client.sendall(said)
        for _ in range(turns):
            await asyncio.sleep(0)
        await served.server.stop_accepting(served.listening)
        client.settimeout(0)
        served.kept[which].settimeout(0)
        try:
            served.kept[which].accept()[0].close()
        except BlockingIOError:
            answer = asyncio.create_task(asyncio.get_running_loop().sock_recv(client, 4096))
            idle = asyncio.create_task(served.server.idle())
            await asyncio.wait([answer, idle], return_when=asyncio.FIRST_COMPLETED)
            # When nothing is left to wait for, the process ends.
            assert await answer if answer.done() else client.recv(4096)
            idle.cancel()
            answer.cancel()


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_crowd_waits_for_a_busy_broker(which: int, served: Served) -> None:
    """While the broker's one thread is busy, as many may come as sshd lets in, and none is turned away."""
    crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(MAX_STARTUPS)]
    try:
        for client in crowd:
            client.connect(os.fspath(served.paths[which]))  # BlockingIOError where there is no served
    finally:
        for client in crowd:
            client.close()
