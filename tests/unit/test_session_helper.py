"""The session helper as sshd starts it, on a real PTY and without one."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import helpers
from gatewayctl.sshd.config import PYTHON_OPTIONS
from helpers.protocol.errors import BrokerUnavailableError, GatewayError, HostKeyError, PermissionDeniedError
from helpers.protocol.messages import decode, encode, error_answer
from helpers.session.main import accepted_key
from helpers.session.mosh_client import NUDGES_S
from helpers.session.ssh_client import ssh_argv

_LAUNCH = Path(helpers.__file__).with_name("launch.py")
_ROOTS_UID = 70_005
_MOSH = {"transport": "mosh", "address": "192.0.2.1", "port": 60001, "key": "k" * 22, "predict": "always", "home": "/"}
_SSH: Any = {
    "transport": "ssh",
    "address": "192.0.2.1",
    "addresses": ["192.0.2.1"],
    "host": "-remote",
    "port": 2022,
    "host_key_alias": "[remote]:2022",
    "known_hosts": "/etc/known_hosts",
    "agent": "/run/agent.sock",
    "user": "-alice",
    "interactive": False,
    "subsystem": None,
    "command": None,
    "pty": False,
    "share": False,
    "home": "/homes/1",
}
_PROGRAM = """#!/bin/sh
{ id -u; for word in "$0" "$@"; do printf '%s\\n' "$word"; done; } >"$(dirname "$0")/words"
env >"$(dirname "$0")/environ"
exit 7
"""


class Sandbox:
    """A directory with a broker's socket, fake programs and what they wrote down.

    Attributes:
        requests: What the broker was asked for, but for root's uid.
    """

    def __init__(self, path: Path) -> None:
        """Listen; nobody answers yet."""
        self.path, self.requests = path, list[dict[str, Any]]()
        path.chmod(0o777)  # root's session drops to another uid and must still get here
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path / "s"))
        self._listener.listen()
        (path / "s").chmod(0o777)

    def program(self, name: str) -> None:
        """Put a program on the session's PATH."""
        (self.path / name).write_text(_PROGRAM)
        (self.path / name).chmod(0o755)

    def answering(self, answer: bytes | None) -> Thread:
        """Answer one session, None for never; a session of root's asks for its uid first."""

        def serve() -> None:
            if os.geteuid() == 0:
                self._answer(encode({"result": {"uid": _ROOTS_UID}}))
            self._answer(answer)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        return thread

    def _answer(self, answer: bytes | None) -> None:
        connection, _ = self._listener.accept()
        with connection:
            request = decode(connection.makefile("rb").readline())
            if request != {"op": "root"}:
                self.requests.append(request)
            if answer is None:
                connection.recv(1)  # until the asker leaves
            else:
                connection.sendall(answer)

    def argv(self) -> list[str]:
        """Write the command that sshd runs."""
        return [sys.executable, *PYTHON_OPTIONS, str(_LAUNCH), "session", str(self.path / "s")]

    def environ(self, **variables: str) -> dict[str, str]:
        """Write what sshd gives the session; the PATH has nothing but the room's programs and what they need."""
        return {"PATH": f"{self.path}:/usr/bin:/bin", "TERM": "xterm-256color", **variables}

    def written(self, name: str) -> list[str]:
        """Read what a program wrote down."""
        return (self.path / name).read_text().splitlines()

    def close(self) -> None:
        """Stop to listen."""
        self._listener.close()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Make a sandbox that every uid can reach, which pytest's own directories are not."""
    with tempfile.TemporaryDirectory() as directory:
        made = Sandbox(Path(directory))
        yield made
        made.close()


# What a slow machine adds.
_WAITED = re.compile(r"(\r\x1b\[Kgateway: reaching the remote host, \d+ s)+\r\x1b\[K")


def _watch(seen: bytes, fd: int) -> None:
    """Do nothing about what is on the screen."""


def _on_a_terminal(
    sandbox: Sandbox, environ: dict[str, str] | None = None, act: Callable[[bytes, int], object] = _watch
) -> tuple[int, str]:
    """Run the helper on a PTY of its own; return its status and what was on the screen, of a wait only to ``act``.

    Args:
        sandbox: Where.
        environ: The client's environment, and what else sshd would set.
        act: Told of all that was seen so far, each time that there is more, and the PTY's descriptor.
    """
    ours, theirs = pty.openpty()
    argv = [shutil.which("setsid") or "setsid", "--ctty", *sandbox.argv()]
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=sandbox.environ(**environ or {})
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # EIO: nobody has the other end any more
                break
            seen += chunk
            act(seen, ours)
        status = process.wait(20)
    os.close(ours)
    return status, seen.decode() if act is not _watch else _WAITED.sub("", seen.decode())


def test_a_terminal_becomes_mosh_client(sandbox: Sandbox) -> None:
    """Address and port are words, the key is in the environment; of the client's there is a checked TERM alone."""
    sandbox.program("mosh-client")
    thread = sandbox.answering(encode({"result": _MOSH}))
    client = {"LANG": "C.UTF-8", "SSH_ORIGINAL_COMMAND": "x", "EVIL": "1", "SSH_CONNECTION": "a b c d"}
    status, screen = _on_a_terminal(sandbox, client)
    thread.join()
    assert (status, screen) == (7, "")
    uid = _ROOTS_UID if os.geteuid() == 0 else os.geteuid()
    assert sandbox.written("words") == [str(uid), str(sandbox.path / "mosh-client"), "192.0.2.1", "60001"]
    environ = dict(line.split("=", 1) for line in sandbox.written("environ"))
    assert environ.pop("PWD", "")
    assert {name: value for name, value in environ.items() if name not in {"_", "SHLVL", "OLDPWD"}} == {
        "PATH": f"{sandbox.path}:/usr/bin:/bin",
        "TERM": "xterm-256color",
        "LC_ALL": "C.UTF-8",
        "MOSH_KEY": "k" * 22,
        "MOSH_PREDICTION_DISPLAY": "always",
        "MOSH_ESCAPE_KEY": "",
        "MOSH_NO_TERM_INIT": "1",
    }
    assert sandbox.requests == [
        {
            "op": "session",
            "terminal": {"colors": 256, "locale": {"LANG": "C.UTF-8"}, "window": False},
            "command": None,
            "original_command": "x",
            "connection": "a b c d",
            "key": "",
        }
    ]


@pytest.mark.parametrize(
    ("environ", "locale"),
    [({"LANG": "xx_XX.UTF-8"}, {"LANG": "xx_XX.UTF-8"}), ({"LANG": "C"}, {}), ({}, {}), ({"LANG": "$(id)"}, {})],
)
def test_no_locale_is_made_up(environ: dict[str, str], locale: dict[str, str], sandbox: Sandbox) -> None:
    """The remote is told of the client's locale, be it one that the gateway lacks, and never of Python's."""
    sandbox.program("mosh-client")
    thread = sandbox.answering(encode({"result": _MOSH}))
    _on_a_terminal(sandbox, environ)
    thread.join()
    assert sandbox.requests[0]["terminal"]["locale"] == locale


def test_the_carried_command_is_handed_on(sandbox: Sandbox) -> None:
    """A key's command and the accepted key reach the broker; an unknown TERM is made usable."""
    sandbox.program("mosh-client")
    accepted = sandbox.path / "auth"
    accepted.write_text("publickey ssh-ed25519 AAAA\nsecond\n")
    accepted.chmod(0o644)
    thread = sandbox.answering(encode({"result": _MOSH}))
    sshds = {"GATEWAY_COMMAND": "aWQ=", "SSH_USER_AUTH": str(accepted)}
    _on_a_terminal(sandbox, sshds | {"TERM": "xterm-no-such", "LANG": "C.UTF-8"})
    thread.join()
    (request,) = sandbox.requests
    assert (request["command"], request["key"]) == ("aWQ=", "publickey ssh-ed25519 AAAA")
    assert request["terminal"] == {"colors": 256, "locale": {"LANG": "C.UTF-8"}, "window": False}
    assert "TERM=xterm-256color" in sandbox.written("environ")


def test_what_has_no_terminal_becomes_ssh(sandbox: Sandbox) -> None:
    """Without a terminal ssh takes over, status and all; and of the client's environment the locale, as it is."""
    sandbox.program("ssh")
    command = "-x 'a b'; $(id)"
    thread = sandbox.answering(encode({"result": _SSH | {"command": command}}))
    client = {"LANG": "de_DE", "LC_OF_MY_OWN": "$(id) x", "EVIL": "1", "LD_PRELOAD": "", "TERM": "odd one"}
    done = subprocess.run(
        sandbox.argv(),
        input=b"",
        capture_output=True,
        check=False,
        env=sandbox.environ(**client, SSH_ORIGINAL_COMMAND=command),
        timeout=30,
    )
    thread.join()
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
    assert sandbox.requests[0]["terminal"] is None
    words = sandbox.written("words")
    assert words[-3:] == ["--", "192.0.2.1", command]
    environ = dict(line.split("=", 1) for line in sandbox.written("environ"))
    assert {name: environ.get(name) for name in ("HOME", *client)} == {
        **client,
        "HOME": "/homes/1",
        "EVIL": None,
        "LD_PRELOAD": None,
    }


def test_the_longest_command_reaches_ssh(sandbox: Sandbox) -> None:
    """What ssh alone can carry is as long as an argument may be; the broker is told how it begins, and no more."""
    sandbox.program("ssh")
    command = "echo \udcff " + "x" * 130_000
    thread = sandbox.answering(encode({"result": _SSH | {"command": command[:64]}}))
    done = subprocess.run(
        sandbox.argv(), capture_output=True, check=False, env=sandbox.environ(SSH_ORIGINAL_COMMAND=command), timeout=30
    )
    thread.join()
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
    assert sandbox.requests[0]["original_command"] == command[:64]
    assert (sandbox.path / "words").read_bytes().endswith(b"\n--\n192.0.2.1\n" + os.fsencode(command) + b"\n")


@pytest.mark.parametrize(
    ("original", "answered", "word"),
    [("", "", " "), ("gateway-subsystem-sftp", None, "192.0.2.1"), (None, None, "192.0.2.1")],
)
def test_no_command_becomes_a_shell(sandbox: Sandbox, original: str | None, answered: str | None, word: str) -> None:
    """An empty command is one that does nothing; ssh would take it for none, which is a shell."""
    sandbox.program("ssh")
    thread = sandbox.answering(encode({"result": _SSH | {"command": answered}}))
    environ = sandbox.environ(**({} if original is None else {"SSH_ORIGINAL_COMMAND": original}))
    subprocess.run(sandbox.argv(), capture_output=True, check=False, env=environ, timeout=30)
    thread.join()
    assert sandbox.requests[0]["original_command"] == original
    assert sandbox.written("words")[-1] == word


def test_a_keys_command_comes_from_the_broker(sandbox: Sandbox) -> None:
    """Where a key's command rules, the broker is told the client's in full, and what it answers is what runs."""
    sandbox.program("ssh")
    thread = sandbox.answering(encode({"result": _SSH | {"command": "forced"}}))
    environ = sandbox.environ(GATEWAY_COMMAND="aWQ=", SSH_ORIGINAL_COMMAND="x" * 1000)
    subprocess.run(sandbox.argv(), capture_output=True, check=False, env=environ, timeout=30)
    thread.join()
    assert (sandbox.requests[0]["command"], sandbox.requests[0]["original_command"]) == ("aWQ=", "x" * 1000)
    assert sandbox.written("words")[-2:] == ["192.0.2.1", "forced"]


_CHARACTERS = """\
<code_set_name> ISO-8859-1
<escape_char> /
CHARMAP
{}END CHARMAP
"""

_LOCALE = """\
escape_char /
LC_CTYPE
upper <U0041>
lower <U0061>
END LC_CTYPE
"""


def test_a_clients_locale_changes_no_byte(sandbox: Sandbox, require: Callable[..., None]) -> None:
    """Where the gateway has a locale that is not UTF-8, and the client asks for it, a command is what it was."""
    require("localedef")
    rows = "".join(f"<U{number:04X}> /x{number:02x} x\n" for number in range(256))
    (sandbox.path / "characters").write_text(_CHARACTERS.format(rows))
    (sandbox.path / "source").write_text(_LOCALE)
    argv = [
        "localedef",
        "-c",
        "-f",
        f"{sandbox.path}/characters",
        "-i",
        f"{sandbox.path}/source",
        f"{sandbox.path}/xx_XX",
    ]
    subprocess.run(argv, capture_output=True, check=False)
    sandbox.program("ssh")
    thread = sandbox.answering(encode({"result": _SSH | {"command": "forced"}}))
    environ = sandbox.environ(
        GATEWAY_COMMAND="aWQ=", SSH_ORIGINAL_COMMAND="café", LC_CTYPE="xx_XX", LOCPATH=str(sandbox.path)
    )
    asked = [sys.executable, "-I", "-S", "-c", "import sys; print(sys.getfilesystemencoding())"]
    assert subprocess.run(asked, capture_output=True, check=True, env=environ).stdout == b"iso8859-1\n"
    subprocess.run(sandbox.argv(), capture_output=True, check=False, env=environ, timeout=30)
    thread.join()
    assert sandbox.requests[0]["original_command"] == "café"


def test_half_a_terminal_is_none(sandbox: Sandbox) -> None:
    """With standard output going elsewhere mosh has nowhere to draw, and the broker is told of no terminal."""
    sandbox.program("ssh")
    thread = sandbox.answering(encode({"result": _SSH}))
    ours, theirs = pty.openpty()
    done = subprocess.run(
        sandbox.argv(), stdin=theirs, capture_output=True, check=False, env=sandbox.environ(), timeout=30
    )
    thread.join()
    for fd in (ours, theirs):
        os.close(fd)
    assert done.returncode == 7
    assert sandbox.requests[0]["terminal"] is None


@pytest.mark.parametrize("error", [HostKeyError("the host key changed"), GatewayError("the gateway failed")])
def test_an_error_is_one_sentence_and_a_status(error: GatewayError, sandbox: Sandbox) -> None:
    """What the broker says reaches the user's screen as one line, and its status becomes the session's."""
    thread = sandbox.answering(encode(error_answer(error)))
    status, screen = _on_a_terminal(sandbox)
    thread.join()
    assert (status, screen) == (error.status, f"gateway: {error.message}\r\n")


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"[]\n"])
def test_an_answer_that_is_none_is_no_session(answer: bytes, sandbox: Sandbox) -> None:
    """A broker that hangs up or says something else ends the session with one sentence, without a traceback."""
    sandbox.program("mosh-client")
    thread = sandbox.answering(answer)
    status, screen = _on_a_terminal(sandbox)
    thread.join()
    assert status in {65, 71}
    assert screen.startswith("gateway: ")
    assert screen.count("\n") == 1
    assert not (sandbox.path / "words").exists()


def test_without_a_broker_there_is_one_sentence(sandbox: Sandbox) -> None:
    """The broker away: status 71, one line that says what to do, with a terminal and without."""
    sandbox.close()
    (sandbox.path / "s").unlink()
    status, screen = _on_a_terminal(sandbox)
    done = subprocess.run(
        sandbox.argv(), input=b"", capture_output=True, check=False, env=sandbox.environ(), timeout=30
    )
    assert status == done.returncode == BrokerUnavailableError.status == 71
    assert done.stdout == b""
    assert done.stderr.decode() == screen.replace("\r\n", "\n")
    assert screen.startswith("gateway: the gateway's broker is not running")
    assert screen.count("\n") == 1


def test_root_that_is_not_permitted_is_told_so(sandbox: Sandbox) -> None:
    """A session of root's whose uid the broker does not give ends there, before anything else is asked."""
    if os.geteuid() != 0:
        pytest.skip("only root's session asks")
    refusal = encode(error_answer(PermissionDeniedError("no")))
    thread = Thread(target=sandbox._answer, args=(refusal,), daemon=True)
    thread.start()
    status, screen = _on_a_terminal(sandbox)
    thread.join()
    assert (status, screen, sandbox.requests) == (77, "gateway: no\r\n", [])


@pytest.mark.parametrize("uid", [0, -1])
def test_root_stays_root_for_nobody(uid: int, sandbox: Sandbox) -> None:
    """A broker that is not what it was has no session of root's run as the gateway's root."""
    if os.geteuid() != 0:
        pytest.skip("only root's session asks")
    thread = Thread(target=sandbox._answer, args=(encode({"result": {"uid": uid}}),), daemon=True)
    thread.start()
    status, screen = _on_a_terminal(sandbox)
    thread.join()
    assert (status, sandbox.requests) == (GatewayError.status, [])
    assert "no uid for root" in screen


@pytest.mark.parametrize("program", ["mosh-client", "setpriv"])
def test_a_program_that_is_missing_is_named(program: str, sandbox: Sandbox) -> None:
    """Where the gateway lacks what the session needs, the user is told which, in one line."""
    thread = sandbox.answering(encode({"result": _MOSH if program == "mosh-client" else _SSH}))
    status, screen = _on_a_terminal(sandbox, {"PATH": str(sandbox.path)})
    thread.join()
    assert status == GatewayError.status
    assert f"gateway: {program} cannot be started" in screen


def test_a_wait_is_shown_and_can_be_broken_off(sandbox: Sandbox) -> None:
    """A broker that takes its time is waited for with a word on the screen, which is wiped; Ctrl-C ends it with 130."""
    thread = sandbox.answering(None)
    done: list[int] = []

    def interrupt(seen: bytes, fd: int) -> None:
        if b"reaching the remote host" in seen and not done:
            done.append(os.write(fd, b"\x03"))

    status, screen = _on_a_terminal(sandbox, act=interrupt)
    thread.join()
    assert status == 128 + signal.SIGINT
    assert screen.endswith("\r\x1b[K")
    assert "Traceback" not in screen


def test_which_key_was_accepted(tmp_path: Path) -> None:
    """The first line of sshd's file, whatever else is in it; a missing file is a login without a key."""
    path = tmp_path / "auth"
    path.write_bytes(b"publickey ssh-ed25519 AAAA\xff\npassword\n")
    assert accepted_key(str(path)) == "publickey ssh-ed25519 AAAA\ufffd"
    path.write_bytes(b"x" * 100_000)
    assert len(accepted_key(str(path))) == 32 * 1024
    path.write_bytes(b"")
    assert [accepted_key(name) for name in (str(path), str(tmp_path / "missing"), "")] == ["", "", ""]


def _options(session: Any) -> dict[str, str]:
    argv = ssh_argv(session)
    return dict(argv[index + 1].split("=", 1) for index, word in enumerate(argv) if word == "-o")


def test_ssh_asks_nobody_and_trusts_what_the_broker_trusts() -> None:
    """No question, no configuration of anybody's, no forwarding, the broker's known_hosts and agent alone."""
    options = _options(_SSH)
    assert options["BatchMode"] == options["StrictHostKeyChecking"] == options["ClearAllForwardings"] == "yes"
    assert options["ForwardAgent"] == options["ForwardX11"] == "no"
    assert (options["UserKnownHostsFile"], options["GlobalKnownHostsFile"]) == ('"/etc/known_hosts"', "/dev/null")
    assert (options["IdentityAgent"], options["HostKeyAlias"]) == ("/run/agent.sock", "[remote]:2022")
    assert ssh_argv(_SSH)[:3] == ["ssh", "-F", "none"]


@pytest.mark.parametrize("interactive", [False, True])
def test_the_user_is_shown_no_prompt_of_the_remotes(sandbox: Sandbox, *, interactive: bool) -> None:
    """Where ssh may be asked for something all the same, an askpass that fails is what answers."""
    sandbox.program("ssh")
    thread = sandbox.answering(encode({"result": _SSH | {"command": "id", "interactive": interactive}}))
    subprocess.run(sandbox.argv(), stdin=subprocess.DEVNULL, check=False, env=sandbox.environ(), timeout=30)
    thread.join()
    asked = [line for line in sandbox.written("environ") if line.startswith("SSH_ASKPASS")]
    assert sorted(asked) == (["SSH_ASKPASS=false", "SSH_ASKPASS_REQUIRE=force"] if interactive else [])


def test_ssh_answers_no_prompt_where_it_may_be_asked() -> None:
    """A remote that is known to complete logins without a prompt may ask, once, and never for a password."""
    options = _options(_SSH | {"interactive": True})
    assert (options["BatchMode"], options["PreferredAuthentications"]) == ("no", "publickey,keyboard-interactive")
    assert options["NumberOfPasswordPrompts"] == "1"
    assert "PreferredAuthentications" not in _options(_SSH)


def test_ssh_connects_by_itself_where_there_is_one_address() -> None:
    """Python is started for a remote with several alone."""
    assert not [name for name in _options(_SSH) if name.startswith("Proxy")]
    options = _options(_SSH | {"addresses": ["192.0.2.1", "2001:db8::1"]})
    assert options["ProxyCommand"].endswith(" 'dial' 'quiet' '2022' '192.0.2.1' '2001:db8::1'")
    assert options["ProxyUseFdpass"] == "yes"


def test_any_host_key_only_where_the_broker_says_so() -> None:
    """Without a known_hosts every host key will do, and none is written down."""
    options = _options(_SSH | {"known_hosts": None})
    assert (options["StrictHostKeyChecking"], options["UserKnownHostsFile"]) == ("no", '"/dev/null"')


def test_a_connection_is_shared_where_one_was_chosen() -> None:
    """Which connection is another module's choice; without one, none is shared."""
    assert not [name for name in _options(_SSH | {"share": True}) if name.startswith("Control")]
    assert _options(_SSH | {"options": ["ControlPath=/homes/1/m1"]})["ControlPath"] == "/homes/1/m1"


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ({}, ["-l", "-alice", "--", "192.0.2.1"]),
        ({"subsystem": "sftp"}, ["-l", "-alice", "-s", "--", "192.0.2.1", "sftp"]),
    ],
)
def test_names_are_no_options(words: dict[str, str], end: list[str]) -> None:
    """A user whose name begins with a dash is still a user, and the address stands behind the end of the options."""
    assert ssh_argv(_SSH | words)[-len(end) :] == end


def test_openssh_reads_it_so(require: Callable[..., None]) -> None:
    """Ssh itself, asked what it would do with our words, says the user, the host and the port, and forwards nothing."""
    require("ssh")
    argv = ssh_argv(_SSH | {"user": "alice"})
    done = subprocess.run([str(shutil.which("ssh")), "-G", *argv[1:]], capture_output=True, text=True, check=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert (said["user"], said["hostname"], said["port"]) == ("alice", "192.0.2.1", "2022")
    assert (said["batchmode"], said["stricthostkeychecking"], said["requesttty"]) == ("yes", "true", "false")
    assert (said["forwardagent"], said["clearallforwardings"], said["escapechar"]) == ("no", "yes", "none")
    assert json.dumps(said).count("/run/agent.sock") == 1


# Two signals that come before the first is heard are one (signal(7)): so each nudge waits for a word, not for its time.
_COUNTS_WINDOW_CHANGES = """
import os, select, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
theirs, ours = os.pipe()
waits = f"import os, time; time.sleep = lambda _: os.read({theirs}, 1)"
code = f"{waits}; from helpers.session.mosh_client import nudge; nudge({os.getpid()})"
subprocess.run([sys.executable, "-c", code], check=True, pass_fds=[theirs])
os.close(theirs)
for _ in range(7):
    os.write(ours, b"x")
    print(signal.sigtimedwait([signal.SIGWINCH], 20) is not None)
gone = select.poll()
gone.register(ours, 0)  # tells when nobody is left who would read
print(bool(gone.poll(20_000)), signal.SIGWINCH in signal.sigpending())
"""


def _nudging(pid: int) -> list[str]:
    return [sys.executable, "-c", f"from helpers.session.mosh_client import nudge; nudge({pid})"]


def test_mosh_client_is_nudged() -> None:
    """It is told of a change of its window seven times in its first seconds, and never after."""
    assert (len(NUDGES_S), sum(NUDGES_S) < 3) == (7, True)
    argv = [sys.executable, "-c", _COUNTS_WINDOW_CHANGES]
    told = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    assert told == ["True"] * 7 + ["True", "False"]


def test_nudging_ends_with_mosh_client() -> None:
    """What nudges holds nobody's terminal or pipe open, and leaves when there is nobody to nudge."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    # communicate() comes back when the last one has closed the pipe.
    nudging = subprocess.Popen(_nudging(gone.pid), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert nudging.communicate(timeout=20)[0] == b""


_BECOMES_ANOTHER_PROGRAM = """
import os, signal, sys
from helpers.session.mosh_client import nudge
signal.signal(signal.SIGWINCH, signal.SIG_IGN)
nudge(os.getpid())
os.execv(sys.executable, [sys.executable, "-I", "-c", sys.argv[1]])
"""
_WAITS_FOR_ITS_CHILD = """
import os
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("gone")
"""


def test_nudging_leaves_no_zombie() -> None:
    """Who is nudged, and is another program by then, need not take notice of its end (wait(2), SIG_IGN)."""
    argv = [sys.executable, "-c", _BECOMES_ANOTHER_PROGRAM, _WAITS_FOR_ITS_CHILD]
    assert subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout == "gone\n"
