"""sshd's process: configured, started, and told to start itself anew."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gatewayctl.runtime import processes
from gatewayctl.runtime.directory import Runtime
from gatewayctl.sshd import config, listener, namespace
from gatewayctl.supervisor.plan import Plan
from helpers.protocol.errors import GatewayError
from helpers.protocol.event_log import EventLog

READY_TIMEOUT_S = 10.0
"""Longest time, in seconds, for sshd to listen and write its pid file."""

LOOK_S = 0.1
"""Seconds between looks for whether sshd listens anew."""


class SshdProcess:
    """Our sshd.

    Args:
        runtime: The runtime directory.
        private: Whether sshd lives in a mount namespace of its own.
        relay: Whether its syslog messages come to us.
        log: Where the supervisor's own lines go.
        clock: Seconds, monotonic.

    Attributes:
        pid: The process that listens; 0 while there is none.
    """

    def __init__(
        self,
        runtime: Runtime,
        log: EventLog,
        *,
        private: bool,
        relay: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime, self._log, self._private, self._relay, self._clock = runtime, log, private, relay, clock
        self._program = Path(processes.find("sshd", "openssh-server"))
        self.pid = 0
        self._restarts_until_s: float | None = None

    @property
    def is_restarting(self) -> bool:
        """Whether sshd was told to start itself anew, and does not listen yet."""
        return self._restarts_until_s is not None

    def in_namespace(self, argv: list[str]) -> list[str]:
        """Write a command line that runs with what our sshd sees of the host."""
        return namespace.enter(self._runtime, argv, relay=self._relay) if self._private else argv

    def configure(self, plan: Plan) -> None:
        """Write sshd's configuration, and have sshd check it.

        Raises:
            GatewayError: sshd does not accept it.
        """
        main = config.write(self._runtime.root, config.render(plan.sshd))
        try:
            # At a reload from where the running sshd is, to which what came into /etc or /run since is not there: an
            # sshd that cannot read its host key ends, and all sessions with it.
            prefix = namespace.beside(self.pid) if self.pid else self.in_namespace([])
        except OSError:
            prefix = []  # it has just ended, which is the next thing to be seen
        config.check(self._program, main, prefix)

    def restore_configuration(self, plan: Plan) -> None:
        """Write the configuration from before, as far as that is possible.

        It is not checked: what sshd dislikes may be a file that both name. Where writing fails too, a mixture is left
        that is not read: sshd gives each connection what it has in memory (sshd.c, send_rexec_state).
        """
        with suppress(Exception):
            config.write(self._runtime.root, config.render(plan.sshd))

    def start(self, reap: Callable[[], None]) -> None:
        """Start sshd and wait until it listens.

        Args:
            reap: Collects the dead; raises `GatewayError` where sshd is among them.

        Raises:
            GatewayError: It ended, or did not listen in time.
        """
        self._runtime.pid_file.unlink(missing_ok=True)
        argv = [str(self._program), "-D", "-f", str(self._runtime.sshd_config)]
        null = processes.high(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        try:
            die_with_us = ["setpriv", "--pdeathsig=TERM", "--"]
            self.pid = processes.spawn([*die_with_us, *self.in_namespace(argv)], {0: null, 1: 2})
        finally:
            os.close(null)
        deadline = self._clock() + READY_TIMEOUT_S
        while self._clock() < deadline:
            reap()
            if self._listens():
                return
            # A child's end cuts the wait short; there is no event for a file of another process's.
            signal.sigtimedwait([signal.SIGCHLD], 0.02)
        msg = f"sshd did not listen within {READY_TIMEOUT_S:.0f} s"
        raise GatewayError(msg)

    def restart(self) -> None:
        """Have sshd start itself anew; sessions go on."""
        self._runtime.pid_file.unlink(missing_ok=True)
        processes.end(self.pid, signal.SIGHUP)
        self._restarts_until_s = self._clock() + READY_TIMEOUT_S

    def tend(self) -> float | None:
        """Look after a restart.

        Returns:
            In how many seconds to look again; None where there is nothing to look after.
        """
        if self._restarts_until_s is None:
            return None
        if self._listens() or self._clock() >= self._restarts_until_s:
            self._restarts_until_s = None
            return None
        return LOOK_S

    def ended(self, pid: int, status: int) -> None:
        """Note the end of a process.

        Raises:
            GatewayError: It is sshd's.
        """
        if pid == self.pid:
            self.pid = 0
            how = f"exit status {status}; its own last line in the log says why"
            msg = f"sshd ended ({how if status >= 0 else f'killed by signal {-status}'})"
            raise GatewayError(msg)

    def _listens(self) -> bool:
        """Tell whether sshd listens, and if so, see to its sockets; its pid file was removed before it began."""
        if not self._runtime.pid_file.exists():
            return False
        try:
            listener.send_at_once(self.pid)
        except OSError as exc:
            self._log.debug("nagle_stays", reason=str(exc))
        return True
