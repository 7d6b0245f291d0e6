"""The gateway lets in whom the remote's own sshd lets in, whatever start-up files print and whoever owns the key files.

The oracle is ssh straight to the same remote with the same key. The remote accepts the gateway's own key from a file
that is no user's, so that a user's files decide about the user alone.
"""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.sessions import may_enter

from lab.bench import Lab
from lab.users import User, make_key
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import KeyPair

_AT_ONCE = 6
_THIRD_UID = 4321
_ADDING = threading.Lock()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab whose remote has the gateway's key in a central file, beside the users' own files."""
    with Lab(rtt_ms=5) as made:
        central = made.directory / "remote" / "central"
        central.write_text(f"{made.gateway_key.public}\n")
        made.remote.set_option(f"AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 {central}")
        yield made


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Gateway:
    """A gateway with the settings most people have."""
    return lab.start_gateway()


@pytest.fixture(scope="module")
def pass_through(lab: Lab) -> Gateway:
    """A gateway without a key of its own."""
    return lab.start_gateway({"GATEWAY_SSH_KEY_PATH": None})


def _directly(lab: Lab, user: User, key: KeyPair) -> bool:
    """Tell whether the remote's own sshd lets a key in."""
    argv = lab.direct_ssh_argv(User(user.name, user.uid, user.home, key), "true")
    return b"Permission denied (publickey" not in lab.run(argv).stderr


def _add(lab: Lab, *, shell: str = "/bin/bash") -> User:
    """Add a user whose authorized_keys has the user's own key alone."""
    with _ADDING:
        name = f"policy{len(list((lab.directory / 'keys').iterdir()))}"
        key = make_key(lab.directory / "keys" / name)
        return lab.remote.add_user(name, key, shell=shell, authorized=[key.public])


# Start-up files

_SHELLS = {
    "bash": ("/bin/bash", ".bashrc"),
    "zsh": ("/usr/bin/zsh", ".zshenv"),
    "fish": ("/usr/bin/fish", ".config/fish/config.fish"),
    "tcsh": ("/usr/bin/tcsh", ".tcshrc"),
    "xonsh": ("/usr/bin/xonsh", ".xonshrc"),
    "ksh93": ("/usr/bin/ksh93", ".kshrc"),
    "dash": ("/usr/bin/dash", ".profile"),
    "ash": ("ash", ".profile"),
}
"""The login shells, each with the start-up file that it reads for a command, or that comes nearest to one."""

_PRINTS_A_KEY = "printf '%s\\n' 'KEY'"
_START_UPS = {
    "nothing": {"": ""},
    "prints somebody's key": {"": _PRINTS_A_KEY, "xonsh": "print('KEY')"},
    "prints half a line": {"": "printf news:", "xonsh": "print('news:', end='')"},
    "prints a mosh-server's line": {
        "": "printf '%s\\n' 'MOSH CONNECT 60999 4NeCCgvZFe2RnPgrcU1PQw'",
        "xonsh": "print('MOSH CONNECT 60999 4NeCCgvZFe2RnPgrcU1PQw')",
    },
    "changes the directory": {"": "cd ELSEWHERE", "xonsh": "$[cd ELSEWHERE]"},
    "aliases": {
        "bash": "shopt -s expand_aliases; alias cat='cat -n' ls='ls --color' sh='echo sh' cd='echo cd'",
        "zsh": "alias -g cat='cat -n' ls='ls -h' sh='echo sh'; alias exec='exec nice'",
        "fish": "alias cat 'command cat -n'; alias sh 'echo sh'; alias ls 'command ls -h'",
        "tcsh": "alias cat 'cat -n'; alias sh echo; alias ls 'ls -h'",
        "xonsh": "aliases['cat'] = 'cat -n'; aliases['sh'] = 'echo'",
        "ksh93": "alias cat='cat -n' sh=echo",
    },
    "functions": {
        "bash": "cat() { echo KEY; }; cd() { echo KEY; }; ls() { echo KEY; }; id() { echo 0; }; test() { true; };"
        " export -f cat cd ls id test",
        "zsh": "cat() { echo KEY }; cd() { echo KEY }; sh() { echo KEY }",
        "fish": "function cat; echo 'KEY'; end; function sh; echo 'KEY'; end",
        "ksh93": "cat() { echo 'KEY'; }; typeset -fx cat",
    },
    "leaves a job that prints somebody's key": {
        "": "( for i in 1 2 3 4 5 6 7 8 9; do printf '%s\\n' 'KEY'; sleep 0.01; done ) &",
        "fish": "sh -c \"for i in 1 2 3 4 5 6 7 8 9; do echo 'KEY'; sleep 0.01; done\" &",
        "tcsh": "sh -c \"for i in 1 2 3 4 5 6 7 8 9; do echo 'KEY'; sleep 0.01; done\" &",
        "xonsh": "",
    },
    "another PATH": {"": "PATH=/nonexistent", "fish": "set -x PATH /nonexistent", "tcsh": "set path=()", "xonsh": ""},
    "speaks German and counts in blocks": {
        "": "export LC_ALL=de_DE.UTF-8 LANGUAGE=de QUOTING_STYLE=c TIME_STYLE=+x CDPATH=/ BLOCK_SIZE=1M",
        "fish": "set -x QUOTING_STYLE c; set -x CDPATH /; set -x LC_ALL de_DE.UTF-8",
        "tcsh": "setenv QUOTING_STYLE c; setenv LC_ALL de_DE.UTF-8",
        "xonsh": "$QUOTING_STYLE = 'c'",
    },
}
"""What start-up files do: in the language of all shells, or in that of one."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shell", _SHELLS)
def test_start_up_files_let_nobody_in_and_keep_nobody_out(
    lab: Lab, gateway: Gateway, require: Callable[..., None], shell: str
) -> None:
    """The user's own key gets in as by direct ssh; a key that is printed, or in another directory, does not."""
    path, rc = _SHELLS[shell]
    if shell == "ash":
        require("busybox")
        path = str(lab.directory / "remote" / "ash")
        Path(path).symlink_to(shutil.which("busybox") or "")
    else:
        require(path.rpartition("/")[2])
    mallory = _add(lab)

    def judge(what: str) -> None:
        user = _add(lab, shell=path)
        texts = _START_UPS[what]
        text = texts.get(shell, texts.get("", "")).replace("KEY", mallory.key.public).replace("ELSEWHERE", mallory.home)
        home = lab.remote.room.path(user.home)
        (home / rc).parent.mkdir(parents=True, exist_ok=True)
        (home / rc).write_text(f"{text}\n")
        if what != "another PATH":  # which the oracle's own command does not survive
            assert _directly(lab, user, user.key), what
            assert not _directly(lab, user, mallory.key), what
        # A job that prints into the keys spoils a login now and then, and never lets anybody in.
        wait_until(
            lambda: may_enter(lab, gateway, user, key=user.key.private), f"{user.name} is let in: {what}", timeout_s=60
        )
        assert not may_enter(lab, gateway, user, key=mallory.key.private), what
        if what == "another PATH":  # has no mosh-server
            return
        since = gateway.log.mark()
        terminal = lab.terminal(lab.gateway_argv(gateway, user))
        try:
            gateway.log.wait_for(rf"session_started .*user={user.name} .*transport=mosh", since=since)
            assert not gateway.log.matches(rf"session_started .*user={user.name} .*udp_port=60999", since=since)
        finally:
            terminal.close()

    whats = [what for what, texts in _START_UPS.items() if shell in texts or "" in texts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(judge, whats))


@pytest.mark.parametrize("what", ["prints half a line", "prints a mosh-server's line", "functions"])
def test_start_up_files_do_not_mislead_agent_pass_through(
    lab: Lab, pass_through: Gateway, open_terminal: Callable[..., Terminal], what: str
) -> None:
    """The user's own ssh starts mosh-server there, and believes its line alone."""
    user = _add(lab)
    texts = _START_UPS[what]
    lab.remote.write_file(user, ".bashrc", f"{texts.get('bash', texts.get('', ''))}\n")
    with lab.agent(user.key.private) as environment:
        terminal = open_terminal(lab.gateway_argv(pass_through, user.name, options=["-A"]), environment=environment)
        terminal.wait_for(user.prompt)
        assert lab.remote.processes("mosh-server", user=user)


def test_a_start_up_file_that_reads_standard_input_is_told(lab: Lab, gateway: Gateway) -> None:
    """It takes the marker away, as it would take a copied file's content: the log says so, and does so at once."""
    user = _add(lab)
    lab.remote.write_file(user, ".bashrc", "cat >/dev/null\n")
    assert not may_enter(lab, gateway, user, key=user.key.private)
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*start-up file .* reads standard input")


@pytest.mark.parametrize("how", ["ForceCommand internal-sftp", "shell"])
def test_an_account_that_runs_no_commands_is_told(lab: Lab, gateway: Gateway, how: str) -> None:
    """One for sftp alone, or with a shell that refuses: the log says so, and what the remote said."""
    user = _add(lab, shell="/usr/sbin/nologin" if how == "shell" else "/bin/bash")
    if how != "shell":
        config = lab.directory / "remote" / "sshd_config"
        config.write_text(f"{config.read_text()}\nMatch User {user.name}\n{how}\n")
        lab.remote.stop_sshd()
        lab.remote.start_sshd()
    assert not may_enter(lab, gateway, user, key=user.key.private)
    said = "sftp connections only" if how != "shell" else "account is currently not available"
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*runs no commands for this account.*{said}")


# Owners and modes


@dataclass
class Files:
    """A user's files, to be changed before the remote and the gateway judge them.

    Attributes:
        name: The user's name, which is also that of the user's private group.
        home: The home directory.
        uid: The user's uid, which is also that group's gid.
        third: A directory of somebody else, with the user's key in ``keys``.
        key: The user's own line.
        groups: The remote's group(5).
    """

    name: str
    home: Path
    uid: int
    third: Path
    key: str
    groups: Path

    @property
    def ssh(self) -> Path:
        """The directory ``.ssh``."""
        return self.home / ".ssh"

    @property
    def keys(self) -> Path:
        """The file ``.ssh/authorized_keys``."""
        return self.ssh / "authorized_keys"

    def write(self, path: Path, *, uid: int | None = None, mode: int = 0o600) -> Path:
        """Write the user's key to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.key)
        path.chmod(mode)
        os.chown(path, self.uid if uid is None else uid, 0)
        return path

    def join(self, member: str) -> None:
        """Add a member to the user's private group."""
        with _ADDING:
            line = f"{self.name}:x:{self.uid}:"
            self.groups.write_text(self.groups.read_text().replace(f"{line}\n", f"{line}{member}\n"))

    def link(self, path: Path, target: str) -> None:
        """Put a link in the place of a file."""
        path.unlink()
        path.symlink_to(target)

    def move_ssh(self, to: Path) -> None:
        """Move ``.ssh`` and leave a link to where the remote finds it."""
        shutil.move(self.ssh, to)
        self.ssh.symlink_to(os.path.relpath(to, self.home))


def _give(path: Path, uid: int, mode: int, *, gid: int = 0) -> None:
    """Change a file's owner, group and mode."""
    os.chown(path, uid, gid)
    path.chmod(mode)


def _second(files: Files) -> None:
    files.keys.unlink()
    files.write(files.ssh / "authorized_keys2")


def _both(files: Files) -> None:
    files.keys.write_text("# none\n")
    files.write(files.ssh / "authorized_keys2")


def _first_unsafe(files: Files) -> None:
    files.keys.chmod(0o666)
    files.write(files.ssh / "authorized_keys2")


def _dots(files: Files) -> None:
    files.link(files.keys, "../.ssh/./../.ssh/real")
    files.write(files.ssh / "real")


def _chain(files: Files) -> None:
    files.link(files.keys, "a")
    for number in range(5):
        (files.ssh / "abcde"[number]).symlink_to("bcdef"[number])
    files.write(files.ssh / "f")


def _loop(files: Files) -> None:
    files.link(files.keys, "a")
    (files.ssh / "a").symlink_to("authorized_keys")


def _directory(files: Files) -> None:
    files.keys.unlink()
    files.keys.mkdir()


def _fifo(files: Files) -> None:
    files.keys.unlink()
    os.mkfifo(files.keys, 0o600)
    os.chown(files.keys, files.uid, files.uid)


def _no_home(files: Files) -> None:
    shutil.rmtree(files.home)


def _below_group_writable(files: Files) -> None:
    shared = files.home / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    os.chown(shared, files.uid, files.uid)
    files.move_ssh(shared / "ssh")


def _shared_group(files: Files) -> None:
    files.join("nobody")
    files.keys.chmod(0o620)


def _own_group(files: Files) -> None:
    files.join(files.name)
    files.keys.chmod(0o620)


_FILES: dict[str, Callable[[Files], object]] = {
    "as they should be": lambda _: None,
    "file 0644": lambda files: files.keys.chmod(0o644),
    "file 0400": lambda files: files.keys.chmod(0o400),
    "file group-writable": lambda files: files.keys.chmod(0o620),
    "file another group's": lambda files: _give(files.keys, files.uid, 0o620, gid=5),
    "file writable by a group with others": _shared_group,
    "file of a group of the user's alone": _own_group,
    "file writable by all": lambda files: files.keys.chmod(0o602),
    "file root's": lambda files: files.write(files.keys, uid=0, mode=0o644),
    "file root's, unreadable": lambda files: files.write(files.keys, uid=0, mode=0o600),
    "file a third user's": lambda files: files.write(files.keys, uid=_THIRD_UID, mode=0o644),
    ".ssh 0755": lambda files: files.ssh.chmod(0o755),
    ".ssh group-writable": lambda files: files.ssh.chmod(0o770),
    ".ssh writable by all": lambda files: files.ssh.chmod(0o707),
    ".ssh sticky and writable by all": lambda files: files.ssh.chmod(0o1777),
    ".ssh root's": lambda files: _give(files.ssh, 0, 0o755),
    ".ssh a third user's": lambda files: _give(files.ssh, _THIRD_UID, 0o755),
    ".ssh unreadable": lambda files: _give(files.ssh, 0, 0o700),
    "home group-writable": lambda files: files.home.chmod(0o775),
    "home writable by all": lambda files: files.home.chmod(0o757),
    "home root's": lambda files: os.chown(files.home, 0, 0),
    "home a third user's": lambda files: os.chown(files.home, _THIRD_UID, 0),
    "home 0711": lambda files: files.home.chmod(0o711),
    "no home": _no_home,
    "no file": lambda files: files.keys.unlink(),
    "an empty file": lambda files: files.keys.write_text(""),
    "a directory": _directory,
    "a FIFO": _fifo,
    "the second file alone": _second,
    "the second file too": _both,
    "the first file unsafe": _first_unsafe,
    "link within .ssh": _dots,
    "links to links": _chain,
    "a loop of links": _loop,
    "a link to nowhere": lambda files: files.link(files.keys, "nowhere"),
    "a link to a third user's directory": lambda files: files.link(files.keys, f"../../{files.third.name}/keys"),
    "a link to /tmp": lambda files: files.link(files.keys, f"/tmp/keys-{files.uid}"),  # noqa: S108 - the remote's
    ".ssh a link within the home": lambda files: files.move_ssh(files.home / "dot-ssh"),
    ".ssh a link to a group-writable directory's": _below_group_writable,
    "another's key alone": lambda files: files.keys.write_text("# none\n"),
}
"""How files and directories may be. Each is judged by the remote itself, so no verdict stands here."""


def test_owners_and_modes_count_as_for_sshd(lab: Lab, gateway: Gateway) -> None:
    """For each way in which files and directories can be, the gateway lets in exactly whom the remote lets in."""

    def judge(change: Callable[[Files], object]) -> tuple[bool, bool]:
        user, third = _add(lab), _add(lab)
        home = lab.remote.room.path(user.home)
        groups = lab.directory / "remote" / "etc" / "group"
        files = Files(user.name, home, user.uid, lab.remote.room.path(third.home), f"{user.key.public}\n", groups)
        files.write(files.third / "keys", mode=0o644)
        files.write(lab.remote.room.path(f"/tmp/keys-{user.uid}"), mode=0o644)  # noqa: S108 - the remote's
        change(files)
        return _directly(lab, user, user.key), may_enter(lab, gateway, user, key=user.key.private)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        verdicts = dict(zip(_FILES, pool.map(judge, _FILES.values()), strict=True))
    assert {what: through for what, (_, through) in verdicts.items()} == {
        what: directly for what, (directly, _) in verdicts.items()
    }
    assert {directly for directly, _ in verdicts.values()} == {True, False}
    assert len([directly for directly, _ in verdicts.values() if directly]) >= 10
    gateway.log.wait_for(r"key_refused .*bad ownership or modes for (file|directory) /home/\S+ \(StrictModes\)")


# Where the keys are


def test_central_files_and_a_command(lab: Lab) -> None:
    """Where the remote has keys elsewhere, the gateway looks there, and ~/.ssh/authorized_keys counts for neither."""
    central = lab.directory / "remote" / "keys"
    (central / "more").mkdir(parents=True)
    command = lab.directory / "remote" / "more-keys"
    command.write_text(f'#!/bin/sh\ncat "{central}/more/$1" || exit 1\n')
    command.chmod(0o755)
    config = lab.directory / "remote" / "sshd_config"
    before = config.read_text()
    files = f"{central}/%u {before.split('AuthorizedKeysFile ')[1].split()[2]}"
    ours = f"AuthorizedKeysFile {files}\nAuthorizedKeysCommand {command} %u\nAuthorizedKeysCommandUser nobody\n"
    config.write_text(ours + before)
    settings = {"REMOTE_AUTHORIZED_KEYS_FILE": f"{central}/%u", "REMOTE_AUTHORIZED_KEYS_COMMAND": f"{command} %u"}
    gateway = lab.start_gateway(settings)
    try:
        lab.remote.stop_sshd()
        lab.remote.start_sshd()
        user, other = _add(lab), _add(lab)
        keys = [make_key(lab.directory / "keys" / f"central-{number}") for number in range(3)]
        (central / user.name).write_text(f"{keys[0].public}\n")
        (central / "more" / user.name).write_text(f'command="echo bound" {keys[1].public}\n')
        (central / "more" / other.name).write_text(f"{keys[2].public}\n")
        asked = [user.key, *keys]
        verdicts = [(_directly(lab, user, key), may_enter(lab, gateway, user, key=key.private)) for key in asked]
        assert verdicts == [(False, False), (True, True), (True, True), (False, False)]
        bound = User(user.name, user.uid, user.home, keys[1])
        for argv in (lab.direct_ssh_argv(bound, "id"), lab.gateway_argv(gateway, bound, "id")):
            assert lab.run(argv).stdout == b"bound\n", argv
        # A command that fails brings no keys; the files go on counting.
        (central / "more" / user.name).unlink()
        gateway.close()
        gateway = lab.start_gateway(settings)
        assert [may_enter(lab, gateway, user, key=key.private) for key in keys] == [True, False, False]
        assert [_directly(lab, user, key) for key in keys] == [True, False, False]
    finally:
        gateway.close()
        config.write_text(before)
        lab.remote.stop_sshd()
        lab.remote.start_sshd()


def test_a_start_up_file_that_takes_too_long_is_told(lab: Lab, gateway: Gateway) -> None:
    """It keeps its user out, as the reading of keys has its time, and the log says where to look."""
    user = _add(lab)
    lab.remote.write_file(user, ".bashrc", "sleep 60\n")
    assert not may_enter(lab, gateway, user, key=user.key.private)
    gateway.log.wait_for(rf"key_refused .*user={user.name} .*remote_timeout: .*a start-up file of the user's shell")
