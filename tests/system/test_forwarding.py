"""The gateway is no way into its own network, nor into the remote's: whatever asks for one opens nothing."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from system.sessions import sshd_of

from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User


@pytest.fixture
def target(lab: Lab) -> Iterator[socket.socket]:
    """Something that listens on the gateway's own loopback, which nobody must reach."""
    with lab.near.network(), closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(0)
        yield listener


def _reached(listener: socket.socket) -> bool:
    """Tell whether somebody has connected."""
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _listening(lab: Lab) -> set[str]:
    """List what listens in the gateway's network and on the remote, by TCP."""
    return {
        f"{room.pid} {line.split()[3]}"
        for room in (lab.near, lab.remote.room)
        for line in room.run(["ss", "-Hltn"]).stdout.splitlines()
    }


def _refused_late(lab: Lab, gateway: Gateway, user: User, options: Sequence[str], *, port: int | str) -> bytes:
    """Let a client that forwards a port or socket of its own be asked, and return what it answers and complains of."""
    since = gateway.log.mark()
    client = subprocess.Popen(
        lab.near.network_argv(lab.gateway_argv(gateway, user, options=["-N", *options])),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=lab.environment(),
    )
    try:
        wait_until(lambda: sshd_of(gateway, user)[1:], "the client is logged in")
        with lab.near.network():
            sock = wait_until(lambda: _connect(port), "the client listens")
        assert sock is not None
        with closing(sock):
            sock.settimeout(20)
            sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16" if "-D" in options else b"hello\r\n")
            answer = b""
            try:
                while chunk := sock.recv(4096):
                    answer += chunk
            except ConnectionResetError:
                pass
    finally:
        client.kill()
        complaint = client.communicate()[1]
    assert b"open failed: " in complaint
    assert gateway.log.matches("session_started", since=since) == []
    return answer


def _connect(port: int | str) -> socket.socket | None:
    """Connect to a port of the gateway's loopback, or to a unix socket, if something listens."""
    return _connect_unix(port) if isinstance(port, str) else _connect_tcp(port)


def _connect_tcp(port: int) -> socket.socket | None:
    """Connect to a port of the gateway's loopback, if something listens."""
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=5)
    except OSError:
        return None


def _connect_unix(path: str) -> socket.socket | None:
    """Connect to a unix socket, if something listens."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def _free_port(lab: Lab) -> int:
    """Find a port that nobody listens on."""
    with lab.near.network(), closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("where", ["gateway", "remote"])
def test_local_forwarding(lab: Lab, gateway: Gateway, user: User, target: socket.socket, where: str) -> None:
    """-L reaches neither the gateway's own loopback nor the remote."""
    port = _free_port(lab)
    to = {"gateway": f"127.0.0.1:{target.getsockname()[1]}", "remote": "192.0.2.2:22"}[where]
    assert _refused_late(lab, gateway, user, ["-L", f"127.0.0.1:{port}:{to}"], port=port) == b""
    assert not _reached(target)


def test_local_forwarding_to_and_from_a_unix_socket(lab: Lab, gateway: Gateway, user: User) -> None:
    """-L reaches no unix socket of the gateway's, such as the broker's, from a port or from a unix socket."""
    port, path = _free_port(lab), lab.directory / f"forwarded-{user.name}"
    broker = gateway.directory / "run/broker.sock"
    assert _refused_late(lab, gateway, user, ["-L", f"127.0.0.1:{port}:{broker}"], port=port) == b""
    assert _refused_late(lab, gateway, user, ["-L", f"{path}:{broker}"], port=str(path)) == b""


def test_dynamic_forwarding(lab: Lab, gateway: Gateway, user: User) -> None:
    """-D is a SOCKS proxy that connects to nothing."""
    port = _free_port(lab)
    answer = _refused_late(lab, gateway, user, ["-D", f"127.0.0.1:{port}"], port=port)
    assert b"SSH-" not in answer


@pytest.mark.parametrize("kind", ["port", "any port", "unix socket", "dynamic"])
def test_remote_forwarding(lab: Lab, gateway: Gateway, user: User, target: socket.socket, kind: str) -> None:
    """-R opens no port and no socket, on the gateway or on the remote."""
    path = lab.directory / f"remote-{user.name}"
    to = f"127.0.0.1:{target.getsockname()[1]}"
    options = {
        "port": f"{_free_port(lab)}:{to}",
        "any port": f"0.0.0.0:0:{to}",
        "unix socket": f"{path}:{to}",
        "dynamic": str(_free_port(lab)),
    }
    before = _listening(lab)
    argv = lab.gateway_argv(gateway, user, options=["-N", "-R", options[kind], "-o", "ExitOnForwardFailure=yes"])
    done = lab.run(argv)
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"remote port forwarding failed" in done.stderr or b"remote forward" in done.stderr
    assert not path.exists()
    assert _listening(lab) == before


@pytest.mark.parametrize("to", ["gateway", "remote", "name"])
def test_standard_input_is_not_forwarded(
    lab: Lab, gateway: Gateway, user: User, target: socket.socket, to: str
) -> None:
    """-W, by which a client would use the gateway as a jump host, reaches nothing."""
    where = {"gateway": f"127.0.0.1:{target.getsockname()[1]}", "remote": "192.0.2.2:22", "name": "remote.example:22"}
    lab.run(lab.gateway_argv(gateway, user, "true"))  # what the broker itself says to the remote is said
    since = lab.remote.log.mark()
    done = lab.run(lab.gateway_argv(gateway, user, options=["-W", where[to]]))
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"administratively prohibited" in done.stderr
    assert not _reached(target)
    assert lab.remote.connections(since=since) == 0


def test_the_gateway_is_no_jump_host(lab: Lab, gateway: Gateway, user: User) -> None:
    """-J over the gateway does not get to the remote."""
    config = lab.directory / f"config-{user.name}"
    hosts = {"127.0.0.1": gateway.known_hosts, "192.0.2.2": lab.known_hosts}
    config.write_text(
        f"IdentityFile {user.key.private}\nIdentitiesOnly yes\nBatchMode yes\n"
        + "".join(f"Host {host}\n UserKnownHostsFile {known_hosts}\n" for host, known_hosts in hosts.items())
    )
    lab.run(lab.gateway_argv(gateway, user, "true"))
    since = lab.remote.log.mark()
    jump = f"{user.name}@127.0.0.1:{gateway.port}"
    done = lab.run(["ssh", "-F", str(config), "-J", jump, f"{user.name}@192.0.2.2", "id"])
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"administratively prohibited" in done.stderr
    assert lab.remote.connections(since=since) == 0


def test_the_agent_stays_at_home(lab: Lab, gateway: Gateway, user: User) -> None:
    """-A: with the gateway's key, neither the gateway nor the remote has a socket to the user's agent."""
    with lab.agent(user.key.private) as environment:
        done = lab.run(
            lab.gateway_argv(gateway, user, 'echo "[$SSH_AUTH_SOCK]"; ssh-add -l', options=["-A"]),
            environment=environment,
        )
    assert (done.stdout.splitlines()[0], done.returncode) == (b"[]", 2)  # ssh-add(1): no agent can be reached
    assert not list(gateway.room.path("/tmp").glob("ssh-*/agent.*"))  # noqa: S108 - where sshd would put it


@pytest.mark.parametrize("option", ["-X", "-Y"])
def test_the_display_stays_at_home(lab: Lab, gateway: Gateway, user: User, option: str) -> None:
    """-X and -Y: the remote's command has no display, and nothing listens for one."""
    before = _listening(lab)
    argv = lab.gateway_argv(gateway, user, 'echo "[$DISPLAY]"; read -r _', options=[option])
    client = subprocess.Popen(
        lab.near.network_argv(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=lab.environment({"DISPLAY": ":9"}),
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"[]\n"
    assert _listening(lab) == before
    client.communicate(b"\n")
    assert client.returncode == 0


@pytest.mark.parametrize("kind", ["point-to-point", "ethernet"])
def test_no_tunnel_device(lab: Lab, gateway: Gateway, user: User, kind: str) -> None:
    """-w makes no tunnel: neither side has a network device more, and it is the gateway that refuses."""
    _refuses_tunnels(lab, gateway, user, kind)


def _refuses_tunnels(lab: Lab, gateway: Gateway, user: User, kind: str) -> None:
    """See a tunnel refused."""
    before = [room.run(["ip", "-o", "link"]).stdout for room in (lab.near, lab.remote.room)]
    options = ["-N", "-w", "any:any", "-o", "ExitOnForwardFailure=yes", "-o", f"Tunnel={kind}"]
    done = lab.run(lab.gateway_argv(gateway, user, options=options))
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"open failed: " in done.stderr
    after = [room.run(["ip", "-o", "link"]).stdout for room in (lab.near, lab.remote.room)]
    assert after == before


def test_a_session_cannot_forward_over_the_shared_connection(lab: Lab, gateway: Gateway, user: User) -> None:
    """A user's own ssh on the gateway has no forwarding configured: the shared connection brought none along."""
    before = _listening(lab)
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0
    assert _listening(lab) == before


# Without a key of the gateway's, where sshd has to let agents through and so not all is forbidden at once


@pytest.fixture(scope="module")
def pass_through(shared_lab: Lab) -> Iterator[Gateway]:
    """A gateway without a key."""
    gateway = shared_lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None})
    yield gateway
    gateway.close()


@pytest.mark.parametrize("kind", ["-L", "-L unix", "-D"])
def test_pass_through_forwards_nothing_from_the_client(
    lab: Lab, pass_through: Gateway, user: User, target: socket.socket, kind: str
) -> None:
    """With agent pass-through too, -L and -D reach neither a port nor a unix socket of the gateway's."""
    port = _free_port(lab)
    options = {
        "-L": ["-L", f"127.0.0.1:{port}:127.0.0.1:{target.getsockname()[1]}"],
        "-L unix": ["-L", f"127.0.0.1:{port}:{pass_through.directory / 'run/broker.sock'}"],
        "-D": ["-D", f"127.0.0.1:{port}"],
    }
    answer = _refused_late(lab, pass_through, user, options[kind], port=port)
    assert b"SSH-" not in answer
    assert not _reached(target)


@pytest.mark.parametrize("kind", ["-R", "-R unix", "-W gateway", "-W remote"])
def test_pass_through_opens_nothing(
    lab: Lab, pass_through: Gateway, user: User, target: socket.socket, kind: str
) -> None:
    """With agent pass-through too, -R listens on no port and no socket, and -W reaches neither host."""
    path, to = lab.directory / f"passed-{user.name}", f"127.0.0.1:{target.getsockname()[1]}"
    fail = ["-o", "ExitOnForwardFailure=yes"]
    options = {
        "-R": ["-N", "-R", f"{_free_port(lab)}:{to}", *fail],
        "-R unix": ["-N", "-R", f"{path}:{to}", *fail],
        "-W gateway": ["-W", to],
        "-W remote": ["-W", "192.0.2.2:22"],
    }
    before, since = _listening(lab), lab.remote.log.mark()
    done = lab.run(lab.gateway_argv(pass_through, user, options=options[kind]))
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"forwarding failed" in done.stderr or b"administratively prohibited" in done.stderr
    assert _listening(lab) == before
    assert not path.exists()
    assert not _reached(target)
    assert lab.remote.connections(since=since) == 0


def test_pass_through_makes_no_tunnel_and_forwards_no_display(lab: Lab, pass_through: Gateway, user: User) -> None:
    """With agent pass-through too, -w makes no device, and -X gives the remote's command no display."""
    _refuses_tunnels(lab, pass_through, user, "point-to-point")
    before = _listening(lab)
    with lab.agent(user.key.private) as environment:
        argv = lab.gateway_argv(pass_through, user, 'echo "[$DISPLAY][$SSH_AUTH_SOCK]"', options=["-A", "-Y"])
        done = lab.run(argv, environment={**environment, "DISPLAY": ":9"})
    assert (done.stdout, done.returncode) == (b"[][]\n", 0)
    assert _listening(lab) == before
