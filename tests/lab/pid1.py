"""The first process of a room: prepares it, reaps its orphans, and ends when standard input does.

Run as a script, by path, with the standard library alone. Standard input is a pipe whose other end the lab
holds: when the lab is gone, however it went, the pipe closes, this process ends, and with it (it is PID 1 of
its namespace) the kernel ends every process in the room.

Arguments: the room's host name, then a JSON list of commands (argv lists) to run first.
Prints its process id as the outer namespace sees it, and then ``ready``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys


def main() -> None:
    """Prepare the room and hold it."""
    # Before the room gets its own /proc, the outer one still tells the outer process id.
    _tell(os.readlink("/proc/self"))  # noqa: PTH115 - pathlib would cost a third of this program's start
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    socket.sethostname(sys.argv[1])
    for command in [["mount", "--no-mtab", "-t", "proc", "proc", "/proc"], *json.loads(sys.argv[2])]:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _tell("ready")
    while True:
        readable, _, _ = select.select([0, wake_read], [], [])
        if 0 in readable and not os.read(0, 4096):
            return
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap()


def _tell(word: str) -> None:
    """Write a line to the lab."""
    os.write(1, f"{word}\n".encode())


def _reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
