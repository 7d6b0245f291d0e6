"""sshd's ForceCommand: asks the broker for a session and becomes mosh-client, or ssh for what mosh cannot carry.

It runs as the user's own uid, on sshd's PTY if there is one. After the ``execve`` no Python is left.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from _signal import (  # type: ignore[import-not-found]  # signal itself imports enum, which takes 3 ms
    SIG_IGN,
    SIGCHLD,
    SIGWINCH,
    signal,
)

from helpers.protocol.broker_client import Question, ask
from helpers.protocol.errors import INTERRUPTED, GatewayError, local_error
from helpers.session.terminal import ensure_window, has_window, locale_of, usable_term

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

PROGRESS_AFTER_S = 0.5
"""Seconds without an answer after which the user is told what is being waited for."""

LEAVE_WITH_CLIENT = ("setpriv", "--pdeathsig", "HUP", "--")
"""Ends ssh with the sshd that serves its client: without a terminal nobody else tells it that the client is gone, and
it would wait as long as the remote's command takes."""

WITHOUT_PROMPT = (
    "BatchMode=no",
    "PreferredAuthentications=publickey,keyboard-interactive",
    "NumberOfPasswordPrompts=1",
)
"""ssh's options for a remote that completes logins by keyboard-interactive authentication without a prompt, which
BatchMode leaves out."""

NO_ANSWER = {"SSH_ASKPASS": "false", "SSH_ASKPASS_REQUIRE": "force"}
"""Keeps ssh then from showing the user a prompt all the same (ssh(1), ENVIRONMENT)."""

TOLD_CHARS = 64
"""How much of a command the broker is told where ssh alone can carry it: enough to tell a subsystem from a command."""

NUDGES_S = (0.03, 0.03, 0.06, 0.12, 0.36, 0.6, 1.0)
"""Seconds before each time that mosh-client is nudged: see `nudge`. It takes some 10 ms to start, and on a busy machine
several times that, in which a nudge goes unnoticed."""

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
    session = wait_with_progress(Question(socket_path, request).wait, shown=has_terminal)
    path = environ.get("PATH", os.defpath)
    if session["transport"] == "mosh":
        become_mosh_client(session, term, path, keep=original is not None)
    # As the client sent them: the remote is as if dialled directly. mosh alone is particular about them.
    sent = {name: value for name, value in environ.items() if name in {"LANG", "TERM"} or name.startswith("LC_")}
    ssh = {**sent, "PATH": path, "HOME": str(session["home"])}
    if session["interactive"]:
        ssh |= NO_ANSWER
    if session["agent"] is None:
        # Apart, because most gateways have a key, and importing it costs every login 8 ms.
        from helpers.session import agent_pass_through  # noqa: PLC0415

        session["agent"] = agent_pass_through.forwarded_agent(environ)

        def ssh_with_a_turn() -> list[str]:
            turn = agent_pass_through.Login(socket_path, request["connection"], key, ssh["HOME"])
            return ssh_argv({**session, **wait_with_progress(turn.wait, shown=has_terminal)})

        if "mosh" in session:
            commands = agent_pass_through.MoshServer(session["mosh"], ssh_with_a_turn, ssh)
            mosh = wait_with_progress(commands.wait, shown=True)
            become_mosh_client({**session, **mosh}, term, path, keep=original is not None)
        argv = ssh_with_a_turn()
    elif session["share"]:
        from helpers.session import connection_sharing  # noqa: PLC0415 - the same: mosh needs it not

        argv = ssh_argv({**session, "options": connection_sharing.options(ssh["HOME"], os.getpid())})
    else:
        argv = ssh_argv(session)
    if os.getppid() != client:
        msg = "the client has gone"
        raise GatewayError(msg)
    command = original if ours_alone and session["command"] is not None else session["command"]
    # ssh takes an empty command for none, and would ask for a shell; a blank runs as little.
    become([*LEAVE_WITH_CLIENT, *argv, *(() if command is None else (command or " ",))], ssh)


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


def become_mosh_client(session: Mapping[str, Any], term: str, path: str, *, keep: bool) -> None:
    """Replace this process with mosh-client.

    Args:
        session: The broker's answer: address, port, key (MOSH_KEY) and predict.
        term: The terminal type that was checked.
        path: Where programs are looked for.
        keep: Leave on the screen what is there at the end, as a command's output has to be. By itself mosh-client
            draws on the terminal's other screen, which goes with it (mosh(1), --no-init).

    Raises:
        GatewayError: mosh-client cannot be started.
    """
    environ = {
        "PATH": path,
        "TERM": term,
        # mosh-client asks its locale for the character set alone, and the gateway need not have the user's.
        "LC_ALL": "C.UTF-8",
        "MOSH_KEY": str(session["key"]),
        "MOSH_PREDICTION_DISPLAY": str(session["predict"]),
        # Ctrl-^ Ctrl-Z would stop mosh-client with no shell about to continue it. "" turns mosh's escapes off;
        # ssh's own ~. still leaves.
        "MOSH_ESCAPE_KEY": "",
        **({"MOSH_NO_TERM_INIT": "1"} if keep else {}),
    }
    ensure_window(sys.stdout.fileno())
    nudge(os.getpid())
    become(["mosh-client", str(session["address"]), str(session["port"])], environ)


def nudge(client: int) -> None:
    """Have mosh-client answer the remote's first datagram at once, and again lest that was lost.

    mosh-server holds the prompt back for 250 ms: it takes the way for a long one until it hears how soon its first
    datagram was answered (mosh 1.4.0, transportsender-impl.h, send_interval). By itself mosh-client does so after 3 s
    (transportsender.h, ACK_INTERVAL), unless it has news, as that the window may have changed. It is told so by a
    process that then is gone.

    Args:
        client: The process that will be mosh-client.
    """
    # mosh-client, which this process becomes, takes no notice of its end, and so the kernel is not to wait for that.
    signal(SIGCHLD, SIG_IGN)
    try:
        if os.fork():
            return
    except OSError:
        return  # it helps, and is not needed
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # sshd waits until nobody has the terminal
            os.dup2(null, fd)
        for wait_s in NUDGES_S:
            time.sleep(wait_s)
            os.kill(client, SIGWINCH)
    finally:
        os._exit(0)  # whatever happened: this process must not go on as a second session


def ssh_argv(session: Mapping[str, Any]) -> list[str]:
    """Write the command line of ssh up to the host, and the subsystem where one is asked for.

    It is ssh itself, so that bytes, status and both ends' closing are OpenSSH's own.

    Args:
        session: The broker's answer, with ``options`` of `helpers.session.connection_sharing`, or ``options`` and
            ``identity`` of `helpers.session.agent_pass_through`.
    """
    known_hosts = session["known_hosts"]
    options = [
        # Nobody is there to be asked, and nothing but the broker's key and known_hosts counts.
        *dial_options(session),
        *(WITHOUT_PROMPT if session["interactive"] else ("BatchMode=yes",)),
        f"IdentityFile={session.get('identity') or 'none'}",
        f"IdentityAgent={session['agent']}",
        f"HostKeyAlias={session['host_key_alias']}",
        f"UserKnownHostsFile={one_file(str(known_hosts or '/dev/null'))}",
        "GlobalKnownHostsFile=/dev/null",
        f"StrictHostKeyChecking={'yes' if known_hosts else 'no'}",
        "UpdateHostKeys=no",
        # Nothing is forwarded on, and nothing is printed between the remote's words but errors.
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "LogLevel=ERROR",
        "SendEnv=LANG LC_*",
        # Below the broker's patience; TCP alone would try for two minutes.
        "ConnectTimeout=15",
        # A remote that fell silent must not keep processes here for ever.
        "ServerAliveInterval=30",
        "ServerAliveCountMax=10",
    ]
    options += session.get("options", ())
    argv = [
        "ssh",
        "-F",
        "none",
        "-tt" if session["pty"] else "-T",
        "-e",
        "none",
        *(word for option in options for word in ("-o", option)),
    ]
    argv += ["-p", str(session["port"]), "-l", str(session["user"])]
    subsystem = session["subsystem"]
    host = session["address"] if len(session["addresses"]) == 1 else session["host"]
    return [*argv, *(["-s"] if subsystem else []), "--", str(host), *([subsystem] if subsystem else [])]


def dial_options(session: Mapping[str, Any]) -> list[str]:
    """Write ssh's options for a remote with several addresses; none where there is one."""
    if len(session["addresses"]) == 1:
        return []
    from helpers import happy_eyeballs  # noqa: PLC0415 - ssh alone tries one address as well

    launch = [*sys.orig_argv[: -len(sys.argv)], sys.argv[0]]  # how this helper was started
    return happy_eyeballs.proxy_options(launch, session["addresses"], int(session["port"]), say="mosh" in session)


def one_file(path: str) -> str:
    """Quote a path where ssh has a list of files with blanks between, and tokens in them (ssh_config(5))."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def become(argv: list[str], environ: Mapping[str, str]) -> None:
    """Replace this process with another program, which is looked for in the new PATH.

    Raises:
        GatewayError: It cannot be started.
    """
    try:
        os.execvpe(argv[0], argv, environ)  # noqa: S606
    except OSError as exc:
        msg = f"{argv[0]} cannot be started on the gateway ({exc.strerror}); tell the gateway's operator"
        raise GatewayError(msg) from exc
