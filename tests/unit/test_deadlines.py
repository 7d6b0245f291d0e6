"""The deadlines of a login, each of which leaves room for those that it has to outlast."""

from __future__ import annotations

import re
from itertools import pairwise

from gatewayctl.sshd.config import template_directory
from gatewayctl.supervisor import home_directories, privileged_server
from helpers import happy_eyeballs
from helpers.broker.accounts import uid_table
from helpers.broker.keys import refusal_timing
from helpers.broker.remote import pool
from helpers.protocol import deadlines


def _login_grace_time_s() -> float:
    (found,) = re.findall(r"^LoginGraceTime (\d+)$", (template_directory() / "60-abuse.conf").read_text(), re.MULTILINE)
    return float(found)


def test_each_outlasts_what_it_waits_for() -> None:
    """Who waits is there to be told why, from sshd down to the command that runs on the remote."""
    chain = [
        # sshd takes up to twice what the key command took (auth2.c), and the client needs some time before that.
        _login_grace_time_s(),
        2 * deadlines.ANSWER_TIMEOUT_S,
        deadlines.ANSWER_TIMEOUT_S,
        deadlines.WORK_TIMEOUT_S,
        deadlines.REMOTE_TIMEOUT_S,
        deadlines.CONNECT_TIMEOUT_S,
        sum(happy_eyeballs.TIMEOUTS_S),
    ]
    assert all(longer > shorter for longer, shorter in pairwise(chain))
    assert deadlines.CONNECT_TIMEOUT_S > deadlines.RUN_TIMEOUT_S > deadlines.WARM_TIMEOUT_S
    assert deadlines.WORK_TIMEOUT_S > deadlines.TURN_WAIT_S
    assert deadlines.DRAIN_S > deadlines.WORK_TIMEOUT_S


def test_a_rival_has_as_long_as_the_first() -> None:
    """Where the first one connects at once: it is tried a while later, and then has its own time."""
    assert pool.RIVAL_AFTER_S + deadlines.CONNECT_TIMEOUT_S < deadlines.REMOTE_TIMEOUT_S
    assert happy_eyeballs.TIMEOUTS_S[0] < pool.RIVAL_AFTER_S


def test_what_a_login_needs_outlives_it() -> None:
    """Home, uid and the time of its lookup are kept for longer than a login may take to begin."""
    grace_s = _login_grace_time_s()
    home_s = home_directories.UNUSED_S + privileged_server.SWEEP_S
    assert min(home_directories.UNUSED_S, refusal_timing.LOOKUP_S) > grace_s
    assert grace_s + uid_table._SEEN_STEP_S + home_s < uid_table.STRANGER_REUSE_AFTER_S < uid_table.REUSE_AFTER_S
