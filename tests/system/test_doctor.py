"""`gatewayctl doctor`: each step on a way that works, and what it says where one is broken."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from gatewayctl.doctor.gateway import report_congestion_control
from gatewayctl.doctor.report import SkippedError
from lab.gateway import GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.bench import Lab

_STEPS = [
    "addresses",
    "TCP",
    "MTU",
    "identification",
    "algorithms",
    "host key",
    "gateway's login",
    "authorized_keys",
    "mosh-server",
    "UTF-8 locale",
    "UDP",
    "large datagrams",
    "clock",
    "sftp",
    "congestion control",
    "login",
]
_AS_USER = _STEPS[6:14]


class Doctor:
    """A lab of the test's own, its user, and the settings of a gateway that need not run.

    Attributes:
        lab: The lab.
        user: The user.
        settings: The settings.
    """

    def __init__(self, lab: Lab) -> None:
        """Make the user."""
        self.lab, self.user = lab, lab.add_user()
        self.settings: dict[str, str] = {
            "REMOTE_HOST": "192.0.2.2",
            "GATEWAY_SSH_KEY_PATH": str(lab.gateway_key.private),
            "REMOTE_KNOWN_HOSTS": str(lab.known_hosts),
            "GATEWAY_RUNTIME_DIR": str(lab.directory / "no-gateway"),
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it in the gateway's network."""
        argv = self.lab.near.argv([str(GATEWAYCTL), "doctor", *arguments])
        environment = {**PLAIN_ENVIRONMENT, **self.settings}
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=environment)

    def rows(self, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Run it as the user; return its exit status, and its rows by step."""
        done = self.run("--user", self.user.name, "--json", *arguments)
        assert done.stderr == "", done.stderr
        rows = json.loads(done.stdout)
        assert [row["step"] for row in rows] == _STEPS
        assert all(set(row) == {"step", "outcome", "ms", "detail", "code", "status"} for row in rows)
        return done.returncode, {row["step"]: row for row in rows}

    def fails(self, step: str, status: int, detail: str, *skipped: str) -> None:
        """Check that one step fails, with the command's status, and no other; and which ones are skipped."""
        exit_status, rows = self.rows()
        assert {name for name, row in rows.items() if row["outcome"] == "fail"} == {step}
        assert (rows[step]["status"], exit_status) == (status, status)
        assert detail in rows[step]["detail"], rows[step]
        assert {name for name, row in rows.items() if row["outcome"] == "skip"} == {"login", *skipped}


@pytest.fixture
def doctor(make_lab: Callable[..., Lab]) -> Iterator[Doctor]:
    """A way that works, and nothing that is left of the examination."""
    made = Doctor(make_lab(rtt_ms=20))
    yield made
    wait_until(lambda: not made.lab.remote.processes("mosh-server"), "no mosh-server is left")
    assert not [its for its in made.lab.near.processes() if its.name == "mosh-client"]


def _filter(doctor: Doctor, *words: str) -> None:
    """Drop packets at the remote."""
    doctor.lab.remote.room.run(["iptables", "-A", *words, "-j", "DROP"])


def test_a_way_that_works(doctor: Doctor) -> None:
    """Every step is ok, a login through the running gateway too; each row is a line."""
    gateway = doctor.lab.start_gateway()
    doctor.settings |= gateway.settings
    status, rows = doctor.rows("--identity", str(doctor.user.key.private))
    assert (status, {row["outcome"] for row in rows.values()}) == (0, {"ok"}), rows
    assert all(row["ms"] >= 0 and row["detail"] and row["code"] is None for row in rows.values())
    assert rows["identification"]["detail"].startswith("SSH-2.0-OpenSSH_")
    assert rows["authorized_keys"]["detail"].startswith("1 in .ssh/authorized_keys")
    assert rows["mosh-server"]["detail"].startswith("mosh-server (mosh 1.")
    lines = doctor.run("--user", doctor.user.name).stdout.splitlines()
    assert [line[6:24].rstrip() for line in lines] == _STEPS
    assert gateway.log.matches(f"session_started .*user={doctor.user.name} ")


def test_without_a_user_the_steps_that_need_one_are_skipped(doctor: Doctor) -> None:
    """It says how to give one, and is no failure."""
    done = doctor.run("--json")
    rows = {row["step"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0
    assert {name for name, row in rows.items() if row["outcome"] == "skip"} == {*_AS_USER, "login"}
    assert rows["gateway's login"]["detail"] == "give --user NAME"


@pytest.mark.parametrize("mode", ["no key", "local keys", "any key"])
def test_steps_that_make_no_sense_are_skipped(doctor: Doctor, mode: str) -> None:
    """A gateway without a key does not log in; one with keys of its own does not read the remote host's."""
    if mode == "no key":
        del doctor.settings["GATEWAY_SSH_KEY_PATH"]
    elif mode == "local keys":
        doctor.settings["GATEWAY_AUTHORIZED_KEYS_CONTENT"] = doctor.user.key.public
    else:
        doctor.settings["GATEWAY_ACCEPT_ANY_KEY"] = "true"
    status, rows = doctor.rows()
    skipped = {name for name, row in rows.items() if row["outcome"] == "skip"}
    assert (status, skipped) == (0, {"login", *(_AS_USER if mode == "no key" else ["authorized_keys"])})


# What is broken


def test_a_host_without_an_address(doctor: Doctor) -> None:
    """All else needs one."""
    doctor.settings["REMOTE_HOST"] = "no-such-host.invalid"
    doctor.fails("addresses", 68, "check REMOTE_HOST and the gateway's DNS", *_STEPS[1:])


def test_a_port_that_refuses(doctor: Doctor) -> None:
    """The sentence has the address that was tried."""
    doctor.settings["REMOTE_PORT"] = "23"
    doctor.fails("TCP", 69, "(192.0.2.2 Connection refused) refuses connections", *_STEPS[2:])


@pytest.mark.parametrize(
    ("said", "status", "detail"),
    [
        ("HTTP/1.1 400 Bad Request\\n", 74, "does not speak SSH"),
        ("SSH-1.5-old\\n", 64, "does not speak SSH 2.0"),
        ("", 75, "accepts connections and says nothing"),
    ],
)
def test_a_port_that_is_another_programs(doctor: Doctor, said: str, status: int, detail: str) -> None:
    """One that speaks something else, an SSH of long ago, and one that says nothing."""
    program = (
        "import socket; s = socket.create_server(('', 2200)); c, _ = s.accept(); "
        f"d, _ = s.accept(); d.sendall(b'{said}'); {'d.close(); ' if said else ''}d.recv(1) if {not said} else None"
    ).replace("\\\\", "\\")
    argv = doctor.lab.remote.room.argv(["/usr/bin/python3", "-c", program])
    doctor.settings["REMOTE_PORT"] = "2200"
    with subprocess.Popen(argv, env=PLAIN_ENVIRONMENT) as server:
        listens = doctor.lab.remote.room.argv(["ss", "-Hltn", "sport = :2200"])
        wait_until(lambda: subprocess.run(listens, capture_output=True, check=True).stdout, "it listens")
        # Its keys and MTU are not looked at.
        exit_status, rows = doctor.rows()
        server.kill()
    assert (rows["identification"]["outcome"], exit_status) == ("fail", status)
    assert detail in rows["identification"]["detail"]
    assert rows["algorithms"]["outcome"] == rows["login"]["outcome"] == "skip"


def test_an_mtu_that_is_too_small_for_mosh(doctor: Doctor) -> None:
    """TCP adapts, and mosh's datagrams would not get through."""
    for room in (doctor.lab.near, doctor.lab.remote.room):
        room.run(["ip", "link", "set", "wan0", "mtu", "1200"])
    exit_status, rows = doctor.rows()
    assert (rows["MTU"]["outcome"], rows["MTU"]["status"], exit_status) == ("fail", 74, 74)
    assert "the path's MTU is 1200 bytes" in rows["MTU"]["detail"]


def test_no_common_algorithm(doctor: Doctor) -> None:
    """The sentence lists both sides'."""
    doctor.lab.remote.set_option("KexAlgorithms sntrup761x25519-sha512@openssh.com")
    doctor.fails("algorithms", 64, "add one of the gateway's to KexAlgorithms", *_STEPS[5:14])


def test_another_host_key(doctor: Doctor) -> None:
    """The sentence has the command that pins it."""
    doctor.lab.known_hosts.write_text("")
    doctor.fails("host key", 76, "ssh-keyscan", *_AS_USER)


def test_a_user_whom_the_remote_does_not_let_in(doctor: Doctor) -> None:
    """The gateway's key is not in authorized_keys there."""
    doctor.lab.remote.authorize(doctor.user, [doctor.user.key.public])
    doctor.fails("gateway's login", 77, "add the gateway's public key", *_AS_USER[1:])


@pytest.mark.parametrize("what", ["none", "StrictModes"])
def test_keys_that_do_not_count(doctor: Doctor, what: str) -> None:
    """There is none but the gateway's, or the second file is open to others; the rule is the broker's own."""
    doctor.lab.remote.authorize(doctor.user, [doctor.lab.gateway_key.public])
    if what == "none":
        doctor.fails("authorized_keys", 77, "there is none but the gateway's")
        return
    doctor.lab.remote.write_file(doctor.user, ".ssh/authorized_keys2", doctor.user.key.public, mode=0o666)
    doctor.fails("authorized_keys", 77, ".ssh/authorized_keys2 on the remote host does not count: ")


def test_no_mosh_server(doctor: Doctor) -> None:
    """What needs one is skipped, and sftp is not."""
    doctor.settings["REMOTE_MOSH_SERVER"] = "/no/such/mosh-server"
    doctor.fails("mosh-server", 72, "the remote host has no /no/such/mosh-server", *_STEPS[9:12])


def test_no_utf8_locale(doctor: Doctor) -> None:
    """The sentence names the two that are tried."""
    with doctor.lab.remote.without_utf8_locale():
        doctor.fails("UTF-8 locale", 66, "install C.UTF-8 or en_US.UTF-8", *_STEPS[10:12])


@pytest.mark.parametrize("direction", ["INPUT", "OUTPUT"])
def test_udp_that_does_not_get_through(doctor: Doctor, direction: str) -> None:
    """Neither to the remote host nor back; its mosh-server is ended at once."""
    _filter(doctor, direction, "-p", "udp")
    doctor.fails("UDP", 74, "open 60001:60999 (REMOTE_MOSH_PORTS)", "large datagrams")


def test_udp_that_is_refused(doctor: Doctor) -> None:
    """An ICMP error is told apart from silence."""
    doctor.lab.near.run(["iptables", "-A", "OUTPUT", "-p", "udp", "-j", "REJECT"])
    doctor.fails("UDP", 74, "UDP is refused to port 6", "large datagrams")


@pytest.mark.parametrize("direction", ["INPUT", "OUTPUT"])
def test_large_datagrams_that_are_lost(doctor: Doctor, direction: str) -> None:
    """Small ones get through, so mosh would begin and freeze."""
    _filter(doctor, direction, "-p", "udp", "-m", "length", "--length", "1000:")
    doctor.fails("large datagrams", 74, "mosh would freeze at the first full screen")


def test_a_clock_that_differs(doctor: Doctor) -> None:
    """The remote host's is a day late."""
    doctor.lab.remote.write_file(doctor.user, "bin/date", '#!/bin/sh\nexec /bin/date -d yesterday "$@"\n', mode=0o755)
    doctor.lab.remote.write_file(doctor.user, ".bashrc", "PATH=~/bin:$PATH\n")
    doctor.fails("clock", 74, "the remote host's clock differs by -86")


def test_no_sftp(doctor: Doctor) -> None:
    """The sentence has the line that it takes."""
    config = doctor.lab.directory / "remote" / "sshd_config"
    text = config.read_text()
    config.write_text(text.replace("/usr/lib/openssh/sftp-server", "/bin/false"))
    assert config.read_text() != text
    doctor.lab.remote.set_option("UseDNS no")
    doctor.fails("sftp", 74, "add Subsystem sftp internal-sftp")


@pytest.mark.parametrize("what", ["a wrong key", "no gateway"])
def test_a_login_through_the_gateway_that_fails(doctor: Doctor, what: str) -> None:
    """A key that is not the user's fails; a gateway that does not run is no failure of the way."""
    other = doctor.lab.add_user()
    if what == "a wrong key":
        doctor.settings |= doctor.lab.start_gateway().settings
    status, rows = doctor.rows("--identity", str(other.key.private))
    outcome, expected = ("fail", 77) if what == "a wrong key" else ("skip", 0)
    assert (rows["login"]["outcome"], status) == (outcome, expected)
    assert ("Permission denied" if what == "a wrong key" else "no gateway runs in") in rows["login"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--user", "a b"], 67), (["--user"], 2), (["--no-such-flag"], 2), (["--user", "../x"], 67)],
)
def test_a_mistake_is_one_line(doctor: Doctor, arguments: list[str], status: int) -> None:
    """Nothing is examined."""
    done = doctor.run(*arguments)
    assert (done.returncode, done.stdout) == (status, "")


@pytest.mark.parametrize(
    ("name", "words"),
    [("cubic", "cubic: at 1 % loss an upload gets 1.4 Mbit/s at most"), ("bbr", "does not slow down")],
)
def test_congestion_control(tmp_path: Path, name: str, words: str) -> None:
    """What the kernel uses, and what a lossy upload gets of it at 100 ms."""
    (tmp_path / "tcp_congestion_control").write_text(f"{name}\n")
    assert words in report_congestion_control(0.1, tmp_path)
    with pytest.raises(SkippedError):
        report_congestion_control(0.1, tmp_path / os.fspath("nowhere"))
