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
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.bare import BareSshd
    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.room import Room
    from lab.users import User

BARE_SESSIONS, SESSIONS = "bare sshd, forced echo", "gateway, whole sessions with mosh"
BARE_LOGINS, LOGINS = "bare sshd, authentication alone", "gateway, authentication alone"

PROCESSES_EACH, SESSION_MB = "processes for each, two of them sshd's", "memory for each, MB (PSS)"
BROKER_MB, CPU_SHARE = "broker, MB (PSS)", "CPU of supervisor, broker and sshd, share of a core"
MOSH_SHARE = "CPU of the mosh-clients, share of a core"
PYTHON_LEFT = "Python besides supervisor and broker"

_TIMEOUT_S = 90.0
_AT_ONCE = 6
_CHUNK = 60
"""Sessions that begin within one `_TIMEOUT_S`."""
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
        say: Told what is going on.

    Attributes:
        cpu_ms: Processor time of the gateway, and of the bare sshd, for each login, in milliseconds.
    """

    def __init__(self, lab: Lab, gateway: Gateway, bare: BareSshd, say: Callable[[str], None]) -> None:
        """Have nobody yet."""
        self._lab, self._gateway, self._bare, self._say = lab, gateway, bare, say
        self._key = make_key(lab.directory / "keys" / "crowd")
        self._users: list[User] = []
        self._crowd = Crowd(lab)
        self.cpu_ms: dict[str, float] = {}

    def _make_users(self, number: int) -> list[User]:
        """Make users, who share a key."""
        authorized = [self._key.public, self._lab.gateway_key.public]
        first = len(self._users)
        made = [
            self._lab.remote.add_user(f"crowd{each}", self._key, authorized=authorized)
            for each in range(first, first + number)
        ]
        self._users += made
        return made

    def _login(self, number: int, user: User) -> tuple[list[str], str]:
        # From an address of its own: the limits for one address are for one address.
        source = f"127.1.{number // 250}.{number % 250 + 1}"
        options = ["-tt", "-o", f"BindAddress={source}"]
        return self._lab.gateway_argv(self._gateway, user, options=options), user.prompt

    def rates(self, logins: int, at_once: int) -> dict[str, float]:
        """Return logins per second: whole sessions, on the gateway and on a bare sshd, and authentication alone."""
        wait_until(lambda: not self._lab.remote.processes("mosh-server"), "all have left", timeout_s=120)
        (user,) = self._users[:1] or self._make_users(1)
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
        for name, room, login in (
            (BARE_SESSIONS, self._bare.room, bare),
            (SESSIONS, self._gateway.room, wholly),
            (BARE_LOGINS, self._bare.room, authenticated[1:]),
            (LOGINS, self._gateway.room, authenticated[:1]),
        ):
            self._say(f"logins per second: {name}")
            before_s, began_s = _tree_cpu_s(room), time.monotonic()
            times = self._crowd.log_in(login * logins, at_once, stay=False)
            rates[name] = sum(value < float("inf") for value in times) / (time.monotonic() - began_s)
            self.cpu_ms[name] = (_tree_cpu_s(room) - before_s) * 1000 / logins
        return rates

    def bare_burst(self, users: int) -> Sample:
        """Let so many log in on the bare sshd at the same time, and return the seconds for each."""
        self._say(f"a burst of {users} logins on a bare sshd")
        login = (self._bare.argv(options=["-tt"]), GREETING)
        return Sample(tuple(self._crowd.log_in([login] * users, users, stay=False)))

    def burst(self, users: int) -> tuple[Sample, int, float]:
        """Let so many users log in at the same time, for the first time, and stay.

        Returns:
            Seconds for each, the most logins that the remote saw of one user, and the milliseconds of processor time
            that the gateway spent on each.
        """
        self._say(f"a burst of {users} logins")
        crowd = list(enumerate(self._make_users(users)))
        before_s = _tree_cpu_s(self._gateway.room)
        since = self._lab.remote.log.mark()
        times = self._crowd.log_in([self._login(*each) for each in crowd], users, stay=True)
        for reason, count in self._crowd.reasons.most_common(5):
            self._say(f"{count} did not get in: {reason}")
        logins = max(self._lab.remote.accepted(user, since=since) for _, user in crowd)
        return Sample(tuple(times)), logins, (_tree_cpu_s(self._gateway.room) - before_s) * 1000 / users

    def idle(self, sessions: int, seconds: float) -> dict[str, float]:
        """Let more users log in, measure what sessions cost while nobody types, and end them all.

        Args:
            sessions: How many there are to be, with those that are there.
            seconds: How long they are watched.
        """
        more = sessions - len(self._gateway.processes("mosh-client"))
        self._say(f"{more} more sessions, and then all idle")
        for first in range(0, more, _CHUNK):
            users = [(len(self._users), self._make_users(1)[0]) for _ in range(first, min(first + _CHUNK, more))]
            self._crowd.log_in([self._login(*each) for each in users], _AT_ONCE, stay=True)
        time.sleep(3)  # the last login is over
        processes = self._gateway.processes()
        clients = [process for process in processes if process.name == "mosh-client"]
        python = [process for process in processes if "python" in _program(process)]
        broker = [process for process in python if "helpers.broker" in process.argv]
        session = [process for process in processes if process.name in {"sshd", "sshd-session", "mosh-client"}]
        own = [process for process in processes if process.name != "mosh-client"]

        def cpu_s() -> tuple[float, float]:
            return sum(map(_cpu_s, own)), sum(map(_cpu_s, clients))

        before_s, began_s = cpu_s(), time.monotonic()
        time.sleep(seconds)
        passed_s = time.monotonic() - began_s
        share, mosh_share = ((after - before) / passed_s for before, after in zip(before_s, cpu_s(), strict=True))
        each_mb = sum(pss_mb(process.pid) for process in session) / max(1, len(clients))
        # Supervisor, broker and listener are nobody's.
        each = (len(processes) - 3) / max(1, len(clients))
        result = {
            "sessions": len(clients),
            PROCESSES_EACH: each,
            SESSION_MB: each_mb,
            BROKER_MB: sum(pss_mb(process.pid) for process in broker),
            CPU_SHARE: share,
            MOSH_SHARE: mosh_share,
            PYTHON_LEFT: len(python) - 2,
        }
        self._crowd.leave()
        return result


def _tree_cpu_s(room: Room) -> float:
    """Return the processor time of all that ran in a room so far, what has ended included, in seconds."""
    # A process that has ended is in the account of the one that waited for it, and the last of those is the init.
    return sum(_cpu_s(process, ended=True) for process in processes_in(room.pid_namespace))


def _program(process: Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/exe").readlink())
    except OSError:
        return ""


def pss_mb(pid: int) -> float:
    """Return a process's share of the memory, in megabytes (proc(5), smaps_rollup); 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
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
