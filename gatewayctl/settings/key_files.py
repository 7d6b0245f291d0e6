"""The files that decide who gets in and where users land: which there are, and whether they are root's alone to change.

Unlike all other settings, they can be mended from outside while the gateway waits.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from gatewayctl.settings.sources import Given
from helpers.protocol.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FILES = {
    "gateway_ssh_key_path": "id_ed25519",
    "gateway_authorized_keys_path": "authorized_keys",
    "remote_known_hosts": "known_hosts",
}
"""What each file in GATEWAY_KEYS_DIR is called, by the setting that it stands for."""

MAX_LINKS = 40
"""Most symbolic links that Linux follows on the way to a file (path_resolution(7))."""

_INSTEAD = {
    "gateway_ssh_key_path": "gateway_ssh_key_content",
    "gateway_authorized_keys_path": "gateway_authorized_keys_content",
}


class KeyFileError(SettingsError):
    """A file is missing, cannot be read, or may be changed or read by others than root."""


def in_directory(directory: Path, given: Mapping[str, Given]) -> dict[str, Given]:
    """Take what lies in GATEWAY_KEYS_DIR for the settings that were not given.

    Args:
        directory: The directory; may be missing.
        given: What was given otherwise, which wins, as the content of a file wins over the file.

    Returns:
        Setting name to path. known_hosts counts whether it is there or not: no other file is a second choice.

    Raises:
        KeyFileError: The directory is closed to us.
    """
    return {
        name: Given(str(directory / file), f"{directory / file}, GATEWAY_KEYS_DIR")
        for name, file in FILES.items()
        if not {name, _INSTEAD.get(name)} & given.keys()
        if name == "remote_known_hosts" or _is_there(directory / file)
    }


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a path that is none
        return False
    except OSError as exc:
        # Not the same: without the key, or the keys, that cannot be seen, others would get in.
        raise KeyFileError(f"GATEWAY_KEYS_DIR: {path} cannot be read ({exc.strerror})") from exc
    return True


def is_file(path: Path, given: str) -> bool:
    """Tell whether there is a file.

    Args:
        path: Where.
        given: The setting and where it came from, for the error.

    Raises:
        KeyFileError: It is behind a directory that is closed to us, as to root without CAP_DAC_OVERRIDE.
    """
    # Not Path.is_file, which from Python 3.14 on says no for any error.
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
        given: The setting and where it came from, for the error.
        private: Whether it holds a secret, which only its owner and root's group may read.

    Raises:
        KeyFileError: It is not a file, cannot be read, belongs to somebody else or is open to others, as may be a
            directory on the way to it.
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


def check_place(path: Path, given: str) -> None:
    """Check that nobody but root can put a file where none is yet, and to which nobody looks at its owner later.

    Args:
        path: Where the file is to be.
        given: The setting and where it came from, for the error.

    Raises:
        KeyFileError: Somebody could.
    """
    # realpath and not resolve, which stumbles over a link to itself.
    for place in {Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent}:
        there = next(directory for directory in (place, *place.parents) if directory.exists())
        _check_directories(path, (there, *there.parents), given)
        # A sticky one lets everybody put files there; Kubernetes mounts secrets on such a one, for reading alone.
        writable = there.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not os.statvfs(there).f_flag & os.ST_RDONLY
        if writable:
            raise KeyFileError(
                f"{given}: {path} is not there, and could be put there by who may write to {there}:"
                " use a directory that is root's alone"
            )


def _looked_up(path: Path, given: str) -> list[Path]:
    """List the directories in which a name of a path, or of a link on its way, is looked up (path_resolution(7)).

    Raises:
        KeyFileError: A link belongs to somebody else, who could change it in a sticky directory, or leads nowhere.
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
    """Refuse a directory whose owner, or whose writers, could put another file in the place of one that is checked."""
    for directory in directories:
        info = directory.stat()
        if info.st_uid not in {0, os.geteuid()}:
            raise KeyFileError(
                f"{given}: {path} could be replaced by uid {info.st_uid}, to whom {directory} belongs:"
                f" chown 0:0 {directory}"
            )
        # In a sticky one, as Kubernetes mounts secrets, nobody replaces a file of root's (unlink(2)).
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not info.st_mode & stat.S_ISVTX:
            raise KeyFileError(
                f"{given}: {path} could be replaced by who may write to {directory}: chmod go-w {directory}"
            )


def check_public(path: Path) -> None:
    """Check that the broker and users' own ssh, none of which is root, can read a file of public keys.

    Args:
        path: The file, which is there.

    Raises:
        KeyFileError: It, or a directory on the way to it, is closed to them.
    """
    for part in (*reversed(path.resolve().parents), path):
        wanted, mode = (stat.S_IROTH, "0644") if part is path else (stat.S_IXOTH, "0755")
        if not part.stat().st_mode & wanted:
            raise KeyFileError(f"{part} is closed to the gateway's unprivileged users: chmod {mode} {part}")
