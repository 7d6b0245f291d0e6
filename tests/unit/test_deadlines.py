"""The deadlines of a login, each of which leaves room for those that it has to outlast."""

from __future__ import annotations

import re
from itertools import pairwise

from gatewayctl import errands, homes
from gatewayctl.render import template_directory
from helpers import dial, protocol
from helpers.broker import __main__ as main
from helpers.broker import broker, connections, logins, pacing, remote, server, users


def _login_grace_time_s() -> float:
    (found,) = re.findall(r"^LoginGraceTime (\d+)$", (template_directory() / "60-abuse.conf").read_text(), re.MULTILINE)
    return float(found)


def test_each_outlasts_what_it_waits_for() -> None:
    """Who waits is there to be told why, from sshd down to the command that runs on the remote."""
    chain = [
        # sshd takes up to twice what the key command took (auth2.c), and the client needs some time before that.
        _login_grace_time_s(),
        2 * protocol.ANSWER_TIMEOUT_S,
        protocol.ANSWER_TIMEOUT_S,
        server.WORK_TIMEOUT_S,
        broker.REMOTE_TIMEOUT_S,
        remote.CONNECT_TIMEOUT_S,
        sum(dial.TIMEOUTS_S),
    ]
    assert all(longer > shorter for longer, shorter in pairwise(chain))
    assert remote.CONNECT_TIMEOUT_S > connections.RUN_TIMEOUT_S > connections.WARM_TIMEOUT_S
    assert server.WORK_TIMEOUT_S > logins.WAIT_S
    assert main.DRAIN_S > server.WORK_TIMEOUT_S


def test_a_rival_has_as_long_as_the_first() -> None:
    """Where the first one connects at once: it is tried a while later, and then has its own time."""
    assert connections.RIVAL_AFTER_S + remote.CONNECT_TIMEOUT_S < broker.REMOTE_TIMEOUT_S
    assert dial.TIMEOUTS_S[0] < connections.RIVAL_AFTER_S


def test_what_a_login_needs_outlives_it() -> None:
    """Home, uid and the time of its lookup are kept for longer than a login may take to begin."""
    grace_s = _login_grace_time_s()
    home_s = homes.UNUSED_S + errands.SWEEP_S
    assert min(homes.UNUSED_S, pacing.LOOKUP_S) > grace_s
    assert grace_s + users._SEEN_STEP_S + home_s < users.STRANGER_REUSE_AFTER_S < users.REUSE_AFTER_S
