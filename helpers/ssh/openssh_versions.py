"""Tells on which options of a key line versions of OpenSSH, or machines, differ.

The remote may run another version than the gateway, so a line with such an option is neither printed nor passed over
(`helpers.ssh.authorized_keys`). Found by reading what changed from OpenSSH 9.2 to 10.5:

- ``from=``: the length of a network is a number up to 128 to all. Up to 9.7 an entry with other text behind its slash
  is a plain pattern, which no address matches; from 9.8 on it is a length where strtonum(3) takes it, and one over 128
  spoils the whole list (addr.c, addr_pton_cidr).
- ``expiry-time=``: a time before 1970 is refused up to 10.3, and later never comes (misc.c, parse_absolute_time). What
  strptime(3) takes beside digits, and for seconds over 59, is the C library's choice.
- ``principals=``: up to 10.2 the first 40 count, later all (match.c, match_list).
- ``permitopen=``, ``permitlisten=``: a port may have a name where /etc/services has it (misc.c, a2port); elsewhere the
  line is refused.

Three differences between machines are left: the client's address and the time zone of a time without a ``Z``, both the
gateway's as README says, and times after 2038 where time_t has 32 bits.
"""

from __future__ import annotations

import re

MAX_PRINCIPALS = 40
"""Most names in ``principals=`` that all versions read (match.c, MAX_PROP)."""

_NUMBER = re.compile(rb"[ \t\n\v\f\r]*[+-]?[0-9]+")  # what strtonum(3) takes, whatever its limits
_LENGTH = re.compile(rb"0*(?:[0-9]{1,2}|1[01][0-9]|12[0-8])")
_UTC = re.compile(rb"(?s)(.+?)(?:[Zz]|[Uu][Tt][Cc])?")
_TIME_CHARS = frozenset({8, 12, 14})  # YYYYMMDD[HHMM[SS]]; all versions refuse any other length
# 1970 is left out as a whole, since where it begins depends on the time zone.
_TIME = re.compile(rb"(?!0|1[0-8]|19[0-6]|1970)[0-9]{8}(?:[0-9]{4}(?:[0-5][0-9])?)?")
_PERMIT = re.compile(rb"(?s)(?:\[[^]]*\]|(?!\[)[^:/]*)[:/](.*)")  # misc.c, hpdelim2


def is_read_alike(name: bytes, value: bytes) -> bool:
    """Tell whether every version of OpenSSH, on every machine, reads the value of an option alike.

    Args:
        name: The option's name, in lower case.
        value: What stood between its quotes.
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
