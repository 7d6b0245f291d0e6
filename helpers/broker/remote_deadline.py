"""The deadline of requests that wait for the remote."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from helpers.protocol.deadlines import REMOTE_TIMEOUT_S
from helpers.protocol.errors import RemoteTimeoutError

_T = TypeVar("_T")


async def within_deadline(work: Awaitable[_T]) -> _T:
    """Wait for work that depends on the remote.

    Raises:
        RemoteTimeoutError: It takes longer than `REMOTE_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(REMOTE_TIMEOUT_S):
            return await work
    except TimeoutError:
        raise RemoteTimeoutError("the remote host did not answer in time") from None
