"""``gatewayctl status``: the broker's counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from helpers.broker.peer_credentials import Peer
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import PermissionDeniedError
from helpers.protocol.version import installed_version


class StatusService:
    """Answers ``gatewayctl status``.

    Args:
        config: The broker's settings.
        counters: Functions that return the counters, by name.
        drained: Returns the message with which new sessions are barred; None if they are not.
        udp: Describes where UDP passes.
    """

    def __init__(
        self,
        config: BrokerConfig,
        counters: Mapping[str, Callable[[], int]],
        drained: Callable[[], str | None],
        udp: Callable[[], list[dict[str, object]]],
    ) -> None:
        self._udp = udp
        self._config, self._counters, self._drained = config, counters, drained
        self._started, self._version = time.monotonic(), installed_version()

    async def status(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Return the counters, and the settings that `gatewayctl` needs.

        Raises:
            PermissionDeniedError: The peer is not root.
        """
        del request
        if peer.uid != 0:
            msg = "only root may ask for the gateway's status"
            raise PermissionDeniedError(msg)
        return {
            "version": self._version,
            "uptime_s": round(time.monotonic() - self._started, 1),
            **{name: count() for name, count in self._counters.items()},
            "remote_host": self._config.remote_host,
            "remote_port": self._config.remote_port,
            "listen_address": self._config.gateway_host,
            "listen_port": self._config.gateway_port,
            "access": [self._config.access_mode.value, *(["passwords"] if self._config.passwords else [])],
            "draining": self._drained(),
            "transport": self._config.gateway_transport,
            "udp": self._udp(),
            "accept_any_key": self._config.gateway_accept_any_key,
            "auth_uid": self._config.auth_uid,
        }
