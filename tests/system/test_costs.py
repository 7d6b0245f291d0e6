"""What a login costs, in what does not depend on the machine: processes, programs, packets, bytes."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.remote import PORT
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


def _last_pid(gateway: Gateway) -> int:
    """Return the process id that was given out last in the gateway's namespace: to any reader (proc(5))."""
    return int(gateway.room.run(["cat", "/proc/sys/kernel/ns_last_pid"]).stdout)


def _cost(lab: Lab, gateway: Gateway, user: User) -> tuple[int, int, int, int, int]:
    """Log in, and count processes, packets of SSH up and down, and bytes up and down."""
    pid, before = _last_pid(gateway), lab.wan.traffic()
    terminal = lab.terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    after = lab.wan.traffic()
    # One is the reader's own. The rest: sshd for the connection and its unprivileged half, sshd as the user, the
    # session, and one to nudge mosh-client.
    processes = _last_pid(gateway) - pid - 1
    up, down = ((then, now) for then, now in ((before.up, after.up), (before.down, after.down)))
    packets_up, packets_down = (now.packets("tcp", PORT) - then.packets("tcp", PORT) for then, now in (up, down))
    bytes_up, bytes_down = (now.bytes - then.bytes for then, now in (up, down))
    terminal.close()
    return processes, packets_up, packets_down, bytes_up, bytes_down


def test_processes_packets_and_bytes_of_a_login(make_lab: Callable[..., Lab]) -> None:
    """A login of a known user takes five processes, and a dozen packets of TCP and 3 kB each way at the most."""
    lab = make_lab(rtt_ms=20)  # of its own: in another's, gateways have something to say too
    gateway, users = lab.start_gateway(), [lab.add_user() for _ in range(3)]
    # The least of three each: a busy kernel acknowledges and repeats more often than it must, and the broker starts a
    # thread more while all that it has are busy.
    first, known = (
        [min(counts) for counts in zip(*(_cost(lab, gateway, user) for user in users), strict=True)] for _ in range(2)
    )
    assert max(first[1:3]) <= 30
    assert max(first[3:]) <= 9000
    assert known[0] <= 5 + 1
    assert max(known[1:3]) <= 12
    # mosh's first frames are in it.
    assert known[3] <= 2000
    assert known[4] <= 3000


@contextmanager
def _executed(gateway: Gateway, log: LogFile) -> Iterator[list[str]]:
    """Collect the names of the programs that are executed below the gateway's sshd; they are there at the end."""
    names: list[str] = []
    what = ["-e", "trace=execve", "-e", "status=successful"]
    tracer = subprocess.Popen(
        ["strace", "-f", *what, "-o", str(log.path), "-p", str(gateway.listener.pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=PLAIN_ENVIRONMENT,
    )
    try:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        yield names
    finally:
        tracer.terminate()
        tracer.communicate()
    names += [Path(found[1]).name for found in log.matches(r'execve\("([^"]+)"')]


def test_programs_of_a_login(
    lab: Lab,
    start_gateway: Callable[..., Gateway],
    open_terminal: Callable[..., Terminal],
    user: User,
    require: Callable[..., None],
) -> None:
    """Python is executed once for somebody's first question about a key, and once for each session.

    It may become cat while the remote is asked.
    """
    require("strace")
    gateway = start_gateway()
    # The shell is how sshd executes a command: it becomes the session.
    for number, expected in enumerate((["python", "sh", "python", "mosh-client"], ["sh", "python", "mosh-client"])):
        with _executed(gateway, LogFile(gateway.directory / f"execve-{number}")) as names:
            terminal = open_terminal(lab.gateway_argv(gateway, user))
            terminal.wait_for(user.prompt)
            terminal.close()
        sshd = [name for name in names if name.startswith("sshd")]
        ours = [re.sub(r"^python.*", "python", name) for name in names if name not in sshd]
        assert [name for name in ours if name != "cat"] == expected
        # From OpenSSH 9.8 on it executes itself once more.
        assert len(sshd) <= 2
