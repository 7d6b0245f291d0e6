"""Detects options of a key line that versions of OpenSSH, or machines, interpret differently.

The remote may run another version than the gateway, so a line with such an option is neither printed nor skipped
(`helpers.ssh.authorized_keys`). The differences, from the changes between OpenSSH 9.2 and 10.5:

- ``from=``: all versions accept a number up to 128 as the length of a network. Up to 9.7 an entry with other text
  behind its slash is a plain pattern, which no address matches; from 9.8 on it is a length if strtonum(3) accepts it,
  and one over 128 invalidates the whole list (addr.c, addr_pton_cidr).
- ``expiry-time=``: up to 10.3 a time before 1970 is refused, in later versions it never expires (misc.c,
  parse_absolute_time). Other characters than digits, and seconds over 59, depend on the C library's strptime(3).
- ``principals=``: up to 10.2 only the first 40 are used, later all (match.c, match_list).
- ``permitopen=``, ``permitlisten=``: a port may have a name if it is in /etc/services (misc.c, a2port); otherwise the
  line is refused.

Three differences between machines remain: the client's address and the time zone of a time without a ``Z``, for which
the gateway's apply, and times after 2038 if time_t has 32 bits.
"""

from __future__ import annotations

import re

MAX_PRINCIPALS = 40
"""Most names in ``principals=`` that all versions read (match.c, MAX_PROP)."""

_NUMBER = re.compile(rb"[ \t\n\v\f\r]*[+-]?[0-9]+")  # the syntax of strtonum(3), with any limits
_LENGTH = re.compile(rb"0*(?:[0-9]{1,2}|1[01][0-9]|12[0-8])")
_UTC = re.compile(rb"(?s)(.+?)(?:[Zz]|[Uu][Tt][Cc])?")
_TIME_CHARS = frozenset({8, 12, 14})  # YYYYMMDD[HHMM[SS]]; all versions refuse any other length
# The whole year 1970 is excluded, since its beginning depends on the time zone.
_TIME = re.compile(rb"(?!0|1[0-8]|19[0-6]|1970)[0-9]{8}(?:[0-9]{4}(?:[0-5][0-9])?)?")
_PERMIT = re.compile(rb"(?s)(?:\[[^]]*\]|(?!\[)[^:/]*)[:/](.*)")  # misc.c, hpdelim2


def is_read_alike(name: bytes, value: bytes) -> bool:
    """Check whether every version of OpenSSH, on every machine, interprets an option's value in the same way.

    Args:
        name: The option's name, in lower case.
        value: The value, without its quotes.
    """
    if name == b"from":
        lengths = [length for _, slash, length in (entry.partition(b"/") for entry in value.split(b",")) if slash]
        return all(_LENGTH.fullmatch(length) or not _NUMBER.fullmatch(length) for length in lengths)
    if name == b"expiry-time":
        time = _UTC.fullmatch(value)
        return time is None or len(time[1]) not in _TIME_CHARS or _TIME.fullmatch(time[1]) is not None
    if name == b"principals":
        return value.count(b",") < MAX_PRINCIPALS
    if name in {b"permitopen", b"permitlisten"}:
        is_port = name == b"permitlisten" and b":" not in value
        permit = _PERMIT.fullmatch(b"*:" + value if is_port else value)
        return permit is None or permit[1] in {b"", b"*"} or _NUMBER.fullmatch(permit[1]) is not None
    return True
