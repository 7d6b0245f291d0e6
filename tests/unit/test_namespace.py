"""Where the invented users can be seen: our sshd's own mount namespace, and the files in it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gatewayctl.runtime.directory import SYSTEM_USERDB, Runtime
from gatewayctl.sshd import namespace
from gatewayctl.sshd.namespace import NSSWITCH, check_users, enter, may_unshare, nsswitch
from helpers.broker.accounts.userdb import AUTH_USER
from helpers.protocol.errors import SettingsError

_UID = 70_001


def test_users_come_from_us_first() -> None:
    """Our lines replace those of users and groups; what the host says of other databases stays."""
    text = nsswitch(
        "# mine\npasswd: files ldap\ngroup:files\nshadow : files\ninitgroups: x\ngshadow: files\nhosts: files dns\n"
    )
    assert text.splitlines() == [
        "passwd: systemd files",
        "group: files",
        "shadow: files systemd",
        "# mine",
        "hosts: files dns",
    ]


@pytest.mark.parametrize("text", ["", "\n", "passwd: files", "passwd"])
def test_a_sparse_nsswitch(text: str) -> None:
    """A host's file may be empty, or end without a newline; ours is whole."""
    assert nsswitch(text).startswith("passwd: systemd files\ngroup: files\nshadow: files systemd\n")
    assert nsswitch(text).count("passwd") == 1


def test_the_command_that_enters() -> None:
    """The command comes last, as its own words: none of it is read by the shell in between."""
    argv = enter(Runtime(Path("/run/x")), ["sshd", "-o", "a b; $(id)"])
    assert argv[:2] == ["unshare", "--mount"]
    assert argv[-3:] == ["sshd", "-o", "a b; $(id)"]
    assert argv[-6:-3] == ["/run/x/private", "/run/x/userdb", "/run/x/log.sock"]


def _answering(line: str) -> list[str]:
    """Stand for a namespace in which getent says this."""
    return ["sh", "-c", f"printf '%s\\n' '{line}'", "sh"]


def test_our_answer_is_recognised() -> None:
    """The account with the uid that was asked for is what sshd will see."""
    check_users(_answering(f"{AUTH_USER}:x:{_UID}:{_UID}::/:/usr/sbin/nologin"), _UID)


@pytest.mark.parametrize("line", ["", f"{AUTH_USER}:x:{_UID + 1}:1::/:/bin/sh", "x:x", f"{AUTH_USER}:{_UID}"])
def test_another_answer_stops_the_start(line: str) -> None:
    """Nobody, somebody else's uid and half a line are not our broker's answer."""
    with pytest.raises(SettingsError):
        check_users(_answering(line), _UID)


def test_the_reason_is_one_line() -> None:
    """What the failing command wrote is part of the sentence, its newlines taken out."""
    with pytest.raises(SettingsError) as caught:
        check_users(["sh", "-c", "echo one >&2; echo two >&2", "sh"], _UID)
    assert "\n" not in caught.value.message


@pytest.fixture
def runtime(tmp_path: Path, do_without: Callable[[str], None]) -> Runtime:
    """Prepare the files of a namespace, as root and where one may be made."""
    if os.geteuid() != 0 or not may_unshare():
        do_without("no mount namespace may be made here")
    made = Runtime(tmp_path)
    for directory in (made.private, made.userdb, made.home):
        directory.mkdir()
    namespace.prepare(made)
    return made


def _inside(runtime: Runtime, *argv: str) -> str:
    return subprocess.run(enter(runtime, [*argv]), capture_output=True, text=True, check=True, timeout=30).stdout


def test_the_files_that_sshd_sees(runtime: Runtime) -> None:
    """Only the accounts that sshd itself needs are left, none with a password; the shadow file is root's."""
    names = [line.split(":")[0] for line in (runtime.private / "passwd").read_text().splitlines()]
    assert set(names) <= {"root", "sshd", "nobody"}
    assert "sshd" in names
    root = (runtime.private / "passwd").read_text().splitlines()[0]
    assert root == f"root:x:0:0:root:{runtime.home}/0:/bin/sh"
    shadow = (runtime.private / "shadow").read_text().splitlines()
    assert [line.split(":")[:2] for line in shadow] == [[name, "*"] for name in names]
    assert stat.S_IMODE((runtime.private / "shadow").stat().st_mode) == 0o600


def test_preparing_again_changes_nothing(runtime: Runtime) -> None:
    """A restart finds its own files there."""
    before = {path.name: path.stat().st_mode for path in runtime.private.iterdir()}
    namespace.prepare(runtime)
    assert {path.name: path.stat().st_mode for path in runtime.private.iterdir()} == before


def test_accounts_in_another_character_set(runtime: Runtime, tmp_path: Path) -> None:
    """A host whose files in /etc have names in Latin-1, as old ones do, is no worse than others."""
    program = (
        "from pathlib import Path; from gatewayctl.sshd import namespace\n"
        "from gatewayctl.runtime.directory import Runtime\n"
        f"namespace.prepare(Runtime(Path({str(tmp_path)!r})))"
    )
    script = 'for f in passwd group nsswitch.conf; do mount --bind "$1/$f" "/etc/$f"; done && exec "$2" -c "$3"'
    for path in (Path("/etc/passwd"), Path("/etc/group"), NSSWITCH):
        (tmp_path / path.name).write_bytes(path.read_bytes() + b"# Jos\xe9:x:4711:4711:Jos\xe9:/:/bin/sh\n")
    before = (runtime.private / "passwd").read_text()
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
    subprocess.run(argv, check=True, timeout=30)
    assert (runtime.private / "passwd").read_text() == before
    assert b"# Jos\xe9" in (runtime.private / "nsswitch.conf").read_bytes()


def test_inside_our_files_are_seen_and_outside_the_hosts(runtime: Runtime) -> None:
    """In the namespace /etc has our files and the user database our socket; the host sees nothing of it."""
    outside = NSSWITCH.read_text()
    (runtime.userdb / "ours").touch()
    seen = _inside(runtime, "sh", "-c", "cat /etc/nsswitch.conf; ls /run/systemd/userdb; cut -d: -f1 /etc/passwd")
    assert seen.startswith((runtime.private / "nsswitch.conf").read_text())
    assert "ours" in seen.splitlines()
    assert "daemon" not in seen.splitlines()
    assert NSSWITCH.read_text() == outside
    assert not (SYSTEM_USERDB / "ours").exists()


def test_the_hosts_groups_have_no_members(runtime: Runtime, tmp_path: Path) -> None:
    """Who is in a group of the host's by a user's name is somebody else: groups are there, and nobody is in one."""
    groups = tmp_path / "group"
    groups.write_text("root:x:0:alice\ntty:x:5:\nhalf:x\n\ndisk:*:6:bob,alice\n")
    program = "import grp, os; print([g.gr_name for g in grp.getgrall()], os.getgrouplist('alice', 70002))"
    prepare = (
        "from pathlib import Path; from gatewayctl.sshd import namespace\n"
        "from gatewayctl.runtime.directory import Runtime\n"
        f"namespace.prepare(Runtime(Path({str(tmp_path)!r})))"
    )
    mounted = 'mount --bind "$1" /etc/group && "$2" -c "$3" && shift 3 && exec "$@"'
    inside = enter(runtime, [sys.executable, "-c", program])
    argv = ["unshare", "--mount", "sh", "-c", mounted, "sh", str(groups), sys.executable, prepare, *inside]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "['root', 'tty', 'disk'] [70002]\n"


def test_the_hosts_record_of_logins_is_out_of_reach(runtime: Runtime) -> None:
    """What sshd would write to lastlog, wtmp and utmp does not reach the host's, which others may write meanwhile."""
    for path in (Path("/var/log/lastlog"), Path("/var/log/wtmp"), Path("/run/utmp")):
        if path.is_file():
            size = path.stat().st_size
            _inside(runtime, "sh", "-c", 'echo "$2" >>"$1"', "sh", str(path), str(runtime.root))
            with path.open("rb") as file:
                file.seek(size)
                assert bytes(runtime.root) not in file.read()


_MOUNTED = """
mount -t tmpfs tmpfs /etc/ssh
echo mounted > /etc/ssh/ssh_known_hosts
exec "$@"
"""


def test_what_is_mounted_in_the_hosts_etc(runtime: Runtime) -> None:
    """The host's own mounts below /etc are seen: the key of a gateway may lie on one, as in a privileged container."""
    inside = enter(runtime, ["cat", "/etc/ssh/ssh_known_hosts"])
    outside = ["unshare", "--mount", "sh", "-c", _MOUNTED, "sh"]
    done = subprocess.run([*outside, *inside], capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout, done.stderr) == ("mounted\n", "")


_DROPPED_IN = """
set -e
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=0755 lib /usr/local/lib
for directory in /run/host/userdb /run/userdb /usr/local/lib/userdb; do
    mkdir -p $directory
    echo '{"userName":"bob","uid":60577,"gid":60577,"homeDirectory":"/","shell":"/bin/sh"}' > $directory/bob.user
done
mkdir -p /run/systemd/userdb
exec "$@"
"""


def test_users_that_are_dropped_in(runtime: Runtime) -> None:
    """Users whom systemd finds in files, as those of an nspawn container's host, are none of the gateway's either."""
    inside = enter(runtime, ["sh", "-c", "! getent --service=systemd passwd bob"])
    outside = ["unshare", "--mount", "sh", "-c", _DROPPED_IN, "sh"]
    seen = [
        subprocess.run([*outside, *argv], capture_output=True, text=True, check=False, timeout=30)
        for argv in (["getent", "--service=systemd", "passwd", "bob"], inside)
    ]
    assert [(done.returncode, done.stdout, done.stderr) for done in seen] == [
        (0, "bob:x:60577:60577:bob:/:/bin/sh\n", ""),
        (0, "", ""),
    ]


_DANGLING = """
mount -t tmpfs dev /dev
mknod /dev/null c 1 3
mkdir /dev/pts
ln -s /run/systemd/no-such-journal/log /dev/log
exec "$@"
"""


def test_a_host_whose_journal_is_down(runtime: Runtime) -> None:
    """``/dev/log`` may be a link that leads nowhere; our socket is there all the same."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(runtime.log_socket))
        inside = enter(runtime, ["test", "-S", "/dev/log"])
        outside = ["unshare", "--mount", "sh", "-c", _DANGLING, "sh"]
        done = subprocess.run([*outside, *inside], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_devices(runtime: Runtime) -> None:
    """Our sshd has the devices that every program expects, and those of the host's hardware stay outside."""
    script = "ls /dev; : > /dev/null && head -c 8 /dev/urandom | wc -c && echo seen > /dev/stderr"
    inside = enter(runtime, ["sh", "-c", script])
    done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=30)

    devices = {"full", "null", "ptmx", "pts", "random", "tty", "urandom", "zero"}
    links = {"fd", "log", "stderr", "stdin", "stdout"}
    assert done.stderr == "seen\n"
    assert set(done.stdout.split()) == devices | links | {"8"}


def test_the_process_that_is_started_is_the_command_itself(runtime: Runtime) -> None:
    """Unshare and the shell replace themselves: signals and exit statuses are the command's own."""
    with subprocess.Popen(
        enter(runtime, ["sh", "-c", "echo $$; exit 7"]), stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate()
    assert (output, process.returncode) == (f"{process.pid}\n", 7)


def test_a_command_that_is_not_there(runtime: Runtime) -> None:
    """What cannot be started is a failure, and nothing runs outside in its place."""
    done = subprocess.run(enter(runtime, ["/no/such"]), capture_output=True, check=False, timeout=30)
    assert done.returncode == 127
