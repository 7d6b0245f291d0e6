"""Who may log in: the remote's authorized_keys, or local ones, with every option of a line as sshd applies it."""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from system.sessions import may_enter

from lab.client import ssh_options
from lab.room import PLAIN_ENVIRONMENT
from lab.users import make_key
from lab.waiting import wait_until
from lab.wan import NEAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

_MIB = 1024 * 1024


def _connections_for(lab: Lab, name: str) -> int:
    """Count the connections that the remote's sshd saw for a name, whatever became of them."""
    return len(lab.remote.log.matches(rf"(?:Accepted \S+ for|Failed \S+ for|Invalid user) {re.escape(name)} "))


def _exists(lab: Lab, user: User, path: str) -> bool:
    """Tell whether there is a file in the user's home directory on the remote."""
    return (lab.remote.room.path(user.home) / path).exists()


def _new_key(lab: Lab, name: str) -> tuple[Path, str]:
    """Make another key: its private file and its public line."""
    pair = make_key(lab.directory / "keys" / name)
    return pair.private, pair.public


@pytest.fixture(scope="module")
def forgetful(shared_lab: Lab) -> Iterator[Gateway]:
    """A gateway that believes what it fetched for a second."""
    gateway = shared_lab.start_gateway({"GATEWAY_CACHE_TTL": "1"})
    yield gateway
    gateway.close()


# Fetched from the remote


def test_logins_share_one_connection(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A first login costs the remote's sshd one connection for keys and session, and a second one none."""
    for _ in range(2):
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)
        terminal.run("id -un; echo $((6 * 7))", f"{user.name}\n42")
        terminal.type("exit\r")
        assert terminal.wait_exit() == 0

    assert _connections_for(lab, user.name) == lab.remote.accepted(user) == 1


def test_keys_are_kept_fresh_between_logins(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Whoever was here comes back after the TTL without waiting for a fetch, and a key revoked meanwhile is refused."""
    gateway = start_gateway({"GATEWAY_CACHE_TTL": "10"})
    known = gateway.directory / "run" / "authorized_keys" / user.name

    def written() -> tuple[int, int] | None:
        """Tell one file that sshd has from the next."""
        try:
            status = known.stat()
        except FileNotFoundError:  # its time is over
            return None
        return status.st_ino, status.st_mtime_ns

    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    seen = {written(), None}
    for _ in range(2):  # the second one is more than a TTL after the login's own
        seen.add(wait_until(lambda: {written()} - seen, "sshd has what was fetched").pop())
    since = gateway.log.mark()
    assert may_enter(lab, gateway, user)
    assert not gateway.log.matches(r"key_permitted ", since=since)

    since = lab.remote.log.mark()
    lab.remote.authorize(user, [lab.gateway_key.public])
    lab.remote.log.wait_for(f"Starting session: command for {user.name} ", since=since)
    wait_until(lambda: not may_enter(lab, gateway, user), "the revoked key is refused")


# Known to sshd by itself


def _asked(gateway: Gateway, user: User, since: int) -> int:
    """Count how often sshd asked about a key of the user's and was given a line."""
    return len(gateway.log.matches(rf"key_permitted .* user={user.name} ", since=since))


def test_sshd_asks_once(lab: Lab, gateway: Gateway, user: User) -> None:
    """A second login within the TTL asks nobody, whatever else is offered; another key of the user's is asked about."""
    other, line = _new_key(lab, f"other-of-{user.name}")
    lab.remote.authorize(user, [user.key.public, line, lab.gateway_key.public])
    wrong, _ = _new_key(lab, f"wrong-for-{user.name}")
    since = gateway.log.mark()
    for key, asked in ((None, 1), (None, 1), (other, 2), (other, 2), (None, 2)):
        assert may_enter(lab, gateway, user, key=key)
        assert _asked(gateway, user, since) == asked
    assert not may_enter(lab, gateway, user, key=wrong)
    assert not may_enter(lab, gateway, lab.add_user(), key=user.key.private)


def test_what_sshd_knows_is_its_users_alone(lab: Lab, gateway: Gateway, user: User) -> None:
    """Another user's process can neither read nor list it, and the user's own cannot write it."""
    assert may_enter(lab, gateway, user)
    directory = f"{gateway.settings['GATEWAY_RUNTIME_DIR']}/authorized_keys"
    uid = (gateway.room.path(directory) / user.name).stat().st_gid

    def tried(uid: int, *command: str) -> str:
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        argv = gateway.room.argv([*become, *command])
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=PLAIN_ENVIRONMENT).stderr

    denied = "Permission denied"
    assert tried(uid, "cat", f"{directory}/{user.name}") == ""
    for command in (["ls", directory], ["touch", f"{directory}/x"], ["rm", f"{directory}/{user.name}"]):
        assert denied in tried(uid, *command)
    assert denied in tried(uid, "sh", "-c", f"echo >>{directory}/{user.name}")
    assert denied in tried(uid + 1, "cat", f"{directory}/{user.name}")


def test_what_sshd_knows_ends_with_the_ttl(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """A key that is revoked gets in until then, and not after, though the broker is never asked meanwhile."""
    gateway = start_gateway({"GATEWAY_CACHE_TTL": "5"})

    def knows_it() -> bool:
        lab.remote.authorize(user, [user.key.public, lab.gateway_key.public])
        wait_until(lambda: may_enter(lab, gateway, user), "the key is accepted")
        since = gateway.log.mark()
        lab.remote.authorize(user, [lab.gateway_key.public])
        return may_enter(lab, gateway, user) and _asked(gateway, user, since) == 0

    # On a busy machine the TTL may be over before the second login.
    wait_until(knows_it, "the revoked key is accepted, and nobody asked", timeout_s=60)
    wait_until(lambda: not may_enter(lab, gateway, user), "the revoked key is refused")


def test_what_sshd_knows_ends_with_the_broker(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """A broker that was killed, or the one after a reload, has nothing remembered, and sshd has not either."""
    gateway = start_gateway()
    for number in (signal.SIGKILL, signal.SIGHUP):
        # For a moment after a reload the broker from before may answer, from what it remembers.
        wait_until(lambda: may_enter(lab, gateway, user), "the user gets in")
        since = gateway.log.mark()
        assert may_enter(lab, gateway, user)
        assert _asked(gateway, user, since) == 0
        if number == signal.SIGKILL:
            os.kill(gateway.broker.pid, number)
            gateway.log.wait_for("broker_restarted", since=since)
        else:
            gateway.signal(number)
            gateway.log.wait_for("reloaded", since=since)
        lab.remote.authorize(user, [lab.gateway_key.public])
        wait_until(lambda: not may_enter(lab, gateway, user), "the revoked key is refused")
        lab.remote.authorize(user, [user.key.public, lab.gateway_key.public])
        since = gateway.log.mark()
        gateway.signal(signal.SIGHUP)  # that it was refused is remembered, too
        gateway.log.wait_for("reloaded", since=since)


def test_ten_logins_at_once_share_one_connection(lab: Lab, gateway: Gateway, user: User) -> None:
    """Ten terminals opened at the same moment by somebody new are one fetch and one connection."""
    with ThreadPoolExecutor(10) as pool:
        entered = list(pool.map(lambda _: may_enter(lab, gateway, user), range(10)))

    assert entered == [True] * 10
    assert _connections_for(lab, user.name) == 1


def test_wrong_key_is_refused(lab: Lab, gateway: Gateway, user: User) -> None:
    """A key that is not in authorized_keys opens nothing, and neither does another user's."""
    stranger, _ = _new_key(lab, f"stranger-of-{user.name}")
    other = lab.add_user()

    assert not may_enter(lab, gateway, user, key=stranger)
    assert not may_enter(lab, gateway, user, key=other.key.private)
    assert may_enter(lab, gateway, user)


def test_agent_with_five_wrong_keys_costs_one_fetch(lab: Lab, gateway: Gateway, user: User) -> None:
    """An agent that offers five wrong keys first gets in with its sixth, and the remote sees one connection."""
    wrong = [_new_key(lab, f"wrong-{number}-of-{user.name}")[0] for number in range(5)]
    since = gateway.log.mark()
    with lab.agent(*wrong, user.key.private) as environment:
        assert may_enter(lab, gateway, user.name, environment=environment)

    assert len(gateway.log.matches(rf"key_refused .*user={user.name} ", since=since)) == 5
    assert _connections_for(lab, user.name) == 1


def test_agent_with_wrong_keys_alone_is_refused(lab: Lab, gateway: Gateway, user: User) -> None:
    """Six wrong keys are refused one by one, and cost one fetch too."""
    wrong = [_new_key(lab, f"bad-{number}-of-{user.name}")[0] for number in range(6)]
    with lab.agent(*wrong) as environment:
        assert not may_enter(lab, gateway, user.name, environment=environment)

    assert _connections_for(lab, user.name) == 1


def test_added_key_works_after_the_ttl(lab: Lab, forgetful: Gateway, user: User) -> None:
    """A key that is added on the remote works here as soon as the old file is forgotten."""
    added, line = _new_key(lab, f"added-by-{user.name}")
    assert not may_enter(lab, forgetful, user, key=added)

    lab.remote.authorize(user, [user.key.public, line, lab.gateway_key.public])

    wait_until(lambda: may_enter(lab, forgetful, user, key=added), "the added key works")
    assert may_enter(lab, forgetful, user)


def test_revoked_key_is_refused_after_the_ttl(lab: Lab, forgetful: Gateway, user: User) -> None:
    """A key that is taken out on the remote is refused here as soon as the old file is forgotten."""
    kept, line = _new_key(lab, f"kept-by-{user.name}")
    lab.remote.authorize(user, [user.key.public, line, lab.gateway_key.public])
    assert may_enter(lab, forgetful, user)

    lab.remote.authorize(user, [line, lab.gateway_key.public])

    wait_until(lambda: not may_enter(lab, forgetful, user), "the revoked key is refused")
    assert may_enter(lab, forgetful, user, key=kept)


def test_user_who_shuts_the_gateway_out_is_believed(lab: Lab, forgetful: Gateway, user: User) -> None:
    """Who takes the gateway's key out is not served over the connection that is still warm, and later is again."""
    assert may_enter(lab, forgetful, user)

    lab.remote.authorize(user, [user.key.public])
    wait_until(lambda: not may_enter(lab, forgetful, user), "the gateway is shut out")
    lab.remote.authorize(user, [user.key.public, lab.gateway_key.public])

    wait_until(lambda: may_enter(lab, forgetful, user), "the gateway is let in again")


def test_gateways_key_must_be_in_the_file(lab: Lab, gateway: Gateway) -> None:
    """A user whose file has no line for the gateway cannot log in through it, and the log says what to do."""
    user = lab.add_user()
    lab.remote.authorize(user, [user.key.public])

    assert not may_enter(lab, gateway, user)
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*add the gateway's public key to ~{user.name}/")


def test_a_narrowed_gateways_key_is_enough(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """What SECURITY.md tells to put before the gateway's key leaves shells, commands with a terminal, and sftp."""
    lab.remote.authorize(user, [user.key.public, f'from="{NEAR_IPV4}",restrict,pty {lab.gateway_key.public}'])
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    # A terminal without a size goes over ssh.
    with_terminal = lab.run(lab.gateway_argv(gateway, user, "tty", options=["-tt"]))
    assert with_terminal.stdout.startswith(b"/dev/pts/")
    done = lab.run(lab.gateway_argv(gateway, user, "echo hi; exit 3"))
    assert (done.stdout, done.stderr, done.returncode) == (b"hi\n", b"", 3)
    sftp = ["sftp", "-b", "-", *ssh_options(gateway.known_hosts, user.key.private), f"-P{gateway.port}"]
    done = lab.run([*sftp, f"{user.name}@127.0.0.1"], stdin=b"pwd\n")
    assert (f"Remote working directory: {user.home}".encode() in done.stdout, done.returncode) == (True, 0)


def test_the_gateways_key_from_elsewhere_is_none(lab: Lab, gateway: Gateway, user: User) -> None:
    """A from= that is not the gateway's address keeps its key out, and with it the user."""
    lab.remote.authorize(user, [user.key.public, f'from="192.0.2.77" {lab.gateway_key.public}'])
    assert not may_enter(lab, gateway, user)


def test_user_without_authorized_keys_is_refused(lab: Lab, gateway: Gateway, user: User) -> None:
    """A user who has no authorized_keys at all cannot log in."""
    (lab.remote.room.path(user.home) / ".ssh/authorized_keys").unlink()

    assert not may_enter(lab, gateway, user)


def test_file_that_vanishes_lets_nobody_in(lab: Lab, forgetful: Gateway, user: User) -> None:
    """A file that is removed while the gateway's connection is warm lets nobody in any more."""
    assert may_enter(lab, forgetful, user)

    (lab.remote.room.path(user.home) / ".ssh/authorized_keys").unlink()

    wait_until(lambda: not may_enter(lab, forgetful, user), "nobody is let in")


def test_largest_file_is_read(lab: Lab, gateway: Gateway, user: User) -> None:
    """A file of a whole MiB whose last line is the user's key lets the user in."""
    lines = [lab.gateway_key.public, "", user.key.public]
    lines[1] = "#" * (_MIB - sum(len(line) + 1 for line in lines))
    lab.remote.authorize(user, lines)

    assert len(lab.remote.read_file(user, ".ssh/authorized_keys")) == _MIB
    assert may_enter(lab, gateway, user)


def test_larger_file_lets_nobody_in(lab: Lab, gateway: Gateway, user: User) -> None:
    """A file of one byte more lets nobody in, even by its first line, and the log says why."""
    lines = [user.key.public, lab.gateway_key.public, ""]
    lines[2] = "#" * (_MIB + 1 - sum(len(line) + 1 for line in lines))
    lab.remote.authorize(user, lines)

    assert not may_enter(lab, gateway, user)
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*larger than {_MIB} bytes")


def test_failures_are_remembered(lab: Lab, gateway: Gateway) -> None:
    """Ten logins as somebody whom the remote does not know cost the remote one connection."""
    key = lab.add_user().key.private
    name = f"unknown-{lab.directory.name[-6:]}"

    assert not any(may_enter(lab, gateway, name, key=key) for _ in range(10))
    assert _connections_for(lab, name) == 1


# Local keys


def test_local_content_decides_for_everybody(lab: Lab, start_gateway: Callable[..., Gateway]) -> None:
    """GATEWAY_AUTHORIZED_KEYS_CONTENT lets its keys in as anybody, and the remote's own file lets nobody in."""
    users = [lab.add_user(), lab.add_user()]
    private, line = _new_key(lab, f"local-of-{users[0].name}")
    gateway = start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": f"# ours\n{line}\n"})

    assert [may_enter(lab, gateway, user, key=private) for user in users] == [True, True]
    assert [may_enter(lab, gateway, user) for user in users] == [False, False]


def test_refusal_by_local_keys_asks_nobody(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """With local keys, a wrong key is refused without the remote hearing of it."""
    gateway = start_gateway({"GATEWAY_AUTHORIZED_KEYS_CONTENT": _new_key(lab, f"only-{user.name}")[1]})

    assert not may_enter(lab, gateway, user)
    assert _connections_for(lab, user.name) == 0


def test_local_file_takes_effect_at_once(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """GATEWAY_AUTHORIZED_KEYS_PATH is read at each login: changed, removed, unreadable and back, never "anybody"."""
    path = lab.directory / f"local-keys-of-{user.name}"
    private, line = _new_key(lab, f"on-file-{user.name}")
    path.write_text(f"{line}\n")
    gateway = start_gateway({"GATEWAY_AUTHORIZED_KEYS_PATH": str(path)})
    since = gateway.log.mark()

    def verdicts() -> tuple[bool, bool]:
        """Tell who gets in now: the key in the file at first, and the user's own."""
        return may_enter(lab, gateway, user, key=private), may_enter(lab, gateway, user)

    assert verdicts() == (True, False)
    path.write_text(f"{user.key.public}\n")
    assert verdicts() == (False, True)
    path.write_text("")
    assert verdicts() == (False, False)
    path.write_text(f"{line}\n{user.key.public}\n")
    path.chmod(0o600)  # root's: the broker is somebody else
    assert verdicts() == (False, False)
    path.unlink()
    assert verdicts() == (False, False)
    path.mkdir()
    assert verdicts() == (False, False)
    path.rmdir()
    os.mkfifo(path)  # nobody writes to it, and whoever waits for that waits for ever
    assert verdicts() == (False, False)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert verdicts() == (False, False)
    path.unlink()
    path.write_text(f"{line}\n" + "#" * _MIB)
    assert verdicts() == (False, False)
    path.write_text(f"{line}\n{user.key.public}\n")
    assert verdicts() == (True, True)

    reasons = {match[1] for match in gateway.log.matches(r"cannot be read by the gateway \(([^)]*)\)", since=since)}
    assert reasons == {"Permission denied", "No such file or directory", "Is a directory", "it is not a file"}


# Options of a line


@pytest.mark.parametrize(
    ("options", "enters"),
    [
        ('from="127.0.0.1"', True),
        ('from="127.0.0.0/8,!127.0.0.2"', True),
        ('from="192.0.2.1"', False),
        ('from="!127.0.0.1,*"', False),
        ('expiry-time="29990101"', True),
        ('expiry-time="20200101"', False),
        ("no-user-rc,no-agent-forwarding", True),
        ("restrict,pty", True),
        ("no-such-option", False),
        ('from="127.0.0.1', False),
        ("cert-authority", False),
    ],
)
def test_options_are_sshds_to_apply(lab: Lab, gateway: Gateway, user: User, options: str, *, enters: bool) -> None:
    """What a line says of address, date and the rest holds here as it does on the remote."""
    lab.remote.authorize(user, [f"{options} {user.key.public}", lab.gateway_key.public])

    assert may_enter(lab, gateway, user) is enters


@pytest.mark.parametrize("options", ["no-pty", "restrict"])
def test_key_without_pty_gets_no_terminal(lab: Lab, gateway: Gateway, user: User, options: str) -> None:
    """A key that may have no terminal gets none, as by direct ssh, and so no mosh session either."""
    lab.remote.authorize(user, [f"{options} {user.key.public}", lab.gateway_key.public])

    direct = lab.run(lab.direct_ssh_argv(user, options=["-tt"]))
    through = lab.run(lab.gateway_argv(gateway, user, options=["-tt"]))

    assert b"PTY allocation request failed" in through.stderr
    assert (through.returncode, through.stdout) == (direct.returncode, direct.stdout) == (255, b"")
    assert lab.remote.processes("mosh-server", user=user) == []


# A key's command=

# Notes how it was called, then repeats what is typed: whoever types commands at it gets no shell.
_NOTE = 'printf %s "[$SSH_ORIGINAL_COMMAND]" > called; echo ready-; exec cat'


def _restrict(lab: Lab, user: User, command: str, *more: str) -> None:
    """Bind the user's key to a command."""
    escaped = command.replace('"', r"\"")
    options = ",".join([f'command="{escaped}"', *more])
    lab.remote.authorize(user, [f"{options} {user.key.public}", lab.gateway_key.public])


@pytest.mark.parametrize(
    ("options", "request_", "original"),
    [
        ([], [], "[]"),
        ([], ["whoami"], "[whoami]"),
        ([], ["touch pwned; bash -i"], "[touch pwned; bash -i]"),
        ([], ["$(touch pwned) `touch pwned` 'a  b' \"c\" \\ ü\n& x"], None),
        (["-s"], ["sftp"], None),
    ],
    ids=["shell", "command", "two-commands", "quoting", "subsystem"],
)
def test_bound_key_runs_its_command_alone(
    lab: Lab,
    gateway: Gateway,
    user: User,
    open_terminal: Callable[..., Terminal],
    *,
    options: list[str],
    request_: list[str],
    original: str | None,
) -> None:
    """Whatever is asked for, a key with command= gets that command, which finds the request in its environment."""
    _restrict(lab, user, _NOTE)
    terminal = open_terminal(lab.gateway_argv(gateway, user, *request_, options=["-tt", *options]))
    terminal.wait_for("ready-")
    terminal.run("touch typed; echo $((6 * 7))", "touch typed; echo $((6 * 7))\ntouch typed")
    terminal.type("\x03")  # ends cat, and the session with it: there is no shell below
    terminal.wait_exit()

    called = lab.remote.read_file(user, "called")
    assert called == (original or f"[{request_[0]}]") or options
    assert not _exists(lab, user, "pwned")
    assert not _exists(lab, user, "typed")
    assert "42" not in terminal.text


def test_bound_command_means_what_it_means_without_the_gateway(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Quotes, variables and odd bytes in command= and in the request reach the user's shell as by direct ssh."""
    command = r"""printf '%s|' "$SSH_ORIGINAL_COMMAND" "a  b" '$HOME' ~ \\ é "$SHELL" ${GATEWAY_COMMAND-no} >> called"""
    request = """x 'y  z' "$HOME" \\ é * ; false"""
    _restrict(lab, user, command)

    lab.run(lab.direct_ssh_argv(user, request, options=["-tt"]))
    direct = lab.remote.read_file(user, "called")
    terminal = open_terminal(lab.gateway_argv(gateway, user, request, options=["-tt"]))
    terminal.wait_exit()

    assert direct.startswith("x 'y  z'")
    assert lab.remote.read_file(user, "called") == direct * 2


def test_empty_command_is_no_shell(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A key with command="" gets what direct ssh gives it: nothing, and no shell."""
    _restrict(lab, user, "")
    terminal = open_terminal(lab.gateway_argv(gateway, user, "touch pwned", options=["-tt"]))
    terminal.type("touch pwned\r")
    terminal.wait_exit()

    assert not _exists(lab, user, "pwned")
    assert user.prompt not in terminal.text


def test_first_line_for_a_key_rules(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Of two lines for one key the first one's command= holds, as it does for sshd."""
    lab.remote.authorize(
        user, [f'command="{_NOTE.split(";")[1]}" {user.key.public}', user.key.public, lab.gateway_key.public]
    )
    terminal = open_terminal(lab.gateway_argv(gateway, user))

    terminal.wait_exit()
    assert "ready-" in terminal.text
    assert user.prompt not in terminal.text


# The variable that carries it


_FORGED = base64.b64encode(b"touch pwned; echo forged-; exec cat").decode()


@pytest.mark.parametrize(
    "option",
    [f'environment="GATEWAY_COMMAND={_FORGED}"', 'environment="LD_PRELOAD=/tmp/x.so",environment="PATH=/tmp"'],
    ids=["command", "loader"],
)
def test_environment_of_a_line_has_no_effect(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal], option: str
) -> None:
    """environment= in authorized_keys changes nothing on the gateway: the user gets the usual shell."""
    lab.remote.authorize(user, [f"{option} {user.key.public}", lab.gateway_key.public])
    terminal = open_terminal(lab.gateway_argv(gateway, user))

    terminal.wait_for(user.prompt)
    terminal.run("echo $((6 * 7))", "\n42")
    assert not _exists(lab, user, "pwned")


def test_environment_of_a_line_cannot_lift_its_command(
    lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal]
) -> None:
    """A line with command= and environment=GATEWAY_COMMAND=... runs its command=."""
    option = f'environment="GATEWAY_COMMAND={_FORGED}"'
    escaped = _NOTE.replace('"', r"\"")
    for line in (f'command="{escaped}",{option}', f'{option},command="{escaped}"'):
        bound = lab.add_user()
        lab.remote.authorize(bound, [f"{line} {bound.key.public}", lab.gateway_key.public])
        open_terminal(lab.gateway_argv(gateway, bound)).wait_for("ready-")
        assert not _exists(lab, bound, "pwned")


@pytest.mark.parametrize("option", [f"SetEnv=GATEWAY_COMMAND={_FORGED}", "SendEnv=GATEWAY_COMMAND"])
def test_client_cannot_set_the_variable(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal], option: str
) -> None:
    """A client that sends GATEWAY_COMMAND gets the usual shell, and with a bound key the bound command."""
    bound = lab.add_user()
    _restrict(lab, bound, _NOTE)
    environment = {"GATEWAY_COMMAND": _FORGED}

    free = open_terminal(lab.gateway_argv(gateway, user, options=["-o", option]), environment=environment)
    free.wait_for(user.prompt)
    open_terminal(lab.gateway_argv(gateway, bound, options=["-o", option]), environment=environment).wait_for("ready-")

    assert "forged-" not in free.text
    assert not _exists(lab, user, "pwned")
    assert not _exists(lab, bound, "pwned")


def test_request_of_a_free_key_runs_in_the_users_shell(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """``ssh -t user@gateway COMMAND`` runs it as direct ssh does, with no trace of the gateway's own variables."""
    command = 'printf \'%s|\' "$SHELL" \'a  b\' ~ "${SSH_ORIGINAL_COMMAND-none}" "${GATEWAY_COMMAND-none}" >> called'

    lab.run(lab.direct_ssh_argv(user, command, options=["-tt"]))
    terminal = open_terminal(lab.gateway_argv(gateway, user, command, options=["-tt"]))
    terminal.wait_exit()

    direct, through = lab.remote.read_file(user, "called").split("none|none|")[:2]
    assert shlex.split(through) == shlex.split(direct)
    assert through == direct
