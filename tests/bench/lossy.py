"""First logins of distinct users where many packets are lost: how many get in, and after how long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.load import Crowd
from bench.stats import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway

RTT_MS = 100.0
LOSS = 0.29
"""Each way: what mosh's authors measured with."""

WEATHER = f"{RTT_MS:g} ms RTT, {LOSS:.0%} loss"

_AT_ONCE = 4
_BATCH = 8
"""Logins that all end before a crowd's patience does."""


class LossyBench:
    """Logs in for the first time.

    Args:
        lab: The lab.
        gateway: Its gateway.
        say: Told what is going on.
    """

    def __init__(self, lab: Lab, gateway: Gateway, say: Callable[[str], None]) -> None:
        """Log in once, so that the gateway has spoken with the remote before, as it has at work."""
        self._lab, self._gateway, self._say = lab, gateway, say
        self._crowd = Crowd(lab)
        self._log_in(1)

    def _log_in(self, number: int) -> list[float]:
        users = [self._lab.add_user() for _ in range(number)]
        logins = [(self._lab.gateway_argv(self._gateway, user, options=["-tt"]), user.prompt) for user in users]
        return self._crowd.log_in(logins, _AT_ONCE, stay=False)

    def measure(self, number: int) -> tuple[Sample, float]:
        """Have so many users log in.

        Returns:
            Seconds to the remote prompt, ``inf`` for who was refused; and connections to the remote for each login.
        """
        times: list[float] = []
        since = self._lab.remote.log.mark()
        with self._lab.wan.weather(rtt_ms=RTT_MS, loss=LOSS):
            while len(times) < number:
                self._say(f"first logins at {LOSS:.0%} loss: {len(times)} of {number}")
                times += self._log_in(min(_BATCH, number - len(times)))
        for reason, count in self._crowd.reasons.items():
            self._say(f"{count} refused: {reason}")
        return Sample(tuple(times)), self._lab.remote.connections(since=since) / number
