"""The command line of the session's ssh, for sessions that mosh cannot carry."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from helpers.protocol.session_answer import SshAnswer

LEAVE_WITH_CLIENT = ("setpriv", "--pdeathsig", "HUP", "--")
"""Ends ssh with the sshd that serves its client: without a terminal ssh gets no SIGHUP when the client disconnects, and
would run until the remote's command ends."""

WITHOUT_PROMPT = (
    "BatchMode=no",
    "PreferredAuthentications=publickey,keyboard-interactive",
    "NumberOfPasswordPrompts=1",
)
"""ssh's options for a remote that completes logins by keyboard-interactive authentication without a prompt, which
BatchMode leaves out."""

NO_ANSWER = {"SSH_ASKPASS": "false", "SSH_ASKPASS_REQUIRE": "force"}
"""Prevents ssh from prompting the user nevertheless (ssh(1), ENVIRONMENT)."""


def ssh_argv(session: SshAnswer) -> list[str]:
    """Return ssh's command line up to the host, and the subsystem if one is requested.

    It is ssh itself, so that bytes, exit status and the closing of both ends are OpenSSH's own.

    Args:
        session: The broker's answer, with ``options`` of `helpers.session.connection_sharing`, or ``options`` and
            ``identity`` of `helpers.session.agent_pass_through`.
    """
    known_hosts = session["known_hosts"]
    options = [
        # No user can answer a prompt, and only the broker's key and known_hosts are used.
        *dial_options(session),
        *(WITHOUT_PROMPT if session["interactive"] else ("BatchMode=yes",)),
        f"IdentityFile={session.get('identity') or 'none'}",
        f"IdentityAgent={session['agent']}",
        f"HostKeyAlias={session['host_key_alias']}",
        f"UserKnownHostsFile={one_file(str(known_hosts or '/dev/null'))}",
        "GlobalKnownHostsFile=/dev/null",
        f"StrictHostKeyChecking={'yes' if known_hosts else 'no'}",
        "UpdateHostKeys=no",
        # Nothing is forwarded, and ssh adds only errors to the remote's output.
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "LogLevel=ERROR",
        "SendEnv=LANG LC_*",
        # Below the broker's timeout; TCP alone would try for two minutes.
        "ConnectTimeout=15",
        # A remote that no longer answers must not keep processes here forever.
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


def dial_options(session: SshAnswer) -> list[str]:
    """Return ssh's options for a remote with several addresses; none if there is only one."""
    if len(session["addresses"]) == 1:
        return []
    from helpers import happy_eyeballs  # noqa: PLC0415 - not needed for one address

    launch = [*sys.orig_argv[: -len(sys.argv)], sys.argv[0]]  # the words that started this helper
    return happy_eyeballs.proxy_options(launch, session["addresses"], int(session["port"]), say="mosh" in session)


def one_file(path: str) -> str:
    """Quote a path for an option that takes a list of files, with tokens, separated by blanks (ssh_config(5))."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
