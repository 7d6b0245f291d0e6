"""The container at work, with real clients, and a remote host in other namespaces behind a WAN."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gatewayctl.supervisor.unproved_connections import MAX_FOR_SOURCE
from lab.podman import CAPABILITIES, podman
from lab.users import make_key
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.podman import Container, Keys
    from lab.processes import Process
    from lab.users import User

    Start = Callable[..., Container]

# linux/capability.h
_NUMBERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7, "SYS_CHROOT": 18}


def _status(process: Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _broker(container: Container) -> Process:
    return next(process for process in container.processes("python") if "helpers.broker" in process.argv)


def _listener(container: Container) -> Process:
    return next(process for process in container.processes("sshd") if "[listener]" in process.argv[0])


def _log_in(lab: Lab, container: Container, user: User) -> None:
    """See a shell of the user's on the remote, by mosh, and a command's own words and status, twice."""
    terminal = lab.terminal(container.argv(user))
    terminal.wait_for(user.prompt)
    terminal.type("echo by $(ps -o comm= $PPID)\r")
    terminal.wait_for("by mosh-server")
    for _ in range(2):
        done = lab.run(container.argv(user, "id -un; exit 3"))
        assert (done.stdout.decode(), done.returncode) == (f"{user.name}\n", 3), done.stderr
    terminal.close()


def _whole_life(lab: Lab, container: Container, user: User) -> None:
    second = make_key(lab.directory / "keys" / f"second-{user.name}")
    lab.remote.authorize(user, [user.key.public, second.public, lab.gateway_key.public])
    container.wait_healthy()
    _log_in(lab, container, user)
    # sshd asks about it, and the user has a home already.
    assert lab.run(container.argv(user, "true", key=second.private)).returncode == 0
    container.stop()
    assert container.status == 0


# The job itself


def test_login(lab: Lab, container: Container, user: User) -> None:
    """A login lands in the user's shell on the remote, over mosh; a command goes over ssh."""
    _log_in(lab, container, user)


def test_a_wrong_key_is_refused(lab: Lab, container: Container, user: User) -> None:
    """Another key than the user's does not get in, and the log says why."""
    other = make_key(lab.directory / "keys" / f"other-{user.name}")
    done = lab.run(container.argv(user, "id", key=other.private))
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"Permission denied (publickey)" in done.stderr
    # Broker and sshd each say it, on ways of their own.
    for pattern in (
        rf"info key_refused .*user={user.name} .*no line for this key",
        f"Failed publickey for {user.name} ",
    ):
        wait_until(lambda: re.search(pattern, container.log()), "the log says so")  # noqa: B023


def test_connections_of_strangers_are_counted(lab: Lab, start: Start) -> None:
    """Where any key passes one address has fifty, which is seen with the few rights that root has in a container."""
    container = start(environment={"GATEWAY_ACCEPT_ANY_KEY": "true"})
    container.wait_healthy()
    stranger = make_key(lab.directory / "keys" / "stranger")
    with ExitStack() as stack:
        for number in range(MAX_FOR_SOURCE + 1):
            argv = container.argv(f"nobody{number}", options=["-N", "-v"], key=stranger.private)
            client = stack.enter_context(
                subprocess.Popen(
                    lab.near.network_argv(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(client.kill)
            assert client.stderr is not None
            got_in = any(b"Entering interactive session" in line for line in client.stderr)
            assert got_in == (number < MAX_FOR_SOURCE)
    wait_until(
        lambda: f"has more than {MAX_FOR_SOURCE} connections" in container.log(), "the log says why the last is refused"
    )


def test_processes_and_what_they_may(lab: Lab, container: Container, user: User) -> None:
    """Root are the supervisor and sshd alone, with six capabilities; all is confined; a session has no Python."""
    terminal = lab.terminal(container.argv(user))
    terminal.wait_for(user.prompt)
    wanted = sum(1 << _NUMBERS[name] for name in CAPABILITIES)
    root, others = {"gatewayctl", "sshd", "sshd-session"}, {"python", "sshd-session", "mosh-client"}

    def there_are() -> tuple[set[str], set[str]]:
        names: dict[bool, set[str]] = {True: set(), False: set()}
        for process in container.processes():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                status = _status(process)
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), process
                assert int(status["CapEff"], 16) == (wanted if process.uid == 0 else 0), process
                assert int(status["CapBnd"], 16) == wanted, process
                names[process.uid == 0].add(process.name)
        # A shared connection of an earlier command's may still wait for another.
        return names[True], names[False] - {"ssh"}

    # What an earlier test's client left behind may be about to end.
    wait_until(lambda: there_are() == (root, others), "there is what there should be")
    wait_until(lambda: len(container.processes("python")) == 1, "mosh-client is nudged no more")
    assert [process.argv[-1] for process in container.processes("python")] == ["helpers.broker"]
    terminal.close()


def test_listening_sockets(lab: Lab, container: Container) -> None:
    """One port is open, and it is the gateway's."""
    inodes: set[str] = set()
    for process in container.processes():
        with suppress(OSError):  # it has ended
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(str(link.readlink()))
    ports = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{lab.near.pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                ports.append(int(fields[1].rpartition(":")[2], 16))
    assert ports == [container.port]


def test_agent_pass_through(lab: Lab, start: Start, keys: Keys, user: User) -> None:
    """Without a key in /keys the user's own agent is what the remote judges."""
    (keys.keys / "id_ed25519").unlink()
    container = start()
    container.wait_healthy()
    argv = container.argv(user, "id -un", options=["-A"])
    with lab.agent(user.key.private) as environment:
        done = lab.run(argv, environment=environment)
    assert (done.stdout.decode(), done.returncode) == (f"{user.name}\n", 0), done.stderr
    done = lab.run(container.argv(user, "id -un"))
    assert done.returncode == 77
    assert b"use 'ssh -A'" in done.stderr


def test_root(lab: Lab, start: Start) -> None:
    """root@ is the remote's root where that is permitted, and nobody else."""
    root = lab.add_user("root")
    permitting = start(environment={"GATEWAY_PERMIT_ROOT": "true"})
    permitting.wait_healthy()
    _log_in(lab, permitting, root)
    assert [process.uid for process in permitting.processes() if process.name == "ssh"] != [0]
    container = start()
    container.wait_healthy()
    assert lab.run(container.argv(root, "id")).returncode == 255
    wait_until(lambda: "Failed publickey for root " in container.log(), "the log says so")


def test_secrets_from_files(lab: Lab, start: Start, keys: Keys, user: User) -> None:
    """What engines hand over as files is taken from there: here the key, and users' keys."""
    secret = lab.directory / f"secret-{user.name}"
    secret.mkdir()
    key = subprocess.run(["base64", "-w0", lab.gateway_key.private], capture_output=True, check=True).stdout
    (secret / "key").write_bytes(key)
    (secret / "key").chmod(0o644)
    (secret / "keys").write_text(user.key.public)
    (keys.keys / "id_ed25519").unlink()
    container = start(
        environment={
            "GATEWAY_SSH_KEY_CONTENT_FILE": "/run/secrets/key",
            "GATEWAY_AUTHORIZED_KEYS_CONTENT_FILE": "/run/secrets/keys",
        },
        options=[f"--volume={secret}:/run/secrets:ro"],
    )
    # Every user's session could read it: the container says so, and waits until that is mended.
    mend = "chmod 0600 /run/secrets/key (waiting until that is done)"
    wait_until(lambda: mend in container.log(), "the container says what is wrong")
    (secret / "key").chmod(0o600)
    container.wait_healthy()
    _log_in(lab, container, user)


def test_user_namespace(lab: Lab, start: Start, keys: Keys, user: User) -> None:
    """In a user namespace of 65536 uids, as rootless engines make them, the container's root is nobody outside."""
    for path in (keys.keys, keys.state, *keys.keys.iterdir()):
        os.chown(path, 1_000_000, 1_000_000)
    container = start(options=["--uidmap=0:1000000:65536", "--gidmap=0:1000000:65536"])
    # Not by the health check: runc cannot enter a user namespace whose network is another's.
    wait_until(lambda: "info ready" in container.log(), "the gateway is ready")
    _log_in(lab, container, user)
    assert {process.uid for process in container.processes() if process.uid < 1_000_000} == set()


# What it needs, one by one


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_no_capability_is_too_many(lab: Lab, start: Start, user: User, missing: str) -> None:
    """Without any one of them something does not work: a start, a login, or an orderly end."""
    container = start(capabilities=[name for name in CAPABILITIES if name != missing])
    with pytest.raises(AssertionError):
        _whole_life(lab, container, user)


def test_the_capabilities_are_enough(lab: Lab, start: Start, user: User) -> None:
    """With all of them the same works."""
    _whole_life(lab, start(), user)


# Health


def test_health(container: Container) -> None:
    """It is red while the broker or sshd hangs, and says which; green again when they do not."""
    assert container.is_healthy()
    for process, name in ((_broker(container), "broker"), (_listener(container), "sshd")):
        os.kill(process.pid, signal.SIGSTOP)
        try:
            done = container.run("gatewayctl", "healthcheck", check=False)
            assert (done.returncode, done.stdout.split(":")[:2]) == (1, ["unhealthy", f" {name}"])
            assert not container.is_healthy()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        wait_until(container.is_healthy, "it is green again")


def test_a_broker_that_dies_comes_back(lab: Lab, start: Start, user: User) -> None:
    """It is started anew, and the session that is open goes on."""
    container = start()
    container.wait_healthy()
    terminal = lab.terminal(container.argv(user))
    terminal.wait_for(user.prompt)
    before = _broker(container)
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: "broker_restarted" in container.log(), "a new broker")
    wait_until(container.is_healthy, "it is green again")
    terminal.run("echo $((6 * 7))", "\n42\n")


def test_an_sshd_that_dies_takes_the_container_along(start: Start) -> None:
    """Its engine then starts it anew, by its restart policy."""
    container = start()
    container.wait_healthy()
    os.kill(_listener(container).pid, signal.SIGKILL)
    wait_until(lambda: not container.running, "the container ends")
    assert container.status == 70


# Start and end


def test_sigterm(lab: Lab, start: Start, user: User) -> None:
    """Users are told, the remote too, and the container ends with 0 before an engine loses patience."""
    container = start()
    container.wait_healthy()
    terminal = lab.terminal(container.argv(user))
    terminal.wait_for(user.prompt)
    container.stop(timeout_s=10)
    assert terminal.wait_exit() == 255
    assert "gateway: shutting down" in terminal.text
    assert container.status == 0
    wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "the remote has no mosh-server left")


def test_orphans_are_collected(container: Container) -> None:
    """Process 1 waits for whatever is left behind."""
    container.run("sh", "-c", "setsid sleep 0 & setsid sleep 0 &")
    wait_until(lambda: "Z" not in container.run("ps", "-eo", "stat=").stdout, "no zombie is left")


def test_the_host_key_stays(start: Start, keys: Keys) -> None:
    """It is made once: a restart, and a new container with the same volume, have the same."""
    container = start()
    container.wait_healthy()
    made = (keys.state / "host_key").read_bytes()
    podman("restart", "--time=15", container.name)
    container.wait_healthy()
    other = start()
    other.wait_healthy()
    assert (keys.state / "host_key").read_bytes() == made
    assert container.log().count("host_key_made") == 1
    assert "host_key_made" not in other.log()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (("id_ed25519", 0, 0o644), "id_ed25519 is open to others than its owner (mode 0644)"),
        (("id_ed25519", 1000, 0o600), "id_ed25519 belongs to uid 1000"),
        (("authorized_keys", 0, 0o666), "authorized_keys is open to others than its owner (mode 0666)"),
        (("known_hosts", 1000, 0o644), "known_hosts belongs to uid 1000"),
        (("known_hosts", 0, 0o400), "known_hosts is closed to the gateway's unprivileged users: chmod 0644"),
    ],
)
def test_a_key_file_that_is_wrong(
    start: Start, keys: Keys, user: User, wrong: tuple[str, int, int], reason: str
) -> None:
    """It is told in one line, once; the container waits, unhealthy, and begins when the file is mended."""
    name, uid, mode = wrong
    if name == "authorized_keys":
        keys.write(name, user.key.public)
    path = keys.keys / name
    right = path.stat().st_mode & 0o777
    path.chmod(mode)
    os.chown(path, uid, 0)
    container = start()
    wait_until(lambda: reason in container.log(), "the reason is told")
    assert not container.is_healthy()
    assert container.running
    podman("kill", "--signal=HUP", container.name)
    path.chmod(right)
    os.chown(path, 0, 0)
    podman("kill", "--signal=HUP", container.name)
    container.wait_healthy()
    assert container.log().count(reason) == 1


def test_waiting_for_a_key_file_ends_with_sigterm(start: Start, keys: Keys) -> None:
    """An operator need not wait for SIGKILL."""
    (keys.keys / "id_ed25519").chmod(0o644)
    container = start()
    wait_until(lambda: "waiting until that is done" in container.log(), "it waits")
    container.stop(timeout_s=10)
    assert container.status == 78


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"REMOTE_HOST": None},
            "gatewayctl: REMOTE_HOST is missing: set it, for example REMOTE_HOST=shell.example.org",
        ),
        ({"REMOTE_PORT": "no"}, "gatewayctl: REMOTE_PORT must be a port from 1 to 65535, not 'no'"),
        ({"GATEWAY_PASSWORD_AUTH": "true"}, "gatewayctl: GATEWAY_PASSWORD_AUTH (from environment"),
    ],
)
def test_a_wrong_setting_ends_it(start: Start, environment: dict[str, str | None], line: str) -> None:
    """One line, and status 78: no file outside of the container could mend it."""
    container = start(environment=environment)
    wait_until(lambda: not container.running, "the container ends")
    assert container.status == 78
    assert container.log().splitlines()[-1].startswith(line)


def test_a_host_key_that_changed(lab: Lab, start: Start, keys: Keys, user: User) -> None:
    """A remote with another host key than /keys/known_hosts has gives no session, and the remedy names that file."""
    other = make_key(lab.directory / "keys" / f"mitm-{user.name}")
    keys.write("known_hosts", f"{FAR_IPV4} {' '.join(other.public.split()[:2])}\n")
    keys.write("authorized_keys", user.key.public)
    container = start()
    container.wait_healthy()
    terminal = lab.terminal(container.argv(user), columns=400)
    assert terminal.wait_exit() == 76
    assert "/keys/known_hosts" in terminal.text


def test_one_command_besides(image: str) -> None:
    """``docker run IMAGE check-config`` is gatewayctl's own command, in a container without any right."""
    done = podman("run", "--rm", "--cap-drop=ALL", "--network=none", "--env=REMOTE_HOST=h", image, "check-config")
    assert done.stdout == "OK: listens on 0.0.0.0 port 2222, users land on h port 22\n"
