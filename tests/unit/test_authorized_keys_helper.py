"""The key helper as sshd starts it: prints what the broker answers, and in every other case nothing, with status 0."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

import helpers
from gatewayctl.sshd.config import PYTHON_OPTIONS
from helpers.protocol.messages import decode
from lab.waiting import wait_until

_LAUNCH = Path(helpers.__file__).with_name("launch.py")
_OFFER = ("alice", "ssh-ed25519", "AAAA")


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, *PYTHON_OPTIONS, str(_LAUNCH), "authorized_keys", *arguments]
    return subprocess.run(argv, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin"}, timeout=30)


def _run_with_broker(path: Path, answer: bytes, *arguments: str) -> tuple[subprocess.CompletedProcess[bytes], bytes]:
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.makefile("rb").readline())
                connection.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        done = _run(str(path), *arguments)
        thread.join()
    return done, heard[0]


_LINES = b'ssh-ed25519 AAAA\ncommand="\xff" ssh-ed25519 AAAA\n'


def test_the_lines_are_printed(tmp_path: Path) -> None:
    """Each line of the answer is printed, bytes that are no UTF-8 as they were."""
    done, request = _run_with_broker(tmp_path / "s", _LINES, *_OFFER)
    assert done.stdout == _LINES
    assert (done.returncode, done.stderr) == (0, b"")
    assert decode(request) == {
        "op": "authorized_keys",
        "user": "alice",
        "key_type": "ssh-ed25519",
        "key": "AAAA",
        "connection": "",
    }


def test_the_connection_is_handed_on(tmp_path: Path) -> None:
    """Sshd's ``%C``, one word or four, reaches the broker as one string, in the order of SSH_CONNECTION."""
    for number, words in enumerate((("192.0.2.2 22 192.0.2.1 5",), ("192.0.2.2", "22", "192.0.2.1", "5"))):
        _, request = _run_with_broker(tmp_path / str(number), b"", *_OFFER, *words)
        assert decode(request)["connection"] == "192.0.2.1 5 192.0.2.2 22"


@pytest.mark.parametrize("cut", [0, 1, len(_LINES)])
def test_cat_does_the_waiting(cut: int, tmp_path: Path) -> None:
    """While the answer, or its end, has not come, the process is cat and not Python; what it prints is the same."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        argv = [sys.executable, *PYTHON_OPTIONS, str(_LAUNCH), "authorized_keys", str(tmp_path / "s"), *_OFFER]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as helper:
            connection, _ = listener.accept()
            with connection:
                connection.makefile("rb").readline()
                connection.sendall(_LINES[:cut])
                name = Path(f"/proc/{helper.pid}/comm")
                wait_until(lambda: name.read_text() == "cat\n", "cat waits")
                connection.sendall(_LINES[cut:])
            assert helper.communicate(timeout=20) == (_LINES, b"")
    assert helper.returncode == 0


def test_no_answer_lets_nobody_in(tmp_path: Path) -> None:
    """No line, or a broker that went away: no output, and status 0, since sshd takes that as a plain no."""
    done, _ = _run_with_broker(tmp_path / "s", b"", *_OFFER)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


@pytest.mark.parametrize(
    "arguments", [(), ("/nowhere/b.sock",), ("/nowhere/b.sock", *_OFFER), ("/etc/passwd", *_OFFER)]
)
def test_without_a_broker_nobody_gets_in(arguments: tuple[str, ...]) -> None:
    """The broker away, or arguments missing: no output, status 0, one line on standard error."""
    done = _run(*arguments)
    assert (done.stdout, done.returncode) == (b"", 0)
    assert done.stderr.startswith(b"authorized_keys: ")
    assert done.stderr.count(b"\n") == 1


def test_an_unknown_helper_is_refused() -> None:
    """The launcher starts its two helpers and nothing else."""
    argv = [sys.executable, "-I", "-S", str(_LAUNCH), "../evil"]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
    assert done.returncode == 1
    assert b"no helper" in done.stderr
