"""What is in the image: by testinfra, in the container that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import testinfra

from lab.podman import podman

if TYPE_CHECKING:
    from testinfra.host import Host

    from lab.podman import Container

MOST_BYTES = 210_000_000
"""What docs/install.md states, with room for Debian's security updates."""


@pytest.fixture(scope="session")
def host(container: Container) -> Host:
    """The container, as testinfra sees it."""
    return testinfra.get_host(f"podman://{container.name}")


def test_size(image: str) -> None:
    """It is no larger than docs/install.md says."""
    assert int(podman("image", "inspect", "--format", "{{.Size}}", image).stdout) <= MOST_BYTES


def test_accounts(host: Host) -> None:
    """Nobody has an account but sshd and the two that every program expects, and nobody a password."""
    assert [line.split(":")[0] for line in host.file("/etc/passwd").content_string.splitlines()] == [
        "root",
        "nobody",
        "sshd",
    ]
    shadow = [line.split(":")[:2] for line in host.file("/etc/shadow").content_string.splitlines()]
    assert {name for name, _ in shadow} == {"root", "nobody", "sshd"}
    assert {hashed for _, hashed in shadow} <= {"*", "!", "!*"}


def test_users_come_from_the_broker_first(host: Host) -> None:
    """nss-systemd is asked before the image's own accounts, and the gateway's own account is what it says."""
    assert "passwd: systemd files\n" in host.file("/etc/nsswitch.conf").content_string
    account = host.check_output("getent passwd gateway+auth").split(":")
    assert account[6] == "/usr/sbin/nologin"


@pytest.mark.parametrize(
    ("path", "owner", "mode"),
    [
        ("/etc/passwd", "root", 0o644),
        ("/etc/shadow", "root", 0o640),
        ("/etc/nsswitch.conf", "root", 0o644),
        ("/etc/gateway", "root", 0o755),
        ("/etc/gateway/host_key", "root", 0o600),
        ("/keys", "root", 0o755),
        ("/opt/gateway/bin/gatewayctl", "root", 0o755),
        ("/opt/gateway/lib/python3.13/site-packages/helpers/launch.py", "root", 0o644),
        ("/run/gateway", "root", 0o755),
        ("/run/gateway/sshd_config", "root", 0o644),
    ],
)
def test_owners_and_modes(host: Host, path: str, owner: str, mode: int) -> None:
    """What matters belongs to root, and nobody else may write to it."""
    file = host.file(path)
    assert (file.user, file.mode) == (owner, mode)


def test_what_the_broker_alone_may_read(host: Host) -> None:
    """Its state belongs to its uid, and is closed to all others."""
    state = host.file("/run/gateway/state")
    broker = next(process for process in host.process.filter(comm="python") if "helpers.broker" in process.args)
    assert state.uid == int(broker.uid) >= 1000
    assert state.mode == 0o700


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        (
            "a file that others than root may write",
            "/ -xdev -perm /022 ! -perm -1000 ! -type l ! -path '/etc/gateway*'",
        ),
        ("a file that is not root's", "/ -xdev ! -user root ! -path '/etc/gateway*'"),
        ("a program that becomes more than who starts it", "/ -xdev -perm /6000"),
        ("a host key of the package's", "/etc/ssh -name 'ssh_host_*'"),
        ("a compiler or a pip", "/usr/bin/cc /usr/bin/gcc /opt/gateway/bin/pip /usr/bin/pip3"),
        ("a list of packages to install", "/var/lib/apt/lists -type f"),
        ("a cache", "/root /home /opt /var/cache -path '*cache/*' -type f ! -name '*.pyc'"),
        ("a machine id, the same for all", "/etc/machine-id -size +0"),
    ],
)
def test_there_is_no(host: Host, what: str, arguments: str) -> None:
    """Some things have no business in an image."""
    assert host.run(f"find {arguments} 2>/dev/null").stdout == "", what


def test_all_is_compiled(host: Host) -> None:
    """The image is read-only: what is not compiled now would be at each login anew."""
    missing = host.check_output(
        "cd /opt/gateway/lib/python3.13/site-packages/ && for f in helpers/*.py helpers/broker/*.py gatewayctl/*.py;"
        " do b=${f##*/}; test -e ${f%/*}/__pycache__/${b%.py}.cpython-313.pyc || echo $f; done"
    )
    assert missing == ""


def test_read_only(host: Host) -> None:
    """Root itself writes nothing but where the container has room for it."""
    for path in ("/x", "/etc/x", "/opt/gateway/x", "/usr/bin/x", "/var/x", "/keys/x", "/root/x"):
        assert host.run(f"touch {path}").rc != 0, path
    assert host.run("touch /run/x /tmp/x && rm /run/x /tmp/x").rc == 0


EFFECTIVE = {
    "permitrootlogin": "no",
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "authenticationmethods": "publickey",
    "usepam": "no",
    "allowtcpforwarding": "no",
    "allowagentforwarding": "no",
    "allowstreamlocalforwarding": "no",
    "disableforwarding": "yes",
    "x11forwarding": "no",
    "permittunnel": "no",
    "gatewayports": "no",
    "authorizedkeysfile": "/run/gateway/authorized_keys/%u",
    "permituserenvironment": "GATEWAY_COMMAND",
    "maxstartups": "250:30:300",
    "loglevel": "VERBOSE",
}


def test_effective_settings_of_sshd(host: Host) -> None:
    """What sshd says that it does for somebody who comes from somewhere."""
    said = host.check_output("sshd -T -f /run/gateway/sshd_config -C user=alice,host=h.example,addr=198.51.100.9")
    settings = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert {name: settings.get(name) for name in EFFECTIVE} == EFFECTIVE
    assert settings["forcecommand"].startswith("exec /opt/gateway/bin/python ")
    assert settings["authorizedkeyscommand"].startswith("/opt/gateway/bin/python ")
    assert settings["authorizedkeyscommanduser"] == "gateway+auth"
