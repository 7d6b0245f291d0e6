"""Files through the gateway, with the programs that people use: as if the remote were dialled directly, and no rest."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import paramiko
import pytest
from system.sessions import masters_of, wait_finished

from lab.gateway import ADDRESS
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.users import User

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Way:
    """A way to the remote, through the gateway or directly, with what OpenSSH's programs need to go it.

    Attributes:
        lab: Where.
        user: Who.
        options: ssh's options, without port and name.
        host: Where to connect to.
        port: Its port.
        directory: Below the user's home, for what this way brings there.
    """

    lab: Lab
    user: User
    options: list[str]
    host: str
    port: int
    directory: str

    @property
    def at(self) -> str:
        """What stands before the colon for scp and rsync."""
        return f"{self.user.name}@{self.host}"

    @property
    def ssh(self) -> str:
        """Ssh's command line as rsync and git take it."""
        return shlex.join(["ssh", *self.options, "-p", str(self.port)])

    def there(self, name: str) -> Path:
        """Return where this machine sees a file of this way's on the remote."""
        return self.lab.remote.room.path(f"{self.user.home}/{self.directory}/{name}")

    def told(self, done: subprocess.CompletedProcess[bytes]) -> tuple[int, str]:
        """Return status and words of a program, without what differs between the ways."""
        words = (done.stdout + done.stderr).decode()
        for own in (
            self.host,
            f"port {self.port}",
            f":{self.port}",
            self.directory,
        ):  # 22 alone may be part of anything
            words = words.replace(own, "X")
        return done.returncode, words


def _way(lab: Lab, user: User, ssh: list[str], directory: str, master: Path | None = None) -> Way:
    """Make a way of ssh's command line, over a client's master where there is one."""
    options, host = ssh[1 : ssh.index("--")], ssh[-1]
    port = next(word for word in options if word.startswith("-p")).removeprefix("-p")
    options = [word for word in options if not word.startswith(("-p", "-l"))]
    path = lab.remote.room.path(f"{user.home}/{directory}")
    path.mkdir(exist_ok=True)
    os.chown(path, user.uid, user.uid)
    return Way(lab, user, [*(["-o", f"ControlPath={master}"] if master else []), *options], host, int(port), directory)


@pytest.fixture(scope="module")
def module_ways(shared_lab: Lab, shared_gateway: Gateway) -> Iterator[tuple[Way, Way]]:
    """Log one user in both ways, for the tests of this file; they ask for ``ways``."""
    lab, user = shared_lab, shared_lab.add_user()
    with ExitStack() as stack:
        ways = []
        for name, argv in (
            ("by-gateway", lab.gateway_argv(shared_gateway, user)),
            ("by-itself", lab.direct_ssh_argv(user)),
        ):
            master = lab.directory / f"{name}-{user.name}"
            stack.enter_context(
                lab.background([argv[0], "-N", "-M", "-S", str(master), *argv[1:]], stdio=subprocess.DEVNULL)
            )
            wait_until(master.exists, "the client's master listens")
            ways.append(_way(lab, user, argv, name, master))
        yield ways[0], ways[1]


@pytest.fixture
def ways(module_ways: tuple[Way, Way], lab: Lab) -> tuple[Way, Way]:
    """A user's ways to the remote: through the gateway, and directly, which is the oracle."""
    assert module_ways[0].lab is lab
    return module_ways


def _put(path: Path, length: int) -> str:
    """Make a file of random bytes, and return its checksum."""
    path.write_bytes(os.urandom(length))
    return _checksum(path)


def _checksum(path: Path) -> str:
    """Return a file's checksum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tree(path: Path) -> dict[str, tuple[int, int, str]]:
    """Describe a tree: of each file the mode, the time and the checksum."""
    return {
        str(its.relative_to(path)): (
            its.stat().st_mode,
            int(its.stat().st_mtime) if its.is_file() else 0,
            _checksum(its) if its.is_file() else "",
        )
        for its in path.rglob("*")
    }


@pytest.mark.parametrize("protocol", ["-s", "-O"])
def test_scp(ways: tuple[Way, Way], tmp_path: Path, protocol: str) -> None:
    """Both of scp's protocols bring a file and a tree there and back, odd names, modes and times included."""
    odd, tree = tmp_path / "a file 'with' $odd name", tmp_path / "tree"
    _put(odd, 300_000)
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/empty").touch()
    (tree / "deep/script").write_text("#!/bin/sh\n")
    (tree / "deep/script").chmod(0o750)
    os.utime(tree / "deep/script", (1_000_000_000, 1_000_000_000))
    told = []
    for way in ways:
        lab, there, back = way.lab, f"{way.at}:{way.directory}/{protocol}", tmp_path / f"back-{way.directory}"
        argv = ["scp", protocol, "-p", *way.options, "-P", str(way.port)]
        told.append(
            [
                way.told(lab.run([*argv, str(odd), f"{there}f"])),
                way.told(lab.run([*argv, "-r", str(tree), f"{there}tree"])),
                way.told(lab.run([*argv, "-r", f"{there}tree", f"{there}f", f"{way.at}:missing", str(_made(back))])),
            ]
        )
        assert _checksum(way.there(f"{protocol}f")) == _checksum(odd) == _checksum(back / f"{protocol}f")
        assert _tree(way.there(f"{protocol}tree")) == _tree(tree) == _tree(back / f"{protocol}tree")
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [0, 0, 1]
    assert "missing" in told[0][2][1]


def _made(directory: Path) -> Path:
    """Make a directory."""
    directory.mkdir()
    return directory


def test_sftp(ways: tuple[Way, Way], tmp_path: Path) -> None:
    """A batch of sftp's commands works, and the first that fails ends it with a status."""
    checksum = _put(tmp_path / "f", 300_000)
    told = []
    for way in ways:
        argv = ["sftp", "-q", *way.options, "-P", str(way.port), "-b", "-", f"{way.at}:{way.directory}"]
        back = tmp_path / f"back-{way.directory}"
        batch = f"mkdir d\nput {tmp_path}/f d/g\nrename d/g d/h\nsymlink h d/l\nget d/l {back}\nls -1 d\nrm d/l\n"
        told.append(
            [
                way.told(way.lab.run(argv, stdin=batch.encode())),
                way.told(way.lab.run(argv, stdin=b"get missing\nmkdir never\n")),
            ]
        )
        assert _checksum(way.there("d/h")) == checksum == _checksum(back)
        assert not way.there("never").exists()
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [0, 1]


def test_rsync(ways: tuple[Way, Way], tmp_path: Path, require: Callable[..., None]) -> None:
    """Rsync brings a tree there, then what has changed, then all of it back."""
    require("rsync")
    tree = tmp_path / "tree"
    (tree / "sub dir").mkdir(parents=True)
    _put(tree / "large", 1_000_000)
    _put(tree / "sub dir/small file", 10)
    whole = (tree / "large").read_bytes()
    told = []
    for way in ways:
        (tree / "large").write_bytes(whole)
        argv, there = ["rsync", "-a", "-z", "--checksum", "--delete", "-e", way.ssh], f"{way.at}:{way.directory}/tree/"
        back = tmp_path / f"back-{way.directory}"
        first = way.lab.run([*argv, f"{tree}/", there])
        (tree / "large").write_bytes(whole + b"more")
        (tree / "new").touch()
        second = way.lab.run([*argv, "--stats", f"{tree}/", there])
        sent = re.search(rb"Total bytes sent: ([\d,]+)", second.stdout)
        assert sent
        assert int(sent[1].replace(b",", b"")) < 100_000  # the difference alone
        third = way.lab.run([*argv, there, f"{back}/"])
        missing = way.lab.run([*argv, f"{way.at}:missing", str(tmp_path)])
        told.append([way.told(first), way.told(third), way.told(missing)])
        assert _tree(way.there("tree")) == _tree(tree) == _tree(back)
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [0, 0, 23]  # rsync(1): partial transfer due to error


def test_git(ways: tuple[Way, Way], tmp_path: Path, require: Callable[..., None]) -> None:
    """Git clones, pushes and fetches; a push that the remote refuses says so."""
    require("git")
    identity = {f"GIT_{who}_{what}": "x@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    dates = {f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")}
    (tmp_path / "large").write_bytes(os.urandom(500_000))
    told = []
    for way in ways:
        environment = {"GIT_SSH_COMMAND": way.ssh, "GIT_CONFIG_NOSYSTEM": "1", **identity, **dates}
        ssh = [*shlex.split(way.ssh), "-l", way.user.name, way.host]
        assert way.lab.run([*ssh, f"git init -q --bare -b main '{way.directory}/a repository'"]).returncode == 0
        url = f"ssh://{way.at}{way.user.home}/{way.directory}/a repository"
        one, two = (str(tmp_path / f"{name}-{way.directory}") for name in ("one", "two"))
        words: list[tuple[int, str]] = []

        def git(
            *arguments: str, way: Way = way, environment: Mapping[str, str] = environment, words: list[Any] = words
        ) -> None:
            words.append(way.told(way.lab.run(["git", *arguments], environment=environment)))

        git("clone", "-q", url, one)
        (Path(one) / "large").write_bytes((tmp_path / "large").read_bytes())
        git("-C", one, "checkout", "-q", "-b", "main")
        git("-C", one, "add", "large")
        git("-C", one, "commit", "-q", "-m", "a file")
        git("-C", one, "push", "-q", "origin", "main")
        git("clone", "-q", "-b", "main", url, two)
        assert _checksum(Path(two) / "large") == _checksum(tmp_path / "large")
        git("-C", two, "commit", "-q", "--allow-empty", "-m", "another")
        git("-C", two, "push", "-q", "origin", "main")
        git("-C", one, "commit", "-q", "--allow-empty", "-m", "a third")
        git("-C", one, "push", "-q", "origin", "main")
        git("-C", one, "fetch", "-q", "origin")
        git("-C", one, "rev-parse", "origin/main")
        git("ls-remote", f"{url}-not")
        told.append(words)
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [0] * 8 + [0, 1, 0, 0, 128]
    assert "rejected" in told[0][9][1]


# A key's command=


def _bound(lab: Lab, gateway: Gateway, command: str) -> tuple[Way, Way]:
    """Add a user whose key may run one command, and return both ways; ``~`` in it is the user's home."""
    user = lab.add_user()
    words = command.replace("~", user.home).replace('"', '\\"')
    lab.remote.authorize(user, [f'command="{words}" {user.key.public}', lab.gateway_key.public])
    through = _way(lab, user, lab.gateway_argv(gateway, user), "shared")
    return through, _way(lab, user, lab.direct_ssh_argv(user), "shared")


def _asked(way: Way, *command: str) -> tuple[int, str]:
    """Ask for a command."""
    return way.told(way.lab.run([*shlex.split(way.ssh), "-l", way.user.name, way.host, *command]))


@pytest.mark.parametrize("options", ["", " -R"])
def test_a_key_for_sftp_alone(lab: Lab, gateway: Gateway, tmp_path: Path, options: str) -> None:
    """``command="internal-sftp"`` has sftp and scp, writing where it may, and neither commands nor a shell."""
    told = []
    for way in _bound(lab, gateway, f"internal-sftp{options}"):
        way.there("f").write_bytes(b"data")
        back, sftp = tmp_path / f"back-{way.host}", ["sftp", "-q", *way.options, "-P", str(way.port), "-b", "-", way.at]
        words = [
            way.told(lab.run(sftp, stdin=f"get shared/f {back}\nls -1 shared\n".encode())),
            way.told(lab.run(sftp, stdin=f"put {back} shared/new\nrm shared/new\n".encode())),
            # Its words depend on how much of the refusal it has read before the end.
            (lab.run(["scp", "-O", *way.options, "-P", str(way.port), f"{way.at}:shared/f", str(back)]).returncode, ""),
            _asked(way, "id"),
            _asked(way),
        ]
        assert back.read_bytes() == b"data"
        assert not way.there("new").exists()
        told.append(words)
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [0, 1 if options else 0, 1, 1, 1]
    assert told[0][3][1] == "This service allows sftp connections only.\n"


def test_a_key_for_rsync_alone(lab: Lab, gateway: Gateway, tmp_path: Path, require: Callable[..., None]) -> None:
    """rrsync, which ships with rsync, reads SSH_ORIGINAL_COMMAND: what it lets pass and what not is as directly."""
    require("rsync", "rrsync")
    told = []
    for way in _bound(lab, gateway, "rrsync -ro ~/shared"):
        way.there("f").write_bytes(b"data")
        back, rsync = tmp_path / f"back-{way.host}", ["rsync", "-a", "-e", way.ssh]
        words = [
            way.told(lab.run([*rsync, f"{way.at}:f", str(back)])),
            way.told(lab.run([*rsync, str(back), f"{way.at}:new"])),
            way.told(lab.run([*rsync, f"{way.at}:../.ssh/authorized_keys", str(tmp_path / "stolen")])),
            _asked(way, "id"),
            _asked(way),
        ]
        assert back.read_bytes() == b"data"
        assert not way.there("new").exists()
        assert not (tmp_path / "stolen").exists()
        told.append(words)
    assert told[0] == told[1]
    assert [status == 0 for status, _ in told[0]] == [True, False, False, False, False]


def test_a_key_for_git_alone(lab: Lab, gateway: Gateway, tmp_path: Path, require: Callable[..., None]) -> None:
    """git-shell behind a key clones, and runs nothing else."""
    require("git")
    told = []
    for way in _bound(lab, gateway, 'git-shell -c "$SSH_ORIGINAL_COMMAND"'):
        argv = ["git", "init", "-q", "--bare", "-b", "main", "repository"]
        lab.remote.room.run(["su", "-s", "/bin/sh", way.user.name, "-c", f"cd ~/shared && {shlex.join(argv)}"])
        clone = ["git", "clone", "-q", f"ssh://{way.at}{way.user.home}/shared/repository", f"{tmp_path}/{way.host}"]
        words = [
            way.told(lab.run(clone, environment={"GIT_SSH_COMMAND": way.ssh, "GIT_CONFIG_NOSYSTEM": "1"})),
            _asked(way, "id"),
        ]
        told.append(words)
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [0, 128]
    assert "unrecognized command" in told[0][1][1]


# Ansible


def _ansible(way: Way, *arguments: str, pipelining: bool = True) -> tuple[int, str]:
    """Run a module of Ansible's on the remote, and return its status and what it says."""
    program = Path(sys.executable).with_name("ansible")
    variables = {
        "ansible_port": str(way.port),
        "ansible_user": way.user.name,
        "ansible_ssh_common_args": shlex.join(way.options),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    extra = [word for name, value in variables.items() for word in ("-e", f"{name}={shlex.quote(value)}")]
    environment = {
        "ANSIBLE_PIPELINING": str(pipelining),
        "ANSIBLE_SSH_ARGS": "",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
    }
    argv = [str(program), "all", "-i", f"{way.host},", *extra, *arguments]
    return way.told(way.lab.run(argv, environment=environment, timeout_s=_PATIENCE_S))


@pytest.fixture
def _ansible_is_there(do_without: Callable[[str | None], None]) -> None:
    """Look for Ansible beside the interpreter that runs the tests."""
    there = Path(sys.executable).with_name("ansible").exists()
    do_without(None if there else "not installed: ansible-core")


@pytest.mark.usefixtures("_ansible_is_there")
def test_ansible(ways: tuple[Way, Way], tmp_path: Path) -> None:
    """Ansible's modules run on the remote with pipelining: a command with its status, and copy of a file."""
    checksum = _put(tmp_path / "f", 200_000)
    told = [_ansible(way, "-m", "command", "-a", "sh -c 'id -un; echo err >&2; exit 3'") for way in ways]
    assert re.sub(r"\d\d:\d\d:\d\d[.\d]*", "", told[0][1]) == re.sub(r"\d\d:\d\d:\d\d[.\d]*", "", told[1][1])
    assert (told[0][0], f"FAILED | rc=3 >>\n{ways[0].user.name}" in told[0][1]) == (2, True)
    through = ways[0]
    target = f"{through.user.home}/{through.directory}/ansible"
    status, words = _ansible(through, "-m", "copy", "-a", f"src={tmp_path}/f dest={target}")
    assert (status, "CHANGED" in words) == (0, True), words
    assert _checksum(through.there("ansible")) == checksum


@pytest.mark.usefixtures("_ansible_is_there")
def test_ansible_without_pipelining(ways: tuple[Way, Way]) -> None:
    """Without pipelining Ansible asks for a terminal that has no size: what it runs goes over ssh all the same."""
    status, words = _ansible(ways[1], "-m", "ping", pipelining=False)
    assert (status, "SUCCESS" in words) == (0, True), words


# Other clients


def _putty_options(lab: Lab, gateway: Gateway, user: User) -> list[str]:
    """Make a key in PuTTY's own format, and return the options that all of PuTTY's programs take."""
    ppk = user.key.private.with_suffix(".ppk")
    lab.run(["puttygen", str(user.key.private), "-O", "private", "-o", str(ppk)]).check_returncode()
    host_key = lab.run(["ssh-keygen", "-l", "-f", str(gateway.host_key)]).stdout.decode().split()[1]
    return ["-batch", "-noagent", "-P", str(gateway.port), "-hostkey", host_key, "-i", str(ppk)]


def test_putty(lab: Lab, gateway: Gateway, user: User, tmp_path: Path, require: Callable[..., None]) -> None:
    """PuTTY's plink runs a command, and its psftp and pscp bring a file there and back."""
    require("plink", "psftp", "pscp", "puttygen")
    options, host = _putty_options(lab, gateway, user), f"{user.name}@{ADDRESS}"
    data = os.urandom(100_000)
    done = lab.run(["plink", "-ssh", *options, host, "tee /dev/stderr; exit 7"], stdin=data)
    assert (done.stdout, done.stderr, done.returncode) == (data, data, 7)
    checksum = _put(tmp_path / "f", 200_000)
    batch = tmp_path / "batch"
    batch.write_text(f"put {tmp_path}/f f\nget f {tmp_path}/back\n")
    assert lab.run(["psftp", *options, "-b", str(batch), host]).returncode == 0
    assert _checksum(lab.remote.room.path(f"{user.home}/f")) == checksum == _checksum(tmp_path / "back")
    assert lab.run(["pscp", "-scp", "-q", *options, f"{host}:f", f"{tmp_path}/back-scp"]).returncode == 0
    assert _checksum(tmp_path / "back-scp") == checksum
    wait_finished(lab, gateway, user)


async def test_asyncssh(lab: Lab, gateway: Gateway, user: User, tmp_path: Path) -> None:
    """A program that uses asyncssh runs commands side by side over one connection, and copies a file by sftp."""
    checksum = _put(tmp_path / "f", 200_000)
    sock = lab.near.connect(ADDRESS, gateway.port)
    sock.settimeout(0)
    known_hosts = asyncssh.import_known_hosts(gateway.known_hosts.read_text())
    options: dict[str, Any] = {"username": user.name, "client_keys": [str(user.key.private)], "config": None}
    async with (
        asyncio.timeout(_PATIENCE_S),
        asyncssh.connect(
            ADDRESS, gateway.port, sock=sock, known_hosts=known_hosts, agent_path=None, **options
        ) as connection,
    ):
        runs = [connection.run(f"cat; echo err >&2; exit {number}", input=str(number)) for number in range(5)]
        done = await asyncio.gather(*runs)
        async with connection.start_sftp_client() as sftp:
            await sftp.put(str(tmp_path / "f"), "f")
            await sftp.get("f", str(tmp_path / "back"))
        killed = await connection.run("kill -TERM $$")
        assert (killed.exit_status, killed.exit_signal) == (255, None)  # what OpenSSH's client makes of a signal
    told = [(its.stdout, its.stderr, its.exit_status) for its in done]
    assert told == [(str(number), "err\n", number) for number in range(5)]
    assert _checksum(lab.remote.room.path(f"{user.home}/f")) == checksum == _checksum(tmp_path / "back")
    wait_finished(lab, gateway, user)


def test_paramiko(lab: Lab, gateway: Gateway, user: User, tmp_path: Path) -> None:
    """A program that uses paramiko runs a command, and copies a file by sftp."""
    checksum = _put(tmp_path / "f", 200_000)
    with closing(paramiko.Transport(lab.near.connect(ADDRESS, gateway.port, timeout_s=_PATIENCE_S))) as transport:
        transport.start_client(timeout=_PATIENCE_S)
        transport.auth_publickey(user.name, paramiko.Ed25519Key.from_private_key_file(str(user.key.private)))
        channel = transport.open_session(timeout=_PATIENCE_S)
        channel.settimeout(_PATIENCE_S)
        channel.exec_command("cat; echo err >&2; exit 6")
        channel.sendall(b"in\0put")
        channel.shutdown_write()
        assert channel.makefile("rb").read() == b"in\0put"
        assert channel.makefile_stderr("rb").read() == b"err\n"
        assert channel.recv_exit_status() == 6
        sftp = paramiko.SFTPClient.from_transport(transport)
        assert sftp is not None
        sftp.put(str(tmp_path / "f"), "f")
        sftp.get("f", str(tmp_path / "back"))
    assert _checksum(lab.remote.room.path(f"{user.home}/f")) == checksum == _checksum(tmp_path / "back")
    wait_finished(lab, gateway, user)


# Cancelled, and large


@pytest.mark.parametrize(
    ("program", "number"),
    [("scp", signal.SIGINT), ("scp -O", signal.SIGKILL), ("rsync", signal.SIGINT), ("scp back", signal.SIGKILL)],
)
def test_a_cancelled_transfer_leaves_nothing_behind(
    lab: Lab, gateway: Gateway, user: User, tmp_path: Path, *, program: str, number: signal.Signals
) -> None:
    """Ctrl-C, or a kill, in the midst of a transfer: neither side has a process left."""
    way = _way(lab, user, lab.gateway_argv(gateway, user), "through")
    _put(tmp_path / "f", 8_000_000)
    scp, copy = ["scp", *way.options, "-P", str(way.port)], way.there("copy")
    if program == "scp back":
        way.there("f").write_bytes((tmp_path / "f").read_bytes())
        copy = tmp_path / "copy"
    argv = {
        "scp": [*scp, str(tmp_path / "f"), f"{way.at}:through/copy"],
        "scp -O": [*scp, "-O", str(tmp_path / "f"), f"{way.at}:through/copy"],
        "scp back": [*scp, f"{way.at}:through/f", str(copy)],
        "rsync": ["rsync", "--inplace", "-e", way.ssh, str(tmp_path / "f"), f"{way.at}:through/copy"],
    }[program]
    with lab.wan.weather(rate_kb_s=800), lab.background(argv, stdio=subprocess.DEVNULL) as client:
        wait_until(lambda: copy.exists() and copy.stat().st_size > 0, "the transfer is under way")
        os.killpg(client.pid, number)
        assert client.wait(20) != 0
    wait_finished(lab, gateway, user)
    assert copy.stat().st_size < 8_000_000


def _peak_kb(pid: int) -> int:
    """Tell the most memory that a process ever had, in kilobytes (proc(5), VmHWM)."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert peak
    return int(peak[1])


def test_memory_stays_flat(lab: Lab, gateway: Gateway, user: User) -> None:
    """24 MiB each way pass through without heaping up in the ssh that carries them on the gateway."""
    assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0
    (master,) = masters_of(gateway, user)
    before = _peak_kb(master.pid)
    data = bytes(24 << 20)
    done = lab.run(lab.gateway_argv(gateway, user, "sha256sum"), stdin=data, timeout_s=_PATIENCE_S)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    done = lab.run(lab.gateway_argv(gateway, user, f"head -c {len(data)} /dev/zero"), timeout_s=_PATIENCE_S)
    assert done.stdout == data
    assert _peak_kb(master.pid) - before < 16_000
