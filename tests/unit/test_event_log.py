"""The log: one event is one line, whatever a client or the remote put into its values."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.protocol.event_log import EventFormatter, EventLog, line, quote

_VALUES = (
    st.text()
    | st.text(st.characters(max_codepoint=0x9F))
    | st.text(st.characters(min_codepoint=0xDC00, max_codepoint=0xDFFF))
    | st.sampled_from(
        ["\n", "\r\nbroker[1]: info key_permitted user=root", "\x1b[2J", "\u2028", "\x85", "=", '"', "\\"]
    )
)
_PREFIX = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z broker\[\d+\]: (\w+) ")


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Put Python's logging back, which `EventLog` takes over for its process."""
    root, gateway = logging.getLogger(), logging.getLogger("gateway")
    handlers, levels, raises = root.handlers[:], (root.level, gateway.level), logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    gateway.setLevel(levels[1])
    logging.raiseExceptions = raises


@given(st.dictionaries(st.sampled_from(["user", "reason", "type"]), _VALUES, max_size=3))
def test_an_event_is_one_line_that_can_be_read_back(fields: dict[str, str]) -> None:
    """No value breaks out of its place: the line is printable ASCII and each value can be told from it."""
    text = line("event", dict(fields))
    assert re.fullmatch(r"[\x20-\x7e]*", text)
    found = {}
    for key, value in re.findall(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=]*)', text):
        found[key] = json.loads(value) if value.startswith('"') else value
    assert found == fields


@given(_VALUES)
def test_a_quoted_value_is_plain_or_json(value: str) -> None:
    """A value is written as it is when it is a plain word, else as a JSON string; an empty one is seen as empty."""
    text = quote(value)
    assert text == value or json.loads(text) == value
    assert text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("alice", "alice"),
        ("SHA256:AbC+/9", "SHA256:AbC+/9"),
        ("[2001:db8::1]:22", "[2001:db8::1]:22"),
        (22, "22"),
        (1.25, "1.2"),
        (True, "true"),
        (False, "false"),
        (None, "-"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("new\nline", '"new\\nline"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("é", '"\\u00e9"'),
        ("back\\slash", '"back\\\\slash"'),
    ],
)
def test_how_values_are_written(value: object, text: str) -> None:
    """Plain words as they are, nothing as a dash, milliseconds with one digit, everything else in quotes."""
    assert quote(value) == text


@pytest.mark.usefixtures("logging_as_before")
def test_events_reach_standard_error_with_time_and_pid(capsys: pytest.CaptureFixture[str]) -> None:
    """A line has the time in UTC, the program, its process id, the level, the event and its fields in order."""
    log = EventLog("broker")
    log.info("session_started", user="alice", ms=12.34)
    log.warning("bad_request", op="x\ny")
    log.error("fault")
    lines = capsys.readouterr().err.splitlines()
    assert [match[1] for text in lines if (match := _PREFIX.match(text))] == ["info", "warning", "error"]
    assert [_PREFIX.sub("", text) for text in lines] == [
        "session_started user=alice ms=12.3",
        'bad_request op="x\\ny"',
        "fault",
    ]


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize(("level", "expected"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_rules(level: str, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What is less important than the level is not written."""
    log = EventLog("broker", level)
    for write in (log.debug, log.info, log.warning, log.error):
        write("event")
    assert len(capsys.readouterr().err.splitlines()) == expected


@pytest.mark.usefixtures("logging_as_before")
def test_a_library_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What some library logs becomes one quoted message, its source named."""
    EventLog("broker")
    logging.getLogger("asyncio").error("broken\nbroker[1]: info key_permitted user=%s", "root")
    (text,) = capsys.readouterr().err.splitlines()
    assert 'error message source=asyncio text="broken\\nbroker[1]: info key_permitted user=root"' in text


class _Dead(io.TextIOBase):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        """Fail as a pipe does."""
        raise BrokenPipeError(len(text))


@pytest.mark.usefixtures("logging_as_before")
def test_a_dead_standard_error_ends_no_login() -> None:
    """A line that cannot be written is lost, and nothing is raised."""
    with contextlib.redirect_stderr(_Dead()):
        EventLog("broker").info("event")


def test_syslog_writes_its_own_time() -> None:
    """For syslog a line begins with the program's name."""
    record = logging.makeLogRecord({"msg": "event", "fields": {"user": "a b"}, "levelname": "INFO"})
    record.processName, record.process = "broker", 7
    assert EventFormatter(stamped=False).format(record) == 'broker[7]: info event user="a b"'
