"""The gateway is no way into its own network, nor into the remote's: whatever asks for one opens nothing."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import asyncssh
import paramiko
import pytest
from system.sessions import sshd_of

from lab.gateway import ADDRESS
from lab.remote import PORT
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence
    from pathlib import Path

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
            answer = b""
            try:
                sock.sendall(
                    b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16" if "-D" in options else b"hello\r\n"
                )
                while chunk := sock.recv(4096):
                    answer += chunk
            except ConnectionError:
                pass  # it may be closed before it is read
    finally:
        client.kill()
        complaint = client.communicate()[1]
    assert b"open failed: " in complaint
    assert gateway.log.matches("session_(started|failed)", since=since) == []
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
    before = _links(lab)
    options = ["-N", "-w", "any:any", "-o", "ExitOnForwardFailure=yes", "-o", f"Tunnel={kind}"]
    done = lab.run(lab.gateway_argv(gateway, user, options=options))
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"open failed: " in done.stderr
    assert _links(lab) == before


def _links(lab: Lab) -> list[str]:
    """List the network devices on both sides."""
    return [room.run(["ip", "-o", "link"]).stdout for room in (lab.near, lab.remote.room)]


def test_a_session_cannot_forward_over_the_shared_connection(lab: Lab, gateway: Gateway, user: User) -> None:
    """A user's own ssh on the gateway has no forwarding configured: the shared connection brought none along."""
    before = _listening(lab)
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0
    assert _listening(lab) == before


# Clients that ask for what OpenSSH's would not


async def _openings(connection: asyncssh.SSHClientConnection, target: int, broker: Path, path: Path) -> dict[str, str]:
    """Ask for every kind of channel and listener, and return what came of each."""
    asked: dict[str, Awaitable[object]] = {
        "direct-tcpip to the gateway": connection.open_connection("127.0.0.1", target),
        "direct-tcpip by name": connection.open_connection("localhost", target),
        "direct-tcpip to the remote": connection.open_connection(FAR_IPV4, PORT),
        "direct-streamlocal@openssh.com": connection.open_unix_connection(str(broker)),
        "tun@openssh.com, point-to-point": connection.open_tun(),
        "tun@openssh.com, ethernet": connection.open_tap(),
        "tcpip-forward": connection.start_server(lambda _host, _port: None, "127.0.0.1", 0),
        "tcpip-forward for all": connection.start_server(lambda _host, _port: None, "", 0),
        "streamlocal-forward@openssh.com": connection.start_unix_server(lambda: None, str(path)),
    }
    outcomes = {}
    for name, opening in asked.items():
        try:
            async with asyncio.timeout(20):
                await opening
            outcomes[name] = "opened"
        except (asyncssh.ChannelOpenError, asyncssh.ChannelListenError) as error:
            outcomes[name] = type(error).__name__
    return outcomes


@pytest.fixture
def either(request: pytest.FixtureRequest, lab: Lab) -> Gateway:
    """One of the two kinds of gateway, by the parameter."""
    gateway: Gateway = request.getfixturevalue(request.param)
    assert gateway in lab.gateways
    return gateway


@pytest.mark.parametrize("either", ["gateway", "pass_through"], indirect=True)
async def test_no_channel_and_no_listener_is_opened(
    lab: Lab, either: Gateway, user: User, target: socket.socket
) -> None:
    """A client that asks straight out for channels and listeners of every kind is refused each, and goes on."""
    path, broker = lab.directory / f"asked-{user.name}", either.directory / "run/broker.sock"
    before = _links(lab), _listening(lab)
    sock = lab.near.connect(ADDRESS, either.port)
    sock.settimeout(0)
    keys: dict[str, Any] = {"client_keys": [str(user.key.private)], "agent_path": None, "config": None}
    known_hosts = asyncssh.import_known_hosts(either.known_hosts.read_text())
    async with asyncssh.connect(
        ADDRESS, either.port, sock=sock, username=user.name, known_hosts=known_hosts, **keys
    ) as connection:
        outcomes = await _openings(connection, target.getsockname()[1], broker, path)
    assert set(outcomes.values()) == {"ChannelOpenError", "ChannelListenError"}
    assert len(outcomes) == 9
    assert not _reached(target)
    assert not path.exists()
    assert (_links(lab), _listening(lab)) == before


@pytest.mark.parametrize("either", ["gateway", "pass_through"], indirect=True)
def test_no_display_and_no_channel_of_a_servers(lab: Lab, either: Gateway, user: User) -> None:
    """x11-req fails, and so do channels that only servers open; with a key auth-agent-req brings no agent either."""
    before = _listening(lab)
    with closing(paramiko.Transport(lab.near.connect(ADDRESS, either.port, timeout_s=20))) as transport:
        transport.start_client(timeout=20)
        transport.auth_publickey(user.name, paramiko.Ed25519Key.from_private_key_file(str(user.key.private)))
        for kind in ("x11", "forwarded-tcpip", "auth-agent@openssh.com", "session@example.com"):
            with pytest.raises(paramiko.ChannelException):
                transport.open_channel(kind, ("127.0.0.1", 1), ("127.0.0.1", 1), timeout=20)
        channel = transport.open_session(timeout=20)
        with pytest.raises(paramiko.SSHException):
            channel.request_x11(handler=lambda *_: None)
        if "GATEWAY_SSH_KEY_PATH" in either.settings:
            channel = transport.open_session(timeout=20)
            channel.settimeout(20)
            channel.request_forward_agent(lambda _: None)
            channel.exec_command('echo "[$SSH_AUTH_SOCK][$DISPLAY]"')
            assert channel.makefile("rb").read() == b"[][]\n"
            assert not list(either.room.path("/tmp").glob("ssh-*/agent.*"))  # noqa: S108 - where sshd would put it
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
