"""What the lab needs of the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.room import PLAIN_ENVIRONMENT

_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "mount", "ssh", "ssh-agent", "sshd", "mosh", "mosh-server")


def not_installed(*programs: str) -> list[str]:
    """Return those of the programs that are not on the lab's PATH."""
    return [program for program in programs if not shutil.which(program, path=PLAIN_ENVIRONMENT["PATH"])]


def what_is_missing() -> str | None:
    """Say in one sentence what keeps a lab from being built here and what to do; None when nothing does."""
    if os.geteuid() != 0:
        return "a lab is made of network namespaces: run this as root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun: load the kernel's module with `modprobe tun`, or pass the device in"
    if missing := not_installed(*_PROGRAMS):
        return f"not installed: {', '.join(missing)}; `make deps` installs what is missing"
    return None
