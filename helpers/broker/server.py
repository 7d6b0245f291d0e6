"""The broker's three sockets: the helpers' requests, nss-systemd's, and the agent's."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from helpers.broker.accounts import userdb
from helpers.broker.peer_credentials import Peer, peer_of
from helpers.protocol.deadlines import WORK_TIMEOUT_S
from helpers.protocol.errors import GatewayError, ProtocolError, RemoteTimeoutError, local_error
from helpers.protocol.event_log import EventLog, fault_of
from helpers.protocol.messages import BACKLOG, MAX_REQUEST_BYTES, decode, encode, error_answer
from helpers.ssh.agent import MAX_MESSAGE_BYTES

REQUEST_TIMEOUT_S = 5.0
"""Longest time, in seconds, that a peer may take to send its request: the helpers send it at once."""

USERDB_IDLE_S = 30.0
"""Seconds after which a silent connection of nss-systemd's is closed; it makes one for each lookup."""

AGENT_IDLE_S = 60.0
"""Seconds after which a silent connection to the agent is closed; ssh closes its own once it is logged in."""

AGENT_MAX_CONNECTIONS = 32
"""Connections to the agent that one uid may have at once; ssh has one while it logs in, and a user's first sessions may
begin together (of twelve at once, a limit of 8 lost two)."""

TURNS_TO_BEGIN = 10
"""Turns of asyncio's loop within which an accepted connection is being served: four with Python 3.11."""

_NO_THREAD = "can't start new thread"  # as CPython words it

Handler = Callable[[Peer, dict[str, Any]], Awaitable[Mapping[str, object] | bytes]]
"""Answers a request with a result, which is encoded as JSON, or with bytes, which are sent unchanged."""


class Server:
    """Serves the sockets.

    Args:
        handlers: The handler of each ``op``.
        account: Finds an account by name or uid for a peer.
        agent: Answers one message of the ssh-agent protocol.
        log: Receives failures.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        account: Callable[[Peer, str | int], userdb.Account | None],
        agent: Callable[[Peer, bytes], bytes],
        log: EventLog,
    ) -> None:
        self._handlers, self._account, self._agent, self._log = handlers, account, agent, log
        self._open = 0
        self._closed = asyncio.Event()
        self._agents: Counter[int] = Counter()

    async def listen(self, broker: socket.socket, users: socket.socket, agent: socket.socket) -> list[asyncio.Server]:
        """Start to serve three listening unix sockets."""
        return [
            await _listen(self._serve_helper, broker, MAX_REQUEST_BYTES),
            await _listen(self._serve_userdb, users, userdb.MAX_REQUEST_BYTES),
            await _listen(self._serve_agent, agent, MAX_MESSAGE_BYTES),
        ]

    @staticmethod
    async def stop_accepting(listening: Iterable[asyncio.Server]) -> None:
        """Stop accepting; connections that were accepted are still served, new ones wait for the next broker.

        Args:
            listening: The result of `listen`. Closing it alone would drop connections that were just accepted.
        """
        servers = list(listening)
        for sock in (sock for server in servers for sock in server.sockets):
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(TURNS_TO_BEGIN):
            await asyncio.sleep(0)
        for server in servers:
            server.close()

    async def idle(self) -> None:
        """Wait until no peer waits for an answer: no helper, no lookup, and no ssh that logs in on the remote."""
        while self._open or self._agents:
            self._closed.clear()
            await self._closed.wait()

    async def _serve_helper(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            peer = peer_of(writer.get_extra_info("socket"))
            writer.write(await self._answer(peer, reader))
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # the peer has disconnected
        finally:
            self._open -= 1
            self._closed.set()
            writer.close()

    async def _answer(self, peer: Peer, reader: asyncio.StreamReader) -> bytes:
        op = "-"
        began = time.monotonic()
        try:
            request = await _read_request(reader)
            op = str(request.get("op"))
            handler = self._handlers.get(op)
            if handler is None:
                msg = "the broker knows no such request"
                raise ProtocolError(msg)  # noqa: TRY301 - one place turns errors into answers
            async with asyncio.timeout(WORK_TIMEOUT_S):
                result = await handler(peer, request)
            return result if isinstance(result, bytes) else encode({"result": result})
        except GatewayError as error:
            return _refusal(error)
        except TimeoutError:
            return _refusal(RemoteTimeoutError("the remote host did not answer in time"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, TypeError, KeyError) as error:
            # A malformed request; our own helpers send none.
            self._log.warning("bad_request", pid=peer.pid, uid=peer.uid, op=op, reason=type(error).__name__)
            return _refusal(ProtocolError("the broker does not understand the request"))
        except Exception as error:  # noqa: BLE001 - a bug refuses this login and must not end the others
            elapsed_ms = (time.monotonic() - began) * 1000
            self._log.error("fault", op=op, uid=peer.uid, error=repr(error), where=fault_of(error), ms=elapsed_ms)
            if isinstance(error, OSError | MemoryError) or str(error) == _NO_THREAD:
                return _refusal(local_error(error))
            return _refusal(GatewayError("the gateway failed; its log says how"))

    async def _serve_userdb(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            peer = peer_of(writer.get_extra_info("socket"))

            def lookup(key: str | int) -> userdb.Account | None:
                return self._account(peer, key)

            while True:
                async with asyncio.timeout(USERDB_IDLE_S):
                    request = await reader.readuntil(b"\0")
                    writer.write(userdb.answer(request[:-1], lookup))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer has disconnected, or does not speak varlink
        except Exception as error:  # noqa: BLE001 - a bug finds no user, and must be logged
            self._log.error("fault", op="userdb", error=repr(error), where=fault_of(error))
        finally:
            self._open -= 1
            self._closed.set()
            writer.close()

    async def _serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_of(writer.get_extra_info("socket"))
        self._agents[peer.uid] += 1
        try:
            if self._agents[peer.uid] > AGENT_MAX_CONNECTIONS:
                self._log.warning("agent_refused", uid=peer.uid, pid=peer.pid, reason="too many connections")
                return
            while first := await _first_byte(reader):
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    length = int.from_bytes(first + await reader.readexactly(3))
                    if not 0 < length <= MAX_MESSAGE_BYTES:
                        reason = f"a message of {length} bytes"
                        self._log.warning("agent_refused", uid=peer.uid, pid=peer.pid, reason=reason)
                        break
                    answer = self._agent(peer, await reader.readexactly(length))
                    writer.write(len(answer).to_bytes(4) + answer)
                    await writer.drain()
        except TimeoutError:
            reason = f"a message that took longer than {REQUEST_TIMEOUT_S:.0f} s"
            self._log.warning("agent_refused", uid=peer.uid, pid=peer.pid, reason=reason)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the peer has disconnected, or is idle
        except Exception as error:  # noqa: BLE001 - a bug signs nothing, and must be logged
            self._log.error("fault", op="agent", uid=peer.uid, error=repr(error), where=fault_of(error))
        finally:
            self._agents[peer.uid] -= 1
            if not self._agents[peer.uid]:
                del self._agents[peer.uid]
            self._closed.set()
            writer.close()


def _refusal(error: GatewayError) -> bytes:
    return encode(error_answer(error))


async def _first_byte(reader: asyncio.StreamReader) -> bytes:
    """Wait for the first byte of a message to the agent; empty if none comes within `AGENT_IDLE_S`."""
    try:
        async with asyncio.timeout(AGENT_IDLE_S):
            return await reader.read(1)
    except TimeoutError:
        return b""


async def _read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return decode(await reader.readuntil(b"\n"))
    except TimeoutError as exc:
        msg = "the request did not arrive in time"
        raise ProtocolError(msg) from exc


async def _listen(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], sock: socket.socket, limit: int
) -> asyncio.Server:
    # From 3.13 on a server removes its socket's file when it closes; these outlive the broker.
    keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    # asyncio calls listen(2) again, by default with a backlog of 100.
    return await asyncio.start_unix_server(serve, sock=sock, limit=limit, backlog=BACKLOG, **keep)
