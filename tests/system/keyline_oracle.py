"""A real sshd as the judge of authorized_keys files: who gets in, and with which options.

The judge may be the sshd of another release of Debian, from a tree of its files (`.ci/on-debian`).

One ``sshd -i`` serves one TCP connection on loopback, in a mount namespace with a passwd file of its own; nothing of
the machine changes but a directory in /run, which goes with the judge. A *query* is a publickey request without a
signature (RFC 4252, section 7): sshd reads the file, logs the options that it found, and answers yes or no. Hundreds
fit into one connection. A *login* goes all the way and tells what the session got.
"""

from __future__ import annotations

import base64
import hashlib
import os
import queue
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import paramiko
from paramiko.common import MSG_SERVICE_ACCEPT, MSG_SERVICE_REQUEST, MSG_USERAUTH_FAILURE, MSG_USERAUTH_REQUEST

USER = "keyline"
ANSWER_TIMEOUT_S = 20.0
SSHD = "/usr/sbin/sshd"

_PK_OK = 60  # RFC 4252, section 7
_SHELL = """#!/bin/sh
# Tells what sshd would have run, and runs none of it.
printf '%s\\0%s\\0%s\\0' "$2" "${GATEWAY_COMMAND-unset}" "${SSH_ORIGINAL_COMMAND-unset}"
env | cut -d= -f1 | sort | tr '\\n' ' '
"""
_FOUND = re.compile(r"^debug1: .*: matching (?:key|CA) found: ", re.ASCII)
_OPTION = re.compile(
    r"^debug1: .*?:\d+: (?=(?:key options|environment|expires at|authorized principals|forced command):)"
)
_VERDICT = re.compile(r"^debug3: mm_answer_keyallowed: publickey authentication test: .* key is (not )?allowed$")


@dataclass(frozen=True)
class Offer:
    """A key as a client offers it.

    Attributes:
        algorithm: Name of the signature algorithm.
        key_type: sshd's ``%t``.
        blob: sshd's ``%k``, decoded.
        plain: The blob without the certificate: that of which sshd takes the fingerprint.
    """

    algorithm: str
    key_type: str
    blob: bytes
    plain: bytes

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint as sshd's ``%f`` has it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.plain).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class Verdict:
    """What sshd says of one offered key.

    Attributes:
        accepted: Whether it may log in.
        options: What sshd logged of the line that let it in: one string for each kind of option.
    """

    accepted: bool
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Session:
    """What a login got.

    Attributes:
        command: What sshd gave to the user's shell to run.
        carried: GATEWAY_COMMAND in the session, ``unset`` without one.
        original: SSH_ORIGINAL_COMMAND, ``unset`` without one.
        variables: Names of all variables of the session.
        pty: Whether a PTY was granted.
    """

    command: bytes
    carried: str
    original: str
    variables: frozenset[str]
    pty: bool


_NAMESPACE = 'mount --bind "$1/passwd" /etc/passwd; shift; exec "$@"'
# The tree has no /run of its own but this directory, which is at the same place there and here.
_NAMESPACE_OF_TREE = """
tree=$0 home=$1
mount -t tmpfs -o mode=0755 tmpfs "$tree/run"
mkdir "$tree/run/sshd" "$tree$home"
mount --bind "$home" "$tree$home"
mount --bind "$home/passwd" "$tree/etc/passwd"
for directory in proc dev; do mount --rbind "/$directory" "$tree/$directory"; done
shift
exec chroot "$tree" "$@"
"""


class Judge:
    """Makes sshd judge files. Use as a context; needs root, for sshd and for the mount namespace.

    Args:
        tree: The root directory of the system whose sshd judges; this machine's by default.

    Attributes:
        home: A directory in /run, owned by root as sshd wants it for AuthorizedKeysCommand.
    """

    def __init__(self, tree: Path = Path("/")) -> None:
        """Keep the tree."""
        self._tree = tree

    @cached_property
    def version(self) -> str:
        """The version of its sshd, as OpenSSH names it."""
        argv = ["chroot", str(self._tree), SSHD, "-V"]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stderr.split(",")[0]

    def __enter__(self) -> Self:
        """Make the directory with a host key, a passwd file and a shell that runs nothing."""
        # sshd's own directory is every sshd's of the machine, so it is made where it is missing, and stays.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.home = Path(tempfile.mkdtemp(prefix="keyline-", dir="/run"))
        self.home.chmod(0o755)
        (self.home / "shell").write_text(_SHELL)
        (self.home / "shell").chmod(0o755)
        own = f"{USER}:*:64999:65534::{self.home}:{self.home}/shell\n"
        (self.home / "passwd").write_text(Path("/etc/passwd").read_text("utf-8") + own, "utf-8")
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.home / "host")]
        subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the directory."""
        shutil.rmtree(self.home)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file that sshd can read, directories included."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def query(self, options: Sequence[str], offers: Sequence[Offer]) -> list[Verdict]:
        """Ask one sshd for its verdict on each offered key, in turn.

        Args:
            options: Lines of sshd_config that say where the keys come from.
            offers: The keys.
        """
        with tempfile.TemporaryFile() as log:
            with self._connection([*options, "LogLevel DEBUG3"], log.fileno()) as transport:
                answers = _Answers()
                transport.auth_handler = answers  # type: ignore[assignment]
                request = paramiko.Message()
                request.add_byte(bytes([MSG_SERVICE_REQUEST]))
                request.add_string("ssh-userauth")
                transport._send_message(request)  # type: ignore[attr-defined]
                assert answers.next() == MSG_SERVICE_ACCEPT
                accepted = [self._ask(transport, answers, offer) for offer in offers]
            log.seek(0)
            logged = _read_log(log.read().decode("utf-8", "replace"))
        assert [verdict.accepted for verdict in logged] == accepted, "sshd's log and its answers are not in step"
        return logged

    def login(self, options: Sequence[str], key: paramiko.PKey) -> Session:
        """Log in, ask for a PTY, run ``probe``.

        Raises:
            paramiko.AuthenticationException: sshd does not let the key in.
        """
        with self._connection([*options, "LogLevel ERROR"], subprocess.DEVNULL) as transport:
            transport.auth_publickey(USER, key)
            channel = transport.open_session()
            try:
                channel.get_pty()
                pty = True
            except paramiko.SSHException:
                pty = False
            channel.close()
            channel = transport.open_session()
            channel.settimeout(ANSWER_TIMEOUT_S)
            channel.exec_command("probe")
            command, carried, original, names = channel.makefile("rb").read().split(b"\0")
        variables = frozenset(names.decode().split())
        return Session(command, carried.decode(), original.decode(), variables, pty)

    @staticmethod
    def _ask(transport: paramiko.Transport, answers: _Answers, offer: Offer) -> bool:
        message = paramiko.Message()
        message.add_byte(bytes([MSG_USERAUTH_REQUEST]))
        for text in (USER, "ssh-connection", "publickey"):
            message.add_string(text)
        message.add_boolean(False)  # noqa: FBT003 - paramiko takes it so; there is no signature
        message.add_string(offer.algorithm)
        message.add_string(offer.blob)
        transport._send_message(message)  # type: ignore[attr-defined]
        return answers.next() == _PK_OK

    @contextmanager
    def _connection(self, options: Sequence[str], stderr: int) -> Iterator[paramiko.Transport]:
        settings = [
            f"HostKey {self.home}/host",
            "UsePAM no",
            "MaxAuthTries 1000000",
            "LoginGraceTime 600",
            "PermitTTY yes",
            "PrintMotd no",
            "PrintLastLog no",
            *options,
        ]
        namespace = _NAMESPACE if self._tree == Path("/") else _NAMESPACE_OF_TREE
        argv = ["unshare", "--mount", "sh", "-ec", namespace, str(self._tree), str(self.home)]
        argv += [SSHD, "-i", "-e", "-f", "/dev/null"]
        for setting in settings:
            argv += ["-o", setting]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        with client, server:
            process = subprocess.Popen(argv, stdin=server.fileno(), stdout=server.fileno(), stderr=stderr)
            server.close()
            transport = paramiko.Transport(client)
            try:
                transport.start_client(timeout=ANSWER_TIMEOUT_S)
                yield transport
            finally:
                transport.close()
                try:
                    process.wait(ANSWER_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


class _Answers:
    """Stands where paramiko has its authentication, and hands out the types of sshd's answers."""

    def __init__(self) -> None:
        self._types: queue.Queue[int] = queue.Queue()
        kinds = (MSG_SERVICE_ACCEPT, MSG_USERAUTH_FAILURE, _PK_OK)
        self._handler_table = {kind: self._taker(kind) for kind in kinds}
        self._client_handler_table = self._handler_table

    def _taker(self, kind: int) -> Callable[..., None]:
        return lambda *_: self._types.put(kind)

    def next(self) -> int:
        """Wait for the next answer and return its message number."""
        return self._types.get(timeout=ANSWER_TIMEOUT_S)

    def abort(self) -> None:
        """Do nothing: paramiko calls this when the connection ends."""

    @staticmethod
    def is_authenticated() -> bool:
        """Say no, as a query never is."""
        return False


def _read_log(text: str) -> list[Verdict]:
    """Take sshd's verdicts, with the options of the line that decided, from its log."""
    verdicts: list[Verdict] = []
    options: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if _FOUND.match(line):
            options = []
        elif match := _OPTION.match(line):
            options.append(line[match.end() :])
        elif match := _VERDICT.match(line):
            verdicts.append(Verdict(accepted=False) if match[1] else Verdict(accepted=True, options=tuple(options)))
            options = []
    return verdicts


def is_possible() -> str | None:
    """Say what is missing here for a judge; None when there is nothing."""
    if os.geteuid() != 0:
        return "needs root, for sshd and for a mount namespace"
    missing = [tool for tool in (SSHD, "ssh-keygen", "unshare") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None
