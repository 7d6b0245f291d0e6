"""How long each step of a login may take, in seconds: the longer ones first, each of which has room for the next.

sshd's own is LoginGraceTime (60-abuse.conf), 45 s: sshd rounds up what its key command takes, to twice as much at most
(auth2.c, ensure_minimum_time_since). tests/unit/test_deadlines.py asserts the order.
"""

from __future__ import annotations

DRAIN_S = 22.0
"""A broker that was told to end finishes the logins that it has begun."""

ANSWER_TIMEOUT_S = 22.0
"""A helper waits for the broker's answer."""

WORK_TIMEOUT_S = 21.0
"""The broker works on one request. Less than the helpers' own patience, so that they hear why it failed."""

REMOTE_TIMEOUT_S = 20.0
"""One request waits for the remote. Less than WORK_TIMEOUT_S, so that the log has how it ended."""

CONNECT_TIMEOUT_S = 15.0
"""From the first packet to an authenticated connection. Less than REMOTE_TIMEOUT_S, with room for a rival that begins
later; 50 round trips of 300 ms."""

TURN_WAIT_S = 12.0
"""A login by the user's own agent waits for its turn."""

RUN_TIMEOUT_S = 10.0
"""One command runs on the remote."""

WARM_TIMEOUT_S = 4.0
"""A warm connection to a remote whose kernel acknowledges, and whose programs do not answer, until a new one is tried
beside it: a mosh-server may take its time on a busy machine."""
