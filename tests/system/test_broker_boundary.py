"""What somebody who is in, or on the same machine, can try against the broker: its key, its word, its time."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from system.sessions import lookup_uid

from helpers.broker.remote.pool import MAX_FOR_USER, MAX_RUNNING
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.terminal import Terminal
    from lab.users import User

_SESSION = {
    "op": "session",
    "terminal": {"colors": 256, "locale": {}, "window": True},
    "command": None,
    "original_command": None,
    "connection": "",
    "key": "",
}

# Reads what it can of other users' processes and of the files it is given; prints the names of what it could read,
# and of those in which the secret was.
_SPY = """
import json, os, stat, sys
paths, kinds, secret = *json.loads(sys.argv[1]), sys.stdin.buffer.read()
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid() or os.getuid() == 0:
            paths += [f"/proc/{pid}/{kind}" for kind in kinds]
    except OSError:
        continue
opened, found = [], []
while paths:
    path = paths.pop()
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            paths += [f"{path}/{name}" for name in os.listdir(path)]
            opened.append(path)
        elif stat.S_ISREG(mode):
            with open(path, "rb") as file:
                opened.append(path)
                if secret in file.read(1 << 24):
                    found.append(path)
    except OSError:
        continue
print(json.dumps([opened, found]))
"""
_KINDS = ["environ", "mem", "maps", "cmdline", "auxv", "fd", *(f"fd/{number}" for number in range(64))]

# Sends a line to a unix socket and prints what comes back.
_ASK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
sock.connect(sys.argv[1])
sock.sendall(sys.stdin.buffer.read())
answer = b""
while chunk := sock.recv(65536):
    answer += chunk
    if answer.endswith((b"\\n", b"\\0")):
        break
sys.stdout.buffer.write(answer)
"""

# Sends a line to a unix socket so many times at once, and listens to no answer for as long as its input is open.
_ASK_OFTEN = """
import socket, sys
line, socks = sys.stdin.buffer.readline(), []
for _ in range(int(sys.argv[2])):
    socks.append(socket.socket(socket.AF_UNIX))
    socks[-1].connect(sys.argv[1])
    socks[-1].sendall(line)
sys.stdin.buffer.read()
"""


def _as_uid(gateway: Gateway, uid: int, argv: list[str], *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command where sshd's sessions run, as a uid without any privilege."""
    argv = _argv_as_uid(gateway, uid, argv)
    return subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60)


def _argv_as_uid(gateway: Gateway, uid: int, argv: list[str]) -> list[str]:
    enter = ["nsenter", f"--target={gateway.listener.pid}", "-m", "-n", "-p", "--"]
    return [*enter, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", *argv]


def _say(gateway: Gateway, uid: int, request: object) -> bytes:
    """Ask the broker as a uid."""
    line = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
    path = str(gateway.directory / "run/broker.sock")
    done = _as_uid(gateway, uid, [sys.executable, "-I", "-c", _ASK, path], stdin=line)
    assert done.returncode == 0, done
    return done.stdout


def _ask(gateway: Gateway, uid: int, request: object) -> dict[str, Any]:
    """Ask the broker, as a uid, what it answers in JSON."""
    answer: dict[str, Any] = json.loads(_say(gateway, uid, request))
    return answer


def _spy(gateway: Gateway, uid: int, secret: bytes, paths: list[str]) -> tuple[set[str], set[str]]:
    """Spy as a uid, or, to see that the spy finds what may be seen, as root: what was readable, and had the secret."""
    arguments = json.dumps([paths, _KINDS if uid else ["environ"]])
    done = _as_uid(gateway, uid, [sys.executable, "-I", "-c", _SPY, arguments], stdin=secret)
    assert done.returncode == 0, done
    opened, found = json.loads(done.stdout)
    return set(opened), set(found)


@pytest.fixture(scope="module")
def secretive(shared_lab: Lab) -> Iterator[Gateway]:
    """A gateway whose key is in its environment, where a careless child would inherit it."""
    content = base64.b64encode(shared_lab.gateway_key.private.read_bytes()).decode()
    gateway = shared_lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None, "GATEWAY_SSH_KEY_CONTENT": content})
    yield gateway
    gateway.close()


def _login(lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal], user: User) -> int:
    """Log in and stay; the uid that the user has on the gateway."""
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    return lookup_uid(gateway, user)


# Secrets


@pytest.mark.parametrize("who", ["session", "auth"])
def test_key_is_out_of_reach(
    lab: Lab, secretive: Gateway, user: User, open_terminal: Callable[..., Terminal], who: str
) -> None:
    """Neither a session's uid nor the key helper's can read the gateway's key, by file, process or environment."""
    session_uid = _login(lab, secretive, open_terminal, user)
    uid = session_uid if who == "session" else secretive.broker.uid + 1
    run = secretive.directory / "run"
    paths = [str(lab.gateway_key.private), str(secretive.host_key), str(run), f"{run}/state/users.sqlite3"]
    key = lab.gateway_key.private.read_bytes().splitlines()[2]

    opened, found = _spy(secretive, uid, key, paths)

    assert found == set()
    # What everybody may know of a process, and no more than that.
    assert {Path(path).name for path in opened if path.startswith("/proc/")} == {"cmdline"}
    assert not {path for path in opened if path.endswith(("/state", ".sqlite3", "key"))}
    assert str(lab.gateway_key.private) in _spy(secretive, 0, key, paths)[1]


def test_one_session_cannot_spy_on_another(lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal]) -> None:
    """A user cannot read the MOSH_KEY of another user's session."""
    first, second = lab.add_user(), lab.add_user()
    _login(lab, gateway, open_terminal, first)
    uid, other = lookup_uid(gateway, first), _login(lab, gateway, open_terminal, second)
    (client,) = gateway.processes("mosh-client", uid=other)
    variables = Path(f"/proc/{client.pid}/environ").read_bytes().split(b"\0")
    key = next(its for its in variables if its.startswith(b"MOSH_KEY=")).removeprefix(b"MOSH_KEY=")

    assert _spy(gateway, uid, key, [])[1] == set()
    assert any(path.endswith("environ") for path in _spy(gateway, 0, key, [])[1])


def test_children_have_no_settings(secretive: Gateway) -> None:
    """The environments of broker and sshd hold PATH, LANG and HOME, whatever secrets the gateway's own has."""
    for process in (secretive.broker, secretive.listener):
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        names = {line.split(b"=")[0] for line in environ.split(b"\0") if b"=" in line}
        assert names <= {b"PATH", b"LANG", b"HOME"}
        assert not any("KEY" in word or "BEGIN" in word for word in process.argv)


def test_broker_has_no_privileges(gateway: Gateway) -> None:
    """The broker runs as a uid of its own, without a capability, a group, a way to gain any, or a core file."""
    broker = gateway.broker
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{broker.pid}/status").read_text().splitlines() if ":\t" in line
    )
    limits = Path(f"/proc/{broker.pid}/limits").read_text()

    assert broker.uid > 65535
    assert status["Uid"].split() == status["Gid"].split() == [str(broker.uid)] * 4
    assert status["Groups"].split() == []
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert status["NoNewPrivs"] == "1"
    assert "Max core file size        0                    0 " in limits


# Speaking for somebody else


def test_session_is_the_callers_own(lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal]) -> None:
    """Whoever asks for a session gets the one of the uid that asks, whatever name the request holds."""
    attacker, victim = lab.add_user(), lab.add_user()
    uid = _login(lab, gateway, open_terminal, attacker)
    _login(lab, gateway, open_terminal, victim)
    before = {process.pid for process in lab.remote.processes("mosh-server")}

    answer = _ask(gateway, uid, {**_SESSION, "user": victim.name, "uid": 0, "name": victim.name})

    assert "result" in answer
    # mosh-server answers before it forks, and the first of the two ends: for a moment neither may be listed, or both.
    started: list[Process] = []

    def is_there() -> bool:
        started[:] = [its for its in lab.remote.processes("mosh-server") if its.pid not in before]
        return bool(started)

    wait_until(is_there, "there is a mosh-server")
    assert {process.uid for process in started} == {attacker.uid}
    for process in started:
        with suppress(ProcessLookupError):  # the one that only said where the other listens
            os.kill(process.pid, signal.SIGTERM)


@pytest.mark.parametrize("who", ["root", "broker", "auth", "unused", "last", "beyond", "nobody"])
def test_uid_without_a_user_gets_no_session(gateway: Gateway, who: str) -> None:
    """A uid that belongs to no user, the gateway's own ones among them, is refused a session."""
    first = gateway.broker.uid
    uids = {"root": 0, "broker": first, "auth": first + 1, "unused": first + 40_000, "last": first + 65535}
    uid = {**uids, "beyond": first + 65536, "nobody": 65534}[who]

    answer = _ask(gateway, uid, _SESSION)

    assert answer["error"]["code"] == "permission_denied"


def test_session_cannot_ask_for_keys(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A session's uid is told no keys, not even the user's own, and nothing of the gateway's state; sshd's is."""
    uid = _login(lab, gateway, open_terminal, user)
    key_type, key = user.key.public.split()[:2]
    request = {"op": "authorized_keys", "user": user.name, "key_type": key_type, "key": key, "connection": ""}
    since = gateway.log.mark()

    roots = [
        {"op": op, "user": user.name, "seconds": 60, "message": "x"}
        for op in ("status", "root", "sessions", "lock", "drain")
    ]
    refused = [_ask(gateway, uid, its)["error"]["code"] for its in (request, *roots)]
    answered = _say(gateway, gateway.broker.uid + 1, request)

    assert refused == ["permission_denied"] * 6
    assert key in answered.decode()
    gateway.log.wait_for(rf"warning refused op=authorized_keys uid={uid} ", since=since)


def test_key_helper_learns_only_of_the_key_it_shows(lab: Lab, gateway: Gateway, user: User) -> None:
    """Whoever asks about one key is not told another one of the file."""
    shown = lab.add_user().key.public.split()
    request = {"op": "authorized_keys", "user": user.name, "key_type": shown[0], "key": shown[1], "connection": ""}
    lab.run(lab.gateway_argv(gateway, user, options=["-W", "127.0.0.1:9"]))

    assert _say(gateway, gateway.broker.uid + 1, request) == b""


def test_agent_signs_for_the_callers_own_name_alone(
    lab: Lab, gateway: Gateway, open_terminal: Callable[..., Terminal]
) -> None:
    """With the broker's agent a session's uid can log in on the remote as itself, and as nobody else."""
    attacker, victim = lab.add_user(), lab.add_user()
    uid = _login(lab, gateway, open_terminal, attacker)
    sockets = [path for path in (gateway.directory / "run").rglob("*") if path.is_socket() and "agent" in path.name]
    assert sockets
    codes = {}
    for name in (attacker.name, victim.name, "root"):
        options = [f"IdentityAgent={sockets[0]}", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={lab.known_hosts}"]
        words = [word for option in options for word in ("-o", option)]
        done = _as_uid(gateway, uid, ["ssh", "-F", "none", *words, f"-l{name}", "192.0.2.2", "id", "-un"])
        codes[name] = (done.returncode, done.stdout.decode().strip())

    assert codes == {attacker.name: (0, attacker.name), victim.name: (255, ""), "root": (255, "")}


# Sends one syslog message to where sshd's go.
_SYSLOG = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.sendto(sys.stdin.buffer.read(), "/dev/log")
"""


@pytest.mark.parametrize(
    "message",
    [
        "<38>Jan  1 00:00:00 broker[8]: session_started sid=1-1 user=forged outcome=ok",
        "<38>Jan  1 00:00:00 gatewayctl[6]: ready user=forged",
        "<38>Jan  1 00:00:00 sshd[28]: Accepted publickey for forged from 192.0.2.66 port 4711 ssh2",
    ],
    ids=["broker", "gatewayctl", "sshd"],
)
@pytest.mark.parametrize("who", ["session", "auth", "nobody"])
def test_nobody_but_sshd_speaks_to_the_log(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal], *, who: str, message: str
) -> None:
    """What a session's uid or a stranger says where sshd's log goes is not taken for sshd's or the broker's word."""
    uids = {"session": _login(lab, gateway, open_terminal, user), "auth": gateway.broker.uid + 1, "nobody": 65534}
    since = gateway.log.mark()

    done = _as_uid(gateway, uids[who], [sys.executable, "-I", "-c", _SYSLOG], stdin=message.encode())
    lab.run(lab.gateway_argv(gateway, f"after-{user.name}", key=user.key.private, options=["-W", "127.0.0.1:9"]))

    assert done.returncode == 0 or b"Error" in done.stderr
    gateway.log.wait_for(rf"user=after-{user.name} ", since=since)  # which came later
    gateway.log.wait_for(rf"Connection closed by .*after-{user.name} ", since=since)
    assert gateway.log.matches("forged", since=since) == []


# Disturbing it


_GARBAGE = {
    "nothing": b"\n",
    "no json": b"GET / HTTP/1.1\r\n\r\n",
    "no object": b"[1, 2]\n",
    "no op": b"{}\n",
    "unknown op": b'{"op": "shutdown"}\n',
    "op of another type": b'{"op": ["session"]}\n',
    "no fields": b'{"op": "authorized_keys"}\n',
    "nested": b"[" * 60_000 + b"\n",
    "no utf-8": b'{"op": "\xff\xfe"}\n',
    "surrogates": b'{"op": "authorized_keys", "user": "\\ud800", "key_type": "x", "key": "x"}\n',
    "huge number": b'{"op": ' + b"9" * 5000 + b"}\n",
    "oversized": b'{"op": "' + b"x" * 1_000_000 + b'"}\n',
    "endless": b"x" * 1_000_000,
    "nul": b'{"op": "session\\u0000", "terminal": {"colors": 1e999, "locale": 1}}\n\0',
}


@pytest.mark.parametrize("garbage", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_garbage_is_answered_with_an_error(gateway: Gateway, garbage: bytes) -> None:
    """Whatever root or a stranger sends to the broker's two sockets, it says no or hangs up, and lives on."""
    broker = gateway.broker
    since = gateway.log.mark()
    for path, end in (("broker.sock", b"\n"), ("userdb/io.ssh-mosh-gateway", b"\0")):
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(20)
            sock.connect(str(gateway.directory / "run" / path))
            answer = b""
            try:
                sock.sendall(garbage + end)
                while end not in answer and (chunk := sock.recv(65536)):
                    answer += chunk
            except (BrokenPipeError, ConnectionResetError):
                pass  # it had read enough
        # It hung up, as where no key lets such a user in, or said what is wrong.
        assert not answer or "error" in json.loads(answer.split(end)[0])

    assert gateway.broker.pid == broker.pid
    assert gateway.log.matches(r"\berror fault\b|Traceback", since=since) == []


def test_crowd_at_the_sockets_disturbs_nobody(lab: Lab, start_gateway: Callable[..., Gateway], user: User) -> None:
    """While 600 connections to each socket say nothing, or half of something, somebody logs in for the first time."""
    gateway = start_gateway()
    run = gateway.directory / "run"
    with ExitStack() as stack:
        for number in range(600):
            for path in (run / "broker.sock", run / "userdb/io.ssh-mosh-gateway"):
                sock = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
                sock.connect(str(path))  # waits where the queue is full
                if number % 2:
                    sock.sendall(b'{"op": "ses')
        terminal = lab.terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)

    terminal.run("echo $((6 * 7))", "\n42")


def test_a_user_whose_shell_hangs_holds_up_nobody_else(
    lab: Lab, start_gateway: Callable[..., Gateway], open_terminal: Callable[..., Terminal]
) -> None:
    """While one user waits for more sessions than the gateway starts at once, none of which begins, another gets in."""
    gateway, slow, user = start_gateway(), lab.add_user(), lab.add_user()
    uid = _login(lab, gateway, open_terminal, slow)
    _login(lab, gateway, open_terminal, user)
    lab.remote.write_file(slow, ".bashrc", "exec sleep 1000\n")

    argv = [sys.executable, "-I", "-c", _ASK_OFTEN, str(gateway.directory / "run/broker.sock"), str(2 * MAX_RUNNING)]
    with subprocess.Popen(_argv_as_uid(gateway, uid, argv), stdin=subprocess.PIPE) as asking:
        assert asking.stdin is not None
        asking.stdin.write(json.dumps(_SESSION).encode() + b"\n")
        asking.stdin.flush()
        wait_until(lambda: len(lab.remote.processes("sleep", user=slow)) >= MAX_FOR_USER, "they hang")
        open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
        assert not gateway.log.matches("session_failed")


def test_many_users_whose_shells_hang_hold_up_nobody_else(
    lab: Lab, start_gateway: Callable[..., Gateway], open_terminal: Callable[..., Terminal]
) -> None:
    """While five users wait for sixteen sessions each, none of which begins, another gets in over a warm connection."""
    gateway, user, slow = start_gateway(), lab.add_user(), [lab.add_user() for _ in range(5)]
    _login(lab, gateway, open_terminal, user)
    uids = [_login(lab, gateway, open_terminal, each) for each in slow]
    with ExitStack() as stack:
        for each, uid in zip(slow, uids, strict=True):
            lab.remote.write_file(each, ".bashrc", "exec sleep 1000\n")
            words = [_ASK_OFTEN, str(gateway.directory / "run/broker.sock"), str(2 * MAX_FOR_USER)]
            argv = _argv_as_uid(gateway, uid, [sys.executable, "-I", "-c", *words])
            asking = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE))
            stack.callback(asking.kill)
            assert asking.stdin is not None
            asking.stdin.write(json.dumps(_SESSION).encode() + b"\n")
            asking.stdin.flush()

        def hanging() -> int:
            return sum(len(lab.remote.processes("sleep", user=each)) for each in slow)

        wait_until(lambda: hanging() > 4 * MAX_FOR_USER, "they hang")
        since = lab.remote.log.mark()
        open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
        # What waits for its turn gets a second connection beside the warm one after 4 s.
        assert lab.remote.accepted(user, since=since) == 0


# Who can see what


def test_only_sshd_listens(make_lab: Callable[..., Lab]) -> None:
    """In the gateway's network nothing listens but sshd, and a live session adds one UDP socket, mosh-client's."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    gateway = lab.start_gateway()

    def sockets() -> tuple[set[str], list[str]]:
        """List what listens by TCP, and who has UDP sockets, in the words of ``ss``."""
        tcp = lab.near.run(["ss", "-Hltn"]).stdout.splitlines()
        udp = lab.near.run(["ss", "-Huanp"]).stdout.splitlines()
        raw = lab.near.run(["ss", "-Hwan"]).stdout.splitlines()
        return {line.split()[3] for line in tcp}, udp + raw

    before = sockets()
    lab.terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    during = sockets()

    assert before == ({f"127.0.0.1:{gateway.port}"}, [])
    assert during[0] == before[0]
    assert len(during[1]) == 1
    assert len(gateway.processes("mosh-client")) == 1


def test_host_does_not_know_the_users(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Invented users exist for sshd alone: the host, and the gateway's own supervisor, look them up in vain."""
    uid = _login(lab, gateway, open_terminal, user)
    names = [user.name, str(uid), "gateway+auth"]
    places = {
        "host": [],
        "supervisor": ["nsenter", f"--target={gateway.pid}", "-m", "--"],
        "sshd": ["nsenter", f"--target={gateway.listener.pid}", "-m", "--"],
    }
    known = {
        place: [
            subprocess.run([*enter, "getent", "passwd", name], check=False, capture_output=True).returncode == 0
            for name in names
        ]
        for place, enter in places.items()
    }

    assert known == {"host": [False] * 3, "supervisor": [False] * 3, "sshd": [True] * 3}


def test_session_cannot_make_names_known(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A session that looks names up learns those that have logged in, adds none, and causes no packet to the remote."""
    uid = _login(lab, gateway, open_terminal, user)
    since = lab.remote.log.mark()

    found = [_as_uid(gateway, uid, ["getent", "passwd", name]).returncode for name in (user.name, f"new-{user.name}")]

    assert found == [0, 2]
    assert lab.remote.log.matches(rf"new-{user.name}", since=since) == []
