"""``gatewayctl install --systemd``, on a machine that systemd has booted and whose own sshd is at work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from system.sessions import sends_at_once

from lab.directory import own_directory
from lab.gateway import GATEWAYCTL
from lab.machine import SYSTEMD, Machine
from lab.processes import namespace_id, processes_in
from lab.users import make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_GATEWAYCTL = (sys.executable, "-I", "-m", "gatewayctl")
_UNIT = "ssh-mosh-gateway.service"
_PORT = "2222"
_CLIENT = ["-F", "none", "-p", _PORT, "-i", "/root/client", "-o", "StrictHostKeyChecking=accept-new"]

MOST_EXPOSURE = 4.0
"""Highest score of systemd-analyze security that docs/install.md may state, of 10."""


@pytest.fixture(scope="module")
def machine(_able: None, do_without: Callable[[str | None], None]) -> Iterator[Machine]:
    """A machine with a user alice, whom it trusts with its disks, and settings that make it its own remote."""
    do_without(None if SYSTEMD.exists() else "systemd is not installed")
    with own_directory() as directory:
        files = directory / "machine"
        files.mkdir()
        made = Machine(files)
        try:
            _set_up(made, directory)
            yield made
        finally:
            made.close()


def _set_up(machine: Machine, directory: Path) -> None:
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", "--groups", "adm,disk", "alice")
    keys = [make_key(directory / name) for name in ("gateway", "client")]
    machine.run("mkdir", "-p", "/etc/gateway", "/home/alice/.ssh", "/root")
    for key, path in zip(keys, ("/etc/gateway/id_ed25519", "/root/client"), strict=True):
        machine.run("install", "-m", "600", "/dev/stdin", path, stdin=key.private.read_text())
    machine.run("tee", "/home/alice/.ssh/authorized_keys", stdin="".join(f"{key.public}\n" for key in keys))
    machine.run("chown", "-R", "alice:", "/home/alice/.ssh")
    host_key = machine.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()
    machine.run("tee", "/etc/ssh/ssh_known_hosts", stdin=f"127.0.0.1 {' '.join(host_key[:2])}\n")


def _configure(machine: Machine, text: str) -> None:
    machine.run("tee", "/etc/gateway/config.yaml", stdin=text)


def _journal(machine: Machine) -> str:
    return machine.run("journalctl", "--no-pager", "--output=cat", f"--unit={_UNIT}").stdout


def _property(machine: Machine, unit: str, name: str) -> str:
    return machine.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


@pytest.fixture(scope="module")
def before(machine: Machine) -> list[str]:
    """What the host's own sshd was like before any gateway was installed."""
    return _sshd_of_the_host(machine)


@pytest.fixture
def service(machine: Machine, before: list[str]) -> Iterator[Machine]:
    """The service, installed and started."""
    assert before
    _configure(machine, "remote_host: 127.0.0.1\ngateway_ssh_key_path: /etc/gateway/id_ed25519\n")
    done = machine.run(*_GATEWAYCTL, "install", "--systemd")
    assert done.stdout.splitlines() == [
        f"Wrote /etc/systemd/system/{_UNIT}.",
        f"Linked /usr/local/bin/gatewayctl to {GATEWAYCTL}.",
        f"Then: systemctl enable --now {_UNIT}",
    ]
    machine.run("systemctl", "start", _UNIT)
    yield machine
    machine.run(*_GATEWAYCTL, "install", "--systemd", "--remove")


def _sshd_of_the_host(machine: Machine) -> list[str]:
    """Return all that shows whether somebody touched it: its process, its files, what it answers."""
    seen = [_property(machine, "ssh.service", name) for name in ("MainPID", "ActiveState", "NRestarts", "InvocationID")]
    seen.append(
        machine.run(
            "sh", "-c", "find /etc/ssh /etc/passwd /etc/shadow /etc/nsswitch.conf -type f | xargs sha256sum"
        ).stdout
    )
    seen.append(machine.run("stat", "--format=%a %u %Y", "/run/sshd").stdout)
    seen.append(machine.run("ssh-keyscan", "-t", "ed25519", "127.0.0.1").stdout)
    return seen


def test_the_service_serves_and_leaves_the_hosts_sshd_alone(service: Machine, before: list[str]) -> None:
    """Start, logins by mosh and ssh, reload, stop: and sshd on port 22 is as it was, and knows no user of ours."""
    machine = service
    # Type=notify: started means that it takes logins.
    assert machine.run(*_GATEWAYCTL, "healthcheck").stdout == "healthy\n"
    done = machine.run("ssh", *_CLIENT, "alice@127.0.0.1", "id -un; exit 3", check=False)
    assert (done.stdout, done.returncode) == ("alice\n", 3), done.stderr + _journal(machine)
    assert machine.pid is not None
    found = processes_in(namespace_id(machine.pid, "pid"))
    (sshd,) = (its for its in found if "/run/gateway/sshd_config [listener]" in its.argv[0])
    assert sends_at_once(sshd)
    line = f"ssh {' '.join(_CLIENT)} -t alice@127.0.0.1 'echo by $(ps -o comm= -p $PPID); sleep 1'"
    shown = machine.run("script", "-qec", f"stty rows 24 cols 80; TERM=xterm {line}", "/dev/null")
    assert "by mosh-server" in shown.stdout
    broker = machine.run("pgrep", "-f", "helpers.broker").stdout
    machine.run("systemctl", "reload", _UNIT)
    wait_until(lambda: machine.run("pgrep", "-f", "helpers.broker").stdout not in {"", broker}, "a new broker")
    wait_until(lambda: _property(machine, _UNIT, "ActiveState") == "active", "the reload is over")
    assert machine.run("getent", "passwd", "gateway+auth", check=False).returncode == 2
    assert _sshd_of_the_host(machine) == before
    machine.run("systemctl", "stop", _UNIT)
    assert _property(machine, _UNIT, "Result") == "success"
    assert machine.run("ls", "/run/gateway").stdout.find(".sock") == -1
    machine.run(*_GATEWAYCTL, "install", "--systemd", "--remove")
    assert _sshd_of_the_host(machine) == before


def test_the_hosts_sshd_may_stop(service: Machine, before: list[str]) -> None:
    """The gateway's users still get in when the host's sshd is stopped, and systemd removes sshd's chroot with it."""
    try:
        service.run("systemctl", "stop", "ssh.service")
        assert service.run("test", "-e", "/run/sshd", check=False).returncode == 1
        assert service.run(*_GATEWAYCTL, "healthcheck", check=False).stdout == "healthy\n"
        service.run("systemctl", "reload", _UNIT)
    finally:
        service.run("systemctl", "start", "ssh.service")
    done = service.run("ssh", *_CLIENT, "alice@127.0.0.1", "id -un", check=False)
    assert (done.stdout, done.returncode) == ("alice\n", 0), done.stderr + _journal(service)
    # It has been started anew: what it is from now on is what later tests compare with.
    before[:] = _sshd_of_the_host(service)


def test_the_host_may_change_its_users_and_turn_its_logs(service: Machine, before: list[str]) -> None:
    """The host's files are put in place anew, as useradd and logrotate do, and our sshd still has its own."""
    service.run("sh", "-c", "echo 'bob:secret' > /root/bob; useradd --groups disk bob && chpasswd < /root/bob")
    service.run("sh", "-c", "cd /var/log && for log in wtmp lastlog; do touch $log; mv $log $log.1; : > $log; done")
    enter = ["sh", "-c", 'exec nsenter --mount --root --target "$(cat /run/gateway/sshd.pid)" -- "$@"', "sh"]
    assert not any(line.split(":")[3] for line in service.run(*enter, "getent", "group").stdout.splitlines())
    for database in ("passwd", "shadow"):
        seen = service.run(*enter, "getent", "--service=files", database).stdout
        assert [line.split(":")[0] for line in seen.splitlines()] == ["root", "sshd", "nobody"]
    done = service.run("ssh", *_CLIENT, "-tt", "alice@127.0.0.1", "id -un", check=False)
    assert done.stdout.split() == ["alice"], done.stderr + _journal(service)
    # It is indexed by uid, and the machine is its own remote: alice's place in it is near the beginning.
    assert int(service.run("stat", "--format=%s", "/var/log/lastlog").stdout) < 100 * 65536
    # In whatever order the tests come, later ones compare with the files as they are now.
    before[:] = _sshd_of_the_host(service)


def test_a_users_name_puts_nobody_into_the_hosts_groups(service: Machine) -> None:
    """The host's alice may read its disks; the gateway's alice, whose processes run on the same machine, may not."""
    program = "/^Uid:/ { uid = $2 } /^Groups:/ && uid > 1879048192 && NF > 1 { print uid, $2, NF }"
    look = f"id -Gn; awk '{program}' /proc/[0-9]*/status"
    done = service.run("ssh", *_CLIENT, "alice@127.0.0.1", look, check=False)
    groups, *seen = done.stdout.splitlines()
    assert groups == "alice adm disk", done.stderr + _journal(service)  # there, where she is alice
    rows = [line.split() for line in seen]
    assert rows
    assert all(uid == group and words == "2" for uid, group, words in rows), rows


def test_installing_again_changes_nothing(service: Machine) -> None:
    """A second run says so, and what it takes to run what was upgraded; the service goes on."""
    pid = _property(service, _UNIT, "MainPID")
    again = service.run(*_GATEWAYCTL, "install", "--systemd")
    assert again.stdout.splitlines() == [
        f"/etc/systemd/system/{_UNIT} is up to date.",
        f"Then, for what is new here: systemctl reload {_UNIT}",
    ]
    assert _property(service, _UNIT, "MainPID") == pid


def test_another_gateways_unit_stays(service: Machine) -> None:
    """A unit with another --config, or that another program wrote, is refused with what to do, and is as it was."""
    path = f"/etc/systemd/system/{_UNIT}"
    ours = service.run("cat", path).stdout
    theirs = "[Service]\nExecStart=/usr/bin/true\n"
    other = ["--config", "/etc/other.yaml"]
    try:
        for unit, arguments, reason in (
            (ours, other, 'runs the gateway of --config "/etc/gateway/config.yaml": give that, another --name'),
            (theirs, [], "was not written by gatewayctl install, and stays; move it away, or give another --name"),
        ):
            service.run("tee", path, stdin=unit)
            done = service.run(*_GATEWAYCTL, "install", "--systemd", *arguments, check=False)
            assert (done.returncode, done.stdout) == (78, "")
            assert done.stderr.startswith(f"gatewayctl: {path} {reason}")
            assert service.run("cat", path).stdout == unit
    finally:
        service.run("tee", path, stdin=ours)


def test_gatewayctl_is_on_the_path(service: Machine) -> None:
    """A link of the installation's is, and goes with the unit; another file with that name stays."""
    assert service.run("gatewayctl", "healthcheck").stdout == "healthy\n"
    assert service.run(*_GATEWAYCTL, "install", "--systemd", "--remove").stdout.splitlines() == [
        f"Removed /etc/systemd/system/{_UNIT}.",
        "Removed /usr/local/bin/gatewayctl.",
    ]
    service.run("sh", "-c", "echo theirs > /usr/local/bin/gatewayctl")
    try:
        for arguments in ((), ("--remove",)):
            said = service.run(*_GATEWAYCTL, "install", "--systemd", *arguments).stdout
            assert ("/usr/local/bin/gatewayctl is another file, and stays" in said) == (not arguments)
            assert service.run("cat", "/usr/local/bin/gatewayctl").stdout == "theirs\n"
    finally:
        service.run("rm", "/usr/local/bin/gatewayctl")


def test_check_config_says_that_the_services_file_is_not_read(service: Machine) -> None:
    """Without --config, whether the settings are right or not; with it there is nothing to say."""
    said = (
        "/etc/gateway/config.yaml was not read; to check it: gatewayctl check-config --config /etc/gateway/config.yaml"
    )
    wrong = service.run("gatewayctl", "check-config", check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (78, 1)
    assert "REMOTE_HOST" in wrong.stderr
    assert wrong.stderr.endswith(f"; {said}\n")
    right = service.run("gatewayctl", "check-config", "--remote-host", "127.0.0.1")
    assert f"gatewayctl: warning: {said}\n" in right.stderr
    assert said not in service.run("gatewayctl", "check-config", "--config", "/etc/gateway/config.yaml").stderr


def test_a_second_gateway_has_a_name(service: Machine) -> None:
    """It has a unit, a directory for its settings, and a runtime directory of its own; the first one is as it was."""
    pid = _property(service, _UNIT, "MainPID")
    eu = "ssh-mosh-gateway-eu.service"
    config = "remote_host: 127.0.0.1\ngateway_ssh_key_path: /etc/gateway/id_ed25519\ngateway_port: 2223\n"
    service.run("mkdir", "-p", "/etc/gateway-eu")
    service.run("tee", "/etc/gateway-eu/config.yaml", stdin=config)
    try:
        said = service.run(*_GATEWAYCTL, "install", "--systemd", "--name", "eu").stdout.splitlines()
        assert said == [f"Wrote /etc/systemd/system/{eu}.", f"Then: systemctl enable --now {eu}"]
        service.run("systemctl", "start", eu)
        for which in ([], ["--name", "eu"], ["--gateway-runtime-dir", "/run/gateway-eu"]):
            assert service.run("gatewayctl", "healthcheck", *which).stdout == "healthy\n"
        for which, port in (([], int(_PORT)), (["--name", "eu"], 2223)):
            assert json.loads(service.run("gatewayctl", "status", "--json", *which).stdout)["listen_port"] == port
        client = ["2223" if word == _PORT else word for word in _CLIENT]
        done = service.run("ssh", *client, "alice@127.0.0.1", "id -un", check=False)
        assert (done.stdout, done.returncode) == ("alice\n", 0), done.stderr
        journal = service.run("journalctl", "--quiet", "--output=cat", "--identifier=ssh-mosh-gateway-eu").stdout
        assert "session_started" in journal
        service.run("test", "-e", "/etc/gateway-eu/host_key")
        assert service.run(*_GATEWAYCTL, "install", "--systemd", "--name", "eu", "--remove").stdout.splitlines() == [
            f"Removed /etc/systemd/system/{eu}."
        ]
        assert _property(service, _UNIT, "MainPID") == pid
        assert service.run("gatewayctl", "healthcheck").stdout == "healthy\n"
    finally:
        service.run(*_GATEWAYCTL, "install", "--systemd", "--name", "eu", "--remove", check=False)


def test_a_port_that_is_taken_fails_the_unit_in_the_end(machine: Machine) -> None:
    """Each try says by what to find the other program; there are at most sixty, and status 71."""
    _configure(machine, "remote_host: 127.0.0.1\ngateway_port: 22\ngateway_ssh_key_path: /etc/gateway/id_ed25519\n")
    machine.run(*_GATEWAYCTL, "install", "--systemd")
    try:
        machine.run("systemctl", "start", _UNIT, check=False)
        assert _property(machine, _UNIT, "ExecMainStatus") == "71"
        assert "sshd cannot listen there (Address already in use); another program does: ss -ltnp" in _journal(machine)
        assert _property(machine, _UNIT, "StartLimitBurst") == "60"
    finally:
        machine.run(*_GATEWAYCTL, "install", "--systemd", "--remove")


def test_the_journal_names_the_gateway(service: Machine) -> None:
    """What the gateway says is there under its own name, and not under Python's."""
    journal = service.run("journalctl", "--quiet", "--output=cat", "--identifier=ssh-mosh-gateway").stdout
    assert " info ready " in journal


def test_a_gateway_that_is_killed_comes_back(service: Machine) -> None:
    """``kill -9`` of the main process takes all of it down, and systemd starts it anew."""
    service.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", _UNIT)
    # What does not end with it is killed after TimeoutStopSec, 20 s: seen once in some forty runs.
    wait_until(lambda: _property(service, _UNIT, "NRestarts") == "1", "systemd restarts it", timeout_s=60)
    wait_until(lambda: _property(service, _UNIT, "ActiveState") == "active", "it is ready")
    assert service.run(*_GATEWAYCTL, "healthcheck").stdout == "healthy\n"


def test_sessions_outlive_the_gateways_use_of_its_connection(service: Machine) -> None:
    """Where the remote's logind ends processes with their session, the connection stays while a mosh session lives."""
    _configure(
        service,
        "remote_host: 127.0.0.1\ngateway_ssh_key_path: /etc/gateway/id_ed25519\ngateway_cache_ttl: 1\n",
    )
    service.run("mkdir", "-p", "/etc/systemd/logind.conf.d")
    service.run("tee", "/etc/systemd/logind.conf.d/kill.conf", stdin="[Login]\nKillUserProcesses=yes\n")
    service.run("systemctl", "start", "dbus.service", "systemd-logind.service")
    keys = service.run("cat", "/home/alice/.ssh/authorized_keys").stdout

    def is_running(pattern: str) -> bool:
        return service.run("pgrep", "-u", "alice", "-f", pattern, check=False).returncode == 0

    try:
        service.run("systemctl", "restart", _UNIT)
        # What logind does where nobody keeps the connection.
        direct = ["ssh", "-F", "none", "-i", "/root/client", "-o", "StrictHostKeyChecking=accept-new"]
        service.run(*direct, "alice@127.0.0.1", "setsid sleep 4321 </dev/null >/dev/null 2>&1 &")
        wait_until(lambda: not is_running("sleep 4321"), "logind ends what the connection left")
        line = f"stty rows 24 cols 80; TERM=xterm exec ssh {' '.join(_CLIENT)} -tt alice@127.0.0.1 sleep 1234"
        service.run("systemd-run", "--unit=client", "script", "-qec", line, "/dev/null")
        wait_until(lambda: "remote_kills_processes" in _journal(service), "the gateway has asked logind")
        assert is_running("sleep 1234")
        # Its permission gone, the gateway uses the connection no more.
        service.run("tee", "/home/alice/.ssh/authorized_keys", stdin=keys.splitlines()[1] + "\n")

        def is_refused() -> bool:
            done = service.run("ssh", *_CLIENT, "-o", "BatchMode=yes", "alice@127.0.0.1", "true", check=False)
            return "Permission denied" in done.stderr

        wait_until(is_refused, "the gateway is shut out")
        assert is_running("sleep 1234")
        assert is_running("^sshd.*: alice")
        service.run("systemctl", "stop", "client.service")
        wait_until(lambda: not is_running("^sshd.*: alice"), "the connection is closed with the session")
        assert not is_running("sleep 1234")
    finally:
        service.run("tee", "/home/alice/.ssh/authorized_keys", stdin=keys)
        service.run("rm", "/etc/systemd/logind.conf.d/kill.conf")
        service.run("systemctl", "stop", "systemd-logind.service", "dbus.socket", "dbus.service", check=False)


def test_a_typo_is_told_once(machine: Machine) -> None:
    """A wrong setting fails the start with its line in the journal, and is not tried again."""
    _configure(machine, "remote_hots: 127.0.0.1\n")
    machine.run(*_GATEWAYCTL, "install", "--systemd")
    started = machine.run("systemctl", "start", _UNIT, check=False)
    try:
        assert started.returncode == 1
        assert _property(machine, _UNIT, "ExecMainStatus") == "78"
        assert (_property(machine, _UNIT, "ActiveState"), _property(machine, _UNIT, "NRestarts")) == ("failed", "0")
        line = "gatewayctl: /etc/gateway/config.yaml line 1: 'remote_hots' is not a setting; did you mean remote_host?"
        assert _journal(machine).count(line) == 1
    finally:
        machine.run(*_GATEWAYCTL, "install", "--systemd", "--remove")


def test_removing_what_is_not_there(machine: Machine) -> None:
    """It says so, and that is all."""
    done = machine.run(*_GATEWAYCTL, "install", "--systemd", "--remove")
    assert done.stdout == f"/etc/systemd/system/{_UNIT} is not there.\n"


# The unit by itself


def _unit(directory: Path) -> Path:
    path = directory / _UNIT
    command = [*_GATEWAYCTL, "install", "--systemd", "--print"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say."""
    done = subprocess.run(
        # Not the manual pages that it names, which slim systems leave out.
        ["systemd-analyze", "--man=no", "verify", str(_unit(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_hardened(tmp_path: Path) -> None:
    """``systemd-analyze security`` gives no worse score than docs/install.md states."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(_unit(tmp_path))]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert match is not None, said
    assert float(match[1]) <= MOST_EXPOSURE


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config", "settings.yaml"], "must be an absolute path"),
        ([], "Missing option '--systemd'"),
    ],
)
def test_refused(arguments: list[str], reason: str) -> None:
    """What cannot be a service is refused before anything is written."""
    command = [*_GATEWAYCTL, "install", *(["--systemd", "--print"] if arguments else []), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert reason in done.stderr
