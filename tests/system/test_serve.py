"""``gatewayctl serve``: what it refuses, what it keeps, what it survives, and how it leaves."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from system.sessions import environment_of, mosh_client_of, sshd_of, uid_of

from lab.gateway import ADDRESS, GATEWAYCTL
from lab.processes import kill, read_process
from lab.users import make_key
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

    OpenTerminal = Callable[..., Terminal]
    StartGateway = Callable[..., Gateway]

# sysexits.h
EX_SOFTWARE = 70
EX_OSERR = 71
EX_CONFIG = 78


def _refused(start_gateway: StartGateway, *arguments: Any) -> tuple[int, list[str]]:
    """Start a gateway that refuses, and return its exit status and all that it said."""
    gateway = start_gateway(*arguments, wait=False)
    status = gateway.wait_exit()
    return status, gateway.log.lines()


def _children(pid: int) -> dict[int, str]:
    """List the children of a process with their states (proc(5), children and stat), zombies too."""
    found = {}
    ended = suppress(FileNotFoundError, ProcessLookupError)  # meanwhile: a thread, or a child
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with ended:
            for child in path.read_text().split():
                with ended:
                    stat = Path(f"/proc/{child}/stat").read_text("utf-8", "replace")
                    found[int(child)] = stat.rpartition(") ")[2].split()[0]
    return found


# Refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("REMOTE_HOST", None),
        ("REMOTE_HOST", "-oProxyCommand=id"),
        ("REMOTE_PORT", "70000"),
        ("GATEWAY_PORT", "ssh"),
        ("GATEWAY_CACHE_TTL", "0"),
        ("GATEWAY_MOSH_PREDICT", "sometimes"),
        ("REMOTE_MOSH_PORTS", "60999:60001"),
        ("GATEWAY_UID_RANGE", "0:100000"),
        ("GATEWAY_RUNTIME_DIR", "run"),
        ("GATEWAY_SSH_KEY_PATH", "/no/such/file"),
        ("GATEWAY_SSH_KEY_CONTENT", "c2VjcmV0"),
        ("GATEWAY_HOST_KEY_PATH", "/dev/null/host_key"),
    ],
)
def test_wrong_setting_stops_the_start(start_gateway: StartGateway, setting: str, value: str | None) -> None:
    """A setting that is missing or wrong is one line with its name, and status 78; nothing is left running."""
    # Two kinds of key at once would be the mistake instead.
    settings = {"GATEWAY_SSH_KEY_PATH": None} if setting == "GATEWAY_SSH_KEY_CONTENT" else {}
    status, lines = _refused(start_gateway, {**settings, setting: value})

    assert (status, len(lines)) == (EX_CONFIG, 1)
    assert lines[0].startswith("gatewayctl: ")
    assert setting in lines[0]
    assert "c2VjcmV0" not in lines[0]


_KEY_FLAWS = {
    "malformed": "not a private key",
    "public": "not a private key",
    "empty": "not a private key",
    "damaged": "not a private key",
    "passphrase": "needs a passphrase",
    "passphrase-pkcs8": "needs a passphrase",
    "open-to-all": "chmod 0600",
    "anothers-certificate": "-cert.pub beside it",
    "no-certificate": "-cert.pub beside it",
    "host-certificate": "-cert.pub beside it",
}


def _damaged(lines: list[str], public: str) -> str:
    """Change one bit of the secret half of an ed25519 key: it is in order then, but for not being the public one's."""
    text = bytearray(base64.b64decode("".join(lines[1:-1])))
    text[text.rindex(base64.b64decode(public.split()[1])[-32:]) - 1] ^= 1
    return "".join([lines[0], base64.b64encode(text).decode("ascii"), "\n", lines[-1]])


@pytest.mark.parametrize(("flaw", "reason"), _KEY_FLAWS.items(), ids=_KEY_FLAWS)
def test_key_that_cannot_be_used(lab: Lab, start_gateway: StartGateway, flaw: str, reason: str) -> None:
    """A key that is none, is locked or open to all, or has a certificate not its own, is one line with the setting."""
    path = lab.directory / "keys" / f"flawed-{flaw}"
    other = make_key(path.with_name(f"other-{flaw}"))
    if flaw in {"malformed", "public", "empty", "damaged"}:
        lines = lab.gateway_key.private.read_text().splitlines(keepends=True)
        texts = {
            "malformed": "".join(lines[:2] + lines[3:]),
            "public": lab.gateway_key.public,
            "empty": "",
            "damaged": _damaged(lines, lab.gateway_key.public),
        }
        path.touch(0o600)
        path.write_text(texts[flaw])
    else:
        make_key(path, kind="rsa" if flaw == "passphrase-pkcs8" else "ed25519")
    certificate = path.with_name(f"{path.name}-cert.pub")
    lock, sign = ["-p", "-f", str(path), "-N", "s3cr3t words"], ["-s", str(other.private), "-I", "x", "-n", "x"]
    commands = {
        "passphrase": lock,
        "passphrase-pkcs8": [*lock, "-m", "PKCS8"],
        "anothers-certificate": [*sign, f"{other.private}.pub"],
        "host-certificate": [*sign, "-h", f"{path}.pub"],
    }
    if flaw in commands:
        subprocess.run(["ssh-keygen", "-q", *commands[flaw]], check=True, capture_output=True)
    if flaw == "anothers-certificate":
        other.private.with_name(f"{other.private.name}-cert.pub").rename(certificate)
    elif flaw == "no-certificate":
        certificate.write_text(path.with_name(f"{path.name}.pub").read_text())
    path.chmod(0o644 if flaw == "open-to-all" else 0o600)
    status, said = _refused(start_gateway, {"GATEWAY_SSH_KEY_PATH": str(path)})

    errors = [line for line in said if " info " not in line]
    assert (status, len(errors)) == (EX_CONFIG, 1)
    assert "GATEWAY_SSH_KEY_PATH" in errors[0]
    assert reason in errors[0]
    environment = {"REMOTE_HOST": FAR_IPV4, "GATEWAY_SSH_KEY_PATH": str(path)}
    checked = lab.run([str(GATEWAYCTL), "check-config"], environment=environment)
    assert (checked.returncode, checked.stderr.decode().splitlines()) == (EX_CONFIG, errors)


def test_not_root(lab: Lab) -> None:
    """Somebody else than root is told so."""
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", str(GATEWAYCTL), "serve"]
    key = make_key(lab.directory / "keys" / "of-nobody").private
    os.chown(key, 65534, 65534)
    result = lab.run(argv, environment={"REMOTE_HOST": FAR_IPV4, "GATEWAY_SSH_KEY_PATH": str(key)})

    assert result.returncode == EX_CONFIG
    assert result.stderr.count(b"\n") == 1
    assert b"root" in result.stderr


def test_port_in_use(lab: Lab, start_gateway: StartGateway) -> None:
    """A port that somebody else has ends the start with one line; it may get free, so that systemd tries again."""
    with lab.near.network(), socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        gateway = start_gateway({"GATEWAY_PORT": str(port), "GATEWAY_LOG_LEVEL": "warning"}, wait=False)
        assert gateway.wait_exit() == EX_OSERR

    where = f"GATEWAY_PORT {port} on GATEWAY_HOST {ADDRESS}"
    remedy = f"another program does: ss -ltnp 'sport = :{port}'"
    line = f"gatewayctl: {where}: sshd cannot listen there (Address already in use); {remedy}"
    assert gateway.log.lines() == [line]
    assert gateway.processes() == []


def test_address_that_is_not_here(start_gateway: StartGateway) -> None:
    """So does an address that the machine does not have, or a name that has none."""
    reasons = {"203.0.113.9": "Cannot assign requested address", "no-such-host.invalid": "the host has no address"}
    for host, reason in reasons.items():
        gateway = start_gateway({"GATEWAY_HOST": host, "GATEWAY_LOG_LEVEL": "warning"}, wait=False)
        assert gateway.wait_exit() == EX_OSERR
        (line,) = gateway.log.lines()
        assert f"GATEWAY_HOST {host}: " in line
        assert reason in line


def test_all_addresses(lab: Lab, start_gateway: StartGateway) -> None:
    """Clients of both families are served; who finds the port taken in one of them is told, and listens in neither."""
    gateway = start_gateway({"GATEWAY_HOST": "*"})
    for host in (ADDRESS, "::1"):
        with lab.near.connect(host, gateway.port) as connection:
            assert connection.recv(8) == b"SSH-2.0-"

    for family, host in ((socket.AF_INET, ADDRESS), (socket.AF_INET6, "::1")):
        with lab.near.network(), socket.create_server((host, 0), family=family) as taken:
            port = str(taken.getsockname()[1])
            settings = {"GATEWAY_HOST": "*", "GATEWAY_PORT": port, "GATEWAY_LOG_LEVEL": "warning"}
            refused = start_gateway(settings, wait=False)
            assert refused.wait_exit() == EX_OSERR
        reason = f"sshd cannot listen there (Address already in use); another program does: ss -ltnp 'sport = :{port}'"
        assert refused.log.lines() == [f"gatewayctl: GATEWAY_PORT {port} on GATEWAY_HOST *: {reason}"]


def test_runtime_directory_of_another_gateway(
    lab: Lab, gateway: Gateway, user: User, start_gateway: StartGateway
) -> None:
    """Two gateways in one runtime directory are one too many: the second is told, the first does not notice."""
    processes = [gateway.pid, gateway.broker.pid, gateway.listener.pid]
    where = {"GATEWAY_RUNTIME_DIR": gateway.settings["GATEWAY_RUNTIME_DIR"], "GATEWAY_UID_RANGE": "3000000:3065535"}
    status, lines = _refused(start_gateway, where)

    assert (status, len(lines)) == (EX_CONFIG, 1)
    assert "GATEWAY_RUNTIME_DIR" in lines[0]
    assert "another gateway" in lines[0]
    assert [gateway.pid, gateway.broker.pid, gateway.listener.pid] == processes
    # Somebody new, who needs a uid.
    done = lab.run(lab.gateway_argv(gateway, user, "echo here"))
    assert done.stdout == b"here\n", done.stderr


def test_runtime_directory_below_tmp(lab: Lab, start_gateway: StartGateway) -> None:
    """Below /tmp anybody could put something in the way; it is refused, and nothing is made there."""
    directory = Path("/tmp") / lab.directory.name  # noqa: S108 - that is the mistake
    gateway = start_gateway({"GATEWAY_RUNTIME_DIR": str(directory / "run")}, wait=False)

    assert gateway.wait_exit() == EX_CONFIG
    (line,) = gateway.log.lines()
    assert "GATEWAY_RUNTIME_DIR" in line
    assert gateway.room.path(str(directory.parent)).is_dir()
    assert not gateway.room.path(str(directory)).exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o700])
def test_runtime_directory_with_a_wrong_mode(lab: Lab, start_gateway: StartGateway, mode: int) -> None:
    """A directory that others may write to, or that the gateway's own users may not enter, is refused."""
    parent = lab.directory / f"mode-{mode:o}"
    parent.mkdir()
    parent.chmod(mode)
    status, lines = _refused(start_gateway, {"GATEWAY_RUNTIME_DIR": str(parent / "run")})

    assert (status, len(lines)) == (EX_CONFIG, 1)
    assert "GATEWAY_RUNTIME_DIR" in lines[0]
    assert str(parent) in lines[0]


_OWN_LOG = """
mount -t tmpfs dev "$0" && touch "$0/null" && mount --bind /dev/null "$0/null" && ln -s "$0.socket" "$0/log" &&
mount --rbind "$0" /dev && exec "$@"
"""


def test_syslog_has_the_reason(lab: Lab) -> None:
    """With GATEWAY_LOG=syslog, why the gateway ended is there as well, and not on standard error alone."""
    directory = lab.directory / "dev"
    directory.mkdir()
    settings = {
        "REMOTE_HOST": FAR_IPV4,
        "GATEWAY_HOST": "203.0.113.9",
        "GATEWAY_RUNTIME_DIR": str(lab.directory / "syslog"),
        "GATEWAY_HOST_KEY_PATH": str(make_key(lab.directory / "keys" / "syslog").private),
        "GATEWAY_LOG": "syslog",
        "GATEWAY_LOG_LEVEL": "error",
    }
    argv = ["unshare", "--mount", "sh", "-c", _OWN_LOG, str(directory), str(GATEWAYCTL), "serve"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(f"{directory}.socket")
        result = lab.run(argv, environment=settings)
        syslog.settimeout(0)
        logged = syslog.recv(4096).decode().rstrip("\0")

    (line,) = result.stderr.decode().splitlines()
    reason = line.removeprefix("gatewayctl: ")
    assert "GATEWAY_HOST 203.0.113.9" in reason
    assert re.fullmatch(rf'<35>gatewayctl\[\d+\]: error failed reason="{re.escape(reason)}"', logged)


_FULL = 'mount -t tmpfs -o "mode=0755,size=$0" tmpfs "$GATEWAY_RUNTIME_DIR" && exec "$@"'


@pytest.mark.parametrize("size", ["4k", "16k", "48k"])
def test_full_disk(lab: Lab, size: str) -> None:
    """A runtime directory without space is one line with its name, and no setting that never gets better."""
    directory = lab.directory / f"full-{size}"
    directory.mkdir()
    settings = {
        "REMOTE_HOST": FAR_IPV4,
        "GATEWAY_PORT": "1022",  # where no other gateway of the worker's is
        "GATEWAY_RUNTIME_DIR": str(directory),
        "GATEWAY_HOST_KEY_PATH": str(make_key(directory.with_name(f"{directory.name}-key")).private),
        "GATEWAY_LOG_LEVEL": "error",
    }
    result = lab.run(["unshare", "--mount", "sh", "-c", _FULL, size, str(GATEWAYCTL), "serve"], environment=settings)

    assert result.returncode == EX_SOFTWARE
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("gatewayctl: ")
    assert str(directory) in line
    assert re.search("No space left on device|disk is full", line)


@pytest.mark.parametrize("name", ["lock", "broker.sock", "agent.sock", "log.sock"])
def test_something_in_the_way(lab: Lab, start_gateway: StartGateway, name: str) -> None:
    """What stands in the place of a socket or of the lock is one line with its name."""
    directory = lab.directory / f"taken-{name}"
    (directory / name).mkdir(parents=True)
    host_key = str(make_key(directory.with_name(f"{directory.name}-key")).private)
    settings = {"GATEWAY_RUNTIME_DIR": str(directory), "GATEWAY_HOST_KEY_PATH": host_key}
    status, lines = _refused(start_gateway, settings)

    assert (status, len(lines)) == (EX_CONFIG, 1)
    assert lines[0].startswith("gatewayctl: GATEWAY_RUNTIME_DIR ")
    assert str(directory / name) in lines[0]


# The host key


def test_host_key_is_made_once(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """The host key is ed25519 and root's alone; restarts and a second gateway keep it, so that no client complains."""
    first = start_gateway()
    made = first.host_key.read_bytes()
    info = first.host_key.stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    public = subprocess.run(["ssh-keygen", "-y", "-f", str(first.host_key)], check=True, capture_output=True)
    assert public.stdout.startswith(b"ssh-ed25519 ")
    assert first.stop() == 0

    again = start_gateway(
        {
            "GATEWAY_HOST_KEY_PATH": str(first.host_key),
            "GATEWAY_RUNTIME_DIR": first.settings["GATEWAY_RUNTIME_DIR"],
        }
    )
    second = start_gateway({"GATEWAY_HOST_KEY_PATH": str(first.host_key)})

    assert not [gateway.port for gateway in (again, second) if gateway.log.matches("host_key_made")]
    assert first.host_key.read_bytes() == made
    assert (first.host_key.stat().st_ino, first.host_key.stat().st_mtime_ns) == (info.st_ino, info.st_mtime_ns)
    for gateway in (again, second):
        open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_host_key_that_others_can_read(lab: Lab, start_gateway: StartGateway, mode: int) -> None:
    """A host key that others than root can read is refused, with the command that mends it."""
    key = make_key(lab.directory / "keys" / f"host-{mode:o}").private
    key.chmod(mode)
    status, lines = _refused(start_gateway, {"GATEWAY_HOST_KEY_PATH": str(key)})

    assert (status, len(lines)) == (EX_CONFIG, 1)
    assert "GATEWAY_HOST_KEY_PATH" in lines[0]
    assert f"chmod 0600 {key}" in lines[0]


# Where settings come from


def test_environment_alone_is_enough(gateway: Gateway) -> None:
    """The gateway of all these tests has no argument and no file; its children have none of its settings."""
    argv = next(its.argv for its in gateway.processes() if its.pid == gateway.pid)

    assert argv[-2:] == (str(GATEWAYCTL), "serve")
    children = [its for its in gateway.processes() if its.parent_pid == gateway.pid]
    environments = [environment_of(child) for child in children]
    assert "PATH" in environment_of(gateway.broker)
    assert not {name for its in environments for name in its if name.startswith(("GATEWAY_", "REMOTE_"))}
    assert len(children) >= 2


def test_configuration_file(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """Everything can be in a YAML file; an environment variable beats it, and a flag beats both."""
    config = lab.directory / f"{user.name}.yaml"
    config.write_text(
        f"remote_host: {FAR_IPV4}\n"
        f"remote_known_hosts: {lab.known_hosts}\n"
        f"gateway_ssh_key_path: {lab.gateway_key.private}\n"
        "gateway_mosh_predict: never\n"
        "gateway_log_level: error\n"
        "remote_mosh_ports: 61000:61100\n"
    )
    away = dict.fromkeys(("REMOTE_HOST", "REMOTE_KNOWN_HOSTS", "GATEWAY_SSH_KEY_PATH"))
    gateway = start_gateway(
        {**away, "GATEWAY_LOG_LEVEL": "warning", "REMOTE_MOSH_PORTS": "62000:62100"},
        *("--config", str(config), "--gateway-log-level", "info"),
    )
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    client = mosh_client_of(gateway, user)
    assert environment_of(client)["MOSH_PREDICTION_DISPLAY"] == "never"
    assert 62000 <= int(client.argv[-1]) <= 62100
    assert gateway.log.matches("info session_started")


def test_key_as_a_variable(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """GATEWAY_SSH_KEY_CONTENT does what the file does, and is in no child's environment and no log."""
    content = base64.b64encode(lab.gateway_key.private.read_bytes()).decode()
    gateway = start_gateway({"GATEWAY_SSH_KEY_PATH": None, "GATEWAY_SSH_KEY_CONTENT": content})
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    holders = [its.pid for its in gateway.processes() if content in str(environment_of(its))]
    assert holders == [gateway.pid]
    assert not [its.argv for its in gateway.processes() if content in its.argv]
    assert content[:60] not in gateway.log_text()


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_key_with_a_certificate(lab: Lab, start_gateway: StartGateway, open_terminal: OpenTerminal, kind: str) -> None:
    """A certificate beside the key's file is shown to a remote that trusts nothing but its authority."""
    user = lab.add_user(authorized=[])
    authority = make_key(lab.directory / "keys" / f"authority-{kind}")
    key = make_key(lab.directory / "keys" / f"certified-{kind}", kind=kind)
    lab.remote.authorize(user, [user.key.public, f"cert-authority {authority.public}"])
    public = key.private.with_name(f"{key.private.name}.pub")
    public.write_text(f"{public.read_text().rsplit(' ', 1)[0]} näme of a key\n")
    sign = ["ssh-keygen", "-q", "-s", str(authority.private), "-I", "gateway", "-n", user.name, str(public)]
    subprocess.run(sign, check=True, capture_output=True)
    gateway = start_gateway({"GATEWAY_SSH_KEY_PATH": str(key.private)})

    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    assert lab.run(lab.gateway_argv(gateway, user, "echo hi")).stdout == b"hi\n"

    # The broker's own login, and that of the session's ssh.
    assert len(lab.remote.log.matches(rf"Accepted publickey for {user.name} .*-CERT .* CA ED25519")) == 2


def test_no_account_is_made(gateway: Gateway, lab: Lab, user: User, open_terminal: OpenTerminal) -> None:
    """A login changes nothing in the machine's accounts, and no directory appears in /home."""
    files = [Path("/etc") / name for name in ("passwd", "shadow", "group", "gshadow", "subuid")]
    before = [path.read_bytes() for path in files if path.exists()]
    homes = sorted(Path("/home").iterdir())

    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    assert [path.read_bytes() for path in files if path.exists()] == before
    assert sorted(Path("/home").iterdir()) == homes
    assert subprocess.run(gateway.room.argv(["getent", "passwd", user.name]), check=False).returncode == 2


# Ends and crashes


def test_ctrl_c(start_gateway: StartGateway) -> None:
    """Ctrl-C ends the gateway with the status that shells expect, and in order."""
    gateway = start_gateway()
    gateway.signal(signal.SIGINT)

    assert gateway.wait_exit() == 130
    assert gateway.log.lines()[-1].endswith("info ended")
    assert "Traceback" not in gateway.log_text()
    assert gateway.processes() == []


def test_broker_killed_in_mid_session(
    lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal
) -> None:
    """Without the broker a session goes on; a new one is there for the next login, which gets the same uid."""
    gateway = start_gateway()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    uid, client, broker = uid_of(gateway, user), mosh_client_of(gateway, user), gateway.broker

    os.kill(broker.pid, signal.SIGKILL)
    terminal.run("echo $((6 * 7))", "\n42\n")
    again = open_terminal(lab.gateway_argv(gateway, user))
    again.wait_for(user.prompt)

    assert uid_of(gateway, user) == uid
    assert gateway.broker.pid != broker.pid
    assert client in gateway.processes("mosh-client", uid=uid)
    assert gateway.log.matches("broker_ended .*status=-9")
    again.type("exit\r")
    assert again.wait_exit() == 0


def test_broker_that_keeps_crashing(
    lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal
) -> None:
    """A broker that ends again and again is started again and again, later each time; then all is as before."""
    gateway = start_gateway()
    for crash in range(1, 4):
        os.kill(gateway.broker.pid, signal.SIGKILL)
        wait_until(lambda: len(gateway.log.matches("broker_restarted")) == crash, "the broker is back")  # noqa: B023

    waits_s = [float(match[1]) for match in gateway.log.matches(r"broker_ended .*restart_in_s=([0-9.]+)")]
    assert len(waits_s) == 3
    assert waits_s == sorted(set(waits_s))
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)


def test_listener_killed(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """Without its sshd the gateway is none: it says so in one line, and ends with a status that is not 0."""
    gateway = start_gateway()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    os.kill(gateway.listener.pid, signal.SIGKILL)

    assert gateway.wait_exit() not in {0, EX_CONFIG}
    (line,) = gateway.log.matches("^gatewayctl: ")
    assert line.string == "gatewayctl: sshd ended (killed by signal 9)"
    assert terminal.wait_exit() == 255
    assert gateway.processes() == []
    wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "mosh-server is gone")


def test_supervisor_killed(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """Killed with SIGKILL, the gateway leaves no broker and no listener, and can be started where it was."""
    gateway = start_gateway()
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    uid = uid_of(gateway, user)
    broker, listener, supervisor = gateway.broker.pid, gateway.listener.pid, gateway.pid

    os.kill(supervisor, signal.SIGKILL)
    assert gateway.wait_exit() != 0
    wait_until(lambda: not (read_process(broker) or read_process(listener)), "broker and listener are gone")

    same = {name: gateway.settings[name] for name in ("GATEWAY_RUNTIME_DIR", "GATEWAY_HOST_KEY_PATH")}
    again = start_gateway(same)
    open_terminal(lab.gateway_argv(again, user)).wait_for(user.prompt)
    assert uid_of(again, user) == uid


def test_orphans_are_adopted_and_reaped(
    lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal
) -> None:
    """What sshd leaves behind becomes the gateway's own child, and no zombie stays once it has ended."""
    # A first session that may go over ssh has a parent, which is adopted in its place.
    gateway = start_gateway({"GATEWAY_TRANSPORT": "mosh"})
    # Its goodbye then takes 16 times 250 ms (mosh 1.4.0, SHUTDOWN_RETRIES and SEND_INTERVAL_MAX).
    with lab.wan.weather(rtt_ms=500):
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)
        client = mosh_client_of(gateway, user)
    with lab.wan.weather(blackout=True):
        kill(sshd_of(gateway, user))
        wait_until(lambda: client.pid in _children(gateway.pid), "mosh-client is adopted")
    wait_until(lambda: client.pid not in _children(gateway.pid), "mosh-client is gone")

    own = {gateway.broker.pid, gateway.listener.pid}
    wait_until(lambda: set(_children(gateway.pid)) == own, "there is nobody's child, and no zombie")
