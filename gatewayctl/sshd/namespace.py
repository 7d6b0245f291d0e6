"""Where the invented users can be seen: by our sshd, and by nobody else on the host.

On a host, sshd runs in a mount namespace of its own (unshare(1)) in which a few files are ours. Where namespaces may
not be made, as in most containers, the machine itself must be set up so, and is checked.
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
"""Who is logged in (utmp(5))."""

_OURS = ("passwd: systemd files", "group: files", "shadow: files systemd")
"""``systemd`` before ``files``, so that www-data@ is the remote's www-data and not the gateway's. For shadow the other
way round: the root that nss-systemd makes up is locked, and our shadow file holds `_SYSTEM_ACCOUNTS` alone."""

_SYSTEM_ACCOUNTS = ("root", "sshd", "nobody")
"""All that is left of the host's accounts: sshd's own, and the two that every program expects. With the host's users
in sight, a name that our user database does not answer for a moment would be the host's user of that name."""

_ENTER = """
set -e
private=$1 userdb=$2 log=$3
shift 3
# Directories of our own in the place of the host's /etc and /run, with the host's entries in them but for those that
# are ours. A mount on a single file would not last: who puts another file in its place, as useradd does with
# /etc/passwd, takes the mount away in every namespace, and sshd would see the host's users.
mount -t tmpfs -o mode=0755 etc "$private/etc"
# With what is mounted in it, as a volume at /etc/gateway is.
mount --rbind /etc "$private/host"
# Links as they are, since they may be relative; everything else by a link, so that what the host writes anew is seen.
# One may be gone by the time it is copied.
find /etc -mindepth 1 -maxdepth 1 -type l -exec cp -P -t "$private/etc" {} + || :
find "$private/host" -mindepth 1 -maxdepth 1 ! -type l -exec ln -s -t "$private/etc" {} +
for name in nsswitch.conf passwd shadow group; do cp -p --remove-destination "$private/$name" "$private/etc"; done
rm -f "$private/etc/userdb"
mount --move "$private/etc" /etc
# systemd removes /run/sshd, in which sshd shuts its unprivileged half, when the host's own sshd stops. A cache of names
# (nscd) would answer from the host's accounts. Directories come and go in /run, so one may be gone by now.
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
# Logins of invented users are no business of the host's who(1) and last(1), and the host's lastlog, which is indexed by
# uid, would grow to the size of the largest one. sshd misses utmp at each logout, and not wtmp.
: > "$private/run/utmp"
mount --move "$private/run" /run
mount --bind "$userdb" /run/systemd/userdb
# In which nss-systemd looks for users, too (userdb-dropin.h): those whom a container's host binds into it, above all.
for others in /run/host/userdb /usr/local/lib/userdb /usr/lib/userdb /lib/userdb; do
    if [ -d "$others" ]; then mount -t tmpfs -o mode=0755 userdb "$others"; fi
done
mount -t tmpfs -o mode=0755 log /var/log
: > /var/log/lastlog
# What sshd says to syslog comes to us, not to the host's. A mount needs something to stand on, and a daemon that makes
# /dev/log anew takes it away: so that is a /dev of our own, with what programs expect of one in it and none of the
# host's disks, and terminals of our own: a ptmx finds those that are mounted beside it (pts(4)).
if [ "$log" ]; then
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
fi
exec "$@"
"""


def may_unshare() -> bool:
    """Tell whether this process may make a mount namespace."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


def prepare(runtime: Runtime) -> None:
    """Write the files that our sshd sees instead of the host's.

    Raises:
        SettingsError: The host has no account for sshd.
    """
    private = runtime.private
    # Of the names in them not all need be in UTF-8.
    passwd, group, switch = (path.read_text("utf-8", "surrogateescape") for path in (PASSWD, GROUP, NSSWITCH))
    accounts = {line.split(":", 1)[0]: line for line in passwd.splitlines()}
    if "sshd" not in accounts:
        msg = "there is no account sshd, which sshd needs for itself; install openssh-server"
        raise SettingsError(msg)
    kept = [accounts[name] for name in _SYSTEM_ACCOUNTS if name in accounts]
    # root@ has a home here as every user has: what sshd writes there (OpenSSH 10.1) is no business of the host's.
    home = runtime.home / "0"
    home.mkdir(mode=0o711, exist_ok=True)
    kept[0] = f"root:x:0:0:root:{home}:/bin/sh"
    text = "".join(f"{line}\n" for line in kept)
    (private / "passwd").write_text(text, encoding="utf-8", errors="surrogateescape")
    shadow = private / "shadow"
    shadow.touch(mode=0o600)
    shadow.write_text("".join(f"{line.split(':')[0]}:*:::::::\n" for line in kept), encoding="utf-8")
    # Without members: who is in a group here by the same name is somebody else, and sshd would put our user into it.
    groups = [line.split(":") for line in group.splitlines()]
    text = "".join(f"{':'.join(fields[:3])}:\n" for fields in groups if len(fields) > 3)  # noqa: PLR2004 - group(5)
    (private / "group").write_text(text, encoding="utf-8", errors="surrogateescape")
    (private / "nsswitch.conf").write_text(nsswitch(switch), encoding="utf-8", errors="surrogateescape")
    for name in ("dev", "etc", "host", "run"):
        (private / name).mkdir(exist_ok=True)
    SYSTEM_USERDB.mkdir(mode=0o755, parents=True, exist_ok=True)


def prepare_shared() -> None:
    """Make what sshd misses on a machine that is the gateway's alone: it logs an error at each logout without utmp."""
    with suppress(OSError):
        UTMP.touch(mode=0o644)


def nsswitch(text: str) -> str:
    """Change a nsswitch.conf so that users come from nss-systemd first.

    Args:
        text: The host's file; what it says of other databases (hosts, services) stays.
    """
    replaced = ("passwd", "group", "shadow", "gshadow", "initgroups")
    kept = [line for line in text.splitlines() if line.split(":", 1)[0].strip() not in replaced]
    return "\n".join([*_OURS, *kept, ""])


def enter(runtime: Runtime, argv: list[str], *, relay: bool) -> list[str]:
    """Write the command that runs another in a mount namespace of its own, in which our users exist.

    Args:
        runtime: The runtime directory, prepared.
        argv: The command; its process id is that of the one that is started.
        relay: Whether its syslog is ours to relay.
    """
    # slave: what the host mounts later still arrives, and nothing of ours gets out.
    unshare = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", _ENTER, "sh"]
    log = str(runtime.log_socket) if relay else ""
    return [*unshare, str(runtime.private), str(runtime.userdb), log, *argv]


def beside(pid: int) -> list[str]:
    """Write what a command begins with that sees what a running process sees.

    Raises:
        OSError: There is no such process.
    """
    theirs, ours = (Path(f"/proc/{whose}/ns/mnt").readlink() for whose in (pid, "self"))
    return [] if theirs == ours else ["nsenter", "--mount", "--root", f"--target={pid}", "--"]


def check_users(prefix: list[str], auth_uid: int, timeout_s: float = CHECK_TIMEOUT_S) -> None:
    """Ask for a user as sshd will, and see that our broker's answer arrives.

    Args:
        prefix: What sshd's command begins with, see `enter` and `beside`; empty where it shares our namespace.
        auth_uid: The uid that the answer must hold.
        timeout_s: Longest wait, in seconds.

    Raises:
        SettingsError: It does not arrive; the sentence says what is missing.
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
