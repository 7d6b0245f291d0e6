"""``make bulk``: how fast a large file goes through the gateway, beside ``ssh -J`` over a stock sshd in its place.

Both cross the same WAN. It is a measurement and no test: what it prints depends on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.bare import BareSshd
from lab.bench import Lab
from lab.gateway import ADDRESS
from lab.needs import not_installed, what_is_missing
from lab.remote import PORT
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.users import User

GATEWAY, JUMP = "gateway", "ssh -J"
PROGRAMS = ("scp, to the remote", "sftp, from the remote", "rsync, to the remote")

_JUMP_PORT = 2301
_MIB = 1024 * 1024
_LOOK_S = 0.5


@dataclass(frozen=True)
class Transfer:
    """One transfer.

    Attributes:
        seconds: How long it took, logins included.
        early_kb: Memory, in kB, of what carried it in the middle, in its first seconds.
        late_kb: The same at its end.
    """

    seconds: float
    early_kb: int
    late_kb: int


def checksum(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rss_kb(processes: list[Process]) -> int:
    """Add up what processes hold in memory (proc(5), VmRSS)."""
    total = 0
    for process in processes:
        try:
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        except OSError:  # it has ended
            continue
        total += int(found[1]) if found else 0
    return total


class BulkBench:
    """Times transfers.

    Args:
        lab: The lab.
        gateway: Its gateway.
        jump: The jump host.
        size_mib: How much is transferred, in MiB.
    """

    def __init__(self, lab: Lab, gateway: Gateway, jump: BareSshd, size_mib: int) -> None:
        """Make the file, on both sides, and log in once, as the gateway's users have."""
        self._lab, self._gateway, self._jump = lab, gateway, jump
        self.user: User = lab.add_user()
        self._here, self._back = lab.directory / "bulk", lab.directory / "bulk-back"
        with self._here.open("wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(_MIB))
        self._checksum = checksum(self._here)
        self._there = lab.remote.room.path(self.user.home)
        with self._here.open("rb") as source, (self._there / "source").open("wb") as target:
            while chunk := source.read(_MIB):
                target.write(chunk)
        lab.run(lab.gateway_argv(gateway, self.user, "true")).check_returncode()

    def _argv(self, program: str, way: str) -> list[str]:
        if way == GATEWAY:
            ssh, host, port = self._lab.gateway_argv(self._gateway, self.user), ADDRESS, self._gateway.port
        else:
            ssh, host, port = self._lab.direct_ssh_argv(self.user, options=self._jump.jump_options()), FAR_IPV4, PORT
        options = [word for word in ssh[1 : ssh.index("--")] if not word.startswith(("-p", "-l"))]
        at = f"{self.user.name}@{host}"
        return {
            "scp": ["scp", "-q", *options, "-P", str(port), str(self._here), f"{at}:target"],
            "sftp": ["sftp", "-q", *options, "-P", str(port), f"{at}:source", str(self._back)],
            "rsync": [
                *("rsync", "--whole-file", "-e", shlex.join(["ssh", *options, f"-p{port}"])),
                *(str(self._here), f"{at}:target"),
            ],
        }[program.partition(",")[0]]

    def _carriers(self, way: str) -> list[Process]:
        """List sshd's processes, but for the listener, and ssh's on the gateway, or on the jump host."""
        room = self._gateway.room if way == GATEWAY else self._jump.room
        return [
            process
            for process in room.processes()
            if process.name in {"ssh", "sshd", "sshd-session"} and "[listener]" not in " ".join(process.argv)
        ]

    def transfer(self, program: str, way: str) -> Transfer:
        """Transfer the file once; AssertionError where it does not arrive as it was."""
        arrives = self._back if program.startswith("sftp") else self._there / "target"
        arrives.unlink(missing_ok=True)
        looks: list[int] = []
        started_s = time.monotonic()
        process = subprocess.Popen(
            self._lab.near.network_argv(self._argv(program, way)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._lab.environment(),
        )
        while True:
            try:
                process.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                looks.append(_rss_kb(self._carriers(way)))
        seconds = time.monotonic() - started_s
        if process.returncode or checksum(arrives) != self._checksum:
            message = f"{program} by {way} ended with {process.returncode}, or the file arrived damaged"
            raise AssertionError(message)
        # The last look may have come when half of it had ended.
        return Transfer(seconds, max(looks[:6], default=0), max(looks[-3:], default=0))

    def measure(self, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, list[Transfer]]]:
        """Transfer by each program both ways in turn, so that what else the machine does meets both alike."""
        results: dict[str, dict[str, list[Transfer]]] = {its: {GATEWAY: [], JUMP: []} for its in PROGRAMS}
        for _ in range(rounds):
            for program, ways in results.items():
                for way, transfers in ways.items():
                    transfers.append(self.transfer(program, way))
                    say(f"{program}, {way}: {transfers[-1].seconds:.1f} s")
        return results


def _ended(*_: object) -> None:
    """End on SIGTERM or SIGHUP as on Ctrl-C: with everything taken down."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(prog="bulk", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default: 1024)")
    parser.add_argument("--rate", type=float, default=12_500, help="of the WAN, in kB/s (default: 12500, 100 Mbit/s)")
    parser.add_argument("--rtt", type=float, default=20, help="of the WAN, in ms (default: 20)")
    parser.add_argument("--rounds", type=int, default=1, help="transfers by each program each way (default: 1)")
    arguments = parser.parse_args()
    console = Console()
    missing = ", ".join(not_installed("scp", "sftp", "rsync"))
    if reason := what_is_missing() or missing:
        console.print(f"bulk: {reason}")
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    with Lab(rtt_ms=arguments.rtt, rate_kb_s=arguments.rate) as lab:
        bench = BulkBench(lab, lab.start_gateway(), BareSshd(lab, _JUMP_PORT, forced=False), arguments.mib)
        results = bench.measure(arguments.rounds, lambda words: print(words, flush=True))
    table = Table("what", "way", "seconds", "MB/s", "of ssh -J's time", "memory in between, early and late, MB")
    for program, ways in results.items():
        best = {way: min(transfers, key=lambda its: its.seconds) for way, transfers in ways.items()}
        for way, transfer in best.items():
            speed = arguments.mib * _MIB / 1e6 / transfer.seconds
            ratio = transfer.seconds / best[JUMP].seconds
            memory = f"{transfer.early_kb / 1000:.1f}, {transfer.late_kb / 1000:.1f}"
            table.add_row(program, way, f"{transfer.seconds:.1f}", f"{speed:.1f}", f"{ratio:.2f}", memory)
    console.print(table)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
