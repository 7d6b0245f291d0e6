"""What is known about UDP to the remote, and for whom it counts."""

from __future__ import annotations

import pytest

from helpers.broker.sessions.udp_paths import BLOCKED_S, PASSES, PORTS_AHEAD, PROVEN_S, REFUSED, SILENT, UdpPaths
from lab.fakes import RecordedLog

_ADDRESS = "192.0.2.2"


class _Paths(UdpPaths):
    """The facts, with a clock of the test's."""

    def __init__(self) -> None:
        self.now_s, self.recorded = 1000.0, RecordedLog()
        super().__init__(self.recorded, lambda: self.now_s)

    def report(self, user: str, outcome: str, port: int = 60001) -> None:
        """Note a session's report."""
        self.note(user, "1-2", _ADDRESS, port, outcome, 12.0)


@pytest.fixture
def paths() -> _Paths:
    """A broker that has just started."""
    return _Paths()


def test_nothing_is_known_at_first(paths: _Paths) -> None:
    """A path is neither proven nor blocked."""
    assert not paths.is_proven("alice", _ADDRESS, 60001)
    assert not paths.is_blocked("alice", _ADDRESS, 60001)
    assert not paths.has_blocked("alice")
    assert not paths.take_retry(_ADDRESS)
    assert paths.described() == []


def test_a_proof_counts_for_all_users_and_lower_ports_until_it_is_old(paths: _Paths) -> None:
    """A few ports above it count, too; one far above it, another address and a later time are unproven."""
    paths.report("alice", PASSES, 60003)
    assert paths.is_proven("bob", _ADDRESS, 60003)
    assert paths.is_proven("bob", _ADDRESS, 60001)
    assert paths.is_proven("bob", _ADDRESS, 60003 + PORTS_AHEAD)
    assert not paths.is_proven("bob", _ADDRESS, 60004 + PORTS_AHEAD)
    assert not paths.is_proven("bob", "192.0.2.3", 60001)
    paths.report("alice", PASSES, 60001)
    assert paths.is_proven("bob", _ADDRESS, 60003)
    paths.now_s += PROVEN_S + 1
    assert not paths.is_proven("bob", _ADDRESS, 60001)


@pytest.mark.parametrize("outcome", [SILENT, REFUSED])
def test_one_users_report_counts_for_that_user_alone(paths: _Paths, outcome: str) -> None:
    """A mosh-server that lies downgrades nobody else, however often it does."""
    paths.report("bob", PASSES)
    for _ in range(5):
        paths.report("mallory", outcome)
    assert paths.is_blocked("mallory", _ADDRESS, 60001)
    assert not paths.is_proven("mallory", _ADDRESS, 60001)
    assert paths.is_proven("bob", _ADDRESS, 60001)
    assert not paths.has_blocked("bob")


def test_two_users_reports_count_for_all(paths: _Paths) -> None:
    """They also end the proof; a success of any user's ends the silence."""
    paths.report("carol", PASSES)
    paths.report("alice", SILENT)
    paths.report("bob", SILENT)
    assert paths.is_blocked("carol", _ADDRESS, 60001)
    paths.report("dave", PASSES)
    assert not paths.is_blocked("carol", _ADDRESS, 60001)
    assert not paths.has_blocked("alice")
    assert paths.is_proven("carol", _ADDRESS, 60001)


def test_a_success_between_two_silences_separates_them(paths: _Paths) -> None:
    """Each then counts for its own user alone."""
    paths.report("alice", SILENT)
    paths.report("carol", PASSES)
    paths.report("bob", SILENT)
    assert not paths.is_blocked("alice", _ADDRESS, 60001)
    assert not paths.is_blocked("carol", _ADDRESS, 60001)
    assert paths.is_blocked("bob", _ADDRESS, 60001)


def test_a_firewall_may_be_open_for_the_first_ports(paths: _Paths) -> None:
    """Ports up to the highest that passed are proven, those from the lowest silent one on blocked."""
    paths.report("alice", PASSES, 60002)
    paths.report("alice", SILENT, 60009)
    paths.report("alice", SILENT, 60005)
    paths.report("alice", PASSES, 60001)
    expected = {60002: (True, False), 60003: (True, False), 60005: (False, True), 60010: (False, True)}
    for port, (proven, blocked) in expected.items():
        assert paths.is_proven("alice", _ADDRESS, port) is proven
        assert paths.is_blocked("alice", _ADDRESS, port) is blocked


def test_one_session_at_a_time_tries_a_blocked_path_again(paths: _Paths) -> None:
    """It may after a while; the others go over ssh meanwhile, and a new silence begins a new while."""
    paths.report("alice", SILENT)
    assert not paths.take_retry(_ADDRESS)
    paths.now_s += BLOCKED_S
    assert [paths.take_retry(_ADDRESS) for _ in range(3)] == [True, False, False]
    paths.report("alice", SILENT)
    paths.now_s += BLOCKED_S - 1
    assert not paths.take_retry(_ADDRESS)


def test_the_facts_are_described_and_each_report_is_logged(paths: _Paths) -> None:
    """With what was measured, when, and how many users say so."""
    paths.report("alice", PASSES, 60001)
    paths.report("bob", REFUSED, 60002)
    paths.now_s += 2
    assert paths.described() == [
        {"remote": _ADDRESS, "udp_port": 60001, "outcome": "passes", "ms": 12.0, "age_s": 2.0},
        {"remote": _ADDRESS, "udp_port": 60002, "outcome": "refused", "ms": 12.0, "age_s": 2.0, "users": 1},
    ]
    assert [(event, fields["outcome"]) for event, fields in paths.recorded.events] == [
        ("udp", "passes"),
        ("udp", "refused"),
    ]


def test_a_report_with_agent_pass_through_is_only_logged(paths: _Paths) -> None:
    """Any client gets the uid of the name that it claims there."""
    paths.note("alice", "1-2", _ADDRESS, 60001, SILENT, 1.0, keep=False)
    assert paths.described() == []
    assert len(paths.recorded.events) == 1
