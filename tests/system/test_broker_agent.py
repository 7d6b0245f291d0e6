"""What somebody who is in, or on the same machine, can make the broker's agent do: log in as themselves, no more."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from system.sessions import lookup_uid

from lab.users import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

_FAILURE, _IDENTITIES, _SIGNATURE = b"\x05", 12, 14
_HOSTBOUND = b"publickey-hostbound-v00@openssh.com"

# Sends frames (base64) to a unix socket, one after the other, and prints what comes back to each.
_SAY = """
import base64, json, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
sock.connect(sys.argv[1])
answers = []
def read(count):
    got = b""
    while len(got) < count:
        chunk = sock.recv(count - len(got))
        if not chunk:
            raise ConnectionError
        got += chunk
    return got
try:
    for frame in json.load(sys.stdin):
        sock.sendall(base64.b64decode(frame))
        answers.append(base64.b64encode(read(int.from_bytes(read(4), "big"))).decode())
except ConnectionError:
    answers.append(None)
print(json.dumps(answers))
"""


def _string(value: bytes) -> bytes:
    """Write a string (RFC 4251 section 5)."""
    return struct.pack(">I", len(value)) + value


def _blob(public: str) -> bytes:
    """Take the key out of a line of authorized_keys."""
    return base64.b64decode(public.split()[1])


def _login(name: str, blob: bytes, /, **changes: bytes) -> bytes:
    """Write what a signature for a login covers (RFC 4252 section 7), with changes."""
    fields = {
        "session": _string(b"s" * 32),
        "number": b"\x32",
        "user": _string(name.encode()),
        "service": _string(b"ssh-connection"),
        "method": _string(b"publickey"),
        "signed": b"\x01",
        "algorithm": _string(b"ssh-ed25519"),
        "key": _string(blob),
        "tail": b"",
    }
    assert not changes.keys() - fields.keys()
    return b"".join((fields | changes).values())


def _sign(key: bytes, data: bytes, flags: int = 0) -> bytes:
    """Write a request to sign."""
    return b"\x0d" + _string(key) + _string(data) + struct.pack(">I", flags)


def _agent(gateway: Gateway) -> Path:
    """Find the agent's socket."""
    (path,) = (path for path in (gateway.directory / "run").iterdir() if path.is_socket() and "agent" in path.name)
    return path


def _as_uid(gateway: Gateway, uid: int, argv: list[str], *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command where sshd's sessions run, as a uid without any privilege, with the agent in its environment."""
    enter = ["nsenter", f"--target={gateway.listener.pid}", "-m", "-n", "-p", "--"]
    setpriv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    environment = {"PATH": "/usr/bin:/bin", "SSH_AUTH_SOCK": str(_agent(gateway)), "HOME": "/nonexistent"}
    return subprocess.run(
        [*enter, *setpriv, *argv], input=stdin, capture_output=True, check=False, timeout=60, env=environment
    )


def _say(gateway: Gateway, uid: int, *messages: bytes, raw: bool = False) -> list[bytes | None]:
    """Send messages to the agent as a uid over one connection, and return its answers; None where it hung up."""
    frames = [base64.b64encode(its if raw else _string(its)).decode() for its in messages]
    argv = [sys.executable, "-I", "-c", _SAY, str(_agent(gateway))]
    done = _as_uid(gateway, uid, argv, stdin=json.dumps(frames).encode())
    assert done.returncode == 0, done
    return [None if answer is None else base64.b64decode(answer) for answer in json.loads(done.stdout)]


@pytest.fixture
def uid(lab: Lab, gateway: Gateway, user: User) -> int:
    """The uid on the gateway of a user who has been in."""
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0
    return lookup_uid(gateway, user)


@pytest.fixture(autouse=True)
def _no_key_in_the_log(lab: Lab, gateway: Gateway) -> Iterator[None]:
    """See after each test that no key material is in the log, and that the broker is the one from before."""
    broker, since = gateway.broker.pid, gateway.log.mark()
    yield
    text = gateway.log_text(since=since)
    secret = lab.gateway_key.private.read_text().splitlines()[2]
    assert secret not in text
    assert lab.gateway_key.public.split()[1] not in text
    assert "fault" not in text
    assert gateway.broker.pid == broker


def test_it_lists_the_gateways_public_key(lab: Lab, gateway: Gateway, uid: int) -> None:
    """A session sees one key, the gateway's, and the public half of it alone."""
    key = _blob(lab.gateway_key.public)
    (answer,) = _say(gateway, uid, b"\x0b")
    assert answer == bytes([_IDENTITIES]) + struct.pack(">I", 1) + _string(key) + _string(b"ssh-mosh-gateway")


def test_it_signs_the_callers_login(lab: Lab, gateway: Gateway, user: User, uid: int) -> None:
    """A session may log in as its own user: plain, and bound to one of the remote's pinned host keys."""
    key = _blob(lab.gateway_key.public)
    bound = [
        _login(user.name, key, method=_string(_HOSTBOUND), tail=_string(_blob(host.public)))
        for host in lab.remote.host_keys
    ]
    answers = _say(gateway, uid, *(_sign(key, data) for data in (_login(user.name, key), *bound)))
    assert [answer[0] for answer in answers if answer] == [_SIGNATURE] * 3


_WRONG_LOGINS = {
    "another user": {"user": _string(b"somebody-else")},
    "root": {"user": _string(b"root")},
    "another service": {"service": _string(b"ssh-userauth")},
    "another method": {"method": _string(b"hostbased")},
    "another number": {"number": b"\x33"},
    "a question": {"signed": b"\x00"},
    "another key": {"key": _string(b"another")},
    "another algorithm": {"algorithm": _string(b"rsa-sha2-512")},
    "a tail": {"tail": b"\x00"},
    "a second login": {"tail": b"\x32" + _string(b"root")},
    "bound to no host": {"method": _string(_HOSTBOUND)},
    "bound to nonsense": {"method": _string(_HOSTBOUND), "tail": _string(b"nonsense")},
}


@pytest.mark.parametrize("changes", _WRONG_LOGINS.values(), ids=_WRONG_LOGINS.keys())
def test_no_other_login_is_signed(lab: Lab, gateway: Gateway, user: User, uid: int, changes: dict[str, bytes]) -> None:
    """A login that differs in one field is refused and logged, and the connection goes on."""
    key, since = _blob(lab.gateway_key.public), gateway.log.mark()
    answers = _say(gateway, uid, _sign(key, _login(user.name, key, **changes)), _sign(key, _login(user.name, key)))
    assert answers[0] == _FAILURE
    assert answers[1] is not None
    assert answers[1][0] == _SIGNATURE
    gateway.log.wait_for(rf"warning agent_refused uid={uid} ", since=since)


def test_no_login_on_another_host_is_signed(lab: Lab, gateway: Gateway, user: User, uid: int) -> None:
    """A login that is bound to a host key which known_hosts does not have for the remote is refused and logged."""
    key, since = _blob(lab.gateway_key.public), gateway.log.mark()
    other = _blob(lab.add_user().key.public)
    data = _login(user.name, key, method=_string(_HOSTBOUND), tail=_string(other))
    assert _say(gateway, uid, _sign(key, data)) == [_FAILURE]
    gateway.log.wait_for(rf"warning agent_refused uid={uid} ", since=since)


def _constant(message: bytes) -> Callable[[bytes], bytes]:
    """Write the same message, whatever the key."""
    return lambda _: message


_OTHER_MESSAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing to sign": lambda key: _sign(key, b""),
    "raw data": lambda key: _sign(key, b"data"),
    "a file": lambda key: _sign(key, b"SSHSIG" + _string(b"file")),
    "an unknown key": lambda _: _sign(_string(b"ssh-ed25519") + _string(b"k" * 32), b"data"),
    "a short request": lambda key: _sign(key, b"data")[:-3],
    "a length that lies": lambda _: b"\x0d\xff\xff\xff\xff",
    "a list with a tail": lambda _: b"\x0bx",
    **{f"message {number}": _constant(bytes([number])) for number in (1, 9, 13, 17, 18, 19, 20, 21, 25)},
    "lock": lambda _: b"\x16" + _string(b"passphrase"),
    "unlock": lambda _: b"\x17" + _string(b"passphrase"),
    "add with constraints": lambda key: b"\x19" + _string(b"ssh-ed25519") + _string(key),
    "extension": lambda _: b"\x1b" + _string(b"query"),
}


@pytest.mark.parametrize("write", _OTHER_MESSAGES.values(), ids=_OTHER_MESSAGES.keys())
def test_nothing_else_is_done(lab: Lab, gateway: Gateway, uid: int, write: Callable[[bytes], bytes]) -> None:
    """Raw data, other keys, adding, removing, locking and extensions are refused and logged."""
    since = gateway.log.mark()
    assert _say(gateway, uid, write(_blob(lab.gateway_key.public))) == [_FAILURE]
    gateway.log.wait_for(rf"warning agent_refused uid={uid} ", since=since)


@pytest.mark.parametrize("length", [0, 64 * 1024 + 1, 2**31, 2**32 - 1])
def test_frames_of_no_sensible_length_are_hung_up_on(gateway: Gateway, uid: int, length: int) -> None:
    """An empty frame, or one that announces too much, ends the connection, and is logged."""
    since = gateway.log.mark()
    assert _say(gateway, uid, struct.pack(">I", length) + b"\x0b", raw=True) == [None]
    gateway.log.wait_for(rf"warning agent_refused uid={uid} .*{length} bytes", since=since)


@pytest.mark.parametrize("who", ["root", "broker", "auth", "unused", "nobody"])
def test_a_uid_without_a_user_gets_nothing(lab: Lab, gateway: Gateway, user: User, uid: int, who: str) -> None:
    """A uid that owns no user, root and the gateway's own among them, is neither shown a key nor signed for."""
    first, since = gateway.broker.uid, gateway.log.mark()
    asker = {"root": 0, "broker": first, "auth": first + 1, "unused": first + 40_000, "nobody": 65534}[who]
    key = _blob(lab.gateway_key.public)
    assert uid != asker
    assert _say(gateway, asker, b"\x0b", _sign(key, _login(user.name, key))) == [_FAILURE, _FAILURE]
    gateway.log.wait_for(rf"warning agent_refused uid={asker} ", since=since)


def test_ssh_add_shows_the_key_and_can_do_no_more(lab: Lab, gateway: Gateway, uid: int) -> None:
    """``ssh-add -l`` works; adding, removing and locking with ssh-add, and signing a file with ssh-keygen, do not."""
    listed = _as_uid(gateway, uid, ["ssh-add", "-l"])
    assert listed.returncode == 0
    fingerprint = lab.run(["ssh-keygen", "-l", "-f", f"{lab.gateway_key.private}.pub"]).stdout.split()[1]
    assert fingerprint in listed.stdout
    key = lab.add_user().key.private.read_bytes()
    assert _as_uid(gateway, uid, ["ssh-add", "-"], stdin=key).returncode != 0
    assert _as_uid(gateway, uid, ["ssh-add", "-D"]).returncode != 0
    lock = ["setsid", "env", "SSH_ASKPASS=/bin/true", "SSH_ASKPASS_REQUIRE=force", "ssh-add", "-x"]
    assert _as_uid(gateway, uid, lock).returncode != 0
    shown = lab.directory / "keys" / f"shown-{uid}.pub"
    shown.write_text(lab.gateway_key.public + "\n")
    signed = _as_uid(gateway, uid, ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", str(shown)], stdin=b"text")
    assert (signed.returncode != 0, b"BEGIN SSH SIGNATURE" in signed.stdout) == (True, False)
    assert _as_uid(gateway, uid, ["ssh-add", "-l"]).stdout == listed.stdout


def test_a_crowd_at_the_agent_disturbs_nobody(lab: Lab, gateway: Gateway, user: User, uid: int) -> None:
    """While hundreds of connections say nothing or half of something, all others log in; and it is logged."""
    since = gateway.log.mark()
    with ExitStack() as stack:
        holder = (
            "import socket, sys\nheld = []\n"
            "for number in range(300):\n"
            "    sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1]); held.append(sock)\n"
            "    try: sock.sendall(b'\\0\\0\\0' if number % 2 else b'\\0\\0\\1\\0\\x0d')\n"
            "    except OSError: pass\n"
            "print('held', flush=True)\nsys.stdin.read()\n"
        )
        setpriv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
        crowd = stack.enter_context(
            subprocess.Popen(
                [*setpriv, sys.executable, "-I", "-c", holder, str(_agent(gateway))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == b"held\n"
        for _ in range(100):
            sock = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            sock.connect(str(_agent(gateway)))
        for somebody in (lab.add_user(), user):
            done = lab.run(lab.gateway_argv(gateway, somebody, "echo ok"))
            assert (done.stdout, done.stderr, done.returncode) == (b"ok\n", b"", 0)
        for reason in ("too many connections", "a message that took longer than 5 s"):
            gateway.log.wait_for(rf'warning agent_refused uid={uid} .*reason="{reason}"', since=since)
        crowd.communicate()


@pytest.mark.parametrize(
    ("kind", "form"), [("rsa", "RFC4716"), ("rsa", "PEM"), ("rsa", "PKCS8"), ("ecdsa", "PEM"), ("ecdsa", "PKCS8")]
)
def test_keys_of_other_types_log_in(lab: Lab, start_gateway: Callable[..., Gateway], kind: str, form: str) -> None:
    """A gateway whose key is RSA (signed with SHA-2) or ECDSA, in any of its formats, is as one with Ed25519."""
    user = lab.add_user()
    key = make_key(lab.directory / "keys" / f"gateway-{user.name}", kind=kind)
    rewrite = ["ssh-keygen", "-q", "-p", "-N", "", "-m", form, "-f", str(key.private)]
    subprocess.run(rewrite, check=True, capture_output=True)
    lab.remote.authorize(user, [user.key.public, key.public])
    gateway = start_gateway({"GATEWAY_SSH_KEY_PATH": str(key.private)})
    done = lab.run(lab.gateway_argv(gateway, user, "echo ok; exit 3"))
    assert (done.stdout, done.stderr, done.returncode) == (b"ok\n", b"", 3)
    if (kind, form) == ("rsa", "RFC4716"):
        blob, uid = _blob(key.public), lookup_uid(gateway, user)
        asked = [(name, flags) for name in ("rsa-sha2-256", "rsa-sha2-512", "ssh-rsa") for flags in (0, 2, 4)]
        answers = _say(
            gateway,
            uid,
            *(_sign(blob, _login(user.name, blob, algorithm=_string(name.encode())), flags) for name, flags in asked),
        )
        signed = [pair for pair, answer in zip(asked, answers, strict=True) if answer and answer[0] == _SIGNATURE]
        assert signed == [("rsa-sha2-256", 2), ("rsa-sha2-512", 4)]
