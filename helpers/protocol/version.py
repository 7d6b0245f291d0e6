"""The version of this installation."""

from __future__ import annotations

import importlib.metadata


def installed_version() -> str | None:
    """Return the version that is installed now; None without an installation. After an upgrade it is the new one."""
    try:
        return importlib.metadata.version("ssh-mosh-gateway")
    except importlib.metadata.PackageNotFoundError:
        return None
