"""Two gateways behind HAProxy, set up by the file that is shipped: what clients notice of it, and what the log says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.sessions import sshd_of

from lab import client
from lab.gateway import ADDRESS
from lab.room import PLAIN_ENVIRONMENT
from lab.users import make_key
from lab.waiting import LogFile, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

CONFIG = Path(__file__).parents[2] / "image" / "haproxy.cfg"
PORT = 2021


class Balancer:
    """HAProxy in front of two gateways with one host key.

    Attributes:
        gateways: Both.
        log: What HAProxy says.
        marks: The lengths of the gateways' logs when it began.
    """

    def __init__(self, lab: Lab, directory: Path, start_gateway: Callable[..., Gateway]) -> None:
        """Start all three; HAProxy has nothing of the test's own but the addresses."""
        key = make_key(directory / "host_key")
        self._known_hosts = directory / "known_hosts"
        self._known_hosts.write_text(f"[{ADDRESS}]:{PORT} {key.public}\n")
        settings = {
            "GATEWAY_HOST_KEY_PATH": str(key.private),
            "GATEWAY_TRUSTED_PROXIES": ADDRESS,
            "GATEWAY_STOP_TIMEOUT": "3600",
            "GATEWAY_SESSION_TIMEOUT": "60",  # of the session that a gateway takes with it, mosh-server stays
        }
        self.gateways = [start_gateway(settings) for _ in range(2)]
        text = CONFIG.read_text()
        ours = [":2222\n", "192.0.2.11:2222\n", "192.0.2.12:2222\n"]
        for theirs, port in zip(ours, (PORT, *(gateway.port for gateway in self.gateways)), strict=True):
            text, times = re.subn(rf"(?<= ){re.escape(theirs)}", f"{ADDRESS}:{port}\n", text)
            assert times == 1, theirs
        config = directory / "haproxy.cfg"
        config.write_text(text)
        self.log = LogFile(directory / "log")
        self.marks = [gateway.log.mark() for gateway in self.gateways]
        with self.log.path.open("wb") as log:
            self._process = subprocess.Popen(
                lab.near.network_argv(["haproxy", "-db", "-f", str(config)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=PLAIN_ENVIRONMENT,
                start_new_session=True,
            )
        wait_until(lambda: self._process.poll() is not None or _listens(lab), "HAProxy listens")
        assert self._process.poll() is None, self.log.lines()

    def argv(self, user: User, *command: str) -> list[str]:
        """Return the command line of an ``ssh`` that knows the one host key."""
        return client.ssh_argv(user, host=ADDRESS, port=PORT, known_hosts=self._known_hosts, command=command)

    def close(self) -> None:
        """End HAProxy."""
        self._process.kill()
        self._process.wait()


def _listens(lab: Lab) -> bool:
    try:
        lab.near.connect(ADDRESS, PORT).close()
    except OSError:
        return False
    return True


@pytest.fixture
def balancer(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, require: Callable[..., None]
) -> Iterator[Balancer]:
    """Two gateways behind one address."""
    require("haproxy")
    directory = lab.directory / f"balancer-{user.name}"
    directory.mkdir()
    made = Balancer(lab, directory, start_gateway)
    yield made
    made.close()


def _log_in(balancer: Balancer, user: User, open_terminal: Callable[..., Terminal]) -> tuple[Terminal, Gateway]:
    """Open a session; which gateway has it is for the balancer to say."""
    terminal = open_terminal(balancer.argv(user))
    terminal.wait_for(user.prompt)
    (gateway,) = (gateway for gateway in balancer.gateways if sshd_of(gateway, user))
    return terminal, gateway


def test_a_gateway_dies(lab: Lab, balancer: Balancer, open_terminal: Callable[..., Terminal]) -> None:
    """Its sessions end with a line and 255, the other one's go on, and so do logins, with the same host key."""
    alice, bob = lab.add_user(), lab.add_user()
    hers, dies = _log_in(balancer, alice, open_terminal)
    his, lives = _log_in(balancer, bob, open_terminal)
    assert {dies, lives} == set(balancer.gateways)

    os.kill(dies.room.pid, signal.SIGKILL)  # process 1 of its container, and with it all that runs there
    dies.wait_exit()

    assert hers.wait_exit() == 255
    assert f"Connection to {ADDRESS} closed by remote host." in hers.text
    his.run("echo $((6 * 7))", "\n42\n")
    for user in (alice, bob, alice, bob):
        done = lab.run(balancer.argv(user, "id -un"))
        assert (done.stdout.decode(), done.returncode) == (f"{user.name}\n", 0), done.stderr


def test_a_roll_out_ends_no_session_and_refuses_no_login(
    lab: Lab, balancer: Balancer, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A gateway that is stopped keeps its session to the end, while every new login goes to the other one."""
    terminal, first = _log_in(balancer, user, open_terminal)
    (other,) = (gateway for gateway in balancer.gateways if gateway is not first)
    marks = {gateway: gateway.log.mark() for gateway in balancer.gateways}
    first.signal(signal.SIGTERM)
    for number in range(8):
        done = lab.run(balancer.argv(user, f"echo {number}"))
        assert (done.stdout.decode(), done.returncode) == (f"{number}\n", 0), done.stderr
        if number == 0:
            first.log.wait_for("warning stopping ")
    assert len(other.log.matches("session_started ", since=marks[other])) >= 7
    terminal.run("echo $((40 + 2))", "42")
    terminal.type("exit 5\r")
    assert terminal.wait_exit() == 0  # as mosh has it
    assert first.wait_exit() == 0
    assert not first.log.matches("session_ended .*ended=(lost|stopped)", since=marks[first])


def test_what_the_logs_say(lab: Lab, balancer: Balancer, user: User) -> None:
    """HAProxy's tells the client's address for the one that sshd knows; a check costs sshd's one line and no error."""
    done = lab.run(balancer.argv(user, "id -un"))
    assert done.returncode == 0, done.stderr
    accepted = rf"Accepted publickey for {user.name} from {ADDRESS} port (\d+) "
    (port,) = wait_until(
        lambda: [match[1] for gateway in balancer.gateways for match in gateway.log.matches(accepted)],
        "one of the gateways has let the user in",
    )
    balancer.log.wait_for(rf"^{ADDRESS}:\d+ is {ADDRESS}:{port} at gateway-[12]$")

    (gateway, _), since = balancer.gateways, balancer.marks[0]
    clients = "|".join(match[1] for match in balancer.log.matches(rf" is {ADDRESS}:(\d+) at"))
    gone = rf"\[(\d+)\]: Connection (?:closed|reset) by {ADDRESS} port (?!(?:{clients})\b)\d+( \[preauth\])?$"
    pid = gateway.log.wait_for(gone, since=since)[1]
    said = [line for line in gateway.log.lines(since=since) if f"[{pid}]: " in line]
    assert len(said) == 1, said
    assert not balancer.log.matches("DOWN")
