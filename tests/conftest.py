"""What all tests share: how a test says what it cannot do without."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from lab.needs import not_installed

if TYPE_CHECKING:
    from collections.abc import Callable

# Nobody's test is a clock, and machines are busy. What else the environment asks for (CI) stays.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Where the tests run in a shell's background these are ignored, and would be by every client that a test sends them to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


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
