"""The whole lab: remote, WAN, gateways and terminals, brought up in a second and taken down whatever happens."""

from __future__ import annotations

import atexit
import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab import client
from lab.directory import own_directory, sweep
from lab.gateway import ADDRESS, Gateway
from lab.link import Conditions
from lab.remote import PORT, Remote
from lab.room import PLAIN_ENVIRONMENT, Room
from lab.terminal import Terminal
from lab.users import User, make_key
from lab.waiting import LogFile
from lab.wan import FAR_IPV4, Wan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import IO

_FIRST_PORT = 2222

TERMINAL_ENVIRONMENT = {**PLAIN_ENVIRONMENT, "TERM": "xterm-256color"}


class Lab:
    """A remote behind a WAN, and the network of a gateway in front of it. Use it with ``with``.

    Args:
        rtt_ms: Round-trip time of the WAN in milliseconds.
        loss: Share of packets lost in each direction, 0-1.
        rate_kb_s: Bottleneck of the WAN in kilobytes a second and direction; None means none.
        seed: Decides which packets are lost.
    """

    def __init__(
        self, *, rtt_ms: float = 20.0, loss: float = 0.0, rate_kb_s: float | None = None, seed: int = 1
    ) -> None:
        """Keep the conditions; ``__enter__`` brings it up."""
        self._conditions = Conditions(rtt_ms=rtt_ms, loss=loss, rate_kb_s=rate_kb_s)
        self._seed = seed
        self._stack = ExitStack()
        self._keys = 0
        self.gateways: list[Gateway] = []
        self.terminals: list[Terminal] = []

    def __enter__(self) -> Self:
        """Bring it up; taken down again by ``__exit__``, or at the interpreter's end."""
        atexit.register(self.close)
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def _open(self) -> None:
        """Bring up directory, rooms, WAN and daemon, each pushing how it is taken down."""
        sweep()
        self.directory = self._stack.enter_context(own_directory())
        self._errors: IO[bytes] = self._stack.enter_context((self.directory / "errors").open("ab"))
        for name in ("keys", "remote", "home"):
            (self.directory / name).mkdir()
        self.near = Room("gateway", errors=self._errors)
        self._stack.callback(self.near.close)
        self.remote = Remote(self.directory / "remote", errors=self._errors)
        self._stack.callback(self.remote.close)
        self.wan = Wan(self.near, self.remote.room, self._conditions, seed=self._seed, errors=self._errors)
        self._stack.callback(self.wan.close)
        self.gateway_key = make_key(self.directory / "keys" / "gateway")
        self.known_hosts = self.directory / "known_hosts"
        self.pin_host_keys()
        self.remote.start_sshd()

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        self.close()

    def close(self) -> None:
        """End all processes and remove all files; the namespaces end with them."""
        atexit.unregister(self.close)
        with _uninterrupted():
            self._stack.close()

    def defer(self, end: Callable[[], None]) -> None:
        """Have something that a caller started end with the lab."""
        self._stack.callback(end)

    def pin_host_keys(self) -> None:
        """Write the remote's present host keys to ``known_hosts``, as after ``remote.rotate_host_keys``."""
        self.known_hosts.write_text(self.remote.known_hosts())

    # Evidence, for a test that fails

    def logs(self) -> dict[str, LogFile]:
        """Return the logs there are, by what to call them."""
        gateways = {f"gateway on port {gateway.port}": gateway.log for gateway in self.gateways}
        return {"set-up": LogFile(self.directory / "errors"), "remote sshd": self.remote.log, **gateways}

    def marks(self) -> dict[Path, int]:
        """Return the present length of each log, for ``evidence``."""
        return {log.path: log.mark() for log in self.logs().values()}

    def evidence(self, marks: Mapping[Path, int]) -> list[tuple[str, str]]:
        """Return what was logged since, and what the open terminals show, each with its name."""
        sections = [
            (f"{name} log", "\n".join(log.lines(since=marks.get(log.path, 0)))) for name, log in self.logs().items()
        ]
        screens = [
            (f"terminal {terminal.argv[-1]}", terminal.framed()) for terminal in self.terminals if not terminal.closed
        ]
        return [section for section in sections if section[1]] + screens

    # People

    def add_user(self, name: str | None = None, *, authorized: Sequence[str] | None = None) -> User:
        """Add a user on the remote.

        Args:
            name: Login name; None for one that nobody has yet.
            authorized: Lines of the user's authorized_keys; None for the user's own key and the gateway's.
        """
        self._keys += 1
        name = name or f"user{self._keys}"
        key = make_key(self.directory / "keys" / f"client-{self._keys}")
        lines = [key.public, self.gateway_key.public] if authorized is None else authorized
        return self.remote.add_user(name, key, authorized=lines)

    # Gateways

    def start_gateway(
        self, settings: Mapping[str, str | None] | None = None, *arguments: str, wait: bool = True
    ) -> Gateway:
        """Start a gateway that fetches keys with ``gateway_key``; it ends with the lab, or by ``close``.

        Args:
            settings: Environment variables on top of the defaults; None as a value takes one away.
            arguments: Command-line arguments after ``serve``.
            wait: Wait until it answers. False for one that is to refuse its settings.
        """
        directory = self.directory / f"gateway-{len(self.gateways)}"
        directory.mkdir()
        gateway = Gateway(
            self.near,
            directory,
            port=_FIRST_PORT + len(self.gateways),
            settings={
                "GATEWAY_SSH_KEY_PATH": str(self.gateway_key.private),
                "REMOTE_KNOWN_HOSTS": str(self.known_hosts),
                **(settings or {}),
            },
            errors=self._errors,
            arguments=arguments,
        )
        self.gateways.append(gateway)
        self._stack.callback(gateway.close)
        if wait:
            gateway.wait_ready()
        return gateway

    # Clients, all in the gateway's network: there its loopback is the LAN

    def gateway_argv(
        self,
        gateway: Gateway,
        user: User | str,
        *command: str,
        options: Sequence[str] = (),
        key: Path | None = None,
    ) -> list[str]:
        """Return the command line of ``ssh`` through a gateway; ``client.ssh_argv`` has the arguments."""
        return client.ssh_argv(
            user,
            host=ADDRESS,
            port=gateway.port,
            known_hosts=gateway.known_hosts,
            key=key,
            options=options,
            command=command,
        )

    def direct_ssh_argv(self, user: User | str, *command: str, options: Sequence[str] = ()) -> list[str]:
        """Return the command line of ``ssh`` straight to the remote over the same WAN: the oracle."""
        return client.ssh_argv(
            user, host=FAR_IPV4, port=PORT, known_hosts=self.known_hosts, options=options, command=command
        )

    def direct_mosh_argv(self, user: User, *command: str) -> list[str]:
        """Return the command line of ``mosh`` straight to the remote over the same WAN: the oracle."""
        return client.mosh_argv(user, known_hosts=self.known_hosts, command=command)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a client: an empty home, a common terminal."""
        return {**TERMINAL_ENVIRONMENT, "HOME": str(self.directory / "home"), **(extra or {})}

    def terminal(
        self,
        argv: Sequence[str],
        *,
        rows: int = 24,
        columns: int = 80,
        environment: Mapping[str, str] | None = None,
    ) -> Terminal:
        """Run a client in a person's terminal; it ends with the lab, or by ``close``.

        Args:
            argv: The command line.
            rows: Height of the window.
            columns: Width of the window.
            environment: Variables on top of PATH, HOME, LANG=C.UTF-8 and TERM=xterm-256color.
        """
        terminal = Terminal(
            self.near.network_argv(argv),
            environment=self.environment(environment),
            rows=rows,
            columns=columns,
        )
        self.terminals.append(terminal)
        self._stack.callback(terminal.close)
        return terminal

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a client without a terminal to its end, and return its status and output."""
        return subprocess.run(
            self.near.network_argv(argv),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            env=self.environment(environment),
            start_new_session=True,
        )

    @contextmanager
    def background(
        self, argv: Sequence[str], *, stdio: int = subprocess.PIPE, environment: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a client without a terminal, in a process group of its own, and kill it at the end.

        Args:
            argv: The command line.
            stdio: Its standard input, output and error.
            environment: Variables on top of those of ``terminal``.
        """
        started = subprocess.Popen(
            self.near.network_argv(argv),
            stdin=stdio,
            stdout=stdio,
            stderr=stdio,
            env=self.environment(environment),
            start_new_session=True,
        )
        try:
            yield started
        finally:
            started.kill()
            started.communicate()

    @contextmanager
    def agent(self, *keys: Path) -> Iterator[dict[str, str]]:
        """Run an ssh-agent that holds these private keys, in this order; yields what clients need to find it."""
        self._keys += 1
        environment = {"SSH_AUTH_SOCK": str(self.directory / "keys" / f"agent-{self._keys}")}
        started = subprocess.Popen(
            self.near.network_argv(["ssh-agent", "-D", "-a", environment["SSH_AUTH_SOCK"]]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=PLAIN_ENVIRONMENT,
            start_new_session=True,
        )
        try:
            assert started.stdout is not None
            started.stdout.readline()  # it has said where its socket is: the socket is there
            for key in keys:
                added = self.run(["ssh-add", str(key)], environment=environment)
                added.check_returncode()
            yield environment
        finally:
            started.terminate()
            started.communicate()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C wait until what the first one began is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
