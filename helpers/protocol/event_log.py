"""The gateway's log lines: ``event key=value ...``, one decision in each line, which no client can forge.

Every value that is not plain printable ASCII without spaces, quotes and ``=`` is written as a JSON string, so a
newline or an escape sequence in it appears as text. Keys, passwords and MOSH_KEY are never logged.
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
    """Format one value: plain words unchanged, others as a JSON string in ASCII."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def line(event: str, fields: dict[str, object]) -> str:
    """Format one event with its fields, in their order."""
    return " ".join([event, *(f"{key}={quote(value)}" for key, value in fields.items())])


class EventFormatter(logging.Formatter):
    """Lines such as ``2026-01-31T12:00:00.123Z broker[PID]: info event key=value``, in UTC.

    Args:
        stamped: Whether lines begin with the time; the receiver may add it (syslog).
    """

    def __init__(self, *, stamped: bool) -> None:
        super().__init__()
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        """Format one record; one that is not from `EventLog` is quoted as a whole."""
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
        program: The program's name in each line, ``gatewayctl`` or ``broker``.
        level: The least important level that is written: debug, info, warning or error.
        syslog: Write to ``/dev/log`` (facility auth, as sshd does) instead of standard error.
    """

    def __init__(self, program: str, level: str = "info", *, syslog: bool = False) -> None:
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
        # If standard error or syslog is closed, a login must not fail with a traceback.
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
        """Write another program's line, which contains no control characters; at level debug only if we log that."""
        if level == "debug" and not self._logger.isEnabledFor(logging.DEBUG):
            return
        record = self._logger.makeRecord("gateway", LEVELS[level], "", 0, text, (), None, extra={"fields": None})
        record.processName, record.process = program, pid
        self._logger.handle(record)

    def debug(self, event: str, **fields: object) -> None:
        """Log details for debugging."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log a decision."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log a problem that does not interrupt service."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log a problem that the operator must fix."""
        self._write(logging.ERROR, event, fields)


def fault_of(error: BaseException) -> str:
    """Return the innermost line of a traceback: enough to locate a bug, without any data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "-" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
