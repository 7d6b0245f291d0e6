"""sshd's ForceCommand: gets a mosh session from the broker and becomes mosh-client.

It runs as the user's own uid on sshd's PTY. After the ``execve`` no Python is left.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from helpers.client import Question, ask
from helpers.errors import GatewayError, NoLocaleError, PermissionDeniedError, RemoteTimeoutError
from helpers.protocol import ANSWER_TIMEOUT_S
from helpers.terminal import ensure_window, locale_of, usable_term

PROGRESS_AFTER_S = 0.5
"""Seconds without an answer after which the user is told what is being waited for."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells have it."""

CARRIER = "GATEWAY_COMMAND"
"""Holds a key's ``command=`` in base64. Only a line of the broker's sets it: sshd takes no such name from a client."""


def main(argv: list[str]) -> int:
    """Start the session.

    Args:
        argv: The broker's socket.

    Returns:
        The exit status when there is no session: that of the error (`helpers.errors`), or 130 after Ctrl-C.
    """
    try:
        (socket_path,) = argv
        if os.geteuid() == 0:
            drop_root(socket_path)
        start(socket_path, os.environ)
    except GatewayError as error:
        print(f"gateway: {error.message}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    raise AssertionError  # start() becomes another program, or raises


def drop_root(socket_path: str) -> None:
    """Become root's own invented uid, so that nothing of ours meets the network as the gateway's root.

    Raises:
        GatewayError: The broker does not permit root.
    """
    uid = int(ask(socket_path, {"op": "root"})["uid"])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def start(socket_path: str, environ: Mapping[str, str]) -> None:
    """Check the terminal, ask for a session, become mosh-client, or ssh where there is no terminal.

    Args:
        socket_path: The broker's socket.
        environ: What sshd gave the session; LANG, LC_* and TERM in it are the client's and unchecked.

    Raises:
        GatewayError: The broker has no session for us, or a program is missing here.
    """
    request: dict[str, Any] = {
        "op": "session",
        "terminal": None,
        "command": environ.get(CARRIER),
        "original_command": environ.get("SSH_ORIGINAL_COMMAND"),
        "connection": environ.get("SSH_CONNECTION", ""),
        "key": accepted_key(environ.get("SSH_USER_AUTH", "")),
    }
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    term = environ.get("TERM", "dumb")
    if has_terminal:
        term, colors = usable_term(term, sys.stdout.fileno())
        ensure_window(sys.stdout.fileno())
        request["terminal"] = {"colors": colors, "locale": locale_of(environ)}
    session = wait_with_progress(Question(socket_path, request), shown=has_terminal)
    path = environ.get("PATH", os.defpath)
    if session["transport"] == "mosh":
        become_mosh_client(session, term, path)
    ssh = {**locale_of(environ), "PATH": path, "HOME": str(session["home"]), "TERM": term}
    if session["agent"] is None:
        session["agent"] = forwarded_agent(environ)
        session["identity"] = write_identity(request["key"], ssh["HOME"])
    if "mosh" in session:
        become_mosh_client(start_mosh_server(session, ssh), term, path)
    command = session["command"]
    become([*ssh_argv(session), *(() if command is None else (str(command),))], ssh)


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


def wait_with_progress(question: Question, *, shown: bool) -> dict[str, Any]:
    """Wait for the broker, saying so on the terminal once it takes longer than `PROGRESS_AFTER_S`.

    Args:
        question: What the broker was asked.
        shown: Whether there is a terminal to say it on.

    Returns:
        The session: see `helpers.broker.server`.

    Raises:
        GatewayError: There is none; the sentence says why.
    """
    started = time.monotonic()
    said = False
    try:
        while (answer := question.wait(PROGRESS_AFTER_S if shown else None)) is None:
            said = True
            waited_s = time.monotonic() - started
            print(f"\r\x1b[Kgateway: reaching the remote host, {waited_s:.0f} s", end="", file=sys.stderr, flush=True)
        return answer
    finally:
        if said:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def become_mosh_client(session: Mapping[str, Any], term: str, path: str) -> None:
    """Replace this process with mosh-client.

    Args:
        session: The broker's answer: address, port, key (MOSH_KEY) and predict.
        term: The terminal type that was checked.
        path: Where programs are looked for.

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
    }
    become(["mosh-client", str(session["address"]), str(session["port"])], environ)


def forwarded_agent(environ: Mapping[str, str]) -> str:
    """Find the agent that the user forwarded.

    Raises:
        PermissionDeniedError: There is none.
    """
    path = environ.get("SSH_AUTH_SOCK")
    if not path:
        msg = "this gateway has no key of its own and needs your SSH agent; use 'ssh -A' with an agent running"
        raise PermissionDeniedError(msg)
    return path


def write_identity(user_auth: str, home: str) -> str | None:
    """Write down which key the user came with, so that ssh offers it to the remote before the agent's others.

    Args:
        user_auth: See `accepted_key`.
        home: The session's own directory.

    Returns:
        The public key's file; None where the user came without a key.
    """
    words = user_auth.split(" ")
    if words[0] != "publickey":
        return None
    path = f"{home}/identity-{os.getpid()}.pub"
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs 4 ms
        file.write(" ".join(words[1:3]) + "\n")
    return path


def start_mosh_server(session: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Start mosh-server with the user's own agent, which only this session may use.

    Args:
        session: The broker's answer.
        environ: ssh's environment.

    Returns:
        What `become_mosh_client` needs.

    Raises:
        GatewayError: The remote has no session; the sentence says why.
    """
    import subprocess  # noqa: PLC0415 - 8 ms that only this way in costs

    from helpers.broker import mosh  # noqa: PLC0415

    failure = GatewayError("the remote host gave no session")
    for command in session["mosh"]["commands"]:
        argv = [*ssh_argv(session), command]
        with subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as ssh:
            try:
                stdout, stderr = ssh.communicate(timeout=ANSWER_TIMEOUT_S)
            except subprocess.TimeoutExpired as exc:
                ssh.kill()
                msg = "the remote host did not answer in time"
                raise RemoteTimeoutError(msg) from exc
        endpoint = mosh.find_mosh_connect(stdout)
        if endpoint is not None:
            where = {"address": session["address"], "port": endpoint.port, "key": endpoint.key}
            return {**where, "predict": session["mosh"]["predict"]}
        failure = mosh.ssh_failure(ssh.returncode, stderr, str(session["mosh"]["program"]))
        if not isinstance(failure, NoLocaleError):
            break
    raise failure


def ssh_argv(session: Mapping[str, Any]) -> list[str]:
    """Write the command line of ssh up to the host, and the subsystem where one is asked for.

    It is ssh itself, so that bytes, status and both ends' closing are OpenSSH's own.

    Args:
        session: The broker's answer.
    """
    known_hosts = session["known_hosts"]
    options = [
        # Nobody is there to be asked, and nothing but the broker's key and known_hosts counts.
        "BatchMode=yes",
        f"IdentityFile={session.get('identity') or 'none'}",
        f"IdentityAgent={session['agent']}",
        f"HostKeyAlias={session['host_key_alias']}",
        f"UserKnownHostsFile={known_hosts or '/dev/null'}",
        "GlobalKnownHostsFile=/dev/null",
        f"StrictHostKeyChecking={'yes' if known_hosts else 'no'}",
        "UpdateHostKeys=no",
        # Nothing is forwarded on, and nothing is printed between the remote's words but errors.
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "LogLevel=ERROR",
        "SendEnv=LANG LC_*",
        # A remote that fell silent must not keep processes here for ever.
        "ServerAliveInterval=30",
        "ServerAliveCountMax=10",
    ]
    if session["share"]:
        # The master leaves a minute after its last session; the directory is the user's own.
        options += ["ControlMaster=auto", "ControlPersist=60", f"ControlPath={session['home']}/master"]
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
    return [*argv, *(["-s"] if subsystem else []), "--", str(session["address"]), *([subsystem] if subsystem else [])]


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
