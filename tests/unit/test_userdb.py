"""nss-systemd's questions: one record for a known user, an error for whatever else arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.broker.accounts.userdb import AUTH_USER, SERVICE, Account, answer
from helpers.protocol.messages import is_user_name

_GET = "io.systemd.UserDatabase.GetUserRecord"
_ACCOUNTS = {"alice": 70_000, "bob": 70_001, "one": 1}


def _lookup(key: str | int) -> Account | None:
    for name, uid in _ACCOUNTS.items():
        if type(key) is type(name) and key == name:
            return Account(name, uid, f"/home/{uid}")
        if type(key) is type(uid) and key == uid:
            return Account(name, uid, f"/home/{uid}")
    return None


def _ask(call: object) -> dict[str, Any]:
    text = answer(json.dumps(call).encode(), _lookup)
    assert text.endswith(b"\0")
    assert text.count(b"\0") == 1
    message = json.loads(text[:-1])
    assert isinstance(message, dict)
    return message


def _get(**parameters: object) -> dict[str, Any]:
    return _ask({"method": _GET, "parameters": parameters})


@pytest.mark.parametrize("parameters", [{"userName": "alice"}, {"uid": 70_000}, {"userName": "alice", "uid": 70_000}])
@pytest.mark.parametrize("service", [{}, {"service": SERVICE}, {"service": None}])
def test_a_known_user_has_a_record(parameters: dict[str, object], service: dict[str, object]) -> None:
    """By name, by uid and by both, the record is the same, and repeats the service's name as nss-systemd demands."""
    assert _get(**parameters, **service) == {
        "parameters": {
            "record": {
                "userName": "alice",
                "uid": 70_000,
                "gid": 70_000,
                "homeDirectory": "/home/70000",
                "shell": "/bin/sh",
                "service": SERVICE,
                "privileged": {"hashedPassword": ["*"]},
            },
            "incomplete": False,
        }
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"userName": "eve"},
        {"uid": 5},
        {"uid": True},
        {"uid": 1.0},
        {"uid": "70000"},
        {"uid": None},
        {"uid": -1},
        {"uid": 10**30},
        {"userName": ["alice"]},
        {"userName": None},
        {"userName": 70_000},
        {"userName": {"alice": 1}},
        {"userName": "alice\u0000"},
        {"userName": "\ud800"},
    ],
)
def test_nobody_else_has(parameters: dict[str, object]) -> None:
    """An unknown user, no user, and values of the wrong type, true for uid 1 too, find nobody."""
    assert _get(**parameters) == {"error": "io.systemd.UserDatabase.NoRecordFound", "parameters": {}}


@pytest.mark.parametrize("uid", [70_001, 0, True, 2**32 + 70_000])
def test_a_name_and_a_uid_that_do_not_belong_together(uid: int) -> None:
    """A record is never given for a name with another one's uid."""
    assert _get(userName="alice", uid=uid)["error"] == "io.systemd.UserDatabase.ConflictingRecordFound"


@pytest.mark.parametrize("method", ["GetGroupRecord", "GetMemberships", "GetEverything", ""])
def test_other_methods_find_nothing(method: str) -> None:
    """We have no groups and no memberships, with ``more`` or without."""
    call = {"method": f"io.systemd.UserDatabase.{method}", "parameters": {"userName": "alice"}, "more": True}
    assert _ask(call)["error"] == "io.systemd.UserDatabase.NoRecordFound"


@pytest.mark.parametrize("service", ["io.systemd.Multiplexer", "", 1, ["io.ssh-mosh-gateway"], True])
def test_a_question_to_another_service(service: object) -> None:
    """What is meant for another service is not answered."""
    assert _get(userName="alice", service=service)["error"] == "io.systemd.UserDatabase.BadService"


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"\xff",
        b'{"method":',
        b'{"method":"x","parameters":[1]}',
        b'{"method":"x","parameters":"y"}',
        b"[" * 4000,
        b'{"method":"x","parameters":{"uid":' + b"9" * 5000 + b"}}",
    ],
)
def test_what_is_no_call_is_an_invalid_one(request_: bytes) -> None:
    """Half a call, a list, bytes that are no UTF-8, bottomless nesting and a number without end are refused."""
    assert json.loads(answer(request_, _lookup)[:-1])["error"] == "org.varlink.service.InvalidParameter"


def test_missing_parameters_are_none() -> None:
    """A call without parameters, which varlink permits, finds nobody."""
    for call in ({"method": _GET}, {"method": _GET, "parameters": None}, {"method": _GET, "parameters": {}}):
        assert _ask(call)["error"] == "io.systemd.UserDatabase.NoRecordFound"


@given(st.binary(max_size=300))
def test_any_bytes_get_one_answer(request_: bytes) -> None:
    """Whatever arrives, exactly one NUL-terminated JSON object goes back."""
    text = answer(request_, _lookup)
    assert text.endswith(b"\0")
    assert set(json.loads(text[:-1])) in ({"error", "parameters"}, {"parameters"})


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([*_ACCOUNTS, *_ACCOUNTS.values()]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.just(_GET) | _JSON,
            "parameters": _JSON
            | st.fixed_dictionaries({}, optional={"userName": _JSON, "uid": _JSON, "service": _JSON}),
        },
    )
)
def test_any_call_gets_an_error_or_what_it_asked_for(call: dict[str, Any]) -> None:
    """A record only ever answers a call for its own name or uid."""
    message = _ask(call)
    if "error" not in message:
        record, asked = message["parameters"]["record"], call["parameters"]
        assert record["userName"] == asked.get("userName", record["userName"]) or asked.get("uid") == record["uid"]
        assert _ACCOUNTS[record["userName"]] == record["uid"]


@pytest.mark.parametrize(("password", "written"), [(None, "*"), ("", "*"), ("$6$salt$hash", "$6$salt$hash")])
def test_a_password_is_never_empty(password: str | None, written: str) -> None:
    """An account without a password says so with a star, which matches nothing, never with an empty string."""
    text = answer(
        json.dumps({"method": _GET, "parameters": {"uid": 7}}).encode(),
        lambda _: Account("alice", 7, "/home/7", password=password),
    )
    assert json.loads(text[:-1])["parameters"]["record"]["privileged"] == {"hashedPassword": [written]}


def test_nobody_can_log_in_as_the_key_helper() -> None:
    """The account that the key helper runs as has a name that no user name can be."""
    assert not is_user_name(AUTH_USER)
