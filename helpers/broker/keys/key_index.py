"""An index of an authorized_keys file, which finds the lines for an offered key.

Strangers can offer any number of keys as any user, and the user may have a MiB of lines. So each file is parsed once,
into an index by key, and an offered key costs one lookup. A large file is parsed in a thread, one at a time, so that
it does not block the event loop: Python switches between threads every 5 ms (sys.getswitchinterval).
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from cachetools import LRUCache

from helpers.ssh.authorized_keys import BadLineError, KeyLine, LastLineError, OfferedKey, read_line

MAX_CONTENT_BYTES = 1024 * 1024
"""Largest authorized_keys file, in bytes; a larger one permits no key. About 10,000 Ed25519 keys."""

MAX_PERMITTED_LINES = 256
"""Most lines for one key. Several are useful, one for each ``from=`` for example; thousands only slow sshd down."""

MAX_INDEXES_BYTES = 32 * 1024 * 1024
"""Most memory, in bytes, for files and their indexes; the least recently used are evicted."""

READ_AT_ONCE_BYTES = 4 * 1024
"""Largest file, in bytes, that is parsed on the event loop, in 3 ms at most: a thread would only add time."""

_LINE = re.compile(rb"[^\n]+")  # only a newline ends a line
_SHORTEST_LINE = len("ssh-rsa ") + 20  # base64 of 15 bytes: the type as "RSA", and two numbers without digits
_ENTRY_BYTES = 450  # a line's objects without its text, at most (tracemalloc, Python 3.11)


class KeyIndex:
    """The lines of an authorized_keys file, by key.

    Args:
        content: The file, any bytes; more than `MAX_CONTENT_BYTES` permit no key.

    Attributes:
        size_bytes: Memory that the file and the index take, at most.
    """

    def __init__(self, content: bytes) -> None:
        self._lines: dict[tuple[bool, bytes], list[KeyLine | None]] = {}
        self.size_bytes = 1024 + len(content)
        if len(content) > MAX_CONTENT_BYTES:
            return
        for match in _LINE.finditer(content):
            if match.end() - match.start() < _SHORTEST_LINE:
                continue
            try:
                blob, is_authority, line = read_line(match[0])
            except BadLineError:
                continue
            self._add(is_authority, blob, line)

    def _add(self, is_authority: bool, blob: bytes, line: KeyLine | None) -> None:  # noqa: FBT001 - of a key
        lines = self._lines.setdefault((is_authority, blob), [])
        if lines and lines[-1] is None:
            return  # the file has ended for this key
        # A certificate skips lines with another command than its own, so more lines of an authority may be needed.
        if not is_authority and len(lines) >= MAX_PERMITTED_LINES:
            return
        lines.append(line)
        self.size_bytes += _ENTRY_BYTES + len(blob)
        if line is not None:
            self.size_bytes += len(line.options) + len(line.command or b"")

    def permitted_lines(self, offered: OfferedKey) -> list[bytes]:
        """Find the lines that may permit a key, and write each for sshd.

        For a plain key these are the lines with that key; for a certificate, the ``cert-authority`` lines with the key
        that signed it. sshd checks ``from=``, ``expiry-time=``, ``principals=`` and the other options, so it may still
        refuse the key. It reads times without a ``Z`` in the gateway's time zone, and compares ``from=`` with the
        client's address at the gateway.

        Args:
            offered: The key, from `helpers.ssh.authorized_keys.parse_offered_key`.

        Returns:
            Lines without a newline, control characters (but for tabs between quotes) or comment, in the file's order,
            at most `MAX_PERMITTED_LINES`. With them sshd accepts the same keys as with the file itself, with the same
            options; tests/system/test_authorized_keys_differential.py lists the few cases in which it accepts fewer.
        """
        return self._find(offered)[0]

    def ends_early(self, offered: OfferedKey) -> bool:
        """Check whether a line that OpenSSH may accept is not printed, so it and all lines below it are ignored."""
        return self._find(offered)[1]

    def _find(self, offered: OfferedKey) -> tuple[list[bytes], bool]:
        printed: list[bytes] = []
        for line in self._lines.get((offered.certificate is not None, offered.wanted), ()):
            if line is None or len(printed) == MAX_PERMITTED_LINES:
                return printed, True
            try:
                printed.append(line.printed_for(offered))
            except BadLineError:
                continue
            except LastLineError:
                return printed, True
        return printed, False


class KeyIndexes:
    """A cache of the indexes of recently used files.

    Attributes:
        read: How many files were parsed.
    """

    def __init__(self) -> None:
        self.read = 0
        self._indexes: LRUCache[bytes, KeyIndex] = LRUCache(MAX_INDEXES_BYTES, lambda index: index.size_bytes)
        self._readings: dict[bytes, asyncio.Task[KeyIndex]] = {}
        self._thread = ThreadPoolExecutor(1, "authorized_keys")

    async def of(self, content: bytes) -> KeyIndex:
        """Return a file's index, cached or parsed; concurrent requests share one parse."""
        index = self._indexes.get(content)
        if index is None and len(content) <= READ_AT_ONCE_BYTES:
            return self._keep(content, KeyIndex(content))
        if index is not None:
            return index
        reading = self._readings.get(content)
        if reading is None:
            reading = asyncio.create_task(self._read(content))
            self._readings[content] = reading
            reading.add_done_callback(lambda _: self._readings.pop(content))
        return await asyncio.shield(reading)

    async def _read(self, content: bytes) -> KeyIndex:
        loop = asyncio.get_running_loop()
        return self._keep(content, await loop.run_in_executor(self._thread, KeyIndex, content))

    def _keep(self, content: bytes, index: KeyIndex) -> KeyIndex:
        self.read += 1
        self._indexes[content] = index
        return index
