"""How long a request may wait for the remote."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from helpers.protocol.errors import RemoteTimeoutError

REMOTE_TIMEOUT_S = 20.0
"""Longest wait for the remote, in seconds: below the server's WORK_TIMEOUT_S, so that the log hears how it ended."""

_T = TypeVar("_T")


async def in_time(work: Awaitable[_T]) -> _T:
    """Wait for what the remote has a part in.

    Raises:
        RemoteTimeoutError: It takes longer than `REMOTE_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(REMOTE_TIMEOUT_S):
            return await work
    except TimeoutError:
        raise RemoteTimeoutError("the remote host did not answer in time") from None
