"""The broker's process: starts it, replaces it at a reload, and restarts it after a crash."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from gatewayctl.runtime import processes
from gatewayctl.supervisor.plan import Plan
from gatewayctl.supervisor.privileged_server import PrivilegedServer
from helpers.protocol.errors import GatewayError
from helpers.protocol.event_log import EventLog
from helpers.protocol.messages import decode, result_of

READY_TIMEOUT_S = 20.0
"""Longest time, in seconds, until a new broker reports that it serves; it takes 0.4 s on two slow cores."""

BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a crashed broker's next start; the last one repeats."""

CLOSE_WAITING_S = 0.2
"""Seconds between closing waiting connections, while no broker starts."""

STEADY_AFTER_S = 60.0
"""Seconds after which an earlier crash no longer counts."""


@dataclass(frozen=True)
class RunningBroker:
    """A broker that serves.

    Attributes:
        pid: Its process id.
        privileged_socket: Our end of the socket on which it requests privileged operations.
        trusted_proxies: Its GATEWAY_TRUSTED_PROXIES.
    """

    pid: int
    privileged_socket: socket.socket
    trusted_proxies: str


class BrokerProcess:
    """The active broker, and replaced brokers that finish their requests.

    Args:
        sockets: The listening sockets that each broker inherits: for the helpers, nss-systemd and ssh.
        privileged: Runs privileged operations.
        log: Receives crashes.
        clock: Seconds, monotonic.

    Attributes:
        pid: The active broker's pid; 0 while there is none.
        draining: The pids of replaced brokers.
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
        self._running: RunningBroker | None = None

    @property
    def running(self) -> RunningBroker | None:
        """The active broker; None while there is none."""
        return self._running if self.pid else None

    @property
    def pids(self) -> set[int]:
        """The pids of all brokers; 0 stands for none."""
        return {self.pid, *self.draining}

    def start(self, plan: Plan) -> RunningBroker:
        """Start a broker and wait until it serves; it is not active yet.

        Raises:
            GatewayError: The broker's own error, or it did not get ready in time.
        """
        with ExitStack() as held, ExitStack() as given:
            try:
                ready, tell = os.pipe2(os.O_CLOEXEC)
                held.callback(os.close, ready)
                given.callback(os.close, tell)
                running = self._spawn(plan, tell)
            except (OSError, RuntimeError) as exc:  # RuntimeError: no thread can be started
                msg = f"the broker cannot be started ({getattr(exc, 'strerror', None) or exc})"
                raise GatewayError(msg) from exc
            given.close()
            self._await(ready, running.pid)
        return running

    def adopt(self, running: RunningBroker, draining: Iterable[int]) -> None:
        """Take over the brokers that an earlier version of the supervisor has started."""
        self.draining.update(draining)
        threading.Thread(target=self._privileged.serve, args=(running.privileged_socket,), daemon=True).start()
        self.activate(running)

    def activate(self, running: RunningBroker) -> None:
        """Make a broker the active one; the previous one finishes its requests."""
        if self.pid:
            self.retire(self.pid)
        self.pid, self._started_s, self._running = running.pid, self._clock(), running
        self._privileged.set_active_broker(running.privileged_socket, running.trusted_proxies)
        self._restart_at_s, self._turns_away = None, False

    def retire(self, pid: int) -> None:
        """Tell a broker to finish its requests and exit."""
        self.draining.add(pid)
        processes.end(pid, signal.SIGTERM)

    def ended(self, pid: int, status: int) -> None:
        """Record the end of a process; the active broker is restarted after a delay."""
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
        """Restart a crashed broker if its delay has passed.

        Args:
            plan: The plan to start it with.

        Returns:
            After how many seconds to call this again; None if the broker runs.
        """
        if self._restart_at_s is None or (self._clock() >= self._restart_at_s and self._restarted(plan)):
            return None
        wait_s = max(0.0, self._restart_at_s - self._clock())
        if not self._turns_away:
            return wait_s
        self._close_waiting()
        return min(wait_s, CLOSE_WAITING_S)

    def _restarted(self, plan: Plan) -> bool:
        try:
            self.activate(self.start(plan))
        except GatewayError as error:
            self._log.error("broker_not_started", reason=error.message)
            self._turns_away = True
            self._started_s = self._clock()  # else each would count as the first crash after STEADY_AFTER_S
            self._crashed(error.status)
            return False
        self._log.info("broker_restarted", pid=self.pid)
        return True

    def _close_waiting(self) -> None:
        """Close all connections that wait while no broker starts: sshd's user lookups would block for long."""
        for fd in self._sockets:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as listener:
                while True:
                    listener.accept()[0].close()

    def _spawn(self, plan: Plan, tell: int) -> RunningBroker:
        """Start a broker's process, and the thread that runs its privileged operations.

        Args:
            plan: The plan to start it with.
            tell: The end of the pipe to which the broker writes when it serves.

        Raises:
            OSError: The kernel has no process, memory or file descriptor left.
            RuntimeError: No thread can be started.
        """
        with ExitStack() as given:  # descriptors that are copied to the broker
            config = os.memfd_create("broker-config", os.MFD_CLOEXEC)
            given.callback(os.close, config)
            os.write(config, plan.broker.to_json())
            os.lseek(config, 0, os.SEEK_SET)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given.enter_context(theirs)
            server = threading.Thread(target=self._privileged.serve, args=(ours,), daemon=True)
            try:
                server.start()  # it closes our end when the broker's end is closed
            except RuntimeError:
                ours.close()
                raise
            copies = []
            for fd in (config, theirs.fileno(), tell):
                copies.append(processes.dup_at_least_10(fd))
                given.callback(os.close, copies[-1])
            uid = plan.broker_uid
            # chroot and not setpriv changes the uid: setpriv looks it up (util-linux 2.41), which would wait for a
            # broker if the machine uses nss-systemd for users as our sshd does.
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
