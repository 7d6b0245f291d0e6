"""Fixtures of the system tests: a lab per worker, a gateway in front of it, and a user per test.

One lab serves all tests of a worker, so a test changes only what is its own: its users, its terminals, the
gateways that it starts, and the weather for as long as it runs. What breaks the remote for everybody (host keys,
a missing mosh-server) wants a lab from ``make_lab``, which is there in a quarter of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.bench import Lab
from lab.needs import what_is_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

# The labs a test uses, with the lengths of their logs when it began to.
_LABS = pytest.StashKey[list[tuple[Lab, dict[Path, int]]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the logs and screens of the test's labs said, while they still stand."""
    report = yield
    if report.failed and call.when != "teardown":
        for lab, marks in item.stash.get(_LABS, []):
            report.sections.extend(lab.evidence(marks))
    return report


@pytest.fixture(scope="session", autouse=True)
def _able(do_without: Callable[[str | None], None]) -> None:
    """Look once for what every system test needs."""
    do_without(what_is_missing())


@pytest.fixture(scope="session")
def shared_lab(_able: None) -> Iterator[Lab]:
    """One lab per worker; tests ask for ``lab``."""
    with Lab(rtt_ms=20) as lab:
        yield lab


@pytest.fixture(scope="session")
def shared_gateway(shared_lab: Lab) -> Gateway:
    """One gateway per worker; tests ask for ``gateway``."""
    return shared_lab.start_gateway()


@pytest.fixture
def lab(shared_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The worker's lab: a WAN of 20 ms that loses nothing, whatever a test before this one did to it."""
    request.node.stash.setdefault(_LABS, []).append((shared_lab, shared_lab.marks()))
    with shared_lab.wan.weather():
        yield shared_lab


@pytest.fixture
def gateway(lab: Lab, shared_gateway: Gateway) -> Gateway:
    """The worker's gateway, with the settings most people have: keys are fetched from the remote."""
    assert shared_gateway in lab.gateways
    return shared_gateway


@pytest.fixture
def make_lab(_able: None, request: pytest.FixtureRequest) -> Iterator[Callable[..., Lab]]:
    """Bring up labs of the test's own (arguments of ``Lab``)."""
    labs: list[Lab] = []

    def make(**conditions: Any) -> Lab:
        lab = Lab(**conditions)
        lab.__enter__()
        labs.append(lab)
        request.node.stash.setdefault(_LABS, []).append((lab, {}))
        return lab

    yield make
    for made in labs:
        made.close()


@pytest.fixture
def start_gateway(lab: Lab) -> Iterator[Callable[..., Gateway]]:
    """Start gateways with settings of the test's own (arguments of ``Lab.start_gateway``)."""
    started: list[Gateway] = []

    def start(*arguments: Any, **options: Any) -> Gateway:
        started.append(lab.start_gateway(*arguments, **options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.close()


@pytest.fixture
def user(lab: Lab) -> User:
    """A user of the test's own, whose key and the gateway's are in authorized_keys; more by ``lab.add_user``."""
    return lab.add_user()


@pytest.fixture
def open_terminal(lab: Lab) -> Iterator[Callable[..., Terminal]]:
    """Open terminals in the worker's lab (arguments of ``Lab.terminal``)."""
    opened: list[Terminal] = []

    def open_one(*arguments: Any, **options: Any) -> Terminal:
        opened.append(lab.terminal(*arguments, **options))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()
