"""The errors: each with one sentence, a code of its own and an exit status."""

from __future__ import annotations

import errno
import re

import pytest

from helpers.protocol import errors
from helpers.protocol.errors import GatewayError

_KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GatewayError)]


@pytest.mark.parametrize("kind", _KINDS)
def test_every_error_has_a_code_and_a_status_of_sysexits(kind: type[GatewayError]) -> None:
    """A code is one stable word; a status is one of sysexits.h's, 64 to 78, so never success."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert 64 <= kind.status <= 78


def test_codes_tell_the_errors_apart() -> None:
    """No two errors share a code."""
    assert len({kind.code for kind in _KINDS}) == len(_KINDS)


def test_statuses_tell_what_a_session_can_die_of_apart() -> None:
    """No two errors share a status, but EX_OSERR stands for three, and EX_TEMPFAIL for two."""
    shared = {errors.ResourcesError, errors.DrainingError, errors.ListenError}
    statuses = [kind.status for kind in _KINDS if kind not in shared]
    assert len(set(statuses)) == len(statuses)
    assert errors.ResourcesError.status == errors.BrokerUnavailableError.status
    assert errors.DrainingError.status == errors.RemoteTimeoutError.status


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), 71, "Resource temporarily unavailable"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 71, "Cannot allocate memory"),
        (OSError(errno.EMFILE, "Too many open files"), 71, "Too many open files"),
        (MemoryError(), 71, "out of memory"),
        (RuntimeError("can't start new thread"), 71, "can't start new thread"),
        (OSError(errno.ENOSPC, "No space left on device"), 71, "runtime directory is full"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 71, "home directory on the gateway is gone"),
        (OSError(errno.EIO, "Input/output error"), 70, "Input/output error"),
        (OSError("odd"), 70, "odd"),
    ],
)
def test_what_the_gateways_system_refuses_is_one_sentence(error: Exception, status: int, says: str) -> None:
    """It says what is missing, and what to do."""
    told = errors.local_error(error)
    assert (told.status, "\n" in told.message) == (status, False)
    assert says in told.message
    assert re.search("again|tell", told.message)


@pytest.mark.parametrize("kind", _KINDS)
def test_the_sentence_is_kept(kind: type[GatewayError]) -> None:
    """The sentence is there by name and as the exception's text."""
    error = kind("the remote host is away")
    assert error.message == str(error) == "the remote host is away"


def test_every_error_has_one_root() -> None:
    """Whoever catches the root catches every error of ours."""
    assert all(issubclass(kind, GatewayError) for kind in _KINDS)
    assert len(_KINDS) > 10
