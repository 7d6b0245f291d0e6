"""SIGHUP brings new settings to those who log in from then on, and disturbs nobody who is there."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.sessions import mosh_client_of, sends_at_once, uid_of

from lab.gateway import ADDRESS
from lab.users import make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

    OpenTerminal = Callable[..., Terminal]
    StartGateway = Callable[..., Gateway]


def _write(path: Path, **settings: object) -> Path:
    """Write a configuration file."""
    path.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return path


def _config(lab: Lab, name: str) -> Path:
    """Name a configuration file of the test's own."""
    return lab.directory / f"{name}.yaml"


def _reload(gateway: Gateway, expected: str = "reloaded") -> str:
    """Send SIGHUP, wait for the line that says what came of it, and return that line."""
    since = gateway.log.mark()
    gateway.signal(signal.SIGHUP)
    return gateway.log.wait_for(rf"gatewayctl\[\d+\]: \w+ {expected}\b.*", since=since).group()


def _may_log_in(lab: Lab, gateway: Gateway, user: User, key: Path | None = None) -> bool:
    """Tell whether sshd takes the user's key; no session is started."""
    # -N asks for no session.
    argv = lab.gateway_argv(
        gateway, user, options=["-v", "-N", "-oExitOnForwardFailure=yes", "-R1:localhost:1"], key=key
    )
    result = lab.run(argv)
    assert result.returncode == 255
    return b"Authenticated to" in result.stderr


def test_live_session_survives(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """A session goes on over three reloads, and a login after them gives the user the same uid."""
    gateway = start_gateway()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    uid, client = uid_of(gateway, user), mosh_client_of(gateway, user)
    broker = gateway.broker

    for number in range(3):
        _reload(gateway)
        terminal.run(f"echo $(({number} + 4200))", f"\n{number + 4200}\n")

    assert mosh_client_of(gateway, user) == client
    again = open_terminal(lab.gateway_argv(gateway, user))
    again.wait_for(user.prompt)
    assert uid_of(gateway, user) == uid
    wait_until(lambda: broker not in gateway.processes(), "the first broker is gone")


def test_changed_keys_take_effect(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """Local keys in the file decide anew after a reload, and not before."""
    other = lab.add_user()
    config = _write(_config(lab, user.name), gateway_authorized_keys_content=f'"{user.key.public}"')
    gateway = start_gateway(None, "--config", str(config))
    keys = (user.key.private, other.key.private)
    assert [_may_log_in(lab, gateway, user, key) for key in keys] == [True, False]

    _write(config, gateway_authorized_keys_content=f'"{other.key.public}"')
    assert [_may_log_in(lab, gateway, user, key) for key in keys] == [True, False]
    _reload(gateway)
    wait_until(lambda: [_may_log_in(lab, gateway, user, key) for key in keys] == [False, True], "the other key opens")


def test_changed_port_takes_effect(
    lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal
) -> None:
    """After a reload the gateway listens on its new port and no longer on the old one; sessions stay."""
    first, second = (20_000 + 2 * user.uid, 20_001 + 2 * user.uid)  # nobody else's: the network is the worker's own
    config = _write(_config(lab, user.name), gateway_port=first)
    gateway = start_gateway({"GATEWAY_PORT": None}, "--config", str(config), wait=False)
    gateway.port = first
    gateway.wait_ready()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)

    _write(config, gateway_port=second)
    _reload(gateway)
    gateway.port = second
    gateway.wait_ready()

    with pytest.raises(ConnectionRefusedError):
        lab.near.connect(ADDRESS, first)
    assert _may_log_in(lab, gateway, user)
    terminal.run("echo $((6 * 7))", "\n42\n")


def test_sshd_sends_at_once(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """Nothing that sshd says waits for the client to acknowledge what it said before, after a reload as before it."""
    config = _write(_config(lab, user.name), gateway_permit_root=False)
    gateway = start_gateway(None, "--config", str(config))
    gateway.log.wait_for(" ready ")
    assert sends_at_once(gateway.listener)
    _write(config, gateway_permit_root=True)
    _reload(gateway)
    wait_until((gateway.directory / "run" / "sshd.pid").exists, "sshd listens anew")
    wait_until(lambda: sends_at_once(gateway.listener), "the sockets that it listens on since do so too")


def test_a_reload_does_not_wait_for_sshd(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """While sshd hangs and does not start itself anew, a broker that crashes is replaced; then logins work again."""
    config = _write(_config(lab, user.name), gateway_permit_root=False)
    gateway = start_gateway(None, "--config", str(config))
    sshd, pid_file = gateway.listener.pid, gateway.directory / "run" / "sshd.pid"
    since = gateway.log.mark()
    os.kill(sshd, signal.SIGSTOP)
    try:
        _write(config, gateway_permit_root=True)
        gateway.signal(signal.SIGHUP)
        wait_until(lambda: not pid_file.exists(), "sshd is told")
        os.kill(gateway.broker.pid, signal.SIGKILL)
        gateway.log.wait_for(r"gatewayctl\[\d+\]: info broker_restarted\b", since=since)
        events = [match.group(1) for match in gateway.log.matches(r"gatewayctl\[\d+\]: \w+ (\w+)", since=since)]
        assert events == ["reloaded", "broker_ended", "broker_restarted"]
    finally:
        os.kill(sshd, signal.SIGCONT)
    wait_until(pid_file.exists, "sshd listens anew")
    assert _may_log_in(lab, gateway, user)


def test_changed_cache_takes_effect(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """A shorter GATEWAY_CACHE_TTL lets a revoked key in for only as long as that."""
    config = _write(_config(lab, user.name), gateway_cache_ttl=3600)
    gateway = start_gateway(None, "--config", str(config))
    assert _may_log_in(lab, gateway, user)

    _write(config, gateway_cache_ttl=1)
    _reload(gateway)
    wait_until(lambda: _may_log_in(lab, gateway, user), "the key is taken")
    lab.remote.authorize(user, [lab.gateway_key.public])

    wait_until(lambda: not _may_log_in(lab, gateway, user), "the key is refused")


def test_broken_file_changes_nothing(
    lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal
) -> None:
    """A file with a mistake leaves the settings from before in force, and the log says which line is wrong."""
    config = _write(_config(lab, user.name), gateway_cache_ttl=30)
    # A first session that may go over ssh has a parent.
    gateway = start_gateway({"GATEWAY_TRANSPORT": "mosh"}, "--config", str(config))
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    uid = mosh_client_of(gateway, user).uid
    wait_until(lambda: len(gateway.processes(uid=uid)) == 2, "mosh-client is nudged no more")
    processes = gateway.processes()

    for broken in (
        "gateway_cache_tll: 30\n",
        "gateway_cache_ttl: soon\n",
        "gateway_cache_ttl: [\n",
        'gateway_mosh_predict: "\\U00110000"\n',
        "gateway_session_timeout: 1\n",
    ):
        config.write_text(broken)
        since = gateway.log.mark()
        line = _reload(gateway, "reload_failed")
        assert str(config) in line
        assert gateway.processes() == processes
        terminal.run("clear; echo $((6 * 7))", f"42\n{user.prompt}")
        assert len(gateway.log.lines(since=since)) == 1
    assert _may_log_in(lab, gateway, user)

    _write(config, gateway_cache_ttl=31)
    _reload(gateway)


def test_what_needs_a_restart_is_refused(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """A new GATEWAY_UID_RANGE is not half taken over: the reload fails, and the gateway goes on as it was."""
    config = _write(_config(lab, user.name), gateway_cache_ttl=30)
    gateway = start_gateway(None, "--config", str(config))

    _write(config, gateway_uid_range="700000:799999")
    assert "GATEWAY_UID_RANGE" in _reload(gateway, "reload_failed")

    assert _may_log_in(lab, gateway, user)


def test_a_host_key_that_sshd_does_not_see(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """A directory that is new in /run is not there for the running sshd: the reload fails, and the gateway goes on."""
    config = _write(_config(lab, user.name), gateway_cache_ttl=30)
    path = lab.directory / f"{user.name}-host-key"
    key = make_key(lab.directory / "keys" / path.name).private
    path.symlink_to(key)
    gateway = start_gateway({"GATEWAY_HOST_KEY_PATH": str(path)}, "--config", str(config))
    new = Path("/run", f"{lab.directory.name}-new")
    new.mkdir()
    try:
        path.unlink()
        path.symlink_to(make_key(new / "host_key").private)
        _write(config, gateway_trusted_proxies="192.0.2.77")  # so that sshd would start itself anew
        assert f"Unable to load host key: {path}" in _reload(gateway, "reload_failed")
    finally:
        shutil.rmtree(new)
    path.unlink()
    path.symlink_to(key)
    assert _may_log_in(lab, gateway, user)


def test_a_port_that_is_taken(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """A new port that somebody else has, or an address that is not here, fails the reload and ends no session."""
    port = 20_000 + 2 * user.uid  # nobody else's: the network is the worker's own
    config = _write(_config(lab, user.name), gateway_port=port, gateway_host=ADDRESS)
    gateway = start_gateway({"GATEWAY_PORT": None, "GATEWAY_HOST": None}, "--config", str(config), wait=False)
    gateway.port = port
    gateway.wait_ready()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)

    with lab.near.network(), socket.create_server((ADDRESS, 0)) as taken:
        _write(config, gateway_port=taken.getsockname()[1], gateway_host=ADDRESS)
        assert "Address already in use" in _reload(gateway, "reload_failed")
    _write(config, gateway_port=port, gateway_host="203.0.113.9")
    assert "GATEWAY_HOST 203.0.113.9" in _reload(gateway, "reload_failed")
    # The port that we have, on an address where somebody else has it.
    with lab.near.network(), socket.create_server(("127.0.0.2", port)):
        for address in ("127.0.0.2", "0.0.0.0", '"*"'):  # noqa: S104 - in a namespace
            _write(config, gateway_port=port, gateway_host=address)
            assert "Address already in use" in _reload(gateway, "reload_failed")
        _write(config, gateway_port=port, gateway_host=ADDRESS, gateway_permit_root="true")
        _reload(gateway)
        wait_until(lambda: _may_log_in(lab, gateway, user), "sshd listens anew")

    assert _may_log_in(lab, gateway, user)
    terminal.run("echo $((6 * 7))", "\n42\n")
    for address in ("0.0.0.0", '"*"'):  # noqa: S104 - in a namespace
        _write(config, gateway_port=port, gateway_host=address)
        _reload(gateway)
        wait_until(lambda: _may_log_in(lab, gateway, user), "sshd listens anew")
    lab.near.connect("::1", port).close()
    terminal.run("echo $((6 * 8))", "\n48\n")


def test_an_address_that_has_moved_away(lab: Lab, start_gateway: StartGateway, user: User) -> None:
    """A reload for which sshd need not listen anew takes effect, though the address is another machine's by now."""
    address = ["ip", "address", "replace", "198.51.100.77/32", "dev", "lo"]
    lab.near.run(address)
    config = _write(_config(lab, user.name), gateway_log_level="info")
    gateway = start_gateway({"GATEWAY_HOST": "198.51.100.77"}, "--config", str(config), wait=False)
    gateway.log.wait_for(" ready ")
    lab.near.run(["ip", "address", "del", *address[3:]])

    _write(config, gateway_log_level="info", gateway_cache_ttl=1)
    _reload(gateway)
    _write(config, gateway_log_level="info", gateway_permit_root="true")
    assert "Cannot assign requested address" in _reload(gateway, "reload_failed")


def test_a_full_disk(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """A reload that finds no space for sshd's configuration fails, ends no session, and works once there is space."""
    gateway = start_gateway()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    full = f"{gateway.settings['GATEWAY_RUNTIME_DIR']}/sshd_config.d"
    gateway.room.run(["mount", "-t", "tmpfs", "-o", "mode=0755,nr_inodes=1", "tmpfs", full])

    for _ in range(2):
        assert "No space left on device" in _reload(gateway, "reload_failed")

    terminal.run("echo $((6 * 7))", "\n42\n")
    gateway.room.run(["umount", full])
    _reload(gateway)
    assert _may_log_in(lab, gateway, user)


def test_no_file_descriptors(lab: Lab, start_gateway: StartGateway, user: User, open_terminal: OpenTerminal) -> None:
    """A supervisor that can start nothing goes on, tries its broker again, and ends no session."""
    gateway = start_gateway()
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    assert "Too many open files" in _reload(gateway, "reload_failed")
    os.kill(gateway.broker.pid, signal.SIGKILL)
    gateway.log.wait_for("broker_not_started .*Too many open files")
    gateway.log.wait_for("broker_ended .*restart_in_s=1.0")  # it has turned away who waits, too
    terminal.run("echo $((6 * 7))", "\n42\n")

    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
    gateway.log.wait_for("broker_restarted")
    assert _may_log_in(lab, gateway, user)
    inherited = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
    _reload(gateway)
    wait_until(lambda: len(list(Path(f"/proc/{gateway.pid}/fd").iterdir())) <= inherited, "nothing is left open")


def test_a_reload_mends_a_broken_broker(start_gateway: StartGateway) -> None:
    """After a reload has brought a broker back, lookups wait for the next one again and are not turned away."""
    gateway = start_gateway()
    table = gateway.directory / "run" / "state" / "users.sqlite3"
    table.write_bytes(b"broken" * 1000)
    os.kill(gateway.broker.pid, signal.SIGKILL)
    wait_until(lambda: len(gateway.log.matches("broker_not_started")) >= 2, "the broker does not start, twice")
    table.unlink()
    _reload(gateway)

    since = gateway.log.mark()
    os.kill(gateway.broker.pid, signal.SIGKILL)
    gateway.log.wait_for("broker_ended .* restart_in_s=[1-9]", since=since)
    lookup = ["nsenter", f"--mount=/proc/{gateway.listener.pid}/ns/mnt", "--", "getent", "passwd", "gateway+auth"]
    assert subprocess.run(lookup, check=False, capture_output=True, timeout=30).returncode == 0


def test_logins_during_a_reload(lab: Lab, start_gateway: StartGateway, open_terminal: OpenTerminal) -> None:
    """Whoever is about to log in while the settings are read anew gets in."""
    gateway = start_gateway({"GATEWAY_LOG_LEVEL": "debug"})
    users = [lab.add_user() for _ in range(4)]
    since = gateway.log.mark()

    terminals = [open_terminal(lab.gateway_argv(gateway, user)) for user in users]
    gateway.log.wait_for("Connection from", since=since)
    gateway.signal(signal.SIGHUP)
    for terminal, user in zip(terminals, users, strict=True):
        terminal.wait_for(user.prompt)

    gateway.log.wait_for(" reloaded", since=since)
    assert len({uid_of(gateway, user) for user in users}) == len(users)


def test_nobody_is_turned_away_by_a_reload(lab: Lab, start_gateway: StartGateway) -> None:
    """The port is open at every moment of a reload: connection after connection, none is refused."""
    gateway = start_gateway()
    since = gateway.log.mark()
    refused = answered_after = 0

    gateway.signal(signal.SIGHUP)
    while answered_after < 50:
        reloaded = bool(gateway.log.matches(" reloaded", since=since))
        try:
            with lab.near.connect(ADDRESS, gateway.port) as connection:
                answered_after += connection.recv(4) == b"SSH-" and reloaded
        except OSError:
            refused += 1

    assert refused == 0
