"""Finds the lines of an authorized_keys file for an offered key, having read the file once.

Strangers may offer keys as often as they like, as whichever user, and the user may have a MiB of lines. So each file is
read once, into an index by key, and an offered key is one look into it. A file that takes long to read is read beside
the event loop, one at a time: Python's threads take turns every 5 ms (sys.getswitchinterval).
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from cachetools import LRUCache

from helpers.ssh.authorized_keys import BadLineError, KeyLine, LastLineError, OfferedKey, read_line

MAX_CONTENT_BYTES = 1024 * 1024
"""Largest authorized_keys file, in bytes; a larger one lets nobody in. About 10,000 Ed25519 keys."""

MAX_PERMITTED_LINES = 256
"""Most lines for one key. Several make sense, say one for each ``from=``; thousands would only be work for sshd."""

MAX_INDEXES_BYTES = 32 * 1024 * 1024
"""Most memory, in bytes, that is spent on files and their indexes; the ones not used for longest go."""

READ_AT_ONCE_BYTES = 4 * 1024
"""Largest file, in bytes, that is read on the event loop, which takes 3 ms at most: a thread would only cost time."""

_LINE = re.compile(rb"[^\n]+")  # a newline is the only end of a line there is
_SHORTEST_LINE = len("ssh-rsa ") + 20  # base64 of 15 bytes: the type as "RSA", and two numbers without digits
_ENTRY_BYTES = 450  # a line's objects beside its text, at most (tracemalloc, Python 3.11)


class KeyIndex:
    """The lines of an authorized_keys file, by key.

    Args:
        content: The file, any bytes; more than `MAX_CONTENT_BYTES` permit nothing.

    Attributes:
        size_bytes: Memory that the file and the index take, at most.
    """

    def __init__(self, content: bytes) -> None:
        """Read the file."""
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
        # A certificate passes over lines with another command than its own, so more of an authority's may count.
        if not is_authority and len(lines) >= MAX_PERMITTED_LINES:
            return
        lines.append(line)
        self.size_bytes += _ENTRY_BYTES + len(blob)
        if line is not None:
            self.size_bytes += len(line.options) + len(line.command or b"")

    def permitted_lines(self, offered: OfferedKey) -> list[bytes]:
        """Find the lines that may let a key in, and write each as sshd is to read it.

        For a plain key these are the lines with that key; for a certificate, the ``cert-authority`` lines with the key
        that signed it. ``from=``, ``expiry-time=``, ``principals=`` and the rest are sshd's to judge: a line in the
        result is no verdict. Times without a ``Z`` are read in the gateway's time zone, addresses are those that the
        gateway sees.

        Args:
            offered: The key, from `helpers.ssh.authorized_keys.parse_offered_key`.

        Returns:
            Lines without a newline, control characters (but for tabs between quotes) or comment, in the file's order,
            at most `MAX_PERMITTED_LINES`. With them sshd lets in whom it lets in with the file itself, and in the same
            way; the few cases in which it lets in fewer are listed in tests/system/test_keyline_differential.py.
        """
        return self._find(offered)[0]

    def ends_early(self, offered: OfferedKey) -> bool:
        """Tell whether a line that OpenSSH may accept is not printed, so that neither it nor one below it counts."""
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
    """The indexes of the files that keys were offered against of late.

    Attributes:
        read: How many files were read.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.read = 0
        self._indexes: LRUCache[bytes, KeyIndex] = LRUCache(MAX_INDEXES_BYTES, lambda index: index.size_bytes)
        self._readings: dict[bytes, asyncio.Task[KeyIndex]] = {}
        self._thread = ThreadPoolExecutor(1, "authorized_keys")

    async def of(self, content: bytes) -> KeyIndex:
        """Answer with a file's index: from memory, or by reading the file, once for all who ask meanwhile."""
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
