"""``pip install`` of a wheel into a root-owned virtual environment is all there is to an installation."""

from __future__ import annotations

import importlib.metadata
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.installation import CHECKOUT, build_wheel, install
from lab.room import PLAIN_ENVIRONMENT
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from the checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def scripts(shared_lab: Lab, wheel: Path) -> Iterator[Path]:
    """Install it in a root-owned place; yields ``bin``."""
    environment = shared_lab.directory / "installation" / "venv"
    yield install(wheel, environment)
    environment.parent.chmod(0o755)


def _gatewayctl(
    scripts: Path, *arguments: str, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the installed command with these settings and no other environment."""
    return subprocess.run(
        [scripts / "gatewayctl", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
        env={**PLAIN_ENVIRONMENT, **(settings or {})},
    )


@pytest.fixture
def settings(lab: Lab) -> dict[str, str]:
    """Settings that are right, with nothing at their places yet."""
    return {
        "REMOTE_HOST": FAR_IPV4,
        "GATEWAY_SSH_KEY_PATH": str(lab.gateway_key.private),
        "GATEWAY_RUNTIME_DIR": str(lab.directory / "installed-run"),
        "GATEWAY_HOST_KEY_PATH": str(lab.directory / "installed_host_key"),
    }


def test_wheel_is_complete(wheel: Path) -> None:
    """Every module and template of the checkout is in the wheel, and no test."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    modules = {
        str(path.relative_to(CHECKOUT))
        for package in ("gatewayctl", "helpers")
        for path in (CHECKOUT / package).rglob("*.py")
    }
    templates = {f"gatewayctl/sshd_config.d/{path.name}" for path in (CHECKOUT / "sshd_config.d").iterdir()}
    assert len(templates) >= 6
    assert names == modules | templates | {"gatewayctl/systemd/ssh-mosh-gateway.service"}


def test_installed_command_is_the_wheels(scripts: Path) -> None:
    """`gatewayctl --version` says the wheel's version, from the environment that it was installed in."""
    shown = _gatewayctl(scripts, "--version")
    where = "import gatewayctl, helpers; print(gatewayctl.__file__, helpers.__file__)"
    files = subprocess.run([scripts / "python", "-I", "-c", where], check=True, capture_output=True, text=True).stdout

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"gatewayctl {importlib.metadata.version('ssh-mosh-gateway')}\n"
    assert all(Path(file).is_relative_to(scripts.parent) for file in files.split())


def test_rendered_configuration_is_good(scripts: Path, settings: dict[str, str], lab: Lab) -> None:
    """What `render-config --output` writes passes `sshd -t`, and names the helpers of this installation."""
    output = lab.directory / "rendered"
    done = _gatewayctl(scripts, "render-config", "--output", str(output), settings=settings)
    assert (done.returncode, done.stderr) == (0, "")

    main = Path(done.stdout.strip())
    text = "".join(path.read_text() for path in output.rglob("*.conf"))
    assert main == output / "sshd_config"
    assert str(scripts.parent) in text
    key = Path(settings["GATEWAY_HOST_KEY_PATH"])
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    checked = subprocess.run(["/usr/sbin/sshd", "-t", "-f", main], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.fixture
def installed_gateway(scripts: Path, start_gateway: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """A gateway that was started from the fresh installation."""
    monkeypatch.setattr("lab.gateway.GATEWAYCTL", scripts / "gatewayctl")
    return start_gateway({"GATEWAY_LOG_LEVEL": "debug"})  # sshd names the helper in a detail


def test_installation_serves(
    lab: Lab, installed_gateway: Gateway, scripts: Path, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """A gateway from the fresh installation lets a user in, with helpers of that installation alone."""
    open_terminal(lab.gateway_argv(installed_gateway, user)).wait_for(user.prompt)

    assert str(scripts / "gatewayctl") in [word for its in installed_gateway.processes() for word in its.argv]
    installed_gateway.log.wait_for(f"{scripts.parent}/lib/[^ ]*/helpers/launch.py session ")


def test_closed_installation_is_refused(scripts: Path, settings: dict[str, str]) -> None:
    """An installation that the gateway's own users cannot reach, as below /root, is refused in one clear line."""
    closed = scripts.parent.parent
    closed.chmod(0o700)
    try:
        done = _gatewayctl(scripts, "serve", settings=settings)
    finally:
        closed.chmod(0o755)

    assert (done.returncode, done.stdout) == (78, "")
    errors = [line for line in done.stderr.splitlines() if " warning " not in line]
    assert len(errors) == 1
    assert errors[0].startswith("gatewayctl: ")
    assert str(closed) in errors[0]
    assert not Path(settings["GATEWAY_RUNTIME_DIR"]).exists()


def test_installation_that_others_may_change_is_refused(scripts: Path, settings: dict[str, str]) -> None:
    """An installation that somebody else than root may write to is refused: sshd would refuse it without a word."""
    scripts.parent.chmod(0o777)
    try:
        done = _gatewayctl(scripts, "serve", settings=settings)
    finally:
        scripts.parent.chmod(0o755)

    assert done.returncode == 78
    assert str(scripts.parent) in done.stderr
    assert not Path(settings["GATEWAY_RUNTIME_DIR"]).exists()
