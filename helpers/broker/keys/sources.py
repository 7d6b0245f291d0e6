"""The sources of keys: each finds the lines that permit a key, and decides whether sshd may cache them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from helpers.broker.clients import Client
from helpers.broker.keys.cached_remote_keys import RemoteKeys
from helpers.broker.keys.key_file import KeyFile
from helpers.broker.keys.key_index import KeyIndexes
from helpers.broker.keys.local_keys import ContentKeys, PathKeys
from helpers.broker.keys.sshd_key_cache import SshdKeyCache
from helpers.broker.privileged_client import PrivilegedClient
from helpers.ssh.authorized_keys import OfferedKey

_ENDS_EARLY = (
    "a line for this key is not taken, since versions of OpenSSH differ on it or its options are too long or odd"
)


@dataclass(frozen=True)
class Verdict:
    """A source's verdict on one offered key.

    Attributes:
        lines: The lines of authorized_keys that permit the key; none if it is not permitted.
        file: The file that contains them.
    """

    lines: Sequence[bytes]
    file: KeyFile


class KeySource(Protocol):
    """A source of authorized keys."""

    @property
    def files_read(self) -> int:
        """How many files of keys were read into an index."""
        ...

    def prepare(self, user: str) -> None:
        """Prepare for a login as this user: sshd will soon ask for keys."""

    async def judge(self, user: str, offered: OfferedKey) -> Verdict:
        """Find the lines that permit a key; raises `GatewayError` if no key can be permitted now."""
        ...

    async def admit(
        self, user: str, uid: int, offered: OfferedKey, verdict: Verdict, client: Client | None
    ) -> str | None:
        """Have the user's home made, and sshd's file of keys written if the source caches lines there.

        Args:
            user: The user's name.
            uid: The user's uid.
            offered: The key.
            verdict: The result of `judge`.
            client: The client, if the remote has not accepted it yet.

        Returns:
            Why the login must not go on; None if it may.
        """
        ...

    async def forget(self, user: str) -> None:
        """Have sshd accept no key of a user's without asking the broker."""

    def refusal_delay_s(self, user: str) -> float:
        """Return the delay of a refusal, in seconds, which hides whether the name exists."""
        ...

    async def run(self) -> None:
        """Run the source's background work, until cancelled."""


class _Indexed:
    """Looks keys up in indexed files.

    Args:
        privileged: The client of the supervisor's privileged server.
    """

    def __init__(self, privileged: PrivilegedClient) -> None:
        self._privileged, self._indexes = privileged, KeyIndexes()

    @property
    def files_read(self) -> int:
        """How many files of keys were read into an index."""
        return self._indexes.read

    async def _look_up(self, file: KeyFile, offered: OfferedKey) -> Verdict:
        index = await self._indexes.of(file.content)
        lines = index.permitted_lines(offered)
        if not lines and index.ends_early(offered):
            file = replace(file, problems=(*file.problems, _ENDS_EARLY))
        return Verdict(lines, file)


class LocalKeySource(_Indexed):
    """GATEWAY_AUTHORIZED_KEYS_PATH or _CONTENT: the same keys for every user.

    Args:
        keys: The file.
        privileged: The client of the supervisor's privileged server.
    """

    def __init__(self, keys: ContentKeys | PathKeys, privileged: PrivilegedClient) -> None:
        super().__init__(privileged)
        self._keys = keys

    def prepare(self, user: str) -> None:
        """Nothing takes time."""

    async def judge(self, user: str, offered: OfferedKey) -> Verdict:
        """Look the key up in the current file."""
        return await self._look_up(await self._keys.read(user), offered)

    async def admit(
        self, user: str, uid: int, offered: OfferedKey, verdict: Verdict, client: Client | None
    ) -> str | None:
        """Have the user's home made."""
        del offered, verdict, client
        return await self._privileged.make_home(user, uid)

    async def forget(self, user: str) -> None:
        """Do nothing: sshd asks about each key."""

    def refusal_delay_s(self, user: str) -> float:
        """Return 0: all names have the same keys, so the time reveals nothing."""
        del user
        return 0.0

    async def run(self) -> None:
        """Do nothing."""


class AnyKeySource:
    """Permits any key: the remote authenticates the user's forwarded agent, or GATEWAY_ACCEPT_ANY_KEY is on.

    Args:
        privileged: The client of the supervisor's privileged server.
    """

    files_read = 0

    def __init__(self, privileged: PrivilegedClient) -> None:
        self._privileged = privileged

    def prepare(self, user: str) -> None:
        """Nothing takes time."""

    async def judge(self, user: str, offered: OfferedKey) -> Verdict:
        """Permit the key itself, without options; for a certificate its plain key, which the client offers next."""
        del user
        line = f"{offered.key_type} {base64.b64encode(offered.blob).decode('ascii')}".encode("ascii")
        return Verdict([] if offered.certificate else [line], KeyFile(b"", "any"))

    async def admit(
        self, user: str, uid: int, offered: OfferedKey, verdict: Verdict, client: Client | None
    ) -> str | None:
        """Have the user's home made, unless too many unproved clients are connected."""
        del offered, verdict
        where = None if client is None or client.process is None else (client.process, client.address)
        return await self._privileged.make_home(user, uid, where)

    async def forget(self, user: str) -> None:
        """Do nothing: sshd asks about each key."""

    def refusal_delay_s(self, user: str) -> float:
        """Return 0: all names get the same answer."""
        del user
        return 0.0

    async def run(self) -> None:
        """Do nothing."""


class RemoteKeySource(_Indexed):
    """The user's own authorized_keys on the remote.

    Args:
        keys: The cache of the users' files.
        sshd_keys: The lines that sshd may cache.
        privileged: The client of the supervisor's privileged server.
    """

    def __init__(self, keys: RemoteKeys, sshd_keys: SshdKeyCache, privileged: PrivilegedClient) -> None:
        super().__init__(privileged)
        self._keys, self._sshd_keys = keys, sshd_keys

    def prepare(self, user: str) -> None:
        """Start to fetch the user's file during the SSH handshake with the client."""
        self._keys.prefetch(user)

    async def judge(self, user: str, offered: OfferedKey) -> Verdict:
        """Look the key up in the user's file."""
        return await self._look_up(await self._keys.read(user), offered)

    async def admit(
        self, user: str, uid: int, offered: OfferedKey, verdict: Verdict, client: Client | None
    ) -> str | None:
        """Have the user's home made, and let sshd cache the lines for as long as the file is valid."""
        del client
        return await self._sshd_keys.add(user, uid, verdict.file, offered, verdict.lines)

    async def forget(self, user: str) -> None:
        """Remove the file of keys that sshd accepts without asking."""
        await self._sshd_keys.forget(user)

    def refusal_delay_s(self, user: str) -> float:
        """Return the rest of the time that a fetch over a new connection would take."""
        return self._keys.refusal_timing.left_s(user)

    async def run(self) -> None:
        """Refresh the keys of users who will probably log in again."""
        await self._keys.keep_fresh()
