"""``gatewayctl`` as a process: what it prints where, and the status it exits with."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import bcrypt
import click
import pytest

from gatewayctl import cli
from gatewayctl.settings.metadata import describe
from gatewayctl.settings.model import Settings
from lab.users import make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = {name: value for name, value in os.environ.items() if not re.match("GATEWAY_|REMOTE_", name)}
COMMANDS = ("check-config", "render-config", "serve")


def gatewayctl(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments and variables."""
    return subprocess.run(
        [sys.executable, "-m", "gatewayctl", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**ENVIRONMENT, **environ},
    )


@pytest.fixture
def enough(tmp_path: Path) -> dict[str, str]:
    """The least that a gateway needs."""
    key = make_key(tmp_path / "key")
    (tmp_path / "known_hosts").write_text(f"shell.example.org {key.public}\n")
    return {
        "REMOTE_HOST": "shell.example.org",
        "GATEWAY_SSH_KEY_PATH": str(key.private),
        "REMOTE_KNOWN_HOSTS": str(tmp_path / "known_hosts"),
    }


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str) -> None:
    """The list of commands, on standard output."""
    result = gatewayctl(flag)
    assert result.returncode == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    assert result.stderr == ""


def test_version() -> None:
    """One line with the name and the version."""
    result = gatewayctl("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"gatewayctl \d+\.\d+\.\d+\S*\n", result.stdout)


def test_the_list_says_what_the_commands_say() -> None:
    """The list is written without importing the commands, and still is theirs word by word."""
    for name, subcommand in cli.SUBCOMMANDS.items():
        module = importlib.import_module(f"gatewayctl.commands.{subcommand.module}")
        command = getattr(module, subcommand.function)
        assert isinstance(command, click.Command)
        assert command.name == name
        assert command.get_short_help_str(200) == subcommand.about


def test_help_imports_nothing_heavy() -> None:
    """The list of commands, and completion with it, costs no settings, templates or SSH library."""
    code = (
        "import sys\nfrom gatewayctl import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([n for n in ('pydantic', 'jinja2', 'yaml', 'rich', 'paramiko') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_each_setting_with_unit_and_default(command: str) -> None:
    """Every setting that is no secret is a flag, with its unit and default; secrets are named and are none."""
    result = gatewayctl(command, "--help", GATEWAY_PASSWORDS="alice:s3cr3t", COLUMNS="500")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for info in describe(Settings):
        if info.secret:
            assert f"--{info.name.replace('_', '-')}" not in text
            assert info.variable in text
        else:
            unit = f"--no-{info.flag[2:]}" if info.boolean else info.doc.unit
            assert re.search(rf"{re.escape(info.flag)}( / | ){re.escape(unit)} ", text), info.flag
            assert info.default in text
    assert "s3cr3t" not in text


@pytest.mark.parametrize("flag", ["--gateway-passwords", "--gateway-ssh-key-content"])
def test_a_secret_is_no_flag(flag: str) -> None:
    """A secret on the command line is refused, and is not repeated."""
    result = gatewayctl("check-config", f"{flag}=hunter2")
    assert result.returncode == 2
    assert "hunter2" not in result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["check-config", "--json"], ["render-config"]])
def test_output_on_a_full_disk(enough: dict[str, str], arguments: list[str]) -> None:
    """What cannot be written is one line and a status that is not 0."""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "gatewayctl", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**ENVIRONMENT, **enough},
        )
    assert result.returncode == 70
    assert result.stderr == "gatewayctl: No space left on device\n"


@pytest.mark.parametrize(
    "setting", ["REMOTE_HOST", "GATEWAY_AUTHORIZED_KEYS_CONTENT", "GATEWAY_PASSWORDS", "GATEWAY_SSH_KEY_CONTENT"]
)
def test_a_value_that_is_no_text(enough: dict[str, str], setting: str) -> None:
    """Bytes that are no UTF-8 stop at the setting, and are not repeated."""
    result = gatewayctl("check-config", **{**enough, setting: os.fsdecode(b"alice:s3cr\xff")})
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr == f"gatewayctl: {setting} is not UTF-8 text (from environment {setting})\n"


@pytest.mark.parametrize(
    "given", [b"", b"\n", b"x" * 73, b"s3cr\xff\n", None], ids=["empty", "line", "long", "bytes", "closed"]
)
def test_a_password_that_cannot_be_hashed(given: bytes | None) -> None:
    """What is no password, or no input at all, is one line, without the password."""
    argv = [sys.executable, "-m", "gatewayctl", "hash-password"]
    if given is None:
        argv = ["sh", "-c", 'exec "$@" <&-', "sh", *argv]
    result = subprocess.run(argv, input=given, capture_output=True, check=False, env=ENVIRONMENT)
    assert (result.returncode, result.stdout) == (78, b"")
    assert result.stderr == b"gatewayctl: a password has 1 to 72 bytes of UTF-8\n"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_password_ends_with_its_line(end: bytes) -> None:
    """However the line ends, as in a file from Windows, its end is no part of the password."""
    argv = [sys.executable, "-m", "gatewayctl", "hash-password"]
    result = subprocess.run(argv, input=b"s3cret " + end, capture_output=True, check=True, env=ENVIRONMENT)
    assert bcrypt.checkpw(b"s3cret ", result.stdout.strip())


@pytest.mark.parametrize("stale", [False, True])
def test_status_of_no_gateway(tmp_path: Path, *, stale: bool) -> None:
    """Where no gateway runs, the directory is named that it was looked for in, and what to do."""
    if stale:
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(tmp_path / "broker.sock"))
    remedy = "start one with gatewayctl serve, or name its GATEWAY_RUNTIME_DIR or --name"
    expected = f"no gateway runs in {tmp_path}; {remedy}\n"
    result = gatewayctl("status", GATEWAY_RUNTIME_DIR=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (71, "", f"gatewayctl: {expected}")
    result = gatewayctl("healthcheck", "--gateway-runtime-dir", str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (1, f"unhealthy: broker: {expected}", "")


@pytest.mark.parametrize("command", [("status",), ("sessions",), ("healthcheck",), ("drain",), ("kick", "alice")])
def test_named_gateway(command: tuple[str, ...], tmp_path: Path) -> None:
    """--name finds the runtime directory of install --name; with another directory, or a wrong name, it is an error."""
    result = gatewayctl(*command, "--name", "no-such", GATEWAY_RUNTIME_DIR=str(tmp_path))
    assert result.returncode != 0
    assert "no gateway runs in /run/gateway-no-such;" in result.stdout + result.stderr
    result = gatewayctl(*command, "--name", "eu", "--gateway-runtime-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert "--name and --gateway-runtime-dir exclude each other: give one" in result.stderr
    result = gatewayctl(*command, "--name", "../eu")
    assert (result.returncode, result.stdout) == (78, "")
    assert "--name '../eu' is not 1 to 32 of a-z, 0-9 and hyphen" in result.stderr


def test_wrong_command() -> None:
    """An unknown command fails with the nearest one."""
    result = gatewayctl("rendr-config")
    assert result.returncode == 2
    assert "No such command 'rendr-config'; did you mean render-config?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_setting_is_one_line(command: str) -> None:
    """A wrong value stops every command with the same line and status."""
    result = gatewayctl(command, REMOTE_HOST="-v")
    assert result.returncode == 78
    assert result.stdout == ""
    assert result.stderr == (
        "gatewayctl: REMOTE_HOST must be a host name, an IPv4 or an IPv6 address, not '-v'"
        " (from environment REMOTE_HOST)\n"
    )


def test_a_wrong_key_in_the_file(tmp_path: Path) -> None:
    """The file's name, its line and the nearest setting."""
    config = tmp_path / "c.yaml"
    config.write_text("remote_host: h\nremote_prot: 1\n")
    result = gatewayctl("check-config", "--config", str(config))
    assert result.returncode == 78
    expected = f"gatewayctl: {config} line 2: 'remote_prot' is not a setting; did you mean remote_port?\n"
    assert result.stderr == expected


def test_check_config(enough: dict[str, str]) -> None:
    """Settings that are right cost one line."""
    result = gatewayctl("check-config", "--remote-port", "2200", **enough)
    assert result.returncode == 0
    expected = "OK: listens on 0.0.0.0 port 2222, users land on shell.example.org port 2200\n"
    assert (result.stdout, result.stderr) == (expected, "")


def test_check_config_warns(enough: dict[str, str]) -> None:
    """What is odd goes to standard error and is no failure."""
    result = gatewayctl("check-config", "--remote-ignore-host-key", GATEWAY_HOTS="x", **enough)
    assert result.returncode == 0
    assert [line.partition(": warning: ")[0] for line in result.stderr.splitlines()] == ["gatewayctl"] * 2
    assert "did you mean GATEWAY_HOST?" in result.stderr


@pytest.mark.parametrize("port", ["22", "2200"])
def test_check_config_of_an_unknown_host(enough: dict[str, str], port: str) -> None:
    """A known_hosts without the remote is warned of, by the name that it would need to have."""
    name = {"22": "other.example.org", "2200": "[other.example.org]:2200"}[port]
    result = gatewayctl("check-config", **{**enough, "REMOTE_HOST": "other.example.org", "REMOTE_PORT": port})
    assert result.returncode == 0
    expected = f"REMOTE_KNOWN_HOSTS {enough['REMOTE_KNOWN_HOSTS']} has no key of {name}: nobody gets in until it has"
    assert result.stderr == f"gatewayctl: warning: {expected}\n"


def test_check_config_as_json(enough: dict[str, str]) -> None:
    """Every setting with its value and source; of a secret, whether it is set."""
    key = base64.b64encode(Path(enough.pop("GATEWAY_SSH_KEY_PATH")).read_bytes()).decode()
    result = gatewayctl("check-config", "--json", "--gateway-port", "22", GATEWAY_SSH_KEY_CONTENT=key, **enough)
    assert result.returncode == 0
    assert key not in result.stdout
    report = json.loads(result.stdout)
    assert list(report) == [info.variable for info in describe(Settings)]
    assert report["GATEWAY_PORT"] == {"value": 22, "source": "--gateway-port"}
    assert report["REMOTE_HOST"] == {"value": "shell.example.org", "source": "environment REMOTE_HOST"}
    assert report["REMOTE_PORT"] == {"value": 22, "source": "default"}
    assert report["GATEWAY_UID_RANGE"] == {"value": "2143617024:2143682559", "source": "default"}
    assert report["GATEWAY_SSH_KEY_CONTENT"] == {"set": True, "source": "environment GATEWAY_SSH_KEY_CONTENT"}
    assert report["GATEWAY_PASSWORDS"] == {"set": False, "source": "default"}


def test_render_config_shows(enough: dict[str, str], require: Callable[..., None]) -> None:
    """Without --output the files are printed, each under its name."""
    require("sshd")
    result = gatewayctl("render-config", **enough)
    assert result.returncode == 0
    names = re.findall(r"^# ===== sshd_config.d/(.*) =====$", result.stdout, re.MULTILINE)
    assert names == sorted(names)
    assert "10-listener.conf" in names
    assert "\nPort 2222\n" in result.stdout


def test_render_config_writes_what_sshd_accepts(
    enough: dict[str, str], require: Callable[..., None], tmp_path: Path
) -> None:
    """With --output they are written, after sshd has accepted them, and the main file's name is printed."""
    require("sshd", "ssh-keygen")
    key = tmp_path / "host_key"
    output = tmp_path / "out"
    result = gatewayctl("render-config", "--output", str(output), GATEWAY_HOST_KEY_PATH=str(key), **enough)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{output}/sshd_config\n"
    assert f"HostKey {key}\n" in (output / "sshd_config.d" / "10-listener.conf").read_text()
    assert not key.exists()


def test_render_config_writes_nothing_that_sshd_refuses(
    enough: dict[str, str], require: Callable[..., None], tmp_path: Path
) -> None:
    """When sshd refuses, there is one line and no file."""
    require("sshd")
    key = tmp_path / "host_key"
    key.write_text("no key")
    output = tmp_path / "out"
    result = gatewayctl("render-config", "--output", str(output), GATEWAY_HOST_KEY_PATH=str(key), **enough)
    assert result.returncode == 70
    assert result.stderr.startswith("gatewayctl: /usr/sbin/sshd refuses ")
    assert result.stderr.count("\n") == 1
    assert not output.exists()


def test_interrupt(enough: dict[str, str]) -> None:
    """Ctrl-C ends a command without a traceback, with the status that shells expect."""
    config, wrote = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "gatewayctl", "check-config", "--config", f"/dev/fd/{config}"],
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **enough},
        pass_fds=[config],
    )
    os.close(config)
    with os.fdopen(wrote, "wb", buffering=0) as pipe:
        # One byte more than a pipe holds (pipe(7)): the command has begun to read, and waits for what never comes.
        pipe.write(b"#" * 65536)
        pipe.write(b"#")
        status = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "S", "the command waits")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """Completion is there for the shells that docs/operating.md names."""
    result = gatewayctl(_GATEWAYCTL_COMPLETE=f"{shell}_source")
    assert result.returncode == 0
    assert "_GATEWAYCTL_COMPLETE" in result.stdout


def test_completion_of_a_typing_error() -> None:
    """Completing a line whose command is none prints nothing into it."""
    words = {"COMP_WORDS": "gatewayctl srve --gateway-", "COMP_CWORD": "2"}
    result = gatewayctl(_GATEWAYCTL_COMPLETE="bash_complete", **words)
    assert (result.stdout.strip(), result.stderr) == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="root may read every file, and only root can become somebody else")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """A configuration that is another's fails as one that is not there: one line, and the status of a wrong setting."""
    closed = tmp_path / "config.yaml"
    closed.touch(0o600)
    tmp_path.chmod(0o755)
    nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--"]
    # As the current directory it can be reached whatever is above it.
    done = subprocess.run(
        [*nobody, sys.executable, "-m", "gatewayctl", "check-config", "--config", closed.name],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (78, "gatewayctl: config.yaml: cannot be read: Permission denied\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become process 1 as somebody else")
def test_process_1_that_is_not_root(tmp_path: Path) -> None:
    """``docker run --user`` ends with one line: it does not wait for a key file that root alone may read."""
    key = tmp_path / "id_ed25519"
    key.touch(0o600)
    serve = [sys.executable, "-I", "-m", "gatewayctl", "serve"]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--", "setpriv", "--reuid=1000", "--clear-groups", "--", *serve],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], "REMOTE_HOST": "h.example", "GATEWAY_SSH_KEY_PATH": str(key)},
    )
    line = "gatewayctl: serve must be started by root: sshd changes to the uid of each user\n"
    assert (done.returncode, done.stdout, done.stderr) == (78, "", line)
