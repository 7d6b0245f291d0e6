"""``gatewayctl healthcheck``: green while somebody could log in, red as soon as nobody could, and cheap."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lab.gateway import GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process


def _check(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it where the gateway runs, as a container engine would."""
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    command = gateway.room.argv([str(GATEWAYCTL), "healthcheck", *arguments])
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


@contextmanager
def _stopped(process: Process) -> Iterator[None]:
    """Freeze a process for a while."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


_ADDRESSES = ("127.0.0.1", "0.0.0.0", "::", "*", "192.0.2.1", "2001:db8::1", "localhost")  # noqa: S104 - a namespace's


@pytest.mark.parametrize("address", _ADDRESSES)
def test_healthy(make_lab: Callable[..., Lab], address: str) -> None:
    """All three answer wherever it listens; the remote hears nothing of it, the log two lines, from loopback."""
    lab = make_lab()
    gateway = lab.start_gateway({"GATEWAY_HOST": address}, wait=False)
    gateway.log.wait_for(r"\bready\b")
    since, before = gateway.log.mark(), lab.wan.traffic().up.packets()
    done = _check(gateway)
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")
    as_json = json.loads(_check(gateway, "--json").stdout)
    checks = dict.fromkeys(("broker", "sshd", "users", "space", "processes", "drain"), "ok")
    assert as_json == {"healthy": True, "checks": checks, "warnings": []}
    assert lab.wan.traffic().up.packets() == before
    assert gateway.stop() == 0  # whatever sshd had to say, it has said
    said = [line.split(": ", 1)[1] for line in gateway.log.lines(since=since) if " sshd" in line]
    loopback = r"127\.0\.0\.1" if re.fullmatch(r"[0-9.]+|\*", address) else "::1"  # localhost is ::1 first
    # Two checks, and then the end.
    patterns = [rf"Connection (closed|reset) by {loopback} port ", "Received signal 15"]
    assert [sum(bool(re.match(pattern, line)) for line in said) for pattern in patterns] == [2, 1], said
    assert len(said) == 3


def test_a_broker_that_hangs(make_lab: Callable[..., Lab]) -> None:
    """A broker that does not answer is unhealthy, and green again once it does."""
    lab = make_lab(rtt_ms=2)
    gateway = lab.start_gateway()
    with _stopped(gateway.broker):
        done = _check(gateway)
    assert done.returncode == 1
    assert done.stdout.startswith("unhealthy: broker: ")
    assert done.stdout.count("\n") == 1
    wait_until(lambda: _check(gateway).returncode == 0, "the gateway is healthy again")


def test_an_sshd_that_hangs(make_lab: Callable[..., Lab]) -> None:
    """An sshd that accepts and says nothing is unhealthy."""
    lab = make_lab(rtt_ms=2)
    gateway = lab.start_gateway()
    with _stopped(gateway.listener):
        done = _check(gateway, "--json")
    assert done.returncode == 1
    checks = json.loads(done.stdout)["checks"]
    assert (checks["broker"], checks.get("users")) == ("ok", None)
    assert checks["sshd"] == f"port {gateway.port} on 127.0.0.1 does not answer (timed out)"


def test_an_sshd_that_has_ended(make_lab: Callable[..., Lab]) -> None:
    """Without sshd nothing is left that could answer."""
    lab = make_lab(rtt_ms=2)
    gateway = lab.start_gateway()
    os.kill(gateway.listener.pid, signal.SIGKILL)
    gateway.wait_exit()
    done = _check(gateway)
    assert done.returncode == 1
    assert done.stdout.startswith("unhealthy: broker: no gateway runs in ")


def test_users_that_are_not_found(make_lab: Callable[..., Lab]) -> None:
    """A user database that sshd would not see is unhealthy, though both processes are well."""
    lab = make_lab(rtt_ms=2)
    gateway = lab.start_gateway()
    where = ["nsenter", "--mount", f"--target={gateway.listener.pid}", "--"]
    subprocess.run([*where, "mount", "--no-mtab", "--bind", "/dev/null", "/etc/nsswitch.conf"], check=True)
    done = _check(gateway)
    assert done.returncode == 1
    assert done.stdout.startswith("unhealthy: users: sshd would not find the gateway's users")


def test_nobody_else_may_ask(gateway: Gateway) -> None:
    """The broker tells its state to root alone."""
    environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"]}
    command = ["setpriv", "--reuid=65534", "--clear-groups", "--", str(GATEWAYCTL), "healthcheck"]
    done = subprocess.run(
        gateway.room.argv(command), capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout) == (1, "unhealthy: broker: only root may ask for the gateway's status\n")
