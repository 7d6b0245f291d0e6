"""sshd's ForceCommand: asks the broker for a session and becomes mosh-client, or ssh for what mosh cannot carry.

It runs as the user's own uid, on sshd's PTY if there is one. After the ``execve`` no Python is left.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from helpers.protocol.broker_client import Question, ask
from helpers.protocol.errors import INTERRUPTED, GatewayError, local_error
from helpers.session.mosh_client import become_mosh_client
from helpers.session.program import become
from helpers.session.terminal import has_window, locale_of, usable_term

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from helpers.protocol.session_answer import SshAnswer

PROGRESS_AFTER_S = 0.5
"""Seconds without an answer after which the user is told what is being waited for."""

TOLD_CHARS = 64
"""How much of a command the broker is told where ssh alone can carry it: enough to tell a subsystem from a command."""

CARRIER = "GATEWAY_COMMAND"
"""Holds a key's ``command=`` in base64. Only a line of the broker's sets it: sshd takes no such name from a client."""


def main(argv: list[str]) -> int:
    """Start the session.

    Args:
        argv: The broker's socket.

    Returns:
        The exit status when there is no session: that of the error (`helpers.protocol.errors`), or 130 after Ctrl-C.
    """
    client = os.getppid()
    try:
        (socket_path,) = argv
        # Both before the drop: after it, /proc/self and sshd's file are root's alone.
        environ = given_environment()
        key = accepted_key(environ.get("SSH_USER_AUTH", ""))
        if os.geteuid() == 0:
            drop_root(socket_path, environ.get("SSH_AUTH_SOCK"))
        start(socket_path, environ, key, client)
    except GatewayError as error:
        failure = error
    except (OSError, MemoryError) as error:
        failure = local_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    else:
        raise AssertionError  # start() becomes another program, or raises
    print(f"gateway: {failure.message}", file=sys.stderr)
    return failure.status


def given_environment() -> dict[str, str]:
    """Read the environment as sshd gave it (proc(5)): Python adds an LC_CTYPE of its own to a plain one (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 - pathlib costs 4 ms
        words = os.fsdecode(file.read()).split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def drop_root(socket_path: str, agent: str | None) -> None:
    """Become root's own invented uid, so that nothing of ours meets the network as the gateway's root.

    Args:
        socket_path: The broker's socket.
        agent: The socket of the agent that sshd forwards, which goes with us.

    Raises:
        GatewayError: The broker does not permit root, or its uid is root's own.
    """
    uid = int(ask(socket_path, {"op": "root"})["uid"])
    if agent is not None:
        # sshd made it as root, in directories that are root's alone, so that nobody can have put anything in its place:
        # /tmp/ssh-XXXX, from OpenSSH 10.1 on ~/.ssh/agent. They need to be passed through, not read.
        os.chown(agent, uid, uid, follow_symlinks=False)
        directory = os.path.dirname(agent)  # noqa: PTH120 - pathlib costs 4 ms
        while not os.stat(directory).st_mode & stat.S_IXOTH:  # noqa: PTH116 - the same
            os.chmod(directory, 0o711)  # noqa: PTH101, S103 - the same; and to pass through is meant
            directory = os.path.dirname(directory)  # noqa: PTH120 - the same
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if 0 in {*os.getresuid(), *os.getresgid()}:  # -1, too, leaves them as they are (setresuid(2))
        msg = "the gateway's broker has no uid for root's session; tell the gateway's operator"
        raise GatewayError(msg)


def start(socket_path: str, environ: Mapping[str, str], key: str, client: int) -> None:
    """Check the terminal, ask for a session, become mosh-client, or ssh where there is no terminal.

    Args:
        socket_path: The broker's socket.
        environ: What sshd gave the session; LANG, LC_* and TERM in it are the client's and unchecked.
        key: The key that sshd accepted, see `accepted_key`.
        client: The sshd that serves the client.

    Raises:
        GatewayError: The broker has no session for us, a program is missing here, or the client is gone.
    """
    original = environ.get("SSH_ORIGINAL_COMMAND")
    request: dict[str, Any] = {
        "op": "session",
        "terminal": None,
        "command": environ.get(CARRIER),
        "original_command": original,
        "connection": environ.get("SSH_CONNECTION", ""),
        "key": key,
    }
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    term = environ.get("TERM", "dumb")
    if has_terminal:
        term, colors = usable_term(term, sys.stdout.fileno())
        window = has_window(sys.stdout.fileno())
        request["terminal"] = {"colors": colors, "locale": locale_of(environ), "window": window}
    # Such a command may be as long as the kernel lets it be.
    ours_alone = original is not None and not has_terminal and CARRIER not in environ
    if ours_alone:
        request["original_command"] = str(original)[:TOLD_CHARS]
    answer: Any = wait_with_progress(Question(socket_path, request).wait, shown=has_terminal)
    path = environ.get("PATH", os.defpath)
    if answer["transport"] == "mosh":
        become_mosh_client(answer, term, path, keep=original is not None)
    from helpers.session import ssh_client  # noqa: PLC0415 - mosh needs it not

    session: SshAnswer = answer
    # As the client sent them: the remote is as if dialled directly. mosh alone is particular about them.
    sent = {name: value for name, value in environ.items() if name in {"LANG", "TERM"} or name.startswith("LC_")}
    ssh = {**sent, "PATH": path, "HOME": str(session["home"])}
    if session["interactive"]:
        ssh |= ssh_client.NO_ANSWER
    if session["agent"] is None:
        # Apart, because most gateways have a key, and importing it costs every login 8 ms.
        from helpers.session import agent_pass_through  # noqa: PLC0415

        session["agent"] = agent_pass_through.forwarded_agent(environ)

        def ssh_with_a_turn() -> list[str]:
            turn = agent_pass_through.Login(socket_path, request["connection"], key, ssh["HOME"])
            given = wait_with_progress(turn.wait, shown=has_terminal)
            return ssh_client.ssh_argv(
                {**session, "options": given["options"], "identity": given["identity"]},
            )

        if "mosh" in session:
            commands = agent_pass_through.MoshServer(session["mosh"], ssh_with_a_turn, ssh)
            mosh: Any = {"address": session["address"], **wait_with_progress(commands.wait, shown=True)}
            become_mosh_client(mosh, term, path, keep=original is not None)
        argv = ssh_with_a_turn()
    elif session["share"]:
        from helpers.session import connection_sharing  # noqa: PLC0415 - the same: mosh needs it not

        argv = ssh_client.ssh_argv({**session, "options": connection_sharing.options(ssh["HOME"], os.getpid())})
    else:
        argv = ssh_client.ssh_argv(session)
    if os.getppid() != client:
        msg = "the client has disconnected"
        raise GatewayError(msg)
    command = original if ours_alone and session["command"] is not None else session["command"]
    # ssh takes an empty command for none, and would ask for a shell; a blank runs as little.
    become([*ssh_client.LEAVE_WITH_CLIENT, *argv, *(() if command is None else (command or " ",))], ssh)


def accepted_key(user_auth_path: str) -> str:
    """Read which key sshd accepted, for the log.

    Args:
        user_auth_path: The file named by SSH_USER_AUTH (sshd_config(5), ExposeAuthInfo).

    Returns:
        Its first line, as ``publickey ssh-ed25519 AAAA...``, or "" where there is none.
    """
    try:
        with open(user_auth_path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib costs 4 ms
            return file.readline(32 * 1024).rstrip("\n")
    except OSError:
        return ""


def wait_with_progress(wait: Callable[[float | None], dict[str, Any] | None], *, shown: bool) -> dict[str, Any]:
    """Wait for an answer, saying so on the terminal once it takes longer than `PROGRESS_AFTER_S`.

    Args:
        wait: Waits for so many seconds (None: until its own deadline) and answers None where that was too short.
        shown: Whether there is a terminal to say it on.

    Returns:
        The answer.

    Raises:
        GatewayError: There is none; the sentence says why.
    """
    started = time.monotonic()
    said = False
    try:
        while (answer := wait(PROGRESS_AFTER_S if shown else None)) is None:
            said = True
            waited_s = time.monotonic() - started
            print(f"\r\x1b[Kgateway: reaching the remote host, {waited_s:.0f} s", end="", file=sys.stderr, flush=True)
        return answer
    finally:
        if said:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
