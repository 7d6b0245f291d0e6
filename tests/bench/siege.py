"""``make siege``: strangers and hostile users do all they can while others log in: who waits, and is anyone refused?

The attackers' clients run on this machine too, and take their share of it; so the same logins are measured before,
while all is quiet. A refusal is a failure.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.report import machine
from bench.stats import Sample
from lab.agents import SilentAgent
from lab.bench import Lab
from lab.gateway import ADDRESS
from lab.needs import what_is_missing
from lab.users import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lab.gateway import Gateway
    from lab.users import User

KINDS = ("known user", "first login", "known user, pass-through", "first login, pass-through")
"""Whose logins are measured: by the gateway's key and by the user's own agent."""

PAUSE_S = 1.0
"""Seconds between one login of an honest user and the next."""

_PATIENCE_S = 60.0
_QUIET_SHARE = 0.25
_HOSTILE_KEYS = 9_000
_SLOW_S = 4.9
_HANGS_S = 30


class People:
    """Users who only want to log in.

    Args:
        lab: The lab.
        gateway: A gateway with a key.
        pass_through: One without.
    """

    def __init__(self, lab: Lab, gateway: Gateway, pass_through: Gateway) -> None:
        """Make those who are known."""
        self._lab, self._gateway, self._pass_through = lab, gateway, pass_through
        self._known, self._agent_user = lab.add_user(), lab.add_user()
        self.reasons: list[str] = []
        for kind in KINDS[::2]:
            self.log_in(kind)

    def log_in(self, kind: str) -> float:
        """Run a command as a user of one kind; returns seconds, ``inf`` where it was refused."""
        first, agent = kind.startswith("first"), kind.endswith("pass-through")
        user = self._lab.add_user() if first else self._agent_user if agent else self._known
        gateway, options = (self._pass_through, ["-A"]) if agent else (self._gateway, [])
        argv = self._lab.gateway_argv(gateway, user, "echo in", options=[*options, "-b", "127.0.0.9"])
        with ExitStack() as stack:
            environment = stack.enter_context(self._lab.agent(user.key.private)) if agent else None
            began_s = time.monotonic()
            try:
                done = self._lab.run(argv, environment=environment, timeout_s=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.reasons.append(f"{kind}: no end within {_PATIENCE_S:.0f} s")
                return float("inf")
            taken_s = time.monotonic() - began_s
        if done.stdout != b"in\n":
            self.reasons.append(f"{kind}: {done.stderr.decode(errors='replace').strip()}")
            return float("inf")
        return taken_s

    def log_in_for(self, seconds: float) -> dict[str, Sample]:
        """Log in as each kind by turns."""
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            for kind in KINDS:
                times[kind].append(self.log_in(kind))
                time.sleep(PAUSE_S)
        return {kind: Sample(tuple(values)) for kind, values in times.items()}


class Attackers:
    """Strangers, and users who are hostile; each attack is a number of threads that begin it again and again.

    Args:
        lab: The lab.
        gateway: A gateway with a key.
        pass_through: One without.
        stack: What ends with the siege.
    """

    def __init__(self, lab: Lab, gateway: Gateway, pass_through: Gateway, stack: ExitStack) -> None:
        """Prepare; nothing begins before `begin`."""
        self._lab, self._gateway, self._pass_through, self._stack = lab, gateway, pass_through, stack
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._names = 0
        self._wrong = make_key(lab.directory / "keys" / "wrong").private
        self.tries: dict[str, int] = {}
        many = lab.add_user()
        line = 'from="192.0.2.0/24,!192.0.2.7",command="echo \\"no\\"",restrict {} hostile\n'
        keys = "".join(line.format(many.key.public.strip()) for _ in range(_HOSTILE_KEYS))
        lab.remote.authorize(many, [keys[: 1024 * 1024 - 1000], lab.gateway_key.public])
        slow = lab.add_user()
        lab.remote.write_file(slow, ".bashrc", f"sleep {_SLOW_S}\n")
        hanging = [lab.add_user() for _ in range(4)]
        for user in hanging:
            lab.run(lab.gateway_argv(gateway, user, "true"))
            lab.remote.write_file(user, ".bashrc", f"sleep {_HANGS_S}\n")
        signer = lab.add_user()
        silent = lab.directory / "silent-agent"
        stack.callback(SilentAgent(silent, signer.key.public).close)
        stranger = lab.add_user(authorized=[signer.key.public])
        environment = {"SSH_AUTH_SOCK": str(silent)}
        self._attacks: list[tuple[str, int, Callable[[int], None]]] = [
            ("wrong keys for a user with 1 MiB of keys", 6, lambda _: self._run(gateway, many.name, key=self._wrong)),
            ("a user whose shell takes 4.9 s", 2, lambda _: self._run(gateway, slow.name, key=self._wrong)),
            ("four users whose shells hang", 8, lambda number: self._run(gateway, hanging[number % 4])),
            ("invented names", 3, lambda _: self._run(gateway, self._invented(), key=self._wrong)),
            ("connections that say nothing", 40, self._say_nothing),
            (
                "pass-through: logins whose agent never signs",
                10,
                lambda number: self._run(
                    pass_through,
                    stranger,
                    options=["-A", "-b", f"127.0.1.{number % 2 + 1}"],
                    environment=environment,
                ),
            ),
            (
                "pass-through: connections without a session",
                60,
                lambda _: self._run(
                    pass_through, self._invented(), key=self._wrong, options=["-N", "-b", "127.0.1.3"], command=()
                ),
            ),
            (
                "pass-through: invented names without an agent",
                2,
                lambda _: self._run(pass_through, self._invented(), key=self._wrong, options=["-b", "127.0.1.4"]),
            ),
        ]

    def _invented(self) -> str:
        self._names += 1
        return f"invented{self._names}"

    def _run(
        self,
        gateway: Gateway,
        user: User | str,
        *,
        key: Path | None = None,
        options: list[str] | None = None,
        environment: Mapping[str, str] | None = None,
        command: tuple[str, ...] = ("true",),
    ) -> None:
        argv = self._lab.gateway_argv(gateway, user, *command, options=options or ["-b", "127.0.1.9"], key=key)
        with suppress(subprocess.TimeoutExpired):
            self._lab.run(argv, environment=environment, timeout_s=_PATIENCE_S)

    def _say_nothing(self, number: int) -> None:
        with suppress(OSError), self._lab.near.connect(ADDRESS, self._gateway.port, timeout_s=20) as connection:
            while connection.recv(4096) and not self._over.is_set():
                pass
        self._over.wait(number % 3)

    def begin(self) -> None:
        """Begin all attacks."""
        for name, threads, attack in self._attacks:
            self.tries[name] = 0
            for number in range(threads):
                thread = threading.Thread(target=self._repeat, args=(name, attack, number), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _repeat(self, name: str, attack: Callable[[int], None], number: int) -> None:
        while not self._over.is_set():
            self.tries[name] += 1
            attack(number)
            self._over.wait(0.2)  # a refused client would otherwise do nothing but start processes of this machine's

    def end(self) -> None:
        """Begin no attack any more; those under way end with the lab."""
        self._over.set()


@dataclass
class Siege:
    """One siege.

    Attributes:
        minutes: How long it was, the quiet time not counted.
        machine: Where.
        quiet: Seconds of logins before, by kind.
        besieged: The same meanwhile.
        tries: How often each attack was begun.
        reasons: What those said who were refused.
    """

    minutes: float
    machine: dict[str, str | int | float]
    quiet: dict[str, Sample]
    besieged: dict[str, Sample]
    tries: dict[str, int]
    reasons: list[str]

    @property
    def refused(self) -> int:
        """How many logins were refused, in both times."""
        return sum(sample.given_up for samples in (self.quiet, self.besieged) for sample in samples.values())

    def write_json(self, path: Path) -> None:
        """Write everything."""
        samples = {
            name: {kind: sample.as_json() for kind, sample in getattr(self, name).items()}
            for name in ("quiet", "besieged")
        }
        path.write_text(json.dumps({**vars(self), **samples}, indent=1) + "\n")

    def print(self, console: Console) -> None:
        """Print what was done, and one table."""
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
        console.print(f"{self.minutes:g} minutes of:")
        for name, count in self.tries.items():
            console.print(f"  {name}: {count} times")
        table = Table("logins", "quiet: median", "99 %", "of", "besieged: median", "99 %", "of", "refused")
        for kind in KINDS:
            cells = []
            for sample in (self.quiet[kind], self.besieged[kind]):
                cells += [f"{sample.median:.2f} s", f"{sample.quantile(0.99):.2f} s", str(len(sample.values))]
            table.add_row(kind, *cells, str(self.quiet[kind].given_up + self.besieged[kind].given_up))
        console.print(table)
        for reason in self.reasons:
            console.print(f"  refused: {reason}")


def siege(lab: Lab, minutes: float, say: Callable[[str], None]) -> Siege:
    """Run it.

    Args:
        lab: The lab.
        minutes: How long the attacks last.
        say: Told what is going on.
    """
    where = machine()
    gateway = lab.start_gateway()
    pass_through = lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None})
    with ExitStack() as stack:
        people = People(lab, gateway, pass_through)
        attackers = Attackers(lab, gateway, pass_through, stack)
        say("all is quiet")
        quiet = people.log_in_for(minutes * 60 * _QUIET_SHARE)
        say("the attacks begin")
        attackers.begin()
        stack.callback(attackers.end)
        besieged = people.log_in_for(minutes * 60)
        say("the attacks end")
        return Siege(minutes, where, quiet, besieged, attackers.tries, people.reasons)


def _ended(*_: object) -> None:
    """End on SIGTERM or SIGHUP as on Ctrl-C: with everything taken down."""
    raise KeyboardInterrupt


def main() -> int:
    """Besiege, and return the exit status: 1 when an honest user was refused."""
    parser = argparse.ArgumentParser(prog="siege", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the attacks last (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time there")
    arguments = parser.parse_args()
    if missing := what_is_missing():
        print(f"siege: {missing}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)

    def say(what: str) -> None:
        print(f"siege: {what}", file=sys.stderr, flush=True)

    with Lab(rtt_ms=100) as lab:
        result = siege(lab, arguments.minutes, say)
    if arguments.json:
        result.write_json(arguments.json)
    result.print(Console(highlight=False, width=150))
    return 1 if result.refused else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
