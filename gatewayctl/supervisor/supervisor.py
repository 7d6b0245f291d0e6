"""Process 1 of the gateway: keeps the broker and sshd going, and takes everything down with it at the end."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from gatewayctl.runtime import processes
from gatewayctl.runtime.directory import Runtime
from gatewayctl.settings.cross_checks import ANYONE
from gatewayctl.sshd import config, listener, namespace
from gatewayctl.sshd.syslog_relay import SyslogRelay
from gatewayctl.supervisor import sd_notify, shutdown_notice
from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.home_directories import HomeDirectories
from gatewayctl.supervisor.privileged_server import PrivilegedServer
from gatewayctl.supervisor.unproved_connections import Clients
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import GatewayError
from helpers.protocol.event_log import EventLog, fault_of
from helpers.protocol.messages import decode, result_of

BROKER_READY_TIMEOUT_S = 20.0
"""Longest time, in seconds, for a new broker to say that it serves; it takes 0.4 s on two slow cores."""

SSHD_READY_TIMEOUT_S = 10.0
"""Longest time, in seconds, for sshd to listen and write its pid file."""

SSHD_LOOK_S = 0.1
"""Seconds between looks for whether sshd listens anew."""

GRACE_S = 10.0
"""Seconds that sessions get to say goodbye to the remote before they are killed: mosh-client needs a few round
trips for it (mosh 1.4.0), and container engines kill after 10 s by default."""

FAREWELL_S = 0.2
"""Seconds for sshd to pass on what users are told: nothing says when it has."""

BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a crashed broker's next start; the last one repeats."""

TURN_AWAY_S = 0.2
"""Seconds between looks for who waits, while no broker starts."""

STEADY_AFTER_S = 60.0
"""Seconds after which a broker is no longer one that keeps crashing."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_SIGNALS_MEANWHILE = tuple(number for number in _SIGNALS if number != signal.SIGHUP)


@dataclass(frozen=True)
class Plan:
    """What the settings come to, ready to be started.

    Attributes:
        broker: The broker's settings.
        sshd: The context of sshd's templates.
        broker_uid: The uid that the broker runs as.
    """

    broker: BrokerConfig
    sshd: config.SshdContext
    broker_uid: int


class Supervisor:
    """Starts and watches the broker and sshd.

    Args:
        runtime: The runtime directory, prepared and locked.
        plan: What to start with.
        replan: Makes a plan from the settings as they are at a reload; raises `GatewayError`.
        log: Where the supervisor's own lines go.
    """

    def __init__(self, runtime: Runtime, plan: Plan, replan: Callable[[], Plan], log: EventLog) -> None:
        """Take stock; nothing runs yet."""
        self._runtime, self._plan, self._replan, self._log = runtime, plan, replan, log
        self._sshd_program = Path(processes.find("sshd", "openssh-server"))
        self._private = namespace.may_unshare()
        self._sockets = runtime.listen(private=self._private)
        uids = range(self._plan.broker.uid_start, self._plan.broker.uid_stop)
        clients = Clients(lambda: self._sshd, lambda: self._plan.broker.trusted_proxies)
        self._errands = PrivilegedServer(
            HomeDirectories(runtime.home, uids), AuthorizedKeysFiles(runtime.authorized_keys), clients
        )
        self._log_socket = None if self._plan.broker.syslog else runtime.listen_log(private=self._private)
        self._relay: threading.Thread | None = None
        if self._log_socket is not None:
            relay = SyslogRelay(self._log_socket, log.relay)
            self._relay = threading.Thread(target=relay.serve, daemon=True)
        self._broker = self._sshd = 0
        self._draining: set[int] = set()
        self._broker_started_s = 0.0
        self._crashes = 0
        self._restart_at_s: float | None = None
        self._turned_away = False
        self._anew_until_s: float | None = None

    def run(self) -> int:
        """Serve until a signal says otherwise.

        Returns:
            The exit status: 0 after SIGTERM, 130 after SIGINT.

        Raises:
            GatewayError: The broker or sshd cannot be started, or sshd ended by itself.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # before any thread starts: they take the mask over
        if self._relay is not None:
            self._relay.start()
        processes.become_reaper()
        try:
            self._start()
            return self._watch()
        finally:
            self._end()

    # Starting

    def _start(self) -> None:
        listener.check(self._plan.sshd.address, self._plan.sshd.port)
        if self._private:
            with self._runtime.made_ready():
                namespace.prepare(self._runtime)
        else:
            namespace.prepare_shared()
        self._heed(*self._start_broker(self._plan))
        namespace.check_users(self._entered([]), self._plan.broker.auth_uid)
        self._write_sshd_config(self._plan)
        self._start_sshd()
        sshd = self._plan.sshd
        self._log.info(
            "ready",
            listen=f"[{sshd.address}]:{sshd.port}" if ":" in sshd.address else f"{sshd.address}:{sshd.port}",
            remote=self._plan.broker.remote_host,
            remote_port=self._plan.broker.remote_port,
            openssh=".".join(map(str, sshd.version)),
            namespace="private" if self._private else "shared",
        )
        self._say_ready()

    def _say_ready(self) -> None:
        sd_notify.ready(f"WARNING: {ANYONE}" if self._plan.broker.accept_any_key else None)

    def _entered(self, argv: list[str]) -> list[str]:
        if not self._private:
            return argv
        return namespace.enter(self._runtime, argv, relay=self._log_socket is not None)

    def _heed(self, pid: int, errands: socket.socket) -> None:
        """Take a broker that serves for the broker."""
        self._broker = pid
        self._errands.heed(errands)

    def _start_broker(self, plan: Plan) -> tuple[int, socket.socket]:
        """Start a broker and wait until it serves.

        Returns:
            Its process id, and our end of what it sends us on errands by.

        Raises:
            GatewayError: Its own error, or that it did not get ready.
        """
        with ExitStack() as held, ExitStack() as given:
            try:
                ready, tell = os.pipe2(os.O_CLOEXEC)
                held.callback(os.close, ready)
                given.callback(os.close, tell)
                pid, errands = self._spawn_broker(plan, tell)
            except (OSError, RuntimeError) as exc:  # the latter where no thread can be started
                msg = f"the broker cannot be started ({getattr(exc, 'strerror', None) or exc})"
                raise GatewayError(msg) from exc
            given.close()
            self._await_broker(ready, pid)
        self._broker_started_s = time.monotonic()
        return pid, errands

    def _spawn_broker(self, plan: Plan, tell: int) -> tuple[int, socket.socket]:
        """Start a broker's process, and what runs its errands.

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
            errands = threading.Thread(target=self._errands.serve, args=(ours,), daemon=True)
            try:
                errands.start()  # it closes ours once nobody has theirs
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
            return processes.spawn(argv, fds), ours

    def _await_broker(self, ready: int, pid: int) -> None:
        readable, _, _ = select.select([ready], [], [], BROKER_READY_TIMEOUT_S)
        line = os.read(ready, 65536) if readable else b""
        if line:
            result_of(decode(line))
            return
        processes.end(pid, signal.SIGKILL)
        reason = "ended at its start; its own lines above say why" if readable else "did not get ready in time"
        msg = f"the broker {reason}"
        raise GatewayError(msg)

    def _write_sshd_config(self, plan: Plan) -> None:
        main = config.write(self._runtime.root, config.render(plan.sshd))
        try:
            # At a reload from where the running sshd is, to which what came into /etc or /run since is not there: an
            # sshd that cannot read its host key ends, and all sessions with it.
            prefix = namespace.beside(self._sshd) if self._sshd else self._entered([])
        except OSError:
            prefix = []  # it has just ended, which is the next thing to be seen
        config.check(self._sshd_program, main, prefix)

    def _start_sshd(self) -> None:
        """Start sshd and wait until it listens.

        Raises:
            GatewayError: It ended, or did not listen in time.
        """
        self._runtime.pid_file.unlink(missing_ok=True)
        argv = [str(self._sshd_program), "-D", "-f", str(self._runtime.sshd_config)]
        null = processes.high(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        try:
            self._sshd = processes.spawn(["setpriv", "--pdeathsig=TERM", "--", *self._entered(argv)], {0: null, 1: 2})
        finally:
            os.close(null)
        deadline = time.monotonic() + SSHD_READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self._reap()
            if self._sshd_listens():
                return
            # A child's end cuts the wait short; there is no event for a file of another process's.
            signal.sigtimedwait([signal.SIGCHLD], 0.02)
        msg = f"sshd did not listen within {SSHD_READY_TIMEOUT_S:.0f} s"
        raise GatewayError(msg)

    def _sshd_listens(self) -> bool:
        """Tell whether sshd listens, and if so, see to its sockets; its pid file was removed before it began."""
        if not self._runtime.pid_file.exists():
            return False
        try:
            listener.send_at_once(self._sshd)
        except OSError as exc:
            self._log.debug("nagle_stays", reason=str(exc))
        return True

    # Watching

    def _watch(self) -> int:
        while True:
            waits_s = self._waits_s()
            # sshd takes no notice of SIGHUP until it listens anew (sshd.c, sighup_restart): another reload waits.
            signals = _SIGNALS if self._anew_until_s is None else _SIGNALS_MEANWHILE
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
            if self._restart_at_s is not None and time.monotonic() >= self._restart_at_s:
                self._restart_broker()

    def _waits_s(self) -> list[float]:
        """See to what no signal tells of, and list in how many seconds it is to be seen to again."""
        waits_s = []
        if self._restart_at_s is not None:
            waits_s.append(max(0.0, self._restart_at_s - time.monotonic()))
            if self._turned_away:
                self._turn_away()
                waits_s.append(TURN_AWAY_S)
        if self._anew_until_s is not None:
            if self._sshd_listens() or time.monotonic() >= self._anew_until_s:
                self._anew_until_s = None
            else:
                waits_s.append(SSHD_LOOK_S)
        return waits_s

    def _reap(self) -> None:
        """Collect the dead, and see to those that matter.

        Raises:
            GatewayError: sshd is among them.
        """
        for pid, status in processes.reap().items():
            if pid == self._sshd:
                self._sshd = 0
                how = f"exit status {status}; its own last line in the log says why"
                msg = f"sshd ended ({how if status >= 0 else f'killed by signal {-status}'})"
                raise GatewayError(msg)
            if pid == self._broker:
                self._broker = 0
                self._broker_crashed(status)
            self._draining.discard(pid)

    def _broker_crashed(self, status: int) -> None:
        if time.monotonic() - self._broker_started_s > STEADY_AFTER_S:
            self._crashes = 0
        wait_s = BACK_OFF_S[min(self._crashes, len(BACK_OFF_S) - 1)]
        self._crashes += 1
        self._restart_at_s = time.monotonic() + wait_s
        self._log.error("broker_ended", status=status, restart_in_s=wait_s)

    def _restart_broker(self) -> None:
        self._restart_at_s = None
        try:
            self._heed(*self._start_broker(self._plan))
        except GatewayError as error:
            self._log.error("broker_not_started", reason=error.message)
            self._turned_away = True
            self._broker_crashed(error.status)
            return
        self._turned_away = False
        self._log.info("broker_restarted", pid=self._broker)

    def _turn_away(self) -> None:
        """Hang up on all who wait for a broker that does not start: sshd's lookups among them would wait for long."""
        for fd in self._sockets:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as listener:
                while True:
                    listener.accept()[0].close()

    def _reload(self) -> None:
        """Take the settings anew; live sessions hold neither of what is replaced.

        The new broker serves before the old one is told to end, and both share the sockets, so that no login fails.
        Whatever fails, for want of space or of file descriptors or by a fault of ours, the gateway goes on as it was.
        """
        try:
            plan = self._replan()
            # sshd starts itself anew on SIGHUP, and its port is shut for a moment: not without need.
            anew, old = plan.sshd != self._plan.sshd, self._plan.sshd
            if anew:
                listener.check(plan.sshd.address, plan.sshd.port, held=(old.address, old.port))
            broker, errands = self._start_broker(plan)
        except Exception as error:  # noqa: BLE001 - all sessions would end with it
            self._reload_failed(error)
            return
        try:
            self._write_sshd_config(plan)
        except Exception as error:  # noqa: BLE001 - the same
            processes.end(broker, signal.SIGTERM)
            self._draining.add(broker)
            # Not checked: what sshd dislikes may be a file that both name. Where it fails too, nobody reads the mixture
            # that is left: sshd gives each connection what it has in memory (sshd.c, send_rexec_state).
            with suppress(Exception):
                config.write(self._runtime.root, config.render(self._plan.sshd))
            self._reload_failed(error)
            return
        if self._broker:
            self._draining.add(self._broker)
            processes.end(self._broker, signal.SIGTERM)
        self._heed(broker, errands)
        self._plan, self._restart_at_s = plan, None
        self._turned_away = False
        if anew:
            self._runtime.pid_file.unlink(missing_ok=True)
            processes.end(self._sshd, signal.SIGHUP)
            self._anew_until_s = time.monotonic() + SSHD_READY_TIMEOUT_S
        self._log.info("reloaded")

    def _reload_failed(self, error: Exception) -> None:
        if isinstance(error, GatewayError | OSError):
            reason = str(error)
        else:  # whose own words may quote a setting
            reason = f"the gateway failed: {type(error).__name__} at {fault_of(error)}"
        self._log.error("reload_failed", reason=reason, effect="the settings from before stay in force")

    # Ending

    def _end(self) -> None:
        """End everything: users are told, sshd takes no new login, sessions say goodbye, what is left is killed.

        The brokers are the last to go: sshd's monitors look their user up once more when a session ends, and would
        wait for as long as somebody holds the user database's socket and nobody answers.
        """
        sd_notify.stopping()
        deadline = time.monotonic() + GRACE_S
        brokers = {self._broker, *self._draining}
        if self._sshd:
            shutdown_notice.say(self._sshd, processes.descendants(self._sshd))
            time.sleep(FAREWELL_S)
        self._end_all(lambda: [pid for pid in processes.descendants(os.getpid()) if pid not in brokers], deadline)
        self._end_all(lambda: processes.descendants(os.getpid()), deadline)
        for fd in self._sockets:
            os.close(fd)
        if self._log_socket is not None and self._relay is not None:
            self._log_socket.shutdown(socket.SHUT_RD)  # what is in its queue is still written
            self._relay.join(1.0)
            self._log_socket.close()
        self._runtime.remove_sockets(private=self._private)
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
