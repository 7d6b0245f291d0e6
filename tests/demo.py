"""What ``make demo`` shows: a login through a gateway over a bad WAN, all of it on this machine.

A remote host in namespaces of its own, an emulated WAN in front of it, a gateway, and the ordinary ``ssh``. At the
end the session is handed to whoever runs it, if that is somebody at a terminal. Nothing stays behind.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.bench import Lab
from lab.needs import what_is_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lab.gateway import Gateway
    from lab.users import User

RTT_MS = 100
LOSS = 0.05
RUNS = 3
# Twenty times what the slowest way in takes when the packets are lucky.
LOGIN_TIMEOUT_S = 60

# Typed into the session for all to see: who and where one is, and what carries it.
COMMAND = "echo $(whoami) on $(hostname) by $(ps -o comm= $PPID)"
PROOF = "alice on remote by mosh-server"


class Demo:
    """A walk through the lab.

    Args:
        lab: The lab, up.
        console: Where to show things.
    """

    def __init__(self, lab: Lab, console: Console) -> None:
        """Keep both."""
        self.lab = lab
        self.console = console

    def run(self) -> None:
        """Show a login, measure four ways in, and hand over the session."""
        alice = self.lab.add_user("alice")
        self.step("Starting a gateway in front of it: REMOTE_HOST=192.0.2.2 gatewayctl serve")
        gateway = self.lab.start_gateway()
        self.step(f"Logging in: {self.short_ssh(gateway)}")
        self.show_screen(self.lab.gateway_argv(gateway, alice), alice)
        self.step(f"Measuring four ways in: seconds to the remote prompt, {RUNS} times each")
        self.console.print(self.measure(gateway, alice))
        if sys.stdin.isatty():
            self.step("Now it is yours; leave with `exit`")
            self.hand_over(self.lab.gateway_argv(gateway, alice))

    def step(self, what: str) -> None:
        """Say what happens next."""
        self.console.print(f"[bold green]==>[/] {escape(what)}", highlight=False)

    @staticmethod
    def short_ssh(gateway: Gateway) -> str:
        """Return what a person would type, without what keeps this machine's own configuration out."""
        return shlex.join(["ssh", "-p", str(gateway.port), "alice@127.0.0.1"])

    def show_screen(self, argv: Sequence[str], user: User) -> None:
        """Log in, type a command, and show what the person at the terminal sees."""
        terminal = self.lab.terminal(argv, rows=8, columns=76)
        terminal.wait_for(user.prompt, timeout_s=LOGIN_TIMEOUT_S)
        terminal.run(COMMAND, PROOF, timeout_s=LOGIN_TIMEOUT_S)
        self.console.print(escape(terminal.framed()), highlight=False)
        terminal.type("exit\r")
        terminal.wait_exit(timeout_s=LOGIN_TIMEOUT_S)

    def login_s(self, argv: Sequence[str], user: User) -> float:
        """Return the seconds from starting the client to the remote prompt on its screen."""
        started_s = time.monotonic()
        terminal = self.lab.terminal(argv)
        try:
            terminal.wait_for(user.prompt, timeout_s=LOGIN_TIMEOUT_S)
            return time.monotonic() - started_s
        finally:
            terminal.close()

    def measure(self, gateway: Gateway, alice: User) -> Table:
        """Time the ways in, and return a table of them."""
        ways: dict[str, Callable[[], float]] = {
            "gateway, first login of a user": lambda: self.first_login_s(gateway),
            "gateway, every login after it": lambda: self.login_s(self.lab.gateway_argv(gateway, alice), alice),
            "ssh, straight to the remote": lambda: self.login_s(self.lab.direct_ssh_argv(alice), alice),
            "mosh, straight to the remote": lambda: self.login_s(self.lab.direct_mosh_argv(alice), alice),
        }
        table = Table("way in")
        for column in ("median", "fastest", "slowest"):
            table.add_column(column, justify="right")
        for name, log_in in ways.items():
            with self.console.status(name):
                times_s = [log_in() for _ in range(RUNS)]
            numbers = statistics.median(times_s), min(times_s), max(times_s)
            table.add_row(name, *(f"{number:.2f}" for number in numbers))
        return table

    def first_login_s(self, gateway: Gateway) -> float:
        """Log in as a user whom the gateway has not seen: key fetch, transport and all."""
        stranger = self.lab.add_user()
        return self.login_s(self.lab.gateway_argv(gateway, stranger), stranger)

    def hand_over(self, argv: Sequence[str]) -> None:
        """Give the terminal to a session, until it ends or the terminal is gone."""
        # Ctrl-C is the session's from now on; a handler, as what is ignored would stay so in ssh.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        session = subprocess.Popen(self.lab.near.network_argv(argv), env=self.lab.environment())
        try:
            events = select.poll()
            events.register(os.pidfd_open(session.pid), select.POLLIN)
            events.register(sys.stdin, 0)  # which reports a hang-up: ssh itself would stay
            events.poll()
        finally:
            if session.poll() is None:
                session.terminate()
            session.wait()
            signal.signal(signal.SIGINT, before)


def _ended(*_: object) -> None:
    """End on SIGTERM or SIGHUP as on Ctrl-C: with everything taken down."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo and return the exit status."""
    if missing := what_is_missing():
        print(f"demo: {missing}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    console = Console(highlight=False)
    try:
        console.print(
            f"[bold green]==>[/] Making a remote host behind a WAN: {RTT_MS} ms RTT, {LOSS:.0%} loss each way"
        )
        with Lab(rtt_ms=RTT_MS, loss=LOSS) as lab:
            Demo(lab, console).run()
    except KeyboardInterrupt:
        print("\ndemo: stopped; nothing is left behind", file=sys.stderr)
        return 130
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        # The last line of a log, where there is one, is the sentence that says why.
        lines = str(error).splitlines() or [repr(error)]
        print(f"demo: {' '.join(dict.fromkeys([lines[0], lines[-1]]))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
