"""The sshd configuration, as the real sshd reads it, a real client meets it, and ssh-audit judges it."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gatewayctl.settings.model import load_settings
from gatewayctl.sshd import config
from helpers.protocol.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SSHD = Path("/usr/sbin/sshd")
# Everything that some layer between us and the two commands would like to interpret.
NASTY = ("%h", "a b", "it's", 'say "x"', "back\\slash", "$HOME", "*", "#no", "%%", "ü")

KEY = base64.b64encode(b"-----BEGIN OPENSSH PRIVATE KEY-----\n").decode()

needs_sshd = pytest.mark.usefixtures("_sshd")


@pytest.fixture
def _sshd(require: Callable[..., None], do_without: Callable[[str], None]) -> None:
    require("sshd", "ssh", "ssh-keygen")
    if os.geteuid() != 0:
        do_without("only root may start sshd")


@pytest.fixture
def room(_sshd: None) -> Iterator[Path]:
    """A directory that sshd trusts: it refuses key commands below any that others may write, such as /tmp."""
    path = Path(tempfile.mkdtemp(prefix="gateway-test-", dir="/run"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def context(_sshd: None, room: Path) -> config.SshdContext:
    """A context with a host key, for the sshd that is installed."""
    key = room / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return config.SshdContext(
        version=config.sshd_version(SSHD),
        runtime_dir=room,
        address="127.0.0.1",
        port=free_port(),
        host_key=key,
        authorized_keys=room,
        authorized_keys_command=("/bin/true",),
        authorized_keys_command_user="nobody",
        force_command=("/bin/true",),
        permit_root=False,
        password_authentication=False,
        agent_forwarding=False,
        any_key=False,
        pid_file=room / "sshd.pid",
    )


def free_port() -> int:
    """Find a TCP port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def effective(context: config.SshdContext, directory: Path, user: str = "alice") -> dict[str, list[str]]:
    """Ask the real sshd what a configuration means for a user (``sshd -T``): lower-case keyword to values."""
    main = config.write(directory, config.render(context))
    config.check(SSHD, main)
    command = [str(SSHD), "-T", "-f", str(main), "-C", f"user={user},host=h,addr=192.0.2.1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword.lower(), []).append(value)  # OpenSSH 10.6 writes them as the manual does
    return found


@pytest.mark.parametrize(("any_key", "timeout"), [(True, "30"), (False, "0")])
def test_who_may_stay_without_a_session(
    context: config.SshdContext, tmp_path: Path, timeout: str, *, any_key: bool
) -> None:
    """A user's idle master stays, as with any sshd; where any key passes, it is a stranger's and goes."""
    seen = effective(dataclasses.replace(context, any_key=any_key), tmp_path)["unusedconnectiontimeout"]
    assert seen in ([timeout], ["none"] if not any_key else [])


@pytest.mark.parametrize(
    ("given", "any_key"),
    [
        ({"GATEWAY_SSH_KEY_CONTENT": KEY}, False),
        ({"GATEWAY_SSH_KEY_CONTENT": KEY, "GATEWAY_ACCEPT_ANY_KEY": "true"}, True),
        ({"GATEWAY_SSH_KEY_CONTENT": KEY, "GATEWAY_AUTHORIZED_KEYS_CONTENT": "x"}, False),
        ({"GATEWAY_SSH_KEY_CONTENT": KEY, "GATEWAY_PASSWORD_AUTH": "true", "GATEWAY_PASSWORDS": "a:b"}, False),
        ({}, True),
        ({"GATEWAY_AUTHORIZED_KEYS_CONTENT": "x"}, False),
    ],
)
def test_where_any_key_passes(given: dict[str, str], *, any_key: bool) -> None:
    """With agent pass-through, which local keys may screen, and where GATEWAY_ACCEPT_ANY_KEY is on."""
    settings = load_settings(None, {}, {"REMOTE_HOST": "shell.example", **given})
    assert config.sshd_context(settings, (9, 2)).any_key is any_key


class Sshd:
    """A real sshd with a rendered configuration, on the loopback.

    Args:
        context: What to render.
        directory: Where to.
    """

    def __init__(self, context: config.SshdContext, directory: Path) -> None:
        """Start it, and wait until it listens."""
        self.port = context.port
        self.log = directory / "log"
        main = config.write(directory, config.render(context))
        config.check(SSHD, main)
        self.process = subprocess.Popen([SSHD, "-D", "-f", main, "-E", self.log])
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.stop()
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        """End it and everything that it started."""
        self.process.terminate()
        self.process.wait(10)

    def login(self, *keys: Path, request: str = "", options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Log in as root with the ordinary client and these keys, in this order."""
        identities = [word for key in keys for word in ("-i", str(key))]
        command = [
            "ssh",
            "-F",
            "none",
            "-p",
            str(self.port),
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
        ]
        command += [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            *options,
            *identities,
        ]
        environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        return subprocess.run(
            [*command, "root@127.0.0.1", *([request] if request else [])],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=environment,
        )


def script(path: Path, text: str) -> str:
    """Write a program that anyone may run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def keypair(path: Path) -> Path:
    """Make a user's key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@needs_sshd
@pytest.mark.parametrize("passwords", [False, True])
@pytest.mark.parametrize("root", [False, True])
def test_sshd_accepts_it(context: config.SshdContext, room: Path, *, passwords: bool, root: bool) -> None:
    """The installed sshd starts with every variant of it."""
    variant = dataclasses.replace(context, password_authentication=passwords, permit_root=root)
    assert effective(variant, room)["authorizedkeysfile"] == [f"{room}/%u"]


@needs_sshd
def test_what_sshd_understands(context: config.SshdContext, room: Path) -> None:
    """What keeps the gateway a gateway is in effect, by sshd's own account."""
    found = effective(context, room)
    expected = {
        "disableforwarding": "yes",
        "allowtcpforwarding": "no",
        "allowstreamlocalforwarding": "no",
        "allowagentforwarding": "no",
        "x11forwarding": "no",
        "permittunnel": "no",
        "permitopen": "none",
        "permitlisten": "none",
        "gatewayports": "no",
        "permituserrc": "no",
        "permituserenvironment": "GATEWAY_COMMAND",
        "permitrootlogin": "no",
        "permitemptypasswords": "no",
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "hostbasedauthentication": "no",
        "gssapiauthentication": "no",
        "kerberosauthentication": "no",
        "authenticationmethods": "publickey",
        "usepam": "no",
        "exposeauthinfo": "yes",
        "loglevel": "VERBOSE",
        "usedns": "no",
        "logingracetime": "45",
    }
    for keyword in ("gssapiauthentication", "kerberosauthentication"):
        if keyword not in found:  # Debian's sshd after 13 is built without them
            del expected[keyword]
    assert {keyword: found[keyword] for keyword in expected} == {
        keyword: [value] for keyword, value in expected.items()
    }
    assert {"sshd", "nobody"} <= set(found["denyusers"])


@needs_sshd
def test_a_client_cannot_set_the_carrier(context: config.SshdContext, room: Path) -> None:
    """No AcceptEnv pattern matches the variable that carries a key's command."""
    assert effective(context, room)["acceptenv"] == ["LANG", "LC_*"]


@needs_sshd
def test_passwords_and_root_only_when_asked_for(context: config.SshdContext, room: Path) -> None:
    """Passwords stand beside keys, never instead, and root gets in by key alone unless passwords are on."""
    both = dataclasses.replace(context, password_authentication=True, permit_root=True)
    found = effective(both, room, "root")
    assert found["authenticationmethods"] == ["publickey password"]
    assert found["permitrootlogin"] == ["yes"]
    found = effective(dataclasses.replace(context, permit_root=True), room, "root")
    assert found["permitrootlogin"] in (["without-password"], ["prohibit-password"])  # the new name, from 10.6 on


@needs_sshd
@pytest.mark.parametrize("passwords", [False, True])
def test_root_by_another_name_is_nobody(context: config.SshdContext, room: Path, *, passwords: bool) -> None:
    """A broker that is not what it was may say that alice has uid 0: sshd lets root in by the name of root alone."""
    variant = dataclasses.replace(context, permit_root=True, password_authentication=passwords)
    for name in ("alice", "Root", "root2", "gateway+root"):
        assert effective(variant, room, name)["permitrootlogin"] == ["no"]


@needs_sshd
@pytest.mark.parametrize("address", ["*", "::", "::1", "127.0.0.1", "localhost"])
def test_addresses(context: config.SshdContext, room: Path, address: str) -> None:
    """Names and addresses of both families are understood, IPv6 without brackets."""
    found = effective(dataclasses.replace(context, address=address, port=2222), room)
    assert all(value.endswith(":2222") for value in found["listenaddress"])
    if address == "*":
        assert sorted(found["listenaddress"]) == ["0.0.0.0:2222", "[::]:2222"]


@needs_sshd
@pytest.mark.parametrize(("line", "enters"), [("", True), ('expiry-time="20200101Z" ', False)], ids=["holds", "ended"])
def test_sshd_knows_by_itself_who_has_a_file(
    context: config.SshdContext, room: Path, line: str, *, enters: bool
) -> None:
    """It is found whatever the directory is called, and where it lets in the key command is not asked."""
    key = keypair(room / "key")
    odd = room / 'it\'s 100%h %u "odd"'
    odd.mkdir()
    (odd / "root").write_text(f"{line}{(room / 'key.pub').read_text()}")
    forced = script(room / "forced", "#!/bin/sh\necho entered\n")
    variant = dataclasses.replace(context, authorized_keys=odd, force_command=(forced,), permit_root=True)
    server = Sshd(variant, room)
    try:
        result = server.login(key)
    finally:
        server.stop()
    assert (result.stdout == "entered\n") == enters, result.stderr


@needs_sshd
def test_arguments_arrive_unchanged(context: config.SshdContext, room: Path) -> None:
    """Both commands get their arguments as they are, through sshd's quoting, its tokens and a shell."""
    key = keypair(room / "key")
    odd = room / 'it\'s %h "odd"'
    show = "#!/usr/bin/python3 -I\nimport json, sys\n"
    offered = room / "offered"
    offered.touch()
    offered.chmod(0o666)
    key_command = script(
        odd / "key command",
        f"{show}open({str(offered)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"print(open({str(room / 'key.pub')!r}).read())\n",
    )
    forced = script(
        odd / "forced command",
        f"{show}import os\nparent = open(f'/proc/{{os.getppid()}}/comm').read()\n"
        "print(json.dumps([sys.argv[1:], parent]))\n",
    )
    server = Sshd(
        dataclasses.replace(
            context,
            authorized_keys_command=(key_command, *NASTY),
            force_command=(forced, *NASTY),
            permit_root=True,
        ),
        room,
    )
    try:
        result = server.login(key, request="echo not this")
    finally:
        server.stop()
    assert result.returncode == 0, result.stderr + server.log.read_text()
    arguments, parent = json.loads(result.stdout)
    assert tuple(arguments) == NASTY
    assert parent.startswith("sshd")  # no shell stays in between
    offers = [json.loads(line) for line in offered.read_text().splitlines()]
    assert len(offers) == 2  # the offer and the signature
    kind, blob = (room / "key.pub").read_text().split()[:2]
    for offer in offers:
        assert len(offer) == len(NASTY) + (4 if context.version >= (9, 4) else 3)  # %C from 9.4 on
        assert tuple(offer[: len(NASTY)]) == NASTY
        assert offer[len(NASTY) : len(NASTY) + 3] == ["root", kind, blob]


@needs_sshd
def test_an_agent_with_wrong_keys_gets_in_and_a_pile_of_them_does_not(context: config.SshdContext, room: Path) -> None:
    """Nine wrong keys before the right one are forgiven; more are too many."""
    keys = [keypair(room / f"key{number}") for number in range(25)]
    command = script(room / "keys", f"#!/bin/sh\ncat {keys[-1]}.pub\n")
    server = Sshd(
        dataclasses.replace(
            context, authorized_keys_command=(command,), force_command=("/bin/echo", "in"), permit_root=True
        ),
        room,
    )
    try:
        assert server.login(*keys[15:]).stdout == "in\n"
        # Without the right one: ssh 10.6 offers keys in an order of its own. And so many: sshd 10.6 counts thirteen
        # refused offers as six failures (seen in its log).
        refused = server.login(*keys[:-1])
        assert "Too many authentication failures" in refused.stderr
        assert server.login(*keys[:5]).returncode == 255
    finally:
        server.stop()


@needs_sshd
def test_forwarding_and_environment_are_refused(context: config.SshdContext, room: Path) -> None:
    """Nothing is forwarded and no variable set, by client or key line, but our carrier from a key line."""
    key = keypair(room / "key")
    options = 'environment="GATEWAY_COMMAND=carried",environment="GATEWAY_COMMANDX=1",environment="LD_PRELOAD=x"'
    line = f"{options} {Path(f'{key}.pub').read_text()}"
    (room / "line").write_text(line)
    command = script(room / "keys", f"#!/bin/sh\ncat {room}/line\n")
    server = Sshd(
        dataclasses.replace(
            context, authorized_keys_command=(command,), force_command=("/usr/bin/env",), permit_root=True
        ),
        room,
    )
    try:
        sent = ("-o", "SetEnv=GATEWAY_COMMAND=mine", "-o", "SetEnv=LC_TEST=x")
        shown = server.login(key, options=sent, request="sftp").stdout.splitlines()
        stolen = server.login(key, options=("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"))
        inward = server.login(key, options=("-W", f"127.0.0.1:{server.port}"))
    finally:
        server.stop()
    assert "GATEWAY_COMMAND=carried" in shown
    assert "SSH_ORIGINAL_COMMAND=sftp" in shown
    assert not any(re.match("GATEWAY_COMMANDX|LD_PRELOAD", line) for line in shown)
    assert stolen.returncode == 255
    assert "remote port forwarding failed" in stolen.stderr
    assert "administratively prohibited" in inward.stderr


@needs_sshd
def test_ssh_audit_has_one_thing_to_say(
    context: config.SshdContext, room: Path, do_without: Callable[[str], None]
) -> None:
    """ssh-audit finds no failure, and warns of nothing but the exchange that old clients need."""
    audit = shutil.which("ssh-audit", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if audit is None:
        do_without("ssh-audit is missing")
        return
    server = Sshd(context, room)
    try:
        command = [audit, "--json", "-p", str(server.port), "127.0.0.1"]
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout)
    finally:
        server.stop()
    said = {
        (entry["algorithm"], level, text)
        for kind in ("kex", "key", "enc", "mac")
        for entry in report[kind]
        for level in ("fail", "warn")
        for text in entry.get("notes", {}).get(level, ())
    }
    assert {(name, level) for name, level, _ in said} <= {
        ("curve25519-sha256", "warn"),
        ("curve25519-sha256@libssh.org", "warn"),
    }, said
    assert all("post-quantum" in text for _, _, text in said)
    assert not report.get("cves")


@needs_sshd
def test_check_says_what_sshd_says(room: Path) -> None:
    """What sshd has against a configuration comes back on one line."""
    (room / "bad").write_text("NoSuchKeyword yes\n")
    with pytest.raises(GatewayError, match=r"sshd refuses .*NoSuchKeyword") as caught:
        config.check(SSHD, room / "bad")
    assert "\n" not in caught.value.message
