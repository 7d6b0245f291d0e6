"""What the supervisor survives; the rest of it is tested with real parts (tests/system/test_serve.py)."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from gatewayctl.sshd.connections import Connections
from gatewayctl.supervisor.broker_process import (
    BACK_OFF_S,
    CLOSE_WAITING_S,
    STEADY_AFTER_S,
    BrokerProcess,
    RunningBroker,
)
from gatewayctl.supervisor.supervisor import Parts, Supervisor
from helpers.protocol.errors import GatewayError
from helpers.protocol.event_log import EventLog
from lab.fakes import RecordedLog


class FakePrivilegedServer:
    """Notes which broker is in charge.

    Attributes:
        active: Its end of the way.
    """

    active: object = None

    def set_active_broker(self, way: object, trusted_proxies: str) -> None:
        """Note it."""
        del trusted_proxies
        self.active = way


class Brokers(BrokerProcess):
    """Brokers without processes, on a clock that a test sets.

    Attributes:
        now_s: The time.
        failure: Why none starts; None where each does.
        started: How many were started.
    """

    def __init__(self, log: EventLog, sockets: tuple[int, ...] = ()) -> None:
        privileged: Any = FakePrivilegedServer()
        super().__init__(sockets, privileged, log, lambda: self.now_s)
        self.now_s, self.started = 1000.0, 0
        self.failure: Exception | None = None

    def start(self, plan: Any) -> RunningBroker:
        """Start one, or fail."""
        if self.failure is not None:
            raise self.failure
        self.started += 1
        way: Any = f"way {self.started}"
        return RunningBroker(100 + self.started, way, plan)


@pytest.fixture(name="signals")
def record_signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, signal.Signals]]:
    """Send no signals, and return those that would have been."""
    sent: list[tuple[int, signal.Signals]] = []
    monkeypatch.setattr("gatewayctl.runtime.processes.end", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatewayError("REMOTE_PORT must be a port"), "REMOTE_PORT must be a port"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("hunter2"), "the gateway failed: ValueError at "),
        (MemoryError(), "the gateway failed: MemoryError at "),
    ],
)
def test_a_reload_that_fails_is_told(error: Exception, said: str) -> None:
    """Whatever is wrong, a fault of ours too, it is told without a secret, and not the end of all sessions."""
    log = RecordedLog()

    def replan() -> Any:
        raise error

    nothing: Any = None
    parts = Parts((), False, Brokers(log), nothing, None, None, Connections())  # noqa: FBT003 - a field
    Supervisor(nothing, nothing, replan, parts, log)._reload()

    ((event, fields),) = log.events
    assert event == "reload_failed"
    assert said in str(fields["reason"])
    assert "hunter2" not in str(fields["reason"])


def test_a_broker_in_charge_gives_way_to_the_next(signals: list[tuple[int, signal.Signals]]) -> None:
    """The one before finishes what it began; its end is no crash."""
    log = RecordedLog()
    brokers = Brokers(log)
    for number in (1, 2):
        brokers.activate(brokers.start("plan"))
        assert (brokers.pid, brokers._privileged.active) == (100 + number, f"way {number}")  # type: ignore[attr-defined]
    assert (brokers.pids, signals) == ({102, 101}, [(101, signal.SIGTERM)])
    brokers.ended(101, 0)
    assert (brokers.pids, brokers.tend("plan"), log.events) == ({102}, None, [])  # type: ignore[arg-type]


def test_a_broker_that_crashes_is_started_again_and_later_each_time() -> None:
    """The waits grow up to the longest; after a steady minute they begin anew."""
    log = RecordedLog()
    brokers = Brokers(log)
    plan: Any = "plan"
    brokers.activate(brokers.start(plan))
    waits_s = []
    for _ in range(len(BACK_OFF_S) + 2):
        brokers.ended(brokers.pid, -9)
        assert brokers.pid == 0
        wait_s = brokers.tend(plan)
        assert wait_s is not None
        waits_s.append(round(wait_s, 3))
        brokers.now_s += wait_s
        assert brokers.tend(plan) is None
    assert waits_s == [*BACK_OFF_S, BACK_OFF_S[-1], BACK_OFF_S[-1]]
    brokers.now_s += STEADY_AFTER_S + 1
    brokers.ended(brokers.pid, -9)
    assert brokers.tend(plan) == pytest.approx(BACK_OFF_S[0])


def test_while_no_broker_starts_those_who_wait_are_turned_away(tmp_path: Path) -> None:
    """Each start that fails waits longer than the last, however long the broker had run before."""
    log = RecordedLog()
    plan: Any = "plan"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)  # noqa: FBT003 - socket's
        brokers = Brokers(log, (listener.fileno(),))
        brokers.activate(brokers.start(plan))
        brokers.now_s += STEADY_AFTER_S + 1
        brokers.ended(brokers.pid, 70)
        brokers.failure = GatewayError("no")
        waits_s = []
        for _ in range(3):
            brokers.now_s += 60.0
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
                assert brokers.tend(plan) is not None
                assert client.recv(1) == b""
            waits_s.append(log.events[-1][1]["restart_in_s"])
            assert (brokers.tend(plan) or 0.0) <= CLOSE_WAITING_S
    assert waits_s == list(BACK_OFF_S[1:4])
    assert {event for event, _ in log.events} == {"broker_ended", "broker_not_started"}
