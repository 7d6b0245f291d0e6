"""AuthorizedKeysCommand: the lines that permit one offered key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from helpers.broker.accounts.service import NO_ROOM, AccountService
from helpers.broker.clients import Client, Clients
from helpers.broker.keys.sources import KeySource, Verdict
from helpers.broker.peer_credentials import Peer
from helpers.broker.remote_deadline import within_deadline
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import GatewayError, PermissionDeniedError, UserNameError
from helpers.protocol.event_log import EventLog, fault_of
from helpers.protocol.messages import is_user_name
from helpers.ssh.authorized_keys import OfferedKey, parse_offered_key
from helpers.ssh.known_hosts import fingerprint


class KeyService:
    """Answers AuthorizedKeysCommand.

    Args:
        config: The broker's settings.
        accounts: The users.
        source: The source of keys.
        clients: The clients.
        log: Receives each verdict.
        warm_up: Called with the name of a user whose key was permitted: a session follows.

    Attributes:
        offered: How many keys sshd asked about.
        permitted: How many of these were permitted.
    """

    def __init__(  # noqa: PLR0917 - four collaborators, the settings and the log
        self,
        config: BrokerConfig,
        accounts: AccountService,
        source: KeySource,
        clients: Clients,
        log: EventLog,
        warm_up: Callable[[str], None],
    ) -> None:
        self._config, self._accounts, self._source, self._clients = config, accounts, source, clients
        self._log, self._warm_up = log, warm_up
        self.offered = self.permitted = 0

    async def authorized_keys(self, peer: Peer, request: dict[str, Any]) -> bytes:
        """Find the lines that permit one offered key.

        Args:
            peer: AuthorizedKeysCommand, as the account made for it or as root.
            request: ``user``, ``key_type`` and ``key`` (base64) as sshd passed them; ``connection`` or "".

        Returns:
            The lines, each with its newline; none if the key is refused, for any reason.

        Raises:
            PermissionDeniedError: The peer's uid is neither.
        """
        if peer.uid not in (0, self._config.auth_uid):
            self._log.warning("refused", op="authorized_keys", uid=peer.uid, pid=peer.pid)
            msg = "only sshd may ask for keys"
            raise PermissionDeniedError(msg)
        began = time.monotonic()
        user, key_type = str(request["user"]), str(request["key_type"])
        client = await self._clients.offering(peer, str(request.get("connection", "")))
        self.offered += 1
        verdict, reason = None, None
        try:
            offered = parse_offered_key(key_type, str(request["key"]))
            client = replace(client, key=fingerprint(offered.blob))
            verdict = await within_deadline(self._judge(user, offered))
            reason = None if verdict.lines else verdict.file.why_no_line
        except GatewayError as error:
            reason = f"{error.code}: {error.message}"
        if verdict is not None and verdict.lines:
            self.permitted += 1
            self._warm_up(user)
            reason = await self._admit(user, offered, verdict, client)
        lines = [] if verdict is None or reason is not None else verdict.lines
        if lines and self._config.gateway_accept_any_key:
            self._log.warning("accept_any_key", user=user, text="let in by GATEWAY_ACCEPT_ANY_KEY, as any key would be")
        if not lines and not self._clients.knows_address(user, client):
            await asyncio.sleep(self._source.refusal_delay_s(user))
        self._log.info(
            "key_permitted" if lines else "key_refused",
            sid=client.sid,
            user=user,
            client=client.endpoint,
            key=client.key,
            type=key_type,
            source="-" if verdict is None else verdict.file.source,
            fetch_ms=0.0 if verdict is None else verdict.file.fetch_ms,
            ms=(time.monotonic() - began) * 1000,
            **({} if reason is None else {"reason": reason}),
        )
        return b"".join(line + b"\n" for line in lines)

    async def _judge(self, user: str, offered: OfferedKey) -> Verdict:
        if (why_not := self._accounts.may_log_in(user)) is not None:
            raise UserNameError(why_not)
        return await self._source.judge(user, offered)

    async def _admit(self, user: str, offered: OfferedKey, verdict: Verdict, client: Client) -> str | None:
        uid = self._accounts.uid_for_login(user)
        if uid is None:
            return "the name has no uid"
        if not self._accounts.has_room_for(user):
            return NO_ROOM
        stranger = None if self._clients.knows_key(user, client) else client
        return await self._source.admit(user, uid, offered, verdict, stranger)

    async def lock(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Lock a name for the operator: meanwhile no key or password of the user is accepted.

        Args:
            peer: ``gatewayctl kick``.
            request: ``user``; ``seconds``, 0 to lift the lock.

        Raises:
            PermissionDeniedError: The peer is not root.
            UserNameError: The name is not valid.
        """
        if peer.uid != 0:
            msg = "only root may lock a name"
            raise PermissionDeniedError(msg)
        user, seconds = str(request["user"]), float(request["seconds"])
        if not is_user_name(user):
            msg = "it is not a user name"
            raise UserNameError(msg)
        self._accounts.lock(user, seconds)
        await self._source.forget(user)
        self._log.warning("user_locked" if seconds > 0 else "user_unlocked", user=user, seconds=seconds)
        return {}

    async def run(self) -> None:
        """Run the source's background work, until cancelled."""
        while True:
            try:
                await self._source.run()
            except Exception as error:  # noqa: BLE001 - for example no free thread; the loop must go on
                self._log.error("fault", op="keep_fresh", error=repr(error), where=fault_of(error))
            else:
                return
