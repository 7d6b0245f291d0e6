"""Which connection a session shares: its place is counted, and what does not answer is left alone in time."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from helpers.session import connection_sharing

_ALIVE, _ALSO_ALIVE = os.getpid(), os.getppid()
_HELLO = struct.pack(">III", 8, 1, 4)
_PROXY = struct.pack(">III", 8, 0x8000000F, 1)
_ROOM, _NO_ROOM = (struct.pack(">I", 18) + b"\0" + kind + bytes(16) for kind in (b"\x5b", b"\x5c"))


@contextmanager
def _master(path: Path, answer: bytes | None) -> Iterator[list[bytes]]:
    """Listen as a master does and answer each session so (None: never; nothing: hang up); yields what was heard."""
    heard: list[bytes] = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    if answer is not None:
                        heard.append(connection.recv(4096))
                        connection.sendall(answer)
                    if not answer and answer is not None:
                        continue
                    while connection.recv(4096):
                        pass  # until the asker leaves

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _ended_pid() -> int:
    """Return the number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def _files(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()}


def _new(home: Path, pid: int) -> list[str]:
    return ["ControlMaster=yes", "ControlPersist=60", f"ControlPath={home}/m{pid}"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a home whose path fits into a socket's."""
    return tmp_path


def test_the_first_session_makes_a_connection(home: Path) -> None:
    """It becomes the master, and has taken the first place there."""
    assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)
    assert _files(home) == {f"s{_ALIVE}-{_ALIVE}"}


def test_while_one_is_being_made_nobody_waits_for_it(home: Path) -> None:
    """A session that begins meanwhile has a connection of its own; when the maker is gone, the next one makes it."""
    connection_sharing.options(str(home), _ALIVE)
    assert connection_sharing.options(str(home), _ALSO_ALIVE) == []
    place = home / f"s{_ALIVE}-{_ALIVE}"
    place.rename(home / f"s{_ended_pid()}-{_ended_pid()}")
    assert connection_sharing.options(str(home), _ALSO_ALIVE) == _new(home, _ALSO_ALIVE)
    assert _files(home) == {f"s{_ALSO_ALIVE}-{_ALSO_ALIVE}"}


def test_one_that_is_not_made_in_time_is_not_waited_for(home: Path) -> None:
    """A session whose ssh never listened (its directory was full, say) keeps nobody else from sharing."""
    connection_sharing.options(str(home), _ALIVE)
    old = time.time() - connection_sharing.MAKING_S - 1
    os.utime(home / f"s{_ALIVE}-{_ALIVE}", (old, old))
    assert connection_sharing.options(str(home), _ALSO_ALIVE) == _new(home, _ALSO_ALIVE)


def test_a_live_connection_is_shared_once_the_remote_has_answered(home: Path) -> None:
    """The remote is asked for a channel, as PROTOCOL.mux has it; ssh is to use that master and make none."""
    with _master(home / "m77", _HELLO + _PROXY + _ROOM) as heard:
        assert connection_sharing.options(str(home), _ALIVE) == ["ControlMaster=no", f"ControlPath={home}/m77"]
    channel = b"\0\x5a\0\0\0\x07session" + struct.pack(">III", 0, 0x8000, 0x4000)
    assert heard == [_HELLO + struct.pack(">III", 8, 0x1000000F, 1) + struct.pack(">I", len(channel)) + channel]
    assert f"s77-{_ALIVE}" in _files(home)


def test_a_connection_without_room_is_given_up(home: Path) -> None:
    """Where the remote takes no session over it, its master ends by that: a new one is made."""
    with _master(home / "m77", _HELLO + _PROXY + _NO_ROOM):
        assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)
    assert _files(home) == {f"s{_ALIVE}-{_ALIVE}"}


def test_a_connection_in_use_is_not_even_asked(home: Path) -> None:
    """A question can end a master, and what runs over it; it is free again when its session has ended."""
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as live,
        _master(home / "m77", _HELLO + _PROXY + _ROOM) as heard,
    ):
        (home / f"s77-{live.pid}").touch()
        assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)
        assert heard == []
        (home / f"s{_ALIVE}-{_ALIVE}").unlink()
        live.communicate()
        assert connection_sharing.options(str(home), _ALIVE) == ["ControlMaster=no", f"ControlPath={home}/m77"]
    assert _files(home) == {"m77", f"s77-{_ALIVE}"}


def test_the_makers_own_session_has_the_connection(home: Path) -> None:
    """Once the new connection is there, the next session makes another while the first one lasts."""
    connection_sharing.options(str(home), _ALIVE)
    with _master(home / f"m{_ALIVE}", _HELLO + _PROXY + _ROOM) as heard:
        assert connection_sharing.options(str(home), _ALSO_ALIVE) == _new(home, _ALSO_ALIVE)
        assert heard == []


def test_of_several_the_same_is_taken_each_time(home: Path) -> None:
    """The others then leave, a minute after their last session."""
    with ExitStack() as stack:
        for number in (12, 7, 99):
            stack.enter_context(_master(home / f"m{number}", _HELLO + _PROXY + _ROOM))
        assert connection_sharing.options(str(home), _ALIVE)[1] == f"ControlPath={home}/m7"
        assert connection_sharing.options(str(home), _ALSO_ALIVE)[1] == f"ControlPath={home}/m12"


@pytest.mark.parametrize(
    "answer",
    [None, b"", _HELLO, _HELLO + _PROXY, b"\xff\xff\xff\xff", _HELLO + struct.pack(">I", 10), b"SSH-2.0-x\r\n" * 9],
    ids=["silent", "closing", "hello", "no answer of the remote's", "long frame", "half a frame", "something else"],
)
def test_what_does_not_answer_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    """A new connection is made, and nobody asks that one again."""
    monkeypatch.setattr(connection_sharing, "PATIENCE_S", 0.1)
    with _master(home / "m77", answer):
        assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)
    assert _files(home) == {f"s{_ALIVE}-{_ALIVE}"}


def test_however_many_are_dead_the_wait_is_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When patience has gone on the first that never answers, the others are not asked."""
    monkeypatch.setattr(connection_sharing, "PATIENCE_S", 0.1)
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(_master(home / f"m{number + 1}", None))
        assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)
    assert len(_files(home) & {"m1", "m2", "m3", "m4"}) == 3


def _dead_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [_dead_socket, Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")],
    ids=["dead socket", "directory", "file", "dangling link"],
)
def test_what_is_no_master_is_passed_over(home: Path, make: Callable[[Path], object]) -> None:
    """Something else under a master's name costs a session nothing."""
    make(home / "m77")
    assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)


def test_an_old_connection_takes_no_new_sessions(home: Path) -> None:
    """An hour after it was made the remote is to decide anew, and it is not asked even if it is alive."""
    with _master(home / "m77", _HELLO + _PROXY + _ROOM) as heard:
        old = time.time() - connection_sharing.MAX_AGE_S - 1
        os.utime(home / "m77", (old, old))
        assert connection_sharing.options(str(home), _ALIVE) == _new(home, _ALIVE)
        assert heard == []


def test_without_a_directory_nothing_is_shared(tmp_path: Path) -> None:
    """A home that is not there, or no directory, leaves ssh to itself."""
    (tmp_path / "file").touch()
    assert (
        connection_sharing.options(str(tmp_path / "missing"), _ALIVE)
        == connection_sharing.options(str(tmp_path / "file"), _ALIVE)
        == []
    )


def test_the_longest_name_fits() -> None:
    """With the longest runtime directory, the largest uid and pid, and what ssh appends, a socket's path is enough."""
    (path,) = (word.partition("=")[2] for word in _new(Path(f"{'/' + 'r' * 63}/home/2147483647"), 4194304)[2:])
    assert len(f"{path}.0123456789abcdef") < 108
