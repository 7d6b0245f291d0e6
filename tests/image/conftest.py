"""Fixtures of the image's tests: a lab per worker, and containers in its network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from lab.bench import Lab
from lab.needs import what_is_missing
from lab.podman import PODMAN, Container, Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.users import User


@pytest.fixture(scope="session")
def image() -> str:
    """Name the image under test, which ``make image`` has built."""
    name = os.environ.get("GATEWAY_IMAGE")
    if name is None:
        pytest.fail("GATEWAY_IMAGE names no image: make image builds one and tests it", pytrace=False)
    return name


@pytest.fixture(scope="session", autouse=True)
def _our_podman() -> Iterator[None]:
    """Let testinfra find the podman that works here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(PODMAN.parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def lab(do_without: Callable[[str | None], None]) -> Iterator[Lab]:
    """One lab per worker."""
    do_without(what_is_missing())
    with Lab(rtt_ms=20) as made:
        yield made


@pytest.fixture(scope="session")
def shared_keys(lab: Lab) -> Keys:
    """What the worker's container is given."""
    return Keys(lab, "shared")


@pytest.fixture(scope="session")
def container(lab: Lab, image: str, shared_keys: Keys) -> Iterator[Container]:
    """One healthy container per worker, for tests that leave it as it is."""
    made = Container(lab, image, shared_keys)
    try:
        made.wait_healthy()
        yield made
    finally:
        made.close()


@pytest.fixture
def keys(lab: Lab, request: pytest.FixtureRequest) -> Keys:
    """Keys of the test's own."""
    return Keys(lab, f"test-{abs(hash(request.node.nodeid))}")


@pytest.fixture
def start(lab: Lab, image: str, keys: Keys) -> Iterator[Callable[..., Container]]:
    """Start containers of the test's own (keyword arguments of ``Container``)."""
    started: list[Container] = []

    def start_one(**options: Any) -> Container:
        started.append(Container(lab, image, keys, **options))
        return started[-1]

    yield start_one
    for made in started:
        made.close()


@pytest.fixture
def user(lab: Lab) -> User:
    """A user of the test's own on the remote."""
    return lab.add_user()
