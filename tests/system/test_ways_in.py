"""The other ways in: what each lets in, and what it keeps out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.gateway import GATEWAYCTL
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.wan import FAR_IPV4
from lab.users import User


def _refused(lab: Lab, argv: list[str]) -> bool:
    done = lab.run(argv)
    return (done.stdout, done.returncode) == (b"", 255) and b"Permission denied" in done.stderr


def _gatewayctl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "gatewayctl", *arguments]
    environment |= {"PATH": "/usr/bin:/bin"}
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30, env=environment)


def _in_its_room(gateway: Gateway, command: str, *arguments: str) -> str:
    argv = [str(GATEWAYCTL), command, "--gateway-runtime-dir", gateway.settings["GATEWAY_RUNTIME_DIR"], *arguments]
    return gateway.room.run(argv).stdout


# Passwords


@pytest.fixture
def by_password(lab: Lab, user: User, start_gateway: Callable[..., Gateway]) -> Gateway:
    """A gateway at which the user has the password s3cr3t, and somebody else another."""
    del lab
    return start_gateway({"GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS": f"{user.name}:s3cr3t,other:0ther"})


def _type_password(
    lab: Lab, gateway: Gateway, user: User, password: str, open_terminal: Callable[..., Terminal]
) -> Terminal:
    options = ["-F", "none", "-o", f"UserKnownHostsFile={gateway.known_hosts}", "-o", "PubkeyAuthentication=no"]
    options += ["-o", "NumberOfPasswordPrompts=1", f"-p{gateway.port}", f"-l{user.name}"]
    del lab
    terminal = open_terminal(["ssh", *options, "--", "127.0.0.1"])
    terminal.wait_for("password:")
    terminal.type(f"{password}\r")
    return terminal


def test_the_right_password_logs_in(
    lab: Lab, by_password: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """The user's password opens the user's shell; keys still do too."""
    _type_password(lab, by_password, user, "s3cr3t", open_terminal).wait_for(user.prompt)
    assert lab.run(lab.gateway_argv(by_password, user, "echo hi")).stdout == b"hi\n"


@pytest.mark.parametrize("password", ["wrong", "", "0ther", "*", "s3cr3t "])
def test_any_other_password_does_not(
    lab: Lab, by_password: Gateway, user: User, password: str, open_terminal: Callable[..., Terminal]
) -> None:
    """A wrong, an empty, and another user's password are refused."""
    terminal = _type_password(lab, by_password, user, password, open_terminal)
    assert terminal.wait_exit() == 255
    assert "Permission denied" in terminal.text


def test_a_user_without_a_password_has_none(
    lab: Lab, by_password: Gateway, open_terminal: Callable[..., Terminal]
) -> None:
    """Names that were given no password are refused like wrong passwords."""
    assert _type_password(lab, by_password, lab.add_user(), "s3cr3t", open_terminal).wait_exit() == 255


def test_other_methods_are_no_way_round(lab: Lab, by_password: Gateway, user: User) -> None:
    """Passwords do not bring PAM's conversation, nor no password at all."""
    for methods in ("keyboard-interactive", "none", "hostbased", "gssapi-with-mic"):
        options = ["-o", f"PreferredAuthentications={methods}", "-o", "KbdInteractiveAuthentication=yes"]
        argv = lab.gateway_argv(by_password, user, "id", options=options)
        # What comes first counts for ssh, and the lab's clients have a "no" of their own.
        assert _refused(lab, ["ssh", *options, *argv[1:]])


@pytest.mark.parametrize("method", ["$2b$04$abcdefghijklmnopqrstuu", "$6$abcdefgh", "$y$j9T$F5Jx5fExrKuPp53xLKQ..1"])
def test_a_hashed_password_may_have_any_character(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: Callable[..., Terminal], method: str
) -> None:
    """The text of the hash is no password, and to sshd all other names have one of the same kind and cost."""
    crypt = ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", "--", "a,b:c $d", method]
    hashed = subprocess.run(crypt, capture_output=True, text=True, check=True).stdout
    gateway = start_gateway({"GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS": f"{user.name}:{hashed}"})
    _type_password(lab, gateway, user, "a,b:c $d", open_terminal).wait_for(user.prompt)
    assert _type_password(lab, gateway, user, hashed, open_terminal).wait_exit() == 255
    kept = {_shadow(gateway, name) for name in (user.name, lab.add_user().name, "nobody-at-all")}
    assert hashed in kept
    assert len(kept) > 1
    assert {text[: len(method)] for text in kept} == {method}
    assert {len(text) for text in kept} == {len(hashed)}


def _shadow(gateway: Gateway, name: str) -> str:
    """Tell what sshd finds of a name's password."""
    argv = ["nsenter", f"--target={gateway.listener.pid}", "--mount", "--root", "--", "getent", "shadow", name]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split(":")[1]


def test_passwords_are_nowhere_in_clear(lab: Lab, by_password: Gateway) -> None:
    """No file below the runtime directory, no child's memory or arguments, no log has the text."""
    del lab
    for process in by_password.processes():
        assert "s3cr3t" not in " ".join(process.argv)
    broker = by_password.broker.pid
    assert _memory_has(broker, b"GATEWAY_COMMAND")  # the look finds what is there
    assert not _memory_has(broker, b"s3cr3t")
    for path in (by_password.directory / "run").rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes()
    assert "s3cr3t" not in by_password.log_text()


def _memory_has(pid: int, text: bytes) -> bool:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, access = line.split()[:2]
            start, end = (int(word, 16) for word in bounds.split("-"))
            if access.startswith("r") and "[v" not in line:
                memory.seek(start)
                with suppress(OSError):  # given back meanwhile
                    if text in memory.read(end - start):
                        return True
    return False


# Any key


def test_any_key_is_any_user_and_says_so(lab: Lab, user: User, start_gateway: Callable[..., Gateway]) -> None:
    """It does what it says, warns at the start and at each login, and root stays out."""
    stranger, gateway = lab.add_user(), start_gateway({"GATEWAY_ACCEPT_ANY_KEY": "true"})
    assert (
        lab.run(lab.gateway_argv(gateway, user, "id -un", key=stranger.key.private)).stdout == f"{user.name}\n".encode()
    )
    assert gateway.log.matches("warning setting .*any client that reaches the port can log in as any user")
    assert gateway.log.matches(f"warning accept_any_key user={user.name} ")
    warning = "any client that reaches the port can log in as any user of the remote host"
    directory = ["--gateway-runtime-dir", gateway.settings["GATEWAY_RUNTIME_DIR"]]
    assert f"WARNING: GATEWAY_ACCEPT_ANY_KEY is on: {warning}" in _gatewayctl("status", *directory).stdout
    found = json.loads(_gatewayctl("status", "--json", *directory).stdout)
    assert (found["accept_any_key"], found["access"]) == (True, ["any key"])
    assert warning in _gatewayctl("check-config", **gateway.settings).stderr
    (told,) = json.loads(_in_its_room(gateway, "healthcheck", "--json"))["warnings"]
    assert warning in told
    assert f"WARNING: {told}" in _in_its_room(gateway, "healthcheck")
    assert _refused(lab, lab.gateway_argv(gateway, "root", "id", key=stranger.key.private))


@pytest.mark.parametrize(
    ("settings", "access"),
    [
        ({}, "remote keys"),
        ({"GATEWAY_AUTHORIZED_KEYS_CONTENT": "KEY"}, "local keys"),
        ({"GATEWAY_SSH_KEY_PATH": None}, "agent pass-through"),
        ({"GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS": "alice:s3cr3t"}, "remote keys, passwords"),
    ],
)
def test_status_says_what_a_gateway_does(
    user: User, start_gateway: Callable[..., Gateway], settings: dict[str, str | None], access: str
) -> None:
    """An operator reads where users land, where the gateway listens, and what lets them in."""
    given = {name: user.key.public if value == "KEY" else value for name, value in settings.items()}
    gateway = start_gateway(given)
    told = _gatewayctl("status", "--gateway-runtime-dir", gateway.settings["GATEWAY_RUNTIME_DIR"]).stdout
    rows = dict(re.split("  +", line, maxsplit=1) for line in told.splitlines())
    assert rows["remote host"] == f"{FAR_IPV4} port 22"
    assert rows["listens on"] == f"127.0.0.1 port {gateway.port}"
    assert rows["lets in by"] == access


def test_without_it_an_unknown_key_is_refused(lab: Lab, gateway: Gateway, user: User) -> None:
    """The default keeps strangers' keys out."""
    stranger = lab.add_user()
    assert _refused(lab, lab.gateway_argv(gateway, user, "id", key=stranger.key.private))
