"""Keeps connections open if the remote's logind would end mosh-server with the connection that started it.

mosh-server normally outlives the SSH session that starts it. With ``KillUserProcesses=yes`` (logind.conf(5)),
systemd-logind ends it with that session. The gateway starts a user's mosh-servers over one connection, which it closes
after ten minutes without use. On such a remote it keeps the connection open for as long as a mosh-client lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from helpers.broker.peer_credentials import end_of
from helpers.broker.remote.pool import Connections
from helpers.protocol.event_log import EventLog, fault_of
from helpers.remote_command import marked, marked_lines

ASK_AFTER_S = 5.0
"""Seconds after a session's start at which the remote is asked: the prompt is there by then and is not delayed."""

MAX_ANSWER_BYTES = 64 * 1024
"""Most output, in bytes, with that of start-up files on the remote."""

ASK_COMMAND = marked(
    'echo; echo "$gw_mark" $(busctl --timeout=5 get-property org.freedesktop.login1 /org/freedesktop/login1'
    " org.freedesktop.login1.Manager KillUserProcesses 2>/dev/null)"
)
"""Reads logind's property (org.freedesktop.login1(5)); without systemd there is no output."""

_YES = b"b true"  # busctl(1)


class Logind:
    """Keeps connections open for mosh sessions if the remote's logind ends processes with their session.

    Args:
        connections: The connections to the remote.
        log: Receives one line about it.
    """

    def __init__(self, connections: Connections, log: EventLog) -> None:
        self._connections, self._log = connections, log
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_told = False

    def session_started(self, user: str, pid: int) -> None:
        """Keep the user's connection open until a process ends, if the remote needs it.

        Args:
            user: A user with a new mosh session.
            pid: The process that becomes its mosh-client.
        """
        self._later(self._hold(user, pid))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hold(self, user: str, pid: int) -> None:
        try:
            async with end_of(pid) as ended:
                with self._connections.held(user) as connection:
                    if connection is None or await _is_set(ended, ASK_AFTER_S):
                        return
                    if connection.kills_processes is None:
                        connection.kills_processes = await self._ask(user)
                    if connection.kills_processes:
                        self._tell()
                        await ended.wait()
        except OSError as error:
            if not isinstance(error, ProcessLookupError):  # it has ended already
                self._log.error("fault", op="hold", error=repr(error), where=fault_of(error))

    async def _ask(self, user: str) -> bool:
        completed = await self._connections.run_in_background(user, ASK_COMMAND, max_bytes=MAX_ANSWER_BYTES)
        return completed is not None and _YES in marked_lines(completed.stdout, completed.marker)

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._log.warning(
                "remote_kills_processes",
                text="logind on the remote host has KillUserProcesses=yes: mosh sessions there end with the gateway's"
                " connection, which is kept for as long as they live, and not beyond a reload of the gateway",
            )


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event for so many seconds at most, and return whether it came."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
