"""Many logins at once, and many sessions that do nothing."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bare import GREETING
from bench.stats import Sample
from lab.processes import processes_in
from lab.users import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.bare import BareSshd
    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.users import User

_TIMEOUT_S = 90.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class _Client:
    process: subprocess.Popen[bytes]
    marker: bytes
    started_s: float
    output: bytes = b""


class Crowd:
    """Clients without a screen: each is an ``ssh -tt`` whose output is searched for a word.

    Args:
        lab: The lab.

    Attributes:
        reasons: What clients that did not get in said last, and how many did.
    """

    def __init__(self, lab: Lab) -> None:
        """Have nobody."""
        self._lab = lab
        self._inside: list[_Client] = []
        self.reasons: Counter[str] = Counter()

    def _start(self, argv: Sequence[str], marker: str) -> _Client:
        process = subprocess.Popen(
            self._lab.near.network_argv(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._lab.environment(),
            start_new_session=True,
        )
        return _Client(process, marker.encode(), time.monotonic())

    def log_in(self, logins: Iterable[tuple[Sequence[str], str]], at_once: int, *, stay: bool) -> list[float]:
        """Log in, so many at once.

        Args:
            logins: Command lines, each with the word that shows success.
            at_once: How many clients there are at a time.
            stay: Whether sessions stay open, until `leave`.

        Returns:
            Seconds from each client's start to its word; ``inf`` for those that ended or took 90 s without it.
        """
        waiting = deque(logins)
        times: list[float] = []
        with selectors.DefaultSelector() as selector:
            deadline_s = time.monotonic() + _TIMEOUT_S
            while waiting or selector.get_map():
                while waiting and len(selector.get_map()) < at_once:
                    client = self._start(*waiting.popleft())
                    assert client.process.stdout is not None
                    selector.register(client.process.stdout, selectors.EVENT_READ, client)
                ready = selector.select(max(0.0, deadline_s - time.monotonic()))
                now_s = time.monotonic()
                if now_s >= deadline_s:
                    ready = [(key, 0) for key in selector.get_map().values()]
                    times += [float("inf")] * len(waiting)
                    waiting.clear()
                for key, events in ready:
                    client = key.data
                    chunk = os.read(key.fd, 65536) if events else b""
                    client.output += chunk
                    succeeded = client.marker in client.output
                    if not succeeded and chunk:
                        continue
                    times.append(now_s - client.started_s if succeeded else float("inf"))
                    if not succeeded:
                        said = re.sub(r"[\d.]+", "#", client.output.decode("utf-8", "replace")).split("\n")
                        self.reasons[next((line.strip() for line in reversed(said) if line.strip()), "nothing")] += 1
                    selector.unregister(key.fileobj)
                    if succeeded and stay:
                        self._inside.append(client)
                    else:
                        _end(client)
        return times

    def leave(self) -> None:
        """End all sessions that stayed."""
        while self._inside:
            _end(self._inside.pop())


def _end(client: _Client) -> None:
    client.process.send_signal(signal.SIGTERM)
    assert client.process.stdin is not None
    assert client.process.stdout is not None
    client.process.stdin.close()
    client.process.stdout.close()
    client.process.wait()


class LoadBench:
    """Puts a gateway under load.

    Args:
        lab: The lab.
        gateway: Its gateway.
        bare: An sshd to compare with.
        users: How many users there are.
        say: Told what is going on.
    """

    def __init__(self, lab: Lab, gateway: Gateway, bare: BareSshd, users: int, say: Callable[[str], None]) -> None:
        """Make the users, who share a key."""
        self._lab, self._gateway, self._bare, self._say = lab, gateway, bare, say
        key = make_key(lab.directory / "keys" / "crowd")
        authorized = [key.public, lab.gateway_key.public]
        say(f"making {users} users")
        self._users = [lab.remote.add_user(f"crowd{number}", key, authorized=authorized) for number in range(users)]
        self._crowd = Crowd(lab)

    def _login(self, number: int, user: User) -> tuple[list[str], str]:
        # From an address of its own: the limits for one address are for one address.
        source = f"127.1.{number // 250}.{number % 250 + 1}"
        options = ["-tt", "-o", f"BindAddress={source}"]
        return self._lab.gateway_argv(self._gateway, user, options=options), user.prompt

    def rates(self, logins: int, at_once: int) -> dict[str, float]:
        """Return logins per second: whole sessions, on the gateway and on a bare sshd, and authentication alone."""
        user = self._users[0]
        wholly = [self._login(0, user)]
        bare = [(self._bare.argv(options=["-tt"]), GREETING)]
        # A subsystem that does not exist is refused once the user is in: nothing is started for it on either side.
        refused = (["-s"], ["nothing"], "subsystem request failed")
        authenticated = [
            (self._lab.gateway_argv(self._gateway, user, *refused[1], options=refused[0]), refused[2]),
            (self._bare.argv(options=refused[0], command=refused[1]), refused[2]),
        ]
        self._crowd.log_in(wholly, 1, stay=False)  # from now on the keys are remembered
        rates = {}
        for name, login in {
            "bare sshd, forced echo": bare,
            "gateway, whole sessions with mosh": wholly,
            "bare sshd, authentication alone": authenticated[1:],
            "gateway, authentication alone": authenticated[:1],
        }.items():
            self._say(f"logins per second: {name}")
            began_s = time.monotonic()
            times = self._crowd.log_in(login * logins, at_once, stay=False)
            rates[name] = sum(value < float("inf") for value in times) / (time.monotonic() - began_s)
        return rates

    def bare_burst(self) -> Sample:
        """Let as many log in on the bare sshd at the same time, and return the seconds for each."""
        self._say(f"a burst of {len(self._users)} logins on a bare sshd")
        login = (self._bare.argv(options=["-tt"]), GREETING)
        return Sample(tuple(self._crowd.log_in([login] * len(self._users), len(self._users), stay=False)))

    def burst(self) -> tuple[Sample, int, float]:
        """Let all users log in at the same time, for the first time, and stay.

        Returns:
            Seconds for each, the most logins that the remote saw of one user, and the milliseconds of processor time
            that the gateway spent on each.
        """
        self._say(f"a burst of {len(self._users)} logins")
        before_s = _tree_cpu_s(self._gateway)
        since = self._lab.remote.log.mark()
        users = list(enumerate(self._users))
        times = self._crowd.log_in([self._login(*each) for each in users], len(users), stay=True)
        for reason, count in self._crowd.reasons.most_common(5):
            self._say(f"{count} did not get in: {reason}")
        logins = max(self._lab.remote.accepted(user, since=since) for user in self._users)
        return Sample(tuple(times)), logins, (_tree_cpu_s(self._gateway) - before_s) * 1000 / len(users)

    def idle(self, seconds: float) -> dict[str, float]:
        """Measure what the sessions that stayed cost while nobody types, and end them."""
        self._say("idle sessions")
        time.sleep(3)  # the last login is over
        processes = self._gateway.processes()
        clients = [process for process in processes if process.name == "mosh-client"]
        python = [process for process in processes if "python" in _program(process)]
        broker = [process for process in python if "helpers.broker" in process.argv]
        session = [process for process in processes if process.name in {"sshd", "sshd-session", "mosh-client"}]
        before, began_s = sum(map(_cpu_s, processes)), time.monotonic()
        time.sleep(seconds)
        share = (sum(map(_cpu_s, processes)) - before) / (time.monotonic() - began_s)
        pss_mb = sum(map(_pss_mb, session)) / max(1, len(clients))
        result = {
            "sessions": len(clients),
            "memory per session, MB (PSS)": pss_mb,
            "broker, MB (PSS)": sum(map(_pss_mb, broker)),
            "gateway's CPU, share of a core": share,
            "Python processes besides supervisor and broker": len(python) - 2,
        }
        self._crowd.leave()
        return result


def _tree_cpu_s(gateway: Gateway) -> float:
    """Return the processor time of all that ran on the gateway so far, what has ended included."""
    # A process that has ended is in the account of the one that waited for it, and the last of those is the init.
    return sum(_cpu_s(process, ended=True) for process in processes_in(gateway.room.pid_namespace))


def _program(process: Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/exe").readlink())
    except OSError:
        return ""


def _pss_mb(process: Process) -> float:
    """Return a process's share of the memory, in megabytes (proc(5), smaps_rollup)."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:")), 0.0)


def _cpu_s(process: Process, *, ended: bool = False) -> float:
    """Return the processor time of a process so far, in seconds (proc(5), /proc/PID/stat, fields 14 to 17).

    Args:
        process: The process.
        ended: With that of the children it waited for.
    """
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if ended else 13])) / _TICKS_PER_S
