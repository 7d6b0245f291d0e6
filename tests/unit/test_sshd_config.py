"""The sshd configuration as text: what is in it for which sshd, how it is quoted and written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gatewayctl.sshd import config
from helpers.protocol.errors import GatewayError, SettingsError


def test_every_line_has_its_reason() -> None:
    """Each keyword of each template stands under a comment."""
    for path in config.template_directory().glob("*.conf"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("{%")]
        for before, line in zip(["", *lines], lines, strict=False):
            if line and not line.startswith("#"):
                assert before.startswith("#"), f"{path.name}: {line}"


@pytest.mark.parametrize(
    ("version", "present", "absent"),
    [
        ((9, 2), (), ("%C", "PerSourcePenalties", "mlkem768")),
        ((9, 4), ("%C",), ("PerSourcePenalties", "mlkem768")),
        ((9, 8), ("%C", "PerSourcePenalties", "PerSourcePenaltyExemptList"), ("mlkem768",)),
        ((10, 0), ("%C", "PerSourcePenalties", "mlkem768x25519-sha256"), ()),
    ],
)
def test_versions(version: tuple[int, int], present: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """A keyword, token or algorithm appears from the version on that knows it, and never before."""
    path = Path("/x")
    context = config.SshdContext(
        version=version,
        runtime_dir=path,
        address="::",
        port=22,
        host_key=path,
        authorized_keys=path,
        authorized_keys_command=("/bin/true",),
        authorized_keys_command_user="nobody",
        force_command=("/bin/true",),
        permit_root=False,
        password_authentication=False,
        agent_forwarding=False,
        any_key=False,
        pid_file=path,
    )
    lines = [line for text in config.render(context).values() for line in text.splitlines() if line[:1] != "#"]
    text = "\n".join(lines)
    assert all(word in text for word in present)
    assert not any(word in text for word in absent)


@pytest.mark.parametrize("bad", ["", "two\nlines", "tab\there", "\x1b[2J", "nul\0"])
def test_what_no_quoting_brings_through(bad: str) -> None:
    """An empty word or a control character is refused, not written."""
    for quote in (
        config.word,
        lambda text: config.argv(["/x", text]),
        lambda text: config.shell(["/x", text]),
    ):
        with pytest.raises(SettingsError, match="cannot stand in sshd_config"):
            quote(bad)


def test_write_is_readable_and_replaces_only_our_own(tmp_path: Path) -> None:
    """Files are 0644 in directories 0755 whatever the umask; leftovers of ours go."""
    umask = os.umask(0o077)
    try:
        config.write(tmp_path / "d", {"10-a.conf": config.MARK, "20-b.conf": config.MARK})
    finally:
        os.umask(umask)
    main = config.write(tmp_path / "d", {"10-a.conf": config.MARK + "UseDNS no\n"})
    snippets = tmp_path / "d" / "sshd_config.d"
    assert [path.name for path in snippets.iterdir()] == ["10-a.conf"]
    assert (snippets / "10-a.conf").read_text().endswith("UseDNS no\n")
    assert main.stat().st_mode & 0o777 == 0o644
    assert (snippets / "10-a.conf").stat().st_mode & 0o777 == 0o644
    assert snippets.stat().st_mode & 0o777 == main.parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["sshd_config", "sshd_config.d/10-a.conf", "sshd_config.d/99-admin.conf"])
def test_write_leaves_other_peoples_files(tmp_path: Path, name: str) -> None:
    """A file that is not ours stops the writing before anything has changed."""
    (tmp_path / "sshd_config.d").mkdir()
    (tmp_path / name).write_text("Port 22\n")
    with pytest.raises(GatewayError, match=f"{name} was not written by gatewayctl"):
        config.write(tmp_path, {"10-a.conf": config.MARK})
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["Port 22\n"]


def test_write_where_nothing_can_be(tmp_path: Path) -> None:
    """A path that cannot be is one line with its name."""
    (tmp_path / "file").touch()
    with pytest.raises(GatewayError, match=r"cannot write .*file"):
        config.write(tmp_path / "file" / "d", {})


def fake_sshd(directory: Path, answer: str) -> Path:
    """Write a program that answers as some other sshd would; only what it prints is looked at."""
    path = directory / "sshd"
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo 'OpenSSH_9.2, OpenSSL 3.0.19' >&2", (9, 2)),
        ("echo 'unknown option -- V' >&2; echo 'OpenSSH_9.6p1, x' >&2; exit 1", (9, 6)),
        ("echo OpenSSH_10.0p2 Debian-7", (10, 0)),
    ],
)
def test_version(tmp_path: Path, answer: str, expected: tuple[int, int]) -> None:
    """The version is found in what sshd prints, on either stream, with or without -V."""
    assert config.sshd_version(fake_sshd(tmp_path, answer)) == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo dropbear", "does not say that it is OpenSSH"),
        ("echo OpenSSH_8.9p1", "OpenSSH 8.9; 9.2 or newer is needed"),
    ],
)
def test_version_refused(tmp_path: Path, answer: str, message: str) -> None:
    """Another server, or one older than the templates, is refused."""
    with pytest.raises(GatewayError, match=message):
        config.sshd_version(fake_sshd(tmp_path, answer))


def test_version_of_nothing(tmp_path: Path) -> None:
    """A missing sshd is one line."""
    with pytest.raises(GatewayError, match="cannot be started: No such file"):
        config.sshd_version(tmp_path / "sshd")
