"""The runtime directory: whose it may be, one gateway in it, sockets that everyone may reach, a host key that stays."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gatewayctl.runtime.directory import Runtime, check_root_only, check_uids_free, ensure_host_key
from gatewayctl.sshd.namespace import may_unshare
from helpers.broker.accounts.userdb import SERVICE
from helpers.protocol.errors import SettingsError

_BROKER_UID = 70_000


@pytest.fixture
def safe(do_without: Callable[[str], None]) -> Iterator[Path]:
    """Make a directory that only root may change, all the way up: none below /tmp is."""
    if os.geteuid() != 0:
        do_without("the runtime directory is root's: run as root")
    with tempfile.TemporaryDirectory(dir="/run", prefix="gateway-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def _mode(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_uid, stat.S_IMODE(info.st_mode)


def test_the_directories_and_whose_they_are(safe: Path) -> None:
    """Everything is root's and may be entered by everyone, but for the state, which is the broker's alone."""
    runtime = Runtime(safe / "below" / "gateway")
    runtime.prepare()
    runtime.change_state_owner(_BROKER_UID)
    for path in (runtime.root, runtime.userdb, runtime.home, runtime.private):
        assert _mode(path) == (0, 0o755)
    assert _mode(runtime.state) == (_BROKER_UID, 0o700)


def test_a_umask_does_not_close_the_directories(safe: Path) -> None:
    """Whoever starts the gateway may have any umask; its unprivileged users must get to the sockets all the same."""
    before = os.umask(0o077)
    try:
        Runtime(safe / "gateway").prepare()
    finally:
        os.umask(before)
    assert _mode(safe / "gateway") == (0, 0o755)


def test_the_state_follows_the_brokers_uid(safe: Path) -> None:
    """After a change of the range of uids the files of before are the new broker's, and nothing that they link to."""
    runtime = Runtime(safe)
    runtime.prepare()
    runtime.change_state_owner(_BROKER_UID)
    table, outside = runtime.state / "users.sqlite3", safe / "outside"
    table.touch()
    outside.touch()
    (runtime.state / "link").symlink_to(outside)
    # As a broker could that is not what it was, where the kernel lets it (proc(5), protected_hardlinks).
    (runtime.state / "name").hardlink_to(outside)
    runtime.change_state_owner(_BROKER_UID + 1)
    assert _mode(runtime.state) == (_BROKER_UID + 1, 0o700)
    assert [table.stat().st_uid, outside.stat().st_uid] == [_BROKER_UID + 1, 0]


def test_preparing_takes_nothing_from_a_gateway_that_runs(safe: Path) -> None:
    """Who starts a second gateway in the directory finds out before the first one's broker loses its files."""
    runtime = Runtime(safe)
    runtime.prepare()
    runtime.change_state_owner(_BROKER_UID)
    runtime.prepare()
    assert _mode(runtime.state) == (_BROKER_UID, 0o700)


@pytest.mark.usefixtures("safe")
def test_a_directory_that_others_may_change_is_refused_untouched(tmp_path: Path) -> None:
    """Where others may write, nothing is given to the broker before that is noticed."""
    runtime = Runtime(tmp_path / "gateway")
    runtime.state.mkdir(parents=True)
    (runtime.state / "somebodys").touch()
    with pytest.raises(SettingsError, match="GATEWAY_RUNTIME_DIR"):
        runtime.prepare()
    assert (runtime.state / "somebodys").stat().st_uid == os.geteuid()


def test_a_directory_that_cannot_be_made(safe: Path) -> None:
    """A file in the way is an error that names the setting and the file."""
    (safe / "file").touch()
    with pytest.raises(SettingsError, match=r"GATEWAY_RUNTIME_DIR .*file"):
        Runtime(safe / "file" / "gateway").prepare()


def test_one_gateway_in_one_directory(tmp_path: Path) -> None:
    """The second one is refused while the first one lives, and not after."""
    runtime = Runtime(tmp_path)
    fd = runtime.lock()
    with pytest.raises(SettingsError, match="another gateway"):
        runtime.lock()
    os.close(fd)
    os.close(runtime.lock())


_TWO = """
import os, sys
from pathlib import Path
from gatewayctl.runtime.directory import Runtime
from helpers.protocol.errors import SettingsError
first, second = (Runtime(Path(path)) for path in sys.argv[1:])
fds = first.listen(private=False)
for _ in range(2):
    try:
        second.listen(private=False)
        print("taken")
    except SettingsError as error:
        print(error.message)
        for fd in fds:
            os.close(fd)
"""


def test_two_gateways_that_one_machine_sees(tmp_path: Path, do_without: Callable[[str], None]) -> None:
    """Where sshd has no namespace of its own, a second gateway takes no users of one that runs, only of a dead one."""
    if os.geteuid() != 0 or not may_unshare():
        do_without("no mount namespace may be made here")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    argv = [sys.executable, "-c", _TWO, str(tmp_path / "first"), str(tmp_path / "second")]
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o mode=0755 run /run && exec "$@"', "sh"]
    done = subprocess.run([*apart, *argv], capture_output=True, text=True, check=False, timeout=30)
    refused, taken = done.stdout.splitlines()
    assert refused.startswith("another gateway runs on this machine")
    assert taken == "taken"


def test_the_sockets_listen_and_everyone_may_connect(tmp_path: Path) -> None:
    """Each takes the place of a dead one, and is kept from children that are not given it."""
    runtime = Runtime(tmp_path)
    runtime.userdb.mkdir()
    runtime.broker_socket.touch()
    paths = [runtime.broker_socket, runtime.userdb / SERVICE, runtime.agent_socket]
    for _ in range(2):
        fds = runtime.listen(private=True)
        for path, fd in zip(paths, fds, strict=True):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert fd >= 10
            assert not os.get_inheritable(fd)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            assert not os.get_blocking(fd)
            os.close(fd)


def test_what_only_root_can_change_is_accepted() -> None:
    """A system directory is safe."""
    check_root_only(Path("/usr/bin"), "X")


def test_what_others_can_change_is_refused(safe: Path) -> None:
    """What is below a directory that everyone may write to is not safe, a link to it neither."""
    (safe / "open" / "directory").mkdir(parents=True)
    (safe / "open").chmod(0o1777)
    link = safe / "open" / "link"
    link.symlink_to("/usr/bin")
    check_root_only(link, "X")  # what it points to counts: nobody keeps the link itself
    link.unlink()
    link.symlink_to(safe / "open" / "directory")
    for path in (safe / "open" / "directory", link):
        with pytest.raises(SettingsError, match=r"X .* is not safe: /"):
            check_root_only(path, "X")


def test_what_is_closed_to_the_gateways_users_is_refused(safe: Path) -> None:
    """A directory on the way that not everyone may enter is refused."""
    (safe / "closed" / "below").mkdir(parents=True)
    (safe / "closed").chmod(0o700)
    with pytest.raises(SettingsError, match="closed to them"):
        check_root_only(safe / "closed" / "below", "X")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_writable_by_others_is_refused(mode: int, safe: Path) -> None:
    """Group-writable, world-writable and sticky directories are all not safe, as for sshd."""
    (safe / "open").mkdir()
    (safe / "open").chmod(mode)
    with pytest.raises(SettingsError, match="not safe"):
        check_root_only(safe / "open", "X")


def test_owned_by_another_is_refused(safe: Path) -> None:
    """What belongs to somebody else can be changed by somebody else."""
    (safe / "file").touch()
    os.chown(safe / "file", _BROKER_UID, 0)
    with pytest.raises(SettingsError, match="not safe"):
        check_root_only(safe / "file", "X")


def test_a_host_key_is_made_once(safe: Path) -> None:
    """A missing key is made, for root's eyes alone, with its public half; the second start keeps it."""
    path = safe / "below" / "host_key"
    assert ensure_host_key(path)
    content = path.read_bytes()
    assert _mode(path) == (0, 0o600)
    shown = subprocess.run(["ssh-keygen", "-y", "-f", os.fspath(path)], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[:2] == Path(f"{path}.pub").read_text().split()[:2]
    assert not ensure_host_key(path)
    assert path.read_bytes() == content
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["host_key", "host_key.pub"]


def test_a_host_key_that_others_can_read_is_refused(safe: Path) -> None:
    """A key that may be known to others is not used, nor made good in silence."""
    path = safe / "host_key"
    ensure_host_key(path)
    for mode, owner in ((0o640, 0), (0o604, 0), (0o600, _BROKER_UID)):
        path.chmod(mode)
        os.chown(path, owner, 0)
        with pytest.raises(SettingsError, match="GATEWAY_HOST_KEY_PATH"):
            ensure_host_key(path)


def test_a_host_key_that_is_a_directory(safe: Path) -> None:
    """What is not a file is told as such: to close it, as a key that others can read, would shut the gateway out."""
    with pytest.raises(SettingsError, match=r"GATEWAY_HOST_KEY_PATH .* is not a file") as caught:
        ensure_host_key(safe)
    assert "chmod" not in caught.value.message


def test_a_host_key_that_cannot_be_made(safe: Path) -> None:
    """A directory that is a file is an error that names the setting."""
    (safe / "file").touch()
    with pytest.raises(SettingsError, match="GATEWAY_HOST_KEY_PATH"):
        ensure_host_key(safe / "file" / "key")


@pytest.mark.parametrize(
    ("accounts", "subordinate", "whose"),
    [
        ([("alice", 999), ("bob", 3000)], "", None),
        ([("alice", 1000)], "", "alice: 1000"),
        ([("root", 0), ("bob", 2999)], "", "bob: 2999"),
        ([], "alice:0:1000\nbob:3000:65536\n", None),
        ([], "alice:2999:1\n", "containers of alice: 2999"),
        ([], "odd\n\nbob:500:501\n", "containers of bob: 500"),
        ([], "bob:100:65536\n", "containers of bob: 100"),
    ],
)
def test_uids_that_others_have_are_refused(
    tmp_path: Path, accounts: list[tuple[str, int]], subordinate: str, whose: str | None
) -> None:
    """An account of the machine's, or a container of one's, would be taken for a user of the gateway's."""
    path = tmp_path / "subuid"
    path.write_text(subordinate)
    if whose is None:
        check_uids_free(range(1000, 3000), accounts, [path])
    else:
        with pytest.raises(SettingsError, match=f"GATEWAY_UID_RANGE 1000:2999 .*{whose}"):
            check_uids_free(range(1000, 3000), accounts, [path])


def test_the_machines_accounts_are_asked_for() -> None:
    """Without a list, the machine itself tells: root is on every one."""
    with pytest.raises(SettingsError, match="root: 0"):
        check_uids_free(range(2000), subordinate=[])


def test_the_machines_groups_are_asked_for(tmp_path: Path) -> None:
    """A user's gid is the uid, and must not be that of a group that may do something here; nor one of a container's."""
    gid = next(group.gr_gid for group in grp.getgrall() if group.gr_gid not in {user.pw_uid for user in pwd.getpwall()})
    with pytest.raises(SettingsError, match=f"group {grp.getgrgid(gid).gr_name}: {gid}"):
        check_uids_free(range(gid, gid + 1), subordinate=[])
    (tmp_path / "subgid").write_text("bob:100000:65536\n")
    with pytest.raises(SettingsError, match="containers of bob: 100000"):
        check_uids_free(range(100_000, 102_000), [], [tmp_path / "subuid", tmp_path / "subgid"])
