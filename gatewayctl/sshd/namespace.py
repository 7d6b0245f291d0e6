"""The mount namespace in which our sshd sees the gateway's users, and no other program on the host does.

On a host, sshd runs in a mount namespace of its own (unshare(1)) in which a few files are ours. If namespaces cannot be
made, as in most containers, the machine itself must be set up in this way, which is checked.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from gatewayctl.runtime.directory import SYSTEM_USERDB, Runtime
from helpers.broker.accounts.userdb import AUTH_USER
from helpers.protocol.errors import SettingsError

CHECK_TIMEOUT_S = 20.0
"""Longest wait for one user lookup at the start, in seconds; it takes 5 ms."""

PASSWD = Path("/etc/passwd")

GROUP = Path("/etc/group")

NSSWITCH = Path("/etc/nsswitch.conf")

UTMP = Path("/run/utmp")
"""The logged-in users (utmp(5))."""

_OURS = ("passwd: systemd files", "group: files", "shadow: files systemd")
"""``systemd`` before ``files``, so that www-data@ is the remote's www-data and not the gateway's. For shadow the order
is reversed: nss-systemd synthesizes a locked root, and our shadow file contains only `_SYSTEM_ACCOUNTS`."""

_SYSTEM_ACCOUNTS = ("root", "sshd", "nobody")
"""The only accounts of the host that remain: sshd's own, and the two that every program expects. If the host's other
users were visible, a name would resolve to the host's user whenever our user database does not answer."""

_ENTER = """
set -e
private=$1 userdb=$2 log=$3
shift 3
# Directories of our own replace the host's /etc and /run. They contain the host's entries, except those that are ours.
# A mount on a single file would not last: replacing the file, as useradd does with /etc/passwd, removes the mount in
# every namespace, and sshd would see the host's users.
mount -t tmpfs -o mode=0755 etc "$private/etc"
# With the mounts below it, such as a volume at /etc/gateway.
mount --rbind /etc "$private/host"
# Links are copied, since they may be relative; for everything else a link is made, so that later changes of the host
# are visible. An entry may be removed before it is copied.
find /etc -mindepth 1 -maxdepth 1 -type l -exec cp -P -t "$private/etc" {} + || :
find "$private/host" -mindepth 1 -maxdepth 1 ! -type l -exec ln -s -t "$private/etc" {} +
for name in nsswitch.conf passwd shadow group; do cp -p --remove-destination "$private/$name" "$private/etc"; done
rm -f "$private/etc/userdb"
mount --move "$private/etc" /etc
# systemd removes /run/sshd, the chroot of sshd's unprivileged process, when the host's own sshd stops. A cache of names
# (nscd) would answer from the host's accounts. A directory in /run may be removed before it is mounted.
mount -t tmpfs -o mode=0755 run "$private/run"
mount --make-unbindable "$private/run"
for entry in /run/*; do
    ours=$private/run/${entry#/run/}
    if [ -L "$entry" ]; then cp -P "$entry" "$ours"
    elif [ "$entry" = /run/sshd ] || [ "$entry" = /run/nscd ] || [ "$entry" = /run/userdb ]; then :
    elif [ -d "$entry" ]; then mkdir "$ours"; mount --rbind "$entry" "$ours" || [ ! -d "$entry" ]
    fi
done
mkdir "$private/run/sshd"
# The gateway's logins must not appear in the host's who(1) and last(1), and the host's lastlog, which is indexed by
# uid, would grow to the size of the largest uid. sshd logs an error at each logout without utmp, but not without wtmp.
: > "$private/run/utmp"
mount --move "$private/run" /run
mount --bind "$userdb" /run/systemd/userdb
# nss-systemd also searches these directories (userdb-dropin.h), mainly for users that a container's host binds into it.
for others in /run/host/userdb /usr/local/lib/userdb /usr/lib/userdb /lib/userdb; do
    if [ -d "$others" ]; then mount -t tmpfs -o mode=0755 userdb "$others"; fi
done
mount -t tmpfs -o mode=0755 log /var/log
: > /var/log/lastlog
# sshd's syslog messages come to us, not to the host's syslog. A mount on /dev/log would be lost when a daemon recreates
# the file, so /dev itself is ours, with the devices that programs expect and without the host's disks. The terminals
# are ours too: a ptmx uses the devpts that is mounted next to it (pts(4)).
mount -t tmpfs -o mode=0755 dev "$private/dev"
for device in null zero full random urandom tty; do
    [ -e "/dev/$device" ] || continue
    : > "$private/dev/$device"
    mount --bind "/dev/$device" "$private/dev/$device"
done
for link in fd stdin stdout stderr; do [ ! -L "/dev/$link" ] || cp -P "/dev/$link" "$private/dev"; done
mkdir "$private/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$private/dev/pts"
ln -s pts/ptmx "$private/dev/ptmx"
ln -s "$log" "$private/dev/log"
mount --rbind "$private/dev" /dev
exec "$@"
"""


def may_unshare() -> bool:
    """Check whether this process may make a mount namespace."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


def prepare(runtime: Runtime) -> None:
    """Write the files that our sshd sees instead of the host's.

    Raises:
        SettingsError: The host has no account for sshd.
    """
    private = runtime.private
    # Names in these files may not be UTF-8.
    passwd, group, switch = (path.read_text("utf-8", "surrogateescape") for path in (PASSWD, GROUP, NSSWITCH))
    accounts = {line.split(":", 1)[0]: line for line in passwd.splitlines()}
    if "sshd" not in accounts:
        msg = "there is no account sshd, which sshd needs for itself; install openssh-server"
        raise SettingsError(msg)
    kept = [accounts[name] for name in _SYSTEM_ACCOUNTS if name in accounts]
    # root@ has a home here like every user: files that sshd writes there (OpenSSH 10.1) stay off the host.
    home = runtime.home / "0"
    home.mkdir(mode=0o711, exist_ok=True)
    kept[0] = f"root:x:0:0:root:{home}:/bin/sh"
    text = "".join(f"{line}\n" for line in kept)
    (private / "passwd").write_text(text, encoding="utf-8", errors="surrogateescape")
    shadow = private / "shadow"
    shadow.touch(mode=0o600)
    shadow.write_text("".join(f"{line.split(':')[0]}:*:::::::\n" for line in kept), encoding="utf-8")
    # Without members: a member here is another user with the same name, and sshd would add our user to the group.
    groups = [line.split(":") for line in group.splitlines()]
    text = "".join(f"{':'.join(fields[:3])}:\n" for fields in groups if len(fields) > 3)  # noqa: PLR2004 - group(5)
    (private / "group").write_text(text, encoding="utf-8", errors="surrogateescape")
    (private / "nsswitch.conf").write_text(nsswitch(switch), encoding="utf-8", errors="surrogateescape")
    for name in ("dev", "etc", "host", "run"):
        (private / name).mkdir(exist_ok=True)
    SYSTEM_USERDB.mkdir(mode=0o755, parents=True, exist_ok=True)


def prepare_shared() -> None:
    """Create utmp on a machine without a separate namespace: without it sshd logs an error at each logout."""
    with suppress(OSError):
        UTMP.touch(mode=0o644)


def nsswitch(text: str) -> str:
    """Change a nsswitch.conf so that users come from nss-systemd first.

    Args:
        text: The host's file; its lines for other databases (hosts, services) are kept.
    """
    replaced = ("passwd", "group", "shadow", "gshadow", "initgroups")
    kept = [line for line in text.splitlines() if line.split(":", 1)[0].strip() not in replaced]
    return "\n".join([*_OURS, *kept, ""])


def enter(runtime: Runtime, argv: list[str]) -> list[str]:
    """Return the command line that runs a command in a mount namespace of its own, in which our users exist.

    Args:
        runtime: The runtime directory, prepared.
        argv: The command; it keeps the pid of the process that is started.
    """
    # slave: later mounts of the host propagate into the namespace, and ours do not propagate out.
    unshare = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", _ENTER, "sh"]
    return [*unshare, str(runtime.private), str(runtime.userdb), str(runtime.log_socket), *argv]


def in_namespace_of(pid: int) -> list[str]:
    """Return the first words of a command line that runs in a process's mount namespace.

    Raises:
        OSError: There is no such process.
    """
    theirs, ours = (Path(f"/proc/{whose}/ns/mnt").readlink() for whose in (pid, "self"))
    return [] if theirs == ours else ["nsenter", "--mount", "--root", f"--target={pid}", "--"]


def check_users(prefix: list[str], auth_uid: int, timeout_s: float = CHECK_TIMEOUT_S) -> None:
    """Look a user up as sshd will, and check that our broker's answer arrives.

    Args:
        prefix: The first words of sshd's command line, see `enter` and `in_namespace_of`; empty in our namespace.
        auth_uid: The uid that the answer must have.
        timeout_s: Longest wait, in seconds.

    Raises:
        SettingsError: The answer does not arrive; the sentence names the missing part.
    """
    argv = [*prefix, "getent", "passwd", AUTH_USER]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as exc:
        msg = f"looking up the gateway's own account took more than {timeout_s:.0f} s; is nss-systemd waiting?"
        raise SettingsError(msg) from exc
    if done.stdout.split(":")[2:3] == [str(auth_uid)]:
        return
    if not any(Path("/").glob("*lib*/**/libnss_systemd.so.2")):
        msg = "libnss-systemd is not installed, without which sshd finds no users: apt-get install libnss-systemd"
    elif prefix:
        reason = done.stderr.strip().replace("\n", " ") or "getent found no such user"
        msg = f"sshd would not find the gateway's users ({reason})"
    else:
        msg = (
            f"sshd would not find the gateway's users, and no mount namespace may be made here: {NSSWITCH} must say "
            f"'{_OURS[0]}' and '{_OURS[2]}', libnss-systemd must be installed and {SYSTEM_USERDB} be writable for root"
        )
    raise SettingsError(msg)
