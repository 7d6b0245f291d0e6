"""An upgrade: a reload after it runs the new code, in the same process, and no session ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.installation import build_wheel, install, packages
from lab.room import PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


class Installation:
    """A gateway from an installation of its own, which can be changed.

    Attributes:
        gateway: The gateway.
        site: The directory of the installed packages.
    """

    def __init__(self, scripts: Path, gateway: Gateway) -> None:
        """Keep both."""
        self._scripts, self.gateway, self.site = scripts, gateway, packages(scripts.parent)

    def upgrade(self, version: str) -> None:
        """Install another version: the same code, with a comment more."""
        (metadata,) = self.site.glob("ssh_mosh_gateway-*.dist-info/METADATA")
        lines = metadata.read_text().splitlines()
        number = next(number for number, line in enumerate(lines) if line.startswith("Version: "))
        lines[number] = f"Version: {version}"
        metadata.write_text("\n".join([*lines, ""]))
        self.append("gatewayctl/cli.py", f"# {version}")

    def append(self, module: str, text: str) -> None:
        """Add a line at the end of a module."""
        path = self.site / module
        path.write_text(f"{path.read_text()}{text}\n")

    def ctl(self, *arguments: str) -> Any:
        """Ask the gateway by the installed command; returns what it prints as JSON."""
        environment = {**PLAIN_ENVIRONMENT, "GATEWAY_RUNTIME_DIR": self.gateway.settings["GATEWAY_RUNTIME_DIR"]}
        argv = self.gateway.room.argv([str(self._scripts / "gatewayctl"), *arguments, "--json"])
        done = subprocess.run(argv, capture_output=True, check=True, timeout=60, env=environment)
        return json.loads(done.stdout)

    def reload(self, event: str) -> None:
        """Send SIGHUP, and wait for its outcome."""
        since = self.gateway.log.mark()
        self.gateway.signal(signal.SIGHUP)
        self.gateway.log.wait_for(rf"\]: \w+ {event}\b", since=since)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from the checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def new_installation(
    lab: Lab, wheel: Path, start_gateway: Callable[..., Gateway], user: User, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Installation]:
    """Install the wheel in a root-owned place, and start a gateway from there with settings of the test's own."""
    scripts = install(wheel, lab.directory / f"upgrade-{user.name}" / "venv")
    monkeypatch.setattr("lab.gateway.GATEWAYCTL", scripts / "gatewayctl")
    return lambda *arguments, **options: Installation(scripts, start_gateway(*arguments, **options))


def test_a_reload_runs_the_new_version_and_ends_no_session(
    lab: Lab, new_installation: Callable[..., Installation], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A shell over mosh, a command, and one over a shared connection go on twice, with their exit statuses."""
    installed = new_installation()
    gateway, shells = installed.gateway, []
    for _ in range(2):
        shells.append(open_terminal(lab.gateway_argv(gateway, user)))
        shells[-1].wait_for(user.prompt)
    commands = [
        open_terminal(lab.gateway_argv(gateway, user, "echo ready; read line; exit 7", options=["-T"]))
        for _ in range(2)
    ]
    for command in commands:
        command.wait_for("ready")
    supervisor, listener, broker = gateway.pid, gateway.listener.pid, gateway.broker.pid
    open_sessions = [session["sid"] for session in installed.ctl("sessions")]
    assert len(open_sessions) == 4
    for version in ("98.0", "99.0"):
        installed.upgrade(version)
        installed.reload(rf"upgraded version={version}")
        wait_until(lambda: len([its for its in gateway.processes() if "helpers.broker" in its.argv]) == 1, "one broker")
        assert (gateway.pid, gateway.listener.pid) == (supervisor, listener)
        assert gateway.broker.pid != broker
        broker = gateway.broker.pid
        assert installed.ctl("status")["version"] == version
        assert [session["sid"] for session in installed.ctl("sessions")] == open_sessions
        assert installed.ctl("healthcheck")["healthy"]
        assert lab.run(lab.gateway_argv(gateway, user, "exit 3", options=["-T"])).returncode == 3
        shells[0].run(f"echo $(({version[:2]} + 1))", str(int(version[:2]) + 1))
    other = lab.add_user()
    assert lab.run(lab.gateway_argv(gateway, other, "exit 4", options=["-T"])).returncode == 4
    commands[0].type("\r")
    assert commands[0].wait_exit() == 7
    shells[0].type("exit\r")
    assert shells[0].wait_exit() == 0
    gateway.log.wait_for("session_ended .*transport=ssh ended=exit ")
    # sshd's lines are relayed, and have their sid's process id, as before.
    gateway.log.wait_for(rf"sshd\S*\[{open_sessions[0].partition('-')[0]}\]: Disconnected from user {user.name} ")
    assert gateway.stop() == 0
    assert len(gateway.log.matches("session_ended .*ended=stopped ")) == 2
    wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "nothing is left on the remote")
    assert gateway.processes() == []


def test_a_reload_runs_the_new_version_with_agent_pass_through(
    lab: Lab, new_installation: Callable[..., Installation], user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A session of the user's own agent goes on, and another one begins."""
    installed = new_installation({"GATEWAY_SSH_KEY_PATH": None})
    gateway = installed.gateway
    with lab.agent(user.key.private) as environment:
        argv = lab.gateway_argv(gateway, user, "echo ready; read line; exit 7", options=["-A", "-T"])
        command = open_terminal(argv, environment=environment)
        command.wait_for("ready")
        installed.upgrade("98.0")
        installed.reload("upgraded version=98.0")
        again = lab.gateway_argv(gateway, user, "exit 3", options=["-A", "-T"])
        assert lab.run(again, environment=environment).returncode == 3
        command.type("\r")
        assert command.wait_exit() == 7


_BROKEN = {
    "a syntax error": ("gatewayctl/supervisor/supervisor.py", "def", "SyntaxError"),
    "a missing dependency": ("helpers/broker/services.py", "import no_such_module", "no_such_module"),
    "an end at once": ("gatewayctl/commands/serve.py", "raise SystemExit(9)", "exit status 9"),
    "another state": ("gatewayctl/supervisor/handover.py", "VERSION = 2", "version 1, not 2"),
}


@pytest.mark.parametrize("what", ["a syntax error", "a missing dependency", "an end at once", "another state"])
def test_a_new_version_that_cannot_run_leaves_the_old_one(
    lab: Lab,
    new_installation: Callable[..., Installation],
    user: User,
    open_terminal: Callable[..., Terminal],
    what: str,
) -> None:
    """The log says why, sessions and logins go on, and once it is mended a reload runs it."""
    installed = new_installation()
    gateway = installed.gateway
    shell = open_terminal(lab.gateway_argv(gateway, user))
    shell.wait_for(user.prompt)
    broker = gateway.broker.pid
    module, line, reason = _BROKEN[what]
    path = installed.site / module
    good = path.read_text()
    installed.append(module, line)
    installed.reload("reload_failed")
    failed = gateway.log.matches("error reload_failed reason=(.*) effect=")
    assert reason in failed[-1][1], failed[-1][1]
    assert gateway.broker.pid == broker
    shell.run("echo $((40 + 2))", "42")
    path.write_text(good)
    installed.upgrade("98.0")
    installed.reload("upgraded version=98.0")
    shell.run("echo $((40 + 3))", "43")
    assert lab.run(lab.gateway_argv(gateway, user, "exit 3", options=["-T"])).returncode == 3


def test_wrong_settings_keep_the_old_version(
    lab: Lab, new_installation: Callable[..., Installation], user: User
) -> None:
    """The new version reads them before it takes over."""
    config = lab.directory / f"upgrade-{user.name}" / "config.yaml"
    config.write_text("remote_port: 22\n")
    installed = new_installation({}, "--config", str(config))
    config.write_text("remote_prot: 22\n")
    installed.upgrade("98.0")
    installed.reload("reload_failed")
    assert "did you mean remote_port?" in installed.gateway.log_text()
    config.write_text("remote_port: 22\n")
    installed.reload("upgraded version=98.0")
    assert lab.run(lab.gateway_argv(installed.gateway, user, "exit 3", options=["-T"])).returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_during_the_exchange_is_obeyed(
    lab: Lab, new_installation: Callable[..., Installation], user: User, number: signal.Signals
) -> None:
    """The end, orderly or not, comes as if there were no upgrade; kill -9 leaves no broker and no listener, either."""
    installed = new_installation()
    gateway = installed.gateway
    with lab.background(lab.gateway_argv(gateway, user, "echo ready; cat", options=["-T"])) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        installed.upgrade("98.0")
        gateway.signal(signal.SIGHUP)
        gateway.signal(number)
        status = gateway.wait_exit()
        assert status == (0 if number == signal.SIGTERM else -number) or status == 128 + number

    def ours() -> list[str]:
        names = [" ".join(its.argv) for its in gateway.processes()]
        return [name for name in names if number == signal.SIGTERM or re.search(r"gatewayctl|helpers\.|listener", name)]

    wait_until(lambda: ours() == [], "nothing is left")


def test_a_broker_that_crashed_is_started_by_the_new_version(
    lab: Lab, new_installation: Callable[..., Installation], user: User
) -> None:
    """The upgrade does not need one to take over from."""
    installed = new_installation()
    gateway = installed.gateway
    installed.upgrade("98.0")
    os.kill(gateway.broker.pid, signal.SIGKILL)
    installed.reload("upgraded version=98.0")
    assert lab.run(lab.gateway_argv(gateway, user, "exit 3", options=["-T"])).returncode == 3
