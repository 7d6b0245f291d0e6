"""A person's terminal: a command in a PTY, its output on an emulated screen, and hands to type with."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import ptyprocess
import pyte

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Enough for the largest outputs that tests read back.
_HISTORY_LINES = 5000


class _Screen(pyte.HistoryScreen):
    """pyte's screen, with what today's programs send and pyte 0.8.2 does not expect."""

    def __init__(self, columns: int, lines: int, answer: Callable[[bytes], None]) -> None:
        """Keep where answers to the program's questions go."""
        super().__init__(columns, lines, history=_HISTORY_LINES)
        self._answer = answer
        self.bells = 0

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        """Ignore ``CSI > 4 ; 2 m`` (xterm's modifyOtherKeys, which vim sends); pyte would raise TypeError."""
        if not private:
            super().select_graphic_rendition(*attributes)

    def report_device_status(self, mode: int, **_: object) -> None:
        """Answer where the cursor is; the private forms, which pyte would not take, get no answer."""
        super().report_device_status(mode)

    def write_process_input(self, data: str) -> None:
        """Send the terminal's own answers to the program."""
        self._answer(data.encode())

    def bell(self, *_: object) -> None:
        """Count the bells."""
        self.bells += 1


def _hear_hangups() -> None:
    """Undo what nohup(1) does, by which the tests may have been started."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A command in a PTY.

    Args:
        argv: The command line.
        rows: Height of the window; 0 is what some programs report, the screen then has 24.
        columns: Width of the window; 0 likewise, the screen then has 80.
        environment: All of the command's environment.
    """

    def __init__(
        self, argv: Sequence[str], *, environment: Mapping[str, str], rows: int = 24, columns: int = 80
    ) -> None:
        """Start the command."""
        self.argv = list(argv)
        self.raw = bytearray()
        self.closed = False
        self._changed = threading.Condition()
        self._ended = False
        self._status: int | None = None
        self._process: Any = ptyprocess.PtyProcess.spawn(
            self.argv, env=dict(environment), dimensions=(rows, columns), preexec_fn=_hear_hangups
        )
        self._screen = _Screen(columns or 80, rows or 24, self._send)
        self._stream = pyte.ByteStream(self._screen)
        self._reader = threading.Thread(target=self._read, name=f"terminal-{self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id of the command."""
        return cast("int", self._process.pid)

    def _read(self) -> None:
        """Feed the screen until the PTY closes."""
        while True:
            try:
                data = os.read(self._process.fd, 65536)
            except OSError:  # EIO: no process has the PTY open any more
                data = b""
            with self._changed:
                self.raw += data
                try:
                    self._stream.feed(data)
                finally:
                    self._ended = self._ended or not data
                    self._changed.notify_all()
            if not data:
                return

    def _send(self, data: bytes) -> None:
        """Write all of it; a command that has gone away hears nothing."""
        with suppress(OSError):
            while data:
                data = data[os.write(self._process.fd, data) :]

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without trailing blanks."""
        with self._changed:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The screen as one string, a newline between lines, without the blank lines at its end."""
        return "\n".join(self.lines).rstrip("\n")

    @property
    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor, both from 0."""
        with self._changed:
            return self._screen.cursor.y, self._screen.cursor.x

    def character(self, row: int, column: int) -> Any:
        """Return pyte's ``Char`` at a place: ``data``, ``fg``, ``bg``, ``bold``, ``reverse`` and so on."""
        with self._changed:
            return self._screen.buffer[row][column]

    def type(self, text: str) -> None:
        r"""Type, without Enter: end a line with ``\r``; ``\x03`` is Ctrl-C."""
        self._send(text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Pull the window to another size."""
        with self._changed:
            self._screen.resize(rows, columns)
        self._process.setwinsize(rows, columns)

    def wait_until(self, predicate: Callable[[Terminal], bool], what: str, *, timeout_s: float = 20.0) -> None:
        """Wait until the predicate holds; AssertionError with the screen at the deadline or the command's end.

        Args:
            predicate: A question about this terminal, asked at each change.
            what: Completes the sentence "gave up waiting until ...".
            timeout_s: Seconds to wait.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not predicate(self):
                left_s = deadline - time.monotonic()
                if self._ended or left_s <= 0:
                    reason = "the command ended" if self._ended else f"{timeout_s:g} s"
                    message = f"gave up waiting until {what} ({reason}); the screen:\n{self.framed()}"
                    raise AssertionError(message)
                self._changed.wait(left_s)

    def wait_for(self, text: str, *, timeout_s: float = 20.0) -> None:
        """Wait until the screen shows a text."""
        self.wait_until(lambda its: text in its.text, f"the screen shows {text!r}", timeout_s=timeout_s)

    def run(self, command: str, expected: str, *, timeout_s: float = 20.0) -> None:
        """Type a command and Enter, and wait until the screen shows what it should print."""
        self.type(command + "\r")
        self.wait_for(expected, timeout_s=timeout_s)

    def wait_exit(self, *, timeout_s: float = 20.0) -> int:
        """Wait until the command ends; its exit status, negative for a signal."""
        deadline = time.monotonic() + timeout_s
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._reader.join(max(0.0, deadline - time.monotonic()))
            elif time.monotonic() > deadline:
                message = f"the command did not end ({timeout_s:g} s); the screen:\n{self.framed()}"
                raise AssertionError(message)
            else:
                with self._changed:
                    self._changed.wait(0.01)
        return self._status

    def framed(self) -> str:
        """Return the screen in a frame, for people."""
        lines = self.text.split("\n")
        width = max(map(len, lines))
        edge = f"+{'-' * (width + 2)}+"
        return "\n".join([edge, *(f"| {line:{width}} |" for line in lines), edge])

    def close(self) -> None:
        """Hang up, and make sure that the command is gone."""
        if self.closed:
            return
        self.closed = True
        if self._status is None:
            for signal_number in (1, 9):  # SIGHUP as a closed window sends it, then SIGKILL
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal_number)
                with suppress(AssertionError):
                    self.wait_exit(timeout_s=3)
                    break
        self._reader.join(3)
        with suppress(OSError):
            self._process.fileobj.close()
        # ptyprocess would otherwise signal the pid once more when collected, whoever has it then.
        self._process.closed = True
