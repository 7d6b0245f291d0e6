"""``make soak``: many sessions that do nothing, people who come and go, and strangers, for an hour: does anything grow?

What is looked at does not depend on the machine's speed, so it may be busy with other things meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.load import Crowd, pss_mb
from bench.report import machine
from bench.stats import Sample, fit
from lab.bench import Lab
from lab.needs import what_is_missing
from lab.users import make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lab.gateway import Gateway
    from lab.users import User

VISITORS = 20
"""Users who come and go. With 500 sessions there are more users than the broker keeps connections for."""

INVENTED_A_ROUND = 3
"""Names in each round that nobody has; the smallest range of uids is used up by them within half an hour."""

ROUND_S = 6.0
"""Seconds from one round of people coming and going to the next."""

SETTINGS = {"GATEWAY_UID_RANGE": "1900000000:1900001023"}
"""The smallest range there is, so that uids are given out again within the hour."""

_AT_ONCE = 6
_SAMPLES = 60
_SETTLE_S = 15 * 60.0
"""Seconds for all to be as at the start once everybody has left: connections are kept for ten minutes."""

COUNTS = (
    "gateway's processes",
    "broker, open files",
    "supervisor, open files",
    "sshd's listener, open files",
    "files in the runtime directory",
    "homes",
    "remote's processes",
)
"""What of it must be as it was before when everybody has left."""


def look(lab: Lab, gateway: Gateway) -> dict[str, float]:
    """Count and weigh what could grow.

    Args:
        lab: The lab.
        gateway: Its gateway.

    Returns:
        By name: counts, megabytes and kilobytes.
    """
    processes = gateway.processes()
    sessions = [process for process in processes if process.name == "mosh-client"]
    listener = gateway.listener
    carriers = [
        process for process in processes if process.name in {"sshd", "sshd-session"} and process.pid != listener.pid
    ]
    named = {"broker": gateway.broker.pid, "supervisor": gateway.pid, "sshd's listener": listener.pid}
    root = Path(gateway.settings["GATEWAY_RUNTIME_DIR"])
    # Not pathlib's: directories go while it looks.
    runtime = [Path(where) / name for where, directories, files in os.walk(root) for name in directories + files]
    remote = lab.remote.processes()
    found: dict[str, float] = {
        "sessions": len(sessions),
        "a session, MB (PSS)": sum(map(pss_mb, (its.pid for its in sessions + carriers))) / max(1, len(sessions)),
        "gateway's processes": len(processes),
        "files in the runtime directory": len(runtime),
        "runtime directory, kB": sum(_size_bytes(path) for path in runtime) / 1000,
        "homes": sum(path.parent == root / "home" for path in runtime),
        "remote's processes": len(remote),
        "remote's mosh-servers": sum(process.name == "mosh-server" for process in remote),
    }
    for name, pid in named.items():
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found[f"{name}, open files"] = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        found[f"{name}, threads"] = int(status["Threads"])
        found[f"{name}, MB (RSS)"] = int(status["VmRSS"].split()[0]) / 1000
        found[f"{name}, MB (PSS)"] = pss_mb(pid)
    return {name: round(value, 1) for name, value in found.items()}


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512  # stat(2); lastlog is mostly holes
    except OSError:
        return 0


class Town:
    """Everybody who uses a gateway, and who tries to.

    Args:
        lab: The lab.
        gateway: Its gateway.
        people: How many users there are.
    """

    def __init__(self, lab: Lab, gateway: Gateway, people: int) -> None:
        """Make the users, who share a key."""
        self._lab, self._gateway = lab, gateway
        key = make_key(lab.directory / "keys" / "town")
        self._wrong = make_key(lab.directory / "keys" / "wrong")
        authorized = [key.public, lab.gateway_key.public]
        self.people = [lab.remote.add_user(f"town{number}", key, authorized=authorized) for number in range(people)]
        self._numbers: dict[User | str, int] = {user: number for number, user in enumerate(self.people)}
        self._crowd = Crowd(lab)
        self._tried = 0
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    @property
    def reasons(self) -> Counter[str]:
        """What those said who saw something else than they should have."""
        return self._crowd.reasons

    def _argv(self, user: User | str, *command: str, tty: bool = False, key: Path | None = None) -> list[str]:
        # The limits for one address are for one address. Who lives here has one, which the gateway remembers for a day;
        # strangers have a new one each time.
        self._tried += 1
        known = user in self._numbers
        network, number = (2, self._numbers[user]) if known and key is None else (3, self._tried)
        source = f"127.{network}.{number // 250 % 250}.{number % 250 + 1}"
        options = [*(["-tt"] if tty else []), "-o", f"BindAddress={source}"]
        return self._lab.gateway_argv(self._gateway, user, *command, options=options, key=key)

    def settle_in(self, users: Sequence[User]) -> None:
        """Let users log in and stay."""
        # A few at a time, since the crowd's patience is for all that come together.
        for first in range(0, len(users), _AT_ONCE):
            logins = [(self._argv(user, tty=True), user.prompt) for user in users[first : first + _AT_ONCE]]
            self._do("session that stays", logins, stay=True)

    def round(self, visitors: Sequence[User], neighbours: Sequence[User], invented: int) -> None:
        """Let visitors log in and leave, and run a command; refuse neighbours' wrong keys, and invented names.

        Args:
            visitors: Who comes and goes.
            neighbours: Whose names somebody tries with a wrong key.
            invented: How many names are tried that nobody has, new ones each time.
        """
        refused, wrong = "Permission denied", self._wrong.private
        names = [f"invented{self._tried}x{number}" for number in range(invented)]
        self._do("login and logout", [(self._argv(its, tty=True), its.prompt) for its in visitors])
        self._do("command over ssh", [(self._argv(its, "echo", "$((6 * 7))th"), "42th") for its in visitors])
        self._do("wrong key", [(self._argv(its, key=wrong), refused) for its in neighbours])
        self._do("invented name", [(self._argv(name, key=wrong), refused) for name in names])

    def _do(self, kind: str, clients: list[tuple[list[str], str]], *, stay: bool = False) -> None:
        times = self._crowd.log_in(clients, _AT_ONCE, stay=stay)
        self.done[kind] += len(times)
        self.failed[kind] += sum(value == float("inf") for value in times)

    def leave(self) -> None:
        """End the sessions that stayed."""
        self._crowd.leave()


@dataclass
class Soak:
    """One soak.

    Attributes:
        minutes: How long it is, without coming and going at its ends.
        sessions: How many sessions do nothing meanwhile.
        machine: Where.
        base: What there was before anybody came.
        samples: What there was meanwhile, a sixtieth of the time apart.
        after: What there was after everybody had left, when it was as before or patience was over.
        done: How often each thing was done.
        failed: How often it ended otherwise than it should.
        reasons: What was said then.
        restarted: Whether the broker at the end is another one than at the start.
    """

    minutes: float
    sessions: int
    machine: dict[str, str | int | float]
    base: dict[str, float]
    samples: list[dict[str, float]]
    after: dict[str, float]
    done: dict[str, int]
    failed: dict[str, int]
    reasons: dict[str, int]
    restarted: bool

    def thirds(self, name: str) -> tuple[Sample, Sample]:
        """Return what was seen in the second third and in the last; the first is for warming up."""
        values = [sample[name] for sample in self.samples]
        third = len(values) // 3
        return Sample(tuple(values[third : 2 * third])), Sample(tuple(values[2 * third :]))

    def grows(self, name: str) -> bool:
        """Tell whether half of the last third lies above nine tenths of the second."""
        earlier, later = self.thirds(name)
        return later.median > earlier.quantile(0.9)

    def an_hour(self, name: str) -> float:
        """Return by how much it rises in an hour: the slope of a line through the last two thirds."""
        step_s = self.minutes * 60 / len(self.samples)
        values = [sample[name] for sample in self.samples][len(self.samples) // 3 :]
        # fit() is told milliseconds, and says how much there is more of for each second.
        return fit({number * step_s * 1000: value for number, value in enumerate(values)}).round_trips * 3600

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, in words; nothing where all is well."""
        names = self.samples[0]
        return [
            *(f"{name} grows" for name in names if self.grows(name)),
            *(
                f"{name}: {self.after[name]:g} when everybody has left, {self.base[name]:g} before"
                for name in COUNTS
                if self.after[name] > self.base[name]
            ),
            *(f"{kind}: {count} of {self.done[kind]} went wrong" for kind, count in self.failed.items() if count),
            *(["the broker was started anew"] if self.restarted else []),
            *([] if self.samples[-1]["sessions"] >= self.sessions else ["sessions ended that should have stayed"]),
        ]

    def write_json(self, path: Path) -> None:
        """Write everything."""
        path.write_text(json.dumps({**vars(self), "faults": self.faults}, indent=1) + "\n")

    def print(self, console: Console) -> None:
        """Print one table."""
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
        console.print(f"{self.minutes:g} minutes, {self.sessions} sessions that do nothing; meanwhile:")
        for kind, count in self.done.items():
            console.print(f"  {kind}: {count}, {self.failed[kind]} of them not as it should be")
        for reason, count in self.reasons.items():
            console.print(f"  {count} said: {reason}")
        table = Table("what", "before", "2nd third", "last third", "more in an hour", "grows", "when all have left")
        for name in self.samples[0]:
            earlier, later = self.thirds(name)
            table.add_row(
                name,
                f"{self.base[name]:g}",
                *(f"{its.median:g} ({min(its.values):g} - {max(its.values):g})" for its in (earlier, later)),
                f"{self.an_hour(name):+.1f}",
                "YES" if self.grows(name) else "no",
                f"{self.after[name]:g}",
            )
        console.print(table)
        console.print("\n".join(self.faults) or "Nothing grows, and nothing is left behind.")


def soak(lab: Lab, minutes: float, sessions: int, say: Callable[[str], None]) -> Soak:
    """Run it.

    Args:
        lab: The lab.
        minutes: How long.
        sessions: How many sessions do nothing meanwhile.
        say: Told what is going on.
    """
    gateway = lab.start_gateway(SETTINGS)
    town = Town(lab, gateway, sessions + VISITORS)
    staying, visitors = town.people[:sessions], town.people[sessions:]
    base, broker = look(lab, gateway), gateway.broker
    say(f"{sessions} sessions begin")
    town.settle_in(staying)
    samples: list[dict[str, float]] = []
    began_s, rounds = time.monotonic(), 0
    while (passed_s := time.monotonic() - began_s) < minutes * 60:
        if passed_s >= len(samples) * minutes * 60 / _SAMPLES:
            samples.append(look(lab, gateway))
            say(f"minute {passed_s / 60:.0f}: " + ", ".join(f"{name} {value:g}" for name, value in samples[-1].items()))
        town.round([visitors[rounds % VISITORS]], [(staying or visitors)[rounds % max(1, sessions)]], INVENTED_A_ROUND)
        rounds += 1
        time.sleep(max(0.0, began_s + rounds * ROUND_S - time.monotonic()))
    say("everybody leaves")
    town.leave()
    after: dict[str, float] = {}

    def is_as_before() -> bool:
        after.update(look(lab, gateway))
        time.sleep(10)  # a look at all processes costs the machine something
        return all(after[name] <= base[name] for name in COUNTS)

    try:
        wait_until(is_as_before, "all is as before", timeout_s=_SETTLE_S)
    except AssertionError:
        say("not all is as before")  # what is not is in the result
    restarted = gateway.broker.identity != broker.identity
    told = dict(town.done), dict(town.failed), dict(town.reasons)
    return Soak(minutes, sessions, machine(), base, samples, after, *told, restarted)


def _ended(*_: object) -> None:
    """End on SIGTERM or SIGHUP as on Ctrl-C: with everything taken down."""
    raise KeyboardInterrupt


def main() -> int:
    """Soak, and return the exit status: 1 when something grows, is left behind, or went wrong."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--sessions", type=int, default=500, help="sessions that do nothing (default: 500)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    arguments = parser.parse_args()
    if missing := what_is_missing():
        print(f"soak: {missing}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)

    def say(what: str) -> None:
        print(f"soak: {what}", file=sys.stderr, flush=True)

    with Lab(rtt_ms=20) as lab:
        result = soak(lab, arguments.minutes, arguments.sessions, say)
    if arguments.json:
        result.write_json(arguments.json)
    result.print(Console(highlight=False, width=150))
    return 1 if result.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
