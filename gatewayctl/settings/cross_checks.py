"""Checks of combinations of settings, each of which is valid by itself."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from gatewayctl.settings import key_files, passwords
from helpers.protocol.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from gatewayctl.settings.model import Settings

ANY_KEY_WARNING = (
    "GATEWAY_ACCEPT_ANY_KEY is on: any client that reaches the port can log in as any user of the remote host"
)
"""The warning at the start, in check-config and in every status."""


MAX_FAULTS = 5
"""Most lines of local authorized_keys that are listed individually."""

_KEY_LINE = re.compile(r"^[ \t]*[^#\s][^\n]*[ \t]AAAA", re.MULTILINE)
"""A line that may contain a key: base64 that begins with the length of its type's name, below 256 (RFC 4253, 6.6)."""


def check(settings: Settings) -> None:
    """Refuse settings that contradict each other, or name files that cannot be read.

    Raises:
        SettingsError: The sentence names both settings, their sources and the remedy.
    """
    _refuse_both(settings, "gateway_authorized_keys_path", "gateway_authorized_keys_content")
    _refuse_both(settings, "gateway_ssh_key_path", "gateway_ssh_key_content")
    if settings.gateway_password_auth and settings.gateway_passwords is None:
        raise SettingsError(f"{_given(settings, 'gateway_password_auth')} needs GATEWAY_PASSWORDS")
    if settings.gateway_passwords is not None and not settings.gateway_password_auth:
        raise SettingsError(f"{_given(settings, 'gateway_passwords')} needs GATEWAY_PASSWORD_AUTH=true")
    if settings.gateway_passwords is not None:
        list(passwords.pairs(settings.gateway_passwords.get_secret_value()))
    if settings.gateway_accept_any_key:
        for other in ("gateway_authorized_keys_path", "gateway_authorized_keys_content", "gateway_passwords"):
            _refuse_both(settings, "gateway_accept_any_key", other)
    if settings.gateway_accept_any_key and not _has_key(settings):
        raise SettingsError(
            f"{_given(settings, 'gateway_accept_any_key')} needs GATEWAY_SSH_KEY_PATH or GATEWAY_SSH_KEY_CONTENT:"
            " without a key of the gateway's, any key is let in anyway and the remote judges the user's agent"
        )
    if settings.gateway_password_auth and not _has_key(settings):
        raise SettingsError(
            f"{_given(settings, 'gateway_password_auth')} needs GATEWAY_SSH_KEY_PATH or GATEWAY_SSH_KEY_CONTENT:"
            " a password opens no door on the remote"
        )
    _check_files(settings)


def _check_files(settings: Settings) -> None:
    for name in key_files.FILES:
        path: Path | None = getattr(settings, name)
        if path is None:
            continue
        if name == "gateway_ssh_key_path" and path.suffix == ".pub":
            raise SettingsError(
                f"{_given(settings, name)} is the public key; name the private one: {path.with_suffix('')}"
            )
        # known_hosts may be added later, and no user can log in before that: see `warnings`.
        if name != "remote_known_hosts" or key_files.is_file(path, _given(settings, name)):
            key_files.check(path, _given(settings, name), private=name == "gateway_ssh_key_path")
        elif not settings.remote_ignore_host_key:
            key_files.check_missing_file(path, _given(settings, name))


def warnings(settings: Settings) -> list[str]:
    """List settings that are valid but probably a mistake."""
    found = []
    if settings.gateway_accept_any_key:
        found.append(ANY_KEY_WARNING)
    if not _has_key(settings):
        found.append("no GATEWAY_SSH_KEY_PATH: the gateway holds no key, so users must forward their agents (ssh -A)")
    if settings.gateway_passwords is not None:
        found += [
            f"GATEWAY_PASSWORDS: the password of {name} may be what a shell has left of a hash in double quotes:"
            " use single quotes for a hash"
            for name in passwords.doubtful(settings.gateway_passwords.get_secret_value())
        ]
    for name, text in _local_keys(settings).items():
        if not _KEY_LINE.search(text):
            found.append(f"{_given(settings, name)} has no line with a key: nobody gets in by one")
        found += _faults(_given(settings, name), text)
    directory = settings.gateway_keys_dir
    if directory is not None and not os.path.isdir(directory):  # noqa: PTH112 - False if inaccessible
        found.append(
            f"{_given(settings, 'gateway_keys_dir')}: {directory} is not a directory, so no file is taken from it"
        )
    if settings.remote_ignore_host_key:
        found.append(
            f"{_given(settings, 'remote_ignore_host_key')}: whoever stands between the gateway and the remote"
            " can read and change every session"
        )
    if settings.gateway_log == "syslog" and not os.path.exists("/dev/log"):  # noqa: PTH110 - False if inaccessible
        found.append(f"{_given(settings, 'gateway_log')}: no program listens on /dev/log, so nothing is logged")
    if not settings.remote_ignore_host_key and not settings.remote_known_hosts.is_file():
        found.append(
            f"REMOTE_KNOWN_HOSTS {settings.remote_known_hosts} is not a file:"
            " nobody gets in until it holds the remote's host key"
        )
    return found


def _faults(given: str, text: str) -> list[str]:
    """List the first lines of local authorized_keys that cannot permit any key."""
    from helpers.ssh.authorized_keys import faults  # noqa: PLC0415 - most gateways have no local keys

    found = [f"{given} line {number} permits no key: {reason}" for number, reason in faults(text.encode("utf-8"))]
    more = len(found) - MAX_FAULTS
    return [*found[:MAX_FAULTS], *([f"{given}: {more} more lines let nobody in"] if more > 0 else [])]


def _local_keys(settings: Settings) -> dict[str, str]:
    """Read the local authorized_keys, by its setting; without a file that can no longer be read."""
    content, path = settings.gateway_authorized_keys_content, settings.gateway_authorized_keys_path
    if content is not None:
        return {"gateway_authorized_keys_content": content}
    try:
        return {} if path is None else {"gateway_authorized_keys_path": path.read_text("utf-8", "replace")}
    except OSError:
        return {}


def _has_key(settings: Settings) -> bool:
    return settings.gateway_ssh_key_path is not None or settings.gateway_ssh_key_content is not None


def _refuse_both(settings: Settings, first: str, second: str) -> None:
    if getattr(settings, first) is not None and getattr(settings, second) is not None:
        raise SettingsError(f"{_given(settings, first)} and {_given(settings, second)} exclude each other: give one")


def _given(settings: Settings, name: str) -> str:
    return f"{name.upper()} (from {settings.origin(name)})"
