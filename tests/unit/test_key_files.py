"""The key files: found by being there, and refused when others than root could change them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gatewayctl.settings import key_files
from gatewayctl.settings.key_files import KeyFileError
from gatewayctl.settings.model import Settings, load_settings
from gatewayctl.sshd.namespace import may_unshare
from helpers.protocol.errors import SettingsError

LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGi1xVOgDIyMUtRJwV1zP7RBT2D1v1h0HbSkcp1yTXNv alice"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make a directory with all three files."""
    for name in key_files.FILES.values():
        (tmp_path / name).write_text("x\n")
        (tmp_path / name).chmod(0o600 if name == "id_ed25519" else 0o644)
    return tmp_path


def load(directory: Path, environ: dict[str, str] | None = None) -> Settings:
    """Load with a directory of keys."""
    return load_settings(None, {}, {"REMOTE_HOST": "h.example", "GATEWAY_KEYS_DIR": str(directory), **(environ or {})})


def test_files_are_found_by_being_there(directory: Path) -> None:
    """Each stands for its setting, and says where it came from."""
    settings = load(directory)
    assert settings.gateway_ssh_key_path == directory / "id_ed25519"
    assert settings.gateway_authorized_keys_path == directory / "authorized_keys"
    assert settings.remote_known_hosts == directory / "known_hosts"
    assert settings.origin("gateway_ssh_key_path") == f"{directory / 'id_ed25519'}, GATEWAY_KEYS_DIR"


def test_an_empty_directory(tmp_path: Path) -> None:
    """Without files there is no key, users' keys come from elsewhere, and the host key is looked for there alone."""
    settings = load(tmp_path)
    assert settings.gateway_ssh_key_path is None
    assert settings.gateway_authorized_keys_path is None
    assert settings.remote_known_hosts == tmp_path / "known_hosts"
    assert any(str(tmp_path / "known_hosts") in warning for warning in settings.warnings)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """It is as good as an empty one: an image says where keys would be."""
    assert load(tmp_path / "none").gateway_ssh_key_path is None


def test_what_is_given_wins(directory: Path) -> None:
    """A setting of its own beats the file that is there, and so does its content."""
    other = directory / "other"
    other.write_text("x\n")
    other.chmod(0o600)
    assert load(directory, {"GATEWAY_SSH_KEY_PATH": str(other)}).gateway_ssh_key_path == other
    settings = load(directory, {"GATEWAY_AUTHORIZED_KEYS_CONTENT": LINE})
    assert (settings.gateway_authorized_keys_path, settings.gateway_authorized_keys_content) == (None, LINE)


def test_any_key_beside_local_keys(directory: Path) -> None:
    """A list of keys that is there by itself is no less a contradiction."""
    with pytest.raises(SettingsError, match=r"GATEWAY_ACCEPT_ANY_KEY .* exclude each other"):
        load(directory, {"GATEWAY_ACCEPT_ANY_KEY": "true"})


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("id_ed25519", 0o604),
        ("id_ed25519", 0o622),
        ("id_ed25519", 0o444),
        ("authorized_keys", 0o664),
        ("authorized_keys", 0o646),
        ("known_hosts", 0o666),
    ],
)
def test_open_to_others(directory: Path, name: str, mode: int) -> None:
    """Who else could read the key, or write who gets in, stops the start; the line says what to do."""
    path = directory / name
    path.chmod(mode)
    os.chown(path, os.geteuid(), 12345 if os.geteuid() == 0 else os.getegid())
    with pytest.raises(KeyFileError) as caught:
        load(directory)
    assert f"(mode {mode:04o})" in caught.value.message
    assert f"chmod {'0600' if name == 'id_ed25519' else '0644'} {path}" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", key_files.FILES.values())
def test_somebody_elses(directory: Path, name: str) -> None:
    """A file of another user's is refused: its owner could change it at any time."""
    os.chown(directory / name, 12345, 0)
    with pytest.raises(KeyFileError, match=rf"{name} belongs to uid 12345.*: chown 0:0"):
        load(directory)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_directory_that_others_may_write_to(directory: Path, mode: int) -> None:
    """Who may write to it could put another file there."""
    directory.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"could be replaced by .*: chmod go-w {directory}"):
        load(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory(directory: Path) -> None:
    """So could its owner; by a link into it, too."""
    os.chown(directory, 12345, 0)
    with pytest.raises(KeyFileError, match=rf"could be replaced by uid 12345.*: chown 0:0 {directory}"):
        load(directory)
    os.chown(directory, 0, 0)
    theirs = directory / "theirs"
    theirs.mkdir()
    (directory / "known_hosts").rename(theirs / "known_hosts")
    (directory / "known_hosts").symlink_to("theirs/known_hosts")
    os.chown(theirs, 12345, 0)
    with pytest.raises(KeyFileError, match=rf"chown 0:0 {theirs}"):
        load(directory)


def test_a_directory_as_kubernetes_mounts_secrets(directory: Path) -> None:
    """It is open to all and sticky, and the files are links: nobody but root replaces them."""
    (directory / "..data").mkdir()
    for name in key_files.FILES.values():
        (directory / name).rename(directory / "..data" / name)
        (directory / name).symlink_to(f"..data/{name}")
    directory.chmod(0o1777)
    assert load(directory).gateway_ssh_key_path == directory / "id_ed25519"


@pytest.mark.parametrize("below", ["known_hosts", "yet/to/come/known_hosts"])
def test_a_host_key_that_anybody_could_put_there(tmp_path: Path, below: str) -> None:
    """The remote's host key may come later, from nobody but root: the broker believes it without a restart."""
    environ = {"REMOTE_HOST": "h.example", "REMOTE_KNOWN_HOSTS": str(tmp_path / below)}
    assert load_settings(None, {}, environ).remote_known_hosts == tmp_path / below
    for mode in (0o777, 0o770, 0o1777):
        tmp_path.chmod(mode)
        with pytest.raises(KeyFileError, match=rf"REMOTE_KNOWN_HOSTS .*by who may write to {tmp_path}:"):
            load_settings(None, {}, environ)
    load_settings(None, {}, environ | {"REMOTE_IGNORE_HOST_KEY": "true"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_host_key_that_somebody_could_put_there(tmp_path: Path) -> None:
    """Nor from the owner of the directory, also of one that a link leads to."""
    theirs, link = tmp_path / "theirs", tmp_path / "known_hosts"
    theirs.mkdir()
    link.symlink_to("theirs/known_hosts")
    environ = {"REMOTE_HOST": "h.example", "REMOTE_KNOWN_HOSTS": str(link)}
    load_settings(None, {}, environ)
    os.chown(theirs, 12345, 0)
    with pytest.raises(KeyFileError, match=rf"chown 0:0 {theirs}"):
        load_settings(None, {}, environ)


def test_a_host_key_behind_a_link_to_itself(tmp_path: Path) -> None:
    """Such a link leads to no file, and so to a warning."""
    for name in ("known_hosts", "directory"):
        (tmp_path / name).symlink_to(name)
    for path in (tmp_path / "known_hosts", tmp_path / "directory" / "known_hosts"):
        settings = load_settings(None, {}, {"REMOTE_HOST": "h.example", "REMOTE_KNOWN_HOSTS": str(path)})
        assert any(f"{path} is not a file" in warning for warning in settings.warnings)


def test_a_secret_without_a_host_key(tmp_path: Path, do_without: Callable[[str], None]) -> None:
    """Kubernetes mounts secrets sticky, open to all and for reading: nobody puts anything there."""
    if os.geteuid() != 0 or not may_unshare():
        do_without("no mount namespace may be made here")
    program = (
        "import sys; from gatewayctl.settings.model import load_settings; print(load_settings(None, {},"
        " {'REMOTE_HOST': 'h.example', 'GATEWAY_KEYS_DIR': sys.argv[1]}).remote_known_hosts)"
    )
    script = 'mount -t tmpfs -o ro,mode=1777 tmpfs "$0" && exec "$1" -c "$2" "$0"'
    argv = ["unshare", "--mount", "sh", "-c", script, str(tmp_path), sys.executable, program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == f"{tmp_path}/known_hosts\n", done.stderr


@pytest.mark.parametrize("name", ["id_ed25519", "authorized_keys"])
def test_no_file(directory: Path, name: str) -> None:
    """A directory, which is what a container engine makes of a mount without a source, and a dangling link are none."""
    path = directory / name
    path.unlink()
    path.mkdir()
    with pytest.raises(KeyFileError, match=f"{name} is not a file"):
        load(directory)
    path.rmdir()
    path.symlink_to("nowhere")
    with pytest.raises(KeyFileError, match=f"{name} is not a file"):
        load(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="root's own directories are open to root alone")
@pytest.mark.parametrize("setting", ["GATEWAY_KEYS_DIR", *(name.upper() for name in key_files.FILES)])
def test_behind_a_closed_directory(directory: Path, setting: str) -> None:
    """What cannot be seen is not taken for what is not there, also by a root that may not enter what is not its own."""
    directory.chmod(0o700)
    environ = {"REMOTE_HOST": "h.example", "REMOTE_KNOWN_HOSTS": "/etc/hosts"}
    path = directory if setting == "GATEWAY_KEYS_DIR" else directory / key_files.FILES[setting.lower()]
    os.seteuid(65534)
    try:
        with pytest.raises(KeyFileError, match=rf"{setting}.*cannot be read \(Permission denied\)"):
            load_settings(None, {}, {**environ, setting: str(path)})
    finally:
        os.seteuid(0)


def test_other_errors_are_not_of_files(directory: Path) -> None:
    """A wrong setting is wrong whatever becomes of the files."""
    with pytest.raises(SettingsError) as caught:
        load(directory, {"REMOTE_PORT": "x"})
    assert not isinstance(caught.value, KeyFileError)


@pytest.mark.skipif(os.geteuid() != 0, reason="wants a directory that everybody may enter")
def test_public_keys_that_only_root_can_read() -> None:
    """The broker reads them, and it is not root: who closed file or directory is told which."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="gateway-test-") as name:
        directory, file = Path(name), Path(name) / "known_hosts"
        directory.chmod(0o755)
        file.touch(mode=0o600)
        with pytest.raises(KeyFileError, match=f"{file} is closed .* chmod 0644 {file}"):
            key_files.check_public(file)
        file.chmod(0o644)
        key_files.check_public(file)
        directory.chmod(0o700)
        with pytest.raises(KeyFileError, match=f"{directory} is closed .* chmod 0755 {directory}"):
            key_files.check_public(file)
