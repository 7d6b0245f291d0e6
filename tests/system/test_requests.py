"""What mosh cannot carry goes over ssh: the same bytes and statuses as when the remote is dialled directly."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paramiko
import pytest
from system.sessions import lookup_uid, sshd_of, wait_finished, work_of

from lab.gateway import ADDRESS
from lab.remote import PORT
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

_SEND_LOCALE = ("-o", "SendEnv=LANG LC_*")


@dataclass(frozen=True)
class Pair:
    """A user who is logged in twice, through the gateway and directly, with a client's own ControlMaster each.

    So a comparison costs two sessions, and no login.

    Attributes:
        lab: Where.
        gateway: The way through.
        user: Who.
        options: ssh's for the way through, and for the direct one.
    """

    lab: Lab
    gateway: Gateway
    user: User
    options: tuple[Sequence[str], Sequence[str]] = ((), ())

    def compare(
        self,
        *command: str,
        options: Sequence[str] = (),
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command through the gateway and directly, see that both are the same, and return the first."""
        through, direct = self.options
        done, oracle = (
            self.lab.run(argv, stdin=stdin, environment=environment)
            for argv in (
                self.lab.gateway_argv(self.gateway, self.user, *command, options=[*through, *options]),
                self.lab.direct_ssh_argv(self.user, *command, options=[*direct, *options]),
            )
        )
        assert (done.stdout, done.stderr, done.returncode) == (oracle.stdout, oracle.stderr, oracle.returncode)
        return done


@contextmanager
def _logged_in_twice(lab: Lab, gateway: Gateway, user: User) -> Iterator[Pair]:
    """Log a user in both ways."""
    with ExitStack() as stack:
        paths = [lab.directory / f"{way}-{user.name}" for way in ("through", "direct")]
        through, direct = (["-N", "-M", "-S", str(path), *_SEND_LOCALE] for path in paths)
        stack.enter_context(lab.background(lab.gateway_argv(gateway, user, options=through)))
        stack.enter_context(lab.background(lab.direct_ssh_argv(user, options=direct)))
        for path in paths:
            wait_until(path.exists, "the client's master listens")
        by_path = (["-S", str(paths[0])], ["-S", str(paths[1])])
        yield Pair(lab, gateway, user, by_path)


@pytest.fixture(scope="module")
def module_pair(shared_lab: Lab, shared_gateway: Gateway) -> Iterator[Pair]:
    """One pair for the tests of this file; they ask for ``pair``."""
    with _logged_in_twice(shared_lab, shared_gateway, shared_lab.add_user()) as both:
        yield both


@pytest.fixture
def pair(module_pair: Pair, lab: Lab) -> Pair:
    """A user who is logged in both ways."""
    assert module_pair.lab is lab
    return module_pair


# Commands


_COMMANDS = {
    "nothing": "true",
    "status 1": "exit 1",
    "status 7": "exit 7",
    "status 255": "exit 255",
    "both outputs": "echo out; echo err >&2; exit 3",
    "not found": "no-such-command",
    "syntax error": "if then",
    "killed": "kill -9 $$",
    "terminated": "kill -TERM $$",
    "no newline": "printf 'no newline'",
    "quotes": "echo \"$(id -un)\" '$HOME' \\\\ ; echo 'a  b' \"it's\"",
    "substitution": "echo $(echo `echo $((6*7))`) ${HOME} ~ *",
    "newlines": "echo first\necho second\n\n# a comment\necho third",
    "here document": "cat <<'END'\n$a `b` \\c\nEND",
    "unicode": "echo 'Grüße, 世界 🎉' | od -c",
    "no utf-8": "printf %s '\udcff\udc80' | od -c",
    "control characters": "printf %s '\x01\x1b[2J\x7f\t' | od -c",
    "dash": "-v",
    "dashes": "-- echo hello",
    "blank": " ",
    "percent": "echo %h %n %% %",
    "tilde": "~.",
    "environment": "unset SSH_CLIENT SSH_CONNECTION; env | sort",
    "sftp's name": "echo gateway-subsystem-sftp",
    "input": "cat; echo done",
    "input refused": "exec <&-; echo done",
    "output closed first": "exec >&-; cat >kept; cat kept >&2",
    "no terminal": "tty; echo $TERM",
    "30 kB": "echo " + "x" * 30_000,
    "130 kB": "echo " + "x" * 130_000 + " | wc -c",
    "umlauts": "echo " + "ü" * 60_000 + " | wc -c",
}


@pytest.mark.parametrize("command", _COMMANDS.values(), ids=_COMMANDS.keys())
def test_a_command_is_as_if_dialled_directly(pair: Pair, command: str) -> None:
    """Output, errors and exit status of a command are those of direct ssh, byte for byte."""
    pair.compare(command, stdin=b"some\ninput")


@pytest.mark.parametrize("command", ["kill -9 $$", "cat; echo err >&2; exit 255"])
def test_a_login_for_one_command_is_as_if_dialled_directly(
    lab: Lab, gateway: Gateway, user: User, command: str
) -> None:
    """The same without a ControlMaster at the client, which has statuses of its own: exit by signal and 255 too."""
    Pair(lab, gateway, user).compare(command, stdin=b"some\ninput")


@pytest.mark.parametrize(
    "words", [["echo", "a  b", "$HOME"], ["echo", ""], ["", "echo", "x"], ["printf", r"'%s\n'", "*"]]
)
def test_several_words_are_joined_as_ssh_joins_them(pair: Pair, words: list[str]) -> None:
    """A command of several arguments is what ssh makes of it, blanks included."""
    pair.compare(*words)


@pytest.mark.parametrize("command", ["", " "])
def test_a_command_of_nothing_runs_nothing(lab: Lab, gateway: Gateway, user: User, command: str) -> None:
    """An exec request of an empty command, which OpenSSH's client cannot make, starts no shell: as by direct ssh."""
    said = []
    for host, port in ((ADDRESS, gateway.port), (FAR_IPV4, PORT)):
        with closing(paramiko.Transport(lab.near.connect(host, port, timeout_s=20))) as transport:
            transport.start_client(timeout=20)
            transport.auth_publickey(user.name, paramiko.Ed25519Key.from_private_key_file(str(user.key.private)))
            channel = transport.open_session(timeout=20)
            channel.settimeout(20)
            channel.exec_command(command)
            with suppress(OSError):  # it may have ended already
                channel.sendall(b"echo a shell\nexit 7\n")
                channel.shutdown_write()
            said.append((channel.makefile("rb").read(), channel.recv_exit_status()))
    assert said == [(b"", 0)] * 2


def test_a_command_longer_than_an_argument_is_refused(lab: Lab, gateway: Gateway, user: User) -> None:
    """What the kernel takes for no argument runs nowhere: not here, and by direct ssh not on the remote."""
    words = ["touch ran; :", *["x" * 70_000] * 2]  # ssh joins them
    for argv in (lab.gateway_argv(gateway, user, *words), lab.direct_ssh_argv(user, *words)):
        done = lab.run(argv)
        assert (done.stdout, done.returncode) == (b"", 1)
        assert b"Argument list too long" in done.stderr
    assert not lab.remote.room.path(f"{user.home}/ran").exists()


def test_bytes_pass_unchanged_both_ways(pair: Pair) -> None:
    """A megabyte of random bytes comes back as it went on both outputs, with NUL and everything."""
    data = os.urandom(1_000_000) + bytes(1000)
    done = pair.compare("tee /dev/stderr", stdin=data)
    assert done.stdout == done.stderr == data


def test_output_comes_while_input_stays_open(lab: Lab, gateway: Gateway, user: User) -> None:
    """A conversation line by line works: each answer comes before the next question is asked."""
    with lab.background(lab.gateway_argv(gateway, user, 'while read -r word; do echo "<$word>"; done')) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for word in (b"one", b"two"):
            client.stdin.write(word + b"\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"<" + word + b">\n"
        assert client.communicate(timeout=20) == (b"", b"")
        assert client.returncode == 0


@pytest.mark.parametrize("options", [[], ["-T"]])
def test_a_shell_without_a_terminal_reads_its_script(pair: Pair, options: list[str]) -> None:
    """`ssh` without a terminal runs what comes on standard input, and ends with its status."""
    script = b"echo hello; tty; shopt -q login_shell && echo login\nexit 5\n"
    done = pair.compare(options=options, stdin=script)
    assert (done.stdout.splitlines()[0], done.returncode) == (b"hello", 5)


@pytest.mark.parametrize(
    "variables",
    [
        {"LANG": "C.UTF-8"},
        {"LANG": "de_DE.UTF-8", "LC_TIME": "fr_FR.UTF-8"},
        {"LANG": "de_DE.ISO-8859-1"},
        {"LANG": "", "LC_TIME": "C"},
        {"LANG": "C.UTF-8", "LC_SOMETHING": "any value; $(id)"},
    ],
    ids=["UTF-8", "several", "Latin-1", "time alone", "a name of one's own"],
)
def test_the_clients_locale_arrives(pair: Pair, variables: dict[str, str]) -> None:
    """What a client sends of LANG and LC_* is what the command has, as by direct ssh."""
    command = 'for name in LANG LC_TIME LC_SOMETHING; do echo "$name=${!name-unset}"; done'
    pair.compare(command, options=_SEND_LOCALE, environment=variables)


def test_standard_output_is_the_commands_alone(lab: Lab, gateway: Gateway, user: User) -> None:
    """The first login over a slow WAN, with all its waiting, puts nothing into the command's outputs."""
    with lab.wan.weather(rtt_ms=200):
        done = lab.run(lab.gateway_argv(gateway, user, "echo out"))
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"", 0)


def test_a_noisy_remote_puts_no_more_on_the_outputs(lab: Lab, gateway: Gateway, user: User) -> None:
    """What a .bashrc says comes through as by direct ssh, in front of a command and of a script, and nothing else."""
    lab.remote.write_file(user, ".bashrc", "echo noise; echo complaint >&2\n")
    pair = Pair(lab, gateway, user)
    assert pair.compare("echo out").stdout == b"noise\nout\n"
    assert pair.compare(options=["-T"], stdin=b"echo out\n").stdout.endswith(b"out\n")


def test_other_subsystems_are_refused(gateway: Gateway, pair: Pair) -> None:
    """What is no sftp starts nothing, as on a remote that has no such subsystem."""
    since = gateway.log.mark()
    pair.compare("netconf", options=["-s"])
    assert gateway.log.matches("session_(started|failed)", since=since) == []


def test_no_command_is_run_for_a_client_that_wants_none(lab: Lab, gateway: Gateway, user: User) -> None:
    """`ssh -N` stays logged in, and has neither a session nor a process of its own."""
    since = gateway.log.mark()
    with lab.background(lab.gateway_argv(gateway, user, options=["-N"])):
        gateway.log.wait_for(rf"Accepted publickey for {user.name} ", since=since)
        wait_until(lambda: sshd_of(gateway, user)[1:], "sshd has given the client its own process")
        assert lab.run(lab.gateway_argv(gateway, user, "true")).returncode == 0  # what comes later has come
        assert len(gateway.log.matches("session_started", since=since)) == 1
        assert not work_of(lab, user)


def test_a_clients_own_shared_connection_has_many_sessions(lab: Lab, gateway: Gateway, user: User) -> None:
    """With ControlMaster at the client, eight commands at once go over one login, each with its own status."""
    path, since = lab.directory / f"master-{user.name}", gateway.log.mark()
    with lab.background(lab.gateway_argv(gateway, user, options=["-N", "-M", "-S", str(path)])):
        wait_until(path.exists, "the client's master listens")
        argvs = [
            lab.gateway_argv(gateway, user, f"cat; exit {number}", options=["-S", str(path)]) for number in range(8)
        ]
        clients = [
            subprocess.Popen(
                lab.near.network_argv(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=lab.environment()
            )
            for argv in argvs
        ]
        outputs = [
            client.communicate(str(number).encode() * 100_000, timeout=30)[0] for number, client in enumerate(clients)
        ]
        assert outputs == [str(number).encode() * 100_000 for number in range(8)]
        assert [client.returncode for client in clients] == list(range(8))
        gateway.log.wait_for(rf"Accepted publickey for {user.name} ", since=since)
        assert len(gateway.log.matches(rf"Accepted publickey for {user.name} ", since=since)) == 1


# With a terminal


def test_a_terminals_command_goes_over_mosh(
    lab: Lab, gateway: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """`ssh -t gateway COMMAND` runs the command, and nothing else, over mosh."""
    command = 'printf \'%s|\' "it\'s" "$(id -un)" \'a  b\'; read -r word; echo "[$word]"; read -r word'
    terminal = open_terminal(lab.gateway_argv(gateway, user, command, options=["-t"]))
    terminal.wait_for(f"it's|{user.name}|a  b|")
    assert lab.remote.processes("mosh-server", user=user)
    terminal.run("hello", "[hello]")
    terminal.type("\r")
    assert terminal.wait_exit() == 0
    wait_until(lambda: not lab.remote.processes("mosh-server", user=user), "mosh-server is gone")


@pytest.mark.parametrize("command", ["stty size; tty >/dev/null; exit 5", "echo out; echo err >&2", "kill -9 $$"])
def test_a_programs_terminal_goes_over_ssh(lab: Lab, pair: Pair, command: str) -> None:
    """`ssh -tt gateway COMMAND </dev/null`, as scripts and Ansible do it, is as by direct ssh: nothing is drawn."""
    pair.compare(command, options=["-tt", "-q"])
    assert not lab.remote.processes("mosh-server", user=pair.user)


@pytest.fixture(scope="module")
def by_ssh(shared_lab: Lab) -> Iterator[Gateway]:
    """A gateway at which commands with a terminal go over ssh."""
    gateway = shared_lab.start_gateway({"GATEWAY_PTY_COMMANDS": "ssh"})
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def pair_by_ssh(shared_lab: Lab, by_ssh: Gateway) -> Iterator[Pair]:
    """A user who is logged in both ways there."""
    with _logged_in_twice(shared_lab, by_ssh, shared_lab.add_user()) as both:
        yield both


@pytest.mark.parametrize("command", ["exit 5", "tty >/dev/null", "kill -9 $$", "echo out; echo err >&2; exit 255"])
def test_a_terminals_command_may_go_over_ssh(lab: Lab, pair_by_ssh: Pair, command: str) -> None:
    """GATEWAY_PTY_COMMANDS=ssh: the command has a terminal, and its output and exit status are those of direct ssh."""
    done = pair_by_ssh.compare(command, options=["-tt", "-q"])
    assert not lab.remote.processes("mosh-server", user=pair_by_ssh.user)
    assert done.stdout.replace(b"\r", b"") in {b"", b"out\nerr\n"}  # both outputs are the terminal's


@pytest.mark.parametrize("term", ["xterm-256color", "vt100", "xterm-kitty", "no-such-term"])
def test_window_and_terminal_type_arrive_over_ssh(
    lab: Lab, by_ssh: Gateway, user: User, open_terminal: Callable[..., Terminal], term: str
) -> None:
    """TERM, the window's size and its changes reach a command over ssh as they do directly."""
    command = "echo \"<$TERM>\"; trap 'stty size' WINCH; stty size; while :; do read -r -t 1 && exit 3; done"
    for argv in (
        lab.direct_ssh_argv(user, command, options=["-t"]),
        lab.gateway_argv(by_ssh, user, command, options=["-t"]),
    ):
        terminal = open_terminal(argv, rows=31, columns=97, environment={"TERM": term})
        terminal.wait_for(f"<{term}>")
        terminal.wait_for("31 97")
        terminal.resize(20, 60)
        terminal.wait_for("20 60")
        terminal.type("\r")
        assert terminal.wait_exit() == 3


def test_keys_reach_the_command_over_ssh(
    lab: Lab, by_ssh: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """Ctrl-C, a password typed without echo, and a tilde at a line's start reach the command over ssh."""
    command = "trap 'echo stopped; exit 4' INT; stty -echo; echo ready; read -r word; echo \"<$word>\"; read -r word"
    terminal = open_terminal(lab.gateway_argv(by_ssh, user, command, options=["-t", "-e", "none"]))
    terminal.wait_for("ready")
    terminal.type("~.x\r")
    terminal.wait_for("<~.x>")
    assert terminal.text.count("~.x") == 1
    terminal.type("\x03")
    assert terminal.wait_exit() == 4
    assert "stopped" in terminal.text


def test_a_shell_keeps_mosh_where_commands_go_over_ssh(
    lab: Lab, by_ssh: Gateway, user: User, open_terminal: Callable[..., Terminal]
) -> None:
    """GATEWAY_PTY_COMMANDS=ssh concerns commands: a login shell still comes over mosh."""
    open_terminal(lab.gateway_argv(by_ssh, user)).wait_for(user.prompt)
    assert lab.remote.processes("mosh-server", user=user)


# A key's command=


_FORCED = 'echo "<${SSH_ORIGINAL_COMMAND-unset}>"; echo err >&2; cat; exit 9'


@pytest.fixture(scope="module")
def forced(shared_lab: Lab) -> User:
    """A user whose key may run one command only."""
    user = shared_lab.add_user()
    quoted = _FORCED.replace('"', '\\"')
    shared_lab.remote.authorize(user, [f'command="{quoted}" {user.key.public}', shared_lab.gateway_key.public])
    return user


@pytest.fixture(scope="module")
def forced_pair(shared_lab: Lab, shared_gateway: Gateway, forced: User) -> Iterator[Pair]:
    """The same user, logged in both ways."""
    with _logged_in_twice(shared_lab, shared_gateway, forced) as both:
        yield both


_ASKED = ["true", "rm -rf 'a b'; $(id)", "a\nb", "Grüße", "'\"'\"'", "-v", "x" * 20_000, "gateway-subsystem-sftp x"]


@pytest.mark.parametrize("command", _ASKED, ids=range(len(_ASKED)))
def test_a_keys_command_is_all_that_runs(forced_pair: Pair, command: str) -> None:
    """The key's command runs, is told what the client asked for, and all of it is as by direct ssh."""
    assert forced_pair.compare(command, stdin=b"in\0put").returncode == 9


def test_a_keys_command_takes_the_shells_place(forced_pair: Pair) -> None:
    """A client that asks for a shell gets the key's command, and SSH_ORIGINAL_COMMAND is not set."""
    assert forced_pair.compare(stdin=b"echo no shell\n").stdout.startswith(b"<unset>\n")


@pytest.mark.parametrize("command", [["id; id"], []], ids=["exec", "shell"])
def test_a_keys_command_has_the_terminal(
    lab: Lab, gateway: Gateway, forced: User, open_terminal: Callable[..., Terminal], command: list[str]
) -> None:
    """With a terminal the key's command is told the same, and its status comes back although others go over mosh."""
    for argv in (
        lab.direct_ssh_argv(forced, *command, options=["-tt"]),
        lab.gateway_argv(gateway, forced, *command, options=["-tt"]),
    ):
        terminal = open_terminal(argv)
        terminal.wait_for(f"<{''.join(command) or 'unset'}>")
        terminal.type("\x04")
        assert terminal.wait_exit() == 9
    assert not lab.remote.processes("mosh-server", user=forced)


def test_a_keys_command_takes_sftps_place(lab: Lab, gateway: Gateway, forced: User) -> None:
    """For sftp the key's command runs too; it is told ``internal-sftp``, where sshd would name its program's path."""
    through = lab.run(lab.gateway_argv(gateway, forced, "sftp", options=["-s"]), stdin=b"in")
    direct = lab.run(lab.direct_ssh_argv(forced, "sftp", options=["-s"]), stdin=b"in")
    assert direct.stdout == b"</usr/lib/openssh/sftp-server>\nin"
    assert (through.stdout, through.stderr, through.returncode) == (b"<internal-sftp>\nin", direct.stderr, 9)


def test_what_a_keys_command_cannot_be_told_is_refused(lab: Lab, gateway: Gateway, forced: User) -> None:
    """A request too long for SSH_ORIGINAL_COMMAND on the way runs nothing, and a sentence on standard error says so."""
    for length, reason in ((50_000, b"the command is longer than "), (120_000, b"the request is longer than ")):
        done = lab.run(lab.gateway_argv(gateway, forced, "x" * length))
        assert (done.stdout, done.returncode) == (b"", 65)
        assert done.stderr.startswith(b"gateway: " + reason)
        assert done.stderr.count(b"\n") == 1


def test_a_keys_command_has_the_same_environment(lab: Lab, gateway: Gateway) -> None:
    """Nothing of how the command came there is in its environment."""
    user = lab.add_user()
    command = "unset SSH_CLIENT SSH_CONNECTION; env | sort"
    lab.remote.authorize(user, [f'command="{command}" {user.key.public}', lab.gateway_key.public])
    Pair(lab, gateway, user).compare("asked for")


def test_a_keys_command_is_the_users_shells(lab: Lab, gateway: Gateway) -> None:
    """The user's own login shell runs the key's command."""
    key, shell = lab.add_user().key, "/bin/dash"
    name = f"shell-{key.private.name}"
    lines = [f'command="echo ${{0##*/}} $SSH_ORIGINAL_COMMAND" {key.public}', lab.gateway_key.public]
    user = lab.remote.add_user(name, key, shell=shell, authorized=lines)
    Pair(lab, gateway, user).compare("a b")


# The end


def test_nothing_stays_after_a_command(lab: Lab, gateway: Gateway, user: User) -> None:
    """After commands that ended in every way, no process of theirs is left on either side."""
    since = gateway.log.mark()
    for command in ("true", "exit 3", "kill -9 $$", "cat"):
        lab.run(lab.gateway_argv(gateway, user, command))
    assert gateway.log.matches("session_started", since=since)
    wait_finished(lab, gateway, user)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("echo ready; cat >/dev/null", signal.SIGKILL),
        ("echo ready; while echo more; do :; done", signal.SIGTERM),
        ("echo ready; exec sleep 1234", signal.SIGTERM),
        ("echo ready; exec sleep 1234", signal.SIGKILL),
    ],
    ids=["reads", "writes", "neither TERM", "neither KILL"],
)
def test_a_killed_clients_command_ends_as_by_direct_ssh(
    lab: Lab, gateway: Gateway, user: User, command: str, number: signal.Signals
) -> None:
    """The command of a client that is killed ends where it does by direct ssh, and nothing stays on the gateway."""
    left = []
    for argv in (lab.direct_ssh_argv(user, command), lab.gateway_argv(gateway, user, command)):
        before = {its.pid for its in work_of(lab, user)}
        with lab.background(argv) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"ready\n"
            client.send_signal(number)
        if "sleep" not in command:
            wait_until(lambda: not work_of(lab, user), "the command has ended")
        left.append(len([its for its in work_of(lab, user) if its.pid not in before]))
    uid = lookup_uid(gateway, user)
    wait_until(
        lambda: all("[mux]" in its.argv[0] for its in gateway.processes(uid=uid)) and not sshd_of(gateway, user),
        "the gateway has nothing of the session",
    )
    assert left[0] == left[1]


def test_output_that_nobody_reads_ends_the_command(lab: Lab, gateway: Gateway, user: User) -> None:
    """`ssh gateway yes | head -1` ends, on the remote too."""
    with lab.background(lab.gateway_argv(gateway, user, "yes")) as client:
        assert client.stdout is not None
        client.stdout.readline()
        client.stdout.close()
        client.wait(20)
        client.stdout = None
    wait_finished(lab, gateway, user)
