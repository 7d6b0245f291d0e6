"""From starting the client to the remote prompt on its screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.stats import Fit, Sample, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.bare import BareSshd
    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

COLD, WARM = "gateway, first login of a user", "gateway, every login after it"
SSH, MOSH, JUMP = "ssh, direct", "mosh, direct", "ssh -J, over a jump host"
WAYS = (COLD, WARM, SSH, MOSH, JUMP)

TIMEOUT_S = 30.0
"""Longest wait for a prompt, in seconds; a login that takes longer counts as endless."""

_APART_S = 0.3
"""Between logins, for the one before to leave."""

Logins = dict[str, Sample]


class LoginBench:
    """Times logins.

    Args:
        lab: The lab.
        gateway: Its gateway.
        jump: The jump host.
        say: Told what is going on.
    """

    def __init__(self, lab: Lab, gateway: Gateway, jump: BareSshd, say: Callable[[str], None]) -> None:
        """Log in once, so that the gateway has spoken with the remote before, as it has at work."""
        self._lab, self._gateway, self._jump, self._say = lab, gateway, jump, say
        self._user = lab.add_user()
        self.login_s(lab.gateway_argv(gateway, self._user), self._user)

    def login_s(self, argv: Sequence[str], user: User) -> float:
        """Return the seconds to the prompt; ``inf`` when there is none in time."""
        time.sleep(_APART_S)
        started_s = time.monotonic()
        terminal = self._lab.terminal(argv)
        try:
            terminal.wait_for(user.prompt, timeout_s=TIMEOUT_S)
        except AssertionError:
            return float("inf")
        finally:
            ended_s = time.monotonic()
            terminal.close()
        return ended_s - started_s

    def _once(self, way: str) -> float:
        lab, gateway, user = self._lab, self._gateway, self._user
        if way == COLD:
            stranger = lab.add_user()
            return self.login_s(lab.gateway_argv(gateway, stranger), stranger)
        argv = {
            WARM: lambda: lab.gateway_argv(gateway, user),
            SSH: lambda: lab.direct_ssh_argv(user),
            MOSH: lambda: lab.direct_mosh_argv(user),
            JUMP: lambda: lab.direct_ssh_argv(user, options=self._jump.jump_options()),
        }[way]()
        return self.login_s(argv, user)

    def measure(self, runs: int, **weather: float | None) -> Logins:
        """Time all ways in turn, so that what else the machine does meets all alike.

        Args:
            runs: How often.
            **weather: The WAN's conditions, see `lab.link.Conditions`.
        """
        words = ", ".join(f"{name} {value:g}" for name, value in weather.items() if value)
        with self._lab.wan.weather(**weather):
            # Keys are remembered for a minute; the warm login is one whose keys are.
            self._once(WARM)
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for run in range(runs):
                self._say(f"logins at {words}: {run + 1} of {runs}")
                for way in WAYS:
                    times[way].append(self._once(way))
        return {way: Sample(tuple(values)) for way, values in times.items()}

    def local(self, runs: int, bare: BareSshd, greeting: str) -> Sample:
        """Time a login on a bare sshd that says a word and leaves: nothing of it crosses the WAN."""
        self._say("logins on a bare sshd")
        times = []
        for _ in range(runs):
            started_s = time.monotonic()
            terminal = self._lab.terminal(bare.argv(options=["-tt"]))
            terminal.wait_until(lambda its: greeting in its.text, "bare sshd greets")
            times.append(time.monotonic() - started_s)
            terminal.close()
        return Sample(tuple(times))


def fits(by_rtt: Iterable[tuple[float, Logins]]) -> dict[str, Fit]:
    """Fit a line for each way through its medians over the round-trip times."""
    rows = list(by_rtt)
    return {way: fit({rtt_ms: logins[way].median for rtt_ms, logins in rows}) for way in WAYS}
