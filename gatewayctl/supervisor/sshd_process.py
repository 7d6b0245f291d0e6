"""sshd's process: configures, starts and restarts it."""

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
"""Seconds between checks whether sshd listens again after a restart."""


class SshdProcess:
    """Our sshd.

    Args:
        runtime: The runtime directory.
        private: Whether sshd runs in a mount namespace of its own.
        log: Receives the supervisor's own lines.
        clock: Seconds, monotonic.

    Attributes:
        pid: The pid of the listening process; 0 while there is none.
    """

    def __init__(
        self,
        runtime: Runtime,
        log: EventLog,
        *,
        private: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime, self._log, self._private, self._clock = runtime, log, private, clock
        self._program = Path(processes.find("sshd", "openssh-server"))
        self.pid = 0
        self._restarts_until_s: float | None = None
        self._stopped = False

    @property
    def is_restarting(self) -> bool:
        """Whether sshd got SIGHUP, and does not listen again yet."""
        return self._restarts_until_s is not None

    def in_namespace(self, argv: list[str]) -> list[str]:
        """Return a command line that runs with the same view of the host's files as our sshd."""
        return namespace.enter(self._runtime, argv) if self._private else argv

    def configure(self, plan: Plan) -> None:
        """Write sshd's configuration, and have sshd check it.

        Raises:
            GatewayError: sshd does not accept it.
        """
        main = config.write(self._runtime.root, config.render(plan.sshd))
        try:
            # At a reload the check runs in the running sshd's namespace, in which files that were added to /etc or /run
            # later do not exist: an sshd that cannot read its host key ends, and with it all sessions.
            prefix = namespace.in_namespace_of(self.pid) if self.pid else self.in_namespace([])
        except OSError:
            prefix = []  # sshd has just ended, which is handled next
        config.check(self._program, main, prefix)

    def is_configured(self, plan: Plan) -> bool:
        """Whether the configuration on disk is a plan's."""
        return config.is_written(self._runtime.root, config.render(plan.sshd))

    def restore_configuration(self, plan: Plan) -> None:
        """Write the previous configuration, as far as possible.

        It is not checked: the cause may be a file that both configurations name. If writing fails too, the files on
        disk are a mixture, which is not read: sshd passes its configuration in memory to each connection (sshd.c,
        send_rexec_state).
        """
        with suppress(Exception):
            config.write(self._runtime.root, config.render(plan.sshd))

    def start(self, reap: Callable[[], None]) -> None:
        """Start sshd and wait until it listens.

        Args:
            reap: Reaps child processes; raises `GatewayError` if sshd is among them.

        Raises:
            GatewayError: sshd ended, or did not listen in time.
        """
        self._runtime.pid_file.unlink(missing_ok=True)
        argv = [str(self._program), "-D", "-f", str(self._runtime.sshd_config)]
        null = processes.dup_at_least_10(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
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
            # SIGCHLD ends the wait early; there is no event for another process's pid file.
            signal.sigtimedwait([signal.SIGCHLD], 0.02)
        msg = f"sshd did not listen within {READY_TIMEOUT_S:.0f} s"
        raise GatewayError(msg)

    def restart(self) -> None:
        """Restart sshd by SIGHUP; sessions continue."""
        self._runtime.pid_file.unlink(missing_ok=True)
        processes.end(self.pid, signal.SIGHUP)
        self._restarts_until_s = self._clock() + READY_TIMEOUT_S

    def stop_listening(self) -> None:
        """End the listening process: its connections go on (sshd.c, sigterm_handler)."""
        self._stopped = True
        processes.end(self.pid, signal.SIGTERM)

    def tend(self) -> float | None:
        """Check whether a restart is complete.

        Returns:
            After how many seconds to call this again; None if no restart is in progress.
        """
        if self._restarts_until_s is None:
            return None
        if self._listens() or self._clock() >= self._restarts_until_s:
            self._restarts_until_s = None
            return None
        return LOOK_S

    def ended(self, pid: int, status: int) -> None:
        """Record the end of a process.

        Raises:
            GatewayError: The process is sshd, and it was not told to end.
        """
        if pid == self.pid:
            self.pid = 0
            if self._stopped:
                return
            how = f"exit status {status}; its own last line in the log says why"
            msg = f"sshd ended ({how if status >= 0 else f'killed by signal {-status}'})"
            raise GatewayError(msg)

    def _listens(self) -> bool:
        """Check whether sshd listens, and if so, set its sockets' options. Its pid file was removed before."""
        if not self._runtime.pid_file.exists():
            return False
        try:
            listener.set_socket_options(self.pid)
        except OSError as exc:
            self._log.debug("nagle_stays", reason=str(exc))
        return True
