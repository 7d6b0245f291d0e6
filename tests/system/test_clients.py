"""Any SSH client gets a shell: those that people use, and what ssh-audit has to say of the gateway."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import paramiko

from lab.gateway import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

_TYPED, _SHOWN = "echo $((1234 * 5678))", "7006652"
_PATIENCE_S = 20.0


def _use_shell(terminal: Terminal, user: User) -> None:
    """See the prompt, run a command and leave, whichever client is in between."""
    terminal.wait_for(user.prompt)
    terminal.run(f"id -un; {_TYPED}", f"{user.name}\n{_SHOWN}")
    terminal.type("exit\r")
    assert terminal.wait_exit() == 0


def test_openssh(lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]) -> None:
    """OpenSSH's ``ssh`` gets the user's shell."""
    _use_shell(open_terminal(lab.gateway_argv(gateway, user)), user)


def test_plink(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal], require: Callable[..., None]
) -> None:
    """PuTTY's ``plink``, with a key in PuTTY's own format, gets the user's shell."""
    require("plink", "puttygen")
    ppk = user.key.private.with_suffix(".ppk")
    lab.run(["puttygen", str(user.key.private), "-O", "private", "-o", str(ppk)]).check_returncode()
    host_key = lab.run(["ssh-keygen", "-l", "-f", str(gateway.host_key)]).stdout.decode().split()[1]
    options = ["-ssh", "-batch", "-t", "-noagent", "-P", str(gateway.port), "-hostkey", host_key, "-i", str(ppk)]

    _use_shell(open_terminal(["plink", *options, f"{user.name}@{ADDRESS}"]), user)


def test_dropbear(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal], require: Callable[..., None]
) -> None:
    """Dropbear's ``dbclient``, with a key in Dropbear's own format, gets the user's shell."""
    require("dbclient", "dropbearconvert")
    own = user.key.private.with_suffix(".dropbear")
    lab.run(["dropbearconvert", "openssh", "dropbear", str(user.key.private), str(own)]).check_returncode()
    options = ["-y", "-y", "-t", "-i", str(own), "-p", str(gateway.port), "-l", user.name]

    _use_shell(open_terminal(["dbclient", *options, ADDRESS]), user)


async def test_asyncssh(lab: Lab, gateway: Gateway, user: User) -> None:
    """A program that uses asyncssh gets the user's shell in a terminal of its own making."""
    sock = lab.near.connect(ADDRESS, gateway.port)
    sock.settimeout(0)
    known_hosts = asyncssh.import_known_hosts(gateway.known_hosts.read_text())
    options: dict[str, Any] = {"username": user.name, "client_keys": [str(user.key.private)], "config": None}
    async with (
        asyncio.timeout(_PATIENCE_S),
        asyncssh.connect(
            ADDRESS, gateway.port, sock=sock, known_hosts=known_hosts, agent_path=None, **options
        ) as connection,
        connection.create_process(term_type="xterm", term_size=(80, 24)) as process,
    ):
        await _read_until(process, user.prompt)
        process.stdin.write(f"{_TYPED}\n")
        await _read_until(process, _SHOWN)
        process.stdin.write("exit\n")
        await process.wait()


async def _read_until(process: asyncssh.SSHClientProcess[str], text: str) -> None:
    """Read until a text has come."""
    seen = ""
    while text not in seen:
        chunk = await process.stdout.read(4096)
        assert chunk, seen
        seen += chunk


def test_paramiko(lab: Lab, gateway: Gateway, user: User) -> None:
    """A program that uses paramiko gets the user's shell in a terminal of its own making."""
    with closing(paramiko.Transport(lab.near.connect(ADDRESS, gateway.port, timeout_s=_PATIENCE_S))) as transport:
        transport.start_client(timeout=_PATIENCE_S)
        transport.auth_publickey(user.name, paramiko.Ed25519Key.from_private_key_file(str(user.key.private)))
        channel = transport.open_session(timeout=_PATIENCE_S)
        channel.settimeout(_PATIENCE_S)
        channel.get_pty("vt100", 80, 24)
        channel.invoke_shell()
        for expected, typed in ((user.prompt, f"{_TYPED}\r"), (_SHOWN, "exit\r")):
            seen = b""
            while expected.encode() not in seen:
                chunk = channel.recv(4096)
                assert chunk, seen
                seen += chunk
            channel.sendall(typed.encode())
        deadline = time.monotonic() + _PATIENCE_S
        while not channel.exit_status_ready() and time.monotonic() < deadline:
            channel.recv(4096)
        assert channel.recv_exit_status() == 0


def test_ssh_audit_has_little_to_say(lab: Lab, gateway: Gateway) -> None:
    """ssh-audit finds nothing to fail, and warns of the one exchange that is kept for clients with nothing newer."""
    argv = [str(Path(sys.executable).with_name("ssh-audit")), "--json", "--skip-rate-test", "-p", str(gateway.port)]
    report = json.loads(lab.run([*argv, ADDRESS]).stdout)

    fails, warnings = [], []
    for kind in ("kex", "key", "enc", "mac"):
        for algorithm in report[kind]:
            notes = algorithm.get("notes", {})
            fails += [(algorithm["algorithm"], note) for note in notes.get("fail", [])]
            warnings += [(algorithm["algorithm"], note) for note in notes.get("warn", [])]
    assert report["kex"]
    assert fails == []
    assert all(re.fullmatch(r"curve25519-sha256(@libssh\.org)?", name) for name, _ in warnings), warnings
    assert all("post-quantum" in note for _, note in warnings), warnings
    assert report.get("cves", []) == []
