"""The deadline of each step of a login, in seconds, the longest first: each leaves time for the next one.

sshd's own deadline is LoginGraceTime (60-abuse.conf), 45 s: sshd rounds the time of its key command up, at most to
twice as much (auth2.c, ensure_minimum_time_since). tests/unit/test_deadlines.py asserts the order.
"""

from __future__ import annotations

DRAIN_S = 22.0
"""After SIGTERM the broker finishes the logins that it has begun."""

ANSWER_TIMEOUT_S = 22.0
"""A helper waits for the broker's answer."""

WORK_TIMEOUT_S = 21.0
"""The broker works on one request. Less than ANSWER_TIMEOUT_S, so that the helpers get the reason of a failure."""

REMOTE_TIMEOUT_S = 20.0
"""One request waits for the remote. Less than WORK_TIMEOUT_S, so that its outcome is logged."""

CONNECT_TIMEOUT_S = 15.0
"""From the first packet to an authenticated connection. Less than REMOTE_TIMEOUT_S, with time for a second connection
that begins later; 50 round trips of 300 ms."""

TURN_WAIT_S = 12.0
"""A login with the user's own agent waits for its turn."""

RUN_TIMEOUT_S = 10.0
"""One command runs on the remote."""

WARM_TIMEOUT_S = 4.0
"""A command over a warm connection, whose data the remote's kernel has acknowledged, waits for its answer before a new
connection is tried in parallel: on a busy machine mosh-server starts slowly."""
