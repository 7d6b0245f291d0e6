"""What the helpers that sshd starts cost the processor, and what Python's own start is of it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import helpers
from bench.stats import Sample
from lab.room import PLAIN_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

PYTHON, KEY_COMMAND = "Python's own start", "key command, keys remembered"
SESSION_HELPER = "session helper, up to mosh-client"

_LAUNCH = Path(helpers.__file__).with_name("launch.py")
_PYTHON = [sys.executable, "-I", "-S"]


def _cpu_ms(argv: Sequence[str], environment: dict[str, str], *, terminal: bool) -> float:
    """Run a command, and return the processor time, in milliseconds, of it and of what it waited for."""
    with ExitStack() as stack:
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        started = subprocess.Popen(
            argv,
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs if terminal else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        usage = os.wait4(started.pid, 0)[2]
        started.returncode = 0
        return (usage.ru_utime + usage.ru_stime) * 1000


class CostBench:
    """Measures processor time.

    Args:
        lab: The lab.
        gateway: Its gateway.
        user: Somebody whose keys are remembered there, and who is logged in.
        uid: The user's uid on the gateway.
    """

    def __init__(self, lab: Lab, gateway: Gateway, user: User, uid: int) -> None:
        """Prepare a mosh-client that does nothing, for the session helper to become."""
        self._gateway, self._user = gateway, user
        self._socket = str(Path(gateway.settings["GATEWAY_RUNTIME_DIR"]) / "broker.sock")
        self._programs = lab.directory / "no-mosh"
        self._programs.mkdir()
        (self._programs / "mosh-client").symlink_to("/bin/true")
        self._become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]

    def measure(self, runs: int, say: Callable[[str], None]) -> dict[str, Sample]:
        """Measure, in milliseconds; what it takes to enter the gateway's namespaces is measured too, and taken off."""
        say("processor time of the helpers")
        kind, key = self._user.key.public.split()[:2]
        session_environment = {"PATH": str(self._programs), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        words = [f"{name}={value}" for name, value in session_environment.items()]
        become = [*self._become, "env", "-i", *words]
        commands: dict[str, tuple[list[str], bool]] = {
            "entering": (["/bin/true"], False),
            "becoming": ([*become, "/bin/true"], True),
            "python": ([*_PYTHON, "-c", "pass"], False),
            "key command": (
                [*_PYTHON, str(_LAUNCH), "authorized_keys", self._socket, self._user.name, kind, key],
                False,
            ),
            "session helper": ([*become, *_PYTHON, str(_LAUNCH), "session", self._socket], True),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, (command, terminal) in commands.items():
                times[name].append(_cpu_ms(self._gateway.room.argv(command), PLAIN_ENVIRONMENT, terminal=terminal))
        entering, becoming = Sample(tuple(times["entering"])).median, Sample(tuple(times["becoming"])).median
        return {
            PYTHON: Sample(tuple(value - entering for value in times["python"])),
            KEY_COMMAND: Sample(tuple(value - entering for value in times["key command"])),
            SESSION_HELPER: Sample(tuple(value - becoming for value in times["session helper"])),
        }
