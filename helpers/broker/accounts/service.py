"""The gateway's accounts: answers nss-systemd, and finds the user that owns a process."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from helpers.broker.accounts import userdb
from helpers.broker.accounts.locks import Locks
from helpers.broker.accounts.uid_table import RESERVED_NAMES, UidTable
from helpers.broker.peer_credentials import Peer
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import PermissionDeniedError
from helpers.protocol.event_log import EventLog
from helpers.protocol.free_space import is_full, is_short
from helpers.protocol.messages import is_user_name

NO_ROOM = "the runtime directory is full"


class AccountService:
    """The accounts. Every user name gets one as soon as sshd looks it up.

    Args:
        config: The broker's settings.
        uids: Names and uids.
        locks: Names that the operator has locked.
        log: Receives refusals.
        on_lookup: Called with a name and its uid when sshd looks a user up, at the beginning of a login.

    Attributes:
        lookups: How many logins began.
    """

    def __init__(
        self,
        config: BrokerConfig,
        uids: UidTable,
        locks: Locks,
        log: EventLog,
        on_lookup: Callable[[str, int], None],
    ) -> None:
        self._config, self._uids, self._locks, self._log, self._on_lookup = config, uids, locks, log, on_lookup
        self.lookups = 0

    # For nss-systemd

    def account(self, peer: Peer, key: str | int) -> userdb.Account | None:
        """Find an account by name or uid. A new name gets an account when sshd, which is root, looks it up."""
        if key in (userdb.AUTH_USER, self._config.auth_uid):
            return userdb.Account(userdb.AUTH_USER, self._config.auth_uid, "/", "/usr/sbin/nologin")
        if isinstance(key, int):
            name = self._uids.name_of(key)
            if name == "root":
                name = userdb.ROOT_USER
            return None if name is None else self._record(name, key, secrets=peer.uid == 0)
        if key == "root":
            return None
        uid = self._uids.uid_of(key, allocate=peer.uid == 0)
        if uid is None:
            if peer.uid == 0 and is_user_name(key) and key not in RESERVED_NAMES:
                reason = NO_ROOM if is_short(self._config.state_dir) else "every uid of GATEWAY_UID_RANGE is in use"
                self._log.warning("refused", op="lookup", user=key, reason=reason)
            return None
        if peer.uid == 0:
            self.lookups += 1
            self._on_lookup(key, uid)
        return self._record(key, uid, secrets=peer.uid == 0)

    def _record(self, name: str, uid: int, *, secrets: bool) -> userdb.Account:
        password = (self._config.passwords.get(name) or self._no_password(name)) if secrets else None
        return userdb.Account(name, uid, self.home(uid), password=password)

    def _no_password(self, name: str) -> str:
        """Choose the placeholder hash of a name without a password. A secret makes it the same each time."""
        number = hmac.digest(self._config.placeholder_key.encode(), name.encode(), "sha256")
        return self._config.placeholder_hashes[int.from_bytes(number) % len(self._config.placeholder_hashes)]

    # For the helpers

    async def root(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Return the uid that root's session must change to.

        Raises:
            PermissionDeniedError: The peer is not root, or root may not log in.
        """
        del request
        uid = self._uids.uid_of_root() if peer.uid == 0 and self._config.gateway_permit_root else None
        if uid is None:
            msg = "root is not permitted on this gateway"
            raise PermissionDeniedError(msg)
        return {"uid": uid}

    def owner(self, peer: Peer, op: str) -> str:
        """Find the user whose uid a peer has.

        Args:
            peer: The process that sent the request.
            op: The requested operation, for the log.

        Raises:
            PermissionDeniedError: No user owns the uid.
        """
        user = self._uids.name_of(peer.uid)
        if user is None or (user == "root" and not self._config.gateway_permit_root):
            self._log.warning("refused", op=op, uid=peer.uid, pid=peer.pid)
            msg = "this process belongs to no user of the gateway"
            raise PermissionDeniedError(msg)
        return user

    # For the other services

    def home(self, uid: int) -> str:
        """Return the path of a user's home on the gateway."""
        return f"{self._config.homes_dir}/{uid}"

    def may_log_in(self, user: str) -> str | None:
        """Return why a name may not log in with any key; None if it may."""
        if (locked := self.why_locked(user)) is not None:
            return locked
        if user == "root":
            return None if self._config.gateway_permit_root else "root is not permitted; see GATEWAY_PERMIT_ROOT"
        if is_user_name(user) and self._uids.uid_of(user, allocate=False):
            return None
        return "no such user name"

    def lock(self, user: str, seconds: float) -> None:
        """Lock a name for some seconds, or with 0 lift its lock."""
        self._locks.lock(user, seconds)

    async def drain(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Bar new sessions for the operator, or permit them again.

        Keys are still accepted, so that the session helper can show the message.

        Args:
            peer: ``gatewayctl drain``.
            request: ``message``; None to permit sessions again.

        Raises:
            PermissionDeniedError: The peer is not root.
        """
        if peer.uid != 0:
            msg = "only root may drain the gateway"
            raise PermissionDeniedError(msg)
        message = request["message"]
        text = None if message is None else "".join(letter if letter.isprintable() else "?" for letter in str(message))
        self._locks.drain(text)
        self._log.warning("draining" if text is not None else "drain_ended", text=text)
        return {}

    def drained(self) -> str | None:
        """Return the message with which new sessions are barred; None if they are not."""
        return self._locks.drained()

    def why_locked(self, user: str) -> str | None:
        """Return a sentence if the operator has locked a name; None if not."""
        until = self._locks.until(user)
        if until is None:
            return None
        return f"{user} is locked on the gateway until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC"

    def uid_for_login(self, user: str) -> int | None:
        """Return the uid of a user whose key was permitted; None if it has been reused."""
        return self._uids.uid_of_root() if user == "root" else self._uids.uid_of(user, allocate=False)

    def has_room_for(self, user: str) -> bool:
        """Whether the runtime directory has room for a user's login; the reserve is for users who have had sessions."""
        return not is_full(self._config.state_dir) or self._uids.had_session(user)

    def note_session(self, uid: int) -> None:
        """Record that the remote has accepted the owner of a uid."""
        self._uids.note_session(uid)
