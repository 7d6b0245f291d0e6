"""The files that authenticate users and the remote: finds them, and checks that only root can change them.

Unlike all other settings, they can be corrected from outside while the gateway waits.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from gatewayctl.settings.sources import SettingValue
from helpers.protocol.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FILES = {
    "gateway_ssh_key_path": "id_ed25519",
    "gateway_authorized_keys_path": "authorized_keys",
    "remote_known_hosts": "known_hosts",
}
"""The name of each file in GATEWAY_KEYS_DIR, by its setting."""

MAX_LINKS = 40
"""Most symbolic links that Linux follows in a path (path_resolution(7))."""

_INSTEAD = {
    "gateway_ssh_key_path": "gateway_ssh_key_content",
    "gateway_authorized_keys_path": "gateway_authorized_keys_content",
}


class KeyFileError(SettingsError):
    """A file is missing or cannot be read, or other users than root can change or read it."""


def in_directory(directory: Path, given: Mapping[str, SettingValue]) -> dict[str, SettingValue]:
    """Use the files in GATEWAY_KEYS_DIR for settings that were not given.

    Args:
        directory: The directory; it may be missing.
        given: The values that were given, which take precedence, as does a setting with a file's content.

    Returns:
        Setting name to path. known_hosts is always included: it has no fallback if it is missing.

    Raises:
        KeyFileError: The directory is inaccessible.
    """
    return {
        name: SettingValue(str(directory / file), f"{directory / file}, GATEWAY_KEYS_DIR")
        for name, file in FILES.items()
        if not {name, _INSTEAD.get(name)} & given.keys()
        if name == "remote_known_hosts" or _is_there(directory / file)
    }


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a valid path
        return False
    except OSError as exc:
        # Not the same as missing: if the file were ignored, other keys would be accepted.
        raise KeyFileError(f"GATEWAY_KEYS_DIR: {path} cannot be read ({exc.strerror})") from exc
    return True


def is_file(path: Path, given: str) -> bool:
    """Check whether a file exists.

    Args:
        path: Its path.
        given: The setting and its source, for the error.

    Raises:
        KeyFileError: A directory on the way is inaccessible, as it may be for root without CAP_DAC_OVERRIDE.
    """
    # Not Path.is_file, which from Python 3.14 on returns False for any error.
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return False
        raise KeyFileError(f"{given}: {path} cannot be read ({exc.strerror})") from exc


def check(path: Path, given: str, *, private: bool) -> None:
    """Check a file as ssh and sshd check theirs (ssh(1), FILES; sshd_config(5), StrictModes).

    Args:
        path: The file.
        given: The setting and its source, for the error.
        private: Whether it contains a secret, which only its owner and root's group may read.

    Raises:
        KeyFileError: It is not a file, cannot be read, or has a wrong owner or unsafe permissions, or a directory on
            the way has.
    """
    if not is_file(path, given):
        raise KeyFileError(f"{given}: {path} is not a file")
    if not os.access(path, os.R_OK):
        raise KeyFileError(f"{given}: {path} cannot be read")
    info = path.stat()
    mode = "0600" if private else "0644"
    if info.st_uid not in {0, os.geteuid()}:
        raise KeyFileError(
            f"{given}: {path} belongs to uid {info.st_uid}, who could change it:"
            f" chown 0:0 {path} && chmod {mode} {path}"
        )
    closed = stat.S_IWGRP | stat.S_IWOTH
    if private:
        closed = stat.S_IRWXO if info.st_gid == 0 else stat.S_IRWXO | stat.S_IRWXG
    if info.st_mode & closed:
        holds = "it holds a secret" if private else "its writers decide who gets in"
        raise KeyFileError(
            f"{given}: {path} is open to others than its owner (mode {info.st_mode & 0o777:04o});"
            f" {holds}: chmod {mode} {path}"
        )
    _check_directories(path, _looked_up(path, given), given)


def check_missing_file(path: Path, given: str) -> None:
    """Check that only root can create a missing file, whose owner is not checked later.

    Args:
        path: The path of the missing file.
        given: The setting and its source, for the error.

    Raises:
        KeyFileError: Another user could create it.
    """
    # realpath and not resolve, which fails for a link to itself.
    for place in {Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent}:
        there = next(directory for directory in (place, *place.parents) if directory.exists())
        _check_directories(path, (there, *there.parents), given)
        # Any user can create files in a sticky directory. Kubernetes mounts secrets in one, but read-only.
        writable = there.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not os.statvfs(there).f_flag & os.ST_RDONLY
        if writable:
            raise KeyFileError(
                f"{given}: {path} is not there, and could be put there by who may write to {there}:"
                " use a directory that is root's alone"
            )


def _looked_up(path: Path, given: str) -> list[Path]:
    """List the directories in which a name of a path, or of a link on its way, is looked up (path_resolution(7)).

    Raises:
        KeyFileError: Another user owns a link, and could change it in a sticky directory, or a link is broken.
    """
    here, directories, links = Path("/"), [Path("/")], 0
    names = list(reversed(path.absolute().parts[1:]))
    while names:
        name = names.pop()
        if name == "..":
            here = here.parent
            continue
        there = here / name
        if there.is_symlink():
            links += 1
            if links > MAX_LINKS or there.lstat().st_uid not in {0, os.geteuid()}:
                raise KeyFileError(f"{given}: {path} goes through a link that others could change: {there}")
            target = there.readlink()
            here = Path("/") if target.is_absolute() else here
            names += reversed(target.parts[target.is_absolute() :])
        elif names:
            here = there
            directories.append(here)
    return list(dict.fromkeys(directories))


def _check_directories(path: Path, directories: Iterable[Path], given: str) -> None:
    """Refuse a directory whose owner, or whose writers, could replace a checked file."""
    for directory in directories:
        info = directory.stat()
        if info.st_uid not in {0, os.geteuid()}:
            raise KeyFileError(
                f"{given}: {path} could be replaced by uid {info.st_uid}, to whom {directory} belongs:"
                f" chown 0:0 {directory}"
            )
        # In a sticky directory, as Kubernetes mounts secrets, other users cannot replace root's files (unlink(2)).
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not info.st_mode & stat.S_ISVTX:
            raise KeyFileError(
                f"{given}: {path} could be replaced by who may write to {directory}: chmod go-w {directory}"
            )


def check_public(path: Path) -> None:
    """Check that the broker and users' own ssh, which do not run as root, can read a file of public keys.

    Args:
        path: The file, which exists.

    Raises:
        KeyFileError: The file, or a directory on the way, is inaccessible for them.
    """
    for part in (*reversed(path.resolve().parents), path):
        wanted, mode = (stat.S_IROTH, "0644") if part is path else (stat.S_IXOTH, "0755")
        if not part.stat().st_mode & wanted:
            raise KeyFileError(f"{part} is closed to the gateway's unprivileged users: chmod {mode} {part}")
