"""Process 1 of the gateway: keeps the broker and sshd running, and ends all processes at shutdown."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from gatewayctl.runtime import processes
from gatewayctl.runtime.directory import Runtime
from gatewayctl.settings.cross_checks import ANY_KEY_WARNING
from gatewayctl.sshd import listener, namespace
from gatewayctl.sshd.connections import Connections
from gatewayctl.sshd.syslog_relay import SyslogRelay
from gatewayctl.supervisor import handover, sd_notify, shutdown_notice
from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.broker_process import BrokerProcess, RunningBroker
from gatewayctl.supervisor.handover import State
from gatewayctl.supervisor.home_directories import HomeDirectories
from gatewayctl.supervisor.plan import Plan
from gatewayctl.supervisor.privileged_server import PrivilegedServer
from gatewayctl.supervisor.sshd_log import SshdLog
from gatewayctl.supervisor.sshd_process import SshdProcess
from gatewayctl.supervisor.unproved_connections import UnprovedConnections
from helpers.protocol.broker_client import ask
from helpers.protocol.errors import INTERRUPTED, GatewayError
from helpers.protocol.event_log import EventLog, fault_of
from helpers.protocol.version import installed_version

GRACE_S = 10.0
"""Seconds for sessions to shut down before they are killed: mosh-client's shutdown takes a few round trips (mosh
1.4.0), and container engines kill after 10 s by default."""

LOOK_S = 1.0
"""Seconds between checks whether the last session has ended."""

BROKER_ANSWERS_S = 2.0
"""Longest wait, in seconds, for the broker's list of sessions."""

NOTICE_S = 0.2
"""Seconds for sshd to send the shutdown notice to its clients: there is no event for that."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_SIGNALS_MEANWHILE = tuple(number for number in _SIGNALS if number != signal.SIGHUP)


@dataclass(frozen=True)
class Parts:
    """The parts that the supervisor watches.

    Attributes:
        sockets: The broker's listening sockets, for as long as the gateway runs.
        private: Whether sshd runs in a mount namespace of its own.
        broker: The broker.
        sshd: sshd.
        log_socket: Receives sshd's syslog messages; None if they go to the syslog of a machine whose /dev is not ours.
        relay_thread: The thread that writes them to our log; None likewise.
        connections: sshd's connections, as its messages describe them.
        privileged: Runs privileged operations for the broker.
        relay: The relay of that thread; None likewise.
    """

    sockets: Sequence[int]
    private: bool
    broker: BrokerProcess
    sshd: SshdProcess
    log_socket: socket.socket | None
    relay_thread: threading.Thread | None
    connections: Connections
    privileged: PrivilegedServer | None = None
    relay: SyslogRelay | None = None


def make_parts(runtime: Runtime, plan: Plan, log: EventLog, state: State | None = None) -> Parts:
    """Open the sockets, and prepare the processes without starting them.

    Args:
        runtime: The runtime directory.
        plan: The plan.
        log: Receives the parts' own lines, and sshd's.
        state: The state of the gateway that runs already; None if it is to be started.

    Raises:
        GatewayError: A socket cannot be opened, or a program is missing.
    """
    private = namespace.may_unshare() if state is None else state.private
    relays = private or not plan.broker.syslog
    sshd = SshdProcess(runtime, log, private=private)
    if state is None:
        sockets: Sequence[int] = runtime.listen(private=private)
        log_socket = runtime.listen_log(private=private) if relays else None
        connections = Connections()
    else:
        sockets = state.sockets
        log_socket = None if state.log_socket is None else socket.socket(fileno=state.log_socket)
        connections = Connections.from_json(state.connections)
    relay = None if log_socket is None else SyslogRelay(log_socket, connections, log.relay)
    thread = None if relay is None else threading.Thread(target=relay.serve, daemon=True)
    homes = HomeDirectories(runtime.home, range(plan.broker.uid_start, plan.broker.uid_stop))
    unproved = UnprovedConnections(lambda: sshd.pid, plan.broker.gateway_trusted_proxies)
    privileged = PrivilegedServer(
        homes, AuthorizedKeysFiles(runtime.authorized_keys), unproved, SshdLog(connections, relay)
    )
    broker = BrokerProcess(sockets, privileged, log)
    if state is not None:
        privileged.owners.update({int(uid): name for uid, name in state.owners.items()})
        sshd.pid = state.sshd
    return Parts(sockets, private, broker, sshd, log_socket, thread, connections, privileged, relay)


class Supervisor:
    """Starts and watches the broker and sshd.

    Args:
        runtime: The runtime directory, prepared and locked.
        plan: The first plan.
        replan: Makes a plan from the current settings at a reload; raises `GatewayError`.
        parts: The parts to start and watch.
        log: Receives the supervisor's own lines.
        lock: The descriptor that holds the runtime directory's lock.
    """

    def __init__(  # noqa: PLR0917 - the directory, the settings and the parts
        self, runtime: Runtime, plan: Plan, replan: Callable[[], Plan], parts: Parts, log: EventLog, lock: int = -1
    ) -> None:
        self._runtime, self._plan, self._replan, self._log, self._lock = runtime, plan, replan, log, lock
        self._parts, self._broker, self._sshd = parts, parts.broker, parts.sshd
        self._installed = handover.fingerprint()

    def run(self, state: State | None = None) -> int:
        """Serve until SIGTERM or SIGINT, and until the last session has ended or GATEWAY_STOP_TIMEOUT is over.

        Args:
            state: The state of the gateway that runs already; None if it is to be started.

        Returns:
            The exit status: 0 after SIGTERM, 130 after SIGINT.

        Raises:
            GatewayError: The broker or sshd cannot be started, or sshd ended by itself.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # before any thread starts: threads inherit the mask
        if self._parts.relay_thread is not None:
            self._parts.relay_thread.start()
        processes.become_reaper()
        try:
            if state is None:
                self._start()
            else:
                self._adopt(state)
            return self._watch()
        finally:
            self._end()

    def _start(self) -> None:
        listener.check(self._plan.sshd.address, self._plan.sshd.port)
        if self._parts.private:
            with self._runtime.mapped_errors():
                namespace.prepare(self._runtime)
        else:
            namespace.prepare_shared()
        self._broker.activate(self._broker.start(self._plan))
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

    def _adopt(self, state: State) -> None:
        """Take over a running gateway from an earlier version of this program, and renew broker and sshd."""
        if state.privileged_socket is not None:
            ours = socket.socket(fileno=state.privileged_socket)
            self._broker.adopt(RunningBroker(state.broker, ours, state.trusted_proxies), state.draining)
        restarts = not self._sshd.is_configured(self._plan)
        if self._renew(self._plan, state.listen, restarts=restarts):
            self._log.info("upgraded", version=installed_version())
        self._say_ready()

    def _say_ready(self) -> None:
        sd_notify.ready(f"WARNING: {ANY_KEY_WARNING}" if self._plan.broker.gateway_accept_any_key else None)

    def _watch(self) -> int:
        while True:
            waits_s = [wait_s for wait_s in (self._broker.tend(self._plan), self._sshd.tend()) if wait_s is not None]
            # sshd ignores SIGHUP until it listens again (sshd.c, sighup_restart): another reload waits.
            signals = _SIGNALS_MEANWHILE if self._sshd.is_restarting else _SIGNALS
            arrived = signal.sigtimedwait(signals, min(waits_s)) if waits_s else signal.sigwaitinfo(signals)
            number = None if arrived is None else arrived.si_signo
            if number == signal.SIGTERM:
                self._last_sessions()
                return 0
            if number == signal.SIGINT:
                return INTERRUPTED
            if number == signal.SIGHUP:
                sd_notify.reloading()
                self._reload()
                self._say_ready()
            self._reap()

    def _last_sessions(self) -> None:
        """Let open sessions go on for GATEWAY_STOP_TIMEOUT, or until another signal; new clients find the port closed.

        Raises:
            GatewayError: As `_reap` does.
        """
        timeout_s = self._plan.stop_timeout_s
        if not timeout_s or not self._sessions():
            return
        sd_notify.stopping(timeout_s + GRACE_S)
        self._log.warning("stopping", sessions=self._sessions(), timeout_s=timeout_s)
        self._sshd.stop_listening()
        deadline = time.monotonic() + timeout_s
        while self._sessions() and (left_s := deadline - time.monotonic()) > 0:
            waits_s = filter(None, (self._broker.tend(self._plan), LOOK_S, left_s))
            arrived = signal.sigtimedwait(_SIGNALS_MEANWHILE, min(waits_s))
            if arrived is not None and arrived.si_signo != signal.SIGCHLD:
                return
            self._reap()

    def _sessions(self) -> int:
        """Count the open sessions; while the broker does not answer there may be one."""
        try:
            return len(ask(str(self._runtime.broker_socket), {"op": "sessions"}, BROKER_ANSWERS_S)["sessions"])
        except GatewayError:
            return 1

    def _reap(self) -> None:
        """Reap child processes, and handle the end of the broker and sshd.

        Raises:
            GatewayError: sshd has ended.
        """
        for pid, status in processes.reap().items():
            self._sshd.ended(pid, status)
            self._broker.ended(pid, status)

    def _reload(self) -> None:
        """Reload the settings; live sessions use neither the broker nor the sshd that are replaced.

        The new broker serves before the old one gets SIGTERM, and both share the sockets, so that no login fails. If
        anything fails, such as a full disk, a lack of file descriptors or a bug, the gateway continues unchanged.
        """
        try:
            if handover.fingerprint() != self._installed:
                self._become_new_version()
            plan = self._replan()
        except Exception as error:  # noqa: BLE001 - all sessions would end with it
            self._reload_failed(error)
            return
        # On SIGHUP sshd restarts itself, and its port is closed for a moment, so it gets SIGHUP only if needed.
        restarts, old = plan.sshd != self._plan.sshd, self._plan.sshd
        if self._renew(plan, (old.address, old.port), restarts=restarts):
            self._log.info("reloaded")

    def _renew(self, plan: Plan, held: tuple[str, int], *, restarts: bool) -> bool:
        """Replace the broker, and sshd's configuration.

        Args:
            plan: The plan.
            held: The address and port on which our sshd listens.
            restarts: Whether sshd needs a restart.

        Returns:
            Whether it succeeded; otherwise the gateway continues unchanged.
        """
        try:
            if restarts:
                listener.check(plan.sshd.address, plan.sshd.port, held=held)
            broker = self._broker.start(plan)
        except Exception as error:  # noqa: BLE001 - the same
            self._reload_failed(error)
            return False
        try:
            self._sshd.configure(plan)
        except Exception as error:  # noqa: BLE001 - the same
            self._broker.retire(broker.pid)
            self._sshd.restore_configuration(self._plan)
            self._reload_failed(error)
            return False
        self._broker.activate(broker)
        self._plan = plan
        if restarts:
            self._sshd.restart()
        return True

    def _become_new_version(self) -> None:
        """Hand everything over to the version that was installed meanwhile; returns only by an error.

        Raises:
            GatewayError: The new version does not start, or does not understand our state.
        """
        privileged, relay = self._parts.privileged, self._parts.relay
        assert privileged is not None  # noqa: S101 - `make_parts` makes it
        with handover.written(self._state(privileged)) as memory:
            handover.try_out(memory)
        # Now that it is sure to be quick: no request and no message of sshd's may be half done.
        with privileged.lock, nullcontext() if relay is None else relay.lock:
            state = self._state(privileged)
            with handover.written(state) as memory:
                handover.become_new_version(memory, state)

    def _state(self, privileged: PrivilegedServer) -> State:
        broker, log_socket = self._broker.running, self._parts.log_socket
        return State(
            fixed=self._plan.fixed,
            private=self._parts.private,
            sockets=list(self._parts.sockets),
            log_socket=None if log_socket is None else log_socket.fileno(),
            lock=self._lock,
            sshd=self._sshd.pid,
            listen=(self._plan.sshd.address, self._plan.sshd.port),
            broker=0 if broker is None else broker.pid,
            privileged_socket=None if broker is None else broker.privileged_socket.fileno(),
            trusted_proxies="" if broker is None else broker.trusted_proxies,
            draining=sorted(self._broker.draining),
            owners={str(uid): name for uid, name in privileged.owners.items()},
            connections=self._parts.connections.to_json(),
        )

    def _reload_failed(self, error: Exception) -> None:
        if isinstance(error, GatewayError | OSError):
            reason = str(error)
        else:  # its message may quote a setting
            reason = f"the gateway failed: {type(error).__name__} at {fault_of(error)}"
        self._log.error("reload_failed", reason=reason, effect="the settings from before stay in force")

    def _end(self) -> None:
        """Shut down: notify users, stop sshd's listener, end sessions, and kill the remaining processes.

        The brokers end last: sshd's monitors look their user up once more when a session ends, and would block for as
        long as the user database's socket is open and not served.
        """
        sd_notify.stopping()
        self._parts.connections.stop()
        deadline = time.monotonic() + GRACE_S
        brokers = self._broker.pids
        sessions = [pid for pid in processes.descendants(os.getpid()) if pid not in brokers]
        # sshd's listener, or a connection's monitor: each is in the terminals' namespace, and root's.
        sshd = next((pid for pid in sessions if processes.is_roots(pid)), None)
        if sshd is not None:
            shutdown_notice.write(sshd, sessions)
            time.sleep(NOTICE_S)
        self._end_all(lambda: [pid for pid in processes.descendants(os.getpid()) if pid not in brokers], deadline)
        self._end_all(lambda: processes.descendants(os.getpid()), deadline)
        for fd in self._parts.sockets:
            os.close(fd)
        if self._parts.log_socket is not None and self._parts.relay_thread is not None:
            self._parts.log_socket.shutdown(socket.SHUT_RD)  # messages in its queue are still relayed
            self._parts.relay_thread.join(1.0)
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
