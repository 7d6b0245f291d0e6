"""A session through the gateway looks and feels like one by direct mosh, whatever the client's terminal is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.sessions import environment_of, mosh_client_of, sshd_of, uid_of, wait_gone, wait_same

from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.terminal import Terminal
    from lab.users import User

    OpenTerminal = Callable[..., Terminal]


def test_shell_is_that_of_direct_ssh(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """Name, host, home, shell and directory are what `ssh` straight to the remote finds."""
    question = 'clear; whoami; hostname; echo "$HOME $SHELL $PWD $LOGNAME"; umask; id; tty >/dev/null && echo a tty'
    through, direct = open_terminal(lab.gateway_argv(gateway, user)), open_terminal(lab.direct_ssh_argv(user))
    for terminal in (direct, through):
        terminal.wait_for(user.prompt)
        terminal.run(question, f"a tty\n{user.prompt}")

    wait_until(lambda: through.text == direct.text, "both say the same")
    assert direct.text.startswith(f"{user.name}\nremote\n{user.home} /bin/bash {user.home} {user.name}\n")


# Terminals


def test_window_size_follows(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """The remote's terminal has the size of the window, before and after it is pulled."""
    terminal = open_terminal(lab.gateway_argv(gateway, user), rows=30, columns=100)
    terminal.wait_for(user.prompt)
    terminal.run("stty size", "\n30 100\n")
    terminal.resize(41, 132)
    # The size travels beside what is typed, and may come after it.
    terminal.run("until stty size | grep '41 132'; do :; done; echo $((6 * 7))", "\n41 132\n42\n")


def test_resize_right_at_the_start(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A window that is pulled again and again before the prompt is there ends up at its last size."""
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    for rows in (10, 50, 25, 60, 31):
        terminal.resize(rows, 3 * rows)
        wait_until(lambda: sshd_of(gateway, user) or user.prompt in terminal.text, "the login is under way")
    terminal.wait_for(user.prompt)
    terminal.run("until stty size | grep '31 93'; do :; done; echo $((6 * 7))", "\n31 93\n42\n")


_PROGRAMS = {
    "vim": (
        "vim -u NONE -N -n -c 'syntax on' -c 'set number hlsearch ruler showcmd' ~/text",
        [("G", "300,1"), ("gg/green\r", " 8,"), (":split +300\r", "300,1"), ("iin\x1b", "[+]")],
        ":qa!\r",
    ),
    "less": (
        "less --RAW-CONTROL-CHARS --LINE-NUMBERS ~/text",
        [("G", "(END)"), ("g", "      1 "), ("/green\r", "     30 "), (" ", "     53 ")],
        "q",
    ),
    "tmux": (
        "tmux -L $$ -f /dev/null new-session 'cat ~/text; exec bash --norc' ';' set status off",
        [("echo $((6*7))\r", "\n42"), ('\x02"', "───"), ("echo $((6*9))\r", "\n54")],
        "\x02:kill-server\r",
    ),
}


@pytest.mark.parametrize("program", _PROGRAMS)
def test_full_screen_program_looks_as_by_direct_mosh(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, program: str
) -> None:
    """A full-screen program draws the same picture as by direct mosh, colours included, at every step."""
    command, steps, leave = _PROGRAMS[program]
    colours = ("red", "green", "blue")
    text = "".join(
        f'\x1b[{n % 2};{31 + n % 3}m{n} {colours[(n // 8) % 3]}\x1b[m if (x) {{ "s" }} // ä\n' for n in range(1, 301)
    )
    lab.remote.write_file(user, "text", text)
    through, direct = open_terminal(lab.gateway_argv(gateway, user)), open_terminal(lab.direct_mosh_argv(user))
    for terminal in (direct, through):
        terminal.wait_for(user.prompt)
        terminal.type(f"clear; {command}\r")
    for keys, seen in (("", "blue"), *steps):
        for terminal in (direct, through):
            terminal.type(keys)
            terminal.wait_for(seen)
        wait_same(through, direct)
    for terminal in (direct, through):
        terminal.type(leave)
        # Programs throw away what is typed while they leave.
        terminal.wait_until(lambda its: its.lines[its.cursor[0]] == user.prompt, "the prompt is back")
        terminal.run("clear; echo $((6 * 7))", "42\n")
    wait_same(through, direct)


def test_megabyte_of_output_ends_with_its_last_lines(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """After 1 MB of output the screen shows its end, and the session goes on."""
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    terminal.run("seq 160000", f"159999\n160000\n{user.prompt}")  # 1,008,895 bytes

    last = [str(number) for number in range(160_000 - 22, 160_001)]
    wait_until(lambda: terminal.lines == [*last, user.prompt], "nothing is missing between the last lines")
    terminal.run("echo $((6 * 7))", f"\n42\n{user.prompt}")


@pytest.mark.parametrize("term", ["xterm-256color", "xterm", "screen-256color", "linux", "vt100"])
def test_known_terminal_has_its_colours(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, term: str
) -> None:
    """TERM, the number of colours and the colours themselves are those of direct mosh."""
    command = (
        "clear; echo $TERM $(tput colors); "
        r"for n in $(seq 0 255); do printf '\033[38;5;%dm%d\033[48;5;%dmx\033[0m' $n $((n % 10)) $n; done; "
        r"printf '\n\033[1mb\033[0m\033[4mu\033[0m\033[7mr\033[0m\033[3mi\033[0m\033[38;2;1;2;3mtrue\033[0m\n'"
    )
    environment = {"TERM": term}
    through = open_terminal(lab.gateway_argv(gateway, user), environment=environment)
    direct = open_terminal(lab.direct_mosh_argv(user), environment=environment)
    for terminal in (direct, through):
        terminal.wait_for(user.prompt)
        terminal.run(command, f"true\n{user.prompt}")

    wait_same(through, direct)


@pytest.mark.parametrize(
    "term",
    [
        "xterm-kitty",
        "xterm-ghostty",
        "foot",
        "no-such-terminal",
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "-x",
        "x" * 300,
        "xterm\x1b]0;title\x07",
        "xterm\nTERM=vt100",
        "dumb",
        "ibm327x",  # known, and mosh cannot move a cursor with it
    ],
)
def test_strange_terminal_gets_a_working_screen(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, term: str
) -> None:
    """A TERM that the gateway does not know, or that is no name at all, still gets a screen that programs can use."""
    terminal = open_terminal(lab.gateway_argv(gateway, user), environment={"TERM": term})
    terminal.wait_for(user.prompt)
    terminal.run('clear; tput cup 9 30 && echo "$TERM $((6 * 7))"', f" 42\n{user.prompt}")

    assert terminal.lines[9].strip() in {"xterm-256color 42", "xterm 42"}


def test_window_without_size_becomes_24_by_80(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """A client that tells no size gets 24 lines of 80, and may tell one later."""
    terminal = open_terminal(lab.gateway_argv(gateway, user), rows=0, columns=0)
    terminal.wait_for(user.prompt)
    terminal.run("stty size", "\n24 80\n")
    terminal.resize(24, 79)
    terminal.run("until stty size | grep '24 79'; do :; done; echo $((6 * 7))", "\n24 79\n42\n")
    uid = uid_of(gateway, user)
    terminal.type("exit\r")

    assert terminal.wait_exit() == 0
    wait_gone(lab, gateway, user, uid)


def test_terminal_without_a_person(lab: Lab, gateway: Gateway, user: User) -> None:
    """`ssh -tt gateway </dev/null`, as scripts do it, has 24 lines of 80 for mosh, and leaves nothing behind."""
    script = b"stty size; id -un; exit\n"
    result = lab.run(lab.gateway_argv(gateway, user, options=["-tt"]), stdin=script)

    assert result.returncode == 0
    assert b"24 80" in result.stdout
    assert user.name.encode() in result.stdout
    wait_until(lambda: not lab.remote.processes(user=user, name="mosh-server"), "mosh-server is gone")


# Characters


def test_characters_look_as_by_direct_mosh(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """Umlauts, wide characters, combining ones and emoji look the same typed, edited and printed."""
    text = "äöü€ 漢字かな 한국 e\u0301a\u0308 👍 ═╬ |"
    through, direct = open_terminal(lab.gateway_argv(gateway, user)), open_terminal(lab.direct_mosh_argv(user))
    for terminal in (direct, through):
        terminal.wait_for(user.prompt)
        terminal.run("clear; locale charmap", "UTF-8\n")
        terminal.type(f"echo '{text}' # {text}")
        terminal.type("\x02\x02\x7f\x7f\x7fx\x05\r")  # back, rub three out, put one in, to the end
        terminal.run(f"printf %s '{text}' | od -An -tx1; echo $((6 * 7))", f"\n42\n{user.prompt}")

    wait_same(through, direct)
    assert text.encode().hex(" ", 1)[:47] in through.text


@pytest.mark.parametrize(
    "locale",
    [
        {},
        {"LANG": "C"},
        {"LANG": "de_DE.ISO-8859-1"},
        {"LANG": "de_DE.UTF-8"},  # which the remote does not have
        {"LANG": "C.UTF-8", "LC_ALL": "POSIX"},
        {"LC_CTYPE": "UTF-8"},  # as macOS sends it
        {"LANG": "xx_YY.UTF-8;id", "LC_ALL": "$(id).UTF-8"},
        {"LANG": "en_US.UTF-8", "LC_TIME": "no such thing\x1b[2J"},
    ],
    ids=lambda locale: ",".join(locale.values()) or "none",
)
def test_any_locale_is_utf8(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal, locale: dict[str, str]
) -> None:
    """Whatever locale the client has, or none, the session's characters are UTF-8."""
    send = [word for name in locale for word in ("-o", f"SendEnv={name}")]
    terminal = open_terminal(lab.gateway_argv(gateway, user, options=send), environment=locale)
    terminal.wait_for(user.prompt)
    # bash counts five characters in these thirteen bytes only where it takes them for UTF-8.
    terminal.run("clear; s=äöü漢👍; echo ${#s}:$s", f"5:äöü漢👍\n{user.prompt}")


# Keys and commands


def test_mosh_escape_does_not_freeze(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """`Ctrl-^ Ctrl-Z`, which suspends mosh-client elsewhere, changes nothing."""
    terminal = open_terminal(lab.gateway_argv(gateway, user))
    terminal.wait_for(user.prompt)
    terminal.type("\x1e\x1a\x1e\x1a\x15")
    terminal.run("echo $((6 * 7))", "\n42\n")

    status = Path(f"/proc/{mosh_client_of(gateway, user).pid}/status").read_text()
    assert "State:\tT" not in status


def test_command_runs_over_mosh(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """`ssh -t gateway command` runs the command in the remote's shell, quotes and all, and then ends."""
    command = 'a=\'two  words\'; echo "$a $HOME" ä $((6 * 7)); read -r b; echo "<$b>"'
    terminal = open_terminal(lab.gateway_argv(gateway, user, command, options=["-t"]))
    terminal.wait_for(f"two  words {user.home} ä 42")
    client = mosh_client_of(gateway, user)
    uid = client.uid
    terminal.type('it\'s \\ "done"\r')

    assert terminal.wait_exit() == 0
    assert '<it\'s \\ "done">' in terminal.text
    wait_gone(lab, gateway, user, uid)


def test_output_of_a_command_stays(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """What a command printed is on the terminal's own screen; a login is on the other one, as by direct mosh."""
    command, login = (
        open_terminal(lab.gateway_argv(gateway, user, *words, options=["-t"])) for words in (["echo seen"], [])
    )
    login.wait_for(user.prompt)
    assert command.wait_exit() == 0

    other_screen = b"\x1b[?1049h"
    assert command.raw.count(other_screen) == 0
    assert b"seen" in command.raw
    assert login.raw.count(other_screen) == 1


# Processes


def test_prediction_is_the_operators(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: OpenTerminal
) -> None:
    """GATEWAY_MOSH_PREDICT is what mosh-client is told."""
    gateway = start_gateway({"GATEWAY_MOSH_PREDICT": "always"})
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    assert environment_of(mosh_client_of(gateway, user))["MOSH_PREDICTION_DISPLAY"] == "always"


def test_no_python_runs_in_a_session(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """A live session is sshd's two processes and mosh-client, in direct line, and after two seconds nothing else."""
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    monitor, session = sshd_of(gateway, user)
    client = mosh_client_of(gateway, user)
    assert (client.parent_pid, session.parent_pid) == (session.pid, monitor.pid)
    assert (monitor.uid, session.uid) == (0, client.uid)
    theirs = {session.pid, client.pid}
    wait_until(lambda: {its.pid for its in gateway.processes(uid=client.uid)} == theirs, "nothing else is left")


def test_mosh_key_is_in_one_environment_only(
    lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal
) -> None:
    """The session's key is in no command line on either side, and in no log."""
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)
    client = mosh_client_of(gateway, user)
    environment = environment_of(client)
    key = environment["MOSH_KEY"]
    assert len(key) == 22
    assert environment["MOSH_PREDICTION_DISPLAY"] == "adaptive"

    command_lines = [its.argv for its in (*gateway.processes(), *lab.remote.processes())]
    assert not [argv for argv in command_lines if any(key in word for word in argv)]
    assert key not in gateway.log_text()
    holders = [its for its in gateway.processes() if key in environment_of(its).values()]
    assert [its.pid for its in holders] == [client.pid]
