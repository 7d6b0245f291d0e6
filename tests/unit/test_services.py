"""The broker's services: the kernel names the client, and every word of a request is checked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.broker import remote_deadline
from helpers.broker.accounts.locks import Locks
from helpers.broker.accounts.uid_table import UidTable
from helpers.broker.accounts.userdb import AUTH_USER
from helpers.broker.clients import _endpoint, _key_fingerprint
from helpers.broker.keys.cached_remote_keys import RemoteKeys
from helpers.broker.keys.local_keys import ContentKeys, PathKeys
from helpers.broker.keys.refusal_timing import RefusalTiming
from helpers.broker.keys.remote_authorized_keys import AuthorizedKeysSources
from helpers.broker.keys.sources import AnyKeySource, KeySource, LocalKeySource, RemoteKeySource, Verdict
from helpers.broker.keys.sshd_key_cache import SshdKeyCache
from helpers.broker.peer_credentials import Peer
from helpers.broker.privileged_client import PrivilegedClient
from helpers.broker.remote.addresses import Addresses
from helpers.broker.remote.attempt import Attempt
from helpers.broker.remote.pool import Completed, Connections
from helpers.broker.services import Dependencies, Services
from helpers.broker.sessions.open_sessions import OpenSessions
from helpers.broker.sessions.session_ends import SessionEnds
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import (
    MoshServerError,
    NoLocaleError,
    NoMoshServerError,
    PermissionDeniedError,
    ProtocolError,
    RemoteLostError,
    RemoteTimeoutError,
)
from helpers.ssh import agent
from helpers.ssh.authorized_keys import OfferedKey, encode_command
from helpers.ssh.known_hosts import fingerprint
from lab.answers import MARKER, authorized_keys, mosh_connect
from lab.fakes import FakeConnection, RecordedLog

pytestmark = pytest.mark.timeout(20)

_BROKER_UID, _AUTH_UID = 70_000, 70_001
_UIDS = range(70_002, 70_010)
_BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + hashlib.sha256(b"alice").digest()
_KEY = base64.b64encode(_BLOB).decode()
_OTHER_KEY = base64.b64encode(_BLOB[:-1] + b"\0").decode()
_MOSH_KEY = "4NeCCgvZFe2RnPgrcU1PQw"
_SSHD = Peer(1, 0)
_AUTH = Peer(1, _AUTH_UID)


class FakePrivilegedClient(PrivilegedClient):
    """The supervisor, for a gateway."""

    def __init__(self, gateway: FakeGateway) -> None:
        """Belong to a gateway."""
        self._gateway = gateway

    async def make_home(self, user: str, uid: int, client: tuple[int, str | None] | None = None) -> str | None:
        """Make it, or not."""
        del client
        assert self._gateway.users.name_of(uid) == user
        self._gateway.homes.append(uid)
        return None if self._gateway.home_is_made else "No space left on device"

    async def remember(self, user: str, uid: int, lines: Sequence[bytes], seconds: float) -> str | None:
        """Note it."""
        self._gateway.remembered.append((user, list(lines), seconds))
        return await self.make_home(user, uid)


class BrokenSource(AnyKeySource):
    """A source of keys that is away."""

    async def judge(self, user: str, offered: OfferedKey) -> Verdict:
        """Fail."""
        del user, offered
        msg = "away"
        raise RemoteLostError(msg)


def _answers(stdout: bytes, stderr: bytes = b"", status: int | None = 0) -> Completed:
    return Completed(stdout, stderr, status, MARKER)


_STARTED = _answers(b"motd" + mosh_connect(60001, _MOSH_KEY))
_NO_LOCALE = _answers(b"\n%s MOSH CONNECT \n" % MARKER, b"mosh-server needs a UTF-8 native locale to run.", 1)
_NO_FILE = _answers(authorized_keys(None, None))


class FakeGateway:
    """A broker with a remote, users and a log.

    Attributes:
        lines: The command lines that reached the remote.
        outcomes: The results that they have there, in turn; the last one repeats.
        connected: The users that the gateway logged in as.
        homes: The uids whose homes were made.
        home_is_made: Whether they can be.
        refuses: Whether the remote lets the gateway in no more.
        remembered: The files of keys that sshd got: the user, the lines, and for how many seconds.
    """

    def __init__(self, source: Callable[[PrivilegedClient], KeySource] | None = None, **settings: Any) -> None:
        """Make a broker."""
        self.lines: list[str] = []
        self.outcomes = [_STARTED]
        self.connected: list[str] = []
        self.homes: list[int] = []
        self.home_is_made = True
        self.refuses = False
        self.remembered: list[tuple[str, list[bytes], float]] = []
        self.privileged = FakePrivilegedClient(self)
        values: dict[str, Any] = {
            "remote_host": "remote.example",
            "remote_port": 22,
            "known_hosts": "/etc/known_hosts",
            "ssh_key": "a secret",
            "ssh_certificate": None,
            "authorized_keys_files": [".ssh/authorized_keys", ".ssh/authorized_keys2"],
            "remote_authorized_keys_command": "",
            "gateway_authorized_keys_path": None,
            "gateway_authorized_keys_content": None,
            "gateway_accept_any_key": False,
            "passwords": {"bob": "$6$bob"},
            "placeholder_hashes": ["*"],
            "placeholder_key": "",
            "gateway_cache_ttl": 60.0,
            "state_dir": "/nowhere",
            "homes_dir": "/homes",
            "agent_socket": "/run/agent.sock",
            "uid_start": _UIDS.start,
            "uid_stop": _UIDS.stop,
            "auth_uid": _AUTH_UID,
            "gateway_permit_root": False,
            "remote_mosh_server": "mosh-server",
            "remote_mosh_ports": "60001:60999",
            "gateway_transport": "auto",
            "gateway_pty_commands": "mosh",
            "gateway_mosh_predict": "adaptive",
            "gateway_session_timeout": 600,
            "gateway_trusted_proxies": "",
            "gateway_log_level": "info",
            "syslog": False,
            "gateway_host": "192.0.2.8",
            "gateway_port": 2222,
        }
        config = BrokerConfig(**(values | settings))
        self.config = config
        self.log = RecordedLog()
        self.users = UidTable(":memory:", _UIDS)
        self.ends = SessionEnds(self.log, self.privileged, lambda: None, by_agent=False)
        self.open_sessions = OpenSessions(":memory:", self.ends)
        self.locks = Locks(":memory:")
        self.connections = Connections(self._connect)
        self.serve((source or _content(f"ssh-ed25519 {_KEY} alice\n"))(self.privileged))

    def serve(self, source: KeySource) -> None:
        """Have a broker whose keys are from a source."""
        self.broker = Services(
            Dependencies(
                config=self.config,
                uids=self.users,
                open_sessions=self.open_sessions,
                session_ends=self.ends,
                locks=self.locks,
                source=source,
                connections=self.connections,
                addresses=Addresses(self.config.remote_host, self.config.remote_port),
                known_hosts=None,
                identity=None,
                privileged=self.privileged,
                log=self.log,
                supervisor=1,
            )
        )

    def _connect(self, user: str, command: Callable[[str], str] | None, attempt: Attempt) -> FakeConnection:
        del command, attempt
        self.connected.append(user)
        if self.refuses:
            msg = "no"
            raise PermissionDeniedError(msg)
        return FakeConnection(self._answer)

    def _answer(self, line: str) -> Completed:
        self.lines.append(line)
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def login(self, name: str) -> Peer:
        """Let sshd look a user up, and be a process of that user's."""
        account = self.broker.accounts.account(_SSHD, name)
        assert account is not None
        return Peer(1, account.uid)

    async def keys(self, user: str = "alice", key: str = _KEY, peer: Peer = _AUTH, **words: Any) -> list[str]:
        """Ask for the lines of a key."""
        request = {"user": user, "key_type": "ssh-ed25519", "key": key} | words
        text = await self.broker.keys.authorized_keys(peer, request)
        assert text[-1:] in {b"", b"\n"}
        return text.decode("utf-8", "surrogateescape").split("\n")[:-1]

    async def session(self, peer: Peer, **words: Any) -> dict[str, Any]:
        """Ask for a session."""
        return dict(await self.broker.sessions.session(peer, _SESSION | words))

    def close(self) -> None:
        """Close the tables and the connections."""
        self.users.close()
        self.open_sessions.close()
        self.locks.close()
        self.connections.close()


NewGateway = Callable[..., FakeGateway]
"""Makes a gateway, given where its keys come from and its settings."""


def _content(text: str) -> Callable[[PrivilegedClient], KeySource]:
    """Make a source of the settings' own keys."""
    return lambda privileged: LocalKeySource(ContentKeys(text.encode()), privileged)


_SESSION: dict[str, Any] = {
    "terminal": {"colors": 256, "locale": {"LANG": "de_DE.UTF-8"}, "window": True},
    "command": None,
    "original_command": None,
    "connection": "192.0.2.7 50000 192.0.2.8 22",
    "key": f"publickey ssh-ed25519 {_KEY}",
}


@pytest.fixture
def new_gateway() -> Iterator[NewGateway]:
    """Make gateways with settings and keys of a test's own, which are closed after it."""
    with ExitStack() as stack:

        def make(source: Callable[[PrivilegedClient], KeySource] | None = None, **settings: Any) -> FakeGateway:
            made = FakeGateway(source, **settings)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def gateway(new_gateway: NewGateway) -> FakeGateway:
    """Make a gateway with keys of the settings'."""
    return new_gateway()


# Names


def test_sshd_makes_a_name_known(gateway: FakeGateway) -> None:
    """A lookup by root gives a new name a uid; after that everybody finds it, by name and by uid."""
    peer = gateway.login("alice")
    assert peer.uid in _UIDS
    for asker in (_SSHD, _AUTH, Peer(5, 1000)):
        for key in ("alice", peer.uid):
            account = gateway.broker.accounts.account(asker, key)
            assert account is not None
            assert (account.name, account.uid, account.home) == ("alice", peer.uid, f"/homes/{peer.uid}")


@pytest.mark.parametrize("uid", [1000, _AUTH_UID, _UIDS[0]])
def test_nobody_else_does(uid: int, gateway: FakeGateway) -> None:
    """A lookup by anybody but root adds no name, and is not counted."""
    assert gateway.broker.accounts.account(Peer(5, uid), "alice") is None
    assert gateway.broker.accounts.account(_SSHD, _UIDS[0]) is None
    assert gateway.broker.accounts.lookups == 0


@pytest.mark.parametrize("name", ["root", "nobody", "sshd", "", "a b", "x" * 65, "-\n", "gateway"])
def test_names_that_are_not_ours_to_answer(name: str, gateway: FakeGateway) -> None:
    """Reserved names and invalid ones are not found, not even by sshd; gateway is a name like any other."""
    assert (gateway.broker.accounts.account(_SSHD, name) is None) == (name != "gateway")


def test_names_without_a_uid_left_are_told_of(gateway: FakeGateway) -> None:
    """Once every uid is taken, the log says why a new name is refused; a reserved or invalid name is not logged."""
    for number in range(len(_UIDS)):
        gateway.login(f"name{number}")
    assert gateway.broker.accounts.account(_SSHD, "root") is gateway.broker.accounts.account(_SSHD, "a b") is None
    assert gateway.log.events == []
    assert gateway.broker.accounts.account(_SSHD, "alice") is None
    assert [event for event, _ in gateway.log.events] == ["refused"]


@pytest.mark.parametrize("uid", [0, -1, 1000, _BROKER_UID, _UIDS[0], _UIDS.stop, 2**70])
def test_uids_that_are_nobodys(uid: int, gateway: FakeGateway) -> None:
    """A uid has no account before a name gets it: not root's, not the broker's."""
    assert gateway.broker.accounts.account(_SSHD, uid) is None


def test_the_key_helpers_account(gateway: FakeGateway) -> None:
    """It exists for everyone, has no shell, no password, and no user's home."""
    for asker in (_SSHD, Peer(5, 1000)):
        for key in (AUTH_USER, _AUTH_UID):
            account = gateway.broker.accounts.account(asker, key)
            assert account is not None
            assert (account.name, account.uid, account.shell) == (AUTH_USER, _AUTH_UID, "/usr/sbin/nologin")
            assert account.password is None


async def test_a_password_is_for_roots_eyes(gateway: FakeGateway) -> None:
    """A hashed password goes to sshd alone; all others get none, by name or by uid."""
    peer = gateway.login("bob")
    asked = [
        gateway.broker.accounts.account(asker, key)
        for asker in (_SSHD, _AUTH, peer, Peer(5, 1000))
        for key in ("bob", peer.uid)
    ]
    assert [account.password for account in asked if account] == ["$6$bob"] * 2 + [None] * 6
    alice = gateway.broker.accounts.account(_SSHD, "alice")
    assert alice is not None
    assert alice.password == gateway.config.placeholder_hashes[0]


async def test_roots_own_uid_has_a_name_that_nobody_logs_in_by(new_gateway: NewGateway) -> None:
    """Ssh runs as no uid without an account; by name there is none, as nss-systemd answers for root by itself."""
    gateway = new_gateway(gateway_permit_root=True)
    uid = (await gateway.broker.accounts.root(_SSHD, {}))["uid"]
    assert uid in _UIDS
    account = gateway.broker.accounts.account(_SSHD, uid)
    assert account is not None
    assert (account.name, account.uid, account.password) == ("gateway+root", uid, gateway.config.placeholder_hashes[0])
    assert gateway.broker.accounts.account(_SSHD, "root") is None
    assert gateway.broker.accounts.account(_SSHD, "gateway+root") is None


# Keys


async def test_a_permitted_key_gets_its_lines(gateway: FakeGateway) -> None:
    """The line is printed, the home is made, and the log has the user, the client, the key and its source."""
    peer = gateway.login("alice")
    assert await gateway.keys(connection="192.0.2.7 50000 192.0.2.8 22") == [f"ssh-ed25519 {_KEY}"]
    ((event, fields),) = gateway.log.events
    assert event == "key_permitted"
    assert fields["user"] == "alice"
    assert fields["client"] == "192.0.2.7:50000"
    assert fields["key"] == fingerprint(_BLOB)
    assert fields["source"] == "content"
    assert "reason" not in fields
    assert gateway.homes == [peer.uid]
    assert (gateway.broker.keys.offered, gateway.broker.keys.permitted) == (1, 1)


async def test_another_key_gets_none(gateway: FakeGateway) -> None:
    """A key that is in no line gets nothing, no home is made for it, and the log says why."""
    gateway.login("alice")
    assert await gateway.keys(key=_OTHER_KEY) == []
    ((event, fields),) = gateway.log.events
    assert (event, fields["reason"]) == ("key_refused", "no line for this key")
    assert (gateway.homes, gateway.connected) == ([], [])


@pytest.mark.parametrize("uid", [1000, _BROKER_UID, *_UIDS[:2]])
async def test_keys_are_sshds_to_ask_for(uid: int, gateway: FakeGateway) -> None:
    """A user, the broker's own uid and any other are refused, and the log has the uid and the pid."""
    gateway.login("alice")
    with pytest.raises(PermissionDeniedError):
        await gateway.keys(peer=Peer(77, uid))
    assert gateway.log.events == [("refused", {"op": "authorized_keys", "uid": uid, "pid": 77})]


@pytest.mark.parametrize("user", ["eve", "", "a b", "root", AUTH_USER, "alice\n", "../alice", "sshd"])
async def test_keys_of_nobody(user: str, new_gateway: NewGateway) -> None:
    """A name that sshd did not look up, root where it is off, and an invalid name have none, though any key will do."""
    gateway = new_gateway(AnyKeySource, gateway_accept_any_key=True)
    gateway.login("alice")
    assert await gateway.keys(user=user) == []
    assert [event for event, _ in gateway.log.events] == ["key_refused"]


def _remote_keys(gateway: FakeGateway, *contents: bytes, ttl_s: float = 60.0) -> RemoteKeys:
    """Give a gateway keys from its remote, which has one file after the other."""
    cache = SshdKeyCache(gateway.privileged, lambda user: gateway.users.uid_of(user, allocate=False))
    keys = RemoteKeys(gateway.connections, ttl_s, b"AAAA", AuthorizedKeysSources(), on_file=cache.fetched)
    if contents:
        gateway.outcomes = [_answers(authorized_keys(content, None)) for content in contents]
    gateway.serve(RemoteKeySource(keys, cache, gateway.privileged))
    return keys


class RecordedPacing(RefusalTiming):
    """Records for whom it was asked, and delays nobody.

    Attributes:
        refused: The users who were refused.
    """

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__()
        self.refused: list[str] = []

    def left_s(self, user: str) -> float:
        """Remember the question."""
        self.refused.append(user)
        return super().left_s(user)


async def test_every_refusal_is_paced_alike(gateway: FakeGateway) -> None:
    """A wrong key, a user without keys, an unknown name and root wait for the same time; a permitted key does not."""
    keys = _remote_keys(gateway)
    keys.refusal_timing = pacing = RecordedPacing()
    broker = gateway.broker
    gateway.outcomes = [_answers(authorized_keys(f"ssh-ed25519 {_KEY}\n".encode(), None)), _NO_FILE]
    for user in ("alice", "bob"):
        broker.accounts.account(_SSHD, user)
        await keys.fetch(user)
    asked = [("alice", _KEY), ("alice", _OTHER_KEY), ("bob", _KEY), ("root", _KEY), ("a b", _KEY)]
    for user, key in asked:
        connection = "192.0.2.7 50000 192.0.2.8 22"
        request = {"user": user, "key_type": "ssh-ed25519", "key": key, "connection": connection}
        await broker.keys.authorized_keys(_AUTH, request)
    assert pacing.refused == ["alice", "bob", "root", "a b"]


@pytest.mark.parametrize(
    ("client", "familiar"),
    [("192.0.2.7", True), ("2001:db8::7", True), ("198.51.100.7", False), ("2001:db8:1::7", False)],
)
async def test_a_proxys_address_is_nobodys(client: str, new_gateway: NewGateway, *, familiar: bool) -> None:
    """Behind GATEWAY_TRUSTED_PROXIES one user's session does not make strangers' refusals quicker than others'."""
    gateway = new_gateway(gateway_trusted_proxies="198.51.100.0/24,2001:db8:1::/48")
    keys = _remote_keys(gateway)
    keys.refusal_timing = pacing = RecordedPacing()
    broker = gateway.broker
    gateway.outcomes = [_STARTED]
    await broker.sessions.session(gateway.login("alice"), _SESSION | {"connection": f"{client} 50000 192.0.2.8 22"})
    for user in ("alice", "bob"):
        connection = f"{client} 50001 192.0.2.8 22"
        request = {"user": user, "key_type": "ssh-ed25519", "key": _OTHER_KEY, "connection": connection}
        await broker.keys.authorized_keys(_AUTH, request)
    assert pacing.refused == (["bob"] if familiar else ["alice", "bob"])


async def test_a_name_has_had_a_session_when_the_remote_has_let_it_in(new_gateway: NewGateway) -> None:
    """With agent pass-through the session's own ssh reports that; until then it is a stranger's name."""
    gateway = new_gateway(AnyKeySource, ssh_key=None, remote_host="192.0.2.1")
    peer = gateway.login("alice")
    await gateway.broker.sessions.session(peer, _SESSION)
    assert not gateway.users.had_session("alice")
    request = {"connection": "192.0.2.7 50000 192.0.2.8 22", "key": "", "session": peer.pid}
    await gateway.broker.sessions.logged_in(peer, request)
    assert gateway.users.had_session("alice")


@pytest.mark.parametrize("uid", [0, _AUTH_UID, _BROKER_UID, _UIDS.stop - 1])
async def test_who_is_no_user_has_not_logged_in(uid: int, new_gateway: NewGateway) -> None:
    """A uid without a name, and the gateway's own uids, are refused."""
    gateway = new_gateway(AnyKeySource, ssh_key=None)
    with pytest.raises(PermissionDeniedError):
        await gateway.broker.sessions.logged_in(Peer(77, uid), {})


async def test_with_a_key_of_its_own_the_gateway_needs_no_ones_word(new_gateway: NewGateway) -> None:
    """A process of the user's cannot make the name one that has had a session."""
    gateway = new_gateway(AnyKeySource)
    peer = gateway.login("alice")
    with pytest.raises(PermissionDeniedError):
        await gateway.broker.sessions.logged_in(peer, {"connection": "192.0.2.7 50000 192.0.2.8 22"})
    assert not gateway.users.had_session("alice")


_OWN = b"ssh-ed25519 AAAA gateway\n"
_BOTH = _OWN + f"ssh-ed25519 {_KEY} alice\nrestrict ssh-ed25519 {_OTHER_KEY} alice's other\n".encode()


_WRONG_KEYS = [base64.b64encode(_BLOB[:-2] + number.to_bytes(2, "big")).decode() for number in range(9_000)]
_MANY = _OWN + "".join(f"restrict ssh-ed25519 {key} another\n" for key in _WRONG_KEYS[40:]).encode()


async def _files_read(gateway: FakeGateway) -> int:
    return int((await gateway.broker.status.status(_SSHD, {}))["key_files_read"])


async def _offer_wrong_keys(gateway: FakeGateway) -> None:
    assert not any(await asyncio.gather(*(gateway.keys(key=key) for key in _WRONG_KEYS[:40])))


@pytest.mark.parametrize("content", [_OWN, _MANY], ids=["small", "large"])
async def test_a_file_is_read_once_however_many_keys_are_offered(content: bytes, gateway: FakeGateway) -> None:
    """Each offer is one look into the file's index; another fetch with the same bytes reads nothing."""
    line = f"ssh-ed25519 {_KEY}"
    keys = _remote_keys(gateway, content, content, content + line.encode())
    gateway.login("alice")
    await _offer_wrong_keys(gateway)
    await _offer_wrong_keys(gateway)
    assert (len(gateway.lines), await _files_read(gateway)) == (1, 1)
    await keys.fetch("alice")
    await _offer_wrong_keys(gateway)
    assert (len(gateway.lines), await _files_read(gateway)) == (2, 1)
    await keys.fetch("alice")
    await _offer_wrong_keys(gateway)
    assert await gateway.keys() == [line]
    assert (len(gateway.lines), await _files_read(gateway)) == (3, 2)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "no line for this key"),
        ("nonsense {}\n", "no line for this key"),
        ('expiry-time="19600101" {}\n{}\n', "a line for this key is not taken, since versions of OpenSSH differ on it"),
        ('command="a\rb" {}\n{}\n', "a line for this key is not taken"),
    ],
)
async def test_a_line_that_is_not_taken_is_named_in_the_log(lines: str, reason: str, new_gateway: NewGateway) -> None:
    """A key whose line OpenSSH may accept is not refused with the reason for a key that has none."""
    gateway = new_gateway(_content(lines.replace("{}", f"ssh-ed25519 {_KEY}")))
    gateway.login("alice")
    assert await gateway.keys() == []
    ((event, fields),) = [logged for logged in gateway.log.events if logged[0].startswith("key_")]
    assert event == "key_refused"
    assert str(fields["reason"]).startswith(reason)


async def test_a_path_is_read_into_an_index_when_its_bytes_change(tmp_path: Path, new_gateway: NewGateway) -> None:
    """A key that goes from the file is refused at once; the same bytes, written again, are not read again."""
    path = tmp_path / "authorized_keys"
    gateway = new_gateway(lambda privileged: LocalKeySource(PathKeys(path), privileged))
    line = f"ssh-ed25519 {_KEY}"
    gateway.login("alice")
    for content, permitted, read in (
        (line, [line], 1),
        (line, [line], 1),
        ("", [], 2),
        (f"pty {line}", [f"pty {line}"], 3),
    ):
        path.write_text(content, "utf-8")
        for _ in range(3):
            assert await gateway.keys() == permitted
            await _offer_wrong_keys(gateway)
        assert await _files_read(gateway) == read


async def test_sshd_knows_by_itself_what_was_permitted(gateway: FakeGateway) -> None:
    """The lines of the key that was offered, and of no other, for as long as the file is believed."""
    _remote_keys(gateway, _BOTH)
    gateway.login("alice")
    assert await gateway.keys() == [f"ssh-ed25519 {_KEY}"]
    assert await gateway.keys(key=_OTHER_KEY) == [f"restrict ssh-ed25519 {_OTHER_KEY}"]
    (_, first, _), (user, both, seconds) = gateway.remembered
    assert [re.sub(rb'"\d{14}Z"', b"?", line) for line in both] == [
        f"expiry-time=? ssh-ed25519 {_KEY}".encode(),
        f"expiry-time=?,restrict ssh-ed25519 {_OTHER_KEY}".encode(),
    ]
    assert len(first) == 1
    assert user == "alice"
    assert 0 < seconds <= 58


async def test_sshd_knows_nothing_of_who_was_refused(gateway: FakeGateway) -> None:
    """A key that is in no line, a user without keys and an invalid name have no file."""
    _remote_keys(gateway, _OWN)
    gateway.login("alice")
    for user, key in (("alice", _KEY), ("alice", _OTHER_KEY), ("bob", _KEY), ("root", _KEY)):
        assert await gateway.keys(user=user, key=key) == []
    assert gateway.remembered == []


@pytest.mark.parametrize("source", [None, AnyKeySource], ids=["keys of the settings", "any key"])
async def test_sshd_knows_nothing_that_is_not_the_remotes(
    source: Callable[[PrivilegedClient], KeySource] | None, new_gateway: NewGateway
) -> None:
    """Local keys are read at each login, and any key is any key: sshd asks."""
    gateway = new_gateway(source)
    gateway.login("alice")
    assert await gateway.keys()
    assert (len(gateway.homes), gateway.remembered) == (1, [])


async def test_a_long_ttl_is_not_sshds(gateway: FakeGateway) -> None:
    """Sshd asks again after ten minutes: the broker still has the file, and can tell whether it still holds."""
    _remote_keys(gateway, _BOTH, ttl_s=86400.0)
    gateway.login("alice")
    assert await gateway.keys()
    assert [seconds for _, _, seconds in gateway.remembered] == [598.0]


@pytest.mark.parametrize(
    ("later", "known"),
    [(_answers(authorized_keys(_BOTH, None)), True), (_answers(authorized_keys(_OWN, None)), False), (_NO_FILE, False)],
    ids=["the same", "without the key", "no file"],
)
async def test_a_file_that_is_fetched_again_is_news_to_sshd(
    later: Completed, gateway: FakeGateway, *, known: bool
) -> None:
    """The same file renews what sshd has, another one ends it, and both before anybody asks."""
    keys = _remote_keys(gateway, _BOTH)
    gateway.login("alice")
    assert await gateway.keys()
    gateway.outcomes = [later]
    await keys.fetch("alice")
    await asyncio.sleep(0)  # the request's turn
    (_, before, _), (user, after, _) = gateway.remembered
    assert user == "alice"
    assert (len(before), len(after)) == (1, int(known))


async def test_roots_keys_are_renewed_where_nothing_can_be_written(tmp_path: Path, new_gateway: NewGateway) -> None:
    """A table of users on a full disk fails no fetch, and so does not end the task that keeps keys fresh."""
    gateway = new_gateway(gateway_permit_root=True)
    gateway.users.close()
    gateway.users = UidTable(tmp_path / "users", _UIDS)
    keys = _remote_keys(gateway, _BOTH)
    assert await gateway.keys(user="root")
    with closing(sqlite3.connect(tmp_path / "users")) as table:
        table.execute("CREATE TRIGGER full BEFORE UPDATE ON users BEGIN SELECT RAISE(FAIL, 'full'); END")
    await keys.fetch("root")
    await asyncio.sleep(0)  # the request's turn
    assert [(user, len(lines)) for user, lines, _ in gateway.remembered] == [("root", 1)] * 2


async def test_a_remote_that_refuses_ends_what_sshd_knows(gateway: FakeGateway) -> None:
    """The file of a user who has shut the gateway out is removed, so that sshd asks again."""
    keys = _remote_keys(gateway, _BOTH)
    gateway.login("alice")
    assert await gateway.keys()
    gateway.connections.forget("alice")
    gateway.refuses = True
    with pytest.raises(PermissionDeniedError):
        await keys.fetch("alice")
    await asyncio.sleep(0)  # the request's turn
    assert [len(lines) for _, lines, _ in gateway.remembered] == [1, 0]


async def test_root_has_keys_where_root_is_permitted(new_gateway: NewGateway) -> None:
    """GATEWAY_PERMIT_ROOT lets root's keys in."""
    gateway = new_gateway(gateway_permit_root=True)
    assert await gateway.keys(user="root") == [f"ssh-ed25519 {_KEY}"]
    assert gateway.homes[0] in _UIDS


@pytest.mark.parametrize(("source", "made"), [(BrokenSource, True), (None, False)])
async def test_whatever_fails_lets_nobody_in(
    source: Callable[[PrivilegedClient], KeySource] | None,
    made: bool,  # noqa: FBT001 - a parameter
    new_gateway: NewGateway,
) -> None:
    """When the remote is away, or a home cannot be made, there are no lines, and the log has a reason."""
    gateway = new_gateway(source)
    gateway.home_is_made = made
    gateway.login("alice")
    assert await gateway.keys() == []
    ((event, fields),) = gateway.log.events
    assert event == "key_refused"
    assert fields["reason"]


@pytest.mark.parametrize(
    "words",
    [
        {"key": ""},
        {"key": "!"},
        {"key": _KEY[:-4]},
        {"key": _KEY, "key_type": "ssh-rsa"},
        {"key_type": "ssh-dss"},
        {"key_type": ""},
    ],
)
async def test_what_is_no_key_is_refused_and_logged(words: dict[str, Any], new_gateway: NewGateway) -> None:
    """Half a key, a wrong type and a type that is not served get nothing, and a line in the log."""
    gateway = new_gateway(AnyKeySource, gateway_accept_any_key=True)
    gateway.login("alice")
    try:
        lines = await gateway.keys(**words)
    except ProtocolError:
        lines = []
    assert lines == []
    assert [event for event, _ in gateway.log.events] == ["key_refused"]


@pytest.mark.parametrize("missing", ["user", "key_type", "key"])
async def test_a_request_for_keys_must_be_whole(missing: str, gateway: FakeGateway) -> None:
    """A request without one of its words is the client's fault."""
    request = {"user": "alice", "key_type": "ssh-ed25519", "key": _KEY}
    del request[missing]
    with pytest.raises(KeyError):
        await gateway.broker.keys.authorized_keys(_SSHD, request)


async def test_any_key_is_the_offered_key_alone(new_gateway: NewGateway) -> None:
    """Where any key will do, the line that is printed is the key's own, without an option."""
    gateway = new_gateway(AnyKeySource, gateway_accept_any_key=True)
    gateway.login("alice")
    assert await gateway.keys() == [f"ssh-ed25519 {_KEY}"]
    assert await gateway.keys(key=_OTHER_KEY) == [f"ssh-ed25519 {_OTHER_KEY}"]


# Sessions


async def test_a_terminal_gets_a_mosh_server(gateway: FakeGateway) -> None:
    """The session belongs to the uid's user; the answer has what mosh-client needs, the log all but the key."""
    peer = gateway.login("alice")
    answer = await gateway.session(peer, user="root", uid=0)
    assert answer == {
        "transport": "mosh",
        "address": "192.0.2.1",
        "port": 60001,
        "key": _MOSH_KEY,
        "predict": "adaptive",
        "patience_s": pytest.approx(1.2),
        "server": None,
        "home": f"/homes/{peer.uid}",
    }
    assert gateway.connected == ["alice"]
    (line,) = gateway.lines
    assert line.partition("' gateway ")[2] == (
        "env MOSH_SERVER_NETWORK_TMOUT=600 mosh-server new -i 0.0.0.0 -c 256 -p 60001:60999 -l LANG=de_DE.UTF-8"
    )
    ((event, fields),) = gateway.log.events
    assert (event, fields["user"], fields["key"], fields["udp_port"]) == (
        "session_started",
        "alice",
        fingerprint(_BLOB),
        60001,
    )
    assert _MOSH_KEY not in str(gateway.log.events)
    assert "secret" not in str(gateway.log.events)


@pytest.mark.parametrize("uid", [0, 1000, _BROKER_UID, _AUTH_UID, _UIDS[1], _UIDS.stop])
async def test_a_session_is_for_a_user_of_ours(uid: int, gateway: FakeGateway) -> None:
    """Root, the gateway's own uids, a free uid and strangers get none, and that costs no packet."""
    gateway.login("alice")
    with pytest.raises(PermissionDeniedError):
        await gateway.session(Peer(77, uid))
    assert (gateway.connected, gateway.lines) == ([], [])
    assert gateway.log.events == [("refused", {"op": "session", "uid": uid, "pid": 77})]


async def test_roots_session_ends_with_roots_permission(new_gateway: NewGateway) -> None:
    """A process that still has root's invented uid gets no session once root is not permitted any more."""
    gateway = new_gateway(gateway_permit_root=False)
    uid = gateway.users.uid_of_root()
    assert uid is not None
    with pytest.raises(PermissionDeniedError):
        await gateway.session(Peer(77, uid))
    assert gateway.connected == []


@pytest.mark.parametrize(
    "words",
    [
        {"terminal": {}},
        {"terminal": []},
        {"terminal": "xterm"},
        {"terminal": 1},
        {"terminal": {"colors": 256}},
        {"terminal": {"colors": 256, "locale": None, "window": True}},
        {"terminal": {"colors": 257, "locale": {}, "window": True}},
        {"terminal": {"colors": -1, "locale": {}, "window": True}},
        {"terminal": {"colors": "256", "locale": {}, "window": True}},
        {"terminal": {"colors": 8.0, "locale": {}, "window": True}},
        {"terminal": {"colors": True, "locale": {}, "window": True}},
        {"terminal": {"colors": "8 -p 1; id", "locale": {}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LANG": "x; id"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LANG": "C.UTF-8\n"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LANG": "-- sh"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LANG": ""}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LANG": 1}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LANG": "é"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LD_PRELOAD": "x"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LC_ALL\n": "C"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LC_": "C"}, "window": True}},
        {"terminal": {"colors": 8, "locale": {"LC_A -- sh": "C"}, "window": True}},
        {"original_command": 1},
        {"original_command": ["id"]},
        {"original_command": "a\0b"},
        {"original_command": "x" * 40_001},
        {"original_command": "\ud800"},
        {"command": ""},
        {"command": "!"},
        {"command": "aWQ"},
        {"command": " aWQ="},
        {"command": 1},
        {"command": encode_command(b"x" * 40_000)},
        {"command": base64.b64encode(b"a\0b").decode()},
    ],
)
async def test_a_request_that_smuggles_is_refused(words: dict[str, Any], gateway: FakeGateway) -> None:
    """For invalid colours, locales of several words and commands that are cut no packet leaves for the remote."""
    peer = gateway.login("alice")
    with pytest.raises(ProtocolError):
        await gateway.session(peer, **words)
    assert (gateway.connected, gateway.lines) == ([], [])


@pytest.mark.parametrize("terminal", [None, {"colors": 256, "locale": {}, "window": True}])
@pytest.mark.parametrize("original", ["rm -rf /", "gateway-subsystem-sftp", None])
@pytest.mark.parametrize("command", ["rrsync -ro /data", "", "echo 'a b'; $(id)", "\udcff"])
async def test_a_keys_command_is_all_that_runs(
    command: str, original: str | None, terminal: object, gateway: FakeGateway
) -> None:
    """A key's command replaces the client's, also sftp, which becomes SSH_ORIGINAL_COMMAND."""
    peer = gateway.login("alice")
    await gateway.session(peer)
    del gateway.lines[:], gateway.log.events[:]
    carried = encode_command(command.encode("utf-8", "surrogateescape"))
    answer = await gateway.session(peer, command=carried, original_command=original, terminal=terminal)
    line = answer["command"]
    words = dict(word.split("=", 1) for word in line.split() if word.startswith("GATEWAY_") and "=" in word)
    assert base64.b64decode(words["GATEWAY_COMMAND"]) == command.encode("utf-8", "surrogateescape")
    asked = {"gateway-subsystem-sftp": "internal-sftp", None: ""}.get(original, original)
    assert base64.b64decode(words["GATEWAY_ORIGINAL"]).decode() == asked
    assert " sh -c " in line
    assert "rm -rf" not in line
    assert (answer["transport"], answer["subsystem"], answer["pty"]) == ("ssh", None, terminal is not None)
    assert (gateway.lines, gateway.log.events) == ([], [])
    await gateway.broker.sessions.has_started(peer, {})
    assert [(event, fields["forced_command"]) for event, fields in gateway.log.events] == [("session_started", True)]


@pytest.mark.parametrize(("setting", "transport"), [("mosh", "mosh"), ("ssh", "ssh")])
async def test_what_carries_a_command_with_a_terminal(setting: str, transport: str, new_gateway: NewGateway) -> None:
    """GATEWAY_PTY_COMMANDS chooses for a client's own command; a shell is always mosh's."""
    gateway = new_gateway(gateway_pty_commands=setting)
    peer = gateway.login("alice")
    assert (await gateway.session(peer))["transport"] == "mosh"
    answer = await gateway.session(peer, original_command="htop")
    assert answer["transport"] == transport
    assert answer.get("command", "htop") == "htop"


@pytest.mark.parametrize("command", [None, "htop"])
async def test_mosh_carries_nothing_if_the_operator_says_ssh(command: str | None, new_gateway: NewGateway) -> None:
    """GATEWAY_TRANSPORT=ssh: no mosh-server is started, not even for a shell."""
    gateway = new_gateway(gateway_transport="ssh", remote_host="192.0.2.9")
    answer = await gateway.session(gateway.login("alice"), original_command=command)
    assert (answer["transport"], answer["pty"], answer["command"]) == ("ssh", True, command)
    assert "notice" not in answer
    assert gateway.lines == []


@pytest.mark.parametrize(
    ("outcome", "lacks"),
    [(_NO_LOCALE, "has no UTF-8 locale"), (_answers(b"\n%s \n" % MARKER, b"not found", 127), "has no mosh-server")],
)
@pytest.mark.parametrize("command", [None, "htop"])
async def test_ssh_carries_what_a_remote_without_mosh_cannot(
    outcome: Completed, lacks: str, command: str | None, new_gateway: NewGateway
) -> None:
    """GATEWAY_TRANSPORT=auto: the session goes over ssh, and the user reads what the remote lacks; mosh refuses it."""
    gateway = new_gateway(remote_host="192.0.2.9")
    gateway.outcomes = [outcome]
    answer = await gateway.session(gateway.login("alice"), original_command=command)
    assert (answer["transport"], answer["pty"], answer["command"]) == ("ssh", True, command)
    assert lacks in answer["notice"]
    assert answer["notice"].endswith("; this session goes over ssh")

    gateway = new_gateway(gateway_transport="mosh")
    gateway.outcomes = [outcome]
    with pytest.raises((NoLocaleError, NoMoshServerError), match=lacks):
        await gateway.session(gateway.login("alice"), original_command=command)


async def test_a_session_that_its_remote_has_no_mosh_for_is_listed_as_ssh(new_gateway: NewGateway) -> None:
    """With the user's own agent the session finds that out itself; no other user can change it."""
    gateway = new_gateway(ssh_key=None, remote_host="192.0.2.9")
    peer, other = gateway.login("alice"), gateway.login("bob")
    await gateway.session(peer)
    await gateway.broker.sessions.goes_over_ssh(replace(other, pid=peer.pid), {})
    assert [session.transport for session in gateway.open_sessions.all()] == ["mosh"]
    await gateway.broker.sessions.goes_over_ssh(peer, {})
    assert [session.transport for session in gateway.open_sessions.all()] == ["ssh"]


async def test_without_a_window_mosh_carries_shells_alone(gateway: FakeGateway) -> None:
    """A program's command goes over ssh, with the terminal that it asked for."""
    peer, terminal = gateway.login("alice"), {"colors": 256, "locale": {}, "window": False}
    assert (await gateway.session(peer, terminal=terminal))["transport"] == "mosh"
    answer = await gateway.session(peer, terminal=terminal, original_command="id")
    assert (answer["transport"], answer["command"], answer["pty"]) == ("ssh", "id", True)


async def test_sftp_is_a_subsystem(gateway: FakeGateway) -> None:
    """A request for the subsystem sftp goes to the remote as such; its name is not run as a command."""
    peer = gateway.login("alice")
    await gateway.session(peer)
    answer = await gateway.session(peer, terminal=None, original_command="gateway-subsystem-sftp")
    assert (answer["subsystem"], answer["command"], answer["pty"]) == ("sftp", None, False)


async def test_without_a_key_of_the_gateways_the_users_agent_opens_the_way(new_gateway: NewGateway) -> None:
    """The session's own ssh is told to start mosh-server, with the locales to try; the gateway logs in nowhere."""
    gateway = new_gateway(AnyKeySource, ssh_key=None, remote_host="192.0.2.1")
    answer = await gateway.session(gateway.login("alice"))
    assert (answer["transport"], answer["agent"], answer["pty"]) == ("ssh", None, False)
    assert [command.partition(" -l ")[2] for command in answer["mosh"]["commands"]] == [
        "LANG=de_DE.UTF-8",
        "LANG=C.UTF-8",
        "LANG=en_US.UTF-8",
    ]
    assert (gateway.connected, gateway.lines) == ([], [])


async def test_a_clients_command_is_the_clients(gateway: FakeGateway) -> None:
    """Without a key's command the client's runs, and the log does not call it forced."""
    await gateway.session(gateway.login("alice"), original_command="htop")
    (line,) = gateway.lines
    assert f"GATEWAY_COMMAND={base64.b64encode(b'htop').decode()} GATEWAY_ORIGINAL= " in line
    assert gateway.log.events[0][1]["forced_command"] is False


async def test_locales_are_tried_in_turn(new_gateway: NewGateway) -> None:
    """The client's, then the common ones; a remote without any of them is reported to have none."""
    gateway = new_gateway(gateway_transport="mosh")
    peer = gateway.login("alice")
    gateway.outcomes = [_NO_LOCALE, _NO_LOCALE, _STARTED]
    await gateway.session(peer)
    assert [line.partition(" -l ")[2] for line in gateway.lines] == [
        "LANG=de_DE.UTF-8",
        "LANG=C.UTF-8",
        "LANG=en_US.UTF-8",
    ]
    gateway.outcomes = [_NO_LOCALE]
    with pytest.raises(NoLocaleError):
        await gateway.session(peer)


@pytest.mark.parametrize(
    "outcome",
    [
        _answers(b"\n%s MOSH CONNECT \n" % MARKER, b"\x1b[2Jbind failed\n", 1),
        _answers(b"\n%s MOSH CONNECT 0 x\n" % MARKER),
        _answers(b"\n%s \n%s MOSH CONNECT 60001" % (MARKER, MARKER), status=None),
        _answers(b"\n%s \nMOSH CONNECT 60001 %s\n" % (MARKER, _MOSH_KEY.encode())),
    ],
)
async def test_a_mosh_server_that_fails(outcome: Completed, gateway: FakeGateway) -> None:
    """No whole MOSH CONNECT line, no session: one try, one sentence that is safe to show, one line in the log."""
    peer = gateway.login("alice")
    gateway.outcomes = [outcome]
    with pytest.raises(MoshServerError) as caught:
        await gateway.session(peer)
    assert re.fullmatch(r"[\x20-\x7e]+", caught.value.message)
    assert len(gateway.lines) == 1
    ((event, fields),) = gateway.log.events
    assert (event, fields["outcome"]) == ("session_failed", "mosh_server")
    assert gateway.broker.sessions.failed == 1


async def test_a_remote_that_takes_too_long_is_logged(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway) -> None:
    """However long each step may take, a refusal and a failure are in the log, once each."""
    monkeypatch.setattr(remote_deadline, "REMOTE_TIMEOUT_S", 0.05)

    async def never(*_: object, **__: object) -> Any:
        await asyncio.Event().wait()

    peer = gateway.login("alice")
    monkeypatch.setattr(gateway.broker.keys._source, "judge", never)
    monkeypatch.setattr(gateway.connections, "run", never)
    assert await gateway.keys() == []
    with pytest.raises(RemoteTimeoutError, match="did not answer in time"):
        await gateway.session(peer)
    (refused, why), (failed, how) = gateway.log.events
    assert (refused, failed, how["outcome"]) == ("key_refused", "session_failed", "remote_timeout")
    assert str(why["reason"]).startswith("remote_timeout: ")


async def test_keys_are_kept_fresh_whatever_happens(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway) -> None:
    """A fault, such as no thread for a moment, is in the log, and the keys are fetched again."""
    keys = _remote_keys(gateway)
    rounds = 0

    async def keep_fresh() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 3:
            msg = "can't start new thread"
            raise RuntimeError(msg)

    monkeypatch.setattr(keys, "keep_fresh", keep_fresh)
    await gateway.broker.keys.run()
    assert [(event, fields["op"]) for event, fields in gateway.log.events] == [("fault", "keep_fresh")] * 2


async def test_what_the_login_shell_says_first_is_passed_over(gateway: FakeGateway) -> None:
    """A message of the day, also one that looks like mosh-server's line, does not count."""
    fake = b"MOSH CONNECT 1 short\nhint: MOSH CONNECT 2 %s\nMOSH CONNECT 3 %s\n" % ((_MOSH_KEY.encode(),) * 2)
    gateway.outcomes = [_answers(fake + _STARTED.stdout)]
    assert (await gateway.session(gateway.login("alice")))["port"] == 60001


async def test_without_a_terminal_the_way_for_ssh_is_told(gateway: FakeGateway) -> None:
    """Commands that mosh cannot carry go by ssh, to the same address and under the user's own name."""
    peer = gateway.login("alice")
    await gateway.session(peer)
    answer = await gateway.session(peer, terminal=None, original_command="cat x", user="root")
    assert answer["transport"] == "ssh"
    assert (answer["address"], answer["port"], answer["user"]) == ("192.0.2.1", 22, "alice")
    assert (answer["command"], answer["subsystem"]) == ("cat x", None)
    assert "secret" not in str(answer)


# Root, status, signatures


@pytest.mark.parametrize(
    ("uid", "permitted"), [(0, False), (1000, True), (_AUTH_UID, True), (_UIDS[0], True), (_BROKER_UID, True)]
)
async def test_who_may_not_become_roots_session(uid: int, permitted: bool, new_gateway: NewGateway) -> None:  # noqa: FBT001 - a parameter
    """Only root itself gets root's invented uid, and only where root is permitted."""
    gateway = new_gateway(gateway_permit_root=permitted)
    with pytest.raises(PermissionDeniedError):
        await gateway.broker.accounts.root(Peer(1, uid), {})


async def test_the_status_is_roots_to_ask_for(gateway: FakeGateway) -> None:
    """Root sees the counters; a user of the gateway does not."""
    peer = gateway.login("alice")
    await gateway.session(peer)
    status = await gateway.broker.status.status(_SSHD, {})
    assert (status["lookups"], status["sessions"], status["failures"], status["connections"]) == (1, 1, 0, 1)
    for uid in (peer.uid, _AUTH_UID, 1000):
        with pytest.raises(PermissionDeniedError):
            await gateway.broker.status.status(Peer(1, uid), {})


@pytest.mark.parametrize("uid", [0, 1000, _AUTH_UID, _UIDS[0]])
def test_signatures_for_nobody(uid: int, gateway: FakeGateway) -> None:
    """Without a user behind the uid, or without a key of the gateway's, the agent fails."""
    if uid == _UIDS[0]:
        gateway.login("alice")
    assert gateway.broker.signing.answer(Peer(1, uid), b"\x0b") == agent.FAILURE
    assert "agent_refused" in [event for event, _ in gateway.log.events]


# Words for the log


@pytest.mark.parametrize(
    ("connection", "client"),
    [
        ("192.0.2.7 50000 192.0.2.8 22", "192.0.2.7:50000"),
        ("2001:db8::1 50000 2001:db8::2 22", "[2001:db8::1]:50000"),
        ("fe80::1%eth0 50000 x 22", "[fe80::1%eth0]:50000"),
        ("192.0.2.7 50000", "192.0.2.7:50000"),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("", None),
        ("None", None),
        ("a\nb 1", None),
        ("192.0.2.7 500000", None),
        ("x" * 100 + " 1", None),
    ],
)
def test_where_a_client_is(connection: str, client: str | None) -> None:
    """The client's address and port are taken from sshd's words; anything else gives none."""
    assert _endpoint(connection) == client


@pytest.mark.parametrize(
    "text", ["", "password", "publickey", "publickey ssh-ed25519", "publickey ssh-ed25519 !", "publickey x \ufffd"]
)
def test_a_login_without_a_key(text: str) -> None:
    """A password login, and an incomplete line, have no fingerprint, and that stops no session."""
    assert _key_fingerprint(text) is None


def test_an_accepted_key_has_a_fingerprint() -> None:
    """The key that sshd accepted is named as sshd names it."""
    assert _key_fingerprint(f"publickey ssh-ed25519 {_KEY}") == fingerprint(_BLOB)


def test_the_settings_keep_their_secrets(gateway: FakeGateway) -> None:
    """The representation of the broker's settings has neither the key nor a password; the JSON form has all of them."""
    config = gateway.config
    assert "secret" not in repr(config)
    assert "$6$" not in repr(config)
    assert BrokerConfig.from_json(config.to_json()) == config
