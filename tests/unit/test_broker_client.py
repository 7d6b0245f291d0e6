"""How a helper asks the broker, over a real unix socket, and what it says when the broker does not answer."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.protocol.broker_client import BrokerRequest, ask
from helpers.protocol.errors import BrokerUnavailableError, GatewayError, ProtocolError
from helpers.protocol.messages import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, BrokerError, decode, encode


class FakeBroker:
    """Accepts one connection after another and lets a function talk.

    Args:
        path: Where to listen.
    """

    def __init__(self, path: Path) -> None:
        """Listen."""
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()

    def serve(self, talk: Callable[[socket.socket], object]) -> Thread:
        """Accept one connection in the background and let ``talk`` have it."""

        def run() -> None:
            connection, _ = self._socket.accept()
            with connection:
                talk(connection)

        thread = Thread(target=run)
        thread.start()
        return thread

    def answer(self, *chunks: bytes) -> Thread:
        """Read one request, then write the chunks and hang up."""

        def talk(connection: socket.socket) -> None:
            connection.makefile("rb").readline()
            with suppress(BrokenPipeError):  # who has a whole line hangs up
                for chunk in chunks:
                    connection.sendall(chunk)

        return self.serve(talk)

    def close(self) -> None:
        """Stop to listen."""
        self._socket.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[FakeBroker]:
    """Listen on a socket of the test's own."""
    fake = FakeBroker(tmp_path / "b")
    yield fake
    fake.close()


def test_one_line_out_and_one_line_in(broker: FakeBroker) -> None:
    """The request arrives as one line, and the result comes back."""
    heard: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        heard.append(connection.makefile("rb").readline())
        connection.sendall(encode({"result": {"lines": ["a", "b"]}}))

    thread = broker.serve(talk)
    assert ask(broker.path, {"op": "x", "user": "a\nb"}) == {"lines": ["a", "b"]}
    thread.join()
    assert [decode(line) for line in heard] == [{"op": "x", "user": "a\nb"}]


def test_an_answer_in_pieces(broker: FakeBroker) -> None:
    """An answer that comes byte by byte is put together; what follows its newline is nothing."""
    answer = encode({"result": {"x": 1}})
    thread = broker.answer(*(bytes([byte]) for byte in answer), b"trailing")
    assert ask(broker.path, {}) == {"x": 1}
    thread.join()


def test_the_longest_answer_fits(broker: FakeBroker) -> None:
    """An answer of the largest size is taken whole."""
    padding = MAX_ANSWER_BYTES - len(encode({"result": {"x": ""}}))
    thread = broker.answer(encode({"result": {"x": "y" * padding}}))
    assert len(ask(broker.path, {})["x"]) == padding
    thread.join()


def test_an_error_is_raised_as_the_broker_put_it(broker: FakeBroker) -> None:
    """The broker's sentence, code and status reach the caller."""
    thread = broker.answer(encode({"error": {"code": "host_key", "message": "it changed", "status": 76}}))
    with pytest.raises(BrokerError, match="it changed") as caught:
        ask(broker.path, {})
    thread.join()
    assert (caught.value.code, caught.value.status) == ("host_key", 76)


@pytest.mark.parametrize("chunks", [(), (b'{"result"',), (b'{"result":{}}',)])
def test_a_broker_that_hangs_up_early(chunks: tuple[bytes, ...], broker: FakeBroker) -> None:
    """No answer and half an answer, one that lacks its newline too, are a broker that went away."""
    thread = broker.answer(*chunks)
    with pytest.raises(BrokerUnavailableError, match="went away"):
        ask(broker.path, {})
    thread.join()


def test_a_broker_that_dies_with_the_request_unread(broker: FakeBroker) -> None:
    """A connection that is reset is a broker that went away, and no traceback."""
    thread = broker.serve(lambda _: None)
    with pytest.raises(BrokerUnavailableError):
        ask(broker.path, {"padding": "x" * 1000})
    thread.join()


@pytest.mark.parametrize("chunk", [b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"result":1}\n', b"\xff\n"])
def test_an_answer_that_is_none(chunk: bytes, broker: FakeBroker) -> None:
    """A line that is no answer is refused."""
    thread = broker.answer(chunk)
    with pytest.raises(ProtocolError):
        ask(broker.path, {})
    thread.join()


@given(st.binary(max_size=100))
def test_any_answer_is_a_result_or_one_of_our_errors(garbage: bytes) -> None:
    """Whatever bytes come back, the caller gets a dictionary or a `GatewayError`."""
    ours, theirs = socket.socketpair()
    question = BrokerRequest.__new__(BrokerRequest)
    question.connection, question._deadline, question._received = ours, float("inf"), bytearray()
    with ours, theirs:
        theirs.sendall(garbage)
        theirs.shutdown(socket.SHUT_WR)
        try:
            answer = question.wait(10)
        except GatewayError:
            return
    assert isinstance(answer, dict)


def test_an_endless_answer_is_cut_off(broker: FakeBroker) -> None:
    """An answer longer than the longest there can be is refused while it still comes."""

    def talk(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            pass

    thread = broker.serve(talk)
    with pytest.raises(ProtocolError, match="longer"):
        ask(broker.path, {})
    thread.join()


def test_nobody_listens(tmp_path: Path) -> None:
    """A missing socket, and one that is left over from a dead broker, are a broker that does not run."""
    with pytest.raises(BrokerUnavailableError, match="not running"):
        ask(str(tmp_path / "missing"), {})
    left_over = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left_over))
    with pytest.raises(BrokerUnavailableError, match="not running"):
        ask(str(left_over), {})


def test_patience_ends_before_the_deadline_does(broker: FakeBroker) -> None:
    """A caller whose patience ends gets None, may wait on, and still gets the answer."""
    question = BrokerRequest(broker.path, {})
    assert question.wait(0) is None
    assert question.wait(0) is None
    thread = broker.answer(encode({"result": {"x": 1}}))
    assert question.wait(10) == {"x": 1}
    thread.join()


def test_the_deadline_is_an_error(broker: FakeBroker) -> None:
    """A broker that accepts and says nothing is given up at the deadline, whatever the patience."""
    for patience_s in (None, 60.0):
        question = BrokerRequest(broker.path, {}, timeout_s=0.01)
        with pytest.raises(BrokerUnavailableError, match="in time"):
            question.wait(patience_s)


def test_a_request_that_is_too_long_is_said_to_be(broker: FakeBroker) -> None:
    """A request that no broker would read is refused here, and not blamed on a broker that does not run."""
    with pytest.raises(ProtocolError, match="long"):
        BrokerRequest(broker.path, {"original_command": "x" * MAX_REQUEST_BYTES}).close()
