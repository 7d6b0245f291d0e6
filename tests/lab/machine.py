"""A booted machine: systemd as process 1, in namespaces, on a copy of this machine's files that goes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lab.processes import child_of, read_process
from lab.room import DIE_WITH_PARENT, PLAIN_ENVIRONMENT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

SYSTEMD = Path("/usr/lib/systemd/systemd")

_TARGET = """\
[Unit]
Requires=ssh.service systemd-user-sessions.service
After=ssh.service systemd-user-sessions.service
"""

# Nothing of the machine's own /run and /dev is in it, and of its services only what the target wants.
_BOOT = """
set -e
directory=$1 prefix=$2 checkout=$3
root=$directory/root
mount --make-rprivate /
mount -t tmpfs tmpfs "$directory"
mkdir "$directory/upper" "$directory/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" overlay "$root"
for kept in "$prefix" "$checkout"; do mkdir -p "$root/$kept"; mount --bind "$kept" "$root/$kept"; done
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
ip link set lo up
cat > "$root/etc/systemd/system/lab.target"
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
    unshare --root "$root" "$4" --unit=lab.target --log-target=journal --show-status=0 </dev/null
"""


class Machine:
    """A booted machine; ends with ``close``.

    Args:
        directory: For its files; exists, below a place where nothing else is kept.
    """

    def __init__(self, directory: Path) -> None:
        """Boot it, up to its sshd."""
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        parent = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/systemd")
        self._cgroup = parent / f"smg-lab-{os.getpid()}"
        self._cgroup.mkdir(exist_ok=True)
        enter = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(self._cgroup)]
        unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
        checkout = Path(__file__).parents[2]
        boot = ["sh", "-c", _BOOT, "sh", str(directory), sys.prefix, str(checkout), str(SYSTEMD)]
        self._process = subprocess.Popen(
            [*DIE_WITH_PARENT, *enter, *unshare, "--", *boot],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=PLAIN_ENVIRONMENT,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(_TARGET)
        self._process.stdin.close()
        try:
            self.pid = wait_until(self._booted, "systemd has booted", timeout_s=60.0)
        except BaseException:
            self.close()
            raise

    def _booted(self) -> int | None:
        """Find systemd once it has reached its target."""
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            message = f"the machine does not boot: {self._process.stderr.read()}"
            raise RuntimeError(message)
        pid = child_of(self._process.pid)
        process = None if pid is None else read_process(pid)
        if pid is None or process is None or process.name != SYSTEMD.name:
            return None
        self.pid = pid
        return pid if self.run("systemctl", "is-active", "lab.target", check=False).returncode == 0 else None

    def run(
        self, *command: str, stdin: str = "", check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it as root."""
        enter = ["nsenter", f"--target={self.pid}", "-m", "-p", "-n", "-u", "-i", "-C", "-r", "-w", "--"]
        argv: Sequence[str] = [*DIE_WITH_PARENT, *enter, *command]
        return subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout_s,
            env={**PLAIN_ENVIRONMENT, "HOME": "/root"},
        )

    def path(self, inside: str) -> Path:
        """Return where this machine sees one of its files."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def close(self) -> None:
        """Switch it off; everything on it ends."""
        if self._process.poll() is None:
            pid = child_of(self._process.pid)
            os.kill(self._process.pid if pid is None else pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        for _ in range(100):
            for group in sorted(self._cgroup.glob("**/"), reverse=True):
                with suppress(OSError):
                    group.rmdir()
            if not self._cgroup.exists():
                return
            time.sleep(0.05)
