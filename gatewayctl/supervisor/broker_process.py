"""The broker's process: started, replaced at a reload, and started again after a crash."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from gatewayctl.runtime import processes
from gatewayctl.supervisor.plan import Plan
from gatewayctl.supervisor.privileged_server import PrivilegedServer
from helpers.protocol.errors import GatewayError
from helpers.protocol.event_log import EventLog
from helpers.protocol.messages import decode, result_of

READY_TIMEOUT_S = 20.0
"""Longest time, in seconds, for a new broker to say that it serves; it takes 0.4 s on two slow cores."""

BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a crashed broker's next start; the last one repeats."""

TURN_AWAY_S = 0.2
"""Seconds between looks for who waits, while no broker starts."""

STEADY_AFTER_S = 60.0
"""Seconds after which a broker is no longer one that keeps crashing."""


@dataclass(frozen=True)
class RunningBroker:
    """A broker that serves.

    Attributes:
        pid: Its process id.
        way: Our end of the socket by which it asks for what takes root.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES, as it was told.
    """

    pid: int
    way: socket.socket
    trusted_proxies: str


class BrokerProcess:
    """The broker in charge, and those that finish what they began.

    Args:
        sockets: The listening sockets that each broker inherits: for the helpers, nss-systemd and ssh.
        privileged: Does what takes root.
        log: Where crashes go.
        clock: Seconds, monotonic.

    Attributes:
        pid: The process in charge; 0 while there is none.
        draining: Those that have been replaced.
    """

    def __init__(
        self,
        sockets: Sequence[int],
        privileged: PrivilegedServer,
        log: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sockets, self._privileged, self._log, self._clock = sockets, privileged, log, clock
        self.pid = 0
        self.draining: set[int] = set()
        self._started_s = 0.0
        self._crashes = 0
        self._restart_at_s: float | None = None
        self._turns_away = False

    @property
    def pids(self) -> set[int]:
        """All brokers' process ids; 0 stands for none."""
        return {self.pid, *self.draining}

    def start(self, plan: Plan) -> RunningBroker:
        """Start a broker and wait until it serves; it is not in charge yet.

        Raises:
            GatewayError: Its own error, or that it did not get ready.
        """
        with ExitStack() as held, ExitStack() as given:
            try:
                ready, tell = os.pipe2(os.O_CLOEXEC)
                held.callback(os.close, ready)
                given.callback(os.close, tell)
                running = self._spawn(plan, tell)
            except (OSError, RuntimeError) as exc:  # the latter where no thread can be started
                msg = f"the broker cannot be started ({getattr(exc, 'strerror', None) or exc})"
                raise GatewayError(msg) from exc
            given.close()
            self._await(ready, running.pid)
        return running

    def take_charge(self, running: RunningBroker) -> None:
        """Put a broker in charge; the one before finishes what it began."""
        if self.pid:
            self.retire(self.pid)
        self.pid, self._started_s = running.pid, self._clock()
        self._privileged.set_active_broker(running.way, running.trusted_proxies)
        self._restart_at_s, self._turns_away = None, False

    def retire(self, pid: int) -> None:
        """Have a broker finish what it began, and leave."""
        self.draining.add(pid)
        processes.end(pid, signal.SIGTERM)

    def ended(self, pid: int, status: int) -> None:
        """Note the end of a process; a broker in charge is started again after a while."""
        self.draining.discard(pid)
        if pid == self.pid:
            self.pid = 0
            self._crashed(status)

    def _crashed(self, status: int) -> None:
        if self._clock() - self._started_s > STEADY_AFTER_S:
            self._crashes = 0
        wait_s = BACK_OFF_S[min(self._crashes, len(BACK_OFF_S) - 1)]
        self._crashes += 1
        self._restart_at_s = self._clock() + wait_s
        self._log.error("broker_ended", status=status, restart_in_s=wait_s)

    def tend(self, plan: Plan) -> float | None:
        """Start a broker again that is due.

        Args:
            plan: What to start it with.

        Returns:
            In how many seconds to look again; None where there is nothing to look after.
        """
        if self._restart_at_s is None or (self._clock() >= self._restart_at_s and self._restarted(plan)):
            return None
        wait_s = max(0.0, self._restart_at_s - self._clock())
        if not self._turns_away:
            return wait_s
        self._turn_away()
        return min(wait_s, TURN_AWAY_S)

    def _restarted(self, plan: Plan) -> bool:
        try:
            self.take_charge(self.start(plan))
        except GatewayError as error:
            self._log.error("broker_not_started", reason=error.message)
            self._turns_away = True
            self._started_s = self._clock()  # else each would count as the first crash after a steady time
            self._crashed(error.status)
            return False
        self._log.info("broker_restarted", pid=self.pid)
        return True

    def _turn_away(self) -> None:
        """Hang up on all who wait for a broker that does not start: sshd's lookups among them would wait for long."""
        for fd in self._sockets:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as listener:
                while True:
                    listener.accept()[0].close()

    def _spawn(self, plan: Plan, tell: int) -> RunningBroker:
        """Start a broker's process, and the thread that does for it what takes root.

        Args:
            plan: What it is told.
            tell: Our end of the pipe on which it says that it serves.

        Raises:
            OSError: The kernel has no process, memory or file descriptor left for it.
            RuntimeError: It has no thread left for us.
        """
        with ExitStack() as given:  # what the broker gets copies of
            config = os.memfd_create("broker-config", os.MFD_CLOEXEC)
            given.callback(os.close, config)
            os.write(config, plan.broker.to_json())
            os.lseek(config, 0, os.SEEK_SET)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given.enter_context(theirs)
            server = threading.Thread(target=self._privileged.serve, args=(ours,), daemon=True)
            try:
                server.start()  # it closes ours once nobody has theirs
            except RuntimeError:
                ours.close()
                raise
            copies = []
            for fd in (config, theirs.fileno(), tell):
                copies.append(processes.high(fd))
                given.callback(os.close, copies[-1])
            uid = plan.broker_uid
            # chroot and not setpriv changes the uid: setpriv looks it up (util-linux 2.41), which waits for a broker
            # where users are looked up as our sshd does.
            become = ["chroot", f"--userspec=+{uid}:+{uid}", "--groups=", "--skip-chdir", "/"]
            bare = ["setpriv", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=TERM", "--"]
            argv = [*become, *bare, sys.executable, "-I", "-m", "helpers.broker"]
            fds = dict(zip((0, 6, 7, 3, 4, 5), (*copies, *self._sockets), strict=True))
            return RunningBroker(processes.spawn(argv, fds), ours, plan.broker.gateway_trusted_proxies)

    @staticmethod
    def _await(ready: int, pid: int) -> None:
        readable, _, _ = select.select([ready], [], [], READY_TIMEOUT_S)
        line = os.read(ready, 65536) if readable else b""
        if line:
            result_of(decode(line))
            return
        processes.end(pid, signal.SIGKILL)
        reason = "ended at its start; its own lines above say why" if readable else "did not get ready in time"
        msg = f"the broker {reason}"
        raise GatewayError(msg)
