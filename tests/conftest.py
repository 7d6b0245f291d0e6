"""What all tests share: how a test says what it cannot do without."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from lab.needs import not_installed
from lab.remote import TREE
from lab.room import PLAIN_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable

# Nobody's test is a clock, and machines are busy. What else the environment asks for (CI) stays.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Where the tests run in a shell's background these are ignored, and would be by every client that a test sends them to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end on what the tests ran: much of what they see is OpenSSH's, mosh's and systemd's."""
    remote = f"; remote: {_versions(TREE)}" if Path("/") != TREE else ""
    terminalreporter.write_line(f"Ran on {_versions(Path('/'))}, Python {platform.python_version()}{remote}")


def _versions(tree: Path) -> str:
    """Name the release of Debian, and the versions of the programs that matter, in a tree of files."""
    release = (tree / "etc/debian_version").read_text().strip() if (tree / "etc/debian_version").exists() else "?"
    said = []
    for program, *arguments in (("ssh", "-V"), ("mosh-server", "--version"), ("systemctl", "--version")):
        argv = [*(["chroot", str(tree)] if tree != Path("/") else []), program, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=PLAIN_ENVIRONMENT)
        found = re.search(r"OpenSSH_[^ ,]+|mosh [\d.]+|systemd \d+", done.stdout + done.stderr.replace("(", ""))
        said.append(found[0] if found else f"no {program}")
    return f"Debian {release}: {', '.join(said)}"


@pytest.fixture(scope="session")
def do_without() -> Callable[[str | None], None]:
    """Give up for a reason, if there is one: skipped on a laptop, failed where ``CI=true``."""

    def give_up(reason: str | None) -> None:
        if reason and os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        if reason:
            pytest.skip(reason)

    return give_up


@pytest.fixture(scope="session")
def require(do_without: Callable[[str | None], None]) -> Callable[..., None]:
    """Name the programs that a test needs: ``require("plink", "dbclient")``."""

    def check(*programs: str) -> None:
        if missing := not_installed(*programs):
            do_without(f"not installed: {', '.join(missing)}; `make deps` installs what is missing")

    return check
