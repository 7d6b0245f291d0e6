"""The broker's protocol: what one line may be, and what an answer means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.protocol.errors import GatewayError, HostKeyError, PermissionDeniedError, ProtocolError
from helpers.protocol.messages import BrokerError, decode, encode, error_answer, is_user_name, result_of

_TEXT = st.text() | st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(_TEXT, _JSON, max_size=4))
def test_a_message_is_one_line_and_comes_back_whole(message: dict[str, Any]) -> None:
    """Whatever is in a message, surrogates of undecodable bytes too, it is one line of ASCII and arrives the same."""
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode(line) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_protocol_error(line: bytes) -> None:
    """Reading a line that a stranger wrote gives a JSON object or `ProtocolError`, nothing else."""
    try:
        message = decode(line)
    except ProtocolError:
        return
    assert type(message) is dict


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{",
        b"[]",
        b'"op"',
        b"1",
        b"null",
        b"{}{}",
        b'{"op":"a"}\n{"op":"b"}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
    ],
)
def test_what_is_no_object_is_refused(line: bytes) -> None:
    """Half a line, two lines, a list, a number, bytes that are no UTF-8 and bottomless nesting are no message."""
    with pytest.raises(ProtocolError):
        decode(line)


@pytest.mark.parametrize("name", ["a", "alice", "A.b_c-9", "-", ".", "..", "1000", "-rf", "x" * 64])
def test_user_names(name: str) -> None:
    """Letters, digits, dot, underscore and dash, 1 to 64 of them, may be looked up."""
    assert is_user_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a b", "a$", "a\n", "\na", "a\0", "a/b", "a@b", "a:b", "é", "\u0661", "\ud800", "gateway+auth"],
)
def test_what_is_no_user_name(name: str) -> None:
    """Everything else is no name: other characters, a newline at the end, letters and digits outside of ASCII."""
    assert not is_user_name(name)


def test_a_result_is_taken_out() -> None:
    """A result comes back as it was given."""
    assert result_of({"result": {"lines": []}}) == {"lines": []}


@pytest.mark.parametrize("kind", [GatewayError, HostKeyError, PermissionDeniedError])
def test_an_error_keeps_its_sentence_code_and_status(kind: type[GatewayError]) -> None:
    """What the broker raises is what the helper raises, over the wire and back."""
    answer = decode(encode(error_answer(kind("no, because"))))
    with pytest.raises(BrokerError) as caught:
        result_of(answer)
    assert (caught.value.message, caught.value.code, caught.value.status) == ("no, because", kind.code, kind.status)


@pytest.mark.parametrize("answer", [{}, {"result": None}, {"result": []}, {"error": "no"}, {"result": "x", "error": 1}])
def test_an_answer_that_is_neither(answer: dict[str, Any]) -> None:
    """An answer with neither a result nor an error in it is the broker's fault, and not a yes."""
    with pytest.raises(ProtocolError):
        result_of(answer)


@pytest.mark.parametrize("status", [0, -1, 256, 10**9, "1", None, 1.5])
def test_a_status_that_would_pass_for_success(status: object) -> None:
    """An error never becomes exit status 0, whatever number stands in it."""
    with pytest.raises(BrokerError) as caught:
        result_of({"error": {"status": status}})
    assert caught.value.status == GatewayError.status
    assert caught.value.code == "internal"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it is no clock, and machines are busy
@given(st.dictionaries(st.sampled_from(["result", "error", "x"]), _JSON, max_size=3))
def test_any_answer_is_a_result_or_one_of_our_errors(answer: dict[str, Any]) -> None:
    """No answer, however odd, raises anything but a `GatewayError` with a status that says failure."""
    json.dumps(answer)
    status = 1
    try:
        assert type(result_of(answer)) is dict
    except GatewayError as error:
        status = error.status
    assert 0 < status < 256
