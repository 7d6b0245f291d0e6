"""sshd's ForceCommand: requests a session from the broker and becomes mosh-client, or ssh if mosh cannot carry it.

It runs as the user's own uid, on sshd's PTY if there is one. After the ``execve`` no Python remains.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from helpers.protocol.broker_client import TELL_TIMEOUT_S, BrokerRequest, ask, tell
from helpers.protocol.errors import (
    INTERRUPTED,
    BrokerUnavailableError,
    GatewayError,
    NoLocaleError,
    NoMoshServerError,
    local_error,
)
from helpers.session.mosh_client import become_mosh_client
from helpers.session.program import become
from helpers.session.terminal import has_window, locale_of, usable_term

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from helpers.protocol.session_answer import MoshAnswer, SshAnswer

PROGRESS_AFTER_S = 0.5
"""Seconds without an answer after which a progress line is shown to the user."""

AGENT_PATIENCE_S = 2.0
"""Seconds after which a path counts as blocked with agent pass-through, where the round trip is not known."""

TOLD_CHARS = 64
"""How many characters of a command the broker gets if only ssh can carry it: enough to recognize a subsystem."""

CARRIER = "GATEWAY_COMMAND"
"""Contains a key's ``command=`` in base64. Only a key line from the broker sets it: sshd ignores it from clients."""


def main(argv: list[str]) -> int:
    """Start the session.

    Args:
        argv: The broker's socket.

    Returns:
        The exit status if no session starts: that of the error (`helpers.protocol.errors`), or 130 after Ctrl-C.
    """
    client = os.getppid()
    try:
        (socket_path,) = argv
        # Both before the change of uid: after it, only root can read /proc/self and sshd's file.
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
    """Read the environment as sshd passed it (proc(5)): Python adds its own LC_CTYPE to a C locale (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 - pathlib costs 4 ms
        words = os.fsdecode(file.read()).split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def drop_root(socket_path: str, agent: str | None) -> None:
    """Change to the uid of root's sessions, so that no code handles network data as the gateway's root.

    Args:
        socket_path: The broker's socket.
        agent: The socket of the agent that sshd forwards, whose owner is changed too.

    Raises:
        GatewayError: The broker does not permit root, or answers with uid 0.
    """
    uid = int(ask(socket_path, {"op": "root"})["uid"])
    if agent is not None:
        # sshd made it as root, in directories that only root can enter, so no other user can have replaced it:
        # /tmp/ssh-XXXX, from OpenSSH 10.1 on ~/.ssh/agent. The new uid needs search permission, not read permission.
        os.chown(agent, uid, uid, follow_symlinks=False)
        directory = os.path.dirname(agent)  # noqa: PTH120 - pathlib costs 4 ms
        while not os.stat(directory).st_mode & stat.S_IXOTH:  # noqa: PTH116 - the same
            os.chmod(directory, 0o711)  # noqa: PTH101, S103 - the same; search permission is intended
            directory = os.path.dirname(directory)  # noqa: PTH120 - the same
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if 0 in {*os.getresuid(), *os.getresgid()}:  # -1 also leaves them unchanged (setresuid(2))
        msg = "the gateway's broker has no uid for root's session; tell the gateway's operator"
        raise GatewayError(msg)


def start(socket_path: str, environ: Mapping[str, str], key: str, client: int) -> None:
    """Check the terminal, request a session, and become mosh-client, or ssh without a terminal.

    Args:
        socket_path: The broker's socket.
        environ: The environment from sshd; LANG, LC_* and TERM in it are the client's and unchecked.
        key: The key that sshd accepted, see `accepted_key`.
        client: The pid of the sshd that serves the client.

    Raises:
        GatewayError: The broker starts no session, a program is missing here, or the client has disconnected.
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
    # The broker does not need such a command, so only the kernel limits its length.
    ours_alone = original is not None and not has_terminal and CARRIER not in environ
    if ours_alone:
        request["original_command"] = str(original)[:TOLD_CHARS]
    answer: Any = wait_with_progress(BrokerRequest(socket_path, request).wait, shown=has_terminal)
    try:
        if answer["transport"] == "mosh":
            path = environ.get("PATH", os.defpath)
            fallback = become_mosh_client(socket_path, answer, term, path, keep=original is not None)
            answer = go_over_ssh(socket_path, {**request, **fallback})
        if ours_alone and answer["command"] is not None:
            answer["command"] = original
        become_ssh(socket_path, environ, key, client, answer, term)
    except (GatewayError, OSError, MemoryError) as error:
        # To the broker the session has begun.
        failure = error if isinstance(error, GatewayError) else local_error(error)
        report_failure(socket_path, failure)
        raise failure from error


def report_failure(socket_path: str, failure: GatewayError) -> None:
    """Tell the broker that the session has failed after the broker's answer, for the log."""
    try:
        ask(socket_path, {"op": "failed", "code": failure.code, "message": failure.message}, TELL_TIMEOUT_S)
    except GatewayError:
        return  # the user is told all the same


def become_ssh(  # noqa: PLR0917 - what `start` has found out
    socket_path: str, environ: Mapping[str, str], key: str, client: int, session: SshAnswer, term: str
) -> None:
    """Become ssh; or with agent pass-through mosh-client, once ssh has started a mosh-server.

    Args:
        socket_path: The broker's socket.
        environ: The environment from sshd.
        key: The key that sshd accepted.
        client: The pid of the sshd that serves the client.
        session: The broker's answer.
        term: The terminal type that was checked, for mosh-client.

    Raises:
        GatewayError: The remote starts no session, a program is missing here, or the client has disconnected.
    """
    from helpers.session import ssh_client  # noqa: PLC0415 - not needed for mosh

    has_terminal, path = session["pty"] or "mosh" in session, environ.get("PATH", os.defpath)
    # Unchanged from the client, as in a direct login. Only mosh needs checked values.
    sent = {name: value for name, value in environ.items() if name in {"LANG", "TERM"} or name.startswith("LC_")}
    ssh = {**sent, "PATH": path, "HOME": str(session["home"])}
    if session["interactive"]:
        ssh |= ssh_client.NO_ANSWER
    if session["agent"] is None:
        # Imported only here: most gateways have a key, and the import would cost every login 8 ms.
        from helpers.session import agent_pass_through  # noqa: PLC0415

        session["agent"] = agent_pass_through.forwarded_agent(environ)

        def ssh_with_a_turn() -> list[str]:
            turn = agent_pass_through.Login(socket_path, environ.get("SSH_CONNECTION", ""), key, ssh["HOME"])
            given = wait_with_progress(turn.wait, shown=has_terminal)
            return ssh_client.ssh_argv(
                {**session, "options": given["options"], "identity": given["identity"]},
            )

        if "mosh" in session:
            mosh = start_mosh_server(socket_path, session, ssh_with_a_turn, ssh)
            if mosh is not None:
                original = environ.get("SSH_ORIGINAL_COMMAND")
                fallback = become_mosh_client(socket_path, mosh, term, path, keep=original is not None)
                given = {"terminal": None, "command": environ.get(CARRIER), "original_command": original}
                answer: Any = go_over_ssh(socket_path, {**given, **fallback})
                session |= {"pty": True, "command": answer["command"], "notice": answer["notice"]}
                del session["mosh"]
        argv = ssh_with_a_turn()
    elif session["share"]:
        from helpers.session import connection_sharing  # noqa: PLC0415 - the same: not needed for mosh

        options = connection_sharing.options(ssh["HOME"], os.getpid())
        if connection_sharing.SHARED in options:
            tell(socket_path, {"op": "started"})  # its ssh does not log in
        argv = ssh_client.ssh_argv({**session, "options": options})
    else:
        argv = ssh_client.ssh_argv(session)
    if os.getppid() != client:
        msg = "the client has disconnected"
        raise GatewayError(msg)
    if "notice" in session:
        print(f"gateway: {session['notice']}", file=sys.stderr, flush=True)
    command = session["command"]
    # ssh treats an empty command as none, and would request a shell; a blank runs nothing either.
    become([*ssh_client.LEAVE_WITH_CLIENT, *argv, *(() if command is None else (command or " ",))], ssh)


def go_over_ssh(socket_path: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the broker for the connection of a session that UDP does not carry.

    Args:
        socket_path: The broker's socket.
        request: The session's request, and what was found: see `helpers.session.mosh_client`.

    Raises:
        GatewayError: The broker starts no session.
    """
    try:
        return ask(socket_path, dict(request))
    except BrokerUnavailableError:
        return ask(socket_path, dict(request))  # a new broker answers, and knows the session


def start_mosh_server(
    socket_path: str, session: SshAnswer, ssh_argv: Callable[[], list[str]], environ: Mapping[str, str]
) -> MoshAnswer | None:
    """Start a mosh-server over ssh, with agent pass-through.

    Args:
        socket_path: The broker's socket.
        session: The broker's answer; changed to one for ssh if the remote lacks what mosh needs.
        ssh_argv: See `helpers.session.agent_pass_through.MoshServer`.
        environ: ssh's environment.

    Returns:
        The mosh-server; None if the session goes over ssh.

    Raises:
        GatewayError: The remote starts no session.
    """
    from helpers.session import agent_pass_through  # noqa: PLC0415 - as in `become_ssh`

    try:
        commands = agent_pass_through.MoshServer(session["mosh"], ssh_argv, environ)
        found: Any = wait_with_progress(commands.wait, shown=True)
    except (NoMoshServerError, NoLocaleError) as error:
        if not session["mosh"]["falls_back"]:
            raise
        session["notice"] = f"{error.message}; this session goes over ssh"
        session["pty"] = True
        del session["mosh"]
        ask(socket_path, {"op": "over_ssh"})
        return None
    tell(socket_path, {"op": "started", "udp_port": found["port"]})
    mosh: MoshAnswer = {
        "transport": "mosh",
        "address": str(found.get("address", session["address"])),
        "port": found["port"],
        "key": found["key"],
        "predict": found["predict"],
    }
    if session["mosh"]["falls_back"]:
        # Sessions share no facts here, since any client gets the uid of the name that it claims.
        mosh["patience_s"] = AGENT_PATIENCE_S
    return mosh


def accepted_key(user_auth_path: str) -> str:
    """Read the key that sshd accepted, for the log.

    Args:
        user_auth_path: The file named by SSH_USER_AUTH (sshd_config(5), ExposeAuthInfo).

    Returns:
        Its first line, such as ``publickey ssh-ed25519 AAAA...``, or "" if there is none.
    """
    try:
        with open(user_auth_path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib costs 4 ms
            return file.readline(32 * 1024).rstrip("\n")
    except OSError:
        return ""


def wait_with_progress(wait: Callable[[float | None], dict[str, Any] | None], *, shown: bool) -> dict[str, Any]:
    """Wait for an answer, and show a progress line on the terminal if it takes longer than `PROGRESS_AFTER_S`.

    Args:
        wait: Waits for so many seconds (None: until its own deadline) and returns None if that was too short.
        shown: Whether there is a terminal for the progress line.

    Returns:
        The answer.

    Raises:
        GatewayError: There is no answer; the sentence is the reason.
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
