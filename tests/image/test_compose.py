"""compose.yaml brought up by podman-compose, in the lab's network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from lab import client
from lab.gateway import ADDRESS
from lab.podman import podman
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.users import User

    Compose = Callable[..., subprocess.CompletedProcess[str]]

TEXT = (Path(__file__).parents[2] / "compose.yaml").read_text()
PORT = 2998
NAME = f"smg-lab-{os.getpid()}"
CONTAINER = f"{NAME}_gateway_1"


@pytest.fixture
def compose(lab: Lab, image: str, tmp_path: Path) -> Iterator[Compose]:
    """Run podman-compose in a directory that an operator has prepared; what is brought up goes with the test."""
    (tmp_path / "compose.yaml").write_text(TEXT)
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "id_ed25519"
    key.touch(mode=0o600)
    key.write_text(lab.gateway_key.private.read_text())
    (tmp_path / "keys" / "known_hosts").write_text(lab.known_hosts.read_text())
    # The image under test, and the lab's network in the place of a bridge.
    ours = {"image": image, "network_mode": "host", "environment": {"GATEWAY_PORT": str(PORT)}}
    override = {"services": {"gateway": ours}, "x-podman": {"in_pod": False}}
    (tmp_path / "override.yaml").write_text(yaml.safe_dump(override))

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        files = ["--file", str(tmp_path / "compose.yaml"), "--file", str(tmp_path / "override.yaml")]
        program = str(Path(sys.executable).with_name("podman-compose"))
        return subprocess.run(
            lab.near.network_argv([program, "--project-name", NAME, *files, *arguments]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**PLAIN_ENVIRONMENT, "PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables},
        )

    yield run
    run("down", "--volumes", REMOTE_HOST=FAR_IPV4)


def test_login(lab: Lab, compose: Compose, user: User) -> None:
    """With REMOTE_HOST set ``up -d`` is all, and a user lands in a shell on the remote."""
    done = compose("up", "--detach", "--no-build", REMOTE_HOST=FAR_IPV4)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: " ready " in podman("logs", CONTAINER).stderr, "the gateway is ready")
    known_hosts = lab.directory / "compose-known_hosts"
    public = podman("exec", CONTAINER, "cat", "/etc/gateway/host_key.pub").stdout
    known_hosts.write_text(f"[{ADDRESS}]:{PORT} {public}")
    argv = client.ssh_argv(user, host=ADDRESS, port=PORT, known_hosts=known_hosts)
    terminal = lab.terminal(argv)
    terminal.wait_for(user.prompt)
    terminal.close()
    status = podman("exec", CONTAINER, "cat", "/proc/1/status").stdout
    for line in ("CapEff:\t00000000000400e3", "CapBnd:\t00000000000400e3", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert podman("exec", CONTAINER, "touch", "/x", check=False).returncode != 0
    limits = podman("container", "inspect", "--format={{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}", CONTAINER)
    assert limits.stdout.split() == [str(2 << 30), "2048"]


def test_a_missing_remote_host_is_one_clear_line(compose: Compose) -> None:
    """Nothing is brought up, and the last line says what is missing."""
    done = compose("up", "--detach", "--no-build")
    assert done.returncode != 0
    assert "REMOTE_HOST" in done.stderr.splitlines()[-1]
    assert "set it to the host that users land on, for example REMOTE_HOST=shell.example.org" in done.stderr
    assert podman("container", "exists", CONTAINER, check=False).returncode != 0
