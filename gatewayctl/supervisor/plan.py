"""The plan: the configuration of both processes, derived from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from gatewayctl.sshd import config
from helpers.protocol.broker_config import BrokerConfig


@dataclass(frozen=True)
class Plan:
    """The configuration of the broker and sshd, derived from the settings.

    Attributes:
        broker: The broker's settings.
        sshd: The context of sshd's templates.
        broker_uid: The uid that the broker runs as.
        fixed: Settings that change only by a restart.
        stop_timeout_s: For how many seconds sessions may go on after SIGTERM.
    """

    broker: BrokerConfig
    sshd: config.SshdContext
    broker_uid: int
    fixed: list[str]
    stop_timeout_s: int
