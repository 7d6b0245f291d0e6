"""Failures of users whom the remote did not let in are remembered: for how long, and of how many."""

from __future__ import annotations

import pytest

from helpers.broker.remote import verdicts
from helpers.broker.remote.verdicts import OUTAGE_TTL_S, Verdicts
from helpers.protocol.errors import GatewayError, HostKeyError, PermissionDeniedError, RemoteTimeoutError
from lab.fakes import ManualClock


@pytest.mark.parametrize(
    ("error", "ttl_s", "remembered_s"),
    [
        (PermissionDeniedError("no"), 60.0, 60.0),
        (RemoteTimeoutError("away"), 60.0, OUTAGE_TTL_S),
        (HostKeyError("changed"), 60.0, OUTAGE_TTL_S),
        (RemoteTimeoutError("away"), 1.0, 1.0),
    ],
)
def test_a_failure_is_remembered_for_a_time(error: GatewayError, ttl_s: float, remembered_s: float) -> None:
    """A refusal for the TTL, an outage for seconds; each as a new error of the same kind."""
    clock = ManualClock()
    memory = Verdicts(ttl_s, clock)
    memory.note("alice", error)
    clock.now_s += remembered_s - 0.1
    told = memory.error("alice")
    assert (type(told), str(told)) == (type(error), error.message)
    assert told is not error
    assert memory.error("bob") is None
    clock.now_s += 0.2
    assert memory.error("alice") is None


def test_only_a_refusal_bars_a_session() -> None:
    """An outage is tried again by the next session; a login that works ends a refusal."""
    memory = Verdicts()
    memory.note("alice", RemoteTimeoutError("away"))
    memory.check_refusal("alice")
    memory.note("alice", PermissionDeniedError("no"))
    with pytest.raises(PermissionDeniedError, match="no"):
        memory.check_refusal("alice")
    memory.clear("alice")
    memory.check_refusal("alice")


def test_invented_names_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that fails again counts as new."""
    monkeypatch.setattr(verdicts, "MAX_VERDICTS", 2)
    memory = Verdicts()
    for name in ("a", "b", "a", "c"):
        memory.note(name, PermissionDeniedError("no"))
    assert [name for name in "abc" if memory.error(name)] == ["a", "c"]
