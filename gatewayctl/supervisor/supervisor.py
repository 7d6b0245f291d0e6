"""Process 1 of the gateway: keeps the broker and sshd going, and takes everything down with it at the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gatewayctl.runtime import processes
from gatewayctl.runtime.directory import Runtime
from gatewayctl.settings.cross_checks import ANYONE
from gatewayctl.sshd import listener, namespace
from gatewayctl.sshd.syslog_relay import SyslogRelay
from gatewayctl.supervisor import sd_notify, shutdown_notice
from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.broker_process import BrokerProcess
from gatewayctl.supervisor.home_directories import HomeDirectories
from gatewayctl.supervisor.plan import Plan
from gatewayctl.supervisor.privileged_server import PrivilegedServer
from gatewayctl.supervisor.sshd_process import SshdProcess
from gatewayctl.supervisor.unproved_connections import UnprovedConnections
from helpers.protocol.errors import INTERRUPTED, GatewayError
from helpers.protocol.event_log import EventLog, fault_of

GRACE_S = 10.0
"""Seconds that sessions get to say goodbye to the remote before they are killed: mosh-client needs a few round
trips for it (mosh 1.4.0), and container engines kill after 10 s by default."""

NOTICE_S = 0.2
"""Seconds for sshd to pass on what users are told: nothing says when it has."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_SIGNALS_MEANWHILE = tuple(number for number in _SIGNALS if number != signal.SIGHUP)


@dataclass(frozen=True)
class Parts:
    """What the supervisor watches.

    Attributes:
        sockets: The broker's listening sockets, for as long as the gateway runs.
        private: Whether sshd lives in a mount namespace of its own.
        broker: The broker.
        sshd: sshd.
        log_socket: Where sshd's syslog messages arrive; None where they go to the host's.
        relay: Writes these into our log; None likewise.
    """

    sockets: Sequence[int]
    private: bool
    broker: BrokerProcess
    sshd: SshdProcess
    log_socket: socket.socket | None
    relay: threading.Thread | None


def make_parts(runtime: Runtime, plan: Plan, log: EventLog) -> Parts:
    """Open the sockets, and prepare what will run; nothing runs yet.

    Raises:
        GatewayError: A socket cannot be opened, or a program is missing.
    """
    private = namespace.may_unshare()
    log_socket = None
    sshd = SshdProcess(runtime, log, private=private, relay=not plan.broker.syslog)
    sockets = runtime.listen(private=private)
    if not plan.broker.syslog:
        log_socket = runtime.listen_log(private=private)
    relay = None
    if log_socket is not None:
        relay = threading.Thread(target=SyslogRelay(log_socket, log.relay).serve, daemon=True)
    homes = HomeDirectories(runtime.home, range(plan.broker.uid_start, plan.broker.uid_stop))
    unproved = UnprovedConnections(lambda: sshd.pid, plan.broker.gateway_trusted_proxies)
    privileged = PrivilegedServer(homes, AuthorizedKeysFiles(runtime.authorized_keys), unproved)
    return Parts(sockets, private, BrokerProcess(sockets, privileged, log), sshd, log_socket, relay)


class Supervisor:
    """Starts and watches the broker and sshd.

    Args:
        runtime: The runtime directory, prepared and locked.
        plan: What to start with.
        replan: Makes a plan from the settings as they are at a reload; raises `GatewayError`.
        parts: What to start and watch.
        log: Where the supervisor's own lines go.
    """

    def __init__(self, runtime: Runtime, plan: Plan, replan: Callable[[], Plan], parts: Parts, log: EventLog) -> None:
        self._runtime, self._plan, self._replan, self._log = runtime, plan, replan, log
        self._parts, self._broker, self._sshd = parts, parts.broker, parts.sshd

    def run(self) -> int:
        """Serve until a signal says otherwise.

        Returns:
            The exit status: 0 after SIGTERM, 130 after SIGINT.

        Raises:
            GatewayError: The broker or sshd cannot be started, or sshd ended by itself.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # before any thread starts: they take the mask over
        if self._parts.relay is not None:
            self._parts.relay.start()
        processes.become_reaper()
        try:
            self._start()
            return self._watch()
        finally:
            self._end()

    def _start(self) -> None:
        listener.check(self._plan.sshd.address, self._plan.sshd.port)
        if self._parts.private:
            with self._runtime.made_ready():
                namespace.prepare(self._runtime)
        else:
            namespace.prepare_shared()
        self._broker.take_charge(self._broker.start(self._plan))
        namespace.check_users(self._sshd.in_namespace([]), self._plan.broker.auth_uid)
        self._sshd.configure(self._plan)
        self._sshd.start(self._reap)
        sshd = self._plan.sshd
        self._log.info(
            "ready",
            listen=f"[{sshd.address}]:{sshd.port}" if ":" in sshd.address else f"{sshd.address}:{sshd.port}",
            remote=self._plan.broker.remote_host,
            remote_port=self._plan.broker.remote_port,
            openssh=".".join(map(str, sshd.version)),
            namespace="private" if self._parts.private else "shared",
        )
        self._say_ready()

    def _say_ready(self) -> None:
        sd_notify.ready(f"WARNING: {ANYONE}" if self._plan.broker.gateway_accept_any_key else None)

    def _watch(self) -> int:
        while True:
            waits_s = [wait_s for wait_s in (self._broker.tend(self._plan), self._sshd.tend()) if wait_s is not None]
            # sshd takes no notice of SIGHUP until it listens anew (sshd.c, sighup_restart): another reload waits.
            signals = _SIGNALS_MEANWHILE if self._sshd.is_restarting else _SIGNALS
            arrived = signal.sigtimedwait(signals, min(waits_s)) if waits_s else signal.sigwaitinfo(signals)
            number = None if arrived is None else arrived.si_signo
            if number == signal.SIGTERM:
                return 0
            if number == signal.SIGINT:
                return INTERRUPTED
            if number == signal.SIGHUP:
                sd_notify.reloading()
                self._reload()
                self._say_ready()
            self._reap()

    def _reap(self) -> None:
        """Collect the dead, and see to those that matter.

        Raises:
            GatewayError: sshd is among them.
        """
        for pid, status in processes.reap().items():
            self._sshd.ended(pid, status)
            self._broker.ended(pid, status)

    def _reload(self) -> None:
        """Take the settings anew; live sessions hold neither of what is replaced.

        The new broker serves before the old one is told to end, and both share the sockets, so that no login fails.
        Whatever fails, for want of space or of file descriptors or by a fault of ours, the gateway goes on as it was.
        """
        try:
            plan = self._replan()
            # sshd starts itself anew on SIGHUP, and its port is shut for a moment: not without need.
            restarts, old = plan.sshd != self._plan.sshd, self._plan.sshd
            if restarts:
                listener.check(plan.sshd.address, plan.sshd.port, held=(old.address, old.port))
            broker = self._broker.start(plan)
        except Exception as error:  # noqa: BLE001 - all sessions would end with it
            self._reload_failed(error)
            return
        try:
            self._sshd.configure(plan)
        except Exception as error:  # noqa: BLE001 - the same
            self._broker.retire(broker.pid)
            self._sshd.restore_configuration(self._plan)
            self._reload_failed(error)
            return
        self._broker.take_charge(broker)
        self._plan = plan
        if restarts:
            self._sshd.restart()
        self._log.info("reloaded")

    def _reload_failed(self, error: Exception) -> None:
        if isinstance(error, GatewayError | OSError):
            reason = str(error)
        else:  # whose own words may quote a setting
            reason = f"the gateway failed: {type(error).__name__} at {fault_of(error)}"
        self._log.error("reload_failed", reason=reason, effect="the settings from before stay in force")

    def _end(self) -> None:
        """End everything: users are told, sshd takes no new login, sessions say goodbye, what is left is killed.

        The brokers are the last to go: sshd's monitors look their user up once more when a session ends, and would
        wait for as long as somebody holds the user database's socket and nobody answers.
        """
        sd_notify.stopping()
        deadline = time.monotonic() + GRACE_S
        brokers = self._broker.pids
        if self._sshd.pid:
            shutdown_notice.say(self._sshd.pid, processes.descendants(self._sshd.pid))
            time.sleep(NOTICE_S)
        self._end_all(lambda: [pid for pid in processes.descendants(os.getpid()) if pid not in brokers], deadline)
        self._end_all(lambda: processes.descendants(os.getpid()), deadline)
        for fd in self._parts.sockets:
            os.close(fd)
        if self._parts.log_socket is not None and self._parts.relay is not None:
            self._parts.log_socket.shutdown(socket.SHUT_RD)  # what is in its queue is still written
            self._parts.relay.join(1.0)
            self._parts.log_socket.close()
        self._runtime.remove_sockets(private=self._parts.private)
        self._log.info("ended")

    def _end_all(self, alive: Callable[[], list[int]], deadline: float) -> None:
        for pid in alive():
            processes.end(pid, signal.SIGTERM)
        while pids := alive():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                for pid in pids:
                    processes.end(pid, signal.SIGKILL)
            signal.sigtimedwait([signal.SIGCHLD], min(0.2, max(0.01, left_s)))
            processes.reap()
