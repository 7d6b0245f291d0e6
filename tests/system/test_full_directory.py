"""A runtime directory without room: users who were here go on getting in, and the operator hears of it."""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from helpers.protocol.free_space import FULL_FILES, RESERVE_BYTES
from lab.gateway import GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

SIZE_BYTES = 1024 * 1024


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab of its own."""
    return make_lab(rtt_ms=2)


@pytest.fixture
def small(lab: Lab) -> Iterator[Path]:
    """A file system in memory, of 1 MiB and 256 inodes, for a runtime directory."""
    path = lab.directory / "small"
    path.mkdir()
    options = f"mode=0755,size={SIZE_BYTES},nr_inodes=256"
    subprocess.run(["mount", "--no-mtab", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--no-mtab", "--lazy", str(path)], check=True)


def _look_up(gateway: Gateway, *names: str) -> list[bool]:
    """Ask for users as sshd's nss-systemd does (https://systemd.io/USER_GROUP_API/), and tell who is one."""
    found = []
    path = f"{gateway.settings['GATEWAY_RUNTIME_DIR']}/userdb/io.ssh-mosh-gateway"
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(path)
        with connection.makefile("rb") as stream:
            for name in names:
                parameters = {"userName": name, "service": "io.ssh-mosh-gateway"}
                request = {"method": "io.systemd.UserDatabase.GetUserRecord", "parameters": parameters}
                connection.sendall(json.dumps(request).encode() + b"\0")
                answer = b""
                while not answer.endswith(b"\0"):
                    answer += stream.read(1)
                found.append(b"userName" in answer)
    return found


def _check(gateway: Gateway, *arguments: str) -> tuple[int, str]:
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    command = gateway.room.argv([str(GATEWAYCTL), "healthcheck", *arguments])
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    return done.returncode, done.stdout


def _says(lab: Lab, gateway: Gateway, user: User) -> bytes:
    return lab.run(lab.gateway_argv(gateway, user, "echo in")).stdout


def test_invented_names_do_not_fill_it(lab: Lab, small: Path) -> None:
    """Names without end leave a reserve; old and new users get in, and all is well."""
    gateway = lab.start_gateway({"GATEWAY_RUNTIME_DIR": str(small / "run")})
    user, newcomer = lab.add_user(), lab.add_user()
    assert _says(lab, gateway, user) == b"in\n"
    found = _look_up(gateway, *(f"invented{number:024}" for number in range(12_000)))
    # Three minutes have to pass before a name's uid may be another's.
    assert (found[0], found[-1]) == (True, False)
    table = small / "run/state/users.sqlite3"
    assert table.stat().st_size < SIZE_BYTES - RESERVE_BYTES
    refused = gateway.log.matches(r"refused op=lookup user=invented\S+ reason=\"the runtime directory is full\"")
    assert len(refused) == found.count(False)
    assert _says(lab, gateway, user) == b"in\n"
    assert _says(lab, gateway, newcomer) == b""
    assert _check(gateway) == (0, "healthy\n")


@pytest.mark.parametrize("lacks", ["bytes", "inodes"])
def test_what_others_fill_is_told(lab: Lab, small: Path, lacks: str) -> None:
    """A user who had a session gets in all the same; a new one, whose refusal the log explains, once there is room."""
    gateway = lab.start_gateway({"GATEWAY_RUNTIME_DIR": str(small / "run")})
    user, newcomer = lab.add_user(), lab.add_user()
    assert _says(lab, gateway, user) == b"in\n"
    assert _look_up(gateway, newcomer.name) == [True]
    ballast = small / "ballast"
    ballast.mkdir()
    if lacks == "bytes":
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={ballast}/file", "bs=1k", "count=1024"], check=False, stderr=subprocess.DEVNULL
        )
    else:
        for number in range(256 - FULL_FILES):
            (ballast / f"{number}").touch()
    assert _check(gateway) == (1, f"unhealthy: space: the runtime directory {small}/run is full\n")
    assert _check(gateway, "--live") == (0, "healthy\n")  # Kubernetes must not end the sessions for it
    assert _says(lab, gateway, user) == b"in\n"
    assert _says(lab, gateway, newcomer) == b""
    gateway.log.wait_for(rf'key_refused .*user={newcomer.name} .*reason="the runtime directory is full"')
    subprocess.run(["rm", "-r", str(ballast)], check=True)
    assert _check(gateway) == (0, "healthy\n")
    wait_until(lambda: _says(lab, gateway, newcomer) == b"in\n", "the new user gets in")
