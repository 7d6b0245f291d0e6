"""The gateway's log lines: ``event key=value ...``, one decision a line, which no client can forge.

Every value that is not plain printable ASCII without spaces, quotes and ``=`` is written as a JSON string, so a
newline or an escape sequence in it is seen as text. Keys, passwords and MOSH_KEY are never given to it.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
import time

_PLAIN = re.compile(r"[\x21\x23-\x3c\x3e-\x5b\x5d-\x7e]+", re.ASCII)
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def quote(value: object) -> str:
    """Write one value: plain words as they are, the rest as a JSON string in ASCII."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def line(event: str, fields: dict[str, object]) -> str:
    """Write one event with its fields, in the order given."""
    return " ".join([event, *(f"{key}={quote(value)}" for key, value in fields.items())])


class EventFormatter(logging.Formatter):
    """Lines as ``2026-01-31T12:00:00.123Z broker[PID]: info event key=value``, in UTC."""

    def __init__(self, *, stamped: bool) -> None:
        """Write the time in front, unless the receiver (syslog) does it."""
        super().__init__()
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; anything that did not come from `EventLog` is quoted as a whole."""
        fields = getattr(record, "fields", {"source": record.name, "text": record.getMessage()})
        event = record.msg if hasattr(record, "fields") else "message"
        said = event if fields is None else f"{record.levelname.lower()} {line(event, fields)}"
        text = f"{record.processName}[{record.process}]: {said}"
        if not self._stamped:
            return text
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}Z {text}"


class EventLog:
    """Writes events to one stream.

    Args:
        program: The word in front of each line, ``gatewayctl`` or ``broker``.
        level: The least important level that is written: debug, info, warning or error.
        syslog: Write to ``/dev/log`` (facility auth, as sshd does) and not to standard error.
    """

    def __init__(self, program: str, level: str = "info", *, syslog: bool = False) -> None:
        """Open the stream."""
        handler: logging.Handler
        if syslog:
            facility = logging.handlers.SysLogHandler.LOG_AUTH
            handler = logging.handlers.SysLogHandler("/dev/log", facility)
        else:
            handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(EventFormatter(stamped=not syslog))
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(logging.WARNING)
        # A dead stderr or syslog must not end a login with a traceback.
        logging.raiseExceptions = False
        self._program = program
        self._logger = logging.getLogger("gateway")
        self._logger.setLevel(LEVELS[level])

    def _write(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            record = self._logger.makeRecord("gateway", level, "", 0, event, (), None, extra={"fields": fields})
            record.processName = self._program
            self._logger.handle(record)

    def relay(self, level: str, program: str, pid: int, text: str) -> None:
        """Write another program's own line, which holds no control characters, as one of this stream."""
        record = self._logger.makeRecord("gateway", LEVELS[level], "", 0, text, (), None, extra={"fields": None})
        record.processName, record.process = program, pid
        self._logger.handle(record)

    def debug(self, event: str, **fields: object) -> None:
        """Write what only helps to find a fault."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Write a decision."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Write what the operator should know of, though service goes on."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Write what the operator must mend."""
        self._write(logging.ERROR, event, fields)


def fault_of(error: BaseException) -> str:
    """Name the innermost line of a traceback: enough to find a fault by, and no data in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "-" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
