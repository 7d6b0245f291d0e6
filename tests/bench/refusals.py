"""How long a refusal takes, and whether that tells which names there are."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bench.stats import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

EXISTS, CLOSED, NOBODY = "user", "user without the gateway's key", "nobody"
KINDS = (EXISTS, CLOSED, NOBODY)
FIRST, REMEMBERED, AFTER_TTL = STATES = ("first", "remembered", "after GATEWAY_CACHE_TTL")
"""Of a name: nobody asked before; within GATEWAY_CACHE_TTL; after it, when a user's connection is still warm."""
WRONG_FIRST = "login, a wrong key first"
"""A first login of a user whose client offers another key before the right one."""

TTL_S = 15
"""GATEWAY_CACHE_TTL, in seconds: below the 60 s for which a connection without a session is kept, and longer than the
refusals of a batch take."""

_AT_ONCE = 4
_OF_EACH = 8
"""Names of each kind in a batch."""


class RefusalBench:
    """Times refusals of names of each kind by turns.

    Args:
        lab: The lab.
        gateway: Its gateway, whose GATEWAY_CACHE_TTL is `TTL_S`.
        say: Told what is going on.
    """

    def __init__(self, lab: Lab, gateway: Gateway, say: Callable[[str], None]) -> None:
        """Begin with a key that nobody has authorized."""
        self._lab, self._gateway, self._say = lab, gateway, say
        self._wrong = lab.add_user().key
        self._names = 0

    def _refusal_s(self, name: str) -> float:
        argv = self._lab.gateway_argv(self._gateway, name, "true", key=self._wrong.private)
        began_s = time.monotonic()
        done = self._lab.run(argv)
        taken_s = time.monotonic() - began_s
        assert b"Permission denied" in done.stderr, done
        return taken_s

    def _login_s(self, user: User) -> float:
        argv = self._lab.gateway_argv(self._gateway, user, "true", options=["-i", str(self._wrong.private)])
        began_s = time.monotonic()
        self._lab.run(argv).check_returncode()
        return time.monotonic() - began_s

    def _name(self, kind: str) -> str:
        self._names += 1
        if kind == NOBODY:
            return f"nobody{self._names}"
        return self._lab.add_user(authorized=[] if kind == CLOSED else None).name

    def measure(self, batches: int, rtt_ms: float, *, slow: bool) -> dict[str, Sample]:
        """Time refusals, and logins with a wrong key first.

        Args:
            batches: How many batches of names.
            rtt_ms: The WAN's round-trip time, in milliseconds.
            slow: Whether in each batch there is an account whose shell takes 4.9 s to start.

        Returns:
            Seconds, by state and kind.
        """
        times: dict[str, list[float]] = {}
        with self._lab.wan.weather(rtt_ms=rtt_ms), ThreadPoolExecutor(_AT_ONCE) as pool, ThreadPoolExecutor() as aside:
            # What a refusal takes goes by the last fetches, so the first batch is for those.
            for batch in range(batches + 1):
                self._say(f"refusals{', one account slow' * slow}: {batch} of {batches}")
                delayed = aside.submit(self._refuse_slowly) if slow else None
                for name, values in self._batch(pool).items():
                    if batch:
                        times.setdefault(name, []).extend(values)
                if delayed:
                    delayed.result()
        return {name: Sample(tuple(values)) for name, values in times.items()}

    def _batch(self, pool: ThreadPoolExecutor) -> dict[str, list[float]]:
        names = [(kind, self._name(kind)) for _ in range(_OF_EACH) for kind in KINDS]
        users = [self._lab.add_user() for _ in range(_OF_EACH)]
        times: dict[str, list[float]] = {}
        asked_s = 0.0
        for state in STATES:
            if state == AFTER_TTL:
                time.sleep(max(0.0, asked_s + TTL_S - time.monotonic()))
            taken_s = list(pool.map(self._refusal_s, [name for _, name in names]))
            if state == FIRST:
                asked_s = time.monotonic()
            for (kind, _), value in zip(names, taken_s, strict=True):
                times.setdefault(f"{state}, {kind}", []).append(value)
        times[WRONG_FIRST] = list(pool.map(self._login_s, users))
        return times

    def _refuse_slowly(self) -> None:
        user = self._lab.add_user()
        self._lab.remote.write_file(user, ".bashrc", "sleep 4.9\n")
        self._refusal_s(user.name)
