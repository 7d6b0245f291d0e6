"""Answers nss-systemd, so that sshd finds users without an entry in /etc/passwd.

The protocol is varlink: one JSON object, ended by NUL, each way (systemd's docs/USER_GROUP_API.md and
docs/USER_RECORD.md; seen with systemd 252 and 257).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SERVICE = "io.ssh-mosh-gateway"
"""The service's name: that of the socket in /run/systemd/userdb/, repeated in each record."""

AUTH_USER = "gateway+auth"
"""The account that AuthorizedKeysCommand runs as. No valid user name contains ``+``, so no client can log in as it."""

ROOT_USER = "gateway+root"
"""The account name of the uid that root's sessions run as; only a lookup by uid finds it. ssh refuses to run as a uid
without an account (OpenSSH 9.2: "No user exists for uid")."""

MAX_REQUEST_BYTES = 4096
"""Longest request, in bytes; nss-systemd's are below 200."""

_INTERFACE = "io.systemd.UserDatabase."


@dataclass(frozen=True)
class Account:
    """The content of a user record.

    Attributes:
        name: The user name.
        uid: The uid, which is the gid as well.
        home: The home directory.
        shell: The shell that sshd runs the session helper with.
        password: Its hashed password (crypt(5)), for root only; None if the peer is not root.
    """

    name: str
    uid: int
    home: str
    shell: str = "/bin/sh"
    password: str | None = None


def answer(request: bytes, lookup: Callable[[str | int], Account | None]) -> bytes:
    """Answer one request.

    Args:
        request: The request without its NUL.
        lookup: Finds an account by name or by uid.

    Returns:
        The answer with its NUL; `NoRecordFound` for anything but a lookup of one existing user.
    """
    try:
        call = json.loads(request)
        method, parameters = str(call["method"]), call.get("parameters") or {}
        service, name, uid = (parameters.get(key) for key in ("service", "userName", "uid"))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return _error("org.varlink.service.InvalidParameter")
    if service not in (None, SERVICE):
        return _error(f"{_INTERFACE}BadService")
    if method != f"{_INTERFACE}GetUserRecord":
        return _error(f"{_INTERFACE}NoRecordFound")
    account = None
    if isinstance(name, str):
        account = lookup(name)
    elif isinstance(uid, int) and not isinstance(uid, bool):
        account = lookup(uid)
    if account is None:
        return _error(f"{_INTERFACE}NoRecordFound")
    if isinstance(uid, int) and account.uid != uid:
        return _error(f"{_INTERFACE}ConflictingRecordFound")
    return _encode({"parameters": {"record": _record(account), "incomplete": False}})


def _record(account: Account) -> dict[str, Any]:
    return {
        "userName": account.name,
        "uid": account.uid,
        "gid": account.uid,
        "homeDirectory": account.home,
        "shell": account.shell,
        "service": SERVICE,
        # "*" matches no password; "!" would mean that the account is locked (passwd(5)).
        "privileged": {"hashedPassword": [account.password or "*"]},
    }


def _error(name: str) -> bytes:
    return _encode({"error": name, "parameters": {}})


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\0"
