"""From starting the client to the remote prompt on its screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.stats import Fit, Sample, fit
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.bare import BareSshd
    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

COLD, WARM, LATER = "gateway, first login", "gateway, within a minute", "gateway, within ten minutes"
"""Of one user: nothing is known yet; keys were fetched within GATEWAY_CACHE_TTL; they were fetched before that."""
SSH, MOSH, JUMP = "ssh, direct", "mosh, direct", "ssh -J, jump host"
WAYS = (COLD, WARM, LATER, SSH, MOSH, JUMP)

FIRST_FRAME = "mosh-client alone, to a mosh-server that waits"
"""No login, but what each login over mosh has in it."""

TIMEOUT_S = 30.0
"""Longest wait for a prompt, in seconds; a login that takes longer counts as endless."""

TTL_S = 10
"""GATEWAY_CACHE_TTL, in seconds, of the gateway on which a login comes after its end."""

_APART_S = 0.3
"""Between logins, for the one before to leave."""

Logins = dict[str, Sample]


class LoginBench:
    """Times logins.

    Args:
        lab: The lab.
        gateway: Its gateway.
        forgetful: One whose GATEWAY_CACHE_TTL is `TTL_S`.
        jump: The jump host.
        say: Told what is going on.
    """

    def __init__(
        self, lab: Lab, gateway: Gateway, forgetful: Gateway, jump: BareSshd, say: Callable[[str], None]
    ) -> None:
        """Log in once, so that the gateways have spoken with the remote before, as they have at work."""
        self._lab, self._gateway, self._forgetful, self._jump, self._say = lab, gateway, forgetful, jump, say
        self._user = lab.add_user()
        for each in (gateway, forgetful):
            self.login_s(lab.gateway_argv(each, self._user), self._user)
        self._forgotten_s = time.monotonic() + TTL_S

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

    def _first_frame_s(self) -> float:
        """Return the seconds from starting mosh-client to the prompt, where bash has its prompt since a while."""
        argv = ["setpriv", f"--reuid={self._user.uid}", f"--regid={self._user.uid}", "--clear-groups"]
        argv += ["env", "-i", "-C", self._user.home, f"HOME={self._user.home}", f"USER={self._user.name}"]
        argv += ["LANG=C.UTF-8", "PATH=/usr/bin:/bin", "mosh-server", "new", "-i", FAR_IPV4, "--", "/bin/bash", "-l"]
        said = self._lab.remote.room.run(argv).stdout
        _, _, port, key = said[said.index("MOSH CONNECT") :].split()[:4]
        time.sleep(_APART_S)
        started_s = time.monotonic()
        terminal = self._lab.terminal(["mosh-client", FAR_IPV4, port], environment={"MOSH_KEY": key})
        terminal.wait_for(self._user.prompt, timeout_s=TIMEOUT_S)
        ended_s = time.monotonic()
        terminal.close()
        return ended_s - started_s

    def first_frames(self, runs: int, rtt_ms: float) -> Sample:
        """Time mosh's first frame."""
        self._say(f"mosh's first frame at {rtt_ms:g} ms")
        with self._lab.wan.weather(rtt_ms=rtt_ms):
            return Sample(tuple(self._first_frame_s() for _ in range(runs)))

    def _once(self, way: str) -> float:
        lab, gateway, user = self._lab, self._gateway, self._user
        if way == COLD:
            stranger = lab.add_user()
            return self.login_s(lab.gateway_argv(gateway, stranger), stranger)
        if way == LATER:
            time.sleep(max(0.0, self._forgotten_s - time.monotonic()))
        argv = {
            WARM: lambda: lab.gateway_argv(gateway, user),
            LATER: lambda: lab.gateway_argv(self._forgetful, user),
            SSH: lambda: lab.direct_ssh_argv(user),
            MOSH: lambda: lab.direct_mosh_argv(user),
            JUMP: lambda: lab.direct_ssh_argv(user, options=self._jump.jump_options()),
        }[way]()
        taken_s = self.login_s(argv, user)
        if way == LATER:
            self._forgotten_s = time.monotonic() + TTL_S
        return taken_s

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
    return {way: fit({rtt_ms: logins[way].median for rtt_ms, logins in rows}) for way in rows[0][1]}
